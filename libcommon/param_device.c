/* param_device - forms of parameters on a device: uploaded once, in the dtype and order that the kernels want. */
#include "device.h"
#include "param.h"

#include <stdlib.h>
#include <string.h>

#include "param_joined.h"
#include "projections.h"

/* An allocation that several forms lie in; it goes with the last of them. */
struct slab {
    struct sd_device *device;
    void *first;
    size_t forms;
};

struct sd_param_form {
    struct sd_param_form *next;
    enum sd_dtype dtype;
    enum sd_param_layout layout;
    size_t bytes, counted;          /* counted: 0 where it will be shared */
    void *data;                     /* NULL while only wanted */
    struct sd_device *device;
    struct slab *slab;              /* NULL: data is the trainable's device_shadow */
};

static size_t bytes_wanted, most_scratch;

size_t sd_upload_bytes = 16 << 20;

size_t
sd_param_sent_size(const struct sd_param *p)
{
    return sd_dtype_is_real(p->dtype) ? sd_dtype_size(p->dtype) : sizeof(float);
}

size_t
sd_param_device_bytes(void)
{
    return bytes_wanted;
}

size_t
sd_param_device_scratch(void)
{
    return most_scratch;
}

/* Elements that have to be converted together: one, or all that one output of a convolution reads. */
static size_t
unit_of(const struct sd_param *p, enum sd_param_layout layout)
{
    return layout == SD_ROWS ? 1 : p->numel / (size_t)p->shape[0];
}

size_t
sd_param_piece(const struct sd_param *p, size_t unit)
{
    size_t units = sd_upload_bytes / sd_param_sent_size(p) / unit, piece = units ? units * unit : unit;

    return piece < p->numel ? piece : p->numel;
}

static size_t
raised(size_t bytes, size_t more)
{
    return more > bytes ? more : bytes;
}

/* Of the workspace, to upload this form. */
static size_t
scratch_of(const struct sd_param *p, const struct sd_param_form *f)
{
    size_t bytes = 0;

    if (p->trainable && !p->joined)
        return 0;
    if (!p->joined)
        return f->layout == SD_ROWS && f->dtype == p->dtype ? 0 : sd_param_piece(p, unit_of(p, f->layout)) * sd_param_sent_size(p);
    for (int i = 0; i < p->joined->parts; i++) {
        const struct sd_projection *q = &p->joined->part[i];
        const struct sd_param *pair[] = { q->down, q->up };

        bytes = raised(bytes, sd_param_piece(q->weight, (size_t)q->weight->shape[1]) * sd_param_sent_size(q->weight));
        for (int k = 0; k < 2; k++)
            bytes = raised(bytes, pair[k] && !pair[k]->trainable ? pair[k]->numel * sizeof(float) : 0);
    }
    return bytes;
}

/* Is this form the trainable's own value? */
static bool
is_value(const struct sd_param *p, enum sd_dtype dtype, enum sd_param_layout layout)
{
    return p->trainable && !p->joined && dtype == SD_F32 && layout == SD_ROWS;
}

static size_t
bytes_of(const struct sd_param *p, enum sd_dtype dtype, enum sd_param_layout layout)
{
    struct projections_layout l;

    if (layout == SD_TAPS_UPSAMPLED)
        return (size_t)(p->shape[0] * p->shape[1] * (p->shape[2] + 1) * (p->shape[3] + 1)) * sd_dtype_size(dtype);
    if (!p->joined)
        return p->numel * sd_dtype_size(dtype);
    projections_layout(&l, p->joined, dtype);
    return l.bytes;
}

/* A matrix, or a kernel of one tap, lies in the file as [out, taps, in] does. */
static enum sd_param_layout
plain_layout(const struct sd_param *p, enum sd_param_layout layout)
{
    return layout == SD_TAPS && (p->ndim < 4 || p->shape[2] * p->shape[3] == 1) ? SD_ROWS : layout;
}

static struct sd_param_form *
find(const struct sd_param *p, enum sd_dtype dtype, enum sd_param_layout layout)
{
    struct sd_param_form *f = p->forms;

    layout = plain_layout(p, layout);
    while (f && (f->dtype != dtype || f->layout != layout))
        f = f->next;
    return f;
}

