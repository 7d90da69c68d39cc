/* draw_device - the denoising loop on a device: one recording is one call of the sampler, and the host only counts. */
#include "draw_private.h"

#include <string.h>

#if SD_WITH_CUDA && SD_REAL_IS_FLOAT
#include "denoise.h"
#include "repeat.h"

/* One kind of batch, a shape with adapters: its memory and its recording, kept for the next batch of that kind. */
struct draw_loop {
    struct sd_draw *d;
    int count;
    int64_t chunks, negative_chunks;    /* of the texts; negative_chunks 0 without guidance */
    const struct sd_adapters *adapters;
    bool together;                      /* both texts in one batch */
    struct net *net[2];                 /* of the prompts, or of both; of the negative ones */
    char *kv[2];                        /* keys and values of the texts, which each is fed */
    float *pred[2];                     /* what each gives; NULL where the result stays where it is */
    float *noise;
    double *room;
    struct sd_denoise n;
    struct sd_repeat repeat;
    struct draw_loop *next;
};

_Static_assert((int)SD_DENOISE_HISTORY == (int)SD_HISTORY_MAX && (int)SD_DENOISE_COLUMNS == (int)SD_COLUMNS,
               "columns of denoise.h are those of samplers.h");

static float *
floats(struct draw_loop *l, int64_t n)
{
    return sd_device_alloc(l->d->o.compute.device, (size_t)n * sizeof(float), "latents");
}

void
draw_loops_free(struct sd_draw *d)
{
    struct sd_device *device = d->o.compute.device;

    for (struct draw_loop *l = d->loops; l; l = l->next) {
        void *all[] = { l->kv[0], l->kv[1], l->pred[0], l->pred[1], l->noise, l->room, (void *)l->n.calls,
                        l->n.call, l->n.bad, l->n.x, l->n.out, l->n.history[0], l->n.history[1], l->n.history[2],
                        l->n.history[3] };

        sd_repeat_end(&l->repeat);
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            if (all[i])
                sd_device_free(device, all[i]);
    }
}

/* The sampler's numbers, as floats. */
static void
write_calls(struct draw_loop *l)
{
    const struct sd_sampler *sampler = l->d->o.sampler;
    struct sd_scope *s = sd_scope_open();
    size_t bytes = (size_t)sampler->calls * sizeof(struct sd_denoise_call);
    struct sd_denoise_call *calls = sd_alloc(s, bytes);

    for (int i = 0; i < sampler->calls; i++) {
        const struct sd_sampler_step *from = &sampler->steps[i];
        struct sd_denoise_call *to = &calls[i];

        to->timestep = (float)from->timestep;
        to->input_scale = (float)from->input_scale;
        to->x0[0] = (float)from->x0[0];
        to->x0[1] = (float)from->x0[1];
        for (int c = 0; c < SD_COLUMNS; c++) {
            to->x[c] = (float)from->x[c];
            for (int k = 0; k < SD_HISTORY_MAX; k++)
                to->history[k][c] = (float)from->history[k][c];
        }
    }
    l->n.calls = sd_device_alloc(l->d->o.compute.device, bytes, "the sampler");
    sd_device_write(l->d->o.compute.device, (void *)l->n.calls, calls, bytes);
    sd_scope_close(s);
}

/* of one picture's text */
static size_t
kv_bytes(const struct net *n)
{
    return n->in[2]->numel / (size_t)n->batch * sd_element_size(n->in[2]->dtype);
}

size_t
draw_loop_bytes(const struct sd_draw *d, int count, bool guided, struct net *const nets[2])
{
    const struct sd_sampler *sampler = d->o.sampler;
    int64_t numel = d->h * d->w * d->channels;
    size_t all = (size_t)(count * numel) * sizeof(float), calls = (size_t)sampler->calls;
    const struct sd_denoise *n = NULL;
    size_t bytes = all * (1 + (size_t)sampler->history + sampler->draws_noise) + sizeof *n->call
                   + calls * (sizeof *n->calls + sizeof *n->bad);

    if (sampler->clamp == SD_CLAMP_QUANTILE)
        return 0;               /* the host's loop */
    for (int i = 0; i < 2 && nets[i]; i++)
        bytes += kv_bytes(nets[i]) * (size_t)nets[i]->batch + (nets[1] ? all : 0);
    return bytes + (guided ? all + sd_denoise_room(count, numel) * sizeof(double) : 0);
}

