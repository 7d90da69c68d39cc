/* draw.h - prompts to pictures: text states, the denoising loop, the decoder, as plans over one arena.
 *
 * One rule: picture i of a batch is picture i alone: its noise comes from its own seed, and nothing is averaged over a
 * batch. */
#ifndef SD_DRAW_H
#define SD_DRAW_H

#include "device_bytes.h"
#include "image.h"
#include "model/model.h"
#include "model/prompt.h"
#include "plan.h"
#include "samplers.h"

struct sd_draw_model {
    struct sd_model *model;
    struct sd_tokenizer *tokenizer;             /* new tokens already added */
    const struct sd_adapters *adapters;         /* or NULL: sd_draw_with */
    struct sd_param *rows;                      /* learned tokens, or NULL */
};

struct sd_draw_options {
    int64_t width, height;                      /* pixels */
    const struct sd_sampler *sampler;
    double guidance_scale, guidance_rescale;    /* guidance_scale at most 1: no negative prompt */
    int clip_skip;
    struct sd_compute compute;
};

/* sd_draw_size - can the model draw that size?  -1 with sd_fail: the VAE's factor must divide it, and leave the UNet
 * something. */
int sd_draw_size(const struct sd_model *m, int64_t width, int64_t height);

struct sd_draw;
/* NULL with sd_fail: such a size, components that do not fit. */
struct sd_draw *sd_draw_new(struct sd_scope *s, const struct sd_draw_model *m, const struct sd_draw_options *o);

/* sd_draw_with - what is planned and run from here on has these adapters; NULL: none.  Texts too: their states are those
 * of the adapters that they were made with. */
void sd_draw_with(struct sd_draw *d, const struct sd_adapters *adapters);

/* sd_draw_plan - plan what is to be run, before anything is: the text encoder for prompts of so many chunks, the UNet
 * for batches of `count` pictures with prompts and negative prompts of so many chunks, the decoder (count > 0), the
 * encoder. -1 with sd_fail: a component is missing, or does not fit.  sd_draw_report - what all that was planned takes.
 */
struct sd_draw_batch {
    int count;
    int64_t chunks, negative_chunks;
};
struct sd_draw_report {
    size_t arena_bytes, activations_bytes;      /* of the largest */
    size_t kv_bytes;                            /* beside them: keys and values of the texts of a batch */
    double text_flops, step_flops, decode_flops;
    struct sd_device_bytes device;
};
int sd_draw_plan_text(struct sd_draw *d, int64_t chunks);
int sd_draw_plan_batch(struct sd_draw *d, const struct sd_draw_batch *b);
int sd_draw_plan_encode(struct sd_draw *d);
struct sd_draw_report sd_draw_report(const struct sd_draw *d);

/* sd_draw_text - states [chunks * length, width] of a prompt in scope s, weights applied (A1111's emphasis "Original").
 */
struct sd_draw_text {
    int64_t chunks;
    const float *states;
};
int sd_draw_text(struct sd_draw *d, struct sd_scope *s, const struct sd_prompt *prompt, struct sd_draw_text *text);

/* Latents are NCHW at this border, as files have them: [4, h, w] a picture. */
struct sd_draw_picture {
    const struct sd_draw_text *prompt, *negative;   /* negative NULL where guidance_scale <= 1 */
    const float *start; /* [4, h, w]: noise, or a picture's latents and noise mixed (sd_sampler_start) */
    /* fresh noise of call i into noise[4 * h * w], for samplers that draw some */
    void (*fresh)(void *user, int call, float *noise);
    void *user;
    float *latents;                             /* out */
};
/* sd_draw_pictures - `count` pictures in one batch; all prompts have the same number of chunks, all negative ones too
 * (the two may differ: they are then run one after the other).  -1 with sd_fail that names the module that is not
 * finite. progress (or NULL) is called after each model call. */
int sd_draw_pictures(struct sd_draw *d, const struct sd_draw_picture *pictures, int count,
                     void (*progress)(void *user, int call, int calls), void *user);

/* sd_draw_decode - latents to an RGB picture in scope s. */
struct sd_image *sd_draw_decode(struct sd_draw *d, struct sd_scope *s, const float *latents);

/* sd_draw_encode - the posterior of a picture of the size drawn: mean and deviation [4, h, w], in scope s.
 * sd_draw_sample - a sample of it, scaled: latents = (mean + deviation * noise) * scaling_factor. */
struct sd_draw_posterior {
    float *mean, *deviation;
};
int sd_draw_encode(struct sd_draw *d, struct sd_scope *s, const struct sd_image *image, struct sd_draw_posterior *p);
void sd_draw_sample(const struct sd_draw *d, const struct sd_draw_posterior *p, const float *noise, float *latents);

#endif
