/* LoRA files: every dialect of tests/data/lora (written by the reference libraries, or by the tables of formats.md 3)
 * holds the same changes of weights; what is written here reads the same; files that are not understood are refused by
 * name. */
#include "check.h"
#include "child.h"
#include "hash.h"
#include "model/lora.h"

#include <sys/stat.h>

#define DATA "tests/data/lora/"

static char start[4096];            /* the tests run in a folder of their own */

static const char *
data(struct sd_scope *s, const char *name)
{
    return sd_sprintf(s, "%s/" DATA "%s", start, name);
}

/* scale up down, and its distance from what is stored under the layer's path */
static double
distance(struct sd_scope *s, const struct sd_lora_layer *l, const float *expected)
{
    size_t n = (size_t)(l->out * l->in * l->kh * l->kw);
    float *w = sd_alloc_array(s, n, sizeof *w);

    sd_lora_merge(l, 0.25, w);
    sd_lora_merge(l, 0.75, w);          /* a strength counts once, and is added to what is there */
    return check_distance(w, expected, n);
}

/* expected: a file of changes; of: how many layers of it there should be.  The largest distance; NAN when layers
 * differ. */
static double
compare(struct sd_scope *s, const struct sd_lora *lora, const char *expected, double factor, size_t of)
{
    struct sd_safetensors *f = sd_safetensors_open(s, data(s, expected));
    double worst = 0;

    if (!lora || !f) {
        printf("# %s\n", sd_reason());
        return NAN;
    }
    if (lora->count != of) {
        printf("# %zu layers, expected %zu\n", lora->count, of);
        return NAN;
    }
    for (size_t i = 0; i < lora->count; i++) {
        struct sd_safetensor *t = sd_safetensors_find(f, lora->layer[i].path);
        struct sd_lora_layer l = lora->layer[i];
        double d;

        l.scale /= factor;
        if (!t || t->numel != (size_t)(l.out * l.in * l.kh * l.kw)
            || !((d = distance(s, &l, sd_safetensor_f32(s, t))) < 1)) {
            printf("# %s: %s\n", l.path, t ? "another size or value" : "not expected");
            return NAN;
        }
        worst = d > worst ? d : worst;
    }
    return worst;
}

/* f32 factors were folded once, and are multiplied here in f32 */
static const double bound = 1e-6;

static void
test_dialects(void)
{
    static const struct {
        const char *file, *expected, *dialect;
        size_t layers;
    } files[] = {
        { "sd1.kohya.safetensors", "sd1", "kohya", 18 },
        { "sd1.kohya_ldm.safetensors", "sd1", "kohya", 18 },
        { "sd1.diffusers.safetensors", "sd1", "diffusers", 18 },
        { "sd1.diffusers_middle.safetensors", "sd1", "diffusers (old)", 18 },
        { "sd1.diffusers_oldest.safetensors", "sd1", "diffusers (old)", 6 },
        { "sd1.comfy.safetensors", "sd1", "comfy", 18 },
        { "sd1.mixed.safetensors", "sd1", NULL, 18 },
        { "sd1.peft", "sd1", "peft", 18 },
        { "sd2.kohya.safetensors", "sd2", "kohya", 9 },
        { "sd2.diffusers.safetensors", "sd2", "diffusers", 9 },
        { "sd2.peft", "sd2", "peft", 9 },
    };

    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct sd_scope *s = sd_scope_open();
        struct sd_lora *lora = sd_lora_load(s, data(s, files[i].file));
        double d = compare(s, lora, sd_sprintf(s, "%s.expected.safetensors", files[i].expected), 1, files[i].layers);

        CHECK(d <= bound, "%s: %zu layers, distance %.2g", files[i].file, files[i].layers, d);
        if (files[i].dialect)
            CHECK(lora && strcmp(lora->dialect, files[i].dialect) == 0, "%s: is %s", files[i].file,
                  lora ? lora->dialect : "?");
        CHECK(lora && lora->dtype == SD_F32, "%s: F32", files[i].file);
        sd_scope_close(s);
    }
}

static const char *const words[] = { "kohya", "diffusers", "peft", "comfy" };

