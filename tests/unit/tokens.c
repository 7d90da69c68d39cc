/* tokens: first rows from words, at random with the table's spread, from a file; where they stand in a caption. */
#include "../check.h"
#include "model/model_tokenizer.h"
#include "train/tokens.h"

#include <unistd.h>

static struct sd_scope *s;
static struct sd_model *model;

struct made {
    struct sd_tokenizer *tokenizer;
    struct sd_trainables *t;
    struct sd_tokens *tokens;
};

static struct made
add(const char **words, size_t count, int64_t vectors)
{
    struct made x = { .tokenizer = sd_model_tokenizer(model, NULL), .t = sd_trainables_new(s) };
    struct sd_list list = { count, words };

    x.tokens = sd_tokens_add(s, &list, vectors, x.tokenizer, model, x.t);
    if (x.tokens)
        sd_trainables_allocate(x.t);
    return x;
}

static double
spread(const float *row, int64_t n)
{
    double mean = 0, squares = 0;

    for (int64_t i = 0; i < n; i++)
        mean += row[i] / (double)n;
    for (int64_t i = 0; i < n; i++)
        squares += (row[i] - mean) * (row[i] - mean);
    return sqrt(squares / (double)(n - 1));
}

static const float *
table(void)
{
    struct sd_param *p = sd_weights_get(sd_model_text_encoder(model)->weights,
                                        "text_model.embeddings.token_embedding.weight", 2, (int64_t[]){ 664, 24 });
    float *x = sd_alloc_array(s, p->numel, sizeof *x);

    sd_param_convert((real *)x, p, 0, p->numel);
    return x;
}

int
main(void)
{
    const float *rows, *old;
    char folder[] = "/tmp/sd-tokens-XXXXXX";
    struct made x;
    double target = 0, mean = 0;
    struct sd_ids ids;

    s = sd_scope_open();
    if (!mkdtemp(folder)
        || system(sd_sprintf(
            s,
            "cp -r tests/data/models/sd1/* %s && rm -r %s/text_encoder && cp -r tests/data/train/text_encoder %s && "
            "cp -r tests/data/tokenizer/tiny %s/tokenizer",
            folder, folder, folder, folder)))
        return 99;
    model = sd_model_open(s, folder, NULL);
    if (!CHECK(model && sd_model_text_encoder(model), "a model"))
        return check_done();
    old = table();
    for (int i = 0; i < 664; i++)
        target += spread(old + 24 * i, 24) / 664;

    x = add((const char *[]){ "<a>", "<b>=the for" }, 2, 3);
    if (!CHECK(x.tokens && x.tokens->vectors == 6 && x.t->count == 6 * 24, "two tokens of three rows"))
        return check_done();
    CHECK(sd_tokens_start(x.tokens, model, x.tokenizer, NULL, 7) == 0, "started");
    rows = (const float *)x.tokens->rows->value;
    for (int i = 0; i < 3; i++)
        mean += spread(rows + 24 * i, 24) / 3;
    CHECK(fabs(mean / target - 1) < 1e-5, "random rows are as wide as the table's: %.5f of %.5f", mean, target);
    CHECK(memcmp(rows, rows + 24, 96) != 0, "and differ");
    CHECK(memcmp(rows + 72, old + 518 * 24, 96) == 0 && memcmp(rows + 96, old + 556 * 24, 96) == 0,
          "words: a row each");
    mean = check_distance(rows + 120, old + 518 * 24, 24);
    CHECK(mean > 0.01 && mean < 0.3, "then again, with a little noise: %.2f", mean);
    sd_tokenizer_encode(x.tokenizer, s, "the <b> in", 10, &ids);
    CHECK(!sd_tokens_in(x.tokens, 0, 664, ids.id, ids.count) && sd_tokens_in(x.tokens, 1, 664, ids.id, ids.count),
          "found in captions");
    {
        float first[24];

        memcpy(first, rows, sizeof first);
        sd_tokens_start(x.tokens, model, x.tokenizer, NULL, 7);
        CHECK(memcmp(first, rows, sizeof first) == 0, "the same seed, the same rows");
        sd_tokens_start(x.tokens, model, x.tokenizer, NULL, 8);
        CHECK(memcmp(first, rows, sizeof first) != 0, "another seed, others");
    }
    x = add((const char *[]){ "<c>=the for and" }, 1, 2);
    CHECK(sd_tokens_start(x.tokens, model, x.tokenizer, NULL, 7) < 0, "more words than rows: %s", sd_reason());
    x = add((const char *[]){ "<c>=" }, 1, 2);
    CHECK(sd_tokens_start(x.tokens, model, x.tokenizer, NULL, 7) < 0, "no words: %s", sd_reason());
    CHECK(!add((const char *[]){ "the" }, 1, 1).tokens, "a token that is one already: %s", sd_reason());
    CHECK(!add((const char *[]){ "<a>", "<a>" }, 2, 1).tokens, "the same twice: %s", sd_reason());
    {
        float values[48];
        struct sd_embedding e = { .token = "<x>", .vectors = 2, .width = 24, .values = values };

        for (int i = 0; i < 48; i++)
            values[i] = (float)i;
        x = add((const char *[]){ "<c>" }, 1, 2);
        CHECK(sd_tokens_start(x.tokens, model, x.tokenizer, &e, 7) == 0 && ((float *)x.tokens->rows->value)[47] == 47,
              "from a file");
        x = add((const char *[]){ "<c>" }, 1, 1);
        CHECK(sd_tokens_start(x.tokens, model, x.tokenizer, &e, 7) < 0, "of the same size: %s", sd_reason());
    }
    if (system(sd_sprintf(s, "rm -r %s", folder)))
        printf("# %s is left\n", folder);
    sd_scope_close(s);
    return check_done();
}
