/* The vector functions against the C library in double, for every instruction set the machine has; SD_ISA. */
#include <sys/wait.h>
#include <unistd.h>

#include "simd.h"
#include "tests/check.h"

enum { STEP = 100003, BLOCK = 16 };

static float
float_of(uint32_t bits)
{
    float x;

    memcpy(&x, &bits, sizeof x);
    return x;
}

static double
exact_of(int which, double x)
{
    return which == 0 ? exp(x) : which == 1 ? exp2(x) : erf(x);
}

/* Every STEP-th float of both signs within +-limit. */
static void
accuracy(int which, const char *name, double low, double high, double ulps, double absolute)
{
    double worst_ulp = 0, worst = 0;
    float at = 0;
    float in[BLOCK], out[BLOCK];
    int fill = 0;

    for (uint64_t bits = 0; bits < UINT64_C(0x100000000); bits += STEP) {
        float x = float_of((uint32_t)bits);

        if (!(x >= low && x <= high))
            continue;
        in[fill++] = x;
        if (fill < BLOCK)
            continue;
        fill = 0;
        SD_V_CALL(sd_v_functions)(out, in, BLOCK, which);
        for (int i = 0; i < BLOCK; i++) {
            double exact = exact_of(which, in[i]), error = fabs(out[i] - exact);
            double unit = ldexp(1, ilogb((float)exact) - 23);

            if (error > worst)
                worst = error;
            if (exact >= 1.2e-38 && error / unit > worst_ulp) {
                worst_ulp = error / unit;
                at = in[i];
            }
        }
    }
    if (ulps > 0)
        CHECK(worst_ulp <= ulps, "%s: %s within %.2f ulp (at %.9g), allowed %.1f", sd_isa_name(), name, worst_ulp, at, ulps);
    else
        CHECK(worst <= absolute, "%s: %s within %.2e, allowed %.0e", sd_isa_name(), name, worst, absolute);
}

static void
edges(void)
{
    const float in[BLOCK] = { NAN, INFINITY, -INFINITY, 0, -0.0f, 89, -89, 200, -200, 88.7f, -87.3f, 1, -1, 1e-30f, 1e30f, -1e30f };
    float e[BLOCK], e2[BLOCK], f[BLOCK];

    SD_V_CALL(sd_v_functions)(e, in, BLOCK, 0);
    SD_V_CALL(sd_v_functions)(e2, in, BLOCK, 1);
    SD_V_CALL(sd_v_functions)(f, in, BLOCK, 2);
    CHECK(isnan(e[0]) && isnan(e2[0]) && isnan(f[0]), "%s: NaN stays NaN", sd_isa_name());
    CHECK(e[1] == INFINITY && f[1] == 1 && e[5] == INFINITY && e[14] == INFINITY, "%s: infinity where it should be: %g %g %g",
          sd_isa_name(), e[1], f[1], e[5]);
    CHECK(e[2] == 0 && f[2] == -1 && e[6] == 0 && e2[8] == 0 && e2[15] == 0 && e[15] == 0, "%s: zero where it should be: %g %g %g",
          sd_isa_name(), e[2], e2[8], e[6]);
    CHECK(e[3] == 1 && e2[3] == 1 && f[3] == 0, "%s: exact at zero", sd_isa_name());
}

/* Status and message of a child that asks for SD_ISA=value. */
static int
child_status(const char *value)
{
    int status;
    pid_t child = fork();

    if (child == 0) {
        freopen("/dev/null", "w", stderr);
        setenv("SD_ISA", value, 1);
        _exit(sd_isa() == SD_ISA_SSE4 ? 0 : 10 + (int)sd_isa());
    }
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int
main(void)
{
    CHECK(child_status("sse4") == 0, "SD_ISA=sse4 is obeyed");
    CHECK(child_status("sse5") == 2, "SD_ISA=sse5 is wrong usage");
    CHECK(child_status("") == 10 + (int)sd_isa_best() || sd_isa_best() == SD_ISA_SSE4, "SD_ISA empty: the best");
    if (sd_isa_best() < SD_ISA_AVX512)
        CHECK(child_status("avx512") == 2, "SD_ISA=avx512 on a machine without it is wrong usage");
    for (enum sd_isa isa = SD_ISA_SSE4; isa <= sd_isa_best(); isa++) {
        sd_isa_force(isa);
        accuracy(0, "exp", -87.3, 88.7, 2, 0);
        accuracy(1, "exp2 of attention", -125, 0, 2, 0);
        accuracy(2, "erf", -10, 10, 0, 1e-7);
        edges();
    }
    return check_done();
}
