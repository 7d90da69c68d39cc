/* concat of columns:  y[row] = [a[row], b[row]];  gradient: the columns of dy, each to its own. */
#include "ops.h"
#include "simd.h"

struct sd_tensor *
sd_op_concat(struct sd_graph *g, struct sd_tensor *a, struct sd_tensor *b)
{
    return sd_apply(g, SD_OP_concat, (struct sd_tensor *[]){ a, b }, NULL, 0);
}

void
concat_shape(struct sd_node *n)
{
    const struct sd_tensor *a = n->in[0], *b = n->in[1];
    int64_t shape[SD_MAX_DIMS];

    memcpy(shape, a->shape, sizeof shape);
    shape[a->ndim - 1] = -1;
    sd_expect_shape(n, "second operand", b, a->ndim, shape);
    shape[a->ndim - 1] = sd_cols(a) + sd_cols(b);
    sd_expect_dtype(n, "second input", n->in[1]);
    sd_out(n, a->dtype, a->ndim, shape);
}

void
concat_forward_cpu(struct sd_node *n)
{
    const struct sd_tensor *a = n->in[0], *b = n->in[1];
    const real *pa = sd_values(a), *pb = sd_values(b);
    size_t na = (size_t)sd_cols(a), nb = (size_t)sd_cols(b);
    int64_t rows = sd_rows(n->out);
    real *y = n->out->data;

#pragma omp parallel for schedule(static) if (n->out->numel > SD_CHUNK)
    for (int64_t r = 0; r < rows; r++) {
        memcpy(y + (size_t)r * (na + nb), pa + r * a->pitch, na * sizeof *y);
        memcpy(y + (size_t)r * (na + nb) + na, pb + r * b->pitch, nb * sizeof *y);
    }
}

void
concat_backward_cpu(struct sd_node *n)
{
    const real *dy = n->dout->data;
    int64_t rows = sd_rows(n->out), pitch = sd_cols(n->out), first = 0;

    for (int k = 0; k < 2; k++) {
        struct sd_tensor *d = n->din[k];
        int64_t cols = sd_cols(n->in[k]), from = first;

        first += cols;
        if (!d)
            continue;
#pragma omp parallel for schedule(static) if (n->out->numel > SD_CHUNK)
        for (int64_t r = 0; r < rows; r++) {
            const real *source = dy + r * pitch + from;
            real *row = (real *)d->data + r * d->pitch;

            if (n->din_store[k])
                memcpy(row, source, (size_t)cols * sizeof *row);
            else
                for (int64_t c = 0; c < cols; c++)
                    row[c] += source[c];
        }
    }
}
