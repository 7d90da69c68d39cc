/* trainer_micro - what a micro-batch is made of: which samples, which texts, which numbers; and its tensors, made on the host. */
#include "trainer_private.h"

#include "random.h"

#include <string.h>

/* -- texts ------------------------------------------------------------------------------------------------------- */

struct sd_text *
sd_trainer_text(struct sd_trainer *x, const char *caption)
{
    unsigned slot = 5381;
    struct sd_text *e;

    for (const char *c = caption; *c; c++)
        slot = slot * 33 + (unsigned char)*c;
    slot %= SD_TEXT_SLOTS;
    for (e = x->texts[slot]; e; e = e->next)
        if (strcmp(e->caption, caption) == 0)
            return e;
    e = sd_alloc(x->scope, sizeof *e);
    e->caption = caption;
    if (sd_prompt_encode(x->model.tokenizer, x->scope, SD_PROMPT_CAPTION, caption, &e->prompt) < 0)
        return NULL;
    e->next = x->texts[slot];
    return x->texts[slot] = e;
}

/* ids of `chunks` chunks: those of the text, then empty ones */
void
sd_trainer_ids(const struct sd_trainer *x, const struct sd_text *e, int64_t chunks, int32_t *ids)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_prompt padded = e->prompt;

    sd_prompt_pad(x->model.tokenizer, s, &padded, (int)chunks);
    memcpy(ids, padded.input_ids, (size_t)(chunks * x->length) * sizeof *ids);
    sd_scope_close(s);
}

struct sd_text_states *
sd_trainer_encode(struct sd_trainer *x, const int32_t *ids, int64_t chunks)
{
    struct sd_text_states *e = sd_trainer_encoder(x, chunks, x->length);

    if (!e)
        return NULL;
    if (!e->bound) {
        sd_plan_bind(e->plan, x->arena);
        e->bound = true;
    }
    sd_feed(e->plan, e->input_ids, ids);
    sd_run(e->plan);
    return e;
}

static int
encode(struct sd_trainer *x, const int32_t *ids, int64_t chunks, float *states)
{
    struct sd_text_states *e = sd_trainer_encode(x, ids, chunks);

    if (e)
        sd_fetch(e->plan, e->states, states);
    return e ? 0 : -1;
}

/* -- one micro-batch on the host --------------------------------------------------------------------------------- */

static void
micro_alloc(struct sd_trainer *x, struct sd_micro *k, struct sd_scope *s)
{
    size_t B = (size_t)k->shape.batch, pixels = (size_t)(k->shape.height * k->shape.width);
    size_t numel = B * pixels * (size_t)k->shape.channels;

    k->latents = sd_alloc_array(s, numel, sizeof(float));
    k->noise = sd_alloc_array(s, numel, sizeof(float));
    k->mask = k->shape.masked ? sd_alloc_array(s, B * pixels, sizeof(float)) : NULL;
    k->values = sd_alloc_array(s, B * SD_STEP_VALUES, sizeof(float));
    if (x->model.text_trains)
        k->ids = sd_alloc_array(s, B * (size_t)(k->shape.chunks * k->shape.length), sizeof *k->ids);
    else
        k->states = sd_alloc_array(s, B * (size_t)(k->shape.chunks * k->shape.length * x->width), sizeof(float));
}

void
sd_trainer_values(const struct sd_trainer *x, const struct sd_step_shape *shape, int64_t b, int timestep, const float *mask,
                  float *values)
{
    const struct sd_trainer_options *o = &x->options;
    double by[SD_STEP_VALUES];
    size_t pixels = (size_t)(shape->height * shape->width);
    double weight = sd_loss_weight(x->model.scheduler, timestep,
                                   o->snr_gamma > 0 ? SD_WEIGHT_MIN_SNR : SD_WEIGHT_CONSTANT, o->snr_gamma);

    sd_noise_coefficients(x->model.scheduler, timestep, &by[SD_NOISY_LATENTS_BY], &by[SD_NOISY_NOISE_BY]);
    sd_target_coefficients(x->model.scheduler, timestep, &by[SD_TARGET_LATENTS_BY], &by[SD_TARGET_NOISE_BY]);
    by[SD_STEP_TIMESTEP] = timestep;
    by[SD_LOSS_WEIGHT] = weight * sd_mask_multiplier(mask, pixels, (int)shape->channels, o->mask_normalize);
    for (int i = 0; i < SD_STEP_VALUES; i++)
        values[i * shape->batch + b] = (float)by[i];
}

static void
to_nhwc(float *to, const float *from, int64_t channels, int64_t pixels)
{
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < channels; c++)
            to[p * channels + c] = from[c * pixels + p];
}

