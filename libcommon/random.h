/* random.h - random numbers that depend on what they are for, never on when they are drawn.
 *
 * One rule: a number is a function of (seed, purpose, sample, step, index).  Nothing has a state that a resumed run
 * would have to restore, batches and threads do not change a sample's noise, and CPU and GPU give the same bits: every
 * operation here is an IEEE add, multiply or square root in single precision, in the order written, never contracted
 * (build with -ffp-contract=off; device code goes through __fmul_rn and __fadd_rn).
 *
 * Philox4x32-10 (Salmon et al., SC 2011):
 *   key      seed (low word), purpose + 0x9E3779B9 * seed (high word)
 *   counter  block, step, sample (low word), sample (high word)
 * One block is four words; element i of a fill comes from block i / 4.  Uniforms are (n + 1/2) 2^-32.  Normals are
 * Box-Muller: words (0, 1) give elements 0, 1 of the block and words (2, 3) give 2, 3.
 *
 * Measured against exact arithmetic on the integer n, over all sizes of n (tests/unit/random.c): the logarithm of a
 * uniform is within 2.5 ulp (half of it from rounding n to 24 bits), sine and cosine within 3, a normal within 4.5:
 * 6e-7 relative, in the tails and near zero too.  About 100 million normals a second on one core. */
#ifndef SD_RANDOM_H
#define SD_RANDOM_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__CUDACC__)
#define SD_HOST_DEVICE __host__ __device__ static inline
#else
#define SD_HOST_DEVICE static inline
#endif
#if defined(__CUDA_ARCH__)
#define SD_MUL(a, b) __fmul_rn(a, b)
#define SD_ADD(a, b) __fadd_rn(a, b)
#define SD_SQRT(a)   __fsqrt_rn(a)
#else
#define SD_MUL(a, b) ((a) * (b))
#define SD_ADD(a, b) ((a) + (b))
#define SD_SQRT(a)   sqrtf(a)
#endif

/* What a number is for; two purposes never share numbers.  New ones at the end: the values are part of the results.
 * Dropout and other noise of modules take SD_FOR_MODULE + a number made from the module's path. */
enum sd_purpose {
    SD_FOR_NOISE = 1,           /* training noise, start noise of a picture */
    SD_FOR_TIMESTEP = 2,
    SD_FOR_POSTERIOR = 3,       /* latents from mean and log-variance */
    SD_FOR_OFFSET = 4,          /* noise offset, one number per channel */
    SD_FOR_CAPTION = 5,         /* caption dropout */
    SD_FOR_ORDER = 6,           /* the order of an epoch */
    SD_FOR_INIT = 7,            /* start values of adapters and tokens */
    SD_FOR_SAMPLER = 8,         /* fresh noise of ancestral samplers */
    SD_FOR_MODULE = 1 << 16
};

/* sd_random_normal - out[0..n): independent N(0, 1).  n at most 2^34. */
void sd_random_normal(float *out, size_t n, uint64_t seed, uint32_t purpose, uint64_t sample, uint32_t step);
/* sd_random_uniform - out[0..n): (word + 1/2) 2^-32 rounded to float, at most 1 - 2^-24: inside (0, 1). */
void sd_random_uniform(float *out, size_t n, uint64_t seed, uint32_t purpose, uint64_t sample, uint32_t step);
/* sd_random_below - an integer in 0..n-1, every one equally likely (Lemire's rejection); n >= 1. */
uint32_t sd_random_below(uint32_t n, uint64_t seed, uint32_t purpose, uint64_t sample, uint32_t step);
/* sd_random_permutation - out[0..n): 0..n-1 in random order (Fisher-Yates).  The step is the epoch. */
void sd_random_permutation(uint32_t *out, uint32_t n, uint64_t seed, uint32_t purpose, uint64_t sample, uint32_t step);

/* PyTorch's CPU generator, for --rng torch.  sd_torch_randn gives what torch.randn(n, generator=g) gives: the same
 * stream of words, values within 2e-6 (torch rounds logarithm and cosine differently from one machine to another). */
struct sd_torch_generator {
    uint32_t state[624];
    int next;                   /* next word; 624: make new ones */
    bool has_spare;
    double spare;               /* the sine not yet given, for calls with n < 16 */
};
void sd_torch_generator_seed(struct sd_torch_generator *g, uint64_t seed);
void sd_torch_randn(struct sd_torch_generator *g, float *out, size_t n);
uint32_t sd_torch_word(struct sd_torch_generator *g);       /* the next tempered word */

/* --- the arithmetic, for the C loops and for kernels --- */

SD_HOST_DEVICE void
sd_philox_key(uint32_t key[2], uint64_t seed, uint32_t purpose)
{
    key[0] = (uint32_t)seed;
    key[1] = purpose + 0x9E3779B9u * (uint32_t)(seed >> 32);
}

SD_HOST_DEVICE void
sd_philox_round(uint32_t *c0, uint32_t *c1, uint32_t *c2, uint32_t *c3, uint32_t k0, uint32_t k1)
{
    uint64_t a = (uint64_t)0xD2511F53u * *c0, b = (uint64_t)0xCD9E8D57u * *c2;

    *c0 = (uint32_t)(b >> 32) ^ *c1 ^ k0;
    *c2 = (uint32_t)(a >> 32) ^ *c3 ^ k1;
    *c1 = (uint32_t)b;
    *c3 = (uint32_t)a;
}

