/* cudnn_attention.c - attention and its gradients by cuDNN.
 *
 * Forward, the library has one operation (since 9.13.1).  Backward, its operation has no engine for Hopper; what has is the graph
 * of matrix products and elementwise operations between them that its flash attention is recognised by, in every version 9:
 *
 *   sums = rows of (do * o) * 1                  p = exp(q k' * scale - stats)      dv = p' do
 *   ds = (do v' - sums) * p * scale              dk = ds' q                         dq = ds k
 *
 * k' and v' are given turned; turned p, ds and k are views, of the operands' type.  dq is made by one product that sees all of ds,
 * which lies in the library's workspace, [batch, heads, L, S] of 16 bits: the other form adds parts of dq in an order that depends
 * on time.  A call that wants more than cudnn_workspace for it is made in parts, some heads or samples at a time.
 *
 * Proven without a card: the graphs are finalized, engines are offered for sm_80 (d up to 128) and sm_90 (d up to 256), with the
 * workspace they name.  Not proven: what they compute, which is why they are compared with our own kernels before they are used. */
#include "cudnn_internal.h"

#include <stdio.h>

#include "device_ops.h"
#include "vendor.h"

enum { Q = 1, K, V, O, STATS, SCALE, D_O, D_Q, D_K, D_V, SUMS, ONE, BETWEEN };     /* uids */

static bool
takes_attention(const struct attention_call *c)
{
    uintptr_t all = (uintptr_t)c->q | (uintptr_t)c->k | (uintptr_t)c->v | (uintptr_t)c->o | (uintptr_t)c->o_gradient
                    | (uintptr_t)c->q_gradient | (uintptr_t)c->k_gradient | (uintptr_t)c->v_gradient | (uintptr_t)c->lse;
    int64_t pitches = c->q_pitch | c->k_pitch | c->v_pitch | c->o_pitch | c->o_gradient_pitch | c->q_gradient_pitch
                      | c->k_gradient_pitch | c->v_gradient_pitch;

    return (c->dtype == SD_BF16 || c->dtype == SD_F16) && !c->causal && all % ALIGNED == 0 && pitches % 8 == 0 && c->d % 8 == 0
           && c->batch * c->heads * c->L * c->S * c->d > 0 && (c->lse || !c->backward);
}

/* 9.10.0 and 9.10.1 are known to be wrong; until 9.15 the last tile of keys was not cut off where it should be. */
static bool
version_has(const struct attention_call *c)
{
    if (!c->backward)
        return dnn.number >= SDPA_FORWARD_SINCE;
    return dnn.number != 91000 && dnn.number != 91001 && (c->S % 128 == 0 || dnn.number > 91500);
}

static void *
heads(struct graph *g, int64_t uid, const struct attention_call *c, int64_t rows, int64_t pitch)
{
    return dnn_tensor(g, uid, dnn_type(c->dtype), (int64_t[]){ c->batch, c->heads, rows, c->d },
                  (int64_t[]){ rows * pitch, c->d, pitch, 1 }, IN_MEMORY);
}

/* Gradients that are to be added to are made dense beside, and added afterwards. */
static int64_t
gradient_pitch(const struct attention_call *c, const void *to, int64_t pitch, bool store)
{
    return to && store ? pitch : c->heads * c->d;
}

/* [batch, heads, d, rows] of the same */
static void *
turned(struct graph *g, int64_t uid, const struct attention_call *c, int64_t rows, int64_t pitch)
{
    return dnn_tensor(g, uid, dnn_type(c->dtype), (int64_t[]){ c->batch, c->heads, c->d, rows },
                      (int64_t[]){ rows * pitch, c->d, 1, pitch }, IN_MEMORY);
}

/* One number for each query */
static void *
statistics(struct graph *g, int64_t uid, const struct attention_call *c, enum tensor_kind kind)
{
    return dnn_tensor(g, uid, DATA_FLOAT, (int64_t[]){ c->batch, c->heads, c->L, 1 }, (int64_t[]){ c->heads * c->L, c->L, 1, 1 },
                      kind);
}

