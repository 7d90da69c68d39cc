/* dataset - samples, buckets, order. */
#include "dataset.h"

#include "hash.h"
#include "opt.h"
#include "random.h"
#include "record.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct loader {
    struct sd_dataset *d;
    size_t room;
};

static const float *
copy_reals(struct sd_dataset *d, const struct sd_record_tensor *t)
{
    size_t n = t->bytes / sizeof(float);
    float *x = sd_alloc_array(d->scope, n, sizeof *x);

    memcpy(x, t->data, t->bytes);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return NULL;
    return x;
}

static bool
is_reals(const struct sd_record_tensor *t, int ndim)
{
    return strcmp(t->dtype, "F32") == 0 && t->ndim == ndim;
}

/* The sample's name to the random numbers: half of the XXH3-128 of its id. */
static uint64_t
name_of(const char *id)
{
    char hex[SD_XXH128_HEX];

    sd_xxh128_of(id, strlen(id), hex);
    hex[16] = 0;
    return strtoull(hex, NULL, 16);
}

/* sample - one record; -1 with sd_fail leaves it out. */
static int
sample(struct loader *l, const struct sd_record *r)
{
    struct sd_dataset *d = l->d;
    struct sd_sample x = { 0 };
    struct sd_record_tensor mean, logvar, mask;
    const char *id = sd_record_text(r, "id"), *caption = sd_record_text(r, "caption"),
               *vae = sd_record_text(r, "vae_hash");
    const char *source = sd_record_text(r, "source");
    int has_mask;

    if (!id)
        return sd_fail("a record without id");
    if (!caption)
        return sd_fail("no caption (sd-caption adds one)");
    if (sd_record_tensor(r, "latents_mean", &mean) != 1 || sd_record_tensor(r, "latents_logvar", &logvar) != 1)
        return sd_fail("no latents (sd-encode-latents adds them)");
    if (!is_reals(&mean, 3) || !is_reals(&logvar, 3) || memcmp(mean.shape, logvar.shape, 3 * sizeof *mean.shape) != 0)
        return sd_fail("latents_mean and latents_logvar must be F32 [4, h, w] alike");
    x.height = mean.shape[1];
    x.width = mean.shape[2];
    if ((has_mask = sd_record_tensor(r, "latent_mask", &mask)) < 0)
        return -1;
    if (has_mask && (!is_reals(&mask, 2) || mask.shape[0] != x.height || mask.shape[1] != x.width))
        return sd_fail("latent_mask must be F32 [%lld, %lld]", (long long)x.height, (long long)x.width);
    if (d->count && mean.shape[0] != d->channels)
        return sd_fail("latents of %lld channels among latents of %lld", (long long)mean.shape[0],
                       (long long)d->channels);
    if (vae && d->vae_hash && strcmp(vae, d->vae_hash) != 0)
        return sd_fail("encoded by another VAE (%.12s) than the samples before (%.12s)", vae, d->vae_hash);
    d->channels = mean.shape[0];
    if (vae && !d->vae_hash)
        d->vae_hash = sd_strdup(d->scope, vae);
    x.id = sd_strdup(d->scope, id);
    x.hash = name_of(id);
    x.caption = sd_strdup(d->scope, caption);
    x.source = sd_strdup(d->scope, source ? source : id);
    x.mean = copy_reals(d, &mean);
    x.logvar = copy_reals(d, &logvar);
    x.mask = has_mask ? copy_reals(d, &mask) : NULL;
    if (!x.mean || !x.logvar || (has_mask && !x.mask))
        return sd_fail("latents hold a value that is not finite");
    if (d->count == l->room) {
        size_t room = l->room ? 2 * l->room : 64;
        struct sd_sample *grown = sd_alloc_array(d->scope, room, sizeof *grown);

        if (d->count)
            memcpy(grown, d->sample, d->count * sizeof *grown);
        d->sample = grown;
        l->room = room;
    }
    d->sample[d->count++] = x;
    return 0;
}

static int
load_stream(struct loader *l, const char *path, int *bad)
{
    struct sd_reader *reader = sd_reader_open(path);
    int status = -1;

    if (!reader)
        return sd_fail_prefix("%s", path ? path : "standard input");
    for (;;) {
        struct sd_scope *s = sd_scope_open();
        struct sd_record *r;

        status = sd_reader_next(reader, s, &r);
        if (status == 1 && sample(l, r) < 0) {
            const char *source = sd_record_text(r, "source");

            (sd_shared.keep_going ? sd_warn : sd_error)(source ? source : path, "%s", sd_reason());
            (*bad)++;
        }
        sd_scope_close(s);
        if (status != 1)
            break;
    }
    sd_reader_close(reader);
    return status < 0 ? sd_fail_prefix("%s", path ? path : "standard input") : 0;
}