/* sd_philox - one block: words of counter c under key; c is replaced. */
SD_HOST_DEVICE void
sd_philox(uint32_t c[4], const uint32_t key[2])
{
    uint32_t k0 = key[0], k1 = key[1];

    for (int i = 0; i < 10; i++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
        sd_philox_round(&c[0], &c[1], &c[2], &c[3], k0, k1);
}

/* sd_log_near - ln((1 + f) 2^e) for 1 + f in [sqrt(1/2), sqrt(2)), e whole.
 *   ln(1 + f) = f - f^2/2 + f^3 P(f), P as in Cephes' logf; ln 2 in two parts, the first of ten bits. */
SD_HOST_DEVICE float
sd_log_near(float f, float e)
{
    float z = SD_MUL(f, f), p = 7.0376836292e-2f;

    p = SD_ADD(SD_MUL(p, f), -1.1514610310e-1f);
    p = SD_ADD(SD_MUL(p, f), 1.1676998740e-1f);
    p = SD_ADD(SD_MUL(p, f), -1.2420140846e-1f);
    p = SD_ADD(SD_MUL(p, f), 1.4249322787e-1f);
    p = SD_ADD(SD_MUL(p, f), -1.6668057665e-1f);
    p = SD_ADD(SD_MUL(p, f), 2.0000714765e-1f);
    p = SD_ADD(SD_MUL(p, f), -2.4999993993e-1f);
    p = SD_ADD(SD_MUL(p, f), 3.3333331174e-1f);
    p = SD_MUL(SD_MUL(p, f), z);
    p = SD_ADD(p, SD_MUL(e, -2.12194440e-4f));
    p = SD_ADD(p, SD_MUL(z, -0.5f));
    return SD_ADD(SD_ADD(p, f), SD_MUL(e, 0.693359375f));
}

/* sd_log - ln(x), x positive and normal. */
SD_HOST_DEVICE float
sd_log(float x)
{
    int32_t bits, e;
    float m;

    memcpy(&bits, &x, sizeof(bits));
    e = (bits - 0x3f3504f3) >> 23;              /* 0x3f3504f3 is sqrt(1/2) */
    bits -= (int32_t)((uint32_t)e << 23);
    memcpy(&m, &bits, sizeof(m));
    return sd_log_near(SD_ADD(m, -1.0f), (float)e);
}

/* sd_log_uniform - ln((n + 1/2) 2^-32), from the near end: 1 - u is (~n + 1/2) 2^-32 exactly. */
SD_HOST_DEVICE float
sd_log_uniform(uint32_t n)
{
    float x = SD_ADD((float)n, 0.5f), v = SD_MUL(SD_ADD((float)~n, 0.5f), -0x1p-32f), m;
    int32_t bits, e;
    bool near = n >= 0xb504f334u;               /* sqrt(1/2) */

    memcpy(&bits, &x, sizeof(bits));
    e = (bits - 0x3f3504f3) >> 23;
    bits -= (int32_t)((uint32_t)e << 23);
    memcpy(&m, &bits, sizeof(m));
    return sd_log_near(near ? v : SD_ADD(m, -1.0f), near ? 0.0f : (float)(e - 32));
}

/* sd_sincos_turns - sine and cosine of (n + half) 2^-32 turns; the quarter is taken off n exactly. */
SD_HOST_DEVICE void
sd_sincos_turns(uint32_t n, float half, float *sine, float *cosine)
{
    uint32_t quarter = (n + 0x20000000u) >> 30, flip_s, flip_c, bits;
    float a = SD_MUL(SD_ADD((float)(int32_t)(n - (quarter << 30)), half), 1.46291807927e-9f);     /* 2 pi 2^-32 */
    float z = SD_MUL(a, a), s = -1.9515295891e-4f, c = 2.443315711809948e-5f, t;

    s = SD_ADD(SD_MUL(s, z), 8.3321608736e-3f);
    s = SD_ADD(SD_MUL(s, z), -1.6666654611e-1f);
    s = SD_ADD(SD_MUL(SD_MUL(s, z), a), a);
    c = SD_ADD(SD_MUL(c, z), -1.388731625493765e-3f);
    c = SD_ADD(SD_MUL(c, z), 4.166664568298827e-2f);
    c = SD_ADD(SD_ADD(SD_MUL(SD_MUL(c, z), z), SD_MUL(z, -0.5f)), 1.0f);
    t = s;
    s = quarter & 1 ? c : s;
    c = quarter & 1 ? t : c;
    flip_s = (quarter & 2) << 30;
    flip_c = ((quarter + 1) & 2) << 30;
    memcpy(&bits, &s, sizeof(bits));
    bits ^= flip_s;
    memcpy(sine, &bits, sizeof(bits));
    memcpy(&bits, &c, sizeof(bits));
    bits ^= flip_c;
    memcpy(cosine, &bits, sizeof(bits));
}

/* sd_normal_pair - Box-Muller: sqrt(-2 ln u1) (cos, sin)(2 pi u2). */
SD_HOST_DEVICE void
sd_normal_pair(uint32_t n1, uint32_t n2, float *z0, float *z1)
{
    float r = SD_SQRT(SD_MUL(sd_log_uniform(n1), -2.0f)), s, c;

    sd_sincos_turns(n2, 0.5f, &s, &c);
    *z0 = SD_MUL(r, c);
    *z1 = SD_MUL(r, s);
}

/* sd_uniform - (n + 1/2) 2^-32 in float, below 1. */
SD_HOST_DEVICE float
sd_uniform(uint32_t n)
{
    float u = SD_MUL(SD_ADD((float)n, 0.5f), 0x1p-32f);

    return u < 1 ? u : 0x1.fffffep-1f;
}

#ifdef __cplusplus
}
#endif
#endif
