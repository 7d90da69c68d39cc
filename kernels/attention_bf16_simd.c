/* attention with products of bf16 (AVX512_BF16): the tiles of attention_simd.c over pairs of numbers; formulas in
 * attention.c.
 * Sums over columns of a head meet pairs of columns, sums over keys or queries pairs of these (attention_simd.h).
 *   forward   scores [keys][W] = K q';  p of two keys are woven, o [d][W] += V' p
 *   backward  p, ds [queries][W];  of two queries woven for dk, dv;  ds also in pairs of keys, for dq
 * p are 2^(t - m) with whole m: to take another m later shrinks what was summed exactly. */
#include "attention_simd.h"

#if defined(__AVX512F__)

/* acc[r][v] += sum over pairs k of a[r ar + k ak] b[k w + v VW ..] */
SD_BF16_CODE SD_INLINE void
product(__m512 acc[MR][NV], const int mr, const int nv, int64_t count, const float *a, int64_t ar, int64_t ak,
        const float *b,
        int64_t w)
{
    for (int64_t k = 0; k < count; k++) {
        __m512bh x[NV];

        SD_UNROLL
        for (int v = 0; v < nv; v++)
            x[v] = (__m512bh)v_load(b + k * w + v * VW);
        SD_UNROLL
        for (int r = 0; r < mr; r++) {
            __m512bh y = (__m512bh)v_set(a[r * ar + k * ak]);

            SD_UNROLL
            for (int v = 0; v < nv; v++)
                acc[r][v] = _mm512_dpbf16_ps(acc[r][v], y, x[v]);
        }
    }
}

/* to[i] = pair (from[2 i], from[2 i + 1]) */
SD_BF16_CODE SD_INLINE void
pair_row(float *to, const float *from, int64_t count)
{
    for (int64_t i = 0; i < count; i += 2 * VW) {
        vf a = v_get(from + i, count - i), b = count - i > VW ? v_get(from + i + VW, count - i - VW) : v_zero();

        v_put(to + i / 2, v_pair(a, b), (count - i + 1) / 2);
    }
}

/* to[i] = pair (a[i], b[i]); b NULL: zeros */
SD_BF16_CODE SD_INLINE void
weave_rows(float *to, const float *a, const float *b, int64_t count)
{
    for (int64_t i = 0; i < count; i += VW)
        v_put(to + i, v_weave(v_get(a + i, count - i), b ? v_get(b + i, count - i) : v_zero()), count - i);
}

/* Rows i and i + 1 (may be missing) of x [B, rows, H d], `pitch` apart, of sample b, every head in both forms. */
SD_BF16_CODE static __attribute__((noinline)) void
pair_two(const struct attention *a, float *rows_of, float *woven, const float *x, int64_t rows, int64_t pitch,
         int64_t b, int64_t i)
{
    int64_t half = (a->d + 1) / 2, pairs = (rows + 1) / 2;

    for (int64_t h = 0; h < a->H; h++) {
        int64_t head = b * a->H + h;
        const float *from = x + (b * rows + i) * pitch + h * a->d, *next = i + 1 < rows ? from + pitch : NULL;

        if (rows_of) {
            pair_row(rows_of + (head * rows + i) * half, from, a->d);
            if (next)
                pair_row(rows_of + (head * rows + i + 1) * half, next, a->d);
        }
        if (woven)
            weave_rows(woven + (head * pairs + i / 2) * a->d, from, next, a->d);
    }
}

/* clang compiles the body of a parallel loop without the target of the function around it: it only calls. */
static void
pair_heads(const struct attention *a, float *rows_of, float *woven, const float *x, int64_t rows, int64_t pitch)
{
    int64_t pairs = (rows + 1) / 2;

#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < a->B * pairs; t++)
        pair_two(a, rows_of, woven, x, rows, pitch, t / pairs, t % pairs * 2);
}

/* -- forward ------------------------------------------------------------------------------------------------------- */

SD_BF16_CODE SD_INLINE void
score_tile(const int mr, const int nv, int64_t half, const float *k, const float *qt, float *s, vf top[NV], int64_t key,
           const vf lane[NV], bool masked)
{
    __m512 acc[MR][NV] = { 0 };

    product(acc, mr, nv, half, k, half, 1, qt, nv * VW);
    SD_UNROLL
    for (int r = 0; r < mr; r++)
        SD_UNROLL
        for (int v = 0; v < nv; v++) {
            vf x = (vf)acc[r][v];

            if (masked)
                x = v_select(v_set((float)(key + r)) > lane[v], v_set(MASKED), x);
            top[v] = v_max(top[v], x);
            v_store(s + (r * nv + v) * VW, x);
        }
}

