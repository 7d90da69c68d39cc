/* tokenizer_load.c - a tokenizer from its files: vocabulary, merges, special and added tokens, length. */
#include "file.h"
#include "model/tokenizer_tables.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    CLIP_MERGES = 48894,        /* OpenAI's list goes on after these; none of what follows is used (formats 7.1) */
    CLIP_LENGTH = 77            /* where neither the tokenizer nor a text encoder says: a bare list is CLIP's */
};

struct merges { struct sd_merge *at; size_t count; };

/* The special tokens as the files name them.  `plain`: a text, not an object with flags; it is then cut out of the raw
 * text. */
enum { BOS, EOS, UNK, PAD, SPECIALS };
struct special { const char *text; bool plain, normalised; };

struct files {
    const char *folder;
    json_t *vocab;              /* vocab.json */
    json_t *json;               /* tokenizer.json */
    json_t *config;             /* tokenizer_config.json */
    json_t *map;                /* special_tokens_map.json */
    json_t *added;              /* added_tokens.json */
    const char *merges;         /* path of the merge list */
};

static const char *
beside(struct sd_scope *s, const char *folder, const char *name)
{
    const char *path = sd_sprintf(s, "%s/%s", folder, name);

    return access(path, F_OK) ? NULL : path;
}

/* --- merges --- */

/* The two words of a line, or of a tokenizer.json's text; the line is cut up. */
static int
split_merge(char *line, struct sd_merge *m)
{
    char *gap = strchr(line, ' ');

    if (!gap || gap == line || !gap[1] || strchr(gap + 1, ' '))
        return -1;
    *gap = 0;
    *m = (struct sd_merge){ line, gap + 1 };
    return 0;
}

/* A merge list.  Its first line is a comment ("#version: 0.2", in OpenAI's with the file's name before). */
static int
read_merges(struct sd_scope *s, const char *path, struct merges *out)
{
    size_t length, line_number = 0;
    char *text = sd_file_read(s, path, SD_JSON_MAX, &length), *next;

    if (!text)
        return -1;
    if (length > 1 && !memcmp(text, "\x1f\x8b", 2))
        return sd_fail("compressed: unpack it first (gunzip)");
    if (memchr(text, 0, length))
        return sd_fail("not a text");
    out->at = sd_alloc_array(s, CLIP_MERGES, sizeof *out->at);
    out->count = 0;
    for (char *line = text; line && out->count < CLIP_MERGES; line = next) {
        size_t n;

        if ((next = strchr(line, '\n')))
            *next++ = 0;
        n = strlen(line);
        if (n && line[n - 1] == '\r')
            line[n - 1] = 0;
        if ((!line_number++ && strstr(line, "#version")) || (!*line && !next))
            continue;
        if (split_merge(line, out->at + out->count++) < 0)
            return sd_fail("line %zu: expected two words", line_number);
    }
    if (!out->count)
        return sd_fail("no merges in it");
    return 0;
}

/* model.merges of a tokenizer.json: pairs, or texts with a space. */
static int
json_merges(struct sd_scope *s, const json_t *list, struct merges *out)
{
    const json_t *item;
    size_t i;

    if (!json_is_array(list))
        return sd_fail("model.merges: expected an array, found %s", sd_json_kind(list));
    out->at = sd_alloc_array(s, json_array_size(list) + 1, sizeof *out->at);
    out->count = json_array_size(list);
    json_array_foreach(list, i, item) {
        const char *left = json_string_value(json_array_get(item, 0)),
                   *right = json_string_value(json_array_get(item, 1));

        if (json_array_size(item) == 2 && left && right)
            out->at[i] = (struct sd_merge){ left, right };
        else if (!json_is_string(item) || split_merge(sd_strdup(s, json_string_value(item)), out->at + i) < 0)
            return sd_fail("model.merges: item %zu: expected two words", i);
    }
    return 0;
}

