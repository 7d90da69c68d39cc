/* The safetensors reader against the reference library, on mutants of sound files: the same are taken, and the same
 * refused but for what we are known to refuse beyond it.  The mutants follow from their numbers alone; the reference's
 * verdicts, a bit each, are in tests/data/safetensors/mutants.verdicts.
 *   mutants [COUNT]        check the first COUNT, or all 100000
 *   mutants --dump COUNT   write them, each behind its length in 8 bytes: for tests/reference/container.py verdicts */
#include "../check.h"
#include "../splitmix.h"
#include "safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MUTANTS = 100000, ROOM = 4096, HEAD = 8 };

struct file {
    unsigned char bytes[ROOM];
    size_t n;
};

/* ---- sound files ------------------------------------------------------------------------------------------------- */

static const struct { const char *header; size_t data; } sound[] = {
    { "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24 },
    { "{\"__metadata__\":{\"format\":\"pt\",\"k\":\"v\"},"
      "\"w\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[0,8]},"
      "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[8,12]},"
      "\"s\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[12,20]}}", 20 },
    { "{\"x\":{\"dtype\":\"U8\",\"shape\":[0,5],\"data_offsets\":[0,0]},\"y\":{\"dtype\":\"BOOL\",\"shape\":[3],"
      "\"data_offsets\":[0,3]},\"z\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[3,11]}}", 11 },
    { "{\"q\":{\"dtype\":\"F8_E4M3\",\"shape\":[2,2],\"data_offsets\":[0,4]},"
      "\"r\":{\"dtype\":\"F8_E5M2\",\"shape\":[1],"
      "\"data_offsets\":[4,5]},\"t\":{\"dtype\":\"F4\",\"shape\":[4],\"data_offsets\":[5,7]}}", 7 },
    { "{}", 0 },
    { "{\"__metadata__\":{\"\\u00e9\":\"\\ud83d\\ude00\"},\"n\\\"\\\\\":{\"shape\":[1],\"data_offsets\":[0,2],"
      "\"dtype\":\"U16\"}}   ", 2 },
};
enum { SOUND = sizeof sound / sizeof *sound };

static void
set_length(struct file *f, uint64_t length)
{
    for (int i = 0; i < HEAD && f->n >= HEAD; i++)
        f->bytes[i] = (unsigned char)(length >> 8 * i);
}

static uint64_t
length_of(const struct file *f)
{
    uint64_t length = 0;

    for (int i = 0; i < HEAD && f->n >= HEAD; i++)
        length |= (uint64_t)f->bytes[i] << 8 * i;
    return length;
}

/* ---- what is done to them ---------------------------------------------------------------------------------------- */

/* n bytes at `at` become those of `text`; the header's length follows, mostly. */
static void
replace(struct file *f, size_t at, size_t n, const void *text, size_t length, bool kept)
{
    uint64_t header = length_of(f);

    if (at > f->n || n > f->n - at || f->n - n + length > ROOM)
        return;
    memmove(f->bytes + at + length, f->bytes + at + n, f->n - at - n);
    memcpy(f->bytes + at, text, length);
    f->n += length - n;
    if (!kept && at >= HEAD)
        set_length(f, header + length - n);
}

static size_t
in_header(const struct file *f)
{
    uint64_t length = length_of(f);

    return f->n < HEAD ? 0 : HEAD + below(length < f->n - HEAD ? (size_t)length : f->n - HEAD);
}

static const char *const numbers[] = {
    "0", "1", "2", "3", "4", "5", "8", "12", "24", "-1", "-0", "00", "01", "1.0", "1e1", "0x1", "65536",
    "4294967295", "4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551615",
    "18446744073709551616", "99999999999999999999999", "null", "true", "\"1\"", "[]", "[1]", "{}", ""
};
static const char *const dtypes[] = {
    "F32", "F16", "BF16", "F64", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL", "F8_E4M3", "F8_E5M2",
    "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "C64", "f32", "F128", "", "F32 ", "I4"
};
static const char *const texts[] = {
    "a", "b", "w", "__metadata__", "shape", "dtype", "data_offsets", "\\u0000", "\\ud800", "\\/", "\\x", "\xc3\xa9",
    "\xff", "\t", "\\n", "{", "}", "[", "]", ",", ":", "\"", " ", "\n", ",,",
    "\"z\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},", "\"extra\":1,", "\"dtype\":\"F32\",", "/* */",
    "NaN", "[[[[[[[[", "\"__metadata__\":{\"a\":\"b\"},", "\"__metadata__\":{\"a\":1},", "\"__metadata__\":null,"
};

static const uint64_t lengths[] = { 0, 1, 2, 7, 100000000, 100000001, UINT64_C(1) << 32, UINT64_MAX, INT64_MAX };

#define ANY(list) (list)[below(sizeof (list) / sizeof *(list))]

static void
mutate_number(struct file *f, bool kept)
{
    size_t at = in_header(f), n = 0;
    const char *to = ANY(numbers);

    while (at < f->n && (f->bytes[at] < '0' || f->bytes[at] > '9'))
        at++;
    while (at + n < f->n && f->bytes[at + n] >= '0' && f->bytes[at + n] <= '9')
        n++;
    if (n)
        replace(f, at, n, to, strlen(to), kept);
}

/* The word in quotes that begins next. */
static void
mutate_word(struct file *f, const char *to, bool kept)
{
    size_t at = in_header(f), n = 0;

    while (at < f->n && f->bytes[at] != '"')
        at++;
    at++;
    while (at + n < f->n && f->bytes[at + n] != '"')
        n++;
    if (at + n < f->n)
        replace(f, at, n, to, strlen(to), kept);
}

static void
mutate_dtype(struct file *f, bool kept)
{
    static const char key[] = "\"dtype\":\"";
    size_t at = in_header(f), n = 0;
    const char *to = ANY(dtypes);

    while (at + sizeof key < f->n && memcmp(f->bytes + at, key, sizeof key - 1) != 0)
        at++;
    at += sizeof key - 1;
    while (at + n < f->n && f->bytes[at + n] != '"')
        n++;
    if (at + n < f->n)
        replace(f, at, n, to, strlen(to), kept);
}

static void
mutate(struct file *f)
{
    unsigned char copy[64], zeros[64] = { 0 };
    bool kept = below(8) == 0;          /* the header's length does not follow */
    size_t at, n;
    const char *to;

    switch (below(13)) {
    case 0:
        if (f->n)
            f->bytes[below(f->n)] ^= (unsigned char)(1 << below(8));
        break;
    case 1:
        if (f->n)
            f->bytes[below(f->n)] = (unsigned char)next();
        break;
    case 2: case 3: case 4:
        mutate_number(f, kept);
        break;
    case 5: case 6:
        mutate_dtype(f, kept);
        break;
    case 7:
        mutate_word(f, ANY(texts), kept);
        break;
    case 8:
        to = ANY(texts);
        replace(f, in_header(f), 0, to, strlen(to), kept);
        break;
    case 9:                             /* some of the header once more, elsewhere */
        at = in_header(f);
        n = below(64);
        if (f->n - at < n)
            n = f->n - at;
        memcpy(copy, f->bytes + at, n);
        replace(f, in_header(f), 0, copy, n, kept);
        break;
    case 10:
        replace(f, in_header(f), below(12), "", 0, kept);
        break;
    case 11:                            /* data too few, too many */
        if (below(2))
            f->n -= below(f->n < 16 ? f->n + 1 : 16);
        else
            replace(f, f->n, 0, zeros, below(16), true);
        break;
    default:
        set_length(f, below(2) ? length_of(f) + below(9) - 4 : ANY(lengths));
    }
}

static void
mutant(uint64_t number, struct file *f)
{
    size_t which;

    state = number * 0x2545f4914f6cdd1d + 1;
    which = below(SOUND);
    f->n = HEAD + strlen(sound[which].header) + sound[which].data;
    memset(f->bytes, 0, f->n);
    memcpy(f->bytes + HEAD, sound[which].header, strlen(sound[which].header));
    set_length(f, strlen(sound[which].header));
    for (size_t times = 1 + below(3) * below(2); times; times--)
        mutate(f);
}

/* ---- verdicts ---------------------------------------------------------------------------------------------------- */

static int
dump(uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        struct file f;
        uint64_t n;

        mutant(i, &f);
        n = f.n;
        fwrite(&n, 1, sizeof n, stdout);
        fwrite(f.bytes, 1, f.n, stdout);
    }
    return fclose(stdout) ? 1 : 0;
}

