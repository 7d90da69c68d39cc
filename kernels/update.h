/* update.h - the end of a training step on the device: sums of gradients, norm, clipping, AdamW, Prodigy, over flat buffers.
 *
 * One rule: what changes from step to step (rates, corrections, samples, who stands still) is read from a struct sd_update_values
 * in device memory, which the host writes before the step; so all of this may be recorded once and replayed.
 * Everything here is asked of the device's queue; pointers are device memory unless said.  Buffers have any alignment of floats.
 *
 * Bits: what is done element by element is the CPU's, operation by operation (accumulate.c, adamw.c, prodigy.c).  Sums over a
 * buffer are made in double in a tree fixed by its length, but another than reduce.c's: norms, and Prodigy's d and
 * numerator, differ from the CPU's in the last bits of a double.  With use_bias_correction so does pow(). */
#ifndef SD_UPDATE_H
#define SD_UPDATE_H

#include "adamw.h"
#include "device.h"
#include "prodigy.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SD_UPDATE_GROUPS = 4 };

struct sd_update_group {            /* of one group, at this step */
    int64_t moves;                  /* 0: it stands still */
    double lr;                      /* Prodigy: the multiplier of d */
    float decay, eps, rest1, beta2, rest2, root, step, unused;      /* AdamW: set by sd_update_values_adamw */
};
struct sd_update_values {           /* written by the host before each step */
    int64_t samples;                /* gradients and loss are sums over as many */
    double max_norm;                /* 0: no clipping */
    struct sd_update_group group[SD_UPDATE_GROUPS];
};
struct sd_update_result {           /* zeroed at first; read by the host when it wants to */
    double squares[SD_UPDATE_GROUPS], group_norm[SD_UPDATE_GROUPS];
    double loss, grad_norm, clip;
    int64_t finite;                 /* loss and norm are, and were at every step since this was zeroed: else nothing was moved */
    int64_t broken;
};

/* sd_update_values_adamw - host memory: what sd_adamw_step makes of a (its grad_scale is not looked at). */
void sd_update_values_adamw(struct sd_update_group *v, const struct sd_adamw *a);

/* sd_update_add - to += from.  sd_update_mean - x /= samples, where there are any.
 * sd_update_loss - *sum (store: =, else +=) loss[0] + ... + loss[n-1], in that order, in double. */
void sd_update_add(struct sd_device *d, float *to, const float *from, size_t n);
void sd_update_mean(struct sd_device *d, float *x, size_t n, const struct sd_update_values *v);
void sd_update_loss(struct sd_device *d, double *sum, const float *loss, size_t n, bool store);

/* sd_update_squares - r->squares[group] = sum of x[i]^2.  room: sd_update_room(n) doubles of scratch, for sd_update_prodigy too. */
size_t sd_update_room(size_t n);
void sd_update_squares(struct sd_device *d, struct sd_update_result *r, int group, const float *x, size_t n, double *room);
/* sd_update_clip - from squares of `groups` groups and the sum of losses (NULL: none): the norms, the mean loss, the factor on
 * gradients min(1, max_norm / (norm + 1e-6)), and whether all is finite. */
void sd_update_clip(struct sd_device *d, struct sd_update_result *r, int groups, const double *loss, const struct sd_update_values *v);

/* sd_update_adamw - one step of one group; nothing is written when it stands still or r is not finite. */
void sd_update_adamw(struct sd_device *d, float *value, const float *grad, float *exp_avg, float *exp_avg_sq, size_t n,
                     const struct sd_update_values *v, const struct sd_update_result *r, int group);

/* sd_update_prodigy - the same; *state starts as sd_prodigy_start makes it.  *work: scratch; a: host memory, constants of the run;
 * b: host memory, of device pointers. */
struct sd_prodigy_work {
    double dlr;
    float scale, m, v, s, decay, step, eps;
    int gathers, moves;
    int unused;
};
void sd_update_prodigy(struct sd_device *d, struct sd_prodigy_state *state, struct sd_prodigy_work *work, const struct sd_prodigy *a,
                       const struct sd_prodigy_buffers *b, const struct sd_update_values *v, const struct sd_update_result *r, int group,
                       double *room);

#ifdef __cplusplus
}
#endif
#endif
