/* The CLIP tokenizer against the reference: stored ids of tests/reference/clip_tokenizer.py, whose strings are made here
 * again. */
#include "tests/check.h"
#include "tests/splitmix.h"
#include "clock.h"

#include "json.h"
#include "file.h"
#include "model/tokenizer.h"

#include <unistd.h>
#include <sys/stat.h>

#define DATA "tests/data/tokenizer"
#define BOS "<|startoftext|>"
#define EOS "<|endoftext|>"

static const char *clip;        /* the folder of CLIP's vocabulary, NULL where it is not at hand */
static struct sd_scope *scope;

/* --- the strings of the reference --- */

static const char *const words[] = {
    "photo", "don't", "'LL", " Cat", EOS, "<|EndOfText|>", "<|STARTOFTEXT|>x", BOS, "!!!", ", ", " the ", "2023", "'s",
    "Stra\u00dfe", "\u03a3\u0391\u03a3", "\u0130", "caf\u00e9", "e\u0301", "\u1100\u1161\u11a8",
    "\U0001f468\u200d\U0001f469", "<s0>", "\u00bd", "\ufb01", "\u3000",
};
static const int spaces[] = {
    9,      10,     11,     12,     13,     0x1C,   0x1D,   0x1E,   0x1F,   0x20,   0x85,   0xA0,   0x1680,
    0x180E, 0x2003, 0x200A, 0x200B, 0x200D, 0x2028, 0x2029, 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF, 0,
};
#define COUNT(a) (sizeof (a) / sizeof *(a))

static char text[8192];
static size_t length;

static void
put(uint64_t c)
{
    if (c >= 0xD800 && c < 0xE000)
        c -= 0xD800;
    if (c < 0x80) {
        text[length++] = (char)c;
        return;
    }
    if (c < 0x800) {
        text[length++] = (char)(0xC0 | c >> 6);
    } else {
        if (c < 0x10000) {
            text[length++] = (char)(0xE0 | c >> 12);
        } else {
            text[length++] = (char)(0xF0 | c >> 18);
            text[length++] = (char)(0x80 | (c >> 12 & 63));
        }
        text[length++] = (char)(0x80 | (c >> 6 & 63));
    }
    text[length++] = (char)(0x80 | (c & 63));
}

static void
put_text(const char *s)
{
    while (*s)
        text[length++] = *s++;
}

static void
random_text(int i)
{
    state = (uint64_t)i;
    length = 0;
    for (uint64_t n = 1 + below(24); n; n--) {
        uint64_t kind = below(100);

        if (kind < 30)
            put(0x20 + below(95));
        else if (kind < 42)
            put_text(words[below(COUNT(words))]);
        else if (kind < 57)
            put(0xA0 + below(0x490));
        else if (kind < 64)
            put((uint64_t)spaces[below(COUNT(spaces))]);
        else if (kind < 74)
            put(0x300 + below(0x70));
        else if (kind < 82)
            put(0x591 + below(0x900));
        else if (kind < 87)
            put(0x1100 + below(0x100));
        else if (kind < 95)
            put(below(0x10000));
        else
            put(below(0x110000));
    }
}

static void
plane_text(int i)
{
    length = 0;
    for (uint64_t c = 256 * (uint64_t)i; c < 256 * (uint64_t)i + 256; c++) {
        put_text("a");
        put(c);
        put_text("b a\u0345");
        put(c);
        put_text("\u0334 ");
    }
}

static uint64_t
hash_ids(struct sd_tokenizer *t, uint64_t h)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_ids ids = { 0 };

    if (sd_tokenizer_encode(t, s, text, length, &ids) < 0) {
        printf("# %s\n", sd_reason());
        h = 0;
    }
    h = hash(h, ids.id, ids.count * sizeof *ids.id);
    sd_scope_close(s);
    return h;
}

static void
check_hashes(struct sd_tokenizer *t, const char *file, int count, int each, void (*make)(int), const char *what)
{
    struct sd_scope *s = sd_scope_open();
    size_t size;
    char *at = sd_file_read(s, file, 1 << 20, &size);
    int wrong = 0;

    if (!CHECK(at != NULL, "%s is there", file))
        return;
    for (int i = 0; i < count; i += each) {
        uint64_t h = FNV, expected = strtoul(at, &at, 16);

        for (int k = i; k < i + each; k++) {
            make(k);
            h = hash_ids(t, h);
        }
        h = (h ^ h >> 32) & 0xFFFFFFFF;
        if (h != expected && wrong++ < 5)
            printf("# string %d: hash %08llx, expected %08llx: %.*s\n", i, (unsigned long long)h,
                   (unsigned long long)expected, each == 1 ? (int)length : 0, text);
    }
    CHECK(!wrong, "%s: %d of %d differ from the reference", what, wrong, count / each);
    sd_scope_close(s);
}

