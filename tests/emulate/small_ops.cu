/* Ops whose checks under tests/ops run on the CPU alone, on a device: timestep_embedding, add_noise, casts of graphs; and norms of
 * numbers far from zero, where sums of squares cancel. */
#include "on_device.h"
#include "ops.h"

extern "C" {
#include "plan.h"
}

static struct sd_device *device;

static struct sd_graph *
graph(enum sd_dtype dtype)
{
    struct sd_graph *g = sd_graph_new();
    struct sd_compute c = {};

    c.device = device;
    c.activations = dtype;
    sd_graph_on(g, &c);
    return g;
}

/* runs the plan with `in` fed; its output as floats */
static std::vector<float>
run(struct sd_graph *g, struct sd_tensor *out, std::vector<std::pair<struct sd_tensor *, std::vector<float>>> in)
{
    struct sd_tensor *y = sd_keep(sd_op_cast(g, out, SD_F32));
    struct sd_plan *p = sd_plan_inference(g, 0);
    std::vector<float> found(y->numel);

    if (!p)
        sd_bug("check", "%s", sd_reason());
    sd_plan_bind(p, NULL);
    for (int k = 0; k < 2; k++) {           /* as it stands, then recorded */
        for (auto &i : in)
            sd_feed(p, i.first, i.second.data());
        sd_run(p);
        sd_fetch(p, y, found.data());
    }
    sd_plan_free(p);
    sd_graph_free(g);
    return found;
}

static void
check_timesteps(int width, bool flip, double shift)
{
    const std::vector<float> t = { 0, 1, 481, 999 };
    struct sd_graph *g = graph(SD_F32);
    int64_t B = 4;
    struct sd_tensor *in = sd_input(g, "timesteps", SD_F32, 1, &B);
    struct sd_timestep_embedding a = { width, flip, shift };
    std::vector<float> found = run(g, sd_op_timestep_embedding(g, in, a), { { in, t } });
    double worst = 0;
    int half = width / 2;

    for (int b = 0; b < 4; b++)
        for (int i = 0; i < width; i++) {
            double angle = t[b] * exp(-log(10000.0) * (i % half) / (half - shift));
            double expected = i == 2 * half ? 0 : (i < half) == flip ? cos(angle) : sin(angle);

            worst = fmax(worst, fabs(found[(size_t)(b * width + i)] - expected) / (1 + angle));
        }
    CHECK(worst <= 6e-7, "timestep_embedding, width %d, %s first, shift %g: worst difference %.1e of 1 + angle", width,
          flip ? "cosines" : "sines", shift, worst);
}

static void
check_add_noise(void)
{
    int64_t shape[4] = { 3, 7, 5, 11 };
    size_t n = 3 * 385;
    struct sd_graph *g = graph(SD_F32);
    struct sd_tensor *x = sd_input(g, "x", SD_F32, 4, shape), *noise = sd_input(g, "noise", SD_F32, 4, shape);
    struct sd_tensor *a = sd_input(g, "a", SD_F32, 1, shape), *s = sd_input(g, "s", SD_F32, 1, shape);
    std::vector<float> vx = numbers(n, 1), vn = numbers(n, 2), va = numbers(3, 3), vs = numbers(3, 4), y(n);
    std::vector<float> found = run(g, sd_op_add_noise(g, x, noise, a, s), { { x, vx }, { noise, vn }, { a, va }, { s, vs } });

    for (size_t i = 0; i < n; i++) {
        float signal = va[i / 385] * vx[i], rest = vs[i / 385] * vn[i];

        y[i] = signal + rest;
    }
    CHECK(same_bits(found, y), "add_noise: the C loops' bits");
}

/* Small whole numbers around 193.5: exact in every type, the mean 170 deviations from zero. */
static void
check_far(bool layer, enum sd_dtype dtype, double allowed)
{
    const int64_t B = 2, P = 150, C = 96, G = layer ? P : 4, count = layer ? C : P * C / G;
    int64_t shape[3] = { B, P, C };
    struct sd_graph *g = graph(dtype);
    struct sd_tensor *in = sd_input(g, "x", SD_F32, 3, shape), *x = sd_op_cast(g, in, dtype);
    struct sd_tensor *out = layer ? sd_op_layer_norm(g, x, NULL, NULL, 1e-5) : sd_op_group_norm(g, x, NULL, NULL, (int)G, 1e-5, false);
    std::vector<float> v = numbers((size_t)(B * P * C), 5), found;
    double error = 0, size = 0;

    for (float &e : v)
        e = 192 + floorf(2 * (e + 1));
    found = run(g, out, { { in, v } });
    for (int64_t b = 0; b < B; b++)
        for (int64_t k = 0; k < G; k++) {
            double sum = 0, square = 0;
            std::vector<size_t> at;

            for (int64_t i = 0; i < count; i++)
                at.push_back((size_t)(layer ? (b * P + k) * C + i : (b * P + i / (C / G)) * C + k * (C / G) + i % (C / G)));
            for (size_t i : at)
                sum += v[i];
            for (size_t i : at)
                square += (v[i] - sum / (double)count) * (v[i] - sum / (double)count);
            for (size_t i : at) {
                double y = (v[i] - sum / (double)count) / sqrt(square / (double)count + 1e-5);

                error += (found[i] - y) * (found[i] - y);
                size += y * y;
            }
        }
    CHECK(sqrt(error / size) <= allowed, "%s of numbers around 193.5, %s: %.1e from exact, allowed %.0e", layer ? "layer_norm" : "group_norm",
          sd_dtype_name(dtype), sqrt(error / size), allowed);
}

int
main(void)
{
    device = open_device();
    check_timesteps(320, true, 0);
    check_timesteps(320, false, 1);
    check_timesteps(7, true, 1);
    check_add_noise();
    for (int layer = 0; layer < 2; layer++) {
        check_far(layer, SD_F32, 2e-5);         /* 170 deviations times the rounding of x / std and of mean / std */
        check_far(layer, SD_BF16, 3e-3);
        check_far(layer, SD_F16, 4e-4);
    }
    sd_device_close(device);
    return check_done();
}
