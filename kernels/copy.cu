/* copy: CUDA twin of copy.c.  One read and one write an element: bound by memory. */
#include "device_ops.h"
#include "cuda.h"

using namespace sd;

void
copy_prepare_cuda(struct sd_node *n)
{
    n->scratch_bytes = 0;
}

/* Bits are kept: I32 moves as F32 does. */
void
copy_forward_cuda(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0];
    enum sd_dtype dtype = x->dtype;
    int64_t words = 1;

    if (!sd_dtype_is_real(dtype)) {
        words = (int64_t)sd_dtype_size(dtype) / 4;
        if (!words)
            sd_bug("copy", "%s on a device", sd_dtype_name(dtype));
        dtype = SD_F32;
    }
    sd_device_rows(device_of(n), n->out->data, dtype, sd_cols(x) * words, x->data, dtype, x->pitch * words, sd_rows(x),
                   sd_cols(x) * words, false);
}

void
copy_backward_cuda(struct sd_node *n)
{
    const struct sd_tensor *d = n->din[0], *dy = n->dout;

    if (d)
        sd_device_rows(device_of(n), d->data, d->dtype, d->pitch, dy->data, dy->dtype, sd_cols(dy), sd_rows(dy), sd_cols(dy),
                       !n->din_store[0]);
}
