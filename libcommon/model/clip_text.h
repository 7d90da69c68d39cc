/* clip_text.h - the text encoder of CLIP: L (quick_gelu) and H (gelu), any size its configuration says. */
#ifndef SD_MODEL_CLIP_TEXT_H
#define SD_MODEL_CLIP_TEXT_H

#include "layers.h"

struct sd_clip_text {
    struct sd_clip_text_config config;
    struct sd_weights *weights;
};

/* sd_clip_text - the states a UNet is conditioned on.
 *   ids        [B, L] SD_I32, L at most max_position_embeddings
 *   rows       learned tokens [n, D], read by ids vocab_size .. vocab_size+n-1; NULL for none
 *   clip_skip  layers left out at the end, as diffusers counts: 0 none, at most num_hidden_layers
 *   returns    final_layer_norm of that layer's states, [B, L, D], in the graph's activations */
struct sd_tensor *sd_clip_text(struct sd_graph *g, struct sd_clip_text *text, const struct sd_adapters *adapters,
                               struct sd_tensor *ids, struct sd_param *rows, int clip_skip);

#endif
