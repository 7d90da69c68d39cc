/* lora_save - adapters written in each dialect, and read again (formats.md 3.1 to 3.3, 3.8).
 *
 * kohya and ComfyUI carry alpha as a tensor in the dtype of the file; diffusers honours differing ones only in part,
 * and takes the most common of a component for the rest.  So a component has one alpha, a number that the dtype holds
 * exactly, and what is left of a module's ratio goes into its up factor. */
#include "folder.h"
#include "hash.h"
#include "lora_keys.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

static const char *const components[] = { "unet", "text_encoder" };
enum { COMPONENTS = sizeof components / sizeof *components };

enum sd_lora_format
sd_lora_format(const char *word)
{
    static const char *const words[] = { "kohya", "diffusers", "peft", "comfy" };

    for (int i = 0; i < 4; i++)
        if (strcmp(word, words[i]) == 0)
            return (enum sd_lora_format)i;
    sd_bug("sd_lora_format", "%s", word);
}

static bool
is_of(const struct sd_lora_layer *l, const char *component)
{
    size_t n = strlen(component);

    return strncmp(l->path, component, n) == 0 && l->path[n] == '.';
}

/* ---- one scale for a component ----------------------------------------------------------------------------------- */

static double
alpha_of(const struct sd_lora_layer *l)
{
    return l->scale * (double)l->rank;
}

/* The most common of a component's layers, the first of equals; 0 when the component has none. */
static double
most_common(const struct sd_lora *lora, const char *component, double (*of)(const struct sd_lora_layer *l))
{
    size_t best = 0;
    double value = 0;

    for (size_t i = 0; i < lora->count; i++) {
        size_t n = 0;

        for (size_t k = 0; k < lora->count && is_of(&lora->layer[i], component); k++)
            n += is_of(&lora->layer[k], component) && of(&lora->layer[k]) == of(&lora->layer[i]);
        if (n > best) {
            best = n;
            value = of(&lora->layer[i]);
        }
    }
    return value;
}

static double
rank_of(const struct sd_lora_layer *l)
{
    return (double)l->rank;
}

/* That alpha as the dtype holds it; a reader that takes 0 for "not set" must not meet one. */
static float
common_alpha(const struct sd_lora *lora, const char *component, enum sd_dtype dtype)
{
    char stored[8];
    float alpha = (float)most_common(lora, component, alpha_of);

    if (!(alpha > 0) || isinf(alpha))
        alpha = (float)most_common(lora, component, rank_of);
    if (sd_from_f32(stored, dtype, &alpha, 1) < 0 || sd_to_f32(&alpha, stored, dtype, 1) < 0)
        return NAN;
    return alpha;
}

void
sd_lora_dim(const struct sd_lora *lora, enum sd_dtype dtype, int64_t *rank, double *alpha)
{
    bool unet = most_common(lora, components[0], rank_of) > 0;

    *rank = (int64_t)most_common(lora, components[!unet], rank_of);
    *alpha = (double)common_alpha(lora, components[!unet], dtype);
}

/* up * ratio: the layer's own where nothing is to be done, or only to be counted */
static const float *
scaled(struct sd_scope *s, const struct sd_lora_layer *l, double ratio, struct sd_lora_size *size)
{
    size_t n = (size_t)(l->out * l->rank);
    float *up;

    if (size && ratio != 1)
        size->memory += n * sizeof *up;
    if (size || ratio == 1)
        return l->up;
    up = sd_alloc_array(s, n, sizeof *up);
    for (size_t i = 0; i < n; i++)
        up[i] = (float)(ratio * l->up[i]);
    return up;
}

/* ---- single files ------------------------------------------------------------------------------------------------ */

/* diffusers recognises a text encoder by the keys of its attention; one of mlp layers alone it reads by their middle
 * names. */
