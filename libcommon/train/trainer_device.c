/* trainer_device - micro-batches made on a device: from what it keeps of each sample, and a few hundred bytes that say which
 * samples, which random numbers and by which factors.
 *
 * A sample's mean, deviation and mask are sent when it is first met and stay, while all of them fit the budget.  Those beyond
 * it are sent with each micro-batch while the step before it is computed, to the two sides of a place behind those that stay:
 * 131 kB a sample of 512 x 512 pixels, 147 kB with its mask, which would hold up the step by 3 us a sample on a link of 55 GB/s.
 * The step is told each sample's place in the few hundred bytes, so it is recorded once for both sides, and nothing is copied on
 * the device.  Those bytes, and all else, are asked of the one queue: what is written for a step waits for the step before it,
 * and the host for neither.  States of frozen texts stay too. */
#include "trainer_private.h"

#include "device.h"

#if SD_WITH_CUDA && SD_REAL_IS_FLOAT
#include "noise.h"
#include "random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* -- samples ------------------------------------------------------------------------------------------------------ */

enum { RESIDENT_BYTES = 256 << 20 };

struct sd_resident {
    float *pool;
    int64_t *at;                    /* of each sample, in floats; -1: beyond the budget */
    bool *there;
    int64_t room, largest;          /* where those of a micro-batch are sent that are beyond it: batch_size of the largest, twice */
    int side;                       /* of the micro-batch that is made, or was made last */
    bool taken;                     /* by it: there were samples beyond */
};

static int64_t
sample_floats(const struct sd_trainer *x, const struct sd_sample *k)
{
    return k->height * k->width * (2 * x->data->channels + x->options.masked);
}

static size_t
budget(const struct sd_trainer *x)
{
    const char *text = getenv("SD_TRAIN_RESIDENT");         /* bytes */
    size_t memory = (size_t)x->options.memory / 8;

    if (text && *text)
        return strtoull(text, NULL, 10);
    return memory && memory < RESIDENT_BYTES ? memory : RESIDENT_BYTES;
}

/* Places in the pool, those that fit in the order of the samples; returns its floats. */
static int64_t
lay_out(const struct sd_trainer *x, struct sd_resident *r)
{
    int64_t limit = (int64_t)(budget(x) / sizeof(float)), used = 0;
    bool beyond = false;

    for (size_t i = 0; i < x->data->count; i++) {
        int64_t n = sample_floats(x, &x->data->sample[i]);
        bool fits = used + n <= limit;

        if (n > r->largest)
            r->largest = n;
        if (r->at)
            r->at[i] = fits ? used : -1;
        used += fits ? n : 0;
        beyond |= !fits;
    }
    r->room = used;
    return used + (beyond ? SD_SIDES * r->largest * x->options.batch_size : 0);
}

size_t
sd_trainer_resident_bytes(const struct sd_trainer *x)
{
    struct sd_resident r = { 0 };

    return x->data && !x->replay ? (size_t)lay_out(x, &r) * sizeof(float) : 0;
}

static struct sd_resident *
open_resident(struct sd_trainer *x)
{
    struct sd_resident *r = sd_alloc(x->scope, sizeof *r);

    r->at = sd_alloc_array(x->scope, x->data->count, sizeof *r->at);
    r->there = sd_alloc_array(x->scope, x->data->count, sizeof *r->there);
    r->pool = sd_device_alloc(x->model.compute.device, (size_t)lay_out(x, r) * sizeof(float), "samples");
    return r;
}

/* The micro-batch before was asked for whole, and with it all that reads its samples: the next has the other side. */
static void
turn(struct sd_trainer *x)
{
    struct sd_resident *r = x->resident;

    if (!r->taken)
        return;
    sd_device_release(x->model.compute.device, r->side);
    r->side = (r->side + 1) % SD_SIDES;
    r->taken = false;
}

void
sd_trainer_resident_free(struct sd_trainer *x)
{
    struct sd_device *d = x->model.compute.device;

    for (int i = 0; i < SD_TEXT_SLOTS && !x->ahead_of_steps.pool; i++)
        for (struct sd_text *e = x->texts[i]; e; e = e->next)
            if (e->device_states)
                sd_device_free(d, e->device_states);
    if (x->ahead_of_steps.pool)
        sd_device_free(d, x->ahead_of_steps.pool);
    if (x->resident) {
        turn(x);
        sd_device_free(d, x->resident->pool);
    }
}

