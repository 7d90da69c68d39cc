/* Adapters merged into models: the weights are the reference's W + scale up down, one pass of the merged model is that
 * of the adapted one and the reference's, and everything else keeps its bytes.  Models as today's libraries write them,
 * in shards and old spellings, and single files, where q, k and v may be one tensor.  Values: tests/reference/lora.py.
 */
#include "models.h"

#include "../child.h"
#include "model/checkpoint.h"

#include <ftw.h>
#include <sys/stat.h>

#define DATA "tests/data/lora/"

static char start[4096];

static const struct model {
    const char *name, *model, *config, *adapter, *values;
} models[] = {
    { "sd1", "sd1", NULL, "sd1.kohya.safetensors", "sd1" },
    { "sd1 single file", "sd1.safetensors", "sd1", "sd1.peft", "sd1" },
    { "sd2, in shards", "sd2", NULL, "sd2.diffusers.safetensors", "sd2" },
    { "sd2 single file", "sd2.safetensors", "sd2", "sd2.kohya.safetensors", "sd2" },
};

static const char *
in_models(struct sd_scope *s, const char *name)
{
    return name ? sd_sprintf(s, "%s/" MODELS "%s", start, name) : NULL;
}

static double summed;

static int
add_bytes(const char *path, const struct stat *st, int type)
{
    (void)path;
    summed += type == FTW_F ? (double)st->st_size : 0;
    return 0;
}

/* Of a file, or of all in a folder. */
static double
folder_bytes(const char *path)
{
    summed = 0;
    ftw(path, add_bytes, 8);
    return summed;
}

static struct sd_model *
open_model(struct sd_scope *s, const char *path, const struct model *m)
{
    struct sd_model *model = sd_model_open(s, path, &(struct sd_model_options){ .config = in_models(s, m->config) });

    if (!model)
        printf("# %s: %s\n", path, sd_reason());
    return model;
}

static const float *
f32(struct sd_scope *s, struct sd_weights *w, const char *path)
{
    struct sd_weights_place place;
    const float *v;

    if (!sd_weights_place(w, path, &place))
        return NULL;
    v = sd_safetensor_f32(s, place.tensor);
    return v + place.tensor->numel / (size_t)place.parts * (size_t)place.part;
}

/* ---- weights ----------------------------------------------------------------------------------------------------- */

/* Each adapted weight against base + stored change: half a unit of its dtype, on the weight's own size. */
static void
check_weights(struct sd_scope *s, const struct model *m, struct sd_model *base, struct sd_model *merged,
              const struct sd_lora *lora)
{
    struct sd_safetensors *values =
        sd_safetensors_open(s, sd_sprintf(s, "%s/" DATA "%s.expected.safetensors", start, m->values));
    struct sd_weights *was[] = { sd_model_unet(base)->weights, sd_model_text_encoder(base)->weights },
                      *is[] = { sd_model_unet(merged)->weights, sd_model_text_encoder(merged)->weights };
    double worst = 0;
    size_t n = 0;

    for (size_t i = 0; i < lora->count; i++) {
        const char *path = lora->layer[i].path, *weight = sd_sprintf(s, "%s.weight", strchr(path, '.') + 1);
        int text = strncmp(path, "text_encoder", 12) == 0;
        struct sd_safetensor *change = sd_safetensors_find(values, path);
        const float *a = f32(s, was[text], weight), *b = f32(s, is[text], weight),
                    *c = change ? sd_safetensor_f32(s, change) : NULL;
        struct sd_weights_place place;
        double unit;

        if (!a || !b || !c || !sd_weights_place(is[text], weight, &place)) {
            CHECK(false, "%s: %s is there", m->name, path);
            return;
        }
        unit = place.tensor->dtype == SD_F16 ? 0x1p-11 : 0x1p-24;
        for (size_t k = 0; k < change->numel; k++) {
            double expected = (double)a[k] + c[k];

            /* rounding to the dtype, and 2^-22 of the parts for sums in f32 */
            worst = fmax(worst, fabs(b[k] - expected)
                                    / (unit * fabs(expected) + 0x1p-25 + 0x1p-22 * (fabs(a[k]) + fabs(c[k]))));
            n++;
        }
    }
    CHECK(worst <= 1 && n > 500, "%s: %zu weights of %zu layers: %.3f of what rounding allows", m->name, n, lora->count,
          worst);
}

/* ---- forward ----------------------------------------------------------------------------------------------------- */

