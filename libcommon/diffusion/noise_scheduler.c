#include "noise_scheduler.h"

#include <math.h>
#include <string.h>

/* --- fields of scheduler_config.json: one line each --- */

enum type { INT, REAL, BOOL, WORD, FLAG, UNSUPPORTED, KNOWN };
enum {
    C_DDPM = 1 << SD_DDPM, C_DDIM = 1 << SD_DDIM, C_PNDM = 1 << SD_PNDM, C_EULER = 1 << SD_EULER,
    C_EULER_A = 1 << SD_EULER_ANCESTRAL, C_DPM = 1 << SD_DPM_MULTISTEP, C_UNIPC = 1 << SD_UNIPC,
    C_ALL = (1 << 7) - 1, C_SIGMA = C_EULER | C_DPM | C_UNIPC, C_SNR = C_ALL & ~C_PNDM,
    C_THRESHOLD = C_DDIM | C_DPM | C_UNIPC, C_SOLVER = C_DPM | C_UNIPC
};

/* WORD: stored as its index.  FLAG: a word of two, stored as a bool.  UNSUPPORTED: a boolean (or null) that must not be
 * set.  KNOWN: read elsewhere, or no part in what is computed here. */
static const struct field {
    const char *name;
    enum type type;
    unsigned classes;
    size_t offset;
    double fallback, min, max;
    const char *words;
} fields[] = {
#define AT(member) offsetof(struct sd_noise_scheduler, member)
    { "num_train_timesteps", INT, C_ALL, AT(num_train_timesteps), 1000, 2, 100000, NULL },
    { "beta_start", REAL, C_ALL, AT(beta_start), 0.0001, 0, 1, NULL },
    { "beta_end", REAL, C_ALL, AT(beta_end), 0.02, 0, 1, NULL },
    { "beta_schedule", WORD, C_ALL, AT(beta_schedule), SD_LINEAR, 0, 0,
      "linear\0scaled_linear\0squaredcos_cap_v2\0sigmoid\0" },
    { "prediction_type", WORD, C_ALL, AT(prediction_type), SD_EPSILON, 0, 0, "epsilon\0v_prediction\0sample\0" },
    { "timestep_spacing", WORD, C_DDPM | C_DDIM | C_PNDM, AT(timestep_spacing), SD_LEADING, 0, 0,
      "linspace\0leading\0trailing\0" },
    { "timestep_spacing", WORD, C_SIGMA | C_EULER_A, AT(timestep_spacing), SD_LINSPACE, 0, 0,
      "linspace\0leading\0trailing\0" },
    { "steps_offset", INT, C_ALL, AT(steps_offset), 0, 0, 100000, NULL },
    { "rescale_betas_zero_snr", BOOL, C_SNR, AT(rescale_betas_zero_snr), 0, 0, 0, NULL },
    { "clip_sample", BOOL, C_DDIM, AT(clip_sample), 1, 0, 0, NULL },
    { "clip_sample_range", REAL, C_DDIM, AT(clip_sample_range), 1, 0, 1e6, NULL },
    { "thresholding", BOOL, C_THRESHOLD, AT(thresholding), 0, 0, 0, NULL },
    { "dynamic_thresholding_ratio", REAL, C_THRESHOLD, AT(dynamic_thresholding_ratio), 0.995, 0, 1, NULL },
    { "sample_max_value", REAL, C_THRESHOLD, AT(sample_max_value), 1, 0, 1e6, NULL },
    { "set_alpha_to_one", BOOL, C_DDIM, AT(set_alpha_to_one), 1, 0, 0, NULL },
    { "set_alpha_to_one", BOOL, C_PNDM, AT(set_alpha_to_one), 0, 0, 0, NULL },
    { "use_karras_sigmas", BOOL, C_SIGMA, AT(use_karras_sigmas), 0, 0, 0, NULL },
    { "use_exponential_sigmas", BOOL, C_SIGMA, AT(use_exponential_sigmas), 0, 0, 0, NULL },
    { "use_lu_lambdas", BOOL, C_DPM, AT(use_lu_lambdas), 0, 0, 0, NULL },
    { "sigma_min", REAL, C_SIGMA, AT(sigma_min), 0, 0, 1e6, NULL },
    { "sigma_max", REAL, C_SIGMA, AT(sigma_max), 0, 0, 1e6, NULL },
    { "final_sigmas_type", FLAG, C_SIGMA, AT(final_sigma_min), 0, 0, 0, "zero\0sigma_min\0" },
    { "interpolation_type", FLAG, C_EULER, AT(log_linear), 0, 0, 0, "linear\0log_linear\0" },
    { "timestep_type", FLAG, C_EULER, AT(continuous_timesteps), 0, 0, 0, "discrete\0continuous\0" },
    { "lambda_min_clipped", REAL, C_DPM, AT(lambda_min_clipped), -INFINITY, -INFINITY, 1e6, NULL },
    { "solver_order", INT, C_SOLVER, AT(solver_order), 2, 1, 3, NULL },
    { "solver_type", WORD, C_DPM, AT(solver_type), SD_MIDPOINT, 0, 0, "midpoint\0heun\0bh1\0bh2\0logrho\0" },
    { "solver_type", WORD, C_UNIPC, AT(solver_type), SD_BH2, 0, 0, "midpoint\0heun\0bh1\0bh2\0logrho\0" },
    { "algorithm_type", WORD, C_DPM, AT(algorithm_type), SD_DPMSOLVER_PLUS, 0, 0,
      "dpmsolver++\0sde-dpmsolver++\0deis\0" },
    { "lower_order_final", BOOL, C_SOLVER, AT(lower_order_final), 1, 0, 0, NULL },
    { "euler_at_final", BOOL, C_DPM, AT(euler_at_final), 0, 0, 0, NULL },
    { "use_beta_sigmas", UNSUPPORTED, C_SIGMA, 0, 0, 0, 0, NULL },
    { "use_flow_sigmas", UNSUPPORTED, C_SOLVER, 0, 0, 0, 0, NULL },
    { "use_dynamic_shifting", UNSUPPORTED, C_SOLVER, 0, 0, 0, 0, NULL },
    { "solver_p", UNSUPPORTED, C_UNIPC, 0, 0, 0, 0, NULL },
    { "variance_type", KNOWN, 0, 0, 0, 0, 0, NULL },
    { "trained_betas", KNOWN, 0, 0, 0, 0, 0, NULL },
    { "disable_corrector", KNOWN, 0, 0, 0, 0, 0, NULL },
    { "predict_x0", KNOWN, 0, 0, 0, 0, 0, NULL },
    { "skip_prk_steps", KNOWN, 0, 0, 0, 0, 0, NULL },
    { "flow_shift", KNOWN, 0, 0, 0, 0, 0, NULL },
    { "shift_terminal", KNOWN, 0, 0, 0, 0, 0, NULL },
    { "time_shift_type", KNOWN, 0, 0, 0, 0, 0, NULL },
    { "_class_name", KNOWN, 0, 0, 0, 0, 0, NULL },
    { "_diffusers_version", KNOWN, 0, 0, 0, 0, 0, NULL },
#undef AT
};
enum { FIELDS = sizeof(fields) / sizeof(fields[0]) };

