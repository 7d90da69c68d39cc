/* optimizer_case.h - the start and the gradients of tests/reference/optimizers.py, and its stored values. */
#ifndef OPTIMIZER_CASE_H
#define OPTIMIZER_CASE_H

#include "tests/check.h"

enum { FIRST = 37, SECOND = 64, COUNT = FIRST + SECOND, STEPS = 50 };

static inline float
case_number(int64_t i, int64_t step)
{
    return (float)((i * 7919 + step * 104729 + 12345) % 1000003 * 31337 % 1001 - 500) / 512;
}

static inline void
case_gradient(float *grad, const float *value, int step)
{
    for (int i = 0; i < COUNT; i++)
        grad[i] = case_number(i, step) * 0.25f + (value[i] - 1);
}

/* count numbers of the given size from tests/data/optimizers/name; ends the test when they are not there. */
static inline void
case_read(void *out, size_t size, size_t count, const char *name)
{
    char path[128];
    FILE *f;

    snprintf(path, sizeof path, "tests/data/optimizers/%s", name);
    f = fopen(path, "rb");
    if (!f || fread(out, size, count, f) != count) {
        printf("Bail out! %s: cannot read %zu values\n", path, count);
        exit(1);
    }
    fclose(f);
}
#endif
