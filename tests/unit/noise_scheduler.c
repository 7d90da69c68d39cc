/* Noise schedules: golden values, diffusers' tables, configurations as files and as published, refusals. */
#include "diffusion/noise_scheduler.h"
#include "tests/check.h"

static const char cases_file[] = "tests/data/samplers/cases.json";

static struct sd_noise_scheduler *
make(struct sd_scope *s, const char *text, enum sd_scheduler_class kind)
{
    json_t *config = sd_json_parse(s, text, strlen(text), SD_JSON_NONFINITE);

    return config ? sd_noise_scheduler_new(s, config, kind) : NULL;
}

#define BETAS "\"beta_start\": 0.00085, \"beta_end\": 0.012, \"beta_schedule\": \"scaled_linear\""

/* algorithms 1.1 and 1.2 */
static void
golden(struct sd_scope *s)
{
    static const int at[] = { 0, 1, 250, 500, 750, 999 };
    static const double abar[] = { 0.99915, 0.99829603, 0.67379263, 0.27633268, 0.05616985, 0.00466010 };
    struct sd_noise_scheduler *ns = make(s, "{" BETAS "}", SD_DDPM),
                              *z = make(s, "{" BETAS ", \"rescale_betas_zero_snr\": true}", SD_DDPM);
    double worst = 0, a, e;
    int five = 0, one = 0;

    for (int i = 0; i < 6; i++)
        worst = fmax(worst, fabs(ns->alphas_cumprod[at[i]] - abar[i]));
    CHECK(worst <= 5.1e-9, "alphas_cumprod: %.1e", worst);
    CHECK(fabs(sd_noise_sigma(ns, 0) - 0.029167) <= 5e-7 && fabs(sd_noise_sigma(ns, 500) - 1.618279) <= 5e-7
              && fabs(sd_noise_sigma(ns, 999) - 14.614641) <= 5e-7, "sigmas %.6f %.6f %.6f", sd_noise_sigma(ns, 0),
          sd_noise_sigma(ns, 500), sd_noise_sigma(ns, 999));
    CHECK(fabs(sd_noise_sigma(ns, 500.25) - (0.75 * sd_noise_sigma(ns, 500) + 0.25 * sd_noise_sigma(ns, 501))) <= 1e-15,
          "sigma between timesteps");
    CHECK(fabs(sd_noise_snr(ns, 0) - 1175.47) <= 5e-3 && fabs(sd_noise_snr(ns, 500) - 0.381850) <= 5e-7
              && fabs(sd_noise_snr(ns, 999) - 0.004682) <= 5e-7,
          "snr %.2f %.6f %.6f", sd_noise_snr(ns, 0), sd_noise_snr(ns, 500), sd_noise_snr(ns, 999));
    for (int t = 999; t >= 0; t--) {
        five = sd_noise_snr(ns, t) < 5 ? t : five;
        one = sd_noise_snr(ns, t) < 1 ? t : one;
    }
    CHECK(five == 147 && one == 354, "first t with snr < 5 is %d, with snr < 1 %d", five, one);
    sd_noise_coefficients(ns, 500, &a, &e);
    CHECK(fabs(a * a - 0.27633268) <= 5.1e-9 && fabs(a * a + e * e - 1) <= 1e-15, "noise coefficients %.9f %.9f", a, e);
    CHECK(z->alphas_cumprod[0] == ns->alphas_cumprod[0] && fabs(z->alphas_cumprod[1] - 0.9982334461) <= 5.1e-11
              && fabs(z->alphas_cumprod[500] - 0.24101878) <= 5.1e-9
              && fabs(z->alphas_cumprod[998] - 1.9679e-7) <= 5.1e-12 && z->alphas_cumprod[999] == 0,
          "zero terminal SNR: %.10f %.8f %.4e %g", z->alphas_cumprod[1], z->alphas_cumprod[500], z->alphas_cumprod[998],
          z->alphas_cumprod[999]);
    CHECK(sd_noise_snr(z, 999) == 0, "snr is 0 at the end");
    z = make(s, "{" BETAS ", \"rescale_betas_zero_snr\": true}", SD_EULER);
    CHECK(fabs(sd_noise_sigma(z, 999) - 4096) <= 1e-3, "Euler: sigma %.3f there", sd_noise_sigma(z, 999));
    CHECK(make(s, "{" BETAS ", \"rescale_betas_zero_snr\": true}", SD_PNDM)->alphas_cumprod[999] > 0.004,
          "PNDM has no such field");
}

