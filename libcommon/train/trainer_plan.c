/* trainer_plan - the plans that updates run by, and what they will take, for --plan. */
#include "trainer_private.h"

#include <string.h>

/* What is kept of frozen texts' states: each caption once. */
size_t
sd_trainer_states_bytes(const struct sd_trainer *x)
{
    size_t bytes = 0;

    for (int i = 0; i < SD_TEXT_SLOTS && !x->model.text_trains; i++)
        for (const struct sd_text *e = x->texts[i]; e; e = e->next)
            bytes += (size_t)(e->prompt.chunks * x->length * x->width) * sizeof(float);
    return bytes < SD_STATES_BYTES ? bytes : SD_STATES_BYTES;
}

void
sd_trainer_device_bytes(const struct sd_trainer *x, size_t arena, struct sd_device_bytes *b)
{
    sd_device_bytes_of(b, x->model.compute.device, arena);
    sd_mirror_bytes(x->optimizer, x->model.compute.activations, x->options.accumulation, b);
    b->samples = sd_trainer_resident_bytes(x);
    b->states = sd_trainer_states_bytes(x);
    for (const struct sd_train_step *step = x->steps; step; step = step->next)
        b->input += sd_trainer_sent_bytes(x, &step->shape);
}

/* What is there beside the step: packed weights, what is trained with its moments and sums, samples.  On a device: its memory. */
static size_t
held_bytes(const struct sd_trainer *x)
{
    size_t buffers = 3 + (size_t)x->optimizer->buffers, bytes;

    if (x->model.compute.device) {
        struct sd_device_bytes b;

        sd_trainer_device_bytes(x, 0, &b);
        return sd_device_bytes_sum(&b);
    }
    for (uint32_t k = x->options.accumulation; k > 1; k >>= 1)
        buffers++;
    bytes = sd_param_bytes_reserved() + x->t->count * buffers * sizeof(float) + sd_trainer_states_bytes(x);
    for (size_t i = 0; x->data && i < x->data->count; i++) {
        const struct sd_sample *k = &x->data->sample[i];

        bytes += (size_t)(k->height * k->width * (2 * x->data->channels + (k->mask != NULL))) * sizeof(float);
    }
    return bytes;
}

/* What may be taken: as told, else of a device what is free and what is ours already, but for a sixteenth, which the libraries' code
 * and what they time need.  0: there is no limit. */
static size_t
limit_of(const struct sd_trainer *x)
{
    const struct sd_device *d = x->model.compute.device;
    size_t there = d && !x->options.memory ? sd_device_free_bytes(d) + sd_device_allocated(d) : 0;

    return x->options.memory ? (size_t)x->options.memory : there - there / 16;
}

/* The step as it is, where memory allows, else with what may be done twice done twice. */
static struct sd_train_step *
step_within(struct sd_trainer *x, const struct sd_step_shape *shape)
{
    struct sd_train_step *step = sd_train_step_new(x->scope, &x->model, shape, x->options.clip_skip, 0);
    size_t held, room, arena, limit = limit_of(x);

    if (!step || !limit)
        return step;
    for (size_t i = 0; x->data && i < x->data->count; i++)      /* their states will be there too */
        if (!sd_trainer_text(x, x->data->sample[i].caption)) {
            sd_train_step_free(step);
            return sd_fail_null("%s: %s", x->data->sample[i].source, sd_reason());
        }
    held = held_bytes(x) + (x->model.compute.device ? sd_trainer_sent_bytes(x, shape) : 0);
    room = held < limit ? limit - held : 0;
    arena = sd_plan_report(step->plan).arena_bytes;
    if (x->model.compute.device) {
        arena = (arena + SD_ARENA_STEP - 1) / SD_ARENA_STEP * SD_ARENA_STEP;
        room -= room % SD_ARENA_STEP;
    }
    if (arena <= room)
        return step;
    sd_train_step_free(step);
    if (room == 0)
        return sd_fail_null("%s%.1f MiB: weights, samples and what is trained take %.1f already",
                            x->options.memory ? "--memory " : "memory: the device has ", (double)limit / (1 << 20),
                            (double)held / (1 << 20));
    return sd_train_step_new(x->scope, &x->model, shape, x->options.clip_skip, (int64_t)room);
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

    if (x->model.text_trains || x->ahead_of_steps.ahead)
        return 0;
    if (!(e = sd_trainer_encoder(x, chunks, length)))
        return -1;
    plan_one(e->plan, p);
    return 0;
}

struct lengths {
    int64_t most;       /* chunks */
    uint64_t met;       /* bit c: a text has c chunks */
};

/* Text that a bucket's samples meet: its own chunks, and padded to those of the longest beside it. */
static int
plan_text(struct sd_trainer *x, const char *caption, struct lengths *l, struct sd_trainer_plan *p)
{
    struct sd_text *e = sd_trainer_text(x, caption);

    if (!e)
        return -1;
    if (e->prompt.chunks > l->most)
        l->most = e->prompt.chunks;
    if (e->prompt.chunks < 64)
        l->met |= (uint64_t)1 << e->prompt.chunks;
    return plan_encoder(x, e->prompt.chunks, x->length, p);
}

/* The other steps that a bucket may have, each with its input: of shorter texts, and of the last samples of an epoch. */
static size_t
smaller_inputs(const struct sd_trainer *x, struct sd_step_shape shape, int64_t last, uint64_t met)
{
    int64_t most = shape.chunks, batch[2] = { shape.batch, last < shape.batch ? last : 0 };
    size_t bytes = 0;

    for (int i = 0; i < 2; i++)
        for (int64_t c = 1; batch[i] && c <= most; c++) {
            bool occurs = c == most || (c < 64 && met >> c & 1);

            shape.batch = batch[i];
            shape.chunks = c;
            if (occurs && (i || c < most))
                bytes += sd_trainer_sent_bytes(x, &shape);
        }
    return bytes;
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
    struct lengths l = { .most = 1 };

    for (uint32_t i = 0; i < k->count; i++) {
        const struct sd_sample *sample = &x->data->sample[k->sample[i]];

        if (plan_text(x, sample->caption, &l, p) < 0)
            return sd_fail_prefix("%s", sample->source);
    }
    if (x->options.caption_dropout > 0 && plan_text(x, x->options.dropped_caption, &l, p) < 0)
        return -1;
    shape.chunks = l.most;
    if (x->model.compute.device)
        p->device.input += smaller_inputs(x, shape, k->count % x->options.batch_size, l.met);
    return plan_shape(x, &shape, p);
}

int
sd_trainer_plan(struct sd_trainer *x, struct sd_trainer_plan *p)
{
    memset(p, 0, sizeof *p);
    if (sd_trainer_texts(x, false) < 0)
        return -1;
    p->arena_bytes = x->ahead_of_steps.arena_bytes;
    p->activations_bytes = x->ahead_of_steps.activations_bytes;
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
    p->states_bytes = sd_trainer_states_bytes(x);
    p->peak_bytes = held_bytes(x) + p->arena_bytes;
    if (x->model.compute.device) {
        size_t shorter = p->device.input;

        sd_trainer_device_bytes(x, p->arena_bytes, &p->device);
        p->device.input += shorter;
        if (sd_device_bytes_sum(&x->ahead_of_steps.bytes) > sd_device_bytes_sum(&p->device))
            p->device = x->ahead_of_steps.bytes;
        p->peak_bytes = sd_device_bytes_sum(&p->device);
    }
    return 0;
}