static struct sd_tensor *
pass_unet(struct sd_graph *g, struct sd_model *m, struct sd_adapters *a, struct sd_safetensors *f,
          struct sd_tensor **in)
{
    in[0] = case_input(g, f, "sample");
    in[1] = case_input(g, f, "timesteps");
    in[2] = case_input(g, f, "encoder_hidden_states");
    return sd_unet(g, sd_model_unet(m), a, in[0], in[1], in[2]);
}

/* The output of one pass, kept in scope s. */
static const float *
run(struct sd_scope *s, struct sd_model *m, struct sd_adapters *a, struct sd_safetensors *f, bool text, size_t *n)
{
    struct sd_graph *g = sd_graph_new();
    struct sd_tensor *in[3] = { NULL }, *out;
    struct sd_plan *p;
    float *copy;

    if (text) {
        in[0] = case_input(g, f, "input_ids");
        out = sd_clip_text(g, sd_model_text_encoder(m), a, in[0], NULL, 0);
    } else
        out = pass_unet(g, m, a, f, in);
    sd_keep(out);
    if (!(p = planned(g, m->name)))
        return NULL;
    for (int i = 0; i < 3; i++)
        if (in[i])
            case_feed(p, f, in[i]);
    sd_run(p);
    *n = out->numel;
    copy = sd_alloc_array(s, *n, sizeof *copy);
    sd_fetch(p, out, copy);
    sd_plan_free(p);
    sd_graph_free(g);
    return copy;
}

