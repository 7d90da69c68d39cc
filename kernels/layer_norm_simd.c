/* layer_norm in vectors, a row at a time; formulas in layer_norm.c.  Sums over a row are made lane by lane in float, then over
 * lanes in a tree; gradients of weight and bias first over pieces of rows, then over pieces in double. */
#include "layer_norm.h"

void
SD_V(layer_norm_forward)(struct sd_node *n)
{
    const float *weight = n->in[1] ? sd_values(n->in[1]) : NULL, *bias = n->in[2] ? sd_values(n->in[2]) : NULL;
    int64_t rows = sd_rows(n->in[0]), D = sd_cols(n->in[0]);
    double eps = *(const double *)n->attr;
    float *saved = n->saved[0]->data;

#pragma omp parallel for schedule(static) if (rows * D > SD_CHUNK)
    for (int64_t r = 0; r < rows; r++) {
        const float *x = (const float *)n->in[0]->data + r * D;
        float *y = (float *)n->out->data + r * D;
        vf sum[2] = { v_zero(), v_zero() }, square[2] = { v_zero(), v_zero() }, mean, inverse;

        for (int64_t i = 0, k = 0; i < D; i += VW, k ^= 1)
            sum[k] += v_get(x + i, D - i);
        saved[2 * r] = v_sum(sum[0] + sum[1]) / (float)D;
        mean = v_set(saved[2 * r]);
        for (int64_t i = 0, k = 0; i < D; i += VW, k ^= 1) {
            vf d = v_keep(v_get(x + i, D - i) - mean, D - i);

            square[k] = v_fma(d, d, square[k]);
        }
        saved[2 * r + 1] = (float)(1 / sqrt((double)v_sum(square[0] + square[1]) / (double)D + eps));
        inverse = v_set(saved[2 * r + 1]);
        for (int64_t i = 0; i < D; i += VW) {
            vf z = (v_get(x + i, D - i) - mean) * inverse;

            z = v_fma(z, weight ? v_get(weight + i, D - i) : v_set(1), bias ? v_get(bias + i, D - i) : v_zero());
            v_put(y + i, z, D - i);
        }
    }
}

/* One row: dx (when not NULL), and its share of dweight and dbias (when not NULL). */
SD_INLINE void
gradient_row(const float *x, const float *dy, const float *weight, const float *saved, int64_t D, float *dx, bool store,
             float *dweight, float *dbias)
{
    vf mean = v_set(saved[0]), inverse = v_set(saved[1]), sum = v_zero(), product = v_zero();

    for (int64_t i = 0; i < D; i += VW) {
        int64_t left = D - i;
        vf normal = (v_get(x + i, left) - mean) * inverse, d = v_get(dy + i, left);     /* zero beyond the row */
        vf g = weight ? d * v_get(weight + i, left) : d;

        sum += g;
        product = v_fma(g, normal, product);
        if (dweight)
            v_put(dweight + i, v_fma(d, normal, v_get(dweight + i, left)), left);
        if (dbias)
            v_put(dbias + i, v_get(dbias + i, left) + d, left);
    }
    if (!dx)
        return;
    sum = v_set(v_sum(sum) / (float)D);
    product = v_set(v_sum(product) / (float)D);
    for (int64_t i = 0; i < D; i += VW) {
        int64_t left = D - i;
        vf normal = (v_get(x + i, left) - mean) * inverse, d = v_get(dy + i, left);

        d = ((weight ? d * v_get(weight + i, left) : d) - sum - normal * product) * inverse;
        v_put(dx + i, store ? d : v_get(dx + i, left) + d, left);
    }
}

void
SD_V(layer_norm_backward)(struct sd_node *n)
{
    const float *weight = n->in[1] ? sd_values(n->in[1]) : NULL, *saved = n->saved[0]->data;
    int64_t rows = sd_rows(n->in[0]), D = sd_cols(n->in[0]), chunks = layer_norm_chunks(rows);
    bool weights = n->din[1] || n->din[2];
    float *sums = n->scratch;       /* [chunks, 2, D] of dweight, dbias */

#pragma omp parallel for schedule(static) if (rows * D > SD_CHUNK)
    for (int64_t k = 0; k < chunks; k++) {
        float *dweight = weights ? sums + k * 2 * D : NULL, *dbias = weights ? dweight + D : NULL;

        if (weights)
            memset(dweight, 0, (size_t)(2 * D) * sizeof *sums);
        for (int64_t r = rows * k / chunks; r < rows * (k + 1) / chunks; r++)
            gradient_row((const float *)n->in[0]->data + r * D, (const float *)n->dout->data + r * D, weight, saved + 2 * r, D,
                         n->din[0] ? (float *)n->din[0]->data + r * D : NULL, n->din_store[0], dweight, dbias);
    }
    for (int input = 1; input < 3; input++) {
        float *d = n->din[input] ? n->din[input]->data : NULL;

        for (int64_t c = 0; d && c < D; c++) {
            double sum = 0;

            for (int64_t k = 0; k < chunks; k++)
                sum += sums[(k * 2 + input - 1) * D + c];
            d[c] = (float)sum + (n->din_store[input] ? 0 : d[c]);
        }
    }
}
