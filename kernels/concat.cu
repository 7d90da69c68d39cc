/* concat: CUDA twin of concat.c.  One read and one write an element, both inputs in one launch: bound by memory. */
#include "device_ops.h"
#include "pointwise.cuh"

using namespace sd;

namespace {

/* columns [0, na) of y are a's, the others b's; whole: no piece has columns of both, and all is aligned */
template <int N, class T> __global__ void
__launch_bounds__(POINT_THREADS)
concat_kernel(T *y, const T *a, int64_t a_pitch, int64_t na, const T *b, int64_t b_pitch, int64_t nb, int64_t rows, bool whole,
              int shift)
{
    SD_BEGIN();
    int64_t r = row_of(shift), c = piece_of(shift) * N, cols = na + nb;
    few<N, T> v = {};

    if (r >= rows || c >= cols)
        return;
    if (whole)
        take(v, c < na ? a + r * a_pitch + c : b + r * b_pitch + (c - na), N, true);
    else {
#pragma unroll
        for (int j = 0; j < N; j++)
            if (c + j < cols)
                v.set(j, c + j < na ? a[r * a_pitch + c + j] : b[r * b_pitch + (c + j - na)]);
    }
    give(y + r * cols + c, v, cols - c, whole);
}

}   /* namespace */

void
concat_prepare_cuda(struct sd_node *n)
{
    n->scratch_bytes = 0;
}

void
concat_forward_cuda(struct sd_node *n)
{
    const struct sd_tensor *a = n->in[0], *b = n->in[1], *y = n->out;
    int64_t rows = sd_rows(y), na = sd_cols(a), nb = sd_cols(b);

    if (!y->numel)
        return;
    if (a->dtype != b->dtype) {         /* a parameter beside an activation */
        sd_device_rows(device_of(n), y->data, y->dtype, na + nb, a->data, a->dtype, a->pitch, rows, na, false);
        sd_device_rows(device_of(n), (char *)y->data + (size_t)na * sd_dtype_size(y->dtype), y->dtype, na + nb, b->data, b->dtype,
                       b->pitch, rows, nb, false);
        return;
    }
    SD_BY_DTYPE(y->dtype, T, {
        constexpr int N = points<T>();
        const int64_t size = (int64_t)sizeof(T);
        struct row_cut g = cut_rows(rows, ceil_div(na + nb, N));
        bool whole = na % N == 0 && nb % N == 0 && aligned16(y->data, 0) && aligned16(a->data, a->pitch * size)
                     && aligned16(b->data, b->pitch * size);

        SD_LAUNCH(device_of(n), (concat_kernel<N, T>), dim3(g.rows, g.pieces), POINT_THREADS, 0, data<T>(y), data<T>(a), a->pitch,
                  na, data<T>(b), b->pitch, nb, rows, whole, g.shift);
    });
}

void
concat_backward_cuda(struct sd_node *n)
{
    const struct sd_tensor *dy = n->dout;
    int64_t first = 0;

    for (int k = 0; k < 2; k++) {
        const struct sd_tensor *d = n->din[k];
        int64_t cols = sd_cols(n->in[k]);

        if (d)
            sd_device_rows(device_of(n), d->data, d->dtype, d->pitch,
                           static_cast<const char *>(dy->data) + (size_t)first * sd_dtype_size(dy->dtype), dy->dtype, sd_cols(dy),
                           sd_rows(dy), cols, !n->din_store[k]);
        first += cols;
    }
}
