/* tokenizer_text.c - the Unicode side of the CLIP tokenizer: UTF-8, normal form, lower case, classes. */
#include "model/tokenizer_text.h"
#include "model/tokenizer.h"

#include <string.h>
#include <utf8proc.h>

/* What the reference's tables have and utf8proc 2.8's Unicode 15 has not, or the other way round; first and last code
 * point.  tests/reference/clip_tokenizer.py --differences prints them from the two libraries. */
struct range { int32_t first, last; };

static const struct range letters[] = {         /* Unicode 15.1 and 16 */
    { 0x1C89, 0x1C8A }, { 0xA7CB, 0xA7CD }, { 0xA7DA, 0xA7DC }, { 0x105C0, 0x105F3 }, { 0x10D4A, 0x10D65 },
    { 0x10D6F, 0x10D85 }, { 0x10EC2, 0x10EC4 }, { 0x11380, 0x11389 }, { 0x1138B, 0x1138B }, { 0x1138E, 0x1138E },
    { 0x11390, 0x113B5 }, { 0x113B7, 0x113B7 }, { 0x113D1, 0x113D1 }, { 0x113D3, 0x113D3 }, { 0x11BC0, 0x11BE0 },
    { 0x13460, 0x143FA }, { 0x16100, 0x1611D }, { 0x16D40, 0x16D6C }, { 0x18CFF, 0x18CFF }, { 0x1E5D0, 0x1E5ED },
    { 0x1E5F0, 0x1E5F0 }, { 0x2EBF0, 0x2EE5D },
};
static const struct range numbers[] = {
    { 0x10D40, 0x10D49 }, { 0x116D0, 0x116E3 }, { 0x11BF0, 0x11BF9 }, { 0x16130, 0x16139 }, { 0x16D70, 0x16D79 },
    { 0x1CCF0, 0x1CCF9 }, { 0x1E5F1, 0x1E5FA },
};
/* Unknown to the NFC of Unicode 9: no decomposition, no composition, nothing is reordered across them. */
static const struct range nfc_barriers[] = {
    { 0x7FD, 0x7FD }, { 0x898, 0x89F }, { 0x8CA, 0x8D3 }, { 0x9FE, 0x9FE }, { 0xC3C, 0xC3C }, { 0xD3B, 0xD3C },
    { 0xEBA, 0xEBA }, { 0x1715, 0x1715 }, { 0x1ABF, 0x1ACE }, { 0x1DF6, 0x1DFA }, { 0xA82C, 0xA82C },
    { 0x10D24, 0x10D27 }, { 0x10EAB, 0x10EAC }, { 0x10EFD, 0x10EFF }, { 0x10F46, 0x10F50 }, { 0x10F82, 0x10F85 },
    { 0x11070, 0x11070 }, { 0x1133B, 0x1133B }, { 0x1145E, 0x1145E }, { 0x11839, 0x1183A }, { 0x11930, 0x11930 },
    { 0x1193D, 0x1193E }, { 0x11943, 0x11943 }, { 0x119E0, 0x119E0 },
    { 0x11A34, 0x11A34 }, { 0x11A47, 0x11A47 }, { 0x11A99, 0x11A99 }, { 0x11D42, 0x11D42 }, { 0x11D44, 0x11D45 },
    { 0x11D97, 0x11D97 }, { 0x11F41, 0x11F42 }, { 0x16FF0, 0x16FF1 }, { 0x1E08F, 0x1E08F }, { 0x1E130, 0x1E136 },
    { 0x1E2AE, 0x1E2AE }, { 0x1E2EC, 0x1E2EF }, { 0x1E4EC, 0x1E4EF },
};
/* Capitals of Unicode 16 and 17: every `step`-th code point becomes itself + shift. */
static const struct { struct range r; int step; int32_t shift; } lower[] = {
    { { 0x1C89, 0x1C89 }, 1, 1 }, { { 0xA7CB, 0xA7CB }, 1, 0x264 - 0xA7CB }, { { 0xA7CC, 0xA7CE }, 2, 1 },
    { { 0xA7D2, 0xA7D4 }, 2, 1 }, { { 0xA7DA, 0xA7DA }, 1, 1 }, { { 0xA7DC, 0xA7DC }, 1, 0x19B - 0xA7DC },
    { { 0x10D50, 0x10D65 }, 1, 32 }, { { 0x16EA0, 0x16EB8 }, 1, 27 },
};

static bool
within(const struct range *r, size_t count, int32_t c)
{
    if (c < r[0].first || c > r[count - 1].last)
        return false;
    for (size_t i = 0; i < count && r[i].first <= c; i++)
        if (c <= r[i].last)
            return true;
    return false;
}
#define WITHIN(table, c) within(table, sizeof (table) / sizeof *(table), c)

enum sd_class
sd_codepoint_class(int32_t c)
{
    static const unsigned char space[] = { 0x20, 0x85, 0xA0 };

    if ((c >= 9 && c <= 13) || (c <= 0xA0 && memchr(space, c, sizeof space)) || c == 0x1680
        || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000)
        return SD_CLASS_SPACE;
    if (c < 0x80)
        return (c | 32) >= 'a' && (c | 32) <= 'z' ? SD_CLASS_LETTER : c >= '0' && c <= '9' ? SD_CLASS_NUMBER
             : SD_CLASS_OTHER;
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT: case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return SD_CLASS_LETTER;
    case UTF8PROC_CATEGORY_ND: case UTF8PROC_CATEGORY_NL: case UTF8PROC_CATEGORY_NO:
        return SD_CLASS_NUMBER;
    default:
        return WITHIN(letters, c) ? SD_CLASS_LETTER : WITHIN(numbers, c) ? SD_CLASS_NUMBER : SD_CLASS_OTHER;
    }
}

