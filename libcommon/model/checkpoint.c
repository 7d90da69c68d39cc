/* checkpoint - models written again with adapters merged in (formats.md 5). */
#include "checkpoint_private.h"

#include "file.h"
#include "folder.h"
#include "io.h"
#include "json.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- where the layers are ---------------------------------------------------------------------------------------- */

static int
by_tensor(const void *a, const void *b)
{
    const struct change *x = a, *y = b;
    int order = x->component != y->component ? (int)x->component - (int)y->component : strcmp(x->tensor, y->tensor);

    return order ? order : (x->first_row > y->first_row) - (x->first_row < y->first_row);
}

/* A linear layer's weight and a 1x1 convolution's differ by ones at the end. */
static bool
fits(const struct sd_lora_layer *l, const struct sd_safetensor *t, int parts)
{
    int64_t have[4] = { 1, 1, 1, 1 };

    for (int i = 0; i < t->ndim && i < 4; i++)
        have[i] = t->shape[i];
    return t->ndim >= 2 && t->ndim <= 4 && have[0] == l->out * parts && have[1] == l->in && have[2] == l->kh
           && have[3] == l->kw;
}

static int
find_place(struct sd_scope *s, const struct sd_lora_layer *l, struct sd_weights *unet, struct sd_weights *text,
           struct change *c)
{
    bool of_unet = strncmp(l->path, "unet.", 5) == 0;
    struct sd_weights_place place;

    if (!sd_weights_place(of_unet ? unet : text, sd_sprintf(s, "%s.weight", strchr(l->path, '.') + 1), &place)
        || !place.tensor->used || place.transposed)
        return sd_fail("%s: the model has no such layer", l->path);
    if (!fits(l, place.tensor, place.parts))
        return sd_fail("%s: [%lld, %lld, %lld, %lld], the model's weight is %s%s", l->path, (long long)l->out,
                       (long long)l->in, (long long)l->kh, (long long)l->kw,
                       sd_shape_text(s, place.tensor->ndim, place.tensor->shape),
                       place.parts > 1 ? " (q, k and v)" : "");
    *c = (struct change){ .layer = l, .tensor = place.tensor->name, .component = of_unet ? UNET : TEXT_ENCODER,
                          .first_row = place.part * l->out };
    return 0;
}

/* plan: layers without a place are named there; NULL: they are errors */
static int
find_places(struct sd_scope *s, const struct sd_checkpoint *c, struct changes *all, struct sd_checkpoint_plan *plan)
{
    struct sd_unet *unet = sd_model_unet(c->model);
    struct sd_clip_text *text = unet ? sd_model_text_encoder(c->model) : NULL;
    size_t count = c->lora ? c->lora->count : 0;

    if (!text)
        return -1;
    *all = (struct changes){ .checkpoint = c,
                             .change = sd_alloc_array(s, count + 1, sizeof *all->change),
                             .plan = plan };
    if (plan)
        plan->path = sd_alloc_array(s, count + 1, sizeof *plan->path);
    for (size_t i = 0; i < count; i++)
        if (find_place(s, &c->lora->layer[i], unet->weights, text->weights, &all->change[all->count]) == 0)
            all->count++;
        else if (!plan)
            return -1;
        else
            plan->path[plan->unmatched++] = c->lora->layer[i].path;
    qsort(all->change, all->count, sizeof *all->change, by_tensor);
    return 0;
}

int
sd_checkpoint_changes(struct sd_scope *s, const struct sd_checkpoint *c, struct changes *all)
{
    return find_places(s, c, all, NULL);
}

int
sd_checkpoint_check(const struct sd_checkpoint *c)
{
    struct sd_scope *s = sd_scope_open();
    struct changes all;
    int status = sd_checkpoint_changes(s, c, &all);

    sd_scope_close(s);
    return status;
}

/* ---- one tensor -------------------------------------------------------------------------------------------------- */

static bool
is_float(enum sd_dtype t)
{
    return t == SD_F64 || t == SD_F32 || t == SD_F16 || t == SD_BF16;
}

