/* trainer_private.h - the trainer in five files: trainer.c makes updates, trainer_micro.c the micro-batches they are made
 * of, trainer_device.c the same on a device, trainer_texts.c the states of frozen texts there, trainer_plan.c the plans they run
 * by: a step for each shape, the frozen text encoder for each count of chunks, each made on first use. */
#ifndef SD_TRAINER_PRIVATE_H
#define SD_TRAINER_PRIVATE_H

#include "mirror.h"
#include "model/prompt.h"
#include "step.h"

struct sd_text {                    /* one distinct caption, tokenized */
    const char *caption;
    struct sd_prompt prompt;        /* input_ids [chunks, length] */
    float *states;                  /* [chunks, length, width] where the text encoder is frozen; made on first use */
    float *device_states;           /* the same on a device */
    struct sd_text *next;
};

/* A micro-batch; its tensors where they are made on the host. */
struct sd_micro {
    struct sd_step_shape shape;
    const uint32_t *sample;         /* of the data set; not with a replay */
    uint32_t visit;
    struct sd_text **texts;
    const char **sources;           /* names for messages */
    float *latents, *noise, *mask, *values, *states;
    int32_t *ids;
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
    struct sd_resident *resident;   /* samples on a device */
    struct {                        /* an update that was asked for */
        int64_t done;
        double lr[SD_MAX_GROUPS];
    } asked[SD_MIRROR_AHEAD];       /* the oldest first */
    int ahead;
    const struct sd_dataset *data;
    const struct sd_replay *replay;
    struct sd_arena *arena;
    struct sd_train_step *steps;
    struct sd_text_states *encoders;
    struct sd_text *texts[SD_TEXT_SLOTS];
    size_t states_bytes;            /* kept states of frozen texts, at most SD_STATES_BYTES */
    struct {                        /* on a device: all states before the first step */
        bool looked, ahead;
        float *pool;                /* where they are, NULL: not made yet */
        size_t arena_bytes, activations_bytes;      /* of the encoders */
        struct sd_device_bytes bytes;               /* what is taken while they are made */
    } ahead_of_steps;
    int64_t length, width;          /* ids of a chunk, width of a state */
    struct sd_scope *epoch_scope;   /* the batches of one epoch */
    struct sd_batch *batches;
    int64_t epoch;
    uint32_t per_epoch;
};

/* trainer_micro.c: the caption's entry, tokenized on first use; NULL with sd_fail. */
struct sd_text *sd_trainer_text(struct sd_trainer *x, const char *caption);
/* ids of `chunks` chunks: those of the text, then empty ones */
void sd_trainer_ids(const struct sd_trainer *x, const struct sd_text *e, int64_t chunks, int32_t *ids);
/* the frozen text encoder has run over ids [chunks, length]: its states lie in the arena; NULL with sd_fail */
struct sd_text_states *sd_trainer_encode(struct sd_trainer *x, const int32_t *ids, int64_t chunks);
/* the weights of the loss [h, w]; the timestep; and values[SD_STEP_VALUES, batch] of sample b */
void sd_trainer_mask(const struct sd_trainer *x, const struct sd_sample *sample, float *mask);
int sd_trainer_timestep(const struct sd_trainer *x, const struct sd_sample *sample, uint32_t visit);
void sd_trainer_values(const struct sd_trainer *x, const struct sd_step_shape *shape, int64_t b, int timestep, const float *mask,
                       float *values);
/* a micro-batch and its step, bound and fed, or (on a device) with all sent that its inputs are made of; NULL with sd_fail */
struct sd_train_step *sd_trainer_ready(struct sd_trainer *x, int64_t index, struct sd_micro *k, struct sd_scope *s);

/* trainer_device.c: sends what sd_trainer_make_inputs makes the inputs of, on the device; it may be recorded.  With a replay
 * it makes nothing: the inputs were fed. */
int sd_trainer_send(struct sd_trainer *x, struct sd_train_step *step, const struct sd_micro *k);
void sd_trainer_make_inputs(struct sd_train_step *step);
void sd_trainer_sent_free(struct sd_trainer *x, struct sd_train_step *step);
void sd_trainer_resident_free(struct sd_trainer *x);
/* what both take on the device: the samples, and what is sent for a step of this shape */
size_t sd_trainer_resident_bytes(const struct sd_trainer *x);
size_t sd_trainer_sent_bytes(const struct sd_trainer *x, const struct sd_step_shape *shape);

/* trainer_texts.c: the states of all texts, where the text encoder can go then; make: else it is only planned, and gone.  For
 * the first step; -1 with sd_fail. */
int sd_trainer_texts(struct sd_trainer *x, bool make);
void sd_trainer_encoders_free(struct sd_trainer *x);

/* trainer_plan.c: bytes of the states that are kept; what is taken of the device beside the arena */
size_t sd_trainer_states_bytes(const struct sd_trainer *x);
void sd_trainer_device_bytes(const struct sd_trainer *x, size_t arena, struct sd_device_bytes *b);
/* planned, not bound; NULL with sd_fail, also where --memory is too small. */
struct sd_train_step *sd_trainer_step(struct sd_trainer *x, const struct sd_step_shape *shape);
struct sd_text_states *sd_trainer_encoder(struct sd_trainer *x, int64_t chunks, int64_t length);

#endif
