/* update.cu against accumulate.c's, reduce.c's, adamw.c's and prodigy.c's arithmetic: element by element the same bits. */
#include "on_device.h"
#include "reduce.h"
#include "update.h"

typedef std::vector<float> floats;

static void
check_sums(struct sd_device *d, size_t n)
{
    floats x = numbers(n, 1), y = numbers(n, 2), sum(n), mean(n), loss = numbers(3, 3);
    float *dx = up(d, x), *dy = up(d, y), *dloss = up(d, loss);
    std::vector<struct sd_update_values> v(1);
    std::vector<struct sd_update_result> r(1);
    std::vector<double> total(1);
    struct sd_update_values *dv;
    struct sd_update_result *dr = up(d, r);
    double *room = up(d, std::vector<double>(sd_update_room(n))), *dtotal = up(d, total), squares = sd_sum_squares(x.data(), n), norm;

    v[0].samples = 3;
    v[0].max_norm = 0.25;
    dv = up(d, v);
    for (size_t i = 0; i < n; i++) {
        sum[i] = x[i] + y[i];
        mean[i] = sum[i] / 3.0f;
    }
    sd_update_squares(d, dr, 0, dx, n, room);
    sd_update_squares(d, dr, 1, dy, n, room);
    sd_update_add(d, dx, dy, n);
    CHECK(same_bits(down(d, dx, n), sum), "%zu: sums", n);
    sd_update_mean(d, dx, n, dv);
    CHECK(same_bits(down(d, dx, n), mean), "%zu: means", n);
    sd_update_loss(d, dtotal, dloss, 3, true);
    sd_update_loss(d, dtotal, dloss, 2, false);
    total[0] = ((double)loss[0] + loss[1] + loss[2]) + ((double)loss[0] + loss[1]);
    CHECK(down(d, dtotal, 1)[0] == total[0], "loss %.17g, expected %.17g", down(d, dtotal, 1)[0], total[0]);
    sd_update_clip(d, dr, 2, dtotal, dv);
    r = down(d, dr, 1);
    CHECK(fabs(r[0].squares[0] - squares) <= 1e-14 * squares, "%zu: sum of squares %.17g, expected %.17g", n, r[0].squares[0], squares);
    norm = sqrt(sqrt(r[0].squares[0]) * sqrt(r[0].squares[0]) + sqrt(r[0].squares[1]) * sqrt(r[0].squares[1]));
    CHECK(r[0].grad_norm == norm && r[0].clip == sd_clip_factor(norm, 0.25) && r[0].finite == 1, "%zu: norm %g, clip %g", n,
          r[0].grad_norm, r[0].clip);
    CHECK(r[0].loss == total[0] / 3, "mean loss %g", r[0].loss);
    if (n) {
        float bad = NAN;

        sd_device_write(d, dx + n - 1, &bad, sizeof bad);
        sd_update_squares(d, dr, 0, dx, n, room);
        sd_update_clip(d, dr, 2, dtotal, dv);
        CHECK(down(d, dr, 1)[0].finite == 0, "%zu: the last number is NaN: not finite", n);
        bad = 1;
        sd_device_write(d, dx + n - 1, &bad, sizeof bad);
        sd_update_squares(d, dr, 0, dx, n, room);
        sd_update_clip(d, dr, 2, dtotal, dv);
        r = down(d, dr, 1);
        CHECK(r[0].finite == 0 && isfinite(r[0].grad_norm), "%zu: the next step, which is finite, moves nothing either", n);
        sd_device_fill(d, dr, 0, sizeof *dr);
        sd_update_squares(d, dr, 0, dx, n, room);
        sd_update_squares(d, dr, 1, dy, n, room);
        sd_update_clip(d, dr, 2, dtotal, dv);
        CHECK(down(d, dr, 1)[0].finite == 1, "%zu: zeroed, it begins anew", n);
    }
    for (void *p : { (void *)dx, (void *)dy, (void *)dloss, (void *)dv, (void *)dr, (void *)room, (void *)dtotal })
        sd_device_free(d, p);
}

static struct sd_update_result *
result_of(struct sd_device *d, double clip, int64_t finite)
{
    std::vector<struct sd_update_result> r(1);

    r[0].clip = clip;
    r[0].finite = finite;
    return up(d, r);
}

/* steps recorded once, replayed with new values */
static void
check_adamw(struct sd_device *d, size_t n, int steps)
{
    floats value = numbers(n, 4), m(n), v(n), grad;
    float *dvalue = up(d, value), *dm = up(d, m), *dv = up(d, v), *dgrad = up(d, m);
    std::vector<struct sd_update_values> values(1);
    struct sd_update_values *dvalues = up(d, values);
    struct sd_update_result *r = result_of(d, 0.37, 1), *bad = result_of(d, 0.37, 0);
    struct sd_recording *recording;

    sd_device_record(d);
    sd_update_adamw(d, dvalue, dgrad, dm, dv, n, dvalues, r, 2);
    recording = sd_device_recorded(d);
    for (int k = 1; k <= steps; k++) {
        struct sd_adamw a = { 1e-3 / k, 0.9, 0.999, 1e-8, 0.01, 0.37, k };

        grad = numbers(n, 100 + (uint64_t)k);
        sd_device_write(d, dgrad, grad.data(), n * sizeof(float));
        values[0].group[2].moves = k != 3;
        sd_update_values_adamw(&values[0].group[2], &a);
        sd_device_write(d, dvalues, values.data(), sizeof values[0]);
        sd_device_replay(d, recording);
        if (k != 3)         /* stands still */
            sd_adamw_step(value.data(), grad.data(), m.data(), v.data(), n, &a);
        CHECK(same_bits(down(d, dvalue, n), value) && same_bits(down(d, dm, n), m) && same_bits(down(d, dv, n), v),
              "adamw, %zu numbers, step %d%s: the CPU's bits", n, k, k == 3 ? ", standing still" : "");
    }
    sd_update_adamw(d, dvalue, dgrad, dm, dv, n, dvalues, bad, 2);
    CHECK(same_bits(down(d, dvalue, n), value) && same_bits(down(d, dm, n), m), "adamw: not finite, nothing moves");
    sd_recording_free(recording);
    for (void *p : { (void *)dvalue, (void *)dm, (void *)dv, (void *)dgrad, (void *)dvalues, (void *)r, (void *)bad })
        sd_device_free(d, p);
}

