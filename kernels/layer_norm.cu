/* layer_norm: CUDA twin of layer_norm.c, where the formulas are.
 *
 * A warp has a row, all of it in registers: K units of 16 bytes a lane, so that x (gradient: x and dy) is read once and written
 * once: bound by memory.  Rows too long for that are read again for each sum.  The mean is taken off before squares are
 * summed, and its own rounding is taken off after.  Gradients of weight and bias: chunks of rows, a column a thread. */
#include "norm.cuh"

using namespace sd;

namespace {

enum { WARPS = 4, MAX_CHUNKS = 64 };

/* K units of N elements of the lane; K == 0: `units` of them, from memory each time */
template <int K, int N, class T> struct row {
    few<N, T> at[K];

    __device__ void
    open(const T *x, int lane, int D, bool whole)
    {
#pragma unroll
        for (int k = 0; k < K; k++)
            take(at[k], x + (k * WARP + lane) * N, D - (k * WARP + lane) * N, whole);
    }
    __device__ void get(float to[N], const T *, int k, int, int, bool) const
    {
#pragma unroll
        for (int j = 0; j < N; j++)
            to[j] = at[k][j];
    }
};
template <int N, class T> struct row<0, N, T> {
    __device__ void open(const T *, int, int, bool) {}
    __device__ void get(float to[N], const T *x, int k, int lane, int D, bool whole) const
    {
        take_as_floats<N>(to, x + (k * WARP + lane) * N, D - (k * WARP + lane) * N, whole);
    }
};

template <int K, int N, class T> __global__ void
__launch_bounds__(WARPS * WARP)
forward_kernel(T *y, float *saved, const T *x, struct operand weight, struct operand bias, int64_t rows, int D, float eps,
               bool whole)
{
    SD_BEGIN();
    int64_t r = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    int lane = threadIdx.x % WARP, units = K ? K : (D + WARP * N - 1) / (WARP * N);
    float sum = 0, square = 0, rest = 0, mean, inverse, v[N];
    row<K, N, T> in;

    if (r >= rows)              /* whole warps */
        return;
    x += r * D;
    in.open(x, lane, D, whole);
#pragma unroll
    for (int k = 0; k < units; k++) {
        in.get(v, x, k, lane, D, whole);
#pragma unroll
        for (int j = 0; j < N; j++)
            sum += v[j];        /* zeros behind the end */
    }
    mean = warp_sum(sum) / (float)D;
#pragma unroll
    for (int k = 0; k < units; k++) {
        in.get(v, x, k, lane, D, whole);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float e = (k * WARP + lane) * N + j < D ? v[j] - mean : 0;

            rest += e;
            square += e * e;
        }
    }
    rest = warp_sum(rest) / (float)D;
    square = warp_sum(square) / (float)D - rest * rest;
    mean += rest;
    inverse = 1.0f / sqrtf(square + eps);
    if (lane == 0) {
        saved[2 * r] = mean;
        saved[2 * r + 1] = inverse;
    }
#pragma unroll
    for (int k = 0; k < units; k++) {
        int c = (k * WARP + lane) * N;
        raw_weights<N> raw_w, raw_b;
        float w[N], b[N];
        few<N, T> out = {};

        if (c >= D)
            continue;
        take_weights(&raw_w, weight, c, D - c);
        take_weights(&raw_b, bias, c, D - c);
        in.get(v, x, k, lane, D, whole);
        weights_of(w, raw_w, weight, 1);
        weights_of(b, raw_b, bias, 0);
#pragma unroll
        for (int j = 0; j < N; j++)
            out.set(j, from_float<T>((v[j] - mean) * inverse * w[j] + b[j]));
        give(y + r * D + c, out, D - c, whole);
    }
}

template <int K, int N, class T> __global__ void
__launch_bounds__(WARPS * WARP)
backward_kernel(T *dx, const T *dy, const T *x, const float *saved, struct operand weight, int64_t rows, int D, bool add,
                bool whole)
{
    SD_BEGIN();
    int64_t r = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    int lane = threadIdx.x % WARP, units = K ? K : (D + WARP * N - 1) / (WARP * N);
    float sum_g = 0, sum_gn = 0, mean, inverse, v[N], g[N], w[N];
    row<K, N, T> in, out;

    if (r >= rows)
        return;
    x += r * D;
    dy += r * D;
    dx += r * D;
    in.open(x, lane, D, whole);
    out.open(dy, lane, D, whole);
    mean = saved[2 * r];
    inverse = saved[2 * r + 1];
#pragma unroll
    for (int k = 0; k < units; k++) {
        int c = (k * WARP + lane) * N;
        raw_weights<N> raw;

        if (c >= D)
            continue;
        take_weights(&raw, weight, c, D - c);
        in.get(v, x, k, lane, D, whole);
        out.get(g, dy, k, lane, D, whole);
        weights_of(w, raw, weight, 1);
#pragma unroll
        for (int j = 0; j < N; j++) {       /* dy is zero behind the end */
            sum_g += g[j] * w[j];
            sum_gn += g[j] * w[j] * ((v[j] - mean) * inverse);
        }
    }
    sum_g = warp_sum(sum_g) / (float)D;
    sum_gn = warp_sum(sum_gn) / (float)D;
#pragma unroll
    for (int k = 0; k < units; k++) {
        int c = (k * WARP + lane) * N;
        raw_weights<N> raw;
        few<N, T> d = {};

        if (c >= D)
            continue;
        take_weights(&raw, weight, c, D - c);
        if (add)
            take(d, dx + c, D - c, whole);
        in.get(v, x, k, lane, D, whole);
        out.get(g, dy, k, lane, D, whole);
        weights_of(w, raw, weight, 1);
#pragma unroll
        for (int j = 0; j < N; j++) {
            float e = (g[j] * w[j] - sum_g - (v[j] - mean) * inverse * sum_gn) * inverse;

            d.set(j, from_float<T>(add ? d[j] + e : e));
        }
        give(dx + c, d, D - c, whole);
    }
}

