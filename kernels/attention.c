/* attention, for each head:  s_ij = scale q_i . k_j  (j <= i when causal),  p_ij = exp(s_ij - lse_i),
 *                            lse_i = log sum_j exp(s_ij),  y_i = sum_j p_ij v_j
 *   gradient:  D_i = dy_i . y_i,  ds_ij = p_ij (dy_i . v_j - D_i)
 *              dq_i += scale sum_j ds_ij k_j;  dk_j += scale sum_i ds_ij q_i;  dv_j += sum_i p_ij dy_i
 * q, k, v, dy, p and ds as products see them (sd_operand); with bf16 the p of the forward pass are scaled by a power
 * of two, so that it does not matter to their rounding how many keys were seen before.
 * Scores are made again in the backward pass from lse: nothing of size L x S is held.  Vector twin: attention_simd.c */
#include "attention.h"

struct sd_tensor *
sd_op_attention(struct sd_graph *g, struct sd_tensor *q, struct sd_tensor *k, struct sd_tensor *v,
                struct sd_attention a)
{
    return sd_apply(g, SD_OP_attention, (struct sd_tensor *[]){ q, k, v }, &a, sizeof a);
}

void
attention_shape(struct sd_node *n)
{
    const struct sd_attention *a = n->attr;
    const struct sd_tensor *q = n->in[0], *k = n->in[1];

    sd_expect_shape(n, "queries", q, 3, (int64_t[]){ -1, -1, -1 });
    sd_expect_shape(n, "keys", k, 3, (int64_t[]){ q->shape[0], a->causal ? q->shape[1] : -1, sd_cols(q) });
    sd_expect_shape(n, "values", n->in[2], 3, k->shape);
    sd_expect_dtype(n, "keys", k);
    sd_expect_dtype(n, "values", n->in[2]);
    if (a->heads < 1 || sd_cols(q) % a->heads)
        sd_graph_fault(n->graph, "attention: %d heads, width %lld", a->heads, (long long)sd_cols(q));
    sd_out_like(n, q);
    sd_save(n, 0, SD_F32, 3, (int64_t[]){ q->shape[0], a->heads > 0 ? a->heads : 1, q->shape[1] });
    n->flops = 4.0 * (double)q->shape[0] * (double)q->shape[1] * (double)k->shape[1] * (double)sd_cols(q);
}

void
attention_prepare(struct sd_node *n)
{
    struct attention a = attention_of(n);
    int64_t parts = attention_parts(&a);

    n->backward_flops = n->flops / 2 * (n->din[1] || n->din[2] ? 1 + 1 + !!n->din[0] + !!n->din[1] + !!n->din[2] : 3);
    bool pairs = n->bf16 && attention_fast(n, &a);
    size_t forward = pairs ? (size_t)attention_pairs_size(&a, a.S) * sizeof(float) : 0;

    n->scratch_bytes = forward;
    if (!n->training)
        return;
    n->scratch_bytes = (size_t)(2 * a.B * a.H * a.L) * sizeof(float);            /* lse and D */
    if (n->din[0])
        /* dq while it is summed */
        n->scratch_bytes += (size_t)(a.B * a.H * a.L * ((a.d + 15) / 16 * 16)) * sizeof(float);
    if (parts > 1)
        n->scratch_bytes += (size_t)(parts * a.B * a.H * a.S * 2 * a.d) * sizeof(float); /* dk, dv by part */
    n->scratch_bytes += pairs ? (size_t)attention_pairs_size(&a, a.L) * sizeof(float) : 0;
    n->scratch_bytes += 5 * 64;
    if (n->scratch_bytes < forward)
        n->scratch_bytes = forward;
}

static real
dot(const struct sd_node *n, const real *a, const real *b, int64_t count)
{
    real sum = 0;

    for (int64_t i = 0; i < count; i++)
        sum += sd_operand(n, a[i]) * sd_operand(n, b[i]);
    return sum;
}

