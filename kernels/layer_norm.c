/* layer_norm, row by row:  n = (x - mean) / std,  y = n weight + bias
 *   gradient:  g = dy weight;  dx += (g - average(g) - n average(g n)) / std;  dweight += sum dy n;  dbias += sum dy
 * Sums in double.  Saves mean and 1/std [rows, 2].  Vector twin: layer_norm_simd.c */
#include "layer_norm.h"

struct sd_tensor *
sd_op_layer_norm(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *weight, struct sd_tensor *bias, double eps)
{
    return sd_apply(g, SD_OP_layer_norm, (struct sd_tensor *[]){ x, weight, bias }, &eps, sizeof eps);
}

void
layer_norm_shape(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0];
    int64_t D = sd_cols(x);

    for (int i = 1; i < 3; i++)
        if (n->in[i])
            sd_expect_shape(n, i == 1 ? "weight" : "bias", n->in[i], 1, &D);
    sd_out_like(n, x);
    sd_save(n, 0, SD_F32, 2, (int64_t[]){ sd_rows(x), 2 });
}

void
layer_norm_prepare(struct sd_node *n)
{
    if (n->din[1] || n->din[2])
        n->scratch_bytes = (size_t)(layer_norm_chunks(sd_rows(n->in[0])) * 2 * sd_cols(n->in[0])) * sizeof(float);
}

void
layer_norm_forward_cpu(struct sd_node *n)
{
    const real *x = n->in[0]->data;
    const real *weight = n->in[1] ? sd_values(n->in[1]) : NULL, *bias = n->in[2] ? sd_values(n->in[2]) : NULL;
    int64_t rows = sd_rows(n->in[0]), D = sd_cols(n->in[0]);
    double eps = *(const double *)n->attr;
    real *y = n->out->data, *saved = n->saved[0]->data;

    SD_SIMD(layer_norm_forward);
    for (int64_t r = 0; r < rows; r++, x += D, y += D) {
        double sum = 0, square = 0, mean;

        for (int64_t i = 0; i < D; i++)
            sum += x[i];
        mean = sum / (double)D;
        for (int64_t i = 0; i < D; i++)
            square += (x[i] - mean) * (x[i] - mean);
        saved[2 * r] = (real)mean;
        saved[2 * r + 1] = (real)(1 / sqrt(square / (double)D + eps));
        for (int64_t i = 0; i < D; i++)
            y[i] = (x[i] - saved[2 * r]) * saved[2 * r + 1] * (weight ? weight[i] : 1) + (bias ? bias[i] : 0);
    }
}

void
layer_norm_backward_cpu(struct sd_node *n)
{
    const real *x = n->in[0]->data, *dy = n->dout->data, *saved = n->saved[0]->data;
    const real *weight = n->in[1] ? sd_values(n->in[1]) : NULL;
    int64_t rows = sd_rows(n->in[0]), D = sd_cols(n->in[0]);
    real *dx, *dweight, *dbias;

    SD_SIMD(layer_norm_backward);
    dx = sd_din(n, 0);
    dweight = sd_din(n, 1);
    dbias = sd_din(n, 2);
    for (int64_t r = 0; r < rows; r++, x += D, dy += D) {
        real mean = saved[2 * r], inverse = saved[2 * r + 1];
        double sum_g = 0, sum_gn = 0;

        for (int64_t i = 0; i < D; i++) {
            double g = dy[i] * (weight ? weight[i] : 1);

            sum_g += g;
            sum_gn += g * ((x[i] - mean) * inverse);
        }
        for (int64_t i = 0; i < D; i++) {
            real normal = (x[i] - mean) * inverse, g = dy[i] * (weight ? weight[i] : 1);

            if (dx)
                dx[r * D + i] += (real)((g - sum_g / (double)D - normal * (sum_gn / (double)D)) * inverse);
            if (dweight)
                dweight[i] += dy[i] * normal;
            if (dbias)
                dbias[i] += dy[i];
        }
    }
}
