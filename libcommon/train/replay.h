/* replay.h - micro-batches recorded by another trainer, for comparing step by step.
 *
 * One safetensors file with tensors step_%04d.latents (scaled) and .noise F32 [B,4,h,w], .timesteps I64 [B], .input_ids
 * I64 [B,L], numbered from 0000.  Nothing else feeds the step then: no dropout, no offset, no posterior. */
#ifndef SD_REPLAY_H
#define SD_REPLAY_H

#include "diag.h"
#include "safetensors.h"

struct sd_replay {
    struct sd_safetensors *file;
    int64_t count;                  /* micro-batches found */
};

struct sd_replay_step {
    int64_t batch, channels, height, width, length;
    const float *latents, *noise;   /* NCHW */
    const int64_t *timesteps, *input_ids;
};

/* sd_replay_open - count the steps; every one must be whole and no tensor left over.  sd_replay_step - read one into
 * scope s. NULL / -1 with sd_fail. */
struct sd_replay *sd_replay_open(struct sd_scope *s, const char *path);
int sd_replay_step(const struct sd_replay *r, struct sd_scope *s, int64_t index, struct sd_replay_step *step);

#endif