static const char *
part_name(struct sd_scope *s, const struct sd_lora *lora, const struct sd_lora_layer *l, enum sd_lora_part part,
          enum sd_lora_format format)
{
    bool attention = format != SD_LORA_DIFFUSERS || is_of(l, "unet");

    for (size_t i = 0; i < lora->count && !attention; i++)
        attention = strstr(lora->layer[i].path, ".self_attn.") != NULL;
    if (attention)
        return sd_lora_key_write(s, l->path, part, format);
    return sd_sprintf(s, "%s.lora_linear_layer.%s.weight", l->path, part == SD_LORA_DOWN ? "down" : "up");
}

/* The layers of a component, or all (NULL).  alpha: by component, NULL where none is written and up has it all. */
static int
add_layers(struct sd_safetensors_writer *w, struct sd_scope *s, const struct sd_lora *lora, const char *component,
           enum sd_lora_format format, enum sd_dtype dtype, const float *alpha, struct sd_lora_size *size)
{
    for (size_t i = 0; i < lora->count; i++) {
        const struct sd_lora_layer *l = &lora->layer[i];
        const float *a = alpha ? &alpha[is_of(l, components[1])] : NULL;
        const char *down = part_name(s, lora, l, SD_LORA_DOWN, format),
                   *up = part_name(s, lora, l, SD_LORA_UP, format);
        double ratio = a ? alpha_of(l) / *a : l->scale;
        int ndim = l->conv ? 4 : 2;

        if (component && !is_of(l, component))
            continue;
        if (!down || !up)
            return -1;
        sd_safetensors_add_f32(w, down, dtype, ndim, (int64_t[]){ l->rank, l->in, l->kh, l->kw }, l->down);
        sd_safetensors_add_f32(w, up, dtype, ndim, (int64_t[]){ l->out, l->rank, 1, 1 }, scaled(s, l, ratio, size));
        if (a)
            sd_safetensors_add_f32(w, sd_lora_key_write(s, l->path, SD_LORA_ALPHA, format), dtype, 0, NULL, a);
    }
    return 0;
}

/* A stream that goes nowhere but into the two hashes that kohya's readers look up. */
struct image {
    struct sd_sha256 *data, *legacy;
    uint64_t at, header;
    unsigned char length[8];
};

static void
hash_range(struct sd_sha256 *h, const char *bytes, uint64_t at, uint64_t n, uint64_t begin, uint64_t end)
{
    uint64_t from = begin > at ? begin - at : 0, to = end < at + n ? end - at : n;

    if (end > at && from < to)
        sd_sha256_update(h, bytes + from, (size_t)(to - from));
}

static ssize_t
hash_piece(void *cookie, const char *bytes, size_t n)
{
    struct image *m = cookie;

    for (size_t i = 0; m->at + i < 8 && i < n; i++) {
        m->length[m->at + i] = (unsigned char)bytes[i];
        m->header |= (uint64_t)(unsigned char)bytes[i] << 8 * (m->at + i);
    }
    if (m->at + n >= 8)
        hash_range(m->data, bytes, m->at, n, 8 + m->header, UINT64_MAX);
    hash_range(m->legacy, bytes, m->at, n, 0x100000, 0x110000);
    m->at += n;
    return (ssize_t)n;
}

/* sshs_model_hash: SHA-256 of the data; sshs_legacy_hash: of 64 KiB at 1 MiB of the file with ss_ keys alone. */
static int
add_hashes(struct sd_safetensors_writer *w, struct sd_scope *s, const char *const *metadata, bool counted)
{
    struct image m = { .data = sd_sha256_new(s), .legacy = sd_sha256_new(s) };
    FILE *f = fopencookie(&m, "w", (cookie_io_functions_t){ .write = hash_piece });
    char hex[SD_SHA256_HEX];
    int status;

    if (!f)
        return sd_fail_errno("no stream for the hashes");
    sd_safetensors_set_metadata(w, "format", NULL);
    for (size_t i = 0; metadata && metadata[i]; i += 2)
        if (strncmp(metadata[i], "ss_", 3) == 0)
            sd_safetensors_set_metadata(w, metadata[i], metadata[i + 1]);
    status = counted ? 0 : sd_safetensors_write(w, f);
    fclose(f);
    sd_safetensors_set_metadata(w, "format", "pt");
    sd_sha256_hex(m.data, hex);
    sd_safetensors_set_metadata(w, "sshs_model_hash", hex);
    sd_sha256_hex(m.legacy, hex);
    hex[8] = 0;
    sd_safetensors_set_metadata(w, "sshs_legacy_hash", hex);
    return status;
}

