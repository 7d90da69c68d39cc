/* reference.c - text encoder, UNet and VAE against diffusers and transformers, stage by stage, on tiny random models:
 * from directories as today's and as older libraries write them, and from single files.  Values:
 * tests/reference/models.py. */
#include "models.h"
#include "op.h"
#include "ops.h"

#include <unistd.h>

static void
check_unet(struct sd_model *m, const char *what, const char *name, bool stages)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *f = case_open(s, name);
    struct sd_unet *unet = sd_model_unet(m);
    struct sd_graph *g = models_graph();
    struct sd_tensor *sample, *timesteps, *states, *pred, **stage;
    struct sd_plan *p;

    if (!CHECK(unet != NULL, "%s: UNet, every tensor accounted for", what))
        printf("# %s\n", sd_reason());
    if (f && unet) {
        sample = case_input(g, f, "sample");
        timesteps = case_input(g, f, "timesteps");
        states = case_input(g, f, "encoder_hidden_states");
        pred = sd_keep(sd_unet(g, unet, NULL, sample, timesteps, states));
        stage = sd_alloc_array(s, sd_safetensors_count(f), sizeof *stage);
        if (stages)
            keep_stages(g, f, "unet.", stage);
        if ((p = planned(g, what))) {
            double d;

            CHECK(sd_plan_report(p).copies == 0, "%s: %s: up blocks read what the down blocks left where it lies, %zu copies", what,
                  name, sd_plan_report(p).copies);
            case_feed(p, f, sample);
            case_feed(p, f, timesteps);
            case_feed(p, f, states);
            sd_run(p);
            if (stages)
                check_stages(p, f, what, "unet.", stage);
            d = case_distance(p, pred, sd_safetensors_find(f, "model_pred"));
            CHECK(d <= pass_bound, "%s: %s: model_pred %.1e", what, name, d);
            sd_plan_free(p);
        }
    }
    sd_graph_free(g);
    sd_scope_close(s);
}

static void
check_vae(struct sd_model *m, const char *what, const char *name)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *f = case_open(s, name);
    struct sd_vae *vae = sd_model_vae(m);

    if (!CHECK(vae != NULL, "%s: VAE, every tensor accounted for", what))
        printf("# %s\n", sd_reason());
    for (int decode = 0; f && vae && decode < 2; decode++) {
        struct sd_graph *g = models_graph();
        const char *prefix = decode ? "vae.decoder." : "vae.encoder.", *result = decode ? "decoded" : "moments";
        struct sd_tensor *in = case_input(g, f, decode ? "latents" : "pixel_values");
        struct sd_tensor *out = sd_keep(decode ? sd_vae_decode(g, vae, in) : sd_vae_encode(g, vae, in));
        struct sd_tensor **stage = sd_alloc_array(s, sd_safetensors_count(f), sizeof *stage);
        struct sd_plan *p;

        keep_stages(g, f, prefix, stage);
        if ((p = planned(g, what))) {
            double d;

            case_feed(p, f, in);
            sd_run(p);
            check_stages(p, f, what, prefix, stage);
            d = case_distance(p, out, sd_safetensors_find(f, result));
            CHECK(d <= pass_bound, "%s: %s: %s %.1e", what, name, result, d);
            sd_plan_free(p);
        }
        sd_graph_free(g);
    }
    sd_scope_close(s);
}

