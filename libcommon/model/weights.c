/* weights.c - parameters by name over a mapped file. */
#include "weights.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUCKETS = 2048 };

struct known { /* a parameter that was asked for */
    struct sd_param *param;
    const char *key; /* without the component's name */
    struct known *next;
};

struct sd_weights {
    struct sd_scope *scope;
    const char *name, *path;
    struct sd_key_map map;
    struct sd_safetensors *file; /* NULL: imagined */
    struct known *bucket[BUCKETS];
    struct sd_param **all; /* in the order asked */
    size_t count, room;
    int64_t elements;
};

struct sd_weights *
sd_weights_new(struct sd_scope *s, const char *name, const struct sd_key_map *map, struct sd_safetensors *file,
               const char *path)
{
    struct sd_weights *w = sd_alloc(s, sizeof *w);

    w->scope = s;
    w->name = sd_strdup(s, name);
    w->path = sd_strdup(s, path);
    w->file = file;
    if (map) {
        w->map = *map;
        w->map.prefix = sd_strdup(s, map->prefix);
    }
    return w;
}

struct sd_weights *
sd_weights_open(struct sd_scope *s, const char *name, const struct sd_key_map *map, const char *folder,
                const char *base, const char *variant)
{
    const char *variants[] = { variant ? variant : "", "", "fp16" };

    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        const char *dot = *variants[i] ? "." : "", *v = variants[i];
        const char *paths[] = {
            sd_sprintf(s, "%s/%s%s%s.safetensors", folder, base, dot, v),
            sd_sprintf(s, "%s/%s.safetensors.index%s%s.json", folder, base, dot, v),
            sd_sprintf(s, "%s/%s.safetensors%s%s.index.json", folder, base, dot, v), /* older writers */
        };

        for (size_t j = 0; j < sizeof paths / sizeof *paths; j++)
            if (access(paths[j], F_OK) == 0) {
                struct sd_safetensors *file = sd_safetensors_open(s, paths[j]);

                return file ? sd_weights_new(s, name, map, file, paths[j]) : (sd_fail_prefix("%s", paths[j]), NULL);
            }
    }
    if (access(sd_sprintf(s, "%s/%s.bin", folder, base), F_OK) == 0
        || access(sd_sprintf(s, "%s/pytorch_model.bin", folder), F_OK) == 0)
        return sd_fail_null("%s: pickled weights (.bin) are not read here, convert them to safetensors", folder);
    return sd_fail_null("%s: no %s.safetensors", folder, base);
}

struct sd_weights *
sd_weights_imagine(struct sd_scope *s, const char *name)
{
    return sd_weights_new(s, name, NULL, NULL, "");
}

const char *
sd_weights_name(const struct sd_weights *w)
{
    return w->name;
}

const char *
sd_weights_path(const struct sd_weights *w)
{
    return w->path;
}

struct sd_safetensors *
sd_weights_file(const struct sd_weights *w)
{
    return w->file;
}

size_t
sd_weights_count(const struct sd_weights *w)
{
    return w->count;
}

struct sd_param *
sd_weights_at(const struct sd_weights *w, size_t i)
{
    return w->all[i];
}

void
sd_weights_each(const struct sd_weights *w, void (*f)(struct sd_param *p, void *user), void *user)
{
    for (size_t i = 0; i < w->count; i++)
        f(w->all[i], user);
}

int64_t
sd_weights_elements(const struct sd_weights *w)
{
    return w->elements;
}

/* ---- finding ---------------------------------------------------------------------------------------------------- */

static struct known **
bucket_of(struct sd_weights *w, const char *key)
{
    uint32_t h = 2166136261u;

    while (*key)
        h = (h ^ (unsigned char)*key++) * 16777619u;
    return &w->bucket[h % BUCKETS];
}

bool
sd_weights_place(struct sd_weights *w, const char *path, struct sd_weights_place *place)
{
    struct sd_key key;

    for (int i = 0; w->file && sd_key_spell(&w->map, path, i, &key); i++)
        if ((place->tensor = sd_safetensors_find(w->file, key.name))) {
            place->part = key.part;
            place->parts = key.parts;
            place->transposed = key.transposed;
            return true;
        }
    return false;
}

