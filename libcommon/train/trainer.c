/* trainer - updates: which samples, which numbers, forward and backward, accumulate, clip, step. */
#include "trainer_private.h"

#include "random.h"
#include "reduce.h"

#include <math.h>
#include <string.h>

static void
close_trainer(void *argument)
{
    struct sd_trainer *t = argument;

    while (t->steps) {
        struct sd_train_step *next = t->steps->next;

        sd_train_step_free(t->steps);
        t->steps = next;
    }
    while (t->encoders) {
        struct sd_text_states *next = t->encoders->next;

        sd_text_states_free(t->encoders);
        t->encoders = next;
    }
    if (t->ahead.scope)
        sd_scope_close(t->ahead.scope);
    if (t->epoch_scope)
        sd_scope_close(t->epoch_scope);
    sd_mirror_free(t->mirror);
    sd_arena_free(t->arena);
}

struct sd_trainer *
sd_trainer_new(struct sd_scope *s, const struct sd_trainer_model *m, const struct sd_trainer_options *o,
               struct sd_trainables *t, const struct sd_dataset *d, const struct sd_replay *replay)
{
    struct sd_trainer *x = sd_alloc(s, sizeof *x);

    x->scope = s;
    x->model = *m;
    x->options = *o;
    x->t = t;
    x->data = d;
    x->replay = replay;
    x->sums = sd_accumulator_new(t);
    x->optimizer = sd_optimizer_new(t, &o->optimizer);
    x->arena = sd_arena_new();
    x->length = m->tokenizer ? m->tokenizer->model_max_length : m->text->config.max_position_embeddings;
    x->width = m->unet->config.cross_attention_dim;
    x->epoch = -1;
    x->per_epoch = d ? sd_batches_per_epoch(d, o->batch_size) : 0;
    sd_on_close(s, close_trainer, x);
    if (replay && replay->count < o->updates * (int64_t)o->accumulation)
        return sd_fail_null("%lld recorded micro-batches, %lld updates need %lld", (long long)replay->count,
                            (long long)o->updates, (long long)(o->updates * o->accumulation));
    if (d && d->channels != m->unet->config.in_channels)
        return sd_fail_null("latents have %lld channels, the unet takes %d", (long long)d->channels,
                            m->unet->config.in_channels);
    return x;
}

struct sd_optimizer *
sd_trainer_optimizer(struct sd_trainer *x)
{
    return x->optimizer;
}

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
static void
put_ids(const struct sd_trainer *x, const struct sd_text *e, int64_t chunks, int32_t *ids)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_prompt padded = e->prompt;

    sd_prompt_pad(x->model.tokenizer, s, &padded, (int)chunks);
    memcpy(ids, padded.input_ids, (size_t)(chunks * x->length) * sizeof *ids);
    sd_scope_close(s);
}

static int
encode(struct sd_trainer *x, const int32_t *ids, int64_t chunks, float *states)
{
    struct sd_text_states *e = sd_trainer_encoder(x, chunks, x->length);

    if (!e)
        return -1;
    if (!e->bound) {
        sd_plan_bind(e->plan, x->arena);
        e->bound = true;
    }
    sd_feed(e->plan, e->input_ids, ids);
    sd_run(e->plan);
    sd_fetch(e->plan, e->states, states);
    return 0;
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
    k->weight = sd_alloc_array(s, B, sizeof(float));
    k->timesteps = sd_alloc_array(s, B, sizeof(float));
    for (int i = 0; i < 2; i++) {
        k->noisy[i] = sd_alloc_array(s, B, sizeof(float));
        k->target[i] = sd_alloc_array(s, B, sizeof(float));
    }
    k->sources = sd_alloc_array(s, B, sizeof *k->sources);
    if (x->model.text_trains)
        k->ids = sd_alloc_array(s, B * (size_t)(k->shape.chunks * k->shape.length), sizeof *k->ids);
    else
        k->states = sd_alloc_array(s, B * (size_t)(k->shape.chunks * k->shape.length * x->width), sizeof(float));
}

