/* dataset: order, posterior samples, dropped captions as functions of (seed, epoch, sample); what a stream must hold.
 */
#include "../check.h"
#include "train/dataset.h"

#include <unistd.h>

/* -- a stream, written by hand ----------------------------------------------------------------------------------- */

static FILE *stream;

static void
text(const char *t)
{
    fprintf(stream, "%c%c%s", 0xd9, (int)strlen(t), t);
}

static void
tensor(const char *key, int ndim, const uint8_t *shape, float first)
{
    size_t n = 1;

    text(key);
    fputc(0x83, stream);
    text("dtype");
    text("F32");
    text("shape");
    fputc(0x90 | ndim, stream);
    for (int i = 0; i < ndim; i++) {
        fputc(shape[i], stream);
        n *= shape[i];
    }
    text("data");
    fprintf(stream, "%c%c%c", 0xc5, (int)(4 * n >> 8), (int)(4 * n & 255));
    for (size_t i = 0; i < n; i++)
        fwrite(&(float){ first + 0.25f * (float)i }, sizeof(float), 1, stream);
}

struct item {
    const char *id, *caption, *vae;
    uint8_t height, width;
    float value, logvar;
    bool mask;
};

static void
item(const struct item *x)
{
    fputc(0x80 | (4 + (x->caption != NULL) + x->mask), stream);
    text("id");
    text(x->id);
    if (x->caption) {
        text("caption");
        text(x->caption);
    }
    text("vae_hash");
    text(x->vae);
    tensor("latents_mean", 3, (uint8_t[]){ 4, x->height, x->width }, x->value);
    tensor("latents_logvar", 3, (uint8_t[]){ 4, x->height, x->width }, x->logvar);
    if (x->mask)
        tensor("latent_mask", 2, (uint8_t[]){ x->height, x->width }, 0);
}

static struct sd_dataset *
load(struct sd_scope *s, const struct item *items, int count, int *bad)
{
    char path[] = "/tmp/sd-dataset-XXXXXX";
    struct sd_dataset *d;

    *bad = 0;
    close(mkstemp(path));
    stream = fopen(path, "wb");
    fputc(0x82, stream);
    text("sd");
    fputc(1, stream);
    text("holds");
    text("latents");
    for (int i = 0; i < count; i++)
        item(&items[i]);
    fputc(0x81, stream);
    text("end");
    fputc(count, stream);
    fclose(stream);
    d = sd_dataset_load(s, 2, (char *[]){ "test", path, NULL }, bad);
    unlink(path);
    return d;
}

/* -- order ------------------------------------------------------------------------------------------------------- */

static struct sd_dataset *
made(struct sd_scope *s, const uint32_t *counts, int buckets)
{
    struct sd_dataset *d = sd_alloc(s, sizeof *d);

    d->buckets = buckets;
    d->bucket = sd_alloc_array(s, (size_t)buckets, sizeof *d->bucket);
    for (int b = 0; b < buckets; b++) {
        d->bucket[b].count = counts[b];
        d->bucket[b].sample = sd_alloc_array(s, counts[b], sizeof(uint32_t));
        for (uint32_t i = 0; i < counts[b]; i++)
            d->bucket[b].sample[i] = (uint32_t)d->count++;
    }
    return d;
}

/* Every sample once, of the right bucket, no batch too large; the order as numbers. */
static bool
epoch(const struct sd_dataset *d, struct sd_scope *s, uint64_t seed, uint32_t e, uint32_t size, uint32_t *order)
{
    uint32_t n, taken = 0;
    struct sd_batch *batches = sd_epoch_batches(d, s, seed, e, size, &n);
    int *seen = sd_alloc_array(s, d->count, sizeof *seen);
    bool good = n == sd_batches_per_epoch(d, size);

    for (uint32_t i = 0; i < n; i++) {
        const struct sd_bucket *b = &d->bucket[batches[i].bucket];

        good &= batches[i].count >= 1 && batches[i].count <= size;
        for (uint32_t k = 0; k < batches[i].count && taken < d->count; k++) {
            uint32_t x = batches[i].sample[k];

            good &= x >= b->sample[0] && x < b->sample[0] + b->count && !seen[x]++;
            order[taken++] = x;
        }
    }
    return good && taken == d->count;
}

static void
orders(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_dataset *d = made(s, (uint32_t[]){ 7, 1, 12 }, 3);
    uint32_t first[20], again[20], other[20], firsts[20] = { 0 };
    bool good = true, spread = true;

    for (uint32_t size = 1; size <= 13; size++)
        for (uint32_t e = 0; e < 5; e++)
            good &= epoch(d, s, 3, e, size, first);
    CHECK(good, "every epoch has every sample once, in batches of one bucket");
    CHECK(sd_batches_per_epoch(d, 4) == 2 + 1 + 3, "batches of an epoch: %u", sd_batches_per_epoch(d, 4));
    epoch(d, s, 3, 1, 2, first);
    epoch(d, s, 3, 1, 2, again);
    CHECK(memcmp(first, again, sizeof first) == 0, "the same seed and epoch: the same order");
    epoch(d, s, 3, 2, 2, other);
    CHECK(memcmp(first, other, sizeof first) != 0, "another epoch: another order");
    epoch(d, s, 4, 1, 2, other);
    CHECK(memcmp(first, other, sizeof first) != 0, "another seed: another order");
    for (uint32_t e = 0; e < 4000; e++) {
        epoch(d, s, 3, e, 1, other);
        firsts[other[0]]++;
    }
    for (int i = 0; i < 20; i++)
        spread &= firsts[i] > 130 && firsts[i] < 270;       /* 200 expected, five deviations of 14 */
    CHECK(spread, "each sample is as likely to come first");
    sd_scope_close(s);
}

