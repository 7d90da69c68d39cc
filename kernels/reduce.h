/* reduce.h - sums over long buffers, the same for any number of threads.
 *
 * One rule: a buffer is cut into SD_PIECES pieces by its length alone; a piece is summed in double by SD_LANES interleaved
 * sums; lanes and pieces are then added in a fixed tree. */
#ifndef SD_REDUCE_H
#define SD_REDUCE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SD_PIECES = 64, SD_LANES = 8 };

/* sd_piece - where piece k of n elements begins (k = SD_PIECES: n); a multiple of SD_LANES before the end. */
static inline size_t
sd_piece(size_t n, int k)
{
    size_t at = (n / SD_PIECES + 1 + SD_LANES - 1) / SD_LANES * SD_LANES * (size_t)k;

    return at < n && k < SD_PIECES ? at : n;
}

/* sd_tree_sum - of count numbers, a power of two: halves are added to halves; x is overwritten. */
double sd_tree_sum(double *x, int count);

/* sd_sum_squares - sum of x[i]^2; not finite when an element is not. */
double sd_sum_squares(const float *x, size_t n);

/* sd_clip_factor - what gradients of this norm are multiplied by: min(1, max_norm / (norm + 1e-6)); 1 when max_norm is 0. */
double sd_clip_factor(double norm, double max_norm);

#ifdef __cplusplus
}
#endif

#endif
