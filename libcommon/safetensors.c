/* safetensors.c - the reader: every check of the format, one file or shards, tensors looked up. */
#include "safetensors_private.h"

#include "io.h"
#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { HEADER_MAX = 100000000, SHOWN = 200 };

struct file {                   /* one mapping */
    struct file *next;
    const char *path;
    int fd;
    void *map;
    struct stat st;
};

struct sd_safetensors {
    struct sd_safetensor *tensor;
    size_t count;
    uint32_t *slot;             /* hash table of tensor numbers + 1; a power of two, at least twice the count */
    size_t slots;
    struct pair *metadata;
    size_t metadata_count;
    struct file *files;
    const unsigned char *region;
    size_t region_bytes;
};

/* ---- checks of the parsed header ---------------------------------------------------------------------------- */

static int
by_offset(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;

    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return x->name < y->name ? -1 : x->name > y->name;          /* as in the header */
}

static int
bad_tensor(const struct entry *e, const char *what)
{
    int shown = e->name_length < SHOWN ? (int)e->name_length : SHOWN;

    return sd_fail("%.*s: %s", shown, e->name, what);
}

/* The reference's checks 6 to 9 on one tensor, that has to begin at `at`. */
static int
check_tensor(const struct parser *p, const struct entry *e, uint64_t at, uint64_t *numel)
{
    uint64_t bits, n = 1;
    char text[160];

    if (e->begin != at || e->end < e->begin) {
        snprintf(text, sizeof text, "data_offsets [%" PRIu64 ", %" PRIu64 "], expected to begin at %" PRIu64, e->begin,
                 e->end, at);
        return bad_tensor(e, text);
    }
    for (size_t i = 0; i < e->ndim; i++)
        if (__builtin_mul_overflow(n, p->dim[e->first_dim + i], &n))
            return bad_tensor(e, "its shape overflows");
    if (__builtin_mul_overflow(n, sd_dtype_bits(e->dtype), &bits))
        return bad_tensor(e, "its shape overflows");
    if (bits % 8)
        return bad_tensor(e, "its elements do not fill whole bytes");
    if (e->end - e->begin != bits / 8) {
        snprintf(text, sizeof text, "%" PRIu64 " bytes of data, its shape and dtype need %" PRIu64, e->end - e->begin,
                 bits / 8);
        return bad_tensor(e, text);
    }
    *numel = n;
    return 0;
}

/* The slot of a name: its own, or the empty one where it would go. */
static uint32_t *
slot_of(const struct sd_safetensors *f, const char *name, size_t length)
{
    size_t i = XXH3_64bits(name, length) & (f->slots - 1);

    while (f->slot[i]) {
        const struct sd_safetensor *t = &f->tensor[f->slot[i] - 1];

        if (t->name_length == length && !memcmp(t->name, name, length))
            break;
        i = (i + 1) & (f->slots - 1);
    }
    return &f->slot[i];
}

/* Builds the table; a name that is there twice is -1. */
static int
index_names(struct sd_scope *s, struct sd_safetensors *f)
{
    if (f->count >= UINT32_MAX / 4)
        return sd_fail("%zu tensors", f->count);
    for (f->slots = 8; f->slots < 2 * f->count; f->slots *= 2)
        ;
    f->slot = sd_alloc_array(s, f->slots, sizeof *f->slot);
    for (size_t i = 0; i < f->count; i++) {
        uint32_t *slot = slot_of(f, f->tensor[i].name, f->tensor[i].name_length);

        if (*slot)
            return sd_fail("%.*s: this name twice", SHOWN, f->tensor[i].name);
        *slot = (uint32_t)(i + 1);
    }
    return 0;
}

