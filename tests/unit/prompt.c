/* Prompts: weights, chunks, networks.  Stored hashes of random prompts: tests/reference/prompt.py. */
#include "tests/check.h"
#include "tests/splitmix.h"

#include "file.h"
#include "model/prompt.h"

#define DATA "tests/data/tokenizer"
#define COUNT(a) (sizeof (a) / sizeof *(a))

static struct sd_scope *scope;

static const char *const pieces[] = {
    "(", "(", "((", ")", ")", "[", "]", ":1.3)", ": 0.5 )", ":-.25)", ":+2.)", ":", "\\(", "\\)", "\\[", "\\]",
    "\\\\", "\\", "\\x", "BREAK", " BREAK ", "xBREAK", "BREAK_", "BREAK\u00e9", "\u3000BREAK\n", "BREAK BREAK",
    "a cat", ", ", ",", " ", "\n", "<toy>", " photo of a dog", "\u00e9", "the in er an on", "1.5", ":-1)",
    " a b c d e f g h", "<toy><toy>", "x, y",
};

static const char *
random_prompt(struct sd_scope *s, int i)
{
    char *text = sd_alloc(s, 40 * 24 + 1);

    state = (uint64_t)i;
    for (uint64_t n = 1 + below(40); n; n--)
        strcat(text, pieces[below(COUNT(pieces))]);
    return text;
}

#define FOLD(h) (((h) ^ (h) >> 32) & 0xFFFFFFFF)

static void
check_random(struct sd_tokenizer *t)
{
    static const int lengths[] = { 16, 40, 77 };
    size_t size;
    char *at = sd_file_read(scope, DATA "/prompts.txt", 1 << 20, &size);
    int bad_items = 0, bad_chunks = 0;

    if (!CHECK(at != NULL, "stored values are there"))
        return;
    for (int i = 0; i < 1500; i++) {
        struct sd_scope *s = sd_scope_open();
        const char *text = random_prompt(s, i);
        struct sd_prompt_items items;
        uint64_t h = FNV;

        if (sd_prompt_parse(s, text, &items) < 0)
            printf("# %s\n", sd_reason());
        for (size_t k = 0; k < items.count; k++) {
            h = hash(h, items.item[k].text, strlen(items.item[k].text) + 1);
            h = hash(h, &items.item[k].weight, sizeof (double));
        }
        if (FOLD(h) != strtoul(at, &at, 16) && bad_items++ < 3)
            printf("# prompt %d\n", i);
        for (int l = 0; l < 3; l++) {
            struct sd_prompt p;

            t->model_max_length = lengths[l];
            if (sd_prompt_encode(t, s, SD_PROMPT_A1111, text, &p) < 0)
                printf("# %s\n", sd_reason());
            h = FNV;
            for (int k = 0; k < p.chunks * p.length; k++)
                h = hash(hash(h, p.input_ids + k, 4), p.weights + k, 4);
            if (FOLD(h) != strtoul(at, &at, 16) && bad_chunks++ < 3)
                printf("# prompt %d in chunks of %d\n", i, lengths[l]);
        }
        sd_scope_close(s);
    }
    t->model_max_length = 16;
    CHECK(!bad_items, "random prompts: the items of %d of 1500 differ from the reference", bad_items);
    CHECK(!bad_chunks, "random prompts: the chunks of %d of 4500 differ from the reference", bad_chunks);
}

/* text, then items as "text|weight" with three digits, joined by "/" */
static void
check_items(const char *text, const char *expected)
{
    struct sd_prompt_items items;
    char got[1000] = "";

    if (!CHECK(!sd_prompt_parse(scope, text, &items), "\"%s\" is parsed", text))
        return;
    for (size_t i = 0; i < items.count; i++)
        sprintf(got + strlen(got), "%s%s|%.3f%s", i ? "/" : "", items.item[i].text, items.item[i].weight,
                items.item[i].is_break ? "!" : "");
    CHECK(!strcmp(got, expected), "\"%s\" is %s", text, got);
}

static void
check_weights(void)
{
    struct sd_prompt_items items;

    check_items("normal text", "normal text|1.000");
    check_items("", "|1.000");
    check_items("an (important) word", "an |1.000/important|1.100/ word|1.000");
    check_items("(unbalanced", "unbalanced|1.100");
    check_items("\\(literal\\]", "(literal]|1.000");
    check_items("(unnecessary)(parens)", "unnecessaryparens|1.100");
    check_items("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
                "a |1.000/house|1.573/ |1.100/on|1.000/ a |1.100/hill|0.550/, sun, |1.100/sky|1.464/.|1.100");
    check_items("a: b) :1.5)", "a: b) :1.5)|1.000");
    check_items("[a:b:0.5]", "a:b:0.5|0.909");
    check_items("a BREAK b", "a|1.000/BREAK|-1.000!/b|1.000");
    check_items("(a BREAK b)", "a|1.100/BREAK|-1.100/b|1.100");
    check_items("a\\ b", "a b|1.000");
    check_items("BREAKFAST", "BREAKFAST|1.000");
    CHECK(sd_prompt_parse(scope, "(a:1.2.3)", &items) < 0, "no number: %s", sd_reason());
    CHECK(sd_prompt_parse(scope, "(a:.)", &items) < 0, "no number: %s", sd_reason());
    CHECK(sd_prompt_parse(scope, "a\xff", &items) < 0, "no text: %s", sd_reason());
}

static struct sd_prompt p;

static bool
encode(struct sd_tokenizer *t, enum sd_prompt_syntax syntax, const char *text)
{
    if (sd_prompt_encode(t, scope, syntax, text, &p) < 0) {
        printf("# %s\n", sd_reason());
        return false;
    }
    return true;
}

