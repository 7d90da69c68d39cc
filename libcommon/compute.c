/* compute.c - --device and --dtype, made real. */
#include "compute.h"

#include "device.h"
#include "kernels/op.h"
#include "kernels/vendor.h"
#include "opt.h"

#include <stdlib.h>
#include <string.h>

static struct sd_compute shared;

static void
leave_device(void)
{
    sd_device_leave(shared.device);
}

static void
on_the_cpu(const char *dtype)
{
    if (strcmp(dtype, "bf16") == 0) {
        if (sd_isa() < SD_ISA_AVX512BF16)
            sd_usage("--dtype", "bf16: needs a processor with AVX512_BF16, %s", sd_isa_best() < SD_ISA_AVX512BF16
                     ? "which this one has not" : "and SD_ISA is set to less");
        shared.products = SD_BF16;
    } else if (*dtype && strcmp(dtype, "f32") != 0)
        sd_usage("--dtype", "%s: the CPU computes in f32 or bf16", dtype);
}

static void
on_a_device(const char *dtype)
{
    shared.tf32 = vendor_tf32 = strcmp(dtype, "tf32") == 0;
    shared.activations = !*dtype || strcmp(dtype, "bf16") == 0 ? SD_BF16 : strcmp(dtype, "f16") == 0 ? SD_F16 : SD_F32;
    atexit(leave_device);
}

const struct sd_compute *
sd_shared_compute(void)
{
    static bool open;

    if (open)
        return &shared;
    if (sd_device_open(&shared.device, sd_shared.device) < 0)
        sd_die(NULL, "%s", sd_reason());
    if (shared.device)
        on_a_device(sd_shared.dtype);
    else
        on_the_cpu(sd_shared.dtype);
    open = true;
    return &shared;
}

const char *
sd_compute_dtype(const struct sd_compute *c)
{
    if (c->tf32)
        return "tf32";
    if (c->activations == SD_F32)
        return c->products == SD_BF16 ? "bf16" : "f32";
    return c->activations == SD_BF16 ? "bf16" : "f16";
}

const char *
sd_compute_engine(const struct sd_compute *c)
{
    return c->device ? sd_device_engine(c->device) : "cpu " SD_VERSION;
}

const char *
sd_compute_unit(const struct sd_compute *c)
{
    return c->device ? sd_device_name(c->device) : sd_isa_name();
}
