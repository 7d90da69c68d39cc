/* group_norm in vectors; formulas in group_norm.c.
 *
 * Forward and backward are two passes over the picture each: sums for each channel over pieces of some 64 pixels (in float,
 * of differences from the sample's first pixel, so that a large mean costs no digits), added over pieces and channels in
 * double; then the result.  Channels go in stripes of a few vectors, down the pixels of the piece; those of x first, then those
 * of what lies beside it: no vector has channels of both. */
#include "group_norm.h"

enum { STRIPE = 4 };        /* vectors */

struct part { const float *x; float *dx; int64_t first, C; bool store; };   /* x, or beside: its channels from `first` on */

struct norm {
    int64_t B, P, C, chunks, size;      /* samples, pixels, channels, pieces of a sample, channels of a group */
    int groups;
    struct part part[2];
    int parts;
    const float *weight, *bias;
    float *saved;                       /* [B, groups, 2] mean, 1/std */
    float *sums;                        /* [B, chunks, 2, C] */
    float *terms;                       /* [B, GROUP_NORM_TERMS, C] */
    bool silu;
};

static struct norm
norm_of(const struct sd_node *n)
{
    const struct group_norm *a = n->attr;
    const struct sd_tensor *x = n->in[0];
    struct norm g = { .B = x->shape[0], .P = x->shape[0] ? sd_rows(x) / x->shape[0] : 0, .C = group_norm_channels(n),
                      .groups = a->groups };

    g.chunks = group_norm_chunks(g.P);
    g.size = g.C / g.groups;
    for (int i = 0; i <= GROUP_NORM_BESIDE && (i == 0 || n->in[i]); i += GROUP_NORM_BESIDE)
        g.part[g.parts++] = (struct part){ n->in[i]->data, n->din[i] ? n->din[i]->data : NULL, i ? sd_cols(x) : 0,
                                           sd_cols(n->in[i]), n->din_store[i] };
    g.weight = n->in[1] ? sd_values(n->in[1]) : NULL;
    g.bias = n->in[2] ? sd_values(n->in[2]) : NULL;
    g.saved = n->saved[0]->data;
    g.sums = n->scratch;
    g.terms = g.sums + g.B * g.chunks * 2 * g.C;
    g.silu = a->silu;
    return g;
}

/* Terms of channel c of sample b, numbered; each a row of C. */
enum { MEAN, INVERSE, WEIGHT, BIAS, AVERAGE_G, AVERAGE_GN };

SD_INLINE float *
term(const struct norm *g, int64_t b, int which)
{
    return g->terms + (b * GROUP_NORM_TERMS + which) * g->C;
}

/* Sum over the pieces of sample b, of sum 0 or 1 of channel c. */
static double
over_pieces(const struct norm *g, int64_t b, int which, int64_t c)
{
    double sum = 0;

    for (int64_t k = 0; k < g->chunks; k++)
        sum += g->sums[((b * g->chunks + k) * 2 + which) * g->C + c];
    return sum;
}

/* -- forward -------------------------------------------------------------------------------------------------------- */

/* The sample's first pixel at channel c: what sums are differences from. */
static float
origin(const struct norm *g, int64_t b, int64_t c)
{
    const struct part *h = &g->part[c >= g->part[0].C];

    return h->x[b * g->P * h->C + c - h->first];
}

/* pitch: of x */
SD_INLINE void
sums_stripe(const int nv, const struct norm *g, const float *x, int64_t pitch, const float *start, int64_t pixels, float *sums,
            int64_t left)
{
    vf sum[STRIPE], square[STRIPE], from[STRIPE];

    SD_UNROLL
    for (int v = 0; v < nv; v++) {
        from[v] = v_get(start + v * VW, left - v * VW);
        sum[v] = square[v] = v_zero();
    }
    for (int64_t p = 0; p < pixels; p++, x += pitch)
        SD_UNROLL
        for (int v = 0; v < nv; v++) {
            vf d = v_get(x + v * VW, left - v * VW) - from[v];

            sum[v] += d;
            square[v] = v_fma(d, d, square[v]);
        }
    SD_UNROLL
    for (int v = 0; v < nv; v++) {
        v_put(sums + v * VW, sum[v], left - v * VW);
        v_put(sums + g->C + v * VW, square[v], left - v * VW);
    }
}

