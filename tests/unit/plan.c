/* plan: gradients do not depend on how much is redone, on views, or on a shared arena; budgets are kept or refused;
 * nothing overlaps (guards), non-finite values are named by module. */
#include "check.h"
#include "op.h"
#include "ops.h"
#include "plan_internal.h"

enum { B = 2, L = 6, D = 8, BLOCKS = 4 };

struct net {
    struct sd_scope *scope;
    struct sd_graph *graph;
    struct sd_tensor *x, *loss;
    struct sd_param *weight[BLOCKS][6];
    real *grad;
    size_t trained;
};

static float
value_at(size_t i)
{
    return (float)((double)((i * 2654435761u) % 1000) / 1000 - 0.5);
}

static struct sd_param *
frozen(struct net *n, const char *name, int ndim, int64_t a, int64_t b, size_t salt)
{
    size_t count = (size_t)(a * (ndim > 1 ? b : 1));
    float *raw = sd_alloc_array(n->scope, count, sizeof *raw);

    for (size_t i = 0; i < count; i++)
        raw[i] = value_at(i + salt) + (ndim == 1 ? 1 : 0);
    return sd_param_new(n->scope, name, SD_F32, ndim, (int64_t[]){ a, b }, raw);
}

static struct sd_param *
trainable(struct net *n, const char *name, int64_t a, int64_t b, size_t salt)
{
    struct sd_param *p = sd_param_new(n->scope, name, SD_F32, 2, (int64_t[]){ a, b }, NULL);

    p->trainable = true;
    p->value = sd_alloc_array(n->scope, p->numel, sizeof(real));
    p->grad = sd_alloc_array(n->scope, p->numel, sizeof(real));
    for (size_t i = 0; i < p->numel; i++)
        p->value[i] = (real)value_at(i + salt);
    return p;
}

/* norm -> fused q,k,v (sliced) -> attention -> out + x;  norm -> geglu feed-forward + x, a low-rank adapter on each */
static void
describe(struct net *n)
{
    struct sd_graph *g;
    struct sd_tensor *h;

    n->scope = sd_scope_open();
    g = n->graph = sd_graph_new();
    h = n->x = sd_input(g, "x", SD_F32, 3, (int64_t[]){ B, L, D });
    for (int i = 0; i < BLOCKS; i++) {
        struct sd_tensor *u, *qkv;
        struct sd_param *norm = frozen(n, "norm", 1, D, 1, 3), *bias = frozen(n, "bias", 1, D, 1, 4);

        sd_path_push(g, "blocks.%d", i);
        sd_block_begin(g);
        u = sd_op_layer_norm(g, h, sd_use(g, norm), sd_use(g, bias), 1e-5);
        qkv = sd_op_linear(g, u, sd_use(g, n->weight[i][0] = trainable(n, "qkv", 3 * D, D, 10 + (size_t)i)), NULL, NULL);
        u = sd_op_attention(g, sd_slice(qkv, 2, 0, D), sd_slice(qkv, 2, D, D), sd_slice(qkv, 2, 2 * D, D),
                            (struct sd_attention){ .heads = 2 });
        h = sd_op_linear(g, u, sd_use(g, frozen(n, "out", 2, D, D, 30 + (size_t)i)), NULL, h);
        u = sd_op_layer_norm(g, h, sd_use(g, norm), sd_use(g, bias), 1e-5);
        u = sd_op_geglu(g, sd_op_linear(g, u, sd_use(g, n->weight[i][1] = trainable(n, "ff", 8 * D, D, 50)), NULL, NULL));
        h = sd_op_linear(g, u, sd_use(g, n->weight[i][2] = trainable(n, "ff2", D, 4 * D, 70)), NULL, h);
        sd_block_end(g);
        sd_path_pop(g);
    }
    n->loss = sd_keep(h);
}

static void
undo(struct net *n, struct sd_plan *p)
{
    sd_plan_free(p);
    sd_graph_free(n->graph);
    sd_scope_close(n->scope);
}

static size_t
gradients(struct net *n, struct sd_plan *p, real *out)
{
    float x[B * L * D];
    size_t count = 0;

    for (size_t i = 0; i < B * L * D; i++)
        x[i] = value_at(i + 1000);
    sd_feed(p, n->x, x);
    sd_run(p);
    for (int i = 0; i < BLOCKS; i++)
        for (int k = 0; k < 3; k++) {
            memcpy(out + count, n->weight[i][k]->grad, n->weight[i][k]->numel * sizeof *out);
            count += n->weight[i][k]->numel;
        }
    return count;
}