/* --- folders --- */

static char folder[] = "/tmp/sd-tokenizer-XXXXXX";

static const char *
in_folder(const char *name)
{
    return sd_sprintf(scope, "%s/%s", folder, name);
}

static void
write_json(const char *name, const json_t *value)
{
    if (json_dump_file(value, in_folder(name), JSON_COMPACT) < 0)
        CHECK(false, "writing %s", in_folder(name));
}

static void
write_text(const char *name, const char *content, size_t bytes)
{
    FILE *f = fopen(in_folder(name), "w");

    if (!f || fwrite(content, 1, bytes, f) != bytes || fclose(f))
        CHECK(false, "writing %s", in_folder(name));
}

static void
clear_folder(void)
{
    const char **names;
    size_t count;

    if (sd_folder_list(scope, folder, &names, &count) == 0)
        for (size_t i = 0; i < count; i++)
            unlink(in_folder(names[i]));
}

static void
copy_file(const char *from, const char *name)
{
    size_t size;
    char *content = sd_file_read(scope, sd_sprintf(scope, "%s/%s", from, name), 1 << 24, &size);

    if (content)
        write_text(name, content, size);
    else
        CHECK(false, "%s/%s: %s", from, name, sd_reason());
}

/* A tokenizer.json of the tables in `from`, as today's libraries write it. */
static json_t *
machine(const char *from, bool normalized, bool pairs)
{
    json_error_t error;
    json_t *vocab = json_load_file(sd_sprintf(scope, "%s/vocab.json", from), 0, &error), *merges = json_array(), *out;
    size_t size;
    char *line = sd_file_read(scope, sd_sprintf(scope, "%s/merges.txt", from), 1 << 24, &size);

    strtok(line, "\n");
    while ((line = strtok(NULL, "\n"))) {
        char *gap = strchr(line, ' ');

        json_array_append_new(merges, !pairs ? json_string(line)
                                             : json_pack("[s%s]", line, (int)(gap - line), gap + 1));
    }
    out = json_pack("{s:[{s:O,s:s,s:b,s:b},{s:O,s:s,s:b,s:b}], s:{s:s,s:[{s:s},{s:s,s:{s:s},s:s},{s:s}]},"
                    " s:{s:s,s:[{s:s,s:{s:s},s:s,s:b},{s:s,s:b}]}, s:{s:s,s:s,s:s,s:O,s:o}}",
                    "added_tokens", "id", json_object_get(vocab, BOS), "content", BOS, "normalized", normalized,
                    "special", 1, "id", json_object_get(vocab, EOS), "content", EOS, "normalized", normalized,
                    "special", 1, "normalizer", "type", "Sequence", "normalizers", "type", "NFC", "type", "Replace",
                    "pattern", "Regex", "\\s+", "content", " ", "type", "Lowercase", "pre_tokenizer", "type",
                    "Sequence", "pretokenizers", "type", "Split", "pattern", "Regex",
                    "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+", "behavior", "Removed", "invert",
                    1, "type", "ByteLevel", "add_prefix_space", 0, "model", "type", "BPE", "continuing_subword_prefix",
                    "", "end_of_word_suffix", "</w>", "vocab", vocab, "merges", merges);
    json_decref(vocab);
    return out;
}

/* --- checks --- */

static bool
same_ids(const struct sd_ids *ids, const json_t *expected)
{
    bool same = ids->count == json_array_size(expected);

    for (size_t i = 0; same && i < ids->count; i++)
        same = ids->id[i] == json_integer_value(json_array_get(expected, i));
    return same;
}

static void
check_ids(struct sd_tokenizer *t, const char *input, const json_t *expected, const char *what)
{
    struct sd_ids ids;
    char got[400] = "";

    if (!CHECK(t && !sd_tokenizer_encode(t, scope, input, strlen(input), &ids) && same_ids(&ids, expected),
               "%s: \"%s\"", what, input)
        && t) {
        for (size_t i = 0; i < ids.count && strlen(got) < 380; i++)
            sprintf(got + strlen(got), " %d", ids.id[i]);
        printf("# got%s\n", got);
    }
}

