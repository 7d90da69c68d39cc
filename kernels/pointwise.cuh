/* pointwise.cuh - element by element: out[i] = f(a[i], b[i], ...) or out[i] += ..., for any mix of element types.
 *
 * A thread moves POINT_UNITS pieces of 16 bytes (of the smallest type; a wider one takes several accesses), all loaded before
 * the first is stored; the tail, and buffers that are not 16-byte aligned, go element by element.  Bound by memory: one read
 * and one write of each operand.  An operand may be the output itself: a thread reads only places that it alone writes. */
#ifndef SD_POINTWISE_CUH
#define SD_POINTWISE_CUH

#include "cuda.h"

namespace sd {

enum { POINT_THREADS = 128, POINT_UNITS = 2 };

/* take, give - N elements from and to memory; `left` of them are there; whole: x is aligned to 16 bytes (or to N elements). */
template <int N, class T> static __device__ inline void
take(few<N, T> &to, const T *x, int64_t left, bool whole)
{
    if (whole && left >= N)
        to.load(x);
    else {
        to = {};
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < left)
                to.set(i, x[i]);
    }
}

template <int N, class T> static __device__ inline void
give(T *x, const few<N, T> &from, int64_t left, bool whole)
{
    if (whole && left >= N)
        from.store(x);
    else
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < left)
                x[i] = from.get(i);
}

/* points<T...> - elements of a unit: 16 bytes of the smallest type. */
template <class... T> constexpr int
points()
{
    int size = 4;

    ((size = (int)sizeof(T) < size ? (int)sizeof(T) : size), ...);
    return 16 / size;
}

template <int N, class T> struct held { few<N, T> at[POINT_UNITS]; };

template <int N, class T> static __device__ inline held<N, T>
hold(const T *x, int64_t first, int64_t count, bool whole)
{
    held<N, T> h;

#pragma unroll
    for (int u = 0; u < POINT_UNITS; u++) {
        int64_t i = first + (int64_t)u * POINT_THREADS * N;

        take(h.at[u], x + i, count - i, whole);
    }
    return h;
}

template <int N, class Y, class F, class... H> static __device__ inline void
pointwise_store(Y *y, int64_t first, int64_t count, bool add, bool whole, const F &f, const held<N, Y> &old, const H &... x)
{
#pragma unroll
    for (int u = 0; u < POINT_UNITS; u++) {
        int64_t i = first + (int64_t)u * POINT_THREADS * N;
        few<N, Y> out = {};

#pragma unroll
        for (int j = 0; j < N; j++) {
            float v = f(x.at[u][j]...);

            out.set(j, from_float<Y>(add ? old.at[u][j] + v : v));
        }
        give(y + i, out, count - i, whole);
    }
}

template <int N, class Y, class F, class... X> static __global__ void
__launch_bounds__(POINT_THREADS)
pointwise_kernel(Y *y, int64_t count, bool add, bool whole, F f, const X *... x)
{
    SD_BEGIN();
    int64_t first = ((int64_t)blockIdx.x * POINT_THREADS * POINT_UNITS + threadIdx.x) * N;
    held<N, Y> old = {};

    if (first >= count)
        return;
    if (add)
        old = hold<N>(y, first, count, whole);
    pointwise_store<N>(y, first, count, add, whole, f, old, hold<N>(x, first, count, whole)...);
}

/* pointwise - y[i] (add: +)= f(x[i]...) for i < count.  f: a functor of floats, called as f(float...), made for the device. */
template <class Y, class F, class... X> static inline void
pointwise(struct sd_device *d, Y *y, int64_t count, bool add, F f, const X *... x)
{
    constexpr int N = points<Y, X...>();
    int64_t blocks = ceil_div(count, (int64_t)N * POINT_THREADS * POINT_UNITS);
    bool whole = aligned16(y, 0);

    if (!count)
        return;
    ((whole = whole && aligned16(x, 0)), ...);
    SD_LAUNCH(d, (pointwise_kernel<N, Y, F, X...>), (unsigned)blocks, POINT_THREADS, 0, y, count, add, whole, f, x...);
}

/* -- rows ------------------------------------------------------------------------------------------------------------- */

/* Rows of pieces of N elements: a block has rows of `1 << shift` neighbouring threads; blockIdx.x counts rows, .y pieces. */
struct row_cut {
    unsigned rows, pieces;      /* blocks */
    int shift;
};

static inline struct row_cut
cut_rows(int64_t rows, int64_t pieces)
{
    struct row_cut g = { 0, 0, 0 };

    while (1 << g.shift < WARP && 1 << g.shift < pieces)
        g.shift++;
    g.rows = (unsigned)ceil_div(rows, POINT_THREADS >> g.shift);
    g.pieces = (unsigned)ceil_div(pieces, (int64_t)1 << g.shift);
    if (g.pieces > 65535)
        sd_bug("cut_rows", "rows of %lld pieces", (long long)pieces);
    return g;
}

static __device__ inline int64_t row_of(int shift) { return (int64_t)blockIdx.x * (POINT_THREADS >> shift) + (threadIdx.x >> shift); }
static __device__ inline int64_t
piece_of(int shift)
{
    return ((int64_t)blockIdx.y << shift) + (threadIdx.x & ((1 << shift) - 1));
}

/* -- operands of small ops: any element type, looked at when it is read ----------------------------------------------- */

struct operand {
    const void *p;          /* NULL: absent */
    int64_t dtype;          /* enum sd_dtype; as wide as a pointer, so that no byte of an argument is left open */
};

static __device__ inline float
read_operand(const struct operand &x, int64_t i)
{
    switch (x.dtype) {
    case SD_BF16: return to_float(static_cast<const bf16 *>(x.p)[i]);
    case SD_F16: return to_float(static_cast<const f16 *>(x.p)[i]);
    default: return static_cast<const float *>(x.p)[i];
    }
}

static __device__ inline void
write_operand(void *p, int64_t dtype, int64_t i, float x)
{
    switch (dtype) {
    case SD_BF16: static_cast<bf16 *>(p)[i] = from_float<bf16>(x); break;
    case SD_F16: static_cast<f16 *>(p)[i] = from_float<f16>(x); break;
    default: static_cast<float *>(p)[i] = x;
    }
}

static inline struct operand
operand_of(const struct sd_tensor *x)
{
    struct operand o = { x ? x->data : nullptr, x ? (int64_t)x->dtype : (int64_t)SD_F32 };

    if (x && !sd_dtype_is_real(x->dtype))
        sd_bug("cuda", "operand of %s", sd_dtype_name(x->dtype));
    return o;
}

/* -- functions ---------------------------------------------------------------------------------------------------------- */

/* sigmoid<T> - 1 / (1 + exp(-x)); for 16-bit T by the fast instructions, whose error is far below the rounding of T. */
template <class T> static __device__ inline float
sigmoid(float x)
{
#ifdef __CUDA_ARCH__
    if (sizeof(T) == 2)
        return __fdividef(1.0f, 1.0f + __expf(-x));
#endif
    return 1.0f / (1.0f + expf(-x));
}

/* Phi(x) = (1 + erf(x / sqrt(2))) / 2 */
static __device__ inline float normal_integral(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }
/* phi(x) = exp(-x^2 / 2) / sqrt(2 pi) */
static __device__ inline float normal_density(float x) { return expf(-0.5f * x * x) * 0.39894228f; }

struct same { __device__ float operator()(float x) const { return x; } };

}   /* namespace sd */

#endif
