/* Samplers against stored values of diffusers (tests/reference/samplers.py), step by step; convergence on Gaussian
 * data; guidance; refusals. */
#include "diffusion/samplers.h"
#include "tests/check.h"

enum { N = 8 };
static const char cases_file[] = "tests/data/samplers/cases.json", latents_file[] = "tests/data/samplers/latents.f32",
                  float_file[] = "tests/data/samplers/latents_float.f32";

static void
pattern(float z[N], int a, int b, int m, double scale)
{
    for (int j = 0; j < N; j++)
        z[j] = (float)(((a * j + b) % m - (m - 1) / 2.0) / scale);
}

/* The model of the script: smooth, elementwise, in double, without library functions. */
static void
model(float out[N], const float x[N], double t)
{
    double s = (double)(float)t / 999;

    for (int j = 0; j < N; j++) {
        double v = x[j], w = ((5 * j) % 8 - 3.5) / 4;

        out[j] = (float)(v * (0.25 + 0.5 * s) + 0.3 * v / (1 + v * v) + 0.1 * w * (1 - s));
    }
}

/* What a case may be off by, and how far off it was. */
struct worst {
    double latents, timestep, sigma;
};

/* run_case - every step of one sampler; false when the shape of the run differs. */
static bool
run_case(const struct sd_sampler *p, struct sd_scope *s, FILE *f, struct worst *w)
{
    struct sd_sampler_state *state = sd_sampler_state_new(s, p, 1, N);
    float head[1 + N], want[3 + N], x[N], out[N], in[N], noise[N], z0[N], fresh[N];

    if (fread(head, sizeof(head), 1, f) != 1 || head[0] != p->calls) {
        printf("# %s: %d calls, expected %g\n", p->name, p->calls, head[0]);
        return false;
    }
    pattern(noise, 37, 11, 16, 5);
    pattern(z0, 7, 5, 11, 6);
    sd_sampler_start(p, x, p->start_latents != 0 ? z0 : NULL, noise, N);
    w->latents = fmax(w->latents, check_distance(x, head + 1, N));
    for (int i = 0; i < p->calls; i++) {
        const struct sd_sampler_step *step = &p->steps[i];
        double error;

        if (fread(want, sizeof(want), 1, f) != 1)
            return false;
        for (int j = 0; j < N; j++)
            in[j] = (float)step->input_scale * x[j];
        model(out, in, step->timestep);
        pattern(fresh, 29, 13 * i + 3, 17, 6);
        sd_sampler_apply(p, i, state, x, out, p->draws_noise ? fresh : NULL);
        error = check_distance(x, want + 3, N);
        w->latents = error <= w->latents ? w->latents : error;
        w->timestep = fmax(w->timestep, fabs(step->timestep - want[0]));
        w->sigma = fmax(w->sigma, fabs(step->input_scale - want[1]) / want[1]);
        if (want[2] != 0)
            w->sigma = fmax(w->sigma, fabs(step->sigma - want[2]) / want[2]);
    }
    return true;
}

/* run_cases - all cases, or with `common` those of the published SD configurations with 10 and 25 steps, against a
 * file. */
static void
run_cases(const json_t *root, const char *path, bool common, struct worst bound)
{
    const json_t *configs = json_object_get(root, "configs"), *cases = json_object_get(root, "cases");
    FILE *f = fopen(path, "rb");
    struct worst all = { 0 };
    size_t i;
    json_t *c;

    if (!CHECK(f && cases, "%s is there", path))
        return;
    json_array_foreach((json_t *)cases, i, c) {
        const char *config = json_string_value(json_array_get(c, 0)), *name = json_string_value(json_array_get(c, 1));
        const char *prediction = json_string_value(json_array_get(c, 2));
        int n = (int)json_integer_value(json_array_get(c, 3));
        const json_t *strength = json_array_get(c, 4);
        double part = json_number_value(strength);
        struct worst w = { 0 };

        if (common && (strncmp(config, "sd", 2) != 0 || strcmp(config, "sde") == 0 || strcmp(config, "sde3") == 0
                       || (n != 10 && n != 25)))
            continue;
        struct sd_scope *s = sd_scope_open();
        json_t *fields = json_copy(json_object_get(configs, config));
        json_object_set_new(fields, "prediction_type", json_string(prediction));
        struct sd_sampler *p = sd_sampler_new(s, fields, name, n, json_is_null(strength) ? NULL : &part);
        bool ran = p && run_case(p, s, f, &w);
        /* order 3 to the very end: coefficients of 22 in the last step enlarge float's rounding */
        double latents =
            strcmp(name, "unipc") == 0 && strcmp(config, "order3_trailing") == 0 ? 2 * bound.latents : bound.latents;
        CHECK(ran && w.latents <= latents && w.timestep <= bound.timestep && w.sigma <= bound.sigma,
              "%s %s %s n=%d strength %g: latents %.1e, timesteps %.1e, sigmas %.1e%s%s", name, config, prediction, n,
              part, w.latents, w.timestep, w.sigma, p ? "" : " ", p ? "" : sd_reason());
        all.latents = fmax(all.latents, w.latents);
        all.timestep = fmax(all.timestep, w.timestep);
        all.sigma = fmax(all.sigma, w.sigma);
        json_decref(fields);
        sd_scope_close(s);
        if (!ran)
            break;
    }
    CHECK(getc(f) == EOF, "%s read to its end; worst latents %.1e, timesteps %.1e, sigmas %.1e", path, all.latents,
          all.timestep, all.sigma);
    fclose(f);
}

