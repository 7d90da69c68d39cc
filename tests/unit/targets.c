/* targets: patterns, which layers they take, first values, what is written. */
#include "../check.h"
#include "model/model.h"
#include "train/targets.h"

static const struct {
    const char *pattern, *path;
    bool match;
} patterns[] = {
    { "to_q", "down_blocks.0.attn1.to_q", true }, { "to_q", "to_q", true }, { "to_q", "a.xto_q", false },
    { "o_q", "a.to_q", false }, { "to_q", "a.to_q.b", false }, { "to_out.0", "a.to_out.0", true },
    { "to_?", "a.to_k", true }, { "to_?", "a.to_out", false }, { "to_?", "a.to_", false }, { "to_*", "a.to_", true },
    { "to_*", "a.to_out", true }, { "to_*", "a.to_out.0", false }, { "a?b", "a.b", false }, { "a*b", "a.b", false },
    { "*", "a.b", true }, { "*.to_q", "a.b.to_q", true }, { "down_blocks.*.to_q", "down_blocks.0.attn.to_q", false },
    { "down_blocks.*.*.to_q", "down_blocks.0.attn.to_q", true }, { "attn?.to_*", "x.attn2.to_v", true },
    { "", "a", false }, { "**q", "a.to_q", true }, { "a*a*a", "aaaa", true }, { "a*a*a", "aba", false },
    { "a.b.c", "a.b.c", true }, { "a.b.c", "b.c", false },
};

static struct sd_scope *s;
static struct sd_model *model;

struct set {
    struct sd_targets o;
    struct sd_trainables *t;
    struct sd_adapters *adapters;
    bool with_text;
    int64_t added;
};

static struct set
add(const char *words, int64_t rank, int64_t conv_rank)
{
    struct set x = {
        .o = { .patterns = words, .rank = rank, .conv_rank = conv_rank, .alpha = 2, .conv_alpha = 3, .seed = 5 },
        .t = sd_trainables_new(s),
        .adapters = sd_adapters_new(s)
    };

    x.added = sd_targets_add(&x.o, sd_model_unet(model)->weights, sd_model_text_encoder(model)->weights, x.t,
                             x.adapters, &x.with_text);
    if (x.added > 0)
        sd_trainables_allocate(x.t);
    return x;
}

static void
layers(void)
{
    struct set x = add("to_q,to_k,to_v,to_out.0", 4, 0);

    CHECK(x.added == 88 && !x.with_text && x.t->groups == 1, "attention of the UNet: %lld layers", (long long)x.added);
    x = add("to_q,te:q_proj", 4, 0);
    CHECK(x.added == 22 + 3 && x.with_text && x.t->groups == 2, "and of the text encoder: %lld", (long long)x.added);
    x = add("to_q,to_q,attn1.to_q", 4, 0);
    CHECK(x.added == 22, "a layer is taken once: %lld", (long long)x.added);
    CHECK(add("to_q,to_x", 4, 0).added < 0 && strstr(sd_reason(), "to_x: matches no layer"), "%s", sd_reason());
    CHECK(add("q_proj", 4, 0).added < 0, "the text encoder only with te:");
    CHECK(add("te:to_q", 4, 0).added < 0 && strstr(sd_reason(), "te:to_q"), "%s", sd_reason());
    CHECK(add("norm1", 4, 0).added < 0 && add("te:token_embedding", 4, 0).added < 0, "no norms, no embeddings");
    x = add("down_blocks.1.resnets.0.conv1,down_blocks.1.resnets.0.conv_shortcut,down_blocks.1.attentions.0.proj_in", 2,
            3);
    CHECK(x.added == 3, "convolutions");
    for (int i = 0; i < 3; i++) {
        struct sd_adapter *a = sd_adapters_at(x.adapters, (size_t)i);
        bool wide = strstr(a->path, "conv1") != NULL;

        CHECK(a->kind == (wide ? SD_ADAPTER_CONV : SD_ADAPTER_LINEAR) && a->down->shape[0] == (wide ? 3 : 2)
                  && x.o.conv[i] && *(const float *)a->scale->raw == (wide ? 1.0f : 1.0f),
              "%s", a->path);
    }
}

static void
first_values(void)
{
    struct set x = add("to_q,conv1", 4, 0), y = add("conv1,to_q", 4, 0);
    struct sd_adapter *a = sd_adapters_at(x.adapters, 0);
    double sum = 0, most = 0;
    size_t n = 0, ups = 0;
    struct sd_lora *lora;

    sd_targets_start(&x.o, x.adapters, NULL);
    sd_targets_start(&y.o, y.adapters, NULL);
    for (size_t i = 0; i < sd_adapters_count(x.adapters); i++) {
        a = sd_adapters_at(x.adapters, i);
        for (size_t k = 0; k < a->down->numel; k++, n++) {
            double v = (double)((float *)a->down->value)[k] * sqrt((double)a->down->numel / (double)a->down->shape[0]);

            sum += v * v;
            most = fmax(most, fabs(v));
        }
        for (size_t k = 0; k < a->up->numel; k++)
            ups += ((float *)a->up->value)[k] != 0;
    }
    CHECK(fabs(sum / (double)n * 3 - 1) < 0.05 && most <= 1 && most > 0.99,
          "A is uniform in +-1/sqrt(fan_in): variance %.3f / 3, most %.4f", sum / (double)n * 3, most);
    CHECK(ups == 0, "B is zero");
    CHECK(memcmp(x.t->value, y.t->value, x.t->count * sizeof(float)) == 0, "the order of patterns does not matter");
    y.o.seed = 6;
    sd_targets_start(&y.o, y.adapters, NULL);
    CHECK(memcmp(x.t->value, y.t->value, x.t->count * sizeof(float)) != 0, "another seed does");
    lora = sd_targets_lora(s, &x.o, x.adapters);
    y = add("to_q,conv1", 4, 0);
    CHECK(sd_targets_start(&y.o, y.adapters, lora) == 0
              && memcmp(x.t->value, y.t->value, x.t->count * sizeof(float)) == 0,
          "what was learned is a start");
    y = add("to_k,conv1", 4, 0);
    CHECK(sd_targets_start(&y.o, y.adapters, lora) < 0 && strstr(sd_reason(), "not in the file"),
          "of the same layers: %s", sd_reason());
    y = add("to_q,conv1", 3, 0);
    CHECK(sd_targets_start(&y.o, y.adapters, lora) < 0 && strstr(sd_reason(), "rank"), "of the same rank: %s",
          sd_reason());
}

int
main(void)
{
    size_t wrong = 0;

    s = sd_scope_open();
    sd_verbosity = -1;
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
        if (sd_targets_match(patterns[i].pattern, patterns[i].path) != patterns[i].match) {
            printf("# %s, %s\n", patterns[i].pattern, patterns[i].path);
            wrong++;
        }
    CHECK(!wrong, "%zu patterns", sizeof patterns / sizeof *patterns);
    model = sd_model_open(s, "tests/data/models/sd1", NULL);
    if (CHECK(model && sd_model_unet(model) && sd_model_text_encoder(model), "a model")) {
        layers();
        first_values();
    }
    sd_scope_close(s);
    return check_done();
}
