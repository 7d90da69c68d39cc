/* plan - which gradients, what is redone; where every byte lies is plan_lives.c.
 *
 * 1. wanted: forward over the nodes; a tensor is wanted when a trainable lies upstream of it.
 * 2. steps: the forward nodes, then backwards over the nodes through which a gradient flows; what a step reads and is marked
 *    `redo` is computed again just before.
 * 3. lives and places. */
#include "plan_internal.h"

#include <stdlib.h>
#include <string.h>

/* -- what is needed, what is wanted --------------------------------------------------------------------------------- */

static void
mark_needed(bool *needed, const struct sd_graph *g, struct sd_tensor *loss)
{
    for (size_t k = 0; k < g->kept.count; k++)
        if (base_of(g->kept.item[k])->node)
            needed[base_of(g->kept.item[k])->node->index] = true;
    if (loss && base_of(loss)->node)
        needed[base_of(loss)->node->index] = true;
    for (size_t i = g->nodes.count; i-- > 0;) {
        struct sd_node *n = node_at(g, i);

        for (int a = 0; needed[i] && a < n->n_in; a++)
            if (n->in[a] && base_of(n->in[a])->node)
                needed[base_of(n->in[a])->node->index] = true;
    }
}

static void
mark_wanted(struct sd_graph *g)
{
    for (size_t i = 0; i < g->tensors.count; i++) {
        struct sd_tensor *x = g->tensors.item[i];

        if (x->base)
            continue;
        x->storage = sd_alloc(g->scope, sizeof *x->storage);
        x->storage->wanted = x->param && x->param->trainable;
    }
    for (size_t i = 0; i < g->nodes.count; i++) {
        struct sd_node *n = node_at(g, i);

        if (sd_ops[n->op].flags & F_NO_GRAD)
            continue;
        for (int a = 0; a < n->n_in; a++)
            if (n->in[a] && sd_dtype_is_real(n->in[a]->dtype) && storage(n->in[a])->wanted)
                n->out->storage->wanted = true;
    }
}

/* The gradient of x: of a view, the same view of its base's gradient. */
static struct sd_tensor *
gradient(struct sd_tensor *x)
{
    struct sd_tensor *base = base_of(x), *d, *v;

    if (!(d = base->storage->grad)) {
        d = sd_tensor_new(x->graph, base->name, base->dtype, base->ndim, base->shape);
        d->storage = sd_alloc(x->graph->scope, sizeof *d->storage);
        d->storage->is_gradient = true;
        d->storage->elsewhere = base->param;
        base->storage->grad = d;
        if (base->param && !base->param->joined && !x->graph->device && !(d->data = base->param->grad))
            sd_bug("plan", "%s: trainable, but its gradient has no place yet", base->name);
    }
    if (x == base)
        return d;
    v = sd_tensor_new(x->graph, x->name, x->dtype, x->ndim, x->shape);
    v->base = d;
    v->offset = x->offset;
    v->pitch = x->pitch;
    sd_view_link(v);
    if (d->data)
        v->data = (char *)d->data + (size_t)v->offset * sd_element_size(v->dtype);
    return v;
}

/* Does a gradient of the loss reach x, and who takes part?  Marks n->training, makes dout and din. */
static void
make_gradients(struct sd_graph *g, const bool *needed, struct sd_tensor *loss)
{
    gradient(loss);
    for (size_t i = g->nodes.count; i-- > 0;) {
        struct sd_node *n = node_at(g, i);

        if (!needed[i] || !n->out->storage->grad || !n->out->storage->wanted || sd_ops[n->op].flags & F_NO_GRAD)
            continue;
        n->training = true;
        n->dout = gradient(n->out);
        for (int a = 0; a < n->n_in; a++)
            if (n->in[a] && sd_dtype_is_real(n->in[a]->dtype) && storage(n->in[a])->wanted) {
                if (sd_ops[n->op].reads[a] & R_NONE)
                    sd_bug(n->path, "%s has no gradient for input %d, and a trainable lies upstream of it", sd_ops[n->op].name, a);
                n->din[a] = gradient(n->in[a]);
            }
    }
}

/* -- what is redone ------------------------------------------------------------------------------------------------- */

