/* simd.h - which vector code runs, and the vectors it is written in.
 *
 * One rule: <op>_simd.c is one source in compiler vector types, compiled for SSE4, AVX2 and AVX-512; the C loops of
 * <op>.c define what it computes.  The second half is seen by those sources alone. */
#ifndef SD_SIMD_H
#define SD_SIMD_H

#include "op.h"

/* SD_SIMD(f) - first line of a kernel: where fast paths may run, the vector twin f does the work. */
#if SD_REAL_IS_FLOAT
#define SD_SIMD(f)  do { if (sd_fast()) { SD_V_CALL(f)(n); return; } } while (0)
#else
#define SD_SIMD(f)  ((void)0)
#endif

enum { SD_CHUNK = 8192 };       /* elements per parallel piece of elementwise loops: cuts depend on the shape alone */

SD_V_DECLARE(void, silu_forward, (struct sd_node *n));
SD_V_DECLARE(void, silu_backward, (struct sd_node *n));
SD_V_DECLARE(void, gelu_forward, (struct sd_node *n));
SD_V_DECLARE(void, gelu_backward, (struct sd_node *n));
SD_V_DECLARE(void, quick_gelu_forward, (struct sd_node *n));
SD_V_DECLARE(void, quick_gelu_backward, (struct sd_node *n));
SD_V_DECLARE(void, geglu_forward, (struct sd_node *n));
SD_V_DECLARE(void, geglu_backward, (struct sd_node *n));
SD_V_DECLARE(void, group_norm_forward, (struct sd_node *n));
SD_V_DECLARE(void, group_norm_backward, (struct sd_node *n));
SD_V_DECLARE(void, layer_norm_forward, (struct sd_node *n));
SD_V_DECLARE(void, layer_norm_backward, (struct sd_node *n));
SD_V_DECLARE(void, attention_forward, (struct sd_node *n));
SD_V_DECLARE(void, attention_backward, (struct sd_node *n));
void attention_forward_bf16(struct sd_node *n);
/* sd_v_functions - out[i] = exp, exp2_down, erf (which = 0, 1, 2) of in[i], count a multiple of 16: for tests of their
 * error. */
SD_V_DECLARE(void, sd_v_functions, (float *out, const float *in, size_t count, int which));

#ifdef SD_ISA
#include <immintrin.h>

#if defined(__AVX512F__)
enum { VW = 16 };
#elif defined(__AVX2__)
enum { VW = 8 };
#else
enum { VW = 4 };
#endif

#define SD_INLINE static inline __attribute__((always_inline, unused))
#ifdef __clang__
#define SD_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SD_UNROLL _Pragma("GCC unroll 16")
#endif

typedef float vf __attribute__((vector_size(VW * 4)));
typedef int vi __attribute__((vector_size(VW * 4)));
typedef float vf_any __attribute__((vector_size(VW * 4), aligned(4), may_alias));

SD_INLINE vf v_load(const float *p) { return *(const vf_any *)p; }
SD_INLINE void v_store(float *p, vf v) { *(vf_any *)p = v; }

/* v_load_n, v_store_n: the first n < VW lanes; the other lanes read as zero and are not written.
 * v_min, v_max: NaN in the second operand stays NaN.  v_pow2: p * 2^k, k whole, -126..127. */