/* What the reference takes and we refuse: of two tensors of one name it sees the last alone. */
static bool
name_twice(const struct file *f)
{
    const unsigned char *at[64];
    size_t count = 0;

    for (size_t i = HEAD + 3; i < f->n && count < 64; i++)
        if (memcmp(f->bytes + i - 2, "\":{", 3) == 0) {
            size_t n = 1;

            while (n < i - 2 && f->bytes[i - 2 - n] != '"')
                n++;
            at[count] = f->bytes + i - 2 - n;
            for (size_t k = 0; k < count; k++)
                if (memcmp(at[k], at[count], n + 2) == 0)
                    return true;
            count++;
        }
    return false;
}

static void
check(uint64_t count, const unsigned char *verdicts)
{
    uint64_t taken = 0, refused = 0, stricter = 0, wrong = 0;
    int fd = memfd_create("mutant", 0);
    char path[64];

    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    for (uint64_t i = 0; i < count; i++) {
        struct sd_scope *s = sd_scope_open();
        bool theirs = verdicts[i / 8] >> i % 8 & 1, ours;
        struct file f;

        mutant(i, &f);
        if (ftruncate(fd, 0) || pwrite(fd, f.bytes, f.n, 0) != (ssize_t)f.n)
            exit(99);
        ours = sd_safetensors_open(s, path) != NULL;
        if (ours == theirs)
            ++*(ours ? &taken : &refused);
        else if (theirs && name_twice(&f))
            stricter++;
        else if (wrong++ < 5)
            printf("# mutant %" PRIu64 ": the reference %s it; we: %s\n# %.*s\n", i, theirs ? "takes" : "refuses",
                   ours ? "taken" : sd_reason(), f.n > HEAD ? (int)f.n - HEAD : 0, (char *)f.bytes + HEAD);
        sd_scope_close(s);
    }
    close(fd);
    CHECK(!wrong && taken > count / 20 && refused > count / 4,
          "%" PRIu64 " mutants: %" PRIu64 " taken, %" PRIu64 " refused as by the reference, %" PRIu64
          " refused beyond it, %" PRIu64 " wrong", count, taken, refused, stricter, wrong);
}

int
main(int argc, char **argv)
{
    static unsigned char verdicts[MUTANTS / 8];
    uint64_t count = argc > 1 ? strtoull(argv[argc - 1], NULL, 10) : MUTANTS;
    FILE *f;

    if (argc > 2 && strcmp(argv[1], "--dump") == 0)
        return dump(count);
    f = fopen("tests/data/safetensors/mutants.verdicts", "rb");
    if (CHECK(f && fread(verdicts, 1, sizeof verdicts, f) == sizeof verdicts && count <= MUTANTS, "verdicts are there"))
        check(count, verdicts);
    if (f)
        fclose(f);
    return check_done();
}
