/* update: the flat-buffer end of a step.  AdamW reads 16 and writes 12 bytes an element, Prodigy 20 + 12 and 8 + 4, the norm reads 4:
 * all bound by memory; the few scalars by their launches.  Element by element the operations are those of adamw.c and
 * prodigy.c, each rounded (no contraction). */
#include "update.h"

#include "pointwise.cuh"
#include "sums.cuh"

using namespace sd;

namespace {

enum { THREADS = 256 };

__device__ inline float mul(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double mul(double a, double b) { return __dmul_rn(a, b); }
__device__ inline double plus(double a, double b) { return __dadd_rn(a, b); }

struct sum { __device__ float operator()(float from) const { return from; } };
struct mean {
    const struct sd_update_values *v;
    __device__ float operator()(float x) const { return v->samples ? __fdiv_rn(x, (float)v->samples) : x; }
};
struct square {
    const float *x;
    __device__ double operator()(int64_t, int64_t i) const { return (double)x[i] * x[i]; }
};
struct keep {
    double *to;
    __device__ void operator()(int64_t, double sum) const { *to = sum; }
};

__device__ inline bool finite(double x) { return x - x == 0; }

__global__ void
loss_kernel(double *to, const float *loss, int64_t n, bool store)
{
    SD_BEGIN();
    double total = store ? 0 : *to, sum = 0;

    for (int64_t i = 0; i < n; i++)
        sum = plus(sum, (double)loss[i]);
    *to = plus(sum, total);
}

__global__ void
clip_kernel(struct sd_update_result *r, int groups, const double *loss, const struct sd_update_values *v)
{
    SD_BEGIN();
    double sum = 0, factor;

    for (int g = 0; g < groups; g++) {
        r->group_norm[g] = sqrt(r->squares[g]);
        sum = plus(sum, mul(r->group_norm[g], r->group_norm[g]));
    }
    r->grad_norm = sqrt(sum);
    r->loss = loss && v->samples ? *loss / (double)v->samples : 0;
    factor = v->max_norm > 0 ? v->max_norm / plus(r->grad_norm, 1e-6) : 1;
    r->clip = factor < 1 ? factor : 1;
    r->broken |= !(finite(r->grad_norm) && finite(r->loss));
    r->finite = !r->broken;
}

__global__ void
__launch_bounds__(THREADS)
adamw_kernel(float *value, const float *grad, float *exp_avg, float *exp_avg_sq, int64_t n, const struct sd_update_values *v,
             const struct sd_update_result *r, int group)
{
    SD_BEGIN();
    const struct sd_update_group *a = &v->group[group];
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float g, p, m, s;

    if (i >= n || !a->moves || !r->finite)
        return;
    g = mul(grad[i], (float)r->clip);
    p = mul(value[i], a->decay);
    m = exp_avg[i];
    s = mul(exp_avg_sq[i], a->beta2);
    m = plus(m, mul(a->rest1, plus(g, -m)));
    s = plus(s, mul(mul(a->rest2, g), g));
    exp_avg[i] = m;
    exp_avg_sq[i] = s;
    value[i] = plus(p, __fdiv_rn(mul(a->step, m), plus(__fdiv_rn(__fsqrt_rn(s), a->root), a->eps)));
}

/* -- prodigy ---------------------------------------------------------------------------------------------------------- */

struct prodigy_constants { double beta1, beta2, beta3, eps, weight_decay, d0, d_coef, growth_rate; int64_t correct, safeguard; };

__global__ void
prodigy_begin_kernel(struct sd_prodigy_work *w, const struct sd_prodigy_state *state, struct prodigy_constants a,
                     const struct sd_update_values *v, const struct sd_update_result *r, int group)
{
    SD_BEGIN();
    double lr = v->group[group].lr, d = state->d, k = state->k + 1;

    w->gathers = v->group[group].moves && r->finite && lr > 0;
    w->moves = 0;
    w->dlr = mul(d, lr);
    if (a.correct)
        w->dlr = mul(w->dlr, sqrt(1 - pow(a.beta2, k)) / (1 - pow(a.beta1, k)));
    w->scale = (float)r->clip;
    w->m = (float)mul(d, 1 - a.beta1);
    w->v = (float)mul(mul(d, d), 1 - a.beta2);
    w->s = (float)mul(d / a.d0, a.safeguard ? d : w->dlr);
}

/* partial[0, chunk] = sum of g (p0 - p), partial[1, chunk] = sum of |s| */
__global__ void
__launch_bounds__(SUM_THREADS)
prodigy_gather_kernel(double *partial, const float *value, const float *grad, float *exp_avg, float *exp_avg_sq, float *s,
                      const float *p0, int64_t n, struct prodigy_constants a, const struct sd_prodigy_work *w)
{
    SD_BEGIN();
    SD_SHARED(struct sum_room, room);
    int64_t first = (int64_t)blockIdx.x * SUM_CHUNK;
    double dot = 0, size = 0;

    if (!w->gathers)            /* the same for all threads */
        return;
    for (int k = 0; k < SUM_CHUNK; k += SUM_THREADS) {
        int64_t i = first + k + threadIdx.x;

        if (i < n) {
            float g = mul(grad[i], w->scale), next = plus(mul(s[i], (float)a.beta3), mul(w->s, g));

            dot += (double)g * plus(p0[i], -value[i]);
            exp_avg[i] = plus(mul(exp_avg[i], (float)a.beta1), mul(w->m, g));
            exp_avg_sq[i] = plus(mul(exp_avg_sq[i], (float)a.beta2), mul(mul(w->v, g), g));
            s[i] = next;
            size += fabsf(next);
        }
    }
    dot = sum_threads(dot, room);
    size = sum_threads(size, room);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = dot;
        partial[gridDim.x + blockIdx.x] = size;
    }
}

__global__ void
__launch_bounds__(SUM_THREADS)
prodigy_estimate_kernel(struct sd_prodigy_state *state, struct sd_prodigy_work *w, const double *partial, int64_t chunks,
                        struct prodigy_constants a)
{
    SD_BEGIN();
    SD_SHARED(struct sum_room, room);
    double dot = 0, size = 0, d, d_hat, numerator;

