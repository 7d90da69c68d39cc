/* attention in tiles; formulas in attention.c.
 *
 * Every product runs in register tiles of MR rows x NV vectors: an element of one operand is broadcast from where it
 * lies, vectors of the other are loaded from a packed block.
 *   forward   lanes are queries: a block of W of them is transposed once, then keys stream by:
 *             scores [keys][W] = K q',  softmax lane by lane (no sums across lanes),  o [d][W] += V' p
 *   backward  lanes are keys: a block of W keys is transposed once, then the queries of one part stream by:
 *             p, ds [queries][W],  dk, dv [d][W] += (q, dy)' (ds, p),  dq [queries][d] += ds K
 * Queries are cut into parts by the shape (attention_parts); dk and dv of the parts are added in order: no atomics,
 * and the same bits for any number of threads. */
#include "attention_simd.h"
/* acc[r][v] += sum_k a[r ar + k ak] b[k w + v VW ..] */
SD_INLINE void
product(vf acc[MR][NV], const int mr, const int nv, int64_t count, const float *a, int64_t ar, int64_t ak,
        const float *b,
        int64_t w)
{
    for (int64_t k = 0; k < count; k++) {
        vf x[NV];

        SD_UNROLL
        for (int v = 0; v < nv; v++)
            x[v] = v_load(b + k * w + v * VW);
        SD_UNROLL
        for (int r = 0; r < mr; r++) {
            vf y = v_set(a[r * ar + k * ak]);

            SD_UNROLL
            for (int v = 0; v < nv; v++)
                acc[r][v] = v_fma(y, x[v], acc[r][v]);
        }
    }
}

/* -- forward ------------------------------------------------------------------------------------------------------- */

SD_INLINE void
score_tile(const int mr, const int nv, const struct attention *a, const float *k, const float *qt, float *s, vf top[NV],
           int64_t key, const vf lane[NV], bool masked)
{
    vf acc[MR][NV] = { 0 };

    product(acc, mr, nv, a->d, k, a->k_pitch, 1, qt, nv * VW);
    SD_UNROLL
    for (int r = 0; r < mr; r++)
        SD_UNROLL
        for (int v = 0; v < nv; v++) {
            if (masked)
                acc[r][v] = v_select(v_set((float)(key + r)) > lane[v], v_set(MASKED), acc[r][v]);
            top[v] = v_max(top[v], acc[r][v]);
            v_store(s + (r * nv + v) * VW, acc[r][v]);
        }
}

SD_INLINE void
output_tile(const int mr, const int nv, int64_t keys, const float *v_rows, int64_t v_pitch, const float *p, float *o,
            const vf shrink[NV])
{
    vf acc[MR][NV];

    SD_UNROLL
    for (int r = 0; r < mr; r++)
        SD_UNROLL
        for (int v = 0; v < nv; v++)
            acc[r][v] = v_load(o + (r * nv + v) * VW) * shrink[v];
    product(acc, mr, nv, keys, v_rows, 1, v_pitch, p, nv * VW);
    SD_UNROLL
    for (int r = 0; r < mr; r++)
        SD_UNROLL
        for (int v = 0; v < nv; v++)
            v_store(o + (r * nv + v) * VW, acc[r][v]);
}

/* Queries first .. first + count - 1 of head h of sample b, count <= nv VW. */
SD_INLINE void
forward_block(const int nv, const struct attention *a, int64_t b, int64_t h, int64_t first, int64_t count, float *y)
{
    alignas(64) float qt[ATTENTION_MAX_D * W], o[ATTENTION_MAX_D * W], s[KEYS * W], total[W], most_of[W];
    const int w = nv * VW;
    const float *k = a->k + b * a->S * a->k_pitch + h * a->d, *v_rows = a->v + b * a->S * a->v_pitch + h * a->d;
    int64_t seen = a->causal && first + count < a->S ? first + count : a->S;
    int64_t blocks = (seen + KEYS - 1) / KEYS, step = blocks ? ((seen + blocks - 1) / blocks + MR - 1) / MR * MR : 1;
    vf most[NV], sum[NV], lane[NV], factor = v_set((float)(a->scale * ATTENTION_LOG2E));

    transpose_block(qt, w, a->q + (b * a->L + first) * a->q_pitch + h * a->d, a->q_pitch, count, a->d);
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
            top[v] = most[v];
#define F(mr, r) score_tile(mr, nv, a, k + (j + r) * a->k_pitch, qt, s + r * w, top, j + r, lane, masked)
        TILES(keys, F);
#undef F
        for (int v = 0; v < nv; v++) {
            vf high = top[v] * factor;

            shrink[v] = v_exp2_down(v_fma(most[v], factor, -high));
            sum[v] *= shrink[v];
            most[v] = top[v];
            top[v] = -high;
        }
        for (int64_t r = 0; r < keys; r++)
            SD_UNROLL
            for (int v = 0; v < nv; v++) {
                vf p = v_exp2_down(v_fma(v_load(s + r * w + v * VW), factor, top[v]));

                sum[v] += p;
                v_store(s + r * w + v * VW, p);
            }
#define F(mr, r) output_tile(mr, nv, keys, v_rows + j * a->v_pitch + r, a->v_pitch, s, o + r * w, shrink)
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
        a->lse[(b * a->H + h) * a->L + first + i] = most_of[i] * (float)a->scale + logf(total[i]);
}

