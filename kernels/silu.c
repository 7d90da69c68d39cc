/* silu, element by element:  y = x s,  s = 1 / (1 + exp(-x))
 *              gradient:  dx += dy s (1 + x (1 - s))
 * Vector twin: silu_simd.c */
#include "ops.h"
#include "simd.h"

struct sd_tensor *
sd_op_silu(struct sd_graph *g, struct sd_tensor *x)
{
    return sd_apply(g, SD_OP_silu, (struct sd_tensor *[]){ x }, NULL, 0);
}

void
silu_shape(struct sd_node *n)
{
    sd_out_like(n, n->in[0]);
}

void
silu_forward_cpu(struct sd_node *n)
{
    const real *x = n->in[0]->data;
    real *y = n->out->data;

    SD_SIMD(silu_forward);
    for (size_t i = 0; i < n->out->numel; i++)
        y[i] = x[i] / (1 + exp(-x[i]));
}

void
silu_backward_cpu(struct sd_node *n)
{
    const real *x = n->in[0]->data, *dy = n->dout->data;
    real *dx;

    SD_SIMD(silu_backward);
    dx = sd_din(n, 0);
    for (size_t i = 0; i < n->out->numel; i++) {
        real s = 1 / (1 + exp(-x[i]));

        dx[i] += dy[i] * s * (1 + x[i] * (1 - s));
    }
}