static void
statistics(const struct norm *g, int64_t b, int64_t group, double eps)
{
    float *saved = g->saved + (b * g->groups + group) * 2;
    double sum = 0, square = 0, mean, P = (double)g->P, count = P * (double)g->size, inverse;

    for (int64_t c = group * g->size; c < (group + 1) * g->size; c++)
        sum += P * origin(g, b, c) + over_pieces(g, b, 0, c);
    mean = sum / count;
    for (int64_t c = group * g->size; c < (group + 1) * g->size; c++) {
        double s = over_pieces(g, b, 0, c), channel = origin(g, b, c) + s / P;

        square += over_pieces(g, b, 1, c) - s * s / P + P * (channel - mean) * (channel - mean);
    }
    inverse = 1 / sqrt((square < 0 ? 0 : square) / count + eps);
    saved[0] = (float)mean;
    saved[1] = (float)inverse;
    for (int64_t c = group * g->size; c < (group + 1) * g->size; c++) {
        term(g, b, MEAN)[c] = (float)mean;
        term(g, b, WEIGHT)[c] = (float)inverse * (g->weight ? g->weight[c] : 1);
        term(g, b, BIAS)[c] = g->bias ? g->bias[c] : 0;
    }
}

SD_INLINE void
scale_rows(const bool silu, const struct norm *g, int64_t b, int64_t from, int64_t to, float *y)
{
    const float *mean = term(g, b, MEAN), *weight = term(g, b, WEIGHT), *bias = term(g, b, BIAS);

    for (int64_t p = from; p < to; p++)
        for (const struct part *h = g->part; h < g->part + g->parts; h++) {
            const float *x = h->x + (b * g->P + p) * h->C - h->first;
            float *row = y + (b * g->P + p) * g->C;

            for (int64_t c = h->first; c < h->first + h->C; c += VW) {
                int64_t left = h->first + h->C - c;
                vf z = v_fma(v_get(x + c, left) - v_get(mean + c, left), v_get(weight + c, left), v_get(bias + c, left));

                v_put(row + c, silu ? v_silu(z) : z, left);
            }
        }
}

void
SD_V(group_norm_forward)(struct sd_node *n)
{
    const struct group_norm *attr = n->attr;
    const struct norm g = norm_of(n);
    float *y = n->out->data;

#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < g.B * g.chunks; t++) {
            int64_t b = t / g.chunks, k = t % g.chunks, from = g.P * k / g.chunks, to = g.P * (k + 1) / g.chunks;

            for (const struct part *h = g.part; h < g.part + g.parts; h++) {
                const float *start = h->x + b * g.P * h->C, *x = start + from * h->C;
                float *sums = g.sums + t * 2 * g.C + h->first;
                int64_t c = 0;

                for (; c + STRIPE * VW <= h->C; c += STRIPE * VW)
                    sums_stripe(STRIPE, &g, x + c, h->C, start + c, to - from, sums + c, STRIPE * VW);
                for (; c < h->C; c += VW)
                    sums_stripe(1, &g, x + c, h->C, start + c, to - from, sums + c, h->C - c);
            }
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < g.B * g.groups; t++)
            statistics(&g, t / g.groups, t % g.groups, attr->eps);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < g.B * g.chunks; t++) {
            int64_t b = t / g.chunks, k = t % g.chunks, from = g.P * k / g.chunks, to = g.P * (k + 1) / g.chunks;

            if (g.silu)
                scale_rows(true, &g, b, from, to, y);
            else
                scale_rows(false, &g, b, from, to, y);
        }
    }
}

/* -- backward ------------------------------------------------------------------------------------------------------- */

struct channel { vf mean, inverse, weight, bias; };

SD_INLINE struct channel
channel_at(const struct norm *g, int64_t b, int64_t c, int64_t left)
{
    return (struct channel){ v_get(term(g, b, MEAN) + c, left), v_get(term(g, b, INVERSE) + c, left),
                             v_get(term(g, b, WEIGHT) + c, left), v_get(term(g, b, BIAS) + c, left) };
}

/* The gradient before the affine step; *normal: what stood before it. */
SD_INLINE vf
before_silu(const bool silu, const struct channel *h, vf x, vf dy, vf *normal)
{
    *normal = (x - h->mean) * h->inverse;
    return silu ? dy * v_silu_slope(v_fma(*normal, h->weight, h->bias)) : dy;
}

SD_INLINE void
gradient_sums(const bool silu, const struct norm *g, const float *dy, int64_t b, int64_t from, int64_t to, float *sums)
{
    for (const struct part *h = g->part; h < g->part + g->parts; h++)
        for (int64_t c = h->first; c < h->first + h->C; c += VW) {
            int64_t left = h->first + h->C - c;
            const float *x = h->x + b * g->P * h->C + c - h->first;
            struct channel k = channel_at(g, b, c, left);
            vf sum = v_zero(), product = v_zero();

            for (int64_t p = from; p < to; p++) {
                vf e = v_get(dy + (b * g->P + p) * g->C + c, left), normal;
                vf dz = before_silu(silu, &k, v_get(x + p * h->C, left), e, &normal);

                sum += dz;
                product = v_fma(dz, normal, product);
            }
            v_put(sums + c, sum, left);
            v_put(sums + g->C + c, product, left);
        }
}