/* Turns the parsed entries into f's tensors, of data at `region` of `bytes`. */
static int
accept(struct sd_scope *s, struct sd_safetensors *f, struct parser *p, const unsigned char *region, uint64_t bytes)
{
    int64_t *dims = sd_alloc_array(s, p->dims + 1, sizeof *dims);
    uint64_t at = 0;

    for (size_t i = 0; i < p->dims; i++)
        dims[i] = p->dim[i] > INT64_MAX ? INT64_MAX : (int64_t)p->dim[i];
    if (p->entries)
        qsort(p->entry, p->entries, sizeof *p->entry, by_offset);
    f->tensor = sd_alloc_array(s, p->entries + 1, sizeof *f->tensor);
    for (size_t i = 0; i < p->entries; i++) {
        const struct entry *e = &p->entry[i];
        uint64_t numel = 0;

        if (check_tensor(p, e, at, &numel))
            return -1;
        at = e->end;
        /* pointers only after the last end is known to be the file's: see below */
        f->tensor[i] = (struct sd_safetensor){ e->name, e->name_length, e->dtype, (int)e->ndim, dims + e->first_dim,
                                               numel, NULL, e->end - e->begin, false };
    }
    if (at != bytes)
        return sd_fail("the tensors end at byte %" PRIu64 " of %" PRIu64 " in the data region (%s)", at, bytes,
                       at > bytes ? "cut short?" : "something follows");
    for (size_t i = 0; i < p->entries; i++)
        f->tensor[i].data = region + p->entry[i].begin;
    f->count = p->entries;
    f->region = region;
    f->region_bytes = bytes;
    f->metadata = sd_alloc_array(s, p->pairs + 1, sizeof *f->metadata);
    if (p->pairs)
        memcpy(f->metadata, p->metadata, p->pairs * sizeof *f->metadata);
    f->metadata_count = p->pairs;
    return index_names(s, f);
}

/* The whole file at `bytes`; every check of the format. */
static int
parse_file(struct sd_scope *s, struct sd_safetensors *f, const unsigned char *bytes, uint64_t size)
{
    struct parser p = { 0 };
    uint64_t n = 0;
    int status;

    if (size < 8)
        return sd_fail("%" PRIu64 " bytes are no safetensors file", size);
    for (int i = 7; i >= 0; i--)
        n = n << 8 | bytes[i];
    if (n > HEADER_MAX)
        return sd_fail("no safetensors file: a header of %" PRIu64 " bytes, at most %d are allowed", n, HEADER_MAX);
    if (8 + n > size)
        return sd_fail("cut short: a header of %" PRIu64 " bytes in a file of %" PRIu64, n, size);
    if (!sd_utf8_valid((const char *)bytes + 8, n))
        return sd_fail("header: not valid UTF-8");
    p.start = p.p = bytes + 8;
    p.end = p.start + n;
    p.text = sd_alloc(s, n + 1);
    status = sd_safetensors_parse(&p) || accept(s, f, &p, p.end, size - 8 - n) ? -1 : 0;
    free(p.entry);
    free(p.dim);
    free(p.metadata);
    return status;
}

/* ---- files -------------------------------------------------------------------------------------------------- */

static void
close_file(void *argument)
{
    struct file *file = argument;

    if (file->map)
        munmap(file->map, (size_t)file->st.st_size);
    close(file->fd);
}

static struct file *
map_file(struct sd_scope *s, const char *path)
{
    struct file *file = sd_alloc(s, sizeof *file);

    file->path = sd_strdup(s, path);
    if ((file->fd = sd_open(path, O_RDONLY)) < 0)
        return sd_fail_null("%s", strerror(errno));
    sd_on_close(s, close_file, file);
    if (fstat(file->fd, &file->st))
        return sd_fail_null("%s", strerror(errno));
    if (!S_ISREG(file->st.st_mode))
        return sd_fail_null(S_ISDIR(file->st.st_mode) ? "is a folder" : "is no regular file");
    if (file->st.st_size == 0)
        return sd_fail_null("an empty file");
    file->map = mmap(NULL, (size_t)file->st.st_size, PROT_READ, MAP_PRIVATE, file->fd, 0);
    if (file->map == MAP_FAILED) {
        file->map = NULL;
        return sd_fail_null("cannot be mapped: %s", strerror(errno));
    }
    return file;
}

