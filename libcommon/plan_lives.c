/* plan_lives - when each tensor of a plan is there, and where it lies.
 *
 * lives: from the step that writes a tensor to the last that reads it, once per computation; an op may hand the bytes of an
 * input that dies to its output, and those of its output's gradient to that of an input which was only added: a residual's
 * gradient is then there without a pass.  places: lives by size, each at the lowest offset free for its whole time. */
#include "plan_internal.h"

#include <stdlib.h>

/* -- lives ---------------------------------------------------------------------------------------------------------- */

static struct sd_life *
new_life(struct sd_plan *p, struct sd_tensor *x, int begin, size_t bytes, bool forward)
{
    struct sd_life *l = sd_alloc(p->scope, sizeof *l);

    l->tensor = x;
    l->begin = l->end = begin;
    l->bytes = bytes;
    l->forward = forward;
    sd_array_push(p->scope, &p->lives, l);
    if (x) {
        x->storage->life = l;
        sd_array_push(p->scope, &((struct sd_step *)p->steps.item[begin])->begins, l);
    }
    return l;
}

static void
writes(struct sd_plan *p, struct sd_tensor *x, int step, bool forward)
{
    struct sd_tensor *base = base_of(x);

    if (!base->param)
        new_life(p, base, step, tensor_bytes(base), forward);
}

/* x is read (or added to) at this step; a gradient met for the first time is born here. */
static void
touches(struct sd_plan *p, struct sd_tensor *x, int step)
{
    struct sd_tensor *base = base_of(x);

    if (base->param || base->storage->elsewhere)
        return;         /* parameters and their gradients lie elsewhere */
    if (!base->storage->life)
        new_life(p, base, step, tensor_bytes(base), false);
    if (base->storage->life->end < step)        /* inputs already last to the end: they are fed once, for many runs */
        base->storage->life->end = step;
}

/* n->out may lie on the bytes of an input that dies here (I_IN). */
static void
inherit(struct sd_node *n, int step)
{
    struct sd_life *out = n->out->storage->life;

    for (int a = 0; a < n->n_in && !n->apart; a++) {
        struct sd_tensor *x = n->in[a];
        struct sd_life *l;
        bool again = false;     /* read through another operand too, while out is being written */

        if (!x || !(sd_ops[n->op].flags & I_IN(a)) || x->numel != n->out->numel || x->dtype != n->out->dtype || x->param)
            continue;
        for (int b = 0; b < n->n_in; b++)
            again |= b != a && n->in[b] && base_of(n->in[b]) == x;
        l = storage(x)->life;
        if (again || x->base || !x->node || !l || l->end != step || l->heir || l->begin == step || out->from)
            continue;
        l->heir = out;
        out->from = l;
        return;
    }
}

/* dout dies here and is the whole gradient so far of an input (D_IN): that takes its bytes. */
static void
inherit_gradient(const struct sd_step *step, int s)
{
    struct sd_node *n = step->node;
    struct sd_life *dout = n->dout->storage->life;

    if (!dout || dout->end != s || dout->heir)
        return;
    for (int a = 0; a < n->n_in; a++) {
        struct sd_tensor *dx = n->din[a] ? base_of(n->din[a]) : NULL;
        struct sd_life *l = dx ? dx->storage->life : NULL;

        if (!l || !(sd_ops[n->op].flags & D_IN(a)) || !step->din_store[a] || l->begin != s || l->from ||
            dx->numel != n->dout->numel || dx->dtype != n->dout->dtype)
            continue;
        dout->heir = l;
        l->from = dout;
        return;
    }
}

