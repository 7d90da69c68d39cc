/* JSON: what is refused, getters that name the key, Python's infinities, dumping. */
#include "../check.h"
#include "json.h"

#include <string.h>
#include <unistd.h>

static json_t *
parse(struct sd_scope *s, const char *text, unsigned flags)
{
    return sd_json_parse(s, text, strlen(text), flags);
}

static void
refusals(struct sd_scope *s)
{
    static const struct { const char *what, *text, *reason; } bad[] = {
        { "a key twice", "{\"a\":1,\"a\":2}", "line 1: duplicate object key" },
        { "something behind", "{} x", "line 1: end of file expected" },
        { "a leading zero", "{\"a\":01}", "line 1: " },
        { "a comma too many", "[1,]", "line 1: " },
        { "NaN", "{\"a\":NaN}", "line 1: invalid token" },
        { "1e400", "{\"a\":1e400}", "line 1: real number overflow" },
        { "2^64 - 1", "{\"a\":18446744073709551615}", "line 1: too big integer" },
        { "a zero in a text", "{\"a\":\"\\u0000\"}", "line 1: " },
        { "the other half", "{\"a\":\"\\udc00\"}", "line 1: " },
        { "a plus", "{\"a\":+1}", "line 1: " },
        { "a comment", "{/* */}", "line 1: " },
        { "2^64", "{\"a\":18446744073709551616}", "line 1: too big integer" },
        { "invalid UTF-8", "{\"a\":\"\xc3(\"}", "line 1: unable to decode byte" },
        { "half a surrogate", "{\"a\":\"\\ud800\"}", "line 1: " },
        { "an empty file", "", "line 1: '[' or '{' expected" },
        { "cut on line 2", "{\n\"a\":", "line 2: " },
    };
    char deep[200];
    json_t *j;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        j = parse(s, bad[i].text, 0);
        CHECK(!j && !strncmp(sd_reason(), bad[i].reason, strlen(bad[i].reason)), "%s: %s", bad[i].what,
              j ? "taken" : sd_reason());
    }
    for (int n = 64; n <= 65; n++) {
        memset(deep, '[', (size_t)n);
        memset(deep + n, ']', (size_t)n);
        deep[2 * n] = '\0';
        j = parse(s, deep, 0);
        CHECK(n == 64 ? j != NULL : !j && !strcmp(sd_reason(), "nested more than 64 deep"), "%d deep", n);
    }
    CHECK(parse(s, "[\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\"[\"]", 0) != NULL,
          "brackets in a text do not count");
    CHECK(!sd_json_load(s, "none", 0) && !strcmp(sd_reason(), "No such file or directory"), "absent: %s", sd_reason());
    CHECK(!sd_json_load(s, "/", 0) && strstr(sd_reason(), "Is a directory"), "a folder: %s", sd_reason());
}

