/* timestep_embedding: CUDA twin of timestep_embedding.c.  The same steps, each function of one number in double and rounded once:
 * within an ulp of the C loops.  A few hundred elements a sample: bound by the launch. */
#include "ops.h"
#include "pointwise.cuh"

using namespace sd;

namespace {

enum { THREADS = 128 };

template <class T> __global__ void
timestep_embedding_kernel(T *y, struct operand t, int width, bool flip, float divisor)
{
    SD_BEGIN();
    int64_t b = blockIdx.y;
    int i = (int)blockIdx.x * THREADS + (int)threadIdx.x, half = width / 2, k = i % half;
    float exponent, f, angle;

    if (i >= width)
        return;
    exponent = __fmul_rn(-9.210340371976184f, (float)k);        /* ln(10000) */
    f = (float)exp((double)__fdiv_rn(exponent, divisor));
    angle = __fmul_rn(read_operand(t, b), f);
    if (i == 2 * half)
        y[b * width + i] = from_float<T>(0);
    else
        y[b * width + i] = from_float<T>((float)((i < half) == flip ? cos((double)angle) : sin((double)angle)));
}

}   /* namespace */

void
timestep_embedding_prepare_cuda(struct sd_node *n)
{
    n->scratch_bytes = 0;
}

void
timestep_embedding_forward_cuda(struct sd_node *n)
{
    const struct sd_timestep_embedding *a = static_cast<const struct sd_timestep_embedding *>(n->attr);
    float divisor = (float)((double)(a->width / 2) - a->shift);

    if (!n->out->numel)
        return;
    SD_BY_DTYPE(n->out->dtype, T,
                SD_LAUNCH(device_of(n), timestep_embedding_kernel<T>,
                          dim3((unsigned)ceil_div(a->width, THREADS), (unsigned)n->out->shape[0]), THREADS, 0, data<T>(n->out),
                          operand_of(n->in[0]), a->width, a->flip, divisor));
}

void
timestep_embedding_backward_cuda(struct sd_node *n)
{
    sd_bug("timestep_embedding", "%s: has no gradient", n->path);
}
