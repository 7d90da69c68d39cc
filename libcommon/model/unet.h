/* unet.h - UNet2DConditionModel: the UNets of SD1 and SD2 of any size their configuration says. */
#ifndef SD_MODEL_UNET_H
#define SD_MODEL_UNET_H

#include "layers.h"

struct sd_unet {
    struct sd_unet_config config;
    struct sd_weights *weights;
};

/* sd_unet - model_pred (noise or v, as the model was trained).
 *   sample                  [B, h, w, in_channels], any h and w
 *   timesteps               [B] f32
 *   encoder_hidden_states   [B, L, cross_attention_dim]
 *   returns                 [B, h, w, out_channels] F32; sample and states may be F32 or the graph's activations */
struct sd_tensor *sd_unet(struct sd_graph *g, struct sd_unet *unet, const struct sd_adapters *adapters,
                          struct sd_tensor *sample, struct sd_tensor *timesteps,
                          struct sd_tensor *encoder_hidden_states);

/* The same in two parts, for many steps under one text.  sd_unet_text - keys and values of every cross-attention, in the
 * order of the net: [B, L, sd_unet_text_width()] in the graph's activations.  sd_unet_denoise - the rest, over them. */
int64_t sd_unet_text_width(const struct sd_unet_config *c);
struct sd_tensor *sd_unet_text(struct sd_graph *g, struct sd_unet *unet, const struct sd_adapters *adapters,
                               struct sd_tensor *encoder_hidden_states);
struct sd_tensor *sd_unet_denoise(struct sd_graph *g, struct sd_unet *unet, const struct sd_adapters *adapters,
                                  struct sd_tensor *sample, struct sd_tensor *timesteps, struct sd_tensor *text_kv);

#endif