/* CLIP's vocabulary, which its merge list implies: bytes, bytes at a word's end, merges, the two specials. */
static json_t *
implied_vocabulary(struct sd_scope *s, const struct merges *m)
{
    json_t *vocab = sd_json_parse(s, "{}", 2, 0);
    struct sd_scope *scratch = sd_scope_open();
    json_int_t id = 0;

    for (int end = 0; end < 2; end++)
        for (int32_t byte = 0, letter = 33; byte < 256; byte++, letter++) {
            char text[16];

            /* the bytes that stand for themselves come first, then the others: both in the order of their letters */
            while (letter == 127 || letter == 173 || (letter > 127 && letter < 161))
                letter++;
            strcpy(text + sd_codepoint_write(letter, memset(text, 0, sizeof text)), end ? "</w>" : "");
            json_object_set_new(vocab, text, json_integer(id++));
        }
    for (size_t i = 0; i < m->count; i++)
        json_object_set_new(vocab, sd_sprintf(scratch, "%s%s", m->at[i].left, m->at[i].right), json_integer(id++));
    json_object_set_new(vocab, "<|startoftext|>", json_integer(id++));
    json_object_set_new(vocab, "<|endoftext|>", json_integer(id++));
    sd_scope_close(scratch);
    if ((json_int_t)json_object_size(vocab) != id)
        return sd_fail_null("two merges give the same token");
    return vocab;
}

/* --- tokenizer.json --- */

static const json_t *
member(const json_t *object, const char *key)
{
    return json_object_get(object, key);
}

static const char *
text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(member(object, key));

    return text ? text : "";
}

/* Is it the machine of formats 7.1?  Another one (another family's tokenizer) would give wrong ids in silence. */
static int
check_machine(const json_t *json)
{
    static const char *const steps[] = { "NFC", "Replace", "Lowercase" };
    const json_t *model = member(json, "model"), *normalizer = member(json, "normalizer");
    const json_t *list = member(normalizer, "normalizers"),
                 *splits = member(member(json, "pre_tokenizer"), "pretokenizers");
    const char *pattern = text_of(member(json_array_get(splits, 0), "pattern"), "Regex");

    if (!json_is_object(model) || (member(model, "type") && strcmp(text_of(model, "type"), "BPE")))
        return sd_fail("not a CLIP tokenizer: model type \"%s\", expected BPE", text_of(model, "type"));
    if (strcmp(text_of(model, "end_of_word_suffix"), "</w>") || *text_of(model, "continuing_subword_prefix"))
        return sd_fail("not a CLIP tokenizer: end_of_word_suffix \"%s\", expected \"</w>\"",
                       text_of(model, "end_of_word_suffix"));
    if (json_number_value(member(model, "dropout")) != 0 || json_is_true(member(model, "byte_fallback"))
            || json_is_true(member(model, "ignore_merges")) || json_is_true(member(model, "fuse_unk")))
        return sd_fail("not a CLIP tokenizer: dropout, byte_fallback, ignore_merges or fuse_unk is set");
    for (size_t i = 0; i < 3 || i < json_array_size(list); i++)
        if (i > 2 || strcmp(text_of(json_array_get(list, i), "type"), steps[i]))
            return sd_fail("not a CLIP tokenizer: step %zu of the normalizer is \"%s\", expected \"%s\"", i,
                           text_of(json_array_get(list, i), "type"), i > 2 ? "" : steps[i]);
    if (!strstr(pattern, "[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+")
            || strcmp(text_of(json_array_get(splits, 1), "type"), "ByteLevel"))
        return sd_fail("not a CLIP tokenizer: pre_tokenizer splits by \"%s\"", pattern);
    return 0;
}

/* The same tables in both forms?  A tokenizer of which one half was edited gives other ids in other programs. */
static int
check_agreement(const struct files *f, const struct merges *m, const struct merges *json)
{
    json_t *other = json_object_get(member(f->json, "model"), "vocab"), *id;
    const char *text;

    json_object_foreach(f->vocab, text, id)
        if (!json_equal(id, json_object_get(other, text)))
            return sd_fail("vocab.json and tokenizer.json differ: \"%s\" is %lld and %lld", text,
                           (long long)json_integer_value(id),
                           (long long)json_integer_value(json_object_get(other, text)));
    if (json_object_size(other) != json_object_size(f->vocab))
        return sd_fail("vocab.json and tokenizer.json differ: %zu and %zu tokens", json_object_size(f->vocab),
                       json_object_size(other));
    for (size_t i = 0; i < m->count && i < json->count; i++)
        if (strcmp(m->at[i].left, json->at[i].left) || strcmp(m->at[i].right, json->at[i].right))
            return sd_fail("merges.txt and tokenizer.json differ: merge %zu is \"%s %s\" and \"%s %s\"", i + 1,
                           m->at[i].left, m->at[i].right, json->at[i].left, json->at[i].right);
    if (m->count != json->count)
        return sd_fail("merges.txt and tokenizer.json differ: %zu and %zu merges", m->count, json->count);
    return 0;
}

