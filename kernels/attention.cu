/* attention: CUDA twin of attention.c, where the formulas are.  Scores never leave the chip, forward or backward.
 *
 * Products: 2 of 2 L S d operations a head forward, 7 backward (5 are the least: dq in its own pass makes scores and dp again, so
 * that nothing is added to in an order that depends on time).  Bytes: q, k, v, y once each, k and v once more per 64 queries from
 * L2.  At L = S = 4096, d = 40, 8 heads: 21 GFLOP for 10 MB, so the matrix units are the limit, and next to them exp2: one for 4 d
 * operations.
 *
 *   narrow   BF16, F16, d <= 160: four warps hold 16 queries (or keys) each in registers, tiles of keys (queries) pass by in shared
 *            memory, two stages of asynchronous copies.  Heads are padded with zeros to 48, 64, 80 or 160.
 *   wide     BF16, F16, d <= 512, forward (the VAE's one head): eight warps share 32 queries; each makes scores of 16 x 8 and then
 *            64 columns of the output.  k is fetched while v is used and the other way round.
 *   plain    the rest, with ordinary multiply-adds: tiles of 64 x 64, columns of the output in chunks of 64 or 160.
 *
 * The largest score seen is rounded up to a power of two, so that scaling older sums is exact. */
#include "cuda.h"
#include "ops.h"
#include "product_cuda.h"
#include "vendor.h"

using namespace sd;

