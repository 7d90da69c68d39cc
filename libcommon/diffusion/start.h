/* start.h - where pictures start: noise by seed (ours, or PyTorch's CPU generator's) or from a file, alone or mixed
 * with a picture's latents.
 *
 * One rule: the noise of picture i depends on seed + i and i alone, so that no batch and no neighbour changes it. */
#ifndef SD_START_H
#define SD_START_H

#include "draw.h"
#include "random.h"

struct sd_start {
    const struct sd_draw *draw;
    const struct sd_sampler *sampler;
    const struct sd_draw_posterior *posterior;  /* of the picture to start from; NULL: from noise alone */
    bool torch; /* draw as PyTorch does: the posterior's sample, the noise, then each step's */
    uint64_t seed;
    int64_t pictures;
    size_t numel;                               /* latents of one picture */
    const float *noise, *step_noise; /* [pictures, numel], [calls, pictures, numel] of a file; NULL: by seed */
};

/* sd_start_load - noise, and for samplers that draw some step_noise, of latents [channels, h, w].  -1 with sd_fail:
 * shapes, not finite. */
int sd_start_load(struct sd_start *start, struct sd_scope *s, const char *path, int64_t channels, int64_t h, int64_t w);

struct sd_start_picture {
    const struct sd_start *start;
    int64_t picture;
    struct sd_torch_generator torch;
};
/* sd_start_picture - x [numel]: where picture i starts.  sd_start_fresh - for struct sd_draw_picture. */
void sd_start_picture(struct sd_start_picture *p, const struct sd_start *start, int64_t picture, float *x);
void sd_start_fresh(void *picture, int call, float *noise);

#endif
