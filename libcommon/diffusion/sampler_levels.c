/* Which noise levels are visited: numpy's arithmetic, step by step, because a timestep is where rounding shows. */
#include "sampler_parts.h"

/* numpy.linspace(0, last, n)[i] */
static double
linspace(double last, int n, int i)
{
    return n == 1 ? 0 : i == n - 1 ? last : i * (last / (n - 1));
}

/* numpy.arange(start, 0, -step)[i]: the increment is the rounded difference of the first two elements.  numpy's list is
 * one too long for some n (61, 103, ...), with timestep -1 at its end; ours has n elements. */
static double
arange_down(double start, double step, int i)
{
    return start + i * ((start - step) - start);
}

/* clipped_count - number of timesteps whose log(alpha / sigma) is at least lambda_min_clipped. */
static int
clipped_count(const struct sd_noise_scheduler *ns)
{
    int n = ns->num_train_timesteps;

    while (n > 1 && -log(sd_noise_sigma(ns, n - 1)) < ns->lambda_min_clipped)
        n--;
    return n;
}

/* spaced - level i of n, 0 the noisiest. */
static double
spaced(const struct sd_noise_scheduler *ns, int n, int i)
{
    bool multistep = ns->kind == SD_DPM_MULTISTEP || ns->kind == SD_UNIPC;
    bool real = ns->kind == SD_EULER || ns->kind == SD_EULER_ANCESTRAL;
    int T = ns->num_train_timesteps, last = ns->kind == SD_DPM_MULTISTEP ? clipped_count(ns) : T;

    switch (ns->timestep_spacing) {
    case SD_LINSPACE:
        if (real)
            return (float)linspace(T - 1, n, n - 1 - i);
        return rint(multistep ? linspace(last - 1, n + 1, n - i) : linspace(T - 1, n, n - 1 - i));
    case SD_LEADING:
        return (multistep ? (n - i) * (last / (n + 1)) : (n - 1 - i) * (T / n)) + ns->steps_offset;
    }
    return rint(arange_down(last, (double)T / n, i)) - 1;
}

double
levels_timestep(const struct sd_noise_scheduler *ns, double sigma)
{
    double x = log(fmax(sigma, 1e-10)), low, high;
    int i = 0, top = ns->num_train_timesteps - 2;

    for (int a = 0, b = top; a <= b;) {         /* the last timestep whose sigma is not above */
        int m = (a + b) / 2;

        if (log(sd_noise_sigma(ns, m)) <= x)
            i = m, a = m + 1;
        else
            b = m - 1;
    }
    low = log(sd_noise_sigma(ns, i));
    high = log(sd_noise_sigma(ns, i + 1));
    return i + fmin(fmax((x - low) / (high - low), 0), 1);
}

/* Karras et al. 2206.00364, rho = 7; exponential and Lu: even steps of the logarithm. */
static double
between(const struct sd_noise_scheduler *ns, double max, double min, int n, int i)
{
    double p = linspace(1, n, i);

    if (ns->use_karras_sigmas)
        return pow(pow(max, 1 / 7.0) + p * (pow(min, 1 / 7.0) - pow(max, 1 / 7.0)), 7);
    return exp(log(max) + p * (log(min) - log(max)));
}

/* DPM-Solver++ and UniPC tell the model whole timesteps: Karras rounded, exponential cut off (a hair below a whole
 * number is that number).  diffusers' float32 table puts the real timestep up to 0.001 higher: for a few n (18, 35, 43,
 * 52 below 60, with SD's betas) one level rounds up there and down here. */
static double
whole_timestep(const struct sd_noise_scheduler *ns, double t)
{
    bool cut =
        ns->use_exponential_sigmas || (ns->kind == SD_DPM_MULTISTEP && ns->beta_schedule == SD_SQUAREDCOS_CAP_V2);

    return cut ? floor(t + 1e-3) : rint(t);
}

static void
respace(const struct sd_noise_scheduler *ns, struct levels *l)
{
    /* the ends: of the whole table, or for Euler of what the spacing chose */
    bool euler = ns->kind == SD_EULER;
    double max = euler ? l->sigma[0] : sd_noise_sigma(ns, ns->num_train_timesteps - 1);
    double min = euler ? l->sigma[l->n - 1] : sd_noise_sigma(ns, 0);

    if (!ns->use_lu_lambdas) {
        max = ns->sigma_max > 0 ? ns->sigma_max : max;
        min = ns->sigma_min > 0 ? ns->sigma_min : min;
    }
    for (int i = 0; i < l->n; i++) {
        l->sigma[i] = between(ns, max, min, l->n, i);
        l->t[i] = levels_timestep(ns, l->sigma[i]);
        l->t[i] = euler ? l->t[i] : whole_timestep(ns, l->t[i]);
    }
}

static int
check_levels(const struct sd_noise_scheduler *ns, const struct levels *l)
{
    static const char *const spacing[] = { "linspace", "leading", "trailing" };
    int T = ns->num_train_timesteps;

    for (int i = 0; i < l->n; i++) {
        if (l->t[i] < 0 || l->t[i] > T - 1)
            return sd_fail("num_inference_steps: %d reaches timestep %g (%s, steps_offset %d), the last is %d", l->n,
                           l->t[i], spacing[ns->timestep_spacing], ns->steps_offset, T - 1);
        if (i && l->t[i] >= l->t[i - 1])
            return sd_fail("num_inference_steps: %d visits timestep %g twice (%s)", l->n, l->t[i],
                           spacing[ns->timestep_spacing]);
    }
    return 0;
}

int
levels_make(struct sd_scope *s, const struct sd_noise_scheduler *ns, int n, struct levels *l)
{
    int T = ns->num_train_timesteps;
    bool respaced = ns->use_karras_sigmas || ns->use_exponential_sigmas || ns->use_lu_lambdas;

    if (n < 1 || n > T)
        return sd_fail("num_inference_steps: %d, expected 1 to the model's %d timesteps", n, T);
    l->n = n;
    l->t = sd_alloc_array(s, (size_t)n, sizeof(double));
    l->sigma = sd_alloc_array(s, (size_t)n + 1, sizeof(double));
    for (int i = 0; i < n; i++)
        l->t[i] = spaced(ns, n, i);
    if ((!respaced || ns->kind == SD_EULER) && check_levels(ns, l) < 0)
        return -1;
    for (int i = 0; i < n; i++)
        l->sigma[i] = sd_noise_sigma(ns, l->t[i]);
    l->sigma[n] = ns->final_sigma_min ? sd_noise_sigma(ns, 0) : 0;
    if (respaced) {
        respace(ns, l);
        if (ns->kind == SD_UNIPC && ns->final_sigma_min)
            l->sigma[n] = l->sigma[n - 1];
    } else if (ns->log_linear) {
        /* n + 1 values from the table's largest to its smallest; where sampling ends is the last of them */
        for (int i = 0; i <= n; i++)
            l->sigma[i] = exp(log(sd_noise_sigma(ns, T - 1))
                              + linspace(log(sd_noise_sigma(ns, 0) / sd_noise_sigma(ns, T - 1)), n + 1, i));
    }
    if (ns->continuous_timesteps && ns->prediction_type == SD_V_PREDICTION)
        for (int i = 0; i < n; i++)
            l->t[i] = 0.25 * log(l->sigma[i]);
    return 0;
}
