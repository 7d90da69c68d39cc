/* prodigy:  dlr = d lr (sqrt(1 - b2^(k+1)) / (1 - b1^(k+1)) with bias correction)
 *           numerator = b3 numerator + sum (d / d0) dlr g (p0 - p)
 *           m = b1 m + d (1 - b1) g;  v = b2 v + d d (1 - b2) g g;  s = b3 s + (d / d0)(d with safeguard, else dlr) g
 *           d' = d_coef numerator / sum |s|: the new d, unless smaller
 *           p -= wd dlr p;  p -= dlr m / (sqrt(v) + d eps)         old d in dlr, new d beside eps */
#include "prodigy.h"

#include <math.h>

#include "reduce.h"

void
sd_prodigy_start(struct sd_prodigy_state *state, const struct sd_prodigy *a)
{
    *state = (struct sd_prodigy_state){ .d = a->d0, .d_max = a->d0 };
}

struct rates { float scale, beta1, beta2, beta3, m, v, s; };

/* Moments and s of one buffer; *dot = sum g (p0 - p), *size = sum |s|. */
static void
gather(const struct sd_prodigy_buffers *b, const struct rates *r, double *dot, double *size)
{
    double dots[SD_PIECES], sizes[SD_PIECES];

#pragma omp parallel for schedule(static) if (b->n > 1 << 15)
    for (int k = 0; k < SD_PIECES; k++) {
        double lane_dot[SD_LANES] = { 0 }, lane_size[SD_LANES] = { 0 };

        for (size_t from = sd_piece(b->n, k), end = sd_piece(b->n, k + 1); from < end; from += SD_LANES) {
            int lanes = end - from < SD_LANES ? (int)(end - from) : SD_LANES;

#pragma omp simd
            for (int j = 0; j < lanes; j++) {
                size_t i = from + (size_t)j;
                float g = b->grad[i] * r->scale;

                lane_dot[j] += (double)g * (b->p0[i] - b->value[i]);
                b->exp_avg[i] = b->exp_avg[i] * r->beta1 + r->m * g;
                b->exp_avg_sq[i] = b->exp_avg_sq[i] * r->beta2 + r->v * g * g;
                b->s[i] = b->s[i] * r->beta3 + r->s * g;
                lane_size[j] += fabsf(b->s[i]);
            }
        }
        dots[k] = sd_tree_sum(lane_dot, SD_LANES);
        sizes[k] = sd_tree_sum(lane_size, SD_LANES);
    }
    *dot = sd_tree_sum(dots, SD_PIECES);
    *size = sd_tree_sum(sizes, SD_PIECES);
}

static void
move(const struct sd_prodigy_buffers *b, float decay, float step, float eps)
{
#pragma omp parallel for simd schedule(static) if (b->n > 1 << 15)
    for (size_t i = 0; i < b->n; i++) {
        float p = b->value[i];

        p += decay * p;
        b->value[i] = p + step * b->exp_avg[i] / (sqrtf(b->exp_avg_sq[i]) + eps);
    }
}

void
sd_prodigy_step(struct sd_prodigy_state *state, const struct sd_prodigy *a, double lr, double grad_scale,
                const struct sd_prodigy_buffers *buffers, int count)
{
    double beta3 = a->beta3 > 0 ? a->beta3 : sqrt(a->beta2), d = state->d, k = state->k + 1, dlr = d * lr, d_hat;
    double numerator = state->d_numerator * beta3, denominator = 0;
    struct rates r;

    if (!(lr > 0))
        return;
    if (a->use_bias_correction)
        dlr = d * lr * (sqrt(1 - pow(a->beta2, k)) / (1 - pow(a->beta1, k)));
    r = (struct rates){ (float)grad_scale, (float)a->beta1, (float)a->beta2, (float)beta3, (float)(d * (1 - a->beta1)),
                        (float)(d * d * (1 - a->beta2)), (float)(d / a->d0 * (a->safeguard_warmup ? d : dlr)) };
    for (int i = 0; i < count; i++) {
        double dot, size;

        gather(&buffers[i], &r, &dot, &size);
        numerator += d / a->d0 * dlr * dot;
        denominator += size;
    }
    if (denominator == 0)
        return;
    d_hat = a->d_coef * numerator / denominator;
    if (d == a->d0 && d_hat > d)
        d = d_hat;
    if (d_hat > state->d_max)
        state->d_max = d_hat;
    d = a->growth_rate > 0 ? fmin(state->d_max, d * a->growth_rate) : state->d_max;
    state->d = d;
    state->d_numerator = numerator;
    state->k = k;
    for (int i = 0; i < count; i++)
        move(&buffers[i], (float)(-a->weight_decay * dlr), (float)-dlr, (float)(d * a->eps));
}
