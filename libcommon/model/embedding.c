/* embedding - learned tokens in files (formats.md 4.1). */
#include "embedding.h"

#include <math.h>
#include <string.h>

/* The file's name without folder and ending: the trigger word in A1111 and ComfyUI. */
static const char *
stem(struct sd_scope *s, const char *path)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *dot = strrchr(base, '.');

    return dot && dot > base ? sd_strndup(s, base, (size_t)(dot - base)) : sd_strdup(s, base);
}

static bool
ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

/* The one tensor of a file for one text encoder; *token when its key is the token. */
static struct sd_safetensor *
choose(const struct sd_safetensors *f, const char **token)
{
    static const char nested[] = "string_to_param.";
    struct sd_safetensor *found = NULL;
    size_t count = sd_safetensors_count(f), nested_count = 0;

    *token = NULL;
    for (size_t i = 0; i < count; i++)
        if (strncmp(sd_safetensors_at(f, i)->name, nested, sizeof nested - 1) == 0) {
            found = sd_safetensors_at(f, i);
            nested_count++;
        }
    if (nested_count > 1)
        return sd_fail_null("%zu embeddings in one file", nested_count);
    if (nested_count)
        return found;
    if (sd_safetensors_find(f, "clip_g"))
        return sd_fail_null("an embedding for SDXL (clip_l and clip_g)");
    if ((found = sd_safetensors_find(f, "clip_l")) || (found = sd_safetensors_find(f, "text_encoders_0"))
        || (found = sd_safetensors_find(f, "emb_params")))
        return found;
    if (count != 1)
        return sd_fail_null("%zu tensors, expected the one embedding", count);
    found = sd_safetensors_at(f, 0);
    *token = found->name;
    return found;
}

struct sd_embedding *
sd_embedding_load(struct sd_scope *s, const char *path)
{
    struct sd_embedding *e = sd_alloc(s, sizeof *e);
    struct sd_safetensors *f;
    struct sd_safetensor *t;
    const char *token;

    if (ends_with(path, ".pt") || ends_with(path, ".bin"))
        return sd_fail_null("a pickle, which could run code: convert it to safetensors first");
    if (!(f = sd_safetensors_open(s, path)) || !(t = choose(f, &token)))
        return NULL;
    if (strlen(t->name) != t->name_length)
        return sd_fail_null("a key with a zero byte in it");
    if ((t->ndim != 1 && t->ndim != 2) || !t->numel)
        return sd_fail_null("%s: shape %s, expected [vectors, width]", t->name, sd_shape_text(s, t->ndim, t->shape));
    e->vectors = t->ndim == 2 ? t->shape[0] : 1;
    e->width = t->shape[t->ndim - 1];
    if (e->vectors > 1024)
        return sd_fail_null("%s: %lld vectors", t->name, (long long)e->vectors);
    if (!(e->values = sd_safetensor_f32(s, t)))
        return sd_fail_prefix("%s", t->name), NULL;
    for (size_t i = 0; i < t->numel; i++)
        if (!isfinite(e->values[i]))
            return sd_fail_null("%s: a value that is not finite", t->name);
    e->dtype = t->dtype == SD_F64 ? SD_F32 : t->dtype;
    if (!token)
        token = sd_safetensors_metadata(f, "sd_tools.token");
    if (!token)
        token = sd_safetensors_metadata(f, "name");
    e->token = token && *token ? sd_strdup(s, token) : stem(s, path);
    return e;
}

static struct sd_safetensors_writer *
writer(struct sd_scope *s, const struct sd_embedding *e, enum sd_embedding_format format, enum sd_dtype dtype,
       const char *const *metadata)
{
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);

    for (size_t i = 0; metadata && metadata[i]; i += 2)
        sd_safetensors_set_metadata(w, metadata[i], metadata[i + 1]);
    sd_safetensors_set_metadata(w, "sd_tools.token", e->token);
    sd_safetensors_add_f32(w, format == SD_EMBEDDING_A1111 ? "emb_params" : e->token, dtype, 2,
                           (int64_t[]){ e->vectors, e->width }, e->values);
    return w;
}

int
sd_embedding_save(const struct sd_embedding *e, const char *path, enum sd_embedding_format format, enum sd_dtype dtype,
                  const char *const *metadata)
{
    struct sd_scope *s = sd_scope_open();
    int status = sd_safetensors_save(writer(s, e, format, dtype, metadata), path);

    sd_scope_close(s);
    return status;
}

int
sd_embedding_size(const struct sd_embedding *e, enum sd_embedding_format format, enum sd_dtype dtype,
                  const char *const *metadata, uint64_t *bytes)
{
    struct sd_scope *s = sd_scope_open();
    int status = sd_safetensors_size(writer(s, e, format, dtype, metadata), bytes);

    sd_scope_close(s);
    return status;
}

bool
sd_embedding_equal(const struct sd_embedding *a, const struct sd_embedding *b, enum sd_dtype dtype)
{
    struct sd_scope *s = sd_scope_open();
    size_t n = (size_t)(a->vectors * a->width), bytes = n * sizeof(float);
    char *stored = sd_alloc(s, bytes);
    float *rounded = sd_alloc(s, bytes);
    bool equal = a->vectors == b->vectors && a->width == b->width && sd_from_f32(stored, dtype, a->values, n) == 0
        && sd_to_f32(rounded, stored, dtype, n) == 0 && memcmp(rounded, b->values, bytes) == 0;

    sd_scope_close(s);
    return equal;
}
