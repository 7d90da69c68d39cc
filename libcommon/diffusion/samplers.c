#include "sampler_parts.h"

#include <stdlib.h>

static const struct kind {
    const char *name;
    enum sd_scheduler_class scheduler;
    bool karras;
    int (*build)(struct sd_sampler *, const struct levels *);
} kinds[] = {
    { "ddim", SD_DDIM, false, sampler_ddim },
    { "euler", SD_EULER, false, sampler_euler },
    { "euler_a", SD_EULER_ANCESTRAL, false, sampler_euler },
    { "dpmpp_2m", SD_DPM_MULTISTEP, false, sampler_dpm },
    { "dpmpp_2m_karras", SD_DPM_MULTISTEP, true, sampler_dpm },
    { "unipc", SD_UNIPC, false, sampler_unipc },
    { "pndm", SD_PNDM, false, sampler_pndm },
};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]) };

const char *const sd_sampler_names[] = { "ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "pndm",
                                         NULL };

/* make - the sampler without its steps. */
static struct sd_sampler *
make(struct sd_scope *s, const json_t *config, const char *name, const struct kind **kind)
{
    struct sd_sampler *sampler = sd_alloc(s, sizeof(*sampler));
    struct sd_noise_scheduler *ns;
    int k = 0;

    while (k < KINDS && strcmp(kinds[k].name, name) != 0)
        k++;
    if (k == KINDS)
        return sd_fail_null(
            "sampler %.60s: unknown, expected ddim, euler, euler_a, dpmpp_2m, dpmpp_2m_karras, unipc or pndm", name);
    *kind = &kinds[k];
    sampler->name = kinds[k].name;
    sampler->scheduler = ns = sd_noise_scheduler_new(s, config, kinds[k].scheduler);
    if (!ns)
        return NULL;
    if (kinds[k].karras) {
        if (ns->use_exponential_sigmas)
            return sd_fail_null("use_exponential_sigmas: does not go with the sampler %s", name);
        ns->use_karras_sigmas = true;
        ns->use_lu_lambdas = false;
    }
    sampler->clamp = ns->thresholding ? SD_CLAMP_QUANTILE : ns->clip_sample ? SD_CLAMP_RANGE : SD_CLAMP_NONE;
    sampler->clamp_range = ns->clip_sample_range;
    sampler->clamp_quantile = ns->dynamic_thresholding_ratio;
    sampler->clamp_max = ns->sample_max_value;
    return sampler;
}

/* Where sampling starts: from noise alone, or from a picture's latents at the first level visited. */
static void
set_start(struct sd_sampler *sampler, const struct levels *l, bool picture)
{
    const struct sd_noise_scheduler *ns = sampler->scheduler;
    bool exploding = ns->kind == SD_EULER || ns->kind == SD_EULER_ANCESTRAL;
    double sigma = l->sigma[sampler->first];

    if (picture) {
        sampler->start_latents = exploding ? 1 : 1 / sqrt(sigma * sigma + 1);
        sampler->start_noise = sigma * sampler->start_latents;
        if (isinf(sigma))
            sampler->start_noise = 1;
    } else {
        sampler->start_noise = !exploding ? 1 : ns->timestep_spacing == SD_LEADING ? sqrt(sigma * sigma + 1) : sigma;
    }
}

static struct sd_sampler *
finish(struct sd_scope *s, struct sd_sampler *sampler, const struct kind *kind, const struct levels *l, bool picture)
{
    sampler->num_inference_steps = l->n;
    sampler->steps = sd_alloc_array(s, (size_t)l->n + 1, sizeof(*sampler->steps));
    set_start(sampler, l, picture);
    return kind->build(sampler, l) < 0 ? NULL : sampler;
}