/* The formulas: diffusers made to compute in double; what is left is our float arithmetic on the latents. */
static const struct worst in_double = { 2e-6, 1e-4, 1e-6 };
/* diffusers as it is: its float32 alphas_cumprod is off by 1e-6, sigma at timestep 0 by 2e-5 (and with it Karras'
 * levels and their real timesteps), which the few steps that shrink the latents most enlarge. */
static const struct worst in_float = { 2e-5, 6e-4, 3e-5 };

/* --- timesteps of every number of steps --- */

static uint32_t
crc32_of(uint32_t crc, const void *data, size_t n)
{
    crc = ~crc;
    for (size_t i = 0; i < n; i++) {
        crc ^= ((const unsigned char *)data)[i];
        for (int k = 0; k < 8; k++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

static void
every_number_of_steps(const json_t *root)
{
    const json_t *config = json_object_get(json_object_get(root, "configs"), "sd15"),
                 *sums = json_object_get(root, "timesteps");
    static const char *const spacing[] = { "linspace", "leading", "trailing" };
    static float t[1001];

    for (int k = 0; sd_sampler_names[k]; k++) {
        for (int j = 0; j < 3; j++) {
            json_t *fields = json_copy((json_t *)config);
            uint32_t crc = 0;
            int count = 0;
            char key[64];

            json_object_set_new(fields, "timestep_spacing", json_string(spacing[j]));
            for (int n = 1; n <= 1000; n++) {
                struct sd_scope *s = sd_scope_open();
                struct sd_sampler *p = sd_sampler_new(s, fields, sd_sampler_names[k], n, NULL);

                for (int i = 0; p && i < p->calls; i++)
                    t[i] = (float)p->steps[i].timestep;
                if (p && p->calls > n)      /* PNDM: the second level twice */
                    memmove(t + 1, t + 2, (size_t)(n - 1) * sizeof(float));
                if (p)
                    crc = crc32_of(crc, t, (size_t)n * sizeof(float)), count++;
                sd_scope_close(s);
            }
            snprintf(key, sizeof(key), "%s %s", sd_sampler_names[k], spacing[j]);
            const json_t *sum = json_object_get(sums, key);
            CHECK(json_integer_value(json_array_get(sum, 0)) == crc
                      && json_integer_value(json_array_get(sum, 1)) == count,
                  "%s: timesteps of all %d numbers of steps: %08x", key, count, crc);
            json_decref(fields);
        }
    }
}

/* --- Gaussian data: the exact solution is known (algorithms 2.2) --- */

/* In double, with the sampler's own coefficients: x(sigma_max) = 3 sigma_max on n Karras levels without the final 0. */
static double
gaussian_error(struct sd_scope *s, const char *name, int n, bool exploding)
{
    json_t *config = sd_scheduler_config_published(s, "sd1");
    double sigma[64], max = 14.614641, min = 0.029167, var = 0.7 * 0.7, x, h[SD_HISTORY_MAX] = { 0 }, exact;

    json_object_set_new(config, "lower_order_final", json_boolean(strcmp(name, "unipc") == 0));
    struct sd_noise_scheduler *ns = sd_noise_scheduler_new(s, config, SD_EULER);
    max = sd_noise_sigma(ns, 999);
    min = sd_noise_sigma(ns, 0);
    for (int i = 0; i < n; i++)
        sigma[i] = pow(pow(max, 1 / 7.0) + i / (n - 1.0) * (pow(min, 1 / 7.0) - pow(max, 1 / 7.0)), 7);
    struct sd_sampler *p = sd_sampler_from_sigmas(s, config, name, sigma, n - 1);
    x = 3 * max / (exploding ? 1 : sqrt(1 + max * max));
    for (int i = 0; i < p->calls; i++) {
        const struct sd_sampler_step *step = &p->steps[i];
        double k = step->sigma, ve = exploding ? x : x * sqrt(1 + k * k), denoised = ve * var / (var + k * k);
        double in[SD_COLUMNS] = { x, (ve - denoised) / k, 0, h[0], h[1], h[2], h[3], 0 },
               next[1 + SD_HISTORY_MAX] = { 0 };

        for (int c = 0; c < SD_COLUMNS; c++) {
            next[0] += step->x[c] * in[c];
            for (int j = 0; j < SD_HISTORY_MAX; j++)
                next[j + 1] += step->history[j][c] * in[c];
        }
        x = next[0];
        memcpy(h, next + 1, sizeof(h));
    }
    exact = 3 * max * sqrt((var + min * min) / (var + max * max));
    return x * (exploding ? 1 : sqrt(1 + min * min)) - exact;
}

static void
gaussian_data(struct sd_scope *s)
{
    static const int n[3] = { 10, 20, 40 };
    static const char *const name[3] = { "euler", "dpmpp_2m", "unipc" };
    static const double golden[3][3] = { { -0.34125, 0.116354, 0.0709728 }, { -0.16919, 0.028493, 0.0109408 },
                                         { -0.08420, 0.006428, 0.0011937 } };
    static const double digit[3] = { 1e-5, 1e-6, 1e-7 };

    for (int k = 0; k < 3; k++)
        for (int i = 0; i < 3; i++) {
            double e = gaussian_error(s, name[k], n[i], k == 0);

            CHECK(fabs(e - golden[i][k]) <= 0.6 * digit[k], "Gaussian data, %s, n=%d: %.8f, expected %.7f", name[k],
                  n[i], e, golden[i][k]);
        }
}

/* Truths that need no reference. */
static void
identities(struct sd_scope *s)
{
    json_t *config = sd_scheduler_config_published(s, "sd1");
    struct sd_sampler *a = sd_sampler_new(s, config, "euler_a", 10, NULL),
                      *d = sd_sampler_new(s, config, "ddim", 2, NULL);
    struct sd_sampler *m = sd_sampler_new(s, config, "dpmpp_2m", 10, NULL),
                      *u = sd_sampler_new(s, config, "unipc", 10, NULL);
    double worst = 0, up, r;

    for (int i = 0; i + 1 < a->calls; i++) {
        /* down and up of a step: x' = (down / sigma) x + ..., up^2 + down^2 = sigma'^2 */
        const struct sd_sampler_step *step = &a->steps[i];
        double to = a->steps[i + 1].sigma, down = step->sigma + step->x[SD_COL_OUT];

        up = step->x[SD_COL_NOISE];
        worst = fmax(worst, fabs(up * up + down * down - to * to) / (to * to));
    }
    CHECK(worst <= 1e-12 && a->draws_noise, "euler_a: up^2 + down^2 = sigma'^2: %.1e", worst);
    CHECK(fabs(a->steps[9].x[SD_COL_NOISE]) == 0 && fabs(a->steps[9].x[SD_COL_X] - 1) <= 1e-15
              && fabs(a->steps[9].x[SD_COL_OUT] + a->steps[9].sigma) <= 1e-15, "euler_a: the last step gives x0");
    r = m->steps[9].sigma;
    CHECK(fabs(m->steps[9].x[SD_COL_X] - sqrt(1 + r * r)) <= 1e-14 && m->steps[9].x[SD_COL_HISTORY] == 0,
          "dpmpp_2m: the last step gives x0");
    CHECK(fabs(m->steps[0].x[SD_COL_X] - u->steps[0].x[SD_COL_X]) <= 1e-14
              && fabs(m->steps[0].x[SD_COL_OUT] - u->steps[0].x[SD_COL_OUT]) <= 1e-14,
          "dpmpp_2m and unipc begin alike");
    /* DDIM is Euler in sigma space */
    double sd[3] = { d->steps[0].sigma, d->steps[1].sigma, 0 };
    struct sd_sampler *e = sd_sampler_from_sigmas(s, config, "euler", sd, 2);
    double from = sqrt(1 + sd[0] * sd[0]), to = sqrt(1 + sd[1] * sd[1]);
    CHECK(fabs(d->steps[0].x[SD_COL_X] - e->steps[0].x[SD_COL_X] * from / to) <= 1e-14
              && fabs(d->steps[0].x[SD_COL_OUT] - e->steps[0].x[SD_COL_OUT] / to) <= 1e-14,
          "ddim is Euler on x / sqrt(abar)");
    CHECK(fabs(sd_sampler_new(s, sd_scheduler_config_published(s, "sdxl"), "euler", 5, NULL)->start_noise - 5.23091)
              <= 1e-5,
          "leading, n=5: start noise 5.23091");
}

/* A batch is its samples, each alone; a tail that is no whole chunk; clamps per sample. */
static void
batches(struct sd_scope *s)
{
    enum { B = 3, M = 1111 };
    static float x[B * M], out[B * M], noise[B * M], alone[M];
    static const char *const text[] = { "{\"thresholding\": true, \"sample_max_value\": 2}", "{\"clip_sample\": true}",
                                        "{}" };

    for (int c = 0; c < 3; c++) {
        json_t *config = sd_json_parse(s, text[c], strlen(text[c]), 0);

        for (int k = 0; sd_sampler_names[k]; k++) {
            struct sd_sampler *p = sd_sampler_new(s, config, sd_sampler_names[k], 4, NULL);
            struct sd_sampler_state *all = sd_sampler_state_new(s, p, B, M), *one = sd_sampler_state_new(s, p, 1, M);

            for (int i = 0; i < B * M; i++) {
                x[i] = (float)(i * 17 % 101 - 50) / 20;
                noise[i] = (float)(i * 29 % 97 - 48) / 30;
            }
            memcpy(alone, x + M, sizeof(alone));
            for (int i = 0; i < p->calls; i++) {
                for (int j = 0; j < B * M; j++)
                    out[j] = 0.5f * x[j] - 0.1f * noise[j] * (float)(j / M);
                sd_sampler_apply(p, i, one, alone, out + M, noise + M);
                sd_sampler_apply(p, i, all, x, out, noise);
            }
            CHECK(memcmp(alone, x + M, sizeof(alone)) == 0 && isfinite(x[B * M - 1]),
                  "%s, %s: a sample of a batch is itself", p->name, text[c]);
        }
    }
}

static void
refused(struct sd_scope *s, const char *name, const char *text, int n, double strength, const char *message)
{
    json_t *config = sd_json_parse(s, text, strlen(text), SD_JSON_NONFINITE);
    struct sd_sampler *p = sd_sampler_new(s, config, name, n, strength != 0 ? &strength : NULL);

    CHECK(!p && strstr(sd_reason(), message), "%s, n=%d: %s", name, n, p ? "accepted" : sd_reason());
}

static void
refusals(struct sd_scope *s)
{
    static const char *const good[] = { "{}", "{\"lambda_min_clipped\": -Infinity, \"sigma_min\": null}",
                                        "{\"use_beta_sigmas\": false, \"solver_p\": null}" };

    refused(s, "heun", "{}", 10, 0, "sampler heun: unknown");
    refused(s, "ddim", "{}", 0, 0, "num_inference_steps: 0, expected 1 to");
    refused(s, "ddim", "{}", 1001, 0, "num_inference_steps: 1001, expected 1 to the model's 1000");
    refused(s, "ddim", "{\"steps_offset\": 1}", 1000, 0, "reaches timestep 1000");
    refused(s, "euler", "{\"steps_offset\": 1, \"timestep_spacing\": \"leading\"}", 1000, 0, "reaches timestep 1000");
    refused(s, "dpmpp_2m", "{\"timestep_spacing\": \"leading\"}", 1000, 0, "twice");
    refused(s, "dpmpp_2m", "{}", 1000, 0, "num_inference_steps: 1000");
    refused(s, "unipc", "{}", 1000, 0, "num_inference_steps: 1000");
    refused(s, "ddim", "{}", 20, 0.04, "strength: 0.04 of 20 steps leaves none");
    refused(s, "ddim", "{}", 20, 1.5, "strength: 1.5, expected");
    refused(s, "ddim", "{}", 20, NAN, "strength: nan, expected");
    refused(s, "ddim", "{\"rescale_betas_zero_snr\": true, \"timestep_spacing\": \"trailing\"}", 10, 0,
            "epsilon says nothing");
    refused(s, "pndm", "{\"prediction_type\": \"sample\"}", 10, 0, "prediction_type: sample is not defined for PNDM");
    refused(s, "dpmpp_2m_karras", "{\"use_exponential_sigmas\": true}", 10, 0, "use_exponential_sigmas");
    refused(s, "dpmpp_2m", "{\"algorithm_type\": \"dpmsolver\"}", 10, 0, "algorithm_type: dpmsolver, expected");
    refused(s, "unipc", "{\"use_flow_sigmas\": true}", 10, 0, "use_flow_sigmas: not supported");
    refused(s, "unipc", "{\"predict_x0\": false}", 10, 0, "predict_x0");
    refused(s, "unipc", "{\"solver_order\": 7}", 10, 0, "solver_order");
    for (int i = 0; i < 3; i++)
        for (int k = 0; sd_sampler_names[k]; k++) {
            struct sd_sampler *p = sd_sampler_new(s, sd_json_parse(s, good[i], strlen(good[i]), SD_JSON_NONFINITE),
                                                  sd_sampler_names[k], 10, NULL);

            CHECK(p != NULL, "%s takes %s%s%s", sd_sampler_names[k], good[i], p ? "" : ": ", p ? "" : sd_reason());
        }
    double rising[3] = { 3, 4, 0 };
    CHECK(!sd_sampler_from_sigmas(s, sd_scheduler_config_published(s, "sd1"), "euler", rising, 2), "rising sigmas: %s",
          sd_reason());
}

static void
guidance(void)
{
    float u[10], c[10], o[10], p[5], q[5];
    double sc = 0, so = 0;

    for (int i = 0; i < 10; i++) {
        u[i] = (float)(i * 7 % 10) / 4 - 1;
        c[i] = (float)(i * 3 % 10) / 3 - 1.2f;
    }
    sd_guidance(o, u, c, 2, 5, 1, 0);
    double one = check_distance(o, c, 10);
    sd_guidance(o, u, c, 2, 5, 0, 0);
    CHECK(one <= 1e-7 && check_distance(o, u, 10) == 0, "guidance: scale 1 gives cond, 0 gives uncond");
    sd_guidance(o, NULL, c, 2, 5, 7, 0.7);
    CHECK(memcmp(o, c, sizeof(c)) == 0, "guidance: without uncond, cond");
    sd_guidance(o, u, c, 2, 5, 7.5, 0);
    CHECK(fabs(o[3] - (u[3] + 7.5 * (c[3] - u[3]))) <= 1e-6, "guidance: u + s (c - u)");
    sd_guidance(o, u, c, 2, 5, 7.5, 1);
    for (int b = 0; b < 2; b++) {
        double mc = 0, mo = 0, vc = 0, vo = 0;

        for (int i = 0; i < 5; i++)
            mc += c[5 * b + i] / 5, mo += o[5 * b + i] / 5;
        for (int i = 0; i < 5; i++)
            vc += pow(c[5 * b + i] - mc, 2), vo += pow(o[5 * b + i] - mo, 2);
        sc = fmax(sc, fabs(vo / vc - 1));
    }
    CHECK(sc <= 1e-6, "rescale 1: each sample has the deviation of its cond: %.1e", sc);
    sd_guidance(p, u + 5, c + 5, 1, 5, 7.5, 0.7);
    sd_guidance(c, u, c, 2, 5, 7.5, 0.7);           /* in place */
    memcpy(q, c + 5, sizeof(q));
    CHECK(memcmp(p, q, sizeof(p)) == 0, "rescale: a sample of a batch is itself, in place too");
    /* torch: u = [0, 1, 2], c = [1, 3, 2], s = 3, phi = 0.5 (unbiased std): */
    float u3[3] = { 0, 1, 2 }, c3[3] = { 1, 3, 2 }, o3[3];
    sd_guidance(o3, u3, c3, 1, 3, 3, 0.5);
    /* out = [3, 7, 2], mean 4, std sqrt(7); std(c) = 1 */
    so = 0.5 / sqrt(7) + 0.5;
    CHECK(fabs(o3[0] - 3 * so) + fabs(o3[1] - 7 * so) + fabs(o3[2] - 2 * so) <= 2e-6, "rescale 0.5: %g %g %g", o3[0],
          o3[1], o3[2]);
}

int
main(void)
{
    struct sd_scope *s = sd_scope_open();
    json_t *root = sd_json_load(s, cases_file, 0);

    if (CHECK(root != NULL, "%s: %s", cases_file, root ? "read" : sd_reason())) {
        run_cases(root, latents_file, false, in_double);
        run_cases(root, float_file, true, in_float);
        every_number_of_steps(root);
    }
    gaussian_data(s);
    identities(s);
    batches(s);
    refusals(s);
    guidance();
    sd_scope_close(s);
    return check_done();
}
