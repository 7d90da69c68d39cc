/* linear, a layer over rows:  y[r, o] = sum_i x[r, i] w[o, i] + b[o] + residual[r, o]
 *                 gradients:  dx[r, i] += sum_o dy[r, o] w[o, i]     dw[o, i] += sum_r dy[r, o] x[r, i]
 *                             db[o] += sum_r dy[r, o]                dresidual += dy
 * x, w and dy as products see them: sd_operand().  Fast paths: product.c. */
#include "ops.h"
#include "product.h"

enum { X, WEIGHT, BIAS, RESIDUAL };

struct sd_tensor *
sd_op_linear(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *weight, struct sd_tensor *bias,
             struct sd_tensor *residual)
{
    return sd_apply(g, SD_OP_linear, (struct sd_tensor *[]){ x, weight, bias, residual }, NULL, 0);
}

void
linear_shape(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[X], *w = n->in[WEIGHT];
    int64_t shape[SD_MAX_DIMS], out = w->shape[0];

    for (int i = 0; i < x->ndim; i++)
        shape[i] = x->shape[i];
    shape[x->ndim - 1] = out;
    if (w->ndim == 4)
        sd_expect_shape(n, "weight", w, 4, (int64_t[]){ -1, sd_cols(x), 1, 1 });
    else
        sd_expect_shape(n, "weight", w, 2, (int64_t[]){ -1, sd_cols(x) });
    if (n->in[BIAS])
        sd_expect_shape(n, "bias", n->in[BIAS], 1, &out);
    if (n->in[RESIDUAL])
        sd_expect_shape(n, "residual", n->in[RESIDUAL], x->ndim, shape);
    sd_expect_dtype(n, "residual", n->in[RESIDUAL]);
    sd_out(n, x->dtype, x->ndim, shape);
    product_flops(n);
}

void
linear_prepare(struct sd_node *n)
{
    size_t sums = product_sums_bytes(1, sd_rows(n->out), sd_cols(n->out)) + (size_t)sd_cols(n->out) * sizeof(real);

    product_backward_flops(n);
    n->scratch_bytes = n->din[BIAS] ? sums : 0;
    product_prepare(n);
    if (!n->vendor && n->in[WEIGHT]->param)
        sd_param_reserve_values(n->in[WEIGHT]->param);
}

void
linear_forward_cpu(struct sd_node *n)
{
    const real *w, *bias, *residual;
    int64_t rows = sd_rows(n->in[X]), in = sd_cols(n->in[X]), out = sd_cols(n->out), pitch = n->in[X]->pitch;

    if (sd_fast() && product_forward(n))
        return;
    w = sd_values(n->in[WEIGHT]);
    bias = n->in[BIAS] ? sd_values(n->in[BIAS]) : NULL;
    residual = n->in[RESIDUAL] ? sd_values(n->in[RESIDUAL]) : NULL;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const real *x = (const real *)n->in[X]->data + r * pitch;
        real *y = (real *)n->out->data + r * out;

        for (int64_t o = 0; o < out; o++) {
            real sum = (bias ? bias[o] : 0) + (residual ? residual[r * out + o] : 0);

            for (int64_t i = 0; i < in; i++)
                sum += sd_operand(n, x[i]) * sd_operand(n, w[o * in + i]);
            y[o] = sum;
        }
    }
}

static void
backward_x(struct sd_node *n)
{
    int64_t rows = sd_rows(n->in[X]), in = sd_cols(n->in[X]), out = sd_cols(n->out), pitch = n->din[X]->pitch;
    const real *w, *dy = n->dout->data;
    real *dx;

    if (sd_fast() && product_backward_x(n))
        return;
    w = sd_values(n->in[WEIGHT]);
    dx = sd_din(n, X);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < out; o++)
            for (int64_t i = 0; i < in; i++)
                dx[r * pitch + i] += sd_operand(n, dy[r * out + o]) * sd_operand(n, w[o * in + i]);
}

static void
backward_weight(struct sd_node *n)
{
    int64_t rows = sd_rows(n->in[X]), in = sd_cols(n->in[X]), out = sd_cols(n->out), pitch = n->in[X]->pitch;
    const real *x = n->in[X]->data, *dy = n->dout->data;
    real *dw;

    if (sd_fast() && product_backward_weight(n))
        return;
    dw = sd_din(n, WEIGHT);
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < out; o++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < in; i++)
                dw[o * in + i] += sd_operand(n, dy[r * out + o]) * sd_operand(n, x[r * pitch + i]);
}

void
linear_backward_cpu(struct sd_node *n)
{
    int64_t rows = sd_rows(n->out), out = sd_cols(n->out);
    const real *dy = n->dout->data;

    if (n->din[X])
        backward_x(n);
    if (n->din[WEIGHT])
        backward_weight(n);
    if (n->din[BIAS]) {
        real *sums = n->scratch, *db = sd_din(n, BIAS);

        product_sums(sums, dy, 1, rows, out, sums + out);
        for (int64_t o = 0; o < out; o++)
            db[o] += sums[o];
    }
    if (n->din[RESIDUAL])
        product_pass(n, RESIDUAL);
}
