/* mirror.h - trainables and optimizer on a device: the end of a training step without the host.
 *
 * One rule: between sd_mirror_open and sd_mirror_read the device's copy is the true one; the host's is what was last read.
 * What changes from step to step is written as one struct; the rest is recorded once and replayed (kernels/update.h, whose
 * sums are in another order than the CPU's: a run does not change its device).  Losses of micro-batches are added in their
 * order; gradients in the tree of accumulate.h. */
#ifndef SD_MIRROR_H
#define SD_MIRROR_H

#include "device_bytes.h"
#include "optimizer.h"
#include "plan.h"
#include "repeat.h"

struct sd_mirror;

/* sd_mirror_open - places on the device, before any plan over the trainables is bound; filled by sd_mirror_write.  dtype: what
 * kernels read the parameters as. */
struct sd_mirror *sd_mirror_open(struct sd_device *d, struct sd_optimizer *o, enum sd_dtype dtype);
void sd_mirror_free(struct sd_mirror *m);
/* sd_mirror_bytes - what it takes on the device, with the sums of so many micro-batches an update. */
void sd_mirror_bytes(const struct sd_optimizer *o, enum sd_dtype dtype, uint32_t accumulation, struct sd_device_bytes *b);

/* sd_mirror_write - value and state of the optimizer, host to device (start, resume).  sd_mirror_read - back (to save). */
void sd_mirror_write(struct sd_mirror *m);
void sd_mirror_read(struct sd_mirror *m);

/* sd_mirror_accumulate - takes the gradient of one micro-batch, and `batch` losses that lie at `loss` on the device. */
void sd_mirror_accumulate(struct sd_mirror *m, const float *loss, int64_t batch);

struct sd_mirror_step {             /* of one update */
    double max_norm;
    bool moves[SD_MAX_GROUPS];
    double lr[SD_MAX_GROUPS];
};
struct sd_mirror_result {
    int64_t samples;
    double loss, grad_norm, group_norm[SD_MAX_GROUPS];
    bool finite;                    /* else nothing was moved */
};
/* sd_mirror_update - ends the window: mean, norms, clipping, optimizer; asked for, not waited for.  sd_mirror_wait - for the
 * oldest result that was not waited for, of at most SD_MIRROR_AHEAD.  From the first that is not finite on nothing is moved; when
 * it is met, those behind it are dropped. */
enum { SD_MIRROR_AHEAD = 3 };
void sd_mirror_update(struct sd_mirror *m, const struct sd_mirror_step *step);
void sd_mirror_wait(struct sd_mirror *m, struct sd_mirror_result *r);
/* sd_mirror_whole - a window of one micro-batch, accumulate and update in one: w->steps, over plans
 * bound in w->arena, whose losses lie at w->loss, and the end of the window are one recording, kept in *repeat:
 * one for each plan, ended by the caller. */
struct sd_mirror_work {
    void (*steps)(void *argument);
    void *argument;
    const struct sd_arena *arena;
    const float *loss;
    int64_t batch;
};
void sd_mirror_whole(struct sd_mirror *m, const struct sd_mirror_step *step, struct sd_repeat *repeat,
                     const struct sd_mirror_work *w);
/* sd_mirror_clear - the gradient becomes zero (after a scan). */
void sd_mirror_clear(struct sd_mirror *m);

#endif
