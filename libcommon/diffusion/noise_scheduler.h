/* noise_scheduler.h - noise levels: a model's scheduler_config.json read as a given diffusers class reads it.
 *
 * One rule: fields in the file win, absent ones take the default of the class that is run, not of the class that wrote
 * the file.  alphas_cumprod is the product in double; diffusers' float32 product is within 1e-6 of it.
 *
 *   x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise      abar = alphas_cumprod      snr = abar / (1 - abar)
 *   sigma_t = sqrt((1 - abar_t) / abar_t)                the noise level of the samplers that keep x / sqrt(abar) */
#ifndef SD_NOISE_SCHEDULER_H
#define SD_NOISE_SCHEDULER_H

#include "json.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The class that is run; DDPM is the one diffusers' training scripts run. */
enum sd_scheduler_class { SD_DDPM, SD_DDIM, SD_PNDM, SD_EULER, SD_EULER_ANCESTRAL, SD_DPM_MULTISTEP, SD_UNIPC };

enum sd_prediction_type { SD_EPSILON, SD_V_PREDICTION, SD_SAMPLE };
enum sd_beta_schedule { SD_LINEAR, SD_SCALED_LINEAR, SD_SQUAREDCOS_CAP_V2, SD_SIGMOID };
enum sd_timestep_spacing { SD_LINSPACE, SD_LEADING, SD_TRAILING };
enum sd_solver_type { SD_MIDPOINT, SD_HEUN, SD_BH1, SD_BH2, SD_LOGRHO };
enum sd_algorithm_type { SD_DPMSOLVER_PLUS, SD_SDE_DPMSOLVER_PLUS, SD_DEIS, SD_DPMSOLVER, SD_SDE_DPMSOLVER };

/* A field that the class does not have is 0. */
struct sd_noise_scheduler {
    enum sd_scheduler_class kind;
    int num_train_timesteps;
    double beta_start, beta_end;
    int beta_schedule, prediction_type, timestep_spacing;       /* enums above */
    int steps_offset;
    bool rescale_betas_zero_snr;
    bool clip_sample, thresholding, set_alpha_to_one;
    double clip_sample_range, dynamic_thresholding_ratio, sample_max_value;
    bool use_karras_sigmas, use_exponential_sigmas, use_lu_lambdas;
    bool log_linear, continuous_timesteps, final_sigma_min; /* interpolation_type, timestep_type, final_sigmas_type */
    double sigma_min, sigma_max;                                /* of Karras and exponential spacing; 0: not given */
    double lambda_min_clipped;
    int solver_order, solver_type, algorithm_type;
    bool lower_order_final, euler_at_final;
    int64_t disable_corrector[64];
    int disable_corrector_count;

    double *alphas_cumprod;     /* [num_train_timesteps] */
    double final_alpha_cumprod; /* before timestep 0: 1, or alphas_cumprod[0] (DDIM, PNDM) */
    const char *unused;         /* fields of the file that no class has: "a, b"; NULL for none; the program says so */
};

/* sd_scheduler_config_load - the file as an object of scope s (Infinity is taken).  The object may be changed with
 * jansson's calls before it is used, by options that override a field. */
json_t *sd_scheduler_config_load(struct sd_scope *s, const char *path);
/* sd_scheduler_config_published - what the published models of a family carry, for single-file checkpoints:
 * "sd1" and "sd2" (PNDM, epsilon), "sd2-v" (DDIM, v_prediction), "sdxl" (Euler, leading). */
json_t *sd_scheduler_config_published(struct sd_scope *s, const char *family);

/* sd_noise_scheduler_new - NULL with sd_fail: "beta_schedule: exponential, expected linear, ...". */
struct sd_noise_scheduler *sd_noise_scheduler_new(struct sd_scope *s, const json_t *config,
                                                  enum sd_scheduler_class kind);

const char *sd_prediction_name(int prediction_type);

/* sd_noise_coefficients - noisy_latents = *latents * latents + *noise * noise at timestep t. */
void sd_noise_coefficients(const struct sd_noise_scheduler *ns, int t, double *latents, double *noise);
/* sd_noise_snr - abar / (1 - abar); 0 at the last timestep of a zero-terminal-SNR schedule. */
double sd_noise_snr(const struct sd_noise_scheduler *ns, int t);
/* sd_noise_sigma - sqrt((1 - abar) / abar) at a real t, linear between timesteps; infinite where abar is 0. */
double sd_noise_sigma(const struct sd_noise_scheduler *ns, double t);

#ifdef __cplusplus
}
#endif
#endif
