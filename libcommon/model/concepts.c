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
    c->options = sd_alloc(s, sizeof *c->options);
    return c;
}

/* array with room for one element more */
static void *
grown(struct sd_scope *s, void *array, size_t count, size_t *room, size_t size)
{
    void *larger;

    if (count < *room)
        return array;
    *room = 2 * *room + 4;
    larger = sd_alloc_array(s, *room, size);
    if (count)
        memcpy(larger, array, count * size);
    return larger;
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

static struct sd_concept_file *
file_of(struct sd_concepts *c, const char *path)
{
    struct sd_concept_file *f, **end = &c->files;

    for (; *end; end = &(*end)->next)
        if (strcmp((*end)->path, path) == 0)
            return *end;
    f = sd_alloc(c->scope, sizeof *f);
    if (!(f->lora = sd_lora_load(c->scope, path)))
        return NULL;
    f->path = sd_strdup(c->scope, path);
    f->name = stem(c->scope, path);
    f->hash = region_hash(c->scope, path);
    return *end = f;
}

static void
use(struct sd_concepts *c, struct sd_concept_set *set, struct sd_concept_use one)
{
    set->use = grown(c->scope, set->use, set->count, &set->room, sizeof *set->use);
    set->use[set->count++] = one;
}

int
sd_concepts_lora(struct sd_concepts *c, const char *path, double unet, double text)
{
    struct sd_concept_file *f = file_of(c, path);

    if (!f)
        return -1;
    use(c, c->options, (struct sd_concept_use){ f, unet, text });
    return 0;
}

static struct sd_concept_file *
named(struct sd_concepts *c, const char *folder, const struct sd_prompt_network *n)
{
    struct sd_concept_file *f;
    const char *path;

    if (n->dyn)
        return sd_fail_null("<lora:%s>: dyn is not supported", n->name);
    if (strchr(n->name, '/') || n->name[0] == '.')
        return sd_fail_null("<lora:%s>: a name, not a path", n->name);
    path = sd_sprintf(c->scope, "%s/%s.safetensors", folder, n->name);
    if (access(path, F_OK) != 0)
        path = sd_sprintf(c->scope, "%s/%s", folder, n->name);
    if (access(path, F_OK) != 0)
        return sd_fail_null("<lora:%s>: no such adapter in %s", n->name, folder);
    if (!(f = file_of(c, path)))
        sd_fail_prefix("%s", path);
    return f;
}

static bool
same(const struct sd_concept_set *a, const struct sd_concept_set *b)
{
    for (size_t i = 0; a->count == b->count && i < a->count; i++)
        if (a->use[i].file != b->use[i].file || a->use[i].unet != b->use[i].unet || a->use[i].text != b->use[i].text)
            return false;
    return a->count == b->count;
}

struct sd_concept_set *
sd_concepts_set(struct sd_concepts *c, const char *folder, const struct sd_prompt_network *network, size_t count)
{
    struct sd_concept_set *set = sd_alloc(c->scope, sizeof *set), **end = &c->sets;

    for (size_t i = 0; i < c->options->count; i++)
        use(c, set, c->options->use[i]);
    for (size_t i = 0; i < count; i++)
        if (strcmp(network[i].kind, "lora") == 0) {
            struct sd_concept_file *f = named(c, folder, &network[i]);

            if (!f)
                return NULL;
            use(c, set, (struct sd_concept_use){ f, network[i].unet, network[i].te });
        }
    for (; *end; end = &(*end)->next)
        if (same(*end, set))
            return *end;
    if (set->count)
        set->adapters = sd_adapters_new(c->scope);
    for (size_t i = 0; i < set->count; i++)
        sd_lora_adapters(set->use[i].file->lora, set->adapters, set->use[i].unet, set->use[i].text);
    return *end = set;
}

static bool
skipped(const char *path, int text_layers, int clip_skip)
{
    int layer = -1;

    return sscanf(path, "text_encoder.text_model.encoder.layers.%d.", &layer) == 1 && layer >= text_layers
           && layer < text_layers + clip_skip;
}

static int
check_set(const struct sd_adapters *adapters, int text_layers, int clip_skip)
{
    size_t unused = 0, count = sd_adapters_count(adapters);
    const char *first = NULL;

    for (size_t i = 0; i < count; i++) {
        const struct sd_adapter *a = sd_adapters_at(adapters, i);

        if (!a->used && !skipped(a->path, text_layers, clip_skip) && unused++ == 0)
            first = a->path;
    }
    if (!unused)
        return 0;
    return sd_fail("%zu of %zu adapted layers are not in this model, the first is %s", unused, count, first);
}

int
sd_concepts_check(const struct sd_concepts *c, int text_layers, int clip_skip)
{
    for (const struct sd_concept_set *set = c->sets; set; set = set->next)
        if (check_set(set->adapters, text_layers, clip_skip) < 0)
            return -1;
    return 0;
}

const char *
sd_concepts_blame(const struct sd_concepts *c, const char *model)
{
    if (!strstr(sd_reason(), ".lora_") || !c->files)
        return model;
    return c->files->next ? "--lora" : c->files->path;
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
    c->concept = grown(c->scope, c->concept, c->count, &c->room, sizeof *c->concept);
    c->concept[c->count++] = (struct sd_concept){ .token = token, .path = path, .hash = sd_strdup(c->scope, hex),
                                                  .id = id, .vectors = (int32_t)e->vectors, .values = e->values };
    return 0;
}

void
sd_concepts_rows(struct sd_concepts *c, int64_t width)
{
    int64_t vectors = 0;
    float *values, *to;

    for (size_t i = 0; i < c->count; i++) {
        c->first_row = vectors ? c->first_row : c->concept[i].id;
        vectors += c->concept[i].vectors;
    }
    if (!vectors)
        return;
    values = to = sd_alloc_array(c->scope, (size_t)(vectors * width), sizeof *values);
    for (size_t i = 0; i < c->count; i++) {
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
            if (p->input_ids[i] >= c->concept[k].id
                && p->input_ids[i] < c->concept[k].id + c->concept[k].vectors)
                c->concept[k].used = true;
}
