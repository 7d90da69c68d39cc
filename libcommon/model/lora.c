/* lora - adapters in files: load, join, adapters, merge.  Writing is in lora_save.c, names in lora_keys.c. */
#include "lora.h"

#include "lora_keys.h"

#include <math.h>
#include <regex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct raw {                        /* one module while its tensors are being collected */
    char path[SD_LORA_PATH_MAX];
    const char *key;                /* one of its keys, for messages */
    struct sd_safetensor *part[4];
};

struct loader {
    struct sd_scope *scope;
    struct sd_lora *lora;
    struct raw *raw;
    size_t count, room;
};

enum { MODULES_MAX = 1 << 14 };     /* SDXL has 1052 */

static struct raw *
raw_of(struct loader *l, const char *path)
{
    for (size_t i = l->count; i-- > 0;)         /* parts of a module lie side by side, or nearly */
        if (strcmp(l->raw[i].path, path) == 0)
            return &l->raw[i];
    if (l->count == MODULES_MAX)
        return sd_fail_null("more than %d modules", MODULES_MAX);
    if (l->count == l->room) {
        size_t room = l->room ? 2 * l->room : 512;
        struct raw *grown = sd_alloc_array(l->scope, room, sizeof *grown);

        if (l->count)
            memcpy(grown, l->raw, l->count * sizeof *grown);
        l->raw = grown;
        l->room = room;
    }
    l->raw[l->count] = (struct raw){ .key = NULL };         /* the room may have been another component's */
    snprintf(l->raw[l->count].path, sizeof l->raw->path, "%s", path);
    return &l->raw[l->count++];
}

/* ---- alpha ------------------------------------------------------------------------------------------------------- */

/* PEFT's rule: the module is the key, or ends with it behind a dot; the key may be a regular expression. */
static int
pattern_fits(const char *key, const char *inner)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.";
    static const char special[] = "()|*+?[]-^$\\";
    size_t n = strlen(inner), m = strlen(key), k = 0;
    char text[1024];
    regex_t regex;
    int found;

    if (n >= m && strcmp(inner + n - m, key) == 0 && (n == m || inner[n - m - 1] == '.'))
        return 1;
    if (strspn(key, plain) == m)
        return 0;
    k = (size_t)snprintf(text, sizeof text, "^(.*\\.)?(");
    for (const char *c = key; *c && k < sizeof text - 16; c++)
        if (*c == '\\' && c[1] == 'd') {
            k += (size_t)snprintf(text + k, sizeof text - k, "[0-9]");
            c++;
        } else if (*c == '\\' && c[1] != '.')
            return sd_fail("pattern %s: not understood", key);
        else if (strchr(plain, *c) || strchr(special, *c))
            text[k++] = *c;
        else
            return sd_fail("pattern %s: not understood", key);
    snprintf(text + k, sizeof text - k, ")$");
    if (m > 900 || regcomp(&regex, text, REG_EXTENDED | REG_NOSUB) != 0)
        return sd_fail("pattern %s: not understood", key);
    found = regexec(&regex, inner, 0, NULL, 0) == 0;
    regfree(&regex);
    return found;
}

/* The first entry of alpha_pattern for a module, in *value where there is one. */
static int
pattern_value(const json_t *patterns, const char *inner, const json_t **value)
{
    const char *key;
    json_t *of;

    json_object_foreach((json_t *)(uintptr_t)patterns, key, of) {
        int fits = pattern_fits(key, inner);

        if (fits < 0)
            return -1;
        if (fits) {
            *value = of;
            return 0;
        }
    }
    return 0;
}

/* scale of a module by PEFT's configuration; prefix: "unet." in diffusers' metadata, "" in adapter_config.json */
static int
configured_scale(struct sd_scope *s, const json_t *config, const char *prefix, const char *path, int64_t rank,
                 double *scale)
{
    const char *inner = strchr(path, '.') + 1;
    const json_t *alpha = json_object_get(config, sd_sprintf(s, "%slora_alpha", prefix));
    bool rslora = json_is_true(json_object_get(config, sd_sprintf(s, "%suse_rslora", prefix)));

    if (json_is_true(json_object_get(config, sd_sprintf(s, "%suse_dora", prefix))))
        return sd_fail("a DoRA adapter, not supported");
    if (pattern_value(json_object_get(config, sd_sprintf(s, "%salpha_pattern", prefix)), inner, &alpha) < 0)
        return -1;
    if (!json_is_number(alpha))
        return sd_fail("%slora_alpha: not in the configuration, or no number", prefix);
    *scale = json_number_value(alpha) / (rslora ? sqrt((double)rank) : (double)rank);
    return 0;
}

