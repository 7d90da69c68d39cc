/* upsample: CUDA twin of upsample.c.  Forward reads a pixel once and writes it four times, the gradient the other way: bound by
 * memory. */
#include "pointwise.cuh"

using namespace sd;

namespace {

/* where the first of the four pixels made from pixel r lies, in pixels */
__device__ inline int64_t
enlarged(int64_t r, unsigned W)
{
    unsigned row = (unsigned)r / W;

    return (int64_t)row * 4 * W + 2 * ((unsigned)r - row * W);
}

template <int N, class T> __global__ void
__launch_bounds__(POINT_THREADS)
upsample_forward_kernel(T *y, const T *x, int64_t pixels, unsigned W, int64_t C, bool whole, int shift)
{
    SD_BEGIN();
    int64_t r = row_of(shift), c = piece_of(shift) * N;
    few<N, T> v;

    if (r >= pixels || c >= C)
        return;
    take(v, x + r * C + c, C - c, whole);
    y += enlarged(r, W) * C + c;
    give(y, v, C - c, whole);
    give(y + C, v, C - c, whole);
    give(y + 2 * W * C, v, C - c, whole);
    give(y + (2 * W + 1) * C, v, C - c, whole);
}

template <int N, class T> __global__ void
__launch_bounds__(POINT_THREADS)
upsample_backward_kernel(T *dx, const T *dy, int64_t pixels, unsigned W, int64_t C, bool add, bool whole, int shift)
{
    SD_BEGIN();
    int64_t r = row_of(shift), c = piece_of(shift) * N;
    few<N, T> v[4], old = {};

    if (r >= pixels || c >= C)
        return;
    dy += enlarged(r, W) * C + c;
    take(v[0], dy, C - c, whole);
    take(v[1], dy + C, C - c, whole);
    take(v[2], dy + 2 * W * C, C - c, whole);
    take(v[3], dy + (2 * W + 1) * C, C - c, whole);
    if (add)
        take(old, dx + r * C + c, C - c, whole);
#pragma unroll
    for (int j = 0; j < N; j++) {
        float sum = (v[0][j] + v[1][j]) + (v[2][j] + v[3][j]);

        old.set(j, from_float<T>(add ? old[j] + sum : sum));
    }
    give(dx + r * C + c, old, C - c, whole);
}

}   /* namespace */

void
upsample_prepare_cuda(struct sd_node *n)
{
    n->scratch_bytes = 0;
    if (sd_rows(n->in[0]) > UINT32_MAX)
        sd_bug("upsample", "%lld pixels", (long long)sd_rows(n->in[0]));
}

void
upsample_forward_cuda(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0];
    int64_t pixels = sd_rows(x), C = sd_cols(x);

    if (!x->numel)
        return;
    SD_BY_DTYPE(x->dtype, T, {
        constexpr int N = points<T>();
        struct row_cut g = cut_rows(pixels, ceil_div(C, N));
        bool whole = aligned16(x->data, C * (int64_t)sizeof(T)) && aligned16(n->out->data, 0);

        SD_LAUNCH(device_of(n), (upsample_forward_kernel<N, T>), dim3(g.rows, g.pieces), POINT_THREADS, 0, data<T>(n->out),
                  data<T>(x), pixels, (unsigned)x->shape[2], C, whole, g.shift);
    });
}

void
upsample_backward_cuda(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0];
    int64_t pixels = sd_rows(x), C = sd_cols(x);

    if (!x->numel || !n->din[0])
        return;
    SD_BY_DTYPE(x->dtype, T, {
        constexpr int N = points<T>();
        struct row_cut g = cut_rows(pixels, ceil_div(C, N));
        bool whole = aligned16(n->din[0]->data, C * (int64_t)sizeof(T)) && aligned16(n->dout->data, 0);

        SD_LAUNCH(device_of(n), (upsample_backward_kernel<N, T>), dim3(g.rows, g.pieces), POINT_THREADS, 0, data<T>(n->din[0]),
                  data<T>(n->dout), pixels, (unsigned)x->shape[2], C, !n->din_store[0], whole, g.shift);
    });
}
