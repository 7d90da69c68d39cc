/* winograd.h - 3x3 convolutions of stride 1 with frozen weights by F(4x4, 3x3): a quarter of the multiplications.
 *
 *     out tile [4, 4] = A' [ (G w G') .* (B' d B) ] A        d: 6x6 source pixels, summed over channels between the
 *     brackets
 *
 * so that 36 matrix products [tiles, in] x [in, out] stand between two transforms, a batch of tiles at a time.
 * Weights are transformed when they are packed, in double.  One rule: where it is used depends on the shape alone
 * (winograd_wanted), so the same command gives the same bits; SD_WINOGRAD=0 in the environment turns it off.
 * Over 512 channels its result is 5e-6 away from the exact one (relative, root mean square), that of direct products
 * 1e-6. */
#ifndef SD_WINOGRAD_H
#define SD_WINOGRAD_H

#include "gemm.h"

enum { WINOGRAD_OUT = 4, WINOGRAD_IN = 6, WINOGRAD_PARTS = 36 };

struct winograd {
    int64_t batch, height, width, columns;      /* of out */
    int64_t x_height, x_width, depth;           /* of x */
    int enlarged;                               /* 2: the source is x enlarged by repeating pixels; else 1 */
    /* 2: out holds sums of 2x2 pixels of what height and width count; else 1 */
    int pooled;
    int top, left;                              /* out (y, x) sees source rows y - top .. y - top + 2 */
    const float *x;
    float *out;
    bool bf16;                                  /* x is rounded first, as the weights were when they were packed */
    const float *start;                         /* laid out like out, may be out; or NULL */
    const float *bias;                          /* [columns] or NULL */
    int64_t bias_batch;                         /* step from sample to sample */
    const float *packed;
    float *scratch;                             /* winograd_scratch() bytes */
};

/* What one call of a transform works on: tiles [begin, end) of the batch of tiles that starts at `first`. */
struct winograd_tiles {
    const struct winograd *w;
    int64_t first, begin, end;
    float *parts;                               /* [36] matrices [tiles, channels], `part` apart */
    int64_t part;
    const float *zeros;
};
SD_V_DECLARE(void, winograd_source, (const struct winograd_tiles *t));
SD_V_DECLARE(void, winograd_result, (const struct winograd_tiles *t));
/* winograd_weights - one row of the 36 matrices, `part` apart, from `wide` kernels [9][wide] */
enum { WINOGRAD_WIDE = 48 };
SD_V_DECLARE(void, winograd_weights, (float *packed, int64_t part, const float *kernel, int wide, bool bf16));

bool   winograd_wanted(int64_t height, int64_t width, int64_t depth, int64_t columns);
size_t winograd_packed_bytes(int64_t depth, int64_t columns);
/* winograd_pack - from 3x3 kernels; transposed: the data gradient, kernel turned by half a turn. */
void   winograd_pack(float *packed, const struct gemm_weight *w, bool bf16);
size_t winograd_scratch(const struct winograd *w);
void   winograd_run(const struct winograd *w);

#endif
