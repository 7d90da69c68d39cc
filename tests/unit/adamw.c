/* AdamW against stored values of torch.optim.AdamW over 50 steps; clipping; sums in a fixed tree. */
#include <omp.h>

#include "adamw.h"
#include "reduce.h"
#include "tests/optimizer_case.h"

static void
against_torch(const char *name, struct sd_adamw a, bool warmup, double grad_scale)
{
    static float expected[STEPS][COUNT];
    float value[COUNT], grad[COUNT], m[COUNT] = { 0 }, v[COUNT] = { 0 };
    double worst = 0, lr = a.lr;

    case_read(expected, sizeof(float), (size_t)STEPS * COUNT, name);
    for (int i = 0; i < COUNT; i++)
        value[i] = case_number(i, 0);
    a.grad_scale = grad_scale;
    for (a.step = 1; a.step <= STEPS; a.step++) {
        if (warmup)
            a.lr = lr * fmin(1, (double)a.step / 10);
        case_gradient(grad, value, (int)a.step);
        for (int i = 0; i < COUNT; i++)
            grad[i] /= (float)grad_scale;
        sd_adamw_step(value, grad, m, v, COUNT, &a);
        for (int i = 0; i < COUNT; i++)
            worst = fmax(worst, fabs((double)value[i] - expected[a.step - 1][i]));
    }
    /* torch fuses multiply and add in some places: a few roundings of values near 1 over 50 steps */
    CHECK(worst <= 1e-6, "%s, gradients times %g: worst difference %.1e", name, grad_scale, worst);
}

static void
sums(void)
{
    static float x[100003];
    double exact = 0, one, two;
    int threads = omp_get_max_threads();

    for (size_t i = 0; i < sizeof x / sizeof *x; i++) {
        x[i] = case_number((int64_t)i, 3);
        exact += (double)x[i] * x[i];
    }
    for (size_t n = 0; n < 70; n++) {
        double plain = 0;

        for (size_t i = 0; i < n; i++)
            plain += (double)x[i] * x[i];
        if (fabs(sd_sum_squares(x, n) - plain) > 1e-12)
            CHECK(false, "sum of squares of %zu", n);
    }
    omp_set_num_threads(1);
    one = sd_sum_squares(x, sizeof x / sizeof *x);
    omp_set_num_threads(3);
    two = sd_sum_squares(x, sizeof x / sizeof *x);
    omp_set_num_threads(threads);
    CHECK(fabs(one - exact) < 1e-9 * exact, "sum of squares: %.17g, in order %.17g", one, exact);
    CHECK(memcmp(&one, &two, sizeof one) == 0, "the same bits with one thread and with three");
    x[77777] = NAN;
    CHECK(isnan(sd_sum_squares(x, sizeof x / sizeof *x)), "NaN is not lost");
    CHECK(fabs(sd_clip_factor(2, 1) - 0.5) < 1e-6 && sd_clip_factor(0.5, 1) == 1 && sd_clip_factor(3, 0) == 1,
          "clipping: 0.5 at norm 2, 1 below and when off");
}

int
main(void)
{
    struct sd_adamw usual = { .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01 };
    struct sd_adamw plain = { .lr = 1e-3, .beta1 = 0.8, .beta2 = 0.99, .eps = 1e-6 };

    against_torch("adamw.f32", usual, true, 1);
    against_torch("adamw_plain.f32", plain, false, 1);
    against_torch("adamw.f32", usual, true, 0.25);
    sums();
    return check_done();
}
