/* group_norm, over the pixels and channels of one group of one sample:
 *              z = (x - mean) / std * weight + bias,  y = z, or silu(z) when asked
 *   gradient:  dz = dy silu'(z),  g = dz weight,  n = (x - mean) / std
 *              dx += (g - average(g) - n average(g n)) / std;  dweight += sum dz n;  dbias += sum dz
 * Sums in double.  Saves mean and 1/std [B, groups, 2].  Channels of `beside` follow those of x, as if the two were one.
 * Vector twin: group_norm_simd.c */
#include "group_norm.h"

struct sd_tensor *
sd_op_group_norm_beside(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *beside, struct sd_tensor *weight,
                        struct sd_tensor *bias, int groups, double eps, bool silu)
{
    struct group_norm a = { groups, eps, silu };

    return sd_apply(g, SD_OP_group_norm, (struct sd_tensor *[]){ x, weight, bias, beside }, &a, sizeof a);
}

struct sd_tensor *
sd_op_group_norm(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *weight, struct sd_tensor *bias, int groups,
                 double eps, bool silu)
{
    return sd_op_group_norm_beside(g, x, NULL, weight, bias, groups, eps, silu);
}

void
group_norm_shape(struct sd_node *n)
{
    const struct group_norm *a = n->attr;
    const struct sd_tensor *x = n->in[0];
    int64_t C = group_norm_channels(n), shape[SD_MAX_DIMS];

    memcpy(shape, x->shape, sizeof shape);
    if (n->in[GROUP_NORM_BESIDE]) {
        shape[x->ndim - 1] = -1;
        sd_expect_shape(n, "input beside", n->in[GROUP_NORM_BESIDE], x->ndim, shape);
        sd_expect_dtype(n, "input beside", n->in[GROUP_NORM_BESIDE]);
    }
    shape[x->ndim - 1] = C;
    if (a->groups < 1 || C % a->groups)
        sd_graph_fault(n->graph, "group_norm: %d groups, %lld channels", a->groups, (long long)C);
    for (int i = 1; i < 3; i++)
        if (n->in[i])
            sd_expect_shape(n, i == 1 ? "weight" : "bias", n->in[i], 1, &C);
    sd_out(n, x->dtype, x->ndim, shape);
    sd_save(n, 0, SD_F32, 3, (int64_t[]){ x->shape[0], a->groups > 0 ? a->groups : 1, 2 });
}

void
group_norm_prepare(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0];
    int64_t chunks = x->shape[0] ? group_norm_chunks(sd_rows(x) / x->shape[0]) : 0;

    n->scratch_bytes = (size_t)(x->shape[0] * (chunks * 2 + GROUP_NORM_TERMS) * group_norm_channels(n)) * sizeof(float);
}

struct group {
    int64_t P, C, size, b, first;       /* pixels, channels, channels of a group; its sample and first channel */
    int64_t border;                     /* first channel of beside */
    const real *x, *beside, *weight, *bias;
    real *saved;                        /* mean, 1/std */
};

static struct group
group_at(const struct sd_node *n, int64_t i)
{
    const struct group_norm *a = n->attr;
    const struct sd_tensor *x = n->in[0];
    int64_t C = group_norm_channels(n);
    struct group g = { .P = sd_rows(x) / x->shape[0], .C = C, .size = C / a->groups, .b = i / a->groups };

    g.first = i % a->groups * g.size;
    g.border = sd_cols(x);
    g.x = (const real *)x->data + g.b * g.P * g.border;
    if (g.border < C)
        g.beside = (const real *)n->in[GROUP_NORM_BESIDE]->data + g.b * g.P * (C - g.border);
    g.weight = n->in[1] ? sd_values(n->in[1]) : NULL;
    g.bias = n->in[2] ? sd_values(n->in[2]) : NULL;
    g.saved = (real *)n->saved[0]->data + 2 * i;
    return g;
}

static real
at(const struct group *g, int64_t p, int64_t c)
{
    return c < g->border ? g->x[p * g->border + c] : g->beside[p * (g->C - g->border) + c - g->border];
}

void
group_norm_forward_cpu(struct sd_node *n)
{
    const struct group_norm *a = n->attr;
    int64_t B = n->in[0]->shape[0];

    SD_SIMD(group_norm_forward);
    for (int64_t i = 0; i < B * a->groups; i++) {
        struct group g = group_at(n, i);
        double sum = 0, square = 0, mean, count = (double)(g.P * g.size);
        real *y = (real *)n->out->data + g.b * g.P * g.C;

        for (int64_t p = 0; p < g.P; p++)
            for (int64_t c = g.first; c < g.first + g.size; c++)
                sum += at(&g, p, c);
        mean = sum / count;
        for (int64_t p = 0; p < g.P; p++)
            for (int64_t c = g.first; c < g.first + g.size; c++)
                square += (at(&g, p, c) - mean) * (at(&g, p, c) - mean);
        g.saved[0] = (real)mean;
        g.saved[1] = (real)(1 / sqrt(square / count + a->eps));
        for (int64_t p = 0; p < g.P; p++)
            for (int64_t c = g.first; c < g.first + g.size; c++) {
                real z = (at(&g, p, c) - g.saved[0]) * g.saved[1];

                z = z * (g.weight ? g.weight[c] : 1) + (g.bias ? g.bias[c] : 0);
                y[p * g.C + c] = a->silu ? z / (1 + exp(-z)) : z;
            }
    }
}

void
group_norm_backward_cpu(struct sd_node *n)
{
    const struct group_norm *a = n->attr;
    int64_t B = n->in[0]->shape[0];
    real *dx, *dbeside, *dweight, *dbias;

    SD_SIMD(group_norm_backward);
    dx = sd_din(n, 0);
    dweight = sd_din(n, 1);
    dbias = sd_din(n, 2);
    dbeside = sd_din(n, GROUP_NORM_BESIDE);
    for (int64_t i = 0; i < B * a->groups; i++) {
        struct group g = group_at(n, i);
        const real *dy = (const real *)n->dout->data + g.b * g.P * g.C;
        real mean = g.saved[0], inverse = g.saved[1];
        double sum_g = 0, sum_gn = 0, count = (double)(g.P * g.size);

        for (int pass = 0; pass < 2; pass++)        /* sums, then dx */
            for (int64_t c = g.first; c < g.first + g.size; c++) {
                double sum_dz = 0, sum_dzn = 0;
                real w = g.weight ? g.weight[c] : 1, bias = g.bias ? g.bias[c] : 0;
                int64_t wide = c < g.border ? g.border : g.C - g.border;
                real *d = c < g.border ? dx : dbeside;

                for (int64_t p = 0; p < g.P; p++) {
                    real normal = (at(&g, p, c) - mean) * inverse, dz = dy[p * g.C + c];

                    if (a->silu) {
                        real z = normal * w + bias, s = 1 / (1 + exp(-z));

                        dz *= s * (1 + z * (1 - s));
                    }
                    sum_dz += dz;
                    sum_dzn += (double)dz * normal;
                    if (pass == 1 && d)
                        d[(g.b * g.P + p) * wide + (c < g.border ? c : c - g.border)] +=
                            (real)((dz * w - sum_g / count - normal * (sum_gn / count)) * inverse);
                }
                if (pass == 1)
                    continue;
                sum_g += w * sum_dz;
                sum_gn += w * sum_dzn;
                if (dweight)
                    dweight[c] += (real)sum_dzn;
                if (dbias)
                    dbias[c] += (real)sum_dz;
            }
    }
}
