/* trainer.h - one optimizer update after another: noise, forward, loss, backward, accumulate, clip, step.
 *
 * One rule: an update is a function of (settings, seed, data, update index, trainable state) and of nothing else: every
 * random number comes from (seed, purpose, sample, epoch), so a run that was killed and resumed writes the
 * same bytes. */
#ifndef SD_TRAINER_H
#define SD_TRAINER_H

#include "accumulate.h"
#include "device_bytes.h"
#include "dataset.h"
#include "diffusion/losses.h"
#include "lr_scheduler.h"
#include "optimizer.h"
#include "replay.h"
#include "model/clip_text.h"
#include "model/tokenizer.h"
#include "model/unet.h"
#include "plan.h"

/* What is trained on what; everything outlives the trainer. */
struct sd_trainer_model {
    struct sd_unet *unet;
    struct sd_clip_text *text;
    struct sd_tokenizer *tokenizer;             /* new tokens already added */
    const struct sd_noise_scheduler *scheduler;
    const struct sd_adapters *adapters;         /* or NULL */
    struct sd_param *rows;                      /* learned tokens [n, D], or NULL */
    bool text_trains;                           /* rows, or adapters on the text encoder */
    double scaling_factor;
    struct sd_compute compute;
};

struct sd_trainer_options {
    uint64_t seed;
    uint32_t batch_size, accumulation;          /* samples of a micro-batch, micro-batches of an update */
    int64_t updates;                            /* of the whole run: schedules and fractions refer to it */
    double snr_gamma;                           /* 0: constant weights */
    double noise_offset;
    bool masked;
    enum sd_mask_normalize mask_normalize;
    double unmasked_weight;
    double caption_dropout;
    const char *dropped_caption;                /* "" or the trigger */
    int clip_skip;
    double max_grad_norm;                       /* 0: no clipping */
    double learning_rate[SD_MAX_GROUPS];        /* by group of the trainables */
    double until[SD_MAX_GROUPS];                /* fraction of the run after which a group stands still */
    const char *lr_scheduler;
    int64_t warmup;
    struct sd_optimizer_options optimizer;
    int64_t memory;                             /* bytes for everything but the mapped weights, 0: no limit */
};

struct sd_update {                              /* what an update did */
    int64_t step;                               /* from 1 */
    double loss;                                /* mean over its samples, weighted */
    double grad_norm, group_norm[SD_MAX_GROUPS];    /* before clipping */
    double lr[SD_MAX_GROUPS];
    int64_t samples;
};

struct sd_trainer;

/* Either a dataset or a replay.  NULL with sd_fail. */
struct sd_trainer *
sd_trainer_new(struct sd_scope *s, const struct sd_trainer_model *m, const struct sd_trainer_options *o,
               struct sd_trainables *t, const struct sd_dataset *d, const struct sd_replay *replay);
struct sd_optimizer *sd_trainer_optimizer(struct sd_trainer *t);

/* sd_trainer_plan - describe and plan the largest step without running it, for --plan; -1 with sd_fail. */
struct sd_trainer_plan {
    size_t peak_bytes;                          /* of everything but the mapped weights */
    size_t arena_bytes, activations_bytes;
    size_t states_bytes;                        /* states of frozen texts */
    double flops;                               /* of one update */
    int buckets;                                /* different shapes of a step */
    struct sd_device_bytes device;              /* on a device, what peak_bytes is the sum of */
};
int sd_trainer_plan(struct sd_trainer *t, struct sd_trainer_plan *p);      /* needs the dataset or the replay */

/* sd_trainer_ask - the update after `done` (0: the first) is asked for, in order; at most sd_trainer_ahead may be that were not
 * answered: one on the CPU, more on a device, which is given its next step before the host looks at the last.  -1 with sd_fail
 * when it cannot be made; those before it are to be answered still.
 * sd_trainer_answer - what the oldest of them did.  -1 with sd_fail when loss or gradient is not finite, with the samples and
 * the first bad module in the reason: neither it nor any that was asked for behind it took place, and none is left.
 * sd_trainer_update - both at once. */
int sd_trainer_ahead(const struct sd_trainer *t);
int sd_trainer_ask(struct sd_trainer *t, int64_t done);
int sd_trainer_answer(struct sd_trainer *t, struct sd_update *u);
int sd_trainer_update(struct sd_trainer *t, int64_t done, struct sd_update *u);
/* sd_trainer_read - what was learned so far comes back from the device, into trainables and optimizer: before they are saved
 * or looked at; when no update is left unanswered.  Nothing to do on the CPU. */
void sd_trainer_read(struct sd_trainer *t);

#endif
