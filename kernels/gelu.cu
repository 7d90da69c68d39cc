/* gelu: CUDA twin of gelu.c, where the formulas are.  One read and one write an element (gradient: two reads): bound by memory. */
#include "pointwise.cuh"

using namespace sd;

namespace {

struct value {
    __device__ float operator()(float x) const { return x * normal_integral(x); }
};
struct gradient {
    __device__ float
    operator()(float dy, float x) const
    {
        return dy * (normal_integral(x) + x * normal_density(x));
    }
};

}   /* namespace */

void
gelu_prepare_cuda(struct sd_node *n)
{
    n->scratch_bytes = 0;
}

void
gelu_forward_cuda(struct sd_node *n)
{
    SD_BY_DTYPE(n->out->dtype, T, pointwise(device_of(n), data<T>(n->out), (int64_t)n->out->numel, false, value(), data<T>(n->in[0])));
}

void
gelu_backward_cuda(struct sd_node *n)
{
    if (n->din[0])
        SD_BY_DTYPE(n->out->dtype, T, pointwise(device_of(n), data<T>(n->din[0]), (int64_t)n->out->numel, !n->din_store[0],
                                                gradient(), data<T>(n->dout), data<T>(n->in[0])));
}
