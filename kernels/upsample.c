/* upsample:  y[b, i, j] = x[b, i/2, j/2];  gradient:  dx[b, i, j] += the four pixels of dy made from it. */
#include "ops.h"
#include "simd.h"

struct sd_tensor *
sd_op_upsample(struct sd_graph *g, struct sd_tensor *x)
{
    return sd_apply(g, SD_OP_upsample, (struct sd_tensor *[]){ x }, NULL, 0);
}

void
upsample_shape(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0];

    if (sd_expect_shape(n, "input", x, 4, (int64_t[]){ -1, -1, -1, -1 }))
        sd_out(n, x->dtype, 4, (int64_t[]){ x->shape[0], 2 * x->shape[1], 2 * x->shape[2], x->shape[3] });
    else
        sd_out_like(n, x);
}

void
upsample_forward_cpu(struct sd_node *n)
{
    const struct sd_tensor *in = n->in[0];
    int64_t rows = in->shape[0] * in->shape[1], W = in->shape[2], C = in->shape[3];
    const real *x = in->data;
    real *y = n->out->data;

#pragma omp parallel for schedule(static) if (n->out->numel > SD_CHUNK)
    for (int64_t r = 0; r < rows; r++) {
        real *row = y + r * 4 * W * C;

        for (int64_t j = 0; j < 2 * W; j++)
            memcpy(row + j * C, x + (r * W + j / 2) * C, (size_t)C * sizeof *row);
        memcpy(row + 2 * W * C, row, (size_t)(2 * W * C) * sizeof *row);
    }
}

void
upsample_backward_cpu(struct sd_node *n)
{
    const struct sd_tensor *in = n->in[0];
    int64_t rows = in->shape[0] * in->shape[1], W = in->shape[2], C = in->shape[3];
    const real *dy = n->dout->data;
    real *dx = sd_din(n, 0);

#pragma omp parallel for schedule(static) if (n->out->numel > SD_CHUNK)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < W; j++) {
            const real *upper = dy + (r * 4 * W + 2 * j) * C, *lower = upper + 2 * W * C;
            real *d = dx + (r * W + j) * C;

            for (int64_t c = 0; c < C; c++)
                d[c] += (upper[c] + upper[C + c]) + (lower[c] + lower[C + c]);
        }
}
