/* draw - prompts to pictures: networks planned, text states, the denoising loop.  Pixels are in draw_pixels.c. */
#include "draw_private.h"

#include <math.h>
#include <string.h>

static void
close_draw(void *argument)
{
    struct sd_draw *d = argument;

    draw_loops_free(d);
    for (struct net *n = d->nets; n; n = n->next) {
        sd_plan_free(n->plan);
        sd_graph_free(n->graph);
    }
    sd_arena_free(d->arena);
}

int
sd_draw_size(const struct sd_model *m, int64_t width, int64_t height)
{
    int factor = sd_vae_factor(&m->vae_config), least = factor << (m->unet_config.levels - 1);

    if (width % factor || height % factor)
        return sd_fail("%lldx%lld: sides must be multiples of %d", (long long)width, (long long)height, factor);
    if (width < least || height < least)
        return sd_fail("%lldx%lld: sides must be at least %d", (long long)width, (long long)height, least);
    return 0;
}

struct sd_draw *
sd_draw_new(struct sd_scope *s, const struct sd_draw_model *m, const struct sd_draw_options *o)
{
    struct sd_draw *d = sd_alloc(s, sizeof *d);
    int factor = sd_vae_factor(&m->model->vae_config);

    if (sd_draw_size(m->model, o->width, o->height) < 0)
        return NULL;
    d->scope = s;
    d->m = *m;
    d->o = *o;
    d->h = o->height / factor;
    d->w = o->width / factor;
    d->channels = m->model->vae_config.latent_channels;
    d->length = m->tokenizer->model_max_length;
    d->state_width = m->model->unet_config.cross_attention_dim;
    d->kv_width = sd_unet_text_width(&m->model->unet_config);
    if (m->model->unet_config.in_channels != d->channels)
        return sd_fail_null("the unet takes %d channels, the vae has %lld: inpainting models are not drawn with",
                            m->model->unet_config.in_channels, (long long)d->channels);
    if (m->model->text_config.hidden_size != d->state_width)
        return sd_fail_null("the text encoder is %d wide, the unet expects %lld", m->model->text_config.hidden_size,
                            (long long)d->state_width);
    d->arena = sd_arena_new();
    sd_on_close(s, close_draw, d);
    return d;
}

void
sd_draw_with(struct sd_draw *d, const struct sd_adapters *adapters)
{
    d->m.adapters = adapters;
}

/* -- networks ------------------------------------------------------------------------------------------------------ */

static int
describe(struct sd_draw *d, struct net *n)
{
    struct sd_model *m = d->m.model;
    struct sd_graph *g = n->graph;
    int factor = sd_vae_factor(&m->vae_config);

    if (n->kind == TEXT) {
        struct sd_clip_text *text = sd_model_text_encoder(m);

        if (!text)
            return -1;
        n->in[0] = sd_input(g, "input_ids", SD_I32, 2, (int64_t[]){ n->batch, d->length });
        n->out = sd_op_cast(g, sd_clip_text(g, text, d->m.adapters, n->in[0], d->m.rows, d->o.clip_skip), SD_F32);
    } else if (n->kind == TEXT_KV || n->kind == UNET) {
        struct sd_unet *unet = sd_model_unet(m);
        enum sd_dtype dtype = sd_graph_activations(g);

        if (!unet)
            return -1;
        if (n->kind == TEXT_KV) {
            n->in[0] = sd_input(g, "encoder_hidden_states", SD_F32, 3,
                                (int64_t[]){ n->batch, n->chunks * d->length, d->state_width });
            if (!(n->out = sd_unet_text(g, unet, d->m.adapters, n->in[0])))
                return sd_graph_ok(g) ? sd_fail("the unet has no cross-attention") : -1;
            sd_keep(n->out);
            return (n->plan = sd_plan_inference(g, 0)) ? 0 : -1;
        }
        n->in[0] = sd_input(g, "sample", SD_F32, 4, (int64_t[]){ n->batch, d->h, d->w, d->channels });
        n->in[1] = sd_input(g, "timesteps", SD_F32, 1, (int64_t[]){ n->batch });
        n->in[2] = sd_input(g, "text_kv", dtype, 3, (int64_t[]){ n->batch, n->chunks * d->length, d->kv_width });
        n->out = sd_unet_denoise(g, unet, d->m.adapters, n->in[0], n->in[1], n->in[2]);
    } else {
        struct sd_vae *vae = sd_model_vae(m);

        if (!vae)
            return -1;
        if (n->kind == DECODE) {
            n->in[0] = sd_input(g, "latents", SD_F32, 4, (int64_t[]){ n->batch, d->h, d->w, d->channels });
            n->out = sd_vae_decode(g, vae, n->in[0]);
        } else {
            n->in[0] = sd_input(g, "pixel_values", SD_F32, 4, (int64_t[]){ n->batch, d->h * factor, d->w * factor, 3 });
            n->out = sd_vae_encode(g, vae, n->in[0]);
        }
    }
    sd_keep(n->out);
    return (n->plan = sd_plan_inference(g, 0)) ? 0 : -1;
}

