/* record_walk.c - where msgpack objects begin and end, without believing what they say of themselves. */
#include "record_private.h"

uint64_t
sd_walk_number(const unsigned char *p, size_t n)
{
    uint64_t x = 0;

    while (n--)
        x = x << 8 | *p++;
    return x;
}

int
sd_walk_head(const unsigned char *p, uint64_t n, uint64_t *payload, uint64_t *inside)
{
    static const unsigned char fixed[] = { 4, 8, 1, 2, 4, 8, 1, 2, 4, 8 };     /* ca .. d3 */
    unsigned c;
    int width;

    *payload = *inside = 0;
    if (!n)
        return 0;
    c = *p;
    if (c < 0x80 || c >= 0xe0 || c == 0xc0 || c == 0xc2 || c == 0xc3)
        return 1;
    if (c < 0xa0) {
        *inside = c < 0x90 ? 2 * (c & 15) : c & 15;
        return 1;
    }
    if (c < 0xc0) {
        *payload = c & 31;
        return 1;
    }
    if (c == 0xc1)
        return -1;
    if (c >= 0xca && c <= 0xd3) {
        *payload = fixed[c - 0xca];
        return 1;
    }
    if (c >= 0xd4 && c <= 0xd8) {
        *payload = 1 + (1u << (c - 0xd4));      /* fixext: type and data */
        return 1;
    }
    width = c <= 0xc6 ? 1 << (c - 0xc4) : c <= 0xc9 ? 1 << (c - 0xc7) : c <= 0xdb ? 1 << (c - 0xd9)
            : c <= 0xdd ? 2 << (c - 0xdc) : 2 << (c - 0xde);
    if (n < 1 + (uint64_t)width)
        return 0;
    if (c >= 0xde)
        *inside = 2 * sd_walk_number(p + 1, (size_t)width);
    else if (c >= 0xdc)
        *inside = sd_walk_number(p + 1, (size_t)width);
    else
        *payload = sd_walk_number(p + 1, (size_t)width) + (c >= 0xc7 && c <= 0xc9);
    return 1 + width;
}

enum sd_walk_result
sd_walk(struct sd_walk *w, const unsigned char *p, uint64_t n)
{
    if (!w->objects)
        w->left[0] = 1;
    for (;;) {
        uint64_t payload, inside;
        int length;

        while (!w->left[w->depth]) {
            if (!w->depth)
                return SD_WALK_DONE;
            w->depth--;
        }
        length = sd_walk_head(p + w->at, n - w->at, &payload, &inside);
        if (length < 0)
            return SD_WALK_BAD;
        w->need = w->at + (length ? (uint64_t)length + payload : 5);
        if (!length || w->need > n)
            return SD_WALK_MORE;
        w->at = w->need;
        w->objects++;
        w->left[w->depth]--;
        if (inside) {
            if (w->depth == SD_RECORD_DEPTH)
                return SD_WALK_DEEP;
            w->left[++w->depth] = inside;
        }
    }
}

uint64_t
sd_walk_length(const unsigned char *p, uint64_t n, uint64_t *objects)
{
    struct sd_walk w = { .at = 0 };

    if (sd_walk(&w, p, n) != SD_WALK_DONE)
        return 0;
    if (objects)
        *objects = w.objects;
    return w.at;
}

const char *
sd_walk_text(const unsigned char *p, uint64_t n, size_t *length)
{
    uint64_t payload, inside;
    int h = sd_walk_head(p, n, &payload, &inside);

    if (h <= 0 || !((*p >= 0xa0 && *p < 0xc0) || (*p >= 0xd9 && *p <= 0xdb)) || (uint64_t)h + payload > n)
        return NULL;
    *length = payload;
    return (const char *)p + h;
}

bool
sd_walk_is_map(unsigned char c)
{
    return (c >= 0x80 && c < 0x90) || c == 0xde || c == 0xdf;
}

const char *
sd_walk_kind(unsigned char c)
{
    return sd_walk_is_map(c) ? "a map" : c < 0x80 || c >= 0xe0 || (c >= 0xcc && c <= 0xd3) ? "an integer"
        : c < 0xa0 || c == 0xdc || c == 0xdd ? "an array" : c < 0xc0 || (c >= 0xd9 && c <= 0xdb) ? "a text"
        : c == 0xc0 ? "nil" : c <= 0xc3 ? "a truth value" : c <= 0xc6 ? "binary" : c == 0xca || c == 0xcb ? "a real"
        : "an extension";
}