static struct draw_loop *
loop_new(struct sd_draw *d, int count, int64_t chunks, int64_t negative_chunks)
{
    const struct sd_sampler *sampler = d->o.sampler;
    struct draw_loop *l = sd_alloc(d->scope, sizeof *l);
    int64_t numel = d->h * d->w * d->channels, all = count * numel;

    l->d = d;
    l->count = count;
    l->chunks = chunks;
    l->negative_chunks = negative_chunks;
    l->adapters = d->m.adapters;
    l->together = negative_chunks == chunks;
    if (!(l->net[0] = draw_ready(d, UNET, l->together ? 2 * count : count, chunks))
        || (negative_chunks && !l->together && !(l->net[1] = draw_ready(d, UNET, count, negative_chunks))))
        return NULL;
    for (int i = 0; i < 2 && l->net[i]; i++) {
        l->kv[i] = sd_device_alloc(d->o.compute.device, kv_bytes(l->net[i]) * (size_t)l->net[i]->batch, "texts");
        if (l->net[1])          /* the other network's run takes its place */
            l->pred[i] = floats(l, all);
    }
    l->n = (struct sd_denoise){ .batch = count, .numel = numel, .slots = sampler->history,
                                .clamps = sampler->clamp == SD_CLAMP_RANGE, .range = (float)sampler->clamp_range };
    write_calls(l);
    l->n.x = floats(l, all);
    if (negative_chunks) {
        l->n.out = floats(l, all);
        l->room = sd_device_alloc(d->o.compute.device, sd_denoise_room(count, numel) * sizeof *l->room, "sums");
    }
    for (int k = 0; k < sampler->history; k++)
        l->n.history[k] = floats(l, all);
    if (sampler->draws_noise)
        l->n.noise = l->noise = floats(l, all);
    l->n.call = sd_device_alloc(d->o.compute.device, sizeof *l->n.call, "the sampler");
    l->n.bad = sd_device_alloc(d->o.compute.device, (size_t)sampler->calls * sizeof *l->n.bad, "the sampler");
    l->next = d->loops;
    return d->loops = l;
}

static struct draw_loop *
loop_for(struct sd_draw *d, int count, int64_t chunks, int64_t negative_chunks)
{
    for (struct draw_loop *l = d->loops; l; l = l->next)
        if (l->count == count && l->chunks == chunks && l->negative_chunks == negative_chunks
            && l->adapters == d->m.adapters)
            return l;
    return loop_new(d, count, chunks, negative_chunks);
}

/* One network's share of a call; where its result lies. */
static const float *
predict(struct draw_loop *l, int i)
{
    struct sd_device *device = l->d->o.compute.device;
    struct net *n = l->net[i];
    const float *out;

    sd_denoise_input(device, &l->n, sd_data(n->plan, n->in[0]), sd_data(n->plan, n->in[1]), n->batch);
    sd_device_copy(device, sd_data(n->plan, n->in[2]), l->kv[i], kv_bytes(n) * (size_t)n->batch);
    sd_run_steps(n->plan);
    out = sd_data(n->plan, n->out);
    if (!l->pred[i])
        return out;
    sd_device_copy(device, l->pred[i], out, (size_t)(n->batch * l->n.numel) * sizeof(float));
    return l->pred[i];
}

static void
one_call(void *argument)
{
    struct draw_loop *l = argument;
    struct sd_device *device = l->d->o.compute.device;
    struct sd_denoise n = l->n;
    const float *uncond = l->net[1] ? predict(l, 1) : NULL, *cond = predict(l, 0);

    if (l->together) {
        uncond = cond;
        cond += n.batch * n.numel;
    }
    if (uncond)
        sd_denoise_guide(device, &n, uncond, cond, (float)l->d->o.guidance_scale, l->d->o.guidance_rescale, l->room);
    else
        n.out = (float *)cond;
    sd_denoise_step(device, &n);
}

/* Keys and values of the texts, in the order of the network's batch; those of one text once where it comes again. */
static int
make_kv(struct draw_loop *l, const struct sd_draw_picture *pictures, int i)
{
    struct sd_device *device = l->d->o.compute.device;
    size_t bytes = kv_bytes(l->net[i]);
    const float *before = NULL;

    for (int64_t b = 0; b < l->net[i]->batch; b++) {
        const struct sd_draw_picture *p = &pictures[b % l->count];
        bool negative = i == 1 || (l->together && b < l->count);
        const struct sd_draw_text *text = negative ? p->negative : p->prompt;
        char *kv = l->kv[i] + (size_t)b * bytes;

        if (text->states == before)
            sd_device_copy(device, kv, kv - bytes, bytes);
        else {
            struct net *t = draw_text_kv(l->d, text, false);

            if (!t)
                return -1;
            sd_device_copy(device, kv, sd_data(t->plan, t->out), bytes);
            before = text->states;
        }
    }
    return 0;
}

