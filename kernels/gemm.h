/* gemm.h - matrix products of our own: gathered rows of x times packed weights.
 *
 *     out[p, n] = sum over taps t, k < depth of  x[source(p, t), k] * packed[t * depth + k, n]   + start[p, n] + bias[n]
 *
 * p runs over batch x height x width output positions; source(p, t) is the pixel step * p + (tap.y, tap.x), zero outside.
 * A linear layer is one tap over a single row of positions; a convolution one tap per kernel element; the gradient of a strided
 * convolution, or a convolution of an enlarged picture, one product per phase.  Rows are read where they lie: nothing is
 * copied.  One rule: each output is one chain of sums in ascending (t, k), so no blocking and no thread count changes its bits. */
#ifndef SD_GEMM_H
#define SD_GEMM_H

#include "op.h"

enum { GEMM_ROWS = 8 };         /* most rows of a tile on any instruction set */

struct gemm_sizes { int rows, width, step; };   /* of a tile; width of a full panel; panels are whole steps wide */

struct gemm_tile {              /* what the inner loop gets */
    const float *const *x;      /* [segments][GEMM_ROWS] */
    int64_t skip;               /* begin within each segment */
    int segments;
    int64_t depth;
    const float *panel;
    const int64_t *at;          /* [rows] offsets into out and start */
    float *out;
    const float *start;         /* sums begin with this (out itself: add to it), or with zero: NULL */
    const float *bias;          /* added last, or NULL */
    int rows, columns;
};
SD_V_DECLARE(void, gemm_tile, (const struct gemm_tile *t));
SD_V_DECLARE(struct gemm_sizes, gemm_sizes, (void));

struct gemm_tap { int y, x; uint32_t ky, kx; };     /* kernel rows and columns (bit sets) whose weights are summed */

struct gemm {
    int64_t batch, height, width;
    int64_t depth, columns;
    int taps;
    const struct gemm_tap *tap;
    const float *x, *zeros;                         /* zeros: depth of them, when a tap may fall outside */
    int64_t x_height, x_width, x_batch, x_row, x_column;    /* steps in elements */
    int step;
    const float *packed;
    int64_t packed_batch;                           /* step from sample to sample; 0: one matrix for all */
    float *out;
    int64_t out_batch, out_row, out_column;
    const float *bias;                              /* [columns], or NULL */
    int64_t bias_batch;                             /* step from sample to sample; 0: one bias for all */
    const float *start;                             /* laid out like out, may be out: sums begin with it; or NULL: zero */
};
void gemm_run(const struct gemm *g);

/* Packed weights: from a parameter in its file's dtype, or from f32 values. */
struct gemm_weight {
    const struct sd_param *param;       /* or */
    const float *values;
    int64_t out, in;
    int height, width;                  /* of the kernel */
    bool transposed;                    /* depth runs over out (data gradients), columns over in; else the other way */
    int taps;
    const struct gemm_tap *tap;
};
size_t gemm_packed_bytes(const struct gemm_weight *w);
void gemm_pack(float *packed, const struct gemm_weight *w);
/* gemm_pack_rows - panels of a plain matrix [depth, columns] whose rows are given by pointers (NULL: zeros); for weight gradients */
void gemm_pack_rows(float *packed, const float *const *rows, int64_t depth, int64_t columns);
size_t gemm_matrix_bytes(int64_t depth, int64_t columns);

#endif
