/* optimizer - AdamW and Prodigy over the groups of the trainables. */
#include "optimizer.h"

#include "adamw.h"

#include <string.h>

struct sd_prodigy
sd_optimizer_prodigy(const struct sd_optimizer_options *o)
{
    return (struct sd_prodigy){ .beta1 = o->beta1,
                                .beta2 = o->beta2,
                                .eps = o->eps,
                                .weight_decay = o->weight_decay,
                                .d0 = o->d0,
                                .d_coef = o->d_coef,
                                .use_bias_correction = o->use_bias_correction,
                                .safeguard_warmup = o->safeguard_warmup };
}

struct sd_optimizer *
sd_optimizer_new(struct sd_trainables *t, const struct sd_optimizer_options *options)
{
    static const char *const names[] = { "exp_avg", "exp_avg_sq", "s", "p0" };
    struct sd_optimizer *o = sd_alloc(t->scope, sizeof *o);

    o->options = *options;
    o->t = t;
    o->buffers = options->kind == SD_PRODIGY ? 4 : 2;
    for (int b = 0; b < o->buffers; b++) {
        o->buffer_name[b] = names[b];
        o->buffer[b] = sd_alloc_array(t->scope, t->count, sizeof(float));
    }
    if (options->kind != SD_PRODIGY)
        return o;
    memcpy(o->buffer[3], t->value, t->count * sizeof(float));
    for (int g = 0; g < t->groups; g++) {
        struct sd_prodigy a = sd_optimizer_prodigy(options);
        struct sd_prodigy_state state;

        sd_prodigy_start(&state, &a);
        memcpy(o->scalar[g], &state, sizeof state);
    }
    return o;
}

void
sd_optimizer_step(struct sd_optimizer *o, int group, double lr, double grad_scale)
{
    struct sd_trainables *t = o->t;
    size_t at = t->group[group].begin, n = t->group[group].count;

    if (o->options.kind == SD_PRODIGY) {
        struct sd_prodigy a = sd_optimizer_prodigy(&o->options);
        struct sd_prodigy_state state;
        struct sd_prodigy_buffers b = {
            t->value + at, t->grad + at, o->buffer[0] + at, o->buffer[1] + at, o->buffer[2] + at, o->buffer[3] + at, n
        };

        memcpy(&state, o->scalar[group], sizeof state);
        sd_prodigy_step(&state, &a, lr, grad_scale, &b, 1);
        memcpy(o->scalar[group], &state, sizeof state);
    } else {
        struct sd_adamw a = { lr,
                              o->options.beta1,
                              o->options.beta2,
                              o->options.eps,
                              o->options.weight_decay,
                              grad_scale,
                              (int64_t)++o->scalar[group][0] };

        sd_adamw_step(t->value + at, t->grad + at, o->buffer[0] + at, o->buffer[1] + at, n, &a);
    }
}