namespace {

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

/* -- tiles ---------------------------------------------------------------------------------------------------------- */

/* Where element c of row r of a tile lies, so that the same eight elements of eight rows touch all banks: rows 8 elements further
 * apart than they are wide; or, without room between them, eights that change places within each 64 elements (rows of 32:
 * within 32, by twos of rows). */
template <int COLUMNS> struct spaced {
    static __device__ inline int at(int r, int c) { return r * (COLUMNS + 8) + c; }
};
template <int COLUMNS> struct woven {
    static __device__ inline int at(int r, int c) { return r * COLUMNS + (c ^ (COLUMNS == 32 ? r / 2 % 4 : r % 8) * 8); }
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
put_rows(T *to, int64_t pitch, int64_t first, int64_t rows, int d, const float (*o)[4], float low, float high, bool paired, bool add)
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

/* -- narrow: forward ------------------------------------------------------------------------------------------------ */

template <class T, int DP, int N> struct forward_tiles {
    T q[BLOCK * (DP + 8)], k[2][N * (DP + 8)], v[2][N * (DP + 8)];
};

template <class T, int DP, int N> static __global__ void
__launch_bounds__(THREADS)
forward_narrow(problem<T> p)
{
    typedef forward_tiles<T, DP, N> shared_tiles;
    SD_SHARED(shared_tiles, tiles);
    int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    int64_t first = (int64_t)blockIdx.x * BLOCK, row = first + warp * 16, head = blockIdx.y, sample = blockIdx.z;
    int64_t keys = keys_before(first + BLOCK, p.S, p.causal);
    const T *q = p.q + sample * p.L * p.q_pitch + head * p.d;
    const T *k = p.k + sample * p.S * p.k_pitch + head * p.d, *v = p.v + sample * p.S * p.v_pitch + head * p.d;
    float most[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 }, scale = p.scale * LOG2E;
    float o[DP / 8][4], s[N / 8][4];
    int stage = 0;

#pragma unroll
    for (int j = 0; j < DP / 8; j++)
        o[j][0] = o[j][1] = o[j][2] = o[j][3] = 0;
    load_tile<BLOCK, DP, THREADS>(tiles.q, q, p.q_pitch, first, p.L, p.d, p.aligned);
    load_tile<N, DP, THREADS>(tiles.k[0], k, p.k_pitch, 0, p.S, p.d, p.aligned);
    load_tile<N, DP, THREADS>(tiles.v[0], v, p.v_pitch, 0, p.S, p.d, p.aligned);
    copy_async_commit();
    for (int64_t key = 0; key < keys; key += N, stage ^= 1) {
        if (key + N < keys) {
            load_tile<N, DP, THREADS>(tiles.k[stage ^ 1], k, p.k_pitch, key + N, p.S, p.d, p.aligned);
            load_tile<N, DP, THREADS>(tiles.v[stage ^ 1], v, p.v_pitch, key + N, p.S, p.d, p.aligned);
        }
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        rows_by_rows<DP, N>(s, tiles.q + warp * 16 * (DP + 8), tiles.k[stage]);
        if (key + N > p.S || (p.causal && key + N > row + 1)) {
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int64_t c = key + j * 8 + 2 * t + i % 2;

                    if (c >= p.S || (p.causal && c > row + g + i / 2 * 8))
                        s[j][i] = -INFINITY;
                    else
                        s[j][i] *= scale;
                }
        } else {
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    s[j][i] *= scale;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float high = -INFINITY, more, shrink;

#pragma unroll
            for (int j = 0; j < N / 8; j++)
                high = fmaxf(high, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
            more = fmaxf(most[half], ceilf(quad_max(high)));
            shrink = exp2f(most[half] - more);
            most[half] = more;
            sum[half] *= shrink;
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                s[j][2 * half] = exp2f(s[j][2 * half] - more);
                s[j][2 * half + 1] = exp2f(s[j][2 * half + 1] - more);
                sum[half] += s[j][2 * half] + s[j][2 * half + 1];
            }
#pragma unroll
            for (int j = 0; j < DP / 8; j++) {
                o[j][2 * half] *= shrink;
                o[j][2 * half + 1] *= shrink;
            }
        }
        scores_by_rows<DP, N>(o, s, tiles.v[stage]);
        __syncthreads();
    }
    copy_async_wait<0>();
    for (int half = 0; half < 2; half++) {
        int64_t i = row + g + half * 8;

        sum[half] = quad_sum(sum[half]);
        if (p.lse && t == 0 && i < p.L)
            p.lse[(sample * p.heads + head) * p.L + i] = (most[half] + log2f(sum[half])) * LN2;
    }
    put_rows<DP>(p.y + sample * p.L * p.o_pitch + head * p.d, p.o_pitch, row, p.L, p.d, o, 1 / sum[0], 1 / sum[1], p.paired, false);
}

/* -- gradients ------------------------------------------------------------------------------------------------------ */

/* delta[b, h, i] = dy_i . y_i: eight lanes each */
template <class T> static __global__ void
delta_kernel(problem<T> p, int64_t count)
{
    const int W = wide<T>::count;
    int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 8, head = at % p.heads, row = at / p.heads;
    int lane = threadIdx.x % 8;
    float sum = 0;

    if (at < count) {
        const T *x = p.o + row * p.o_pitch + head * p.d, *g = p.dy + row * p.dy_pitch + head * p.d;

        if (p.aligned)
            for (int c = lane * W; c < p.d; c += 8 * W) {
                vec<T, W> a = load<W>(x + c), b = load<W>(g + c);

#pragma unroll
                for (int i = 0; i < W; i++)
                    sum += to_float(a.at[i]) * to_float(b.at[i]);
            }
        else
            for (int c = lane; c < p.d; c += 8)
                sum += to_float(x[c]) * to_float(g[c]);
    }
    for (int i = 4; i; i /= 2)
        sum += __shfl_xor_sync(ALL_LANES, sum, i);
    if (at < count && lane == 0)
        p.delta[(row / p.L * p.heads + head) * p.L + row % p.L] = sum;
}

template <class T, int DP, int N> struct dq_tiles {
    T q[BLOCK * (DP + 8)], dy[BLOCK * (DP + 8)], k[2][N * (DP + 8)], v[2][N * (DP + 8)];
};

template <class T, int DP, int N> static __global__ void
__launch_bounds__(THREADS)
dq_narrow(problem<T> p)
{
    typedef dq_tiles<T, DP, N> shared_tiles;
    SD_SHARED(shared_tiles, tiles);
    int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    int64_t first = (int64_t)blockIdx.x * BLOCK, row = first + warp * 16, head = blockIdx.y, sample = blockIdx.z;
    int64_t keys = keys_before(first + BLOCK, p.S, p.causal);
    const T *k = p.k + sample * p.S * p.k_pitch + head * p.d, *v = p.v + sample * p.S * p.v_pitch + head * p.d;
    float lse[2], delta[2], scale = p.scale * LOG2E;
    float dq[DP / 8][4], s[N / 8][4], dp[N / 8][4];
    int stage = 0;

    for (int half = 0; half < 2; half++) {
        int64_t i = row + g + half * 8, at = (sample * p.heads + head) * p.L + i;

        lse[half] = i < p.L ? p.lse[at] * LOG2E : INFINITY;
        delta[half] = i < p.L ? p.delta[at] : 0;
    }
#pragma unroll
    for (int j = 0; j < DP / 8; j++)
        dq[j][0] = dq[j][1] = dq[j][2] = dq[j][3] = 0;
    load_tile<BLOCK, DP, THREADS>(tiles.q, p.q + sample * p.L * p.q_pitch + head * p.d, p.q_pitch, first, p.L, p.d, p.aligned);
    load_tile<BLOCK, DP, THREADS>(tiles.dy, p.dy + sample * p.L * p.dy_pitch + head * p.d, p.dy_pitch, first, p.L, p.d, p.aligned);
    load_tile<N, DP, THREADS>(tiles.k[0], k, p.k_pitch, 0, p.S, p.d, p.aligned);
    load_tile<N, DP, THREADS>(tiles.v[0], v, p.v_pitch, 0, p.S, p.d, p.aligned);
    copy_async_commit();
    for (int64_t key = 0; key < keys; key += N, stage ^= 1) {
        if (key + N < keys) {
            load_tile<N, DP, THREADS>(tiles.k[stage ^ 1], k, p.k_pitch, key + N, p.S, p.d, p.aligned);
            load_tile<N, DP, THREADS>(tiles.v[stage ^ 1], v, p.v_pitch, key + N, p.S, p.d, p.aligned);
        }
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        rows_by_rows<DP, N>(s, tiles.q + warp * 16 * (DP + 8), tiles.k[stage]);
        rows_by_rows<DP, N>(dp, tiles.dy + warp * 16 * (DP + 8), tiles.v[stage]);
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int64_t c = key + j * 8 + 2 * t + i % 2;
                bool seen = c < p.S && !(p.causal && c > row + g + i / 2 * 8);

                s[j][i] = seen ? exp2f(s[j][i] * scale - lse[i / 2]) * (dp[j][i] - delta[i / 2]) : 0;
            }
        scores_by_rows<DP, N>(dq, s, tiles.k[stage]);
        __syncthreads();
    }
    copy_async_wait<0>();
    put_rows<DP>(p.dq + sample * p.L * p.dq_pitch + head * p.d, p.dq_pitch, row, p.L, p.d, dq, p.scale, p.scale, p.paired, p.add_q);
}

template <class T, int DP, int N> struct dkv_tiles {
    T k[BLOCK * (DP + 8)], v[BLOCK * (DP + 8)], q[2][N * (DP + 8)], dy[2][N * (DP + 8)];
    float lse[2][N], delta[2][N];
};