/* f32: the merged weights are rounded once, the adapted ones are not; without adapters the outputs are far apart. */
static void
check_forward(struct sd_scope *s, const struct model *m, struct sd_model *base, struct sd_model *merged,
              const struct sd_lora *lora)
{
    struct sd_safetensors *values =
        sd_safetensors_open(s, sd_sprintf(s, "%s/" DATA "%s.expected.safetensors", start, m->values));
    struct sd_adapters *adapters = sd_adapters_new(s);

    sd_lora_adapters(lora, adapters, 1, 1);
    for (int text = 0; text < 2; text++) {
        size_t n = 0;
        const float *plain = run(s, base, NULL, values, text, &n), *adapted = run(s, base, adapters, values, text, &n),
                    *baked = run(s, merged, NULL, values, text, &n);
        const float *stored = sd_safetensor_f32(s, sd_safetensors_find(values, text ? "states" : "model_pred"));
        double d = check_distance(baked, adapted, n), r = check_distance(baked, stored, n),
               p = check_distance(plain, stored, n);

        CHECK(d <= 1e-5 && r <= 1e-5 && p > 0.01,
              "%s, %s: merged and adapted differ by %.2g, merged and reference by %.2g (base: %.2g)", m->name,
              text ? "text encoder" : "UNet", d, r, p);
    }
    for (size_t i = 0; i < sd_adapters_count(adapters); i++)
        CHECK(sd_adapters_at(adapters, i)->used, "%s: %s was asked for", m->name, sd_adapters_at(adapters, i)->path);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

/* Tensors of two files: how many have other bytes; SIZE_MAX when names, dtypes or shapes differ. */
static size_t
differing(struct sd_scope *s, const char *a, const char *b)
{
    struct sd_safetensors *x = sd_safetensors_open(s, a), *y = sd_safetensors_open(s, b);
    size_t n = 0;

    if (!x || !y || sd_safetensors_count(x) != sd_safetensors_count(y))
        return SIZE_MAX;
    for (size_t i = 0; i < sd_safetensors_count(x); i++) {
        struct sd_safetensor *t = sd_safetensors_at(x, i), *u = sd_safetensors_find(y, t->name);

        if (!u || u->dtype != t->dtype || u->ndim != t->ndim
            || memcmp(u->shape, t->shape, (size_t)t->ndim * sizeof *t->shape) != 0)
            return SIZE_MAX;
        n += memcmp(t->data, u->data, t->bytes) != 0;
    }
    return n;
}

static bool
same_file(struct sd_scope *s, const char *a, const char *b)
{
    return system(sd_sprintf(s, "cmp -s '%s' '%s'", a, b)) == 0;
}

static void
check_files(struct sd_scope *s, const struct model *m, const char *out)
{
    if (strstr(m->model, ".safetensors")) {
        /* sd2's single file has q, k, v in one tensor: of its 9 layers two share one */
        size_t n = differing(s, in_models(s, m->model), out), expected = strstr(m->model, "sd2") ? 8 : 18;

        CHECK(n == expected, "%s: %zu tensors changed, all others have their bytes", m->name, n);
    } else {
        static const char *const same[] = { "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
                                            "text_encoder/config.json", "vae/config.json" };
        const char *unet = strcmp(m->model, "sd2") == 0 ? "unet/diffusion_pytorch_model.safetensors.index.json"
                                                        : "unet/diffusion_pytorch_model.safetensors";
        const char *vae = strcmp(m->model, "sd2") == 0 ? "vae/diffusion_pytorch_model.fp16.safetensors"
                                                       : "vae/diffusion_pytorch_model.safetensors";
        const char *from = in_models(s, m->model);
        size_t n = differing(s, sd_sprintf(s, "%s/%s", from, unet), sd_sprintf(s, "%s/%s", out, unet));
        size_t k = differing(s, sd_sprintf(s, "%s/text_encoder/model.safetensors", from),
                             sd_sprintf(s, "%s/text_encoder/model.safetensors", out));

        CHECK(strcmp(m->model, "sd2") == 0 ? n == 4 && k == 5 : n == 14 && k == 4,
              "%s: %zu and %zu tensors changed, all others have their bytes", m->name, n, k);
        for (size_t i = 0; i < sizeof same / sizeof *same; i++)
            CHECK(same_file(s, sd_sprintf(s, "%s/%s", from, same[i]), sd_sprintf(s, "%s/%s", out, same[i])), "%s: %s",
                  m->name, same[i]);
        CHECK(same_file(s, sd_sprintf(s, "%s/%s", from, vae), sd_sprintf(s, "%s/%s", out, vae)), "%s: %s", m->name,
              vae);
    }
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

static void
test_model(const struct model *m, bool wide)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_model *base = open_model(s, in_models(s, m->model), m), *merged, *back;
    struct sd_lora *lora = sd_lora_load(s, sd_sprintf(s, "%s/" DATA "%s", start, m->adapter)), *minus;
    struct sd_checkpoint c = { .model = base, .lora = lora, .convert = wide, .dtype = SD_F32,
                               .metadata = (const char *const[]){ "sd_tools.test", "yes", NULL } };
    const char *out = sd_sprintf(s, "%s%s", wide ? "wide-" : "", m->model),
               *again = sd_sprintf(s, "again-%s", m->model);
    struct sd_checkpoint_plan plan;
    size_t tensors;

    if (!CHECK(base && lora && sd_checkpoint_save(&c, out) == 0 && (merged = open_model(s, out, m)),
               "%s is written%s: %s", m->name, wide ? " in F32" : "", base && lora ? "" : sd_reason()))
        return;
    CHECK(sd_checkpoint_plan(s, &c, &plan) == 0 && plan.unmatched == 0 && plan.changed > 0
              && (double)plan.written == folder_bytes(out),
          "%s: a plan of %.0f bytes, as written", m->name, (double)plan.written);
    CHECK(sd_checkpoint_verify(&c, out, &tensors) == 0 && tensors > 600, "%s reads back: %zu tensors", m->name,
          tensors);
    check_weights(s, m, base, merged, lora);
    if (wide) {
        check_forward(s, m, base, merged, lora);
        sd_scope_close(s);
        return;
    }
    check_files(s, m, out);
    /* and out again: W within the rounding of two sums */
    minus = sd_lora_join(s, &lora, (double[]){ -1 }, 1);
    c.model = merged;
    c.lora = minus;
    if (CHECK(sd_checkpoint_save(&c, again) == 0 && (back = open_model(s, again, m)), "%s: taken out again", m->name)) {
        double worst = 0, change = 0;

        for (size_t i = 0; i < lora->count; i++) {
            const struct sd_lora_layer *l = &lora->layer[i];
            const char *weight = sd_sprintf(s, "%s.weight", strchr(l->path, '.') + 1);
            int text = strncmp(l->path, "text_encoder", 12) == 0;
            const float *x = f32(s, text ? sd_model_text_encoder(base)->weights : sd_model_unet(base)->weights, weight),
                        *y = f32(s, text ? sd_model_text_encoder(merged)->weights : sd_model_unet(merged)->weights,
                                 weight),
                        *z = f32(s, text ? sd_model_text_encoder(back)->weights : sd_model_unet(back)->weights, weight);

            for (int64_t k = 0; k < l->out * l->in * l->kh * l->kw; k++) {
                worst = fmax(worst, fabs(z[k] - x[k]) / (0x1p-11 * (fabs(x[k]) + fabs(y[k])) + 0x1p-24));
                change = fmax(change, fabs(y[k] - x[k]));
            }
        }
        CHECK(worst <= 1 && change > 0.1, "%s: %.3f of what rounding allows; in between weights were %.2g off", m->name,
              worst, change);
    }
    sd_scope_close(s);
}

/* Weights above 1 MiB, which are written in pieces that end inside a row: sd1 with a text encoder of many channels. */
static const char *
wide_model(struct sd_scope *s, int64_t wide, const float *values)
{
    struct sd_safetensors *f = sd_safetensors_open(s, in_models(s, "sd1/text_encoder/model.safetensors"));
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);
    json_t *config = sd_json_load(s, in_models(s, "sd1/text_encoder/config.json"), 0);

    if (system(sd_sprintf(s, "cp -r '%s' large", in_models(s, "sd1"))) != 0)
        return NULL;
    for (size_t i = 0; i < sd_safetensors_count(f); i++) {
        struct sd_safetensor *t = sd_safetensors_at(f, i);
        bool fc1 = strstr(t->name, "mlp.fc1.") != NULL, fc2 = strstr(t->name, "mlp.fc2.weight") != NULL;
        int64_t shape[2] = { fc1 ? wide : t->shape[0], fc2 ? wide : t->ndim > 1 ? t->shape[1] : 1 };

        if (fc1 || fc2)
            sd_safetensors_add_f32(w, t->name, t->dtype, t->ndim, shape, values);
        else
            sd_safetensors_add(w, t->name, t->dtype, t->ndim, t->shape, t->data);
    }
    json_object_set_new(config, "intermediate_size", json_integer(wide));
    if (sd_json_save(config, "large/text_encoder/config.json") < 0
        || sd_safetensors_save(w, "large/text_encoder/model.safetensors") < 0)
        return NULL;
    return "large";
}