static struct net *
planned(struct sd_draw *d, enum net_kind kind, int64_t batch, int64_t chunks)
{
    const struct sd_adapters *adapters = kind == DECODE || kind == ENCODE ? NULL : d->m.adapters;
    struct net *n;

    for (n = d->nets; n; n = n->next)
        if (n->kind == kind && n->batch == batch && n->chunks == chunks && n->adapters == adapters)
            return n;
    n = sd_alloc(d->scope, sizeof *n);
    n->kind = kind;
    n->adapters = adapters;
    n->batch = batch;
    n->chunks = chunks;
    n->graph = sd_graph_new();
    sd_graph_on(n->graph, &d->o.compute);
    if (describe(d, n) < 0) {
        sd_graph_free(n->graph);
        return NULL;
    }
    n->next = d->nets;
    return d->nets = n;
}

struct net *
draw_ready(struct sd_draw *d, enum net_kind kind, int64_t batch, int64_t chunks)
{
    struct net *n = planned(d, kind, batch, chunks);

    if (n && !n->bound) {
        sd_plan_bind(n->plan, d->arena);
        n->bound = true;
    }
    return n;
}

int
draw_not_finite(struct net *n)
{
    const char *module = sd_run_scan(n->plan);

    return sd_fail("%s: its result is not finite", module ? module : n->out->name);
}