/* part[chunk, c] = sums of dy and dy n over the chunk's rows */
template <class T> __global__ void
weights_kernel(float *part, const T *dy, const T *x, const float *saved, int64_t rows, int D)
{
    SD_BEGIN();
    int64_t chunk = blockIdx.y, c = (int64_t)blockIdx.x * POINT_THREADS + threadIdx.x;
    float bias = 0, weight = 0;

    if (c >= D)
        return;
#pragma unroll 4
    for (int64_t r = rows * chunk / gridDim.y; r < rows * (chunk + 1) / gridDim.y; r++) {
        float g = to_float(dy[r * D + c]);

        bias += g;
        weight += g * ((to_float(x[r * D + c]) - saved[2 * r]) * saved[2 * r + 1]);
    }
    part[(chunk * D + c) * 2] = bias;
    part[(chunk * D + c) * 2 + 1] = weight;
}

int64_t
chunks_of(int64_t rows)
{
    return rows >= MAX_CHUNKS * 16 ? (int64_t)MAX_CHUNKS : rows > 16 ? rows / 16 : 1;
}

/* the statement with K units a lane, the fewest of those compiled that hold D */
#define BY_UNITS(D, N, K, ...)                                                                                       \
    do {                                                                                                             \
        int64_t units_ = ceil_div(D, WARP * N);                                                                      \
        if (units_ <= 2) { constexpr int K = 2; __VA_ARGS__; }                                                       \
        else if (units_ <= 3) { constexpr int K = 3; __VA_ARGS__; }                                                  \
        else if (units_ <= 5) { constexpr int K = 5; __VA_ARGS__; }                                                  \
        else if (units_ <= 10 && N == 4) { constexpr int K = N == 4 ? 10 : 0; __VA_ARGS__; }                         \
        else { constexpr int K = 0; __VA_ARGS__; }                                                                   \
    } while (0)

}   /* namespace */

void
layer_norm_prepare_cuda(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0];

    n->scratch_bytes = n->din[1] || n->din[2] ? (size_t)(chunks_of(sd_rows(x)) * 2 * sd_cols(x)) * sizeof(float) : 0;
}

void
layer_norm_forward_cuda(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0];
    int64_t rows = sd_rows(x), D = sd_cols(x);
    float eps = (float)*static_cast<const double *>(n->attr);

    if (!x->numel)
        return;
    SD_BY_DTYPE(x->dtype, T, {
        constexpr int N = points<T>();
        bool whole = aligned16(x->data, D * (int64_t)sizeof(T)) && aligned16(n->out->data, 0);

        BY_UNITS(D, N, K, SD_LAUNCH(device_of(n), (forward_kernel<K, N, T>), (unsigned)ceil_div(rows, WARPS), WARPS * WARP, 0,
                                    data<T>(n->out), data<float>(n->saved[0]), data<const T>(x), operand_of(n->in[1]),
                                    operand_of(n->in[2]), rows, (int)D, eps, whole));
    });
}

void
layer_norm_backward_cuda(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0];
    int64_t rows = sd_rows(x), D = sd_cols(x), chunks = chunks_of(rows);

    if (!x->numel && !D)
        return;
    SD_BY_DTYPE(x->dtype, T, {
        constexpr int N = points<T>();
        bool whole = aligned16(x->data, D * (int64_t)sizeof(T)) && aligned16(n->dout->data, 0)
                     && (!n->din[0] || aligned16(n->din[0]->data, 0));

        if (n->din[1] || n->din[2]) {
            float *part = static_cast<float *>(n->scratch);

            SD_LAUNCH(device_of(n), weights_kernel<T>, dim3((unsigned)ceil_div(D, POINT_THREADS), (unsigned)chunks), POINT_THREADS,
                      0, part, data<const T>(n->dout), data<const T>(x), data<const float>(n->saved[0]), rows, (int)D);
            weight_gradients(n, part, chunks, (int)D);
        }
        if (n->din[0] && rows)
            BY_UNITS(D, N, K, SD_LAUNCH(device_of(n), (backward_kernel<K, N, T>), (unsigned)ceil_div(rows, WARPS), WARPS * WARP, 0,
                                        data<T>(n->din[0]), data<const T>(n->dout), data<const T>(x),
                                        data<const float>(n->saved[0]), operand_of(n->in[1]), rows, (int)D, !n->din_store[0],
                                        whole));
    });
}