    if (!w->gathers)
        return;
    for (int64_t i = threadIdx.x; i < chunks; i += SUM_THREADS) {
        dot += partial[i];
        size += partial[chunks + i];
    }
    dot = sum_threads(dot, room);
    size = sum_threads(size, room);
    if (threadIdx.x || size == 0)
        return;
    d = state->d;
    numerator = plus(mul(state->d_numerator, a.beta3), mul(mul(d / a.d0, w->dlr), dot));
    d_hat = mul(a.d_coef, numerator) / size;
    if (d == a.d0 && d_hat > d)
        d = d_hat;
    if (d_hat > state->d_max)
        state->d_max = d_hat;
    d = a.growth_rate > 0 ? fmin(state->d_max, mul(d, a.growth_rate)) : state->d_max;
    state->d = d;
    state->d_numerator = numerator;
    state->k += 1;
    w->decay = (float)mul(-a.weight_decay, w->dlr);
    w->step = (float)-w->dlr;
    w->eps = (float)mul(d, a.eps);
    w->moves = 1;
}

__global__ void
__launch_bounds__(THREADS)
prodigy_move_kernel(float *value, const float *exp_avg, const float *exp_avg_sq, int64_t n, const struct sd_prodigy_work *w)
{
    SD_BEGIN();
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float p;

    if (i >= n || !w->moves)
        return;
    p = value[i];
    p = plus(p, mul(w->decay, p));
    value[i] = plus(p, __fdiv_rn(mul(w->step, exp_avg[i]), plus(__fsqrt_rn(exp_avg_sq[i]), w->eps)));
}

}   /* namespace */