void
sd_param_want(struct sd_param *p, enum sd_dtype dtype, enum sd_param_layout layout)
{
    struct sd_param_form *f;

    layout = plain_layout(p, layout);
    if (is_value(p, dtype, layout) || find(p, dtype, layout))
        return;
    f = calloc(1, sizeof *f);
    if (!f)
        sd_die(p->path, "out of memory");
    f->dtype = dtype;
    f->layout = layout;
    f->bytes = bytes_of(p, dtype, layout);
    f->next = p->forms;
    p->forms = f;
    /* in another dtype than its own, a trainable's rows are its shadow's, which the optimizer has */
    f->counted = p->trainable && !p->joined && dtype != SD_F32 && layout == SD_ROWS ? 0 : sd_device_rounded(f->bytes);
    bytes_wanted += f->counted;
    if (scratch_of(p, f) > most_scratch)
        most_scratch = scratch_of(p, f);
}

void *
sd_param_on(const struct sd_param *p, enum sd_dtype dtype, enum sd_param_layout layout)
{
    struct sd_param_form *f;

    if (is_value(p, dtype, plain_layout(p, layout)))
        return p->device_value;
    f = find(p, dtype, layout);
    if (!f || !f->data)
        sd_bug("param", "%s is not on the device as %s", p->path, sd_dtype_name(dtype));
    return f->data;
}

static void
leave(struct slab *slab)
{
    if (--slab->forms)
        return;
    sd_device_free(slab->device, slab->first);
    free(slab);
}

bool
sd_param_is_on_device(const struct sd_param *p)
{
    for (const struct sd_param_form *f = p->forms; f; f = f->next)
        if (f->data)
            return true;
    return false;
}

void
sd_param_forget(struct sd_param *p)
{
    while (p->forms) {
        struct sd_param_form *next = p->forms->next;

        if (p->forms->slab)
            leave(p->forms->slab);
        bytes_wanted -= p->forms->counted;
        free(p->forms);
        p->forms = next;
    }
}

#if SD_WITH_CUDA && SD_REAL_IS_FLOAT
#include "device_ops.h"

/* `count` elements of p, whole units from `begin` on, into f->data, from what lies at `from` on the device in the file's order. */
static void
make(const struct sd_param *p, const struct sd_param_form *f, size_t begin, size_t count, const void *from, enum sd_dtype dtype)
{
    size_t unit = unit_of(p, f->layout), size = sd_dtype_size(f->dtype);
    char *to = (char *)f->data + (f->layout == SD_TAPS_UPSAMPLED ? begin / unit : begin) * size;
    int64_t out = (int64_t)(count / unit);

    if (f->layout == SD_TAPS)
        sd_device_taps(f->device, to, f->dtype, from, dtype, out, p->shape[1], p->shape[2], p->shape[3]);
    else if (f->layout == SD_TAPS_UPSAMPLED)
        sd_device_taps_upsampled(f->device, to, f->dtype, p->shape[0], from, dtype, out, p->shape[1], p->shape[2], p->shape[3]);
    else
        sd_device_cast(f->device, to, f->dtype, from, dtype, count);
}

enum sd_dtype
sd_param_send(const struct sd_param *p, struct sd_device *d, void *to, size_t begin, size_t count)
{
    float *values;

    if (sd_dtype_is_real(p->dtype)) {
        sd_device_write(d, to, (const char *)p->raw + begin * sd_param_sent_size(p), count * sd_param_sent_size(p));
        return p->dtype;
    }
    if (!(values = malloc(count * sizeof *values + 1)))
        sd_die(p->path, "out of memory");
    sd_param_convert(values, p, begin, count);
    sd_device_write(d, to, values, count * sizeof *values);
    free(values);
    return SD_F32;
}

/* In pieces: a piece is converted while the next one goes to the pinned memory. */
static void
upload(const struct sd_param *p, const struct sd_param_form *f)
{
    struct sd_device *d = f->device;
    size_t piece = sd_param_piece(p, unit_of(p, f->layout));

    if (f->layout == SD_ROWS && f->dtype == p->dtype) {
        sd_device_write(d, f->data, p->raw, f->bytes);
        return;
    }
    for (size_t begin = 0; begin < p->numel; begin += piece) {
        size_t count = p->numel - begin < piece ? p->numel - begin : piece;
        void *room = sd_device_workspace(d, piece * sd_param_sent_size(p));

        make(p, f, begin, count, room, sd_param_send(p, d, room, begin, count));
    }
}

