/* safetensors_header.c - the parser of headers.  One of its own: a header may have 100 MB, and JSON libraries let through
 * what the format does not (duplicates, 1.0 for an integer), or allocate without bound. */
#include "safetensors_private.h"

#include <stdlib.h>
#include <string.h>

enum { NESTING_MAX = 127 };

static int
wrong(struct parser *p, const char *expected)
{
    if (p->p >= p->end)
        return sd_fail("header, byte %td: expected %s, found its end", p->p - p->start, expected);
    return sd_fail("header, byte %td: expected %s, found \"%c\"", p->p - p->start, expected, *p->p);
}

static void
skip_space(struct parser *p)
{
    while (p->p < p->end && (*p->p == ' ' || *p->p == '\t' || *p->p == '\n' || *p->p == '\r'))
        p->p++;
}

static bool
take(struct parser *p, char c)
{
    skip_space(p);
    if (p->p >= p->end || *p->p != (unsigned char)c)
        return false;
    p->p++;
    return true;
}

/* Room for one more in an array of malloc. */
static void *
grow(void *array, size_t count, size_t *room, size_t size)
{
    if (count < *room)
        return array;
    *room = *room ? 2 * *room : 64;
    if (!(array = realloc(array, *room * size)))
        sd_die("memory", "no room for a header");
    return array;
}

