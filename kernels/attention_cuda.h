/* attention_cuda.h - what attention.cu and its three kinds of kernels share: the problem, tiles in shared memory. */
#ifndef SD_ATTENTION_CUDA_H
#define SD_ATTENTION_CUDA_H

#include "cuda.h"

namespace sd_attend {

using namespace sd;

template <class T> struct problem {
    const T *q, *k, *v, *o, *dy;
    T *y, *dq, *dk, *dv;
    float *lse, *delta;                 /* [batch, heads, L] */
    int64_t L, S, q_pitch, k_pitch, v_pitch, o_pitch, dy_pitch, dq_pitch, dk_pitch, dv_pitch;
    int heads, d;
    float scale;
    bool causal, aligned, paired;       /* inputs: 16 bytes at a time; outputs: two elements */
    bool add_q, add_k, add_v;
};

const float LOG2E = 1.44269504088896340736f, LN2 = 0.69314718055994530942f;

enum { WARPS = 4, THREADS = WARPS * WARP, BLOCK = 16 * WARPS };      /* of narrow kernels: rows that a block holds */

/* -- tiles --------------------------------------------------------------------------------------------------------- */

/* Where element c of row r of a tile lies, so that the same eight elements of eight rows touch all banks: rows 8
 * elements further apart than they are wide; or, without room between them, eights that change places within each 64
 * elements (rows of 32: within 32, by twos of rows). */
template <int COLUMNS> struct spaced {
    static __device__ inline int at(int r, int c) { return r * (COLUMNS + 8) + c; }
};
template <int COLUMNS> struct woven {
    static __device__ inline int at(int r, int c)
    {
        return r * COLUMNS + (c ^ (COLUMNS == 32 ? r / 2 % 4 : r % 8) * 8);
    }
};

/* ROWS x COLUMNS elements from row `first` of a matrix of `rows` rows and d columns; zeros beyond. */
template <int ROWS, int COLUMNS, int MANY, class PLACE = spaced<COLUMNS>, class T> static __device__ inline void
load_tile(T *tile, const T *from, int64_t pitch, int64_t first, int64_t rows, int d, bool aligned)
{
    if (aligned) {
        for (int i = threadIdx.x; i < ROWS * (COLUMNS / 8); i += MANY) {
            int r = i / (COLUMNS / 8), c = i % (COLUMNS / 8) * 8;
            bool inside = first + r < rows && c < d;

            copy_async16(tile + PLACE::at(r, c), inside ? from + (first + r) * pitch + c : from, inside);
        }
        return;
    }
    for (int i = threadIdx.x; i < ROWS * COLUMNS; i += MANY) {
        int r = i / COLUMNS, c = i % COLUMNS;

        tile[PLACE::at(r, c)] = first + r < rows && c < d ? from[(first + r) * pitch + c] : from_float<T>(0);
    }
}

/* The operand of 16 rows x 16 columns at `at` for mma's left side. */
template <int PITCH, class T> static __device__ inline void
left(uint32_t a[4], const T *at)
{
    int lane = threadIdx.x % WARP;

    ldmatrix4(a, at + (lane % 16) * PITCH + lane / 16 * 8);
}
/* For its right side, two tiles of eight columns: of the transpose (16 rows of `at` are the columns), or as it lies. */
template <int PITCH, class T> static __device__ inline void
right_turned(uint32_t b[4], const T *at)
{
    int lane = threadIdx.x % WARP;

    ldmatrix4(b, at + (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8);
}
template <int PITCH, class T> static __device__ inline void
right(uint32_t b[4], const T *at)
{
    int lane = threadIdx.x % WARP;

    ldmatrix4_turned(b, at + (lane % 16) * PITCH + lane / 16 * 8);
}

/* s[16 x N] = a[16 x DP] b[N x DP]' */
template <int DP, int N, class T> static __device__ inline void
rows_by_rows(float (*s)[4], const T *a, const T *b)
{
#pragma unroll
    for (int j = 0; j < N / 8; j++)
        s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
    for (int c = 0; c < DP; c += 16) {
        uint32_t x[4], w[4];

        left<DP + 8>(x, a + c);
#pragma unroll
        for (int j = 0; j < N / 8; j += 2) {
            right_turned<DP + 8>(w, b + j * 8 * (DP + 8) + c);
            mma<T>(s[j], x, w);
            mma<T>(s[j + 1], x, w + 2);
        }
    }
}

/* o[16 x DP] += p[16 x N] b[N x DP], p where mma left it */
template <int DP, int N, class T> static __device__ inline void
scores_by_rows(float (*o)[4], const float (*p)[4], const T *b)
{
#pragma unroll
    for (int i = 0; i < N / 8; i += 2) {
        uint32_t x[4] = { pack2<T>(p[i][0], p[i][1]), pack2<T>(p[i][2], p[i][3]),
                          pack2<T>(p[i + 1][0], p[i + 1][1]), pack2<T>(p[i + 1][2], p[i + 1][3]) };

#pragma unroll
        for (int j = 0; j < DP / 8; j += 2) {
            uint32_t w[4];

            right<DP + 8>(w, b + i * 8 * (DP + 8) + j * 8);
            mma<T>(o[j], x, w);
            mma<T>(o[j + 1], x, w + 2);
        }
    }
}

template <class T> static __device__ inline void
put(T *to, float x, bool add)
{
    *to = from_float<T>(add ? to_float(*to) + x : x);
}

template <class T> static __device__ inline void
put_pair(T *row, int column, int d, float x, float y, bool paired, bool add)
{
    if (paired && column < d) {
        if (add) {
            vec<T, 2> old = load<2>(row + column);

            x += to_float(old.at[0]);
            y += to_float(old.at[1]);
        }
        store(row + column, vec<T, 2>{ { from_float<T>(x), from_float<T>(y) } });
        return;
    }
    if (column < d)
        put(row + column, x, add);
    if (column + 1 < d)
        put(row + column + 1, y, add);
}

/* 16 rows of the result of one head, from row `first` on */
template <int DP, class T> static __device__ inline void
put_rows(T *to, int64_t pitch, int64_t first, int64_t rows, int d, const float (*o)[4], float low, float high,
         bool paired, bool add)
{
    int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;

#pragma unroll
    for (int j = 0; j < DP / 8; j++) {
        if (first + g < rows)
            put_pair(to + (first + g) * pitch, j * 8 + 2 * t, d, o[j][0] * low, o[j][1] * low, paired, add);
        if (first + g + 8 < rows)
            put_pair(to + (first + g + 8) * pitch, j * 8 + 2 * t, d, o[j][2] * high, o[j][3] * high, paired, add);
    }
}

static __device__ inline float
quad_sum(float x)
{
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
static __device__ inline float
quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

/* keys that queries before `end` see */
static __device__ inline int64_t
keys_before(int64_t end, int64_t S, bool causal)
{
    return causal && end < S ? end : S;
}

/* -- kinds of kernels ---------------------------------------------------------------------------------------------- */

const int NARROW_MAX = 160, WIDE_MAX = 512;         /* d that they take */

/* attention_narrow.cu: BF16, F16; attention_wide.cu: the same, forward only; attention_plain.cu: F32 too, any d.
 * Backward makes those of dq, dk, dv that are not NULL, and reads delta. */
template <class T> void run_narrow(struct sd_device *d, const problem<T> &p, int64_t batch, bool backward);
template <class T> void run_wide(struct sd_device *d, const problem<T> &p, int64_t batch);
template <class T> void run_plain(struct sd_device *d, const problem<T> &p, int64_t batch, bool backward);

}

#endif
