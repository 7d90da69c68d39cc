/* step.h - the graph of one micro-batch: noise to gradients, for one shape of batch. */
#ifndef SD_TRAIN_STEP_H
#define SD_TRAIN_STEP_H

#include "repeat.h"
#include "trainer.h"

struct sd_step_shape {
    int64_t batch, channels, height, width;     /* latents */
    int64_t chunks, length;                     /* text: chunks of `length` ids a sample */
    bool masked;
};

/* noisy = a latents + s noise; the target likewise */
enum sd_step_value {
    SD_NOISY_LATENTS_BY, SD_NOISY_NOISE_BY, SD_TARGET_LATENTS_BY, SD_TARGET_NOISE_BY, SD_STEP_TIMESTEP, SD_LOSS_WEIGHT,
    SD_STEP_VALUES
};

/* Inputs, NHWC unless said. */
struct sd_train_step {
    struct sd_step_shape shape;
    struct sd_graph *graph;
    struct sd_plan *plan;
    struct sd_tensor *latents, *noise;
    struct sd_tensor *values;                   /* [SD_STEP_VALUES, batch], rows as below */
    struct sd_tensor *mask;
    struct sd_tensor *input_ids;                /* [batch * chunks, length] I32, where the text encoder learns */
    struct sd_tensor *states;                   /* [batch, chunks * length, width] where it does not */
    struct sd_tensor *loss;                     /* [batch] */
    bool bound;
    struct sd_repeat whole, alone;              /* with the update behind it, and without, on a device */
    struct sd_sent *sent;                       /* what it is made from there (trainer_device.c), or NULL */
    struct sd_train_step *next;
};

/* NULL with sd_fail.  The step is planned, not bound. */
struct sd_train_step *sd_train_step_new(struct sd_scope *s, const struct sd_trainer_model *m,
                                        const struct sd_step_shape *shape, int clip_skip, int64_t memory);
void sd_train_step_free(struct sd_train_step *step);

/* The frozen text encoder on its own: ids [chunks, length] to states. */
struct sd_text_states {
    struct sd_graph *graph;
    struct sd_plan *plan;
    struct sd_tensor *input_ids, *states;
    int64_t chunks, length;
    bool bound;
    struct sd_text_states *next;
};
struct sd_text_states *
sd_text_states_new(struct sd_scope *s, const struct sd_trainer_model *m, int64_t chunks, int64_t length, int clip_skip);
void sd_text_states_free(struct sd_text_states *x);

#endif
