/* denoise.cu against samplers.c: the same bits; deviations of rescaled guidance in another order of sums. */
#include "denoise.h"
#include "diffusion/samplers.h"
#include "on_device.h"

typedef std::vector<float> floats;

/* coefficients, a third of them zero */
static std::vector<struct sd_denoise_call>
some_calls(int calls, uint64_t seed)
{
    std::vector<struct sd_denoise_call> c((size_t)calls);
    size_t words = sizeof c[0] / sizeof(float);
    floats x = numbers(words * (size_t)calls, seed);

    for (size_t i = 0; i < x.size(); i++)
        ((float *)c.data())[i] = i % 3 == 1 ? 0 : x[i];
    return c;
}

/* The same numbers as a sampler of samplers.h, whose doubles are floats: so both round nothing. */
static std::vector<struct sd_sampler_step>
steps_of(const std::vector<struct sd_denoise_call> &calls)
{
    std::vector<struct sd_sampler_step> steps(calls.size());

    for (size_t i = 0; i < calls.size(); i++) {
        const struct sd_denoise_call &c = calls[i];

        steps[i].x0[0] = c.x0[0];
        steps[i].x0[1] = c.x0[1];
        for (int k = 0; k < SD_COLUMNS; k++) {
            steps[i].x[k] = c.x[k];
            for (int h = 0; h < SD_HISTORY_MAX; h++)
                steps[i].history[h][k] = c.history[h][k];
        }
    }
    return steps;
}

static void
check_loop(struct sd_device *d, int64_t batch, int64_t numel, int slots, bool clamps, bool fresh)
{
    enum { CALLS = 3 };
    size_t all = (size_t)(batch * numel);
    std::vector<struct sd_denoise_call> calls = some_calls(CALLS, (uint64_t)numel);
    floats x = numbers(all, 1), out = numbers(all, 2), noise = numbers(all, 3), h[SD_DENOISE_HISTORY], sample(2 * all), times((size_t)(2 * batch));
    struct sd_denoise n = {};
    float *dsample = up(d, sample), *dtimes = up(d, times);
    const char *what = clamps ? "clamped" : "free";
    std::vector<struct sd_sampler_step> steps;
    struct sd_sampler sampler = {};
    struct sd_sampler_state state = {};

    for (struct sd_denoise_call &c : calls)
        for (float *row : { c.x, c.history[0], c.history[1], c.history[2], c.history[3] }) {
            for (int k = slots; k < SD_HISTORY_MAX; k++)
                row[SD_COL_HISTORY + k] = 0;
            if (!fresh)
                row[SD_COL_NOISE] = 0;
            if (!clamps)
                row[SD_COL_X0] = 0;
        }
    steps = steps_of(calls);
    n.batch = batch;
    n.numel = numel;
    n.calls = up(d, calls);
    n.call = up(d, std::vector<int32_t>(1));
    n.bad = up(d, std::vector<int32_t>(CALLS));
    n.x = up(d, x);
    n.out = up(d, out);
    n.noise = fresh ? up(d, noise) : NULL;
    n.slots = slots;
    n.clamps = clamps;
    n.range = 0.25f;
    for (int k = 0; k < slots; k++)
        n.history[k] = up(d, h[k] = numbers(all, 4 + (uint64_t)k));
    sampler.steps = steps.data();
    sampler.calls = CALLS;
    sampler.history = slots;
    sampler.clamp = clamps ? SD_CLAMP_RANGE : SD_CLAMP_NONE;
    sampler.clamp_range = n.range;
    state.batch = (size_t)batch;
    state.numel = (size_t)numel;
    for (int k = 0; k < slots; k++)
        state.history[k] = h[k].data();
    for (int c = 0; c < CALLS; c++) {
        const struct sd_denoise_call &call = calls[(size_t)c];

        sd_denoise_input(d, &n, dsample, dtimes, 2 * batch);
        for (size_t i = 0; i < sample.size(); i++)
            sample[i] = call.input_scale * x[i % all];
        for (float &t : times)
            t = call.timestep;
        CHECK(same_bits(down(d, dsample, 2 * all), sample) && same_bits(down(d, dtimes, times.size()), times), "call %d: input", c);
        sd_denoise_step(d, &n);
        sd_sampler_apply(&sampler, c, &state, x.data(), out.data(), fresh ? noise.data() : NULL);
        CHECK(same_bits(down(d, n.x, all), x), "%s, call %d: x", what, c);
        for (int k = 0; k < slots; k++)
            CHECK(same_bits(down(d, n.history[k], all), h[k]), "%s, call %d: history %d", what, c, k);
    }
    CHECK(down(d, n.call, 1)[0] == CALLS, "%d calls", down(d, n.call, 1)[0]);
    CHECK(down(d, n.bad, CALLS) == std::vector<int32_t>(CALLS), "all is finite");
    sd_device_free(d, dsample);
    sd_device_free(d, dtimes);
    for (void *p : { (void *)n.calls, (void *)n.call, (void *)n.bad, (void *)n.x, (void *)n.out, (void *)n.noise, (void *)n.history[0],
                     (void *)n.history[1], (void *)n.history[2], (void *)n.history[3] })
        if (p)
            sd_device_free(d, p);
}