/* Every beta schedule, plain and rescaled, against diffusers' float32 tables: its rounding of 1 - beta adds up to 1e-6.
 */
static void
tables(struct sd_scope *s)
{
    json_t *root = sd_json_load(s, cases_file, 0), *one;
    const char *name;

    if (!CHECK(root != NULL, "%s: %s", cases_file, root ? "read" : sd_reason()))
        return;
    json_object_foreach(json_object_get(root, "alphas_cumprod"), name, one) {
        struct sd_noise_scheduler *ns = sd_noise_scheduler_new(s, json_array_get(one, 0), SD_DDPM);
        double worst = 0;

        for (size_t i = 0; ns && i < json_array_size(json_array_get(one, 1)); i++) {
            int t = (int)json_integer_value(json_array_get(json_array_get(one, 1), i));
            double want = json_number_value(json_array_get(json_array_get(one, 2), i));

            /* relative where it is a signal, absolute where it is the remains of a subtraction */
            worst = fmax(worst, fabs(ns->alphas_cumprod[t] - want) / fmax(want, 0.01));
        }
        CHECK(ns && worst <= 1.5e-6, "alphas_cumprod of %s: %.1e", name, worst);
    }
}

static void
defaults(struct sd_scope *s)
{
    struct sd_noise_scheduler *d = make(s, "{}", SD_DDIM), *p = make(s, "{}", SD_PNDM), *e = make(s, "{}", SD_EULER);
    struct sd_noise_scheduler *m =
        make(s, "{\"solver_type\": \"bh2\", \"algorithm_type\": \"deis\"}", SD_DPM_MULTISTEP);
    struct sd_noise_scheduler *u = make(s, "{\"solver_type\": \"midpoint\", \"disable_corrector\": [0, 3]}", SD_UNIPC),
                              *f;

    CHECK(d->clip_sample && d->clip_sample_range == 1 && d->set_alpha_to_one && d->timestep_spacing == SD_LEADING
              && d->beta_schedule == SD_LINEAR && d->beta_end == 0.02 && d->final_alpha_cumprod == 1,
          "DDIM's defaults");
    CHECK(!p->clip_sample && !p->set_alpha_to_one && p->timestep_spacing == SD_LEADING
              && p->final_alpha_cumprod == p->alphas_cumprod[0], "PNDM's defaults");
    CHECK(e->timestep_spacing == SD_LINSPACE && !e->final_sigma_min && !e->use_karras_sigmas && !e->clip_sample,
          "Euler's defaults");
    CHECK(m->solver_order == 2 && m->solver_type == SD_MIDPOINT && m->algorithm_type == SD_DPMSOLVER_PLUS
              && m->lower_order_final && isinf(m->lambda_min_clipped),
          "DPM-Solver++'s defaults, and its reading of UniPC's words");
    CHECK(u->solver_type == SD_BH2 && u->disable_corrector_count == 2 && u->disable_corrector[1] == 3,
          "UniPC's defaults");
    f = sd_noise_scheduler_new(s, sd_scheduler_config_published(s, "sd1"), SD_DDIM);
    CHECK(f && !f->clip_sample && !f->set_alpha_to_one && f->steps_offset == 1 && f->prediction_type == SD_EPSILON
              && !f->unused,
          "SD1's published configuration, run as DDIM: the file wins");
    f = sd_noise_scheduler_new(s, sd_scheduler_config_published(s, "sd2-v"), SD_DPM_MULTISTEP);
    CHECK(f && f->prediction_type == SD_V_PREDICTION && f->timestep_spacing == SD_LINSPACE && !f->unused,
          "SD2's, run as DPM-Solver++: what it leaves out is that class's default");
    f = sd_noise_scheduler_new(s, sd_scheduler_config_published(s, "sdxl"), SD_EULER);
    CHECK(f && f->timestep_spacing == SD_LEADING && !f->unused, "SDXL's");
    CHECK(!sd_scheduler_config_published(s, "sd9"), "sd9: %s", sd_reason());
    f = make(s, "{\"num_train_timesteps\": 4, \"trained_betas\": [0.1, 0.2, 0.3, 0.4], \"color\": 1, \"mood\": null}",
             SD_DDPM);
    CHECK(f && fabs(f->alphas_cumprod[3] - 0.9 * 0.8 * 0.7 * 0.6) <= 1e-15, "trained_betas");
    CHECK(f && f->unused && strcmp(f->unused, "color, mood") == 0, "fields that nobody knows are named: %s",
          f ? f->unused : "");
}

