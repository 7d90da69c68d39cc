#include "random.h"

#include "diag.h"

enum { LANES = 128 };       /* blocks made at once: the inner loops are vectors */

/* blocks - words of LANES consecutive blocks, from number `first`, word by word: w[word][block]. */
static void
blocks(uint32_t w[4][LANES], uint32_t first, const uint32_t key[2], uint64_t sample, uint32_t step)
{
    uint32_t k0 = key[0], k1 = key[1];

    for (uint32_t i = 0; i < LANES; i++) {
        w[0][i] = first + i;
        w[1][i] = step;
        w[2][i] = (uint32_t)sample;
        w[3][i] = (uint32_t)(sample >> 32);
    }
    for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
#pragma omp simd
        for (int i = 0; i < LANES; i++)
            sd_philox_round(&w[0][i], &w[1][i], &w[2][i], &w[3][i], k0, k1);
    }
}

static void
check_count(const char *where, size_t n)
{
    if (n > (size_t)4 << 32)
        sd_bug(where, "%zu numbers of one stream, at most 2^34", n);
}

void
sd_random_normal(float *out, size_t n, uint64_t seed, uint32_t purpose, uint64_t sample, uint32_t step)
{
    uint32_t key[2], w[4][LANES];
    float z[4][LANES];

    check_count("random_normal", n);
    sd_philox_key(key, seed, purpose);
    for (size_t done = 0; done < n; done += 4 * LANES) {
        size_t count = n - done < 4 * LANES ? n - done : 4 * LANES;

        blocks(w, (uint32_t)(done / 4), key, sample, step);
        for (int p = 0; p < 4; p += 2) {
#pragma omp simd
            for (int i = 0; i < LANES; i++)
                sd_normal_pair(w[p][i], w[p + 1][i], &z[p][i], &z[p + 1][i]);
        }
        for (size_t i = 0; i < count; i++)
            out[done + i] = z[i % 4][i / 4];
    }
}

void
sd_random_uniform(float *out, size_t n, uint64_t seed, uint32_t purpose, uint64_t sample, uint32_t step)
{
    uint32_t key[2], w[4][LANES];

    check_count("random_uniform", n);
    sd_philox_key(key, seed, purpose);
    for (size_t done = 0; done < n; done += 4 * LANES) {
        size_t count = n - done < 4 * LANES ? n - done : 4 * LANES;

        blocks(w, (uint32_t)(done / 4), key, sample, step);
        for (size_t i = 0; i < count; i++)
            out[done + i] = sd_uniform(w[i % 4][i / 4]);
    }
}

/* Words of one stream, one after the other. */
struct stream {
    uint32_t key[2], words[4], block, step;
    uint64_t sample;
    int used;
};

static struct stream
stream_open(uint64_t seed, uint32_t purpose, uint64_t sample, uint32_t step)
{
    struct stream r = { .step = step, .sample = sample, .used = 4 };

    sd_philox_key(r.key, seed, purpose);
    return r;
}

static uint32_t
stream_word(struct stream *r)
{
    if (r->used == 4) {
        r->words[0] = r->block++;
        r->words[1] = r->step;
        r->words[2] = (uint32_t)r->sample;
        r->words[3] = (uint32_t)(r->sample >> 32);
        sd_philox(r->words, r->key);
        r->used = 0;
    }
    return r->words[r->used++];
}

/* Lemire, "Fast random integer generation in an interval" (2019): the high half of word * n, refused when the low half
 * lies in the 2^32 mod n values that would be drawn once too often. */
static uint32_t
stream_below(struct stream *r, uint32_t n)
{
    uint32_t surplus = (0u - n) % n;
    uint64_t product;

    do
        product = (uint64_t)stream_word(r) * n;
    while ((uint32_t)product < surplus);
    return (uint32_t)(product >> 32);
}

uint32_t
sd_random_below(uint32_t n, uint64_t seed, uint32_t purpose, uint64_t sample, uint32_t step)
{
    struct stream r = stream_open(seed, purpose, sample, step);

    if (n < 1)
        sd_bug("random_below", "an integer below 0");
    return stream_below(&r, n);
}

void
sd_random_permutation(uint32_t *out, uint32_t n, uint64_t seed, uint32_t purpose, uint64_t sample, uint32_t step)
{
    struct stream r = stream_open(seed, purpose, sample, step);

    for (uint32_t i = 0; i < n; i++)
        out[i] = i;
    for (uint32_t i = n; i > 1; i--) {
        uint32_t j = stream_below(&r, i), other = out[j];

        out[j] = out[i - 1];
        out[i - 1] = other;
    }
}

/* --- PyTorch: MT19937 (Matsumoto and Nishimura), and how ATen turns its words into normals --- */

void
sd_torch_generator_seed(struct sd_torch_generator *g, uint64_t seed)
{
    g->state[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < 624; i++)
        g->state[i] = 1812433253u * (g->state[i - 1] ^ (g->state[i - 1] >> 30)) + i;
    g->next = 624;
    g->has_spare = false;
}

uint32_t
sd_torch_word(struct sd_torch_generator *g)
{
    uint32_t y;

    if (g->next == 624) {
        for (int i = 0; i < 624; i++) {
            y = (g->state[i] & 0x80000000u) | (g->state[(i + 1) % 624] & 0x7fffffffu);
            g->state[i] = g->state[(i + 397) % 624] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
        }
        g->next = 0;
    }
    y = g->state[g->next++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

/* torch_sixteen - 16 words into 16 normals: u1 = 1 - u[i], u2 = u[i + 8]. */
static void
torch_sixteen(float out[16], const uint32_t words[16])
{
    for (int i = 0; i < 8; i++) {
        float u1 = (float)(0x1000000u - (words[i] & 0xffffffu)) * 0x1p-24f, s, c, r = sqrtf(-2 * sd_log(u1));

        sd_sincos_turns(words[i + 8] << 8, 0, &s, &c);      /* the low 24 bits, as a fraction of a turn */
        out[i] = r * c;
        out[i + 8] = r * s;
    }
}

static double
torch_double(struct sd_torch_generator *g)
{
    uint64_t high = sd_torch_word(g), low = sd_torch_word(g);

    return (double)((high << 32 | low) & (((uint64_t)1 << 53) - 1)) * 0x1p-53;
}

static void
torch_few(struct sd_torch_generator *g, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double u1, u2, r;

        if (g->has_spare) {
            g->has_spare = false;
            out[i] = (float)g->spare;
            continue;
        }
        u1 = torch_double(g);
        u2 = torch_double(g);
        r = sqrt(-2 * log1p(-u2));
        out[i] = (float)(r * cos(6.283185307179586 * u1));
        g->spare = r * sin(6.283185307179586 * u1);
        g->has_spare = true;
    }
}

void
sd_torch_randn(struct sd_torch_generator *g, float *out, size_t n)
{
    uint32_t words[16];

    if (n < 16) {
        torch_few(g, out, n);
        return;
    }
    for (size_t i = 0; i + 16 <= n; i += 16) {
        for (int k = 0; k < 16; k++)
            words[k] = sd_torch_word(g);
        torch_sixteen(out + i, words);
    }
    if (n % 16) {
        /* torch fills all n uniforms first: the words of the incomplete block are drawn, and then never used */
        for (size_t k = 0; k < n % 16; k++)
            sd_torch_word(g);
        for (int k = 0; k < 16; k++)
            words[k] = sd_torch_word(g);
        torch_sixteen(out + n - 16, words);
    }
}