static __attribute__((noinline)) void
forward_1(const struct attention *a, int64_t b, int64_t h, int64_t first, int64_t count, float *y)
{
    forward_block(1, a, b, h, first, count, y);
}
static __attribute__((noinline)) void
forward_2(const struct attention *a, int64_t b, int64_t h, int64_t first, int64_t count, float *y)
{
    forward_block(2, a, b, h, first, count, y);
}
static __attribute__((noinline)) void
forward_all(const struct attention *a, int64_t b, int64_t h, int64_t first, int64_t count, float *y)
{
    forward_block(NV, a, b, h, first, count, y);
}

void
SD_V(attention_forward)(struct sd_node *n)
{
    const struct attention a = attention_of(n);
    int64_t blocks = (a.L + W - 1) / W, many = a.H * blocks;
    /* few keys stay in cache: go along the rows of queries instead */
    bool heads_inside = a.S * a.H * a.d <= 1 << 17;
    float *y = n->out->data;

#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t t = 0; t < a.B * many; t++) {
        int64_t b = t / many, h = heads_inside ? t % a.H : t / blocks % a.H;
        int64_t first = (heads_inside ? t % many / a.H : t % blocks) * W;
        int64_t count = a.L - first < W ? a.L - first : W;

        if (count <= VW)
            forward_1(&a, b, h, first, count, y);
        else if (count <= 2 * VW)
            forward_2(&a, b, h, first, count, y);
        else
            forward_all(&a, b, h, first, count, y);
    }
}

/* -- backward ------------------------------------------------------------------------------------------------------ */

SD_INLINE void
weights_tile(const int mr, const int nv, struct pass *t, int64_t i, int64_t r0, bool masked)
{
    const struct attention *a = &t->g->a;
    const int w = nv * VW;
    vf acc[MR][NV] = { 0 }, factor = v_set((float)(a->scale * ATTENTION_LOG2E));
    float *p = t->p + r0 * w, *ds = t->ds + r0 * w;

    i += r0;
    product(acc, mr, nv, a->d, t->q + i * a->q_pitch, a->q_pitch, 1, t->kt, w);
    SD_UNROLL
    for (int r = 0; r < mr; r++) {
        vf high = v_set(-t->lse[i + r]);

        SD_UNROLL
        for (int v = 0; v < nv; v++) {
            v_store(p + r * w + v * VW, v_exp2_down(v_fma(acc[r][v], factor, high)));
            acc[r][v] = v_zero();
        }
        for (int64_t j = i + r - t->key + 1; masked && j < w; j++)
            if (j >= 0)
                p[r * w + j] = 0;
    }
    product(acc, mr, nv, a->d, t->dy + i * a->o_pitch, a->o_pitch, 1, t->vt, w);
    SD_UNROLL
    for (int r = 0; r < mr; r++) {
        vf D = v_set(t->D[i + r]);

        SD_UNROLL
        for (int v = 0; v < nv; v++)
            v_store(ds + r * w + v * VW, v_load(p + r * w + v * VW) * (acc[r][v] - D));
    }
}

/* out [rows][nv VW] += a x b, all inside this file's buffers */
SD_INLINE void
add_tile(const int mr, const int nv, int64_t count, const float *a, int64_t ar, int64_t ak, const float *b,
         int64_t b_pitch,
         float *out, int64_t out_pitch)
{
    vf acc[MR][NV];

    SD_UNROLL
    for (int r = 0; r < mr; r++)
        SD_UNROLL
        for (int v = 0; v < nv; v++)
            acc[r][v] = v_load(out + r * out_pitch + v * VW);
    product(acc, mr, nv, count, a, ar, ak, b, b_pitch);
    SD_UNROLL
    for (int r = 0; r < mr; r++)
        SD_UNROLL
        for (int v = 0; v < nv; v++)
            v_store(out + r * out_pitch + v * VW, acc[r][v]);
}

