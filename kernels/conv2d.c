/* conv2d, over NHWC with a weight [out, in, kh, kw]:
 *     y[b, i, j, o] = sum_{ky, kx, c} e[b, s i + ky - top, s j + kx - left, c] w[o, c, ky, kx] + bias[o] + add[b, o] + residual
 *     e = x, or x enlarged twice by repeating pixels; zero outside
 * gradients:
 *     de[b, s i + ky - top, ...] += sum dy w;  dx sums the four pixels of de that were one
 *     dw[o, c, ky, kx] += sum_{b, i, j} dy[b, i, j, o] e[...]
 *     dadd[b, o] += sum_{i, j} dy;  dbias[o] += sum_b of that;  dresidual += dy
 * x, w and the dy that meets them as products see them: sd_operand().
 * Fast paths: product.c. */
#include "ops.h"
#include "product.h"

enum { X, WEIGHT, BIAS, ADD, RESIDUAL };

struct sd_tensor *
sd_op_conv2d(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *weight, struct sd_tensor *bias,
             struct sd_tensor *channel_add, struct sd_tensor *residual, struct sd_conv2d a)
{
    return sd_apply(g, SD_OP_conv2d, (struct sd_tensor *[]){ x, weight, bias, channel_add, residual }, &a, sizeof a);
}

void
conv2d_shape(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[X], *w = n->in[WEIGHT];
    const struct sd_conv2d *a = n->attr;
    int64_t out = w->shape[0], shape[4];

    if (!sd_expect_shape(n, "input", x, 4, (int64_t[]){ -1, -1, -1, -1 }) ||
        !sd_expect_shape(n, "weight", w, 4, (int64_t[]){ -1, x->shape[3], -1, -1 })) {
        sd_out_like(n, x);
        return;
    }
    if (a->stride < 1 || a->upsample < 1 || a->upsample > 2 || (a->upsample == 2 && a->stride != 1))
        sd_bug("conv2d", "stride %d, upsample %d", a->stride, a->upsample);
    if (a->upsample == 2 && (a->top >= w->shape[2] || a->bottom >= w->shape[2] || a->left >= w->shape[3] || a->right >= w->shape[3]))
        sd_bug("conv2d", "an enlarged picture padded as wide as the kernel");
    shape[0] = x->shape[0];
    shape[1] = (x->shape[1] * a->upsample + a->top + a->bottom - w->shape[2]) / a->stride + 1;
    shape[2] = (x->shape[2] * a->upsample + a->left + a->right - w->shape[3]) / a->stride + 1;
    shape[3] = out;
    if (x->shape[1] * a->upsample + a->top + a->bottom < w->shape[2] ||
        x->shape[2] * a->upsample + a->left + a->right < w->shape[3]) {
        sd_graph_fault(n->graph, "conv2d: input %dx%d is smaller than the kernel %dx%d", (int)x->shape[1], (int)x->shape[2],
                       (int)w->shape[2], (int)w->shape[3]);
        shape[1] = shape[2] = 1;
    }
    if (n->in[BIAS])
        sd_expect_shape(n, "bias", n->in[BIAS], 1, &out);
    if (n->in[ADD])
        sd_expect_shape(n, "channel_add", n->in[ADD], 2, (int64_t[]){ shape[0], out });
    if (n->in[RESIDUAL])
        sd_expect_shape(n, "residual", n->in[RESIDUAL], 4, shape);
    sd_expect_dtype(n, "channel_add", n->in[ADD]);
    sd_expect_dtype(n, "residual", n->in[RESIDUAL]);
    sd_out(n, x->dtype, 4, shape);
    product_flops(n);
}

void
conv2d_prepare(struct sd_node *n)
{
    struct product_shape s = product_shape(n);
    size_t sums = product_sums_bytes(s.batch, s.out_height * s.out_width, s.out) + (size_t)(s.batch * s.out) * sizeof(real);

    product_backward_flops(n);
    n->scratch_bytes = n->din[BIAS] || n->din[ADD] ? sums : 0;
    product_prepare(n);
    if (!n->vendor && n->in[WEIGHT]->param)
        sd_param_reserve_values(n->in[WEIGHT]->param);
}

/* Index of the pixel of x under kernel element (ky, kx) of output (i, j); -1 outside. */
static int64_t
source(const struct product_shape *s, int64_t b, int64_t i, int64_t j, int ky, int kx)
{
    int64_t y = i * s->a.stride + ky - s->a.top, x = j * s->a.stride + kx - s->a.left;
    int up = s->a.upsample;

    if (y < 0 || y >= s->height * up || x < 0 || x >= s->width * up)
        return -1;
    return (b * s->height + y / up) * s->width + x / up;
}