/* A block holds keys; queries pass by, so scores lie turned: [key, query]. */
template <class T, int DP, int N, bool DK, bool DV> static __global__ void
__launch_bounds__(THREADS)
dkv_narrow(problem<T> p)
{
    typedef dkv_tiles<T, DP, N> shared_tiles;
    SD_SHARED(shared_tiles, tiles);
    int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    int64_t first = (int64_t)blockIdx.x * BLOCK, row = first + warp * 16, head = blockIdx.y, sample = blockIdx.z;
    int64_t begin = p.causal ? first / N * N : 0, stats = (sample * p.heads + head) * p.L;
    const T *q = p.q + sample * p.L * p.q_pitch + head * p.d, *dy = p.dy + sample * p.L * p.dy_pitch + head * p.d;
    float scale = p.scale * LOG2E;
    float dk[DK ? DP / 8 : 1][4], dv[DV ? DP / 8 : 1][4], s[N / 8][4], dp[N / 8][4];
    int stage = 0;

#pragma unroll
    for (int j = 0; j < DP / 8; j++) {
        if (DK)
            dk[j][0] = dk[j][1] = dk[j][2] = dk[j][3] = 0;
        if (DV)
            dv[j][0] = dv[j][1] = dv[j][2] = dv[j][3] = 0;
    }
    load_tile<BLOCK, DP, THREADS>(tiles.k, p.k + sample * p.S * p.k_pitch + head * p.d, p.k_pitch, first, p.S, p.d, p.aligned);
    if (DK)
        load_tile<BLOCK, DP, THREADS>(tiles.v, p.v + sample * p.S * p.v_pitch + head * p.d, p.v_pitch, first, p.S, p.d, p.aligned);
    for (int64_t query = begin - N; query < p.L; query += N, stage ^= 1) {
        int64_t next = query + N;

        if (next < p.L) {
            load_tile<N, DP, THREADS>(tiles.q[stage ^ 1], q, p.q_pitch, next, p.L, p.d, p.aligned);
            load_tile<N, DP, THREADS>(tiles.dy[stage ^ 1], dy, p.dy_pitch, next, p.L, p.d, p.aligned);
            for (int i = threadIdx.x; i < N; i += THREADS) {
                tiles.lse[stage ^ 1][i] = next + i < p.L ? p.lse[stats + next + i] * LOG2E : INFINITY;
                tiles.delta[stage ^ 1][i] = next + i < p.L ? p.delta[stats + next + i] : 0;
            }
        }
        copy_async_commit();
        if (query < begin)              /* the first tile is only fetched */
            continue;
        copy_async_wait<1>();
        __syncthreads();
        rows_by_rows<DP, N>(s, tiles.k + warp * 16 * (DP + 8), tiles.q[stage]);
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int c = j * 8 + 2 * t + i % 2;
                bool seen = !(p.causal && query + c < row + g + i / 2 * 8);

                s[j][i] = seen ? exp2f(s[j][i] * scale - tiles.lse[stage][c]) : 0;
            }
        if (DV)
            scores_by_rows<DP, N>(dv, s, tiles.dy[stage]);
        if (DK) {
            rows_by_rows<DP, N>(dp, tiles.v + warp * 16 * (DP + 8), tiles.dy[stage]);
#pragma unroll
            for (int j = 0; j < N / 8; j++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    s[j][i] *= dp[j][i] - tiles.delta[stage][j * 8 + 2 * t + i % 2];
            scores_by_rows<DP, N>(dk, s, tiles.q[stage]);
        }
        __syncthreads();
    }
    copy_async_wait<0>();
    if (DK && p.dk)
        put_rows<DP>(p.dk + sample * p.S * p.dk_pitch + head * p.d, p.dk_pitch, row, p.S, p.d, dk, p.scale, p.scale, p.paired, p.add_k);
    if (DV && p.dv)
        put_rows<DP>(p.dv + sample * p.S * p.dv_pitch + head * p.d, p.dv_pitch, row, p.S, p.d, dv, 1, 1, p.paired, p.add_v);
}

/* -- wide: forward -------------------------------------------------------------------------------------------------- */

enum { WIDE = 512, WIDE_ROWS = 32, WIDE_THREADS = 256 };

template <class T> struct wide_tiles {
    T q[WIDE_ROWS * WIDE], k[WIDE_ROWS * WIDE], v[WIDE_ROWS * WIDE], p[WIDE_ROWS * WIDE_ROWS];
    float high[4][WIDE_ROWS], shrink[WIDE_ROWS];
};
static_assert(sizeof(wide_tiles<bf16>) <= 99 << 10, "what a block has on the smallest cards");
typedef woven<WIDE> wide_place;
typedef woven<WIDE_ROWS> score_place;

template <class T> static __device__ inline void
load_wide(T *tile, const T *from, int64_t pitch, int64_t first, int64_t rows, const problem<T> &p)
{
    load_tile<WIDE_ROWS, WIDE, WIDE_THREADS, wide_place>(tile, from, pitch, first, rows, p.d, p.aligned);
}

