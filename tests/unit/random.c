/* Random numbers: known answers, accuracy of logarithm and sine, distributions, PyTorch's generator. */
#include "random.h"
#include "tests/check.h"

static const char torch_file[] = "tests/data/samplers/torch_randn.f32";

static void
known_answers(void)
{
    /* Random123, kat_vectors: counter, key, words of philox4x32-10 */
    static const uint32_t kat[3][10] = {
        { 0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 },
        { ~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd },
        { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb, 0x5001e420,
          0x24126ea1 } };

    for (int i = 0; i < 3; i++) {
        uint32_t c[4] = { kat[i][0], kat[i][1], kat[i][2], kat[i][3] }, key[2] = { kat[i][4], kat[i][5] };

        sd_philox(c, key);
        CHECK(memcmp(c, kat[i] + 6, sizeof(c)) == 0, "philox4x32-10, vector %d: %08x %08x %08x %08x", i, c[0], c[1],
              c[2], c[3]);
    }
}

/* What the fills give is part of every result: it may never change. */
static void
frozen_values(void)
{
    static const uint32_t bits[6] = { 0xbb52a7d7, 0x3f59a153, 0x3ed00504, 0x403101f6, 0x3f0d7b0a, 0x3e683aa1 };
    float z[1031], one[1031], u[4];
    uint32_t got[6], c[4] = { 1, 7, 0x89abcdef, 0x01234567 }, key[2];
    bool same = true;

    sd_random_normal(z, 1031, 5, SD_FOR_NOISE, 0x0123456789abcdef, 7);
    sd_philox_key(key, 5, SD_FOR_NOISE);
    sd_philox(c, key);
    sd_normal_pair(c[0], c[1], &one[0], &one[1]);
    CHECK(memcmp(one, z + 4, 8) == 0, "a fill is philox with counter (block, step, sample): %g %g", one[0], one[1]);
    memcpy(got, z, 16);
    memcpy(got + 4, z + 1030, 4);
    sd_random_uniform(u, 4, 5, SD_FOR_NOISE, 0x0123456789abcdef, 7);
    memcpy(got + 5, u + 3, 4);
    CHECK(memcmp(got, bits, sizeof(bits)) == 0, "the bits of a fill: %08x %08x %08x %08x %08x %08x", got[0], got[1],
          got[2], got[3], got[4], got[5]);
    for (size_t n = 1; n < 1031; n += 103) {
        sd_random_normal(one, n, 5, SD_FOR_NOISE, 0x0123456789abcdef, 7);
        same = same && memcmp(one, z, n * sizeof(float)) == 0;
    }
    CHECK(same, "a shorter fill is the beginning of a longer one");
    sd_philox_key(key, (uint64_t)3 << 32 | 5, SD_FOR_NOISE);
    CHECK(key[0] == 5 && key[1] == SD_FOR_NOISE + 3 * 0x9E3779B9u, "seeds above 2^32 count");
}

static double
ulps(float got, long double exact)
{
    int e;

    frexpl(exact, &e);
    return (double)(fabsl(got - exact) / ldexpl(1, e - 24));
}

static void
accuracy(void)
{
    double log_error = 0, turn_error = 0, normal_error = 0;
    const long double turn = 6.283185307179586476925286766559005768L;

    /* all magnitudes of n and of ~n, and the quarters' edges */
    for (uint32_t i = 0, w = 1; i < 3000000; i++) {
        uint32_t n, n2;
        float s, c, z0, z1;
        long double u, a, r;

        w = w * 1664525u + 1013904223u;
        n = w >> (i % 32);
        if (i & 32)
            n = ~n;
        n2 = n + ((i >> 6 & 7) << 29);
        u = (n + 0.5L) * 0x1p-32L;
        a = (n2 + 0.5L) * 0x1p-32L;
        if (a > 0.5L)
            a -= 1;
        r = sqrtl(-2 * (u > 0.5L ? log1pl(u - 1) : logl(u)));
        sd_sincos_turns(n2, 0.5f, &s, &c);
        sd_normal_pair(n, n2, &z0, &z1);
        log_error = fmax(log_error, ulps(sd_log_uniform(n), r * r / -2));
        /* sines of angles near half a turn through the other end, where long double still has digits */
        long double sine = fabsl(a) > 0.25L ? copysignl(sinl(turn * (0.5L - fabsl(a))), a) : sinl(turn * a);
        long double cosine = sinl(turn * (0.25L - fabsl(a)));
        turn_error = fmax(turn_error, fmax(ulps(s, sine), ulps(c, cosine)));
        normal_error = fmax(normal_error, fmax(ulps(z0, r * cosine), ulps(z1, r * sine)));
    }
    CHECK(log_error <= 2.5, "logarithm of a uniform: %.3f ulp", log_error);
    CHECK(turn_error <= 3, "sine and cosine: %.3f ulp", turn_error);
    CHECK(normal_error <= 4.5, "normal: %.3f ulp", normal_error);
    log_error = 0;
    for (uint32_t k = 1; k <= 0x1000000; k += 7)
        log_error = fmax(log_error, k == 0x1000000 ? 0 : ulps(sd_log((float)k * 0x1p-24f), logl(k * 0x1p-24L)));
    CHECK(log_error <= 1, "logarithm: %.3f ulp", log_error);
}