int64_t
sd_checkpoint_row(const struct sd_safetensor *t)
{
    return t->ndim && t->shape[0] ? (int64_t)t->numel / t->shape[0] : 1;
}

/* Values from `begin`, `n` of them, in f32; the rows they lie in are changed as a whole. */
static int
values(struct sd_scope *s, const struct tensor *x, size_t begin, size_t n, float **out)
{
    const int64_t row = sd_checkpoint_row(x->base);
    const int64_t first = (int64_t)begin / row, last = ((int64_t)(begin + n) + row - 1) / row;
    float *v = sd_alloc_array(s, (size_t)((last - first) * row), sizeof *v);

    if (sd_to_f32(v, (const char *)x->base->data + (size_t)(first * row) * sd_dtype_size(x->base->dtype),
                  x->base->dtype, (size_t)((last - first) * row))
        < 0)
        return -1;
    for (size_t i = 0; i < x->count; i++) {
        struct sd_lora_layer l = *x->change[i].layer;
        int64_t from = first > x->change[i].first_row ? first : x->change[i].first_row,
                to = last < x->change[i].first_row + l.out ? last : x->change[i].first_row + l.out;

        if (from >= to)
            continue;
        l.up += (from - x->change[i].first_row) * l.rank;
        l.out = to - from;
        sd_lora_merge(&l, 1, v + (from - first) * row);
    }
    *out = v + ((int64_t)begin - first * row);
    return 0;
}

static int
read_piece(void *user, void *buffer, size_t offset, size_t bytes)
{
    const struct tensor *x = user;
    struct sd_scope *s = sd_scope_open();
    size_t size = sd_dtype_size(x->dtype), n = bytes / size;
    float *v;
    int status = values(s, x, offset / size, n, &v);

    if (status == 0 && (status = sd_from_f32(buffer, x->dtype, v, n)) == 0
        && (status = sd_to_f32(v, buffer, x->dtype, n)) == 0)
        for (size_t i = 0; i < n && status == 0; i++)
            if (!isfinite(v[i]))
                status = sd_fail("a value that %s cannot hold", sd_dtype_name(x->dtype));
    sd_scope_close(s);
    return status;
}

/* ---- one file ---------------------------------------------------------------------------------------------------- */

/* The component a tensor of this file belongs to: in a folder, the file's; in a single file, what its prefix says. */
static int
component_of(const struct sd_checkpoint *c, int component, const char *name)
{
    static const char *const text[] = { "cond_stage_model.", "conditioner.embedders." };

    if (!c->model->single_file)
        return component;
    if (strncmp(name, "model.diffusion_model.", 22) == 0)
        return UNET;
    return strncmp(name, text[0], strlen(text[0])) == 0 || strncmp(name, text[1], strlen(text[1])) == 0 ? TEXT_ENCODER
                                                                                                        : -1;
}

struct tensor
sd_checkpoint_tensor(const struct changes *all, int component, const struct sd_safetensor *t)
{
    const struct sd_checkpoint *c = all->checkpoint;
    int of = component_of(c, component, t->name);
    struct tensor x = { .base = t, .dtype = of >= 0 && c->convert && is_float(t->dtype) ? c->dtype : t->dtype };

    for (size_t i = 0; i < all->count; i++)
        if ((int)all->change[i].component == of && strcmp(all->change[i].tensor, t->name) == 0) {
            if (!x.count++)
                x.change = &all->change[i];
        }
    return x;
}

static bool
kept(const char *key)
{
    static const char *const false_now[] = { "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256",
                                             "modelspec.date" };

    for (size_t i = 0; i < sizeof false_now / sizeof *false_now; i++)
        if (strcmp(key, false_now[i]) == 0)
            return false;
    return true;
}

