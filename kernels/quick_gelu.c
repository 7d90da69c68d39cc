/* quick_gelu, element by element:  y = x s,  s = 1 / (1 + exp(-1.702 x))
 *                    gradient:  dx += dy s (1 + 1.702 x (1 - s))
 * Vector twin: quick_gelu_simd.c */
#include "ops.h"
#include "simd.h"

struct sd_tensor *
sd_op_quick_gelu(struct sd_graph *g, struct sd_tensor *x)
{
    return sd_apply(g, SD_OP_quick_gelu, (struct sd_tensor *[]){ x }, NULL, 0);
}

void
quick_gelu_shape(struct sd_node *n)
{
    sd_out_like(n, n->in[0]);
}

void
quick_gelu_forward_cpu(struct sd_node *n)
{
    const real *x = n->in[0]->data;
    real *y = n->out->data;

    SD_SIMD(quick_gelu_forward);
    for (size_t i = 0; i < n->out->numel; i++)
        y[i] = x[i] / (1 + exp((real)-1.702 * x[i]));
}

void
quick_gelu_backward_cpu(struct sd_node *n)
{
    const real *x = n->in[0]->data, *dy = n->dout->data;
    real *dx;

    SD_SIMD(quick_gelu_backward);
    dx = sd_din(n, 0);
    for (size_t i = 0; i < n->out->numel; i++) {
        real s = 1 / (1 + exp((real)-1.702 * x[i]));

        dx[i] += dy[i] * s * (1 + (real)1.702 * x[i] * (1 - s));
    }
}