/* Each form into each other, and back; f16 within its rounding. */
static void
test_conversions(void)
{
    for (int a = 0; a < 4; a++)
        for (int b = 0; b < 4; b++) {
            struct sd_scope *s = sd_scope_open();
            struct sd_lora *lora = sd_lora_load(s, data(s, "sd1.peft"));
            const char *path[] = { sd_sprintf(s, "a%d%d", a, b), sd_sprintf(s, "b%d%d", a, b),
                                   sd_sprintf(s, "c%d%d", a, b) };
            double worst = NAN, d = NAN;

            if (sd_lora_save(lora, path[0], sd_lora_format(words[a]), SD_F32, NULL) == 0
                && (lora = sd_lora_load(s, path[0]))
                && sd_lora_save(lora, path[1], sd_lora_format(words[b]), SD_F32, NULL) == 0
                && (lora = sd_lora_load(s, path[1]))
                && sd_lora_save(lora, path[2], sd_lora_format(words[a]), SD_F32, NULL) == 0
                && sd_lora_verify(lora, path[2], &worst) == 0)
                d = compare(s, sd_lora_load(s, path[2]), "sd1.expected.safetensors", 1, 18);
            CHECK(d <= bound && worst <= bound, "peft to %s to %s to %s: distance %.2g, verify says %.2g", words[a],
                  words[b], words[a], d, worst);
            sd_scope_close(s);
        }
    for (int a = 0; a < 4; a++) {
        struct sd_scope *s = sd_scope_open();
        struct sd_lora *lora = sd_lora_load(s, data(s, "sd1.mixed.safetensors"));
        double half = NAN, brain = NAN;

        sd_lora_save(lora, "half", sd_lora_format(words[a]), SD_F16, NULL);
        sd_lora_verify(lora, "half", &half);
        if (a == 2)
            rename("half", "half.peft");
        sd_lora_save(lora, "brain", sd_lora_format(words[a]), SD_BF16, NULL);
        sd_lora_verify(lora, "brain", &brain);
        if (a == 2)
            rename("brain", "brain.peft");
        /* rounding of two factors: at most 2 x 2^-11, 2 x 2^-8, and never nothing */
        CHECK(half < 1e-3 && half > 1e-5 && brain < 8e-3 && brain > 1e-4, "%s in F16: %.2g, in BF16: %.2g", words[a],
              half, brain);
        sd_scope_close(s);
    }
}

/* One alpha for a component, so that diffusers takes it for every layer; kohya's hashes; shapes of 1x1 convolutions. */
static void
test_kohya(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_lora *lora = sd_lora_load(s, data(s, "sd1.peft"));
    const char *const pairs[] = { "ss_v2", "False", "title", "x", NULL };
    struct sd_safetensors *f = NULL;
    float unet = 0, text = 0;
    bool one = true, has = true;
    char hex[SD_SHA256_HEX];
    const void *region;
    size_t n = 0;

    CHECK(sd_lora_save(lora, "kohya", SD_LORA_KOHYA, SD_F32, pairs) == 0 && (f = sd_safetensors_open(s, "kohya")),
          "kohya's form is written");
    for (size_t i = 0; i < sd_safetensors_count(f); i++) {
        struct sd_safetensor *t = sd_safetensors_at(f, i);
        float *alpha = strncmp(t->name, "lora_te_", 8) == 0 ? &text : &unet, value;

        has &= strncmp(t->name, "lora_unet_", 10) == 0 || strncmp(t->name, "lora_te_text_model_", 19) == 0;
        if (strcmp(strchr(t->name, '.'), ".alpha") != 0)
            continue;
        memcpy(&value, t->data, sizeof value);
        one &= t->ndim == 0 && (*alpha == 0 || *alpha == value);
        *alpha = value;
        n++;
    }
    CHECK(has && n == 18 && one && unet > 0 && text > 0, "one alpha per component: %g, %g", unet, text);
    CHECK(sd_safetensors_get(f, "lora_unet_down_blocks_0_attentions_1_proj_in.lora_up.weight", 4,
                             (int64_t[]){ 8, 2, 1, 1 })
              != NULL,
          "a 1x1 convolution's up factor has four dimensions");
    region = sd_safetensors_region(f, &n);
    sd_sha256_of(region, n, hex);
    CHECK(strcmp(sd_safetensors_metadata(f, "sshs_model_hash"), hex) == 0, "sshs_model_hash is the data's");
    CHECK(strcmp(sd_safetensors_metadata(f, "sshs_legacy_hash"), "e3b0c442") == 0,
          "a file below 1 MiB has the hash of nothing");
    CHECK(strcmp(sd_safetensors_metadata(f, "title"), "x") == 0
              && strcmp(sd_safetensors_metadata(f, "format"), "pt") == 0,
          "the caller's pairs are there");
    sd_scope_close(s);
}