/* What `values` takes for the largest piece of x, and what the sums cost. */
static void
count_tensor(struct sd_checkpoint_plan *plan, struct tensor x)
{
    const size_t row = (size_t)sd_checkpoint_row(x.base), size = sd_dtype_size(x.dtype);
    size_t most = SD_SAFETENSORS_PIECE / (size ? size : 1) + 2 * row;

    plan->tensors++;
    plan->changed += x.count > 0;
    if (!x.count && x.dtype == x.base->dtype)
        return;
    most = sizeof(float) * (most < x.base->numel ? most : x.base->numel);
    plan->memory = most > plan->memory ? most : plan->memory;
    for (size_t i = 0; i < x.count; i++)
        plan->flops += 2.0 * (double)x.change[i].layer->rank * (double)x.change[i].layer->out * (double)row;
}

static int
add_tensor(struct sd_safetensors_writer *w, struct sd_scope *s, struct tensor x)
{
    const struct sd_safetensor *t = x.base;
    struct tensor *own;

    if (strlen(t->name) != t->name_length)
        return sd_fail("a name with a zero byte in it");
    if (!sd_dtype_size(t->dtype))
        return sd_fail("%s: dtype %s cannot be written", t->name, sd_dtype_name(t->dtype));
    for (int i = 0; i < t->ndim; i++)
        if (t->shape[i] > INT64_MAX / 16)
            return sd_fail("%s: shape %s cannot be written", t->name, sd_shape_text(s, t->ndim, t->shape));
    if (!x.count && x.dtype == t->dtype) {
        sd_safetensors_add(w, t->name, t->dtype, t->ndim, t->shape, t->data);
        return 0;
    }
    own = sd_alloc(s, sizeof *own);
    *own = x;
    sd_safetensors_add_from(w, t->name, x.dtype, t->ndim, t->shape, read_piece, own);
    return 0;
}

static int
count_file(struct sd_checkpoint_plan *plan, const char *from, struct sd_safetensors_writer *w)
{
    uint64_t bytes;
    struct stat st;

    if (stat(from, &st) < 0)
        return sd_fail_errno("%s", from);
    plan->read += (uint64_t)st.st_size;
    if (!w)
        plan->written += (uint64_t)st.st_size;
    else if (sd_safetensors_size(w, &bytes) < 0)
        return -1;
    else
        plan->written += bytes;
    return 0;
}

/* component: of a folder's file, -1 for one without adapters */
static int
write_file(const struct changes *all, int component, const char *from, const char *to)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *f = sd_safetensors_open(s, from);
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);
    const char *const *pair = all->checkpoint->metadata, *value;
    int status = f ? 0 : -1;

    for (size_t i = 0; status == 0 && i < sd_safetensors_metadata_count(f); i++) {
        const char *key = sd_safetensors_metadata_at(f, i, &value);

        if (kept(key))
            sd_safetensors_set_metadata(w, key, value);
    }
    for (size_t i = 0; pair && pair[i]; i += 2)
        sd_safetensors_set_metadata(w, pair[i], pair[i + 1]);
    for (size_t i = 0; status == 0 && i < sd_safetensors_count(f); i++) {
        struct tensor x = sd_checkpoint_tensor(all, component, sd_safetensors_at(f, i));

        status = add_tensor(w, s, x);
        if (all->plan)
            count_tensor(all->plan, x);
    }
    if (status == 0)
        status = all->plan ? count_file(all->plan, from, w) : sd_safetensors_save(w, to);
    if (status == 0)
        status = sd_safetensors_unchanged(f);
    sd_scope_close(s);
    return status;
}

/* ---- folders ----------------------------------------------------------------------------------------------------- */

static bool
ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

const char *
sd_checkpoint_file_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static bool
is_weights(const char *name)
{
    static const char *const ends[] = { ".safetensors", ".bin",  ".ckpt", ".pt",       ".msgpack",
                                        ".h5",          ".onnx", ".pb",   ".onnx_data" };

    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (ends_with(name, ends[i]))
            return true;
    return strstr(name, ".index.") && ends_with(name, ".json");
}