static void
make_noise(struct sd_trainer *x, struct sd_micro *k, int64_t b, const struct sd_sample *sample, uint32_t visit,
           struct sd_scope *s)
{
    int64_t pixels = k->shape.height * k->shape.width, channels = k->shape.channels;
    float *noise = sd_alloc_array(s, (size_t)(pixels * channels), sizeof *noise);

    sd_random_normal(noise, (size_t)(pixels * channels), x->options.seed, SD_FOR_NOISE, sample->hash, visit);
    if (x->options.noise_offset > 0) {
        float *offset = sd_alloc_array(s, (size_t)channels, sizeof *offset);

        sd_random_normal(offset, (size_t)channels, x->options.seed, SD_FOR_OFFSET, sample->hash, visit);
        for (int64_t c = 0; c < channels; c++)
            for (int64_t p = 0; p < pixels; p++)
                noise[c * pixels + p] += (float)x->options.noise_offset * offset[c];
    }
    to_nhwc(k->noise + b * pixels * channels, noise, channels, pixels);
}

static struct sd_text *
caption_of(struct sd_trainer *x, const struct sd_sample *sample, uint32_t visit)
{
    bool dropped = sd_caption_dropped(sample, x->options.seed, visit, x->options.caption_dropout);

    return sd_trainer_text(x, dropped ? x->options.dropped_caption : sample->caption);
}

static int
put_text(struct sd_trainer *x, struct sd_micro *k, int64_t b, struct sd_text *e)
{
    int64_t n = k->shape.chunks * k->shape.length;

    if (x->model.text_trains) {
        sd_trainer_ids(x, e, k->shape.chunks, k->ids + b * n);
        return 0;
    }
    if (k->shape.chunks == e->prompt.chunks) {
        size_t bytes = (size_t)(n * x->width) * sizeof(float);
        float *states = k->states + b * n * x->width;

        if (e->states) {
            memcpy(states, e->states, bytes);
            return 0;
        }
        if (encode(x, e->prompt.input_ids, e->prompt.chunks, states) < 0)
            return -1;
        if (x->states_bytes + bytes <= SD_STATES_BYTES) {
            e->states = sd_alloc(x->scope, bytes);
            memcpy(e->states, states, bytes);
            x->states_bytes += bytes;
        }
        return 0;
    } else {            /* a shorter text beside a longer one: empty chunks behind it */
        struct sd_scope *s = sd_scope_open();
        int32_t *ids = sd_alloc_array(s, (size_t)n, sizeof *ids);
        int status;

        sd_trainer_ids(x, e, k->shape.chunks, ids);
        status = encode(x, ids, k->shape.chunks, k->states + b * n * x->width);
        sd_scope_close(s);
        return status;
    }
}

static const struct sd_batch *
batch_at(struct sd_trainer *x, int64_t micro)
{
    int64_t epoch = micro / x->per_epoch;

    if (epoch != x->epoch) {
        uint32_t count;

        if (x->epoch_scope)
            sd_scope_close(x->epoch_scope);
        x->epoch_scope = sd_scope_open();
        x->batches =
            sd_epoch_batches(x->data, x->epoch_scope, x->options.seed, (uint32_t)epoch, x->options.batch_size, &count);
        x->epoch = epoch;
    }
    return &x->batches[micro % x->per_epoch];
}

/* Which samples and texts, and so the shape. */
static int
describe(struct sd_trainer *x, int64_t index, struct sd_micro *k, struct sd_scope *s)
{
    const struct sd_batch *batch = batch_at(x, index);
    const struct sd_bucket *bucket = &x->data->bucket[batch->bucket];

    k->shape = (struct sd_step_shape){ batch->count, x->data->channels, bucket->height, bucket->width, 1, x->length,
                                       x->options.masked };
    k->visit = (uint32_t)x->epoch;              /* a sample comes once an epoch, whatever the batches are */
    k->sample = batch->sample;
    k->sources = sd_alloc_array(s, batch->count, sizeof *k->sources);
    k->texts = sd_alloc_array(s, batch->count, sizeof *k->texts);
    for (uint32_t b = 0; b < batch->count; b++) {
        const struct sd_sample *sample = &x->data->sample[batch->sample[b]];

        k->sources[b] = sample->source;
        if (!(k->texts[b] = caption_of(x, sample, k->visit)))
            return sd_fail_prefix("%s", sample->source);
        if (k->texts[b]->prompt.chunks > k->shape.chunks)
            k->shape.chunks = k->texts[b]->prompt.chunks;
    }
    return 0;
}

void
sd_trainer_mask(const struct sd_trainer *x, const struct sd_sample *sample, float *mask)
{
    size_t pixels = (size_t)(sample->height * sample->width);

    for (size_t p = 0; p < pixels; p++)
        mask[p] = sample->mask ? sample->mask[p] : 1;
    sd_mask_clamp(mask, pixels, x->options.unmasked_weight);
}

