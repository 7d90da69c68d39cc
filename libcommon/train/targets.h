/* targets.h - which layers get an adapter, and the adapters themselves as trainables.
 *
 * A pattern is a module path or its end after a dot; * and ? do not cross dots; "te:" in front means the text encoder.
 * One rule: a pattern that matches nothing is an error, so a mistyped name cannot train less than was asked for. */
#ifndef SD_TARGETS_H
#define SD_TARGETS_H

#include "model/lora.h"
#include "model/weights.h"
#include "trainables.h"

struct sd_targets {
    const char *patterns;           /* "to_q,to_k,to_v,to_out.0" */
    int64_t rank, conv_rank;        /* conv_rank 0: rank; for kernels larger than 1x1 */
    double alpha, conv_alpha;       /* 0: the rank */
    uint64_t seed;
    bool *conv; /* set by sd_targets_add: the i-th adapter's layer is a convolution (1x1 too) in the file */
};

/* sd_targets_match - does `pattern` (without te:) match the module path? */
bool sd_targets_match(const char *pattern, const char *path);

/* sd_targets_add - for every matched layer of unet and text (text may be NULL; both accounted for): factors in groups
 * "unet" and "text_encoder", and an adapter.  Returns how many layers; -1 with sd_fail that names a pattern without
 * match. *with_text: some layer of the text encoder was matched. */
int64_t sd_targets_add(struct sd_targets *o, struct sd_weights *unet, struct sd_weights *text, struct sd_trainables *t,
                       struct sd_adapters *adapters, bool *with_text);
/* sd_targets_start - once the trainables are allocated: A uniform in +-1/sqrt(fan_in) (kaiming, a = sqrt 5), B zero; or
 * the factors of `init`, whose layers and ranks must be these.  -1 with sd_fail. */
int sd_targets_start(const struct sd_targets *o, struct sd_adapters *adapters, const struct sd_lora *init);

/* sd_targets_lora - the adapters as they are now (values are referenced, not copied). */
struct sd_lora *sd_targets_lora(struct sd_scope *s, const struct sd_targets *o, const struct sd_adapters *adapters);

#endif
