/* cast: CUDA twin of cast.c.  One read and one write an element: bound by memory. */
#include "device_ops.h"
#include "cuda.h"

using namespace sd;

void
cast_prepare_cuda(struct sd_node *n)
{
    n->scratch_bytes = 0;
}

void
cast_forward_cuda(struct sd_node *n)
{
    sd_device_cast(device_of(n), n->out->data, n->out->dtype, n->in[0]->data, n->in[0]->dtype, n->out->numel);
}

void
cast_backward_cuda(struct sd_node *n)
{
    int64_t count = (int64_t)n->out->numel;

    if (n->din[0])
        sd_device_rows(device_of(n), n->din[0]->data, n->din[0]->dtype, count, n->dout->data, n->dout->dtype, count, 1, count,
                       !n->din_store[0]);
}