static struct sd_safetensors *
open_one(struct sd_scope *s, const char *path)
{
    struct sd_safetensors *f = sd_alloc(s, sizeof *f);

    if (!(f->files = map_file(s, path)) || parse_file(s, f, f->files->map, (uint64_t)f->files->st.st_size))
        return NULL;
    return f;
}

/* Adds the tensors of one shard, which must be those the index gives to it. */
static int
add_shard(struct sd_scope *s, struct sd_safetensors *f, const char *folder, const char *shard, const json_t *map)
{
    struct sd_safetensors *one = open_one(s, sd_sprintf(s, "%s%s", folder, shard));

    if (!one)
        return sd_fail_prefix("%s", shard);
    for (size_t i = 0; i < one->count; i++) {
        const struct sd_safetensor *t = &one->tensor[i];
        const char *where = strlen(t->name) == t->name_length ? json_string_value(json_object_get(map, t->name)) : NULL;

        if (!where || strcmp(where, shard))
            return sd_fail("%s: holds %.*s, which the index puts %s%s", shard, SHOWN, t->name,
                           where ? "into " : "nowhere", where ? where : "");
        if (f->count == json_object_size(map))
            return sd_fail("%s: more tensors than the index has", shard);
        f->tensor[f->count++] = *t;
    }
    one->files->next = f->files;
    f->files = one->files;
    if (!f->metadata) {
        f->metadata = one->metadata;
        f->metadata_count = one->metadata_count;
    }
    return 0;
}

static int
by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static struct sd_safetensors *
open_index(struct sd_scope *s, const char *path)
{
    struct sd_safetensors *f = sd_alloc(s, sizeof *f);
    json_t *index = sd_json_load(s, path, 0), *map, *value;
    const char **shards, *key, *slash = strrchr(path, '/');
    const char *folder = slash ? sd_strndup(s, path, (size_t)(slash + 1 - path)) : "";
    size_t n = 0;

    if (!index)
        return NULL;
    map = json_object_get(index, "weight_map");
    if (!json_is_object(map))
        return sd_fail_null("weight_map: expected an object, found %s", sd_json_kind(map));
    shards = sd_alloc_array(s, json_object_size(map) + 1, sizeof *shards);
    json_object_foreach(map, key, value) {
        const char *shard = json_string_value(value);

        if (!shard || !*shard || strpbrk(shard, "/\\") || shard[0] == '.')
            return sd_fail_null("weight_map: %.*s: expected the plain name of a file, found %s", SHOWN, key,
                                shard ? shard : sd_json_kind(value));
        shards[n++] = shard;
    }
    f->tensor = sd_alloc_array(s, n + 1, sizeof *f->tensor);
    if (n)
        qsort(shards, n, sizeof *shards, by_text);
    for (size_t i = 0; i < n; i++)
        if ((!i || strcmp(shards[i], shards[i - 1])) && add_shard(s, f, folder, shards[i], map))
            return NULL;
    if (index_names(s, f))
        return NULL;
    json_object_foreach(map, key, value)
        if (!sd_safetensors_find(f, key))
            return sd_fail_null("%s: has no %.*s, which the index puts there", json_string_value(value), SHOWN, key);
    return f;
}

struct sd_safetensors *
sd_safetensors_open(struct sd_scope *s, const char *path)
{
    size_t n = strlen(path);

    return n > 5 && !strcmp(path + n - 5, ".json") ? open_index(s, path) : open_one(s, path);
}