/* Lower case of one code point; U+0130 becomes two. */
static size_t
lower_case(int32_t c, int32_t *to)
{
    if (c == 0x130) {
        to[0] = 'i';
        to[1] = 0x307;
        return 2;
    }
    to[0] = utf8proc_tolower(c);
    if (to[0] == c)
        for (size_t i = 0; i < sizeof lower / sizeof *lower; i++)
            if (c >= lower[i].r.first && c <= lower[i].r.last && !((c - lower[i].r.first) % lower[i].step))
                to[0] = c + lower[i].shift;
    return 1;
}

int
sd_codepoint_write(int32_t c, char *to)
{
    return (int)utf8proc_encode_char(c, (utf8proc_uint8_t *)to);
}

int
sd_codepoints(struct sd_scope *s, const char *text, size_t bytes, struct sd_codepoints *out)
{
    const utf8proc_uint8_t *at = (const utf8proc_uint8_t *)text;

    if (bytes > SD_TOKENIZER_TEXT_MAX)
        return sd_fail("text of %zu bytes, at most %ld are read", bytes, SD_TOKENIZER_TEXT_MAX);
    out->at = sd_alloc_array(s, bytes + 1, sizeof *out->at);
    out->count = 0;
    for (size_t i = 0; i < bytes; ) {
        utf8proc_ssize_t n = utf8proc_iterate(at + i, (utf8proc_ssize_t)(bytes - i), out->at + out->count);

        if (n <= 0)
            return sd_fail("not UTF-8 at byte %zu", i);
        out->count++;
        i += (size_t)n;
    }
    return 0;
}

char *
sd_utf8_repair(struct sd_scope *s, const char *bytes, size_t count)
{
    char *text = sd_alloc(s, 3 * count + 1);
    size_t n = 0;

    for (size_t i = 0; i < count; ) {
        int32_t c;
        utf8proc_ssize_t used =
            utf8proc_iterate((const utf8proc_uint8_t *)bytes + i, (utf8proc_ssize_t)(count - i), &c);

        n += (size_t)sd_codepoint_write(used > 0 ? c : 0xFFFD, text + n);
        i += used > 0 ? (size_t)used : 1;
    }
    return text;
}

/* Canonical order of the marks at[0..count-1]: a stable counting sort by combining class, since a hostile text may be
 * all marks. */
static void
sort_marks(struct sd_scope *s, int32_t *at, size_t count)
{
    size_t start[257] = { 0 };
    int32_t *sorted;

    if (count < 2)
        return;
    sorted = sd_alloc_array(s, count, sizeof *sorted);
    for (size_t i = 0; i < count; i++)
        start[utf8proc_get_property(at[i])->combining_class + 1]++;
    for (int i = 0; i < 256; i++)
        start[i + 1] += start[i];
    for (size_t i = 0; i < count; i++)
        sorted[start[utf8proc_get_property(at[i])->combining_class]++] = at[i];
    memcpy(at, sorted, count * sizeof *at);
}

/* NFC of a stretch without barriers, to `to`; returns its length.  Room: four code points for each. */
static size_t
compose(struct sd_scope *s, const int32_t *at, size_t count, int32_t *to)
{
    size_t n = 0, marks = 0;
    int last_class = 0;

    for (size_t i = 0; i < count; i++)
        n += (size_t)utf8proc_decompose_char(at[i], to + n, 4, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &last_class);
    for (size_t i = 0; i < n; i++)
        if (!utf8proc_get_property(to[i])->combining_class) {
            sort_marks(s, to + marks, i - marks);
            marks = i + 1;
        }
    sort_marks(s, to + marks, n - marks);
    return (size_t)utf8proc_normalize_utf32(to, (utf8proc_ssize_t)n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
}

struct sd_codepoints
sd_codepoints_normalise(struct sd_scope *s, const int32_t *at, size_t count)
{
    struct sd_scope *scratch = sd_scope_open();
    struct sd_codepoints out = { 0, sd_alloc_array(s, 8 * count + 1, sizeof *out.at) };
    int32_t *nfc = sd_alloc_array(scratch, 4 * count + 1, sizeof *nfc);
    size_t n = 0;

    for (size_t i = 0; i < count; ) {
        size_t end = i;

        while (end < count && !WITHIN(nfc_barriers, at[end]))
            end++;
        n += compose(scratch, at + i, end - i, nfc + n);
        for (i = end; i < count && WITHIN(nfc_barriers, at[i]); i++)
            nfc[n++] = at[i];
    }
    for (size_t i = 0; i < n; i++)
        if (sd_codepoint_class(nfc[i]) != SD_CLASS_SPACE)
            out.count += lower_case(nfc[i], out.at + out.count);
        else if (!i || sd_codepoint_class(nfc[i - 1]) != SD_CLASS_SPACE)
            out.at[out.count++] = ' ';
    sd_scope_close(scratch);
    return out;
}
