/* projections, several linear layers over the same x, side by side; of part p, whose columns of y begin at c:
 *     y[r, c + o] = sum_i x[r, i] w[o, i] + b[o] + sum_k u[r, k] up[o, k] + residual[r, c + o]
 *     u[r, k] = scale sum_i x[r, i] down[k, i]
 * gradients, with v[r, k] = scale sum_o dy[r, c + o] up[o, k]:
 *     dx[r, i] += sum_o dy[r, c + o] w[o, i] + sum_k v[r, k] down[k, i]
 *     dup[o, k] += sum_r dy[r, c + o] u[r, k]     ddown[k, i] += sum_r v[r, k] x[r, i]     dresidual += dy
 * x, w, dy, down, up, u and v as products see them: sd_operand().  u is computed again for the gradient of up (the
 * CUDA twin keeps it).
 * Fast path: projections_products.c. */
#include "product.h"
#include "projections_products.h"

struct sd_tensor *
sd_op_projections(struct sd_graph *g, struct sd_tensor *x, const struct sd_projections *a, struct sd_tensor *residual)
{
    return sd_apply(g, SD_OP_projections, (struct sd_tensor *[]){ x, sd_use(g, sd_param_join(a)), residual }, NULL, 0);
}

static void
expect(struct sd_node *n, const struct sd_param *p, int64_t rows, int64_t cols)
{
    struct sd_tensor x = { .ndim = p->ndim };

    memcpy(x.shape, p->shape, sizeof x.shape);
    if (!cols)
        sd_expect_shape(n, p->path, &x, 1, &rows);
    else
        sd_expect_shape(n, p->path, &x, p->ndim == 4 ? 4 : 2, (int64_t[]){ rows, cols, 1, 1 });
}

void
projections_shape(struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    const struct sd_tensor *x = n->in[X];
    int64_t shape[SD_MAX_DIMS], in = sd_cols(x), out = 0;

    for (int i = 0; i < a->parts; i++) {
        const struct sd_projection *p = &a->part[i];

        if (!p->weight || !p->down != !p->up || (p->scale && !p->down))
            sd_bug(n->path, "projections: part %d has no weight, or half an adapter", i);
        if (p->weight->trainable || (p->bias && p->bias->trainable) || (p->scale && p->scale->trainable))
            sd_bug(n->path, "projections: of part %d more than the adapter is trainable", i);
        expect(n, p->weight, -1, in);
        if (p->bias)
            expect(n, p->bias, projection_out(p), 0);
        if (p->down) {
            expect(n, p->down, -1, in);
            expect(n, p->up, projection_out(p), projection_rank(p));
        }
        if (p->scale)
            expect(n, p->scale, 1, 0);
        out += projection_out(p);
    }
    memcpy(shape, x->shape, sizeof shape);
    shape[x->ndim - 1] = out;
    if (n->in[RESIDUAL])
        sd_expect_shape(n, "residual", n->in[RESIDUAL], x->ndim, shape);
    sd_expect_dtype(n, "residual", n->in[RESIDUAL]);
    sd_out(n, x->dtype, x->ndim, shape);
    for (int i = 0; i < a->parts; i++)
        n->flops += 2.0 * (double)sd_rows(x) *
            (double)(in * projection_out(&a->part[i]) +
                     projection_rank(&a->part[i]) * (in + projection_out(&a->part[i])));
}

void
projections_backward_flops(struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    int64_t in = sd_cols(n->in[X]), sums = 0;

    for (int i = 0; i < a->parts; i++) {
        const struct sd_projection *p = &a->part[i];
        int64_t out = projection_out(p), rank = projection_rank(p);
        bool down = trains(n, p->down), up = trains(n, p->up);

        sums += (n->din[X] ? in * (out + rank) : 0) + (n->din[X] || down ? rank * out : 0) + (down ? rank * in : 0) +
            (up ? rank * (in + out) : 0);
    }
    n->backward_flops = 2.0 * (double)sd_rows(n->in[X]) * (double)sums;
}

/* -- C loops ------------------------------------------------------------------------------------------------------- */

/* u[r, k], rows of `rank` */
static void
narrow_loops(const struct sd_node *n, const struct sd_projection *p, real *u)
{
    int64_t rows = sd_rows(n->in[X]), in = sd_cols(n->in[X]), rank = projection_rank(p), pitch = n->in[X]->pitch;
    const real *down = sd_param_values(p->down), *x = n->in[X]->data;
    real scale = scale_of(p);

#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < rank; k++) {
            real sum = 0;

            for (int64_t i = 0; i < in; i++)
                sum += sd_operand(n, x[r * pitch + i]) * sd_operand(n, down[k * in + i]);
            u[r * rank + k] = scale * sum;
        }
}

/* v[r, k] */
static void
narrow_gradient_loops(const struct sd_node *n, const struct sd_projection *p, int64_t begin, real *v)
{
    int64_t rows = sd_rows(n->in[X]), out = projection_out(p), rank = projection_rank(p), pitch = sd_cols(n->out);
    const real *up = sd_param_values(p->up), *dy = (const real *)n->dout->data + begin;
    real scale = scale_of(p);

#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < rank; k++) {
            real sum = 0;

            for (int64_t o = 0; o < out; o++)
                sum += sd_operand(n, dy[r * pitch + o]) * sd_operand(n, up[o * rank + k]);
            v[r * rank + k] = scale * sum;
        }
}

