/* attention, the kernel of BF16 and F16 with d <= 512, forward: eight warps share 32 queries.  See attention.cu. */
#include "attention_cuda.h"

using namespace sd_attend;

namespace {

/* -- wide: forward ------------------------------------------------------------------------------------------------- */

enum { WIDE = WIDE_MAX, WIDE_ROWS = 32, WIDE_THREADS = 256 };

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
    SD_BEGIN();
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
            store(tiles.p + score_place::at(r, across * 8) + 2 * t,
                  vec<T, 2>{ { from_float<T>(a), from_float<T>(b) } });
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

}   /* namespace */

template <class T> void
sd_attend::run_wide(struct sd_device *d, const problem<T> &p, int64_t batch)
{
    dim3 grid((unsigned)ceil_div(p.L, WIDE_ROWS), (unsigned)p.heads, (unsigned)batch);

    SD_LAUNCH(d, forward_wide<T>, grid, WIDE_THREADS, sizeof(wide_tiles<T>), p);
}

template void sd_attend::run_wide(struct sd_device *d, const problem<bf16> &p, int64_t batch);
template void sd_attend::run_wide(struct sd_device *d, const problem<f16> &p, int64_t batch);