template <class T> static __global__ void
__launch_bounds__(WIDE_THREADS, 1)
forward_wide(problem<T> p)
{
    SD_SHARED(wide_tiles<T>, tiles);
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
    int up = warp / 4 * 16, across = warp % 4;          /* scores: rows from up, columns from 8 across */
    int64_t first = (int64_t)blockIdx.x * WIDE_ROWS, head = blockIdx.y, sample = blockIdx.z;
    int64_t keys = keys_before(first + WIDE_ROWS, p.S, p.causal);
    const T *k = p.k + sample * p.S * p.k_pitch + head * p.d, *v = p.v + sample * p.S * p.v_pitch + head * p.d;
    float most[2] = { -INFINITY, -INFINITY }, sum[2] = { 0, 0 }, scale = p.scale * LOG2E;
    float o[2][8][4];
    T *y = p.y + sample * p.L * p.o_pitch + head * p.d + warp * 64;

#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 8; j++)
            o[i][j][0] = o[i][j][1] = o[i][j][2] = o[i][j][3] = 0;
    load_wide(tiles.q, p.q + sample * p.L * p.q_pitch + head * p.d, p.q_pitch, first, p.L, p);
    load_wide(tiles.k, k, p.k_pitch, 0, p.S, p);
    copy_async_commit();
    load_wide(tiles.v, v, p.v_pitch, 0, p.S, p);
    copy_async_commit();
    for (int64_t key = 0; key < keys; key += WIDE_ROWS) {
        float s[4] = { 0, 0, 0, 0 }, odd[4] = { 0, 0, 0, 0 };

        copy_async_wait<1>();           /* k is there, v may be on its way */
        __syncthreads();
        for (int c = 0; c < p.d; c += 32) {
            uint32_t x[4], w[4];

            /* columns c..c+31 of eight keys: two right sides at once */
            ldmatrix4(w, tiles.k + wide_place::at(across * 8 + lane % 8, c + lane / 8 * 8));
            ldmatrix4(x, tiles.q + wide_place::at(up + lane % 16, c + lane / 16 * 8));
            mma<T>(s, x, w);
            ldmatrix4(x, tiles.q + wide_place::at(up + lane % 16, c + 16 + lane / 16 * 8));
            mma<T>(odd, x, w + 2);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int64_t c = key + across * 8 + 2 * t + i % 2;

            s[i] = c >= p.S || (p.causal && c > first + up + g + i / 2 * 8) ? -INFINITY : (s[i] + odd[i]) * scale;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float high = quad_max(fmaxf(s[2 * half], s[2 * half + 1]));

            if (t == 0)
                tiles.high[across][up + g + half * 8] = high;
        }
        __syncthreads();
        if (key + WIDE_ROWS < keys)
            load_wide(tiles.k, k, p.k_pitch, key + WIDE_ROWS, p.S, p);
        copy_async_commit();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = up + g + half * 8;
            float high = fmaxf(fmaxf(tiles.high[0][r], tiles.high[1][r]), fmaxf(tiles.high[2][r], tiles.high[3][r]));
            float more = fmaxf(most[half], ceilf(high)), shrink = exp2f(most[half] - more);
            float a = exp2f(s[2 * half] - more), b = exp2f(s[2 * half + 1] - more);

            most[half] = more;
            sum[half] = sum[half] * shrink + (a + b);
            if (across == 0 && t == 0)
                tiles.shrink[r] = shrink;
            store(tiles.p + score_place::at(r, across * 8) + 2 * t, vec<T, 2>{ { from_float<T>(a), from_float<T>(b) } });
        }
        copy_async_wait<1>();           /* v is there */
        __syncthreads();
        if (warp * 64 < p.d) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float low = tiles.shrink[i * 16 + g], high = tiles.shrink[i * 16 + g + 8];

#pragma unroll
                for (int j = 0; j < 8; j++) {
                    o[i][j][0] *= low;
                    o[i][j][1] *= low;
                    o[i][j][2] *= high;
                    o[i][j][3] *= high;
                }
            }
#pragma unroll
            for (int c = 0; c < WIDE_ROWS; c += 16) {
                uint32_t x[2][4], w[4];

                ldmatrix4(x[0], tiles.p + score_place::at(lane % 16, c + lane / 16 * 8));
                ldmatrix4(x[1], tiles.p + score_place::at(16 + lane % 16, c + lane / 16 * 8));
#pragma unroll
                for (int j = 0; j < 8; j += 2) {
                    ldmatrix4_turned(w, tiles.v + wide_place::at(c + lane % 16, warp * 64 + j * 8 + lane / 16 * 8));
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        mma<T>(o[i][j], x[i], w);
                        mma<T>(o[i][j + 1], x[i], w + 2);
                    }
                }
            }
        }
        __syncthreads();
        if (key + WIDE_ROWS < keys)
            load_wide(tiles.v, v, p.v_pitch, key + WIDE_ROWS, p.S, p);
        copy_async_commit();
    }
    copy_async_wait<0>();
    for (int half = 0; half < 2; half++) {
        sum[half] = quad_sum(sum[half]);
        if (t == 0)
            tiles.high[across][up + g + half * 8] = sum[half];
    }
    __syncthreads();
    for (int half = 0; half < 2; half++) {
        int r = up + g + half * 8;
        float total = tiles.high[0][r] + tiles.high[1][r] + tiles.high[2][r] + tiles.high[3][r];

        if (across == 0 && t == 0) {
            tiles.shrink[r] = 1 / total;
            if (p.lse && first + r < p.L)
                p.lse[(sample * p.heads + head) * p.L + first + r] = (most[half] + log2f(total)) * LN2;
        }
    }
    __syncthreads();
    if (warp * 64 < p.d)
#pragma unroll
        for (int i = 0; i < 2; i++)
            put_rows<64>(y, p.o_pitch, first + i * 16, p.L, p.d - warp * 64, o[i], tiles.shrink[i * 16 + g],
                         tiles.shrink[i * 16 + g + 8], p.paired, false);
}

/* -- plain ---------------------------------------------------------------------------------------------------------- */

/* 16 x 16 threads; thread (x, y) has rows 4 y .. 4 y + 3 and columns 4 x .. of a tile of 64 x 64 scores, and columns x, x + 16 ... of
 * the chunk of CD columns that the block makes. */
