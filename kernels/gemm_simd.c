/* gemm_simd.c - the inner loop of every matrix product of our own: a few gathered rows times one packed panel, sums in
 * registers.
 * Each sum runs over k in ascending order in one chain, so neither blocking nor threads can change its bits. */
#include "gemm.h"
#include "simd.h"

#if defined(__AVX512F__)
enum { MR = 8, NV = 3 };        /* 8 x 3 sums, 3 weights and a broadcast in 32 registers */
#else
enum { MR = 6, NV = 2 };        /* 6 x 2, 2 and one in 16 */
#endif

/* nv: vectors in this panel's width; a constant in each caller, so that all loops unroll */
SD_INLINE void
tile(const struct gemm_tile *t, const int nv)
{
    vf sum[MR][NV];
    const float *panel = t->panel;

    SD_UNROLL
    for (int i = 0; i < MR; i++) {
        SD_UNROLL
        for (int j = 0; j < nv; j++)
            sum[i][j] = t->start && i < t->rows ? v_get(t->start + t->at[i] + j * VW, t->columns - j * VW) : v_zero();
    }
    for (int s = 0; s < t->segments; s++) {
        const float *row[MR];

        SD_UNROLL
        for (int i = 0; i < MR; i++)
            row[i] = t->x[s * GEMM_ROWS + i] + t->skip;
        for (int64_t k = 0; k < t->depth; k++, panel += nv * VW) {
            vf w[NV];

            SD_UNROLL
            for (int j = 0; j < nv; j++)
                w[j] = v_load(panel + j * VW);
            SD_UNROLL
            for (int i = 0; i < MR; i++) {
                vf a = v_set(row[i][k]);

                SD_UNROLL
                for (int j = 0; j < nv; j++)
                    sum[i][j] = v_fma(a, w[j], sum[i][j]);
            }
        }
    }
    SD_UNROLL
    for (int i = 0; i < MR; i++) {
        if (i >= t->rows)
            break;
        SD_UNROLL
        for (int j = 0; j < nv; j++) {
            vf v = sum[i][j];

            if (t->bias)
                v += v_get(t->bias + j * VW, t->columns - j * VW);
            v_put(t->out + t->at[i] + j * VW, v, t->columns - j * VW);
        }
    }
}

void
SD_V(gemm_tile)(const struct gemm_tile *t)
{
    int nv = (t->columns + VW - 1) / VW;

    if (nv == 1)
        tile(t, 1);
    else if (nv == 2)
        tile(t, 2);
    else
        tile(t, NV);
}

struct gemm_sizes
SD_V(gemm_sizes)(void)
{
    return (struct gemm_sizes){ MR, NV * VW, VW };
}

/* -- panels from weights as the file has them ---------------------------------------------------------------------- */

/* F16 to f32, exactly; of the first n lanes */
#if defined(__AVX512F__)
SD_INLINE __m256i
halves(const void *p, int n)
{
    return n >= VW ? _mm256_loadu_si256(p) : _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
}
SD_INLINE vf from_f16(const void *p, int n) { return (vf)_mm512_cvtph_ps(halves(p, n)); }
SD_INLINE vf from_bf16(const void *p, int n) { return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves(p, n)), 16); }
SD_INLINE vf
from_f32(const void *p, int n)
{
    return n >= VW ? (vf)_mm512_loadu_ps(p) : (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
#else
SD_INLINE __m128i
halves(const void *p, int n)
{
    __m128i v = _mm_setzero_si128();

    memcpy(&v, p, (size_t)(n >= VW ? VW : n) * 2);
    return v;
}
SD_INLINE vf
from_f32(const void *p, int n)
{
    vf v = { 0 };

    memcpy(&v, p, (size_t)(n >= VW ? VW : n) * 4);
    return v;
}
#if defined(__AVX2__)
SD_INLINE vf from_f16(const void *p, int n) { return (vf)_mm256_cvtph_ps(halves(p, n)); }
SD_INLINE vf from_bf16(const void *p, int n) { return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves(p, n)), 16); }
#else
SD_INLINE vf
from_f16(const void *p, int n)
{
    vi h = (vi)_mm_cvtepu16_epi32(halves(p, n)), e = h & 0x7c00, sign = (h & 0x8000) << 16, m = h & 0x3ff;
    vf tiny = __builtin_convertvector(m, vf) * v_set(0x1p-24f);     /* no subnormal numbers on the way */
    vi bits = ((h & 0x7fff) << 13) + (112 << 23) + ((e == 0x7c00) & 112 << 23);

    return (vf)((vi)v_select(e == 0, tiny, (vf)bits) | sign);
}
SD_INLINE vf from_bf16(const void *p, int n) { return (vf)((vi)_mm_cvtepu16_epi32(halves(p, n)) << 16); }
#endif
#endif

