/* gemm_simd.c - the inner loop of every matrix product of our own: a few gathered rows times one packed panel, sums in registers.
 * Each sum runs over k in ascending order in one chain, so neither blocking nor threads can change its bits. */
#include "gemm.h"
#include "simd.h"

#if defined(__AVX512F__)
enum { MR = 8, NV = 3 };        /* 8 x 3 sums, 3 weights and a broadcast in 32 registers */
#else
enum { MR = 6, NV = 2 };        /* 6 x 2, 2 and one in 16 */
#endif

/* nv: vectors in this panel's width; a constant in each caller, so that all loops unroll */
SD_INLINE void
tile(const struct gemm_tile *t, const int nv)
{
    vf sum[MR][NV];
    const float *panel = t->panel;

    SD_UNROLL
    for (int i = 0; i < MR; i++) {
        SD_UNROLL
        for (int j = 0; j < nv; j++)
            sum[i][j] = t->start && i < t->rows ? v_get(t->start + t->at[i] + j * VW, t->columns - j * VW) : v_zero();
    }
    for (int s = 0; s < t->segments; s++) {
        const float *row[MR];

        SD_UNROLL
        for (int i = 0; i < MR; i++)
            row[i] = t->x[s * GEMM_ROWS + i] + t->skip;
        for (int64_t k = 0; k < t->depth; k++, panel += nv * VW) {
            vf w[NV];

            SD_UNROLL
            for (int j = 0; j < nv; j++)
                w[j] = v_load(panel + j * VW);
            SD_UNROLL
            for (int i = 0; i < MR; i++) {
                vf a = v_set(row[i][k]);

                SD_UNROLL
                for (int j = 0; j < nv; j++)
                    sum[i][j] = v_fma(a, w[j], sum[i][j]);
            }
        }
    }
    SD_UNROLL
    for (int i = 0; i < MR; i++) {
        if (i >= t->rows)
            break;
        SD_UNROLL
        for (int j = 0; j < nv; j++) {
            vf v = sum[i][j];

            if (t->bias)
                v += v_get(t->bias + j * VW, t->columns - j * VW);
            v_put(t->out + t->at[i] + j * VW, v, t->columns - j * VW);
        }
    }
}

void
SD_V(gemm_tile)(const struct gemm_tile *t)
{
    int nv = (t->columns + VW - 1) / VW;

    if (nv == 1)
        tile(t, 1);
    else if (nv == 2)
        tile(t, 2);
    else
        tile(t, NV);
}

struct gemm_sizes
SD_V(gemm_sizes)(void)
{
    return (struct gemm_sizes){ MR, NV * VW, VW };
}
