/* vae.h - AutoencoderKL: pixels to latents and back; F32 in and out, whatever the activations between are. */
#ifndef SD_MODEL_VAE_H
#define SD_MODEL_VAE_H

#include "layers.h"

struct sd_vae {
    struct sd_vae_config config;
    struct sd_weights *weights;
};

/* sd_vae_encode - pixels [B, H, W, 3] in [-1, 1] to moments [B, h, w, 2 * latent_channels]: mean, then log-variance,
 * which is not yet clamped; neither is scaled. */
struct sd_tensor *sd_vae_encode(struct sd_graph *g, struct sd_vae *vae, struct sd_tensor *pixels);
/* sd_vae_decode - latents [B, h, w, latent_channels], divided by scaling_factor already, to pixels [B, H, W, 3] about
 * [-1, 1]. */
struct sd_tensor *sd_vae_decode(struct sd_graph *g, struct sd_vae *vae, struct sd_tensor *latents);

#endif
