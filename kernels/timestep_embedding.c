/* timestep_embedding:  f_i = exp(-ln(10000) i / (half - shift)), half = width / 2;  y[b] = [sin(t f), cos(t f)], cosines first
 * when flip; an odd width ends in a zero.  In float the steps round one by one as the reference's do: at t = 999 the
 * rounding of f shows in the fifth digit. */
#include "ops.h"
#include "simd.h"

struct sd_tensor *
sd_op_timestep_embedding(struct sd_graph *g, struct sd_tensor *t, struct sd_timestep_embedding a)
{
    return sd_apply(g, SD_OP_timestep_embedding, (struct sd_tensor *[]){ t }, &a, sizeof a);
}

void
timestep_embedding_shape(struct sd_node *n)
{
    const struct sd_timestep_embedding *a = n->attr;

    sd_expect_shape(n, "timesteps", n->in[0], 1, (int64_t[]){ -1 });
    if (a->width < 2)
        sd_graph_fault(n->graph, "timestep embedding: width %d", a->width);
    sd_out(n, sd_graph_activations(n->graph), 2, (int64_t[]){ n->in[0]->shape[0], a->width });
}

void
timestep_embedding_forward_cpu(struct sd_node *n)
{
    const struct sd_timestep_embedding *a = n->attr;
    const real *t = n->in[0]->data;
    int64_t B = n->out->shape[0], width = a->width, half = width / 2;
    int64_t sines = a->flip ? half : 0, cosines = a->flip ? 0 : half;
    real *y = n->out->data;

    for (int64_t b = 0; b < B; b++) {
        for (int64_t i = 0; i < half; i++) {
            real exponent = (real)-log(10000.0) * (real)i;
            real f = exp(exponent / (real)((double)half - a->shift));

            y[b * width + sines + i] = sin(t[b] * f);
            y[b * width + cosines + i] = cos(t[b] * f);
        }
        if (width % 2)
            y[b * width + width - 1] = 0;
    }
}

void
timestep_embedding_backward_cpu(struct sd_node *n)
{
    sd_bug("timestep_embedding", "%s: has no gradient", n->path);
}
