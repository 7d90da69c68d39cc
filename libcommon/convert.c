/* convert.c - floats of other widths to float and back: bit arithmetic without branches, which compilers turn into
 * vector code.  Correct for subnormals, infinities and NaN; to nearest, ties to even. */
#include "safetensors.h"

#include <string.h>

enum { PIECE = 1 << 16 };       /* numbers per piece of parallel work */

#if defined(__x86_64__) && defined(__GNUC__)
#define WIDE __attribute__((target("avx2")))
#else
#define WIDE
#endif

static inline uint32_t
bits_of(float x)
{
    uint32_t u;

    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float
float_of(uint32_t u)
{
    float x;

    memcpy(&x, &u, sizeof x);
    return x;
}

/* a where the condition holds, else b; a mask, because compilers make branches of the obvious. */
static inline uint32_t
choose(int condition, uint32_t a, uint32_t b)
{
    const uint32_t mask = 0u - (uint32_t)condition;

    return (a & mask) | (b & ~mask);
}

static inline float
f16_to_f32(uint16_t h)
{
    const uint32_t magnitude = (h & 0x7fffu) << 13, exponent = magnitude & 0x0f800000;
    const uint32_t normal = magnitude + ((127 - 15) << 23);
    const uint32_t special = magnitude + ((255 - 31) << 23);                    /* infinity, NaN */
    const uint32_t tiny = bits_of(float_of(magnitude + ((127 - 14) << 23)) - float_of((127 - 14) << 23));

    return float_of(choose(exponent == 0x0f800000, special, choose(exponent == 0, tiny, normal))
                    | (uint32_t)(h & 0x8000) << 16);
}

static inline uint16_t
f32_to_f16(float x)
{
    const uint32_t u = bits_of(x), magnitude = u & 0x7fffffff, sign = u >> 16 & 0x8000;
    const uint32_t magic = (127 - 15 + 23 - 10 + 1) << 23;
    const uint32_t normal = (magnitude - ((127 - 15) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    const uint32_t tiny = bits_of(float_of(magnitude) + float_of(magic)) - magic;       /* the addition rounds */
    const uint32_t special = choose(magnitude > 0x7f800000, 0x7e00 | (magnitude >> 13 & 0x3ff), 0x7c00);
    const uint32_t h = choose(magnitude >= (127 + 16) << 23, special,
                              choose(magnitude < (127 - 14) << 23, tiny, normal));

    return (uint16_t)(h | sign);
}

static inline uint16_t
f32_to_bf16(float x)
{
    const uint32_t u = bits_of(x), rounded = u + 0x7fff + (u >> 16 & 1);

    return (uint16_t)(choose((u & 0x7fffffff) > 0x7f800000, u | 0x400000, rounded) >> 16);
}

static inline float
bf16_to_f32(uint16_t h)
{
    return float_of((uint32_t)h << 16);
}

/* One piece, once for any machine and once with wider vectors. */
#define IN(name, attribute, value_of)                                                                               \
    attribute static void                                                                                           \
    name(float *restrict to, const char *restrict from, size_t n)                                                   \
    {                                                                                                               \
        _Pragma("omp simd")                                                                                         \
        for (size_t i = 0; i < n; i++) {                                                                            \
            uint16_t h;                                                                                             \
                                                                                                                    \
            memcpy(&h, from + 2 * i, 2);                                                                            \
            to[i] = value_of(h);                                                                                    \
        }                                                                                                           \
    }
#define OUT(name, attribute, rounded)                                                                               \
    attribute static void                                                                                           \
    name(char *restrict to, const float *restrict from, size_t n)                                                   \
    {                                                                                                               \
        _Pragma("omp simd")                                                                                         \
        for (size_t i = 0; i < n; i++) {                                                                            \
            const uint16_t h = rounded(from[i]);                                                                    \
                                                                                                                    \
            memcpy(to + 2 * i, &h, 2);                                                                              \
        }                                                                                                           \
    }
#define LOOPS(suffix, attribute)                                                                                    \
    IN(f16_in_##suffix, attribute, f16_to_f32)                                                                      \
    IN(bf16_in_##suffix, attribute, bf16_to_f32)                                                                    \
    OUT(f16_out_##suffix, attribute, f32_to_f16)                                                                    \
    OUT(bf16_out_##suffix, attribute, f32_to_bf16)
LOOPS(any, )
LOOPS(wide, WIDE)

static bool
has_wide(void)
{
#if defined(__x86_64__) && defined(__GNUC__)
    return __builtin_cpu_supports("avx2");
#else
    return false;
#endif
}

static void
piece_in(float *to, const char *from, enum sd_dtype dtype, size_t n, bool wide)
{
    switch (dtype) {
    case SD_F16: (wide ? f16_in_wide : f16_in_any)(to, from, n); break;
    case SD_BF16: (wide ? bf16_in_wide : bf16_in_any)(to, from, n); break;
    case SD_F32: memcpy(to, from, n * sizeof *to); break;
    default:
        for (size_t i = 0; i < n; i++) {
            double x;

            memcpy(&x, from + 8 * i, 8);
            to[i] = (float)x;
        }
    }
}

static void
piece_out(char *to, enum sd_dtype dtype, const float *from, size_t n, bool wide)
{
    switch (dtype) {
    case SD_F16: (wide ? f16_out_wide : f16_out_any)(to, from, n); break;
    case SD_BF16: (wide ? bf16_out_wide : bf16_out_any)(to, from, n); break;
    case SD_F32: memcpy(to, from, n * sizeof *from); break;
    default:
        for (size_t i = 0; i < n; i++) {
            const double x = (double)from[i];

            memcpy(to + 8 * i, &x, 8);
        }
    }
}

static bool
is_float(enum sd_dtype dtype)
{
    return dtype == SD_F64 || dtype == SD_F32 || dtype == SD_F16 || dtype == SD_BF16;
}

int
sd_to_f32(float *to, const void *from, enum sd_dtype dtype, size_t n)
{
    const size_t size = sd_dtype_size(dtype), pieces = (n + PIECE - 1) / PIECE;
    const bool wide = has_wide();

    if (!is_float(dtype))
        return sd_fail("dtype %s, expected F64, F32, F16 or BF16", sd_dtype_name(dtype));
#pragma omp parallel for if (pieces > 8)
    for (size_t i = 0; i < pieces; i++)
        piece_in(to + i * PIECE, (const char *)from + i * PIECE * size, dtype, i + 1 < pieces ? PIECE : n - i * PIECE,
                 wide);
    return 0;
}

int
sd_from_f32(void *to, enum sd_dtype dtype, const float *from, size_t n)
{
    const size_t size = sd_dtype_size(dtype), pieces = (n + PIECE - 1) / PIECE;
    const bool wide = has_wide();

    if (!is_float(dtype))
        return sd_fail("dtype %s, expected F64, F32, F16 or BF16", sd_dtype_name(dtype));
#pragma omp parallel for if (pieces > 8)
    for (size_t i = 0; i < pieces; i++)
        piece_out((char *)to + i * PIECE * size, dtype, from + i * PIECE, i + 1 < pieces ? PIECE : n - i * PIECE, wide);
    return 0;
}
