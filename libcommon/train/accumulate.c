/* accumulate - a binary counter of partial gradient sums. */
#include "accumulate.h"

#include <string.h>

enum { LEVELS = 32 };

struct sd_accumulator {
    struct sd_trainables *t;
    uint32_t taken;                 /* micro-batches; bit l set: level l holds the sum of 2^l of them */
    int64_t samples;
    double loss[LEVELS];
    float *sum[LEVELS];             /* made when first needed: log2 K + 1 buffers for K micro-batches */
};

struct sd_accumulator *
sd_accumulator_new(struct sd_trainables *t)
{
    struct sd_accumulator *a = sd_alloc(t->scope, sizeof *a);

    a->t = t;
    return a;
}

static void
add(float *to, const float *from, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] += from[i];
}

void
sd_accumulate(struct sd_accumulator *a, double loss, int64_t samples)
{
    size_t n = a->t->count;
    float *grad = a->t->grad;
    int level = 0;

    for (; a->taken >> level & 1; level++) {
        add(grad, a->sum[level], n);
        loss += a->loss[level];
    }
    if (!a->sum[level])
        a->sum[level] = sd_alloc_array(a->t->scope, n, sizeof *grad);
    memcpy(a->sum[level], grad, n * sizeof *grad);
    a->loss[level] = loss;
    memset(grad, 0, n * sizeof *grad);
    a->taken++;
    a->samples += samples;
}

int64_t
sd_accumulator_finish(struct sd_accumulator *a, double *loss)
{
    size_t n = a->t->count;
    int64_t samples = a->samples;
    float *grad = a->t->grad;
    double sum = 0;

    memset(grad, 0, n * sizeof *grad);
    for (int level = 0; level < LEVELS; level++)
        if (a->taken >> level & 1) {
            add(grad, a->sum[level], n);
            sum += a->loss[level];
        }
    for (size_t i = 0; samples && i < n; i++)
        grad[i] /= (float)samples;
    *loss = samples ? sum / (double)samples : 0;
    a->taken = 0;
    a->samples = 0;
    return samples;
}