/* Written, or a plan's bytes added to *size. */
static int
save_or_count(struct sd_safetensors_writer *w, const char *path, struct sd_lora_size *size)
{
    uint64_t bytes;

    if (!size)
        return sd_safetensors_save(w, path);
    if (sd_safetensors_size(w, &bytes) < 0)
        return -1;
    size->written += bytes;
    return 0;
}

static int
save_file(const struct sd_lora *lora, const char *path, enum sd_lora_format format, enum sd_dtype dtype,
          const char *const *metadata, struct sd_lora_size *size)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);
    float alpha[COMPONENTS];
    int status;

    for (int i = 0; i < COMPONENTS; i++)
        alpha[i] = common_alpha(lora, components[i], dtype);
    status = add_layers(w, s, lora, NULL, format, dtype, format == SD_LORA_DIFFUSERS ? NULL : alpha, size);
    if (status == 0 && format == SD_LORA_KOHYA)
        status = add_hashes(w, s, metadata, size != NULL);
    for (size_t i = 0; metadata && metadata[i]; i += 2)
        sd_safetensors_set_metadata(w, metadata[i], metadata[i + 1]);
    if (status == 0)
        status = save_or_count(w, path, size);
    sd_scope_close(s);
    return status;
}

/* ---- PEFT's folders ---------------------------------------------------------------------------------------------- */

static json_t *
number(double x)
{
    return x == floor(x) && fabs(x) < 1e15 ? json_integer((json_int_t)x) : json_real(x);
}

/* Explicit values of everything that readers of any version ask for. */
static const char peft_defaults[] =
    "{\"peft_type\":\"LORA\",\"task_type\":null,\"base_model_name_or_path\":null,"
    "\"revision\":null,\"inference_mode\":true,"
    "\"bias\":\"none\",\"lora_bias\":false,\"lora_dropout\":0.0,\"fan_in_fan_out\":false,\"init_lora_weights\":true,"
    "\"use_rslora\":false,\"use_dora\":false,\"modules_to_save\":null,\"layers_to_transform\":null,"
    "\"layers_pattern\":null,"
    "\"rank_pattern\":{},\"alpha_pattern\":{},\"target_modules\":[]}";

static json_t *
peft_config(const struct sd_lora *lora, const char *component)
{
    bool text = strcmp(component, "text_encoder") == 0;
    double r = most_common(lora, component, rank_of), alpha = most_common(lora, component, alpha_of);
    json_t *config = json_loads(peft_defaults, 0, NULL);

    for (size_t i = 0; i < lora->count; i++) {
        const struct sd_lora_layer *l = &lora->layer[i];
        /* without "text_model." a name ends the module's in old and new transformers alike */
        const char *name = l->path + strlen(component) + 1 + (text ? strlen("text_model.") : 0);

        if (!is_of(l, component))
            continue;
        json_array_append_new(json_object_get(config, "target_modules"), json_string(name));
        if (rank_of(l) != r)
            json_object_set_new(json_object_get(config, "rank_pattern"), name, json_integer((json_int_t)l->rank));
        if (alpha_of(l) != alpha)
            json_object_set_new(json_object_get(config, "alpha_pattern"), name, number(alpha_of(l)));
    }
    json_object_set_new(config, "r", json_integer((json_int_t)r));
    json_object_set_new(config, "lora_alpha", number(alpha));
    json_object_set_new(config, "auto_mapping", json_pack("{s:s, s:s}", "base_model_class",
                        text ? "CLIPTextModel" : "UNet2DConditionModel", "parent_library",
                        text ? "transformers.models.clip.modeling_clip" : "diffusers.models.unets.unet_2d_condition"));
    return config;
}

