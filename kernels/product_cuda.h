/* product_cuda.h - the matrix products of linear, conv2d and attention on a CUDA device, each as one plain struct.
 *
 * One rule: whoever describes a product runs `vendor || own`:  cublas_gemm(d, &call) || gemm_cuda(d, &call).  A vendor function
 * (vendor.h) returns false, having done nothing, for what it does not take; gemm_cuda, conv_cuda and attention_cuda take all.
 * Every pointer is device memory.  Sums are f32, rounded once, at the end, but that a library may round a convolution before what is
 * added to it; the same call gives the same bits.
 * Matrices are row-major, rows `pitch` elements apart; NULL operands are absent. */
#ifndef SD_PRODUCT_CUDA_H
#define SD_PRODUCT_CUDA_H

#include "device.h"
#include "dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

/* gemm_call - D = A B + bias + C, for each of `batch` products that lie *_batch elements apart.
 *   A      [rows, depth] of dtype; a_turned: it lies as [depth, rows]
 *   B      [depth, columns] of dtype; b_turned: it lies as [columns, depth], as the weight of a linear layer does
 *   C, D   [rows, columns] of d_dtype: that of A and B, or F32.  C may be D (then the product is added); else they do not overlap
 *   bias   [columns] F32;  bias_d: the same numbers in d_dtype, for a library that wants them so.  Either or both may be there
 *          (the same pointer where d_dtype is F32); own kernels prefer `bias`
 *   scratch  gemm_scratch() bytes, or NULL: none.  For partial sums of own kernels; vendors have the device's workspace */
struct gemm_call {
    int64_t rows, columns, depth;
    enum sd_dtype dtype, d_dtype;
    const void *a, *b, *c;
    void *d;
    int64_t a_pitch, b_pitch, c_pitch, d_pitch;
    bool a_turned, b_turned;
    const float *bias;
    const void *bias_d;
    int64_t batch, a_batch, b_batch, c_batch, d_batch;      /* batch 0 is 1 */
    void *scratch;
};
size_t gemm_scratch(const struct gemm_call *call);
bool   gemm_cuda(struct sd_device *d, const struct gemm_call *call);       /* true */

/* conv_call - a convolution (conv2d.c has the formula) or one of its gradients; pictures are dense NHWC.
 *   x, dx  [batch, height, width, in]     before the enlargement (upsample 2: WEIGHT alone, others by conv_transposed())
 *   w      [out, kernel_height, kernel_width, in] of dtype: SD_TAPS
 *   y, dy  [batch, out_height, out_width, out]
 *   FORWARD  to = y of dtype, from x and w     both: + bias [channels] + channel_add [batch, channels] + residual, like `to`,
 *   DATA     to = dx of dtype, from dy and w             which residual may be
 *   WEIGHT   to = dw, F32, in the FILE's order [out, in, kernel_height, kernel_width], from x and dy;  add: added to what is there
 *   bias F32 and bias_d in dtype as above; channel_add (rows channel_add_pitch apart) and residual in dtype
 *   scratch  conv_scratch() bytes */
enum conv_kind { CONV_FORWARD, CONV_DATA, CONV_WEIGHT };
struct conv_call {
    enum conv_kind kind;
    enum sd_dtype dtype;
    int64_t batch, height, width, in, out_height, out_width, out;
    int kernel_height, kernel_width, stride, top, left, bottom, right, upsample;
    const void *x, *w, *dy;
    void *to;
    bool add;
    const float *bias;
    const void *bias_d, *channel_add, *residual;
    int64_t channel_add_pitch;
    void *scratch;
};
size_t conv_scratch(const struct conv_call *call);
bool   conv_cuda(struct sd_device *d, const struct conv_call *call);       /* true */
/* conv_transposed - of an enlarged picture: each pixel of x adds to kernel + 1 pixels of y down and across, two further on for the
 * next one.  So the forward pass is the data gradient of a convolution of stride 2 whose "dx" is y and whose "dy" is x, and the
 * data gradient that convolution's forward pass.  w: SD_TAPS_UPSAMPLED, which is SD_TAPS of that one; padding < kernel. */
struct conv_call conv_transposed(const struct conv_call *call);
/* conv_added - to = from + bias + channel_add + residual of FORWARD or DATA: for a library that leaves them out.  `from` may be `to`;
 * pointers and pixels are 16-byte aligned. */
void   conv_added(struct sd_device *d, const struct conv_call *call, const void *from);
/* conv_taps_to_rows - to [out, in, taps] = (or +=, add) from [out, taps, in], F32: for a library whose dw has taps outside. */
void   conv_taps_to_rows(struct sd_device *d, float *to, const float *from, int64_t out, int64_t in, int64_t taps, bool add);

/* attention_call - attention.c has the formula.  Rows of q, k, v ... lie *_pitch elements apart, a sample has L (q, o) or S (k, v)
 * of them; heads lie side by side, d elements each.
 *   lse      [batch, heads, L] F32: written by the forward pass (may be NULL), read by the backward
 *   backward o_gradient and o, q, k, v, lse are read; q_gradient, k_gradient, v_gradient written where not NULL: stored, or
 *            added to what is there
 *   scratch  attention_scratch() bytes */
struct attention_call {
    bool backward, causal;
    enum sd_dtype dtype;
    int64_t batch, heads, L, S, d;
    double scale;
    const void *q, *k, *v;
    void *o;
    float *lse;
    int64_t q_pitch, k_pitch, v_pitch, o_pitch;
    const void *o_gradient;
    void *q_gradient, *k_gradient, *v_gradient;
    int64_t o_gradient_pitch, q_gradient_pitch, k_gradient_pitch, v_gradient_pitch;
    bool q_store, k_store, v_store;
    void *scratch;
};
size_t attention_scratch(const struct attention_call *call);
bool   attention_cuda(struct sd_device *d, const struct attention_call *call);     /* true */

#ifdef __cplusplus
}
#endif
#endif
