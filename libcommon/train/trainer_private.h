/* trainer_private.h - the trainer in two files: trainer.c makes micro-batches and updates, trainer_plan.c the plans
 * they run by: a step for each shape, the frozen text encoder for each count of chunks, each made on first use. */
#ifndef SD_TRAINER_PRIVATE_H
#define SD_TRAINER_PRIVATE_H

#include "mirror.h"
#include "model/prompt.h"
#include "step.h"

struct sd_text {                    /* one distinct caption, tokenized */
    const char *caption;
    struct sd_prompt prompt;        /* input_ids [chunks, length] */
    float *states;                  /* [chunks, length, width] where the text encoder is frozen; made on first use */
    struct sd_text *next;
};

/* Everything one micro-batch is made of, filled on the host. */
struct sd_micro {
    struct sd_step_shape shape;
    float *latents, *noise, *mask, *weight, *timesteps, *noisy[2], *target[2], *states;
    int32_t *ids;
    const char **sources;           /* names for messages */
};

enum { SD_TEXT_SLOTS = 1024, SD_STATES_BYTES = 64 << 20 };

struct sd_trainer {
    struct sd_scope *scope;
    struct sd_trainer_model model;
    struct sd_trainer_options options;
    struct sd_trainables *t;
    struct sd_accumulator *sums;
    struct sd_optimizer *optimizer;
    struct sd_mirror *mirror;       /* on a device, from the first update on */
    struct {                        /* a micro-batch made while the device works on the one before */
        struct sd_scope *scope;     /* NULL: none */
        int64_t index;
        struct sd_micro micro;
    } ahead;
    const struct sd_dataset *data;
    const struct sd_replay *replay;
    struct sd_arena *arena;
    struct sd_train_step *steps;
    struct sd_text_states *encoders;
    struct sd_text *texts[SD_TEXT_SLOTS];
    size_t states_bytes;            /* kept states of frozen texts, at most SD_STATES_BYTES */
    int64_t length, width;          /* ids of a chunk, width of a state */
    struct sd_scope *epoch_scope;   /* the batches of one epoch */
    struct sd_batch *batches;
    int64_t epoch;
    uint32_t per_epoch;
};

/* trainer.c: the caption's entry, tokenized on first use; NULL with sd_fail. */
struct sd_text *sd_trainer_text(struct sd_trainer *x, const char *caption);

/* trainer_plan.c: planned, not bound; NULL with sd_fail, also where --memory is too small. */
struct sd_train_step *sd_trainer_step(struct sd_trainer *x, const struct sd_step_shape *shape);
struct sd_text_states *sd_trainer_encoder(struct sd_trainer *x, int64_t chunks, int64_t length);

#endif
