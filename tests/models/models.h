/* models.h - for tests of models: run a graph, compare what it kept with stored values of the reference libraries. */
#ifndef SD_TEST_MODELS_H
#define SD_TEST_MODELS_H

#include "../check.h"
#include "device.h"
#include "model/model.h"
#include "plan.h"
#include "safetensors.h"

#define MODELS "tests/data/models/"

/* Stored values are the reference in double, rounded to float; f32 sums here differ by a few 1e-7 per op. */
static const double stage_bound = 2e-5, pass_bound = 1e-4;

/* What the last op of a reference module is called here: its output is the module's. */
static const struct {
    const char *module, *last;
} module_ends[] = {
    { ".resnets.#", "conv2" },
    { ".attentions.#", "proj_out" },
    { ".attentions.#.transformer_blocks.#", "ff.net.2" },
    { ".downsamplers.#", "conv" },
    { ".upsamplers.#", "conv" },
    { "unet.time_embedding", "linear_2" },
    { "vae.encoder.mid_block.attentions.#", "to_out.0" },
    { "vae.decoder.mid_block.attentions.#", "to_out.0" },
};

/* Is that the reason of the last failure?  Else it is shown. */
static inline bool
says(const char *part)
{
    bool ok = strstr(sd_reason(), part) != NULL;

    if (!ok)
        printf("# said: %s\n", sd_reason());
    return ok;
}

/* An empty graph, on the device that SD_TEST_DEVICE names (CPU without), in f32. */
static inline struct sd_graph *
models_graph(void)
{
    static struct sd_compute c;
    static bool open;
    struct sd_graph *g = sd_graph_new();

    if (!open && getenv("SD_TEST_DEVICE") && sd_device_open(&c.device, getenv("SD_TEST_DEVICE")) < 0)
        sd_bug("models", "%s", sd_reason());
    open = true;
    sd_graph_on(g, &c);
    return g;
}

static inline struct sd_tensor *
module_output(struct sd_graph *g, const char *module)
{
    struct sd_tensor *found = NULL;
    char path[512];

    for (size_t i = 0; i < sizeof module_ends / sizeof *module_ends; i++) {
        const char *at = module; /* a pattern that begins with a dot may stand at any dot */
        int n[4];

        while (at && !sd_key_match(at, module_ends[i].module, n))
            at = module_ends[i].module[0] == '.' ? strchr(at + 1, '.') : NULL;
        if (!at)
            continue;
        snprintf(path, sizeof path, "%s.%s", module, module_ends[i].last);
        if ((found = sd_graph_find(g, path)))
            return found;
    }
    return sd_graph_find(g, module); /* conv_in and other layers */
}

static inline struct sd_safetensors *
case_open(struct sd_scope *s, const char *name)
{
    struct sd_safetensors *f = sd_safetensors_open(s, sd_sprintf(s, MODELS "%s.safetensors", name));

    if (!CHECK(f != NULL, "%s: stored values", name))
        printf("# %s\n", sd_reason());
    return f;
}

static inline struct sd_tensor *
case_input(struct sd_graph *g, struct sd_safetensors *f, const char *name)
{
    struct sd_safetensor *t = sd_safetensors_find(f, name);

    return sd_input(g, name, t->dtype, t->ndim, t->shape);
}

static inline void
case_feed(struct sd_plan *p, struct sd_safetensors *f, struct sd_tensor *input)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensor *t = sd_safetensors_find(f, input->name);
    void *copy = sd_alloc(s, t->bytes);

    memcpy(copy, t->data, t->bytes);
    sd_feed(p, input, copy);
    sd_scope_close(s);
}

/* ||x - stored|| / ||stored||, infinite when the sizes differ. */
static inline double
case_distance(struct sd_plan *p, struct sd_tensor *x, const struct sd_safetensor *t)
{
    struct sd_scope *s = sd_scope_open();
    double d = INFINITY;

    if (x && x->numel == t->numel) {
        float *values = sd_alloc_array(s, x->numel, sizeof *values), *stored = sd_alloc(s, t->bytes);

        memcpy(stored, t->data, t->bytes);
        sd_fetch(p, x, values);
        d = check_distance(values, stored, t->numel);
    }
    sd_scope_close(s);
    return d;
}

/* The stages of the case that are modules of this graph: their outputs are kept. */
static inline size_t
keep_stages(struct sd_graph *g, struct sd_safetensors *f, const char *prefix, struct sd_tensor **stage)
{
    size_t found = 0;

    for (size_t i = 0; i < sd_safetensors_count(f); i++) {
        const char *name = sd_safetensors_at(f, i)->name;

        stage[i] = strncmp(name, prefix, strlen(prefix)) == 0 ? module_output(g, name) : NULL;
        if (stage[i]) {
            sd_keep(stage[i]);
            found++;
        }
    }
    return found;
}

/* One line for all stages: how many, the worst and where. */
static inline void
check_stages(struct sd_plan *p, struct sd_safetensors *f, const char *what, const char *prefix,
             struct sd_tensor **stage)
{
    size_t count = 0, wanted = 0, bad = 0;
    const char *where = "none";
    double worst = 0;

    for (size_t i = 0; i < sd_safetensors_count(f); i++) {
        const struct sd_safetensor *t = sd_safetensors_at(f, i);
        double d;

        if (strncmp(t->name, prefix, strlen(prefix)) != 0)
            continue;
        wanted++;
        if (!stage[i]) {
            printf("# %s: no such module\n", t->name);
            continue;
        }
        count++;
        d = case_distance(p, stage[i], t);
        if (!(d <= stage_bound)) {
            bad++;
            printf("# %s: %.2e\n", t->name, d);
        }
        if (!(d <= worst)) {
            worst = d;
            where = t->name;
        }
    }
    CHECK(count && count == wanted && !bad, "%s: %zu of %zu stages within %.0e, worst %.1e at %s", what, count - bad,
          wanted, stage_bound, worst, where);
}

static inline struct sd_plan *
planned(struct sd_graph *g, const char *what)
{
    struct sd_plan *p = sd_plan_inference(g, 0);

    if (!CHECK(p != NULL, "%s: planned", what)) {
        printf("# %s\n", sd_reason());
        return NULL;
    }
    sd_plan_bind(p, NULL);
    return p;
}

#endif
