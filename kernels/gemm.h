/* gemm.h - matrix products of our own: gathered rows of x times packed weights.
 *
 *     out[p, n] = sum over taps t, k < depth of  x[source(p, t), k] * packed[t * depth + k, n]  + start[p, n] + bias[n]
 *
 * p runs over batch x height x width output positions; source(p, t) is the pixel step * p + (tap.y, tap.x), zero
 * outside.
 * A linear layer is one tap over a single row of positions; a convolution one tap per kernel element; the gradient of
 * a strided convolution, or a convolution of an enlarged picture, one product per phase.  Rows are read where they
 * lie: nothing is copied.  One rule: each output is one chain of sums in ascending (t, k), so no blocking and no
 * thread count changes its bits.
 *
 * Weights are read from the file's mapping, in the file's dtype: whoever computes some columns first turns their
 * weights into f32 panels in its own scratch, and uses them for many rows.  So no packed form of a weight is kept in
 * memory.
 *
 * With bf16 (AVX512_BF16) rows and panels are rounded to nearest even on their way, and an element of a panel is a
 * pair of numbers, (k, k + 1), zero beyond an odd depth: sums of pairs, in f32. */
#ifndef SD_GEMM_H
#define SD_GEMM_H

#include "op.h"

enum {
    GEMM_ROWS = 8,              /* most rows of a tile on any instruction set */
    GEMM_PLACES = 1024          /* most elements of a kernel; half of that with bf16 */
};

struct gemm_sizes { int rows, width, step; };   /* of a tile; width of a full panel; panels are whole steps wide */

struct gemm_tile {              /* what the inner loop gets; with bf16, elements of x, depth and panel are pairs */
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
void gemm_tile_bf16(const struct gemm_tile *t);

struct gemm_tap { int y, x; uint32_t ky, kx; };     /* kernel rows and columns (bit sets) whose weights are summed */

/* Weights [out, in, height, width] row-major, F32, F16 or BF16, aligned or not; of a 1x1 kernel perhaps some columns. */
struct gemm_weight {
    const void *values;
    enum sd_dtype dtype;
    int64_t out, in;
    int height, width;                  /* of the kernel */
    bool transposed;                    /* depth runs over out (data gradients), columns over in; else the other way */
    int64_t row;                        /* of a 1x1 kernel: numbers from row to row, where rows are parts; 0: in */
};

struct gemm {
    int64_t batch, height, width;
    int64_t depth, columns;
    int taps;
    const struct gemm_tap *tap;
    const float *x, *zeros;                         /* zeros: depth of them, when a tap may fall outside */
    int64_t x_height, x_width, x_batch, x_row, x_column;    /* steps in elements */
    int step;
    bool bf16;
    bool paired;                                    /* with bf16: x holds pairs already, and its steps count these */
    const struct gemm_weight *weight;               /* or */
    const float *packed;                            /* panels that are there already */
    int64_t packed_batch;                           /* step from sample to sample; 0: one matrix for all */
    float *room;                                    /* with weight: gemm_room() bytes, */
    int threads;                                    /* asked for when so many threads were there */
    float *out;
    int64_t out_batch, out_row, out_column;
    const float *bias;                              /* [columns], or NULL */
    int64_t bias_batch;                             /* step from sample to sample; 0: one bias for all */
    /* laid out like out, may be out; sums begin with it; or NULL: zero */
    const float *start;
};
void gemm_run(const struct gemm *g);
/* reads sizes, taps and weight, no values; grows with the threads */
size_t gemm_room(const struct gemm *g);

/* gemm_pack_rows - panels of a plain matrix [depth, columns] whose rows are given by pointers (NULL: zeros); for
 * weight gradients */
void gemm_pack_rows(float *packed, const float *const *rows, int64_t depth, int64_t columns, bool bf16);
size_t gemm_matrix_bytes(int64_t depth, int64_t columns, bool bf16);

/* gemm_turn - corners of a matrix, transposed and converted, for o < times:
 *     to[o * to_step + at[j] + r] = from[begin + o * from_step + r * step + j],  r < rows, j < count;
 * rows up to the next whole vector become zero; at[j] < 0: left out; at NULL: at[j] = j * to_step, and times is 1.
 * gemm_copy - the same without turning:  to[r * wide + j] = from[begin + r * step + j], zero up to wide.
 * next: what lies so far behind is wanted next.
 * gemm_turn_pairs, gemm_copy_pairs - the same in pairs for bf16:
 *     to[j / 2 * wide + r] = the pair from[begin + r * step + j], from[begin + r * step + j + 1],
 *     to[r / 2 * wide + j] = the pair from[begin + r * step + j], from[begin + (r + 1) * step + j].
 * gemm_weave - to[i] = the pair a[i], b[i], i < count; NULL: zeros; zero up to wide.
 * gemm_pair - to[i] = the pair from[2 i],
 *     from[2 i + 1], from of `count` numbers.
 * gemm_sum - to[i] = sum over e < count of elements[which[e] * step + i], i < wide (whole vectors). */
struct gemm_turn { int64_t begin, step, count, times, from_step, to_step, next; int rows; };
SD_V_DECLARE(void, gemm_turn, (float *to, const int64_t *at, const struct gemm_weight *from,
                               const struct gemm_turn *how));
SD_V_DECLARE(void, gemm_copy, (float *to, int wide, const struct gemm_weight *from, int64_t begin, int64_t step,
                               int64_t rows, int count));
SD_V_DECLARE(void, gemm_sum, (float *to, const float *elements, int64_t step, const int *which, int count,
                              int64_t wide));
void gemm_turn_pairs(float *to, int wide, const struct gemm_weight *from, int64_t begin, int64_t step, int rows,
                     int64_t count);
void gemm_copy_pairs(float *to, int wide, const struct gemm_weight *from, int64_t begin, int64_t step, int64_t rows,
                     int count);
void gemm_weave(float *to, const float *a, const float *b, int64_t count, int64_t wide);
void gemm_pair(float *to, const float *from, int64_t count);

#endif