static void
refused(struct sd_scope *s, enum sd_scheduler_class kind, const char *text, const char *message)
{
    struct sd_noise_scheduler *ns = make(s, text, kind);

    CHECK(!ns && strstr(sd_reason(), message), "%s: %s", text, ns ? "accepted" : sd_reason());
}

static void
refusals(struct sd_scope *s)
{
    refused(s, SD_DDIM, "[]", "expected an object");
    refused(s, SD_DDIM, "{\"beta_start\": \"small\"}", "beta_start: expected");
    refused(s, SD_DDIM, "{\"beta_start\": NaN}", "beta_start: nan");
    refused(s, SD_DDIM, "{\"beta_start\": -1}", "beta_start: -1, expected 0 to 1");
    refused(s, SD_DDIM, "{\"beta_end\": 1}", "beta of timestep 999: 1, expected between 0 and 1");
    refused(s, SD_DDIM, "{\"beta_end\": 1e400}", "");
    refused(s, SD_DDIM, "{\"num_train_timesteps\": 0}", "num_train_timesteps");
    refused(s, SD_DDIM, "{\"num_train_timesteps\": 1e9}", "num_train_timesteps");
    refused(s, SD_DDIM, "{\"num_train_timesteps\": 1000000000000}", "num_train_timesteps");
    refused(s, SD_DDIM, "{\"beta_schedule\": \"exponential\"}",
            "beta_schedule: exponential, expected linear, scaled_linear");
    refused(s, SD_DDIM, "{\"prediction_type\": \"flow_prediction\"}",
            "prediction_type: flow_prediction, expected epsilon");
    refused(s, SD_DDIM, "{\"timestep_spacing\": 3}", "timestep_spacing: expected");
    refused(s, SD_DDIM, "{\"clip_sample\": \"yes\"}", "clip_sample: expected");
    refused(s, SD_DDIM, "{\"trained_betas\": [0.1]}", "trained_betas: 1 values, expected num_train_timesteps 1000");
    refused(s, SD_DDIM, "{\"num_train_timesteps\": 2, \"trained_betas\": [0.1, 2]}", "beta of timestep 1: 2, expected");
    refused(s, SD_DDIM, "{\"num_train_timesteps\": 2, \"trained_betas\": [0.1, 0.1, 0.1]}", "trained_betas");
    refused(s, SD_DDIM, "{\"_class_name\": \"FlowMatchEulerDiscreteScheduler\"}", "flow models are not supported");
    refused(s, SD_EULER, "{\"use_beta_sigmas\": true}", "use_beta_sigmas: not supported");
    refused(s, SD_EULER, "{\"use_karras_sigmas\": true, \"use_exponential_sigmas\": true}", "only one may be true");
    refused(s, SD_EULER, "{\"beta_schedule\": \"sigmoid\"}", "training only");
    refused(s, SD_DPM_MULTISTEP, "{\"variance_type\": \"learned_range\"}", "variance_type: learned_range");
    CHECK(!sd_scheduler_config_load(s, "tests/data/samplers/absent.json"), "an absent file: %s", sd_reason());
}

int
main(void)
{
    struct sd_scope *s = sd_scope_open();

    golden(s);
    tables(s);
    defaults(s);
    refusals(s);
    sd_scope_close(s);
    return check_done();
}