/* Layer by layer, then each clip_skip; with and without learned token rows. */
static void
check_text(struct sd_model *m, const char *what, const char *name)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *f = case_open(s, name);
    struct sd_clip_text *text = sd_model_text_encoder(m);
    struct sd_safetensor *rows = f ? sd_safetensors_find(f, "rows") : NULL, *t;
    int layers = m->text_config.num_hidden_layers;

    if (!CHECK(text != NULL, "%s: text encoder, every tensor accounted for", what))
        printf("# %s\n", sd_reason());
    for (int learned = 0; f && text && learned < 2; learned++) {
        const char *prefix = learned ? "learned" : "plain";
        struct sd_param *p_rows = sd_param_new(s, "rows", rows->dtype, rows->ndim, rows->shape, rows->data);

        for (int skip = 0; (t = sd_safetensors_find(f, sd_sprintf(s, "%s.clip_skip.%d", prefix, skip))); skip++) {
            struct sd_graph *g = models_graph();
            struct sd_tensor *ids = case_input(g, f, learned ? "learned_ids" : "input_ids");
            struct sd_tensor *states = sd_keep(sd_clip_text(g, text, NULL, ids, learned ? p_rows : NULL, skip));
            struct sd_tensor *hidden[16] = { 0 };
            double worst = 0, d;
            struct sd_plan *p;

            for (int i = 0; i < layers - skip; i++)
                if ((hidden[i] = sd_graph_find(g,
                                               sd_sprintf(s, "text_encoder.text_model.encoder.layers.%d.mlp.fc2", i))))
                    sd_keep(hidden[i]);
            if ((p = planned(g, what))) {
                case_feed(p, f, ids);
                sd_run(p);
                for (int i = 0; i < layers - skip; i++) {
                    d = case_distance(p, hidden[i], sd_safetensors_find(f, sd_sprintf(s, "%s.layers.%d", prefix, i)));
                    worst = d <= worst ? worst : d;
                }
                d = case_distance(p, states, t);
                CHECK(worst <= stage_bound && d <= stage_bound, "%s: %s, clip_skip %d: %d layers %.1e, states %.1e",
                      what, prefix, skip, layers - skip, worst, d);
                sd_plan_free(p);
            }
            sd_graph_free(g);
        }
    }
    sd_scope_close(s);
}

/* ---- adapters and gradients -------------------------------------------------------------------------------------- */

/* A parameter with stored values that learns: its own value and gradient. */
static struct sd_param *
learner(struct sd_scope *s, const struct sd_safetensor *t)
{
    struct sd_param *p = sd_param_new(s, t->name, t->dtype, t->ndim, t->shape, NULL);

    p->trainable = true;
    p->value = memcpy(sd_alloc(s, t->bytes), t->data, t->bytes);
    p->grad = sd_alloc(s, t->bytes);
    return p;
}

/* "0.unet.conv_in.down", ".up", ".scale" ...: the adapters of one component, in order. */
static struct sd_adapters *
read_adapters(struct sd_scope *s, struct sd_safetensors *f, const char *component)
{
    struct sd_adapters *all = sd_adapters_new(s);

    for (int i = 0; i < 64; i++) {
        struct sd_adapter a = { 0 };

        for (size_t k = 0; k < sd_safetensors_count(f); k++) {
            const struct sd_safetensor *t = sd_safetensors_at(f, k);
            const char *rest, *dot;
            int n[1];

            if (!(rest = sd_key_match(t->name, "#.*", n)) || n[0] != i
                || strncmp(rest, component, strlen(component)) != 0)
                continue;
            dot = strrchr(rest, '.');
            a.path = sd_strndup(s, rest, (size_t)(dot - rest));
            if (strcmp(dot, ".scale") == 0)
                a.scale = sd_param_new(s, t->name, t->dtype, t->ndim, t->shape, t->data);
            else
                *(dot[1] == 'd' ? &a.down : &a.up) = learner(s, t);
            if (dot[1] == 'd')
                a.kind = t->ndim == 4 && t->shape[2] > 1 ? SD_ADAPTER_CONV : SD_ADAPTER_LINEAR;
        }
        if (a.path)
            sd_adapters_add(all, &a);
    }
    return all;
}

/* Text encoder and UNet in one graph, as a trainer has them. */
struct together {
    struct sd_graph *g;
    struct sd_tensor *in[5]; /* input_ids, sample, timesteps, target, weight */
    struct sd_tensor *states, *pred, *loss;
    struct sd_adapters *unet, *text;
    struct sd_param *rows;
};

static struct together
describe_together(struct sd_scope *s, struct sd_model *m, struct sd_safetensors *f, bool adapted)
{
    static const char *const inputs[] = { "input_ids", "sample", "timesteps", "target", "weight" };
    struct together t = { .g = sd_graph_new(),
                          .unet = read_adapters(s, f, "unet."),
                          .text = read_adapters(s, f, "text_encoder.") };

    t.rows = learner(s, sd_safetensors_find(f, "rows"));
    for (int i = 0; i < 5; i++)
        t.in[i] = case_input(t.g, f, inputs[i]);
    t.states = sd_keep(sd_clip_text(t.g, sd_model_text_encoder(m), adapted ? t.text : NULL, t.in[0], t.rows, 0));
    t.pred = sd_keep(sd_unet(t.g, sd_model_unet(m), adapted ? t.unet : NULL, t.in[1], t.in[2], t.states));
    t.loss = sd_keep(sd_op_mse(t.g, t.pred, t.in[3], NULL, t.in[4]));
    return t;
}

