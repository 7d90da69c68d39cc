/* trainer_texts - on a device: the states of frozen texts, all made before the first step, so that the text encoder's weights
 * (246 MB of SD1.5's 1.97 GB in 16 bits) do not lie beside the step.
 *
 * That needs all states to fit SD_STATES_BYTES, and no text to be met beside a longer one, where it is encoded with empty chunks
 * behind it; else the encoder stays, and texts are encoded as they come (trainer_device.c). */
#include "trainer_private.h"

#include <string.h>

void
sd_trainer_encoders_free(struct sd_trainer *x)
{
    while (x->encoders) {
        struct sd_text_states *next = x->encoders->next;

        sd_text_states_free(x->encoders);
        x->encoders = next;
    }
}

#if SD_WITH_CUDA && SD_REAL_IS_FLOAT
/* Tokenizes a text; *chunks: of all that were met so far, -1 where they differ. */
static int
meet(struct sd_trainer *x, const char *caption, int64_t *chunks)
{
    const struct sd_text *e = sd_trainer_text(x, caption);

    if (!e)
        return -1;
    *chunks = !*chunks || *chunks == e->prompt.chunks ? e->prompt.chunks : -1;
    return 0;
}

static void
find_shared(struct sd_param *p, void *shared)
{
    *(bool *)shared |= sd_param_is_on_device(p);
}

/* Can they be made ahead?  Not where others have the text encoder on the device: it could not be dropped. */
static int
look(struct sd_trainer *x)
{
    bool padded = false, shared = false;

    for (int b = 0; b < x->data->buckets; b++) {
        const struct sd_bucket *k = &x->data->bucket[b];
        int64_t chunks = 0;

        for (uint32_t i = 0; i < k->count; i++) {
            const struct sd_sample *sample = &x->data->sample[k->sample[i]];

            if (meet(x, sample->caption, &chunks) < 0)
                return sd_fail_prefix("%s", sample->source);
        }
        if (x->options.caption_dropout > 0 && meet(x, x->options.dropped_caption, &chunks) < 0)
            return -1;
        padded |= chunks < 0 && x->options.batch_size > 1;
    }
    sd_weights_each(x->model.text->weights, find_shared, &shared);
    x->ahead_of_steps.looked = true;
    x->ahead_of_steps.ahead = !padded && !shared && sd_trainer_states_bytes(x) < SD_STATES_BYTES;
    return 0;
}

static int
plan(struct sd_trainer *x, struct sd_text *e)
{
    const struct sd_text_states *made = sd_trainer_encoder(x, e->prompt.chunks, x->length);
    struct sd_plan_report r;

    if (!made)
        return -1;
    r = sd_plan_report(made->plan);
    if (r.arena_bytes > x->ahead_of_steps.arena_bytes)
        x->ahead_of_steps.arena_bytes = r.arena_bytes;
    if (r.activations_bytes > x->ahead_of_steps.activations_bytes)
        x->ahead_of_steps.activations_bytes = r.activations_bytes;
    return 0;
}

static int
make(struct sd_trainer *x, struct sd_text *e)
{
    size_t bytes = (size_t)(e->prompt.chunks * x->length * x->width) * sizeof(float);
    const struct sd_text_states *made = sd_trainer_encode(x, e->prompt.input_ids, e->prompt.chunks);

    if (!made)
        return -1;
    e->device_states = x->ahead_of_steps.pool + x->states_bytes / sizeof(float);
    sd_device_copy(x->model.compute.device, e->device_states, sd_data(made->plan, made->states), bytes);
    x->states_bytes += bytes;
    return 0;
}

static int
each(struct sd_trainer *x, int (*f)(struct sd_trainer *x, struct sd_text *e))
{
    for (int i = 0; i < SD_TEXT_SLOTS; i++)
        for (struct sd_text *e = x->texts[i]; e; e = e->next)
            if (f(x, e) < 0)
                return -1;
    return 0;
}

static int
check_memory(const struct sd_trainer *x)
{
    size_t needed = sd_device_bytes_sum(&x->ahead_of_steps.bytes), limit = (size_t)x->options.memory;

    if (!limit || needed <= limit)
        return 0;
    return sd_fail("--memory %.1f MiB: to encode the captions takes %.1f", (double)limit / (1 << 20), (double)needed / (1 << 20));
}

static void
drop(struct sd_param *p, void *user SD_UNUSED)
{
    sd_param_drop(p);
}

int
sd_trainer_texts(struct sd_trainer *x, bool make_them)
{
    if (!x->model.compute.device || x->replay || x->model.text_trains || x->ahead_of_steps.pool)
        return 0;
    if (!x->ahead_of_steps.looked && look(x) < 0)
        return -1;
    if (!x->ahead_of_steps.ahead)
        return 0;
    if (each(x, plan) < 0)
        return -1;
    sd_trainer_device_bytes(x, x->ahead_of_steps.arena_bytes, &x->ahead_of_steps.bytes);
    x->ahead_of_steps.bytes.samples = 0;        /* they come with the steps */
    if (check_memory(x) < 0)
        return -1;
    if (make_them) {
        x->ahead_of_steps.pool = sd_device_alloc(x->model.compute.device, sd_trainer_states_bytes(x), "states of texts");
        if (each(x, make) < 0)
            return -1;
    }
    sd_trainer_encoders_free(x);
    sd_weights_each(x->model.text->weights, drop, NULL);
    return 0;
}
#else
int
sd_trainer_texts(struct sd_trainer *x SD_UNUSED, bool make_them SD_UNUSED)
{
    return 0;
}
#endif
