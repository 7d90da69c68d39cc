/* dataset.h - what is trained on: samples from record streams, in buckets, in an order that is a function of (seed,
 * epoch).
 *
 * One rule: a sample is itself wherever it stands.  Its latents, caption, mask and noise are found by its id, never by
 * its position, and a stream that contradicts itself (another VAE, another shape, a caption missing) is refused. */
#ifndef SD_DATASET_H
#define SD_DATASET_H

#include "diag.h"

struct sd_sample {
    const char *id, *source, *caption;
    uint64_t hash;              /* of the id: the sample's name to the random numbers */
    int64_t height, width;      /* of the latents */
    const float *mean, *logvar; /* [4, h, w], unscaled; NULL where a replay feeds latents */
    const float *mask;          /* [h, w] in 0..1, or NULL */
    int bucket;
};

struct sd_bucket {
    int64_t height, width;
    uint32_t count;
    uint32_t *sample;           /* indices, by id: the order of the files does not matter */
};

struct sd_dataset {
    struct sd_scope *scope;
    size_t count;
    struct sd_sample *sample;
    int buckets;
    struct sd_bucket *bucket;   /* by height, then width */
    int64_t channels;
    const char *vae_hash;       /* of all samples; NULL when none carries it */
};

/* sd_dataset_load - read saved streams (operands) or stdin when there are none.  Records without latents or caption are
 * named and left out (counted in *bad); NULL with sd_fail when nothing is left or streams contradict each other. */
struct sd_dataset *sd_dataset_load(struct sd_scope *s, int argc, char **argv, int *bad);

/* A batch: up to `size` samples of one bucket.  sd_epoch_batches - the batches of an epoch in order: every sample once;
 * the last batch of a bucket may be short.  (seed, epoch) decide alone. */
struct sd_batch {
    int bucket;
    uint32_t count;
    const uint32_t *sample;
};
struct sd_batch *sd_epoch_batches(const struct sd_dataset *d, struct sd_scope *s, uint64_t seed, uint32_t epoch,
                                  uint32_t size, uint32_t *count);
uint32_t sd_batches_per_epoch(const struct sd_dataset *d, uint32_t size);

/* sd_posterior_sample - latents = (mean + exp(logvar / 2) noise) * scale, NHWC [h, w, 4], noise from (seed, sample,
 * visit). */
void sd_posterior_sample(const struct sd_dataset *d, const struct sd_sample *x, uint64_t seed, uint32_t visit,
                         float scale, float *latents);

/* sd_caption_dropped - does the sample come without its caption at this visit? */
bool sd_caption_dropped(const struct sd_sample *x, uint64_t seed, uint32_t visit, double probability);

#endif
