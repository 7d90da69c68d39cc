/* DPM-Solver++ (Lu et al. 2211.01095) and UniPC (Zhao et al. 2302.04867): exponential integrators in lambda = -ln
 * sigma, on the variance-preserving state, with the predicted x0 of earlier calls. */
#include "sampler_parts.h"

struct level {
    double alpha, sigma, lambda;        /* alpha^2 + sigma^2 = 1; lambda infinite where sampling ends in 0 */
};

static struct level
level_at(double k)
{
    double alpha = 1 / sqrt(k * k + 1);

    return (struct level){ alpha, k * alpha, -log(k) };
}

static void
describe(struct sd_sampler_step *step, const struct levels *l, int i)
{
    step->timestep = l->t[i];
    step->sigma = l->sigma[i];
    step->input_scale = 1;
}

/* --- DPM-Solver++ --- */

/* dpm_weights - of x, D0, D1, D2 and fresh noise, from s to t.  r = exp(-h) is the ratio of the sigmas. */
static void
dpm_weights(const struct sd_noise_scheduler *ns, double k_s, double k_t, int order, double w[4], double *noise)
{
    struct level s = level_at(k_s), t = level_at(k_t);
    bool sde = ns->algorithm_type == SD_SDE_DPMSOLVER_PLUS;
    double r = k_t / k_s, h = t.lambda - s.lambda, hs = sde ? 2 * h : h;
    double e = sde ? r * r - 1 : r - 1;         /* expm1(-hs) */

    w[0] = t.sigma / s.sigma * (sde ? r : 1);
    w[1] = -t.alpha * e;
    w[2] = w[3] = 0;
    if (order > 1)
        w[2] = order == 2 && ns->solver_type == SD_MIDPOINT ? -0.5 * t.alpha * e : t.alpha * (e / hs + 1);
    if (order > 2)
        w[3] = sde ? t.alpha * ((1 - (e + 1) - hs) / (hs * hs) - 0.5) : -t.alpha * ((e + h) / (h * h) - 0.5);
    *noise = sde ? t.sigma * sqrt(-e) : 0;
}

/* D1 and D2, divided differences of x0 over lambda: m[0] now, m[1] and m[2] the calls before. */
static void
dpm_differences(const double lambda[4], int order, const struct row m[3], struct row *D1, struct row *D2)
{
    double h = lambda[0] - lambda[1], g0 = h / (lambda[1] - lambda[2]), g1 = 0, r0, r1;
    struct row a = { { 0 } }, b = { { 0 } }, zero = { { 0 } };

    *D1 = *D2 = zero;
    row_add(&a, g0, m[0]);
    row_add(&a, -g0, m[1]);
    row_add(D1, 1, a);
    if (order < 3)
        return;
    g1 = h / (lambda[2] - lambda[3]);
    r0 = 1 / g0;
    r1 = 1 / g1;
    row_add(&b, g1, m[1]);
    row_add(&b, -g1, m[2]);
    row_add(D1, r0 / (r0 + r1), a);
    row_add(D1, -r0 / (r0 + r1), b);
    row_add(D2, 1 / (r0 + r1), a);
    row_add(D2, -1 / (r0 + r1), b);
}

static int
dpm_order(const struct sd_noise_scheduler *ns, const struct levels *l, int i, int first)
{
    bool few = ns->lower_order_final && l->n < 15;
    int order = ns->solver_order;

    if (i == l->n - 1 && (ns->euler_at_final || few || l->sigma[l->n] == 0))
        order = 1;
    if (i == l->n - 2 && few && order > 2)
        order = 2;
    return order < i - first + 1 ? order : i - first + 1;
}

/* History: x0 of the last two calls, newest first. */
int
sampler_dpm(struct sd_sampler *sampler, const struct levels *l)
{
    const struct sd_noise_scheduler *ns = sampler->scheduler;

    sampler->history = ns->solver_order - 1;
    sampler->draws_noise = ns->algorithm_type == SD_SDE_DPMSOLVER_PLUS;
    sampler->calls = l->n - sampler->first;
    for (int i = sampler->first, k = 0; i < l->n; i++, k++) {
        struct sd_sampler_step *step = &sampler->steps[k];
        struct level now = level_at(l->sigma[i]);
        int order = dpm_order(ns, l, i, sampler->first);
        struct row m[3], noise, D1, D2, x = { { 0 } };
        double w[4], fresh, lambda[4] = { 0 };

        predict(sampler, step, now.alpha, now.sigma, 1, &m[0], &noise);
        m[1] = row_of(SD_COL_HISTORY);
        m[2] = row_of(SD_COL_HISTORY + 1);
        dpm_weights(ns, l->sigma[i], l->sigma[i + 1], order, w, &fresh);
        row_add(&x, w[0], row_of(SD_COL_X));
        row_add(&x, w[1], m[0]);
        if (order > 1) {
            for (int j = 0; j <= order; j++)
                lambda[j] = -log(l->sigma[i + 1 - j]);
            dpm_differences(lambda, order, m, &D1, &D2);
            row_add(&x, w[2], D1);
            row_add(&x, w[3], D2);
        }
        row_add(&x, fresh, row_of(SD_COL_NOISE));
        row_put(step->x, x);
        for (int j = 0; j < sampler->history; j++)
            row_put(step->history[j], m[j]);
        describe(step, l, i);
    }
    return 0;
}

