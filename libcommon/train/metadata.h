/* metadata.h - what a trained file says about itself: kohya's ss_ keys, modelspec, the run's settings.  No clock, host,
 * path. */
#ifndef SD_METADATA_H
#define SD_METADATA_H

#include "json.h"
#include "model/model.h"

struct sd_metadata {
    const char *name;               /* ss_output_name, title */
    const struct sd_model *model;
    const char *model_hash, *vae_hash;      /* SHA-256, or NULL */
    const json_t *settings;         /* usable as --config: the run again */
    const json_t *made_from;        /* hashes and the numeric contract beside them */
    bool lora;                      /* else an embedding */
    int64_t rank, conv_rank;        /* of linear layers; of convolutions where it is another, else 0 */
    double alpha, conv_alpha;
    int64_t steps, epochs, images, batch_size, accumulation, width, height;
    uint64_t seed;
    const char *optimizer, *lr_scheduler;
    double learning_rate, unet_lr, text_encoder_lr;
};

/* sd_metadata_pairs - key, value, ..., NULL in scope s. */
const char *const *sd_metadata_pairs(struct sd_scope *s, const struct sd_metadata *m);

#endif