enum { SIDE = 64, DEPTH = 16, SIDE_PITCH = SIDE + 4, PLAIN_THREADS = 256 };

template <int CD> struct plain_tiles {
    float a[DEPTH][SIDE_PITCH], b[DEPTH][SIDE_PITCH], m[SIDE][SIDE_PITCH], x[DEPTH][CD];
};

/* s[r][c] = row a_first + 4 y + r of a . row b_first + 4 x + c of b */
template <class T, int CD> static __device__ inline void
plain_scores(plain_tiles<CD> &tiles, float s[4][4], const T *a, int64_t a_pitch, int64_t a_first, int64_t a_rows, const T *b,
             int64_t b_pitch, int64_t b_first, int64_t b_rows, int d)
{
    int x = threadIdx.x % 16, y = threadIdx.x / 16;

#pragma unroll
    for (int i = 0; i < 16; i++)
        s[i / 4][i % 4] = 0;
    for (int c0 = 0; c0 < d; c0 += DEPTH) {
        __syncthreads();
        for (int i = threadIdx.x; i < SIDE * DEPTH; i += PLAIN_THREADS) {
            int r = i / DEPTH, c = i % DEPTH;

            tiles.a[c][r] = a_first + r < a_rows && c0 + c < d ? to_float(a[(a_first + r) * a_pitch + c0 + c]) : 0;
            tiles.b[c][r] = b_first + r < b_rows && c0 + c < d ? to_float(b[(b_first + r) * b_pitch + c0 + c]) : 0;
        }
        __syncthreads();
#pragma unroll
        for (int c = 0; c < DEPTH; c++) {
            vec<float, 4> u = load<4>(&tiles.a[c][4 * y]), w = load<4>(&tiles.b[c][4 * x]);

#pragma unroll
            for (int i = 0; i < 16; i++)
                s[i / 4][i % 4] += u.at[i / 4] * w.at[i % 4];
        }
    }
}

/* o[r][c] += sum over 64 rows of v of m[row][4 y + r] v[v_first + row][column of c], m as s was */
template <class T, int CD> static __device__ inline void
plain_sums(plain_tiles<CD> &tiles, float (*o)[CD / 16], const float s[4][4], const T *v, int64_t pitch, int64_t first, int64_t rows,
           int columns)
{
    int x = threadIdx.x % 16, y = threadIdx.x / 16;

    __syncthreads();
#pragma unroll
    for (int c = 0; c < 4; c++)
        store(&tiles.m[4 * x + c][4 * y], vec<float, 4>{ { s[0][c], s[1][c], s[2][c], s[3][c] } });
    for (int k0 = 0; k0 < SIDE; k0 += DEPTH) {
        __syncthreads();
        for (int i = threadIdx.x; i < DEPTH * CD; i += PLAIN_THREADS) {
            int r = i / CD, c = i % CD;

            tiles.x[r][c] = first + k0 + r < rows && c < columns ? to_float(v[(first + k0 + r) * pitch + c]) : 0;
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < DEPTH; k++) {
            vec<float, 4> u = load<4>(&tiles.m[k0 + k][4 * y]);

#pragma unroll
            for (int c = 0; c < CD / 16; c++) {
                float w = tiles.x[k][x + 16 * c];

#pragma unroll
                for (int r = 0; r < 4; r++)
                    o[r][c] += u.at[r] * w;
            }
        }
    }
}

template <int CD, class T> static __device__ inline void
plain_put(T *to, int64_t pitch, int64_t first, int64_t rows, int columns, const float (*o)[CD / 16], const float factor[4], bool add)
{
    int x = threadIdx.x % 16, y = threadIdx.x / 16;

#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < CD / 16; c++)
            if (first + 4 * y + r < rows && x + 16 * c < columns)
                put(to + (first + 4 * y + r) * pitch + x + 16 * c, o[r][c] * factor[r], add);
}

template <int CD> static __device__ inline void
plain_zero(float (*o)[CD / 16])
{
#pragma unroll
    for (int r = 0; r < 4; r++)
#pragma unroll
        for (int c = 0; c < CD / 16; c++)
            o[r][c] = 0;
}

template <class T, int CD> static __global__ void
__launch_bounds__(PLAIN_THREADS, 1)
forward_plain(problem<T> p, int chunks)
{
    SD_SHARED(plain_tiles<CD>, tiles);
    int x = threadIdx.x % 16, y = threadIdx.x / 16, from = (int)blockIdx.y % chunks * CD;
    int64_t first = (int64_t)blockIdx.x * SIDE, head = blockIdx.y / chunks, sample = blockIdx.z;
    int64_t keys = keys_before(first + SIDE, p.S, p.causal);
    const T *q = p.q + sample * p.L * p.q_pitch + head * p.d;
    const T *k = p.k + sample * p.S * p.k_pitch + head * p.d, *v = p.v + sample * p.S * p.v_pitch + head * p.d + from;
    float o[4][CD / 16], s[4][4], most[4], sum[4], scale = p.scale * LOG2E;

    plain_zero<CD>(o);
    for (int r = 0; r < 4; r++) {
        most[r] = -INFINITY;
        sum[r] = 0;
    }
    for (int64_t key = 0; key < keys; key += SIDE) {
        plain_scores<T, CD>(tiles, s, q, p.q_pitch, first, p.L, k, p.k_pitch, key, p.S, p.d);
#pragma unroll
        for (int r = 0; r < 4; r++) {
            float high = -INFINITY, more, shrink;

#pragma unroll
            for (int c = 0; c < 4; c++) {
                int64_t j = key + 4 * x + c;

                s[r][c] = j >= p.S || (p.causal && j > first + 4 * y + r) ? -INFINITY : s[r][c] * scale;
                high = fmaxf(high, s[r][c]);
            }
            for (int i = 8; i; i /= 2)
                high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, i));
            more = fmaxf(most[r], ceilf(high));
            shrink = exp2f(most[r] - more);
            most[r] = more;
            sum[r] *= shrink;
#pragma unroll
            for (int c = 0; c < 4; c++) {
                s[r][c] = exp2f(s[r][c] - more);
                sum[r] += s[r][c];
            }
#pragma unroll
            for (int c = 0; c < CD / 16; c++)
                o[r][c] *= shrink;
        }
        plain_sums<T, CD>(tiles, o, s, v, p.v_pitch, key, p.S, p.d - from);
    }
    for (int r = 0; r < 4; r++) {
        int64_t row = first + 4 * y + r;

        for (int i = 8; i; i /= 2)
            sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], i);
        if (p.lse && x == 0 && from == 0 && row < p.L)
            p.lse[(sample * p.heads + head) * p.L + row] = (most[r] + log2f(sum[r])) * LN2;
        sum[r] = 1 / sum[r];
    }
    plain_put<CD>(p.y + sample * p.L * p.o_pitch + head * p.d + from, p.o_pitch, first, p.L, p.d - from, o, sum, false);
}