int
sd_trainer_timestep(const struct sd_trainer *x, const struct sd_sample *sample, uint32_t visit)
{
    return (int)sd_random_below((uint32_t)x->model.scheduler->num_train_timesteps, x->options.seed, SD_FOR_TIMESTEP,
                                sample->hash, visit);
}

static int
make_micro(struct sd_trainer *x, struct sd_micro *k, struct sd_scope *s)
{
    int64_t pixels = k->shape.height * k->shape.width;

    micro_alloc(x, k, s);
    for (int64_t b = 0; b < k->shape.batch; b++) {
        const struct sd_sample *sample = &x->data->sample[k->sample[b]];
        float *mask = k->mask ? k->mask + b * pixels : NULL;

        if (mask)
            sd_trainer_mask(x, sample, mask);
        sd_posterior_sample(x->data, sample, x->options.seed, k->visit, (float)x->model.scaling_factor,
                            k->latents + b * pixels * x->data->channels);
        make_noise(x, k, b, sample, k->visit, s);
        sd_trainer_values(x, &k->shape, b, sd_trainer_timestep(x, sample, k->visit), mask, k->values);
        if (put_text(x, k, b, k->texts[b]) < 0)
            return -1;
    }
    return 0;
}

static int
replay_micro(struct sd_trainer *x, int64_t index, struct sd_micro *k, struct sd_scope *s)
{
    struct sd_replay_step r;
    int64_t pixels, numel;

    if (sd_replay_step(x->replay, s, index, &r) < 0)
        return -1;
    k->shape = (struct sd_step_shape){ r.batch, r.channels, r.height, r.width, 1, r.length, false };
    if (r.length > x->model.text->config.max_position_embeddings)
        return sd_fail("step_%04lld: texts of %lld ids, the text encoder takes %d", (long long)index,
                       (long long)r.length, x->model.text->config.max_position_embeddings);
    x->length = r.length;
    k->sources = sd_alloc_array(s, (size_t)r.batch, sizeof *k->sources);
    micro_alloc(x, k, s);
    pixels = r.height * r.width;
    numel = pixels * r.channels;
    for (int64_t b = 0; b < r.batch; b++) {
        int32_t *ids = k->ids ? k->ids + b * r.length : sd_alloc_array(s, (size_t)r.length, sizeof *ids);

        k->sources[b] = "the recorded batch";
        to_nhwc(k->latents + b * numel, r.latents + b * numel, r.channels, pixels);
        to_nhwc(k->noise + b * numel, r.noise + b * numel, r.channels, pixels);
        if (r.timesteps[b] < 0 || r.timesteps[b] >= x->model.scheduler->num_train_timesteps)
            return sd_fail("step_%04lld: timestep %lld", (long long)index, (long long)r.timesteps[b]);
        sd_trainer_values(x, &k->shape, b, (int)r.timesteps[b], NULL, k->values);
        for (int64_t i = 0; i < r.length; i++) {
            int64_t id = r.input_ids[b * r.length + i];

            if (id < 0 || id >= x->model.text->config.vocab_size + (x->model.rows ? x->model.rows->shape[0] : 0))
                return sd_fail("step_%04lld: id %lld is beyond the vocabulary", (long long)index, (long long)id);
            ids[i] = (int32_t)id;
        }
        if (!k->ids && encode(x, ids, 1, k->states + b * r.length * x->width) < 0)
            return -1;
    }
    return 0;
}

/* -- feeding ----------------------------------------------------------------------------------------------------- */

static void
feed(struct sd_train_step *step, const struct sd_micro *k)
{
    sd_feed(step->plan, step->latents, k->latents);
    sd_feed(step->plan, step->noise, k->noise);
    sd_feed(step->plan, step->values, k->values);
    if (step->mask)
        sd_feed(step->plan, step->mask, k->mask);
    if (step->input_ids)
        sd_feed(step->plan, step->input_ids, k->ids);
    else
        sd_feed(step->plan, step->states, k->states);
}

struct sd_train_step *
sd_trainer_ready(struct sd_trainer *x, int64_t index, struct sd_micro *k, struct sd_scope *s)
{
    bool on_host = x->replay || !x->model.compute.device;
    struct sd_train_step *step;

    memset(k, 0, sizeof *k);
    if (sd_trainer_texts(x, true) < 0)
        return NULL;
    if ((x->replay ? replay_micro(x, index, k, s) : describe(x, index, k, s)) < 0)
        return NULL;
    if (on_host && !x->replay && make_micro(x, k, s) < 0)
        return NULL;
    if (!(step = sd_trainer_step(x, &k->shape)))
        return NULL;
    if (!step->bound) {
        sd_plan_bind(step->plan, x->arena);
        step->bound = true;
    }
    if (on_host)
        feed(step, k);
    else if (sd_trainer_send(x, step, k) < 0)
        return NULL;
    return step;
}
