/* embedding:  y[b, l] = T[ids[b, l]] + positions[l],  where T is `table` [V, D] followed by the learned `rows` [n, D]
 *    gradient:  dT[ids[b, l]] += dy[b, l];  dpositions[l] += sum_b dy[b, l]
 * Tables are read row by row from the file's own bytes: CLIP's has 49408 rows, of which a prompt needs 77. */
#include "ops.h"
#include "simd.h"

struct sd_tensor *
sd_op_embedding(struct sd_graph *g, struct sd_tensor *ids, struct sd_tensor *table, struct sd_tensor *rows,
                struct sd_tensor *positions)
{
    return sd_apply(g, SD_OP_embedding, (struct sd_tensor *[]){ ids, table, rows, positions }, NULL, 0);
}

void
embedding_shape(struct sd_node *n)
{
    const struct sd_tensor *ids = n->in[0], *table = n->in[1], *rows = n->in[2], *positions = n->in[3];
    int64_t D = sd_cols(table);

    sd_expect_shape(n, "ids", ids, 2, (int64_t[]){ -1, -1 });
    if (ids->dtype != SD_I32)
        sd_bug("embedding", "ids are %s, expected I32", sd_dtype_name(ids->dtype));
    sd_expect_shape(n, "table", table, 2, (int64_t[]){ -1, D });
    if (rows)
        sd_expect_shape(n, "learned rows", rows, 2, (int64_t[]){ -1, D });
    if (positions && sd_expect_shape(n, "positions", positions, 2, (int64_t[]){ -1, D }) && positions->shape[0] < ids->shape[1])
        sd_graph_fault(n->graph, "%lld positions, input has %lld tokens", (long long)positions->shape[0], (long long)ids->shape[1]);
    sd_out(n, sd_graph_activations(n->graph), 3, (int64_t[]){ ids->shape[0], ids->shape[1], D });
    n->scratch_bytes = (size_t)D * sizeof(real);
}

static int64_t
token(const struct sd_node *n, int64_t i)
{
    int64_t id = ((const int32_t *)n->in[0]->data)[i], V = n->in[1]->shape[0] + (n->in[2] ? n->in[2]->shape[0] : 0);

    if (id < 0 || id >= V)
        sd_bug("embedding", "id %lld, table has %lld rows", (long long)id, (long long)V);
    return id;
}

static void
read_row(real *out, const struct sd_tensor *x, int64_t row)
{
    int64_t D = sd_cols(x);

    if (x->param && !x->base)
        sd_param_convert(out, x->param, (size_t)(row * D), (size_t)D);
    else
        memcpy(out, (const real *)x->data + row * D, (size_t)D * sizeof *out);
}

void
embedding_forward_cpu(struct sd_node *n)
{
    const struct sd_tensor *table = n->in[1], *rows = n->in[2], *positions = n->in[3];
    int64_t B = n->out->shape[0], L = n->out->shape[1], D = n->out->shape[2], V = table->shape[0];
    real *y = n->out->data, *position = n->scratch;

    for (int64_t l = 0; l < L; l++) {
        if (positions)
            read_row(position, positions, l);
        for (int64_t b = 0; b < B; b++) {
            int64_t id = token(n, b * L + l);
            real *row = y + (b * L + l) * D;

            read_row(row, id < V ? table : rows, id < V ? id : id - V);
            for (int64_t i = 0; positions && i < D; i++)
                row[i] += position[i];
        }
    }
}

void
embedding_backward_cpu(struct sd_node *n)
{
    int64_t B = n->out->shape[0], L = n->out->shape[1], D = n->out->shape[2], V = n->in[1]->shape[0];
    const real *dy = n->dout->data;
    real *dtable = sd_din(n, 1), *drows = sd_din(n, 2), *dpositions = sd_din(n, 3);

    for (int64_t t = 0; t < B * L; t++) {
        int64_t id = dtable || drows ? token(n, t) : 0;
        real *d = id >= V ? drows ? drows + (id - V) * D : NULL : dtable ? dtable + id * D : NULL;

        for (int64_t i = 0; d && i < D; i++)
            d[i] += dy[t * D + i];
        d = dpositions ? dpositions + t % L * D : NULL;
        for (int64_t i = 0; d && i < D; i++)
            d[i] += dy[t * D + i];
    }
}
