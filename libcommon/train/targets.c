/* targets - layers by pattern, adapters on them. */
#include "targets.h"

#include "hash.h"
#include "random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* glob, without crossing dots */
static bool
glob(const char *p, const char *text)
{
    for (; *p && *p != '*'; p++, text++)
        if (!*text || (*p == '?' ? *text == '.' : *p != *text))
            return false;
    if (!*p)
        return !*text;
    for (;; text++) {
        if (glob(p + 1, text))
            return true;
        if (!*text || *text == '.')
            return false;
    }
}

bool
sd_targets_match(const char *pattern, const char *path)
{
    if (glob(pattern, path))
        return true;
    for (const char *dot = strchr(path, '.'); dot; dot = strchr(dot + 1, '.'))
        if (glob(pattern, dot + 1))
            return true;
    return false;
}

struct pattern {
    const char *text;
    bool text_encoder;
    int64_t matched;
};

struct walk {
    struct sd_targets *o;
    struct sd_weights *weights;
    struct pattern *pattern;
    size_t patterns;
    bool text_encoder;
    const char *component;
    struct sd_trainables *t;
    struct sd_adapters *adapters;
    struct sd_scope *scope;
    int64_t added;
    int64_t wasteful;               /* layers whose rank is more than theirs */
    const char *first;
};

/* The module path of a weight that a low-rank product can be added to; NULL for biases, norms, embeddings. */
static const char *
layer_of(const struct sd_param *p, struct sd_scope *s)
{
    size_t n = strlen(p->path), m = strlen(".weight");

    if ((p->ndim != 2 && p->ndim != 4) || n <= m || strcmp(p->path + n - m, ".weight") != 0
        || strstr(p->path, "_embedding.weight"))
        return NULL;
    return sd_strndup(s, p->path, n - m);
}

static void
consider(struct sd_param *p, void *user)
{
    struct walk *w = user;
    const char *path = layer_of(p, w->scope), *inner;
    bool conv = p->ndim == 4, wide = conv && (p->shape[2] > 1 || p->shape[3] > 1), hit = false;
    struct sd_weights_place place;
    int64_t rank = wide && w->o->conv_rank ? w->o->conv_rank : w->o->rank, least, fan_in;
    double alpha = wide && w->o->conv_rank ? w->o->conv_alpha : w->o->alpha;
    struct sd_adapter a = { .kind = wide ? SD_ADAPTER_CONV : SD_ADAPTER_LINEAR };
    float *scale;

    if (!path)
        return;
    inner = path + strlen(w->component) + 1;
    for (size_t i = 0; i < w->patterns; i++)
        if (w->pattern[i].text_encoder == w->text_encoder && sd_targets_match(w->pattern[i].text, inner)) {
            w->pattern[i].matched++;
            hit = true;
        }
    if (!hit)
        return;
    fan_in = (int64_t)p->numel / p->shape[0];
    least = p->shape[0] < fan_in ? p->shape[0] : fan_in;
    if (rank > least && !w->wasteful++)
        w->first = sd_sprintf(w->scope, "%s: a rank of %lld, where %lld is all there is", path, (long long)rank,
                              (long long)least);
    a.path = path;
    a.down = sd_trainables_add(w->t, w->component, sd_sprintf(w->scope, "%s.lora_down", path), p->ndim,
                               (int64_t[]){ rank, p->shape[1], conv ? p->shape[2] : 1, conv ? p->shape[3] : 1 });
    a.up = sd_trainables_add(w->t, w->component, sd_sprintf(w->scope, "%s.lora_up", path), p->ndim,
                             (int64_t[]){ p->shape[0], rank, 1, 1 });
    scale = sd_alloc(w->t->scope, sizeof *scale);
    *scale = (float)((alpha > 0 ? alpha : (double)rank) / (double)rank);
    a.scale = sd_param_new(w->t->scope, sd_sprintf(w->scope, "%s.scale", path), SD_F32, 1, (int64_t[]){ 1 }, scale);
    sd_adapters_add(w->adapters, &a);
    /* UNets of SD1 hold projections as 1x1 convolutions: readers want their factors with four dimensions too */
    w->o->conv[w->added++] =
        conv || (sd_weights_place(w->weights, p->path + strlen(w->component) + 1, &place) && place.tensor->ndim == 4);
}

int64_t
sd_targets_add(struct sd_targets *o, struct sd_weights *unet, struct sd_weights *text, struct sd_trainables *t,
               struct sd_adapters *adapters, bool *with_text)
{
    struct walk w = { .o = o, .t = t, .adapters = adapters, .scope = t->scope };
    char *patterns = sd_strdup(t->scope, o->patterns), *save = NULL;
    int64_t in_unet;

