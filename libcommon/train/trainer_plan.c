/* trainer_plan - the plans that updates run by, and what they will take, for --plan. */
#include "trainer_private.h"

#include <string.h>

/* What is there beside the step: packed weights, what is trained with its moments and sums, samples.  On a device: its memory. */
static size_t
held_bytes(const struct sd_trainer *x)
{
    size_t buffers = 3 + (size_t)x->optimizer->buffers, bytes, sums = 1;

    for (uint32_t k = x->options.accumulation; k > 1; k >>= 1, sums++)
        buffers++;
    if (x->model.compute.device) {
        bytes = sd_param_bytes_reserved() + sd_mirror_bytes(x->optimizer, x->model.compute.activations)
                + sd_trainer_resident_bytes(x) + sums * x->t->count * sizeof(float);
        for (const struct sd_train_step *step = x->steps; step; step = step->next)
            bytes += sd_trainer_sent_bytes(x, &step->shape);
        return bytes;
    }
    bytes = sd_param_bytes_reserved() + x->t->count * buffers * sizeof(float);
    for (size_t i = 0; x->data && i < x->data->count; i++) {
        const struct sd_sample *k = &x->data->sample[i];

        bytes += (size_t)(k->height * k->width * (2 * x->data->channels + (k->mask != NULL))) * sizeof(float);
    }
    return bytes;
}

/* The step as it is, where memory allows, else with what may be done twice done twice. */
static struct sd_train_step *
step_within(struct sd_trainer *x, const struct sd_step_shape *shape)
{
    struct sd_train_step *step = sd_train_step_new(x->scope, &x->model, shape, x->options.clip_skip, 0);
    size_t held, limit = (size_t)x->options.memory;

    if (!step || !limit)
        return step;
    held = held_bytes(x) + (x->model.compute.device ? sd_trainer_sent_bytes(x, shape) : 0);
    if (held + sd_plan_report(step->plan).arena_bytes <= limit)
        return step;
    sd_train_step_free(step);
    if (held >= limit)
        return sd_fail_null("--memory %.1f MiB: weights, samples and what is trained take %.1f already",
                            (double)limit / (1 << 20), (double)held / (1 << 20));
    return sd_train_step_new(x->scope, &x->model, shape, x->options.clip_skip, (int64_t)(limit - held));
}

struct sd_train_step *
sd_trainer_step(struct sd_trainer *x, const struct sd_step_shape *shape)
{
    struct sd_train_step *step = x->steps;

    while (step && memcmp(&step->shape, shape, sizeof *shape) != 0)
        step = step->next;
    if (step)
        return step;
    if (!(step = step_within(x, shape)))
        return NULL;
    sd_note(1, "plan for %lldx%lld latents, batch %lld: %.2f GiB", (long long)shape->height, (long long)shape->width,
            (long long)shape->batch, (double)sd_plan_report(step->plan).arena_bytes / (1 << 30));
    step->next = x->steps;
    return x->steps = step;
}

/* The frozen text encoder for texts of so many chunks. */
struct sd_text_states *
sd_trainer_encoder(struct sd_trainer *x, int64_t chunks, int64_t length)
{
    struct sd_text_states *e = x->encoders;

    while (e && (e->chunks != chunks || e->length != length))
        e = e->next;
    if (e)
        return e;
    if (!(e = sd_text_states_new(x->scope, &x->model, chunks, length, x->options.clip_skip)))
        return NULL;
    e->next = x->encoders;
    return x->encoders = e;
}

/* -- what they take ---------------------------------------------------------------------------------------------- */

/* The largest of the plans so far, and this one. */
static struct sd_plan_report
plan_one(const struct sd_plan *plan, struct sd_trainer_plan *p)
{
    struct sd_plan_report r = sd_plan_report(plan);

    if (r.arena_bytes > p->arena_bytes)
        p->arena_bytes = r.arena_bytes;
    if (r.activations_bytes > p->activations_bytes)
        p->activations_bytes = r.activations_bytes;
    return r;
}

