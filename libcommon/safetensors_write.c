/* safetensors_write.c - the writer: sorted as the reference sorts, so that equal contents are equal bytes. */
#include "safetensors.h"
#include "hash.h"
#include "json.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { HEADER_MAX = 100000000, PIECE = SD_SAFETENSORS_PIECE };

struct item {
    const char *name;
    enum sd_dtype dtype;
    int ndim;
    int64_t *shape;
    size_t bytes;
    const void *data;
    const float *values;        /* to be converted */
    int (*read)(void *user, void *buffer, size_t offset, size_t bytes);
    void *user;
};

struct sd_safetensors_writer {
    struct sd_scope *scope;
    struct item *item;
    size_t count, room;
    json_t *metadata;
};

static void
release(void *value)
{
    json_decref(value);
}

struct sd_safetensors_writer *
sd_safetensors_writer_new(struct sd_scope *s)
{
    struct sd_safetensors_writer *w = sd_alloc(s, sizeof *w);

    w->scope = s;
    if (!(w->metadata = json_object()))
        sd_die("memory", "no room for metadata");
    sd_on_close(s, release, w->metadata);
    sd_safetensors_set_metadata(w, "format", "pt");
    return w;
}

void
sd_safetensors_set_metadata(struct sd_safetensors_writer *w, const char *key, const char *value)
{
    if (!value)
        json_object_del(w->metadata, key);
    else if (json_object_set_new(w->metadata, key, json_string(value)))
        sd_bug("sd_safetensors_set_metadata", "%s: not valid UTF-8", key);
}

static struct item *
add(struct sd_safetensors_writer *w, const char *name, enum sd_dtype dtype, int ndim, const int64_t *shape)
{
    struct item *item;
    size_t bytes = sd_dtype_size(dtype);

    if (w->count == w->room) {
        size_t room = w->room ? 2 * w->room : 64;
        struct item *more = sd_alloc_array(w->scope, room, sizeof *more);

        if (w->count)
            memcpy(more, w->item, w->count * sizeof *more);
        w->item = more;
        w->room = room;
    }
    if (!bytes)
        sd_bug("safetensors", "%s: dtype %s cannot be written", name, sd_dtype_name(dtype));
    item = &w->item[w->count++];
    *item = (struct item){ .name = sd_strdup(w->scope, name), .dtype = dtype, .ndim = ndim };
    item->shape = sd_alloc_array(w->scope, (size_t)ndim + 1, sizeof *item->shape);
    for (int i = 0; i < ndim; i++) {
        item->shape[i] = shape[i];
        if (shape[i] < 0 || __builtin_mul_overflow(bytes, (size_t)shape[i], &bytes))
            sd_bug("safetensors", "%s: a shape that cannot be", name);
    }
    item->bytes = bytes;
    return item;
}

void
sd_safetensors_add(struct sd_safetensors_writer *w, const char *name, enum sd_dtype dtype, int ndim,
                   const int64_t *shape, const void *data)
{
    add(w, name, dtype, ndim, shape)->data = data;
}

void
sd_safetensors_add_f32(struct sd_safetensors_writer *w, const char *name, enum sd_dtype dtype, int ndim,
                       const int64_t *shape, const float *values)
{
    add(w, name, dtype, ndim, shape)->values = values;
}

void
sd_safetensors_add_from(struct sd_safetensors_writer *w, const char *name, enum sd_dtype dtype, int ndim,
                        const int64_t *shape, int (*read)(void *user, void *buffer, size_t offset, size_t bytes),
                        void *user)
{
    struct item *item = add(w, name, dtype, ndim, shape);

    item->read = read;
    item->user = user;
}

static int
in_file_order(const void *a, const void *b)
{
    const struct item *x = a, *y = b;

    if (x->dtype != y->dtype)
        return sd_dtype_order(y->dtype) - sd_dtype_order(x->dtype);
    return strcmp(x->name, y->name);
}

/* Sorts; -1 when a name is there twice. */
static int
sort(struct sd_safetensors_writer *w)
{
    struct sd_scope *s = sd_scope_open();
    json_t *names = json_object();
    int status = 0;

    if (w->count)
        qsort(w->item, w->count, sizeof *w->item, in_file_order);
    for (size_t i = 0; i < w->count && !status; i++) {
        if (!strcmp(w->item[i].name, "__metadata__") || json_object_get(names, w->item[i].name))
            status = sd_fail("%s: this name twice, or not to be used", w->item[i].name);
        else if (json_object_set_new(names, w->item[i].name, json_null()))
            status = sd_fail("%s: a name that is not valid UTF-8", w->item[i].name);
    }
    json_decref(names);
    sd_scope_close(s);
    return status;
}

/* JSON text of a string, as jansson escapes it. */
static void
put_string(FILE *f, const char *text)
{
    json_t *value = json_string(text);

    json_dumpf(value, f, JSON_ENCODE_ANY);
    json_decref(value);
}

