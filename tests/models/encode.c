/* Pictures to latents and captions to text states: against the reference libraries (tests/reference/encode.py), the same
 * bits in batches and with other numbers of threads, and what is in a key. */
#include "diffusion/latents.h"
#include "kernels/op.h"
#include "model/model_tokenizer.h"
#include "models.h"

#include <omp.h>
#include <unistd.h>

#define DATA "tests/data/encode/"

static const double bound = 2e-5;       /* f32 sums through 20 layers against the reference in double */
static char folder[] = "/tmp/sd-encode-XXXXXX";
static struct sd_arena *arena;
static int caches;

/* An encoding with a cache of its own. */
static struct sd_encoding
encoding(struct sd_scope *s)
{
    return (struct sd_encoding){ .cache = sd_cache_open(s, sd_sprintf(s, "%s/%d", folder, caches++)), .arena = arena };
}

static struct sd_latents *
latents_of(struct sd_scope *s, const char *model, const struct sd_encoding *e)
{
    struct sd_vae *vae = sd_vae_open(s, sd_sprintf(s, MODELS "%s/vae", model), NULL);
    struct sd_latents *l = vae ? sd_latents_new(s, vae, e) : NULL;

    if (!CHECK(l != NULL, "%s: opens", model))
        printf("# %s\n", sd_reason());
    return l;
}

static struct sd_latents_picture
picture(struct sd_scope *s, struct sd_safetensors *f, const char *name)
{
    struct sd_safetensor *t = sd_safetensors_find(f, sd_sprintf(s, "%s.pixel_values", name));

    return (struct sd_latents_picture){ .pixels = t->data, .height = t->shape[0], .width = t->shape[1] };
}

static bool
encode(struct sd_latents *l, struct sd_scope *s, struct sd_latents_picture *p)
{
    bool ok = !sd_latents_key(l, p) && !sd_latents_find(l, s, p) && !sd_latents_encode(l, s, &p, 1) && p->mean;

    if (!ok)
        printf("# %s\n", sd_reason());
    return ok;
}

static void
check_values(struct sd_scope *s, struct sd_safetensors *f, const char *model, const char *name,
             const struct sd_latents_picture *p)
{
    struct sd_safetensor *mean = sd_safetensors_find(f, sd_sprintf(s, "%s.mean", name));
    struct sd_safetensor *logvar = sd_safetensors_find(f, sd_sprintf(s, "%s.logvar", name));
    double a = check_distance(p->mean, sd_safetensor_f32(s, mean), mean->numel);
    double b = check_distance(p->logvar, sd_safetensor_f32(s, logvar), logvar->numel);

    CHECK(a <= bound && b <= bound, "%s: %s: mean within %.1e, logvar within %.1e of diffusers' (%.0e)", model, name, a, b,
          bound);
}

static void
check_picture(struct sd_safetensors *f, const char *model, const char *name, const char *input, int64_t tile)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_encoding e = encoding(s);
    struct sd_latents_picture p = picture(s, f, input), again = p;
    struct sd_latents *l;
    size_t n;

    e.tile = tile;
    if ((l = latents_of(s, model, &e)) && CHECK(encode(l, s, &p), "%s: %s: encoded", model, name)) {
        struct sd_safetensor *mean = sd_safetensors_find(f, sd_sprintf(s, "%s.mean", name));

        n = mean->bytes;
        check_values(s, f, model, name, &p);
        memcpy(again.key, p.key, sizeof p.key);
        CHECK(sd_latents_find(l, s, &again) == 1 && !memcmp(again.mean, p.mean, n)
                  && !memcmp(again.logvar, p.logvar, n),
              "%s: %s: the cache has the same bits", model, name);
    }
    sd_scope_close(s);
}

