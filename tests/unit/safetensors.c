/* safetensors: files of the reference library, everything a hostile file tries, the writer, number conversion. */
#include "../check.h"
#include "../child.h"
#include "hash.h"
#include "safetensors.h"

#include <inttypes.h>
#include <math.h>
#include <sys/resource.h>

static char data_folder[3000];

static const char *
data(const char *name)
{
    static char path[4096];

    snprintf(path, sizeof path, "%s/%s", data_folder, name);
    return path;
}

static void
put_file(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");

    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f))
        exit(99);
}

/* A file of this header and so many zero bytes of data. */
static void
put_safetensors(const char *path, const char *header, size_t length, size_t zeros)
{
    unsigned char *file = calloc(1, 8 + length + zeros + 1);

    for (int i = 0; i < 8; i++)
        file[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memcpy(file + 8, header, length);
    put_file(path, file, 8 + length + zeros);
    free(file);
}

/* ---- the reference library's files -------------------------------------------------------------------------- */

/* What tests/reference/container.py puts into "real" tensors. */
static bool
is_ramp(const struct sd_safetensors *f, const char *name, enum sd_dtype dtype, size_t n)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensor *t = sd_safetensors_find(f, name);
    const float *x = t ? sd_safetensor_f32(s, t) : NULL;
    bool ok = t && t->dtype == dtype && t->numel == n && x;

    for (size_t i = 0; ok && i < n; i++)
        ok = x[i] == (float)((int)i - (int)(n / 2)) * 0.375f;
    sd_scope_close(s);
    return ok;
}

static void
from_python(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *f = sd_safetensors_open(s, data("python.safetensors"));
    struct sd_safetensor *t;
    int64_t wide[4];
    size_t bytes;

    if (!CHECK(f, "the library's file opens: %s", sd_reason()))
        return;
    CHECK(sd_safetensors_count(f) == 9, "%zu tensors, 9 expected", sd_safetensors_count(f));
    CHECK(is_ramp(f, "f32", SD_F32, 6) && is_ramp(f, "f64", SD_F64, 5) && is_ramp(f, "f16", SD_F16, 9)
          && is_ramp(f, "bf16", SD_BF16, 7), "F32, F64, F16, BF16 values");
    CHECK(is_ramp(f, "scalar", SD_F32, 1) && is_ramp(f, "empty", SD_F32, 0)
          && is_ramp(f, "name with \"quotes\", \u00e9 and \U0001f600", SD_F32, 1), "rank 0, empty, odd name");
    t = sd_safetensors_find(f, "i64");
    memcpy(wide, t->data, sizeof wide);
    CHECK(t->bytes == 32 && wide[0] == -7 && wide[3] == 2, "I64");
    t = sd_safetensors_get(f, "f32", 2, (int64_t[]){ 2, 3 });
    CHECK(t != NULL, "get with the right shape");
    t = sd_safetensors_get(f, "f32", 2, (int64_t[]){ 3, 2 });
    CHECK(!t && !strcmp(sd_reason(), "f32: shape [2, 3], expected [3, 2]"), "a wrong shape: %s", sd_reason());
    CHECK(!sd_safetensors_find(f, "f3") && !sd_safetensors_find(f, ""), "absent names");
    CHECK(!strcmp(sd_safetensors_metadata(f, "note"), "caf\u00e9 \"quoted\" \n") && !sd_safetensors_metadata(f, "x"),
          "metadata");
    CHECK(sd_safetensors_region(f, &bytes) && bytes == 24 + 40 + 18 + 14 + 32 + 5 + 4 + 4, "the data region");
    sd_scope_close(s);
}