static int
by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

/* Moments within 4 standard errors, Kolmogorov-Smirnov at 0.001. */
static void
normal_statistics(void)
{
    enum { N = 1 << 20 };
    float *z = malloc(N * sizeof(float));
    double m1 = 0, m2 = 0, m3 = 0, m4 = 0, ks = 0, lag = 0;

    sd_random_normal(z, N, 0, SD_FOR_NOISE, 42, 0);
    for (int i = 0; i < N; i++) {
        double x = z[i];

        m1 += x, m2 += x * x, m3 += x * x * x, m4 += x * x * x * x;
        lag += i ? x * z[i - 1] : 0;
    }
    m1 /= N, m2 /= N, m3 /= N, m4 /= N, lag /= N;
    CHECK(fabs(m1) <= 4 * sqrt(1.0 / N), "mean %.2e", m1);
    CHECK(fabs(m2 - 1) <= 4 * sqrt(2.0 / N), "variance %.5f", m2);
    CHECK(fabs(m3) <= 4 * sqrt(15.0 / N), "third moment %.2e", m3);
    CHECK(fabs(m4 - 3) <= 4 * sqrt(96.0 / N), "fourth moment %.5f", m4);
    CHECK(fabs(lag) <= 4 * sqrt(1.0 / N), "covariance of neighbours %.2e", lag);
    qsort(z, N, sizeof(float), by_value);
    for (int i = 0; i < N; i++) {
        double p = 0.5 * erfc(-z[i] / sqrt(2));

        ks = fmax(ks, fmax((i + 1.0) / N - p, p - (double)i / N));
    }
    CHECK(ks * sqrt(N) <= 1.95, "Kolmogorov-Smirnov %.3f", ks * sqrt(N));
    CHECK(z[0] < -4 && z[N - 1] > 4, "the tails are there: %.3f %.3f", z[0], z[N - 1]);
    free(z);
}

/* Streams that differ in one part of their name share nothing. */
static void
independence(void)
{
    enum { N = 1 << 16 };
    static float a[N], b[N];
    static const char *const part[] = { "seed", "seed above 2^32", "purpose", "sample", "sample above 2^32", "step" };

    sd_random_normal(a, N, 1, 1, 1, 1);
    for (int p = 0; p < 6; p++) {
        double c = 0;

        sd_random_normal(b, N, p == 0 ? 2 : p == 1 ? ((uint64_t)1 << 32) + 1 : 1, p == 2 ? 2 : 1,
                         p == 3 ? 2 : p == 4 ? ((uint64_t)1 << 32) + 1 : 1, p == 5 ? 2 : 1);
        for (int i = 0; i < N; i++)
            c += (double)a[i] * b[i] / N;
        CHECK(fabs(c) <= 4 / sqrt(N), "another %s: covariance %.2e", part[p], c);
    }
}