static int
copy_file(const struct changes *all, const char *from, const char *to)
{
    struct sd_output *out;
    char buffer[1 << 16];
    ssize_t n;
    int in;

    if (all->plan)
        return count_file(all->plan, from, NULL);
    if ((in = sd_open(from, O_RDONLY)) < 0)
        return sd_fail_errno("%s", from);
    if (!(out = sd_output_open(to))) {
        close(in);
        return -1;
    }
    while ((n = sd_read(in, buffer, sizeof buffer)) > 0
           && fwrite(buffer, 1, (size_t)n, sd_output_file(out)) == (size_t)n)
        ;
    if (n < 0) {
        sd_fail_errno("%s: cannot be read", from);
        close(in);
        sd_output_abandon(out);
        return -1;
    }
    close(in);
    return sd_output_commit(out);
}

/* Where a file of the output is made; of a plan, nowhere. */
static const char *
place_in(struct sd_folder *out, const char *name)
{
    return out ? sd_folder_path(out, name) : name;
}

/* A folder as it is; without weights where a component's own are written beside. */
static int
copy_folder(struct sd_scope *s, const struct changes *all, struct sd_folder *out, const char *name, bool with_weights)
{
    const char **names, *model = all->checkpoint->model->path, *from = sd_sprintf(s, "%s/%s", model, name);
    size_t count;

    if (sd_folder_list(s, from, &names, &count) < 0)
        return sd_fail_prefix("%s", from);
    for (size_t i = 0; i < count; i++) {
        const char *inner = sd_sprintf(s, "%s/%s", name, names[i]), *path = sd_sprintf(s, "%s/%s", model, inner), *to;
        struct stat st;

        if (stat(path, &st) < 0)
            return sd_fail_errno("%s", path);
        if (S_ISREG(st.st_mode) && (with_weights || !is_weights(names[i])))
            if (!(to = place_in(out, inner)) || copy_file(all, path, to) < 0)
                return -1;
    }
    return 0;
}

static int
by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The files of a component: the one, or those its index names, each once. */
static int
files_of(struct sd_scope *s, const struct store *store, const char ***names, size_t *count)
{
    const char *path = sd_weights_path(store->weights), *key;
    const json_t *index, *map;
    json_t *file;
    size_t n = 0;

    if (!ends_with(path, ".json")) {
        *names = sd_alloc_array(s, 1, sizeof **names);
        (*names)[0] = sd_checkpoint_file_name(path);
        *count = 1;
        return 0;
    }
    if (!(index = sd_json_load(s, path, 0)))
        return -1;
    map = json_object_get(index, "weight_map");
    *names = sd_alloc_array(s, json_object_size(map) + 1, sizeof **names);
    json_object_foreach((json_t *)(uintptr_t)map, key, file)
        (*names)[n++] = json_string_value(file);
    qsort(*names, n, sizeof **names, by_text);
    *count = 0;
    for (size_t i = 0; i < n; i++)
        if (!i || strcmp((*names)[i], (*names)[i - 1]) != 0)
            (*names)[(*count)++] = (*names)[i];
    return 0;
}

/* The index again, with the new size where dtypes changed. */
static int
write_index(struct sd_scope *s, const struct changes *all, const struct store *store, const char *to)
{
    json_t *index = sd_json_load(s, sd_weights_path(store->weights), 0), *metadata;
    struct sd_safetensors *f = sd_weights_file(store->weights);
    json_int_t total = 0;

    if (!index)
        return -1;
    for (size_t i = 0; i < sd_safetensors_count(f); i++) {
        struct tensor x = sd_checkpoint_tensor(all, store->component, sd_safetensors_at(f, i));

        total += (json_int_t)(x.base->numel * sd_dtype_size(x.dtype));
    }
    if ((metadata = json_object_get(index, "metadata")))
        json_object_set_new(metadata, "total_size", json_integer(total));
    if (!all->plan)
        return sd_json_save(index, to);
    all->plan->written += sd_json_size(index);
    return 0;
}