/* Where sample i lies in the pool, for place b of the micro-batch: mean, deviation, mask. */
static int64_t
place(struct sd_trainer *x, uint32_t i, int64_t b)
{
    const struct sd_sample *k = &x->data->sample[i];
    struct sd_resident *r = x->resident;
    struct sd_device *d = x->model.compute.device;
    int64_t n = k->height * k->width * x->data->channels;
    int64_t at = r->at[i] < 0 ? r->room + (r->side * (int64_t)x->options.batch_size + b) * r->largest : r->at[i];
    size_t bytes = (size_t)sample_floats(x, k) * sizeof(float);
    struct sd_scope *s;
    float *values;

    if (r->there[i])
        return at;
    s = sd_scope_open();
    values = sd_alloc(s, bytes);
    memcpy(values, k->mean, (size_t)n * sizeof *values);
    for (int64_t e = 0; e < n; e++)
        values[n + e] = expf(0.5f * k->logvar[e]);
    if (x->options.masked)
        sd_trainer_mask(x, k, values + 2 * n);
    r->there[i] = r->at[i] >= 0;
    r->taken |= !r->there[i];
    if (r->there[i])
        sd_device_write(d, r->pool + at, values, bytes);
    else
        sd_device_write_ahead(d, r->side, r->pool + at, values, bytes);
    sd_scope_close(s);
    return at;
}

/* -- what is sent ------------------------------------------------------------------------------------------------- */

/* One write of `bytes`: keys of the noise, of its offset and of the posterior, places, factors, ids.  Behind it, copied on the
 * device: states. */
struct sd_sent {
    const struct sd_trainer *x;
    char *on, *host;
    size_t at, values, ids, bytes, states, all;
};

static struct sd_sent
layout(const struct sd_trainer *x, const struct sd_step_shape *shape)
{
    size_t B = (size_t)shape->batch, ids = B * (size_t)(shape->chunks * shape->length);
    struct sd_sent k = { .x = x };

    k.at = 3 * B * sizeof(struct sd_noise_key);
    k.values = k.at + B * sizeof(int64_t);
    k.ids = k.values + SD_STEP_VALUES * B * sizeof(float);
    k.bytes = k.ids + (x->model.text_trains ? ids * sizeof(int32_t) : 0);
    k.states = (k.bytes + 255) / 256 * 256;
    k.all = k.states + (x->model.text_trains ? 0 : ids * (size_t)x->width * sizeof(float));
    return k;
}

size_t
sd_trainer_sent_bytes(const struct sd_trainer *x, const struct sd_step_shape *shape)
{
    return x->replay ? 0 : layout(x, shape).all;
}

static struct sd_sent *
open_sent(struct sd_trainer *x, const struct sd_step_shape *shape)
{
    struct sd_sent *k = sd_alloc(x->scope, sizeof *k);

    *k = layout(x, shape);
    k->host = sd_alloc(x->scope, k->bytes);
    k->on = sd_device_alloc(x->model.compute.device, k->all, "step input");
    return k;
}

void
sd_trainer_sent_free(struct sd_trainer *x, struct sd_train_step *step)
{
    if (step->sent)
        sd_device_free(x->model.compute.device, step->sent->on);
}

/* The states of a text, in place b: those that are kept, or made now; a shorter text beside a longer one, with empty chunks
 * behind it, is made every time. */
static int
send_states(struct sd_trainer *x, const struct sd_train_step *step, struct sd_text *e, int64_t b)
{
    const struct sd_step_shape *shape = &step->shape;
    struct sd_device *d = x->model.compute.device;
    int64_t n = shape->chunks * shape->length;
    size_t bytes = (size_t)(n * x->width) * sizeof(float);
    char *to = step->sent->on + step->sent->states + (size_t)b * bytes;
    bool own = shape->chunks == e->prompt.chunks;
    struct sd_text_states *made;
    struct sd_scope *s;
    int32_t *ids;

    if (own && e->device_states) {
        sd_device_copy(d, to, e->device_states, bytes);
        return 0;
    }
    s = sd_scope_open();
    ids = sd_alloc_array(s, (size_t)n, sizeof *ids);
    sd_trainer_ids(x, e, shape->chunks, ids);
    made = sd_trainer_encode(x, ids, shape->chunks);
    sd_scope_close(s);
    if (!made)
        return -1;
    sd_device_copy(d, to, sd_data(made->plan, made->states), bytes);
    if (own && x->states_bytes + bytes <= SD_STATES_BYTES) {
        e->device_states = sd_device_alloc(d, bytes, "states of a text");
        sd_device_copy(d, e->device_states, to, bytes);
        x->states_bytes += bytes;
    }
    return 0;
}