static __attribute__((noinline)) void
add_dq(struct pass *t, int64_t i, int64_t rows, int64_t w, int64_t c, int nv)
{
    int64_t pitch = t->g->dq_pitch;

#define F(n) \
    for (int64_t r = 0; r < rows;) { \
        const float *ds = t->ds + r * w; \
        float *out = t->dq + (i + r) * pitch + c; \
        if (r + MR <= rows) { add_tile(MR, n, t->keys, ds, w, 1, t->k + c, pitch, out, pitch); r += MR; } \
        else { add_tile(1, n, t->keys, ds, w, 1, t->k + c, pitch, out, pitch); r++; } \
    }
    if (nv == 1)
        F(1)
    else if (nv == 2)
        F(2)
    else
        F(NV)
#undef F
}

SD_INLINE void
queries_block(const int nv, struct pass *t, int64_t i, int64_t rows)
{
    const struct backward *g = t->g;
    const struct attention *a = &g->a;
    const int w = nv * VW;
    bool masked = a->causal && i < t->key + t->keys;

#define F(mr, r) weights_tile(mr, nv, t, i, r, masked)
    TILES(rows, F);
#undef F
    if (g->din[2]) {
#define F(mr, c) add_tile(mr, nv, rows, t->dy + i * a->o_pitch + c, 1, a->o_pitch, t->p, w, t->dvt + c * w, w)
        TILES(a->d, F);
#undef F
    }
    if (g->din[1]) {
#define F(mr, c) add_tile(mr, nv, rows, t->q + i * a->q_pitch + c, 1, a->q_pitch, t->ds, w, t->dkt + c * w, w)
        TILES(a->d, F);
#undef F
    }
    if (g->din[0])
        for (int64_t c = 0, left = g->dq_pitch / VW; left; ) {
            int take = left > NV + 1 || left == NV ? NV : left == NV + 1 && NV > 2 ? NV - 1 : left < NV ? (int)left
                : NV;

            add_dq(t, i, rows, w, c, take);
            c += take * VW;
            left -= take;
        }
}

static __attribute__((noinline)) void
queries_1(struct pass *t, int64_t i, int64_t rows)
{
    queries_block(1, t, i, rows);
}
static __attribute__((noinline)) void
queries_2(struct pass *t, int64_t i, int64_t rows)
{
    queries_block(2, t, i, rows);
}
static __attribute__((noinline)) void
queries_all(struct pass *t, int64_t i, int64_t rows)
{
    queries_block(NV, t, i, rows);
}

/* Gradients of a block's keys leave as rows: into the tensor (added or stored), or into this part's share. */
static void
put_rows(const struct pass *t, const float *block, int64_t w, int input, int64_t b, int64_t h, int64_t part,
         float *rows)
{
    const struct backward *g = t->g;
    const struct attention *a = &g->a;
    float factor = input == 1 ? (float)a->scale : 1;

    if (!g->din[input])
        return;
    if (g->parts > 1) {
        float *share = g->partial + ((((part * a->B + b) * a->H + h) * 2 + input - 1) * a->S + t->key) * a->d;

        transpose(share, a->d, block, w, a->d, t->keys);
        return;
    }
    transpose(rows, a->d, block, w, a->d, t->keys);
    for (int64_t j = 0; j < t->keys; j++) {
        float *out = (float *)g->din[input]->data + (b * a->S + t->key + j) * g->din[input]->pitch + h * a->d;

        for (int64_t c = 0; c < a->d; c++)
            out[c] = factor * rows[j * a->d + c] + (g->store[input] ? 0 : out[c]);
    }
}

static void
block_of_keys(struct pass *t, const float *k, const float *v, int64_t w)
{
    const struct backward *g = t->g;
    const struct attention *a = &g->a;

#if defined(__AVX512F__)
    if (g->bf16) {
        attention_keys_bf16(t, k, v, w);
        return;
    }
#endif
    transpose_block(t->kt, w, k, a->k_pitch, t->keys, a->d);
    transpose_block(t->vt, w, v, a->v_pitch, t->keys, a->d);
    for (int64_t j = 0; t->dq && j < t->keys; j++) {
        memcpy(t->k + j * g->dq_pitch, k + j * a->k_pitch, (size_t)a->d * sizeof(float));
        memset(t->k + j * g->dq_pitch + a->d, 0, (size_t)(g->dq_pitch - a->d) * sizeof(float));
    }
}