/* dtype is a constant in each caller */
SD_INLINE vf
from(const void *p, int64_t at, int64_t n, const enum sd_dtype dtype)
{
    int count = n < VW ? (int)n : VW;

    if (dtype == SD_F16)
        return from_f16((const uint16_t *)p + at, count);
    if (dtype == SD_BF16)
        return from_bf16((const uint16_t *)p + at, count);
    return from_f32((const float *)p + at, count);
}

/* m[i][j] = m[j][i] */
#if defined(__AVX512F__)
SD_INLINE void
turn(vf m[VW])
{
    __m512 a[VW], b[VW];

    SD_UNROLL
    for (int i = 0; i < VW; i += 2) {
        a[i] = _mm512_unpacklo_ps((__m512)m[i], (__m512)m[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps((__m512)m[i], (__m512)m[i + 1]);
    }
    SD_UNROLL
    for (int i = 0; i < VW; i += 4)         /* b[i + c]: column c of each lane, rows i .. i + 3 */
        for (int h = 0; h < 2; h++) {
            __m512d x = (__m512d)a[i + h], y = (__m512d)a[i + 2 + h];

            b[i + 2 * h] = (__m512)_mm512_unpacklo_pd(x, y);
            b[i + 2 * h + 1] = (__m512)_mm512_unpackhi_pd(x, y);
        }
    SD_UNROLL
    for (int c = 0; c < 4; c++) {
        __m512 even0 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88), odd0 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
        __m512 even1 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88),
            odd1 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);

        m[c] = (vf)_mm512_shuffle_f32x4(even0, even1, 0x88);
        m[8 + c] = (vf)_mm512_shuffle_f32x4(even0, even1, 0xdd);
        m[4 + c] = (vf)_mm512_shuffle_f32x4(odd0, odd1, 0x88);
        m[12 + c] = (vf)_mm512_shuffle_f32x4(odd0, odd1, 0xdd);
    }
}
#elif defined(__AVX2__)
SD_INLINE void
turn(vf m[VW])
{
    __m256 b[VW];

    SD_UNROLL
    for (int i = 0; i < VW; i += 4) {
        __m256d a[4] = { (__m256d)_mm256_unpacklo_ps((__m256)m[i], (__m256)m[i + 1]),
                         (__m256d)_mm256_unpackhi_ps((__m256)m[i], (__m256)m[i + 1]),
                         (__m256d)_mm256_unpacklo_ps((__m256)m[i + 2], (__m256)m[i + 3]),
                         (__m256d)_mm256_unpackhi_ps((__m256)m[i + 2], (__m256)m[i + 3]) };

        for (int h = 0; h < 2; h++) {
            b[i + 2 * h] = (__m256)_mm256_unpacklo_pd(a[h], a[2 + h]);
            b[i + 2 * h + 1] = (__m256)_mm256_unpackhi_pd(a[h], a[2 + h]);
        }
    }
    SD_UNROLL
    for (int c = 0; c < 4; c++) {
        m[c] = (vf)_mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
        m[4 + c] = (vf)_mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
    }
}
#else
SD_INLINE void
turn(vf m[VW])
{
    _MM_TRANSPOSE4_PS(m[0], m[1], m[2], m[3]);
}
#endif

/* Ask for memory that lies in many short pieces before it is wanted. */
SD_INLINE void
fetch(const void *values, int64_t begin, int64_t count, const enum sd_dtype dtype)
{
    const char *p = (const char *)values + begin * (dtype == SD_F32 ? 4 : 2),
        *end = p + count * (dtype == SD_F32 ? 4 : 2);

    for (; p < end; p += 64)
        __builtin_prefetch(p);
}

enum { AHEAD = 4, ROWS_AHEAD = 64, ALONG = 128 };       /* pieces; short rows; numbers of a row */