static int
read_word(const struct field *f, const json_t *config, double *value)
{
    const char *text = NULL;
    char expected[128] = "";
    int index = 0, found = sd_json_text(config, f->name, &text);

    if (found <= 0)
        return found;
    for (const char *w = f->words; *w; w += strlen(w) + 1, index++) {
        if (strcmp(w, text) == 0) {
            *value = index;
            return 1;
        }
        if (*expected)
            strncat(expected, ", ", sizeof(expected) - strlen(expected) - 1);
        strncat(expected, w, sizeof(expected) - strlen(expected) - 1);
    }
    return sd_fail("%s: %.60s, expected %s", f->name, text, expected);
}

static int
read_field(struct sd_noise_scheduler *ns, const struct field *f, const json_t *config)
{
    char *at = (char *)ns + f->offset;
    double value = f->fallback;
    int64_t whole = (int64_t)(f->type == INT ? f->fallback : 0);
    bool flag = value != 0;

    switch (f->type) {
    case INT:
        if (sd_json_int(config, f->name, (int64_t)f->min, (int64_t)f->max, &whole) < 0)
            return -1;
        *(int *)at = (int)whole;
        return 0;
    case REAL:
        if (sd_json_real(config, f->name, &value) < 0)
            return -1;
        if (!(value >= f->min && value <= f->max))
            return sd_fail("%s: %g, expected %g to %g", f->name, value, f->min, f->max);
        *(double *)at = value;
        return 0;
    case BOOL:
        if (sd_json_bool(config, f->name, &flag) < 0)
            return -1;
        *(bool *)at = flag;
        return 0;
    case WORD:
        if (read_word(f, config, &value) < 0)
            return -1;
        *(int *)at = (int)value;
        return 0;
    case FLAG:
        if (read_word(f, config, &value) < 0)
            return -1;
        *(bool *)at = value != 0;
        return 0;
    case UNSUPPORTED: {
        const json_t *v = json_object_get(config, f->name);

        return !v || json_is_null(v) || json_is_false(v) ? 0 : sd_fail("%s: not supported", f->name);
    }
    case KNOWN:
        break;
    }
    return 0;
}