static void
check_cases(void)
{
    json_t *stored = sd_json_load(scope, DATA "/cases.json", 0), *item, *content;
    json_t *texts = json_object_get(stored, "texts");
    const char *name;
    size_t i, k;

    json_array_foreach(json_object_get(stored, "cases"), i, item) {
        const char *what = json_string_value(json_object_get(item, "name"));
        json_t *flag = json_object_get(item, "json"), *value;
        struct sd_tokenizer *t;
        int wrong = 0;

        clear_folder();
        if (json_is_null(flag)) {
            copy_file(clip, "vocab.json");
            copy_file(clip, "merges.txt");
        } else {
            write_json("tokenizer.json", value = machine(clip, json_is_true(flag), i & 1));
            json_decref(value);
        }
        json_object_foreach(json_object_get(item, "files"), name, content)
            write_json(name, content);
        t = sd_tokenizer_load(scope, folder);
        if (!CHECK(t != NULL, "%s: %s", what, t ? "loads" : sd_reason()))
            continue;
        CHECK(t->bos == json_integer_value(json_object_get(item, "bos"))
                  && t->eos == json_integer_value(json_object_get(item, "eos"))
                  && t->pad == json_integer_value(json_object_get(item, "pad"))
                  && t->length == json_integer_value(json_object_get(item, "length")),
              "%s: bos %d, eos %d, pad %d, length %d", what, t->bos, t->eos, t->pad, t->length);
        json_array_foreach(texts, k, value) {
            const char *input = json_string_value(value);
            struct sd_ids ids;

            if (sd_tokenizer_encode(t, scope, input, strlen(input), &ids) < 0
                    || !same_ids(&ids, json_array_get(json_object_get(item, "ids"), k))) {
                printf("# %s: \"%s\"\n", what, input);
                wrong++;
            }
        }
        CHECK(!wrong, "%s: %d of %zu texts differ from the reference", what, wrong, json_array_size(texts));
    }
}

static void
check_grown(void)
{
    json_t *item;
    struct sd_tokenizer *t = sd_tokenizer_load(scope, clip);
    size_t i;

    CHECK(sd_tokenizer_add(t, "<s0>", 1) == 49408 && sd_tokenizer_add(t, "sks", 1) == 49409
              && sd_tokenizer_add(t, "<Dog>", 1) == 49410 && sd_tokenizer_add(t, "<Dog>_1", 2) == 49411
              && t->length == 49413,
          "new tokens get ids from the length on");
    t = sd_tokenizer_load(scope, clip);
    sd_tokenizer_add(t, "<s0>", 1);
    sd_tokenizer_add(t, "sks", 1);
    sd_tokenizer_add(t, "<Dog>", 1);
    sd_tokenizer_add(t, "<Dog>_1", 1);
    sd_tokenizer_add(t, "<Dog>_2", 1);
    json_array_foreach(json_object_get(sd_json_load(scope, DATA "/cases.json", 0), "grown"), i, item)
        check_ids(t, json_string_value(json_object_get(item, "text")), json_object_get(item, "ids"), "new tokens");
}

static void
check_add(const char *from)
{
    struct sd_tokenizer *t = sd_tokenizer_load(scope, from);
    int32_t base = t->length;
    struct sd_ids ids;

    CHECK(sd_tokenizer_add(t, "<toy>", 3) == base && t->length == base + 3, "three vectors: ids %d to %d", base,
          base + 2);
    CHECK(!sd_tokenizer_encode(t, scope, "<TOY> <toy>_2<toy", 17, &ids) && ids.count > 4 && ids.id[0] == base
          && ids.id[2] == base + 2 && ids.id[3] == base + 2 && ids.span[0] == 3 && ids.span[1] == 0 && ids.span[2] == 0
          && ids.span[3] == 1, "they stand together; one of them can be named");
    CHECK(sd_tokenizer_id(t, "<toy>_1") == base + 1, "token_1 is the second");
    CHECK(sd_tokenizer_add(t, "<toy>", 1) < 0, "again: %s", sd_reason());
    CHECK(sd_tokenizer_add(t, "<Toy>", 1) < 0, "other case: %s", sd_reason());
    CHECK(sd_tokenizer_add(t, "in", 1) < 0, "a word of the vocabulary: %s", sd_reason());
    CHECK(sd_tokenizer_add(t, "x\xff", 1) < 0 && sd_tokenizer_add(t, "", 1) < 0 && sd_tokenizer_add(t, " x", 1) < 0
          && sd_tokenizer_add(t, "x", 0) < 0, "not UTF-8, empty, a space before, no vector: refused");
    CHECK(t->length == base + 3, "a refused token leaves nothing behind");
    CHECK(sd_tokenizer_set_pad(t, "a") == 0 && t->pad == sd_tokenizer_id(t, "a"), "another pad");
    CHECK(!sd_tokenizer_encode(t, scope, "bab", 3, &ids) && ids.count == 3 && ids.id[1] == t->pad,
          "is cut out of words");
    CHECK(sd_tokenizer_set_pad(t, "nope") < 0, "no such pad: %s", sd_reason());
}

