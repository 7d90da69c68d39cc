/* noise.cu against random.c and what the trainer makes of it: the same bits. */
#include "noise.h"
#include "on_device.h"
#include "random.h"

typedef std::vector<float> floats;

static const std::vector<struct sd_noise_key> keys = {
    { 42, 0x123456789abcdef0u, SD_FOR_NOISE, 7 }, { 42, 1, SD_FOR_NOISE, 7 }, { 0xfedcba9876543210u, ~(uint64_t)0, SD_FOR_POSTERIOR, ~0u }
};
static const std::vector<struct sd_noise_key> offsets = { { 42, 5, SD_FOR_OFFSET, 7 }, { 42, 6, SD_FOR_OFFSET, 7 }, { 1, 2, SD_FOR_OFFSET, 3 } };

static floats
normal(const struct sd_noise_key &k, size_t n)
{
    floats x(n);

    sd_random_normal(x.data(), n, k.seed, k.purpose, k.sample, k.step);
    return x;
}

static void
check_shape(struct sd_device *d, int64_t pixels, int64_t channels)
{
    const size_t B = keys.size(), n = (size_t)(pixels * channels);
    const float strength = 0.1f, scale = 0.18215f;
    struct sd_noise_key *dkeys = up(d, keys), *doffsets = up(d, offsets);
    floats plain(B * n), turned(B * n), shifted(B * n), latents(B * n), moments = numbers(3 * 2 * n + 5, 9);
    std::vector<int64_t> at = { (int64_t)(4 * n + 5), 3, 3 };
    float *out = up(d, floats(B * n)), *dmoments = up(d, moments);
    int64_t *dat = up(d, at);

    for (size_t b = 0; b < B; b++) {
        floats z = normal(keys[b], n), o = normal(offsets[b], (size_t)channels);

        for (size_t c = 0, i = 0; c < (size_t)channels; c++)
            for (size_t p = 0; p < (size_t)pixels; p++, i++) {
                size_t to = b * n + p * (size_t)channels + c;
                float by = strength * o[c];

                plain[b * n + i] = z[i];
                turned[to] = z[i];
                shifted[to] = z[i] + by;
                by = moments[(size_t)at[b] + n + i] * z[i];
                latents[to] = (moments[(size_t)at[b] + i] + by) * scale;
            }
    }
    sd_device_normal(d, out, n, (int64_t)B, dkeys);
    CHECK(same_bits(down(d, out, B * n), plain), "%lld x %lld: normals", (long long)pixels, (long long)channels);
    sd_device_noise(d, out, (int64_t)B, pixels, channels, dkeys, NULL, 0);
    CHECK(same_bits(down(d, out, B * n), turned), "%lld x %lld: noise", (long long)pixels, (long long)channels);
    sd_device_noise(d, out, (int64_t)B, pixels, channels, dkeys, doffsets, strength);
    CHECK(same_bits(down(d, out, B * n), shifted), "%lld x %lld: noise with an offset", (long long)pixels, (long long)channels);
    sd_device_posterior(d, out, (int64_t)B, pixels, channels, dmoments, dat, dkeys, scale);
    CHECK(same_bits(down(d, out, B * n), latents), "%lld x %lld: posterior", (long long)pixels, (long long)channels);
    sd_device_gather(d, out, (int64_t)B, (int64_t)n, dmoments + 1, dat);
    for (size_t b = 0; b < B; b++)
        for (size_t i = 0; i < n; i++)
            plain[b * n + i] = moments[(size_t)at[b] + 1 + i];
    CHECK(same_bits(down(d, out, B * n), plain), "%lld x %lld: gathered", (long long)pixels, (long long)channels);
    for (void *p : { (void *)dkeys, (void *)doffsets, (void *)out, (void *)dmoments, (void *)dat })
        sd_device_free(d, p);
}

int
main(void)
{
    struct sd_device *d = open_device();

    check_shape(d, 13 * 11, 4);         /* 572 numbers: blocks of four straddle channels */
    check_shape(d, 3, 5);
    check_shape(d, 1, 1);
    check_shape(d, 64 * 48, 4);
    sd_device_close(d);
    return check_done();
}
