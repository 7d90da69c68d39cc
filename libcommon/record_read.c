/* record_read.c - record streams in. */
#include "json.h"
#include "io.h"
#include "record_private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CHUNK = 65536 };

struct sd_reader {
    int fd;
    bool ended, broken, unreadable;
    unsigned char *buffer;      /* of malloc; handed to the scope with a whole record */
    size_t length, room;        /* bytes in it */
    uint64_t count, offset;     /* records read; bytes before the buffer */
    char holds[64];
};

static void
grow(struct sd_reader *r, size_t room)
{
    unsigned char *more;

    if (room <= r->room)
        return;
    if (!(more = realloc(r->buffer, room)))
        sd_die("memory", "%zu bytes wanted for a record, not there", room);
    r->buffer = more;
    r->room = room;
}

/* Reads some more, at least one byte; 0 at the end of the file, -1 with sd_fail. */
static int
read_more(struct sd_reader *r, uint64_t need)
{
    size_t want = need > r->length && need - r->length > CHUNK ? (size_t)(need - r->length) : CHUNK;
    ssize_t n;

    /* Twice what has come, at most: a length that is only claimed costs nothing. */
    if (want > r->length + CHUNK)
        want = r->length + CHUNK;
    grow(r, r->length + want);
    do
        n = read(r->fd, r->buffer + r->length, r->room - r->length < want ? r->room - r->length : want);
    while (n < 0 && errno == EINTR);
    if (n < 0) {
        r->unreadable = true;
        return r->fd == 0 && errno == EBADF ? sd_fail("it is closed") : sd_fail_errno("cannot be read");
    }
    r->length += (size_t)n;
    return n > 0;
}

/* Brings one whole object to the start of the buffer: 1 and its length; 0 when the file ends before it; -1. */
static int
whole_object(struct sd_reader *r, size_t *length)
{
    struct sd_walk w = { .at = 0 };

    for (;;) {
        enum sd_walk_result result = sd_walk(&w, r->buffer, r->length);
        int status;

        if (result == SD_WALK_DONE && w.at <= SD_RECORD_MAX) {
            *length = w.at;
            return 1;
        }
        if (result == SD_WALK_BAD)
            return sd_fail("byte %" PRIu64 ": no msgpack", r->offset + w.at);
        if (result == SD_WALK_DEEP)
            return sd_fail("byte %" PRIu64 ": nested more than %d deep", r->offset + w.at, SD_RECORD_DEPTH);
        if (w.need > SD_RECORD_MAX || w.at > SD_RECORD_MAX)
            return sd_fail("byte %" PRIu64 ": a record of more than %zu bytes", r->offset, SD_RECORD_MAX);
        if ((status = read_more(r, w.need)) <= 0) {
            if (!status && r->length)
                return sd_fail("cut short");
            return status;
        }
    }
}

/* What the keys of sd-records.5 must be. */
static const struct { const char *key; enum { TEXT, TENSOR, ARRAY } kind; } known[] = {
    { "id", TEXT }, { "source", TEXT }, { "caption", TEXT }, { "pixels_hash", TEXT }, { "vae_hash", TEXT },
    { "pixel_values", TENSOR }, { "mask", TENSOR }, { "latents_mean", TENSOR }, { "latents_logvar", TENSOR },
    { "latent_mask", TENSOR }, { "original_size", ARRAY }, { "target_size", ARRAY }, { "crop_top_left", ARRAY },
    { "bucket", ARRAY },
};

static int
check_field(const struct sd_field *f)
{
    static const char *const names[] = { "a text", "a tensor", "an array" };
    size_t n;
    const char *text = sd_walk_text(f->value, f->value_length, &n);

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].key) == f->name_length && !memcmp(known[i].key, f->name, f->name_length)
                && (known[i].kind == TEXT ? !text : known[i].kind == TENSOR ? !sd_walk_is_map(*f->value)
                    : strcmp(sd_walk_kind(*f->value), "an array") != 0))
            return sd_fail("%s: expected %s, found %s", known[i].key, names[known[i].kind], sd_walk_kind(*f->value));
    if (text && (!sd_utf8_valid(text, n) || memchr(text, 0, n)))
        return sd_fail("%.*s: not valid UTF-8", (int)(f->name_length < 64 ? f->name_length : 64), f->name);
    return 0;
}

/* Splits the map of `length` bytes at p into the fields of a new record. */
static struct sd_record *
split(struct sd_scope *s, const unsigned char *p, size_t length)
{
    struct sd_record *r = sd_record_new(s);
    uint64_t payload, inside, at;

    r->read = true;
    if (!sd_walk_is_map(*p))
        return sd_fail_null("expected a map");
    at = (uint64_t)sd_walk_head(p, length, &payload, &inside);
    if (inside / 2 > SD_RECORD_KEYS)
        return sd_fail_null("%" PRIu64 " keys, at most %d are read", inside / 2, SD_RECORD_KEYS);
    for (uint64_t i = 0; i < inside / 2; i++) {
        struct sd_field f = { .key = p + at };

        f.key_length = sd_walk_length(p + at, length - at, NULL);
        if (!(f.name = sd_walk_text(f.key, f.key_length, &f.name_length)) || !sd_utf8_valid(f.name, f.name_length)
                || memchr(f.name, 0, f.name_length))
            return sd_fail_null("a key that is no text in UTF-8");
        at += f.key_length;
        f.value = p + at;
        f.value_length = sd_walk_length(p + at, length - at, NULL);
        at += f.value_length;
        for (size_t j = 0; j < r->count; j++)
            if (r->field[j].name_length == f.name_length && !memcmp(r->field[j].name, f.name, f.name_length))
                return sd_fail_null("key %.*s twice", (int)(f.name_length < 64 ? f.name_length : 64), f.name);
        if (check_field(&f))
            return NULL;
        *sd_record_append(r) = f;
    }
    return r;
}

