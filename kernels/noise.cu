/* noise: Philox and Box-Muller of random.h, a thread for a block of four numbers.  Some 300 operations for 16 bytes: bound by
 * arithmetic, and for latents by the launch. */
#include "noise.h"

#include "cuda.h"
#include "random.h"

using namespace sd;

namespace {

enum { THREADS = 128 };

__device__ inline void
four_normals(float z[4], const struct sd_noise_key &k, uint32_t block)
{
    uint32_t key[2], c[4] = { block, k.step, (uint32_t)k.sample, (uint32_t)(k.sample >> 32) };

    sd_philox_key(key, k.seed, k.purpose);
    sd_philox(c, key);
    sd_normal_pair(c[0], c[1], &z[0], &z[1]);
    sd_normal_pair(c[2], c[3], &z[2], &z[3]);
}

__global__ void
normal_kernel(float *out, int64_t n, const struct sd_noise_key *keys)
{
    SD_BEGIN();
    int64_t b = blockIdx.y, block = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float z[4];

    if (block * 4 >= n)
        return;
    four_normals(z, keys[b], (uint32_t)block);
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (block * 4 + i < n)
            out[b * n + block * 4 + i] = z[i];
}

__global__ void
noise_kernel(float *out, int64_t pixels, int64_t channels, const struct sd_noise_key *keys, const struct sd_noise_key *offset_keys,
             float strength)
{
    SD_BEGIN();
    int64_t b = blockIdx.y, block = (int64_t)blockIdx.x * THREADS + threadIdx.x, n = pixels * channels, at = -1;
    float z[4], offset[4] = {};

    if (block * 4 >= n)
        return;
    four_normals(z, keys[b], (uint32_t)block);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int64_t k = block * 4 + i, c = k / pixels;

        if (k >= n)
            continue;
        if (offset_keys) {
            if (c / 4 != at)
                four_normals(offset, offset_keys[b], (uint32_t)(at = c / 4));
            z[i] = __fadd_rn(z[i], __fmul_rn(strength, c % 4 == 0 ? offset[0] : c % 4 == 1 ? offset[1] : c % 4 == 2 ? offset[2] : offset[3]));
        }
        out[b * n + (k - c * pixels) * channels + c] = z[i];
    }
}

__global__ void
posterior_kernel(float *latents, int64_t pixels, int64_t channels, const float *moments, const int64_t *at,
                 const struct sd_noise_key *keys, float scale)
{
    SD_BEGIN();
    int64_t b = blockIdx.y, block = (int64_t)blockIdx.x * THREADS + threadIdx.x, n = pixels * channels;
    const float *mean = moments + at[b], *deviation = mean + n;
    float z[4];

    if (block * 4 >= n)
        return;
    four_normals(z, keys[b], (uint32_t)block);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int64_t k = block * 4 + i, c = k / pixels;

        if (k < n)
            latents[b * n + (k - c * pixels) * channels + c] =
                __fmul_rn(__fadd_rn(mean[k], __fmul_rn(deviation[k], z[i])), scale);
    }
}

__global__ void
gather_kernel(float *out, int64_t n, const float *from, const int64_t *at)
{
    SD_BEGIN();
    int64_t b = blockIdx.y, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;

    if (i < n)
        out[b * n + i] = from[at[b] + i];
}

dim3
blocks_of(int64_t n, int64_t batch)
{
    if (n > (int64_t)4 << 32)
        sd_bug("noise", "%lld numbers of one stream, at most 2^34", (long long)n);
    return dim3((unsigned)ceil_div(ceil_div(n, 4), THREADS), (unsigned)batch);
}

}   /* namespace */

void
sd_device_normal(struct sd_device *d, float *out, size_t n, int64_t batch, const struct sd_noise_key *keys)
{
    if (n && batch)
        SD_LAUNCH(d, normal_kernel, blocks_of((int64_t)n, batch), THREADS, 0, out, (int64_t)n, keys);
}

void
sd_device_noise(struct sd_device *d, float *out, int64_t batch, int64_t pixels, int64_t channels, const struct sd_noise_key *keys,
                const struct sd_noise_key *offset_keys, float strength)
{
    if (pixels > 0 && channels > 0 && batch > 0)
        SD_LAUNCH(d, noise_kernel, blocks_of(pixels * channels, batch), THREADS, 0, out, pixels, channels, keys, offset_keys, strength);
}

void
sd_device_posterior(struct sd_device *d, float *latents, int64_t batch, int64_t pixels, int64_t channels, const float *moments,
                    const int64_t *at, const struct sd_noise_key *keys, float scale)
{
    if (pixels > 0 && channels > 0 && batch > 0)
        SD_LAUNCH(d, posterior_kernel, blocks_of(pixels * channels, batch), THREADS, 0, latents, pixels, channels, moments, at, keys,
                  scale);
}

void
sd_device_gather(struct sd_device *d, float *out, int64_t batch, int64_t n, const float *from, const int64_t *at)
{
    if (n > 0 && batch > 0)
        SD_LAUNCH(d, gather_kernel, dim3((unsigned)ceil_div(n, THREADS), (unsigned)batch), THREADS, 0, out, n, from, at);
}
