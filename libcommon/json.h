/* json.h - JSON in and out: a thin layer over jansson.
 *
 * One rule: what comes from outside is bounded (size, depth) and strict (duplicate keys, bad UTF-8 and trailing text
 * are refused), and a wrong type is named by its key: "block_out_channels: expected an array of integers, found a
 * string". A json_t returned by a load belongs to the scope; do not json_decref it. */
#ifndef SD_JSON_H
#define SD_JSON_H

#include "diag.h"
#include <jansson.h>

enum { SD_JSON_MAX = 100000000, SD_JSON_DEPTH = 64 };
enum {
    SD_JSON_NONFINITE = 1   /* take Infinity, -Infinity and NaN, as Python writes them; read by sd_json_real */
};

/* sd_json_load - a file;  sd_json_parse - bytes.  NULL with sd_fail: "line 3: duplicate object key". */
json_t *sd_json_load(struct sd_scope *s, const char *path, unsigned flags);
json_t *sd_json_parse(struct sd_scope *s, const char *text, size_t length, unsigned flags);

/* Getters.  Absent, or null, is the default (*value left as it is, return 0); found is 1; the wrong type or range is -1
 * with sd_fail.  `object` must be an object (-1 too). */
int sd_json_int(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *value);
int sd_json_real(const json_t *object, const char *key, double *value);
int sd_json_bool(const json_t *object, const char *key, bool *value);
/* sd_json_text - lives as long as the object; no NUL inside. */
int sd_json_text(const json_t *object, const char *key, const char **value);
/* sd_json_ints - an array of at most `max_count` integers, or one integer (count 1); *count is set. */
int sd_json_ints(const json_t *object, const char *key, int64_t *values, int max_count, int *count);
int sd_json_reals(const json_t *object, const char *key, double *values, int max_count, int *count);
/* sd_json_texts - an array of texts; *values in scope s, or as jansson holds them. */
int sd_json_texts(struct sd_scope *s, const json_t *object, const char *key, const char ***values, int *count);

/* sd_json_kind - "an object", "a string", ... for messages. */
const char *sd_json_kind(const json_t *value);

/* sd_utf8_valid - well-formed UTF-8 (no surrogates, nothing overlong)? */
bool sd_utf8_valid(const char *text, size_t length);

/* sd_json_dump - sorted keys; indent 0 is compact.  Reals have 17 digits.  Text in scope s. */
char *sd_json_dump(struct sd_scope *s, const json_t *value, int indent);
/* sd_json_save - the file as huggingface libraries write theirs: sorted keys, indent 2, a newline at the end. */
int sd_json_save(const json_t *value, const char *path);
/* sd_json_size - bytes of that file. */
size_t sd_json_size(const json_t *value);

#endif
