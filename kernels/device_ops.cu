/* device_ops: fill, cast, rows, taps, finite.  All bound by memory: each element read and written once. */
#include "device_ops.h"

#include "pointwise.cuh"

using namespace sd;

namespace {

struct constant {
    float value;
    __device__ float operator()() const { return value; }
};

template <int N, class Y, class X> __global__ void
__launch_bounds__(POINT_THREADS)
rows_kernel(Y *y, int64_t y_pitch, const X *x, int64_t x_pitch, int64_t rows, int64_t cols, bool add, bool whole, int shift)
{
    SD_BEGIN();
    int64_t r = row_of(shift), c = piece_of(shift) * N;
    few<N, X> from;
    few<N, Y> to = {};

    if (r >= rows || c >= cols)
        return;
    take(from, x + r * x_pitch + c, cols - c, whole);
    if (add)
        take(to, y + r * y_pitch + c, cols - c, whole);
#pragma unroll
    for (int j = 0; j < N; j++)
        to.set(j, from_float<Y>(add ? to[j] + from[j] : from[j]));
    give(y + r * y_pitch + c, to, cols - c, whole);
}

template <class Y, class X> void
move_rows(struct sd_device *d, Y *y, int64_t y_pitch, const X *x, int64_t x_pitch, int64_t rows, int64_t cols, bool add)
{
    constexpr int N = points<Y, X>();
    struct row_cut g;
    bool whole = aligned16(y, y_pitch * (int64_t)sizeof(Y)) && aligned16(x, x_pitch * (int64_t)sizeof(X));

    if (!rows || !cols)
        return;
    if (rows == 1 || (y_pitch == cols && x_pitch == cols)) {
        pointwise(d, y, rows * cols, add, same(), x);
        return;
    }
    g = cut_rows(rows, ceil_div(cols, N));
    SD_LAUNCH(d, (rows_kernel<N, Y, X>), dim3(g.rows, g.pieces), POINT_THREADS, 0, y, y_pitch, x, x_pitch, rows, cols, add,
              whole, g.shift);
}

/* one thread an element of the result, so that writes are coalesced; made once, or once an update for trainables */
template <class Y, class X> __global__ void
taps_kernel(Y *y, const X *x, int64_t count, int in, int taps)
{
    SD_BEGIN();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = i / in;

    if (i < count)
        y[i] = from_float<Y>(to_float(x[(row / taps * in + i % in) * taps + row % taps]));
}

/* the same for [in, kh + 1, kw + 1, pitch], the first `out` of each row */
template <class Y, class X> __global__ void
taps_upsampled_kernel(Y *y, int pitch, const X *x, int64_t count, int out, int in, int kh, int kw)
{
    SD_BEGIN();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = i / out;
    int u = (int)(row % (kw + 1)), t = (int)(row / (kw + 1) % (kh + 1));
    float sum = 0;

    if (i >= count)
        return;
    x += (i % out * in + row / (kw + 1) / (kh + 1)) * kh * kw;
    for (int ky = max(0, kh - 1 - t); ky < min(kh, kh + 1 - t); ky++)
        for (int kx = max(0, kw - 1 - u); kx < min(kw, kw + 1 - u); kx++)
            sum += to_float(x[ky * kw + kx]);
    y[row * pitch + i % out] = from_float<Y>(sum);
}

/* rows of `cols` elements, none at or behind x + end */
template <int N, class X> __global__ void
__launch_bounds__(POINT_THREADS)
finite_kernel(const X *x, int64_t rows, int64_t cols, int64_t pitch, int64_t end, bool whole, int shift, int *flag)
{
    SD_BEGIN();
    int64_t r = row_of(shift), c = piece_of(shift) * N, at = r * pitch + c, left = cols - c < end - at ? cols - c : end - at;
    few<N, X> v;
    bool bad = false;

    if (r >= rows || left <= 0)
        return;
    take(v, x + at, left, whole);
#pragma unroll
    for (int j = 0; j < N; j++)
        bad |= (bits_of_float(v[j]) & 0x7f800000) == 0x7f800000;
    if (bad)
        *flag = 1;
}

}   /* namespace */

void
sd_device_fill_real(struct sd_device *d, void *to, enum sd_dtype dtype, size_t count, float value)
{
    SD_BY_DTYPE(dtype, T, pointwise(d, static_cast<T *>(to), (int64_t)count, false, constant{ value }));
}

void
sd_device_rows(struct sd_device *d, void *to, enum sd_dtype to_dtype, int64_t to_pitch, const void *from,
               enum sd_dtype from_dtype, int64_t from_pitch, int64_t rows, int64_t cols, bool add)
{
    SD_BY_DTYPE(to_dtype, Y, SD_BY_DTYPE(from_dtype, X,
                move_rows(d, static_cast<Y *>(to), to_pitch, static_cast<const X *>(from), from_pitch, rows, cols, add)));
}

void
sd_device_cast(struct sd_device *d, void *to, enum sd_dtype to_dtype, const void *from, enum sd_dtype from_dtype, size_t count)
{
    sd_device_rows(d, to, to_dtype, (int64_t)count, from, from_dtype, (int64_t)count, 1, (int64_t)count, false);
}

void
sd_device_taps(struct sd_device *d, void *to, enum sd_dtype to_dtype, const void *from, enum sd_dtype from_dtype, int64_t out,
               int64_t in, int64_t kh, int64_t kw)
{
    int64_t count = out * in * kh * kw;

    if (!count)
        return;
    SD_BY_DTYPE(to_dtype, Y, SD_BY_DTYPE(from_dtype, X,
                SD_LAUNCH(d, (taps_kernel<Y, X>), (unsigned)ceil_div(count, 256), 256, 0, static_cast<Y *>(to),
                          static_cast<const X *>(from), count, (int)in, (int)(kh * kw))));
}

void
sd_device_taps_upsampled(struct sd_device *d, void *to, enum sd_dtype to_dtype, int64_t pitch, const void *from,
                         enum sd_dtype from_dtype, int64_t out, int64_t in, int64_t kh, int64_t kw)
{
    int64_t count = out * in * (kh + 1) * (kw + 1);

    if (!count)
        return;
    SD_BY_DTYPE(to_dtype, Y, SD_BY_DTYPE(from_dtype, X,
                SD_LAUNCH(d, (taps_upsampled_kernel<Y, X>), (unsigned)ceil_div(count, 256), 256, 0, static_cast<Y *>(to),
                          (int)pitch, static_cast<const X *>(from), count, (int)out, (int)in, (int)kh, (int)kw)));
}

void
sd_device_finite(struct sd_device *d, const void *x, enum sd_dtype dtype, int64_t rows, int64_t cols, int64_t pitch, int *flag)
{
    int64_t end = (rows - 1) * pitch + cols;

    if (!rows || !cols)
        return;
    if (rows == 1 || pitch == cols) {           /* dense: cut anew, so that long rows fill the grid */
        pitch = cols = 1024;
        rows = ceil_div(end, cols);
    }
    SD_BY_DTYPE(dtype, T, {
        constexpr int N = points<T>();
        const T *p = static_cast<const T *>(x);
        struct row_cut g = cut_rows(rows, ceil_div(cols, N));

        SD_LAUNCH(d, (finite_kernel<N, T>), dim3(g.rows, g.pieces), POINT_THREADS, 0, p, rows, cols, pitch, end,
                  aligned16(p, pitch * (int64_t)sizeof(T)), g.shift, flag);
    });
}
