/* adapter.c - adapters by module path: a hash table with chains. */
#include "adapter.h"

#include <string.h>

enum { BUCKETS = 1024 };

struct slot {
    struct sd_adapter *first, *last;
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
    } else {
        unsigned b = bucket_of(a->path);

        s = sd_alloc(adapters->scope, sizeof *s);
        *s = (struct slot){ copy, copy, adapters->bucket[b] };
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
