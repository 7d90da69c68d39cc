/* add:  y = a + b;  gradient:  da += dy, db += dy */
#include "ops.h"
#include "product.h"
#include "simd.h"

struct sd_tensor *
sd_op_add(struct sd_graph *g, struct sd_tensor *a, struct sd_tensor *b)
{
    return sd_apply(g, SD_OP_add, (struct sd_tensor *[]){ a, b }, NULL, 0);
}

void
add_shape(struct sd_node *n)
{
    sd_expect_shape(n, "second operand", n->in[1], n->in[0]->ndim, n->in[0]->shape);
    sd_expect_dtype(n, "second operand", n->in[1]);
    sd_out_like(n, n->in[0]);
}

void
add_forward_cpu(struct sd_node *n)
{
    const real *a = sd_values(n->in[0]), *b = sd_values(n->in[1]);
    real *y = n->out->data;
    int64_t count = (int64_t)n->out->numel;

#pragma omp parallel for simd schedule(static) if (count > SD_CHUNK)
    for (int64_t i = 0; i < count; i++)
        y[i] = a[i] + b[i];
}

void
add_backward_cpu(struct sd_node *n)
{
    for (int k = 0; k < 2; k++)
        if (n->din[k])
            product_pass(n, k);
}