static int
hex4(struct parser *p, uint32_t *code)
{
    *code = 0;
    for (int i = 0; i < 4; i++, p->p++) {
        int c = p->p < p->end ? *p->p : 0;

        if (!((c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'f')))
            return wrong(p, "four hexadecimal digits");
        *code = *code << 4 | (uint32_t)(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    return 0;
}

/* After "\u": one code point, which may take a second escape. */
static int
code_point(struct parser *p, char **to)
{
    uint32_t c, low;

    if (hex4(p, &c))
        return -1;
    if (c >= 0xdc00 && c < 0xe000)
        return wrong(p, "no surrogate without its first half");
    if (c >= 0xd800 && c < 0xdc00) {
        if (p->end - p->p < 2 || p->p[0] != '\\' || p->p[1] != 'u')
            return wrong(p, "the second half of a surrogate");
        p->p += 2;
        if (hex4(p, &low))
            return -1;
        if (low < 0xdc00 || low >= 0xe000)
            return wrong(p, "the second half of a surrogate");
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }
    if (c < 0x80) {
        *(*to)++ = (char)c;
    } else {
        int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;

        *(*to)++ = (char)((0x780 >> more & 0xff) | c >> 6 * more);
        while (more--)
            *(*to)++ = (char)(0x80 | (c >> 6 * more & 63));
    }
    return 0;
}

/* A string, decoded, ended by a zero. */
static int
string(struct parser *p, const char **text, size_t *length)
{
    char *to = p->text;

    if (!take(p, '"'))
        return wrong(p, "a string");
    for (;;) {
        unsigned char c;

        if (p->p >= p->end || *p->p < 0x20)
            return wrong(p, "the end of a string");
        if ((c = *p->p++) == '"')
            break;
        if (c != '\\') {
            *to++ = (char)c;
            continue;
        }
        switch (p->p < p->end ? *p->p : 0) {
        case '"': case '\\': case '/': *to++ = (char)*p->p++; break;
        case 'b': *to++ = '\b'; p->p++; break;
        case 'f': *to++ = '\f'; p->p++; break;
        case 'n': *to++ = '\n'; p->p++; break;
        case 'r': *to++ = '\r'; p->p++; break;
        case 't': *to++ = '\t'; p->p++; break;
        case 'u':
            p->p++;
            if (code_point(p, &to))
                return -1;
            break;
        default:
            return wrong(p, "an escape");
        }
    }
    *text = p->text;
    *length = (size_t)(to - p->text);
    *to++ = '\0';
    p->text = to;
    return 0;
}

static bool
is(const char *text, size_t length, const char *word)
{
    return length == strlen(word) && !memcmp(text, word, length);
}

/* A non-negative integer of 64 bits: no sign, no fraction, no exponent, no leading zero. */
static int
natural(struct parser *p, uint64_t *x)
{
    const unsigned char *first;

    skip_space(p);
    *x = 0;
    for (first = p->p; p->p < p->end && *p->p >= '0' && *p->p <= '9'; p->p++)
        if (__builtin_mul_overflow(*x, 10, x) || __builtin_add_overflow(*x, *p->p - '0', x))
            return sd_fail("header, byte %td: an integer of more than 64 bits", first - p->start);
    if (p->p == first || (p->p < p->end && (*p->p == '.' || *p->p == 'e' || *p->p == 'E'))
            || (*first == '0' && p->p - first > 1)) {
        p->p = first;
        return wrong(p, "a non-negative integer");
    }
    return 0;
}

static bool
word(struct parser *p, const char *w)
{
    size_t n = strlen(w);

    if ((size_t)(p->end - p->p) < n || memcmp(p->p, w, n))
        return false;
    p->p += n;
    return true;
}

static void
digits(struct parser *p)
{
    while (p->p < p->end && *p->p >= '0' && *p->p <= '9')
        p->p++;
}

static int
number(struct parser *p)
{
    const unsigned char *first;

    if (p->p < p->end && *p->p == '-')
        p->p++;
    first = p->p;
    digits(p);
    if (p->p == first || (*first == '0' && p->p - first > 1))
        return wrong(p, "a value");
    if (p->p < p->end && *p->p == '.') {
        first = ++p->p;
        digits(p);
        if (p->p == first)
            return wrong(p, "a digit");
    }
    if (p->p < p->end && (*p->p | 32) == 'e') {
        p->p++;
        if (p->p < p->end && (*p->p == '+' || *p->p == '-'))
            p->p++;
        first = p->p;
        digits(p);
        if (p->p == first)
            return wrong(p, "a digit");
    }
    return 0;
}

/* Any value, as an extra member may have. */
static int
skip_value(struct parser *p, int depth)
{
    char *text = p->text;               /* its strings need not be kept */
    const char *s;
    size_t n;
    int status = 0;
    char close;

    if (depth > NESTING_MAX)
        return sd_fail("header, byte %td: nested more than %d deep", p->p - p->start, NESTING_MAX);
    skip_space(p);
    if (p->p >= p->end)
        return wrong(p, "a value");
    if (*p->p == '"') {
        status = string(p, &s, &n);
        p->text = text;
        return status;
    }
    if (*p->p != '{' && *p->p != '[')
        return word(p, "true") || word(p, "false") || word(p, "null") ? 0 : number(p);
    close = *p->p++ == '{' ? '}' : ']';
    if (take(p, close))
        return 0;
    do {
        if (close == '}') {
            if (string(p, &s, &n))
                return -1;
            p->text = text;
            if (!take(p, ':'))
                return wrong(p, "\":\"");
        }
        if (skip_value(p, depth + 1))
            return -1;
    } while (take(p, ','));
    return take(p, close) ? 0 : wrong(p, close == '}' ? "\",\" or \"}\"" : "\",\" or \"]\"");
}

static int
shape_of(struct parser *p, struct entry *e)
{
    if (!take(p, '['))
        return wrong(p, "a shape: an array");
    e->first_dim = p->dims;
    if (!take(p, ']')) {
        do {
            p->dim = grow(p->dim, p->dims, &p->dim_room, sizeof *p->dim);
            if (natural(p, &p->dim[p->dims]))
                return -1;
            p->dims++;
        } while (take(p, ','));
        if (!take(p, ']'))
            return wrong(p, "\",\" or \"]\"");
    }
    e->ndim = p->dims - e->first_dim;
    return 0;
}

static int
offsets_of(struct parser *p, struct entry *e)
{
    if (!take(p, '['))
        return wrong(p, "data_offsets: an array");
    if (natural(p, &e->begin))
        return -1;
    if (!take(p, ','))
        return wrong(p, "a second offset");
    if (natural(p, &e->end))
        return -1;
    return take(p, ']') ? 0 : wrong(p, "\"]\" after two offsets");
}

/* The object of one tensor. */
static int
tensor_of(struct parser *p, struct entry *e)
{
    static const char *const members[] = { "dtype", "shape", "data_offsets" };
    unsigned seen = 0;

    if (!take(p, '{'))
        return wrong(p, "a tensor: an object");
    if (!take(p, '}')) {
        do {
            const char *key, *text;
            char *mark = p->text;
            size_t n, length;
            unsigned which = 0;

            if (string(p, &key, &n))
                return -1;
            while (which < 3 && !is(key, n, members[which]))
                which++;
            if (which < 3 && seen & 1u << which)
                return sd_fail("header, byte %td: %s twice", p->p - p->start, members[which]);
            seen |= 1u << which;
            if (!take(p, ':'))
                return wrong(p, "\":\"");
            if (which == 0) {
                if (string(p, &text, &length))
                    return -1;
                if (!sd_dtype_find(text, length, &e->dtype))
                    return sd_fail("header, byte %td: unknown dtype %.32s", p->p - p->start, text);
            } else if (which == 1 ? shape_of(p, e) : which == 2 ? offsets_of(p, e) : skip_value(p, 2)) {
                return -1;
            }
            p->text = mark;
        } while (take(p, ','));
        if (!take(p, '}'))
            return wrong(p, "\",\" or \"}\"");
    }
    for (int i = 0; i < 3; i++)
        if (!(seen & 1u << i))
            return sd_fail("header, byte %td: a tensor without %s", p->p - p->start, members[i]);
    return 0;
}

static int
metadata_of(struct parser *p)
{
    if (p->has_metadata)
        return sd_fail("header, byte %td: __metadata__ twice", p->p - p->start);
    p->has_metadata = true;
    skip_space(p);
    if (word(p, "null"))
        return 0;
    if (!take(p, '{'))
        return wrong(p, "__metadata__: an object");
    if (take(p, '}'))
        return 0;
    do {
        struct pair pair;
        size_t length;

        if (string(p, &pair.key, &pair.key_length))
            return -1;
        if (!take(p, ':'))
            return wrong(p, "\":\"");
        if (string(p, &pair.value, &length))
            return -1;
        p->metadata = grow(p->metadata, p->pairs, &p->pair_room, sizeof pair);
        p->metadata[p->pairs++] = pair;
    } while (take(p, ','));
    return take(p, '}') ? 0 : wrong(p, "\",\" or \"}\"");
}

int
sd_safetensors_parse(struct parser *p)
{
    if (!take(p, '{'))
        return wrong(p, "\"{\"");
    if (!take(p, '}')) {
        do {
            const char *name;
            size_t length;

            if (string(p, &name, &length))
                return -1;
            if (!take(p, ':'))
                return wrong(p, "\":\"");
            if (is(name, length, "__metadata__")) {
                if (metadata_of(p))
                    return -1;
                continue;
            }
            p->entry = grow(p->entry, p->entries, &p->entry_room, sizeof *p->entry);
            p->entry[p->entries] = (struct entry){ .name = name, .name_length = length };
            if (tensor_of(p, &p->entry[p->entries]))
                return -1;
            p->entries++;
        } while (take(p, ','));
        if (!take(p, '}'))
            return wrong(p, "\",\" or \"}\"");
    }
    skip_space(p);
    return p->p == p->end ? 0 : wrong(p, "nothing after the object");
}
