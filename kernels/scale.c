/* scale:  y = s x, s one element;  gradient:  dx += s dy,  ds += sum_i dy_i x_i */
#include "ops.h"
#include "simd.h"

struct sd_tensor *
sd_op_scale(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *s)
{
    return sd_apply(g, SD_OP_scale, (struct sd_tensor *[]){ x, s }, NULL, 0);
}

void
scale_shape(struct sd_node *n)
{
    if (n->in[1]->numel != 1)
        sd_graph_fault(n->graph, "scale: factor of %zu elements, expected 1", n->in[1]->numel);
    sd_out_like(n, n->in[0]);
}

void
scale_forward_cpu(struct sd_node *n)
{
    const real *x = sd_values(n->in[0]);
    real s = *sd_values(n->in[1]), *y = n->out->data;
    int64_t count = (int64_t)n->out->numel;

#pragma omp parallel for simd schedule(static) if (count > SD_CHUNK)
    for (int64_t i = 0; i < count; i++)
        y[i] = s * x[i];
}

void
scale_backward_cpu(struct sd_node *n)
{
    const real *x = sd_values(n->in[0]), *dy = n->dout->data;
    real s = *sd_values(n->in[1]), *dx = sd_din(n, 0), *ds = sd_din(n, 1);
    int64_t count = (int64_t)n->out->numel;
    double sum = 0;

    if (dx) {
#pragma omp parallel for simd schedule(static) if (count > SD_CHUNK)
        for (int64_t i = 0; i < count; i++)
            dx[i] += s * dy[i];
    }
    if (ds) {
        for (int64_t i = 0; i < count; i++)
            sum += (double)dy[i] * x[i];
        *ds += (real)sum;
    }
}
