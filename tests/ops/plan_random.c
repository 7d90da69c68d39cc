/* plan, on random small graphs: views of views, tensors used twice, shared parameters, kept tensors, blocks.
 * The reference keeps every tensor, so that none shares bytes and nothing is redone.  At every level of recomputation,
 * with guards and poisoned buffers, in the first run and in the second: kept tensors and gradients have the same bits;
 * so have the kept tensors of an inference plan.  In the f64 build central differences are compared with, too. */
#include "check.h"
#include "op.h"
#include "ops.h"
#include "plan.h"

enum { GRAPHS = 2000, PROBES = 6, B = 2, L = 4, MAX_POOL = 64, MAX_PARAMS = 64, MAX_KEPT = 80, WIDEST = 24 };

struct net {
    uint64_t state;
    struct sd_scope *scope;
    struct sd_graph *graph;
    struct sd_tensor *input[2], *pool[MAX_POOL], *kept[MAX_KEPT], *loss;
    int pooled, params, keeps;
    struct sd_param *param[MAX_PARAMS];
};

/* splitmix64 */
static uint64_t
next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static int
below(struct net *n, int limit)
{
    return (int)(next(&n->state) >> 33) % limit;
}

static float
value(uint64_t *state)
{
    return (float)((double)(int64_t)(next(state) >> 40) * 0x1p-23 - 1 + 0x1p-24);
}

/* A parameter of this shape: one that is there already half the time. */
static struct sd_tensor *
parameter(struct net *n, int ndim, int64_t rows, int64_t cols, float size)
{
    static const enum sd_dtype dtypes[] = { SD_F32, SD_F32, SD_BF16 };
    int64_t shape[2] = { ndim == 1 ? cols : rows, cols };
    int old = below(n, 2) ? n->params : 0;
    struct sd_param *p;
    uint64_t state;
    bool trainable;

    for (; old < n->params; old++) {
        p = n->param[old];
        if (p->ndim == ndim && memcmp(p->shape, shape, (size_t)ndim * sizeof *shape) == 0)
            return sd_use(n->graph, p);
    }
    state = n->state;
    trainable = below(n, 3) > 0;
    p = sd_param_new(n->scope, "p", trainable ? SD_F32 : dtypes[below(n, 3)], ndim, shape, NULL);
    p->trainable = trainable;
    if (p->trainable) {
        p->value = sd_alloc_array(n->scope, p->numel, sizeof(real));
        p->grad = sd_alloc_array(n->scope, p->numel, sizeof(real));
        for (size_t i = 0; i < p->numel; i++)
            p->value[i] = (real)(size * value(&state));
    } else {
        size_t bytes = sd_dtype_size(p->dtype);
        char *raw = sd_alloc_array(n->scope, p->numel + 1, bytes);

        raw += below(n, 2) ? 0 : bytes / 2;         /* files promise no alignment */
        for (size_t i = 0; i < p->numel; i++) {
            float f = size * value(&state);

            memcpy(raw + i * bytes, (char *)&f + 4 - bytes, bytes);
        }
        p->raw = raw;
    }
    if (n->params < MAX_PARAMS)
        n->param[n->params++] = p;
    return sd_use(n->graph, p);
}

static void
enter(struct net *n, struct sd_tensor *x)
{
    if (n->pooled == MAX_POOL)
        n->pool[below(n, MAX_POOL)] = x;
    else
        n->pool[n->pooled++] = x;
}

/* A tensor of the pool, rather a late one. */
static struct sd_tensor *
any(struct net *n)
{
    int back = below(n, 3) ? below(n, n->pooled < 4 ? n->pooled : 4) : below(n, n->pooled);

    return n->pool[n->pooled - 1 - back];
}