static int
by_shape_then_id(const void *a, const void *b)
{
    const struct sd_sample *x = a, *y = b;

    if (x->height != y->height)
        return x->height < y->height ? -1 : 1;
    if (x->width != y->width)
        return x->width < y->width ? -1 : 1;
    if (strcmp(x->id, y->id) != 0)
        return strcmp(x->id, y->id);
    return strcmp(x->caption, y->caption);
}

static void
make_buckets(struct sd_dataset *d)
{
    qsort(d->sample, d->count, sizeof *d->sample, by_shape_then_id);
    d->bucket = sd_alloc_array(d->scope, d->count, sizeof *d->bucket);
    for (size_t i = 0; i < d->count; i++) {
        struct sd_sample *x = &d->sample[i];
        struct sd_bucket *b = d->buckets ? &d->bucket[d->buckets - 1] : NULL;

        if (i && strcmp(x->id, d->sample[i - 1].id) == 0 && b && b->height == x->height && b->width == x->width) {
            x->hash += 0x9e3779b97f4a7c15u * i;     /* the same picture twice: its own noise each time */
            sd_warn(x->source, "this picture occurs twice");
        }
        if (!b || b->height != x->height || b->width != x->width) {
            b = &d->bucket[d->buckets++];
            *b = (struct sd_bucket){ .height = x->height, .width = x->width };
            b->sample = sd_alloc_array(d->scope, d->count, sizeof *b->sample);
        }
        x->bucket = d->buckets - 1;
        b->sample[b->count++] = (uint32_t)i;
    }
}

struct sd_dataset *
sd_dataset_load(struct sd_scope *s, int argc, char **argv, int *bad)
{
    struct sd_dataset *d = sd_alloc(s, sizeof *d);
    struct loader l = { .d = d };

    d->scope = s;
    for (int i = 1; i < argc || i == 1; i++)
        if (load_stream(&l, i < argc ? argv[i] : NULL, bad) < 0)
            return NULL;
    if (!d->count)
        return sd_fail_null("no sample to train on");
    make_buckets(d);
    return d;
}

uint32_t
sd_batches_per_epoch(const struct sd_dataset *d, uint32_t size)
{
    uint32_t count = 0;

    for (int b = 0; b < d->buckets; b++)
        count += (d->bucket[b].count + size - 1) / size;
    return count;
}

struct sd_batch *
sd_epoch_batches(const struct sd_dataset *d, struct sd_scope *s, uint64_t seed, uint32_t epoch, uint32_t size,
                 uint32_t *count)
{
    uint32_t n = sd_batches_per_epoch(d, size), made = 0;
    struct sd_batch *in_order = sd_alloc_array(s, n, sizeof *in_order),
                    *batches = sd_alloc_array(s, n, sizeof *batches);
    uint32_t *order = sd_alloc_array(s, n, sizeof *order);

    for (int b = 0; b < d->buckets; b++) {
        const struct sd_bucket *k = &d->bucket[b];
        uint32_t *shuffled = sd_alloc_array(s, k->count, sizeof *shuffled);

        sd_random_permutation(shuffled, k->count, seed, SD_FOR_ORDER, (uint64_t)b + 1, epoch);
        for (uint32_t i = 0; i < k->count; i++)
            shuffled[i] = k->sample[shuffled[i]];
        for (uint32_t at = 0; at < k->count; at += size)
            in_order[made++] = (struct sd_batch){ b, k->count - at < size ? k->count - at : size, shuffled + at };
    }
    sd_random_permutation(order, n, seed, SD_FOR_ORDER, 0, epoch);
    for (uint32_t i = 0; i < n; i++)
        batches[i] = in_order[order[i]];
    *count = n;
    return batches;
}

void
sd_posterior_sample(const struct sd_dataset *d, const struct sd_sample *x, uint64_t seed, uint32_t visit, float scale,
                    float *latents)
{
    int64_t pixels = x->height * x->width, channels = d->channels;
    struct sd_scope *s = sd_scope_open();
    float *noise = sd_alloc_array(s, (size_t)(pixels * channels), sizeof *noise);   /* [4, h, w], like mean */

    sd_random_normal(noise, (size_t)(pixels * channels), seed, SD_FOR_POSTERIOR, x->hash, visit);
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < channels; c++) {
            int64_t i = c * pixels + p;

            latents[p * channels + c] = (x->mean[i] + expf(0.5f * x->logvar[i]) * noise[i]) * scale;
        }
    sd_scope_close(s);
}

bool
sd_caption_dropped(const struct sd_sample *x, uint64_t seed, uint32_t visit, double probability)
{
    float u;

    if (probability <= 0)
        return false;
    sd_random_uniform(&u, 1, seed, SD_FOR_CAPTION, x->hash, visit);
    return u < probability;
}
