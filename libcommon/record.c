/* record.c - records and their values.  A record is a list of fields, each still in msgpack: what nobody asks for goes
 * out as it came.  Single values, walked and small by then, are unpacked by msgpack-c. */
#include "dtype.h"
#include "record_private.h"

#include <msgpack.h>

enum { VALUE_OBJECTS = 4096 };

/* ---- records ------------------------------------------------------------------------------------------------ */

struct sd_record *
sd_record_new(struct sd_scope *s)
{
    struct sd_record *r = sd_alloc(s, sizeof *r);

    r->scope = s;
    return r;
}

bool
sd_record_was_read(const struct sd_record *r)
{
    return r->read;
}

struct sd_field *
sd_record_find(const struct sd_record *r, const char *key)
{
    size_t n = strlen(key);

    for (size_t i = 0; i < r->count; i++)
        if (r->field[i].name_length == n && !memcmp(r->field[i].name, key, n))
            return &r->field[i];
    return NULL;
}

struct sd_field *
sd_record_append(struct sd_record *r)
{
    if (r->count == r->room) {
        size_t room = r->room ? 2 * r->room : 16;
        struct sd_field *more = sd_alloc_array(r->scope, room, sizeof *more);

        if (r->count)
            memcpy(more, r->field, r->count * sizeof *more);
        r->field = more;
        r->room = room;
    }
    return &r->field[r->count++];
}

static const unsigned char *
copy_bytes(struct sd_scope *s, const void *bytes, size_t n)
{
    return n ? memcpy(sd_alloc(s, n), bytes, n) : NULL;
}

struct sd_record *
sd_record_copy(struct sd_scope *s, const struct sd_record *r)
{
    struct sd_record *copy = sd_record_new(s);

    for (size_t i = 0; i < r->count; i++) {
        struct sd_field *f = sd_record_append(copy);

        *f = r->field[i];
        f->key = copy_bytes(s, f->key, f->key_length);
        f->name = (const char *)f->key + f->key_length - f->name_length;
        if (f->value)
            f->value = copy_bytes(s, f->value, f->value_length);
        else
            f->tensor.data = copy_bytes(s, f->tensor.data, f->tensor.bytes);
    }
    return copy;
}

/* msgpack-c's packer into scope memory. */
static const unsigned char *
keep(struct sd_scope *s, msgpack_sbuffer *packed, size_t *length)
{
    unsigned char *copy = sd_alloc(s, packed->size);

    memcpy(copy, packed->data, packed->size);
    *length = packed->size;
    msgpack_sbuffer_destroy(packed);
    return copy;
}

static struct sd_field *
make_field(struct sd_record *r, const char *key)
{
    struct sd_field *f = sd_record_find(r, key);
    msgpack_sbuffer packed;
    msgpack_packer pk;
    size_t n = strlen(key);

    if (f)
        return f;
    f = sd_record_append(r);
    msgpack_sbuffer_init(&packed);
    msgpack_packer_init(&pk, &packed, msgpack_sbuffer_write);
    msgpack_pack_str_with_body(&pk, key, n);
    f->key = keep(r->scope, &packed, &f->key_length);
    f->name = (const char *)f->key + f->key_length - n;
    f->name_length = n;
    return f;
}

#define PACK_VALUE(record, key_, pack) do {                             \
        struct sd_field *f_ = make_field(record, key_);                    \
        msgpack_sbuffer sb_;                                            \
        msgpack_packer pk_, *pk = &pk_;                                 \
                                                                        \
        msgpack_sbuffer_init(&sb_);                                     \
        msgpack_packer_init(pk, &sb_, msgpack_sbuffer_write);           \
        pack;                                                           \
        f_->value = keep((record)->scope, &sb_, &f_->value_length);     \
    } while (0)

void
sd_record_set_text(struct sd_record *r, const char *key, const char *text)
{
    PACK_VALUE(r, key, msgpack_pack_str_with_body(pk, text, strlen(text)));
}

