/* lr_scheduler.h - learning-rate multipliers by optimizer step (diffusers: optimization.py).
 * w = warm-up steps, N = all steps, p = (step - w) / (N - w); during warm-up step / w, so the first step has rate 0. */
#ifndef SD_LR_SCHEDULER_H
#define SD_LR_SCHEDULER_H

#include "diag.h"

struct sd_lr_scheduler {
    const char *name;       /* constant (ignores warm-up), constant_with_warmup, linear, cosine, polynomial */
    int64_t warmup, steps;
    double rate;            /* polynomial only: its end, 1e-7, is absolute, so the multiplier depends on the rate */
};

/* sd_lr_multiplier - of step 0, 1, ...; sd_bug for a name that is not one of the five. */
double sd_lr_multiplier(const struct sd_lr_scheduler *s, int64_t step);

#endif
