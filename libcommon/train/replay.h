/* replay.h - micro-batches recorded by another trainer, for comparing step by step.
 *
 * A folder holds step_%04d.latents, .noise, .timesteps, .input_ids from 0000 as safetensors files of one tensor each:
 * latents (scaled) and noise F32 [B,4,h,w], timesteps I64 [B], input_ids I64 [B,L].  Nothing else feeds the step then:
 * no dropout, no offset, no posterior. */
#ifndef SD_REPLAY_H
#define SD_REPLAY_H

#include "diag.h"

struct sd_replay {
    const char *folder;
    int64_t count;                  /* micro-batches found */
};

struct sd_replay_step {
    int64_t batch, channels, height, width, length;
    const float *latents, *noise;   /* NCHW */
    const int64_t *timesteps, *input_ids;
};

/* sd_replay_open - count the steps; every one must be whole.  sd_replay_step - read one into scope s.  NULL / -1 with sd_fail. */
struct sd_replay *sd_replay_open(struct sd_scope *s, const char *folder);
int sd_replay_step(const struct sd_replay *r, struct sd_scope *s, int64_t index, struct sd_replay_step *step);

#endif