#if defined(__AVX512F__)
SD_INLINE vf v_set(float x) { return (vf)_mm512_set1_ps(x); }
SD_INLINE vf v_fma(vf a, vf b, vf c) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
SD_INLINE vf v_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
SD_INLINE vf v_min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
SD_INLINE vf v_round(vf a) { return (vf)_mm512_roundscale_ps((__m512)a, 0); }
SD_INLINE vf v_pow2(vf p, vf k) { return (vf)_mm512_scalef_ps((__m512)p, (__m512)k); }
SD_INLINE vf v_sqrt(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
SD_INLINE vf v_load_n(const float *p, int n) { return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
SD_INLINE void v_store_n(float *p, vf v, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v); }
#elif defined(__AVX2__)
SD_INLINE vf v_set(float x) { return (vf)_mm256_set1_ps(x); }
SD_INLINE vf v_fma(vf a, vf b, vf c) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
SD_INLINE vf v_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
SD_INLINE vf v_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
SD_INLINE vf v_round(vf a) { return (vf)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
SD_INLINE vf
v_pow2(vf p, vf k)
{
    return p * (vf)(((vi)_mm256_cvtps_epi32((__m256)k) + 127) << 23);
}
SD_INLINE vf v_sqrt(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
SD_INLINE __m256i v_first(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n),
                                                             _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
SD_INLINE vf v_load_n(const float *p, int n) { return (vf)_mm256_maskload_ps(p, v_first(n)); }
SD_INLINE void v_store_n(float *p, vf v, int n) { _mm256_maskstore_ps(p, v_first(n), (__m256)v); }
#else
SD_INLINE vf v_set(float x) { return (vf)_mm_set1_ps(x); }
SD_INLINE vf v_fma(vf a, vf b, vf c) { return a * b + c; }
SD_INLINE vf v_max(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
SD_INLINE vf v_min(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
SD_INLINE vf v_round(vf a) { return (vf)_mm_round_ps((__m128)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
SD_INLINE vf
v_pow2(vf p, vf k)
{
    return p * (vf)(((vi)_mm_cvtps_epi32((__m128)k) + 127) << 23);
}
SD_INLINE vf v_sqrt(vf a) { return (vf)_mm_sqrt_ps((__m128)a); }
SD_INLINE vf
v_load_n(const float *p, int n)
{
    vf v = { 0 };

    memcpy(&v, p, (size_t)n * 4);
    return v;
}
SD_INLINE void v_store_n(float *p, vf v, int n) { memcpy(p, &v, (size_t)n * 4); }
#endif

SD_INLINE vf v_zero(void) { return v_set(0); }
SD_INLINE vf v_select(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
SD_INLINE vf v_abs(vf a) { return (vf)((vi)a & 0x7fffffff); }
SD_INLINE vf v_sign_of(vf a, vf sign) { return (vf)(((vi)a & 0x7fffffff) | ((vi)sign & (int)0x80000000)); }

/* v_get, v_put: lanes i .. of p, of which `left` are there. */
SD_INLINE vf v_get(const float *p, int64_t left) { return left >= VW ? v_load(p) : v_load_n(p, (int)left); }
SD_INLINE void
v_put(float *p, vf v, int64_t left)
{
    if (left >= VW)
        v_store(p, v);
    else
        v_store_n(p, v, (int)left);
}

/* v_keep - lanes beyond the first `left` become zero. */
SD_INLINE vf
v_keep(vf v, int64_t left)
{
    float a[VW];

    if (left >= VW)
        return v;
    v_store(a, v);
    return v_load_n(a, (int)left);
}

/* v_sum - of all lanes, in a fixed tree: halves are added to halves. */
SD_INLINE float
v_sum(vf v)
{
    float a[VW];

    v_store(a, v);
    SD_UNROLL
    for (int w = VW / 2; w; w /= 2)
        for (int i = 0; i < w; i++)
            a[i] += a[i + w];
    return a[0];
}

/* v_bf16 - the nearest bf16, ties to even; NaN stays NaN: sd_operand() of op.h. */
SD_INLINE vf
v_bf16(vf x)
{
    vi bits = (vi)x, odd = (bits >> 16) & 1;

    return (vf)((vi)v_select(x != x, (vf)(bits | 0x10000), (vf)(bits + 0x7fff + odd)) & (int)0xffff0000);
}

/* Pairs of bf16 for products, in functions that are SD_BF16_CODE: v_pair of 32 numbers in a row, v_weave of (a[i],
 * b[i]).
 * Rounded to nearest even; numbers below 2^-126 become zero. */
#if defined(__AVX512F__)
#define SD_BF16_CODE __attribute__((target("avx512bf16")))
SD_BF16_CODE SD_INLINE vf v_pair(vf a, vf b) { return (vf)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a); }
SD_BF16_CODE SD_INLINE vf
v_weave(vf a, vf b)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20,
                                           4, 19, 3, 18, 2, 17, 1, 16, 0);

    return (vf)_mm512_permutexvar_epi16(order, (__m512i)v_pair(a, b));
}
#endif

/* v_exp2_down - 2^t for finite t <= 0 and NaN, in attention: under 2 ulp; 0 far down. */
SD_INLINE vf
v_exp2_down(vf t)
{
    vf k, f, p;

#if !defined(__AVX512F__)
    t = v_max(v_set(-127.0f), t);      /* exponent field 0: the product vanishes */
#endif
    k = v_round(t);
    f = t - k;
    p = v_fma(v_set(1.32647273e-3f), f, v_set(9.67151299e-3f));
    p = v_fma(p, f, v_set(5.55073358e-2f));
    p = v_fma(p, f, v_set(2.40222424e-1f));
    p = v_fma(p, f, v_set(6.93147004e-1f));
    p = v_fma(p, f, v_set(1.0f));
    return v_pow2(p, k);
}

/* v_exp - e^x; under 2 ulp; 0 below -87.33 (no denormals), infinity above 88.72, NaN stays NaN. */
SD_INLINE vf
v_exp(vf x)
{
    vf k, r, p, half;
    vi low = x < v_set(-87.33654f);

    x = v_min(v_set(89.0f), v_max(v_set(-87.33654f), x));
    k = v_round(x * 1.44269504f);
    r = v_fma(k, v_set(-0.693359375f), x);
    r = v_fma(k, v_set(2.12194440e-4f), r);
    p = v_fma(v_set(1.3901286e-3f), r, v_set(8.3631445e-3f));
    p = v_fma(p, r, v_set(4.1666854e-2f));
    p = v_fma(p, r, v_set(1.6666578e-1f));
    p = v_fma(p, r, v_set(0.5f));
    p = v_fma(p, r * r, r) + 1.0f;
    half = v_round(k * 0.5f);          /* in two steps: 2^128 is not a float, the product may be one */
    return (vf)(~low & (vi)v_pow2(v_pow2(p, half), k - half));
}

/* v_erf - absolute error under 1e-7: a polynomial up to 0.93, 1 - e^polynomial beyond. */
SD_INLINE vf
v_erf(vf a)
{
    vf t = v_abs(a), s = a * a, r, u, q;
    vi far = t > v_set(0.927734375f);

    r = v_fma(v_set(-1.72853470e-5f), t, v_set(3.83197126e-4f));
    u = v_fma(v_set(-3.88396438e-3f), t, v_set(2.42546219e-2f));
    r = v_fma(r, s, u);
    r = v_fma(r, t, v_set(-1.06777877e-1f));
    r = v_fma(r, t, v_set(-6.34846687e-1f));
    r = v_fma(r, t, v_set(-1.28717512e-1f));
    r = v_fma(r, t, -t);
    r = v_sign_of(1.0f - v_exp(v_max(v_set(-80.0f), r)), a);
    q = v_fma(v_set(-5.96761703e-4f), s, v_set(4.99119423e-3f));
    q = v_fma(q, s, v_set(-2.67681349e-2f));
    q = v_fma(q, s, v_set(1.12819925e-1f));
    q = v_fma(q, s, v_set(-3.76125336e-1f));
    q = v_fma(q, s, v_set(1.28379166e-1f));
    q = v_fma(q, a, a);
    return v_select(far, r, q);
}

/* gelu(x) = x Phi(x);  gelu'(x) = Phi(x) + x phi(x). */
SD_INLINE vf v_phi_integral(vf x) { return 0.5f + 0.5f * v_erf(x * 0.70710678f); }
SD_INLINE vf v_gelu(vf x) { return x * v_phi_integral(x); }
SD_INLINE vf v_x_density(vf x) { return x * 0.39894228f * v_exp(-0.5f * x * x); }
SD_INLINE vf v_gelu_slope(vf x) { return v_phi_integral(x) + v_x_density(x); }

/* silu, quick_gelu: x s(kx), with slope s (1 + kx (1 - s)), k = 1 and 1.702. */
SD_INLINE vf v_silu(vf x) { return x / (1.0f + v_exp(-x)); }
SD_INLINE vf
v_silu_slope(vf x)
{
    vf s = 1.0f / (1.0f + v_exp(-x));

    return s * v_fma(x, 1.0f - s, v_set(1.0f));
}
SD_INLINE vf v_quick_gelu(vf x) { return x / (1.0f + v_exp(-1.702f * x)); }
SD_INLINE vf v_quick_gelu_slope(vf x) { return v_silu_slope(1.702f * x); }
#endif
#endif