static void
test_pieces(void)
{
    enum { WIDE = 12001, NARROW = 24, RANK = 2, N = WIDE * NARROW };
    struct sd_scope *s = sd_scope_open();
    float *values = sd_alloc_array(s, N, sizeof *values), *a = sd_alloc_array(s, RANK * WIDE, sizeof *a),
          *b = sd_alloc_array(s, RANK * NARROW, sizeof *b);
    struct sd_lora_layer layers[] = {
        { .path = "text_encoder.text_model.encoder.layers.0.mlp.fc1", .rank = RANK, .in = NARROW, .out = WIDE, .kh = 1,
          .kw = 1, .down = b, .up = a, .scale = 0.5 },
        { .path = "text_encoder.text_model.encoder.layers.2.mlp.fc2", .rank = RANK, .in = WIDE, .out = NARROW, .kh = 1,
          .kw = 1, .down = a, .up = b, .scale = 0.5 },
    };
    struct sd_lora lora = { .scope = s, .count = 2, .layer = layers };
    struct sd_checkpoint c = { .lora = &lora };
    size_t tensors, wrong[2] = { 0, 0 };
    const char *path;

    for (int i = 0; i < N; i++)
        values[i] = (float)(i % 1021);
    for (int i = 0; i < RANK * WIDE; i++)
        a[i] = (float)(i % 509);
    for (int i = 0; i < RANK * NARROW; i++)
        b[i] = (float)(2 * (i % 7) - 6);
    path = wide_model(s, WIDE, values);
    c.model = path ? sd_model_open(s, path, NULL) : NULL;
    if (!CHECK(c.model && sd_checkpoint_save(&c, "large-out") == 0
                   && sd_checkpoint_verify(&c, "large-out", &tensors) == 0,
               "weights of several pieces are written: %s", c.model ? "" : sd_reason()))
        return;
    for (int l = 0; l < 2; l++) {
        struct sd_safetensors *f = sd_safetensors_open(s, "large-out/text_encoder/model.safetensors");
        const char *name = l ? "encoder.layers.2.mlp.fc2.weight" : "encoder.layers.0.mlp.fc1.weight";
        struct sd_safetensor *t = sd_safetensors_find(f, name);
        const float *is = t ? sd_safetensor_f32(s, t) : NULL;

        for (int64_t i = 0; is && i < N; i++) {
            int64_t o = i / layers[l].in, k = i % layers[l].in;
            float change = 0;

            for (int r = 0; r < RANK; r++)      /* small integers: exact, in any order */
                change += 0.5f * layers[l].up[o * RANK + r] * layers[l].down[r * layers[l].in + k];
            wrong[l] += is[i] != values[i] + change;
        }
        CHECK(is && t->bytes > 1 << 20 && t->bytes % (1 << 20) && (1 << 20) % (4 * layers[l].in), "%s: %zu bytes", name,
              t ? t->bytes : 0);
    }
    CHECK(wrong[0] == 0 && wrong[1] == 0, "%zu and %zu of them are wrong", wrong[0], wrong[1]);
    sd_scope_close(s);
}