/* -- samples ----------------------------------------------------------------------------------------------------- */

static void
streams(void)
{
    static const struct item items[] = {
        { "b", "two", "v", 2, 3, 1, -2, true },   { "a", "one", "v", 2, 3, 5, -30, false },
        { "c", NULL, "v", 2, 3, 0, 0, false },    { "d", "four", "w", 2, 3, 0, 0, false },
        { "e", "five", "v", 3, 2, 0, -2, false }, { "f", "six", "v", 3, 2, NAN, 0, false },
    };
    struct item turned[6];
    struct sd_scope *s = sd_scope_open();
    int bad, bad2;
    struct sd_dataset *d = load(s, items, 6, &bad), *e;
    float x[24], y[24];

    for (int i = 0; i < 6; i++)
        turned[i] = items[(i + 1) % 6 == 3 ? 5 : (i + 1) % 6 == 5 ? 3 : (i + 1) % 6];
    if (!CHECK(d && d->count == 3 && bad == 3, "three of six records are good: no caption, another VAE, NaN are not"))
        return;
    CHECK(d->buckets == 2 && d->bucket[0].count == 2 && d->bucket[1].count == 1 && strcmp(d->sample[0].id, "a") == 0
          && strcmp(d->sample[1].id, "b") == 0 && strcmp(d->vae_hash, "v") == 0, "by shape, then id");
    CHECK(d->sample[1].mask && d->sample[1].mask[5] == 1.25f && !d->sample[0].mask, "masks stay with their pictures");
    e = load(s, turned, 6, &bad2);
    CHECK(e && e->count == 3 && strcmp(e->sample[1].id, "b") == 0 && e->sample[1].hash == d->sample[1].hash
          && e->sample[1].mean[3] == d->sample[1].mean[3], "the order of the stream does not matter");
    sd_posterior_sample(d, &d->sample[0], 1, 0, 0.5f, x);   /* variance e^-30: the mean, scaled, NHWC */
    CHECK(fabsf(x[1] - 0.5f * (5 + 0.25f * 6)) < 1e-5f && fabsf(x[4] - 0.5f * 5.25f) < 1e-5f,
          "without variance a sample is the mean");
    sd_posterior_sample(d, &d->sample[1], 1, 0, 0.5f, x);
    sd_posterior_sample(e, &e->sample[1], 1, 0, 0.5f, y);
    CHECK(memcmp(x, y, sizeof x) == 0, "a sample is a function of seed, sample, visit");
    sd_posterior_sample(d, &d->sample[1], 1, 1, 0.5f, y);
    CHECK(memcmp(x, y, sizeof x) != 0, "another visit, another sample");
    e = load(s, (const struct item[]){ items[0], items[0] }, 2, &bad2);
    CHECK(e && e->count == 2 && e->sample[0].hash != e->sample[1].hash,
          "the same picture twice has its own noise each time");
    CHECK(!load(s, &items[2], 1, &bad2) && bad2 == 1, "no good record is an error: %s", sd_reason());
    sd_scope_close(s);
}

static void
posterior(void)
{
    struct sd_scope *s = sd_scope_open();
    int bad;
    struct sd_dataset *d = load(s, (const struct item[]){ { "b", "two", "v", 1, 1, 3, 0.5f, false } }, 1, &bad);
    double sum = 0, squares = 0, scale = 0.18215, sd = exp(0.25);
    float x[4];

    for (uint32_t visit = 0; visit < 20000; visit++) {
        sd_posterior_sample(d, &d->sample[0], 9, visit, (float)scale, x);
        sum += x[0];
        squares += (x[0] - scale * 3) * (x[0] - scale * 3);
    }
    CHECK(fabs(sum / 20000 / scale - 3) < 4 * sd / sqrt(20000), "mean of samples: %.4f", sum / 20000 / scale);
    CHECK(fabs(sqrt(squares / 20000) / scale / sd - 1) < 4 / sqrt(40000), "deviation: %.4f of %.4f",
          sqrt(squares / 20000) / scale, sd);
    sd_scope_close(s);
}

static void
dropout(void)
{
    struct sd_sample x = { .hash = 77 };
    int dropped = 0, never = 0, always = 0;

    for (uint32_t visit = 0; visit < 20000; visit++) {
        dropped += sd_caption_dropped(&x, 5, visit, 0.1);
        never += sd_caption_dropped(&x, 5, visit, 0);
        always += sd_caption_dropped(&x, 5, visit, 1);
    }
    CHECK(abs(dropped - 2000) < 4 * 43, "captions dropped: %d of 20000 at 0.1", dropped);
    CHECK(never == 0 && always == 20000, "0 never, 1 always");
}

int
main(void)
{
    sd_verbosity = -1;
    orders();
    streams();
    posterior();
    dropout();
    return check_done();
}