SD_INLINE void
turn_all(float *to, const int64_t *at, const void *values, const struct gemm_turn *h, const enum sd_dtype dtype)
{
    int64_t begin = h->begin;

    for (int64_t o = 0; o < h->times; o++, to += h->to_step, begin += h->from_step) {
        if (o + AHEAD < h->times)
            fetch(values, begin + AHEAD * h->from_step, h->rows * h->step, dtype);
        for (int r = 0; r < h->rows; r += VW)
            for (int64_t j = 0; j < h->count; j += VW) {
                int64_t left = h->count - j;
                vf m[VW];

                for (int i = 0; i < (h->next ? VW : 0); i++)
                    __builtin_prefetch((const char *)values + (begin + (r + i) * h->step + j + h->next) *
                                       (dtype == SD_F32 ? 4 : 2), 0, 2);
                SD_UNROLL
                for (int i = 0; i < VW; i++)
                    m[i] = r + i < h->rows ? from(values, begin + (r + i) * h->step + j, left, dtype) : v_zero();
                turn(m);
                SD_UNROLL
                for (int i = 0; i < VW; i++)
                    if (i < left && at && at[j + i] >= 0)
                        v_store(to + at[j + i] + r, m[i]);
                    else if (i < left && !at)
                        v_store(to + (j + i) * h->to_step + r, m[i]);
            }
    }
}

void
SD_V(gemm_turn)(float *to, const int64_t *at, const struct gemm_weight *w, const struct gemm_turn *how)
{
    if (w->dtype == SD_F16)
        turn_all(to, at, w->values, how, SD_F16);
    else if (w->dtype == SD_BF16)
        turn_all(to, at, w->values, how, SD_BF16);
    else
        turn_all(to, at, w->values, how, SD_F32);
}

SD_INLINE void
copy_all(float *to, int wide, const void *values, int64_t begin, int64_t step, int64_t rows, int count,
         const enum sd_dtype dtype)
{
    for (int64_t r = 0; r < rows; r++, to += wide, begin += step) {
        if (r + ROWS_AHEAD < rows)
            fetch(values, begin + ROWS_AHEAD * step, count, dtype);
        for (int j = 0; j < wide; j += VW)
            v_store(to + j, from(values, begin + j, count - j, dtype));
    }
}

void
SD_V(gemm_copy)(float *to, int wide, const struct gemm_weight *w, int64_t begin, int64_t step, int64_t rows, int count)
{
    if (w->dtype == SD_F16)
        copy_all(to, wide, w->values, begin, step, rows, count, SD_F16);
    else if (w->dtype == SD_BF16)
        copy_all(to, wide, w->values, begin, step, rows, count, SD_BF16);
    else
        copy_all(to, wide, w->values, begin, step, rows, count, SD_F32);
}

void
SD_V(gemm_sum)(float *to, const float *elements, int64_t step, const int *which, int count, int64_t wide)
{
    for (int64_t i = 0; i < wide; i += VW) {
        vf sum = v_zero();

        for (int e = 0; e < count; e++)
            sum += v_load(elements + which[e] * step + i);
        v_store(to + i, sum);
    }
}

/* -- bf16 ---------------------------------------------------------------------------------------------------------- */

#if defined(__AVX512F__)

SD_BF16_CODE SD_INLINE void
tile_bf16(const struct gemm_tile *t, const int nv)
{
    __m512 sum[MR][NV];
    const float *panel = t->panel;

    SD_UNROLL
    for (int i = 0; i < MR; i++) {
        SD_UNROLL
        for (int j = 0; j < nv; j++)
            sum[i][j] = (__m512)(t->start && i < t->rows ? v_get(t->start + t->at[i] + j * VW, t->columns - j * VW)
                                 : v_zero());
    }
    for (int s = 0; s < t->segments; s++) {
        const float *row[MR];

        SD_UNROLL
        for (int i = 0; i < MR; i++)
            row[i] = t->x[s * GEMM_ROWS + i] + t->skip;
        for (int64_t k = 0; k < t->depth; k++, panel += nv * VW) {
            __m512bh w[NV];

            SD_UNROLL
            for (int j = 0; j < nv; j++)
                w[j] = (__m512bh)v_load(panel + j * VW);
            SD_UNROLL
            for (int i = 0; i < MR; i++) {
                __m512bh a = (__m512bh)v_set(row[i][k]);

                SD_UNROLL
                for (int j = 0; j < nv; j++)
                    sum[i][j] = _mm512_dpbf16_ps(sum[i][j], a, w[j]);
            }
        }
    }
    SD_UNROLL
    for (int i = 0; i < MR; i++) {
        if (i >= t->rows)
            break;
        SD_UNROLL
        for (int j = 0; j < nv; j++) {
            vf v = (vf)sum[i][j];

            if (t->bias)
                v += v_get(t->bias + j * VW, t->columns - j * VW);
            v_put(t->out + t->at[i] + j * VW, v, t->columns - j * VW);
        }
    }
}

