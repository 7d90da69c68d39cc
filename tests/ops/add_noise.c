/* add_noise and timestep_embedding against their formulas, in double. */
#include "../check_op.h"

static double
value(size_t i)
{
    return sin(1.7 * (double)i) + 0.1 * cos(0.3 * (double)i);
}

int
main(void)
{
    enum { B = 3, N = 2 * 5 * 4 };
    struct sd_graph *g = sd_graph_new();
    int64_t shape[4] = { B, 2, 5, 4 };
    struct sd_tensor *x = sd_input(g, "x", SD_F32, 4, shape), *noise = sd_input(g, "noise", SD_F32, 4, shape);
    struct sd_tensor *a = sd_input(g, "a", SD_F32, 1, shape), *s = sd_input(g, "s", SD_F32, 1, shape);
    struct sd_tensor *y = sd_keep(sd_op_add_noise(g, x, noise, a, s));
    struct sd_plan *p = sd_plan_inference(g, 0);
    float vx[B * N], vn[B * N], va[B], vs[B], found[B * N];
    double worst = 0;

    for (size_t i = 0; i < B * N; i++) {
        vx[i] = (float)value(i);
        vn[i] = (float)value(i + 1000);
    }
    for (size_t b = 0; b < B; b++) {
        va[b] = (float)value(b + 50);
        vs[b] = (float)value(b + 60);
    }
    sd_plan_bind(p, NULL);
    sd_feed(p, x, vx);
    sd_feed(p, noise, vn);
    sd_feed(p, a, va);
    sd_feed(p, s, vs);
    sd_run(p);
    sd_fetch(p, y, found);
    for (size_t i = 0; i < B * N; i++)
        worst = fmax(worst, fabs(found[i] - ((double)va[i / N] * vx[i] + (double)vs[i / N] * vn[i])));
    CHECK(worst <= 2.4e-7, "add_noise: worst difference %.1e, allowed two roundings of values below 2", worst);
    sd_plan_free(p);
    sd_graph_free(g);
    return check_done();
}
