/* add: CUDA twin of add.c.  Two reads and one write an element, gradient one and one: bound by memory. */
#include "device_ops.h"
#include "pointwise.cuh"

using namespace sd;

namespace {

struct sum { __device__ float operator()(float a, float b) const { return a + b; } };

}   /* namespace */

void
add_prepare_cuda(struct sd_node *n)
{
    n->scratch_bytes = 0;
}

void
add_forward_cuda(struct sd_node *n)
{
    SD_BY_DTYPE(n->out->dtype, T, SD_BY_DTYPE(n->in[1]->dtype, U,
                pointwise(device_of(n), data<T>(n->out), (int64_t)n->out->numel, false, sum(), data<T>(n->in[0]), data<U>(n->in[1]))));
}

void
add_backward_cuda(struct sd_node *n)
{
    int64_t count = (int64_t)n->out->numel;

    for (int k = 0; k < 2; k++)
        if (n->din[k] && !(n->din_store[k] && n->din[k]->data == n->dout->data))
            sd_device_rows(device_of(n), n->din[k]->data, n->din[k]->dtype, count, n->dout->data, n->dout->dtype, count, 1, count,
                           !n->din_store[k]);
}
