/* denoise: some ten thousand elements a picture, read and written a few times: bound by the launches, of which guidance and the
 * step have one each (six with rescaled guidance), and the count of calls one. */
#include "denoise.h"

#include "cuda.h"
#include "sums.cuh"

using namespace sd;

namespace {

enum { THREADS = 256 };

__device__ inline bool finite(float x) { return (bits_of_float(x) & 0x7f800000) != 0x7f800000; }

__global__ void
__launch_bounds__(THREADS)
input_kernel(struct sd_denoise n, float *sample, float *timesteps)
{
    SD_BEGIN();
    const struct sd_denoise_call *c = n.calls + *n.call;
    int64_t b = blockIdx.y, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;

    if (i < n.numel)
        sample[b * n.numel + i] = __fmul_rn(c->input_scale, n.x[b % n.batch * n.numel + i]);
    if (i == 0)
        timesteps[b] = c->timestep;
}

__global__ void
__launch_bounds__(THREADS)
guide_kernel(float *out, const float *uncond, const float *cond, float scale, int64_t count)
{
    SD_BEGIN();
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;

    if (i < count)
        out[i] = __fadd_rn(uncond[i], __fmul_rn(scale, __fadd_rn(cond[i], -uncond[i])));
}

/* deviations of a sample: mean[b], then the sum of squares around it */
struct value {
    const float *x;
    int64_t numel;
    __device__ double operator()(int64_t b, int64_t i) const { return x[b * numel + i]; }
};
struct square {
    const float *x;
    int64_t numel;
    const double *mean;
    __device__ double
    operator()(int64_t b, int64_t i) const
    {
        double v = x[b * numel + i] - mean[b];

        return v * v;
    }
};
struct divided {
    double *to;
    int64_t by;
    __device__ void operator()(int64_t b, double sum) const { to[b] = sum / (double)by; }
};
struct root {
    double *to;
    int64_t by;
    __device__ void operator()(int64_t b, double sum) const { to[b] = by > 0 ? sqrt(sum / (double)by) : 0; }
};

__global__ void
__launch_bounds__(THREADS)
rescale_kernel(float *out, const double *of_cond, const double *of_out, double rescale, int64_t numel)
{
    SD_BEGIN();
    int64_t b = blockIdx.y, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;

    if (i < numel && of_out[b] > 0)
        out[b * numel + i] = __fmul_rn(out[b * numel + i], (float)(rescale * of_cond[b] / of_out[b] + (1 - rescale)));
}

/* the row's sum over the columns in their order, terms with 0 left out, the first not added to anything */
__device__ inline float
combine(const float *row, const float *column)
{
    float y = 0;
    bool first = true;

#pragma unroll
    for (int c = 0; c < SD_DENOISE_COLUMNS; c++) {
        float term = __fmul_rn(row[c], column[c]);

        if (row[c] == 0)
            continue;
        y = first ? term : __fadd_rn(y, term);
        first = false;
    }
    return y;
}

__global__ void
__launch_bounds__(THREADS)
step_kernel(struct sd_denoise n)
{
    SD_BEGIN();
    const struct sd_denoise_call *c = n.calls + *n.call;
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float column[SD_DENOISE_COLUMNS] = {}, x;

    if (i >= n.batch * n.numel)
        return;
    column[0] = n.x[i];
    column[1] = n.out[i];
    if (n.clamps)
        column[2] = fminf(fmaxf(__fadd_rn(__fmul_rn(c->x0[0], column[0]), __fmul_rn(c->x0[1], column[1])), -n.range), n.range);
#pragma unroll
    for (int k = 0; k < SD_DENOISE_HISTORY; k++)
        if (k < n.slots)
            column[3 + k] = n.history[k][i];
    if (n.noise)
        column[7] = n.noise[i];
    n.x[i] = x = combine(c->x, column);
#pragma unroll
    for (int k = 0; k < SD_DENOISE_HISTORY; k++)
        if (k < n.slots)
            n.history[k][i] = combine(c->history[k], column);
    if (!finite(column[1]) || !finite(x))
        n.bad[*n.call] = 1;
}

__global__ void
next_kernel(int32_t *call)
{
    SD_BEGIN();
    ++*call;
}

}   /* namespace */

void
sd_denoise_input(struct sd_device *d, const struct sd_denoise *n, float *sample, float *timesteps, int64_t rows)
{
    SD_LAUNCH(d, input_kernel, dim3((unsigned)ceil_div(n->numel, THREADS), (unsigned)rows), THREADS, 0, *n, sample, timesteps);
}

/* sums, of one sample after the other; mean and two deviations of each */
size_t
sd_denoise_room(int64_t batch, int64_t numel)
{
    return (size_t)(batch * (sum_chunks(numel) + 3));
}

static void
deviation(struct sd_device *d, const struct sd_denoise *n, const float *x, double *to, double *mean, double *partial)
{
    sums(d, partial, n->batch, n->numel, value{ x, n->numel }, divided{ mean, n->numel });
    sums(d, partial, n->batch, n->numel, square{ x, n->numel, mean }, root{ to, n->numel - 1 });
}

void
sd_denoise_guide(struct sd_device *d, const struct sd_denoise *n, const float *uncond, const float *cond, float scale,
                 double rescale, double *room)
{
    int64_t count = n->batch * n->numel;
    double *of_cond = room, *of_out = room + n->batch, *mean = room + 2 * n->batch, *partial = room + 3 * n->batch;

    if (rescale > 0)
        deviation(d, n, cond, of_cond, mean, partial);
    SD_LAUNCH(d, guide_kernel, (unsigned)ceil_div(count, THREADS), THREADS, 0, n->out, uncond, cond, scale, count);
    if (rescale > 0) {
        deviation(d, n, n->out, of_out, mean, partial);
        SD_LAUNCH(d, rescale_kernel, dim3((unsigned)ceil_div(n->numel, THREADS), (unsigned)n->batch), THREADS, 0, n->out,
                  (const double *)of_cond, (const double *)of_out, rescale, n->numel);
    }
}

void
sd_denoise_step(struct sd_device *d, const struct sd_denoise *n)
{
    SD_LAUNCH(d, step_kernel, (unsigned)ceil_div(n->batch * n->numel, THREADS), THREADS, 0, *n);
    SD_LAUNCH(d, next_kernel, 1, 1, 0, n->call);
}