/* diffusers finds out a text encoder's form by its attention's keys; of mlp layers alone it reads lora_linear_layer
 * only. */
static void
test_mlp_alone(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_lora *lora = sd_lora_load(s, data(s, "sd1.peft"));
    struct sd_safetensors *f = NULL;
    double worst = NAN;
    size_t n = 0;

    for (size_t i = 0; i < lora->count; i++)
        if (!strstr(lora->layer[i].path, "self_attn"))
            lora->layer[n++] = lora->layer[i];
    lora->count = n;
    CHECK(
        n == 16 && sd_lora_save(lora, "mlp", SD_LORA_DIFFUSERS, SD_F32, NULL) == 0
            && (f = sd_safetensors_open(s, "mlp"))
            && sd_safetensors_find(f, "text_encoder.text_model.encoder.layers.1.mlp.fc1.lora_linear_layer.down.weight")
            && sd_safetensors_find(f, "unet.mid_block.attentions.0.proj_out.lora_A.weight"),
        "a text encoder's mlp alone");
    CHECK(sd_lora_verify(lora, "mlp", &worst) == 0 && worst < bound, "reads back: %.2g", worst);
    sd_scope_close(s);
}

/* The same numbers as in lora.py's hashes(), which are kohya's. */
static void
test_hashes(void)
{
    enum { RANK = 64, SIDE = 3000 };
    struct sd_scope *s = sd_scope_open();
    float *down = sd_alloc_array(s, RANK * SIDE, sizeof *down), *up = sd_alloc_array(s, RANK * SIDE, sizeof *up);
    struct sd_lora_layer l = { .path = "unet.mid_block.attentions.0.proj_in",
                               .rank = RANK,
                               .in = SIDE,
                               .out = SIDE,
                               .kh = 1,
                               .kw = 1,
                               .down = down,
                               .up = up,
                               .scale = 1 };
    struct sd_lora lora = { .scope = s, .count = 1, .layer = &l };
    struct sd_safetensors *f = NULL;

    for (int i = 0; i < RANK * SIDE; i++) {
        down[i] = (float)(i % 251) / 64;
        up[i] = (float)(i % 241) / 64;
    }
    sd_lora_save(&lora, "large", SD_LORA_KOHYA, SD_F32,
                 (const char *const[]){ "ss_v2", "False", "ss_network_dim", "64", "a", "b", NULL });
    f = sd_safetensors_open(s, "large");
    CHECK(strcmp(sd_safetensors_metadata(f, "sshs_model_hash"),
                 "5e89a6ca56b633c776d49180eb5e1c0b55928cf5236e94700a8c420bb4c3cc10")
              == 0,
          "sshs_model_hash %s", sd_safetensors_metadata(f, "sshs_model_hash"));
    CHECK(strcmp(sd_safetensors_metadata(f, "sshs_legacy_hash"), "18507aae") == 0, "sshs_legacy_hash %s",
          sd_safetensors_metadata(f, "sshs_legacy_hash"));
    sd_scope_close(s);
}

static void
test_join(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_lora *a = sd_lora_load(s, data(s, "sd1.kohya.safetensors")),
                   *b = sd_lora_load(s, data(s, "sd1.mixed.safetensors")),
                   *old = sd_lora_load(s, data(s, "sd1.diffusers_oldest.safetensors")),
                   *sd2 = sd_lora_load(s, data(s, "sd2.peft"));
    struct sd_lora *sum = sd_lora_join(s, (struct sd_lora *[]){ a, b }, (double[]){ 0.75, -0.25 }, 2), *one, *with_old;
    double d = compare(s, sum, "sd1.expected.safetensors", 0.5, 18);

    CHECK(d <= bound && sum->layer[0].rank == a->layer[0].rank + b->layer[0].rank && sum->layer[0].scale == 1,
          "0.75 of a file and -0.25 of the same in another form are half of it: distance %.2g", d);
    one = sd_lora_join(s, &a, (double[]){ -2 }, 1);
    d = compare(s, one, "sd1.expected.safetensors", -2, 18);
    CHECK(d <= bound && one->layer[3].down == a->layer[3].down, "one file, -2 of it: distance %.2g, its factors", d);
    with_old = sd_lora_join(s, (struct sd_lora *[]){ old, a }, (double[]){ 0, 1 }, 2);
    d = compare(s, with_old, "sd1.expected.safetensors", 1, 18);
    CHECK(d <= bound, "files of 6 and 18 layers: the union, distance %.2g", d);
    CHECK(!sd_lora_join(s, (struct sd_lora *[]){ a, sd2 }, (double[]){ 1, 1 }, 2)
          && strstr(sd_reason(), "in one file,"), "shapes that differ: %s", sd_reason());
    sd_scope_close(s);
}