static void *
number(struct graph *g, int64_t uid)
{
    return dnn_tensor(g, uid, DATA_FLOAT, (int64_t[]){ 1, 1, 1, 1 }, (int64_t[]){ 1, 1, 1, 1 }, BY_VALUE);
}

static void
forward_graph(struct graph *g, const struct attention_call *c, void *handle)
{
    void *o = dnn_make(g, OPERATION_SDPA_FORWARD, "attention");

    dnn_set_part(g, o, SDPA_F_Q, heads(g, Q, c, c->L, c->q_pitch));
    dnn_set_part(g, o, SDPA_F_K, heads(g, K, c, c->S, c->k_pitch));
    dnn_set_part(g, o, SDPA_F_V, heads(g, V, c, c->S, c->v_pitch));
    dnn_set_part(g, o, SDPA_F_O, heads(g, O, c, c->L, c->o_pitch));
    if (c->lse)
        dnn_set_part(g, o, SDPA_F_STATS, statistics(g, STATS, c, IN_MEMORY));
    dnn_set_part(g, o, SDPA_F_SCALE, number(g, SCALE));
    dnn_add_operation(g, o, "attention");
    dnn_close(g, handle);
}

/* -- the gradients' graph: between operations, scores of F32 -- */

static void *
scores(struct graph *g, const struct attention_call *c, int64_t *next)
{
    return dnn_tensor(g, (*next)++, DATA_FLOAT, (int64_t[]){ c->batch, c->heads, c->L, c->S },
                      (int64_t[]){ c->heads * c->L * c->S, c->L * c->S, c->S, 1 }, HIDDEN);
}

static void *
product(struct graph *g, void *a, void *b, void *to, const char *what)
{
    void *m = dnn_make(g, MATMUL, what), *o;

    dnn_set_word(g, m, MATMUL_COMP_TYPE, TYPE_DATA_TYPE, DATA_FLOAT);
    dnn_finish(g, m, what);
    o = dnn_make(g, OPERATION_MATMUL, what);
    dnn_set_part(g, o, OPERATION_MATMUL_DESC, m);
    dnn_set_part(g, o, OPERATION_MATMUL_A, a);
    dnn_set_part(g, o, OPERATION_MATMUL_B, b);
    dnn_set_part(g, o, OPERATION_MATMUL_C, to);
    dnn_add_operation(g, o, what);
    return to;
}

static void *
with(struct graph *g, const struct attention_call *c, int mode, void *x, void *b, int64_t *next, const char *what)
{
    void *to = scores(g, c, next);

    dnn_pointwise(g, mode, x, b, to, what);
    return to;
}

static void *
view(struct graph *g, void *from, void *to, const char *what)
{
    void *o = dnn_make(g, OPERATION_RESHAPE, what);

    dnn_set_part(g, o, RESHAPE_X, from);
    dnn_set_part(g, o, RESHAPE_Y, to);
    dnn_add_operation(g, o, what);
    return to;
}

static void *
turned_scores(struct graph *g, const struct attention_call *c, void *from, int64_t *next, const char *what)
{
    return view(g, from, dnn_tensor(g, (*next)++, dnn_type(c->dtype), (int64_t[]){ c->batch, c->heads, c->S, c->L },
                                    (int64_t[]){ c->heads * c->L * c->S, c->L * c->S, 1, c->S }, HIDDEN), what);
}

