/* resnet.h - the blocks that UNet and VAE share. */
#ifndef SD_MODEL_RESNET_H
#define SD_MODEL_RESNET_H

#include "layers.h"

/* sd_resnet - ResnetBlock2D at the current module path, a unit of recomputation.
 *   x [B, H, W, in];  beside [B, H, W, in2] or NULL: its channels follow those of x, with no copy of the two made;
 *   time [B, out], its time_emb_proj of the time embedding, or NULL (VAE);  returns [B, H, W, out] */
struct sd_tensor *sd_resnet(const struct sd_module *m, struct sd_tensor *x, struct sd_tensor *beside,
                            struct sd_tensor *time, int out, int groups, double eps);

/* sd_upsample_conv - Upsample2D: pixels repeated, 3x3 convolution.  height, width: size wanted, 2H or 2H-1. */
struct sd_tensor *sd_upsample_conv(const struct sd_module *m, const char *name, struct sd_tensor *x, int64_t height,
                                   int64_t width);

#endif
