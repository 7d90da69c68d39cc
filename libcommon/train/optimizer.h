/* optimizer.h - AdamW or Prodigy over the groups of the trainables; what it keeps is part of the state file.
 *
 * One rule: a group that stands still (rate 0 for good) is skipped whole; its moments do not move it. */
#ifndef SD_OPTIMIZER_H
#define SD_OPTIMIZER_H

#include "prodigy.h"
#include "trainables.h"

enum sd_optimizer_kind { SD_ADAMW, SD_PRODIGY };

struct sd_optimizer_options {
    enum sd_optimizer_kind kind;
    double beta1, beta2, eps, weight_decay;
    double d0, d_coef;                          /* Prodigy */
    bool safeguard_warmup, use_bias_correction;
};

enum { SD_MAX_BUFFERS = 4, SD_MAX_SCALARS = 8 };

struct sd_optimizer {
    struct sd_optimizer_options options;
    struct sd_trainables *t;
    int buffers;                                /* flat, laid out like the trainables */
    const char *buffer_name[SD_MAX_BUFFERS];    /* "exp_avg", "exp_avg_sq"; Prodigy also "s", "p0" */
    float *buffer[SD_MAX_BUFFERS];
    double scalar[SD_MAX_GROUPS][SD_MAX_SCALARS];   /* steps taken; Prodigy: d, d_max, d_numerator ... */
};

struct sd_optimizer *sd_optimizer_new(struct sd_trainables *t, const struct sd_optimizer_options *o);
/* sd_optimizer_step - one step of one group with t->grad * grad_scale (clipping); lr is the rate of AdamW, the
 * multiplier of Prodigy. */
struct sd_prodigy sd_optimizer_prodigy(const struct sd_optimizer_options *o);
void sd_optimizer_step(struct sd_optimizer *o, int group, double lr, double grad_scale);

#endif
