/* tile.cuh - what the one product kernel (gemm.cu) is told: two operands of gathered rows and where the result goes.
 *
 * Index maps, of rows as of elements: an outer index is (b n1 + i) n0 + j, and lies at
 *     y = i step + y0 + dir u,  x = j step + x0 + dir v:  element  b sb + (y >> shift) sy + (x >> shift) sx + inner
 * or is zero unless 0 <= y < high and 0 <= x < wide.  The sum runs along the
 *     inner index, (u across + v) channels + c, of a DEEP operand (its rows are rows of A, or columns of B): element + c
 *     outer index of a WIDE one (its inner index is the row of A, or column of B); u across + v is then the number of the product
 *     in its batch, or nothing (across 0)
 * A plain matrix is one row of a picture: n1 = 1, n0 = rows, sx = pitch. */
#ifndef SD_TILE_CUH
#define SD_TILE_CUH

#include "cuda.h"

namespace sd {

struct operand {
    const void *data;
    int64_t batch;                          /* elements from product to product */
    int64_t sb;
    int sy, sx, n1, n0, step, dir, y0, x0, high, wide, shift;
    int across, channels;
    int unit;                               /* elements that lie together, aligned to their size: set by product_run */
};

/* Rows of the result; column n is `sn` elements on. */
struct result {
    void *d;
    const void *c;                          /* NULL: nothing is added */
    int64_t d_batch, d_sb, d_sy, d_sx, c_batch, c_sb, c_sy, c_sx;
    int n1, n0, sn;
    bool f32;                               /* of float, else of the operands' type */
    const float *bias;
    const void *bias_d;
    const void *channel_add;                /* [b, columns], of the operands' type, rows channel_add_pitch apart */
    int64_t channel_add_pitch;
    bool vectors;                           /* eight neighbours are 16 (32) aligned bytes: set by product_run */
};

struct product {
    enum sd_dtype dtype;
    int rows, columns, depth, batch;
    bool a_deep, b_deep;
    struct operand a, b;
    struct result to;
    float *part;                            /* [batch, splits, rows, columns] where splits > 1 */
    int splits, split_steps;                /* set by product_run */
};

/* product_scratch - bytes wanted at `part`, by shape alone. */
size_t product_scratch(const struct product &p);
void product_run(struct sd_device *d, struct product p);

struct operand plain_operand(const void *data, int64_t rows, int64_t inner, int64_t pitch, int64_t batch);
struct result plain_result(void *d, int64_t rows, int64_t pitch, int64_t batch);

/* column_sums - gradients of bias and channel_add: the sums over the rows of each sample of dy [batch, rows, columns];
 * channel_add: [batch, columns], bias: the sum of those over batch.  NULL: not wanted; store, else added.
 * scratch: column_sums_bytes(). */
size_t column_sums_bytes(int64_t batch, int64_t rows, int64_t columns);
void column_sums(struct sd_device *d, const struct sd_tensor *bias, bool bias_store, const struct sd_tensor *channel_add,
                 bool channel_add_store, const struct sd_tensor *dy, int64_t batch, void *scratch);
/* residual_pass - dout to the gradient of the input that was only added. */
void residual_pass(const struct sd_node *n, int input);
/* of a bias input (NULL is fine): as F32, and in the dtype of activations, where there */
const float *bias_f32(const struct sd_tensor *bias);
const void *bias_in(const struct sd_tensor *bias, enum sd_dtype dtype);
void bias_want(const struct sd_tensor *bias, enum sd_dtype dtype);

static inline bool whole_param(const struct sd_tensor *w) { return w->param && !w->base; }
static inline size_t round256(size_t bytes) { return (bytes + 255) / 256 * 256; }

}   /* namespace sd */

#endif