void
attention_forward_cpu(struct sd_node *n)
{
    struct attention a = attention_of(n);
    real *y = n->out->data;

#if SD_REAL_IS_FLOAT
    if (attention_fast(n, &a)) {
        if (n->bf16)
            attention_forward_bf16(n);
        else
            SD_V_CALL(attention_forward)(n);
        return;
    }
#endif
#pragma omp parallel for collapse(3) schedule(static)
    for (int64_t b = 0; b < a.B; b++)
        for (int64_t h = 0; h < a.H; h++)
            for (int64_t i = 0; i < a.L; i++) {
                const real *q = a.q + (b * a.L + i) * a.q_pitch + h * a.d;
                const real *k = a.k + b * a.S * a.k_pitch + h * a.d, *v = a.v + b * a.S * a.v_pitch + h * a.d;
                real *row = y + (b * a.L + i) * a.o_pitch + h * a.d, most = -INFINITY;
                int64_t keys = a.causal ? i + 1 : a.S;
                double sum = 0;

                memset(row, 0, (size_t)a.d * sizeof *row);
                for (int64_t j = 0; j < keys; j++) {
                    real s = (real)a.scale * dot(n, q, k + j * a.k_pitch, a.d);

                    most = s > most ? s : most;
                }
                if (n->bf16)
                    most = (real)(ceil((double)most * ATTENTION_LOG2E) / ATTENTION_LOG2E);
                for (int64_t j = 0; j < keys; j++) {
                    real p = exp((real)a.scale * dot(n, q, k + j * a.k_pitch, a.d) - most);

                    sum += p;
                    for (int64_t c = 0; c < a.d; c++)
                        row[c] += sd_operand(n, p) * sd_operand(n, v[j * a.v_pitch + c]);
                }
                for (int64_t c = 0; c < a.d; c++)
                    row[c] /= (real)sum;
                a.lse[(b * a.H + h) * a.L + i] = most + (real)log(sum);
            }
}

/* May x and y hold one element both?  Columns side by side of one tensor do not, nor rows behind one another. */
static bool
overlap(const struct sd_tensor *x, const struct sd_tensor *y)
{
    int64_t begin, other, p;

    if (!x || !y || (x->base ? x->base : x) != (y->base ? y->base : y))
        return false;
    if (x->offset + sd_rows(x) * x->pitch <= y->offset || y->offset + sd_rows(y) * y->pitch <= x->offset)
        return false;
    p = x->pitch;
    begin = x->offset % p;
    other = y->offset % p;
    return y->pitch != p || begin + sd_cols(x) > p || other + sd_cols(y) > p
           || !(begin + sd_cols(x) <= other || other + sd_cols(y) <= begin);
}

/* Gradients that overlap are added to in the order of the loops, by one thread: neither tiles nor threads keep it. */
static bool
one_gradient(const struct sd_node *n)
{
    return overlap(n->din[0], n->din[1]) || overlap(n->din[0], n->din[2]) || overlap(n->din[1], n->din[2]);
}

void
attention_backward_cpu(struct sd_node *n)
{
    struct attention a = attention_of(n);
    const real *dy = n->dout->data, *y = n->out->data;
    real *dq, *dk, *dv;

#if SD_REAL_IS_FLOAT
    if (attention_fast(n, &a) && !one_gradient(n)) {
        SD_V_CALL(attention_backward)(n);
        return;
    }
#endif
    dq = sd_din(n, 0);
    dk = sd_din(n, 1);
    dv = sd_din(n, 2);
#pragma omp parallel for collapse(2) schedule(static) if (!one_gradient(n))
    for (int64_t b = 0; b < a.B; b++)
        for (int64_t h = 0; h < a.H; h++)
            for (int64_t i = 0; i < a.L; i++) {
                int64_t row = b * a.L + i, keys = a.causal ? i + 1 : a.S;
                const real *q = a.q + row * a.q_pitch + h * a.d, *g = dy + row * a.o_pitch + h * a.d;
                real D = 0, lse = a.lse[(b * a.H + h) * a.L + i];

                for (int64_t c = 0; c < a.d; c++)
                    D += g[c] * y[row * a.o_pitch + h * a.d + c];

                for (int64_t j = 0; j < keys; j++) {
                    const real *k = a.k + (b * a.S + j) * a.k_pitch + h * a.d;
                    const real *v = a.v + (b * a.S + j) * a.v_pitch + h * a.d;
                    real p = exp((real)a.scale * dot(n, q, k, a.d) - lse);
                    real ds = sd_operand(n, p * (dot(n, g, v, a.d) - D)) * (real)a.scale;

                    p = sd_operand(n, p);
                    for (int64_t c = 0; dq && c < a.d; c++)
                        dq[row * n->din[0]->pitch + h * a.d + c] += ds * sd_operand(n, k[c]);
                    for (int64_t c = 0; dk && c < a.d; c++)
                        dk[(b * a.S + j) * n->din[1]->pitch + h * a.d + c] += ds * sd_operand(n, q[c]);
                    for (int64_t c = 0; dv && c < a.d; c++)
                        dv[(b * a.S + j) * n->din[2]->pitch + h * a.d + c] += p * sd_operand(n, g[c]);
                }
            }
}
