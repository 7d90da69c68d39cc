/* denoise.h - the denoising loop around the UNet on a device: what goes in, guidance, the sampler's step.
 *
 * One rule: which call it is stands in device memory, and its numbers in a table there, made before the first; so that one
 * call, recorded once, is replayed for all.  Pointers are device memory.
 * Arithmetic is that of samplers.c, each operation rounded: the same bits, but for rescaled guidance, whose deviations
 * are sums in double in another order. */
#ifndef SD_DENOISE_H
#define SD_DENOISE_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Columns as in samplers.h: x, out, x0, h[0..3], fresh noise. */
enum { SD_DENOISE_HISTORY = 4, SD_DENOISE_COLUMNS = 8 };

struct sd_denoise_call {
    float timestep, input_scale;
    float x0[2];                /* x0 = x0[0] x + x0[1] out, then within -range .. range */
    float x[SD_DENOISE_COLUMNS], history[SD_DENOISE_HISTORY][SD_DENOISE_COLUMNS];
};

struct sd_denoise {
    int64_t batch, numel;       /* pictures, elements of one */
    const struct sd_denoise_call *calls;
    int32_t *call;              /* 0 at first */
    int32_t *bad;               /* [calls], 0 at first: 1 where out or x was not finite after the call */
    float *x, *out, *history[SD_DENOISE_HISTORY];       /* [batch, numel]; history beyond `slots`: NULL */
    const float *noise;         /* fresh, NULL where the sampler draws none */
    int32_t slots, clamps;
    float range;
    int32_t unused;             /* no padding: arguments of kernels are compared word by word */
};

/* sd_denoise_input - sample[b] = input_scale x[b % batch] and timesteps[b], for b < rows. */
void sd_denoise_input(struct sd_device *d, const struct sd_denoise *n, float *sample, float *timesteps, int64_t rows);

/* sd_denoise_guide - out = uncond + scale (cond - uncond), rescaled by samplers.h's formula where rescale > 0.
 *   room   sd_denoise_room(batch, numel) doubles of scratch */
size_t sd_denoise_room(int64_t batch, int64_t numel);
void sd_denoise_guide(struct sd_device *d, const struct sd_denoise *n, const float *uncond, const float *cond, float scale,
                      double rescale, double *room);

/* sd_denoise_step - x and history after this call; then the next call is up. */
void sd_denoise_step(struct sd_device *d, const struct sd_denoise *n);

#ifdef __cplusplus
}
#endif
#endif
