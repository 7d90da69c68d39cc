/* infotext.h - the settings of a picture as text inside it: A1111's "parameters", which viewers and web interfaces read
 * back. */
#ifndef SD_INFOTEXT_H
#define SD_INFOTEXT_H

#include "model/concepts.h"

struct sd_infotext {
    const char *prompt, *negative;      /* negative NULL or empty: no such line */
    const char *sampler;                /* our name */
    int steps, clip_skip;               /* clip_skip as diffusers counts; A1111 counts one more */
    double guidance_scale, guidance_rescale;
    double strength;                    /* of img2img; 0: none */
    int64_t seed, width, height;
    bool torch;                         /* PyTorch's generator on the CPU */
    const char *model_hash;             /* SHA-256, or NULL */
    const struct sd_concepts *concepts; /* or NULL */
    const struct sd_concept_set *set;   /* its adapters, or NULL */
};
/* sd_infotext - in scope s. */
const char *sd_infotext(struct sd_scope *s, const struct sd_infotext *i);

#endif