/* --- UniPC --- */

/* solve - R rho = b by elimination with pivoting, n <= 3; R and b are destroyed. */
static void
solve(double R[3][3], double b[3], int n, double rho[3])
{
    for (int c = 0; c < n; c++) {
        int p = c;

        for (int i = c + 1; i < n; i++)
            if (fabs(R[i][c]) > fabs(R[p][c]))
                p = i;
        for (int j = 0; j < n; j++) {
            double t = R[c][j];

            R[c][j] = R[p][j];
            R[p][j] = t;
        }
        rho[c] = b[c];
        b[c] = b[p];
        b[p] = rho[c];
        for (int i = c + 1; i < n; i++) {
            double f = R[i][c] / R[c][c];

            for (int j = c; j < n; j++)
                R[i][j] -= f * R[c][j];
            b[i] -= f * b[c];
        }
    }
    for (int i = n - 1; i >= 0; i--) {
        rho[i] = b[i];
        for (int j = i + 1; j < n; j++)
            rho[i] -= R[i][j] * rho[j];
        rho[i] /= R[i][i];
    }
}

/* unipc_move - one predictor (m_t NULL) or corrector of order p, from level s0 to level s0 + 1 (algorithms 2.7).
 *   m[0] is x0 at s0, m[1], m[2] older;  m_t x0 at the level reached */
static struct row
unipc_move(const struct sd_noise_scheduler *ns, const struct levels *l, int s0, int order, struct row x,
           const struct row m[3], const struct row *m_t)
{
    struct level from = level_at(l->sigma[s0]), to = level_at(l->sigma[s0 + 1]);
    double h = to.lambda - from.lambda, phi1 = l->sigma[s0 + 1] / l->sigma[s0] - 1, hh = -h;
    double B = ns->solver_type == SD_BH1 ? hh : phi1, hphi = phi1 / hh - 1, factorial = 1;
    double r[3], R[3][3], b[3], rho[3] = { 0.5, 0.5, 0.5 };
    struct row y = { { 0 } };
    int unknowns = m_t ? order : order - 1;

    row_add(&y, to.sigma / from.sigma, x);
    row_add(&y, -to.alpha * phi1, m[0]);
    for (int i = 0; i < order - 1; i++)
        r[i] = (-log(l->sigma[s0 - 1 - i]) - from.lambda) / h;
    r[order - 1] = 1;
    for (int k = 0; k < unknowns; k++) {
        b[k] = hphi * factorial / B;
        factorial *= k + 2;
        hphi = hphi / hh - 1 / factorial;
        for (int i = 0; i < unknowns; i++)
            R[k][i] = pow(r[i], k);
    }
    if (unknowns > 1)           /* one unknown is 1/2, as in the reference */
        solve(R, b, unknowns, rho);
    for (int i = 0; i < order - 1; i++) {
        row_add(&y, -to.alpha * B * rho[i] / r[i], m[i + 1]);
        row_add(&y, to.alpha * B * rho[i] / r[i], m[0]);
    }
    if (m_t) {
        row_add(&y, -to.alpha * B * rho[order - 1], *m_t);
        row_add(&y, to.alpha * B * rho[order - 1], m[0]);
    }
    return y;
}

static bool
corrects(const struct sd_noise_scheduler *ns, int i, int first)
{
    for (int k = 0; k < ns->disable_corrector_count; k++)
        if (ns->disable_corrector[k] == i - 1)
            return false;
    return i > first;
}

/* History: slot 0 the state before the last predictor, slots 1 to order the x0 of the last calls, newest first. */
int
sampler_unipc(struct sd_sampler *sampler, const struct levels *l)
{
    const struct sd_noise_scheduler *ns = sampler->scheduler;
    int p = ns->solver_order, order = 0;

    sampler->history = p + 1;
    sampler->calls = l->n - sampler->first;
    for (int i = sampler->first, k = 0; i < l->n; i++, k++) {
        struct sd_sampler_step *step = &sampler->steps[k];
        struct level now = level_at(l->sigma[i]);
        struct row m[4], noise, x = row_of(SD_COL_X);

        predict(sampler, step, now.alpha, now.sigma, 1, &m[0], &noise);
        for (int j = 1; j < 4; j++)
            m[j] = row_of(SD_COL_HISTORY + j);
        if (corrects(ns, i, sampler->first))
            x = unipc_move(ns, l, i - 1, order, row_of(SD_COL_HISTORY), m + 1, &m[0]);
        order = ns->lower_order_final && l->n - i < p ? l->n - i : p;
        order = order < k + 1 ? order : k + 1;
        if (l->sigma[i + 1] == 0)
            order = 1;          /* h is infinite */
        row_put(step->x, unipc_move(ns, l, i, order, x, m, NULL));
        row_put(step->history[0], x);
        for (int j = 0; j < p; j++)
            row_put(step->history[j + 1], m[j]);
        describe(step, l, i);
    }
    return 0;
}