/* Sixteen times a tenth of what was hardly trained: f16 would hold such ups in a few bits, or not at all. */
static void
test_join_small(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_lora *a = sd_lora_load(s, data(s, "sd1.kohya.safetensors")), *all[16], *sum;
    double weight[16], worst = NAN;

    for (size_t i = 0; i < a->count; i++) {
        struct sd_lora_layer *l = &a->layer[i];
        float *up = sd_alloc_array(s, (size_t)(l->out * l->rank), sizeof *up);

        for (int64_t k = 0; k < l->out * l->rank; k++)
            up[k] = 1e-5F * l->up[k];
        l->up = up;
    }
    for (int i = 0; i < 16; i++) {
        all[i] = a;
        weight[i] = i % 2 ? 0.1 : -0.05;
    }
    sum = sd_lora_join(s, all, weight, 16);
    for (enum sd_lora_format f = SD_LORA_KOHYA; f <= SD_LORA_COMFY; f++) {
        const char *file = sd_sprintf(s, "small%d", f);

        CHECK(sd_lora_save(sum, file, f, SD_F16, NULL) == 0 && sd_lora_verify(sum, file, &worst) == 0 && worst < 2e-3,
              "16 small ones in f16, form %d: %.2g", f, worst);
    }
    sd_lora_save(a, "alone", SD_LORA_KOHYA, SD_F16, NULL);
    CHECK(sd_lora_verify(a, "alone", &worst) == 0 && worst > 2e-3, "one whose ups f16 holds badly: %.2g, no fault", worst);
    sd_scope_close(s);
}