static int
load_tables(struct sd_tokenizer *t, struct sd_scope *s, struct files *f)
{
    struct merges m = { 0 }, from_json = { 0 };
    json_t *vocab = f->vocab;

    if (f->json) {
        if (check_machine(f->json) < 0 || json_merges(s, member(member(f->json, "model"), "merges"), &from_json) < 0)
            return sd_fail_prefix("tokenizer.json");
        if (!json_is_object(vocab = json_object_get(member(f->json, "model"), "vocab")))
            return sd_fail("tokenizer.json: model.vocab: expected an object, found %s", sd_json_kind(vocab));
        m = from_json;
    }
    if (f->vocab) {
        vocab = f->vocab;
        if (read_merges(s, f->merges, &m) < 0)
            return sd_fail_prefix("merges.txt");
        if (!json_is_object(vocab))
            return sd_fail("vocab.json: expected an object, found %s", sd_json_kind(vocab));
        if (f->json && check_agreement(f, &m, &from_json) < 0)
            return -1;
    }
    return sd_tokenizer_build(t, vocab, m.at, m.count);
}

/* --- special and added tokens --- */

static int
named_special(const json_t *object, const char *key, struct special *special)
{
    const json_t *value = member(object, key);
    const char *text;

    if (!value || json_is_null(value))
        return 0;
    text = json_is_object(value) ? json_string_value(member(value, "content")) : json_string_value(value);
    if (!text || !*text)
        return sd_fail("%s: expected a token, found %s", key, sd_json_kind(value));
    if (json_is_true(member(value, "single_word")) || json_is_true(member(value, "lstrip"))
            || json_is_true(member(value, "rstrip")))
        return sd_fail("%s: single_word, lstrip, rstrip are not known here", key);
    *special = (struct special){ text, !json_is_object(value),
                                 json_is_object(value) && !json_is_false(member(value, "normalized")) };
    return 0;
}

/* One entry of an added-tokens list.  The vocabulary has the last word on ids. */
static int
add_listed(struct sd_tokenizer *t, const char *text, const json_t *flags, const json_t *id_value, bool normalised)
{
    int32_t known = text ? sd_tokenizer_id(t, text) : -1;
    json_int_t id = json_integer_value(id_value);

    if (!text || !*text || !json_is_integer(id_value) || id < 0 || id >= 1 << 24)
        return sd_fail("added token \"%s\": expected a text and an id", text ? text : "");
    if (known >= 0 && known != id)
        return sd_fail("added token \"%s\" has id %lld, the vocabulary says %d", text, (long long)id, known);
    if (known < 0 && id < t->tables->texts && t->tables->text[id])
        return sd_fail("added token \"%s\" has the id of \"%s\", %lld", text, t->tables->text[id], (long long)id);
    if (json_is_true(member(flags, "single_word")) || json_is_true(member(flags, "lstrip"))
            || json_is_true(member(flags, "rstrip")))
        return sd_fail("added token \"%s\": single_word, lstrip, rstrip are not known here", text);
    return sd_tokenizer_set_added(t, text, (int32_t)id, 1, normalised);
}

/* The lists, in the order in which they override: tokenizer.json, the configuration's decoder, added_tokens.json. */
static int
load_added(struct sd_tokenizer *t, const struct files *f, const struct special *specials)
{
    const json_t *list = member(f->json, "added_tokens"), *item;
    json_t *decoder = json_object_get(f->config, "added_tokens_decoder"), *id;
    const char *key;
    size_t i;

    json_array_foreach(list, i, item)
        if (add_listed(t, json_string_value(member(item, "content")), item, member(item, "id"),
                       !json_is_false(member(item, "normalized"))) < 0)
            return sd_fail_prefix("tokenizer.json");
    json_object_foreach(decoder, key, id) {
        char *end;
        json_t *number = json_integer(strtol(key, &end, 10));
        int status = *end || end == key ? sd_fail("added_tokens_decoder: \"%s\" is no id", key)
                   : add_listed(t, json_string_value(member(id, "content")), id, number,
                                !json_is_false(member(id, "normalized")));

        json_decref(number);
        if (status < 0)
            return sd_fail_prefix("tokenizer_config.json");
    }
    if (!json_is_object(decoder))
        json_object_foreach(f->added, key, id) {
            bool special = false;

            for (int k = 0; k < SPECIALS; k++)
                special |= !strcmp(specials[k].text, key);
            if (add_listed(t, key, NULL, id, !special) < 0)
                return sd_fail_prefix("added_tokens.json");
        }
    return 0;
}

