/* draw - prompts to pictures. */
#include "draw.h"

#include <math.h>
#include <string.h>

/* A planned network with one or more inputs and one output. */
struct net {
    enum { TEXT, UNET, DECODE, ENCODE } kind;
    int64_t batch, chunks;
    struct sd_graph *graph;
    struct sd_plan *plan;
    struct sd_tensor *in[3], *out;
    bool bound;
    struct net *next;
};

struct sd_draw {
    struct sd_scope *scope;
    struct sd_draw_model m;
    struct sd_draw_options o;
    int64_t h, w, channels, length, state_width;
    struct sd_arena *arena;
    struct net *nets;
};

static void
close_draw(void *argument)
{
    struct sd_draw *d = argument;

    for (struct net *n = d->nets; n; n = n->next) {
        sd_plan_free(n->plan);
        sd_graph_free(n->graph);
    }
    sd_arena_free(d->arena);
}

struct sd_draw *
sd_draw_new(struct sd_scope *s, const struct sd_draw_model *m, const struct sd_draw_options *o)
{
    struct sd_draw *d = sd_alloc(s, sizeof *d);
    int factor = sd_vae_factor(&m->model->vae_config), least = 1 << (m->model->unet_config.levels - 1);

    if (o->width % factor || o->height % factor)
        return sd_fail_null("%lldx%lld: sides must be multiples of %d", (long long)o->width, (long long)o->height, factor);
    if (o->width / factor < least || o->height / factor < least)
        return sd_fail_null("%lldx%lld: sides must be at least %d", (long long)o->width, (long long)o->height, factor * least);
    d->scope = s;
    d->m = *m;
    d->o = *o;
    d->h = o->height / factor;
    d->w = o->width / factor;
    d->channels = m->model->vae_config.latent_channels;
    d->length = m->tokenizer->model_max_length;
    d->state_width = m->model->unet_config.cross_attention_dim;
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

/* -- networks ------------------------------------------------------------------------------------------------------- */

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
        n->out = sd_clip_text(g, text, d->m.adapters, n->in[0], d->m.rows, d->o.clip_skip);
    } else if (n->kind == UNET) {
        struct sd_unet *unet = sd_model_unet(m);

        if (!unet)
            return -1;
        n->in[0] = sd_input(g, "sample", SD_F32, 4, (int64_t[]){ n->batch, d->h, d->w, d->channels });
        n->in[1] = sd_input(g, "timesteps", SD_F32, 1, (int64_t[]){ n->batch });
        n->in[2] = sd_input(g, "encoder_hidden_states", SD_F32, 3,
                            (int64_t[]){ n->batch, n->chunks * d->length, d->state_width });
        n->out = sd_unet(g, unet, d->m.adapters, n->in[0], n->in[1], n->in[2]);
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
    return (n->plan = sd_plan_inference(g, d->o.memory)) ? 0 : -1;
}

static struct net *
planned(struct sd_draw *d, int kind, int64_t batch, int64_t chunks)
{
    struct net *n;

    for (n = d->nets; n; n = n->next)
        if ((int)n->kind == kind && n->batch == batch && n->chunks == chunks)
            return n;
    n = sd_alloc(d->scope, sizeof *n);
    n->kind = kind;
    n->batch = batch;
    n->chunks = chunks;
    n->graph = sd_graph_new();
    if (describe(d, n) < 0) {
        sd_graph_free(n->graph);
        return NULL;
    }
    n->next = d->nets;
    return d->nets = n;
}

static struct net *
ready(struct sd_draw *d, int kind, int64_t batch, int64_t chunks)
{
    struct net *n = planned(d, kind, batch, chunks);

    if (n && !n->bound) {
        sd_plan_bind(n->plan, d->arena);
        n->bound = true;
    }
    return n;
}

/* -- text ----------------------------------------------------------------------------------------------------------- */

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
sd_draw_text(struct sd_draw *d, struct sd_scope *s, const char *prompt, struct sd_draw_text *text)
{
    struct sd_prompt p;
    struct net *n;

    if (sd_prompt_encode(d->m.tokenizer, s, d->o.syntax, prompt, &p) < 0)
        return -1;
    text->chunks = p.chunks;
    text->cut = p.cut;
    text->cut_text = p.cut_text;
    text->states = sd_alloc_array(s, (size_t)(p.chunks * d->length * d->state_width), sizeof *text->states);
    if (!(n = ready(d, TEXT, p.chunks, 1)))
        return -1;
    sd_feed(n->plan, n->in[0], p.input_ids);
    sd_run(n->plan);
    sd_fetch(n->plan, n->out, text->states);
    if (p.weighted)
        emphasise(d, &p, text->states);
    return 0;
}

