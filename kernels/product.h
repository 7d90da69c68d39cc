/* product.h - linear and conv2d, and their gradients, as products of gathered rows (gemm.h): which taps, which packed
 * forms.
 *
 * One rule: the C loops of linear.c and conv2d.c define the result; each function here returns false where it does not
 * apply.
 * Results do not depend on the number of threads. */
#ifndef SD_PRODUCT_H
#define SD_PRODUCT_H

#include "op.h"
#include "ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A linear layer is a 1x1 convolution of a picture one pixel high; what lies beside its x is a product of its own. */
enum { PRODUCT_BESIDE = 4 };        /* input of linear */
struct product_shape {
    int64_t batch, height, width, in, x_pitch;          /* x_pitch: elements from pixel to pixel */
    int64_t out_height, out_width, out;
    int kernel_height, kernel_width;
    struct sd_conv2d a;
};
struct product_shape product_shape(const struct sd_node *n);

#if SD_REAL_IS_FLOAT
void product_prepare(struct sd_node *n);                /* packed forms, scratch */
bool product_forward(struct sd_node *n);
bool product_backward_x(struct sd_node *n);
bool product_backward_weight(struct sd_node *n);
#else
static inline void product_prepare(struct sd_node *n) { (void)n; }
static inline bool product_forward(struct sd_node *n) { (void)n; return false; }
static inline bool product_backward_x(struct sd_node *n) { (void)n; return false; }
static inline bool product_backward_weight(struct sd_node *n) { (void)n; return false; }
#endif

/* product_sums - sums[b, o] = sum over the rows of sample b of dy, in chunks of a fixed size, chunk after chunk.
 * scratch: product_sums_bytes(). */
size_t product_sums_bytes(int64_t batch, int64_t rows, int64_t columns);
void product_sums(real *sums, const real *dy, int64_t batch, int64_t rows, int64_t columns, void *scratch);
/* product_pass - dout to the gradient of the input that was only added. */
void product_pass(struct sd_node *n, int input);
/* product_flops - sets n->flops; product_backward_flops - sets n->backward_flops for the wanted gradients: wherever they are
 * computed. */
void product_flops(struct sd_node *n);
void product_backward_flops(struct sd_node *n);

#ifdef __cplusplus
}
#endif
#endif