static void
check_frame(void)
{
    struct sd_tokenizer *t = sd_tokenizer_load(scope, DATA "/tiny");
    int32_t framed[16];
    struct sd_ids ids;
    size_t cut;

    CHECK(t && t->model_max_length == 16 && t->bos == 662 && t->eos == 663 && t->pad == 0 && t->length == 664,
          "tiny: bos %d eos %d pad %d length %d of %d", t->bos, t->eos, t->pad, t->length, t->model_max_length);
    sd_tokenizer_encode(t, scope, "in", 2, &ids);
    cut = sd_tokenizer_frame(t, &ids, framed);
    CHECK(!cut && framed[0] == 662 && framed[2] == 663 && framed[3] == 0 && framed[15] == 0, "a short text is padded");
    sd_tokenizer_encode(t, scope, "a b c d e f g h i j k l m n", 27, &ids);
    CHECK(!sd_tokenizer_frame(t, &ids, framed) && framed[15] == 663, "fourteen ids fit");
    sd_tokenizer_encode(t, scope, "a b c d e f g h i j k l m n caf\u00e9 z", 35, &ids);
    cut = sd_tokenizer_frame(t, &ids, framed);
    CHECK(cut == ids.count - 14 && framed[15] == 663
          && !strcmp(sd_tokenizer_decode(t, scope, ids.id + 14, cut), "caf\u00e9 z"), "what is cut can be named: %s",
          sd_tokenizer_decode(t, scope, ids.id + 14, cut));
    CHECK(!strcmp(sd_tokenizer_decode(t, scope, ids.id + ids.count - 2, 2), "\uFFFD z"),
          "half a character becomes U+FFFD");
}

static void
refused(const char *name, const char *content, const char *reason)
{
    struct sd_tokenizer *t;

    clear_folder();
    for (int i = 0; i < 4; i++)
        copy_file(DATA "/tiny", (const char *[]){ "vocab.json", "merges.txt", "tokenizer_config.json",
                                                  "special_tokens_map.json" }[i]);
    if (content)
        write_text(name, content, strlen(content));
    else
        unlink(in_folder(name));
    t = sd_tokenizer_load(scope, folder);
    CHECK(!t && strstr(sd_reason(), reason), "%s %s: %s", name, content ? "faulty" : "missing",
          t ? "was read" : sd_reason());
}

