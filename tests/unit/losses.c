/* Targets, loss weights, masks: golden values and identities of algorithms 1.1, 1.3, 1.6. */
#include "diffusion/losses.h"
#include "tests/check.h"

static struct sd_noise_scheduler *
make(struct sd_scope *s, const char *prediction, bool zero_snr)
{
    json_t *config = sd_scheduler_config_published(s, "sd1");

    json_object_set_new(config, "prediction_type", json_string(prediction));
    json_object_set_new(config, "rescale_betas_zero_snr", json_boolean(zero_snr));
    return sd_noise_scheduler_new(s, config, SD_DDPM);
}

static void
targets(struct sd_noise_scheduler *const ns[3])
{
    double a, e, l[3], n[3], worst = 0;

    for (int t = 0; t < 1000; t++) {
        const double x0 = 0.7, noise = -1.3;

        sd_noise_coefficients(ns[0], t, &a, &e);
        for (int k = 0; k < 3; k++)
            sd_target_coefficients(ns[k], t, &l[k], &n[k]);
        /* from v and x_t back to x0 and noise */
        double x_t = a * x0 + e * noise, v = l[1] * x0 + n[1] * noise;
        worst = fmax(worst, fabs(a * x_t - e * v - x0));
        worst = fmax(worst, fabs(a * v + e * x_t - noise));
        worst = fmax(worst, fabs(l[0]) + fabs(n[0] - 1) + fabs(l[2] - 1) + fabs(n[2]));
    }
    CHECK(worst <= 1e-14, "targets: epsilon is the noise, sample the latents, v gives both back: %.1e", worst);
}

static void
weights(struct sd_noise_scheduler *const ns[3])
{
    double mean[3] = { 0 }, worst = 0, last = 0;
    bool rises = true;
    int peak = 0;

    for (int t = 0; t < 1000; t++) {
        double w[3], snr = sd_noise_snr(ns[0], t);

        for (int k = 0; k < 3; k++) {
            w[k] = sd_loss_weight(ns[k], t, SD_WEIGHT_MIN_SNR, 5);
            mean[k] += w[k] / 1000;
            worst = fmax(worst, fabs(sd_loss_weight(ns[k], t, SD_WEIGHT_CONSTANT, 5) - 1));
        }
        worst = fmax(worst, fabs(w[0] * snr - w[2]) / w[2]);
        worst = fmax(worst, fabs(w[1] * (snr + 1) - w[2]) / w[2]);
        rises = rises && w[0] >= last;
        last = w[0];
        peak = w[1] > sd_loss_weight(ns[1], peak, SD_WEIGHT_MIN_SNR, 5) ? t : peak;
    }
    CHECK(fabs(mean[0] - 0.91657) <= 5.1e-6 && fabs(mean[1] - 0.29433) <= 5.1e-6,
          "min-SNR 5, mean: epsilon %.5f, v %.5f", mean[0], mean[1]);
    CHECK(worst <= 1e-14, "w_eps snr = w_v (snr + 1) = w_x0; constant is 1: %.1e", worst);
    CHECK(rises, "the weight for epsilon never falls");
    CHECK((peak == 146 || peak == 147) && fabs(sd_loss_weight(ns[1], peak, SD_WEIGHT_MIN_SNR, 5) - 5 / 6.0) <= 2e-3,
          "the weight for v peaks near snr 5: t %d, %.4f", peak, sd_loss_weight(ns[1], peak, SD_WEIGHT_MIN_SNR, 5));
}

static void
masks(void)
{
    float m[40], half[40];
    double all, area;

    for (int i = 0; i < 40; i++)
        m[i] = i < 10 ? 1 : 0;
    CHECK(fabs(sd_mask_multiplier(m, 40, 4, SD_MASK_AREA) - 1 / 40.0) <= 1e-15, "area: 1 / (C sum m)");
    CHECK(fabs(sd_mask_multiplier(m, 40, 4, SD_MASK_NONE) - 1 / 160.0) <= 1e-15
              && fabs(sd_mask_multiplier(NULL, 40, 4, SD_MASK_AREA) - 1 / 160.0) <= 1e-15,
          "none, or no mask: 1 / (C h w)");
    for (int i = 0; i < 40; i++)
        half[i] = m[i] / 2;
    area = sd_mask_multiplier(half, 40, 4, SD_MASK_AREA) / 2;
    all = sd_mask_multiplier(m, 40, 4, SD_MASK_AREA);
    CHECK(fabs(area - all) <= 1e-15, "a mask scaled by 1/2 leaves the loss unchanged");
    memset(m, 0, sizeof(m));
    CHECK(fabs(sd_mask_multiplier(m, 40, 4, SD_MASK_AREA) - 1 / (4 * 2.0)) <= 1e-15,
          "an empty mask counts as 5 %% of the picture");
    m[3] = 0.5f, m[4] = 2;
    sd_mask_clamp(m, 40, 0.2);
    CHECK(m[0] == 0.2f && m[3] == 0.5f && m[4] == 1, "clamp to unmasked_weight .. 1: %g %g %g", m[0], m[3], m[4]);
}

int
main(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_noise_scheduler *ns[3] = { make(s, "epsilon", false), make(s, "v_prediction", false),
                                         make(s, "sample", false) };
    struct sd_noise_scheduler *z = make(s, "epsilon", true), *zv = make(s, "v_prediction", true);

    targets(ns);
    weights(ns);
    CHECK(sd_loss_weight(z, 999, SD_WEIGHT_MIN_SNR, 5) == 0 && sd_loss_weight(zv, 999, SD_WEIGHT_MIN_SNR, 5) == 0,
          "zero terminal SNR: weight 0 where there is no signal");
    masks();
    sd_scope_close(s);
    return check_done();
}
