/* checkpoint_verify - what was written, read again and compared with what it should be, value by value. */
#include "checkpoint_private.h"

#include <math.h>
#include <string.h>

/* One row of W + scale up down in double, each value with what may be lost on the way: a rounding to the dtype, and
 * before it sums in f32, of as many terms as the ranks say, some of which cancel. */
struct row {
    int64_t n, terms;
    float *was, *is;
    double *value, *size;
};

static int
read_row(struct sd_scope *s, const struct tensor *x, const struct sd_safetensor *y, int64_t at, struct row *w)
{
    const size_t n = (size_t)sd_checkpoint_row(x->base), begin = (size_t)at * n, from = sd_dtype_size(x->base->dtype);

    *w = (struct row){ .n = (int64_t)n, .terms = 2, .was = sd_alloc_array(s, n, sizeof *w->was),
                       .is = sd_alloc_array(s, n, sizeof *w->is), .value = sd_alloc_array(s, n, sizeof *w->value),
                       .size = sd_alloc_array(s, n, sizeof *w->size) };
    if (sd_to_f32(w->was, (const char *)x->base->data + begin * from, x->base->dtype, n) < 0
        || sd_to_f32(w->is, (const char *)y->data + begin * sd_dtype_size(y->dtype), y->dtype, n) < 0)
        return -1;
    for (size_t i = 0; i < n; i++) {
        w->value[i] = w->was[i];
        w->size[i] = fabsf(w->was[i]);
    }
    return 0;
}

static int
compare_row(struct sd_scope *s, const struct tensor *x, const struct sd_safetensor *y, int64_t at)
{
    double unit = y->dtype == SD_F16 ? 0x1p-11 : y->dtype == SD_BF16 ? 0x1p-8 : 0x1p-24;
    double least = y->dtype == SD_F16 ? 0x1p-25 : 0x1p-149;
    struct row w;

    if (read_row(s, x, y, at, &w) < 0)
        return -1;
    for (size_t c = 0; c < x->count; c++) {
        const struct sd_lora_layer *l = x->change[c].layer;
        int64_t o = at - x->change[c].first_row;

        if (o < 0 || o >= l->out)
            continue;
        w.terms += l->rank;
        for (int64_t r = 0; r < l->rank; r++) {
            double up = l->scale * l->up[o * l->rank + r];
            const float *down = l->down + r * w.n;

            for (int64_t i = 0; i < w.n; i++) {
                w.value[i] += up * down[i];
                w.size[i] += fabs(up * down[i]);
            }
        }
    }
    for (int64_t i = 0; i < w.n; i++)
        if (!(fabs(w.is[i] - w.value[i]) <= unit * fabs(w.is[i]) + least + (double)w.terms * 0x1p-24 * w.size[i]))
            return sd_fail("%s: row %lld has %.9g, expected %.9g", x->base->name, (long long)at, (double)w.is[i],
                           w.value[i]);
    return 0;
}

/* The first row that is not what it should be, or `rows`. */
static int64_t
first_bad(const struct tensor *x, const struct sd_safetensor *y, int64_t rows)
{
    int64_t first = rows;

#pragma omp parallel for schedule(static) reduction(min : first) if (x->base->numel > 1 << 16)
    for (int64_t row = 0; row < rows; row++) {
        struct sd_scope *s = sd_scope_open();

        if (row < first && compare_row(s, x, y, row) < 0)
            first = row;
        sd_scope_close(s);
    }
    return first;
}

static int
compare_tensor(const struct tensor *x, const struct sd_safetensor *y)
{
    int64_t rows = x->base->ndim && x->base->shape[0] ? x->base->shape[0] : (int64_t)x->base->numel;
    bool same = y && y->dtype == x->dtype && y->ndim == x->base->ndim
        && memcmp(y->shape, x->base->shape, (size_t)y->ndim * sizeof *y->shape) == 0;
    int64_t bad;
    int status = 0;

    if (!same)
        return sd_fail("%s: %s", x->base->name, y ? "of another dtype or shape" : "missing");
    if (!x->count && x->dtype == x->base->dtype)
        return memcmp(y->data, x->base->data, y->bytes) == 0 ? 0 : sd_fail("%s: its bytes differ", x->base->name);
    if ((bad = first_bad(x, y, rows)) < rows) {
        struct sd_scope *s = sd_scope_open();

        status = compare_row(s, x, y, bad);         /* again, for the reason: a thread keeps its own */
        sd_scope_close(s);
    }
    return status;
}

/* The base is what the model has mapped: its files may have been replaced by the output. */
static int
verify_file(const struct changes *all, const struct store *store, const char *path, size_t *tensors)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *base = sd_weights_file(store->weights), *f = sd_safetensors_open(s, path);
    int status = f ? 0 : -1;

    if (f && sd_safetensors_count(f) != sd_safetensors_count(base))
        status = sd_fail("%zu tensors, expected %zu", sd_safetensors_count(f), sd_safetensors_count(base));
    for (size_t i = 0; status == 0 && i < sd_safetensors_count(base); i++) {
        struct tensor x = sd_checkpoint_tensor(all, store->component, sd_safetensors_at(base, i));

        status = compare_tensor(&x, sd_safetensors_find(f, x.base->name));
        *tensors += status == 0;
    }
    sd_scope_close(s);
    return status;
}

static int
verify_folder(struct sd_scope *s, const struct changes *all, const struct store *store, const char *path,
              size_t *tensors)
{
    for (int i = 0; i < 3; i++) {
        const char *weights = sd_checkpoint_file_name(sd_weights_path(store[i].weights));

        if (verify_file(all, &store[i], sd_sprintf(s, "%s/%s/%s", path, store[i].name, weights), tensors) < 0)
            return sd_fail_prefix("%s", store[i].name);
    }
    return 0;
}

int
sd_checkpoint_verify(const struct sd_checkpoint *c, const char *path, size_t *tensors)
{
    struct sd_scope *s = sd_scope_open();
    struct store store[3];
    struct changes all;
    int status = sd_checkpoint_changes(s, c, &all);

    *tensors = 0;
    if (status == 0 && c->model->single_file) {
        store[0] = (struct store){ "", -1, sd_model_unet(c->model)->weights };
        status = verify_file(&all, &store[0], path, tensors);
    } else if (status == 0 && (status = sd_checkpoint_stores(c->model, store)) == 0)
        status = verify_folder(s, &all, store, path, tensors);
    sd_scope_close(s);
    return status;
}