static int
plan_shape(struct sd_trainer *x, const struct sd_step_shape *shape, struct sd_trainer_plan *p)
{
    struct sd_train_step *step = sd_trainer_step(x, shape);
    double flops;

    if (!step)
        return -1;
    flops = plan_one(step->plan, p).flops * x->options.accumulation;
    if (flops > p->flops)
        p->flops = flops;
    return 0;
}

/* The frozen text encoder lies in the arena of the steps, and its packed weights beside theirs. */
static int
plan_encoder(struct sd_trainer *x, int64_t chunks, int64_t length, struct sd_trainer_plan *p)
{
    struct sd_text_states *e;

    if (x->model.text_trains)
        return 0;
    if (!(e = sd_trainer_encoder(x, chunks, length)))
        return -1;
    plan_one(e->plan, p);
    return 0;
}

/* Text that a bucket's samples meet: its own chunks, and padded to those of the longest beside it. */
static int
plan_text(struct sd_trainer *x, const char *caption, int64_t *most, struct sd_trainer_plan *p)
{
    struct sd_text *e = sd_trainer_text(x, caption);

    if (!e)
        return -1;
    if (e->prompt.chunks > *most)
        *most = e->prompt.chunks;
    return plan_encoder(x, e->prompt.chunks, x->length, p);
}

static int
plan_bucket(struct sd_trainer *x, const struct sd_bucket *k, struct sd_trainer_plan *p)
{
    struct sd_step_shape shape = { k->count < x->options.batch_size ? k->count : x->options.batch_size,
                                   x->data->channels,
                                   k->height,
                                   k->width,
                                   1,
                                   x->length,
                                   x->options.masked };

    for (uint32_t i = 0; i < k->count; i++) {
        const struct sd_sample *sample = &x->data->sample[k->sample[i]];

        if (plan_text(x, sample->caption, &shape.chunks, p) < 0)
            return sd_fail_prefix("%s", sample->source);
    }
    if (x->options.caption_dropout > 0 && plan_text(x, x->options.dropped_caption, &shape.chunks, p) < 0)
        return -1;
    return plan_shape(x, &shape, p);
}

/* What is kept of frozen texts' states: each caption once. */
static size_t
states_bytes(const struct sd_trainer *x)
{
    size_t bytes = 0;

    for (int i = 0; i < SD_TEXT_SLOTS && !x->model.text_trains; i++)
        for (const struct sd_text *e = x->texts[i]; e; e = e->next)
            bytes += (size_t)(e->prompt.chunks * x->length * x->width) * sizeof(float);
    return bytes < SD_STATES_BYTES ? bytes : SD_STATES_BYTES;
}

int
sd_trainer_plan(struct sd_trainer *x, struct sd_trainer_plan *p)
{
    memset(p, 0, sizeof *p);
    for (int b = 0; x->data && b < x->data->buckets; b++)
        if (plan_bucket(x, &x->data->bucket[b], p) < 0)
            return -1;
    for (int64_t i = 0; x->replay && i < x->options.updates * (int64_t)x->options.accumulation; i++) {
        struct sd_scope *s = sd_scope_open();
        struct sd_replay_step r = { 0 };
        int status = sd_replay_step(x->replay, s, i, &r);
        struct sd_step_shape shape = { r.batch, r.channels, r.height, r.width, 1, r.length, false };

        sd_scope_close(s);
        if (status < 0 || plan_encoder(x, 1, r.length, p) < 0 || plan_shape(x, &shape, p) < 0)
            return -1;
    }
    for (struct sd_train_step *step = x->steps; step; step = step->next)
        p->buckets++;
    p->states_bytes = states_bytes(x);
    p->peak_bytes = held_bytes(x) + p->states_bytes + p->arena_bytes;
    return 0;
}
