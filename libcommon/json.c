/* json.c - JSON in and out: a thin layer over jansson. */
#include "json.h"
#include "file.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* Python writes Infinity where JSON has nothing.  Such a word becomes a text that starts with a control character,
 * which only sd_json_real takes for a number. */
#define NONFINITE "\\u0001"
static const struct { const char *word; double value; } nonfinite[] = {
    { "-Infinity", -1.0 / 0.0 }, { "Infinity", 1.0 / 0.0 }, { "NaN", 0.0 / 0.0 },
};
enum { NONFINITES = sizeof nonfinite / sizeof *nonfinite };

/* One walk over the bytes: bounds the depth, and finds what jansson must not see.  Returns the text to parse. */
static const char *
prepare(struct sd_scope *s, const char *text, size_t *length, unsigned flags)
{
    size_t depth = 0, n = *length, words = 0;
    char *out = NULL, *to = NULL;

    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < n; ) {
            size_t start = i, word = NONFINITES;

            if (text[i] == '"') {
                for (i++; i < n && text[i] != '"'; i++)
                    if (text[i] == '\\')
                        i++;
                i = i < n ? i + 1 : n;
            } else {
                if (!pass && (text[i] == '[' || text[i] == '{') && ++depth > SD_JSON_DEPTH)
                    return sd_fail_null("nested more than %d deep", SD_JSON_DEPTH);
                if (!pass && (text[i] == ']' || text[i] == '}') && depth)
                    depth--;
                if (flags & SD_JSON_NONFINITE && (text[i] == '-' || text[i] == 'I' || text[i] == 'N'))
                    for (word = 0; word < NONFINITES; word++)
                        if (n - i >= strlen(nonfinite[word].word)
                                && !memcmp(text + i, nonfinite[word].word, strlen(nonfinite[word].word)))
                            break;
                i += word < NONFINITES ? strlen(nonfinite[word].word) : 1;
            }
            if (pass && word < NONFINITES)
                to += sprintf(to, "\"" NONFINITE "%s\"", nonfinite[word].word);
            else if (pass)
                to = (char *)memcpy(to, text + start, i - start) + (i - start);
            words += word < NONFINITES;
        }
        if (!words)
            return text;
        if (!pass)
            to = out = sd_alloc(s, n + words * (sizeof NONFINITE + 2) + 1);
    }
    *length = (size_t)(to - out);
    return out;
}

static void
release(void *value)
{
    json_decref(value);
}

json_t *
sd_json_parse(struct sd_scope *s, const char *text, size_t length, unsigned flags)
{
    struct sd_scope *scratch;
    json_error_t error;
    json_t *value = NULL;

    if (length > SD_JSON_MAX)
        return sd_fail_null("%zu bytes of JSON, at most %d are read", length, SD_JSON_MAX);
    scratch = sd_scope_open();
    text = prepare(scratch, text, &length, flags);
    if (text && !(value = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error)))
        sd_fail("line %d: %s", error.line, error.text);
    sd_scope_close(scratch);
    if (value)
        sd_on_close(s, release, value);
    return value;
}

json_t *
sd_json_load(struct sd_scope *s, const char *path, unsigned flags)
{
    struct sd_scope *scratch = sd_scope_open();
    json_t *value = NULL;
    size_t length;
    char *text = sd_file_read(scratch, path, SD_JSON_MAX, &length);

    if (text)
        value = sd_json_parse(s, text, length, flags);
    sd_scope_close(scratch);
    return value;
}

/* The number behind a marked text; false for any other value. */
static bool
nonfinite_value(const json_t *value, double *number)
{
    const char *text = json_string_value(value);

    if (text && text[0] == '\1')
        for (int i = 0; i < NONFINITES; i++)
            if (!strcmp(text + 1, nonfinite[i].word)) {
                *number = nonfinite[i].value;
                return true;
            }
    return false;
}

const char *
sd_json_kind(const json_t *value)
{
    double x;

    if (!value)
        return "nothing";
    if (nonfinite_value(value, &x))
        return "a number";
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number";
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    case JSON_NULL: return "null";
    }
    return "nothing";
}

static int
wrong(const char *key, const char *expected, const json_t *found)
{
    return sd_fail("%s: expected %s, found %s", key, expected, sd_json_kind(found));
}

/* 1 and *value when there is one; 0 when absent or null; -1 when object is none. */
static int
member(const json_t *object, const char *key, const json_t **value)
{
    if (!json_is_object(object))
        return sd_fail("expected an object, found %s", sd_json_kind(object));
    *value = json_object_get(object, key);
    return *value && !json_is_null(*value);
}

static bool
real_value(const json_t *value, double *number)
{
    if (json_is_number(value))
        *number = json_number_value(value);
    else
        return nonfinite_value(value, number);
    return true;
}