/* The worst of all stored gradients, and its name. */
static double
worst_gradient(const struct together *t, struct sd_safetensors *f, const char **where, size_t *count)
{
    double worst = 0;

    *count = 0;
    for (size_t k = 0; k < 2 * (sd_adapters_count(t->unet) + sd_adapters_count(t->text)) + 1; k++) {
        size_t n = sd_adapters_count(t->unet), i = k / 2;
        struct sd_adapter *a = i < n                                ? sd_adapters_at(t->unet, i)
                               : i < n + sd_adapters_count(t->text) ? sd_adapters_at(t->text, i - n)
                                                                    : NULL;
        struct sd_param *p = !a ? t->rows : k % 2 ? a->up : a->down;
        char name[300];
        struct sd_safetensor *d;
        double e = INFINITY;

        snprintf(name, sizeof name, "d.%s", p->path);
        if ((d = sd_safetensors_find(f, name)) && d->numel == p->numel) {
            float *stored = malloc(d->bytes);

            e = check_distance((float *)p->grad, memcpy(stored, d->data, d->bytes), p->numel);
            free(stored);
            ++*count;
        }
        if (!(e <= worst)) {
            worst = e;
            *where = p->path;
        }
    }
    return worst;
}

static void
check_adapters(struct sd_model *m)
{
    static const char *const levels[] = { "nothing redone", "cheap ops redone", "feed-forward redone",
                                          "blocks redone" };
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *f = case_open(s, "sd1.adapters");
    struct together t = describe_together(s, m, f, false);
    struct sd_plan *p = planned(t.g, "without adapters");
    size_t gradients, redone = 0;
    const char *where = "none";

    if (p) {
        for (int i = 0; i < 5; i++)
            case_feed(p, f, t.in[i]);
        sd_run(p);
        CHECK(case_distance(p, t.pred, sd_safetensors_find(f, "model_pred")) > 0.05
                  && case_distance(p, t.states, sd_safetensors_find(f, "states")) > 0.05,
              "adapters: the plain model is far from the adapted one");
        sd_plan_free(p);
    }
    sd_graph_free(t.g);
    for (int level = SD_KEEP_ALL; level <= SD_REDO_BLOCKS; level++) {
        size_t used = 0;
        double d;

        t = describe_together(s, m, f, true);
        p = sd_plan_training(t.g, t.loss, level, 0);
        if (!CHECK(p != NULL, "adapters, %s: planned", levels[level])) {
            printf("# %s\n", sd_reason());
            sd_graph_free(t.g);
            continue;
        }
        sd_plan_bind(p, NULL);
        for (int i = 0; i < 5; i++)
            case_feed(p, f, t.in[i]);
        sd_run(p);
        for (size_t i = 0; i < sd_adapters_count(t.unet); i++)
            used += sd_adapters_at(t.unet, i)->used;
        for (size_t i = 0; i < sd_adapters_count(t.text); i++)
            used += sd_adapters_at(t.text, i)->used;
        CHECK(used == 16, "adapters, %s: %zu used (linear, 1x1, 3x3, strided, upsampling, two on one layer)",
              levels[level], used);
        d = case_distance(p, t.states, sd_safetensors_find(f, "states"));
        CHECK(d <= pass_bound, "adapters, %s: text encoder as with W + s up down: %.1e", levels[level], d);
        d = case_distance(p, t.pred, sd_safetensors_find(f, "model_pred"));
        CHECK(d <= pass_bound, "adapters, %s: UNet as with W + s up down: %.1e", levels[level], d);
        d = case_distance(p, t.loss, sd_safetensors_find(f, "losses"));
        CHECK(d <= pass_bound, "adapters, %s: losses %.1e", levels[level], d);
        d = worst_gradient(&t, f, &where, &gradients);
        CHECK(d <= pass_bound && gradients == 33,
              "adapters, %s: %zu gradients, through UNet and text encoder, worst %.1e at %s", levels[level], gradients,
              d, where);
        CHECK(level == SD_KEEP_ALL ? sd_plan_report(p).redone == 0 : sd_plan_report(p).redone > redone,
              "adapters, %s: %zu steps redone", levels[level], sd_plan_report(p).redone);
        redone = sd_plan_report(p).redone;
        sd_plan_free(p);
        sd_graph_free(t.g);
    }
    sd_scope_close(s);
}