int
sd_trainer_send(struct sd_trainer *x, struct sd_train_step *step, const struct sd_micro *k)
{
    int64_t B = k->shape.batch, chunks = k->shape.chunks, pixels = k->shape.height * k->shape.width;
    struct sd_scope *s = sd_scope_open();
    float *mask = k->shape.masked ? sd_alloc_array(s, (size_t)pixels, sizeof *mask) : NULL;
    struct sd_noise_key *keys;
    struct sd_sent *sent;
    int status = 0;

    if (!x->resident)
        x->resident = open_resident(x);
    if (!step->sent)
        step->sent = open_sent(x, &k->shape);
    turn(x);
    sent = step->sent;
    keys = (struct sd_noise_key *)sent->host;
    for (int64_t b = 0; b < B && status == 0; b++) {
        const struct sd_sample *sample = &x->data->sample[k->sample[b]];

        keys[b] = (struct sd_noise_key){ x->options.seed, sample->hash, SD_FOR_NOISE, k->visit };
        keys[B + b] = (struct sd_noise_key){ x->options.seed, sample->hash, SD_FOR_OFFSET, k->visit };
        keys[2 * B + b] = (struct sd_noise_key){ x->options.seed, sample->hash, SD_FOR_POSTERIOR, k->visit };
        ((int64_t *)(sent->host + sent->at))[b] = place(x, k->sample[b], b);
        if (mask)
            sd_trainer_mask(x, sample, mask);
        sd_trainer_values(x, &k->shape, b, sd_trainer_timestep(x, sample, k->visit), mask, (float *)(sent->host + sent->values));
        if (x->model.text_trains)
            sd_trainer_ids(x, k->texts[b], chunks, (int32_t *)(sent->host + sent->ids) + b * chunks * k->shape.length);
        else
            status = send_states(x, step, k->texts[b], b);
    }
    sd_scope_close(s);
    if (x->resident->taken)
        sd_device_take(x->model.compute.device, x->resident->side);
    if (status == 0)
        sd_device_write(x->model.compute.device, sent->on, sent->host, sent->bytes);
    return status;
}

void
sd_trainer_make_inputs(struct sd_train_step *step)
{
    const struct sd_sent *sent = step->sent;
    const struct sd_step_shape *k = &step->shape;
    int64_t B = k->batch, pixels = k->height * k->width;
    const struct sd_trainer *x;
    const struct sd_noise_key *keys;
    const int64_t *at;
    struct sd_device *d;

    if (!sent)
        return;
    x = sent->x;
    d = x->model.compute.device;
    keys = (const struct sd_noise_key *)sent->on;
    at = (const int64_t *)(sent->on + sent->at);
    sd_device_posterior(d, sd_data(step->plan, step->latents), B, pixels, k->channels, x->resident->pool, at, keys + 2 * B,
                        (float)x->model.scaling_factor);
    sd_device_noise(d, sd_data(step->plan, step->noise), B, pixels, k->channels, keys,
                    x->options.noise_offset > 0 ? keys + B : NULL, (float)x->options.noise_offset);
    if (step->mask)
        sd_device_gather(d, sd_data(step->plan, step->mask), B, pixels, x->resident->pool + 2 * pixels * k->channels, at);
    sd_device_copy(d, sd_data(step->plan, step->values), sent->on + sent->values, step->values->numel * sizeof(float));
    if (step->input_ids)
        sd_device_copy(d, sd_data(step->plan, step->input_ids), sent->on + sent->ids, step->input_ids->numel * sizeof(int32_t));
    else
        sd_device_copy(d, sd_data(step->plan, step->states), sent->on + sent->states, step->states->numel * sizeof(float));
}
#else
int
sd_trainer_send(struct sd_trainer *x SD_UNUSED, struct sd_train_step *step SD_UNUSED, const struct sd_micro *k SD_UNUSED)
{
    sd_bug("trainer", "no devices in this build");
}

void sd_trainer_make_inputs(struct sd_train_step *step SD_UNUSED) { }
void sd_trainer_sent_free(struct sd_trainer *x SD_UNUSED, struct sd_train_step *step SD_UNUSED) { }
void sd_trainer_resident_free(struct sd_trainer *x SD_UNUSED) { }
size_t sd_trainer_resident_bytes(const struct sd_trainer *x SD_UNUSED) { return 0; }
size_t sd_trainer_sent_bytes(const struct sd_trainer *x SD_UNUSED, const struct sd_step_shape *shape SD_UNUSED) { return 0; }
#endif
