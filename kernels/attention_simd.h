/* attention_simd.h - what attention_simd.c and its products of bf16, attention_bf16_simd.c, share: sizes of tiles,
 * turning of blocks, the backward pass in parts. */
#ifndef SD_ATTENTION_SIMD_H
#define SD_ATTENTION_SIMD_H

#include <stdalign.h>

#include "attention.h"

#if defined(__AVX512F__)
enum { MR = 8, NV = 3 };
#elif defined(__AVX2__)
enum { MR = 4, NV = 3 };
#else
enum { MR = 4, NV = 2 };
#endif
enum { W = NV * VW, KEYS = 96, QUERIES = 64 };

#define MASKED  -1e30f     /* a score nobody sees; finite, so that differences stay numbers */

/* Rows 0..count-1 in tiles of MR, 4, 2, 1: f(tile rows, first row). */
#define TILES(count, F)                                 \
    do {                                                \
        int64_t r0 = 0, rows_ = (count);                \
                                                        \
        for (; r0 + MR <= rows_; r0 += MR)              \
            F(MR, r0);                                  \
        for (; r0 + 4 <= rows_; r0 += 4)                \
            F(4, r0);                                   \
        for (; r0 + 2 <= rows_; r0 += 2)                \
            F(2, r0);                                   \
        for (; r0 < rows_; r0++)                        \
            F(1, r0);                                   \
    } while (0)

/* out[c * out_pitch + r] = in[r * in_pitch + c] */
static SD_UNUSED void
transpose(float *out, int64_t out_pitch, const float *in, int64_t in_pitch, int64_t rows, int64_t cols)
{
    int64_t r = 0;

    for (; r + 4 <= rows; r += 4) {
        const float *from = in + r * in_pitch;
        int64_t c = 0;

        for (; c + 4 <= cols; c += 4) {
            __m128 x0 = _mm_loadu_ps(from + c), x1 = _mm_loadu_ps(from + in_pitch + c);
            __m128 x2 = _mm_loadu_ps(from + 2 * in_pitch + c), x3 = _mm_loadu_ps(from + 3 * in_pitch + c);

            _MM_TRANSPOSE4_PS(x0, x1, x2, x3);
            _mm_storeu_ps(out + c * out_pitch + r, x0);
            _mm_storeu_ps(out + (c + 1) * out_pitch + r, x1);
            _mm_storeu_ps(out + (c + 2) * out_pitch + r, x2);
            _mm_storeu_ps(out + (c + 3) * out_pitch + r, x3);
        }
        for (; c < cols; c++)
            for (int k = 0; k < 4; k++)
                out[c * out_pitch + r + k] = from[k * in_pitch + c];
    }
    for (; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            out[c * out_pitch + r] = in[r * in_pitch + c];
}

/* The same into a block of w lanes: those beyond rows are zero. */
static SD_UNUSED void
transpose_block(float *out, int64_t w, const float *in, int64_t in_pitch, int64_t rows, int64_t cols)
{
    if (rows < w)
        memset(out, 0, (size_t)(w * cols) * sizeof *out);
    transpose(out, w, in, in_pitch, rows, cols);
}

/* q and dy, or k and v, as products of bf16 read them; elements are pairs of numbers, zero beyond an odd count. */
struct attention_pairs {
    float *rows[2];             /* [B, H, rows, (d + 1) / 2]: pairs of columns */
    float *woven[2];            /* [B, H, (rows + 1) / 2, d]: pairs of rows */
};

struct backward {
    struct attention a;
    const float *dy;
    float *lse, *D;             /* [B, H, L]; lse in units of log 2 */
    float *dq;                  /* [B, H, L, dq_pitch], rows padded to whole vectors; NULL: not wanted */
    int64_t dq_pitch;
    int64_t parts;
    float *partial;             /* [parts, B, H, 2, S, d] of dk and dv when parts > 1 */
    struct sd_tensor *din[3];
    bool store[3];
    bool bf16;
    struct attention_pairs pairs;
};

struct pass {                   /* one block of keys against the queries of one part */
    const struct backward *g;
    const float *q, *dy, *lse, *D;
    float *dq;
    int64_t head;               /* b * H + h */
    alignas(64) float kt[ATTENTION_MAX_D * W], vt[ATTENTION_MAX_D * W];
    alignas(64) float dkt[ATTENTION_MAX_D * W], dvt[ATTENTION_MAX_D * W];
    alignas(64) float k[W * (ATTENTION_MAX_D + VW)];            /* rows of K, padded with zeros to whole vectors */
    alignas(64) float p[QUERIES * W], ds[QUERIES * W], ds_pairs[QUERIES * W / 2];
    int64_t key, keys;
};

#if defined(__AVX512F__)
/* The parts of the backward pass that differ: one block of keys (kt, vt, k of the pass), and `rows` queries from i
 * on. */
void attention_pairs_of(const struct sd_node *n, struct backward *g, float *scratch);
void attention_keys_bf16(struct pass *t, const float *k, const float *v, int64_t w);
void attention_queries_bf16(struct pass *t, int64_t i, int64_t rows, int64_t w);
#endif

#endif
