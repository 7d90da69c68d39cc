/* geglu: rows [value a | gate b] of 2C:  y = a gelu(b)
 *    gradient:  da += dy gelu(b);  db += dy a (Phi(b) + b phi(b))        (gelu: gelu.c)
 * Vector twin: geglu_simd.c */
#include "ops.h"
#include "simd.h"

struct sd_tensor *
sd_op_geglu(struct sd_graph *g, struct sd_tensor *x)
{
    return sd_apply(g, SD_OP_geglu, (struct sd_tensor *[]){ x }, NULL, 0);
}

void
geglu_shape(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0];
    int64_t shape[SD_MAX_DIMS];

    if (sd_cols(x) % 2)
        sd_graph_fault(n->graph, "geglu: %lld columns, expected an even number", (long long)sd_cols(x));
    memcpy(shape, x->shape, sizeof shape);
    shape[x->ndim - 1] /= 2;
    sd_out(n, x->dtype, x->ndim, shape);
}

void
geglu_forward_cpu(struct sd_node *n)
{
    const real *x = n->in[0]->data;
    real *y = n->out->data;
    int64_t C = sd_cols(n->out);

    SD_SIMD(geglu_forward);
    for (int64_t r = 0; r < sd_rows(n->out); r++)
        for (int64_t c = 0; c < C; c++) {
            real a = x[r * 2 * C + c], b = x[r * 2 * C + C + c];

            y[r * C + c] = a * b / 2 * (1 + erf(b * (real)M_SQRT1_2));
        }
}

void
geglu_backward_cpu(struct sd_node *n)
{
    const real *x = n->in[0]->data, *dy = n->dout->data;
    real *dx;
    int64_t C = sd_cols(n->out);

    SD_SIMD(geglu_backward);
    dx = sd_din(n, 0);
    for (int64_t r = 0; r < sd_rows(n->out); r++)
        for (int64_t c = 0; c < C; c++) {
            real a = x[r * 2 * C + c], b = x[r * 2 * C + C + c], d = dy[r * C + c];
            real integral = (1 + erf(b * (real)M_SQRT1_2)) / 2;
            real density = exp(-b * b / 2) * (real)(M_SQRT1_2 * M_2_SQRTPI / 2);

            dx[r * 2 * C + c] += d * b * integral;
            dx[r * 2 * C + C + c] += d * a * (integral + b * density);
        }
}