static void
make_lives(struct sd_plan *p, struct sd_tensor *loss)
{
    struct sd_graph *g = p->graph;
    int last = (int)p->steps.count - 1;

    if (last < 0)
        sd_bug("plan", "nothing to compute: no kept tensor has a node");
    for (size_t i = 0; i < g->tensors.count; i++) {     /* inputs stay for the whole run, so that they may be fed once */
        struct sd_tensor *x = g->tensors.item[i];

        if (!x->base && !x->node && !x->param && x->storage && !x->storage->is_gradient)
            new_life(p, x, 0, tensor_bytes(x), true)->end = last;
    }
    for (int s = 0; s <= last; s++) {
        struct sd_step *step = p->steps.item[s];
        struct sd_node *n = step->node;

        switch (step->kind) {
        case SD_STEP_FORWARD:
        case SD_STEP_REDO:
            for (int a = 0; a < n->n_in; a++)
                if (n->in[a])
                    touches(p, n->in[a], s);
            writes(p, n->out, s, true);
            for (int k = 0; k < SD_MAX_SAVED; k++)
                if (n->saved[k]) {
                    if (step->kind == SD_STEP_FORWARD)
                        writes(p, n->saved[k], s, true);
                    else
                        touches(p, n->saved[k], s);
                }
            break;
        case SD_STEP_ZERO:
        case SD_STEP_ONE:
            touches(p, step->tensor, s);
            break;
        case SD_STEP_BACKWARD: {
            unsigned reads = backward_reads(n);

            touches(p, n->dout, s);
            for (int a = 0; a < n->n_in; a++) {
                if (n->in[a] && reads & R_IN(a))
                    touches(p, n->in[a], s);
                if (n->din[a])
                    touches(p, n->din[a], s);
            }
            if (reads & R_OUT)
                touches(p, n->out, s);
            for (int k = 0; k < SD_MAX_SAVED; k++)
                if (n->saved[k] && reads & R_SAVED)
                    touches(p, n->saved[k], s);
            break;
        }
        }
        if (n && n->scratch_bytes)
            step->scratch = new_life(p, NULL, s, (n->scratch_bytes + SD_ALIGN - 1) / SD_ALIGN * SD_ALIGN + (sd_guard ? SD_GUARD : 0), false);
    }
    for (size_t k = 0; k < g->kept.count; k++) {
        struct sd_tensor *x = base_of(g->kept.item[k]);

        if (x->storage->life)
            x->storage->life->end = last + 1;       /* beyond the last step, which may not have its bytes either */
    }
    if (loss && storage(loss)->life)
        storage(loss)->life->end = last + 1;
}

/* Second pass: now that ends are known, hand over bytes where an op allows it. */
static void
hand_over(struct sd_plan *p)
{
    for (size_t s = 0; s < p->steps.count; s++) {
        struct sd_step *step = p->steps.item[s];

        for (size_t i = 0; i < step->begins.count; i++) {
            struct sd_life *l = step->begins.item[i];

            if (l->tensor)
                l->tensor->storage->life = l;   /* replay which life is current */
        }
        if (step->kind == SD_STEP_FORWARD || step->kind == SD_STEP_REDO)
            inherit(step->node, (int)s);
        else if (step->kind == SD_STEP_BACKWARD)
            inherit_gradient(step, (int)s);
    }
}

/* -- places --------------------------------------------------------------------------------------------------------- */

struct unit {               /* lives that share bytes, one after the other */
    int begin, end;
    size_t bytes, offset;
    struct sd_life *first;
};

static int
by_size(const void *a, const void *b)
{
    const struct unit *x = a, *y = b;

    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    return x->begin != y->begin ? (x->begin > y->begin) - (x->begin < y->begin) : (x->end > y->end) - (x->end < y->end);
}

static void
place(struct sd_plan *p)
{
    struct unit *u = sd_alloc_array(p->scope, p->lives.count + 1, sizeof *u);
    size_t *order = sd_alloc_array(p->scope, p->lives.count + 1, sizeof *order), count = 0, placed = 0;

    for (size_t i = 0; i < p->lives.count; i++) {
        struct sd_life *l = p->lives.item[i];

        if (l->from)
            continue;
        u[count] = (struct unit){ l->begin, l->end, l->bytes, 0, l };
        for (struct sd_life *h = l->heir; h; h = h->heir)
            u[count].end = h->end;
        count++;
    }
    qsort(u, count, sizeof *u, by_size);
    for (size_t i = 0; i < count; i++) {
        size_t at = 0, k;

        for (k = 0; k < placed; k++) {          /* `order` holds placed units by offset */
            const struct unit *v = &u[order[k]];

            if (v->end < u[i].begin || u[i].end < v->begin)
                continue;
            if (v->offset >= at + u[i].bytes)
                break;
            if (v->offset + v->bytes > at)
                at = v->offset + v->bytes;
        }
        u[i].offset = at;
        for (k = placed++; k > 0 && u[order[k - 1]].offset > at; k--)
            order[k] = order[k - 1];
        order[k] = i;
        if (at + u[i].bytes > p->arena_bytes)
            p->arena_bytes = at + u[i].bytes;
        for (struct sd_life *l = u[i].first; l; l = l->heir)
            l->offset = at;
    }
}

static size_t
peak_of_activations(const struct sd_plan *p)
{
    size_t peak = 0;

    for (size_t s = 0; s < p->steps.count; s++) {
        size_t sum = 0;

        for (size_t i = 0; i < p->lives.count; i++) {
            const struct sd_life *l = p->lives.item[i];

            if (l->forward && l->begin <= (int)s && (int)s <= l->end && !(l->from && l->begin == (int)s))
                sum += l->bytes;
        }
        if (sum > peak)
            peak = sum;
    }
    return peak;
}

void
sd_plan_place(struct sd_plan *p, struct sd_tensor *loss)
{
    make_lives(p, loss);
    hand_over(p);
    place(p);
    p->report.arena_bytes = p->arena_bytes;
    p->report.activations_bytes = peak_of_activations(p);
}