static int
load_specials(struct sd_tokenizer *t, const struct files *f)
{
    static const char *const keys[SPECIALS] = { "bos_token", "eos_token", "unk_token", "pad_token" };
    struct special specials[SPECIALS] = {       /* what the reference's class has where no file says otherwise */
        { "<|startoftext|>", true, false }, { "<|endoftext|>", true, false }, { "<|endoftext|>", true, false },
        { "<|endoftext|>", true, false },
    };
    const char *padding = specials[PAD].text;
    int32_t ids[SPECIALS];
    size_t listed;

    for (int k = 0; k < SPECIALS; k++) {
        if (named_special(f->config, keys[k], specials + k) < 0)
            return sd_fail_prefix("tokenizer_config.json");
        if (!json_is_object(member(f->config, "added_tokens_decoder"))
            && named_special(f->map, keys[k], specials + k) < 0)
            return sd_fail_prefix("special_tokens_map.json");
    }
    if (load_added(t, f, specials) < 0)
        return -1;
    /* what the lists above say stands; of several ways to name a token here the last one does */
    listed = t->tables->added_count;
    for (int k = 0; k < SPECIALS; k++) {
        const struct sd_added_token *a = sd_tokenizer_added(t, specials[k].text);
        bool repeated = a && a < t->tables->added + listed;

        for (int i = 0; i < k; i++)
            repeated |= !strcmp(specials[i].text, specials[k].text) && specials[i].plain == specials[k].plain
                     && specials[i].normalised == specials[k].normalised;
        ids[k] = sd_tokenizer_id(t, specials[k].text);
        if (ids[k] < 0 && k != PAD)
            return sd_fail("%s \"%s\" is not in the vocabulary", keys[k], specials[k].text);
        if (ids[k] < 0)
            ids[k] = t->length;
        if (!repeated && sd_tokenizer_set_added(t, specials[k].text, ids[k], 1, specials[k].normalised) < 0)
            return -1;
    }
    t->bos = ids[BOS];
    t->eos = ids[EOS];
    t->tables->unk = ids[UNK];
    t->pad = ids[PAD];
    t->pad_named = specials[PAD].text != padding;
    return 0;
}

/* --- length --- */

static int32_t
positions_in(struct sd_scope *s, const char *path)
{
    const json_t *config = access(path, F_OK) ? NULL : sd_json_load(s, path, SD_JSON_NONFINITE);
    const json_t *text = member(config, "text_config");
    int64_t n = 0;

    if (sd_json_int(json_is_object(text) ? text : config, "max_position_embeddings", 3, 65536, &n) <= 0)
        return 0;
    return (int32_t)n;
}

/* The configuration's length; a real, for Python writes 10^30 where there is none. */
static int
load_length(struct sd_tokenizer *t, struct sd_scope *s, const struct files *f)
{
    const json_t *value = member(f->config, "model_max_length");
    double n = json_number_value(value);
    char *real;
    const char *base;

    if (value && !json_is_null(value) && !(n > 65536) && (n < 3 || n != (double)(int64_t)n))
        return sd_fail("tokenizer_config.json: model_max_length: expected a whole number from 3");
    if (n >= 3 && n <= 65536) {
        t->model_max_length = (int32_t)n;
        t->length_named = true;
        return 0;
    }
    if (f->folder && (real = realpath(f->folder, NULL))) {
        base = strrchr(real, '/') + 1;
        if (!strncmp(base, "tokenizer", 9))
            t->model_max_length = positions_in(s, sd_sprintf(s, "%s/../text_encoder%s/config.json", real, base + 9));
        if (!t->model_max_length)
            t->model_max_length = positions_in(s, sd_sprintf(s, "%s/config.json", real));
        free(real);
    }
    t->length_named = t->model_max_length;
    if (!t->length_named)
        t->model_max_length = CLIP_LENGTH;
    return 0;
}

