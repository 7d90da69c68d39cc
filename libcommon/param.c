/* param - parameters and their packed forms. */
#include "param.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct sd_pack {
    struct sd_pack *next;
    char *key;
    size_t bytes;
    void *data;             /* NULL while only reserved */
};

static size_t bytes_reserved, bytes_made;

static void
drop(void *p)
{
    sd_param_drop(p);
    sd_param_forget_joined(p, true);
}

struct sd_param *
sd_param_new(struct sd_scope *s, const char *path, enum sd_dtype dtype, int ndim, const int64_t *shape, const void *raw)
{
    struct sd_param *p = sd_alloc(s, sizeof *p);

    p->path = sd_strdup(s, path);
    p->scope = s;
    p->dtype = dtype;
    p->ndim = ndim;
    p->numel = 1;
    for (int i = 0; i < ndim; i++) {
        p->shape[i] = shape[i];
        p->numel *= (size_t)shape[i];
    }
    p->raw = raw;
    sd_on_close(s, drop, p);
    return p;
}

static struct sd_pack *
find(struct sd_param *p, const char *key)
{
    for (struct sd_pack *k = p->packs; k; k = k->next)
        if (strcmp(k->key, key) == 0)
            return k;
    return NULL;
}

static struct sd_pack *
reserve(struct sd_param *p, const char *key, size_t bytes)
{
    struct sd_pack *k = find(p, key);

    if (k) {
        if (k->bytes != bytes)
            sd_bug("param", "%s: form %s has %zu bytes, asked for %zu", p->path, key, k->bytes, bytes);
        return k;
    }
    k = calloc(1, sizeof *k);
    if (!k || !(k->key = strdup(key)))
        sd_die(p->path, "out of memory");
    k->bytes = bytes;
    k->next = p->packs;
    p->packs = k;
    bytes_reserved += bytes;
    return k;
}

void
sd_param_reserve(struct sd_param *p, const char *key, size_t bytes)
{
    reserve(p, key, bytes);
}

void *
sd_param_packed(struct sd_param *p, const char *key, size_t bytes,
                void (*make)(void *out, const struct sd_param *p, const void *arg), const void *arg)
{
    struct sd_pack *k = reserve(p, key, bytes);

    if (!k->data) {
        size_t page = bytes >= 4 << 20 ? 2 << 20 : 64;

        if (posix_memalign(&k->data, page, (bytes + page - 1) / page * page))
            sd_die(p->path, "out of memory: %zu bytes for packed weights", bytes);
        if (page > 64)
            madvise(k->data, bytes, MADV_HUGEPAGE);
        make(k->data, p, arg);
        bytes_made += bytes;
    }
    return k->data;
}

static bool
mapping_is_real(const struct sd_param *p)
{
    return SD_REAL_IS_FLOAT && p->dtype == SD_F32 && (uintptr_t)p->raw % sizeof(float) == 0;
}

static float
half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023, bits;
    float f;

    if (e == 31)
        bits = sign | 0x7f800000 | m << 13;
    else if (e)
        bits = sign | (e + 112) << 23 | m << 13;
    else {
        f = (float)m * 0x1p-24f;
        memcpy(&bits, &f, 4);
        bits |= sign;
    }
    memcpy(&f, &bits, 4);
    return f;
}

void
sd_param_convert(real *out, const struct sd_param *p, size_t begin, size_t count)
{
    const unsigned char *raw = p->raw;

    if (p->trainable) {
        memcpy(out, p->value + begin, count * sizeof *out);
        return;
    }
    raw += begin * sd_dtype_size(p->dtype);
    switch (p->dtype) {
    case SD_F32:
        for (size_t i = 0; i < count; i++) {
            float f;

            memcpy(&f, raw + 4 * i, 4);
            out[i] = f;
        }
        break;
    case SD_F64:
        for (size_t i = 0; i < count; i++) {
            double f;

            memcpy(&f, raw + 8 * i, 8);
            out[i] = (real)f;
        }
        break;
    case SD_BF16:
        for (size_t i = 0; i < count; i++) {
            uint16_t h;
            uint32_t bits;
            float f;

            memcpy(&h, raw + 2 * i, 2);
            bits = (uint32_t)h << 16;
            memcpy(&f, &bits, 4);
            out[i] = f;
        }
        break;
    case SD_F16:
        for (size_t i = 0; i < count; i++) {
            uint16_t h;

            memcpy(&h, raw + 2 * i, 2);
            out[i] = half_to_float(h);
        }
        break;
    default:
        sd_bug("param", "%s: dtype %s has no real values", p->path, sd_dtype_name(p->dtype));
    }
}

static void
make_values(void *out, const struct sd_param *p, const void *arg SD_UNUSED)
{
    enum { CHUNK = 1 << 16 };
    int64_t chunks = (int64_t)((p->numel + CHUNK - 1) / CHUNK);

#pragma omp parallel for schedule(static)
    for (int64_t c = 0; c < chunks; c++) {
        size_t begin = (size_t)c * CHUNK, count = p->numel - begin < CHUNK ? p->numel - begin : CHUNK;

        sd_param_convert((real *)out + begin, p, begin, count);
    }
}

const real *
sd_param_values(struct sd_param *p)
{
    if (p->trainable)
        return p->value;
    if (mapping_is_real(p))
        return p->raw;
    return sd_param_packed(p, "values", p->numel * sizeof(real), make_values, NULL);
}

void
sd_param_reserve_values(struct sd_param *p)
{
    if (!p->trainable && !mapping_is_real(p))
        sd_param_reserve(p, "values", p->numel * sizeof(real));
}

void
sd_param_drop(struct sd_param *p)
{
    struct sd_pack *next;

    for (struct sd_pack *k = p->packs; k; k = next) {
        next = k->next;
        bytes_reserved -= k->bytes;
        if (k->data)
            bytes_made -= k->bytes;
        free(k->data);
        free(k->key);
        free(k);
    }
    p->packs = NULL;
    sd_param_forget(p);
    sd_param_forget_joined(p, false);
}

size_t
sd_param_bytes_reserved(void)
{
    return bytes_reserved + sd_param_device_bytes();
}

size_t
sd_param_bytes_made(void)
{
    return bytes_made;
}