/* What is not finite is named by diffusers' module path. */
static void
check_named(struct sd_model *m)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *f = case_open(s, "sd1.unet.even");
    struct sd_unet *unet = sd_model_unet(m);
    struct sd_graph *g = sd_graph_new();
    struct sd_tensor *sample = case_input(g, f, "sample"), *t = case_input(g, f, "timesteps");
    struct sd_tensor *states = case_input(g, f, "encoder_hidden_states");
    struct sd_plan *p;

    sd_keep(sd_unet(g, unet, NULL, sample, t, states));
    if ((p = planned(g, "not finite"))) {
        float *bad = sd_alloc_array(s, states->numel, sizeof *bad);
        const char *path;

        case_feed(p, f, sample);
        case_feed(p, f, t);
        case_feed(p, f, states);
        CHECK((path = sd_run_scan(p)) == NULL, "a finite pass has nothing to name");
        bad[5] = NAN;
        sd_feed(p, states, bad);
        path = sd_run_scan(p);
        CHECK(path && strcmp(path, "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k") == 0,
              "a text that is not finite is met first at %s", path ? path : "nowhere");
        sd_plan_free(p);
    }
    sd_graph_free(g);
    sd_scope_close(s);
}

/* The model that comes with the source, when it is there. */
static void
check_miniature(void)
{
    struct sd_scope *s = sd_scope_open();
    const char *path = getenv("SD_TEST_MODEL") ? getenv("SD_TEST_MODEL") : "examples/miniature/model";
    struct sd_model *m;

    if (access(path, F_OK) != 0 || access(MODELS "miniature.unet.safetensors", F_OK) != 0) {
        check_skip("the miniature, stage by stage", "examples/miniature/model or its stored values are not there");
    } else if (CHECK((m = sd_model_open(s, path, NULL)) != NULL, "miniature: opened")) {
        check_text(m, "miniature", "miniature.text");
        check_unet(m, "miniature", "miniature.unet", true);
        check_vae(m, "miniature", "miniature.vae");
    } else {
        printf("# %s\n", sd_reason());
    }
    sd_scope_close(s);
}

int
main(void)
{
    static const struct {
        const char *what, *path, *config, *family;
    } models[] = {
        { "sd1 directory", MODELS "sd1", NULL, "sd1" },
        { "sd1 single file", MODELS "sd1.safetensors", MODELS "sd1", "sd1" },
        { "sd2 directory", MODELS "sd2", NULL, "sd2" },
        { "sd2 single file", MODELS "sd2.safetensors", MODELS "sd2", "sd2" },
    };

    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        struct sd_scope *s = sd_scope_open();
        struct sd_model *m = sd_model_open(s, models[i].path, &(struct sd_model_options){ .config = models[i].config });
        char name[64];

        if (CHECK(m != NULL, "%s: opened", models[i].what)) {
            snprintf(name, sizeof name, "%s.text", models[i].family);
            check_text(m, models[i].what, name);
            snprintf(name, sizeof name, "%s.unet", models[i].family);
            check_unet(m, models[i].what, name, true);
            snprintf(name, sizeof name, "%s.vae", models[i].family);
            check_vae(m, models[i].what, name);
            if (i == 0) {
                check_unet(m, models[i].what, "sd1.unet.even", false);
                check_adapters(m);
                check_named(m);
                sd_plain = true; /* the C loops alone */
                check_unet(m, "sd1, C loops", "sd1.unet", true);
                check_vae(m, "sd1, C loops", "sd1.vae");
                check_text(m, "sd1, C loops", "sd1.text");
                sd_plain = false;
            }
        } else {
            printf("# %s\n", sd_reason());
        }
        sd_scope_close(s);
    }
    check_miniature();
    return check_done();
}