static int
stored_scale(struct sd_scope *s, const struct raw *r, int64_t rank, double *scale)
{
    const struct sd_safetensor *t = r->part[SD_LORA_ALPHA];
    double alpha;

    if (t->numel != 1)
        return sd_fail("%s: alpha of %zu elements", r->key, t->numel);
    if (t->dtype == SD_I64) {
        int64_t n;

        memcpy(&n, t->data, sizeof n);
        alpha = (double)n;
    } else {
        const float *f = sd_safetensor_f32(s, t);

        if (!f)
            return sd_fail_prefix("%s", r->key);
        alpha = *f;
    }
    *scale = alpha / (double)rank;
    return isfinite(alpha) ? 0 : sd_fail("%s: alpha is not finite", r->key);
}

static bool
all_finite(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

/* ---- one module -------------------------------------------------------------------------------------------------- */

static const float *
factor(struct sd_lora *lora, const struct sd_safetensor *t)
{
    const float *values = sd_safetensor_f32(lora->scope, t);

    if (values && (const void *)values != t->data)
        lora->held += t->numel * sizeof *values;
    return values;
}

/* LyCORIS' Tucker form: down'[n, i, k] = sum_m mid[n, m, k] down[m, i] */
static const float *
fold_mid(struct sd_lora *lora, const struct sd_safetensor *mid, const struct sd_safetensor *down,
         struct sd_lora_layer *l)
{
    int64_t r = l->rank, k = mid->shape[2] * mid->shape[3];
    const float *m = factor(lora, mid), *d = factor(lora, down);
    float *out = sd_alloc_array(lora->scope, (size_t)(r * l->in * k), sizeof *out);

    if (!m || !d)
        return NULL;
    lora->held += (size_t)(r * l->in * k) * sizeof *out;
    for (int64_t n = 0; n < r; n++)
        for (int64_t i = 0; i < l->in; i++)
            for (int64_t q = 0; q < k; q++) {
                double sum = 0;

                for (int64_t j = 0; j < r; j++)
                    sum += (double)m[(n * r + j) * k + q] * d[j * l->in + i];
                out[(n * l->in + i) * k + q] = (float)sum;
            }
    l->kh = mid->shape[2];
    l->kw = mid->shape[3];
    return out;
}

static bool
ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

/* The narrowest of F16, BF16, F32 that holds both. */
static enum sd_dtype
widest(enum sd_dtype a, enum sd_dtype b, bool first)
{
    return first || a == b ? (b == SD_F64 ? SD_F32 : b) : SD_F32;
}

static int
layer(struct loader *l, const struct raw *r, const json_t *config, const char *prefix, struct sd_lora_layer *x)
{
    struct sd_scope *s = l->lora->scope;
    struct sd_safetensor *down = r->part[SD_LORA_DOWN], *up = r->part[SD_LORA_UP], *mid = r->part[SD_LORA_MID];

    if (!down || !up)
        return sd_fail("%s: %s is missing", r->key, down ? "up" : "down");
    if ((down->ndim != 2 && down->ndim != 4) || (up->ndim != 2 && up->ndim != 4) || !down->numel || !up->numel
        || (up->ndim == 4 && up->shape[2] * up->shape[3] != 1))
        return sd_fail("%s: factors of shape %s and %s", r->key, sd_shape_text(s, down->ndim, down->shape),
                       sd_shape_text(s, up->ndim, up->shape));
    *x = (struct sd_lora_layer){ .path = sd_strdup(s, r->path),
                                 .rank = down->shape[0],
                                 .in = down->shape[1],
                                 .out = up->shape[0],
                                 .kh = down->ndim == 4 ? down->shape[2] : 1,
                                 .kw = down->ndim == 4 ? down->shape[3] : 1,
                                 .conv = down->ndim == 4,
                                 .scale = 1 };
    if (up->shape[1] != x->rank)
        return sd_fail("%s: ranks differ: down %s, up %s", r->key, sd_shape_text(s, down->ndim, down->shape),
                       sd_shape_text(s, up->ndim, up->shape));
    if (mid) {
        if (mid->ndim != 4 || mid->shape[0] != x->rank || mid->shape[1] != x->rank || x->kh * x->kw != 1)
            return sd_fail("%s: mid of shape %s", r->key, sd_shape_text(s, mid->ndim, mid->shape));
        x->down = fold_mid(l->lora, mid, down, x);
        x->conv = true;
    } else
        x->down = factor(l->lora, down);
    x->up = factor(l->lora, up);
    if (!x->down || !x->up)
        return sd_fail_prefix("%s", r->key);
    if (!all_finite(x->down, x->rank * x->in * x->kh * x->kw) || !all_finite(x->up, x->out * x->rank))
        return sd_fail("%s: a value that is not finite", r->key);
    if ((ends_with(r->path, ".attn2.to_k") || ends_with(r->path, ".attn2.to_v")) && (x->in == 2048 || x->in == 1280))
        return sd_fail("%s: an adapter for SDXL, not supported", r->key);
    l->lora->dtype = widest(l->lora->dtype, down->dtype, l->lora->count == 0);
    l->lora->dtype = widest(l->lora->dtype, up->dtype, false);
    if (r->part[SD_LORA_ALPHA])
        return stored_scale(s, r, x->rank, &x->scale);
    return config ? configured_scale(s, config, prefix, r->path, x->rank, &x->scale) : 0;
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static int
collect(struct loader *l, const char *path, const char *component)
{
    struct sd_safetensors *f = sd_safetensors_open(l->lora->scope, path);

    if (!f)
        return -1;
    for (size_t i = 0; i < sd_safetensors_count(f); i++) {
        struct sd_safetensor *t = sd_safetensors_at(f, i);
        struct sd_lora_key k;
        struct raw *r;

        if (strlen(t->name) != t->name_length)
            return sd_fail("a key with a zero byte in it");
        if (sd_lora_key_read(t->name, component, &k) < 0 || !(r = raw_of(l, k.path)))
            return -1;
        if (r->part[k.part])
            return sd_fail("%s: the same as %s", t->name, r->part[k.part]->name);
        r->part[k.part] = t;
        r->key = t->name;
        if (!l->lora->dialect)
            l->lora->dialect = k.dialect;
    }
    l->lora->metadata = sd_safetensors_metadata_count(f);
    l->lora->pair = sd_alloc_array(l->lora->scope, l->lora->metadata + 1, sizeof *l->lora->pair);
    for (size_t i = 0; i < l->lora->metadata; i++)
        l->lora->pair[i][0] = sd_safetensors_metadata_at(f, i, &l->lora->pair[i][1]);
    return 0;
}

static int
add_layers(struct loader *l, const json_t *config, bool prefixed)
{
    struct sd_lora *lora = l->lora;
    struct sd_lora_layer *grown = sd_alloc_array(lora->scope, lora->count + l->count + 1, sizeof *grown);

    if (lora->count)
        memcpy(grown, lora->layer, lora->count * sizeof *grown);
    lora->layer = grown;
    for (size_t i = 0; i < l->count; i++) {
        const char *prefix = !prefixed ? "" : strncmp(l->raw[i].path, "unet.", 5) == 0 ? "unet." : "text_encoder.";

        if (layer(l, &l->raw[i], config, prefix, &lora->layer[lora->count]) < 0)
            return -1;
        lora->count++;
    }
    l->count = 0;
    return 0;
}

static int
load_file(struct loader *l, const char *path)
{
    const char *text = NULL;
    json_t *config = NULL;

    if (collect(l, path, NULL) < 0)
        return -1;
    for (size_t i = 0; i < l->lora->metadata; i++)
        if (strcmp(l->lora->pair[i][0], "lora_adapter_metadata") == 0)
            text = l->lora->pair[i][1];
    if (text && !(config = sd_json_parse(l->lora->scope, text, strlen(text), 0)))
        return sd_fail_prefix("lora_adapter_metadata");
    if (!config && strcmp(l->lora->dialect ? l->lora->dialect : "", "peft") == 0)
        return sd_fail("PEFT's tensors without a scale: name the folder with their adapter_config.json");
    return add_layers(l, config, true);
}

static int
load_peft(struct loader *l, const char *folder, const char *component)
{
    const char *config_path = sd_sprintf(l->scope, "%s/adapter_config.json", folder);
    json_t *config = sd_json_load(l->lora->scope, config_path, 0);
    const char *type = "(none)", *bias = "none";

    if (!config)
        return sd_fail_prefix("adapter_config.json");
    if (sd_json_text(config, "peft_type", &type) < 0 || sd_json_text(config, "bias", &bias) < 0)
        return sd_fail_prefix("adapter_config.json");
    if (strcmp(type, "LORA") != 0)
        return sd_fail("adapter_config.json: peft_type %.40s, not supported", type);
    if (strcmp(bias, "none") != 0)
        return sd_fail("adapter_config.json: bias %.40s, not supported", bias);
    if (!json_object_get(config, "lora_alpha"))
        json_object_set_new(config, "lora_alpha", json_integer(8));
    if (json_is_true(json_object_get(config, "fan_in_fan_out")))
        return sd_fail("fan_in_fan_out is not supported");
    if (collect(l, sd_sprintf(l->scope, "%s/adapter_model.safetensors", folder), component) < 0)
        return sd_fail_prefix("adapter_model.safetensors");
    l->lora->dialect = "peft";
    return add_layers(l, config, false);
}

static bool
is_folder(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static int
by_path(const void *a, const void *b)
{
    return strcmp(((const struct sd_lora_layer *)a)->path, ((const struct sd_lora_layer *)b)->path);
}

struct sd_lora *
sd_lora_load(struct sd_scope *s, const char *path)
{
    struct loader l = { .scope = sd_scope_open(), .lora = sd_alloc(s, sizeof *l.lora) };
    int status = 0;

    l.lora->scope = s;
    if (!is_folder(path))
        status = load_file(&l, path);
    else {
        static const char *const parts[] = { "unet", "text_encoder" };
        bool any = false;

        for (int i = 0; i < 2 && status == 0; i++) {
            const char *part = sd_sprintf(l.scope, "%s/%s", path, parts[i]);

            if (is_folder(part)) {
                any = true;
                status = load_peft(&l, part, parts[i]) < 0 ? sd_fail_prefix("%s", parts[i]) : 0;
            }
        }
        if (!any)
            status = load_peft(&l, path, NULL);
    }
    if (status == 0 && !l.lora->count)
        status = sd_fail("no adapter in it");
    sd_scope_close(l.scope);
    if (status < 0)
        return NULL;
    qsort(l.lora->layer, l.lora->count, sizeof *l.lora->layer, by_path);
    return l.lora;
}

/* ---- use --------------------------------------------------------------------------------------------------------- */

static const struct sd_lora_layer *
find(const struct sd_lora *lora, const char *path)
{
    struct sd_lora_layer key = { .path = path };

    return bsearch(&key, lora->layer, lora->count, sizeof key, by_path);
}

/* Concatenate what every file has for one path:  sum_i w_i s_i U_i D_i = [w_0 s_0 U_0, w_1 s_1 U_1, ...] [D_0; D_1;
 * ...] */
static double
largest(const float *x, int64_t n, double factor)
{
    double most = 0;

    for (int64_t i = 0; i < n; i++)
        most = fmax(most, fabs(factor * x[i]));
    return most;
}

/* The power of two that makes up times it and down over it equally large. */
static double
balance(const struct sd_lora_layer *l, double weight)
{
    double up = largest(l->up, l->out * l->rank, weight * l->scale),
           down = largest(l->down, l->rank * l->in * l->kh * l->kw, 1);

    return up > 0 && down > 0 && isfinite(down / up) && down / up > 0 ? exp2(round(log2(down / up) / 2)) : 1;
}

static int
join_layer(struct sd_lora *out, struct sd_lora *const *lora, const double *weight, size_t count, const char *path,
           struct sd_lora_layer *x)
{
    int64_t at = 0, row;
    size_t found = 0, only = 0;
    float *down, *up;

    for (size_t i = 0; i < count; i++) {
        const struct sd_lora_layer *l = find(lora[i], path);

        if (!l)
            continue;
        if (!x->path)
            *x = *l;
        else if (l->in != x->in || l->out != x->out || l->kh != x->kh || l->kw != x->kw)
            return sd_fail("%s: [%lld, %lld] in one file, [%lld, %lld] in another", path, (long long)x->out,
                           (long long)x->in, (long long)l->out, (long long)l->in);
        else
            x->rank += l->rank;
        x->conv |= l->conv;
        found++;
        only = i;
    }
    if (found == 1) {
        x->scale *= weight[only];
        return 0;
    }
    row = x->in * x->kh * x->kw;
    down = sd_alloc_array(out->scope, (size_t)(x->rank * row), sizeof *down);
    up = sd_alloc_array(out->scope, (size_t)(x->out * x->rank), sizeof *up);
    out->held += (size_t)(x->rank * row + x->out * x->rank) * sizeof *up;
    for (size_t i = 0; i < count; i++) {
        const struct sd_lora_layer *l = find(lora[i], path);
        double by;

        if (!l)
            continue;
        by = balance(l, weight[i]);
        for (int64_t k = 0; k < l->rank * row; k++)
            down[at * row + k] = (float)(l->down[k] / by);
        for (int64_t o = 0; o < x->out; o++)
            for (int64_t r = 0; r < l->rank; r++)
                up[o * x->rank + at + r] = (float)(weight[i] * l->scale * by * l->up[o * l->rank + r]);
        at += l->rank;
    }
    x->down = down;
    x->up = up;
    x->scale = 1;
    return 0;
}

struct sd_lora *
sd_lora_join(struct sd_scope *s, struct sd_lora *const *lora, const double *weight, size_t count)
{
    struct sd_lora *out = sd_alloc(s, sizeof *out);
    size_t total = 0;

    out->scope = s;
    out->dialect = "joined";
    for (size_t i = 0; i < count; i++)
        total += lora[i]->count;
    for (size_t i = 0; i < count; i++)
        out->dtype = i && out->dtype != lora[i]->dtype ? SD_F32 : lora[i]->dtype;
    out->layer = sd_alloc_array(s, total + 1, sizeof *out->layer);
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < lora[i]->count; k++) {
            const char *path = lora[i]->layer[k].path;
            bool done = false;

            for (size_t j = 0; j < i && !done; j++)
                done = find(lora[j], path) != NULL;
            if (!done && join_layer(out, lora, weight, count, path, &out->layer[out->count++]) < 0)
                return NULL;
        }
    qsort(out->layer, out->count, sizeof *out->layer, by_path);
    return out;
}

void
sd_lora_adapters(const struct sd_lora *lora, struct sd_adapters *adapters, double unet, double text)
{
    for (size_t i = 0; i < lora->count; i++) {
        const struct sd_lora_layer *l = &lora->layer[i];
        struct sd_scope *s = lora->scope;
        float *scale = sd_alloc(s, sizeof *scale);
        int ndim = l->conv ? 4 : 2;
        struct sd_adapter a = { .path = l->path, .kind = l->kh * l->kw > 1 ? SD_ADAPTER_CONV : SD_ADAPTER_LINEAR };

        *scale = (float)(l->scale * (strncmp(l->path, "unet.", 5) == 0 ? unet : text));
        a.down = sd_param_new(s, sd_sprintf(s, "%s.lora_down", l->path), SD_F32, ndim,
                              (int64_t[]){ l->rank, l->in, l->kh, l->kw }, l->down);
        a.up = sd_param_new(s, sd_sprintf(s, "%s.lora_up", l->path), SD_F32, ndim, (int64_t[]){ l->out, l->rank, 1, 1 },
                            l->up);
        a.scale = sd_param_new(s, sd_sprintf(s, "%s.scale", l->path), SD_F32, 1, (int64_t[]){ 1 }, scale);
        sd_adapters_add(adapters, &a);
    }
}

void
sd_lora_merge(const struct sd_lora_layer *l, double strength, float *values)
{
    enum { PIECE = 512 };
    int64_t row = l->in * l->kh * l->kw;

#pragma omp parallel for schedule(static) if (l->out * row * l->rank > 1 << 18)
    for (int64_t o = 0; o < l->out; o++)
        for (int64_t at = 0; at < row; at += PIECE) {
            int64_t n = row - at < PIECE ? row - at : PIECE;
            float change[PIECE] = { 0 };        /* summed before it meets the weight, which is often much larger */

            for (int64_t r = 0; r < l->rank; r++) {
                float u = (float)(strength * l->scale * l->up[o * l->rank + r]);
                const float *down = l->down + r * row + at;

                for (int64_t i = 0; i < n; i++)
                    change[i] += u * down[i];
            }
            for (int64_t i = 0; i < n; i++)
                values[o * row + at + i] += change[i];
        }
}
