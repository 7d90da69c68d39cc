/* silu: CUDA twin of silu.c, where the formulas are.  One read and one write an element (gradient: two reads): bound by memory. */
#include "pointwise.cuh"

using namespace sd;

namespace {

template <class T> struct value {
    __device__ float operator()(float x) const { return x * sigmoid<T>(x); }
};
template <class T> struct gradient {
    __device__ float
    operator()(float dy, float x) const
    {
        float s = sigmoid<T>(x);

        return dy * s * (1 + x * (1 - s));
    }
};

}   /* namespace */

void
silu_prepare_cuda(struct sd_node *n)
{
    n->scratch_bytes = 0;
}

void
silu_forward_cuda(struct sd_node *n)
{
    SD_BY_DTYPE(n->out->dtype, T, pointwise(device_of(n), data<T>(n->out), (int64_t)n->out->numel, false, value<T>(), data<T>(n->in[0])));
}

void
silu_backward_cuda(struct sd_node *n)
{
    if (n->din[0])
        SD_BY_DTYPE(n->out->dtype, T, pointwise(device_of(n), data<T>(n->din[0]), (int64_t)n->out->numel, !n->din_store[0],
                                                gradient<T>(), data<T>(n->dout), data<T>(n->in[0])));
}