/* Hands the buffer, which starts with a whole object, to the scope; what follows the object moves to a new buffer. */
static const unsigned char *
hand_over(struct sd_reader *r, struct sd_scope *s, size_t length)
{
    unsigned char *given = r->buffer;
    size_t rest = r->length - length;

    sd_on_close(s, free, given);
    r->buffer = NULL;
    r->length = r->room = 0;
    r->offset += length;
    grow(r, rest + CHUNK);
    memcpy(r->buffer, given + length, rest);
    r->length = rest;
    return given;
}

static int
read_head(struct sd_reader *r)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_record *record = NULL;
    const char *holds;
    int64_t version;
    size_t length;
    int status = whole_object(r, &length);

    if (status == 0)
        status = sd_fail("not a record stream: it is empty (did the program before it fail?)");
    else if (r->unreadable)
        status = sd_fail_prefix("not a record stream");
    else if (status < 0 || !sd_walk_is_map(*r->buffer) || !(record = split(s, hand_over(r, s, length), length))
             || sd_record_ints(record, "sd", &version, 1) != 1)
        status = sd_fail("not a record stream");
    else if (version != 1)
        status = sd_fail("record stream of version %lld, this program reads version 1", (long long)version);
    else if (!(holds = sd_record_text(record, "holds")) || strlen(holds) >= sizeof r->holds)
        status = sd_fail("record stream without \"holds\"");
    else
        strcpy(r->holds, holds);
    sd_scope_close(s);
    return status;
}

struct sd_reader *
sd_reader_open(const char *path)
{
    struct sd_reader *r;
    int fd = 0;

    if (!path || !strcmp(path, "-")) {
        if (isatty(0))
            return sd_fail_null("records are wanted here, and standard input is a terminal (--help)");
    } else if ((fd = sd_open(path, O_RDONLY)) < 0) {
        return sd_fail_null("%s", strerror(errno));
    }
    if (!(r = calloc(1, sizeof *r)))
        sd_die("memory", "no room for a reader");
    r->fd = fd;
    grow(r, CHUNK);
    if (read_head(r) < 0) {
        sd_reader_close(r);
        return NULL;
    }
    return r;
}

const char *
sd_reader_holds(const struct sd_reader *r)
{
    return r->holds;
}

bool
sd_reader_broken(const struct sd_reader *r)
{
    return r->broken;
}

uint64_t
sd_reader_count(const struct sd_reader *r)
{
    return r->count;
}

static int
break_off(struct sd_reader *r)
{
    r->broken = true;
    return -1;
}

/* The record is {"end": N}: is it true, and is nothing behind it? */
static int
check_end(struct sd_reader *r, const struct sd_record *end)
{
    int64_t n;
    int status;

    if (sd_record_ints(end, "end", &n, 1) != 1 || (uint64_t)n != r->count) {
        sd_fail("its end does not fit: %" PRIu64 " records were read", r->count);
        return break_off(r);
    }
    if (!r->length && (status = read_more(r, 1)) < 0)
        return break_off(r);
    if (r->length) {
        sd_fail("something follows its end");
        return break_off(r);
    }
    r->ended = true;
    return 0;
}

int
sd_reader_next(struct sd_reader *r, struct sd_scope *s, struct sd_record **record)
{
    const unsigned char *p;
    size_t length;
    int status;

    if (r->ended)
        return 0;
    if (r->broken)
        return sd_fail("the stream is broken");
    status = whole_object(r, &length);
    if (status < 0) {
        sd_fail_prefix("record %" PRIu64, r->count + 1);
        return break_off(r);
    }
    if (!status) {
        sd_fail("the stream stops after %" PRIu64 " records, without its end (did the program before it fail?)",
                r->count);
        return break_off(r);
    }
    p = hand_over(r, s, length);
    if ((*record = split(s, p, length))) {
        if ((*record)->count == 1 && sd_record_find(*record, "end"))
            return check_end(r, *record);
        r->count++;
        return 1;
    }
    r->count++;
    return sd_fail_prefix("record %" PRIu64, r->count);
}

void
sd_reader_close(struct sd_reader *r)
{
    if (!r)
        return;
    if (r->fd > 0)
        close(r->fd);
    free(r->buffer);
    free(r);
}

bool
sd_is_record_stream(const char *path)
{
    unsigned char start[256];
    uint64_t payload, inside, at;
    struct stat st;
    ssize_t n;
    int fd;

    if (stat(path, &st))
        return false;
    if (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode) || S_ISSOCK(st.st_mode))
        return true;
    if (!S_ISREG(st.st_mode) || (fd = sd_open(path, O_RDONLY)) < 0)
        return false;
    n = sd_read(fd, start, sizeof start);
    close(fd);
    errno = 0;
    if (n < 1 || !sd_walk_is_map(*start) || sd_walk_head(start, (uint64_t)n, &payload, &inside) <= 0)
        return false;
    at = (uint64_t)sd_walk_head(start, (uint64_t)n, &payload, &inside);
    for (uint64_t i = 0; i < inside / 2 && at < (uint64_t)n; i++) {
        size_t length;
        const char *key = sd_walk_text(start + at, (uint64_t)n - at, &length);

        if (!key)
            return false;
        if (length == 2 && !memcmp(key, "sd", 2))
            return true;
        at += sd_walk_length(start + at, (uint64_t)n - at, NULL);
        length = sd_walk_length(start + at, (uint64_t)n - at, NULL);
        if (!length)
            return false;
        at += length;
    }
    return false;
}