static void
redoing_changes_nothing(void)
{
    static real kept[1 << 16], redone[1 << 16];
    size_t arena = 0;

    for (enum sd_recompute level = SD_KEEP_ALL; level <= SD_REDO_BLOCKS; level++) {
        struct net n = { 0 };
        struct sd_plan *p;
        struct sd_plan_report r;
        size_t count;

        describe(&n);
        sd_guard = true;
        p = sd_plan_training(n.graph, n.loss, level, 0);
        sd_guard = false;
        r = sd_plan_report(p);
        sd_plan_bind(p, NULL);
        count = gradients(&n, p, level == SD_KEEP_ALL ? kept : redone);
        if (level == SD_KEEP_ALL) {
            double sum = 0;

            for (size_t i = 0; i < count; i++)
                sum += fabs((double)kept[i]);
            CHECK(r.redone == 0 && sum > 0 && isfinite(sum), "nothing redone: %d steps, %zu bytes, |gradient| %.3f", r.steps,
                  r.arena_bytes, sum);
        } else
            CHECK(r.redone > 0 && r.activations_bytes < arena && memcmp(kept, redone, count * sizeof *kept) == 0,
                  "level %d: %zu redone, activations %zu < %zu, the same bits", level, r.redone, r.activations_bytes, arena);
        arena = r.activations_bytes;
        undo(&n, p);
    }
}

/* The gradient of what was only added is that of the sum: no bytes of its own, no pass.  The first residual is the input, of
 * which no gradient is wanted. */
static void
residuals_take_over(void)
{
    struct net n = { 0 };
    struct sd_plan *p;
    int handed = 0;

    describe(&n);
    p = sd_plan_training(n.graph, n.loss, SD_KEEP_ALL, 0);
    for (size_t i = 0; i < p->lives.count; i++) {
        const struct sd_life *l = p->lives.item[i];

        if (l->from && l->tensor->storage->is_gradient) {
            CHECK(l->offset == l->from->offset && l->from->tensor->storage->is_gradient && l->from->end == l->begin,
                  "%s: from %s", l->tensor->name, l->from->tensor->name);
            handed++;
        }
    }
    CHECK(handed == 2 * BLOCKS - 1, "%d of %d residuals", handed, 2 * BLOCKS - 1);
    undo(&n, p);
}

static void
budgets(void)
{
    struct net n = { 0 };
    struct sd_plan *p;
    size_t most, least;

    describe(&n);
    p = sd_plan_training(n.graph, n.loss, SD_KEEP_ALL, 0);
    most = sd_plan_report(p).arena_bytes;
    undo(&n, p);
    describe(&n);
    p = sd_plan_training(n.graph, n.loss, SD_REDO_BLOCKS, 0);
    least = sd_plan_report(p).arena_bytes;
    undo(&n, p);
    describe(&n);
    p = sd_plan_training(n.graph, n.loss, SD_KEEP_ALL, (int64_t)most - 1);
    CHECK(p && sd_plan_report(p).arena_bytes < most && sd_plan_report(p).recompute > SD_KEEP_ALL,
          "a budget of %zu - 1 bytes is met by redoing", most);
    undo(&n, p);
    describe(&n);
    p = sd_plan_training(n.graph, n.loss, SD_KEEP_ALL, (int64_t)least - 1);
    CHECK(!p && strstr(sd_reason(), " MiB for activations, the budget leaves "), "less than the least is refused: %s", sd_reason());
    sd_graph_free(n.graph);
    sd_scope_close(n.scope);
}

static void
faults(void)
{
    struct net n = { .scope = sd_scope_open() };
    struct sd_graph *g = sd_graph_new();
    struct sd_tensor *x = sd_input(g, "x", SD_F32, 2, (int64_t[]){ 3, 5 });

    sd_path_push(g, "down_blocks.%d", 1);
    sd_path_push(g, "to_k");
    sd_keep(sd_op_linear(g, x, sd_use(g, frozen(&n, "w", 2, 4, 7, 0)), NULL, NULL));
    sd_path_pop(g);
    CHECK(strcmp(sd_path(g), "down_blocks.1") == 0, "path after pop: %s", sd_path(g));
    CHECK(!sd_plan_inference(g, 0) && strstr(sd_reason(), "down_blocks.1.to_k: linear: weight"), "fault: %s", sd_reason());
    sd_graph_free(g);
    sd_scope_close(n.scope);
}