/* verify sees what is not the same */
static void
test_verify(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_lora *a = sd_lora_load(s, data(s, "sd1.kohya.safetensors")), less = *a, *zero;
    float *up;
    double worst = NAN;

    sd_lora_save(a, "whole", SD_LORA_DIFFUSERS, SD_F32, NULL);
    a->layer[5].scale *= 1.01;
    CHECK(sd_lora_verify(a, "whole", &worst) < 0 && fabs(worst - 0.01 / 1.01) < 1e-6
              && strstr(sd_reason(), "not those that were to be written"),
          "a scale 1 %% off: %.6f, %s", worst, sd_reason());
    a->layer[5].scale /= 1.01;
    less.count--;
    CHECK(sd_lora_verify(&less, "whole", &worst) < 0 && strcmp(sd_reason(), "18 layers, expected 17") == 0, "%s",
          sd_reason());
    less = *a;
    less.layer = sd_alloc_array(s, a->count, sizeof *less.layer);
    memcpy(less.layer, a->layer, a->count * sizeof *less.layer);
    less.layer[2].path = "unet.conv_in";
    CHECK(sd_lora_verify(&less, "whole", &worst) < 0 && strstr(sd_reason(), "expected unet.conv_in"), "%s",
          sd_reason());
    zero = sd_lora_load(s, data(s, "sd1.kohya.safetensors"));
    up = sd_alloc_array(s, (size_t)(zero->layer[0].out * zero->layer[0].rank), sizeof *up);
    zero->layer[0].up = up;
    zero->layer[0].scale = 0;
    CHECK(sd_lora_save(zero, "zero", SD_LORA_KOHYA, SD_F16, NULL) == 0 && sd_lora_verify(zero, "zero", &worst) == 0
              && worst < 1e-3,
          "a layer that changes nothing: %.2g", worst);
    CHECK(sd_lora_verify(a, "zero", &worst) < 0 && worst >= 0.99, "is not one that changes something: %.2g", worst);
    sd_scope_close(s);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

#define MODULE "lora_unet_mid_block_attentions_0_proj_in"

static struct sd_safetensors_writer *writer;
static float numbers[64];

static void
tensor(const char *part, int ndim, int64_t a, int64_t b, int64_t c, int64_t d)
{
    static char name[256];

    snprintf(name, sizeof name, "%s.%s", MODULE, part);
    sd_safetensors_add_f32(writer, name, SD_F32, ndim, (int64_t[]){ a, b, c, d }, numbers);
}

/* Load what was put together; NULL and the reason printed by the caller. */
static struct sd_lora *
finish(struct sd_scope *s)
{
    if (sd_safetensors_save(writer, "made.safetensors") < 0)
        return NULL;
    return sd_lora_load(s, "made.safetensors");
}

static void
refused(struct sd_scope *s, const char *why)
{
    struct sd_lora *lora = finish(s);

    CHECK(!lora && strstr(sd_reason(), why), "refused: %s", lora ? "no" : sd_reason());
    writer = sd_safetensors_writer_new(s);
}

static void
test_faults(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_lora *lora;
    double d = 0;

    for (int i = 0; i < 64; i++)
        numbers[i] = (float)(i % 7) - 3;
    writer = sd_safetensors_writer_new(s);
    refused(s, "no adapter");
    tensor("lora_down.weight", 2, 2, 4, 0, 0);
    refused(s, "up is missing");
    tensor("alpha", 0, 0, 0, 0, 0);
    refused(s, "down is missing");
    tensor("lora_down.weight", 2, 2, 4, 0, 0);
    tensor("lora_up.weight", 2, 4, 3, 0, 0);
    refused(s, "ranks differ: down [2, 4], up [4, 3]");
    tensor("lora_down.weight", 3, 2, 4, 1, 0);
    tensor("lora_up.weight", 2, 4, 2, 0, 0);
    refused(s, "factors of shape [2, 4, 1] and [4, 2]");
    tensor("lora_down.weight", 2, 2, 4, 0, 0);
    tensor("lora_up.weight", 4, 4, 2, 1, 2);
    refused(s, "factors of shape");
    tensor("lora_down.weight", 2, 2, 4, 0, 0);
    tensor("lora_up.weight", 2, 4, 2, 0, 0);
    tensor("alpha", 1, 2, 0, 0, 0);
    refused(s, "alpha of 2 elements");
    tensor("lora_down.weight", 2, 2, 4, 0, 0);
    tensor("lora_up.weight", 2, 4, 2, 0, 0);
    sd_safetensors_add_f32(writer, "unet.mid_block.attentions.0.proj_in.lora_A.weight", SD_F32, 2, (int64_t[]){ 2, 4 },
                           numbers);
    refused(s, "the same as " MODULE ".lora_down.weight");
    tensor("lora_down.weight", 2, 2, 4, 0, 0);
    tensor("lora_up.weight", 2, 4, 2, 0, 0);
    sd_safetensors_add_f32(writer, "surplus", SD_F32, 1, (int64_t[]){ 2 }, numbers);
    refused(s, "surplus: not a key");
    numbers[3] = NAN;
    tensor("lora_down.weight", 2, 2, 4, 0, 0);
    tensor("lora_up.weight", 2, 4, 2, 0, 0);
    refused(s, "not finite");
    numbers[3] = 0;
    sd_safetensors_add(writer, MODULE ".lora_down.weight", SD_I32, 2, (int64_t[]){ 2, 4 }, numbers);
    tensor("lora_up.weight", 2, 4, 2, 0, 0);
    refused(s, "I32");
    sd_safetensors_add_f32(writer, "base_model.model.conv_in.lora_A.weight", SD_F32, 2, (int64_t[]){ 2, 4 }, numbers);
    sd_safetensors_add_f32(writer, "base_model.model.conv_in.lora_B.weight", SD_F32, 2, (int64_t[]){ 4, 2 }, numbers);
    refused(s, "adapter_config.json");
    sd_safetensors_add_f32(writer, "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight", SD_F32,
                           2, (int64_t[]){ 1, 2048 }, sd_alloc(s, 8192));
    sd_safetensors_add_f32(writer, "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight", SD_F32,
                           2, (int64_t[]){ 4, 1 }, numbers);
    refused(s, "SDXL");
    sd_safetensors_set_metadata(writer, "lora_adapter_metadata", "{\"text_encoder.lora_alpha\": 2}");
    sd_safetensors_add_f32(writer, "unet.mid_block.attentions.0.proj_in.lora_A.weight", SD_F32, 2, (int64_t[]){ 2, 4 },
                           numbers);
    sd_safetensors_add_f32(writer, "unet.mid_block.attentions.0.proj_in.lora_B.weight", SD_F32, 2, (int64_t[]){ 4, 2 },
                           numbers);
    refused(s, "unet.lora_alpha: not in the configuration");
    sd_safetensors_set_metadata(writer, "lora_adapter_metadata", "{\"unet.lora_alpha\": 2,");
    tensor("lora_down.weight", 2, 2, 4, 0, 0);
    tensor("lora_up.weight", 2, 4, 2, 0, 0);
    refused(s, "lora_adapter_metadata: ");

    /* LyCORIS' third factor: W[o, i, k] = sum_n sum_m up[o, n] mid[n, m, k] down[m, i] */
    tensor("lora_down.weight", 4, 2, 3, 1, 1);
    tensor("lora_mid.weight", 4, 2, 2, 3, 3);
    tensor("lora_up.weight", 4, 4, 2, 1, 1);
    lora = finish(s);
    if (CHECK(lora && lora->count == 1 && lora->layer[0].kh == 3 && lora->layer[0].kw == 3 && lora->layer[0].scale == 1,
              "a third factor: %s", lora ? "read" : sd_reason())) {
        float w[4 * 3 * 9] = { 0 };

        sd_lora_merge(&lora->layer[0], 1, w);
        for (int o = 0; o < 4; o++)
            for (int i = 0; i < 3; i++)
                for (int k = 0; k < 9; k++) {
                    double sum = 0;

                    for (int n = 0; n < 2; n++)
                        for (int m = 0; m < 2; m++)
                            sum += (double)numbers[o * 2 + n] * numbers[(n * 2 + m) * 9 + k] * numbers[m * 3 + i];
                    d = fmax(d, fabs(sum - w[(o * 3 + i) * 9 + k]));
                }
        CHECK(d == 0, "its weights: small integers, exact (%g)", d);
    }
    writer = sd_safetensors_writer_new(s);
    tensor("lora_down.weight", 4, 2, 3, 1, 1);
    tensor("lora_mid.weight", 4, 2, 3, 3, 1);
    tensor("lora_up.weight", 4, 4, 2, 1, 1);
    refused(s, "mid of shape [2, 3, 3, 1]");
    CHECK(!sd_lora_load(s, "absent") && strstr(sd_reason(), "No such file"), "%s", sd_reason());
    sd_scope_close(s);
}

static void
put(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    fputs(text, f);
    fclose(f);
}

/* PEFT's folders by hand: defaults, patterns, what is refused. */
static void
test_peft(void)
{
#define HEAD "{\"peft_type\": \"LORA\", "
    static const struct {
        const char *config, *why;
        double scale;               /* rank is 2 */
    } cases[] = {
        { HEAD "\"lora_alpha\": 3}", NULL, 1.5 },
        { HEAD "\"r\": 8}", NULL, 4 },
        { HEAD "\"lora_alpha\": 3, \"use_rslora\": true}", NULL, 2.1213203435596424 },
        { HEAD "\"lora_alpha\": 3, \"alpha_pattern\": {\"proj_in\": 5}}", NULL, 2.5 },
        { HEAD "\"lora_alpha\": 3, \"alpha_pattern\": {\"roj_in\": 5}}", NULL, 1.5 },
        { HEAD
          "\"lora_alpha\": 3, "
          "\"alpha_pattern\": {\"mid_block\\\\.attentions\\\\.\\\\d+\\\\.proj_(in|out)\": 5, \"proj_in\": 7}}",
          NULL, 2.5 },
        { HEAD "\"lora_alpha\": 3, \"alpha_pattern\": {\"^mid_block\\\\..*\": 7}}", NULL, 3.5 },
        { HEAD "\"lora_alpha\": 3, \"alpha_pattern\": {\"down.*\": 5}}", NULL, 1.5 },
        { HEAD "\"lora_alpha\": 3, \"alpha_pattern\": {\"(\": 5}}", "pattern (: not understood", 0 },
        { HEAD "\"lora_alpha\": 3, \"alpha_pattern\": {\"a{1,9}\": 5}}", "not understood", 0 },
        { HEAD "\"lora_alpha\": 3, \"alpha_pattern\": {\"(a)\\\\1\": 5}}", "not understood", 0 },
        { HEAD "\"lora_alpha\": \"3\"}", "no number", 0 },
        { HEAD "\"use_dora\": true}", "DoRA", 0 },
        { HEAD "\"fan_in_fan_out\": true}", "fan_in_fan_out", 0 },
        { HEAD "\"bias\": \"all\"}", "bias all", 0 },
        { "{\"peft_type\": \"LOHA\"}", "peft_type LOHA", 0 },
        { "[]", "adapter_config.json", 0 },
        { "{", "adapter_config.json", 0 },
    };
    struct sd_scope *s = sd_scope_open();

    for (int i = 0; i < 64; i++)
        numbers[i] = (float)i;
    mkdir("peft", 0777);
    writer = sd_safetensors_writer_new(s);
    sd_safetensors_add_f32(writer, "base_model.model.mid_block.attentions.0.proj_in.lora_A.weight", SD_F32, 2,
                           (int64_t[]){ 2, 4 }, numbers);
    sd_safetensors_add_f32(writer, "base_model.model.mid_block.attentions.0.proj_in.lora_B.weight", SD_F32, 2,
                           (int64_t[]){ 4, 2 }, numbers);
    sd_safetensors_save(writer, "peft/adapter_model.safetensors");
    CHECK(!sd_lora_load(s, "peft") && strstr(sd_reason(), "adapter_config.json"), "no configuration: %s", sd_reason());
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sd_lora *lora;

        put("peft/adapter_config.json", cases[i].config);
        lora = sd_lora_load(s, "peft");
        if (cases[i].why)
            CHECK(!lora && strstr(sd_reason(), cases[i].why), "refused: %s", lora ? cases[i].config : sd_reason());
        else
            CHECK(lora && fabs(lora->layer[0].scale - cases[i].scale) < 1e-15, "%s: scale %g, %s", cases[i].config,
                  lora ? lora->layer[0].scale : NAN, lora ? "" : sd_reason());
    }
    sd_scope_close(s);
}