struct sd_sampler *
sd_sampler_new(struct sd_scope *s, const json_t *config, const char *name, int num_inference_steps,
               const double *strength)
{
    const struct kind *kind;
    struct sd_sampler *sampler = make(s, config, name, &kind);
    struct levels l;
    int visited = num_inference_steps;

    if (!sampler || levels_make(s, sampler->scheduler, num_inference_steps, &l) < 0)
        return NULL;
    if (strength) {
        if (!(*strength > 0 && *strength <= 1))
            return sd_fail_null("strength: %g, expected above 0, at most 1", *strength);
        visited = (int)(num_inference_steps * *strength);
        if (visited < 1)
            return sd_fail_null("strength: %g of %d steps leaves none", *strength, num_inference_steps);
    }
    sampler->first = num_inference_steps - visited;
    return finish(s, sampler, kind, &l, strength != NULL);
}

struct sd_sampler *
sd_sampler_from_sigmas(struct sd_scope *s, const json_t *config, const char *name, const double *sigmas, int n)
{
    const struct kind *kind;
    struct sd_sampler *sampler = make(s, config, name, &kind);
    struct levels l = { .n = n };

    if (!sampler)
        return NULL;
    if (kind->scheduler < SD_EULER)
        return sd_fail_null("sampler %s: walks on timesteps, not on given sigmas", name);
    if (n < 1)
        return sd_fail_null("sigmas: none");
    l.t = sd_alloc_array(s, (size_t)n, sizeof(double));
    l.sigma = sd_alloc_array(s, (size_t)n + 1, sizeof(double));
    for (int i = 0; i <= n; i++) {
        if (!isfinite(sigmas[i]) || sigmas[i] < 0 || (i && sigmas[i] >= sigmas[i - 1]))
            return sd_fail_null("sigmas: %g in place %d, expected falling, none below 0", sigmas[i], i);
        l.sigma[i] = sigmas[i];
        if (i < n)
            l.t[i] = levels_timestep(sampler->scheduler, sigmas[i]);
    }
    return finish(s, sampler, kind, &l, false);
}

void
sd_sampler_start(const struct sd_sampler *sampler, float *x, const float *latents, const float *noise, size_t n)
{
    float a = (float)sampler->start_latents, b = (float)sampler->start_noise;

    if (a != 0 && !latents)
        sd_bug("sampler_start", "no latents to start from");
    for (size_t i = 0; i < n; i++)
        x[i] = a != 0 ? a * latents[i] + b * noise[i] : b * noise[i];
}

struct sd_sampler_state *
sd_sampler_state_new(struct sd_scope *s, const struct sd_sampler *sampler, size_t batch, size_t numel)
{
    struct sd_sampler_state *state = sd_alloc(s, sizeof(*state));

    state->batch = batch;
    state->numel = numel;
    for (int k = 0; k < sampler->history; k++)
        state->history[k] = sd_alloc_array(s, batch * numel, sizeof(float));
    if (sampler->clamp == SD_CLAMP_QUANTILE)
        state->scratch = sd_alloc_array(s, numel, sizeof(float));
    return state;
}

/* --- one call --- */

enum { CHUNK = 512 };

static void
combine(float *y, const double row[SD_COLUMNS], const float *const columns[SD_COLUMNS], size_t n)
{
    bool first = true;

    for (int c = 0; c < SD_COLUMNS; c++) {
        const float k = (float)row[c], *a = columns[c];

        if (k == 0)
            continue;
        if (!a)
            sd_bug("sampler_apply", "column %d is wanted and missing", c);
        if (first)
            for (size_t i = 0; i < n; i++)
                y[i] = k * a[i];
        else
            for (size_t i = 0; i < n; i++)
                y[i] += k * a[i];
        first = false;
    }
    if (first)
        memset(y, 0, n * sizeof(float));
}

static int
by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

