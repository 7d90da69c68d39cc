/* gelu, element by element:  y = x Phi(x),  Phi(x) = (1 + erf(x / sqrt(2))) / 2
 *              gradient:  dx += dy (Phi(x) + x phi(x)),  phi(x) = exp(-x^2 / 2) / sqrt(2 pi)
 * Vector twin: gelu_simd.c */
#include "ops.h"
#include "simd.h"

struct sd_tensor *
sd_op_gelu(struct sd_graph *g, struct sd_tensor *x)
{
    return sd_apply(g, SD_OP_gelu, (struct sd_tensor *[]){ x }, NULL, 0);
}

void
gelu_shape(struct sd_node *n)
{
    sd_out_like(n, n->in[0]);
}

void
gelu_forward_cpu(struct sd_node *n)
{
    const real *x = n->in[0]->data;
    real *y = n->out->data;

    SD_SIMD(gelu_forward);
    for (size_t i = 0; i < n->out->numel; i++)
        y[i] = x[i] / 2 * (1 + erf(x[i] * (real)M_SQRT1_2));
}

void
gelu_backward_cpu(struct sd_node *n)
{
    const real *x = n->in[0]->data, *dy = n->dout->data;
    real *dx;

    SD_SIMD(gelu_backward);
    dx = sd_din(n, 0);
    for (size_t i = 0; i < n->out->numel; i++) {
        real integral = (1 + erf(x[i] * (real)M_SQRT1_2)) / 2;
        real density = exp(-x[i] * x[i] / 2) * (real)(M_SQRT1_2 * M_2_SQRTPI / 2);

        dx[i] += dy[i] * (integral + x[i] * density);
    }
}