void
conv2d_forward_cpu(struct sd_node *n)
{
    struct product_shape s = product_shape(n);
    const real *w, *bias, *add, *residual, *x = n->in[X]->data;
    real *y = n->out->data;

    if (sd_fast() && product_forward(n))
        return;
    w = sd_values(n->in[WEIGHT]);
    bias = n->in[BIAS] ? sd_values(n->in[BIAS]) : NULL;
    add = n->in[ADD] ? sd_values(n->in[ADD]) : NULL;
    residual = n->in[RESIDUAL] ? sd_values(n->in[RESIDUAL]) : NULL;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < s.batch * s.out_height; r++)
        for (int64_t j = 0; j < s.out_width; j++)
            for (int64_t o = 0; o < s.out; o++) {
                int64_t b = r / s.out_height, i = r % s.out_height, at = (r * s.out_width + j) * s.out + o;
                real sum = (bias ? bias[o] : 0) + (add ? add[b * n->in[ADD]->pitch + o] : 0) + (residual ? residual[at] : 0);

                for (int ky = 0; ky < s.kernel_height; ky++)
                    for (int kx = 0; kx < s.kernel_width; kx++) {
                        int64_t from = source(&s, b, i, j, ky, kx);

                        for (int64_t c = 0; from >= 0 && c < s.in; c++)
                            sum += sd_operand(n, x[from * s.in + c]) *
                                   sd_operand(n, w[((o * s.in + c) * s.kernel_height + ky) * s.kernel_width + kx]);
                    }
                y[at] = sum;
            }
}

static void
backward_x(struct sd_node *n)
{
    struct product_shape s = product_shape(n);
    const real *w, *dy = n->dout->data;
    real *dx;

    if (sd_fast() && product_backward_x(n))
        return;
    w = sd_values(n->in[WEIGHT]);
    dx = sd_din(n, X);
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < s.batch; b++)
        for (int64_t p = 0; p < s.out_height * s.out_width; p++)
            for (int ky = 0; ky < s.kernel_height; ky++)
                for (int kx = 0; kx < s.kernel_width; kx++) {
                    int64_t from = source(&s, b, p / s.out_width, p % s.out_width, ky, kx);

                    for (int64_t o = 0; from >= 0 && o < s.out; o++)
                        for (int64_t c = 0; c < s.in; c++)
                            dx[from * s.in + c] +=
                                sd_operand(n, dy[(b * s.out_height * s.out_width + p) * s.out + o]) *
                                sd_operand(n, w[((o * s.in + c) * s.kernel_height + ky) * s.kernel_width + kx]);
                }
}

static void
backward_weight(struct sd_node *n)
{
    struct product_shape s = product_shape(n);
    const real *x = n->in[X]->data, *dy = n->dout->data;
    real *dw;

    if (sd_fast() && product_backward_weight(n))
        return;
    dw = sd_din(n, WEIGHT);
#pragma omp parallel for schedule(static)
    for (int64_t o = 0; o < s.out; o++)
        for (int64_t p = 0; p < s.batch * s.out_height * s.out_width; p++)
            for (int ky = 0; ky < s.kernel_height; ky++)
                for (int kx = 0; kx < s.kernel_width; kx++) {
                    int64_t from = source(&s, p / s.out_width / s.out_height, p / s.out_width % s.out_height,
                                          p % s.out_width, ky, kx);

                    for (int64_t c = 0; from >= 0 && c < s.in; c++)
                        dw[((o * s.in + c) * s.kernel_height + ky) * s.kernel_width + kx] +=
                            sd_operand(n, dy[p * s.out + o]) * sd_operand(n, x[from * s.in + c]);
                }
}

void
conv2d_backward_cpu(struct sd_node *n)
{
    struct product_shape s = product_shape(n);

    if (n->din[X])
        backward_x(n);
    if (n->din[WEIGHT])
        backward_weight(n);
    if (n->din[BIAS] || n->din[ADD]) {
        real *sums = n->scratch, *dbias = sd_din(n, BIAS), *dadd = sd_din(n, ADD);

        product_sums(sums, n->dout->data, s.batch, s.out_height * s.out_width, s.out, sums + s.batch * s.out);
        for (int64_t i = 0; i < s.batch * s.out; i++) {
            if (dbias)
                dbias[i % s.out] += sums[i];
            if (dadd)
                dadd[i / s.out * n->din[ADD]->pitch + i % s.out] += sums[i];
        }
    }
    if (n->din[RESIDUAL])
        product_pass(n, RESIDUAL);
}
