/* metadata.h - what a trained file says about itself: kohya's ss_ keys, modelspec, the run's settings.  No clock, host, path. */
#ifndef SD_METADATA_H
#define SD_METADATA_H

#include "json.h"
#include "model/lora.h"
#include "model/model.h"

struct sd_metadata {
    const char *name;               /* ss_output_name, title */
    const struct sd_model *model;
    const char *model_hash, *vae_hash;      /* SHA-256, or NULL */
    const json_t *settings;         /* usable as --config: the run again */
    const struct sd_lora *lora;     /* NULL for an embedding */
    double alpha;                   /* of linear layers */
    int64_t steps, epochs, images, batch_size, accumulation, width, height;
    uint64_t seed;
    const char *optimizer, *lr_scheduler;
    double learning_rate, unet_lr, text_encoder_lr;
};

/* sd_metadata_pairs - key, value, ..., NULL in scope s. */
const char *const *sd_metadata_pairs(struct sd_scope *s, const struct sd_metadata *m);

#endif