static const char *
unused_fields(struct sd_scope *s, const json_t *config)
{
    const char *unused = NULL, *key;
    json_t *value;

    json_object_foreach((json_t *)config, key, value) {
        int i = 0;

        while (i < FIELDS && strcmp(fields[i].name, key) != 0)
            i++;
        if (i == FIELDS)
            unused = unused ? sd_sprintf(s, "%s, %s", unused, key) : sd_strdup(s, key);
    }
    return unused;
}

/* --- betas and alphas_cumprod --- */

static double
cosine_bar(double t)
{
    double c = cos((t + 0.008) / 1.008 * 1.5707963267948966);

    return c * c;
}

static double
beta_at(const struct sd_noise_scheduler *ns, int t)
{
    double a = ns->beta_start, b = ns->beta_end, T = ns->num_train_timesteps, p = t / (T - 1), x;

    switch (ns->beta_schedule) {
    case SD_SCALED_LINEAR:
        x = sqrt(a) + p * (sqrt(b) - sqrt(a));
        return x * x;
    case SD_SQUAREDCOS_CAP_V2:
        return fmin(1 - cosine_bar((t + 1) / T) / cosine_bar(t / T), 0.999);
    case SD_SIGMOID:
        return (b - a) / (1 + exp(6 - 12 * p)) + a;
    }
    return a + p * (b - a);
}

/* Lin et al. 2305.08891, algorithm 1: sqrt(abar) is shifted and scaled so that its last value is 0, its first stays. */
static void
rescale_zero_snr(double *abar, int T)
{
    double first = sqrt(abar[0]), last = sqrt(abar[T - 1]);

    for (int t = 1; t < T; t++) {
        double r = (sqrt(abar[t]) - last) * (first / (first - last));

        abar[t] = r * r;
    }
    abar[T - 1] = 0;
}

static int
make_alphas(struct sd_scope *s, struct sd_noise_scheduler *ns, const json_t *config)
{
    int T = ns->num_train_timesteps, count = 0;
    double *betas = sd_alloc_array(s, (size_t)T, sizeof(double)), product = 1;
    int trained = sd_json_reals(config, "trained_betas", betas, T, &count);

    if (trained < 0)
        return -1;
    if (trained && count != T)
        return sd_fail("trained_betas: %d values, expected num_train_timesteps %d", count, T);
    ns->alphas_cumprod = betas;         /* in place */
    for (int t = 0; t < T; t++) {
        double beta = trained ? betas[t] : beta_at(ns, t);

        if (!(beta > 0 && beta < 1))
            return sd_fail("beta of timestep %d: %g, expected between 0 and 1", t, beta);
        betas[t] = product *= 1 - beta;
    }
    if (product <= 0)
        return sd_fail("alphas_cumprod of timestep %d: 0, the betas are too large", T - 1);
    if (ns->rescale_betas_zero_snr)
        rescale_zero_snr(ns->alphas_cumprod, T);
    ns->final_alpha_cumprod = ns->set_alpha_to_one ? 1 : ns->alphas_cumprod[0];
    /* sigma must be finite for these: diffusers puts the smallest f16 number there */
    if (ns->rescale_betas_zero_snr && ns->kind >= SD_EULER)
        ns->alphas_cumprod[T - 1] = 0x1p-24;
    return 0;
}

/* --- what does not fit together --- */

static int
check_class(struct sd_noise_scheduler *ns, const json_t *config)
{
    const char *text = NULL;
    bool predict_x0 = true;

    if (sd_json_text(config, "_class_name", &text) < 0)
        return -1;
    if (text && strncmp(text, "FlowMatch", 9) == 0)
        return sd_fail("%.60s: flow models are not supported", text);
    text = NULL;
    if (ns->kind == SD_DPM_MULTISTEP) {
        if (sd_json_text(config, "variance_type", &text) < 0)
            return -1;
        if (text && strncmp(text, "learned", 7) == 0)
            return sd_fail("variance_type: %.60s is not supported", text);
    }
    if (ns->kind == SD_UNIPC) {
        if (sd_json_bool(config, "predict_x0", &predict_x0) < 0
            || sd_json_ints(config, "disable_corrector", ns->disable_corrector, 64, &ns->disable_corrector_count) < 0)
            return -1;
        if (!predict_x0)
            return sd_fail("predict_x0: false is not supported");
    }
    if (ns->use_karras_sigmas + ns->use_exponential_sigmas > 1)
        return sd_fail("use_karras_sigmas and use_exponential_sigmas: only one may be true");
    if (ns->kind == SD_PNDM && ns->prediction_type == SD_SAMPLE)
        return sd_fail("prediction_type: sample is not defined for PNDM, expected epsilon or v_prediction");
    if (ns->beta_schedule == SD_SIGMOID && ns->kind != SD_DDPM)
        return sd_fail("beta_schedule: sigmoid is for training only");
    return 0;
}

