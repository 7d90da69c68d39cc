/* mse, per sample:  y[b] = weight[b] sum_{pixel, c} mask[b, pixel] (pred - target)^2, summed in double
 *        gradient:  dpred += dy[b] 2 weight[b] mask (pred - target) */
#include "ops.h"
#include "simd.h"

struct sd_tensor *
sd_op_mse(struct sd_graph *g, struct sd_tensor *pred, struct sd_tensor *target, struct sd_tensor *mask, struct sd_tensor *weight)
{
    return sd_apply(g, SD_OP_mse, (struct sd_tensor *[]){ pred, target, mask, weight }, NULL, 0);
}

void
mse_shape(struct sd_node *n)
{
    const struct sd_tensor *pred = n->in[0];

    sd_expect_shape(n, "target", n->in[1], pred->ndim, pred->shape);
    if (n->in[2])
        sd_expect_shape(n, "mask", n->in[2], pred->ndim - 1, pred->shape);
    sd_expect_shape(n, "weight", n->in[3], 1, pred->shape);
    sd_out(n, SD_F32, 1, pred->shape);
}

void
mse_forward_cpu(struct sd_node *n)
{
    const struct sd_tensor *pred = n->in[0];
    const real *x = pred->data, *t = n->in[1]->data, *mask = n->in[2] ? n->in[2]->data : NULL, *weight = n->in[3]->data;
    int64_t B = pred->shape[0], C = sd_cols(pred), P = B ? sd_rows(pred) / B : 0;
    real *y = n->out->data;

    for (int64_t b = 0; b < B; b++) {
        double sum = 0;

        for (int64_t p = b * P; p < (b + 1) * P; p++) {
            double m = mask ? mask[p] : 1;

            for (int64_t c = 0; c < C; c++)
                sum += m * ((double)x[p * C + c] - t[p * C + c]) * ((double)x[p * C + c] - t[p * C + c]);
        }
        y[b] = (real)(weight[b] * sum);
    }
}

void
mse_backward_cpu(struct sd_node *n)
{
    const struct sd_tensor *pred = n->in[0];
    const real *x = pred->data, *t = n->in[1]->data, *mask = n->in[2] ? n->in[2]->data : NULL, *weight = n->in[3]->data;
    const real *dy = n->dout->data;
    int64_t B = pred->shape[0], C = sd_cols(pred), P = B ? sd_rows(pred) / B : 0;
    real *dx = sd_din(n, 0);

    for (int64_t b = 0; b < B; b++)
        for (int64_t p = b * P; p < (b + 1) * P; p++) {
            real factor = 2 * dy[b] * weight[b] * (mask ? mask[p] : 1);

            for (int64_t c = 0; c < C; c++)
                dx[p * C + c] += factor * (x[p * C + c] - t[p * C + c]);
        }
}