/* One with the shape of x in the first `axes` axes; x itself when there is no other. */
static struct sd_tensor *
alike(struct net *n, struct sd_tensor *x, int axes)
{
    int from = below(n, n->pooled);

    for (int i = 0; i < n->pooled; i++) {
        struct sd_tensor *y = n->pool[(from + i) % n->pooled];

        if (memcmp(y->shape, x->shape, (size_t)axes * sizeof *x->shape) == 0 && (y != x || below(n, 6) == 0))
            return y;
    }
    return x;
}

static struct sd_tensor *
weight(struct net *n, int64_t out, int64_t in)
{
    float size = 1.5f / sqrtf((float)in);

    switch (below(n, 6)) {
    case 0:             /* some rows of a larger one */
        return sd_slice(parameter(n, 2, out + 2, in, size), 0, 1, out);
    case 1:             /* another shape of it */
        return sd_reshape(parameter(n, 2, in, out, size), 2, (int64_t[]){ out, in });
    case 2:             /* one that is computed */
        return sd_op_add(n->graph, parameter(n, 2, out, in, size / 2), parameter(n, 2, out, in, size / 2));
    default:
        return parameter(n, 2, out, in, size);
    }
}

static struct sd_tensor *
norm(struct net *n, struct sd_tensor *x)
{
    return sd_op_layer_norm(n->graph, x, parameter(n, 1, 1, sd_cols(x), 1), parameter(n, 1, 1, sd_cols(x), 1), 1e-2);
}

static struct sd_tensor *
attend(struct net *n, struct sd_tensor *x)
{
    struct sd_attention a = { .heads = sd_cols(x) % 2 ? 1 : 2, .causal = below(n, 2) };
    struct sd_tensor *k, *v, *all;

    if (below(n, 2)) {
        k = alike(n, x, 3);
        v = alike(n, x, 3);
    } else {
        int64_t d = sd_cols(x);

        all = sd_op_linear(n->graph, x, weight(n, 3 * d, d), NULL, NULL);
        x = sd_slice(all, 2, 0, d);
        k = sd_slice(all, 2, below(n, 4) ? d : d / 2, d);
        v = sd_slice(all, 2, 2 * d, d);
    }
    return sd_op_attention(n->graph, x, k, v, a);
}

static struct sd_tensor *
columns(struct net *n, struct sd_tensor *x)
{
    int64_t C = sd_cols(x), half = C / 2;

    if (half < 1)
        return x;
    if (below(n, 2)) {
        enter(n, sd_slice(x, 2, 0, half));
        return sd_slice(x, 2, half, C - half);
    }
    return sd_slice(x, 2, below(n, (int)half), half);
}

static struct sd_tensor *
rows(struct net *n, struct sd_tensor *x)
{
    if (x->shape[0] < 2)
        return x;
    if (below(n, 2)) {
        enter(n, sd_slice(x, 0, 0, 1));
        return sd_slice(x, 0, 1, x->shape[0] - 1);
    }
    return sd_slice(x, 0, below(n, (int)x->shape[0]), 1);
}

static struct sd_tensor *
reshaped(struct net *n, struct sd_tensor *x)
{
    int64_t *s = x->shape;

    if (!sd_dense(x))
        return sd_reshape(x, 3, (int64_t[]){ 1, s[0] * s[1], s[2] });
    switch (below(n, 3)) {
    case 0:
        return s[1] % 2 || s[2] > 12 ? x : sd_reshape(x, 3, (int64_t[]){ s[0], s[1] / 2, s[2] * 2 });
    case 1:
        return s[2] % 2 ? x : sd_reshape(x, 3, (int64_t[]){ s[0], s[1] * 2, s[2] / 2 });
    default:
        return sd_reshape(x, 3, (int64_t[]){ s[1], s[0], s[2] });
    }
}