static int
save_component(struct sd_folder *folder, struct sd_scope *s, const struct sd_lora *lora, const char *component,
               enum sd_dtype dtype, const char *const *metadata, struct sd_lora_size *size)
{
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);
    struct sd_lora *unscaled = sd_alloc(s, sizeof *unscaled);
    const char *weights = sd_sprintf(s, "%s/adapter_model.safetensors", component),
               *config = sd_sprintf(s, "%s/adapter_config.json", component);
    json_t *json = peft_config(lora, component);
    int status = 0;

    *unscaled = *lora;              /* the configuration has the scales, as numbers of full length */
    unscaled->layer = sd_alloc_array(s, lora->count + 1, sizeof *unscaled->layer);
    for (size_t i = 0; i < lora->count; i++) {
        unscaled->layer[i] = lora->layer[i];
        unscaled->layer[i].scale = 1;
    }
    for (size_t i = 0; metadata && metadata[i]; i += 2)
        sd_safetensors_set_metadata(w, metadata[i], metadata[i + 1]);
    if (!size && (!(weights = sd_folder_path(folder, weights)) || !(config = sd_folder_path(folder, config))))
        status = -1;
    else
        status = add_layers(w, s, unscaled, component, SD_LORA_PEFT, dtype, NULL, size);
    if (status == 0)
        status = save_or_count(w, weights, size);
    if (status == 0 && size)
        size->written += sd_json_size(json);
    else if (status == 0)
        status = sd_json_save(json, config);
    json_decref(json);
    return status;
}

static int
save_peft(const struct sd_lora *lora, const char *path, enum sd_dtype dtype, const char *const *metadata,
          struct sd_lora_size *size)
{
    static const char *const marks[] = { "unet/adapter_config.json", "text_encoder/adapter_config.json", NULL };
    struct sd_scope *s = sd_scope_open();
    struct sd_folder *folder = size ? NULL : sd_folder_open(s, path, marks);
    int status = folder || size ? 0 : -1;

    for (int i = 0; i < COMPONENTS && status == 0; i++)
        if (most_common(lora, components[i], rank_of) > 0)
            status = save_component(folder, s, lora, components[i], dtype, metadata, size);
    if (status == 0 && folder)
        status = sd_folder_commit(folder);
    else if (folder)
        sd_folder_abandon(folder);
    sd_scope_close(s);
    return status;
}

int
sd_lora_save(const struct sd_lora *lora, const char *path, enum sd_lora_format format, enum sd_dtype dtype,
             const char *const *metadata)
{
    return format == SD_LORA_PEFT ? save_peft(lora, path, dtype, metadata, NULL)
                                  : save_file(lora, path, format, dtype, metadata, NULL);
}

int
sd_lora_size(const struct sd_lora *lora, enum sd_lora_format format, enum sd_dtype dtype, const char *const *metadata,
             struct sd_lora_size *size)
{
    *size = (struct sd_lora_size){ 0 };
    return format == SD_LORA_PEFT ? save_peft(lora, NULL, dtype, metadata, size)
                                  : save_file(lora, NULL, format, dtype, metadata, size);
}

/* ---- read again -------------------------------------------------------------------------------------------------- */