/* Fresh noise of a call; a copy to the device waits for nothing. */
static void
write_noise(struct draw_loop *l, const struct sd_draw_picture *pictures, int call, float *room)
{
    size_t numel = (size_t)l->n.numel;

    for (int b = 0; b < l->count; b++) {
        pictures[b].fresh(pictures[b].user, call, room + numel);
        draw_to_nhwc(room, room + numel, l->d->channels, l->d->h * l->d->w);
        sd_device_write(l->d->o.compute.device, l->noise + (size_t)b * numel, room, numel * sizeof *room);
    }
}

static int
begin(struct draw_loop *l, const struct sd_draw_picture *pictures, float *room)
{
    struct sd_device *device = l->d->o.compute.device;
    size_t numel = (size_t)l->n.numel;

    for (int i = 0; i < 2 && l->net[i]; i++)
        if (make_kv(l, pictures, i) < 0)
            return -1;
    for (int b = 0; b < l->count; b++) {
        draw_to_nhwc(room, pictures[b].start, l->d->channels, l->d->h * l->d->w);
        sd_device_write(device, l->n.x + (size_t)b * numel, room, numel * sizeof *room);
    }
    for (int k = 0; k < l->n.slots; k++)
        sd_device_fill(device, l->n.history[k], 0, (size_t)l->count * numel * sizeof(float));
    sd_device_fill(device, l->n.call, 0, sizeof *l->n.call);
    sd_device_fill(device, l->n.bad, 0, (size_t)l->d->o.sampler->calls * sizeof *l->n.bad);
    return 0;
}

/* The latents; the first call whose result is not finite, or -1. */
static int
end(struct draw_loop *l, const struct sd_draw_picture *pictures, float *room, struct sd_scope *s)
{
    struct sd_device *device = l->d->o.compute.device;
    int calls = l->d->o.sampler->calls, call = 0;
    int32_t *bad = sd_alloc_array(s, (size_t)calls, sizeof *bad);

    for (int b = 0; b < l->count; b++) {
        sd_device_read(device, room, l->n.x + b * l->n.numel, (size_t)l->n.numel * sizeof *room);
        draw_to_nchw(pictures[b].latents, room, l->d->channels, l->d->h * l->d->w);
    }
    sd_device_read(device, bad, l->n.bad, (size_t)calls * sizeof *bad);
    while (call < calls && !bad[call])
        call++;
    return call < calls ? call : -1;
}

bool
draw_on_device(struct sd_draw *d, const struct sd_draw_picture *pictures, int count,
               void (*progress)(void *, int, int), void *user, int *status)
{
    const struct sd_sampler *sampler = d->o.sampler;
    bool guided = d->o.guidance_scale > 1;
    struct draw_loop *l;
    struct sd_scope *s;
    float *room;
    int bad;

    if (!d->o.compute.device || sampler->clamp == SD_CLAMP_QUANTILE)
        return false;
    l = loop_for(d, count, pictures[0].prompt->chunks, guided ? pictures[0].negative->chunks : 0);
    if (!l) {
        *status = -1;
        return true;
    }
    s = sd_scope_open();
    room = sd_alloc_array(s, 2 * (size_t)l->n.numel, sizeof *room);
    if (begin(l, pictures, room) < 0) {
        sd_scope_close(s);
        *status = -1;
        return true;
    }
    for (int call = 0; call < sampler->calls; call++) {
        if (l->noise)
            write_noise(l, pictures, call, room);
        sd_repeat(d->o.compute.device, &l->repeat, sd_arena_moves(d->arena), one_call, l);
        if (progress) {
            sd_device_wait(d->o.compute.device);
            progress(user, call + 1, sampler->calls);
        }
    }
    bad = end(l, pictures, room, s);
    sd_scope_close(s);
    *status = 0;
    return bad < 0;         /* else once more on the host's side, looking at every module */
}
#else
bool
draw_on_device(struct sd_draw *d SD_UNUSED, const struct sd_draw_picture *pictures SD_UNUSED, int count SD_UNUSED,
               void (*progress)(void *, int, int) SD_UNUSED, void *user SD_UNUSED, int *status SD_UNUSED)
{
    return false;
}

size_t
draw_loop_bytes(const struct sd_draw *d SD_UNUSED, int count SD_UNUSED, bool guided SD_UNUSED, struct net *const nets[2] SD_UNUSED)
{
    return 0;
}

void
draw_loops_free(struct sd_draw *d SD_UNUSED)
{
}
#endif
