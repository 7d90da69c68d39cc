/* samplers.h - from noise to latents: DDIM, Euler, DPM-Solver++, UniPC, PNDM as diffusers runs them.
 *
 * One rule: a sampler is a table, made once, of small linear combinations.  For model call i
 *
 *   out      = guided model output at (input_scale * x, timestep)
 *   x0       = x0[0] * x + x0[1] * out, then clamped, for the few configurations that clamp
 *   x'       = sum over columns of step->x[column] * column
 *   h'[k]    = sum over columns of step->history[k][column] * column
 *
 * with columns x, out, x0, h[0..3], fresh noise, all as they were before the call.  So the CPU loop, and a captured
 * CUDA graph that is fed the numbers of each step, share everything that differs between samplers.  Coefficients are
 * made in double.
 *
 *   struct sd_sampler *sampler = sd_sampler_new(s, config, "dpmpp_2m", 30, NULL);
 *   struct sd_sampler_state *state = sd_sampler_state_new(s, sampler, B, 4 * h * w);
 *   sd_sampler_start(sampler, x, NULL, noise, B * 4 * h * w);
 *   for (int i = 0; i < sampler->calls; i++) {
 *       ... model at sampler->steps[i].timestep, input sampler->steps[i].input_scale * x, guidance: out ...
 *       sd_sampler_apply(sampler, i, state, x, out, fresh);    N(0, 1) drawn now when sampler->draws_noise, else NULL
 *   } */
#ifndef SD_SAMPLERS_H
#define SD_SAMPLERS_H

#include "noise_scheduler.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SD_HISTORY_MAX = 4 };
enum sd_sampler_column {
    SD_COL_X, SD_COL_OUT, SD_COL_X0, SD_COL_HISTORY, SD_COL_NOISE = SD_COL_HISTORY + SD_HISTORY_MAX, SD_COLUMNS
};
enum sd_clamp { SD_CLAMP_NONE, SD_CLAMP_RANGE, SD_CLAMP_QUANTILE };

struct sd_sampler_step {
    double timestep;            /* what the model is told; not whole for Euler with linspace or Karras */
    double sigma;               /* noise level, sqrt((1 - abar) / abar) */
    double input_scale;
    double x0[2];               /* predicted x0 from x and out; the column X0 is used only where there is a clamp */
    double x[SD_COLUMNS], history[SD_HISTORY_MAX][SD_COLUMNS];
};

struct sd_sampler {
    const char *name;
    struct sd_noise_scheduler *scheduler;
    int num_inference_steps;    /* as asked for, all levels */
    int first;                  /* first level visited: 0, or more when the start is a picture */
    int calls;                  /* model calls; PNDM makes one more than levels */
    struct sd_sampler_step *steps;      /* [calls] */
    int history;                /* slots used, 0 to 4 */
    bool draws_noise;           /* fresh noise at every call, the last too (its coefficient there is 0) */
    double start_latents, start_noise;  /* x = start_latents * latents + start_noise * noise */
    enum sd_clamp clamp;
    double clamp_range;         /* RANGE: x0 to -clamp_range .. clamp_range */
    double clamp_quantile, clamp_max;   /* QUANTILE: q = quantile of |x0| of a sample, 1 <= q <= clamp_max; to q, / q */
};

/* The names, in the order of manuals, ended by NULL: ddim euler euler_a dpmpp_2m dpmpp_2m_karras unipc pndm. */
extern const char *const sd_sampler_names[];

/* sd_sampler_new - the sampler `name` for a model's scheduler config (see noise_scheduler.h).
 *   strength  NULL: from noise.  Else from a picture's latents: only the last trunc(num_inference_steps * strength)
 *             levels are visited, and sd_sampler_start mixes the latents with noise; 0 < strength <= 1
 *   returns   in scope s; NULL with sd_fail: unknown name, field that does not fit, "num_inference_steps: 1000 ..." */
struct sd_sampler *sd_sampler_new(struct sd_scope *s, const json_t *config, const char *name, int num_inference_steps,
                                  const double *strength);
/* sd_sampler_from_sigmas - the same on given levels: sigmas[0..n], falling, the last where sampling ends (0, or more).
 * For Euler, DPM-Solver++ and UniPC. */
struct sd_sampler *sd_sampler_from_sigmas(struct sd_scope *s, const json_t *config, const char *name,
                                          const double *sigmas, int n);

/* sd_sampler_start - x = start_latents * latents + start_noise * noise; latents NULL when sampling from noise. */
void sd_sampler_start(const struct sd_sampler *sampler, float *x, const float *latents, const float *noise, size_t n);

/* History and scratch of a batch, in scope s. */
struct sd_sampler_state {
    size_t batch, numel;        /* samples, elements of one */
    float *history[SD_HISTORY_MAX];
    float *scratch;             /* [numel], for quantiles */
};
struct sd_sampler_state *sd_sampler_state_new(struct sd_scope *s, const struct sd_sampler *sampler, size_t batch,
                                              size_t numel);

/* sd_sampler_apply - x and the history after model call `call`.  Plain multiplies and adds in the order of the columns,
 * terms with coefficient 0 left out: the same bits everywhere.
 *   x      [batch, numel], replaced
 *   out    like x
 *   noise  like x; NULL allowed where the sampler draws none */
void sd_sampler_apply(const struct sd_sampler *sampler, int call, struct sd_sampler_state *state, float *x,
                      const float *out, const float *noise);

/* sd_guidance - out = uncond + scale (cond - uncond); with rescale phi > 0 then
 *   out = phi out std(cond) / std(out) + (1 - phi) out     (Lin et al. 2305.08891), deviations per sample, unbiased.
 *   out    [batch, numel]; may be uncond or cond
 *   uncond NULL (no guidance, scale <= 1): out = cond */
void sd_guidance(float *out, const float *uncond, const float *cond, size_t batch, size_t numel, double scale,
                 double rescale);

#ifdef __cplusplus
}
#endif
#endif