    w.pattern = sd_alloc_array(t->scope, strlen(patterns) + 1, sizeof *w.pattern);
    for (char *word = strtok_r(patterns, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
        bool te = strncmp(word, "te:", 3) == 0;

        w.pattern[w.patterns++] = (struct pattern){ te ? word + 3 : word, te, 0 };
    }
    o->conv = sd_alloc_array(t->scope, sd_weights_count(unet) + (text ? sd_weights_count(text) : 0), sizeof *o->conv);
    w.component = "unet";
    w.weights = unet;
    sd_weights_each(unet, consider, &w);
    in_unet = w.added;
    w.component = "text_encoder";
    w.weights = text;
    w.text_encoder = true;
    if (text)
        sd_weights_each(text, consider, &w);
    *with_text = w.added > in_unet;
    for (size_t i = 0; i < w.patterns; i++)
        if (!w.pattern[i].matched)
            return sd_fail("%s%s: matches no layer", w.pattern[i].text_encoder ? "te:" : "", w.pattern[i].text);
    if (w.wasteful)
        sd_warn("--rank", "%s%s", w.first,
                w.wasteful > 1 ? sd_sprintf(t->scope, ", and %lld more layers", (long long)w.wasteful - 1) : "");
    return w.added;
}

static const struct sd_lora_layer *
find(const struct sd_lora *lora, const char *path)
{
    for (size_t i = 0; i < lora->count; i++)
        if (strcmp(lora->layer[i].path, path) == 0)
            return &lora->layer[i];
    return NULL;
}

static uint64_t
name_of(const char *path)
{
    char hex[SD_XXH128_HEX];

    sd_xxh128_of(path, strlen(path), hex);
    hex[16] = 0;
    return strtoull(hex, NULL, 16);
}

int
sd_targets_start(const struct sd_targets *o, struct sd_adapters *adapters, const struct sd_lora *init)
{
    size_t count = sd_adapters_count(adapters);

    if (init && init->count != count)
        return sd_fail("%zu layers, this run adapts %zu", init->count, count);
    for (size_t i = 0; i < count; i++) {
        struct sd_adapter *a = sd_adapters_at(adapters, i);
        size_t fan_in = a->down->numel / (size_t)a->down->shape[0];
        const struct sd_lora_layer *l;
        float *down = (float *)a->down->value, *up = (float *)a->up->value;

        if (!init) {
            float bound = (float)(1 / sqrt((double)fan_in));

            sd_random_uniform(down, a->down->numel, o->seed, SD_FOR_INIT, name_of(a->path), 0);
            for (size_t k = 0; k < a->down->numel; k++)
                down[k] = (2 * down[k] - 1) * bound;
            continue;
        }
        if (!(l = find(init, a->path)))
            return sd_fail("%s: not in the file", a->path);
        if (l->rank != a->down->shape[0] || (size_t)(l->in * l->kh * l->kw) != fan_in || l->out != a->up->shape[0])
            return sd_fail("%s: [%lld, %lld] of rank %lld, expected [%lld, %zu] of rank %lld", a->path,
                           (long long)l->out, (long long)(l->in * l->kh * l->kw), (long long)l->rank,
                           (long long)a->up->shape[0], fan_in, (long long)a->down->shape[0]);
        memcpy(down, l->down, a->down->numel * sizeof *down);
        memcpy(up, l->up, a->up->numel * sizeof *up);
        *(float *)(uintptr_t)a->scale->raw = (float)l->scale;
    }
    return 0;
}

static int
by_path(const void *a, const void *b)
{
    return strcmp(((const struct sd_lora_layer *)a)->path, ((const struct sd_lora_layer *)b)->path);
}

struct sd_lora *
sd_targets_lora(struct sd_scope *s, const struct sd_targets *o, const struct sd_adapters *adapters)
{
    struct sd_lora *lora = sd_alloc(s, sizeof *lora);

    lora->scope = s;
    lora->count = sd_adapters_count(adapters);
    lora->dialect = "trained";
    lora->layer = sd_alloc_array(s, lora->count + 1, sizeof *lora->layer);
    for (size_t i = 0; i < lora->count; i++) {
        const struct sd_adapter *a = sd_adapters_at(adapters, i);

        lora->layer[i] = (struct sd_lora_layer){ .path = a->path,
                                                 .rank = a->down->shape[0],
                                                 .in = a->down->shape[1],
                                                 .out = a->up->shape[0],
                                                 .kh = a->down->ndim == 4 ? a->down->shape[2] : 1,
                                                 .kw = a->down->ndim == 4 ? a->down->shape[3] : 1,
                                                 .conv = o->conv[i],
                                                 .down = (const float *)a->down->value,
                                                 .up = (const float *)a->up->value,
                                                 .scale = *(const float *)a->scale->raw };
    }
    qsort(lora->layer, lora->count, sizeof *lora->layer, by_path);
    return lora;
}
