/* adapter.c - adapters by module path: a hash table with chains. */
#include "adapter.h"

#include <string.h>

enum { BUCKETS = 1024 };

struct slot {
    struct sd_adapter *first, *last;
    struct sd_adapter *one;         /* several as one */
    struct slot *next;
};

struct sd_adapters {
    struct sd_scope *scope;
    struct slot *bucket[BUCKETS];
    struct sd_adapter **all;
    size_t count, room;
};

static unsigned
bucket_of(const char *path)
{
    uint32_t h = 2166136261u;

    while (*path)
        h = (h ^ (unsigned char)*path++) * 16777619u;
    return h % BUCKETS;
}

static struct slot *
find(const struct sd_adapters *a, const char *path)
{
    struct slot *s = a->bucket[bucket_of(path)];

    while (s && strcmp(s->first->path, path) != 0)
        s = s->next;
    return s;
}

struct sd_adapters *
sd_adapters_new(struct sd_scope *s)
{
    struct sd_adapters *a = sd_alloc(s, sizeof *a);

    a->scope = s;
    return a;
}

struct sd_adapter *
sd_adapters_add(struct sd_adapters *adapters, const struct sd_adapter *a)
{
    struct sd_adapter *copy = sd_alloc(adapters->scope, sizeof *copy);
    struct slot *s = find(adapters, a->path);

    *copy = *a;
    copy->path = sd_strdup(adapters->scope, a->path);
    copy->next = NULL;
    if (s) {
        s->last->next = copy;
        s->last = copy;
        s->one = NULL;
    } else {
        unsigned b = bucket_of(a->path);

        s = sd_alloc(adapters->scope, sizeof *s);
        *s = (struct slot){ copy, copy, NULL, adapters->bucket[b] };
        adapters->bucket[b] = s;
    }
    if (adapters->count == adapters->room) {
        size_t room = adapters->room ? 2 * adapters->room : 64;
        struct sd_adapter **all = sd_alloc_array(adapters->scope, room, sizeof *all);

        if (adapters->count)
            memcpy(all, adapters->all, adapters->count * sizeof *all);
        adapters->all = all;
        adapters->room = room;
    }
    return adapters->all[adapters->count++] = copy;
}

struct sd_adapter *
sd_adapters_find(const struct sd_adapters *adapters, const char *path)
{
    struct slot *s = adapters ? find(adapters, path) : NULL;

    return s ? s->first : NULL;
}

/* [d1; d2] and [s1 u1, s2 u2] */
static struct sd_adapter *
concatenated(const struct sd_adapters *a, const struct slot *s)
{
    struct sd_adapter *one = sd_alloc(a->scope, sizeof *one);
    int64_t rank = 0, out = s->first->up->shape[0], in = s->first->down->shape[1], at = 0;
    float *down, *up;

    for (const struct sd_adapter *l = s->first; l; l = l->next)
        rank += l->down->shape[0];
    down = sd_alloc_array(a->scope, (size_t)(rank * in), sizeof *down);
    up = sd_alloc_array(a->scope, (size_t)(rank * out), sizeof *up);
    for (const struct sd_adapter *l = s->first; l; l = l->next) {
        const real *d = sd_param_values(l->down), *u = sd_param_values(l->up);
        real scale = l->scale ? sd_param_values(l->scale)[0] : 1;
        int64_t r = l->down->shape[0];

        for (int64_t i = 0; i < r * in; i++)
            down[at * in + i] = (float)d[i];
        for (int64_t o = 0; o < out; o++)
            for (int64_t k = 0; k < r; k++)
                up[o * rank + at + k] = (float)(scale * u[o * r + k]);
        at += r;
    }
    *one = *s->first;
    one->next = NULL;
    one->scale = NULL;
    one->down = sd_param_new(a->scope, s->first->down->path, SD_F32, 2, (int64_t[]){ rank, in }, down);
    one->up = sd_param_new(a->scope, s->first->up->path, SD_F32, 2, (int64_t[]){ out, rank }, up);
    return one;
}

/* Is this a pair of matrices that the first one can be joined with? */
static bool
joins(const struct sd_adapter *l, const struct sd_adapter *first)
{
    return !l->down->trainable && !l->up->trainable && l->up->shape[0] == first->up->shape[0]
           && l->down->shape[1] == first->down->shape[1] && l->up->shape[1] == l->down->shape[0]
           && l->down->numel == (size_t)(l->down->shape[0] * l->down->shape[1]);
}

bool
sd_adapters_as_one(const struct sd_adapters *adapters, const char *path, const struct sd_adapter **one)
{
    struct slot *s = adapters ? find(adapters, path) : NULL;

    *one = NULL;
    if (!s)
        return true;
    if (s->first->next && !s->one) {
        for (const struct sd_adapter *l = s->first; l; l = l->next)
            if (!joins(l, s->first))
                return false;
        s->one = concatenated(adapters, s);
    }
    for (struct sd_adapter *l = s->first; l; l = l->next)
        l->used = true;
    *one = s->one ? s->one : s->first;
    return true;
}

size_t
sd_adapters_count(const struct sd_adapters *adapters)
{
    return adapters ? adapters->count : 0;
}

struct sd_adapter *
sd_adapters_at(const struct sd_adapters *adapters, size_t i)
{
    return adapters->all[i];
}