SD_INLINE void
gradient_rows(const bool silu, const bool store, const struct norm *g, const struct part *h, const float *dy, int64_t b,
              int64_t from, int64_t to)
{
    for (int64_t p = from; p < to; p++) {
        const float *x = h->x + (b * g->P + p) * h->C - h->first;
        float *dx = h->dx + (b * g->P + p) * h->C - h->first;

        for (int64_t c = h->first; c < h->first + h->C; c += VW) {
            int64_t left = h->first + h->C - c;
            struct channel k = channel_at(g, b, c, left);
            vf e = v_get(dy + (b * g->P + p) * g->C + c, left), normal, dz = before_silu(silu, &k, v_get(x + c, left), e, &normal), d;

            d = v_fma(dz, k.weight, -v_get(term(g, b, AVERAGE_G) + c, left));
            d = (d - normal * v_get(term(g, b, AVERAGE_GN) + c, left)) * k.inverse;
            v_put(dx + c, store ? d : v_get(dx + c, left) + d, left);
        }
    }
}

static void
averages(const struct norm *g, int64_t b, int64_t group)
{
    double sum = 0, product = 0, count = (double)(g->P * g->size);

    for (int64_t c = group * g->size; c < (group + 1) * g->size; c++) {
        sum += term(g, b, WEIGHT)[c] * over_pieces(g, b, 0, c);
        product += term(g, b, WEIGHT)[c] * over_pieces(g, b, 1, c);
    }
    for (int64_t c = group * g->size; c < (group + 1) * g->size; c++) {
        term(g, b, AVERAGE_G)[c] = (float)(sum / count);
        term(g, b, AVERAGE_GN)[c] = (float)(product / count);
    }
}

/* dweight (which 1) or dbias (which 0) from the sums of all samples. */
static void
gradient_of_channels(const struct norm *g, const struct sd_node *n, int input, int which)
{
    float *d = n->din[input] ? n->din[input]->data : NULL;

    if (!d)
        return;
#pragma omp for schedule(static)
    for (int64_t c = 0; c < g->C; c++) {
        double sum = 0;

        for (int64_t b = 0; b < g->B; b++)
            sum += over_pieces(g, b, which, c);
        d[c] = (float)sum + (n->din_store[input] ? 0 : d[c]);
    }
}

void
SD_V(group_norm_backward)(struct sd_node *n)
{
    const struct norm g = norm_of(n);
    const float *dy = n->dout->data;

#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < g.B * g.groups; t++)
            for (int64_t b = t / g.groups, c = t % g.groups * g.size; c < (t % g.groups + 1) * g.size; c++) {
                term(&g, b, MEAN)[c] = g.saved[2 * t];
                term(&g, b, INVERSE)[c] = g.saved[2 * t + 1];
                term(&g, b, WEIGHT)[c] = g.weight ? g.weight[c] : 1;
                term(&g, b, BIAS)[c] = g.bias ? g.bias[c] : 0;
            }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < g.B * g.chunks; t++) {
            int64_t b = t / g.chunks, k = t % g.chunks, from = g.P * k / g.chunks, to = g.P * (k + 1) / g.chunks;

            if (g.silu)
                gradient_sums(true, &g, dy, b, from, to, g.sums + t * 2 * g.C);
            else
                gradient_sums(false, &g, dy, b, from, to, g.sums + t * 2 * g.C);
        }
        gradient_of_channels(&g, n, 1, 1);
        gradient_of_channels(&g, n, 2, 0);
        if (g.part[0].dx || g.part[1].dx) {
#pragma omp for schedule(static)
            for (int64_t t = 0; t < g.B * g.groups; t++)
                averages(&g, t / g.groups, t % g.groups);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < g.B * g.chunks; t++) {
                int64_t b = t / g.chunks, k = t % g.chunks, from = g.P * k / g.chunks, to = g.P * (k + 1) / g.chunks;

                for (const struct part *h = g.part; h < g.part + g.parts; h++)
                    if (h->dx && g.silu && h->store)
                        gradient_rows(true, true, &g, h, dy, b, from, to);
                    else if (h->dx && g.silu)
                        gradient_rows(true, false, &g, h, dy, b, from, to);
                    else if (h->dx && h->store)
                        gradient_rows(false, true, &g, h, dy, b, from, to);
                    else if (h->dx)
                        gradient_rows(false, false, &g, h, dy, b, from, to);
            }
        }
    }
}
