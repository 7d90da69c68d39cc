/* add_noise: CUDA twin of add_noise.c; the same bits in F32.  Latents: some ten thousand elements a sample, bound by the launch. */
#include "pointwise.cuh"

using namespace sd;

namespace {

enum { THREADS = 256 };

template <class T> __global__ void
add_noise_kernel(T *y, struct operand x, struct operand noise, struct operand a, struct operand s, int64_t count)
{
    SD_BEGIN();
    int64_t b = blockIdx.y, i = (int64_t)blockIdx.x * THREADS + threadIdx.x, at = b * count + i;

    if (i < count)
        y[at] = from_float<T>(__fadd_rn(__fmul_rn(read_operand(a, b), read_operand(x, at)),
                                        __fmul_rn(read_operand(s, b), read_operand(noise, at))));
}

}   /* namespace */

void
add_noise_prepare_cuda(struct sd_node *n)
{
    n->scratch_bytes = 0;
}

void
add_noise_forward_cuda(struct sd_node *n)
{
    int64_t B = n->out->shape[0], count = B ? (int64_t)n->out->numel / B : 0;

    if (!n->out->numel)
        return;
    SD_BY_DTYPE(n->out->dtype, T,
                SD_LAUNCH(device_of(n), add_noise_kernel<T>, dim3((unsigned)ceil_div(count, THREADS), (unsigned)B), THREADS, 0,
                          data<T>(n->out), operand_of(n->in[0]), operand_of(n->in[1]), operand_of(n->in[2]), operand_of(n->in[3]),
                          count));
}

void
add_noise_backward_cuda(struct sd_node *n)
{
    sd_bug("add_noise", "%s: has no gradient", n->path);
}