static void
check_faults(void)
{
    static const char *const bad[] = { "\xff", "a\xc3", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "ok \x80" };
    struct sd_tokenizer *t = sd_tokenizer_load(scope, DATA "/tiny");
    struct sd_ids ids;
    json_t *json;

    for (size_t i = 0; i < COUNT(bad); i++)
        CHECK(sd_tokenizer_encode(t, scope, bad[i], strlen(bad[i]), &ids) < 0
                  && strstr(sd_reason(), "not UTF-8 at byte"),
              "bad text %zu: %s", i, sd_reason());
    CHECK(sd_tokenizer_encode(t, scope, text, (1 << 20) + 1, &ids) < 0, "too long: %s", sd_reason());
    CHECK(!sd_tokenizer_encode(t, scope, "a\0b", 3, &ids) && ids.count == 3, "U+0000 is a character");

    refused("merges.txt", NULL, "without merges.txt");
    refused("merges.txt", "#version: 0.2\ni n\nth e r\n", "merges.txt: line 3: expected two words");
    refused("merges.txt", "#version: 0.2\ni n\nq zz\n", "\"zz\" is not in the vocabulary");
    refused("merges.txt", "#version: 0.2\n", "no merges");
    refused("merges.txt", "\x1f\x8b\x08", "gunzip");
    refused("vocab.json", "[1]", "vocab.json: expected an object, found an array");
    refused("vocab.json", "{\"a\":1,\"b\":1}", "same id 1");
    refused("vocab.json", "{\"a\":-1}", "expected an id");
    refused("vocab.json", "{\"a\":1,\"a\":2}", "duplicate");
    refused("vocab.json", "{}", "empty");
    refused("special_tokens_map.json", "{\"bos_token\":7}",
            "special_tokens_map.json: bos_token: expected a token, found an integer");
    refused("special_tokens_map.json", "{\"eos_token\":\"</s>\"}", "eos_token \"</s>\" is not in the vocabulary");
    refused("special_tokens_map.json", "{\"eos_token\":", "special_tokens_map.json: line 1");
    refused("tokenizer_config.json", "{\"model_max_length\":\"long\"}", "model_max_length");
    refused("tokenizer_config.json", "{\"model_max_length\":2}", "model_max_length");
    refused("tokenizer_config.json", "{\"added_tokens_decoder\":{\"x\":{\"content\":\"y\"}}}", "is no id");
    refused("tokenizer_config.json", "{\"added_tokens_decoder\":{\"3\":{\"content\":\"in\"}}}", "the vocabulary says");
    refused("tokenizer_config.json",
            "{\"added_tokens_decoder\":{\"900\":{\"content\":\"y\",\"lstrip\":true,\"normalized\":true}}}",
            "the vocabulary says");
    refused("tokenizer_config.json", "{\"added_tokens_decoder\":{\"900\":{\"content\":\"<y>\",\"lstrip\":true}}}",
            "lstrip");
    refused("added_tokens.json", "{\"<y>\":3}", "has the id of");
    refused("tokenizer.json", "{}", "not a CLIP tokenizer");

    clear_folder();
    CHECK(!sd_tokenizer_load(scope, folder), "an empty folder: %s", sd_reason());
    CHECK(!sd_tokenizer_load(scope, in_folder("none")), "no folder: %s", sd_reason());
    write_json("tokenizer.json", json = machine(DATA "/tiny", false, true));
    CHECK((t = sd_tokenizer_load(scope, in_folder("tokenizer.json"))) && t->model_max_length == 77,
          "tokenizer.json alone");
    copy_file(DATA "/tiny", "vocab.json");
    copy_file(DATA "/tiny", "merges.txt");
    CHECK((t = sd_tokenizer_load(scope, folder)) != NULL, "both forms that agree");
    json_object_set_new(json_object_get(json_object_get(json, "model"), "vocab"), "Q", json_integer(700));
    write_json("tokenizer.json", json);
    CHECK(!sd_tokenizer_load(scope, folder) && strstr(sd_reason(), "vocab.json and tokenizer.json differ: \"Q\""),
          "other vocabulary: %s", sd_reason());
    json_decref(json);
    json = machine(DATA "/tiny", false, true);
    json_array_remove(json_object_get(json_object_get(json, "model"), "merges"), 4);
    write_json("tokenizer.json", json);
    CHECK(!sd_tokenizer_load(scope, folder) && strstr(sd_reason(), "merges.txt and tokenizer.json differ: merge 5"),
          "other merges: %s", sd_reason());
    json_object_set_new(json_object_get(json, "model"), "type", json_string("Unigram"));
    write_json("tokenizer.json", json);
    CHECK(!sd_tokenizer_load(scope, folder) && strstr(sd_reason(), "not a CLIP tokenizer"), "another family: %s",
          sd_reason());
    json_decref(json);
}

