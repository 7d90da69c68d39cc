/* attention, kernels of ordinary multiply-adds: F32, and of the others what fits nowhere else.  See attention.cu. */
#include "attention_cuda.h"

using namespace sd_attend;

namespace {

/* -- plain --------------------------------------------------------------------------------------------------------- */

/* 16 x 16 threads; thread (x, y) has rows 4 y .. 4 y + 3 and columns 4 x .. of a tile of 64 x 64 scores, and columns x,
 * x + 16 ... of the chunk of CD columns that the block makes. */
enum { SIDE = 64, DEPTH = 16, SIDE_PITCH = SIDE + 4, PLAIN_THREADS = 256 };

template <int CD> struct plain_tiles {
    float a[DEPTH][SIDE_PITCH], b[DEPTH][SIDE_PITCH], m[SIDE][SIDE_PITCH], x[DEPTH][CD];
};

/* s[r][c] = row a_first + 4 y + r of a . row b_first + 4 x + c of b */
template <class T, int CD> static __device__ inline void
plain_scores(plain_tiles<CD> &tiles, float s[4][4], const T *a, int64_t a_pitch, int64_t a_first, int64_t a_rows,
             const T *b, int64_t b_pitch, int64_t b_first, int64_t b_rows, int d)
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
plain_sums(plain_tiles<CD> &tiles, float (*o)[CD / 16], const float s[4][4], const T *v, int64_t pitch, int64_t first,
           int64_t rows, int columns)
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
plain_put(T *to, int64_t pitch, int64_t first, int64_t rows, int columns, const float (*o)[CD / 16],
          const float factor[4], bool add)
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
    SD_BEGIN();
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
    SD_BEGIN();
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

            s[i / 4][i % 4] =
                seen ? exp2f(s[i / 4][i % 4] * scale - lse[i / 4]) * (dp[i / 4][i % 4] - delta[i / 4]) : 0;
        }
        plain_sums<T, CD>(tiles, dq, s, k + from, p.k_pitch, key, p.S, p.d - from);
    }
    plain_put<CD>(p.dq + sample * p.L * p.dq_pitch + head * p.d + from, p.dq_pitch, first, p.L, p.d - from, dq, factor,
                  p.add_q);
}

/* rows are keys, columns queries */
template <class T, int CD> static __global__ void
__launch_bounds__(PLAIN_THREADS, 1)
dkv_plain(problem<T> p, int chunks)
{
    SD_BEGIN();
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
        plain_put<CD>(p.dk + sample * p.S * p.dk_pitch + head * p.d + from, p.dk_pitch, first, p.S, p.d - from, dk,
                      factor, p.add_k);
    if (p.dv)
        plain_put<CD>(p.dv + sample * p.S * p.dv_pitch + head * p.d + from, p.dv_pitch, first, p.S, p.d - from, dv,
                      one, p.add_v);
}

/* -- launches ------------------------------------------------------------------------------------------------------ */

template <class T, int CD> static void
launch(struct sd_device *d, const problem<T> &p, int64_t batch, bool backward)
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

/* Narrow heads have their own chunk in F32, which has no other kernels. */
void
chosen(struct sd_device *d, const problem<float> &p, int64_t batch, bool backward)
{
    if (p.d <= 64)
        launch<float, 64>(d, p, batch, backward);
    else
        launch<float, 160>(d, p, batch, backward);
}

template <class T> void
chosen(struct sd_device *d, const problem<T> &p, int64_t batch, bool backward)
{
    launch<T, 160>(d, p, batch, backward);
}

}   /* namespace */

template <class T> void
sd_attend::run_plain(struct sd_device *d, const problem<T> &p, int64_t batch, bool backward)
{
    chosen(d, p, batch, backward);
}

template void sd_attend::run_plain(struct sd_device *d, const problem<float> &p, int64_t batch, bool backward);
template void sd_attend::run_plain(struct sd_device *d, const problem<bf16> &p, int64_t batch, bool backward);
template void sd_attend::run_plain(struct sd_device *d, const problem<f16> &p, int64_t batch, bool backward);
