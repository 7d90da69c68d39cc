/* model.h - a Stable Diffusion model on disk: its family, its configurations, its components opened when wanted.
 *
 * One rule: a component is handed out only when all its tensors are accounted for: a missing one or a wrong shape is an
 * error, an unused one is warned of by name, once. */
#ifndef SD_MODEL_MODEL_H
#define SD_MODEL_MODEL_H

#include "clip_text.h"
#include "unet.h"
#include "vae.h"

enum sd_family { SD_FAMILY_SD1, SD_FAMILY_SD2 };

struct sd_model_options {
    const char *vae;     /* --vae: folder or file whose VAE replaces the model's; NULL for none */
    const char *variant; /* preferred file variant, "fp16"; NULL for none */
    const char *config;  /* diffusers directory whose config.json files describe a single file; NULL: its family's */
};

struct sd_model {
    struct sd_scope *scope;
    const char *name; /* as given */
    const char *path; /* what was found */
    bool single_file;
    enum sd_family family;
    struct sd_unet_config unet_config;
    struct sd_vae_config vae_config;
    struct sd_clip_text_config text_config;
    const json_t *scheduler; /* scheduler_config.json, or the published one of the family */
    bool v_prediction;       /* scheduler's prediction_type */
    const char *tokenizer;   /* its folder; NULL when the model has none (single files) */
    struct sd_model_parts *parts;
};

/* sd_model_open - name: a diffusers directory, a single file, or org/name[@revision] in the Hub's cache on disk.
 * options may be NULL.  Reads configurations only.  NULL with sd_fail. */
struct sd_model *sd_model_open(struct sd_scope *s, const char *name, const struct sd_model_options *options);

/* The components, mapped and checked on first use; NULL with sd_fail. */
struct sd_unet *sd_model_unet(struct sd_model *m);
struct sd_vae *sd_model_vae(struct sd_model *m);
struct sd_clip_text *sd_model_text_encoder(struct sd_model *m);

/* sd_family_name - "SD1", "SD2". */
const char *sd_family_name(enum sd_family f);

/* sd_vae_open - a VAE alone, as --vae names it: component folder, pipeline folder, file in diffusers' or LDM's layout,
 * or a whole checkpoint.  `like` (may be NULL) is the configuration of a file that has none beside it. */
struct sd_vae *sd_vae_open(struct sd_scope *s, const char *name, const struct sd_vae_config *like);

/* sd_unet_account, sd_vae_account, sd_clip_text_account - ask for every weight once (by describing the component for a
 * small input): -1 with sd_fail when one is missing or misshapen. */
int sd_unet_account(struct sd_unet *unet);
int sd_vae_account(struct sd_vae *vae);
int sd_clip_text_account(struct sd_clip_text *text);

#endif