static void
check_prodigy(struct sd_device *d, size_t n, const char *what, struct sd_prodigy a, int steps)
{
    floats value = numbers(n, 5), m(n), v(n), s(n), p0 = value, grad(n);
    struct sd_prodigy_buffers b = { value.data(), grad.data(), m.data(), v.data(), s.data(), p0.data(), n };
    struct sd_prodigy_buffers on = { up(d, value), up(d, grad), up(d, m), up(d, v), up(d, s), up(d, p0), n };
    std::vector<struct sd_prodigy_state> state(1);
    std::vector<struct sd_update_values> values(1);
    struct sd_prodigy_state *dstate, found;
    struct sd_prodigy_work *work = up(d, std::vector<struct sd_prodigy_work>(1));
    struct sd_update_values *dvalues = up(d, values);
    struct sd_update_result *r = result_of(d, 0.5, 1);
    double *room = up(d, std::vector<double>(sd_update_room(n))), first, error = 0;
    struct sd_recording *recording;

    sd_prodigy_start(&state[0], &a);
    first = state[0].d;
    dstate = up(d, state);
    sd_device_record(d);
    sd_update_prodigy(d, dstate, work, &a, &on, dvalues, r, 1, room);
    recording = sd_device_recorded(d);
    for (int k = 0; k < steps; k++) {
        double lr = k == 4 ? 0 : 1;

        for (size_t i = 0; i < n; i++)      /* of a bowl around 3: d grows */
            grad[i] = k == 1 ? 0 : value[i] - 3;
        sd_device_write(d, const_cast<float *>(on.grad), grad.data(), n * sizeof(float));
        values[0].group[1].moves = 1;
        values[0].group[1].lr = lr;
        sd_device_write(d, dvalues, values.data(), sizeof values[0]);
        sd_device_replay(d, recording);
        sd_prodigy_step(&state[0], &a, lr, 0.5, &b, 1);
        found = down(d, dstate, 1)[0];
        error = fmax(error, fabs(found.d / state[0].d - 1));
        error = fmax(error, fabs(found.d_numerator - state[0].d_numerator) / (fabs(state[0].d_numerator) + 1e-300));
        CHECK(found.k == state[0].k, "prodigy, %s, step %d: k %g", what, k, found.k);
        error = fmax(error, 1e-6 * check_distance(down(d, on.value, n).data(), value.data(), n));
        error = fmax(error, 1e-6 * check_distance(down(d, on.exp_avg_sq, n).data(), v.data(), n));
        error = fmax(error, 1e-6 * check_distance(down(d, on.s, n).data(), s.data(), n));
    }
    CHECK(state[0].d > 2 * first, "prodigy, %s: d has grown, %g to %g", what, first, state[0].d);
    /* a card's pow() may be off by an ulp or two, which 1 - pow(0.999, 1) makes 2e-13 of */
    CHECK(error <= 1e-12, "prodigy, %s, %zu numbers, %d steps: %.1e from the CPU's, d and numerator relative, buffers times 1e-6", what, n,
          steps, error);
    sd_recording_free(recording);
    for (const void *p : { (const void *)on.value, (const void *)on.grad, (const void *)on.exp_avg, (const void *)on.exp_avg_sq,
                           (const void *)on.s, (const void *)on.p0, (const void *)dstate, (const void *)work, (const void *)dvalues,
                           (const void *)r, (const void *)room })
        sd_device_free(d, const_cast<void *>(p));
}

int
main(void)
{
    struct sd_device *d = open_device();
    struct sd_prodigy a = {};

    for (size_t n : { (size_t)0, (size_t)1, (size_t)255, (size_t)4097, (size_t)20011 })
        check_sums(d, n);
    check_adamw(d, 1, 2);
    check_adamw(d, 5003, 5);
    a.beta1 = 0.9;
    a.beta2 = 0.999;
    a.eps = 1e-8;
    a.weight_decay = 0.01;
    a.d0 = 1e-6;
    a.d_coef = 1;
    check_prodigy(d, 9001, "plain", a, 8);
    a.use_bias_correction = a.safeguard_warmup = true;
    a.growth_rate = 1.5;
    a.d_coef = 20;
    check_prodigy(d, 700, "bias correction, safeguard, growth at most 1.5", a, 12);
    sd_device_close(d);
    return check_done();
}
