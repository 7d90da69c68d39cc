/* record_write.c - records to standard output, as msgpack or as JSON lines. */
#include "opt.h"
#include "record_private.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <msgpack.h>
#include <unistd.h>
#include <utf8proc.h>

static uint64_t written;

static void
check_stdout(void)
{
    if (ferror(stdout))
        sd_die_stdout(errno);
}

static int
put(void *user, const char *bytes, size_t n)
{
    (void)user;
    errno = 0;
    fwrite(bytes, 1, n, stdout);
    check_stdout();
    return 0;
}

/* ---- JSON lines --------------------------------------------------------------------------------------------- */

static void
put_json_text(const char *text, size_t n)
{
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)text, *end = p + n;

    putchar('"');
    while (p < end) {
        utf8proc_int32_t c;
        utf8proc_ssize_t length = utf8proc_iterate(p, end - p, &c);

        if (length <= 0) {
            fputs("\\ufffd", stdout);
            length = 1;
        } else if (c == '"' || c == '\\') {
            printf("\\%c", (char)c);
        } else if (c < 0x20 || (c >= 0x7f && c < 0xa0)) {       /* none of it may drive a terminal */
            printf("\\u%04x", (unsigned)c);
        } else {
            fwrite(p, 1, (size_t)length, stdout);
        }
        p += length;
    }
    putchar('"');
}

/* jq keeps 53 bits: what does not fit goes as text. */
static void
put_json_int(uint64_t magnitude, bool negative)
{
    const char *quote = magnitude > (uint64_t)1 << 53 ? "\"" : "";

    printf("%s%s%" PRIu64 "%s", quote, negative ? "-" : "", magnitude, quote);
}

static void
put_json_real(double x, int digits)
{
    if (isfinite(x))
        printf("%.*g", digits, x);
    else
        fputs(isnan(x) ? "\"NaN\"" : x > 0 ? "\"Infinity\"" : "\"-Infinity\"", stdout);
}

static void
put_json_shape(const char *dtype, int ndim, const int64_t *shape)
{
    printf("{\"dtype\":\"%s\",\"shape\":[", dtype);
    for (int i = 0; i < ndim; i++)
        printf("%s%" PRId64, i ? "," : "", shape[i]);
    fputs("]}", stdout);
}

static bool
is_named(const unsigned char *p, uint64_t n, const char *name)
{
    size_t length;
    const char *text = sd_walk_text(p, n, &length);

    return text && length == strlen(name) && !memcmp(text, name, length);
}

/* Is the map of `pairs` whose first key is at p a tensor: does it have dtype and shape? */
static bool
is_tensor(const unsigned char *p, uint64_t n, uint64_t pairs)
{
    int found = 0;

    for (uint64_t i = 0; i < pairs; i++) {
        uint64_t key = sd_walk_length(p, n, NULL), value = sd_walk_length(p + key, n - key, NULL);

        found |= is_named(p, n, "dtype") | is_named(p, n, "shape") << 1;
        p += key + value;
        n -= key + value;
    }
    return found == 3;
}

/* The object at p; returns its length.  It has been walked: it is whole, and not deep. */
static uint64_t
put_json(const unsigned char *p, uint64_t n)
{
    uint64_t payload, inside, at = (uint64_t)sd_walk_head(p, n, &payload, &inside), x;
    const unsigned char c = *p, *body = p + at;
    size_t length;
    const char *text = sd_walk_text(p, n, &length);

    if (text) {
        put_json_text(text, length);
    } else if (sd_walk_is_map(c)) {
        bool tensor = is_tensor(body, n - at, inside / 2), first = true;

        putchar('{');
        for (uint64_t i = 0; i < inside / 2; i++) {
            uint64_t key = sd_walk_length(p + at, n - at, NULL);

            if (tensor && is_named(p + at, n - at, "data")) {
                at += key;
                at += sd_walk_length(p + at, n - at, NULL);
                continue;
            }
            if (!first)
                putchar(',');
            first = false;
            if ((text = sd_walk_text(p + at, n - at, &length)))
                put_json_text(text, length);
            else
                printf("\"%s\"", sd_walk_kind(p[at]));
            at += key;
            putchar(':');
            at += put_json(p + at, n - at);
        }
        putchar('}');
        return at;
    } else if (inside || c == 0x90 || c == 0xdc || c == 0xdd) {
        putchar('[');
        for (uint64_t i = 0; i < inside; i++) {
            if (i)
                putchar(',');
            at += put_json(p + at, n - at);
        }
        putchar(']');
        return at;
    } else if (c < 0x80 || c >= 0xe0) {
        put_json_int(c < 0x80 ? c : 256u - c, c >= 0xe0);
    } else if (c == 0xc0 || c == 0xc2 || c == 0xc3) {
        fputs(c == 0xc0 ? "null" : c == 0xc2 ? "false" : "true", stdout);
    } else if (c >= 0xcc && c <= 0xcf) {
        put_json_int(sd_walk_number(body, payload), false);
    } else if (c >= 0xd0 && c <= 0xd3) {
        bool negative = body[0] & 0x80;

        x = sd_walk_number(body, payload);
        if (negative)
            x = payload < 8 ? ((uint64_t)1 << 8 * payload) - x : 0 - x;
        put_json_int(x, negative);
    } else if (c == 0xca) {
        uint32_t bits = (uint32_t)sd_walk_number(body, 4);
        float f;

        memcpy(&f, &bits, 4);
        put_json_real((double)f, 9);
    } else if (c == 0xcb) {
        double d;

        x = sd_walk_number(body, 8);
        memcpy(&d, &x, 8);
        put_json_real(d, 17);
    } else {
        bool extension = (c >= 0xc7 && c <= 0xc9) || c >= 0xd4;     /* its payload starts with its type */

        printf("{\"bytes\":%" PRIu64 "}", payload - extension);
    }
    return at + payload;
}

