/* lr_scheduler - learning-rate multipliers. */
#include "lr_scheduler.h"

#include <math.h>
#include <string.h>

static double
at_least_0(double x)
{
    return x > 0 ? x : 0;
}

double
sd_lr_multiplier(const struct sd_lr_scheduler *s, int64_t step)
{
    static const double pi = 3.14159265358979323846, end = 1e-7;
    double w = (double)s->warmup, n = (double)s->steps, t = (double)step, rest = n - w > 1 ? n - w : 1;

    if (strcmp(s->name, "constant") == 0)
        return 1;
    if (t < w)
        return t / (w > 1 ? w : 1);
    if (strcmp(s->name, "constant_with_warmup") == 0)
        return 1;
    if (strcmp(s->name, "linear") == 0)
        return at_least_0((n - t) / rest);
    if (strcmp(s->name, "cosine") == 0)
        return at_least_0(0.5 * (1 + cos(pi * (t - w) / rest)));
    if (strcmp(s->name, "polynomial") == 0) {
        if (s->rate <= end)
            return 1;
        return t > n ? end / s->rate : ((s->rate - end) * (1 - (t - w) / (n - w)) + end) / s->rate;
    }
    sd_bug("lr_scheduler", "no schedule is called %s", s->name);
}
