#include "losses.h"

#include <math.h>

void
sd_target_coefficients(const struct sd_noise_scheduler *ns, int t, double *latents, double *noise)
{
    double a, s;

    sd_noise_coefficients(ns, t, &a, &s);
    *latents = ns->prediction_type == SD_SAMPLE ? 1 : ns->prediction_type == SD_V_PREDICTION ? -s : 0;
    *noise = ns->prediction_type == SD_SAMPLE ? 0 : ns->prediction_type == SD_V_PREDICTION ? a : 1;
}

double
sd_loss_weight(const struct sd_noise_scheduler *ns, int t, enum sd_loss_weighting weighting, double gamma)
{
    double snr = sd_noise_snr(ns, t), least = fmin(snr, gamma);

    if (weighting == SD_WEIGHT_CONSTANT)
        return 1;
    switch (ns->prediction_type) {
    case SD_V_PREDICTION:
        return least / (snr + 1);
    case SD_SAMPLE:
        return least;
    }
    return snr > 0 ? least / snr : 0;
}

double
sd_mask_multiplier(const float *mask, size_t pixels, int channels, enum sd_mask_normalize normalize)
{
    double sum = 0;

    if (!mask || normalize == SD_MASK_NONE)
        return 1 / (channels * (double)pixels);
    for (size_t i = 0; i < pixels; i++)
        sum += mask[i];
    return 1 / (channels * fmax(sum, 0.05 * (double)pixels));
}

void
sd_mask_clamp(float *mask, size_t pixels, double unmasked_weight)
{
    for (size_t i = 0; i < pixels; i++)
        mask[i] = fminf(fmaxf(mask[i], (float)unmasked_weight), 1);
}
