/* timestep_embedding against its formula in double: at t = 999 the rounding of the angle alone is 3e-5. */
#include "../check_op.h"

static void
check_width(int width, bool flip, double shift)
{
    enum { B = 4, WIDEST = 320 };
    static const float t[B] = { 0, 1, 481, 999 };
    struct sd_graph *g = sd_graph_new();
    struct sd_tensor *in = sd_input(g, "timesteps", SD_F32, 1, (int64_t[]){ B });
    struct sd_tensor *y = sd_keep(sd_op_timestep_embedding(g, in, (struct sd_timestep_embedding){ width, flip, shift }));
    struct sd_plan *p = sd_plan_inference(g, 0);
    float found[B * WIDEST];
    double worst = 0;
    int half = width / 2;

    sd_plan_bind(p, NULL);
    sd_feed(p, in, t);
    sd_run(p);
    sd_fetch(p, y, found);
    for (int b = 0; b < B; b++)
        for (int i = 0; i < width; i++) {
            double angle = t[b] * exp(-log(10000.0) * (i % half) / (half - shift));
            double expected = i == 2 * half ? 0 : (i < half) == flip ? cos(angle) : sin(angle);

            worst = fmax(worst, fabs(found[b * width + i] - expected) / (1 + angle));
        }
    CHECK(worst <= 6e-7, "timestep_embedding, width %d, %s first, shift %g: worst difference %.1e of 1 + angle", width,
          flip ? "cosines" : "sines", shift, worst);
    sd_plan_free(p);
    sd_graph_free(g);
}

int
main(void)
{
    check_width(320, true, 0);
    check_width(320, false, 1);
    check_width(7, true, 1);
    return check_done();
}
