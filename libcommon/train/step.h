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

/* Inputs, NHWC and [batch] unless said. */
struct sd_train_step {
    struct sd_step_shape shape;
    struct sd_graph *graph;
    struct sd_plan *plan;
    struct sd_tensor *latents, *noise;
    struct sd_tensor *noisy_latents_by, *noisy_noise_by;    /* noisy = a latents + s noise */
    struct sd_tensor *target_latents_by, *target_noise_by;  /* target likewise */
    struct sd_tensor *timesteps, *weight, *mask;
    struct sd_tensor *input_ids;                /* [batch * chunks, length] I32, where the text encoder learns */
    struct sd_tensor *states;                   /* [batch, chunks * length, width] where it does not */
    struct sd_tensor *loss;                     /* [batch] */
    bool bound;
    struct sd_repeat whole;                     /* with the update behind it, on a device */
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