static void
check_chunks(struct sd_tokenizer *t)
{
    const char *long_text = "a b c d e f g h i j k l m n o p";
    bool ok = encode(t, SD_PROMPT_A1111, "");

    CHECK(ok && p.chunks == 1 && !p.tokens && !p.weighted && p.input_ids[0] == t->bos && p.input_ids[1] == t->eos
          && p.input_ids[2] == t->pad && p.input_ids[15] == t->pad, "the empty prompt is one chunk");
    ok = encode(t, SD_PROMPT_A1111, "a BREAK (b)");
    CHECK(ok && p.chunks == 2 && p.weighted && p.tokens == 2 && p.weights[0] == 1 && p.weights[17] == 1.1f
          && p.weights[18] == 1, "BREAK begins a chunk");
    ok = encode(t, SD_PROMPT_CAPTION, "a B (b)");
    CHECK(ok && p.chunks == 1 && !p.weighted && p.tokens == 5 && p.input_ids[3] == sd_tokenizer_id(t, "(</w>"),
          "a caption has no syntax: %zu ids", p.tokens);
    ok = encode(t, SD_PROMPT_CAPTION, long_text);
    CHECK(ok && p.chunks == 2 && p.tokens == 16 && p.input_ids[15] == t->eos && p.input_ids[16] == t->bos,
          "a long caption has chunks: %d", p.chunks);
    ok = encode(t, SD_PROMPT_CAPTION, "a b c d e f g h, i j k l m n o");
    CHECK(ok && p.chunks == 2 && p.input_ids[10] == t->eos && p.input_ids[11] == t->pad
          && p.input_ids[17] == sd_tokenizer_id(t, "i</w>"), "what follows a comma stays together");
    ok = encode(t, SD_PROMPT_PLAIN, long_text);
    CHECK(ok && p.chunks == 1 && p.cut == 2 && p.tokens == 16 && !strcmp(p.cut_text, "o p"),
          "plain is cut, and says \"%s\"", p.cut_text);
    ok = encode(t, SD_PROMPT_PLAIN, "(a:1.5) BREAK");
    CHECK(ok && !p.weighted && !p.cut && !*p.cut_text, "plain has no weights");
    ok = encode(t, SD_PROMPT_CAPTION, "a <|endoftext|> b");
    CHECK(ok && p.input_ids[2] == t->eos && p.input_ids[3] == t->pad, "padding begins behind the first end token");
    ok = encode(t, SD_PROMPT_A1111, "(a)");
    sd_prompt_pad(t, scope, &p, 4);
    CHECK(ok && p.chunks == 4 && p.weights[1] == 1.1f && p.input_ids[48] == t->bos && p.input_ids[49] == t->eos
          && p.input_ids[63] == t->pad && p.weights[63] == 1, "padded to four chunks");
    sd_prompt_pad(t, scope, &p, 2);
    CHECK(p.chunks == 4, "never to fewer");
    CHECK(sd_tokenizer_add(t, "<wide>", 15) > 0 && !encode(t, SD_PROMPT_A1111, "a <wide>"),
          "too many vectors for a chunk");
}

/* rest, then networks as "kind name te unet dyn" */
static void
check_networks(const char *text, const char *expected)
{
    struct sd_prompt_network *n;
    const char *rest;
    size_t count;
    char got[500];

    if (!CHECK(!sd_prompt_networks(scope, text, &rest, &n, &count), "\"%s\" is parsed", text))
        return;
    strcpy(got, rest);
    for (size_t i = 0; i < count; i++)
        sprintf(got + strlen(got), "|%s %s %g %g %d", n[i].kind, n[i].name, n[i].te, n[i].unet, (int)n[i].dyn);
    CHECK(!strcmp(got, expected), "\"%s\" is \"%s\"", text, got);
}

static void
check_loras(void)
{
    static const char *const bad[] = { "<lora:x:high>",    "<lora:x:1:2:3:4>", "<lora:x:te=1:on=2>", "<lora::1>",
                                       "<lora:x:1:1:0.5>", "<lora:x:dyn=-1>",  "<lora:x:nan>" };
    struct sd_prompt_network *n;
    const char *rest;
    size_t count;

    check_networks("a cat", "a cat");
    check_networks("a <lora:my cat:0.8> cat", "a  cat|lora my cat 0.8 0.8 0");
    check_networks("<lora:x>", "|lora x 1 1 0");
    check_networks("<lora:x:0.5:-1:8>b", "b|lora x 0.5 -1 8");
    check_networks("<lora:x:unet=0.5>", "|lora x 1 0.5 0");
    check_networks("<lora:x:0.2:te=0.5:dyn=4>", "|lora x 0.5 0.5 4");
    check_networks("<hypernet:y:0.3> <s0> <a:> a<b <lora:z:1>", " <s0> <a:> a<b |hypernet y 1 1 0|lora z 1 1 0");
    check_networks("<lora:open", "<lora:open");
    check_networks("< lora:x:1> <:x>", "< lora:x:1> <:x>");
    for (size_t i = 0; i < COUNT(bad); i++)
        CHECK(sd_prompt_networks(scope, bad[i], &rest, &n, &count) < 0, "refused: %s", sd_reason());
}

int
main(void)
{
    struct sd_tokenizer *t;

    scope = sd_scope_open();
    check_weights();
    check_loras();
    t = sd_tokenizer_load(scope, DATA "/tiny");
    if (CHECK(t != NULL, "tiny: %s", t ? "loads" : sd_reason())) {
        sd_tokenizer_add(t, "<toy>", 5);
        check_random(t);
        check_chunks(t);
    }
    sd_scope_close(scope);
    return check_done();
}