/* Moments far outside: the variance's logarithm is held within -30 and 20, whatever the weights. */
static void
check_clamp(struct sd_safetensors *f, const char *model)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_encoding e = encoding(s);
    struct sd_vae *vae = sd_vae_open(s, sd_sprintf(s, MODELS "%s/vae", model), NULL);
    struct sd_latents *l = sd_latents_new(s, vae, &e);
    struct sd_param *bias = sd_weights_get(vae->weights, "quant_conv.bias", 1, (int64_t[]){ 8 });
    float *other = sd_alloc_array(s, 8, sizeof *other);
    struct sd_latents_picture p = picture(s, f, "0"), *q = &p;

    sd_to_f32(other, bias->raw, bias->dtype, 8);
    other[4] += 40;
    other[5] -= 60;
    bias->raw = other;
    bias->dtype = SD_F32;
    if (CHECK(encode(l, s, &p), "%s: encoded with a far bias", model)) {
        int factor = sd_vae_factor(&vae->config);
        size_t places = (size_t)(p.height / factor * (p.width / factor));

        check_values(s, f, model, "clamped", &p);
        CHECK(p.logvar[0] == 20 && p.logvar[places] == -30, "%s: 20 and -30: %g, %g", model, p.logvar[0],
              p.logvar[places]);
    }
    sd_param_drop(bias);
    other[0] = NAN;
    p.mean = p.logvar = NULL;
    p.key[0] = p.key[0] == '0' ? '1' : '0';
    CHECK(!sd_latents_encode(l, s, &q, 1) && !p.mean && sd_latents_find(l, s, &p) == 0,
          "%s: what is not finite is not handed out, nor stored", model);
    sd_scope_close(s);
}

static void
check_mask(struct sd_safetensors *f, const char *model, int factor)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensor *mask = sd_safetensors_find(f, "mask"), *t = sd_safetensors_find(f, "latent_mask");
    float *out = sd_alloc_array(s, t->numel, sizeof *out);
    const float *stored = sd_safetensor_f32(s, t);
    float worst = 0;

    sd_latent_mask(out, mask->data, mask->shape[0], mask->shape[1], factor);
    for (size_t i = 0; i < t->numel; i++)
        worst = fmaxf(worst, fabsf(out[i] - stored[i]));
    CHECK(t->numel == (size_t)(40 / factor * (48 / factor)) && worst <= 1e-7f, "%s: the mask's area average, within %.1e",
          model, (double)worst);
    CHECK(out[0] == 1 && out[t->numel - 1] == 0, "%s: all subject is 1, none is 0", model);
    sd_scope_close(s);
}

enum { COUNT = 5 };

/* COUNT different pictures of one size, encoded `batch` at once. */
static void
encode_all(struct sd_scope *s, struct sd_safetensors *f, const char *model, size_t batch, int64_t memory,
           struct sd_latents_picture p[COUNT])
{
    struct sd_encoding e = encoding(s);
    struct sd_latents *l;
    struct sd_latents_picture *all[COUNT];

    e.memory = memory;
    l = latents_of(s, model, &e);
    for (int i = 0; i < COUNT; i++) {
        uint8_t *pixels;

        p[i] = picture(s, f, "0");
        pixels = sd_alloc(s, (size_t)(p[i].height * p[i].width * 3));
        for (int64_t j = 0; j < p[i].height * p[i].width * 3; j++)
            pixels[j] = (uint8_t)(p[i].pixels[j] * (i + 1));
        p[i].pixels = pixels;
        all[i] = &p[i];
        sd_latents_key(l, &p[i]);
    }
    for (size_t i = 0; i < COUNT; i += batch)
        if (sd_latents_encode(l, s, all + i, COUNT - i < batch ? COUNT - i : batch) < 0)
            printf("# %s\n", sd_reason());
}

static void
check_same_bits(struct sd_safetensors *f, const char *model)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_latents_picture one[COUNT], other[COUNT];
    struct sd_encoding e = encoding(s);
    struct sd_latents *l = latents_of(s, model, &e);
    struct sd_latents_plan plan = { 0 };
    size_t bytes = sd_safetensors_find(f, "0.mean")->bytes, before;
    int threads = omp_get_max_threads();
    static const struct { const char *what; size_t batch; int threads; bool tight; } cases[] = {
        { "in batches of 2", 2, 1, false }, { "all at once", COUNT, 2, false }, { "by 3 threads", 1, 3, false },
        { "all at once, in the memory of one", COUNT, 2, true },
    };

    omp_set_num_threads(1);
    encode_all(s, f, model, 1, 0, one);
    omp_set_num_threads(2);                                 /* threads have scratch of their own in the plan */
    before = sd_param_bytes_reserved();
    CHECK(!sd_latents_plan(l, one[0].height, one[0].width, 1, &plan) && plan.arena_bytes && plan.flops > 0,
          "%s: planned", model);
    before = 2 * sd_param_bytes_reserved() - before;        /* one more set of weights will be there */
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct sd_scope *t = sd_scope_open();
        int differ = 0;

        omp_set_num_threads(cases[c].threads);
        encode_all(t, f, model, cases[c].batch, cases[c].tight ? (int64_t)(before + plan.arena_bytes) : 0, other);
        for (int i = 0; i < COUNT; i++)
            differ += !other[i].mean || memcmp(one[i].mean, other[i].mean, bytes) != 0
                      || memcmp(one[i].logvar, other[i].logvar, bytes) != 0 || strcmp(one[i].key, other[i].key) != 0;
        CHECK(!differ, "%s: the same bits %s", model, cases[c].what);
        sd_scope_close(t);
    }
    omp_set_num_threads(threads);
    sd_scope_close(s);
}