/* Parts begin at even queries: pairs of them are not cut. */
static void
backward_part(const struct backward *g, int64_t b, int64_t h, int64_t part)
{
    const struct attention *a = &g->a;
    int64_t begin = a->L * part / g->parts / 2 * 2, head = b * a->H + h;
    int64_t end = part + 1 < g->parts ? a->L * (part + 1) / g->parts / 2 * 2 : a->L;
    struct pass t;

    t.g = g;
    t.head = head;
    t.q = a->q + b * a->L * a->q_pitch + h * a->d;
    t.dy = g->dy + b * a->L * a->o_pitch + h * a->d;
    t.lse = g->lse + head * a->L;
    t.D = g->D + head * a->L;
    t.dq = g->dq ? g->dq + head * a->L * g->dq_pitch : NULL;
    if (t.dq)
        memset(t.dq + begin * g->dq_pitch, 0, (size_t)((end - begin) * g->dq_pitch) * sizeof *t.dq);
    for (t.key = 0; t.key < a->S; t.key += t.keys) {
        const float *k = a->k + (b * a->S + t.key) * a->k_pitch + h * a->d;
        const float *v = a->v + (b * a->S + t.key) * a->v_pitch + h * a->d;
        int64_t w, first = begin;

        t.keys = a->S - t.key < W ? a->S - t.key : W;
        w = (t.keys + VW - 1) / VW * VW;
        block_of_keys(&t, k, v, w);
        memset(t.dkt, 0, (size_t)(a->d * w) * sizeof(float));
        memset(t.dvt, 0, (size_t)(a->d * w) * sizeof(float));
        if (a->causal && first < t.key)
            first = t.key < end ? t.key : end;
        for (int64_t i = first; i < end; i += QUERIES) {
            int64_t rows = end - i < QUERIES ? end - i : QUERIES;

#if defined(__AVX512F__)
            if (g->bf16)
                attention_queries_bf16(&t, i, rows, w);
            else
#endif
            if (w == VW)
                queries_1(&t, i, rows);
            else if (w == 2 * VW)
                queries_2(&t, i, rows);
            else
                queries_all(&t, i, rows);
        }
        put_rows(&t, t.dkt, w, 1, b, h, part, t.kt);
        put_rows(&t, t.dvt, w, 2, b, h, part, t.kt);
    }
    for (int64_t i = begin; t.dq && i < end; i++) {
        float *out = (float *)g->din[0]->data + (b * a->L + i) * g->din[0]->pitch + h * a->d;

        for (int64_t c = 0; c < a->d; c++)
            out[c] = (float)a->scale * t.dq[i * g->dq_pitch + c] + (g->store[0] ? 0 : out[c]);
    }
}

static void
add_parts(const struct backward *g, int input)
{
    const struct attention *a = &g->a;
    float factor = input == 1 ? (float)a->scale : 1;

    if (!g->din[input])
        return;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < a->B * a->H * a->S; row++) {
        int64_t head = row / a->S, j = row % a->S, all = a->B * a->H * 2 * a->S * a->d;
        const float *share = g->partial + ((head * 2 + input - 1) * a->S + j) * a->d;
        float *out = (float *)g->din[input]->data + (head / a->H * a->S + j) * g->din[input]->pitch + head % a->H *
            a->d;

        for (int64_t c = 0; c < a->d; c++) {
            float sum = share[c];

            for (int64_t part = 1; part < g->parts; part++)
                sum += share[part * all + c];
            out[c] = factor * sum + (g->store[input] ? 0 : out[c]);
        }
    }
}

static float *
take(float **scratch, int64_t count)
{
    float *p = *scratch;

    *scratch += (count + 15) / 16 * 16;
    return p;
}

void
SD_V(attention_backward)(struct sd_node *n)
{
    struct backward g = { .a = attention_of(n), .dy = n->dout->data };
    const struct attention *a = &g.a;
    const float *y = n->out->data;
    float *scratch = n->scratch;

    for (int i = 0; i < 3; i++) {
        g.din[i] = n->din[i];
        g.store[i] = n->din_store[i];
    }
    g.parts = attention_parts(a);
    g.dq_pitch = (a->d + VW - 1) / VW * VW;
    g.lse = take(&scratch, a->B * a->H * a->L);
    g.D = take(&scratch, a->B * a->H * a->L);
    g.dq = g.din[0] ? take(&scratch, a->B * a->H * a->L * g.dq_pitch) : NULL;
    g.partial = take(&scratch, g.parts > 1 ? g.parts * a->B * a->H * a->S * 2 * a->d : 0);
#if defined(__AVX512F__)
    g.bf16 = n->bf16;
    if (g.bf16)
        attention_pairs_of(n, &g, scratch);
#endif
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < a->B * a->L; i++)
        for (int64_t h = 0; h < a->H; h++) {
            const float *u = g.dy + i * a->o_pitch + h * a->d, *w = y + i * a->o_pitch + h * a->d;
            int64_t at = (i / a->L * a->H + h) * a->L + i % a->L;
            vf sum = v_zero();

            for (int64_t c = 0; c < a->d; c += VW)
                sum = v_fma(v_get(u + c, a->d - c), v_get(w + c, a->d - c), sum);
            g.D[at] = v_sum(sum);
            g.lse[at] = a->lse[at] * (float)ATTENTION_LOG2E;
        }
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t t = 0; t < a->B * a->H * g.parts; t++)
        backward_part(&g, t / (a->H * g.parts), t / g.parts % a->H, t % g.parts);
    if (g.parts > 1) {
        add_parts(&g, 1);
        add_parts(&g, 2);
    }
}
