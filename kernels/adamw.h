/* adamw.h - AdamW over one flat buffer, as torch.optim.AdamW computes it (decay decoupled, before the step).
 *
 * One rule: everything in float, operation by operation in torch's order; scalars in double. */
#ifndef SD_ADAMW_H
#define SD_ADAMW_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct sd_adamw {
    double lr, beta1, beta2, eps, weight_decay;
    double grad_scale;      /* factor on the gradient (clipping); 1 for none */
    int64_t step;           /* this step's number, from 1 */
};

/* sd_adamw_step - value, exp_avg and exp_avg_sq [n] move one step; the moments start at zero. */
void sd_adamw_step(float *value, const float *grad, float *exp_avg, float *exp_avg_sq, size_t n, const struct sd_adamw *a);

#ifdef __cplusplus
}
#endif

#endif
