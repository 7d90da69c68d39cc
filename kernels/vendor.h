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
bool cudnn_attention(struct sd_device *d, const struct attention_call *call);

/* vendor_open - dlopen of the first of `names` (ended by NULL) found in $SD_CUDA_LIBS (folders, separated by ':'; set and
 * empty: nowhere at all), the loader's path, the toolkit, Python's nvidia packages (of the environment, of the python3 on the PATH,
 * of the user, of the system).  NULL with sd_fail. */
void *vendor_open(const char *const *names);
/* vendor_find - a function of it, or false with sd_fail. */
bool vendor_find(void *library, const char *name, void *function);

/* Choices among a library's algorithms, by library and call: made once by timing, kept in the cache folder (tuning/, a file for
 * each GPU model and library version), so that the same machine goes on with the same bits.
 * tuning_find - the stored text, NULL when there is none; good until the device is closed.
 * tuning_store - keeps `choice`, unless another process was first; returns what is kept.  SD_TUNE=0: nothing is timed. */
const char *tuning_find(struct sd_device *d, const char *library, const char *call);
const char *tuning_store(struct sd_device *d, const char *library, const char *call, const char *choice);
bool tuning_wanted(void);
/* tuning_time - seconds of run(argument), called several times into one recording; -1 where it cannot be recorded. */
double tuning_time(struct sd_device *d, bool (*run)(void *argument), void *argument);
/* tuning_replay - run(argument) by way of a recording, as steps are; false where it cannot be recorded. */
bool tuning_replay(struct sd_device *d, bool (*run)(void *argument), void *argument);
double tuning_clock(void);          /* seconds, from some moment on */
/* tuning_distance - ||found - expected|| / ||expected|| of `count` elements in the host's memory; 0 where what is expected is not
 * finite, which says nothing.  tuning_bound - what of it is rounding, of results of that type. */
double tuning_distance(const void *found, const void *expected, enum sd_dtype dtype, size_t count);
double tuning_bound(enum sd_dtype dtype);

#ifdef __cplusplus
}
#endif
#endif