bool
draw_finite(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

int
sd_draw_plan_text(struct sd_draw *d, int64_t chunks)
{
    return planned(d, TEXT, chunks, 1) ? 0 : -1;
}

int
sd_draw_plan_encode(struct sd_draw *d)
{
    return planned(d, ENCODE, 1, 1) ? 0 : -1;
}

/* A loop on a device, for each kind of batch once. */
static void
plan_loop(struct sd_draw *d, const struct sd_draw_batch *b, bool guided, struct net *const nets[2])
{
    struct sd_draw_batch k = { b->count, b->chunks, guided ? b->negative_chunks : 0 };
    struct draw_batch_planned *p = d->batches;

    while (p && (p->b.count != k.count || p->b.chunks != k.chunks || p->b.negative_chunks != k.negative_chunks
                 || p->adapters != d->m.adapters))
        p = p->next;
    if (p)
        return;
    p = sd_alloc(d->scope, sizeof *p);
    p->b = k;
    p->adapters = d->m.adapters;
    p->next = d->batches;
    d->batches = p;
    d->device_bytes += draw_loop_bytes(d, k.count, guided, nets);
}

int
sd_draw_plan_batch(struct sd_draw *d, const struct sd_draw_batch *b)
{
    bool guided = d->o.guidance_scale > 1, together = guided && b->chunks == b->negative_chunks;
    struct net *nets[2] = { planned(d, UNET, together ? 2 * b->count : b->count, b->chunks), NULL };
    size_t kv = (size_t)(b->chunks * b->count * (together ? 2 : 1));
    double flops = 0;

    if (guided && !together && b->negative_chunks > b->chunks)
        kv = (size_t)(b->negative_chunks * b->count);
    kv *= (size_t)(d->length * d->kv_width) * sizeof(float);
    if (!planned(d, TEXT_KV, 1, b->chunks) || (guided && !planned(d, TEXT_KV, 1, b->negative_chunks)))
        return -1;
    if (!d->o.compute.device && kv > d->kv_bytes)
        d->kv_bytes = kv;
    if (!nets[0] || (guided && !together && !(nets[1] = planned(d, UNET, b->count, b->negative_chunks)))
        || !planned(d, DECODE, 1, 1))
        return -1;
    if (d->o.compute.device)
        plan_loop(d, b, guided, nets);
    for (int i = 0; i < 2; i++)
        flops += nets[i] ? sd_plan_report(nets[i]->plan).flops : 0;
    d->step_flops = flops > d->step_flops ? flops : d->step_flops;
    return 0;
}

struct sd_draw_report
sd_draw_report(const struct sd_draw *d)
{
    struct sd_draw_report sum = { .step_flops = d->step_flops, .kv_bytes = d->kv_bytes };

    double text = 0, kv = 0;

    for (const struct net *n = d->nets; n; n = n->next) {
        struct sd_plan_report r = sd_plan_report(n->plan);

        sum.arena_bytes = r.arena_bytes > sum.arena_bytes ? r.arena_bytes : sum.arena_bytes;
        sum.activations_bytes = r.activations_bytes > sum.activations_bytes ? r.activations_bytes
                                                                            : sum.activations_bytes;
        if (n->kind == TEXT && r.flops > text)
            text = r.flops;
        if (n->kind == TEXT_KV && r.flops > kv)
            kv = r.flops;
        if (n->kind == DECODE)
            sum.decode_flops = r.flops;
    }
    sum.text_flops = text + kv;
    if (d->o.compute.device) {
        sd_device_bytes_of(&sum.device, d->o.compute.device, sum.arena_bytes);
        sum.device.latents = d->device_bytes;
    }
    return sum;
}

/* -- text ---------------------------------------------------------------------------------------------------------- */

static double
mean(const float *x, size_t n)
{
    double sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += x[i];
    return sum / (double)n;
}

/* A1111's emphasis "Original": z w, then the mean of the chunk as it was before */
static void
emphasise(struct sd_draw *d, const struct sd_prompt *p, float *states)
{
    size_t chunk = (size_t)(d->length * d->state_width);

    for (int c = 0; c < p->chunks; c++) {
        float *z = states + (size_t)c * chunk;
        double before = mean(z, chunk), after;

        for (int64_t l = 0; l < d->length; l++)
            for (int64_t i = 0; i < d->state_width; i++)
                z[l * d->state_width + i] *= p->weights[c * d->length + l];
        after = mean(z, chunk);
        for (size_t i = 0; after != 0 && i < chunk; i++)
            z[i] = (float)(z[i] * (before / after));
    }
}

int
sd_draw_text(struct sd_draw *d, struct sd_scope *s, const struct sd_prompt *prompt, struct sd_draw_text *text)
{
    size_t numel = (size_t)(prompt->chunks * d->length * d->state_width);
    float *states = sd_alloc_array(s, numel, sizeof *states);
    struct net *n = draw_ready(d, TEXT, prompt->chunks, 1);

    if (!n)
        return -1;
    sd_feed(n->plan, n->in[0], prompt->input_ids);
    sd_run(n->plan);
    sd_fetch(n->plan, n->out, states);
    if (!draw_finite(states, numel)) {
        sd_feed(n->plan, n->in[0], prompt->input_ids);
        return draw_not_finite(n);
    }
    if (prompt->weighted)
        emphasise(d, prompt, states);
    *text = (struct sd_draw_text){ prompt->chunks, states };
    return 0;
}

struct net *
draw_text_kv(struct sd_draw *d, const struct sd_draw_text *text, bool look)
{
    struct net *n = draw_ready(d, TEXT_KV, 1, text->chunks);
    const char *module = NULL;

    if (!n)
        return NULL;
    sd_feed(n->plan, n->in[0], text->states);
    if (look)
        module = sd_run_scan(n->plan);
    else
        sd_run(n->plan);
    return module ? sd_fail_null("%s: its result is not finite", module) : n;
}

/* -- the denoising loop -------------------------------------------------------------------------------------------- */

struct loop {
    struct sd_draw *d;
    const struct sd_draw_picture *pictures;
    int count;
    size_t numel;               /* of one picture */
    bool guided, together;      /* both texts in one batch */
    float *x, *out, *uncond, *fresh, *nchw;
    float *sample, *timesteps;  /* fed */
    char *kv;                   /* of the texts, made before the first call; those of the network's batch */
    struct net *fed;            /* has these */
};

enum texts { NEGATIVE, POSITIVE, BOTH };        /* both: the negative ones first */

/* Keys and values of the texts of a network's batch; the same text is done once where it comes again. */
static int
texts_of(struct loop *l, struct net *n, enum texts which, bool look)
{
    struct sd_draw *d = l->d;
    size_t bytes = (size_t)(n->chunks * d->length * d->kv_width) * sd_element_size(n->in[2]->dtype);
    const float *before = NULL;

    for (int b = 0; b < (int)n->batch; b++) {
        const struct sd_draw_picture *p = &l->pictures[b % l->count];
        const struct sd_draw_text *text = which == NEGATIVE || (which == BOTH && b < l->count) ? p->negative : p->prompt;
        char *kv = l->kv + (size_t)b * bytes;

        if (text->states == before)
            memcpy(kv, kv - bytes, bytes);
        else {
            struct net *t = draw_text_kv(d, text, look);

            if (!t)
                return -1;
            sd_fetch(t->plan, t->out, kv);
            before = text->states;
        }
    }
    return 0;
}

/* What a network is fed; look: once more, looking at every module. */
static int
fill(struct loop *l, struct net *n, int call, enum texts which, bool look)
{
    const struct sd_sampler_step *step = &l->d->o.sampler->steps[call];
    bool texts = look || l->fed != n;       /* they stay the same from call to call */

    if (texts && texts_of(l, n, which, look) < 0)
        return -1;
    for (int b = 0; b < (int)n->batch; b++) {
        for (size_t i = 0; i < l->numel; i++)
            l->sample[(size_t)b * l->numel + i] = (float)step->input_scale * l->x[(size_t)(b % l->count) * l->numel + i];
        l->timesteps[b] = (float)step->timestep;
    }
    sd_feed(n->plan, n->in[0], l->sample);
    sd_feed(n->plan, n->in[1], l->timesteps);
    if (texts)
        sd_feed(n->plan, n->in[2], l->kv);
    l->fed = n;
    return 0;
}

/* model_pred of all pictures under one of their two texts, or under both at once */
static int
predict(struct loop *l, int call, enum texts which, float *out)
{
    struct sd_draw *d = l->d;
    const struct sd_draw_text *first = which == NEGATIVE ? l->pictures[0].negative : l->pictures[0].prompt;
    int batch = which == BOTH ? 2 * l->count : l->count;
    struct net *n = draw_ready(d, UNET, batch, first->chunks);

    if (!n)
        return -1;
    if (fill(l, n, call, which, false) < 0)
        return -1;
    sd_run(n->plan);
    sd_fetch(n->plan, n->out, out);
    if (draw_finite(out, (size_t)batch * l->numel))
        return 0;
    if (fill(l, n, call, which, true) == 0)         /* the inputs may have been written over */
        draw_not_finite(n);
    return sd_fail_prefix("step %d of %d", call + 1, d->o.sampler->calls);
}

static int
denoise(struct loop *l, int call, struct sd_sampler_state *state)
{
    struct sd_draw *d = l->d;
    const struct sd_sampler *sampler = d->o.sampler;
    size_t all = (size_t)l->count * l->numel;
    const float *cond = l->out;

    if (l->together) {
        if (predict(l, call, BOTH, l->uncond) < 0)
            return -1;
        cond = l->uncond + all;
    } else if ((l->guided && predict(l, call, NEGATIVE, l->uncond) < 0) || predict(l, call, POSITIVE, l->out) < 0)
        return -1;
    sd_guidance(l->out, l->guided ? l->uncond : NULL, cond, (size_t)l->count, l->numel, d->o.guidance_scale,
                d->o.guidance_rescale);
    for (int b = 0; sampler->draws_noise && b < l->count; b++) {
        l->pictures[b].fresh(l->pictures[b].user, call, l->nchw);
        draw_to_nhwc(l->fresh + (size_t)b * l->numel, l->nchw, d->channels, d->h * d->w);
    }
    sd_sampler_apply(sampler, call, state, l->x, l->out, sampler->draws_noise ? l->fresh : NULL);
    return draw_finite(l->x, all) ? 0 : sd_fail("latents are not finite after step %d of %d", call + 1, sampler->calls);
}

int
sd_draw_pictures(struct sd_draw *d, const struct sd_draw_picture *pictures, int count,
                 void (*progress)(void *, int, int), void *user)
{
    const struct sd_sampler *sampler = d->o.sampler;
    struct loop l = { .d = d, .pictures = pictures, .count = count,
                      .numel = (size_t)(d->h * d->w * d->channels), .guided = d->o.guidance_scale > 1 };
    size_t all = (size_t)count * l.numel;
    int64_t most = pictures[0].prompt->chunks;
    struct sd_sampler_state *state;
    struct sd_scope *s;
    int status = 0;

    if (draw_on_device(d, pictures, count, progress, user, &status))
        return status;
    s = sd_scope_open();
    state = sd_sampler_state_new(s, sampler, (size_t)count, l.numel);
    l.together = l.guided && pictures[0].negative->chunks == pictures[0].prompt->chunks;
    if (l.guided && pictures[0].negative->chunks > most)
        most = pictures[0].negative->chunks;
    l.x = sd_alloc_array(s, all, sizeof(float));
    l.nchw = sd_alloc_array(s, l.numel, sizeof(float));
    l.out = sd_alloc_array(s, all, sizeof(float));
    l.uncond = sd_alloc_array(s, 2 * all, sizeof(float));
    l.fresh = sd_alloc_array(s, all, sizeof(float));
    l.sample = sd_alloc_array(s, 2 * all, sizeof(float));
    l.timesteps = sd_alloc_array(s, 2 * (size_t)count, sizeof(float));
    l.kv = sd_alloc_array(s, (size_t)count * (size_t)((l.together ? 2 : 1) * most * d->length * d->kv_width), sizeof(float));
    for (int b = 0; b < count; b++)
        draw_to_nhwc(l.x + (size_t)b * l.numel, pictures[b].start, d->channels, d->h * d->w);
    for (int call = 0; status == 0 && call < sampler->calls; call++) {
        status = denoise(&l, call, state);
        if (progress && status == 0)
            progress(user, call + 1, sampler->calls);
    }
    for (int b = 0; b < count; b++)
        draw_to_nchw(pictures[b].latents, l.x + (size_t)b * l.numel, d->channels, d->h * d->w);
    sd_scope_close(s);
    return status;
}
