/* trainables - flat buffers of what learns. */
#include "trainables.h"

#include "reduce.h"

#include <math.h>
#include <string.h>

struct sd_trainables *
sd_trainables_new(struct sd_scope *s)
{
    struct sd_trainables *t = sd_alloc(s, sizeof *t);

    t->scope = s;
    return t;
}

struct sd_group *
sd_trainables_group(struct sd_trainables *t, const char *name)
{
    for (int g = 0; g < t->groups; g++)
        if (strcmp(t->group[g].name, name) == 0)
            return &t->group[g];
    return NULL;
}

struct sd_param *
sd_trainables_add(struct sd_trainables *t, const char *group, const char *path, int ndim, const int64_t *shape)
{
    struct sd_group *g = sd_trainables_group(t, group);
    struct sd_param *p = sd_param_new(t->scope, path, SD_F32, ndim, shape, NULL);
    size_t at = t->params;

    if (t->value)
        sd_bug("trainables", "%s added after the buffers were laid out", path);
    if (!g) {
        if (t->groups == SD_MAX_GROUPS)
            sd_bug("trainables", "more than %d groups", SD_MAX_GROUPS);
        g = &t->group[t->groups++];
        g->name = sd_strdup(t->scope, group);
    }
    if (t->params == t->room) {
        size_t room = t->room ? 2 * t->room : 64;
        struct sd_param **params = sd_alloc_array(t->scope, room, sizeof *params);
        int *groups = sd_alloc_array(t->scope, room, sizeof *groups);

        if (t->params) {
            memcpy(params, t->param, t->params * sizeof *params);
            memcpy(groups, t->param_group, t->params * sizeof *groups);
        }
        t->param = params;
        t->param_group = groups;
        t->room = room;
    }
    while (at > 0 && t->param_group[at - 1] > (int)(g - t->group)) {    /* keep groups together */
        t->param[at] = t->param[at - 1];
        t->param_group[at] = t->param_group[at - 1];
        at--;
    }
    t->param[at] = p;
    t->param_group[at] = (int)(g - t->group);
    t->params++;
    p->trainable = true;
    g->count += p->numel;
    return p;
}

void
sd_trainables_allocate(struct sd_trainables *t)
{
    size_t at = 0;

    for (int g = 0; g < t->groups; g++) {
        t->group[g].begin = at;
        at += t->group[g].count;
    }
    t->count = at;
    t->value = sd_alloc_array(t->scope, at, sizeof *t->value);
    t->grad = sd_alloc_array(t->scope, at, sizeof *t->grad);
    at = 0;
    for (size_t i = 0; i < t->params; i++) {
        t->param[i]->value = (real *)(t->value + at);       /* training is f32: never in the double build */
        t->param[i]->grad = (real *)(t->grad + at);
        at += t->param[i]->numel;
    }
}

double
sd_trainables_norm(const struct sd_trainables *t, int group, const float *buffer)
{
    return sqrt(sd_sum_squares(buffer + t->group[group].begin, t->group[group].count));
}