void
sd_update_values_adamw(struct sd_update_group *v, const struct sd_adamw *a)
{
    double correction1 = 1 - pow(a->beta1, (double)a->step), correction2 = 1 - pow(a->beta2, (double)a->step);

    v->lr = a->lr;
    v->decay = (float)(1 - a->lr * a->weight_decay);
    v->eps = (float)a->eps;
    v->rest1 = (float)(1 - a->beta1);
    v->beta2 = (float)a->beta2;
    v->rest2 = (float)(1 - a->beta2);
    v->root = (float)sqrt(correction2);
    v->step = (float)(-a->lr / correction1);
    v->unused = 0;
}

void
sd_update_add(struct sd_device *d, float *to, const float *from, size_t n)
{
    pointwise(d, to, (int64_t)n, true, sum(), from);
}

void
sd_update_mean(struct sd_device *d, float *x, size_t n, const struct sd_update_values *v)
{
    pointwise(d, x, (int64_t)n, false, mean{ v }, (const float *)x);
}

void
sd_update_loss(struct sd_device *d, double *sum, const float *loss, size_t n, bool store)
{
    SD_LAUNCH(d, loss_kernel, 1, 1, 0, sum, loss, (int64_t)n, store);
}

size_t
sd_update_room(size_t n)
{
    return 2 * (size_t)sum_chunks((int64_t)n);
}

void
sd_update_squares(struct sd_device *d, struct sd_update_result *r, int group, const float *x, size_t n, double *room)
{
    sums(d, room, 1, (int64_t)n, square{ x }, keep{ &r->squares[group] });
}

void
sd_update_clip(struct sd_device *d, struct sd_update_result *r, int groups, const double *loss, const struct sd_update_values *v)
{
    if (groups > SD_UPDATE_GROUPS)
        sd_bug("update", "%d groups", groups);
    SD_LAUNCH(d, clip_kernel, 1, 1, 0, r, groups, loss, v);
}

void
sd_update_adamw(struct sd_device *d, float *value, const float *grad, float *exp_avg, float *exp_avg_sq, size_t n,
                const struct sd_update_values *v, const struct sd_update_result *r, int group)
{
    if (n)
        SD_LAUNCH(d, adamw_kernel, (unsigned)ceil_div((int64_t)n, THREADS), THREADS, 0, value, grad, exp_avg, exp_avg_sq, (int64_t)n,
                  v, r, group);
}

void
sd_update_prodigy(struct sd_device *d, struct sd_prodigy_state *state, struct sd_prodigy_work *work, const struct sd_prodigy *a,
                  const struct sd_prodigy_buffers *b, const struct sd_update_values *v, const struct sd_update_result *r, int group,
                  double *room)
{
    struct prodigy_constants k = { a->beta1, a->beta2, a->beta3 > 0 ? a->beta3 : sqrt(a->beta2), a->eps, a->weight_decay, a->d0,
                                   a->d_coef, a->growth_rate, a->use_bias_correction, a->safeguard_warmup };
    int64_t n = (int64_t)b->n, chunks = sum_chunks(n);

    if (!n)
        return;
    SD_LAUNCH(d, prodigy_begin_kernel, 1, 1, 0, work, state, k, v, r, group);
    SD_LAUNCH(d, prodigy_gather_kernel, (unsigned)chunks, SUM_THREADS, sizeof(struct sum_room), room, b->value, b->grad, b->exp_avg,
              b->exp_avg_sq, b->s, b->p0, n, k, work);
    SD_LAUNCH(d, prodigy_estimate_kernel, 1, SUM_THREADS, sizeof(struct sum_room), state, work, room, chunks, k);
    SD_LAUNCH(d, prodigy_move_kernel, (unsigned)ceil_div(n, THREADS), THREADS, 0, b->value, b->exp_avg, b->exp_avg_sq, n, work);
}
