/* checkpoint_private.h - checkpoints in two files: checkpoint.c writes them with adapters merged in,
 * checkpoint_verify.c reads them again and compares. */
#ifndef SD_CHECKPOINT_PRIVATE_H
#define SD_CHECKPOINT_PRIVATE_H

#include "checkpoint.h"

struct change {                         /* one layer of the adapters, where it belongs */
    const struct sd_lora_layer *layer;
    const char *tensor;                 /* its weight's name in the file */
    int64_t first_row;                  /* of q, k, v in one tensor */
    enum { UNET, TEXT_ENCODER } component;
};

struct changes {
    const struct sd_checkpoint *checkpoint;
    struct change *change;              /* by tensor */
    size_t count;
    struct sd_checkpoint_plan *plan;    /* counted here, nothing written; NULL: written */
};

struct tensor {                         /* of the output */
    const struct sd_safetensor *base;
    const struct change *change;
    size_t count;
    enum sd_dtype dtype;
};

struct store {                          /* the weights' files of one component, as the model opened them */
    const char *name;
    int component;
    struct sd_weights *weights;
};

/* checkpoint.c.  sd_checkpoint_changes - every layer's place in the model; -1 with sd_fail where there is none. */
int sd_checkpoint_changes(struct sd_scope *s, const struct sd_checkpoint *c, struct changes *all);
/* sd_checkpoint_tensor - what becomes of tensor t of a component's file (-1: single, or without adapters). */
struct tensor sd_checkpoint_tensor(const struct changes *all, int component, const struct sd_safetensor *t);
/* sd_checkpoint_row - values of one output row. */
int64_t sd_checkpoint_row(const struct sd_safetensor *t);
int sd_checkpoint_stores(struct sd_model *m, struct store store[3]);
const char *sd_checkpoint_file_name(const char *path);

#endif