/* out [rows][nv VW] = out * shrink + a x b, all inside buffers of whole vectors */
SD_BF16_CODE SD_INLINE void
add_tile(const int mr, const int nv, int64_t count, const float *a, int64_t ar, int64_t ak, const float *b,
         int64_t b_pitch,
         float *out, int64_t out_pitch, const vf *shrink)
{
    __m512 acc[MR][NV];

    SD_UNROLL
    for (int r = 0; r < mr; r++)
        SD_UNROLL
        for (int v = 0; v < nv; v++) {
            vf x = v_load(out + r * out_pitch + v * VW);

            acc[r][v] = (__m512)(shrink ? x * shrink[v] : x);
        }
    product(acc, mr, nv, count, a, ar, ak, b, b_pitch);
    SD_UNROLL
    for (int r = 0; r < mr; r++)
        SD_UNROLL
        for (int v = 0; v < nv; v++)
            v_store(out + r * out_pitch + v * VW, (vf)acc[r][v]);
}

/* Scores of `keys` keys become pairs of p in place; sum is added to. */
SD_BF16_CODE SD_INLINE void
weights_of(const int nv, float *s, int64_t keys, vf factor, const vf high[NV], vf sum[NV])
{
    const int w = nv * VW;

    for (int64_t r = 0; r < keys; r += 2)
        SD_UNROLL
        for (int v = 0; v < nv; v++) {
            vf p = v_exp2_down(v_fma(v_load(s + r * w + v * VW), factor, -high[v])), q = v_zero();

            if (r + 1 < keys)
                q = v_exp2_down(v_fma(v_load(s + (r + 1) * w + v * VW), factor, -high[v]));
            sum[v] = sum[v] + p + q;
            v_store(s + r / 2 * w + v * VW, v_weave(p, q));
        }
}

/* Queries first .. first + count - 1 of head h of sample b, count <= nv VW. */
SD_BF16_CODE SD_INLINE void
forward_block(const int nv, const struct attention *a, const struct attention_pairs *kv, int64_t b, int64_t h,
              int64_t first,
              int64_t count, float *y)
{
    alignas(64) float q[ATTENTION_MAX_D / 2 * W], qt[ATTENTION_MAX_D / 2 * W], o[ATTENTION_MAX_D * W], s[KEYS * W],
        total[W];
    alignas(64) float most_of[W];
    const int w = nv * VW;
    int64_t half = (a->d + 1) / 2, head = b * a->H + h;
    const float *k = kv->rows[0] + head * a->S * half, *v_rows = kv->woven[1] + head * ((a->S + 1) / 2) * a->d;
    int64_t seen = a->causal && first + count < a->S ? first + count : a->S;
    int64_t blocks = (seen + KEYS - 1) / KEYS, step = blocks ? ((seen + blocks - 1) / blocks + MR - 1) / MR * MR : 1;
    vf most[NV], sum[NV], lane[NV], factor = v_set((float)(a->scale * ATTENTION_LOG2E));

    for (int64_t i = 0; i < count; i++)
        pair_row(q + i * half, a->q + (b * a->L + first + i) * a->q_pitch + h * a->d, a->d);
    transpose_block(qt, w, q, half, count, half);
    memset(o, 0, (size_t)(a->d * w) * sizeof *o);
    for (int i = 0; i < w; i++)
        total[i] = (float)(first + i);
    for (int v = 0; v < nv; v++) {
        most[v] = v_set(MASKED);
        sum[v] = v_zero();
        lane[v] = v_load(total + v * VW);
    }
    for (int64_t j = 0; j < seen; j += step) {
        int64_t keys = seen - j < step ? seen - j : step;
        bool masked = a->causal && j + keys > first + 1;
        vf top[NV], shrink[NV];

        for (int v = 0; v < nv; v++)
            top[v] = v_set(MASKED);
#define F(mr, r) score_tile(mr, nv, half, k + (j + r) * half, qt, s + r * w, top, j + r, lane, masked)
        TILES(keys, F);
#undef F
        for (int v = 0; v < nv; v++) {
            vf high = v_max(most[v], (vf)_mm512_roundscale_ps((__m512)(top[v] * factor), _MM_FROUND_TO_POS_INF));

            shrink[v] = v_exp2_down(most[v] - high);
            sum[v] *= shrink[v];
            most[v] = high;
        }
        weights_of(nv, s, keys, factor, most, sum);
#define F(mr, r) add_tile(mr, nv, (keys + 1) / 2, v_rows + j / 2 * a->d + r, 1, a->d, s, w, o + r * w, w, shrink)
        TILES(a->d, F);
#undef F
    }
    for (int v = 0; v < nv; v++) {
        vf inverse = 1.0f / sum[v];

        v_store(total + v * VW, sum[v]);
        v_store(most_of + v * VW, most[v]);
        for (int64_t c = 0; c < a->d; c++)
            v_store(o + c * w + v * VW, v_load(o + c * w + v * VW) * inverse);
    }
    transpose(y + (b * a->L + first) * a->o_pitch + h * a->d, a->o_pitch, o, w, a->d, count);
    for (int64_t i = 0; i < count && i < w; i++)
        a->lse[head * a->L + first + i] = most_of[i] * (float)(1 / ATTENTION_LOG2E) + logf(total[i]);
}