/* --- entries --- */

static json_t *
optional_json(struct sd_scope *s, const char *folder, const char *name, bool *ok)
{
    const char *path = beside(s, folder, name);
    json_t *value = path && *ok ? sd_json_load(s, path, 0) : NULL;

    if (path && *ok && !json_is_object(value)) {
        if (value)
            sd_fail("expected an object, found %s", sd_json_kind(value));
        sd_fail_prefix("%s", name);
        *ok = false;
    }
    return value;
}

static void
release(void *value)
{
    json_decref(value);
}

/* tokenizer_config.json has integers that no machine has, so they are read as reals; nothing else needs them. */
static json_t *
load_config(struct sd_scope *s, const char *folder, bool *ok)
{
    const char *path = beside(s, folder, "tokenizer_config.json");
    json_error_t error;
    json_t *value;
    size_t length;
    char *text;

    if (!path || !*ok)
        return NULL;
    *ok = false;
    if (!(text = sd_file_read(s, path, 16 << 20, &length))) {
        sd_fail_prefix("tokenizer_config.json");
        return NULL;
    }
    if (!(value = json_loadb(text, length, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &error)))
        return sd_fail_null("tokenizer_config.json: line %d: %s", error.line, error.text);
    sd_on_close(s, release, value);
    *ok = true;
    return value;
}

static struct sd_tokenizer *
load(struct sd_scope *s, const char *folder, const char *list, bool json_only)
{
    struct sd_tokenizer *t = sd_alloc(s, sizeof *t);
    struct files f = { .folder = folder };
    struct merges m;
    bool ok = true;

    t->tables = sd_alloc(s, sizeof *t->tables);
    t->tables->scope = s;
    if (list) {
        json_t *vocab;

        if (read_merges(s, list, &m) < 0 || !(vocab = implied_vocabulary(s, &m))
                || sd_tokenizer_build(t, vocab, m.at, m.count) < 0)
            return NULL;
    } else {
        if (!json_only)
            f.vocab = optional_json(s, folder, "vocab.json", &ok);
        f.merges = f.vocab ? beside(s, folder, "merges.txt") : NULL;
        f.json = optional_json(s, folder, "tokenizer.json", &ok);
        f.config = load_config(s, folder, &ok);
        f.map = optional_json(s, folder, "special_tokens_map.json", &ok);
        f.added = optional_json(s, folder, "added_tokens.json", &ok);
        if (!ok)
            return NULL;
        if (f.vocab && !f.merges)
            return sd_fail_null("vocab.json without merges.txt");
        if (load_tables(t, s, &f) < 0)
            return NULL;
    }
    if (load_specials(t, &f) < 0 || load_length(t, s, &f) < 0)
        return NULL;
    return t;
}

struct sd_tokenizer *
sd_tokenizer_load(struct sd_scope *s, const char *path)
{
    struct stat st;
    const char *base = strrchr(path, '/'), *folder;

    base = base ? base + 1 : path;
    if (stat(path, &st) < 0) {
        sd_fail("%s", strerror(errno));
        return NULL;
    }
    if (S_ISDIR(st.st_mode)) {
        if (beside(s, path, "vocab.json") || beside(s, path, "tokenizer.json"))
            return load(s, path, NULL, false);
        if ((folder = beside(s, path, "tokenizer"))
            && (beside(s, folder, "vocab.json") || beside(s, folder, "tokenizer.json")))
            return load(s, folder, NULL, false);
        if ((folder = beside(s, path, "merges.txt")))
            return load(s, path, folder, false);
        return sd_fail_null("no tokenizer in it: neither vocab.json with merges.txt nor tokenizer.json");
    }
    folder = base == path ? "." : sd_strndup(s, path, (size_t)(base - path));
    if (!strcmp(base, "tokenizer.json"))
        return load(s, folder, NULL, true);
    if (!strcmp(base, "vocab.json"))
        return load(s, folder, NULL, false);
    return load(s, NULL, path, false);
}
