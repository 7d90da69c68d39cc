/* adamw:  p -= lr wd p;  m += (1 - b1)(g - m);  v = b2 v + (1 - b2) g g
 *         p -= lr / (1 - b1^k) m / (sqrt(v) / sqrt(1 - b2^k) + eps),  k = 1, 2, ... */
#include "adamw.h"

#include <math.h>

void
sd_adamw_step(float *value, const float *grad, float *exp_avg, float *exp_avg_sq, size_t n, const struct sd_adamw *a)
{
    double correction1 = 1 - pow(a->beta1, (double)a->step), correction2 = 1 - pow(a->beta2, (double)a->step);
    float scale = (float)a->grad_scale, decay = (float)(1 - a->lr * a->weight_decay), eps = (float)a->eps;
    float rest1 = (float)(1 - a->beta1), beta2 = (float)a->beta2, rest2 = (float)(1 - a->beta2);
    float root = (float)sqrt(correction2), step = (float)(-a->lr / correction1);

#pragma omp parallel for simd schedule(static) if (n > 1 << 15)
    for (size_t i = 0; i < n; i++) {
        float g = grad[i] * scale, p = value[i] * decay, m = exp_avg[i], v = exp_avg_sq[i] * beta2;

        m += rest1 * (g - m);
        v += rest2 * g * g;
        exp_avg[i] = m;
        exp_avg_sq[i] = v;
        value[i] = p + step * m / (sqrtf(v) / root + eps);
    }
}