/* Two or three views of one tensor, each through an op, side by side: their gradients tile it, overlap or leave gaps. */
static struct sd_tensor *
gathered(struct net *n, struct sd_tensor *x)
{
    struct sd_graph *g = n->graph;
    struct sd_tensor *base = sd_op_scale(g, x, parameter(n, 1, 1, 1, 2)), *all = NULL;
    int64_t count;

    for (int i = 2 + below(n, 2); i > 0; i--) {
        struct sd_tensor *v = base;

        for (int k = 1 + below(n, 2); k > 0; k--)
            v = below(n, 3) == 0 ? reshaped(n, v) : below(n, 2) ? columns(n, v) : rows(n, v);
        v = sd_op_copy(g, v);
        v = sd_op_silu(g, sd_reshape(v, 3, (int64_t[]){ 1, 1, (int64_t)v->numel }));
        all = all ? sd_op_concat(g, all, v) : v;
    }
    count = (int64_t)all->numel;
    for (int64_t width = 8; width > 1; width /= 2)
        if (count % width == 0)
            return sd_reshape(all, 3, (int64_t[]){ 1, count / width, width });
    return sd_reshape(all, 3, (int64_t[]){ 1, count, 1 });
}

static struct sd_tensor *
another(struct net *n)
{
    struct sd_graph *g = n->graph;
    struct sd_tensor *x = any(n), *y;
    int64_t C = sd_cols(x), width;

    switch (below(n, 15)) {
    case 0:
    case 1:
    case 2:
        y = alike(n, x, 2);
        width = sd_cols(y);
        return sd_op_linear(g, x, weight(n, width, C), below(n, 2) ? parameter(n, 1, 1, width, 1) : NULL,
                            below(n, 2) ? y : NULL);
    case 3:
        y = alike(n, x, 3);
        return sd_op_add(g, x, y);
    case 4:
        return sd_op_scale(g, x, parameter(n, 1, 1, 1, 2));
    case 5:
        y = alike(n, x, 2);
        return C + sd_cols(y) > WIDEST ? norm(n, x) : sd_op_concat(g, x, y);
    case 6:
        return norm(n, x);
    case 7:
        return below(n, 2) ? sd_op_silu(g, x) : sd_op_quick_gelu(g, x);
    case 8:
        return C % 2 ? sd_op_gelu(g, x) : sd_op_geglu(g, x);
    case 9:
        return attend(n, x);
    case 10:
        return columns(n, x);
    case 11:
        return rows(n, x);
    case 12:
        return reshaped(n, x);
    case 13:
        return gathered(n, x);
    default:            /* a parameter as an ordinary operand */
        y = sd_reshape(parameter(n, 2, (int64_t)x->numel / C, C, 1), 3, x->shape);
        return below(n, 2) ? sd_op_add(g, x, y) : sd_op_silu(g, y);
    }
}

static void
keep(struct net *n, struct sd_tensor *x)
{
    if (n->keeps < MAX_KEPT && !x->param)
        n->kept[n->keeps++] = sd_keep(x);
}

/* The same graph for the same seed; with `all`, every tensor is kept besides. */
static void
describe(struct net *n, uint64_t seed, bool all)
{
    struct sd_tensor *x = NULL;
    int steps;

    *n = (struct net){ .state = seed, .scope = sd_scope_open(), .graph = sd_graph_new() };
    steps = 3 + below(n, 24);
    for (int i = 0; i < 2; i++) {
        n->input[i] = sd_input(n->graph, "x", SD_F32, 3, (int64_t[]){ B, L, 8 });
        enter(n, n->input[i]);
    }
    for (int i = 0; i < steps; i++) {
        if (below(n, 4) == 0)
            sd_block_begin(n->graph);
        sd_path_push(n->graph, "step%d", i);
        x = another(n);
        sd_path_pop(n->graph);
        enter(n, x);
        if (below(n, 6) == 0)
            keep(n, x);
        if (below(n, 4) == 0)
            sd_block_end(n->graph);
    }
    n->loss = x->base || !x->node ? sd_op_scale(n->graph, x, parameter(n, 1, 1, 1, 1)) : x;
    if (below(n, 2))
        keep(n, sd_op_silu(n->graph, n->loss));
    keep(n, n->loss);
    for (int i = 0; all && i < n->pooled; i++)
        if (!n->pool[i]->param)
            sd_keep(n->pool[i]);
}

