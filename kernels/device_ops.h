/* device_ops.h - small jobs on the device that the engine asks for between ops: fill, convert, lay out, scan.
 *
 * One rule: asked of the device's queue like a kernel of an op, so all of them may be recorded; every pointer is device memory.
 * Element types: F32, BF16, F16; sd_bug for others. */
#ifndef SD_DEVICE_OPS_H
#define SD_DEVICE_OPS_H

#include "device.h"
#include "dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

/* sd_device_fill_real - to[0..count) = value. */
void sd_device_fill_real(struct sd_device *d, void *to, enum sd_dtype dtype, size_t count, float value);

/* sd_device_cast - to[i] = from[i], rounded to nearest even; NaN stays NaN.  to == from only where the dtypes are equal. */
void sd_device_cast(struct sd_device *d, void *to, enum sd_dtype to_dtype, const void *from, enum sd_dtype from_dtype, size_t count);

/* sd_device_rows - the same for `rows` rows of `cols` elements that lie to_pitch and from_pitch elements apart; add: to += from. */
void sd_device_rows(struct sd_device *d, void *to, enum sd_dtype to_dtype, int64_t to_pitch, const void *from,
                    enum sd_dtype from_dtype, int64_t from_pitch, int64_t rows, int64_t cols, bool add);

/* sd_device_taps - a convolution's weight [out, in, kh, kw] to [out, kh, kw, in]. */
void sd_device_taps(struct sd_device *d, void *to, enum sd_dtype to_dtype, const void *from, enum sd_dtype from_dtype, int64_t out,
                    int64_t in, int64_t kh, int64_t kw);

/* sd_device_taps_upsampled - to [in, kh + 1, kw + 1, out] with rows `pitch` apart, of a convolution over a doubled picture: element
 * (t, u) is the sum of the kernel's elements kh - 1 - t and kh - t down, kw - 1 - u and kw - u across, of those there are; in that
 * order, in F32. */
void sd_device_taps_upsampled(struct sd_device *d, void *to, enum sd_dtype to_dtype, int64_t pitch, const void *from,
                              enum sd_dtype from_dtype, int64_t out, int64_t in, int64_t kh, int64_t kw);

/* sd_device_finite - *flag = 1 when some x[r, c] is infinite or NaN; else *flag stays as it is (set it to 0 first). */
void sd_device_finite(struct sd_device *d, const void *x, enum sd_dtype dtype, int64_t rows, int64_t cols, int64_t pitch, int *flag);

#ifdef __cplusplus
}
#endif
#endif