static void
mark_reads(struct sd_graph *g)
{
    for (size_t i = 0; i < g->nodes.count; i++) {
        struct sd_node *n = node_at(g, i);
        unsigned reads = n->training ? backward_reads(n) : 0;

        for (int a = 0; a < n->n_in; a++)
            if (n->in[a] && reads & R_IN(a))
                storage(n->in[a])->read_in_backward = true;
        if (reads & R_OUT)
            n->out->storage->read_in_backward = true;
    }
}

static bool
kept_by_user(const struct sd_graph *g, const struct sd_tensor *x)
{
    for (size_t k = 0; k < g->kept.count; k++)
        if (base_of(g->kept.item[k]) == x)
            return true;
    return false;
}

/* Is x read outside the block of the node that computes it? */
static bool
leaves_block(const struct sd_graph *g, const struct sd_node *n)
{
    for (size_t i = 0; i < g->nodes.count; i++) {
        const struct sd_node *m = node_at(g, i);

        for (int a = 0; a < m->n_in; a++)
            if (m->in[a] && base_of(m->in[a]) == n->out && m->block != n->block)
                return true;
    }
    return false;
}

static bool
feeds_only_cheap(const struct sd_graph *g, const struct sd_node *n)
{
    bool any = false;

    for (size_t i = 0; i < g->nodes.count; i++) {
        const struct sd_node *m = node_at(g, i);

        for (int a = 0; a < m->n_in; a++)
            if (m->in[a] && base_of(m->in[a]) == n->out) {
                if (!(sd_ops[m->op].flags & F_CHEAP))
                    return false;
                any = true;
            }
    }
    return any;
}

static void
choose_redo(struct sd_graph *g, enum sd_recompute level)
{
    for (size_t i = 0; i < g->nodes.count; i++)
        node_at(g, i)->out->storage->redo = false;
    if (level == SD_KEEP_ALL)
        return;
    for (size_t i = 0; i < g->nodes.count; i++) {
        struct sd_node *n = node_at(g, i);
        struct sd_storage *s = n->out->storage;
        size_t more = 0;        /* bytes that redoing n would keep alive and that are not kept anyway */

        if (kept_by_user(g, n->out))
            continue;
        if (level == SD_REDO_BLOCKS && n->block && !leaves_block(g, n)) {
            s->redo = true;
            continue;
        }
        if (!s->read_in_backward)
            continue;
        for (int a = 0; a < n->n_in; a++)
            if (n->in[a] && base_of(n->in[a])->node && !storage(n->in[a])->read_in_backward && !storage(n->in[a])->redo)
                more += tensor_bytes(base_of(n->in[a]));
        if (sd_ops[n->op].flags & F_CHEAP)
            s->redo = more < tensor_bytes(n->out);
        else if (level == SD_REDO_FEED_FORWARD && (n->op == SD_OP_linear || n->op == SD_OP_projections) &&
                 feeds_only_cheap(g, n))
            s->redo = more < tensor_bytes(n->out);
        if (s->redo)
            for (int a = 0; a < n->n_in; a++)
                if (n->in[a])
                    storage(n->in[a])->read_in_backward = true;     /* kept, or redone in its turn */
    }
}

/* -- steps ---------------------------------------------------------------------------------------------------------- */

static struct sd_step *
add_step(struct sd_plan *p, enum sd_step_kind kind, struct sd_node *n)
{
    struct sd_step *s = sd_alloc(p->scope, sizeof *s);

    s->kind = kind;
    s->node = n;
    sd_array_push(p->scope, &p->steps, s);
    return s;
}

/* Make sure that x can be read by the step about to be added. */
static void
redo(struct sd_plan *p, struct sd_tensor *x)
{
    struct sd_tensor *base = base_of(x);
    struct sd_node *n = base->node;

    if (!n || n->out != base || !base->storage->redo || base->storage->redone)
        return;
    for (int a = 0; a < n->n_in; a++)
        if (n->in[a])
            redo(p, n->in[a]);
    base->storage->redone = true;
    add_step(p, SD_STEP_REDO, n);
    p->report.redone++;
    p->report.flops += n->flops;
}

/* Column or row range of the base that a use covers, for the question "store or add".  Scattered: neither. */
struct range {
    bool whole, columns, scattered;
    int64_t begin, end;
};