struct values {
    size_t outputs, count, room;
    real *data;
};

static void
append(struct values *v, const real *from, size_t count)
{
    if (v->count + count > v->room) {
        v->room = 2 * (v->count + count);
        if (!(v->data = realloc(v->data, v->room * sizeof *v->data)))
            abort();
    }
    if (count)
        memcpy(v->data + v->count, from, count * sizeof *from);
    v->count += count;
}

static void
zero_gradients(struct net *n)
{
    for (int i = 0; i < n->params; i++)
        if (n->param[i]->trainable)
            memset(n->param[i]->grad, 0, n->param[i]->numel * sizeof(real));
}

static void
feed(struct net *n, struct sd_plan *p, uint64_t seed)
{
    float x[B * L * 8];
    uint64_t state = ~seed;

    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < B * L * 8; k++)
            x[k] = value(&state);
        sd_feed(p, n->input[i], x);
    }
}

static real *
seeds(struct net *n)
{
    real *seed = sd_alloc_array(n->scope, n->loss->numel, sizeof *seed);
    uint64_t state = 77;

    for (size_t i = 0; i < n->loss->numel; i++)
        seed[i] = (real)value(&state);
    return seed;
}

/* kept tensors, then gradients */
static void
read_values(struct net *n, struct sd_plan *p, struct values *v)
{
    v->count = 0;
    for (int i = 0; i < n->keeps; i++) {
        const struct sd_tensor *x = n->kept[i];

        for (int64_t r = 0; r < sd_rows(x); r++)
            append(v, (real *)sd_data(p, n->kept[i]) + r * x->pitch, (size_t)sd_cols(x));
    }
    v->outputs = v->count;
    for (int i = 0; i < n->params; i++)
        if (n->param[i]->trainable)
            append(v, n->param[i]->grad, n->param[i]->numel);
}

static void
close_net(struct net *n, struct sd_plan *p)
{
    sd_plan_free(p);
    sd_graph_free(n->graph);
    sd_scope_close(n->scope);
}

static double
project(struct net *n, struct sd_plan *p, const real *seed)
{
    const real *y;
    double sum = 0;

    sd_run(p);
    y = sd_data(p, n->loss);
    for (size_t i = 0; i < n->loss->numel; i++)
        sum += (double)(y[i] * seed[i]);
    return sum;
}

/* The worst of a few elements against central differences, relative to the largest gradient of its parameter. */
static double
difference_error(struct net *n, struct sd_plan *p, const real *seed)
{
    double worst = 0;

    for (int i = 0; i < PROBES; i++) {
        struct sd_param *q = n->param[below(n, n->params)];
        size_t at = (size_t)below(n, (int)q->numel);
        double found, up, down, most = 1e-3, error;
        const double h = 1e-5;
        real old;

        if (!q->trainable)
            continue;
        zero_gradients(n);
        project(n, p, seed);
        found = (double)q->grad[at];
        for (size_t k = 0; k < q->numel; k++)
            most = fabs((double)q->grad[k]) > most ? fabs((double)q->grad[k]) : most;
        old = q->value[at];
        q->value[at] = old + (real)h;
        up = project(n, p, seed);
        q->value[at] = old - (real)h;
        down = project(n, p, seed);
        q->value[at] = old;
        error = fabs(found - (up - down) / (2 * h)) / most;
        if (!(error <= worst))
            worst = error;
    }
    return worst;
}

struct outcome {
    int graphs, untrained, wrong[SD_REDO_BLOCKS + 2], redone[SD_REDO_BLOCKS + 1], infinite;
    uint64_t first[SD_REDO_BLOCKS + 2];
    double worst;
    uint64_t worst_seed;
};

