/* state - the training state as one safetensors file:
 *   value, <buffer of the optimizer> ... F32 [count];  scalars F64 [groups, SD_MAX_SCALARS]
 *   metadata: sd_state "1", step, settings (JSON), layout (hash of names and shapes, in order), data (XXH3-128 of the
 * values), check (XXH3-128 of data and of these texts) */
#include "state.h"

#include "hash.h"
#include "safetensors.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void
layout_hash(const struct sd_trainables *t, char hex[SD_SHA256_HEX])
{
    struct sd_scope *s = sd_scope_open();
    struct sd_sha256 *h = sd_sha256_new(s);

    for (size_t i = 0; i < t->params; i++) {
        const struct sd_param *p = t->param[i];

        sd_sha256_update(h, t->group[t->param_group[i]].name, strlen(t->group[t->param_group[i]].name) + 1);
        sd_sha256_update(h, p->path, strlen(p->path) + 1);
        sd_sha256_update(h, p->shape, (size_t)p->ndim * sizeof *p->shape);
    }
    sd_sha256_hex(h, hex);
    sd_scope_close(s);
}

/* The values' checksum alone would let a changed digit of the step pass. */
static const char *
check_of(struct sd_scope *s, const char *data, const char *step, const char *layout, const char *settings)
{
    const char *all = sd_sprintf(s, "%s %s %s %s", data, step, layout, settings);
    char hex[SD_XXH128_HEX];

    sd_xxh128_of(all, strlen(all), hex);
    return sd_strdup(s, hex);
}

int
sd_state_save(const char *path, const struct sd_trainables *t, const struct sd_optimizer *o, int64_t step,
              const json_t *settings)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);
    const int64_t shape[1] = { (int64_t)t->count }, scalars[2] = { t->groups, SD_MAX_SCALARS };
    const char *texts[2] = { sd_sprintf(s, "%lld", (long long)step), sd_json_dump(s, settings, 0) };
    char layout[SD_SHA256_HEX], data[SD_XXH128_HEX];
    int status;

    sd_safetensors_add(w, "value", SD_F32, 1, shape, t->value);
    for (int b = 0; b < o->buffers; b++)
        sd_safetensors_add(w, o->buffer_name[b], SD_F32, 1, shape, o->buffer[b]);
    sd_safetensors_add(w, "scalars", SD_F64, 2, scalars, o->scalar);
    layout_hash(t, layout);
    sd_safetensors_set_metadata(w, "sd_state", "1");
    sd_safetensors_set_metadata(w, "step", texts[0]);
    sd_safetensors_set_metadata(w, "settings", texts[1]);
    sd_safetensors_set_metadata(w, "layout", layout);
    status = sd_safetensors_data_hash(w, data);
    if (status == 0) {
        sd_safetensors_set_metadata(w, "data", data);
        sd_safetensors_set_metadata(w, "check", check_of(s, data, texts[0], layout, texts[1]));
        status = sd_safetensors_save(w, path);
    }
    sd_scope_close(s);
    return status;
}

/* Fields that differ, as text; NULL when none does. */
static const char *
differences(struct sd_scope *s, const json_t *then, const json_t *now)
{
    const char *text = NULL, *key;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)now, key, value) {
        const json_t *old = json_object_get(then, key);

        if (!old || !json_equal(old, value))
            text = sd_sprintf(s, "%s%s%s: %s in the state, %s now", text ? text : "", text ? "; " : "", key,
                              old ? sd_json_dump(s, old, 0) : "absent", sd_json_dump(s, value, 0));
    }
    json_object_foreach((json_t *)(uintptr_t)then, key, value)
        if (!json_object_get(now, key))
            text = sd_sprintf(s, "%s%s%s: %s in the state, absent now", text ? text : "", text ? "; " : "", key,
                              sd_json_dump(s, value, 0));
    return text;
}

static int
take(const struct sd_safetensors *f, const char *name, enum sd_dtype dtype, int ndim, const int64_t *shape, void *to)
{
    struct sd_safetensor *x = sd_safetensors_get(f, name, ndim, shape);

    if (!x)
        return -1;
    if (x->dtype != dtype)
        return sd_fail("%s: %s, expected %s", name, sd_dtype_name(x->dtype), sd_dtype_name(dtype));
    memcpy(to, x->data, x->bytes);
    return 0;
}

/* The file's texts, once its checksums are right. */
struct texts {
    const char *step, *layout, *settings;
};

static int
verify(struct sd_scope *s, const struct sd_safetensors *f, struct texts *t)
{
    const char *kind = sd_safetensors_metadata(f, "sd_state"), *data = sd_safetensors_metadata(f, "data");
    const char *check = sd_safetensors_metadata(f, "check"), *wanted;
    char found[SD_XXH128_HEX];
    size_t bytes;
    const void *region = sd_safetensors_region(f, &bytes);

    if (!kind || strcmp(kind, "1") != 0)
        return sd_fail("not a training state");
    t->step = sd_safetensors_metadata(f, "step");
    t->layout = sd_safetensors_metadata(f, "layout");
    t->settings = sd_safetensors_metadata(f, "settings");
    if (!data || !check || !t->step || !t->layout || !t->settings)
        return sd_fail("damaged: not all of its texts are there");
    sd_xxh128_of(region, bytes, found);
    if (strcmp(data, found) != 0)
        return sd_fail("damaged: checksum %s, expected %s", found, data);
    wanted = check_of(s, data, t->step, t->layout, t->settings);
    return strcmp(check, wanted) == 0 ? 0 : sd_fail("damaged: checksum of its texts %s, expected %s", wanted, check);
}

static int
load(struct sd_scope *s, const char *path, struct sd_trainables *t, struct sd_optimizer *o, int64_t *step,
     const json_t *settings)
{
    struct sd_safetensors *f = sd_safetensors_open(s, path);
    const int64_t shape[1] = { (int64_t)t->count }, scalars[2] = { t->groups, SD_MAX_SCALARS };
    const char *difference;
    char layout[SD_SHA256_HEX];
    struct texts text = { NULL, NULL, NULL };
    json_t *then;

    if (!f || verify(s, f, &text) < 0)
        return -1;
    if (!(then = sd_json_parse(s, text.settings, strlen(text.settings), 0)))
        return sd_fail_prefix("settings");
    if ((difference = differences(s, then, settings)))
        return sd_fail("%s", difference), -2;
    layout_hash(t, layout);
    if (strcmp(text.layout, layout) != 0)
        return sd_fail("trains other parameters than this run"), -2;
    *step = strtoll(text.step, NULL, 10);
    if (take(f, "value", SD_F32, 1, shape, t->value) < 0 || take(f, "scalars", SD_F64, 2, scalars, o->scalar) < 0)
        return -1;
    for (int b = 0; b < o->buffers; b++)
        if (take(f, o->buffer_name[b], SD_F32, 1, shape, o->buffer[b]) < 0)
            return -1;
    return 1;
}

int
sd_state_load(const char *path, struct sd_trainables *t, struct sd_optimizer *o, int64_t *step, const json_t *settings)
{
    struct sd_scope *s;
    int status;

    if (access(path, F_OK) != 0 && errno == ENOENT)
        return 0;
    s = sd_scope_open();
    status = load(s, path, t, o, step, settings);
    sd_scope_close(s);
    return status;
}