template <class T, int CD> static __global__ void
__launch_bounds__(PLAIN_THREADS, 1)
dq_plain(problem<T> p, int chunks)
{
    SD_SHARED(plain_tiles<CD>, tiles);
    int x = threadIdx.x % 16, y = threadIdx.x / 16, from = (int)blockIdx.y % chunks * CD;
    int64_t first = (int64_t)blockIdx.x * SIDE, head = blockIdx.y / chunks, sample = blockIdx.z;
    int64_t keys = keys_before(first + SIDE, p.S, p.causal);
    const T *q = p.q + sample * p.L * p.q_pitch + head * p.d, *dy = p.dy + sample * p.L * p.dy_pitch + head * p.d;
    const T *k = p.k + sample * p.S * p.k_pitch + head * p.d, *v = p.v + sample * p.S * p.v_pitch + head * p.d;
    float dq[4][CD / 16], s[4][4], dp[4][4], lse[4], delta[4], factor[4], scale = p.scale * LOG2E;

    plain_zero<CD>(dq);
    for (int r = 0; r < 4; r++) {
        int64_t row = first + 4 * y + r, at = (sample * p.heads + head) * p.L + row;

        lse[r] = row < p.L ? p.lse[at] * LOG2E : INFINITY;
        delta[r] = row < p.L ? p.delta[at] : 0;
        factor[r] = p.scale;
    }
    for (int64_t key = 0; key < keys; key += SIDE) {
        plain_scores<T, CD>(tiles, s, q, p.q_pitch, first, p.L, k, p.k_pitch, key, p.S, p.d);
        plain_scores<T, CD>(tiles, dp, dy, p.dy_pitch, first, p.L, v, p.v_pitch, key, p.S, p.d);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            int64_t j = key + 4 * x + i % 4;
            bool seen = j < p.S && !(p.causal && j > first + 4 * y + i / 4);

            s[i / 4][i % 4] = seen ? exp2f(s[i / 4][i % 4] * scale - lse[i / 4]) * (dp[i / 4][i % 4] - delta[i / 4]) : 0;
        }
        plain_sums<T, CD>(tiles, dq, s, k + from, p.k_pitch, key, p.S, p.d - from);
    }
    plain_put<CD>(p.dq + sample * p.L * p.dq_pitch + head * p.d + from, p.dq_pitch, first, p.L, p.d - from, dq, factor, p.add_q);
}

/* rows are keys, columns queries */
template <class T, int CD> static __global__ void
__launch_bounds__(PLAIN_THREADS, 1)
dkv_plain(problem<T> p, int chunks)
{
    SD_SHARED(plain_tiles<CD>, tiles);
    int x = threadIdx.x % 16, y = threadIdx.x / 16, from = (int)blockIdx.y % chunks * CD;
    int64_t first = (int64_t)blockIdx.x * SIDE, head = blockIdx.y / chunks, sample = blockIdx.z;
    int64_t stats = (sample * p.heads + head) * p.L;
    const T *q = p.q + sample * p.L * p.q_pitch + head * p.d, *dy = p.dy + sample * p.L * p.dy_pitch + head * p.d;
    const T *k = p.k + sample * p.S * p.k_pitch + head * p.d, *v = p.v + sample * p.S * p.v_pitch + head * p.d;
    float dk[4][CD / 16], dv[4][CD / 16], s[4][4], dp[4][4], scale = p.scale * LOG2E;
    const float one[4] = { 1, 1, 1, 1 }, factor[4] = { p.scale, p.scale, p.scale, p.scale };

    plain_zero<CD>(dk);
    plain_zero<CD>(dv);
    for (int64_t query = p.causal ? first : 0; query < p.L; query += SIDE) {
        plain_scores<T, CD>(tiles, s, k, p.k_pitch, first, p.S, q, p.q_pitch, query, p.L, p.d);
        plain_scores<T, CD>(tiles, dp, v, p.v_pitch, first, p.S, dy, p.dy_pitch, query, p.L, p.d);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int64_t i = query + 4 * x + c;
            float lse = i < p.L ? p.lse[stats + i] * LOG2E : INFINITY, delta = i < p.L ? p.delta[stats + i] : 0;

#pragma unroll
            for (int r = 0; r < 4; r++) {
                s[r][c] = p.causal && i < first + 4 * y + r ? 0 : exp2f(s[r][c] * scale - lse);
                dp[r][c] = s[r][c] * (dp[r][c] - delta);
            }
        }
        plain_sums<T, CD>(tiles, dv, s, dy + from, p.dy_pitch, query, p.L, p.d - from);
        plain_sums<T, CD>(tiles, dk, dp, q + from, p.q_pitch, query, p.L, p.d - from);
    }
    if (p.dk)
        plain_put<CD>(p.dk + sample * p.S * p.dk_pitch + head * p.d + from, p.dk_pitch, first, p.S, p.d - from, dk, factor, p.add_k);
    if (p.dv)
        plain_put<CD>(p.dv + sample * p.S * p.dv_pitch + head * p.d + from, p.dv_pitch, first, p.S, p.d - from, dv, one, p.add_v);
}

