/* prodigy.h - Prodigy over flat buffers, as prodigyopt.Prodigy computes it (decay decoupled, no slicing).
 *
 * One rule: p, m, v, s stay float, operation by operation in the reference's order (early on p0 - p is a difference of nearly
 * equal floats, and d follows its rounding); scalars are double, sums are made in a fixed tree. */
#ifndef SD_PRODIGY_H
#define SD_PRODIGY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct sd_prodigy {
    double beta1, beta2, eps, weight_decay;
    double beta3;               /* 0: sqrt(beta2) */
    double d0, d_coef;
    double growth_rate;         /* most that d may grow in a step once it has left d0; 0: no limit */
    bool use_bias_correction, safeguard_warmup;
};

struct sd_prodigy_state {       /* sd_prodigy_start sets it; part of the state file */
    double d, d_max, d_numerator, k;
};

struct sd_prodigy_buffers {     /* [n] each; moments and s start at zero, p0 as a copy of value */
    float *value;
    const float *grad;
    float *exp_avg, *exp_avg_sq, *s;
    const float *p0;
    size_t n;
};

void sd_prodigy_start(struct sd_prodigy_state *state, const struct sd_prodigy *a);

/* sd_prodigy_step - one step of `count` buffers that share one estimate d; lr is the multiplier of d (1, or a schedule's);
 * lr 0: nothing changes.  grad_scale: factor on the gradient, 1 for none.  Gradients all zero: d and p stay. */
void sd_prodigy_step(struct sd_prodigy_state *state, const struct sd_prodigy *a, double lr, double grad_scale,
                     const struct sd_prodigy_buffers *buffers, int count);

#ifdef __cplusplus
}
#endif

#endif
