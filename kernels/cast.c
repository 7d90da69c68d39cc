/* cast: the same numbers in another type, rounded to nearest;  gradient:  dx += dy
 * The loops copy: run_convert.c, which is around them when a type is not F32, rounds. */
#include "ops.h"
#include "simd.h"

struct sd_tensor *
sd_op_cast(struct sd_graph *g, struct sd_tensor *x, enum sd_dtype dtype)
{
    if (x->dtype == dtype)
        return x;
    return sd_apply(g, SD_OP_cast, (struct sd_tensor *[]){ x }, &dtype, sizeof dtype);
}

void
cast_shape(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0];

    sd_out(n, *(const enum sd_dtype *)n->attr, x->ndim, x->shape);
}

void
cast_forward_cpu(struct sd_node *n)
{
    memcpy(n->out->data, sd_values(n->in[0]), n->out->numel * sizeof(real));
}

void
cast_backward_cpu(struct sd_node *n)
{
    const real *dy = n->dout->data;
    real *dx = sd_din(n, 0);

    for (size_t i = 0; i < n->out->numel; i++)
        dx[i] += dy[i];
}
