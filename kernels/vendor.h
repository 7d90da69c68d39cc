/* vendor.h - the libraries that may be there: opened when first wanted, never needed.
 *
 * One rule: a function that returns bool returns false where the library is absent or does not take the call; nothing was
 * done then, and the caller computes it itself.  Of what a library offers, only what gives the same bits every time is used, and
 * what is chosen has given the results of our own kernels, but for rounding. */
#ifndef SD_VENDOR_H
#define SD_VENDOR_H

#include <stdbool.h>
#include <stddef.h>

#include "product_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* "cublasLt 130100", "no cublasLt": part of what names an engine. */
const char *cublas_version(void);
const char *cudnn_version(void);
enum { CUBLAS_WORKSPACE = 32 << 20 };       /* that it is given */

/* product_cuda.h says what is asked. */
bool cublas_gemm(struct sd_device *d, const struct gemm_call *call);
extern bool vendor_tf32;            /* --dtype tf32: products of F32 may round their operands to TF32 */
bool cudnn_conv2d(struct sd_device *d, const struct conv_call *call);
bool cudnn_takes_conv2d(const struct sd_device *d, const struct conv_call *call);       /* it may, where there is an engine */
bool cudnn_attention(struct sd_device *d, const struct attention_call *call);

/* vendor_open - dlopen of the first of `names` (ended by NULL) found in $SD_CUDA_LIBS (folders, separated by ':'; set and
 * empty: nowhere at all), the loader's path, the toolkit, Python's nvidia packages (of the environment, of the python3 on the PATH,
 * of the user, of the system).  NULL with sd_fail. */
void *vendor_open(const char *const *names);
/* vendor_find - a function of it, or false with sd_fail. */
bool vendor_find(void *library, const char *name, void *function);

#ifdef __cplusplus
}
#endif
#endif
