/* cuda.h - what the parts of cuda.c share: the device, how much, how long, what is said. */
#ifndef SD_BENCH_CUDA_H
#define SD_BENCH_CUDA_H

#include "clock.h"
#include "device.h"
#include "diffusion/draw_private.h"
#include "kernels/device_ops.h"
#include "kernels/vendor.h"

#include <stdlib.h>
#include <string.h>

static struct sd_device *device;
static struct sd_scope *scope;
static bool tiny;
static int rounds = 3, steps = 50;
static double begun, seconds = 1e9;

static void
must(const void *p, const char *what)
{
    if (!p)
        sd_die(what, "%s", sd_reason());
}

static void
note(const char *format, ...)
{
    va_list ap;

    printf("note\t");
    va_start(ap, format);
    vprintf(format, ap);
    va_end(ap);
    printf("\n");
    fflush(stdout);
}

#endif