static void
getters(struct sd_scope *s)
{
    json_t *j = parse(s,
                      "{\"i\":5,\"r\":0.5,\"b\":true,\"t\":\"x\",\"n\":null,\"is\":[1,2,3],\"rs\":[1,0.5],\"ts\":["
                      "\"a\",\"b\"],\"big\":9007199254740993,"
                      "\"mixed\":[1,\"x\"],\"inf\":-Infinity,\"text\":\"-Infinity\",\"infs\":[Infinity,NaN,-1]}",
                      SD_JSON_NONFINITE);
    int64_t i = 7, is[3];
    double r = 7, rs[3];
    bool b = false;
    const char *t = "d", **ts;
    int n = -1;

    if (!CHECK(j, "parsed: %s", sd_reason()))
        return;
    CHECK(sd_json_int(j, "absent", 0, 9, &i) == 0 && sd_json_int(j, "n", 0, 9, &i) == 0 && i == 7,
          "absent and null leave the default");
    CHECK(sd_json_int(j, "i", 0, 9, &i) == 1 && i == 5 && sd_json_int(j, "big", 0, INT64_MAX, &i) == 1
              && i == 9007199254740993,
          "integers, above 2^53");
    CHECK(sd_json_int(j, "i", 6, 9, &i) == -1 && !strcmp(sd_reason(), "i: expected 6 to 9, found 5"), "range: %s",
          sd_reason());
    CHECK(sd_json_int(j, "r", 0, 9, &i) == -1 && !strcmp(sd_reason(), "r: expected an integer, found a number"),
          "type: %s", sd_reason());
    CHECK(sd_json_real(j, "r", &r) == 1 && r == 0.5 && sd_json_real(j, "i", &r) == 1 && r == 5, "reals");
    CHECK(sd_json_real(j, "t", &r) == -1 && !strcmp(sd_reason(), "t: expected a number, found a string"), "type: %s",
          sd_reason());
    CHECK(sd_json_real(j, "inf", &r) == 1 && isinf(r) && r < 0, "-Infinity");
    CHECK(sd_json_text(j, "text", &t) == 1 && !strcmp(t, "-Infinity"), "in a text it stays text");
    CHECK(sd_json_real(j, "text", &r) == -1, "and is no number");
    CHECK(sd_json_reals(j, "infs", rs, 3, &n) == 1 && n == 3 && isinf(rs[0]) && rs[0] > 0 && isnan(rs[1])
              && rs[2] == -1,
          "infinities in an array");
    CHECK(sd_json_bool(j, "b", &b) == 1 && b && sd_json_bool(j, "i", &b) == -1, "truth values");
    CHECK(sd_json_ints(j, "is", is, 3, &n) == 1 && n == 3 && is[2] == 3 && sd_json_ints(j, "i", is, 3, &n) == 1
              && n == 1 && is[0] == 5,
          "integers or one");
    CHECK(sd_json_ints(j, "is", is, 2, &n) == -1 && !strcmp(sd_reason(), "is: expected at most 2 integers, found 3"),
          "too many: %s", sd_reason());
    CHECK(sd_json_ints(j, "mixed", is, 3, &n) == -1
              && !strcmp(sd_reason(), "mixed: expected an array of integers, found a string"),
          "mixed: %s", sd_reason());
    CHECK(sd_json_ints(j, "t", is, 3, &n) == -1
              && !strcmp(sd_reason(), "t: expected an array of integers, found a string"),
          "no array: %s", sd_reason());
    CHECK(sd_json_reals(j, "rs", rs, 3, &n) == 1 && n == 2 && rs[1] == 0.5, "reals");
    CHECK(sd_json_texts(s, j, "ts", &ts, &n) == 1 && n == 2 && !strcmp(ts[1], "b")
              && sd_json_texts(s, j, "is", &ts, &n) == -1,
          "texts");
    CHECK(sd_json_int(json_object_get(j, "is"), "x", 0, 9, &i) == -1
              && !strcmp(sd_reason(), "expected an object, found an array"),
          "no object: %s", sd_reason());
}

static void
dumps(struct sd_scope *s)
{
    json_t *j = parse(s, "{\"b\":[1,0.1,\"\\u00e9\"],\"a\":{\"y\":1e30,\"x\":-0.0}}", 0);
    static const char want[] = "{\n  \"a\": {\n    \"x\": -0.0,\n    \"y\": 1e30\n  },\n  \"b\": [\n    1,\n    "
                               "0.10000000000000001,\n    \"\u00e9\"\n  ]\n}\n";
    char path[] = "/tmp/sd-test-XXXXXX", text[400];
    int fd = mkstemp(path);
    FILE *f;

    CHECK(!strcmp(sd_json_dump(s, j, 0), "{\"a\":{\"x\":-0.0,\"y\":1e30},\"b\":[1,0.10000000000000001,\"\u00e9\"]}"),
          "compact, sorted: %s", sd_json_dump(s, j, 0));
    CHECK(sd_json_save(j, path) == 0, "saved");
    f = fopen(path, "rb");
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    CHECK(!strcmp(text, want), "as the libraries save it");
    CHECK(sd_json_save(j, "/dev/full") == -1 && strstr(sd_reason(), "No space left"), "a full disk: %s", sd_reason());
    close(fd);
    unlink(path);
}

int
main(void)
{
    struct sd_scope *s = sd_scope_open();

    refusals(s);
    getters(s);
    dumps(s);
    CHECK(sd_utf8_valid("a\u00e9\U0001f600", 7) && !sd_utf8_valid("\xed\xa0\x80", 3) && !sd_utf8_valid("\xc0\x80", 2)
              && !sd_utf8_valid("\xf4\x90\x80\x80", 4) && !sd_utf8_valid("\xc3", 1),
          "UTF-8: no surrogates, nothing overlong, nothing above 10FFFF, nothing cut");
    sd_scope_close(s);
    return check_done();
}