/* -- the denoising loop --------------------------------------------------------------------------------------------- */

static void
to_nhwc(float *to, const float *from, int64_t channels, int64_t pixels)
{
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < channels; c++)
            to[p * channels + c] = from[c * pixels + p];
}

static void
to_nchw(float *to, const float *from, int64_t channels, int64_t pixels)
{
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < channels; c++)
            to[c * pixels + p] = from[p * channels + c];
}

struct loop {
    struct sd_draw *d;
    struct sd_scope *scope;
    struct sd_draw_picture *pictures;
    int count;
    size_t numel;               /* of one picture */
    bool guided, together;      /* both texts in one batch */
    float *x, *scaled, *out, *uncond, *fresh;
};

/* model_pred of all pictures under one of their two texts, or under both at once (negative first) */
static int
predict(struct loop *l, int call, int which, float *out)
{
    struct sd_draw *d = l->d;
    const struct sd_sampler_step *step = &d->o.sampler->steps[call];
    int halves = which == 2 ? 2 : 1, batch = l->count * halves;
    const struct sd_draw_text *first = which == 0 ? l->pictures[0].negative : l->pictures[0].prompt;
    struct net *n = ready(d, UNET, batch, first->chunks);
    size_t states = (size_t)(first->chunks * d->length * d->state_width);
    float *sample, *timesteps, *text;

    if (!n)
        return -1;
    sample = sd_data(n->plan, n->in[0]);
    timesteps = sd_data(n->plan, n->in[1]);
    text = sd_data(n->plan, n->in[2]);
    for (int b = 0; b < batch; b++) {
        const struct sd_draw_picture *p = &l->pictures[b % l->count];
        bool negative = which == 0 || (which == 2 && b < l->count);

        for (size_t i = 0; i < l->numel; i++)
            sample[(size_t)b * l->numel + i] = (float)step->input_scale * l->x[(size_t)(b % l->count) * l->numel + i];
        timesteps[b] = (float)step->timestep;
        memcpy(text + (size_t)b * states, negative ? p->negative->states : p->prompt->states, states * sizeof *text);
    }
    sd_run(n->plan);
    sd_fetch(n->plan, n->out, out);
    return 0;
}

static int
denoise(struct loop *l, int call, struct sd_sampler_state *state)
{
    struct sd_draw *d = l->d;
    const struct sd_sampler *sampler = d->o.sampler;
    size_t all = (size_t)l->count * l->numel;
    const float *cond = l->out;

    if (l->together) {
        if (predict(l, call, 2, l->uncond) < 0)
            return -1;
        cond = l->uncond + all;
    } else if ((l->guided && predict(l, call, 0, l->uncond) < 0) || predict(l, call, 1, l->out) < 0)
        return -1;
    sd_guidance(l->out, l->guided ? l->uncond : NULL, cond, (size_t)l->count, l->numel, d->o.guidance_scale,
                d->o.guidance_rescale);
    if (sampler->draws_noise) {
        float *nchw = l->scaled;

        for (int b = 0; b < l->count; b++) {
            l->pictures[b].fresh(l->pictures[b].user, call, nchw);
            to_nhwc(l->fresh + (size_t)b * l->numel, nchw, d->channels, d->h * d->w);
        }
    }
    sd_sampler_apply(sampler, call, state, l->x, l->out, sampler->draws_noise ? l->fresh : NULL);
    for (size_t i = 0; i < all; i++)
        if (!isfinite(l->x[i]))
            return sd_fail("latents are not finite after step %d", call + 1);
    return 0;
}

