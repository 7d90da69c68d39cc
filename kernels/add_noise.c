/* add_noise, sample by sample:  y[b] = a[b] x[b] + s[b] noise[b];  no gradient flows through. */
#include "ops.h"
#include "simd.h"

struct sd_tensor *
sd_op_add_noise(struct sd_graph *g, struct sd_tensor *x, struct sd_tensor *noise, struct sd_tensor *a, struct sd_tensor *s)
{
    return sd_apply(g, SD_OP_add_noise, (struct sd_tensor *[]){ x, noise, a, s }, NULL, 0);
}

void
add_noise_shape(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0];

    sd_expect_shape(n, "noise", n->in[1], x->ndim, x->shape);
    sd_expect_shape(n, "factor of the sample", n->in[2], 1, x->shape);
    sd_expect_shape(n, "factor of the noise", n->in[3], 1, x->shape);
    sd_out_like(n, x);
}

void
add_noise_forward_cpu(struct sd_node *n)
{
    const real *x = n->in[0]->data, *noise = n->in[1]->data, *a = n->in[2]->data, *s = n->in[3]->data;
    int64_t B = n->out->shape[0], count = B ? (int64_t)n->out->numel / B : 0;
    real *y = n->out->data;

    for (int64_t b = 0; b < B; b++)
        for (int64_t i = b * count; i < (b + 1) * count; i++)
            y[i] = a[b] * x[i] + s[b] * noise[i];
}

void
add_noise_backward_cpu(struct sd_node *n)
{
    sd_bug("add_noise", "%s: has no gradient", n->path);
}
