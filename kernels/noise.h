/* noise.h - random numbers made on the device: bit by bit those of random.h on the CPU.
 *
 * One rule: which numbers is read from device memory (struct sd_noise_key, one a sample, written by the host before the step), so
 * that a recorded step draws new ones when it is replayed. */
#ifndef SD_NOISE_H
#define SD_NOISE_H

#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

struct sd_noise_key { uint64_t seed, sample; uint32_t purpose, step; };

/* sd_device_normal - out[b, 0..n) = sd_random_normal(n, keys[b]) for b < batch. */
void sd_device_normal(struct sd_device *d, float *out, size_t n, int64_t batch, const struct sd_noise_key *keys);

/* sd_device_noise - out [batch, pixels, channels]: sample b has the numbers [channels, pixels] of keys[b], turned, plus strength
 * times the number of its channel of offset_keys[b] (NULL: without). */
void sd_device_noise(struct sd_device *d, float *out, int64_t batch, int64_t pixels, int64_t channels, const struct sd_noise_key *keys,
                     const struct sd_noise_key *offset_keys, float strength);

/* sd_device_posterior - latents [batch, pixels, channels] = (mean + deviation normal) scale.  Sample b's mean lies at
 * moments + at[b] (at: device memory), its deviation (exp(logvar / 2), made by the host) behind it, both [channels, pixels]; normals
 * of keys[b] in that order. */
void sd_device_posterior(struct sd_device *d, float *latents, int64_t batch, int64_t pixels, int64_t channels, const float *moments,
                         const int64_t *at, const struct sd_noise_key *keys, float scale);

/* sd_device_gather - out[b, 0..n) = from[at[b] + 0..n) for b < batch. */
void sd_device_gather(struct sd_device *d, float *out, int64_t batch, int64_t n, const float *from, const int64_t *at);

#ifdef __cplusplus
}
#endif
#endif
