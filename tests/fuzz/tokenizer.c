/* Fuzz: tokenizer files and texts.  The first byte says what the rest is: a text for a good tokenizer, as prompt and as
 * networks too, or one of a tokenizer's files beside good ones. */
#include "fuzz.h"
#include "model/prompt.h"

#include <string.h>
#include <unistd.h>

static const char *const names[] = { "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
                                     "special_tokens_map.json", "added_tokens.json" };
enum { NAMES = sizeof names / sizeof *names };

/* bytes and two merges: smaller than any file in the tree, so that thousands load in a second */
static const char vocabulary[] = "{\"a\":0,\"b\":1,\"!\":2,\",</w>\":3,\"a</w>\":4,\"b</w>\":5,\"ab\":6,\"ab</w>\":7,"
                                 "\"<|startoftext|>\":8,\"<|endoftext|>\":9}";
static const char merge_list[] = "#version: 0.2\na b\na b</w>\n";

static char folder[64];

static void
put(const char *name, const void *content, size_t bytes)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (!(f = fopen(path, "w")) || fwrite(content, 1, bytes, f) != bytes || fclose(f))
        abort();
}

static void
clear(void)
{
    char path[128];

    for (int i = 0; i < NAMES; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
}

static void
use(struct sd_scope *s, struct sd_tokenizer *t, const char *text, size_t bytes)
{
    struct sd_prompt_network *networks;
    struct sd_prompt p;
    struct sd_ids ids;
    const char *rest, *copy = sd_strndup(s, text, bytes);
    int32_t *framed = sd_alloc_array(s, (size_t)t->model_max_length, sizeof *framed);
    size_t count;

    if (!sd_tokenizer_encode(t, s, text, bytes, &ids)) {
        for (size_t i = 0; i < ids.count; i++)
            if (ids.id[i] < 0 || ids.id[i] >= t->length)
                abort();
        if (sd_tokenizer_frame(t, &ids, framed) > ids.count)
            abort();
        sd_tokenizer_decode(t, s, ids.id, ids.count);
    }
    for (int syntax = SD_PROMPT_A1111; syntax <= SD_PROMPT_CAPTION; syntax++)
        if (!sd_prompt_encode(t, s, syntax, copy, &p)) {
            for (int i = 0; i < p.chunks * p.length; i++)
                if (p.input_ids[i] < 0 || p.input_ids[i] >= t->length || (i % p.length == 0 && p.input_ids[i] != t->bos))
                    abort();
            sd_prompt_pad(t, s, &p, p.chunks + 1);
        }
    if (!sd_prompt_networks(s, copy, &rest, &networks, &count))
        for (size_t i = 0; i < count; i++)
            if (!networks[i].kind || !networks[i].name)
                abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct sd_tokenizer *good;
    struct sd_scope *s;
    struct sd_tokenizer *t;

    if (!*folder) {
        strcpy(folder, "/tmp/sd-fuzz-XXXXXX");
        if (!mkdtemp(folder))
            abort();
        put("vocab.json", vocabulary, sizeof vocabulary - 1);
        put("merges.txt", merge_list, sizeof merge_list - 1);
        if (!(good = sd_tokenizer_load(NULL, folder)) || sd_tokenizer_add(good, "<toy>", 3) < 0)
            abort();
    }
    if (!size)
        return 0;
    s = sd_scope_open();
    if (data[0] % 8 >= NAMES) {
        use(s, good, (const char *)data + 1, size - 1);
    } else {
        clear();
        if (data[0] % 8 != 2) {
            put("vocab.json", vocabulary, sizeof vocabulary - 1);
            put("merges.txt", merge_list, sizeof merge_list - 1);
        }
        put(names[data[0] % 8], data + 1, size - 1);
        if ((t = sd_tokenizer_load(s, folder)))
            use(s, t, "ab, (a:1.2) \xc3\xa9!! <toy>", 20);
    }
    sd_scope_close(s);
    return 0;
}