/* A form that is to be made. */
struct missing {
    struct sd_param *param;
    struct sd_param_form *form;
};

/* Those of one scope lie side by side. */
static void
allocate(struct missing *m, size_t count, struct sd_device *d)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_device_part *part = sd_alloc_array(s, count, sizeof *part);
    size_t *which = sd_alloc_array(s, count, sizeof *which);

    for (size_t i = 0; i < count; i++) {
        struct slab *slab;

        if (m[i].form->slab)
            continue;
        if (!(slab = calloc(1, sizeof *slab)))
            sd_die(m[i].param->path, "out of memory");
        slab->device = d;
        for (size_t j = i; j < count; j++)
            if (!m[j].form->slab && m[j].param->scope == m[i].param->scope) {
                part[slab->forms] = (struct sd_device_part){ m[j].form->bytes, m[j].param->path, NULL };
                which[slab->forms++] = j;
                m[j].form->slab = slab;
            }
        sd_device_alloc_parts(d, part, slab->forms);
        slab->first = part[0].at;
        for (size_t j = 0; j < slab->forms; j++)
            m[which[j]].form->data = part[j].at;
    }
    sd_scope_close(s);
}

/* The forms of p that are not there yet; those that lie in its shadow are then.  Returns how many. */
static size_t
find_missing(struct sd_param *p, struct sd_device *d, struct missing *m)
{
    size_t count = 0;

    for (struct sd_param_form *f = p->forms; f; f = f->next) {
        if (f->device)
            continue;
        f->device = d;
        if (p->trainable && p->device_shadow && f->layout == SD_ROWS && f->dtype == p->shadow_dtype)
            f->data = p->device_shadow;
        else
            m[count++] = (struct missing){ p, f };
    }
    return count;
}

void
sd_params_upload(struct sd_param *const *p, size_t count, struct sd_device *d)
{
    struct sd_scope *s = sd_scope_open();
    struct missing *m;
    size_t forms = 0, missing = 0;

    for (size_t i = 0; i < count; i++)
        for (const struct sd_param_form *f = p[i]->forms; f; f = f->next)
            forms++;
    m = sd_alloc_array(s, forms, sizeof *m);
    for (size_t i = 0; i < count; i++)
        missing += find_missing(p[i], d, m + missing);
    allocate(m, missing, d);
    sd_device_workspace(d, most_scratch);       /* once, not a little more for each larger one */
    for (size_t i = 0; i < missing; i++) {
        if (m[i].param->joined)
            projections_upload(d, m[i].form->data, m[i].form->dtype, m[i].param->joined);
        else if (m[i].param->trainable)
            make(m[i].param, m[i].form, 0, m[i].param->numel, m[i].param->device_value, SD_F32);
        else
            upload(m[i].param, m[i].form);
    }
    sd_scope_close(s);
}

enum { MOST_FORMS = 256 };

struct refresh {
    struct sd_device *device;
    struct projections_form form[MOST_FORMS];
    size_t count;
};

static void
refresh_joined(struct sd_param *p, void *argument)
{
    struct refresh *r = argument;

    for (struct sd_param_form *f = p->forms; f; f = f->next)
        if (f->data && f->device == r->device) {
            if (r->count == MOST_FORMS) {
                projections_refresh(r->device, r->form, r->count);
                r->count = 0;
            }
            r->form[r->count++] = (struct projections_form){ f->data, f->dtype, p->joined };
        }
}

void
sd_params_refresh(struct sd_param *const *p, size_t count, struct sd_device *d)
{
    struct refresh r;

    r.device = d;
    r.count = 0;
    for (size_t i = 0; i < count; i++) {
        sd_param_each_joined(p[i], refresh_joined, &r);
        for (struct sd_param_form *f = p[i]->trainable ? p[i]->forms : NULL; f; f = f->next)
            if (f->slab && f->device == d)
                make(p[i], f, 0, p[i]->numel, p[i]->device_value, SD_F32);
    }
    projections_refresh(d, r.form, r.count);
}
#else
void
sd_params_upload(struct sd_param *const *p SD_UNUSED, size_t count SD_UNUSED, struct sd_device *d SD_UNUSED)
{
    sd_bug("param", "no devices in this build");
}

void
sd_params_refresh(struct sd_param *const *p, size_t count, struct sd_device *d)
{
    sd_params_upload(p, count, d);
}
#endif