/* sums: of each row of do * o, whose strides are those of NVIDIA's own frontend; heads' elements fall together, were they in memory */
static void *
row_sums(struct graph *g, const struct attention_call *c, void *d_o, void *o, int64_t *next)
{
    void *m = dnn_tensor(g, (*next)++, DATA_FLOAT, (int64_t[]){ c->batch, c->heads, c->L, c->d },
                         (int64_t[]){ c->heads * c->L * c->d, c->L * c->d, c->heads * c->d, 1 }, HIDDEN);
    void *sum = statistics(g, (*next)++, c, HIDDEN), *sums = statistics(g, SUMS, c, IN_MEMORY), *r, *operation;

    dnn_pointwise(g, POINTWISE_MULTIPLY, d_o, o, m, "do * o");
    r = dnn_make(g, REDUCTION, "sums");
    dnn_set_word(g, r, REDUCTION_COMP_TYPE, TYPE_DATA_TYPE, DATA_FLOAT);
    dnn_set_word(g, r, REDUCTION_OPERATOR, TYPE_REDUCTION_OPERATOR, REDUCTION_ADD);
    dnn_finish(g, r, "sums");
    operation = dnn_make(g, OPERATION_REDUCTION, "sums");
    dnn_set_part(g, operation, REDUCTION_DESC, r);
    dnn_set_part(g, operation, REDUCTION_X, m);
    dnn_set_part(g, operation, REDUCTION_Y, sum);
    dnn_add_operation(g, operation, "sums");
    dnn_pointwise(g, POINTWISE_MULTIPLY, sum, number(g, ONE), sums, "sums * 1");
    return sums;
}

static void
backward_graph(struct graph *g, const struct attention_call *c, void *handle)
{
    int64_t next = BETWEEN;
    void *q = heads(g, Q, c, c->L, c->q_pitch), *k = turned(g, K, c, c->S, c->k_pitch), *v = turned(g, V, c, c->S, c->v_pitch);
    void *d_o = heads(g, D_O, c, c->L, c->o_gradient_pitch), *scale = number(g, SCALE);
    void *sums = row_sums(g, c, d_o, heads(g, O, c, c->L, c->o_pitch), &next), *p, *ds, *k_again;

    p = product(g, q, k, scores(g, c, &next), "q k'");
    p = with(g, c, POINTWISE_MULTIPLY, p, scale, &next, "scores * scale");
    p = with(g, c, POINTWISE_SUBTRACT, p, statistics(g, STATS, c, IN_MEMORY), &next, "scores - stats");
    p = with(g, c, POINTWISE_EXP, p, NULL, &next, "exp");
    product(g, turned_scores(g, c, p, &next, "p'"), d_o,
            heads(g, D_V, c, c->S, gradient_pitch(c, c->v_gradient, c->v_gradient_pitch, c->v_store)), "dv");
    ds = product(g, d_o, v, scores(g, c, &next), "do v'");
    ds = with(g, c, POINTWISE_SUBTRACT, ds, sums, &next, "- sums");
    ds = with(g, c, POINTWISE_MULTIPLY, ds, p, &next, "* p");
    ds = with(g, c, POINTWISE_MULTIPLY, ds, scale, &next, "* scale");
    product(g, turned_scores(g, c, ds, &next, "ds'"), q,
            heads(g, D_K, c, c->S, gradient_pitch(c, c->k_gradient, c->k_gradient_pitch, c->k_store)), "dk");
    k_again = dnn_tensor(g, next++, dnn_type(c->dtype), (int64_t[]){ c->batch, c->heads, c->S, c->d },
                         (int64_t[]){ c->S * c->k_pitch, c->d, c->k_pitch, 1 }, HIDDEN);
    product(g, ds, view(g, k, k_again, "k"),
            heads(g, D_Q, c, c->L, gradient_pitch(c, c->q_gradient, c->q_gradient_pitch, c->q_store)), "dq");
    dnn_close(g, handle);
}

static void
attention_graph(struct graph *g, const struct attention_call *c, void *handle)
{
    if (c->backward)
        backward_graph(g, c, handle);
    else
        forward_graph(g, c, handle);
}

/* The most heads or samples at a time that the workspace has room for; at least one head. */
static struct attention_call
part_of(const struct attention_call *c)
{
    const int64_t bytes = (c->L + 63) / 64 * 64 * ((c->S + 63) / 64 * 64) * 2, fit = (cudnn_workspace - cudnn_workspace / 256) / bytes;
    struct attention_call part = *c;

    if (c->backward && c->batch * c->heads > fit) {
        while (part.batch > 1 && (c->batch % part.batch || part.batch * c->heads > fit))
            part.batch--;
        while (part.batch == 1 && part.heads > 1 && (c->heads % part.heads || part.heads > fit))
            part.heads--;
    }
    return part;
}

