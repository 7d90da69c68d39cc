/* copy: a dense copy of pitched rows;  gradient:  dx += dy */
#include "ops.h"
#include "simd.h"

struct sd_tensor *
sd_op_copy(struct sd_graph *g, struct sd_tensor *x)
{
    return sd_apply(g, SD_OP_copy, (struct sd_tensor *[]){ x }, NULL, 0);
}

void
copy_shape(struct sd_node *n)
{
    sd_out_like(n, n->in[0]);
}

void
copy_forward_cpu(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0];
    int64_t rows = sd_rows(x);
    size_t bytes = (size_t)sd_cols(x) * sd_element_size(x->dtype), pitch = (size_t)x->pitch * sd_element_size(x->dtype);
    const char *from = x->param ? (const char *)sd_values(x) : x->data;
    char *to = n->out->data;

#pragma omp parallel for schedule(static) if (n->out->numel > SD_CHUNK)
    for (int64_t r = 0; r < rows; r++)
        memcpy(to + (size_t)r * bytes, from + (size_t)r * pitch, bytes);
}

void
copy_backward_cpu(struct sd_node *n)
{
    const real *dy = n->dout->data;
    real *dx = sd_din(n, 0);
    int64_t rows = sd_rows(n->out), cols = sd_cols(n->out), pitch = n->din[0]->pitch;

#pragma omp parallel for schedule(static) if (n->out->numel > SD_CHUNK)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++)
            dx[r * pitch + c] += dy[r * cols + c];
}