int
sd_draw_pictures(struct sd_draw *d, struct sd_draw_picture *pictures, int count, void (*progress)(void *, int, int), void *user)
{
    const struct sd_sampler *sampler = d->o.sampler;
    struct sd_scope *s = sd_scope_open();
    struct loop l = { .d = d, .scope = s, .pictures = pictures, .count = count,
                      .numel = (size_t)(d->h * d->w * d->channels), .guided = d->o.guidance_scale > 1 };
    size_t all = (size_t)count * l.numel;
    struct sd_sampler_state *state = sd_sampler_state_new(s, sampler, (size_t)count, l.numel);
    int status = 0;

    l.together = l.guided && pictures[0].negative->chunks == pictures[0].prompt->chunks;
    l.x = sd_alloc_array(s, all, sizeof(float));
    l.scaled = sd_alloc_array(s, all, sizeof(float));
    l.out = sd_alloc_array(s, all, sizeof(float));
    l.uncond = sd_alloc_array(s, 2 * all, sizeof(float));
    l.fresh = sd_alloc_array(s, all, sizeof(float));
    for (int b = 0; b < count; b++)
        to_nhwc(l.x + (size_t)b * l.numel, pictures[b].start, d->channels, d->h * d->w);
    for (int call = 0; status == 0 && call < sampler->calls; call++) {
        status = denoise(&l, call, state);
        if (progress && status == 0)
            progress(user, call + 1, sampler->calls);
    }
    for (int b = 0; b < count; b++)
        to_nchw(pictures[b].latents, l.x + (size_t)b * l.numel, d->channels, d->h * d->w);
    sd_scope_close(s);
    return status;
}

/* -- pixels --------------------------------------------------------------------------------------------------------- */

struct sd_image *
sd_draw_decode(struct sd_draw *d, struct sd_scope *s, const float *latents)
{
    struct net *n = ready(d, DECODE, 1, 1);
    size_t numel = (size_t)(d->h * d->w * d->channels), pixels = (size_t)(d->o.width * d->o.height);
    struct sd_image *image;
    float *in;
    const float *out;

    if (!n)
        return NULL;
    in = sd_data(n->plan, n->in[0]);
    to_nhwc(in, latents, d->channels, d->h * d->w);
    for (size_t i = 0; i < numel; i++)
        in[i] /= (float)d->m.model->vae_config.scaling_factor;
    sd_run(n->plan);
    out = sd_data(n->plan, n->out);
    image = sd_image_new(s, (int)d->o.width, (int)d->o.height, 3);
    for (size_t i = 0; i < pixels * 3; i++) {
        float v = out[i] / 2 + 0.5f;

        if (!isfinite(v))
            return sd_fail_null("decoded pixels are not finite");
        image->data[i] = (uint8_t)lrintf((v < 0 ? 0 : v > 1 ? 1 : v) * 255);
    }
    return image;
}

int
sd_draw_encode(struct sd_draw *d, const struct sd_image *image, const float *noise, float *latents)
{
    struct net *n = ready(d, ENCODE, 1, 1);
    int64_t pixels = d->h * d->w;
    const float *moments;
    float *in;

    if (!n)
        return -1;
    if (image->width != d->o.width || image->height != d->o.height)
        return sd_fail("picture of %dx%d, expected %lldx%lld", image->width, image->height, (long long)d->o.width,
                       (long long)d->o.height);
    in = sd_data(n->plan, n->in[0]);
    for (size_t i = 0; i < n->in[0]->numel; i++)
        in[i] = 2 * ((float)image->data[i] / 255.0f) - 1;       /* as diffusers rounds it */
    sd_run(n->plan);
    moments = sd_data(n->plan, n->out);
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < d->channels; c++) {
            float logvar = moments[p * 2 * d->channels + d->channels + c];

            logvar = logvar < -30 ? -30 : logvar > 20 ? 20 : logvar;
            latents[c * pixels + p] = (moments[p * 2 * d->channels + c] + expf(0.5f * logvar) * noise[c * pixels + p])
                                      * (float)d->m.model->vae_config.scaling_factor;
        }
    return 0;
}

int
sd_draw_plan(struct sd_draw *d, int count, int chunks, bool encode, struct sd_draw_plan *p)
{
    struct net *nets[4] = { planned(d, TEXT, chunks, 1),
                            planned(d, UNET, d->o.guidance_scale > 1 ? 2 * count : count, chunks),
                            planned(d, DECODE, 1, 1), encode ? planned(d, ENCODE, 1, 1) : NULL };

    memset(p, 0, sizeof *p);
    if (!nets[0] || !nets[1] || !nets[2] || (encode && !nets[3]))
        return -1;
    for (int i = 0; i < 4; i++) {
        struct sd_plan_report r;

        if (!nets[i])
            continue;
        r = sd_plan_report(nets[i]->plan);
        if (r.arena_bytes > p->arena_bytes)
            p->arena_bytes = r.arena_bytes;
        if (r.activations_bytes > p->activations_bytes)
            p->activations_bytes = r.activations_bytes;
        *(i == 0 ? &p->text_flops : i == 1 ? &p->step_flops : &p->decode_flops) += r.flops;
    }
    return 0;
}