bool
cudnn_ask_attention(const struct attention_call *c, const char *device, struct cudnn_asked *asked, const char **why)
{
    struct graph g = { .count = 0 };
    struct attention_call part = part_of(c);

    *why = takes_attention(c) ? "no cudnn" : NULL;
    if (!*why || !dnn_open())
        return false;
    *why = "this version has no such operation";
    if (!version_has(c))
        return false;
    attention_graph(&g, &part, NULL);
    return dnn_read_back(&g, device, asked, why);
}

#if SD_WITH_CUDA            /* what follows runs; it wants kernels of ours beside the library's */

static bool
own_attention(struct sd_device *d, const void *call, const struct pack *to)
{
    struct attention_call c = *(const struct attention_call *)call;

    if (c.backward) {
        c.q_gradient_pitch = gradient_pitch(&c, c.q_gradient, c.q_gradient_pitch, c.q_store);
        c.k_gradient_pitch = gradient_pitch(&c, c.k_gradient, c.k_gradient_pitch, c.k_store);
        c.v_gradient_pitch = gradient_pitch(&c, c.v_gradient, c.v_gradient_pitch, c.v_store);
        c.q_gradient = dnn_result(to, D_Q);
        c.k_gradient = dnn_result(to, D_K);
        c.v_gradient = dnn_result(to, D_V);
        c.q_store = c.k_store = c.v_store = true;
    } else {
        c.o = dnn_result(to, O);
        c.lse = dnn_result(to, STATS);
    }
    return attention_cuda(d, &c);
}

static bool
one_part(struct sd_device *d, struct state *s, const struct attention_call *c)
{
    const float scale = (float)c->scale, one = 1;
    const int64_t width = c->heads * c->d;
    struct { int64_t uid; void *to; int64_t pitch, rows; bool store; } gradient[] = {
        { D_Q, c->q_gradient, c->q_gradient_pitch, c->batch * c->L, c->q_store },
        { D_K, c->k_gradient, c->k_gradient_pitch, c->batch * c->S, c->k_store },
        { D_V, c->v_gradient, c->v_gradient_pitch, c->batch * c->S, c->v_store },
        { SUMS, NULL, 0, 0, false },
    };
    struct plan *p;
    struct pack pack = { .own = own_attention, .own_timed = c->backward, .call = c };
    size_t room, at;
    char key[256], *workspace;
    int first;

    snprintf(key, sizeof key, "attention %s%s %lldx%lldx%lldx%lldx%lld ld %lld,%lld,%lld,%lld,%lld d %lld,%lld,%lld",
             c->backward ? "back " : c->lse ? "" : "only ", sd_dtype_name(c->dtype), (long long)c->batch, (long long)c->heads,
             (long long)c->L, (long long)c->S, (long long)c->d, (long long)c->q_pitch, (long long)c->k_pitch, (long long)c->v_pitch,
             (long long)c->o_pitch, (long long)c->o_gradient_pitch,
             (long long)gradient_pitch(c, c->q_gradient, c->q_gradient_pitch, c->q_store),
             (long long)gradient_pitch(c, c->k_gradient, c->k_gradient_pitch, c->k_store),
             (long long)gradient_pitch(c, c->v_gradient, c->v_gradient_pitch, c->v_store));
    dnn_put(&pack, Q, c->q);
    dnn_put(&pack, K, c->k);
    dnn_put(&pack, V, c->v);
    dnn_put(&pack, SCALE, &scale);
    if (c->backward) {
        dnn_put(&pack, O, c->o);
        dnn_put(&pack, ONE, &one);
    } else
        dnn_put_result(&pack, O, c->o, (size_t)((c->batch * c->L - 1) * c->o_pitch + width), c->dtype);
    if (c->lse && c->backward)
        dnn_put(&pack, STATS, c->lse);
    else if (c->lse)
        dnn_put_result(&pack, STATS, c->lse, (size_t)(c->batch * c->heads * c->L), SD_F32);
    if (c->backward)
        dnn_put(&pack, D_O, c->o_gradient);
    first = pack.count;
    for (int i = 0; c->backward && i < 3; i++) {
        int64_t pitch = gradient_pitch(c, gradient[i].to, gradient[i].pitch, gradient[i].store);

        dnn_put_result(&pack, gradient[i].uid, gradient[i].to, (size_t)((gradient[i].rows - 1) * pitch + width), c->dtype);
    }
    if (c->backward) {
        dnn_put_result(&pack, SUMS, NULL, (size_t)(c->batch * c->heads * c->L), SD_F32);
        pack.inner[pack.count - 1] = true;
    }
    if (!(p = dnn_find_plan(s, key))) {
        struct graph g = { .count = 0 };

        attention_graph(&g, c, s->handle);
        p = dnn_new_plan(s, key, &g, &pack);
    }
    if (!p->exec)
        return false;
    room = dnn_round_up((size_t)p->workspace);
    for (int i = first; i < pack.count; i++)
        if (!gradient[i - first].to || !gradient[i - first].store)
            room += dnn_round_up(pack.bytes[i]);
    workspace = sd_device_workspace(d, room);
    at = dnn_round_up((size_t)p->workspace);
    for (int i = first; i < pack.count; i++)
        if (!gradient[i - first].to || !gradient[i - first].store) {
            pack.at[i] = workspace + at;
            at += dnn_round_up(pack.bytes[i]);
        }
    if (!dnn_run(s, p, &pack, workspace))
        return false;
    for (int i = first; i < pack.count; i++)
        if (gradient[i - first].to && !gradient[i - first].store)
            sd_device_rows(d, gradient[i - first].to, c->dtype, gradient[i - first].pitch, pack.at[i], c->dtype, width,
                           gradient[i - first].rows, width, true);
    return true;
}