static void
shards(void)
{
    static const struct { const char *what, *index, *reason;
    } bad[] = {
        { "no weight_map", "{}", "weight_map: expected an object, found nothing" },
        { "a path upwards", "{\"weight_map\":{\"a\":\"../x\"}}",
          "weight_map: a: expected the plain name of a file, found ../x" },
        { "a path", "{\"weight_map\":{\"a\":\"x/y\"}}", "weight_map: a: expected the plain name of a file, found x/y" },
        { "an absolute path", "{\"weight_map\":{\"a\":\"/x\"}}",
          "weight_map: a: expected the plain name of a file, found /x" },
        { "a backslash", "{\"weight_map\":{\"a\":\"x\\\\y\"}}",
          "weight_map: a: expected the plain name of a file, found x\\y" },
        { "not a string", "{\"weight_map\":{\"a\":1}}",
          "weight_map: a: expected the plain name of a file, found an integer" },
        { "an absent file", "{\"weight_map\":{\"a\":\"none\"}}", "none: No such file or directory" },
        { "a tensor too few", "{\"weight_map\":{\"a\":\"one\"}}", "one: holds b, which the index puts nowhere" },
        { "a tensor elsewhere", "{\"weight_map\":{\"a\":\"one\",\"b\":\"two\"}}",
          "one: holds b, which the index puts into two" },
        { "a tensor too many", "{\"weight_map\":{\"a\":\"one\",\"b\":\"one\",\"c\":\"one\"}}",
          "one: has no c, which the index puts there" },
    };
    static const char one[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"b\":{\"dtype\":\"U8\","
                              "\"shape\":[1],\"data_offsets\":[1,2]}}";
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *f = sd_safetensors_open(s, data("model.safetensors.index.json"));
    const struct sd_safetensor *c = f ? sd_safetensors_find(f, "c") : NULL;

    CHECK(c && sd_safetensors_count(f) == 3 && ((const float *)c->data)[3] == 7, "two shards by their index: %s",
          sd_reason());
    put_safetensors("one", one, sizeof one - 1, 2);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put_file("index.json", bad[i].index, strlen(bad[i].index));
        f = sd_safetensors_open(s, "index.json");
        CHECK(!f && !strcmp(sd_reason(), bad[i].reason), "index, %s: %s", bad[i].what, f ? "taken" : sd_reason());
    }
    sd_scope_close(s);
}

/* ---- hostile files ------------------------------------------------------------------------------------------ */