void
sd_record_set_real(struct sd_record *r, const char *key, double value)
{
    PACK_VALUE(r, key, msgpack_pack_double(pk, value));
}

void
sd_record_set_int(struct sd_record *r, const char *key, int64_t value)
{
    PACK_VALUE(r, key, msgpack_pack_int64(pk, value));
}

void
sd_record_set_ints(struct sd_record *r, const char *key, const int64_t *values, int count)
{
    PACK_VALUE(r, key, {
        msgpack_pack_array(pk, (size_t)count);
        for (int i = 0; i < count; i++)
            msgpack_pack_int64(pk, values[i]);
    });
}

void
sd_record_set_tensor(struct sd_record *r, const char *key, const struct sd_record_tensor *t)
{
    struct sd_field *f = make_field(r, key);

    f->tensor = *t;
    f->value = NULL;
    f->value_length = 0;
}

void
sd_record_remove(struct sd_record *r, const char *key)
{
    struct sd_field *f = sd_record_find(r, key);

    if (f) {
        memmove(f, f + 1, (size_t)(r->field + r->count - f - 1) * sizeof *f);
        r->count--;
    }
}

/* ---- values ------------------------------------------------------------------------------------------------- */

static const char *
kind_of(const struct sd_field *f)
{
    return sd_walk_kind(f->value ? *f->value : 0x80);
}

const char *
sd_record_text(const struct sd_record *r, const char *key)
{
    const struct sd_field *f = sd_record_find(r, key);
    const char *text;
    size_t n;

    if (!f || !f->value || !(text = sd_walk_text(f->value, f->value_length, &n)))
        return NULL;
    return sd_strndup(r->scope, text, n);       /* no NUL inside: looked at when it was read */
}

/* Unpacks a value that is small enough; texts and binaries stay where they are. */
static bool
unpack(const struct sd_field *f, msgpack_unpacked *u)
{
    uint64_t objects = 0;
    size_t at = 0;

    msgpack_unpacked_init(u);
    return sd_walk_length(f->value, f->value_length, &objects) && objects <= VALUE_OBJECTS
        && msgpack_unpack_next(u, (const char *)f->value, f->value_length, &at) == MSGPACK_UNPACK_SUCCESS;
}

static bool
to_int(const msgpack_object *o, int64_t *value)
{
    if (o->type == MSGPACK_OBJECT_POSITIVE_INTEGER && o->via.u64 <= INT64_MAX)
        *value = (int64_t)o->via.u64;
    else if (o->type == MSGPACK_OBJECT_NEGATIVE_INTEGER)
        *value = o->via.i64;
    else
        return false;
    return true;
}

int
sd_record_ints(const struct sd_record *r, const char *key, int64_t *values, int count)
{
    const struct sd_field *f = sd_record_find(r, key);
    msgpack_unpacked u;
    int status = 1;

    if (!f)
        return 0;
    if (!f->value || !unpack(f, &u))
        return sd_fail("%s: expected %d integers, found %s", key, count, kind_of(f));
    if (count == 1 && to_int(&u.data, values))
        ;
    else if (u.data.type != MSGPACK_OBJECT_ARRAY)
        status = sd_fail("%s: expected %d integers, found %s", key, count, kind_of(f));
    else if (u.data.via.array.size != (uint32_t)count)
        status = sd_fail("%s: expected %d integers, found %u values", key, count, u.data.via.array.size);
    else
        for (int i = 0; i < count && status == 1; i++)
            if (!to_int(&u.data.via.array.ptr[i], &values[i]))
                status = sd_fail("%s: expected %d integers, found something else", key, count);
    msgpack_unpacked_destroy(&u);
    return status;
}