static void
write_json(const struct sd_record *r)
{
    errno = 0;
    putchar('{');
    for (size_t i = 0; i < r->count; i++) {
        const struct sd_field *f = &r->field[i];

        if (i)
            putchar(',');
        put_json_text(f->name, f->name_length);
        putchar(':');
        if (f->value)
            put_json(f->value, f->value_length);
        else
            put_json_shape(f->tensor.dtype, f->tensor.ndim, f->tensor.shape);
    }
    fputs("}\n", stdout);
    check_stdout();
}

/* ---- msgpack ------------------------------------------------------------------------------------------------ */

static void
write_tensor(msgpack_packer *pk, const struct sd_record_tensor *t)
{
    msgpack_pack_map(pk, 3);
    msgpack_pack_str_with_body(pk, "dtype", 5);
    msgpack_pack_str_with_body(pk, t->dtype, strlen(t->dtype));
    msgpack_pack_str_with_body(pk, "shape", 5);
    msgpack_pack_array(pk, (size_t)t->ndim);
    for (int i = 0; i < t->ndim; i++)
        msgpack_pack_int64(pk, t->shape[i]);
    msgpack_pack_str_with_body(pk, "data", 4);
    msgpack_pack_bin(pk, t->bytes);
    msgpack_pack_bin_body(pk, t->data, t->bytes);
}

static void
write_msgpack(const struct sd_record *r)
{
    msgpack_packer pk;

    msgpack_packer_init(&pk, NULL, put);
    msgpack_pack_map(&pk, r->count);
    for (size_t i = 0; i < r->count; i++) {
        const struct sd_field *f = &r->field[i];

        put(NULL, (const char *)f->key, f->key_length);
        if (f->value)
            put(NULL, (const char *)f->value, f->value_length);
        else
            write_tensor(&pk, &f->tensor);
    }
}

static void
write_any(const struct sd_record *r)
{
    (sd_shared.json_lines ? write_json : write_msgpack)(r);
}

void
sd_writer_begin(const char *holds)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_record *r = sd_record_new(s);

    if (!sd_shared.json_lines && isatty(1))
        sd_usage("standard output", "records are binary, and this is a terminal (use a pipe, a file, or -j)");
    sd_record_set_int(r, "sd", 1);
    sd_record_set_text(r, "holds", holds);
    write_any(r);
    written = 0;
    sd_scope_close(s);
}

void
sd_record_write(const struct sd_record *r)
{
    size_t bytes = 16;

    for (size_t i = 0; i < r->count; i++)
        bytes +=
            r->field[i].key_length + (r->field[i].value ? r->field[i].value_length : r->field[i].tensor.bytes + 64);
    if (bytes > SD_RECORD_MAX || r->count > SD_RECORD_KEYS)
        sd_die("standard output", "a record of %zu bytes and %zu keys, at most %zu and %d can be read", bytes, r->count,
               SD_RECORD_MAX, SD_RECORD_KEYS);
    write_any(r);
    written++;
}

void
sd_writer_end(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_record *r = sd_record_new(s);

    sd_record_set_int(r, "end", (int64_t)written);
    write_any(r);
    errno = 0;
    fflush(stdout);
    check_stdout();
    sd_scope_close(s);
}