#define FORWARD(name, nv) \
    SD_BF16_CODE static __attribute__((noinline)) void \
    name(const struct attention *a, const struct attention_pairs *kv, int64_t b, int64_t h, int64_t first, \
         int64_t count, float *y) \
    { \
        forward_block(nv, a, kv, b, h, first, count, y); \
    }
FORWARD(forward_1, 1)
FORWARD(forward_2, 2)
FORWARD(forward_all, NV)

void
attention_forward_bf16(struct sd_node *n)
{
    const struct attention a = attention_of(n);
    int64_t blocks = (a.L + W - 1) / W, many = a.H * blocks;
    /* few keys stay in cache: go along the rows of queries instead */
    bool heads_inside = a.S * a.H * a.d <= 1 << 18;
    struct attention_pairs kv = { .rows = { n->scratch } };
    float *y = n->out->data;

    kv.woven[1] = kv.rows[0] + a.B * a.H * a.S * ((a.d + 1) / 2);
    pair_heads(&a, kv.rows[0], NULL, a.k, a.S, a.k_pitch);
    pair_heads(&a, NULL, kv.woven[1], a.v, a.S, a.v_pitch);
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t t = 0; t < a.B * many; t++) {
        int64_t b = t / many, h = heads_inside ? t % a.H : t / blocks % a.H;
        int64_t first = (heads_inside ? t % many / a.H : t % blocks) * W;
        int64_t count = a.L - first < W ? a.L - first : W;

        if (count <= VW)
            forward_1(&a, &kv, b, h, first, count, y);
        else if (count <= 2 * VW)
            forward_2(&a, &kv, b, h, first, count, y);
        else
            forward_all(&a, &kv, b, h, first, count, y);
    }
}

/* -- backward ------------------------------------------------------------------------------------------------------ */

void
attention_pairs_of(const struct sd_node *n, struct backward *g, float *scratch)
{
    const struct attention *a = &g->a;
    int64_t heads = a->B * a->H, rows = heads * a->L * ((a->d + 1) / 2), woven = heads * ((a->L + 1) / 2) * a->d;

    (void)n;
    g->pairs = (struct attention_pairs){ { scratch, scratch + rows },
                                         { scratch + 2 * rows, scratch + 2 * rows + woven } };
    pair_heads(a, g->pairs.rows[0], g->pairs.woven[0], a->q, a->L, a->q_pitch);
    pair_heads(a, g->pairs.rows[1], g->pairs.woven[1], g->dy, a->L, a->o_pitch);
}

SD_BF16_CODE void
attention_keys_bf16(struct pass *t, const float *k, const float *v, int64_t w)
{
    const struct attention *a = &t->g->a;
    int64_t half = (a->d + 1) / 2, pitch = t->g->dq_pitch;

    for (int64_t j = 0; j < t->keys; j++)
        pair_row(t->dkt + j * half, k + j * a->k_pitch, a->d);
    transpose_block(t->kt, w, t->dkt, half, t->keys, half);
    for (int64_t j = 0; j < t->keys; j++)
        pair_row(t->dkt + j * half, v + j * a->v_pitch, a->d);
    transpose_block(t->vt, w, t->dkt, half, t->keys, half);
    for (int64_t j = 0; t->dq && j < t->keys; j += 2) {
        float *to = t->k + j / 2 * pitch;

        memset(to + pitch - VW, 0, VW * sizeof *to);
        weave_rows(to, k + j * a->k_pitch, j + 1 < t->keys ? k + (j + 1) * a->k_pitch : NULL, a->d);
    }
}

