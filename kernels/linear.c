/* linear, a layer over rows:  y[r, o] = sum_i x[r, i] w[o, i] + b[o] + residual[r, o]
 *                 gradients:  dx[r, i] += sum_o dy[r, o] w[o, i]     dw[o, i] += sum_r dy[r, o] x[r, i]
 *                             db[o] += sum_r dy[r, o]                dresidual += dy
 * x, w and dy as products see them: sd_operand().  With `beside`, i runs over the columns of x, then over those of beside.
 * Fast paths: product.c. */
#include "ops.h"
#include "product.h"

enum { X, WEIGHT, BIAS, RESIDUAL, BESIDE };

struct sd_tensor *
sd_op_linear_beside(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *beside, struct sd_tensor *weight,
                    struct sd_tensor *bias, struct sd_tensor *residual)
{
    return sd_apply(g, SD_OP_linear, (struct sd_tensor *[]){ x, weight, bias, residual, beside }, NULL, 0);
}

struct sd_tensor *
sd_op_linear(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *weight, struct sd_tensor *bias,
             struct sd_tensor *residual)
{
    return sd_op_linear_beside(g, x, NULL, weight, bias, residual);
}

/* Columns of x and beside. */
static int64_t
columns(const struct sd_node *n)
{
    return sd_cols(n->in[X]) + (n->in[BESIDE] ? sd_cols(n->in[BESIDE]) : 0);
}

void
linear_shape(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[X], *w = n->in[WEIGHT];
    int64_t shape[SD_MAX_DIMS], out = w->shape[0];

    for (int i = 0; i < x->ndim; i++)
        shape[i] = x->shape[i];
    if (n->in[BESIDE]) {
        shape[x->ndim - 1] = -1;
        sd_expect_shape(n, "input beside", n->in[BESIDE], x->ndim, shape);
    }
    shape[x->ndim - 1] = out;
    if (w->ndim == 4)
        sd_expect_shape(n, "weight", w, 4, (int64_t[]){ -1, columns(n), 1, 1 });
    else
        sd_expect_shape(n, "weight", w, 2, (int64_t[]){ -1, columns(n) });
    if (n->in[BIAS])
        sd_expect_shape(n, "bias", n->in[BIAS], 1, &out);
    if (n->in[RESIDUAL])
        sd_expect_shape(n, "residual", n->in[RESIDUAL], x->ndim, shape);
    sd_expect_dtype(n, "residual", n->in[RESIDUAL]);
    sd_expect_dtype(n, "input beside", n->in[BESIDE]);
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

/* x or beside, as the loops see it: its columns of the weight begin at `first`. */
struct piece { int input; int64_t first, columns, pitch; const real *x; };

static struct piece
piece_of(const struct sd_node *n, int input)
{
    const struct sd_tensor *x = n->in[input];

    return (struct piece){ input, input == BESIDE ? sd_cols(n->in[X]) : 0, sd_cols(x), x->pitch, sd_values(x) };
}

static real
add_products(const struct sd_node *n, real sum, const struct piece *p, int64_t r, const real *w)
{
    const real *x = p->x + r * p->pitch;

    for (int64_t i = 0; i < p->columns; i++)
        sum += sd_operand(n, x[i]) * sd_operand(n, w[p->first + i]);
    return sum;
}

void
linear_forward_cpu(struct sd_node *n)
{
    const real *w, *bias, *residual;
    int64_t rows = sd_rows(n->in[X]), in = columns(n), out = sd_cols(n->out);

    if (sd_fast() && product_forward(n))
        return;
    struct piece x = piece_of(n, X), beside = n->in[BESIDE] ? piece_of(n, BESIDE) : (struct piece){ 0 };
    w = sd_values(n->in[WEIGHT]);
    bias = n->in[BIAS] ? sd_values(n->in[BIAS]) : NULL;
    residual = n->in[RESIDUAL] ? sd_values(n->in[RESIDUAL]) : NULL;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < out; o++) {
            real sum = (bias ? bias[o] : 0) + (residual ? residual[r * out + o] : 0);

            sum = add_products(n, sum, &x, r, w + o * in);
            if (beside.x)
                sum = add_products(n, sum, &beside, r, w + o * in);
            ((real *)n->out->data)[r * out + o] = sum;
        }
}

static void
backward_x(struct sd_node *n, int input)
{
    int64_t rows = sd_rows(n->in[X]), in = columns(n), out = sd_cols(n->out), pitch = n->din[input]->pitch;
    struct piece p = piece_of(n, input);
    const real *w = sd_values(n->in[WEIGHT]), *dy = n->dout->data;
    real *dx = sd_din(n, input);

#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < out; o++)
            for (int64_t i = 0; i < p.columns; i++)
                dx[r * pitch + i] += sd_operand(n, dy[r * out + o]) * sd_operand(n, w[o * in + p.first + i]);
}

static void
backward_weight(struct sd_node *n, int input)
{
    int64_t rows = sd_rows(n->in[X]), in = columns(n), out = sd_cols(n->out);
    struct piece p = piece_of(n, input);
    const real *dy = n->dout->data;
    real *dw = n->din[WEIGHT]->data;

#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < out; o++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t i = 0; i < p.columns; i++)
                dw[o * in + p.first + i] += sd_operand(n, dy[r * out + o]) * sd_operand(n, p.x[r * p.pitch + i]);
}

void
linear_backward_cpu(struct sd_node *n)
{
    int64_t rows = sd_rows(n->out), out = sd_cols(n->out);
    const real *dy = n->dout->data;

    if ((n->din[X] || n->din[BESIDE]) && !(sd_fast() && product_backward_x(n)))
        for (int i = X; i <= BESIDE; i += BESIDE)
            if (n->din[i])
                backward_x(n, i);
    if (n->din[WEIGHT] && !(sd_fast() && product_backward_weight(n))) {
        sd_din(n, WEIGHT);
        for (int i = X; i <= BESIDE; i += BESIDE)
            if (n->in[i])
                backward_weight(n, i);
    }
    if (n->din[BIAS]) {
        real *sums = n->scratch, *db = sd_din(n, BIAS);

        product_sums(sums, dy, 1, rows, out, sums + out);
        for (int64_t o = 0; o < out; o++)
            db[o] += sums[o];
    }
    if (n->din[RESIDUAL])
        product_pass(n, RESIDUAL);
}
