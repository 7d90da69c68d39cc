/* attention, kernels of BF16 and F16 with d <= 160: four warps hold 16 queries (or keys) each in registers, tiles of
 * keys (queries) pass by in shared memory.  See attention.cu. */
#include "attention_cuda.h"

using namespace sd_attend;

namespace {

/* -- narrow: forward ----------------------------------------------------------------------------------------------- */

template <class T, int DP, int N> struct forward_tiles {
    T q[BLOCK * (DP + 8)], k[2][N * (DP + 8)], v[2][N * (DP + 8)];
};

template <class T, int DP, int N> static __global__ void
__launch_bounds__(THREADS)
forward_narrow(problem<T> p)
{
    SD_BEGIN();
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
    put_rows<DP>(p.y + sample * p.L * p.o_pitch + head * p.d, p.o_pitch, row, p.L, p.d, o, 1 / sum[0], 1 / sum[1],
                 p.paired, false);
}

/* -- narrow: gradients --------------------------------------------------------------------------------------------- */

template <class T, int DP, int N> struct dq_tiles {
    T q[BLOCK * (DP + 8)], dy[BLOCK * (DP + 8)], k[2][N * (DP + 8)], v[2][N * (DP + 8)];
};

template <class T, int DP, int N> static __global__ void
__launch_bounds__(THREADS)
dq_narrow(problem<T> p)
{
    SD_BEGIN();
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
    load_tile<BLOCK, DP, THREADS>(tiles.q, p.q + sample * p.L * p.q_pitch + head * p.d, p.q_pitch, first, p.L, p.d,
                                  p.aligned);
    load_tile<BLOCK, DP, THREADS>(tiles.dy, p.dy + sample * p.L * p.dy_pitch + head * p.d, p.dy_pitch, first, p.L, p.d,
                                  p.aligned);
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
    put_rows<DP>(p.dq + sample * p.L * p.dq_pitch + head * p.d, p.dq_pitch, row, p.L, p.d, dq, p.scale, p.scale,
                 p.paired, p.add_q);
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
    SD_BEGIN();
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
    load_tile<BLOCK, DP, THREADS>(tiles.k, p.k + sample * p.S * p.k_pitch + head * p.d, p.k_pitch, first, p.S, p.d,
                                  p.aligned);
    if (DK)
        load_tile<BLOCK, DP, THREADS>(tiles.v, p.v + sample * p.S * p.v_pitch + head * p.d, p.v_pitch, first, p.S, p.d,
                                      p.aligned);
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
        put_rows<DP>(p.dk + sample * p.S * p.dk_pitch + head * p.d, p.dk_pitch, row, p.S, p.d, dk, p.scale, p.scale,
                     p.paired, p.add_k);
    if (DV && p.dv)
        put_rows<DP>(p.dv + sample * p.S * p.dv_pitch + head * p.d, p.dv_pitch, row, p.S, p.d, dv, 1, 1, p.paired,
                     p.add_v);
}

/* -- launches ------------------------------------------------------------------------------------------------------ */

template <class T, int DP, int N> static void
launch(struct sd_device *d, const problem<T> &p, int64_t batch, bool backward)
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

}   /* namespace */

template <class T> void
sd_attend::run_narrow(struct sd_device *d, const problem<T> &p, int64_t batch, bool backward)
{
    if (p.d <= 48)
        launch<T, 48, 64>(d, p, batch, backward);
    else if (p.d <= 64)
        launch<T, 64, 64>(d, p, batch, backward);
    else if (p.d <= 80)
        launch<T, 80, 64>(d, p, batch, backward);
    else
        launch<T, NARROW_MAX, 32>(d, p, batch, backward);
}

template void sd_attend::run_narrow(struct sd_device *d, const problem<bf16> &p, int64_t batch, bool backward);
template void sd_attend::run_narrow(struct sd_device *d, const problem<f16> &p, int64_t batch, bool backward);