int
sd_json_int(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *value)
{
    const json_t *v;
    int status = member(object, key, &v);

    if (status <= 0)
        return status;
    if (!json_is_integer(v))
        return wrong(key, "an integer", v);
    if (json_integer_value(v) < min || json_integer_value(v) > max)
        return sd_fail("%s: expected %lld to %lld, found %lld", key, (long long)min, (long long)max,
                       (long long)json_integer_value(v));
    *value = json_integer_value(v);
    return 1;
}

int
sd_json_real(const json_t *object, const char *key, double *value)
{
    const json_t *v;
    int status = member(object, key, &v);

    if (status <= 0)
        return status;
    return real_value(v, value) ? 1 : wrong(key, "a number", v);
}

int
sd_json_bool(const json_t *object, const char *key, bool *value)
{
    const json_t *v;
    int status = member(object, key, &v);

    if (status <= 0)
        return status;
    if (!json_is_boolean(v))
        return wrong(key, "true or false", v);
    *value = json_is_true(v);
    return 1;
}

int
sd_json_text(const json_t *object, const char *key, const char **value)
{
    const json_t *v;
    int status = member(object, key, &v);

    if (status <= 0)
        return status;
    if (!json_is_string(v))
        return wrong(key, "a string", v);
    *value = json_string_value(v);
    return 1;
}

int
sd_json_ints(const json_t *object, const char *key, int64_t *values, int max_count, int *count)
{
    const json_t *v;
    int status = member(object, key, &v);

    if (status <= 0)
        return status;
    if (json_is_integer(v) && max_count > 0) {
        values[0] = json_integer_value(v);
        *count = 1;
        return 1;
    }
    if (!json_is_array(v))
        return wrong(key, "an array of integers", v);
    if (json_array_size(v) > (size_t)max_count)
        return sd_fail("%s: expected at most %d integers, found %zu", key, max_count, json_array_size(v));
    for (size_t i = 0; i < json_array_size(v); i++) {
        if (!json_is_integer(json_array_get(v, i)))
            return wrong(key, "an array of integers", json_array_get(v, i));
        values[i] = json_integer_value(json_array_get(v, i));
    }
    *count = (int)json_array_size(v);
    return 1;
}

int
sd_json_reals(const json_t *object, const char *key, double *values, int max_count, int *count)
{
    const json_t *v;
    int status = member(object, key, &v);

    if (status <= 0)
        return status;
    if (max_count > 0 && real_value(v, values)) {
        *count = 1;
        return 1;
    }
    if (!json_is_array(v))
        return wrong(key, "an array of numbers", v);
    if (json_array_size(v) > (size_t)max_count)
        return sd_fail("%s: expected at most %d numbers, found %zu", key, max_count, json_array_size(v));
    for (size_t i = 0; i < json_array_size(v); i++)
        if (!real_value(json_array_get(v, i), &values[i]))
            return wrong(key, "an array of numbers", json_array_get(v, i));
    *count = (int)json_array_size(v);
    return 1;
}

int
sd_json_texts(struct sd_scope *s, const json_t *object, const char *key, const char ***values, int *count)
{
    const json_t *v;
    int status = member(object, key, &v);

    if (status <= 0)
        return status;
    if (!json_is_array(v))
        return wrong(key, "an array of strings", v);
    *values = sd_alloc_array(s, json_array_size(v) + 1, sizeof **values);
    for (size_t i = 0; i < json_array_size(v); i++)
        if (!((*values)[i] = json_string_value(json_array_get(v, i))))
            return wrong(key, "an array of strings", json_array_get(v, i));
    *count = (int)json_array_size(v);
    return 1;
}

bool
sd_utf8_valid(const char *text, size_t length)
{
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)text, *end = p + length;

    while (p < end) {
        utf8proc_int32_t c;
        utf8proc_ssize_t n = *p < 0x80 ? 1 : utf8proc_iterate(p, end - p, &c);

        if (n <= 0)
            return false;
        p += n;
    }
    return true;
}

char *
sd_json_dump(struct sd_scope *s, const json_t *value, int indent)
{
    char *text = json_dumps(value, JSON_SORT_KEYS | JSON_ENCODE_ANY
                            | (indent ? JSON_INDENT((size_t)indent) : JSON_COMPACT)), *copy;

    if (!text)
        sd_bug("sd_json_dump", "no JSON value, or no memory");
    copy = sd_strdup(s, text);
    free(text);
    return copy;
}

int
sd_json_save(const json_t *value, const char *path)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_output *o = sd_output_open(path);
    int status = o ? 0 : -1;

    if (o) {
        fprintf(sd_output_file(o), "%s\n", sd_json_dump(s, value, 2));
        status = sd_output_commit(o);
    }
    sd_scope_close(s);
    return status;
}

size_t
sd_json_size(const json_t *value)
{
    struct sd_scope *s = sd_scope_open();
    size_t bytes = strlen(sd_json_dump(s, value, 2)) + 1;

    sd_scope_close(s);
    return bytes;
}
