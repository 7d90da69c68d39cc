/* trainer - updates: which samples, which numbers, forward and backward, accumulate, clip, step. */
#include "trainer_private.h"

#include "reduce.h"

#include <math.h>
#include <string.h>

static void
close_trainer(void *argument)
{
    struct sd_trainer *t = argument;

    while (t->steps) {
        struct sd_train_step *next = t->steps->next;

        sd_trainer_sent_free(t, t->steps);
        sd_train_step_free(t->steps);
        t->steps = next;
    }
    sd_trainer_encoders_free(t);
    if (t->epoch_scope)
        sd_scope_close(t->epoch_scope);
    sd_trainer_resident_free(t);
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

/* -- running ----------------------------------------------------------------------------------------------------- */

/* What a step on a device computes of one micro-batch: its inputs, from what was sent, and its plan. */
static void
steps_of(void *argument)
{
    struct sd_train_step *step = argument;

    sd_trainer_make_inputs(step);
    sd_run_steps(step->plan);
}

/* run_micro - one micro-batch; its loss and gradients go into the sums. */
static int
run_micro(struct sd_trainer *x, int64_t index)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_micro k;
    struct sd_train_step *step = sd_trainer_ready(x, index, &k, s);

    if (step && x->mirror) {
        sd_repeat(x->model.compute.device, &step->alone, sd_arena_moves(x->arena), steps_of, step);
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
    struct sd_scope *s = sd_scope_open();
    struct sd_micro k;
    struct sd_train_step *step = sd_trainer_ready(x, index, &k, s);

    if (step && x->mirror)
        sd_trainer_make_inputs(step);
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
    struct sd_scope *s = sd_scope_open();
    struct sd_micro k;
    struct sd_train_step *step = sd_trainer_ready(x, index, &k, s);

    if (step)
        sd_mirror_whole(x->mirror, values, &step->whole,
                        &(struct sd_mirror_work){ steps_of, step, x->arena, sd_data(step->plan, step->loss), k.shape.batch });
    sd_scope_close(s);
    return step ? 0 : -1;
}

/* An update on a device, asked for. */
static int
ask_device(struct sd_trainer *x, int64_t done, double *lr)
{
    int64_t accumulation = x->options.accumulation;
    struct sd_mirror_step step = { .max_norm = x->options.max_grad_norm };

    if (!x->mirror) {
        x->mirror = sd_mirror_open(x->model.compute.device, x->optimizer, x->model.compute.activations);
        sd_mirror_write(x->mirror);
    }
    for (int g = 0; g < x->t->groups; g++)
        step.moves[g] = rate_of(x, g, done, &step.lr[g]);
    memcpy(lr, step.lr, sizeof step.lr);
    if (accumulation == 1)
        return whole_step(x, done, &step);
    for (int64_t i = 0; i < accumulation; i++)
        if (run_micro(x, done * accumulation + i) < 0)
            return -1;
    sd_mirror_update(x->mirror, &step);
    return 0;
}

static int
answer_device(struct sd_trainer *x, int64_t done, const double *lr, struct sd_update *u)
{
    struct sd_mirror_result r;

    sd_mirror_wait(x->mirror, &r);
    u->samples = r.samples;
    u->loss = r.loss;
    u->grad_norm = r.grad_norm;
    memcpy(u->group_norm, r.group_norm, sizeof u->group_norm);
    if (!r.finite) {
        x->ahead = 0;
        return explain(x, done, u);
    }
    memcpy(u->lr, lr, sizeof u->lr);
    return 0;
}

void
sd_trainer_read(struct sd_trainer *x)
{
    if (x->ahead)
        sd_bug("trainer", "%d updates that were not answered", x->ahead);
    if (x->mirror)
        sd_mirror_read(x->mirror);
}

static int
update_on_cpu(struct sd_trainer *x, int64_t done, struct sd_update *u)
{
    const struct sd_trainer_options *o = &x->options;
    double sum = 0, clip;

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

int
sd_trainer_ahead(const struct sd_trainer *x)
{
    return x->model.compute.device ? SD_MIRROR_AHEAD : 1;
}

int
sd_trainer_ask(struct sd_trainer *x, int64_t done)
{
    if (x->ahead == sd_trainer_ahead(x))
        sd_bug("trainer", "%d updates that were not answered", x->ahead);
    memset(&x->asked[x->ahead], 0, sizeof x->asked[0]);
    x->asked[x->ahead].done = done;
    if (x->model.compute.device && ask_device(x, done, x->asked[x->ahead].lr) < 0)
        return -1;
    x->ahead++;
    return 0;
}

int
sd_trainer_answer(struct sd_trainer *x, struct sd_update *u)
{
    double lr[SD_MAX_GROUPS];
    int64_t done;

    if (!x->ahead)
        sd_bug("trainer", "no update was asked for");
    done = x->asked[0].done;
    memcpy(lr, x->asked[0].lr, sizeof lr);
    memmove(&x->asked[0], &x->asked[1], (size_t)--x->ahead * sizeof x->asked[0]);
    memset(u, 0, sizeof *u);
    u->step = done + 1;
    return x->model.compute.device ? answer_device(x, done, lr, u) : update_on_cpu(x, done, u);
}

int
sd_trainer_update(struct sd_trainer *x, int64_t done, struct sd_update *u)
{
    return sd_trainer_ask(x, done) < 0 ? -1 : sd_trainer_answer(x, u);
}