/* Names of the other multistep class mean its default, as in diffusers. */
static void
translate_solver(struct sd_noise_scheduler *ns)
{
    if (ns->kind == SD_DPM_MULTISTEP && ns->solver_type > SD_HEUN)
        ns->solver_type = SD_MIDPOINT;
    if (ns->kind == SD_UNIPC && ns->solver_type != SD_BH1)
        ns->solver_type = SD_BH2;
    if (ns->algorithm_type == SD_DEIS)
        ns->algorithm_type = SD_DPMSOLVER_PLUS;
    ns->use_lu_lambdas = ns->use_lu_lambdas && !ns->use_karras_sigmas;
}

struct sd_noise_scheduler *
sd_noise_scheduler_new(struct sd_scope *s, const json_t *config, enum sd_scheduler_class kind)
{
    struct sd_noise_scheduler *ns = sd_alloc(s, sizeof(*ns));

    ns->kind = kind;
    if (!json_is_object(config))
        return sd_fail_null("scheduler config: expected an object, found %s", sd_json_kind(config));
    for (int i = 0; i < FIELDS; i++)
        if (fields[i].classes & 1u << kind && read_field(ns, &fields[i], config) < 0)
            return NULL;
    if (check_class(ns, config) < 0 || make_alphas(s, ns, config) < 0)
        return NULL;
    translate_solver(ns);
    ns->unused = unused_fields(s, config);
    return ns;
}

json_t *
sd_scheduler_config_load(struct sd_scope *s, const char *path)
{
    return sd_json_load(s, path, SD_JSON_NONFINITE);
}

json_t *
sd_scheduler_config_published(struct sd_scope *s, const char *family)
{
#define SD_BETAS "\"num_train_timesteps\": 1000, \"beta_start\": 0.00085, \"beta_end\": 0.012, " \
                 "\"beta_schedule\": \"scaled_linear\""
    static const char pndm[] =
        "{\"_class_name\": \"PNDMScheduler\", " SD_BETAS ", \"clip_sample\": false, \"set_alpha_to_one\": false, "
        "\"skip_prk_steps\": true, \"steps_offset\": 1, \"trained_betas\": null}";
    static const char ddim[] =
        "{\"_class_name\": \"DDIMScheduler\", " SD_BETAS ", \"clip_sample\": false, \"set_alpha_to_one\": false, "
        "\"prediction_type\": \"v_prediction\", \"steps_offset\": 1, \"trained_betas\": null}";
    static const char euler[] =
        "{\"_class_name\": \"EulerDiscreteScheduler\", " SD_BETAS ", \"clip_sample\": false, "
        "\"interpolation_type\": \"linear\", \"prediction_type\": \"epsilon\", \"set_alpha_to_one\": false, "
        "\"skip_prk_steps\": true, \"steps_offset\": 1, \"timestep_spacing\": \"leading\", "
        "\"trained_betas\": null, \"use_karras_sigmas\": false}";
#undef SD_BETAS
    const char *text = strcmp(family, "sd1") == 0 || strcmp(family, "sd2") == 0 ? pndm
                       : strcmp(family, "sd2-v") == 0 ? ddim : strcmp(family, "sdxl") == 0 ? euler : NULL;

    if (!text)
        return sd_fail_null("%.60s: no published noise scheduler is known", family);
    return sd_json_parse(s, text, strlen(text), 0);
}

const char *
sd_prediction_name(int prediction_type)
{
    return prediction_type == SD_EPSILON ? "epsilon" : prediction_type == SD_V_PREDICTION ? "v_prediction" : "sample";
}

static void
check_timestep(const struct sd_noise_scheduler *ns, const char *where, int t)
{
    if (t < 0 || t >= ns->num_train_timesteps)
        sd_bug(where, "timestep %d of %d", t, ns->num_train_timesteps);
}

void
sd_noise_coefficients(const struct sd_noise_scheduler *ns, int t, double *latents, double *noise)
{
    check_timestep(ns, "noise_coefficients", t);
    *latents = sqrt(ns->alphas_cumprod[t]);
    *noise = sqrt(1 - ns->alphas_cumprod[t]);
}

double
sd_noise_snr(const struct sd_noise_scheduler *ns, int t)
{
    check_timestep(ns, "noise_snr", t);
    return ns->alphas_cumprod[t] / (1 - ns->alphas_cumprod[t]);
}

double
sd_noise_sigma(const struct sd_noise_scheduler *ns, double t)
{
    int low = (int)fmin(fmax(floor(t), 0), ns->num_train_timesteps - 1), high = low + 1;
    double a = ns->alphas_cumprod[low], sigma = sqrt((1 - a) / a);

    if (t <= low || high >= ns->num_train_timesteps)
        return sigma;
    a = ns->alphas_cumprod[high];
    return sigma + (sqrt((1 - a) / a) - sigma) * (t - low);
}
