/* concepts - adapters and learned tokens, as options and prompts name them. */
#include "concepts.h"

#include "embedding.h"
#include "hash.h"
#include "lora.h"

#include <string.h>
#include <unistd.h>

struct sd_concepts *
sd_concepts_new(struct sd_scope *s)
{
    struct sd_concepts *c = sd_alloc(s, sizeof *c);

    c->scope = s;
    return c;
}

static struct sd_concept *
add(struct sd_concepts *c, const struct sd_concept *one)
{
    if (c->count == c->room) {
        struct sd_concept *grown = sd_alloc_array(c->scope, 2 * c->room + 4, sizeof *grown);

        if (c->count)
            memcpy(grown, c->concept, c->count * sizeof *grown);
        c->concept = grown;
        c->room = 2 * c->room + 4;
    }
    c->concept[c->count] = *one;
    return &c->concept[c->count++];
}

const char *
sd_concept_file(struct sd_scope *s, const char *value, const char **rest)
{
    *rest = NULL;
    if (access(value, F_OK) == 0)
        return value;
    for (const char *colon = strchr(value, ':'); colon; colon = strchr(colon + 1, ':')) {
        const char *file = sd_strndup(s, value, (size_t)(colon - value));

        if (access(file, F_OK) == 0) {
            *rest = colon + 1;
            return file;
        }
    }
    return value;
}

/* The file's name without folder and ending. */
static const char *
stem(struct sd_scope *s, const char *path)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *dot = strrchr(base, '.');

    return dot && dot > base ? sd_strndup(s, base, (size_t)(dot - base)) : sd_strdup(s, base);
}

/* -- adapters ------------------------------------------------------------------------------------------------------ */

static const char *
region_hash(struct sd_scope *s, const char *path)
{
    struct sd_safetensors *f = sd_safetensors_open(s, path);
    char hex[SD_SHA256_HEX];
    const void *data;
    size_t bytes;

    if (!f || !(data = sd_safetensors_region(f, &bytes)))
        return NULL;            /* a folder of PEFT's */
    sd_sha256_of(data, bytes, hex);
    return sd_strdup(s, hex);
}

int
sd_concepts_lora(struct sd_concepts *c, const char *path, double unet, double text)
{
    struct sd_lora *lora = sd_lora_load(c->scope, path);

    if (!lora)
        return -1;
    if (!c->adapters)
        c->adapters = sd_adapters_new(c->scope);
    sd_lora_adapters(lora, c->adapters, unet, text);
    add(c, &(struct sd_concept){ .path = sd_strdup(c->scope, path),
                                 .name = stem(c->scope, path),
                                 .hash = region_hash(c->scope, path),
                                 .scale = unet });
    return 0;
}

int
sd_concepts_named(struct sd_concepts *c, const char *folder, const struct sd_prompt_network *n)
{
    const char *path;

    if (n->dyn)
        return sd_fail("<lora:%s>: dyn is not supported", n->name);
    if (strchr(n->name, '/') || n->name[0] == '.')
        return sd_fail("<lora:%s>: a name, not a path", n->name);
    path = sd_sprintf(c->scope, "%s/%s.safetensors", folder, n->name);
    if (access(path, F_OK) != 0)
        path = sd_sprintf(c->scope, "%s/%s", folder, n->name);
    if (access(path, F_OK) != 0)
        return sd_fail("<lora:%s>: no such adapter in %s", n->name, folder);
    return sd_concepts_lora(c, path, n->unet, n->te) < 0 ? sd_fail_prefix("%s", path) : 0;
}

static bool
skipped(const char *path, int text_layers, int clip_skip)
{
    int layer = -1;

    return sscanf(path, "text_encoder.text_model.encoder.layers.%d.", &layer) == 1 && layer >= text_layers
           && layer < text_layers + clip_skip;
}

int
sd_concepts_check(const struct sd_concepts *c, int text_layers, int clip_skip)
{
    size_t unused = 0, count = c->adapters ? sd_adapters_count(c->adapters) : 0;
    const char *first = NULL;

    for (size_t i = 0; i < count; i++) {
        const struct sd_adapter *a = sd_adapters_at(c->adapters, i);

        if (!a->used && !skipped(a->path, text_layers, clip_skip) && unused++ == 0)
            first = a->path;
    }
    if (!unused)
        return 0;
    return sd_fail("%zu of %zu adapted layers are not in this model, the first is %s", unused, count, first);
}

const char *
sd_concepts_blame(const struct sd_concepts *c, const char *model)
{
    const char *path = NULL;

    if (!strstr(sd_reason(), ".lora_"))
        return model;
    for (size_t i = 0; i < c->count; i++)
        if (!c->concept[i].token)
            path = path ? "--lora" : c->concept[i].path;
    return path ? path : model;
}

/* -- tokens -------------------------------------------------------------------------------------------------------- */

int
sd_concepts_embedding(struct sd_concepts *c, struct sd_tokenizer *t, int64_t width, const char *path, const char *token)
{
    struct sd_embedding *e = sd_embedding_load(c->scope, path);
    char hex[SD_SHA256_HEX];
    int32_t id;

    if (!e)
        return -1;
    if (!token)
        token = e->token;
    if (e->width != width)
        return sd_fail("vectors of %lld numbers, this model's text encoder is %lld wide", (long long)e->width,
                       (long long)width);
    if (!*token)
        return sd_fail("a token without a name");
    if ((id = sd_tokenizer_add(t, token, (int)e->vectors)) < 0 || sd_hash_file(path, hex) < 0)
        return -1;
    add(c, &(struct sd_concept){ .token = true, .path = path, .name = token, .hash = sd_strdup(c->scope, hex), .id = id,
                                 .vectors = (int32_t)e->vectors, .values = e->values });
    return 0;
}

void
sd_concepts_rows(struct sd_concepts *c, int64_t width)
{
    int64_t vectors = 0;
    float *values, *to;

    for (size_t i = 0; i < c->count; i++)
        if (c->concept[i].token) {
            c->first_row = vectors ? c->first_row : c->concept[i].id;
            vectors += c->concept[i].vectors;
        }
    if (!vectors)
        return;
    values = to = sd_alloc_array(c->scope, (size_t)(vectors * width), sizeof *values);
    for (size_t i = 0; i < c->count; i++)
        if (c->concept[i].token) {
            size_t n = (size_t)(c->concept[i].vectors * width);

            memcpy(to, c->concept[i].values, n * sizeof *to);
            to += n;
        }
    c->rows = sd_param_new(c->scope, "tokens", SD_F32, 2, (int64_t[]){ vectors, width }, values);
}

void
sd_concepts_use(struct sd_concepts *c, const struct sd_prompt *p)
{
    for (size_t i = 0; c->rows && i < (size_t)p->chunks * (size_t)p->length; i++)
        for (size_t k = 0; p->input_ids[i] >= c->first_row && k < c->count; k++)
            if (c->concept[k].token && p->input_ids[i] >= c->concept[k].id
                && p->input_ids[i] < c->concept[k].id + c->concept[k].vectors)
                c->concept[k].used = true;
}
