/* config.h - what config.json says of a model, checked.
 *
 * One rule: every field is honoured, without effect here (said which), or refused by name; a field nobody knows is a
 * note. Missing fields take diffusers' and transformers' defaults, so a table entry for a published family is a few
 * fields of JSON. */
#ifndef SD_MODEL_CONFIG_H
#define SD_MODEL_CONFIG_H

#include "diag.h"
#include "json.h"

enum { SD_MAX_LEVELS = 8 };

struct sd_unet_config {
    int in_channels, out_channels;
    int sample_height, sample_width; /* sample_size, in latents; 0 when the file does not say */
    int levels;
    int block_out_channels[SD_MAX_LEVELS];
    bool down_attention[SD_MAX_LEVELS];       /* CrossAttnDownBlock2D or DownBlock2D */
    bool up_attention[SD_MAX_LEVELS];         /* in the order of up_blocks: deepest level first */
    int layers_per_block[SD_MAX_LEVELS];      /* down; up blocks have one more */
    int transformer_layers[SD_MAX_LEVELS];    /* transformer_layers_per_block, by level */
    int up_transformer_layers[SD_MAX_LEVELS]; /* in the order of up_blocks */
    int heads[SD_MAX_LEVELS];                 /* attention_head_dim, historical misnomer, by level */
    int cross_attention_dim;
    int time_embed_dim;
    int norm_num_groups;
    double norm_eps;
    bool mid_block; /* false: mid_block_type null */
    bool use_linear_projection;
    bool flip_sin_to_cos;
    double freq_shift;
    int conv_in_kernel, conv_out_kernel;
};

struct sd_vae_config {
    int in_channels, out_channels, latent_channels;
    int sample_height, sample_width; /* in pixels */
    int levels;
    int block_out_channels[SD_MAX_LEVELS];
    int layers_per_block; /* encoder; the decoder has one more */
    int norm_num_groups;
    double scaling_factor;
    bool use_quant_conv, use_post_quant_conv, mid_block_add_attention;
};

struct sd_clip_text_config {
    int vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, max_position_embeddings;
    int projection_dim;
    bool quick_gelu; /* hidden_act quick_gelu, else gelu */
    double layer_norm_eps;
    int64_t bos_token_id, eos_token_id; /* eos 2: an old file, the end token is the tokenizer's */
};

/* sd_*_config_read - from a JSON object; -1 with sd_fail naming the field, its value and what would be taken. */
int sd_unet_config_read(const json_t *object, struct sd_unet_config *c);
int sd_vae_config_read(const json_t *object, struct sd_vae_config *c);
int sd_clip_text_config_read(const json_t *object, struct sd_clip_text_config *c);

/* sd_vae_factor - pixels per latent: 8 for four levels. */
int sd_vae_factor(const struct sd_vae_config *c);

#endif