#define U8(n, b, e) "{\"dtype\":\"U8\",\"shape\":[" n "],\"data_offsets\":[" b "," e "]}"
static const struct { const char *what, *header; size_t zeros; const char *reason;
} headers[] = {
    /* what the reference takes */
    { "no tensors", "{}", 0, NULL },
    { "spaces around",
      " \t\n{ \"a\" : { \"dtype\" : \"U8\" , \"shape\" : [ 1 ] , \"data_offsets\" : [ 0 , 1 ] } } \r\n", 1, NULL },
    { "metadata null", "{\"__metadata__\":null}", 0, NULL },
    { "metadata empty", "{\"__metadata__\":{}}", 0, NULL },
    { "a metadata key twice", "{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, NULL },
    { "an unknown member",
      "{\"a\":{\"x\":[1.5e3,{\"y\":null},-0,\"\\u0041\",true],\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
      1, NULL },
    { "a zero beside 2^63", "{\"a\":" U8("0,9223372036854775808,4", "0", "0") "}", 0, NULL },
    { "F4, two to a byte", "{\"a\":{\"dtype\":\"F4\",\"shape\":[3,2],\"data_offsets\":[0,3]}}", 3, NULL },
    { "header order is not data order", "{\"b\":" U8("1", "1", "2") ",\"a\":" U8("1", "0", "1") "}", 2, NULL },
    { "a name with a NUL and a surrogate pair", "{\"a\\u0000\\ud83d\\ude00\":" U8("1", "0", "1") "}", 1, NULL },
    { "an empty name, a name that is a path", "{\"\":" U8("1", "0", "1") ",\"../../x\":" U8("1", "1", "2") "}", 2,
      NULL },
    /* what it refuses, and duplicates */
    { "2^63 before the zero", "{\"a\":" U8("9223372036854775808,4,0", "0", "0") "}", 0, "a: its shape overflows" },
    { "2 x (2^64 - 2)", "{\"a\":" U8("2,18446744073709551614", "0", "4") "}", 4, "a: its shape overflows" },
    { "2^62 numbers of 8 bytes", "{\"a\":{\"dtype\":\"F64\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}",
      0, "a: its shape overflows" },
    { "F4, half a byte", "{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2,
      "a: its elements do not fill whole bytes" },
    { "bytes and shape differ", "{\"a\":" U8("2", "0", "3") "}", 3, "a: 3 bytes of data, its shape and dtype need 2" },
    { "end before begin", "{\"a\":" U8("1", "0", "1") ",\"b\":" U8("1", "1", "0") "}", 1,
      "b: data_offsets [1, 0], expected to begin at 1" },
    { "first not at 0", "{\"a\":" U8("1", "1", "2") "}", 2, "a: data_offsets [1, 2], expected to begin at 0" },
    { "a hole", "{\"a\":" U8("1", "0", "1") ",\"b\":" U8("1", "2", "3") "}", 3,
      "b: data_offsets [2, 3], expected to begin at 1" },
    { "overlap", "{\"a\":" U8("2", "0", "2") ",\"b\":" U8("2", "1", "3") "}", 3,
      "b: data_offsets [1, 3], expected to begin at 2" },
    { "one range for two", "{\"a\":" U8("2", "0", "2") ",\"b\":" U8("2", "0", "2") "}", 2,
      "b: data_offsets [0, 2], expected to begin at 2" },
    { "begin 2^64 - 1", "{\"a\":" U8("0", "18446744073709551615", "18446744073709551615") "}", 0,
      "a: data_offsets [18446744073709551615, 18446744073709551615], expected to begin at 0" },
    { "data cut short", "{\"a\":" U8("4", "0", "4") "}", 3,
      "the tensors end at byte 4 of 3 in the data region (cut short?)" },
    { "bytes behind", "{\"a\":" U8("4", "0", "4") "}", 5,
      "the tensors end at byte 4 of 5 in the data region (something follows)" },
    { "no tensors, but data", "{}", 1, "the tensors end at byte 0 of 1 in the data region (something follows)" },
    { "a name twice", "{\"a\":" U8("0", "0", "0") ",\"a\":" U8("0", "0", "0") "}", 0, "a: this name twice" },
    { "metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, "header, byte 34: __metadata__ twice" },
    { "a number in metadata", "{\"__metadata__\":{\"a\":1}}", 0, "header, byte 21: expected a string, found \"1\"" },
    { "metadata no object", "{\"__metadata__\":[]}", 0,
      "header, byte 16: expected __metadata__: an object, found \"[\"" },
    { "1.0", "{\"a\":" U8("1.0", "0", "1") "}", 1, "header, byte 28: expected a non-negative integer, found \"1\"" },
    { "1e0", "{\"a\":" U8("1e0", "0", "1") "}", 1, "header, byte 28: expected a non-negative integer, found \"1\"" },
    { "-1", "{\"a\":" U8("-1", "0", "1") "}", 1, "header, byte 28: expected a non-negative integer, found \"-\"" },
    { "01", "{\"a\":" U8("01", "0", "1") "}", 1, "header, byte 28: expected a non-negative integer, found \"0\"" },
    { "2^64", "{\"a\":" U8("18446744073709551616", "0", "1") "}", 1,
      "header, byte 28: an integer of more than 64 bits" },
    { "three offsets", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", 1,
      "header, byte 50: expected \"]\" after two offsets, found \",\"" },
    { "one offset", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1,
      "header, byte 48: expected a second offset, found \"]\"" },
    { "unknown dtype", "{\"a\":{\"dtype\":\"f32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4,
      "header, byte 19: unknown dtype f32" },
    { "a member twice", "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
      "header, byte 26: dtype twice" },
    { "a member missing", "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1,
      "header, byte 40: a tensor without shape" },
    { "a tensor as an array", "{\"a\":[\"U8\",[1],[0,1]]}", 1,
      "header, byte 5: expected a tensor: an object, found \"[\"" },
    { "an array", "[]", 0, "header, byte 0: expected \"{\", found \"[\"" },
    { "nothing but spaces", "   ", 0, "header, byte 3: expected \"{\", found its end" },
    { "something behind", "{}x", 0, "header, byte 2: expected nothing after the object, found \"x\"" },
    { "cut in the middle", "{\"a\":{\"dtype\":", 0, "header, byte 14: expected a string, found its end" },
    { "a comma too many", "{\"a\":" U8("1", "0", "1") ",}", 1, "header, byte 53: expected a string, found \"}\"" },
    { "half a surrogate", "{\"a\\ud83d\":" U8("1", "0", "1") "}", 1,
      "header, byte 9: expected the second half of a surrogate, found \"\"\"" },
    { "the other half", "{\"a\\ude00\":" U8("1", "0", "1") "}", 1,
      "header, byte 9: expected no surrogate without its first half, found \"\"\"" },
    { "invalid UTF-8", "{\"a\xc3(\":" U8("1", "0", "1") "}", 1, "header: not valid UTF-8" },
    { "a surrogate in UTF-8", "{\"a\xed\xa0\x80\":" U8("1", "0", "1") "}", 1, "header: not valid UTF-8" },
    { "a raw control character", "{\"a\n\":" U8("1", "0", "1") "}", 1,
      "header, byte 3: expected the end of a string, found \"\n\"" },
    { "an unknown escape", "{\"a\\x\":" U8("1", "0", "1") "}", 1, "header, byte 4: expected an escape, found \"x\"" },
    { "a bad number in an unknown member", "{\"a\":{\"x\":1.,\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
      1, "header, byte 12: expected a digit, found \",\"" },
};

static void
hostile(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *f;
    struct rusage before, after;
    static char deep[400];
    size_t n;

    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        put_safetensors("h", headers[i].header, strlen(headers[i].header), headers[i].zeros);
        f = sd_safetensors_open(s, "h");
        if (headers[i].reason)
            CHECK(!f && !strcmp(sd_reason(), headers[i].reason), "%s: %s", headers[i].what,
                  f ? "taken" : child_flat(sd_reason()));
        else
            CHECK(f, "%s is taken%s%s", headers[i].what, f ? "" : ": ", f ? "" : sd_reason());
    }
    put_file("h", "\x08\0\0\0\0\0\0\0{}      ", 16);
    CHECK((f = sd_safetensors_open(s, "h")) && sd_safetensors_count(f) == 0, "the empty file of the text");
    put_safetensors("h", "{\"a\\u0000b\":" U8("1", "0", "1") "}", strlen("{\"a\\u0000b\":" U8("1", "0", "1") "}"), 1);
    f = sd_safetensors_open(s, "h");
    CHECK(f && sd_safetensors_at(f, 0)->name_length == 3 && !sd_safetensors_find(f, "a"), "a NUL does not end a name");
    {
        static const char escaped[] = "{\"\\u0041\\u00e9\\u20ac\\ud83d\\ude00\\n\\/\":" U8("1", "0", "1") "}";

        put_safetensors("h", escaped, sizeof escaped - 1, 1);
        f = sd_safetensors_open(s, "h");
        CHECK(f && sd_safetensors_find(f, "A\u00e9\u20ac\U0001f600\n/"), "escapes of one to four bytes are decoded");
    }
    for (int depth = 126; depth <= 130; depth += 4) {
        n = (size_t)sprintf(deep, "{\"a\":{\"x\":");
        memset(deep + n, '[', (size_t)depth - 2);
        n += (size_t)depth - 2;
        memset(deep + n, ']', (size_t)depth - 2);
        n += (size_t)depth - 2;
        n += (size_t)sprintf(deep + n, ",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}");
        put_safetensors("h", deep, n, 1);
        f = sd_safetensors_open(s, "h");
        CHECK(depth < 128 ? f != NULL : !f && strstr(sd_reason(), "nested more than 127 deep"), "nested %d deep",
              depth);
    }

    put_file("h", "\x02\0\0\0\0\0\0", 7);
    CHECK(!sd_safetensors_open(s, "h") && !strcmp(sd_reason(), "7 bytes are no safetensors file"), "7 bytes: %s",
          sd_reason());
    put_file("h", "", 0);
    CHECK(!sd_safetensors_open(s, "h") && !strcmp(sd_reason(), "an empty file"), "0 bytes: %s", sd_reason());
    put_file("h", "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    CHECK(!sd_safetensors_open(s, "h")
              && strstr(sd_reason(), "a header of 18446744073709551615 bytes, at most 100000000"),
          "N = 2^64 - 1: %s", sd_reason());
    put_file("h", "\x01\xe1\xf5\x05\0\0\0\0{}", 10);
    CHECK(!sd_safetensors_open(s, "h") && strstr(sd_reason(), "at most 100000000"), "N = 100000001: %s", sd_reason());
    getrusage(RUSAGE_SELF, &before);
    put_file("h", "\x00\xe1\xf5\x05\0\0\0\0{}", 10);
    CHECK(!sd_safetensors_open(s, "h")
              && !strcmp(sd_reason(), "cut short: a header of 100000000 bytes in a file of 10"),
          "N = 100000000: %s", sd_reason());
    getrusage(RUSAGE_SELF, &after);
    CHECK(after.ru_maxrss - before.ru_maxrss < 4096, "and costs %ld KiB", after.ru_maxrss - before.ru_maxrss);
    CHECK(!sd_safetensors_open(s, ".") && !strcmp(sd_reason(), "is a folder"), "a folder: %s", sd_reason());
    CHECK(!sd_safetensors_open(s, "none") && !strcmp(sd_reason(), "No such file or directory"), "absent: %s",
          sd_reason());

    put_safetensors("h", "{\"a\":" U8("4096", "0", "4096") "}", strlen("{\"a\":" U8("4096", "0", "4096") "}"), 4096);
    f = sd_safetensors_open(s, "h");
    CHECK(f && sd_safetensors_unchanged(f) == 0, "not changed");
    if (truncate("h", 100))
        exit(99);
    CHECK(sd_safetensors_unchanged(f) == -1 && !strcmp(sd_reason(), "h: changed while it was in use"),
          "cut short while mapped: %s", sd_reason());
    sd_scope_close(s);
}

/* Touches data of a file that was cut short after it was mapped. */
static int
touch_what_is_gone(void *argument)
{
    struct sd_safetensors *f;

    (void)argument;
    sd_catch_signals();
    put_safetensors("h", "{\"a\":" U8("40960", "0", "40960") "}", strlen("{\"a\":" U8("40960", "0", "40960") "}"),
                    40960);
    if (!(f = sd_safetensors_open(NULL, "h")) || truncate("h", 100))
        return 90;
    return 80 + ((const unsigned char *)sd_safetensors_at(f, 0)->data)[40000];
}

/* ---- the writer --------------------------------------------------------------------------------------------- */

static int
piecewise(void *user, void *buffer, size_t offset, size_t bytes)
{
    memcpy(buffer, (const char *)user + offset, bytes);
    return 0;
}

static int
failing(void *user, void *buffer, size_t offset, size_t bytes)
{
    (void)user;
    memset(buffer, 0, bytes);
    return offset ? sd_fail("no more data") : 0;
}

static void
writer(void)
{
    static float ramp[9][9];
    static const size_t sizes[] = { 6, 5, 9, 7, 1, 1 };
    static const int64_t whole[4] = { -7, -4, -1, 2 };
    static const unsigned char bytes[5] = { 249, 252, 255, 2, 5 };
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);
    struct sd_safetensors *f;
    char file_hash[65], python_hash[65], planned[33], found[33];
    const void *region;
    size_t n;

    for (int i = 0; i < 6; i++)
        for (size_t j = 0; j < sizes[i]; j++)
            ramp[i][j] = (float)((int)j - (int)(sizes[i] / 2)) * 0.375f;
    sd_safetensors_set_metadata(w, "note", "caf\u00e9 \"quoted\" \n");
    sd_safetensors_add(w, "u8", SD_U8, 1, (int64_t[]){ 5 }, bytes);
    sd_safetensors_add_f32(w, "bf16", SD_BF16, 1, (int64_t[]){ 7 }, ramp[3]);
    sd_safetensors_add_f32(w, "f16", SD_F16, 2, (int64_t[]){ 3, 3 }, ramp[2]);
    sd_safetensors_add_f32(w, "f64", SD_F64, 1, (int64_t[]){ 5 }, ramp[1]);
    sd_safetensors_add(w, "f32", SD_F32, 2, (int64_t[]){ 2, 3 }, ramp[0]);
    sd_safetensors_add(w, "scalar", SD_F32, 0, NULL, ramp[4]);
    sd_safetensors_add_f32(w, "empty", SD_F32, 2, (int64_t[]){ 0, 4 }, ramp[4]);
    sd_safetensors_add(w, "name with \"quotes\", \u00e9 and \U0001f600", SD_F32, 1, (int64_t[]){ 1 }, ramp[5]);
    sd_safetensors_add_from(w, "i64", SD_I64, 2, (int64_t[]){ 2, 2 }, piecewise, (void *)whole);
    CHECK(sd_safetensors_data_hash(w, planned) == 0 && sd_safetensors_save(w, "ours.safetensors") == 0, "saved: %s",
          sd_reason());
    CHECK(access("ours.safetensors.part", F_OK) != 0, "no part is left");
    f = sd_safetensors_open(s, "ours.safetensors");
    if (!CHECK(f, "opens: %s", sd_reason()))
        return;
    CHECK(sd_safetensors_count(f) == 9 && is_ramp(f, "f32", SD_F32, 6) && is_ramp(f, "f16", SD_F16, 9)
              && is_ramp(f, "bf16", SD_BF16, 7) && is_ramp(f, "f64", SD_F64, 5),
          "values come back");
    region = sd_safetensors_region(f, &n);
    sd_xxh128_of(region, n, found);
    CHECK(!strcmp(planned, found), "the hash foretold is the hash of the region");
    for (size_t i = 0; i < sd_safetensors_count(f); i++)
        if (!sd_safetensor_aligned(sd_safetensors_at(f, i)))
            CHECK(false, "%s is not aligned", sd_safetensors_at(f, i)->name);
    sd_hash_file("ours.safetensors", file_hash);
    sd_hash_file(data("python.safetensors"), python_hash);
    CHECK(!strcmp(file_hash, python_hash), "byte for byte what the Python library writes");
    if (getenv("SD_KEEP")) {
        char command[4200];

        snprintf(command, sizeof command, "cp ours.safetensors '%s'", getenv("SD_KEEP"));
        CHECK(system(command) == 0, "kept as %s", getenv("SD_KEEP"));
    }

    {   /* more than one piece, more than one thread's share; header lengths of every remainder */
        const size_t many = 700001;
        float *values = sd_alloc_array(s, many, sizeof *values);
        int wrong = 0, unpadded = 0;

        for (size_t i = 0; i < many; i++)
            values[i] = (float)(i % 2039) * 0.5f;
        w = sd_safetensors_writer_new(s);
        sd_safetensors_add_f32(w, "half", SD_F16, 1, (int64_t[]){ 700001 }, values);
        sd_safetensors_add(w, "whole", SD_F32, 1, (int64_t[]){ 700001 }, values);
        sd_safetensors_add_from(w, "read", SD_F32, 1, (int64_t[]){ 700001 }, piecewise, values);
        f = sd_safetensors_save(w, "large") ? NULL : sd_safetensors_open(s, "large");
        for (int t = 0; f && t < 3; t++) {
            const float *x =
                sd_safetensor_f32(s, sd_safetensors_find(f, (const char *[]){ "half", "whole", "read" }[t]));

            for (size_t i = 0; i < many; i++)
                wrong += x[i] != values[i];
        }
        CHECK(f && wrong == 0, "2.1 million numbers in pieces: %d wrong", wrong);
        for (int i = 1; i < 10; i++) {
            unsigned char start[8];
            FILE *in;

            w = sd_safetensors_writer_new(s);
            sd_safetensors_add(w, &"123456789"[9 - i], SD_U8, 1, (int64_t[]){ 1 }, bytes);
            sd_safetensors_save(w, "padded");
            in = fopen("padded", "rb");
            unpadded += fread(start, 1, 8, in) != 8 || start[0] % 8;
            fclose(in);
        }
        CHECK(unpadded == 0, "headers are padded to 8: %d are not", unpadded);
    }

    w = sd_safetensors_writer_new(s);
    sd_safetensors_add(w, "a", SD_U8, 1, (int64_t[]){ 1 }, bytes);
    sd_safetensors_add(w, "a", SD_F32, 1, (int64_t[]){ 1 }, ramp);
    CHECK(sd_safetensors_save(w, "twice") == -1 && strstr(sd_reason(), "a: this name twice") && access("twice", F_OK)
          && access("twice.part", F_OK), "a name twice: %s", sd_reason());
    w = sd_safetensors_writer_new(s);
    sd_safetensors_add_from(w, "a", SD_U8, 1, (int64_t[]){ 3 << 20 }, failing, NULL);
    CHECK(sd_safetensors_save(w, "failed") == -1 && !strcmp(sd_reason(), "a: no more data") && access("failed", F_OK)
          && access("failed.part", F_OK), "data that fail: %s", sd_reason());
    w = sd_safetensors_writer_new(s);
    sd_safetensors_add_from(w, "a", SD_U8, 1, (int64_t[]){ 3 << 20 }, piecewise, sd_alloc(s, 3 << 20));
    CHECK(sd_safetensors_save(w, "/dev/full") == -1 && strstr(sd_reason(), "No space left on device"),
          "a full disk: %s", sd_reason());
    CHECK(sd_safetensors_save(w, "none/x") == -1 && strstr(sd_reason(), "No such file"), "no folder: %s", sd_reason());
    sd_scope_close(s);
}