static int
write_store(struct sd_scope *s, const struct changes *all, struct sd_folder *out, const struct store *store)
{
    const char *path = sd_weights_path(store->weights), **names, *to;
    const char *folder = sd_strndup(s, path, (size_t)(sd_checkpoint_file_name(path) - path));
    size_t count;

    if (files_of(s, store, &names, &count) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        const char *from = sd_sprintf(s, "%s%s", folder, names[i]);
        int status;

        if (!(to = place_in(out, sd_sprintf(s, "%s/%s", store->name, names[i]))))
            return -1;
        status = store->component < 0 ? copy_file(all, from, to) : write_file(all, store->component, from, to);
        if (status < 0)
            return sd_fail_prefix("%s/%s", store->name, names[i]);
    }
    if (!ends_with(path, ".json"))
        return 0;
    to = place_in(out, sd_sprintf(s, "%s/%s", store->name, sd_checkpoint_file_name(path)));
    return to ? write_index(s, all, store, to) : -1;
}

int
sd_checkpoint_stores(struct sd_model *m, struct store store[3])
{
    struct sd_unet *unet = sd_model_unet(m);
    struct sd_clip_text *text = unet ? sd_model_text_encoder(m) : NULL;
    struct sd_vae *vae = text ? sd_model_vae(m) : NULL;

    if (!vae)
        return -1;
    store[0] = (struct store){ "unet", UNET, unet->weights };
    store[1] = (struct store){ "text_encoder", TEXT_ENCODER, text->weights };
    store[2] = (struct store){ "vae", -1, vae->weights };
    return 0;
}

static bool
is_folder(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* model_index.json, what it names, and nothing else that may lie beside (other layouts, pictures, caches). */
static int
write_folder(struct sd_scope *s, const struct changes *all, struct sd_folder *out)
{
    struct sd_model *m = all->checkpoint->model;
    const char *path = sd_sprintf(s, "%s/model_index.json", m->path), *to = place_in(out, "model_index.json"), *name;
    json_t *index = sd_json_load(s, path, SD_JSON_NONFINITE), *value;
    struct store store[3];

    if (!index || !to || sd_checkpoint_stores(m, store) < 0 || copy_file(all, path, to) < 0)
        return -1;
    json_object_foreach(index, name, value) {
        bool own = false;

        for (int i = 0; i < 3; i++)
            own |= strcmp(name, store[i].name) == 0;
        if (!json_is_array(value) || strchr(name, '/') || name[0] == '.'
            || !is_folder(sd_sprintf(s, "%s/%s", m->path, name)))
            continue;
        if (copy_folder(s, all, out, name, !own) < 0)
            return -1;
    }
    for (int i = 0; i < 3; i++)
        if (write_store(s, all, out, &store[i]) < 0)
            return -1;
    return 0;
}

int
sd_checkpoint_plan(struct sd_scope *s, const struct sd_checkpoint *c, struct sd_checkpoint_plan *plan)
{
    struct changes all;

    *plan = (struct sd_checkpoint_plan){ 0 };
    if (find_places(s, c, &all, plan) < 0)
        return -1;
    return c->model->single_file ? write_file(&all, -1, c->model->path, NULL) : write_folder(s, &all, NULL);
}

int
sd_checkpoint_save(const struct sd_checkpoint *c, const char *path)
{
    static const char *const marks[] = { "model_index.json", NULL };
    struct sd_scope *s = sd_scope_open();
    struct sd_folder *out = NULL;
    struct changes all;
    int status = sd_checkpoint_changes(s, c, &all);

    if (status == 0 && c->model->single_file)
        status = write_file(&all, -1, c->model->path, path);
    else if (status == 0 && !(out = sd_folder_open(s, path, marks)))
        status = -1;
    else if (status == 0 && (status = write_folder(s, &all, out)) == 0)
        status = sd_folder_commit(out);
    else if (out)
        sd_folder_abandon(out);
    sd_scope_close(s);
    return status;
}