static void
set_timestep(struct sd_trainer *x, struct sd_micro *k, int64_t b, int timestep, const float *mask)
{
    const struct sd_trainer_options *o = &x->options;
    double by[4];
    size_t pixels = (size_t)(k->shape.height * k->shape.width);
    double weight = sd_loss_weight(x->model.scheduler, timestep,
                                   o->snr_gamma > 0 ? SD_WEIGHT_MIN_SNR : SD_WEIGHT_CONSTANT, o->snr_gamma);

    sd_noise_coefficients(x->model.scheduler, timestep, &by[0], &by[1]);
    sd_target_coefficients(x->model.scheduler, timestep, &by[2], &by[3]);
    for (int i = 0; i < 2; i++) {
        k->noisy[i][b] = (float)by[i];
        k->target[i][b] = (float)by[2 + i];
    }
    k->timesteps[b] = (float)timestep;
    k->weight[b] = (float)(weight * sd_mask_multiplier(mask, pixels, (int)k->shape.channels, o->mask_normalize));
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
        put_ids(x, e, k->shape.chunks, k->ids + b * n);
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

        put_ids(x, e, k->shape.chunks, ids);
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

static int
make_micro(struct sd_trainer *x, int64_t index, struct sd_micro *k, struct sd_scope *s)
{
    const struct sd_batch *batch = batch_at(x, index);
    const struct sd_bucket *bucket = &x->data->bucket[batch->bucket];
    int64_t pixels = bucket->height * bucket->width;
    struct sd_text **texts = sd_alloc_array(s, batch->count, sizeof *texts);
    uint32_t visit = (uint32_t)x->epoch;        /* a sample comes once an epoch, whatever the batches are */

    k->shape = (struct sd_step_shape){ batch->count, x->data->channels, bucket->height, bucket->width, 1, x->length,
                                       x->options.masked };
    for (uint32_t b = 0; b < batch->count; b++) {
        const struct sd_sample *sample = &x->data->sample[batch->sample[b]];

        if (!(texts[b] = caption_of(x, sample, visit)))
            return sd_fail_prefix("%s", sample->source);
        if (texts[b]->prompt.chunks > k->shape.chunks)
            k->shape.chunks = texts[b]->prompt.chunks;
    }
    micro_alloc(x, k, s);
    for (uint32_t b = 0; b < batch->count; b++) {
        const struct sd_sample *sample = &x->data->sample[batch->sample[b]];
        float *mask = k->mask ? k->mask + b * pixels : NULL;

        k->sources[b] = sample->source;
        if (mask) {
            for (int64_t p = 0; p < pixels; p++)
                mask[p] = sample->mask ? sample->mask[p] : 1;
            sd_mask_clamp(mask, (size_t)pixels, x->options.unmasked_weight);
        }
        sd_posterior_sample(x->data, sample, x->options.seed, visit, (float)x->model.scaling_factor,
                            k->latents + b * pixels * x->data->channels);
        make_noise(x, k, b, sample, visit, s);
        set_timestep(x, k, b, (int)sd_random_below((uint32_t)x->model.scheduler->num_train_timesteps, x->options.seed,
                                                   SD_FOR_TIMESTEP, sample->hash, visit), mask);
        if (put_text(x, k, b, texts[b]) < 0)
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
        set_timestep(x, k, b, (int)r.timesteps[b], NULL);
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

/* -- running ----------------------------------------------------------------------------------------------------- */

static void
feed(struct sd_train_step *step, const struct sd_micro *k)
{
    sd_feed(step->plan, step->latents, k->latents);
    sd_feed(step->plan, step->noise, k->noise);
    sd_feed(step->plan, step->noisy_latents_by, k->noisy[0]);
    sd_feed(step->plan, step->noisy_noise_by, k->noisy[1]);
    sd_feed(step->plan, step->target_latents_by, k->target[0]);
    sd_feed(step->plan, step->target_noise_by, k->target[1]);
    sd_feed(step->plan, step->timesteps, k->timesteps);
    sd_feed(step->plan, step->weight, k->weight);
    if (step->mask)
        sd_feed(step->plan, step->mask, k->mask);
    if (step->input_ids)
        sd_feed(step->plan, step->input_ids, k->ids);
    else
        sd_feed(step->plan, step->states, k->states);
}

static int
fill_micro(struct sd_trainer *x, int64_t index, struct sd_micro *k, struct sd_scope *s)
{
    return (x->replay ? replay_micro : make_micro)(x, index, k, s);
}

/* The micro-batch, in a scope that the caller closes. */
static int
take_micro(struct sd_trainer *x, int64_t index, struct sd_micro *k, struct sd_scope **s)
{
    struct sd_scope *ahead = x->ahead.scope;

    x->ahead.scope = NULL;
    if (ahead && x->ahead.index == index) {
        *k = x->ahead.micro;
        *s = ahead;
        return 0;
    }
    if (ahead)
        sd_scope_close(ahead);
    *s = sd_scope_open();
    return fill_micro(x, index, k, *s);
}

/* Made now, taken later; what cannot be made is said when its turn comes. */
static void
make_ahead(struct sd_trainer *x, int64_t index)
{
    struct sd_scope *s;

    if (index >= x->options.updates * (int64_t)x->options.accumulation)
        return;
    s = sd_scope_open();
    memset(&x->ahead.micro, 0, sizeof x->ahead.micro);
    if (fill_micro(x, index, &x->ahead.micro, s) < 0) {
        sd_scope_close(s);
        return;
    }
    x->ahead.scope = s;
    x->ahead.index = index;
}

/* A micro-batch, its step, bound and fed; NULL with sd_fail.  *s is to be closed in any case. */
static struct sd_train_step *
ready_micro(struct sd_trainer *x, int64_t index, struct sd_micro *k, struct sd_scope **s)
{
    struct sd_train_step *step;

    memset(k, 0, sizeof *k);
    if (take_micro(x, index, k, s) < 0 || !(step = sd_trainer_step(x, &k->shape)))
        return NULL;
    if (!step->bound) {
        sd_plan_bind(step->plan, x->arena);
        step->bound = true;
    }
    feed(step, k);
    return step;
}

/* run_micro - one micro-batch; its loss and gradients go into the sums. */
static int
run_micro(struct sd_trainer *x, int64_t index)
{
    struct sd_micro k;
    struct sd_scope *s;
    struct sd_train_step *step = ready_micro(x, index, &k, &s);

    if (step && x->mirror) {
        sd_run(step->plan);
        sd_mirror_accumulate(x->mirror, sd_data(step->plan, step->loss), k.shape.batch);
    } else if (step) {
        float *loss = sd_alloc_array(s, (size_t)k.shape.batch, sizeof *loss);
        double sum = 0;

        sd_run(step->plan);
        sd_fetch(step->plan, step->loss, loss);
        for (int64_t b = 0; b < k.shape.batch; b++)
            sum += loss[b];
        sd_accumulate(x->sums, sum, k.shape.batch);
    }
    sd_scope_close(s);
    return step ? 0 : -1;
}

/* scan_micro - the same, looking at every result: *bad is the first module that is not finite, or NULL. */
static int
scan_micro(struct sd_trainer *x, int64_t index, const char **bad, const char **sources)
{
    struct sd_micro k;
    struct sd_scope *s;
    struct sd_train_step *step = ready_micro(x, index, &k, &s);

    if (step && (*bad = sd_run_scan(step->plan))) {
        char *text = sd_strdup(x->scope, k.sources[0]);

        for (int64_t b = 1; b < k.shape.batch; b++)
            text = sd_sprintf(x->scope, "%s, %s", text, k.sources[b]);
        *sources = text;
    }
    sd_scope_close(s);
    return step ? 0 : -1;
}

static void
clear_gradient(struct sd_trainer *x)
{
    if (x->mirror)
        sd_mirror_clear(x->mirror);
    else
        memset(x->t->grad, 0, x->t->count * sizeof *x->t->grad);
}

/* The update is not finite: run its micro-batches again, looking at every result (the same bits), and say where. */
static int
explain(struct sd_trainer *x, int64_t done, const struct sd_update *u)
{
    const char *bad = NULL, *sources = NULL;
    char *reason =
        sd_sprintf(x->scope, "step %lld: loss %g, gradient norm %g", (long long)u->step, u->loss, u->grad_norm);

    clear_gradient(x);
    for (int64_t i = 0; i < (int64_t)x->options.accumulation && !bad; i++)
        if (scan_micro(x, done * x->options.accumulation + i, &bad, &sources) < 0)
            return -1;
    clear_gradient(x);
    return bad ? sd_fail("%s: first at %s, samples %s", reason, bad, sources) : sd_fail("%s", reason);
}

/* The rate of a group in this update; false: it stands still from here on. */
static bool
rate_of(const struct sd_trainer *x, int group, int64_t done, double *lr)
{
    const struct sd_trainer_options *o = &x->options;
    struct sd_lr_scheduler schedule = { o->lr_scheduler, o->warmup, o->updates, o->learning_rate[group] };

    *lr = 0;
    if ((double)done >= o->until[group] * (double)o->updates)
        return false;
    *lr = o->learning_rate[group] * sd_lr_multiplier(&schedule, done);
    return true;
}

/* One micro-batch and its update. */
static int
whole_step(struct sd_trainer *x, int64_t index, const struct sd_mirror_step *values)
{
    struct sd_micro k;
    struct sd_scope *s;
    struct sd_train_step *step = ready_micro(x, index, &k, &s);

    if (step)
        sd_mirror_whole(x->mirror, values, &step->whole,
                        &(struct sd_mirror_work){ step->plan, x->arena, sd_data(step->plan, step->loss), k.shape.batch });
    sd_scope_close(s);
    return step ? 0 : -1;
}

/* The same on a device: asked for, the next micro-batch made meanwhile, then waited for. */
static int
update_on_device(struct sd_trainer *x, int64_t done, struct sd_update *u)
{
    int64_t accumulation = x->options.accumulation;
    struct sd_mirror_step step = { .max_norm = x->options.max_grad_norm };
    struct sd_mirror_result r;

    if (!x->mirror) {
        x->mirror = sd_mirror_open(x->model.compute.device, x->optimizer, x->model.compute.activations);
        sd_mirror_write(x->mirror);
    }
    for (int g = 0; g < x->t->groups; g++)
        step.moves[g] = rate_of(x, g, done, &step.lr[g]);
    if (accumulation == 1) {
        if (whole_step(x, done, &step) < 0)
            return -1;
    } else {
        for (int64_t i = 0; i < accumulation; i++)
            if (run_micro(x, done * accumulation + i) < 0)
                return -1;
        sd_mirror_update(x->mirror, &step);
    }
    make_ahead(x, (done + 1) * accumulation);
    sd_mirror_wait(x->mirror, &r);
    u->samples = r.samples;
    u->loss = r.loss;
    u->grad_norm = r.grad_norm;
    memcpy(u->group_norm, r.group_norm, sizeof u->group_norm);
    if (!r.finite)
        return explain(x, done, u);
    memcpy(u->lr, step.lr, sizeof u->lr);
    return 0;
}

void
sd_trainer_read(struct sd_trainer *x)
{
    if (x->mirror)
        sd_mirror_read(x->mirror);
}

int
sd_trainer_update(struct sd_trainer *x, int64_t done, struct sd_update *u)
{
    const struct sd_trainer_options *o = &x->options;
    double sum = 0, clip;

    memset(u, 0, sizeof *u);
    u->step = done + 1;
    if (x->model.compute.device)
        return update_on_device(x, done, u);
    for (int64_t i = 0; i < (int64_t)o->accumulation; i++)
        if (run_micro(x, done * o->accumulation + i) < 0)
            return -1;
    u->samples = sd_accumulator_finish(x->sums, &u->loss);
    for (int g = 0; g < x->t->groups; g++) {
        u->group_norm[g] = sd_trainables_norm(x->t, g, x->t->grad);
        sum += u->group_norm[g] * u->group_norm[g];
    }
    u->grad_norm = sqrt(sum);
    if (!isfinite(u->loss) || !isfinite(u->grad_norm))
        return explain(x, done, u);
    clip = sd_clip_factor(u->grad_norm, o->max_grad_norm);
    for (int g = 0; g < x->t->groups; g++)
        if (rate_of(x, g, done, &u->lr[g]))
            sd_optimizer_step(x->optimizer, g, u->lr[g], clip);
    memset(x->t->grad, 0, x->t->count * sizeof *x->t->grad);
    return 0;
}
