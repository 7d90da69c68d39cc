/* losses.h - what the network is asked for at a timestep, and how much its error counts.
 *
 * One rule: a sample's loss depends on that sample alone.  There are no batch means, so accumulated micro-batches give
 * the gradient of the large batch:
 *
 *   L = 1 / samples * sum over samples b of  weight(t_b) * mask_multiplier_b * sum over c, h, w of m (pred - target)^2
 *
 * with m the mask of the sample, 1 everywhere when there is none. */
#ifndef SD_LOSSES_H
#define SD_LOSSES_H

#include "noise_scheduler.h"

#ifdef __cplusplus
extern "C" {
#endif

/* sd_target_coefficients - target = *latents * latents + *noise * noise.
 *   epsilon 0, 1;  v_prediction -sqrt(1 - abar), sqrt(abar);  sample 1, 0.   Latents are the clean ones. */
void sd_target_coefficients(const struct sd_noise_scheduler *ns, int t, double *latents, double *noise);

enum sd_loss_weighting { SD_WEIGHT_CONSTANT, SD_WEIGHT_MIN_SNR };

/* sd_loss_weight - weight of a squared error at timestep t (Hang et al. 2303.09556, min-SNR-gamma):
 *   constant   1
 *   min-SNR    epsilon min(snr, gamma) / snr;  v_prediction min(snr, gamma) / (snr + 1);  sample min(snr, gamma)
 * All three are one weight on the error of x_0.  Where snr is 0, epsilon carries no signal: 0.  Not the variant of
 * diffusers' DreamBooth scripts (+ 1 for v), and never divided by the batch's mean: at batch 1 that would undo it. */
double sd_loss_weight(const struct sd_noise_scheduler *ns, int t, enum sd_loss_weighting weighting, double gamma);

enum sd_mask_normalize { SD_MASK_AREA, SD_MASK_NONE };

/* sd_mask_multiplier - 1 / (C max(sum of m, 0.05 h w)) with AREA: the mean over the mask, floored so that an almost
 * empty mask cannot blow up; 1 / (C h w) with NONE, or without a mask (NULL).
 *   mask   [h * w], 0 to 1, as sd_mask_clamp left it */
double sd_mask_multiplier(const float *mask, size_t pixels, int channels, enum sd_mask_normalize normalize);
/* sd_mask_clamp - mask = clamp(mask, unmasked_weight, 1). */
void sd_mask_clamp(float *mask, size_t pixels, double unmasked_weight);

#ifdef __cplusplus
}
#endif
#endif