/* A layer that the model has not, or of another shape, is named; nothing is written. */
static void
test_faults(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_model *base = open_model(s, in_models(s, "sd1"), &models[0]),
                    *single = open_model(s, in_models(s, "sd2.safetensors"), &models[3]);
    struct sd_lora *lora = sd_lora_load(s, sd_sprintf(s, "%s/" DATA "sd1.kohya.safetensors", start)),
                   *sd2 = sd_lora_load(s, sd_sprintf(s, "%s/" DATA "sd2.kohya.safetensors", start));
    struct sd_checkpoint c = { .model = base, .lora = lora };
    const char *path = lora->layer[7].path;
    size_t tensors;

    lora->layer[7].path = "unet.down_blocks.3.resnets.0.conv1";
    CHECK(sd_checkpoint_check(&c) < 0
              && strcmp(sd_reason(), "unet.down_blocks.3.resnets.0.conv1: the model has no such layer") == 0,
          "%s", sd_reason());
    lora->layer[7].path = path;
    lora->layer[7].in++;
    CHECK(sd_checkpoint_save(&c, "never") < 0 && strstr(sd_reason(), "the model's weight is [")
              && access("never", F_OK) != 0 && access("never.part", F_OK) != 0,
          "%s", sd_reason());
    lora->layer[7].in--;
    c.lora = sd2;
    CHECK(sd_checkpoint_check(&c) < 0, "an adapter of another model: %s", sd_reason());
    /* OpenCLIP's files have one layer more than is used */
    c.model = single;
    for (size_t i = 0; i < sd2->count; i++)
        if (strstr(sd2->layer[i].path, "layers.1.mlp.fc2"))
            sd2->layer[i].path = "text_encoder.text_model.encoder.layers.2.mlp.fc2";
    CHECK(sd_checkpoint_check(&c) < 0 && strstr(sd_reason(), "layers.2.mlp.fc2: the model has no such layer"),
          "a layer without use: %s", sd_reason());

    c = (struct sd_checkpoint){ .model = base, .lora = lora, .convert = true, .dtype = SD_F16 };
    lora->layer[3].scale = 1e6;
    CHECK(sd_checkpoint_save(&c, "never") < 0 && strstr(sd_reason(), "a value that F16 cannot hold")
              && access("never.part", F_OK) != 0,
          "%s", sd_reason());
    lora->layer[3].scale = 0.5;
    mkdir("folder", 0777);
    mkdir("folder/of", 0777);
    CHECK(sd_checkpoint_save(&c, "folder") < 0 && strstr(sd_reason(), "not replaced") && access("folder/of", F_OK) == 0,
          "%s", sd_reason());
    CHECK(sd_checkpoint_save(&c, "no/such/place") < 0, "%s", sd_reason());

    /* what was damaged later is seen */
    c.convert = false;
    lora->layer[3].scale = 0.25;
    CHECK(sd_checkpoint_save(&c, "good") == 0 && sd_checkpoint_verify(&c, "good", &tensors) == 0, "a good one");
    lora->layer[3].scale = 0.26;
    CHECK(sd_checkpoint_verify(&c, "good", &tensors) < 0 && strstr(sd_reason(), ": row "), "another scale: %s",
          sd_reason());
    c.lora = NULL;
    CHECK(sd_checkpoint_verify(&c, "good", &tensors) < 0 && strstr(sd_reason(), "its bytes differ"), "none: %s",
          sd_reason());
    sd_scope_close(s);
}

int
main(void)
{
    if (!getcwd(start, sizeof start))
        return 1;
    child_enter();
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        test_model(&models[i], false);
        test_model(&models[i], true);
    }
    test_pieces();
    test_faults();
    child_leave();
    return check_done();
}