SD_BF16_CODE SD_INLINE void
weights_tile(const int mr, const int nv, struct pass *t, int64_t i, int64_t r0, bool masked)
{
    const struct backward *g = t->g;
    const struct attention *a = &g->a;
    const int w = nv * VW;
    int64_t half = (a->d + 1) / 2, at;
    __m512 acc[MR][NV] = { 0 };
    vf factor = v_set((float)(a->scale * ATTENTION_LOG2E));
    float *p = t->p + r0 * w, *ds = t->ds + r0 * w;

    i += r0;
    at = (t->head * a->L + i) * half;
    product(acc, mr, nv, half, g->pairs.rows[0] + at, half, 1, t->kt, w);
    SD_UNROLL
    for (int r = 0; r < mr; r++) {
        vf high = v_set(-t->lse[i + r]);

        SD_UNROLL
        for (int v = 0; v < nv; v++) {
            v_store(p + r * w + v * VW, v_exp2_down(v_fma((vf)acc[r][v], factor, high)));
            acc[r][v] = (__m512)v_zero();
        }
        for (int64_t j = i + r - t->key + 1; masked && j < w; j++)
            if (j >= 0)
                p[r * w + j] = 0;
    }
    product(acc, mr, nv, half, g->pairs.rows[1] + at, half, 1, t->vt, w);
    SD_UNROLL
    for (int r = 0; r < mr; r++) {
        vf D = v_set(t->D[i + r]);

        SD_UNROLL
        for (int v = 0; v < nv; v++)
            v_store(ds + r * w + v * VW, v_load(p + r * w + v * VW) * ((vf)acc[r][v] - D));
    }
}

SD_BF16_CODE static __attribute__((noinline)) void
add_dq(struct pass *t, int64_t i, int64_t rows, int64_t w, int64_t c, int nv)
{
    int64_t pitch = t->g->dq_pitch, pairs = (t->keys + 1) / 2;

#define F(n) \
    for (int64_t r = 0; r < rows;) { \
        const float *ds = t->ds_pairs + r * (w / 2); \
        float *out = t->dq + (i + r) * pitch + c; \
        if (r + MR <= rows) { add_tile(MR, n, pairs, ds, w / 2, 1, t->k + c, pitch, out, pitch, NULL); r += MR; } \
        else { add_tile(1, n, pairs, ds, w / 2, 1, t->k + c, pitch, out, pitch, NULL); r++; } \
    }
    if (nv == 1)
        F(1)
    else if (nv == 2)
        F(2)
    else
        F(NV)
#undef F
}

SD_BF16_CODE SD_INLINE void
queries_block(const int nv, struct pass *t, int64_t i, int64_t rows)
{
    const struct backward *g = t->g;
    const struct attention *a = &g->a;
    const int w = nv * VW;
    int64_t at = (t->head * ((a->L + 1) / 2) + i / 2) * a->d;
    bool masked = a->causal && i < t->key + t->keys;

#define F(mr, r) weights_tile(mr, nv, t, i, r, masked)
    TILES(rows, F);
#undef F
    for (int64_t r = 0; g->din[0] && r < rows; r++)
        pair_row(t->ds_pairs + r * (w / 2), t->ds + r * w, t->keys);
    for (int64_t r = 0; r < rows; r += 2) {
        weave_rows(t->p + r / 2 * w, t->p + r * w, r + 1 < rows ? t->p + (r + 1) * w : NULL, w);
        weave_rows(t->ds + r / 2 * w, t->ds + r * w, r + 1 < rows ? t->ds + (r + 1) * w : NULL, w);
    }
    if (g->din[2]) {
#define F(mr, c) add_tile(mr, nv, (rows + 1) / 2, g->pairs.woven[1] + at + c, 1, a->d, t->p, w, t->dvt + c * w, w, NULL)
        TILES(a->d, F);
#undef F
    }
    if (g->din[1]) {
#define F(mr, c) \
    add_tile(mr, nv, (rows + 1) / 2, g->pairs.woven[0] + at + c, 1, a->d, t->ds, w, t->dkt + c * w, w, NULL)
        TILES(a->d, F);
#undef F
    }
    if (g->din[0])
        for (int64_t c = 0, left = g->dq_pitch / VW; left; ) {
            int take = left > NV + 1 || left == NV ? NV : left == NV + 1 ? NV - 1 : left < NV ? (int)left : NV;

            add_dq(t, i, rows, w, c, take);
            c += take * VW;
            left -= take;
        }
}

SD_BF16_CODE static __attribute__((noinline)) void
queries_1(struct pass *t, int64_t i, int64_t rows)
{
    queries_block(1, t, i, rows);
}
SD_BF16_CODE static __attribute__((noinline)) void
queries_2(struct pass *t, int64_t i, int64_t rows)
{
    queries_block(2, t, i, rows);
}
SD_BF16_CODE static __attribute__((noinline)) void
queries_all(struct pass *t, int64_t i, int64_t rows)
{
    queries_block(NV, t, i, rows);
}

void
attention_queries_bf16(struct pass *t, int64_t i, int64_t rows, int64_t w)
{
    if (w == VW)
        queries_1(t, i, rows);
    else if (w == 2 * VW)
        queries_2(t, i, rows);
    else
        queries_all(t, i, rows);
}

#endif
