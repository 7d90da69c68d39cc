/* sampler_parts.h - between the files of the samplers; nothing else includes it. */
#ifndef SD_SAMPLER_PARTS_H
#define SD_SAMPLER_PARTS_H

#include "samplers.h"

#include <math.h>
#include <string.h>

/* The levels visited: t[i] for the model, sigma[i] = sqrt((1 - abar) / abar), sigma[n] where sampling ends. */
struct levels {
    int n;
    double *t, *sigma;          /* [n], [n + 1] */
};

/* levels_make - by the scheduler's spacing; -1 with sd_fail when there are too many. */
int levels_make(struct sd_scope *s, const struct sd_noise_scheduler *ns, int n, struct levels *l);
/* levels_timestep - the real timestep of a noise level, by its logarithm. */
double levels_timestep(const struct sd_noise_scheduler *ns, double sigma);

/* Each fills steps for the levels from sampler->first on. */
int sampler_ddim(struct sd_sampler *sampler, const struct levels *l);
int sampler_pndm(struct sd_sampler *sampler, const struct levels *l);
int sampler_euler(struct sd_sampler *sampler, const struct levels *l);
int sampler_dpm(struct sd_sampler *sampler, const struct levels *l);
int sampler_unipc(struct sd_sampler *sampler, const struct levels *l);

/* A linear combination of columns. */
struct row {
    double c[SD_COLUMNS];
};

static inline struct row
row_of(int column)
{
    struct row r = { { 0 } };

    r.c[column] = 1;
    return r;
}

static inline void
row_add(struct row *r, double k, struct row a)
{
    for (int i = 0; i < SD_COLUMNS; i++)
        r->c[i] += k * a.c[i];
}

static inline void
row_put(double to[SD_COLUMNS], struct row r)
{
    memcpy(to, r.c, sizeof(r.c));
}

/* predict - x0 and noise from a model output.  alpha^2 + sigma^2 = 1, and scale * x is the variance-preserving state:
 * scale = 1, or alpha for the samplers that keep x / alpha.  The step's x0 is set; *x0 is the row to use for it. */
static inline void
predict(const struct sd_sampler *sampler, struct sd_sampler_step *step, double alpha, double sigma, double scale,
        struct row *x0, struct row *noise)
{
    struct row x = row_of(SD_COL_X), zero = { { 0 } };

    *x0 = *noise = zero;
    switch (sampler->scheduler->prediction_type) {
    case SD_EPSILON:
        row_add(x0, scale / alpha, x);
        x0->c[SD_COL_OUT] = -sigma / alpha;
        noise->c[SD_COL_OUT] = 1;
        break;
    case SD_V_PREDICTION:
        row_add(x0, alpha * scale, x);
        x0->c[SD_COL_OUT] = -sigma;
        row_add(noise, sigma * scale, x);
        noise->c[SD_COL_OUT] = alpha;
        break;
    case SD_SAMPLE:
        x0->c[SD_COL_OUT] = 1;
        row_add(noise, scale / sigma, x);
        noise->c[SD_COL_OUT] = -alpha / sigma;
        break;
    }
    step->x0[0] = x0->c[SD_COL_X];
    step->x0[1] = x0->c[SD_COL_OUT];
    if (sampler->clamp != SD_CLAMP_NONE)
        *x0 = row_of(SD_COL_X0);
}

#endif
