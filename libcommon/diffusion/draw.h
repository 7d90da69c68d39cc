/* draw.h - prompts to pictures: text states, the denoising loop, the decoder, as plans over one arena.
 *
 * One rule: picture i of a batch is picture i alone: its noise comes from its own seed, and nothing is averaged over a batch. */
#ifndef SD_DRAW_H
#define SD_DRAW_H

#include "image.h"
#include "model/model.h"
#include "model/prompt.h"
#include "plan.h"
#include "samplers.h"

struct sd_draw_model {
    struct sd_model *model;
    struct sd_tokenizer *tokenizer;             /* new tokens already added */
    const struct sd_adapters *adapters;         /* or NULL */
    struct sd_param *rows;                      /* learned tokens, or NULL */
};

struct sd_draw_options {
    int64_t width, height;                      /* pixels */
    enum sd_prompt_syntax syntax;
    const struct sd_sampler *sampler;
    double guidance_scale, guidance_rescale;
    int clip_skip;
    int64_t memory;                             /* bytes for activations; 0: no limit */
};

struct sd_draw;
/* NULL with sd_fail: sizes that the VAE's factor does not divide, components that do not fit. */
struct sd_draw *sd_draw_new(struct sd_scope *s, const struct sd_draw_model *m, const struct sd_draw_options *o);

/* Text states of a prompt: [chunks * length, width], weights applied (A1111's emphasis "Original"). */
struct sd_draw_text {
    int64_t chunks;
    float *states;
    size_t cut;
    const char *cut_text;
};
int sd_draw_text(struct sd_draw *d, struct sd_scope *s, const char *prompt, struct sd_draw_text *text);

/* Latents are NCHW at this border, as files have them: [4, h, w] a picture. */
struct sd_draw_picture {
    const struct sd_draw_text *prompt, *negative;   /* negative NULL where guidance_scale <= 1 */
    const float *start;                         /* [4, h, w]: noise, or a picture's latents and noise mixed (sd_sampler_start) */
    /* fresh noise of call i into noise[4 * h * w], for samplers that draw some */
    void (*fresh)(void *user, int call, float *noise);
    void *user;
    float *latents;                             /* out */
};
/* sd_draw_pictures - `count` pictures in one batch; all texts have the same number of chunks.  -1 with sd_fail: not finite.
 * progress (or NULL) is called after each model call. */
int sd_draw_pictures(struct sd_draw *d, struct sd_draw_picture *pictures, int count,
                     void (*progress)(void *user, int call, int calls), void *user);

/* sd_draw_decode - latents to an RGB picture in scope s.  sd_draw_encode - a picture to scaled latents: mean + std * noise. */
struct sd_image *sd_draw_decode(struct sd_draw *d, struct sd_scope *s, const float *latents);
int sd_draw_encode(struct sd_draw *d, const struct sd_image *image, const float *noise, float *latents);

/* sd_draw_plan - plan everything for batches of `count` without running; sizes for --plan. */
struct sd_draw_plan {
    size_t arena_bytes, activations_bytes;
    double step_flops, decode_flops, text_flops;
};
int sd_draw_plan(struct sd_draw *d, int count, int chunks, bool encode, struct sd_draw_plan *p);

#endif
