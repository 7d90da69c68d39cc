/* DDIM (Song et al. 2010.02502) with eta 0, and PNDM (2202.09778) without its Runge-Kutta steps: both walk on
 * timesteps. */
#include "sampler_parts.h"

static double
abar_at(const struct sd_noise_scheduler *ns, int t)
{
    return t < 0 ? ns->final_alpha_cumprod : ns->alphas_cumprod[t];
}

/* x' = sqrt(abar') x0 + sqrt(1 - abar') noise, abar' at t - T / n: the next level of leading and trailing spacing, not
 * of linspace.  With a clamp on x0, noise stays what the model said. */
int
sampler_ddim(struct sd_sampler *sampler, const struct levels *l)
{
    const struct sd_noise_scheduler *ns = sampler->scheduler;

    for (int i = sampler->first, k = 0; i < l->n; i++, k++) {
        struct sd_sampler_step *step = &sampler->steps[k];
        int t = (int)l->t[i];
        double a = ns->alphas_cumprod[t], q = abar_at(ns, t - ns->num_train_timesteps / l->n);
        struct row x0, noise, x = { { 0 } };

        if (a == 0 && ns->prediction_type == SD_EPSILON)
            return sd_fail("prediction_type: epsilon says nothing at timestep %d of a zero-terminal-SNR schedule", t);
        predict(sampler, step, sqrt(a), sqrt(1 - a), 1, &x0, &noise);
        row_add(&x, sqrt(q), x0);
        row_add(&x, sqrt(1 - q), noise);
        row_put(step->x, x);
        step->timestep = t;
        step->sigma = l->sigma[i];
        step->input_scale = 1;
    }
    sampler->calls = l->n - sampler->first;
    return 0;
}

/* G(x, t, p, e) of algorithms 2.8b: from timestep t to p with noise e. */
static struct row
pndm_move(const struct sd_noise_scheduler *ns, struct row x, int t, int p, struct row e)
{
    double a = ns->alphas_cumprod[t], q = abar_at(ns, p);
    struct row to = { { 0 } }, v = { { 0 } };

    if (ns->prediction_type == SD_V_PREDICTION) {
        row_add(&v, sqrt(a), e);
        row_add(&v, sqrt(1 - a), x);
        e = v;
    }
    row_add(&to, sqrt(q / a), x);
    row_add(&to, -(q - a) / (a * sqrt(1 - q) + sqrt(a * (1 - a) * q)), e);
    return to;
}

/* History: slots 0 to 2 the last three outputs kept, newest first; slot 3 the state before the first call, from which
 * the second call starts again. */
int
sampler_pndm(struct sd_sampler *sampler, const struct levels *l)
{
    static const double adams_bashforth[5][4] = {
        { 0 }, { 1 }, { 1.5, -0.5 }, { 23 / 12.0, -16 / 12.0, 5 / 12.0 },
        { 55 / 24.0, -59 / 24.0, 37 / 24.0, -9 / 24.0 } };
    const struct sd_noise_scheduler *ns = sampler->scheduler;
    int d = ns->num_train_timesteps / l->n, levels = l->n - sampler->first, kept = 0;

    sampler->calls = levels + (levels > 1);
    sampler->history = SD_HISTORY_MAX;
    for (int call = 0; call < sampler->calls; call++) {
        struct sd_sampler_step *step = &sampler->steps[call];
        int i = sampler->first + call - (call > 1), t = (int)l->t[i];
        struct row x = row_of(SD_COL_X), out = row_of(SD_COL_OUT), e = { { 0 } };

        step->timestep = t;
        step->sigma = l->sigma[i];
        step->input_scale = 1;
        if (call == 1) {
            /* not kept: the mean of both outputs, from the remembered state at the level before */
            row_add(&e, 0.5, out);
            row_add(&e, 0.5, row_of(SD_COL_HISTORY));
            x = pndm_move(ns, row_of(SD_COL_HISTORY + 3), t + d, t, e);
            for (int k = 0; k < 3; k++)
                row_put(step->history[k], row_of(SD_COL_HISTORY + k));
        } else {
            kept += kept < 4;
            for (int k = 0; k < kept; k++)
                row_add(&e, adams_bashforth[kept][k], k ? row_of(SD_COL_HISTORY + k - 1) : out);
            x = pndm_move(ns, x, t, t - d, e);
            for (int k = 0; k < 3; k++)
                row_put(step->history[k], k ? row_of(SD_COL_HISTORY + k - 1) : out);
            row_put(step->history[3], row_of(SD_COL_X));
        }
        row_put(step->x, x);
    }
    return 0;
}