static void
forward_loops(const struct sd_node *n, const struct sd_projection *p, int64_t begin)
{
    int64_t rows = sd_rows(n->in[X]), in = sd_cols(n->in[X]), out = projection_out(p), rank = projection_rank(p);
    int64_t wide = sd_cols(n->out);
    const real *w = sd_param_values(p->weight), *bias = p->bias ? sd_param_values(p->bias) : NULL;
    const real *residual = n->in[RESIDUAL] ? sd_values(n->in[RESIDUAL]) : NULL;
    const real *up = p->up ? sd_param_values(p->up) : NULL, *u = n->scratch;

    if (rank)
        narrow_loops(n, p, n->scratch);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const real *x = (const real *)n->in[X]->data + r * n->in[X]->pitch;
        real *y = (real *)n->out->data + r * wide + begin;

        for (int64_t o = 0; o < out; o++) {
            real sum = (bias ? bias[o] : 0) + (residual ? residual[r * wide + begin + o] : 0);

            for (int64_t i = 0; i < in; i++)
                sum += sd_operand(n, x[i]) * sd_operand(n, w[o * in + i]);
            for (int64_t k = 0; k < rank; k++)
                sum += sd_operand(n, u[r * rank + k]) * sd_operand(n, up[o * rank + k]);
            y[o] = sum;
        }
    }
}

static void
backward_x_loops(const struct sd_node *n, const struct sd_projection *p, int64_t begin, const real *v)
{
    int64_t rows = sd_rows(n->in[X]), in = sd_cols(n->in[X]), out = projection_out(p), rank = projection_rank(p);
    int64_t wide = sd_cols(n->out);
    const real *w = sd_param_values(p->weight), *down = p->down ? sd_param_values(p->down) : NULL;

#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        real *dx = (real *)n->din[X]->data + r * n->din[X]->pitch;
        const real *dy = (const real *)n->dout->data + r * wide + begin;

        for (int64_t o = 0; o < out; o++)
            for (int64_t i = 0; i < in; i++)
                dx[i] += sd_operand(n, dy[o]) * sd_operand(n, w[o * in + i]);
        for (int64_t k = 0; k < rank; k++)
            for (int64_t i = 0; i < in; i++)
                dx[i] += sd_operand(n, v[r * rank + k]) * sd_operand(n, down[k * in + i]);
    }
}

/* to[a, b] += sum_r left[r, a] right[r, b]; both are operands */
static void
sum_rows(const struct sd_node *n, real *to, const real *left, int64_t left_pitch, int64_t height, const real *right,
         int64_t right_pitch, int64_t width)
{
    int64_t rows = sd_rows(n->in[X]);

#pragma omp parallel for schedule(static)
    for (int64_t a = 0; a < height; a++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t b = 0; b < width; b++)
                to[a * width + b] +=
                    sd_operand(n, left[r * left_pitch + a]) * sd_operand(n, right[r * right_pitch + b]);
}

static void
backward_loops(struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    int64_t in = sd_cols(n->in[X]), wide = sd_cols(n->out), begin = 0;
    const real *x = n->in[X]->data, *dy = n->dout->data;

    sd_din(n, X);
    for (int i = 0; i < a->parts; begin += projection_out(&a->part[i++])) {
        const struct sd_projection *p = &a->part[i];
        int64_t rank = projection_rank(p);

        if (rank && (n->din[X] || trains(n, p->down)))
            narrow_gradient_loops(n, p, begin, n->scratch);
        if (n->din[X])
            backward_x_loops(n, p, begin, n->scratch);
        if (trains(n, p->down))
            sum_rows(n, p->down->grad, n->scratch, rank, rank, x, n->in[X]->pitch, in);
        if (trains(n, p->up)) {
            narrow_loops(n, p, n->scratch);
            sum_rows(n, p->up->grad, dy + begin, wide, projection_out(p), n->scratch, rank, rank);
        }
    }
}

/* -- entries ------------------------------------------------------------------------------------------------------- */

static void
reserve(struct sd_param *p, bool products)
{
    if (p && !(products && projections_readable(p)))
        sd_param_reserve_values(p);
}

void
projections_prepare(struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    bool products = projections_prepare_products(n);

    projections_backward_flops(n);
    if (!products)
        n->scratch_bytes = (size_t)(sd_rows(n->in[X]) * most_rank(a)) * sizeof(real);
    for (int i = 0; i < a->parts; i++) {
        reserve(a->part[i].weight, products);
        reserve(a->part[i].down, products);
        reserve(a->part[i].up, products);
        reserve(a->part[i].bias, false);
        reserve(a->part[i].scale, false);
    }
}

void
projections_forward_cpu(struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    int64_t begin = 0;

    if (sd_fast() && n->vendor) {
        projections_forward_products(n);
        return;
    }
    for (int i = 0; i < a->parts; begin += projection_out(&a->part[i++]))
        forward_loops(n, &a->part[i], begin);
}

void
projections_backward_cpu(struct sd_node *n)
{
    if (n->din[X] || n->din[PARTS]) {
        if (sd_fast() && n->vendor)
            projections_backward_products(n);
        else
            backward_loops(n);
    }
    if (n->din[RESIDUAL])
        product_pass(n, RESIDUAL);
}
