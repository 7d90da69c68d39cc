/* param_joined - parameters that stand for several others, side by side (ops.h: projections).  Each is made once for
 * the same members, whoever asks, and kept until one of them dies. */
#include "param.h"

#include <stdlib.h>
#include <string.h>

#include "ops.h"
#include "param_joined.h"

struct joined {
    struct joined *next;
    struct sd_param param;
    struct sd_projections parts;
    struct sd_projection part[SD_MAX_PROJECTIONS];
};

static struct joined *all;

static bool
has(const struct joined *j, const struct sd_param *p)
{
    for (int i = 0; i < j->parts.parts; i++) {
        const struct sd_projection *a = &j->part[i];

        if (a->weight == p || a->bias == p || a->down == p || a->up == p || a->scale == p)
            return true;
    }
    return false;
}

static bool
same(const struct joined *j, const struct sd_projections *a)
{
    if (j->parts.parts != a->parts)
        return false;
    for (int i = 0; i < a->parts; i++) {
        const struct sd_projection *x = &j->part[i], *y = &a->part[i];

        if (x->weight != y->weight || x->bias != y->bias || x->down != y->down || x->up != y->up ||
            x->scale != y->scale)
            return false;
    }
    return true;
}

static struct sd_param *
first_trainable(const struct joined *j)
{
    for (int i = 0; i < j->parts.parts; i++) {
        if (j->part[i].down && j->part[i].down->trainable)
            return j->part[i].down;
        if (j->part[i].up && j->part[i].up->trainable)
            return j->part[i].up;
    }
    return NULL;
}

static void
enter(struct sd_param *p)
{
    if (p)
        p->member = true;
}

/* Of the members that die first: adapters come and go, over weights that stay. */
static struct sd_scope *
scope_of(const struct joined *j)
{
    for (int i = 0; i < j->parts.parts; i++)
        if (j->part[i].down)
            return j->part[i].down->scope;
    return j->part[0].weight->scope;
}

struct sd_param *
sd_param_join(const struct sd_projections *a)
{
    struct joined *j = all;

    if (a->parts < 1 || a->parts > SD_MAX_PROJECTIONS)
        sd_bug("param", "%d parameters to join", a->parts);
    while (j && !same(j, a))
        j = j->next;
    if (!j) {
        if (!(j = calloc(1, sizeof *j)))
            sd_die("memory", "out of memory");
        memcpy(j->part, a->part, (size_t)a->parts * sizeof *a->part);
        j->parts = (struct sd_projections){ a->parts, j->part };
        j->param.joined = &j->parts;
        j->param.path = a->part[0].weight->path;
        j->param.scope = scope_of(j);
        j->param.dtype = SD_F32;
        j->param.ndim = 1;
        for (int i = 0; i < a->parts; i++) {
            enter(a->part[i].weight);
            enter(a->part[i].bias);
            enter(a->part[i].down);
            enter(a->part[i].up);
            enter(a->part[i].scale);
        }
        j->next = all;
        all = j;
    }
    j->param.trainable = first_trainable(j) != NULL;
    return &j->param;
}

void
sd_param_forget_joined(struct sd_param *p, bool dies)
{
    if (!p->member)
        return;
    for (struct joined **at = &all, *j; (j = *at);) {
        if (!has(j, p)) {
            at = &j->next;
            continue;
        }
        sd_param_forget(&j->param);
        if (dies) {
            *at = j->next;
            free(j);
        } else
            at = &j->next;
    }
}

void
sd_param_each_joined(struct sd_param *p, void (*f)(struct sd_param *joined, void *argument), void *argument)
{
    for (struct joined *j = all; j && p->member; j = j->next)
        if (first_trainable(j) == p)
            f(&j->param, argument);
}