/* The key of a picture with one thing changed. */
static const char *
key_of(struct sd_scope *s, struct sd_vae *vae, const struct sd_encoding *e, const struct sd_latents_picture *like)
{
    struct sd_latents *l = sd_latents_new(s, vae, e);
    struct sd_latents_picture p = *like;

    return l && !sd_latents_key(l, &p) ? sd_strdup(s, p.key) : "none";
}

static void
check_keys(struct sd_safetensors *f)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_encoding e = encoding(s), x = e;
    struct sd_vae *vae = sd_vae_open(s, MODELS "sd1/vae", NULL), *other = sd_vae_open(s, MODELS "sd2/vae", NULL);
    struct sd_vae_config config = vae->config;
    struct sd_latents_picture p = picture(s, f, "0"), q = p;
    size_t n = (size_t)(p.height * p.width * 3);
    uint8_t *pixels = memcpy(sd_alloc(s, n), p.pixels, n);
    const char *key[16];
    int count = 0, same = 0;
    enum sd_isa isa = sd_isa();

    sd_isa_force(SD_ISA_SSE4);
    key[count++] = key_of(s, vae, &e, &p);
    x.salt = "other";
    key[count++] = key_of(s, vae, &x, &p);
    x = e;
    x.portable = true;
    key[count++] = key_of(s, vae, &x, &p);
    x = e;
    x.tile = 32;
    key[count++] = key_of(s, vae, &x, &p);
    x.tile = 16;
    key[count++] = key_of(s, vae, &x, &p);
    key[count++] = key_of(s, other, &e, &p);
    pixels[n - 1] ^= 1;
    q.pixels = pixels;
    key[count++] = key_of(s, vae, &e, &q);
    q = p;
    q.height = p.width;
    q.width = p.height;
    key[count++] = key_of(s, vae, &e, &q);
    vae->config.norm_num_groups /= 2;
    key[count++] = key_of(s, vae, &e, &p);
    vae->config = config;
    vae->config.mid_block_add_attention = !config.mid_block_add_attention;
    key[count++] = key_of(s, vae, &e, &p);
    vae->config = config;
    if (sd_isa_best() != SD_ISA_SSE4) {
        sd_isa_force(SD_ISA_AVX2);
        key[count++] = key_of(s, vae, &e, &p);
    }
    for (int i = 0; i < count; i++)
        for (int j = 0; j < i; j++)
            same += !strcmp(key[i], key[j]);
    CHECK(!same && strlen(key[0]) == 64, "%d things in the key make %d keys", count - 1, count);

    sd_isa_force(SD_ISA_SSE4);
    x = e;
    x.memory = 1 << 20;
    x.tile = 64;                /* the picture is one tile */
    x.cache = encoding(s).cache;
    CHECK(!strcmp(key_of(s, vae, &x, &p), key[0]), "memory, a tile that holds the picture, the folder: not in it");
    x = e;
    x.portable = true;
    sd_isa_force(sd_isa_best());
    CHECK(!strcmp(key_of(s, vae, &x, &p), key[2]), "portable: nor the instruction set");
    sd_isa_force(isa);
    sd_scope_close(s);
}