static void
uniforms_and_integers(void)
{
    enum { N = 1 << 18 };
    static float u[N];
    double m1 = 0, m2 = 0, chi = 0;
    uint32_t count[1000] = { 0 }, big = 0, order[5];
    int orders[120] = { 0 };
    bool inside = true, permuted = true;

    sd_random_uniform(u, N, 3, SD_FOR_INIT, 0, 0);
    for (int i = 0; i < N; i++) {
        inside = inside && u[i] > 0 && u[i] < 1;
        m1 += u[i] / (double)N, m2 += (double)u[i] * u[i] / N;
    }
    CHECK(inside && sd_uniform(0) > 0 && sd_uniform(~0u) < 1, "uniforms lie inside (0, 1): %a %a", sd_uniform(0),
          sd_uniform(~0u));
    CHECK(fabs(m1 - 0.5) <= 4 * sqrt(1 / 12.0 / N) && fabs(m2 - 1 / 3.0) <= 4 * sqrt(4 / 45.0 / N),
          "uniform: %.5f %.5f", m1, m2);
    for (uint32_t i = 0; i < N; i++)
        count[sd_random_below(1000, 0, SD_FOR_TIMESTEP, i, 9)]++;
    for (int i = 0; i < 1000; i++)
        chi += (count[i] - N / 1000.0) * (count[i] - N / 1000.0) / (N / 1000.0);
    CHECK(fabs(chi - 999) <= 4 * sqrt(2 * 999), "timesteps: chi^2 %.1f of 999", chi);
    /* n = 3 * 2^30: with rejection left out, the multiples of 3 come twice as often */
    for (uint32_t i = 0; i < 30000; i++)
        big += sd_random_below(0xc0000000u, 1, SD_FOR_TIMESTEP, i, 0) % 3 == 0;
    CHECK(fabs(big - 10000.0) <= 4 * sqrt(30000 * 2 / 9.0), "no bias below 3 * 2^30: %u of 30000", big);
    CHECK(sd_random_below(1, 0, SD_FOR_TIMESTEP, 0, 0) == 0, "below 1 is 0");
    for (uint32_t epoch = 0; epoch < 60000; epoch++) {
        int rank = 0;
        unsigned seen = 0;

        sd_random_permutation(order, 5, 7, SD_FOR_ORDER, 0, epoch);
        for (int i = 0; i < 5; i++) {
            int smaller = 0;

            seen |= 1u << order[i];
            for (int j = i + 1; j < 5; j++)
                smaller += order[j] < order[i];
            rank = rank * (5 - i) + smaller;
        }
        permuted = permuted && seen == 31;
        orders[rank]++;
    }
    chi = 0;
    for (int i = 0; i < 120; i++)
        chi += (orders[i] - 500.0) * (orders[i] - 500.0) / 500;
    CHECK(permuted && fabs(chi - 119) <= 4 * sqrt(2 * 119), "all 120 orders of five: chi^2 %.1f of 119", chi);
}

/* Stored values of torch.randn, several calls of one generator; their order is that of
 * tests/reference/samplers.py. */
static void
torch_values(void)
{
    static const size_t sizes[] = { 5, 16, 17, 3, 4 * 64 * 64, 7, 4 * 96 * 72, 15, 31, 2 };
    static const uint64_t seeds[] = { 0, 42, (uint64_t)-3 };
    static const double first[] = { 1.5409961, -0.2934289, -2.1787894, 0.5684313, -1.0845224 };
    static float got[4 * 96 * 72], want[4 * 96 * 72];
    struct sd_torch_generator g;
    FILE *f = fopen(torch_file, "rb");
    double worst = 0;

    sd_torch_generator_seed(&g, 0);
    uint32_t a = sd_torch_word(&g), b = sd_torch_word(&g), c = sd_torch_word(&g);
    CHECK(a == 2357136044u && b == 2546248239u && c == 3071714933u, "MT19937, seed 0: %u %u %u", a, b, c);
    sd_torch_generator_seed(&g, 0);
    sd_torch_randn(&g, got, 5);
    for (int i = 0; i < 5; i++)
        worst = fmax(worst, fabs(got[i] - first[i]));
    CHECK(worst <= 6e-8, "torch.randn(5), seed 0: %.1e", worst);
    if (!CHECK(f != NULL, "%s is there", torch_file))
        return;
    for (int s = 0; s < 3; s++) {
        sd_torch_generator_seed(&g, seeds[s]);
        for (int k = 0; k < 10; k++) {
            size_t n = sizes[k], stored = 0, stride = n > 100 ? 37 : 1;

            worst = 0;
            sd_torch_randn(&g, got, n);
            /* all of a short one; of a long one every 37th and the last 16 */
            for (size_t i = 0; i < n; i++)
                if (i % stride == 0 || i + 16 >= n) {
                    if (fread(&want[stored], sizeof(float), 1, f) != 1)
                        want[stored] = NAN;
                    worst = fabs(got[i] - want[stored]) <= worst ? worst : fabs(got[i] - want[stored]);
                    stored++;
                }
            CHECK(worst <= 2e-6, "torch.randn(%zu), seed %lld, call %d: %.1e", n, (long long)seeds[s], k, worst);
        }
    }
    CHECK(getc(f) == EOF, "%s: read to its end", torch_file);
    fclose(f);
}

int
main(void)
{
    known_answers();
    frozen_values();
    accuracy();
    normal_statistics();
    independence();
    uniforms_and_integers();
    torch_values();
    return check_done();
}
