/* Prodigy against stored values of prodigyopt.Prodigy over 50 steps. */
#include <omp.h>

#include "prodigy.h"
#include "tests/optimizer_case.h"

struct trial { float value[COUNT], grad[COUNT], m[COUNT], v[COUNT], s[COUNT], p0[COUNT]; };

static struct sd_prodigy_buffers
part(struct trial *t, int begin, int count)
{
    return (struct sd_prodigy_buffers){ t->value + begin, t->grad + begin, t->m + begin, t->v + begin, t->s + begin,
                                        t->p0 + begin, (size_t)count };
}

static void
against_reference(const char *name, struct sd_prodigy a, bool zeros, bool falling, bool apart)
{
    static float expected[STEPS][COUNT];
    static double expected_d[STEPS];
    static struct trial t;
    struct sd_prodigy_state state;
    struct sd_prodigy_buffers whole[1], two[2];
    double worst = 0, worst_d = 0, before = a.d0;
    bool grows = true;
    char path[64];

    memset(&t, 0, sizeof t);
    whole[0] = part(&t, 0, COUNT);
    two[0] = part(&t, 0, FIRST);
    two[1] = part(&t, FIRST, SECOND);
    snprintf(path, sizeof path, "%s.f32", name);
    case_read(expected, sizeof(float), (size_t)STEPS * COUNT, path);
    snprintf(path, sizeof path, "%s.d.f64", name);
    case_read(expected_d, sizeof(double), STEPS, path);
    for (int i = 0; i < COUNT; i++)
        t.value[i] = t.p0[i] = zeros && i >= FIRST ? 0 : case_number(i, 0);
    sd_prodigy_start(&state, &a);
    for (int step = 1; step <= STEPS; step++) {
        case_gradient(t.grad, t.value, step);
        sd_prodigy_step(&state, &a, falling ? 1 - step / 100.0 : 1, 1, apart ? two : whole, apart ? 2 : 1);
        for (int i = 0; i < COUNT; i++)
            worst = fmax(worst, fabs((double)t.value[i] - expected[step - 1][i]));
        worst_d = fmax(worst_d, fabs(state.d / expected_d[step - 1] - 1));
        grows = grows && state.d >= before;
        before = state.d;
    }
    CHECK(worst <= 5e-6, "%s%s: worst difference %.1e", name, apart ? " in two buffers" : "", worst);
    /* while d is tiny p0 - p is a few units of the last place: the reference's float sums show in d */
    CHECK(worst_d <= 1e-4, "%s%s: d within %.1e", name, apart ? " in two buffers" : "", worst_d);
    CHECK(grows, "%s: d never falls (%.3g at the end)", name, state.d);
}

static void
stands_still(void)
{
    static struct trial t, before;
    struct sd_prodigy a = { .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.1, .d0 = 1e-3, .d_coef = 1 };
    struct sd_prodigy_state state, start;
    struct sd_prodigy_buffers b = part(&t, 0, COUNT);

    memset(&t, 0, sizeof t);
    for (int i = 0; i < COUNT; i++)
        t.value[i] = t.p0[i] = t.grad[i] = case_number(i, 0);
    before = t;
    sd_prodigy_start(&state, &a);
    start = state;
    sd_prodigy_step(&state, &a, 0, 1, &b, 1);
    CHECK(!memcmp(&t, &before, sizeof t) && !memcmp(&state, &start, sizeof state), "rate 0: nothing changes");
    memset(t.grad, 0, sizeof t.grad);
    sd_prodigy_step(&state, &a, 1, 1, &b, 1);
    CHECK(!memcmp(t.value, before.value, sizeof t.value) && !memcmp(&state, &start, sizeof state),
          "gradients all zero: values and d stay");
}

static void
threads(void)
{
    enum { MANY = 70001 };
    static float buffers[2][6][MANY];
    struct sd_prodigy a = { .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.01, .d0 = 1e-6, .d_coef = 1,
                            .use_bias_correction = true, .safeguard_warmup = true };
    struct sd_prodigy_state state[2];
    int usual = omp_get_max_threads();

    for (int run = 0; run < 2; run++) {
        float (*x)[MANY] = buffers[run];
        struct sd_prodigy_buffers b = { x[0], x[1], x[2], x[3], x[4], x[5], MANY };

        omp_set_num_threads(1 + 2 * run);
        for (int i = 0; i < MANY; i++)
            x[0][i] = x[5][i] = case_number(i, 0);
        sd_prodigy_start(&state[run], &a);
        for (int step = 1; step <= 5; step++) {
            for (int i = 0; i < MANY; i++)
                x[1][i] = case_number(i, step) * 0.25f + (x[0][i] - 1);
            sd_prodigy_step(&state[run], &a, 1, 0.5, &b, 1);
        }
    }
    omp_set_num_threads(usual);
    CHECK(!memcmp(&state[0], &state[1], sizeof *state) && !memcmp(buffers[0], buffers[1], sizeof *buffers),
          "the same bits with one thread and with three");
}

int
main(void)
{
    struct sd_prodigy advised = { .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.01, .d0 = 1e-6, .d_coef = 1,
                                  .use_bias_correction = true, .safeguard_warmup = true };
    struct sd_prodigy plain = { .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .d0 = 1e-6, .d_coef = 0.1 };
    struct sd_prodigy growth = { .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.004, .d0 = 1e-4, .d_coef = 2,
                                 .growth_rate = 1.05 };

    against_reference("prodigy", advised, true, false, false);
    against_reference("prodigy", advised, true, false, true);
    against_reference("prodigy_plain", plain, false, false, true);
    against_reference("prodigy_growth", growth, false, true, true);
    stands_still();
    threads();
    return check_done();
}