/* ---- numbers ------------------------------------------------------------------------------------------------ */

static double
f16_by_definition(unsigned h)
{
    int exponent = h >> 10 & 31, fraction = h & 1023;
    double x = exponent == 31 ? (fraction ? (double)NAN : (double)INFINITY)
               : exponent     ? ldexp(1024 + fraction, exponent - 25)
                              : ldexp(fraction, -24);

    return h & 0x8000 ? -x : x;
}

static void
numbers(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *f = sd_safetensors_open(s, data("numbers.safetensors"));
    uint16_t *all = sd_alloc_array(s, 65536, 2), *back = sd_alloc_array(s, 65536, 2),
             *there = sd_alloc_array(s, 65536, 2);
    float *x = sd_alloc_array(s, 65536, 4);
    int wrong = 0, wrong_back = 0, wrong_bf = 0, wrong_bf_back = 0, ties = 0;

    for (unsigned i = 0; i < 65536; i++)
        all[i] = (uint16_t)i;
    sd_to_f32(x, all, SD_F16, 65536);
    sd_from_f32(back, SD_F16, x, 65536);
    for (unsigned i = 0; i < 65536; i++) {
        double want = f16_by_definition(i);

        wrong += isnan(want) ? !isnan(x[i]) : !((double)x[i] == want && !signbit(x[i]) == !signbit(want));
        wrong_back += isnan(want) ? (back[i] & 0x7fff) <= 0x7c00 : back[i] != i;
    }
    CHECK(wrong == 0, "every F16 becomes the float it is: %d wrong", wrong);
    CHECK(wrong_back == 0, "and comes back: %d wrong", wrong_back);
    sd_to_f32(x, all, SD_BF16, 65536);
    sd_from_f32(back, SD_BF16, x, 65536);
    for (unsigned i = 0; i < 65536; i++) {
        uint32_t bits = i << 16;
        float want;

        memcpy(&want, &bits, 4);
        wrong_bf += isnan(want) ? !isnan(x[i]) : memcmp(&x[i], &want, 4) != 0;
        wrong_bf_back += isnan(want) ? (back[i] & 0x7fff) <= 0x7f80 : back[i] != i;
    }
    CHECK(wrong_bf == 0 && wrong_bf_back == 0, "every BF16: %d wrong, back %d wrong", wrong_bf, wrong_bf_back);
    /* half way between two F16 neighbours, and a float to either side */
    for (unsigned i = 0; i < 0x7bff; i++) {
        double middle = (f16_by_definition(i) + f16_by_definition(i + 1)) / 2;

        float three[3] = { nextafterf((float)middle, 0), (float)middle, nextafterf((float)middle, INFINITY) };
        uint16_t h[3];

        sd_from_f32(h, SD_F16, three, 3);
        ties += h[0] != i || h[1] != i + (i & 1) || h[2] != i + 1;
    }
    CHECK(ties == 0, "ties go to the even F16, the rest to the nearest: %d wrong", ties);
    sd_to_f32(x, all, SD_F16, 65536);
    memcpy((char *)there + 1, all, 65535 * 2);
    sd_to_f32(x, (char *)there + 1, SD_F16, 65535);
    CHECK(x[15360] == 1.0f, "unaligned input");

    if (!CHECK(f, "the library's numbers: %s", sd_reason()))
        return;
    {
        const struct sd_safetensor *in = sd_safetensors_find(f, "x"), *f16 = sd_safetensors_find(f, "x_f16"),
                                   *bf16 = sd_safetensors_find(f, "x_bf16");
        const struct sd_safetensor *table = sd_safetensors_find(f, "f16_as_f32");
        const float *v = sd_safetensor_f32(s, in), *t = sd_safetensor_f32(s, table);
        const uint16_t *h = f16->data, *b = bf16->data;
        int bad = 0, bad_table = 0;

        sd_from_f32(back, SD_F16, v, in->numel);
        sd_from_f32(there, SD_BF16, v, in->numel);
        for (size_t i = 0; i < in->numel; i++)
            if (!isnan(v[i]))
                bad += back[i] != h[i] || there[i] != b[i];
        sd_to_f32(x, all, SD_F16, 65536);
        for (size_t i = 0; i < table->numel; i++)
            bad_table += isnan(t[i]) ? !isnan(x[7 * i]) : t[i] != x[7 * i];
        CHECK(bad == 0 && in->numel == 25, "rounded as torch rounds: %d of %zu differ", bad, in->numel);
        CHECK(bad_table == 0, "F16 read as torch reads: %d of %zu differ", bad_table, table->numel);
    }
    {
        double wide[] = { 1e300, 0.1, -1e-50, 1 + 0x1p-24, 1 + 0x3p-24 };
        float narrow[5];

        sd_to_f32(narrow, wide, SD_F64, 5);
        CHECK(isinf(narrow[0]) && narrow[1] == 0.1f && narrow[2] == 0 && signbit(narrow[2]) && narrow[3] == 1
                  && narrow[4] == 1 + 0x1p-22f,
              "F64 to float");
        CHECK(sd_to_f32(narrow, wide, SD_I64, 1) == -1
                  && !strcmp(sd_reason(), "dtype I64, expected F64, F32, F16 or BF16"),
              "I64 is refused: %s", sd_reason());
    }
    sd_scope_close(s);
}

int
main(void)
{
    struct child *c;

    if (!getcwd(data_folder, sizeof data_folder - 64))
        return 99;
    strcat(data_folder, "/tests/data/safetensors");
    child_enter();
    from_python();
    shards();
    hostile();
    c = child_run(touch_what_is_gone, NULL, "", 0);
    CHECK(c->status == 3 && !strcmp(c->err, "sd: a mapped file was cut short\n"), "touching what is gone: %d %s",
          c->status, child_flat(c->err));
    writer();
    numbers();
    child_leave();
    return check_done();
}
