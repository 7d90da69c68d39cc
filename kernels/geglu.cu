/* geglu: CUDA twin of geglu.c, where the formulas are.  Three elements of memory for one of the result (gradient: five): bound by
 * memory, with erf (and exp) below the arithmetic that a 16-bit element's transfer leaves time for. */
#include "pointwise.cuh"

using namespace sd;

namespace {

template <int N, class T> __global__ void
__launch_bounds__(POINT_THREADS)
geglu_forward_kernel(T *y, const T *x, int64_t rows, int64_t C, bool whole, int shift)
{
    SD_BEGIN();
    int64_t r = row_of(shift), c = piece_of(shift) * N;
    few<N, T> a, b;

    if (r >= rows || c >= C)
        return;
    take(a, x + r * 2 * C + c, C - c, whole);
    take(b, x + r * 2 * C + C + c, C - c, whole);
#pragma unroll
    for (int j = 0; j < N; j++)
        a.set(j, from_float<T>(a[j] * b[j] * normal_integral(b[j])));
    give(y + r * C + c, a, C - c, whole);
}

template <int N, class T> __global__ void
__launch_bounds__(POINT_THREADS)
geglu_backward_kernel(T *dx, const T *dy, const T *x, int64_t rows, int64_t C, bool add, bool whole, int shift)
{
    SD_BEGIN();
    int64_t r = row_of(shift), c = piece_of(shift) * N;
    few<N, T> a, b, d, old_a = {}, old_b = {};

    if (r >= rows || c >= C)
        return;
    take(a, x + r * 2 * C + c, C - c, whole);
    take(b, x + r * 2 * C + C + c, C - c, whole);
    take(d, dy + r * C + c, C - c, whole);
    if (add) {
        take(old_a, dx + r * 2 * C + c, C - c, whole);
        take(old_b, dx + r * 2 * C + C + c, C - c, whole);
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
        float value = a[j], gate = b[j], g = d[j], integral = normal_integral(gate);
        float da = g * gate * integral, db = g * value * (integral + gate * normal_density(gate));

        a.set(j, from_float<T>(add ? old_a[j] + da : da));
        b.set(j, from_float<T>(add ? old_b[j] + db : db));
    }
    give(dx + r * 2 * C + c, a, C - c, whole);
    give(dx + r * 2 * C + C + c, b, C - c, whole);
}

}   /* namespace */

void
geglu_prepare_cuda(struct sd_node *n)
{
    n->scratch_bytes = 0;
}

void
geglu_forward_cuda(struct sd_node *n)
{
    int64_t rows = sd_rows(n->out), C = sd_cols(n->out);

    if (!n->out->numel)
        return;
    SD_BY_DTYPE(n->out->dtype, T, {
        constexpr int N = points<T>();
        struct row_cut g = cut_rows(rows, ceil_div(C, N));
        bool whole = aligned16(n->in[0]->data, C * (int64_t)sizeof(T)) && aligned16(n->out->data, 0);

        SD_LAUNCH(device_of(n), (geglu_forward_kernel<N, T>), dim3(g.rows, g.pieces), POINT_THREADS, 0, data<T>(n->out),
                  data<T>(n->in[0]), rows, C, whole, g.shift);
    });
}

void
geglu_backward_cuda(struct sd_node *n)
{
    int64_t rows = sd_rows(n->out), C = sd_cols(n->out);

    if (!n->out->numel || !n->din[0])
        return;
    SD_BY_DTYPE(n->out->dtype, T, {
        constexpr int N = points<T>();
        struct row_cut g = cut_rows(rows, ceil_div(C, N));
        bool whole = aligned16(n->in[0]->data, C * (int64_t)sizeof(T)) && aligned16(n->dout->data, 0)
                     && aligned16(n->din[0]->data, 0);

        SD_LAUNCH(device_of(n), (geglu_backward_kernel<N, T>), dim3(g.rows, g.pieces), POINT_THREADS, 0, data<T>(n->din[0]),
                  data<T>(n->dout), data<T>(n->in[0]), rows, C, !n->din_store[0], whole, g.shift);
    });
}