static void
check_faults(struct sd_safetensors *f)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_encoding e = encoding(s);
    struct sd_latents *l = latents_of(s, "sd1", &e);
    struct sd_latents_picture p = picture(s, f, "0"), *q = &p;
    struct sd_vae *vae = sd_vae_open(s, MODELS "sd1/vae", NULL);

    p.width -= 2;
    CHECK(sd_latents_key(l, &p) < 0 && strstr(sd_reason(), "46x40, sides must be multiples of 4"), "%s", sd_reason());
    p.width = 0;
    CHECK(sd_latents_key(l, &p) < 0, "%s", sd_reason());
    p.width = 48;
    e.tile = 24;
    CHECK(!sd_latents_new(s, vae, &e) && strstr(sd_reason(), "multiple of 16"), "%s", sd_reason());
    e.tile = 0;
    e.memory = 100000;
    l = sd_latents_new(s, vae, &e);
    sd_latents_key(l, &p);
    CHECK(sd_latents_encode(l, s, &q, 1) < 0 && strstr(sd_reason(), "--memory"), "%s", sd_reason());
    e.memory = 0;
    e.cache = sd_cache_open(s, "/dev/null/cache");
    l = sd_latents_new(s, vae, &e);
    sd_latents_key(l, &p);
    CHECK(sd_latents_encode(l, s, &q, 1) < 0 && strstr(sd_reason(), "/dev/null/cache"), "%s", sd_reason());
    sd_scope_close(s);
}

static void
check_captions(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *f = sd_safetensors_open(s, DATA "captions.safetensors");
    struct sd_model *m = sd_model_open(s, MODELS "sd1", NULL);
    struct sd_tokenizer *t = m ? sd_model_tokenizer(m, DATA "tokenizer") : NULL;
    struct sd_encoding e = encoding(s);
    struct sd_captions *c = t ? sd_captions_new(s, m, t, &e) : NULL;

    if (!CHECK(f && c, "text encoder and its tokenizer")) {
        printf("# %s\n", sd_reason());
        return;
    }
    for (int i = 0; i < 2; i++) {
        struct sd_safetensor *stored = sd_safetensors_find(f, sd_sprintf(s, "%d.text_states", i));
        const char *caption = sd_safetensors_metadata(f, i ? "1" : "0");
        struct sd_caption_states made, found;
        double d;

        CHECK(sd_caption_encode(c, s, caption, false, &made) == 0 && !made.states, "caption %d: not there yet", i);
        if (!CHECK(sd_caption_encode(c, s, caption, true, &made) == 0 && made.states && made.rows == stored->shape[0]
                   && made.width == stored->shape[1], "caption %d: made, [%lld, %lld]", i, (long long)made.rows,
                   (long long)made.width))
            continue;
        d = check_distance(made.states, sd_safetensor_f32(s, stored), stored->numel);
        CHECK(d <= bound, "caption %d: within %.1e of transformers' (%.0e)", i, d, bound);
        CHECK(sd_caption_encode(c, s, caption, true, &found) == 1 && !memcmp(found.states, made.states, stored->bytes),
              "caption %d: the cache has the same bits", i);
    }
    sd_scope_close(s);
}

int
main(void)
{
    struct sd_scope *s = sd_scope_open();
    static const struct { const char *model; int factor, tile; } cases[] = { { "sd1", 4, 32 }, { "sd2", 2, 24 } };

    if (!mkdtemp(folder))
        return 1;
    arena = sd_arena_new();
    for (size_t i = 0; i < 2; i++) {
        const char *model = cases[i].model;
        struct sd_safetensors *f = sd_safetensors_open(s, sd_sprintf(s, DATA "%s.safetensors", model));

        if (!CHECK(f != NULL, "%s: stored values", model))
            continue;
        check_picture(f, model, "0", "0", 0);
        check_picture(f, model, "1", "1", 0);
        check_picture(f, model, "tiled.0", "tiled.0", cases[i].tile);
        check_picture(f, model, "tiled.1", "tiled.1", cases[i].tile);
        check_clamp(f, model);
        check_mask(f, model, cases[i].factor);
        check_same_bits(f, model);
        if (!i) {
            check_keys(f);
            check_faults(f);
        }
    }
    check_captions();
    sd_arena_free(arena);
    if (system(sd_sprintf(s, "rm -rf '%s'", folder)))
        printf("# %s: left behind\n", folder);
    sd_scope_close(s);
    return check_done();
}