int
sd_safetensors_unchanged(const struct sd_safetensors *f)
{
    for (const struct file *file = f->files; file; file = file->next) {
        struct stat st;

        if (fstat(file->fd, &st))
            return sd_fail_errno("%s", file->path);
        if (st.st_size != file->st.st_size || st.st_mtim.tv_sec != file->st.st_mtim.tv_sec
                || st.st_mtim.tv_nsec != file->st.st_mtim.tv_nsec)
            return sd_fail("%s: changed while it was in use", file->path);
    }
    return 0;
}

size_t
sd_safetensors_stat(const struct sd_safetensors *f, struct stat *st, size_t room)
{
    size_t n = 0;

    for (const struct file *file = f->files; file; file = file->next, n++)
        if (n < room && fstat(file->fd, &st[n])) {
            sd_fail_errno("%s", file->path);
            return 0;
        }
    return n;
}

/* ---- looking ------------------------------------------------------------------------------------------------ */

size_t
sd_safetensors_count(const struct sd_safetensors *f)
{
    return f->count;
}

struct sd_safetensor *
sd_safetensors_at(const struct sd_safetensors *f, size_t i)
{
    return &f->tensor[i];
}

struct sd_safetensor *
sd_safetensors_find(const struct sd_safetensors *f, const char *name)
{
    uint32_t slot = *slot_of(f, name, strlen(name));

    return slot ? &f->tensor[slot - 1] : NULL;
}

const char *
sd_shape_text(struct sd_scope *s, int ndim, const int64_t *shape)
{
    char *text = sd_alloc(s, (size_t)ndim * 22 + 3), *to = text;

    *to++ = '[';
    for (int i = 0; i < ndim; i++)
        to += sprintf(to, "%s%" PRId64, i ? ", " : "", shape[i]);
    strcpy(to, "]");
    return text;
}

struct sd_safetensor *
sd_safetensors_get(const struct sd_safetensors *f, const char *name, int ndim, const int64_t *shape)
{
    struct sd_safetensor *t = sd_safetensors_find(f, name);

    if (!t)
        return sd_fail_null("%s: missing", name);
    if (ndim >= 0 && (t->ndim != ndim || (ndim && memcmp(t->shape, shape, (size_t)ndim * sizeof *shape)))) {
        struct sd_scope *s = sd_scope_open();

        sd_fail("%s: shape %.200s, expected %s", name, sd_shape_text(s, t->ndim, t->shape),
                sd_shape_text(s, ndim, shape));
        sd_scope_close(s);
        return NULL;
    }
    return t;
}

size_t
sd_safetensors_metadata_count(const struct sd_safetensors *f)
{
    return f->metadata_count;
}

const char *
sd_safetensors_metadata_at(const struct sd_safetensors *f, size_t i, const char **value)
{
    *value = f->metadata[i].value;
    return f->metadata[i].key;
}

const char *
sd_safetensors_metadata(const struct sd_safetensors *f, const char *key)
{
    for (size_t i = f->metadata_count; i-- > 0; )       /* of a key repeated the last one counts */
        if (f->metadata[i].key_length == strlen(key) && !memcmp(f->metadata[i].key, key, f->metadata[i].key_length))
            return f->metadata[i].value;
    return NULL;
}

const void *
sd_safetensors_region(const struct sd_safetensors *f, size_t *bytes)
{
    *bytes = f->region_bytes;
    return f->region;
}

bool
sd_safetensor_aligned(const struct sd_safetensor *t)
{
    size_t size = sd_dtype_size(t->dtype);

    return !size || (uintptr_t)t->data % size == 0;
}

const float *
sd_safetensor_f32(struct sd_scope *s, const struct sd_safetensor *t)
{
    float *values;

    if (t->dtype == SD_F32 && sd_safetensor_aligned(t))
        return t->data;
    values = sd_alloc_array(s, t->numel, sizeof *values);
    if (sd_to_f32(values, t->data, t->dtype, t->numel)) {
        sd_fail_prefix("%.*s", SHOWN, t->name);
        return NULL;
    }
    return values;
}