/* quantile_of - of |x0| over one sample, linear between neighbours, clamped to 1 .. clamp_max. */
static float
quantile_of(const struct sd_sampler *sampler, struct sd_sampler_state *state, const struct sd_sampler_step *step,
            const float *x, const float *out)
{
    float a = (float)step->x0[0], b = (float)step->x0[1], *v = state->scratch;
    double rank = sampler->clamp_quantile * (double)(state->numel - 1), low = floor(rank), q;
    size_t i = (size_t)low, j = i + 1 < state->numel ? i + 1 : i;

    for (size_t e = 0; e < state->numel; e++)
        v[e] = fabsf(a * x[e] + b * out[e]);
    qsort(v, state->numel, sizeof(float), by_size);
    q = v[i] + (rank - low) * ((double)v[j] - v[i]);
    return (float)fmin(fmax(q, 1), fmax(sampler->clamp_max, 1));
}

static void
clamped(float *x0, const struct sd_sampler_step *step, const float *x, const float *out, size_t n, float limit,
        float divide)
{
    float a = (float)step->x0[0], b = (float)step->x0[1];

    for (size_t i = 0; i < n; i++)
        x0[i] = fminf(fmaxf(a * x[i] + b * out[i], -limit), limit) / divide;
}

static void
apply_sample(const struct sd_sampler *sampler, const struct sd_sampler_step *step, struct sd_sampler_state *state,
             size_t at, float *x, const float *out, const float *noise)
{
    float next[1 + SD_HISTORY_MAX][CHUNK], x0[CHUNK], limit = (float)sampler->clamp_range, divide = 1;

    if (sampler->clamp == SD_CLAMP_QUANTILE)
        limit = divide = quantile_of(sampler, state, step, x + at, out + at);
    for (size_t done = 0; done < state->numel; done += CHUNK) {
        size_t n = state->numel - done < CHUNK ? state->numel - done : CHUNK, i = at + done;
        const float *columns[SD_COLUMNS] = { x + i, out + i, x0 };

        columns[SD_COL_NOISE] = noise ? noise + i : NULL;
        for (int k = 0; k < sampler->history; k++)
            columns[SD_COL_HISTORY + k] = state->history[k] + i;
        if (sampler->clamp != SD_CLAMP_NONE)
            clamped(x0, step, x + i, out + i, n, limit, divide);
        combine(next[0], step->x, columns, n);
        for (int k = 0; k < sampler->history; k++)
            combine(next[k + 1], step->history[k], columns, n);
        memcpy(x + i, next[0], n * sizeof(float));
        for (int k = 0; k < sampler->history; k++)
            memcpy(state->history[k] + i, next[k + 1], n * sizeof(float));
    }
}

void
sd_sampler_apply(const struct sd_sampler *sampler, int call, struct sd_sampler_state *state, float *x, const float *out,
                 const float *noise)
{
    if (call < 0 || call >= sampler->calls)
        sd_bug("sampler_apply", "call %d of %d", call, sampler->calls);
    for (size_t b = 0; b < state->batch; b++)
        apply_sample(sampler, &sampler->steps[call], state, b * state->numel, x, out, noise);
}

/* --- guidance --- */

static double
standard_deviation(const float *x, size_t n)
{
    double mean = 0, sum = 0;

    for (size_t i = 0; i < n; i++)
        mean += x[i];
    mean /= (double)n;
    for (size_t i = 0; i < n; i++)
        sum += (x[i] - mean) * (x[i] - mean);
    return n > 1 ? sqrt(sum / (double)(n - 1)) : 0;
}

void
sd_guidance(float *out, const float *uncond, const float *cond, size_t batch, size_t numel, double scale,
            double rescale)
{
    float s = (float)scale;

    if (!uncond) {
        if (out != cond)
            memcpy(out, cond, batch * numel * sizeof(float));
        return;
    }
    for (size_t b = 0; b < batch; b++) {
        float *y = out + b * numel;
        const float *u = uncond + b * numel, *c = cond + b * numel;
        double std = rescale > 0 ? standard_deviation(c, numel) : 0, of_out;

        for (size_t i = 0; i < numel; i++)
            y[i] = u[i] + s * (c[i] - u[i]);
        if (rescale > 0 && (of_out = standard_deviation(y, numel)) > 0)
            for (size_t i = 0; i < numel; i++)
                y[i] *= (float)(rescale * std / of_out + (1 - rescale));
    }
}
