/* Euler and Euler ancestral (Karras et al. 2206.00364), on x / sqrt(abar). */
#include "sampler_parts.h"

/* x' = x + (x - x0) / sigma * (down - sigma) + up * noise;  Euler: down = sigma', up = 0.  At sigma' = 0 this is x0. */
int
sampler_euler(struct sd_sampler *sampler, const struct levels *l)
{
    bool ancestral = sampler->scheduler->kind == SD_EULER_ANCESTRAL;

    for (int i = sampler->first, k = 0; i < l->n; i++, k++) {
        struct sd_sampler_step *step = &sampler->steps[k];
        double sigma = l->sigma[i], to = l->sigma[i + 1], alpha = 1 / sqrt(sigma * sigma + 1);
        double up = ancestral ? sqrt(to * to * (sigma * sigma - to * to) / (sigma * sigma)) : 0;
        double down = ancestral ? sqrt(fmax(to * to - up * up, 0)) : to;
        struct row x0, noise, x = row_of(SD_COL_X);

        predict(sampler, step, alpha, sigma * alpha, alpha, &x0, &noise);
        row_add(&x, (down - sigma) / sigma, row_of(SD_COL_X));
        row_add(&x, (sigma - down) / sigma, x0);
        row_add(&x, up, row_of(SD_COL_NOISE));
        row_put(step->x, x);
        step->timestep = l->t[i];
        step->sigma = sigma;
        step->input_scale = alpha;
    }
    sampler->calls = l->n - sampler->first;
    sampler->draws_noise = ancestral;
    return 0;
}