SD_BF16_CODE void
gemm_tile_bf16(const struct gemm_tile *t)
{
    int nv = (t->columns + VW - 1) / VW;

    if (nv == 1)
        tile_bf16(t, 1);
    else if (nv == 2)
        tile_bf16(t, 2);
    else
        tile_bf16(t, NV);
}

SD_BF16_CODE void
gemm_pair(float *to, const float *from, int64_t count)
{
    for (int64_t i = 0; i < count; i += 2 * VW) {
        vf a = v_get(from + i, count - i), b = count - i > VW ? v_get(from + i + VW, count - i - VW) : v_zero();

        v_put(to + i / 2, v_pair(a, b), (count - i + 1) / 2);
    }
}

SD_BF16_CODE void
gemm_weave(float *to, const float *a, const float *b, int64_t count, int64_t wide)
{
    for (int64_t i = 0; i < wide; i += VW) {
        bool there = i < count;

        v_store(to + i, v_weave(a && there ? v_get(a + i, count - i) : v_zero(),
                                b && there ? v_get(b + i, count - i) : v_zero()));
    }
}

SD_BF16_CODE SD_INLINE void
turn_pairs_all(float *to, int wide, const void *values, int64_t begin, int64_t step, int rows, int64_t count,
               const enum sd_dtype dtype)
{
    for (int64_t j = 0; j < count; j += 2 * VW)
        for (int r = 0; r < wide; r += VW) {
            int64_t left = count - j;
            vf m[VW];

            SD_UNROLL
            for (int i = 0; i < VW; i++) {
                int64_t at = begin + (r + i) * step + j;

                __builtin_prefetch((const char *)values + (at + ALONG) * (dtype == SD_F32 ? 4 : 2), 0, 2);
                m[i] = r + i >= rows ? v_zero()
                                     : v_pair(from(values, at, left, dtype),
                                              left > VW ? from(values, at + VW, left - VW, dtype) : v_zero());
            }
            turn(m);
            SD_UNROLL
            for (int i = 0; i < VW; i++)
                if (2 * i < left)
                    v_store(to + (j / 2 + i) * wide + r, m[i]);
        }
}

SD_BF16_CODE void
gemm_turn_pairs(float *to, int wide, const struct gemm_weight *w, int64_t begin, int64_t step, int rows, int64_t count)
{
    if (w->dtype == SD_F16)
        turn_pairs_all(to, wide, w->values, begin, step, rows, count, SD_F16);
    else if (w->dtype == SD_BF16)
        turn_pairs_all(to, wide, w->values, begin, step, rows, count, SD_BF16);
    else
        turn_pairs_all(to, wide, w->values, begin, step, rows, count, SD_F32);
}

SD_BF16_CODE SD_INLINE void
copy_pairs_all(float *to, int wide, const void *values, int64_t begin, int64_t step, int64_t rows, int count,
               const enum sd_dtype dtype)
{
    for (int64_t r = 0; r < rows; r += 2, to += wide, begin += 2 * step) {
        if (r + ROWS_AHEAD < rows)
            fetch(values, begin + ROWS_AHEAD * step, count, dtype);
        if (r + ROWS_AHEAD + 1 < rows)
            fetch(values, begin + (ROWS_AHEAD + 1) * step, count, dtype);
        for (int j = 0; j < wide; j += VW)
            v_store(to + j, v_weave(from(values, begin + j, count - j, dtype),
                                    r + 1 < rows ? from(values, begin + step + j, count - j, dtype) : v_zero()));
    }
}

SD_BF16_CODE void
gemm_copy_pairs(float *to, int wide, const struct gemm_weight *w, int64_t begin, int64_t step, int64_t rows, int count)
{
    if (w->dtype == SD_F16)
        copy_pairs_all(to, wide, w->values, begin, step, rows, count, SD_F16);
    else if (w->dtype == SD_BF16)
        copy_pairs_all(to, wide, w->values, begin, step, rows, count, SD_BF16);
    else
        copy_pairs_all(to, wide, w->values, begin, step, rows, count, SD_F32);
}

#endif