/* Equal but for ones at the end: [8, 8] and [8, 8, 1, 1]. */
static bool
same_shape(int ndim, const int64_t *shape, int ndim2, const int64_t *shape2)
{
    while (ndim > 2 && shape[ndim - 1] == 1)
        ndim--;
    while (ndim2 > 2 && shape2[ndim2 - 1] == 1)
        ndim2--;
    return ndim == ndim2 && memcmp(shape, shape2, (size_t)ndim * sizeof *shape) == 0;
}

static const void *
transpose(struct sd_scope *s, const struct sd_safetensor *t)
{
    size_t size = sd_dtype_size(t->dtype), rows = (size_t)t->shape[0], cols = (size_t)t->shape[1];
    const char *from = t->data;
    char *to = sd_alloc_array(s, t->numel, size);

    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++)
            memcpy(to + (c * rows + r) * size, from + (r * cols + c) * size, size);
    return to;
}

/* The tensor's data as this parameter's, or NULL with sd_fail. */
static const void *
data_of(struct sd_weights *w, const char *path, const struct sd_weights_place *place, int ndim, const int64_t *shape)
{
    const struct sd_safetensor *t = place->tensor;
    int64_t whole[SD_MAX_DIMS];
    bool swap = place->transposed && ndim == 2;

    for (int i = 0; i < ndim; i++)
        whole[i] = shape[swap ? 1 - i : i];
    whole[0] *= place->parts;
    if (!same_shape(t->ndim, t->shape, ndim, whole))
        return sd_fail_null("%s.%s: shape %s, expected %s", w->name, path, sd_shape_text(w->scope, t->ndim, t->shape),
                            sd_shape_text(w->scope, ndim, whole));
    if (t->dtype != SD_F32 && t->dtype != SD_F16 && t->dtype != SD_BF16 && t->dtype != SD_F64)
        return sd_fail_null("%s.%s: dtype %s, expected F32, F16, BF16 or F64", w->name, path, sd_dtype_name(t->dtype));
    if (swap)
        return transpose(w->scope, t);
    return (const char *)t->data + t->bytes / (size_t)place->parts * (size_t)place->part;
}

struct sd_param *
sd_weights_get(struct sd_weights *w, const char *path, int ndim, const int64_t *shape)
{
    struct known **bucket = bucket_of(w, path), *k = *bucket;
    struct sd_weights_place place = { 0 };
    const void *data = NULL;

    while (k && strcmp(k->key, path) != 0)
        k = k->next;
    if (k) {
        if (same_shape(k->param->ndim, k->param->shape, ndim, shape))
            return k->param;
        return sd_fail_null("%s.%s: shape %s, expected %s", w->name, path,
                            sd_shape_text(w->scope, k->param->ndim, k->param->shape),
                            sd_shape_text(w->scope, ndim, shape));
    }
    if (w->file) {
        if (!sd_weights_place(w, path, &place))
            return sd_fail_null("%s.%s: missing", w->name, path);
        if (!(data = data_of(w, path, &place, ndim, shape)))
            return NULL;
        place.tensor->used = true;
    }
    k = sd_alloc(w->scope, sizeof *k);
    k->param = sd_param_new(w->scope, sd_sprintf(w->scope, "%s.%s", w->name, path),
                            w->file ? place.tensor->dtype : SD_F32, ndim, shape, data);
    k->key = k->param->path + strlen(w->name) + 1;
    k->next = *bucket;
    *bucket = k;
    if (w->count == w->room) {
        size_t room = w->room ? 2 * w->room : 256;
        struct sd_param **all = sd_alloc_array(w->scope, room, sizeof *all);

        if (w->count)
            memcpy(all, w->all, w->count * sizeof *all);
        w->all = all;
        w->room = room;
    }
    w->all[w->count++] = k->param;
    w->elements += (int64_t)k->param->numel;
    return k->param;
}

/* ---- accounts --------------------------------------------------------------------------------------------------- */

static bool
ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

