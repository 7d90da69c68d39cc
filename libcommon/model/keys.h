/* keys.h - how a weight is called in each layout.
 *
 * One rule: weights are asked for by today's diffusers name (text encoders with "text_model."); here stands what else
 * the same tensor may be called, and which part of a tensor it may be. */
#ifndef SD_MODEL_KEYS_H
#define SD_MODEL_KEYS_H

#include "config.h"

enum sd_layout {
    SD_LAYOUT_DIFFUSERS, /* UNet and VAE as in a directory; the VAE's attention also by its old names */
    SD_LAYOUT_LDM_UNET,
    SD_LAYOUT_LDM_VAE,
    SD_LAYOUT_CLIP,    /* transformers' CLIP, with or without "text_model." */
    SD_LAYOUT_OPENCLIP /* q, k, v in one tensor; text_projection transposed */
};

struct sd_key_map {
    enum sd_layout layout;
    const char *prefix;                /* in front of every name, "model.diffusion_model." or "" */
    const struct sd_unet_config *unet; /* for SD_LAYOUT_LDM_UNET */
    const struct sd_vae_config *vae;   /* for SD_LAYOUT_LDM_VAE */
};

enum { SD_KEY_MAX = 256 };

struct sd_key {
    char name[SD_KEY_MAX];
    int part, parts; /* rows [part/parts, (part+1)/parts) of the tensor; parts is 1 for all of it */
    bool transposed;
};

/* sd_key_spell - the i-th spelling (from 0) of `name` in that layout; false when there are no more.  A name with no
 * counterpart has none. */
bool sd_key_spell(const struct sd_key_map *m, const char *name, int i, struct sd_key *key);

/* sd_key_match - compare text with a pattern in which # stands for a decimal number (stored in numbers) and a trailing
 * * for any rest; the rest, or NULL when it does not match. */
const char *sd_key_match(const char *text, const char *pattern, int *numbers);

#endif