/* The length comes from the text encoder where Python wrote its "very large" one. */
static void
check_length(void)
{
    struct sd_tokenizer *t;
    const char *model = in_folder("model");

    clear_folder();
    for (int i = 0; i < 3; i++)
        mkdir((const char *[]){ model, sd_sprintf(scope, "%s/tokenizer", model),
                                sd_sprintf(scope, "%s/text_encoder", model) }[i],
              0777);
    copy_file(DATA "/tiny", "vocab.json");
    copy_file(DATA "/tiny", "merges.txt");
    rename(in_folder("vocab.json"), in_folder("model/tokenizer/vocab.json"));
    rename(in_folder("merges.txt"), in_folder("model/tokenizer/merges.txt"));
    write_text("model/tokenizer/tokenizer_config.json", "{\"model_max_length\": 1000000000000000019884624838656}", 53);
    t = sd_tokenizer_find(scope, model, NULL);
    CHECK(t && t->model_max_length == 77 && t->pad == 663, "no length anywhere: %d", t ? t->model_max_length : 0);
    write_text("model/text_encoder/config.json", "{\"max_position_embeddings\": 20}", 31);
    t = sd_tokenizer_load(scope, model);
    CHECK(t && t->model_max_length == 20, "the text encoder's: %d", t ? t->model_max_length : 0);
    for (int i = 0; i < 4; i++)
        unlink(in_folder((const char *[]){ "model/tokenizer/vocab.json", "model/tokenizer/merges.txt",
                                           "model/tokenizer/tokenizer_config.json",
                                           "model/text_encoder/config.json" }[i]));
    for (int i = 2; i >= 0; i--)
        rmdir((const char *[]){ model, sd_sprintf(scope, "%s/tokenizer", model),
                                sd_sprintf(scope, "%s/text_encoder", model) }[i]);
}

/* One long word, and marks in the worst order, take time like a plain text of that size. */
static void
check_time(const char *from)
{
    struct sd_tokenizer *t = sd_tokenizer_load(scope, from);
    size_t size = 1000000;
    char *big = sd_alloc(scope, size);
    double took[4], start;

    for (int kind = 0; kind < 4; kind++) {
        struct sd_scope *s = sd_scope_open();
        struct sd_ids ids;

        state = 5;
        for (size_t i = 0; i < size; i++)
            big[i] = kind == 0 ? (i % 6 == 5 ? ' ' : (char)('a' + below(26))) : kind == 1 ? (char)('a' + below(26))
                   : kind == 2 ? 'a' : "\u0345\u0334"[i % 4];
        start = sd_clock_of(CLOCK_PROCESS_CPUTIME_ID);
        if (sd_tokenizer_encode(t, s, big, size, &ids) < 0 || !ids.count)
            CHECK(false, "a megabyte: %s", sd_reason());
        took[kind] = sd_clock_of(CLOCK_PROCESS_CPUTIME_ID) - start;
        sd_scope_close(s);
    }
    CHECK(took[1] < 10 * took[0] && took[2] < 10 * took[0] && took[3] < 10 * took[0],
          "a megabyte: words %.2f s, one word %.2f s, one letter %.2f s, marks %.2f s", took[0], took[1], took[2],
          took[3]);
}

int
main(void)
{
    const char *data = getenv("SD_TEST_DATA");
    struct sd_tokenizer *t;

    scope = sd_scope_open();
    clip = sd_sprintf(scope, "%s/clip-tokenizer", data ? data : "../shared/data");
    if (access(sd_sprintf(scope, "%s/vocab.json", clip), R_OK))
        clip = NULL;
    if (!mkdtemp(folder))
        return 1;
    t = sd_tokenizer_load(scope, DATA "/tiny");
    if (CHECK(t != NULL, "tiny: %s", t ? "loads" : sd_reason())) {
        check_hashes(t, DATA "/random-tiny.txt", 1000, 1, random_text, "tiny, random strings");
        check_frame();
        check_add(DATA "/tiny");
        check_faults();
        check_length();
    }
    if (clip) {
        check_cases();
        check_grown();
        t = sd_tokenizer_load(scope, clip);
        check_hashes(t, DATA "/random.txt", 10000, 1, random_text, "random strings");
        check_hashes(t, DATA "/planes.txt", 0x1100, 16, plane_text, "every code point");
        t = sd_tokenizer_load(scope, sd_sprintf(scope, "%s/merges.txt", clip));
        if (CHECK(t && t->length == 49408 && t->eos == 49407, "a merge list alone: %s", t ? "loads" : sd_reason()))
            check_hashes(t, DATA "/random.txt", 10000, 1, random_text, "a merge list alone");
        check_time(clip);
    } else {
        check_skip("CLIP's vocabulary", "clip-tokenizer is not in SD_TEST_DATA");
    }
    clear_folder();
    rmdir(folder);
    sd_scope_close(scope);
    return check_done();
}