bool
cudnn_attention(struct sd_device *d, const struct attention_call *c)
{
    const int64_t size = (int64_t)sd_dtype_size(c->dtype);
    struct attention_call part;
    struct state *s;

    if (sd_device_capability(d) == 0 || !takes_attention(c) || !dnn_open() || !version_has(c) || !(s = dnn_state(d)))
        return false;
    part = part_of(c);
    if (part.batch == c->batch && part.heads == c->heads)
        return one_part(d, s, c);
    if (part.batch * part.heads * c->L * (int64_t)sizeof *c->lse % ALIGNED)        /* where the next part's statistics begin */
        return false;
    for (int64_t b = 0; b < c->batch; b += part.batch)
        for (int64_t h = 0; h < c->heads; h += part.heads) {
            const int64_t at = h * c->d;
            struct attention_call p = part;

            p.q = (const char *)c->q + (b * c->L * c->q_pitch + at) * size;
            p.k = (const char *)c->k + (b * c->S * c->k_pitch + at) * size;
            p.v = (const char *)c->v + (b * c->S * c->v_pitch + at) * size;
            p.o = (char *)c->o + (b * c->L * c->o_pitch + at) * size;
            p.lse = c->lse + (b * c->heads + h) * c->L;
            p.o_gradient = (const char *)c->o_gradient + (b * c->L * c->o_gradient_pitch + at) * size;
            if (c->q_gradient)
                p.q_gradient = (char *)c->q_gradient + (b * c->L * c->q_gradient_pitch + at) * size;
            if (c->k_gradient)
                p.k_gradient = (char *)c->k_gradient + (b * c->S * c->k_gradient_pitch + at) * size;
            if (c->v_gradient)
                p.v_gradient = (char *)c->v_gradient + (b * c->S * c->v_gradient_pitch + at) * size;
            if (!one_part(d, s, &p)) {
                if (b == 0 && h == 0)
                    return false;
                attention_cuda(d, &p);      /* refused half way */
            }
        }
    return true;
}

#endif