/* The tensor's name behind the store's prefix, or NULL when it belongs to another component. */
static const char *
own_name(const struct sd_weights *w, const struct sd_safetensor *t)
{
    size_t n = strlen(w->map.prefix);

    return strncmp(t->name, w->map.prefix, n) == 0 ? t->name + n : NULL;
}

/* OpenCLIP-H has 24 layers in the file, of which SD2 uses 23. */
static bool
known_useless(const struct sd_weights *w, const char *name, int last_layer)
{
    int n[1];

    if (ends_with(name, "position_ids") || strcmp(name, "logit_scale") == 0)
        return true;
    return w->map.layout == SD_LAYOUT_OPENCLIP
           && (strcmp(name, "text_projection") == 0
               || (sd_key_match(name, "transformer.resblocks.#.*", n) && n[0] > last_layer));
}

size_t
sd_weights_unused(struct sd_weights *w, struct sd_scope *s, const char ***names)
{
    size_t total = w->file ? sd_safetensors_count(w->file) : 0, count = 0;
    int last_layer = -1, n[1];

    *names = sd_alloc_array(s, total + 1, sizeof **names);
    for (size_t i = 0; i < total; i++) {
        const struct sd_safetensor *t = sd_safetensors_at(w->file, i);
        const char *name = own_name(w, t);

        if (name && t->used && sd_key_match(name, "transformer.resblocks.#.*", n) && n[0] > last_layer)
            last_layer = n[0];
    }
    for (size_t i = 0; i < total; i++) {
        const struct sd_safetensor *t = sd_safetensors_at(w->file, i);
        const char *name = own_name(w, t);

        if (name && !t->used && !known_useless(w, name, last_layer))
            (*names)[count++] = t->name;
    }
    return count;
}

static int
by_name(const void *a, const void *b)
{
    return strcmp((*(struct sd_safetensor *const *)a)->name, (*(struct sd_safetensor *const *)b)->name);
}

static void
hash_tensors(const struct sd_weights *w, struct sd_scope *s, char hex[SD_SHA256_HEX])
{
    size_t total = sd_safetensors_count(w->file), count = 0;
    struct sd_safetensor **all;
    struct sd_sha256 *h;

    all = sd_alloc_array(s, total + 1, sizeof *all);
    for (size_t i = 0; i < total; i++)
        if (own_name(w, sd_safetensors_at(w->file, i)))
            all[count++] = sd_safetensors_at(w->file, i);
    qsort(all, count, sizeof *all, by_name); /* one prefix: the order of the rest */
    h = sd_sha256_new(s);
    for (size_t i = 0; i < count; i++) {
        const char *line = sd_sprintf(s, "%s %s %s\n", own_name(w, all[i]), sd_dtype_name(all[i]->dtype),
                                      sd_shape_text(s, all[i]->ndim, all[i]->shape));

        sd_sha256_update(h, line, strlen(line));
        sd_sha256_update(h, all[i]->data, all[i]->bytes);
    }
    sd_sha256_hex(h, hex);
}

int
sd_weights_hash(struct sd_weights *w, char hex[SD_SHA256_HEX])
{
    struct sd_scope *s;
    struct sd_hash_memory *m;
    struct stat *st;
    size_t files;

    if (!w->file)
        return sd_fail("%s: no file to hash", w->name);
    if (!*w->map.prefix && !ends_with(w->path, ".json"))
        return sd_hash_file_cached(w->path, hex);
    files = sd_safetensors_stat(w->file, NULL, 0);
    s = sd_scope_open();
    st = sd_alloc_array(s, files, sizeof *st);
    if (!sd_safetensors_stat(w->file, st, files)) {
        sd_scope_close(s);
        return -1;
    }
    m = sd_hash_memory(s, sd_sprintf(s, "tensors %s", w->map.prefix), st, files);
    if (!sd_hash_recall(m, hex)) {
        hash_tensors(w, s, hex);
        if (sd_safetensors_stat(w->file, st, files))
            sd_hash_remember(m, st, hex);
    }
    sd_scope_close(s);
    return 0;
}