/* -- launches ------------------------------------------------------------------------------------------------------- */

template <class T, int DP, int N> static void
narrow(struct sd_device *d, const problem<T> &p, int64_t batch, bool backward)
{
    dim3 queries((unsigned)ceil_div(p.L, BLOCK), (unsigned)p.heads, (unsigned)batch);
    dim3 keys((unsigned)ceil_div(p.S, BLOCK), (unsigned)p.heads, (unsigned)batch);

    if (!backward) {
        SD_LAUNCH(d, (forward_narrow<T, DP, N>), queries, THREADS, sizeof(forward_tiles<T, DP, N>), p);
        return;
    }
    if (p.dq)
        SD_LAUNCH(d, (dq_narrow<T, DP, N>), queries, THREADS, sizeof(dq_tiles<T, DP, N>), p);
    if (DP <= 80 && (p.dk || p.dv))
        SD_LAUNCH(d, (dkv_narrow<T, DP, N, DP <= 80, true>), keys, THREADS, sizeof(dkv_tiles<T, DP, N>), p);
    if (DP > 80 && p.dk)                /* both do not fit into registers */
        SD_LAUNCH(d, (dkv_narrow<T, DP, N, true, DP <= 80>), keys, THREADS, sizeof(dkv_tiles<T, DP, N>), p);
    if (DP > 80 && p.dv)
        SD_LAUNCH(d, (dkv_narrow<T, DP, N, DP <= 80, true>), keys, THREADS, sizeof(dkv_tiles<T, DP, N>), p);
}

template <class T, int CD> static void
plain(struct sd_device *d, const problem<T> &p, int64_t batch, bool backward)
{
    int chunks = (p.d + CD - 1) / CD;
    dim3 queries((unsigned)ceil_div(p.L, SIDE), (unsigned)(p.heads * chunks), (unsigned)batch);
    dim3 keys((unsigned)ceil_div(p.S, SIDE), (unsigned)(p.heads * chunks), (unsigned)batch);

    if (!backward)
        SD_LAUNCH(d, (forward_plain<T, CD>), queries, PLAIN_THREADS, sizeof(plain_tiles<CD>), p, chunks);
    if (backward && p.dq)
        SD_LAUNCH(d, (dq_plain<T, CD>), queries, PLAIN_THREADS, sizeof(plain_tiles<CD>), p, chunks);
    if (backward && (p.dk || p.dv))
        SD_LAUNCH(d, (dkv_plain<T, CD>), keys, PLAIN_THREADS, sizeof(plain_tiles<CD>), p, chunks);
}

static void
run(struct sd_device *d, const problem<float> &p, int64_t batch, bool backward)
{
    if (p.d <= 64)
        plain<float, 64>(d, p, batch, backward);
    else
        plain<float, 160>(d, p, batch, backward);
}

template <class T> static void
run(struct sd_device *d, const problem<T> &p, int64_t batch, bool backward)
{
    if (p.d <= 48)
        narrow<T, 48, 64>(d, p, batch, backward);
    else if (p.d <= 64)
        narrow<T, 64, 64>(d, p, batch, backward);
    else if (p.d <= 80)
        narrow<T, 80, 64>(d, p, batch, backward);
    else if (p.d <= 160)
        narrow<T, 160, 32>(d, p, batch, backward);
    else if (p.d <= WIDE && !backward) {
        dim3 grid((unsigned)ceil_div(p.L, WIDE_ROWS), (unsigned)p.heads, (unsigned)batch);

        SD_LAUNCH(d, forward_wide<T>, grid, WIDE_THREADS, sizeof(wide_tiles<T>), p);
    } else
        plain<T, 160>(d, p, batch, backward);
}

/* May dk and dv hold one element both?  Columns side by side of one tensor do not. */
static bool
overlap(const struct attention_call *c)
{
    int64_t size = (int64_t)sd_dtype_size(c->dtype), cols = c->heads * c->d, rows = c->batch * c->S, p = c->k_gradient_pitch, apart;
    uintptr_t k = (uintptr_t)c->k_gradient, v = (uintptr_t)c->v_gradient;

    if (!k || !v || k + (uintptr_t)(((rows - 1) * p + cols) * size) <= v
            || v + (uintptr_t)(((rows - 1) * c->v_gradient_pitch + cols) * size) <= k)
        return false;
    apart = ((int64_t)(k > v ? k - v : v - k) / size) % p;
    return p != c->v_gradient_pitch || apart < cols || p - apart < cols;
}

template <class T> static bool
even(const void *p, int64_t pitch)
{
    return !p || ((uintptr_t)p % (2 * sizeof(T)) == 0 && pitch % 2 == 0);
}