/* Sides from a configuration file whose product no integer holds, and views of what does not fit: a reason, no abort. */
static void
hostile_sizes(void)
{
    struct sd_graph *g = sd_graph_new();
    struct sd_tensor *x = sd_input(g, "x", SD_F32, 3, (int64_t[]){ 1LL << 31, 1LL << 31, 4 });

    x = sd_reshape(sd_slice(x, 2, 1, 5), 2, (int64_t[]){ 7, 3 });
    sd_keep(sd_op_silu(g, x));
    CHECK(!sd_plan_inference(g, 0) && strcmp(sd_reason(), "x [2147483648, 2147483648, 4]: too large") == 0, "%s",
          sd_reason());
    sd_graph_free(g);
}

/* What --plan adds up is what running makes: half-precision and unaligned parameters, whole, sliced, as operands. */
static void
reservations(void)
{
    static unsigned char bytes[4 * 64 + 1], halves[2 * 64];
    struct sd_scope *s = sd_scope_open();
    struct sd_graph *g = sd_graph_new();
    struct sd_param *half = sd_param_new(s, "half", SD_F16, 2, (int64_t[]){ 8, 8 }, halves);
    struct sd_param *odd = sd_param_new(s, "odd", SD_F32, 2, (int64_t[]){ 8, 8 }, bytes + 1);
    struct sd_param *bias = sd_param_new(s, "bias", SD_F16, 1, (int64_t[]){ 8 }, halves);
    struct sd_tensor *input = sd_input(g, "x", SD_F32, 2, (int64_t[]){ 8, 8 }), *x;
    size_t before = sd_param_bytes_made(), reserved = sd_param_bytes_reserved(), made;
    float in[64], out[64];
    struct sd_plan *p;

    for (size_t i = 0; i < 64; i++) {
        memcpy(bytes + 1 + 4 * i, &(float){ (float)i }, 4);
        in[i] = 1;
    }
    x = sd_op_add(g, sd_op_linear(g, input, sd_slice(sd_use(g, odd), 0, 0, 8), sd_use(g, bias), NULL), sd_use(g, odd));
    x = sd_op_concat(g, x, sd_op_silu(g, sd_use(g, half)));
    x = sd_keep(sd_slice(x, 1, 0, 8));
    p = sd_plan_inference(g, 0);
    reserved = sd_param_bytes_reserved() - reserved;
    sd_plan_bind(p, NULL);
    sd_feed(p, input, in);
    sd_run(p);
    made = sd_param_bytes_made() - before;
    CHECK(made == reserved && made > 0, "parameters: %zu bytes reserved, %zu made", reserved, made);
    sd_fetch(p, x, out);
    CHECK(out[9] == 8 * 8 + 28 + 9, "the sum of row 1 of an unaligned weight, plus one of its elements: %g",
          (double)out[9]);
    sd_plan_free(p);
    sd_graph_free(g);
    sd_scope_close(s);
}

static void
non_finite(void)
{
    struct net n = { 0 };
    struct sd_plan *p;
    float x[B * L * D] = { 0 };

    describe(&n);
    p = sd_plan_training(n.graph, n.loss, SD_REDO_CHEAP, 0);
    sd_plan_bind(p, NULL);
    for (size_t i = 0; i < B * L * D; i++)
        x[i] = value_at(i);
    sd_feed(p, n.x, x);
    CHECK(!sd_run_scan(p), "all finite: nothing named");
    n.weight[2][0]->value[5] = (real)NAN;
    sd_feed(p, n.x, x);
    CHECK(sd_run_scan(p) && strcmp(sd_run_scan(p), "blocks.2") == 0, "NaN named: %s", sd_run_scan(p));
    undo(&n, p);
}

int
main(void)
{
    redoing_changes_nothing();
    residuals_take_over();
    budgets();
    faults();
    hostile_sizes();
    reservations();
    non_finite();
    return check_done();
}