/* sum over all elements of (scale_a U_a D_a) (scale_b U_b D_b), by the small products U_a' U_b and D_a D_b' */
static double
inner(const struct sd_lora_layer *a, const struct sd_lora_layer *b)
{
    int64_t row = a->in * a->kh * a->kw;
    double sum = 0;

#pragma omp parallel for schedule(static) reduction(+ : sum) if (a->rank * b->rank * (a->out + row) > 1 << 18)
    for (int64_t i = 0; i < a->rank; i++)
        for (int64_t j = 0; j < b->rank; j++) {
            double u = 0, d = 0;

            for (int64_t o = 0; o < a->out; o++)
                u += (double)a->up[o * a->rank + i] * b->up[o * b->rank + j];
            for (int64_t k = 0; k < row; k++)
                d += (double)a->down[i * row + k] * b->down[j * row + k];
            sum += u * d;
        }
    return a->scale * b->scale * sum;
}

/* ||A - B|| / ||B|| of the weights' changes.  The squares cancel to 1e-16 of themselves: equal ones may show 1e-8. */
static double
difference(const struct sd_lora_layer *a, const struct sd_lora_layer *b)
{
    double bb = inner(b, b), square = inner(a, a) - 2 * inner(a, b) + bb;

    if (isnan(square))
        return NAN;
    return square <= 0 ? 0 : bb > 0 ? sqrt(square / bb) : INFINITY;
}

static bool
same_size(const struct sd_lora_layer *a, const struct sd_lora_layer *b)
{
    return a->in == b->in && a->out == b->out && a->kh == b->kh && a->kw == b->kw;
}

/* Is x what a file of that dtype holds of y?  The last bits of f32 are left to the arithmetic of scales. */
static bool
holds(double x, double y, double scale, enum sd_dtype dtype)
{
    int bits = dtype == SD_F16 ? 11 : dtype == SD_BF16 ? 8 : 24, least = dtype == SD_F16 ? -14 : -126;
    int e = x == 0 ? least : ilogb(x);

    return fabs(scale * x - y) <= fabs(scale) * ldexp(1, (e > least ? e : least) - bits) + 1e-6 * fabs(y);
}

/* Is every factor the expected one, rounded once? */
static bool
same_factors(const struct sd_lora_layer *a, const struct sd_lora_layer *b, enum sd_dtype dtype)
{
    int64_t wrong = 0, down = b->rank * b->in * b->kh * b->kw, up = b->out * b->rank;

    if (a->rank != b->rank)
        return false;
#pragma omp parallel for schedule(static) reduction(+ : wrong) if (down > 1 << 16)
    for (int64_t i = 0; i < down; i++)
        wrong += !holds(a->down[i], b->down[i], 1, dtype);
#pragma omp parallel for schedule(static) reduction(+ : wrong) if (up > 1 << 16)
    for (int64_t i = 0; i < up; i++)
        wrong += !holds(a->up[i], b->scale * b->up[i], a->scale, dtype);
    return wrong == 0;
}

int
sd_lora_verify(const struct sd_lora *lora, const char *path, double *worst)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_lora *read = sd_lora_load(s, path);
    int status = read ? 0 : -1;

    *worst = 0;
    if (read && read->count != lora->count)
        status = sd_fail("%zu layers, expected %zu", read->count, lora->count);
    for (size_t i = 0; i < lora->count && status == 0; i++) {
        const struct sd_lora_layer *a = &read->layer[i], *b = &lora->layer[i];
        double d = 0;

        if (strcmp(a->path, b->path) != 0)
            status = sd_fail("%s: expected %s", a->path, b->path);
        else if (!same_size(a, b))
            status = sd_fail("%s: [%lld, %lld, %lld, %lld], expected [%lld, %lld, %lld, %lld]", a->path,
                             (long long)a->out, (long long)a->in, (long long)a->kh, (long long)a->kw, (long long)b->out,
                             (long long)b->in, (long long)b->kh, (long long)b->kw);
        else if (d = difference(a, b), !isnan(*worst) && !(d <= *worst))
            *worst = d;
        if (status == 0 && !same_factors(a, b, read->dtype))
            status = sd_fail("%s: its factors are not those that were to be written (its change differs by %.2g)",
                             a->path, d);
    }
    sd_scope_close(s);
    return status;
}