/* The header without its length, padded; malloc'ed. */
static char *
make_header(const struct sd_safetensors_writer *w, size_t *length)
{
    char *text = NULL;
    FILE *f = open_memstream(&text, length);
    uint64_t at = 0;

    if (!f)
        sd_die("memory", "no room for a header");
    fputs("{\"__metadata__\":", f);
    json_dumpf(w->metadata, f, JSON_COMPACT | JSON_SORT_KEYS);
    for (size_t i = 0; i < w->count; i++) {
        const struct item *item = &w->item[i];

        putc(',', f);
        put_string(f, item->name);
        fprintf(f, ":{\"dtype\":\"%s\",\"shape\":[", sd_dtype_name(item->dtype));
        for (int d = 0; d < item->ndim; d++)
            fprintf(f, "%s%" PRId64, d ? "," : "", item->shape[d]);
        fprintf(f, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, at + item->bytes);
        at += item->bytes;
    }
    putc('}', f);
    for (long n = ftell(f); n % 8; n++)
        putc(' ', f);
    if (fclose(f))
        sd_die("memory", "no room for a header");
    return text;
}

/* All data in order, in pieces, to put(sink, bytes, n). */
static int
each_piece(const struct sd_safetensors_writer *w, int (*put)(void *sink, const void *bytes, size_t n), void *sink)
{
    struct sd_scope *s = sd_scope_open();
    char *buffer = sd_alloc(s, PIECE);
    int status = 0;

    for (size_t i = 0; i < w->count && !status; i++) {
        const struct item *item = &w->item[i];
        const size_t size = sd_dtype_size(item->dtype);

        for (size_t at = 0; at < item->bytes && !status; ) {
            size_t n = item->bytes - at < PIECE ? item->bytes - at : PIECE;
            const void *piece = buffer;

            if (item->data)
                piece = (const char *)item->data + at;
            else if (item->values)
                status = sd_from_f32(buffer, item->dtype, item->values + at / size, n / size);
            else
                status = item->read(item->user, buffer, at, n);
            if (status)
                sd_fail_prefix("%s", item->name);
            else
                status = put(sink, piece, n);
            at += n;
        }
    }
    sd_scope_close(s);
    return status;
}

static int
put_file(void *sink, const void *bytes, size_t n)
{
    if (fwrite(bytes, 1, n, sink) != n)
        return sd_fail_errno("cannot be written");
    return 0;
}

int
sd_safetensors_write(struct sd_safetensors_writer *w, FILE *f)
{
    unsigned char start[8];
    size_t length;
    char *header;
    int status;

    if (sort(w))
        return -1;
    header = make_header(w, &length);
    for (int i = 0; i < 8; i++)
        start[i] = (unsigned char)((uint64_t)length >> 8 * i);
    if (length > HEADER_MAX)
        status = sd_fail("a header of %zu bytes, at most %d are allowed", length, HEADER_MAX);
    else
        status = put_file(f, start, 8) || put_file(f, header, length) ? -1 : each_piece(w, put_file, f);
    free(header);
    return status;
}

int
sd_safetensors_size(struct sd_safetensors_writer *w, uint64_t *bytes)
{
    size_t length;

    if (sort(w))
        return -1;
    free(make_header(w, &length));
    *bytes = 8 + (uint64_t)length;
    for (size_t i = 0; i < w->count; i++)
        *bytes += w->item[i].bytes;
    return 0;
}

int
sd_safetensors_save(struct sd_safetensors_writer *w, const char *path)
{
    struct sd_output *o = sd_output_open(path);

    if (!o)
        return -1;
    if (sd_safetensors_write(w, sd_output_file(o))) {
        sd_output_abandon(o);
        return -1;
    }
    return sd_output_commit(o);
}

static int
put_hash(void *sink, const void *bytes, size_t n)
{
    XXH3_128bits_update(sink, bytes, n);
    return 0;
}

int
sd_safetensors_data_hash(struct sd_safetensors_writer *w, char hex[33])
{
    XXH3_state_t *state = XXH3_createState();
    XXH128_canonical_t digest;
    int status;

    if (!state)
        sd_die("memory", "no room for a hash");
    XXH3_128bits_reset(state);
    if (!(status = sort(w)) && !(status = each_piece(w, put_hash, state))) {
        XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(state));
        sd_hex(hex, digest.digest, sizeof digest.digest);
    }
    XXH3_freeState(state);
    return status;
}

int
sd_safetensors_header_hash(struct sd_safetensors_writer *w, char hex[33])
{
    size_t length;
    char *header;

    if (sort(w))
        return -1;
    header = make_header(w, &length);
    sd_xxh128_of(header, length, hex);
    free(header);
    return 0;
}