static void
compare(struct outcome *o, int way, uint64_t seed, const struct values *found, const struct values *expected,
        bool gradients)
{
    size_t count = gradients ? expected->count : expected->outputs;

    if ((gradients ? found->count : found->outputs) == count
        && memcmp(found->data, expected->data, count * sizeof(real)) == 0)
        return;
    if (!o->wrong[way]++)
        o->first[way] = seed;
}

static void
try_graph(struct outcome *o, uint64_t seed)
{
    static struct values expected, found;
    struct net n;
    struct sd_plan *p;
    real *seed_of_loss;
    double sum = 0;

    describe(&n, seed, true);
    if (!(p = sd_plan_training(n.graph, n.loss, SD_KEEP_ALL, 0))) {
        if (!strstr(sd_reason(), "nothing to train"))
            CHECK(false, "graph %llu: %s", (unsigned long long)seed, sd_reason());
        o->untrained++;
        close_net(&n, NULL);
        return;
    }
    o->graphs++;
    sd_plan_bind(p, NULL);
    feed(&n, p, seed);
    sd_plan_seed(p, seed_of_loss = seeds(&n));
    sd_run(p);
    read_values(&n, p, &expected);
    for (size_t i = 0; i < expected.count; i++)
        sum += fabs((double)expected.data[i]);
    o->infinite += !isfinite(sum) || sum == 0;
    if (!SD_REAL_IS_FLOAT) {
        double error = difference_error(&n, p, seed_of_loss);

        if (!(error <= o->worst)) {
            o->worst = error;
            o->worst_seed = seed;
        }
    }
    close_net(&n, p);
    for (int level = SD_KEEP_ALL; level <= SD_REDO_BLOCKS + 1; level++) {
        bool training = level <= SD_REDO_BLOCKS;

        describe(&n, seed, false);
        sd_guard = true;
        p = training ? sd_plan_training(n.graph, n.loss, (enum sd_recompute)level, 0) : sd_plan_inference(n.graph, 0);
        sd_guard = false;
        sd_plan_bind(p, NULL);
        feed(&n, p, seed);
        sd_plan_seed(p, seeds(&n));
        if (training)
            o->redone[level] += sd_plan_report(p).redone > 0;
        for (int run = 0; run < 2; run++) {
            zero_gradients(&n);
            sd_run(p);
            read_values(&n, p, &found);
            compare(o, level, seed, &found, &expected, training);
        }
        close_net(&n, p);
    }
}

int
main(int argc, char **argv)
{
    static const char *const names[] = { "nothing redone", "cheap ops redone", "feed-forwards redone", "blocks redone",
                                         "inference" };
    struct outcome o = { 0 };

    if (argc > 1)               /* one graph, to look into it */
        try_graph(&o, strtoull(argv[1], NULL, 10));
    else
        for (uint64_t seed = 1; seed <= GRAPHS; seed++)
            try_graph(&o, seed);
    CHECK((argc > 1 || o.graphs > 3 * o.untrained) && o.infinite == 0,
          "%d graphs, %d without a trainable left out, all values finite but of %d", o.graphs, o.untrained, o.infinite);
    for (int way = 0; way <= SD_REDO_BLOCKS + 1; way++)
        CHECK(o.wrong[way] == 0, "%s: the bits of the reference, but for %d runs, the first of graph %llu", names[way],
              o.wrong[way], (unsigned long long)o.first[way]);
    CHECK(argc > 1 || (!o.redone[0] && o.redone[1] > o.graphs / 10 && o.redone[3] > o.redone[1] / 2),
          "graphs with something redone: %d, %d, %d", o.redone[1], o.redone[2], o.redone[3]);
    if (!SD_REAL_IS_FLOAT)
        CHECK(o.worst <= 1e-5, "central differences: worst %.1e, graph %llu", o.worst,
              (unsigned long long)o.worst_seed);
    return check_done();
}