/* A folder takes the place of one of its kind and of no other. */
static void
test_folders(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_lora *lora = sd_lora_load(s, data(s, "sd1.peft")),
                   *sd2 = sd_lora_load(s, data(s, "sd2.kohya.safetensors"));
    double worst = NAN;

    mkdir("mine", 0777);
    put("mine/letter", "dear");
    CHECK(sd_lora_save(lora, "mine", SD_LORA_PEFT, SD_F32, NULL) < 0 && strstr(sd_reason(), "not replaced")
              && access("mine/letter", F_OK) == 0 && access("mine.part", F_OK) != 0,
          "a folder of something else: %s", sd_reason());
    put("file", "dear");
    CHECK(sd_lora_save(lora, "file", SD_LORA_PEFT, SD_F32, NULL) < 0 && access("file", F_OK) == 0, "a file: %s",
          sd_reason());
    mkdir("empty", 0777);
    CHECK(sd_lora_save(lora, "empty/", SD_LORA_PEFT, SD_F32, NULL) == 0 && sd_lora_verify(lora, "empty", &worst) == 0
              && worst < bound,
          "an empty folder is taken");
    put("empty/unet/stale", "x");
    CHECK(sd_lora_save(sd2, "empty", SD_LORA_PEFT, SD_F32, NULL) == 0 && sd_lora_verify(sd2, "empty", &worst) == 0
              && worst < bound && access("empty/unet/stale", F_OK) != 0 && access("empty.part", F_OK) != 0,
          "another adapter takes its place, as a whole");
    mkdir("later.part", 0777);
    put("later.part/stale", "x");
    CHECK(sd_lora_save(lora, "later", SD_LORA_PEFT, SD_F32, NULL) == 0 && access("later/stale", F_OK) != 0,
          "what a killed run left is gone");
    CHECK(sd_lora_save(lora, "no/such/folder", SD_LORA_PEFT, SD_F32, NULL) < 0
              && strstr(sd_reason(), "cannot be written"),
          "%s", sd_reason());
    CHECK(sd_lora_save(lora, "no/such/file", SD_LORA_KOHYA, SD_F32, NULL) < 0
              && strstr(sd_reason(), "cannot be written"),
          "%s", sd_reason());
    sd_scope_close(s);
}

int
main(void)
{
    if (!getcwd(start, sizeof start))
        return 1;
    child_enter();
    test_dialects();
    test_conversions();
    test_kohya();
    test_hashes();
    test_mlp_alone();
    test_join();
    test_join_small();
    test_verify();
    test_faults();
    test_peft();
    test_folders();
    child_leave();
    return check_done();
}