static struct range
range_of(const struct sd_tensor *x)
{
    const struct sd_tensor *base = x->base ? x->base : x;
    struct range r = { .whole = true };

    if (x->numel == base->numel)
        return r;
    r.whole = false;
    if (sd_cols(x) < sd_cols(base) && x->numel / (size_t)sd_cols(x) == base->numel / (size_t)sd_cols(base)
        && x->pitch == sd_cols(base)) {
        r.columns = true;
        r.begin = x->offset;
        r.end = x->offset + sd_cols(x);
    } else {
        r.scattered = !sd_dense(x);
        r.begin = x->offset;
        r.end = x->offset + (int64_t)x->numel;
    }
    return r;
}

static bool
ranges_apart(struct range a, struct range b)
{
    return !a.whole && !b.whole && !a.scattered && !b.scattered && a.columns == b.columns
           && (a.end <= b.begin || b.end <= a.begin);
}

/* All uses of base x that write its gradient are apart and cover it: every one may store. */
static bool
uses_tile(struct sd_graph *g, struct sd_tensor *x)
{
    enum { USES = 256 };        /* keys and values of a text: two for each cross-attention */
    struct range r[USES];
    int count = 0;
    int64_t covered = 0;

    for (size_t i = 0; i < g->nodes.count; i++) {
        struct sd_node *n = node_at(g, i);

        for (int a = 0; a < n->n_in; a++)
            if (n->din[a] && base_of(n->in[a]) == x) {
                if (count == USES)
                    return false;
                r[count] = range_of(n->in[a]);
                for (int k = 0; k < count; k++)
                    if (!ranges_apart(r[k], r[count]))
                        return false;
                covered += r[count].columns ? (r[count].end - r[count].begin) * sd_rows(x) : r[count].end - r[count].begin;
                count++;
            }
    }
    return covered == (int64_t)x->numel;
}

static void
decide_store(struct sd_plan *p, struct sd_node *n, bool *store)
{
    for (int a = 0; a < n->n_in; a++) {
        struct sd_tensor *base;
        bool twice = false;

        store[a] = false;
        if (!n->din[a])
            continue;
        base = base_of(n->in[a]);
        if (base->param)
            continue;                   /* added to the caller's gradient */
        for (int b = 0; b < n->n_in; b++)
            twice |= b != a && n->din[b] && base_of(n->in[b]) == base;
        if (base->storage->grad->storage->written)
            continue;
        if (!twice && range_of(n->in[a]).whole)
            store[a] = true;
        else if (uses_tile(p->graph, base)) {
            store[a] = true;            /* and so may the others, whenever they come */
            continue;
        } else
            add_step(p, SD_STEP_ZERO, NULL)->tensor = base->storage->grad;
        base->storage->grad->storage->written = true;
    }
}

static void
make_steps(struct sd_plan *p, const bool *needed, struct sd_tensor *loss)
{
    struct sd_graph *g = p->graph;

    for (size_t i = 0; i < g->nodes.count; i++)
        if (needed[i]) {
            add_step(p, SD_STEP_FORWARD, node_at(g, i));
            p->report.flops += node_at(g, i)->flops;
        }
    if (!loss)
        return;
    add_step(p, SD_STEP_ONE, NULL)->tensor = storage(loss)->grad;
    for (size_t i = g->nodes.count; i-- > 0;) {
        struct sd_node *n = node_at(g, i);
        unsigned reads;
        bool store[SD_MAX_IN];

        if (!n->training)
            continue;
        reads = backward_reads(n);
        for (int a = 0; a < n->n_in; a++)
            if (n->in[a] && reads & R_IN(a))
                redo(p, n->in[a]);
        if (reads & R_OUT)
            redo(p, n->out);
        decide_store(p, n, store);
        memcpy(add_step(p, SD_STEP_BACKWARD, n)->din_store, store, sizeof store);
        p->report.flops += n->backward_flops;
    }
}

/* -- parameters ----------------------------------------------------------------------------------------------------- */

/* Parameters that n reads as ordinary numbers, and those it reads a part of, are wanted as values; a weight (W_IN) is asked
 * for by its kernel, in the form it likes. */
static void
mark_operands(struct sd_node *n)
{
    for (int a = 0; a < n->n_in; a++) {
        struct sd_tensor *x = n->in[a];

        if (!x || !x->param || (!x->base && sd_ops[n->op].flags & W_IN(a)))
            continue;
        storage(x)->values = true;
        if (n->graph->device)
            sd_param_want(x->param, SD_F32, SD_ROWS);
        else
            sd_param_reserve_values(x->param);
    }
}

