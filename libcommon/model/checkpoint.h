/* checkpoint.h - a whole model written again, with adapters in its weights.
 *
 * One rule: what is not changed keeps its bytes: names, order of bytes, extra keys, other files.  Nothing is held whole
 * in memory: weights are changed piece by piece while they are written. */
#ifndef SD_MODEL_CHECKPOINT_H
#define SD_MODEL_CHECKPOINT_H

#include "lora.h"
#include "model.h"

struct sd_checkpoint {
    struct sd_model *model;             /* a folder gives a folder, a single file a single file */
    const struct sd_lora *lora;         /* what is added, with its own scales; NULL for nothing */
    bool convert;                       /* UNet and text encoder to `dtype`; the VAE stays as it is */
    enum sd_dtype dtype;
    const char *const *metadata; /* key, value, ..., NULL: put beside the base's own pairs in every file written anew */
};

/* sd_checkpoint_check - every layer of the adapters is one of the model, and of its shape; -1 with sd_fail that names
 * it. */
int sd_checkpoint_check(const struct sd_checkpoint *c);
/* sd_checkpoint_plan - what sd_checkpoint_save would do, and the names in the adapters that the model has no layer for,
 * or another shape of; those are left out of the sums.  Reads headers and configurations only. */
struct sd_checkpoint_plan {
    uint64_t read, written;             /* bytes of files */
    size_t memory;                      /* bytes, of the piece that is being changed */
    size_t tensors, changed;            /* written; those of them with adapters */
    double flops;
    size_t unmatched;
    const char **path;                  /* of these layers, in the scope given */
};
int sd_checkpoint_plan(struct sd_scope *s, const struct sd_checkpoint *c, struct sd_checkpoint_plan *plan);
/* sd_checkpoint_save - under its name when complete; a folder in its place must be a model. */
int sd_checkpoint_save(const struct sd_checkpoint *c, const char *path);
/* sd_checkpoint_verify - read it again: every tensor that was not to change has its bytes, and every other is
 * W + scale up down, computed here in double, to one rounding of its dtype.  *tensors: how many were compared. */
int sd_checkpoint_verify(const struct sd_checkpoint *c, const char *path, size_t *tensors);

#endif