int
sd_record_real(const struct sd_record *r, const char *key, double *value)
{
    const struct sd_field *f = sd_record_find(r, key);
    msgpack_unpacked u;
    int64_t whole;
    int status = 1;

    if (!f)
        return 0;
    if (!f->value || !unpack(f, &u))
        return sd_fail("%s: expected a number, found %s", key, kind_of(f));
    if (u.data.type == MSGPACK_OBJECT_FLOAT32 || u.data.type == MSGPACK_OBJECT_FLOAT64)
        *value = u.data.via.f64;
    else if (to_int(&u.data, &whole))
        *value = (double)whole;
    else
        status = sd_fail("%s: expected a number, found %s", key, kind_of(f));
    msgpack_unpacked_destroy(&u);
    return status;
}

static const msgpack_object *
map_member(const msgpack_object *map, const char *key)
{
    for (uint32_t i = 0; i < map->via.map.size; i++) {
        const msgpack_object_kv *kv = &map->via.map.ptr[i];

        if (kv->key.type == MSGPACK_OBJECT_STR && kv->key.via.str.size == strlen(key)
                && !memcmp(kv->key.via.str.ptr, key, strlen(key)))
            return &kv->val;
    }
    return NULL;
}

/* A map {"dtype", "shape", "data"} into t; -1 with sd_fail. */
static int
tensor_of(const char *key, const msgpack_object *map, struct sd_record_tensor *t)
{
    const msgpack_object *dtype, *shape, *data;
    enum sd_dtype type;
    size_t bytes;

    if (map->type != MSGPACK_OBJECT_MAP || !(dtype = map_member(map, "dtype")) || !(shape = map_member(map, "shape"))
            || !(data = map_member(map, "data")) || dtype->type != MSGPACK_OBJECT_STR
            || shape->type != MSGPACK_OBJECT_ARRAY || data->type != MSGPACK_OBJECT_BIN)
        return sd_fail("%s: expected a tensor {dtype, shape, data}", key);
    if (!sd_dtype_find(dtype->via.str.ptr, dtype->via.str.size, &type) || !sd_dtype_size(type)
            || dtype->via.str.size >= sizeof t->dtype)
        return sd_fail("%s: unknown dtype", key);
    memset(t, 0, sizeof *t);
    memcpy(t->dtype, dtype->via.str.ptr, dtype->via.str.size);
    if (shape->via.array.size > sizeof t->shape / sizeof *t->shape)
        return sd_fail("%s: %u dimensions, at most %zu are read", key, shape->via.array.size,
                       sizeof t->shape / sizeof *t->shape);
    t->ndim = (int)shape->via.array.size;
    bytes = sd_dtype_size(type);
    for (int i = 0; i < t->ndim; i++)
        if (!to_int(&shape->via.array.ptr[i], &t->shape[i]) || t->shape[i] < 0
                || __builtin_mul_overflow(bytes, (size_t)t->shape[i], &bytes))
            return sd_fail("%s: bad shape", key);
    if (bytes != data->via.bin.size)
        return sd_fail("%s: %u bytes of data, its shape needs %zu", key, data->via.bin.size, bytes);
    t->data = data->via.bin.ptr;
    t->bytes = bytes;
    return 1;
}

int
sd_record_tensor(const struct sd_record *r, const char *key, struct sd_record_tensor *t)
{
    const struct sd_field *f = sd_record_find(r, key);
    msgpack_unpacked u;
    enum sd_dtype type;
    int status;

    if (!f)
        return 0;
    if (!f->value) {
        *t = f->tensor;
        return 1;
    }
    if (!sd_walk_is_map(*f->value) || !unpack(f, &u))
        return sd_fail("%s: expected a tensor {dtype, shape, data}, found %s", key, kind_of(f));
    status = tensor_of(key, &u.data, t);
    msgpack_unpacked_destroy(&u);
    if (status == 1 && sd_dtype_find(t->dtype, strlen(t->dtype), &type)
            && (uintptr_t)t->data % sd_dtype_size(type)) {      /* messages know no alignment */
        void *copy = sd_alloc(r->scope, t->bytes);

        memcpy(copy, t->data, t->bytes);
        t->data = copy;
    }
    return status;
}