template <class T> static void
attend(struct sd_device *d, const struct attention_call *c)
{
    problem<T> p = {};
    int64_t size = sizeof(T), count = c->batch * c->L * c->heads;

    p.q = (const T *)c->q;
    p.k = (const T *)c->k;
    p.v = (const T *)c->v;
    p.lse = c->lse;
    p.L = c->L;
    p.S = c->S;
    p.q_pitch = c->q_pitch;
    p.k_pitch = c->k_pitch;
    p.v_pitch = c->v_pitch;
    p.o_pitch = c->o_pitch;
    p.heads = (int)c->heads;
    p.d = (int)c->d;
    p.scale = (float)c->scale;
    p.causal = c->causal;
    p.aligned = aligned16(c->q, c->q_pitch * size) && aligned16(c->k, c->k_pitch * size) && aligned16(c->v, c->v_pitch * size)
                && c->d * size % 16 == 0;
    if (!c->backward) {
        p.y = (T *)c->o;
        p.paired = c->d % 2 == 0 && even<T>(c->o, c->o_pitch);
        run(d, p, c->batch, false);
        return;
    }
    p.o = (const T *)c->o;
    p.dy = (const T *)c->o_gradient;
    p.dq = c->L ? (T *)c->q_gradient : NULL;
    p.dk = c->S ? (T *)c->k_gradient : NULL;
    p.dv = c->S ? (T *)c->v_gradient : NULL;
    p.dy_pitch = c->o_gradient_pitch;
    p.dq_pitch = c->q_gradient_pitch;
    p.dk_pitch = c->k_gradient_pitch;
    p.dv_pitch = c->v_gradient_pitch;
    p.add_q = !c->q_store;
    p.add_k = !c->k_store;
    p.add_v = !c->v_store;
    p.delta = (float *)c->scratch;
    p.paired = c->d % 2 == 0 && even<T>(p.dq, p.dq_pitch) && even<T>(p.dk, p.dk_pitch) && even<T>(p.dv, p.dv_pitch);
    p.aligned = p.aligned && aligned16(p.o, p.o_pitch * size) && aligned16(p.dy, p.dy_pitch * size);
    if (count && (p.dq || p.dk))
        SD_LAUNCH(d, delta_kernel<T>, (unsigned)ceil_div(count * 8, 256), 256, 0, p, count);
    if (overlap(c)) {           /* one after the other: which adds first is then certain */
        problem<T> values = p;

        p.dv = NULL;
        run(d, p, c->batch, true);
        values.dq = values.dk = NULL;
        run(d, values, c->batch, true);
    } else
        run(d, p, c->batch, true);
}

}   /* namespace */

size_t
attention_scratch(const struct attention_call *c)
{
    return c->backward ? (size_t)(c->batch * c->heads * c->L) * sizeof(float) : 0;
}

bool
attention_cuda(struct sd_device *d, const struct attention_call *c)
{
    if (c->batch * c->heads * c->d > 0 && (c->L > 0 || (c->backward && c->S > 0)))
        SD_BY_DTYPE(c->dtype, T, attend<T>(d, c));
    return true;
}

/* -- the node ------------------------------------------------------------------------------------------------------- */

static void
gradient(const struct sd_node *n, int i, void **data, int64_t *pitch, bool *store)
{
    const struct sd_tensor *g = n->din[i];

    if (g && g->dtype != n->in[0]->dtype)
        sd_bug("attention", "gradient %d is %s, expected %s", i, sd_dtype_name(g->dtype), sd_dtype_name(n->in[0]->dtype));
    *data = g ? g->data : NULL;
    *pitch = g ? g->pitch : 0;
    *store = n->din_store[i];
}

static struct attention_call
call_of(const struct sd_node *n, bool backward)
{
    const struct sd_attention *a = static_cast<const struct sd_attention *>(n->attr);
    const struct sd_tensor *q = n->in[0], *k = n->in[1], *v = n->in[2];
    struct attention_call c = {};

    c.backward = backward;
    c.causal = a->causal;
    c.dtype = q->dtype;
    c.batch = q->shape[0];
    c.heads = a->heads;
    c.L = q->shape[1];
    c.S = k->shape[1];
    c.d = sd_cols(q) / a->heads;
    c.scale = a->scale != 0 ? a->scale : 1 / sqrt((double)c.d);
    c.q = q->data;
    c.k = k->data;
    c.v = v->data;
    c.o = n->out->data;
    c.lse = n->saved[0] ? data<float>(n->saved[0]) : NULL;
    c.q_pitch = q->pitch;
    c.k_pitch = k->pitch;
    c.v_pitch = v->pitch;
    c.o_pitch = n->out->pitch;
    c.scratch = n->scratch;
    if (backward) {
        c.o_gradient = n->dout->data;
        c.o_gradient_pitch = n->dout->pitch;
        gradient(n, 0, &c.q_gradient, &c.q_gradient_pitch, &c.q_store);
        gradient(n, 1, &c.k_gradient, &c.k_gradient_pitch, &c.k_store);
        gradient(n, 2, &c.v_gradient, &c.v_gradient_pitch, &c.v_store);
    }
    return c;
}

void
attention_prepare_cuda(struct sd_node *n)
{
    struct attention_call c = call_of(n, false);

    n->backward_flops = n->flops / 2 * (n->din[1] || n->din[2] ? 1 + 1 + !!n->din[0] + !!n->din[1] + !!n->din[2] : 3);
    c.backward = n->training;
    n->scratch_bytes = attention_scratch(&c);
}

void
attention_forward_cuda(struct sd_node *n)
{
    struct attention_call c = call_of(n, false);

    cudnn_attention(device_of(n), &c) || attention_cuda(device_of(n), &c);
}

void
attention_backward_cuda(struct sd_node *n)
{
    struct attention_call c = call_of(n, true);

    cudnn_attention(device_of(n), &c) || attention_cuda(device_of(n), &c);
}