/* Everything that a kernel decides before bytes are placed. */
static int
prepare(struct sd_node *n)
{
    const struct sd_op_info *info = &sd_ops[n->op];
    size_t convert;

    if (n->graph->device && !info->forward_cuda)
        return sd_fail("%s: there is no CUDA kernel for %s", n->path, info->name);
    mark_operands(n);
    if (n->graph->device) {
        info->prepare_cuda(n);
        return 0;
    }
    if (info->prepare)
        info->prepare(n);
    if ((convert = sd_convert_bytes(n))) {
        n->converted = true;
        n->own_scratch = (n->scratch_bytes + SD_ALIGN - 1) / SD_ALIGN * SD_ALIGN;
        n->scratch_bytes = n->own_scratch + convert;
    }
    return 0;
}

/* -- entries -------------------------------------------------------------------------------------------------------- */

static void
reset(struct sd_graph *g)
{
    for (size_t i = 0; i < g->tensors.count; i++) {
        struct sd_tensor *x = g->tensors.item[i];

        if (!x->storage)
            continue;
        x->storage->redone = x->storage->redo = x->storage->read_in_backward = x->storage->written = false;
        x->storage->life = NULL;
    }
}

static struct sd_plan *
plan(struct sd_graph *g, struct sd_tensor *loss, const bool *needed, enum sd_recompute level)
{
    struct sd_plan *p;
    struct sd_scope *s = sd_scope_open();

    p = sd_alloc(s, sizeof *p);
    p->scope = s;
    p->graph = g;
    p->guarded = sd_guard;
    p->report.recompute = level;
    reset(g);
    if (loss) {
        mark_reads(g);
        choose_redo(g, level);
    }
    make_steps(p, needed, loss);
    sd_plan_place(p, loss);
    p->report.copies = g->copies;
    p->report.steps = (int)p->steps.count;
    return p;
}

static struct sd_plan *
plan_within(struct sd_graph *g, struct sd_tensor *loss, enum sd_recompute least, int64_t budget)
{
    bool *needed;
    struct sd_plan *p;

    if (!sd_graph_ok(g))
        return NULL;
    if (g->planned)
        sd_bug("plan", "a graph is planned once");
    g->planned = true;
    needed = sd_alloc_array(g->scope, g->nodes.count + 1, sizeof *needed);
    mark_needed(needed, g, loss);
    mark_wanted(g);
    if (loss) {
        if (loss->numel != base_of(loss)->numel)
            sd_bug("plan", "the loss %s is a part of a tensor", loss->name);
        if (!storage(loss)->wanted)
            return sd_fail_null("nothing to train: no trainable parameter lies upstream of the loss");
        make_gradients(g, needed, loss);
    }
    for (size_t i = 0; i < g->nodes.count; i++)
        if (needed[i] && prepare(node_at(g, i)) < 0)
            return NULL;
    for (enum sd_recompute level = least;; level++) {
        p = plan(g, loss, needed, level);
        if (!budget || (int64_t)p->arena_bytes <= budget)
            return p;
        if (!loss || level == SD_REDO_BLOCKS) {
            size_t bytes = p->arena_bytes;

            sd_plan_free(p);
            return sd_fail_null("needs %.1f MiB for activations, the budget leaves %.1f MiB", (double)bytes / (1 << 20),
                                (double)budget / (1 << 20));
        }
        sd_plan_free(p);
    }
}

struct sd_plan *
sd_plan_inference(struct sd_graph *g, int64_t budget)
{
    return plan_within(g, NULL, SD_KEEP_ALL, budget);
}

struct sd_plan *
sd_plan_training(struct sd_graph *g, struct sd_tensor *loss, enum sd_recompute least, int64_t budget)
{
    return plan_within(g, loss, least, budget);
}

void
sd_plan_free(struct sd_plan *p)
{
    if (!p)
        return;
    if (getenv("SD_PROFILE"))
        sd_plan_profile(p);
    sd_device_forget(p);
    if (p->own_arena)
        sd_arena_free(p->arena);
    sd_scope_close(p->scope);
}

struct sd_plan_report
sd_plan_report(const struct sd_plan *p)
{
    return p->report;
}
