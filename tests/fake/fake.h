/* fake.h - libraries by the names of cuBLASLt and cuDNN, for a machine without a card: they compute on the emulated device, slowly
 * and rightly, or refuse, as the test that opened them says.
 *
 * One rule: what a fake is told lies in its `fake`, which the test finds by dlsym. */
#ifndef SD_TEST_FAKE_H
#define SD_TEST_FAKE_H

#include <dlfcn.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum fake_refusal {
    FAKE_NOTHING, FAKE_CREATE, FAKE_DESCRIBE, FAKE_HEURISTIC, FAKE_PLAN, FAKE_RUN,
    FAKE_WRONG, FAKE_UNSTEADY, FAKE_HUNGRY,     /* results are wrong, or other ones each time; all want too much workspace */
    FAKE_REPLAYED,                              /* results are wrong when a recording is replayed */
    FAKE_PREFERRED                              /* results of cuDNN's preferred engines are wrong */
};
struct fake {
    enum fake_refusal refuses;
    size_t version, workspace;          /* workspace: what every choice wants, less than we give */
    int handles, descriptors;           /* made and not ended */
    int compiled;                       /* cuDNN's plans of several operations, but those that were made from their text */
    int runs, inside;                   /* inside: of a call; else what works is a recording */
    /* Work of the device: of `stream`, with a copy of its argument, now or when a recording is replayed.  NULL: that of the emulated
     * device in the program that opened the library. */
    void (*queue)(void *stream, void (*work)(void *argument), const void *argument, size_t bytes);
};

static inline void
fake_queue(struct fake *f, void *stream, void (*work)(void *argument), const void *argument, size_t bytes)
{
    void *found = f->queue ? NULL : dlsym(RTLD_DEFAULT, "sd_emulate_library_work");

    if (found)
        memcpy(&f->queue, &found, sizeof found);
    if (!f->queue)
        abort();                        /* no program with an emulated device */
    f->inside++;
    f->queue(stream, work, argument, bytes);
    f->inside--;
}

static inline double
fake_load(const void *at, int type, int64_t i)      /* 0 F32, 2 F16, 9 BF16, -1 double */
{
    union { uint32_t u; float f; } x;

    if (type == -1)
        return ((const double *)at)[i];
    if (type == 0)
        return ((const float *)at)[i];
    if (type == 2) {
        int h = ((const uint16_t *)at)[i], power = h >> 10 & 31, digits = h & 1023;
        double value = power == 31 ? digits ? NAN : INFINITY : power ? ldexp(1024 + digits, power - 25) : ldexp(digits, -24);

        return h & 0x8000 ? -value : value;
    }
    x.u = (uint32_t)((const uint16_t *)at)[i] << 16;
    return x.f;
}

static inline unsigned
fake_half(double value)                 /* not negative */
{
    int power;

    if (!(value < 65520))
        return isnan(value) ? 0x7e00 : 0x7c00;
    if (value < 0x1p-14)
        return (unsigned)rint(ldexp(value, 24));
    frexp(value, &power);               /* value in [2^(power - 1), 2^power) */
    return (unsigned)((power + 14) << 10) + (unsigned)rint(ldexp(value, 11 - power)) - 1024;
}

static inline void
fake_store(void *at, int type, int64_t i, double value)
{
    union { uint32_t u; float f; } x = { .f = (float)value };

    if (type == -1)
        ((double *)at)[i] = value;
    else if (type == 0)
        ((float *)at)[i] = x.f;
    else if (type == 2)
        ((uint16_t *)at)[i] = (uint16_t)(fake_half(fabs(value)) | (x.u >> 31) << 15);
    else
        ((uint16_t *)at)[i] = (uint16_t)((x.u + 0x7fff + (x.u >> 16 & 1)) >> 16);
}

/* What a run makes of a right value. */
static inline double
fake_result(const struct fake *f, double value)
{
    return f->refuses == FAKE_WRONG || (f->refuses == FAKE_REPLAYED && !f->inside) ? 1.5 * value : f->refuses == FAKE_UNSTEADY ? value * (1 + 1e-2 * (f->runs % 2)) : value;
}

#endif