/* A result that is not finite is seen, and at which call. */
static void
check_bad(struct sd_device *d, float value, bool in_out)
{
    enum { CALLS = 4, N = 700 };
    std::vector<struct sd_denoise_call> calls(CALLS);
    floats x(N, 1);
    struct sd_denoise n = {};
    std::vector<int32_t> want = { 0, 0, 1, 1 };

    for (struct sd_denoise_call &c : calls)
        c.x[0] = 1;
    n.batch = 1;
    n.numel = N;
    n.calls = up(d, calls);
    n.call = up(d, std::vector<int32_t>(1));
    n.bad = up(d, std::vector<int32_t>(CALLS));
    n.x = up(d, x);
    n.out = up(d, x);
    for (int c = 0; c < CALLS; c++) {
        if (c == 2)
            sd_device_write(d, (in_out ? n.out : n.x) + N - 1, &value, sizeof value);
        sd_denoise_step(d, &n);
    }
    CHECK(down(d, n.bad, CALLS) == want, "%g in %s is seen from the third call on", value, in_out ? "out" : "x");
    for (void *p : { (void *)n.calls, (void *)n.call, (void *)n.bad, (void *)n.x, (void *)n.out })
        sd_device_free(d, p);
}

static void
check_guidance(struct sd_device *d, int64_t batch, int64_t numel, double rescale)
{
    size_t all = (size_t)(batch * numel);
    floats u = numbers(all, 1), c = numbers(all, 2), want(all), got;
    struct sd_denoise n = {};
    float *du = up(d, u), *dc = up(d, c);
    double *room = up(d, std::vector<double>(sd_denoise_room(batch, numel))), worst = 0;

    n.batch = batch;
    n.numel = numel;
    n.out = up(d, want);
    sd_guidance(want.data(), u.data(), c.data(), (size_t)batch, (size_t)numel, 7.5, rescale);
    sd_denoise_guide(d, &n, du, dc, 7.5f, rescale, room);
    got = down(d, n.out, all);
    for (size_t i = 0; i < all; i++)
        worst = fmax(worst, fabs((double)got[i] - want[i]));
    CHECK(rescale > 0 ? worst <= 1e-6 : same_bits(got, want), "guidance %lldx%lld, rescaled %g: off by %g", (long long)batch,
          (long long)numel, rescale, worst);
    for (void *p : { (void *)du, (void *)dc, (void *)room, (void *)n.out })
        sd_device_free(d, p);
}

int
main(void)
{
    struct sd_device *d = open_device();

    check_loop(d, 1, 1, 0, false, false);
    check_loop(d, 2, 301, 4, false, true);
    check_loop(d, 3, 256, 2, true, false);
    check_loop(d, 1, 4096, 1, true, true);
    check_bad(d, NAN, true);
    check_bad(d, INFINITY, false);
    for (double rescale : { 0.0, 0.7 }) {
        check_guidance(d, 1, 2, rescale);
        check_guidance(d, 3, 4999, rescale);
    }
    sd_device_close(d);
    return check_done();
}
