/* lr_scheduler: the rate at each step, equal to diffusers' get_scheduler (tests/reference/train.py). */
#include "../check.h"
#include "train/lr_scheduler.h"

int
main(void)
{
    FILE *f = fopen("tests/data/train/schedules.txt", "r");
    char name[64];
    long long warmup, steps;
    int lines = 0;

    while (f && fscanf(f, "%63s %lld %lld", name, &warmup, &steps) == 3) {
        struct sd_lr_scheduler s = { name, warmup, steps, 3e-4 };
        double worst = 0, want;

        for (int i = 0; i < 14; i++) {
            double d = fscanf(f, "%lf", &want) == 1 ? fabs(sd_lr_multiplier(&s, i) - want) : NAN;

            if (!(d <= worst) && i < steps)     /* a run has no later steps */
                worst = d;
        }
        CHECK(worst <= 1e-12, "%s, warm-up %lld of %lld: within %.0e", name, warmup, steps, worst);
        lines++;
    }
    if (f)
        fclose(f);
    CHECK(lines == 19, "%d schedules", lines);
    return check_done();
}
