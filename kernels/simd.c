/* simd: the instruction set that vector code uses. */
#include <stdlib.h>

#include "simd.h"

static const char *const names[] = { "sse4", "avx2", "avx512", "avx512bf16" };

enum sd_isa
sd_isa_best(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        return __builtin_cpu_supports("avx512bf16") ? SD_ISA_AVX512BF16 : SD_ISA_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return SD_ISA_AVX2;
    if (!__builtin_cpu_supports("sse4.2"))
        sd_die(NULL, "this processor has no SSE4.2");
    return SD_ISA_SSE4;
}

static enum sd_isa
choose_isa(void)
{
    enum sd_isa best = sd_isa_best();
    const char *wanted = getenv("SD_ISA");

    if (!wanted || !*wanted)
        return best;
    for (int i = SD_ISA_SSE4; i <= SD_ISA_AVX512BF16; i++) {
        if (strcmp(wanted, names[i]))
            continue;
        if (i > (int)best)
            sd_usage("SD_ISA", "%s: this machine has %s", wanted, names[best]);
        return i;
    }
    sd_usage("SD_ISA", "%s: expected sse4, avx2, avx512 or avx512bf16", wanted);
}

static int chosen = -1;

enum sd_isa
sd_isa(void)
{
    int isa = __atomic_load_n(&chosen, __ATOMIC_RELAXED);

    if (isa < 0) {
        isa = choose_isa();
        __atomic_store_n(&chosen, isa, __ATOMIC_RELAXED);
    }
    return isa;
}

const char *
sd_isa_name(void)
{
    return names[sd_isa() == SD_ISA_AVX512BF16 ? SD_ISA_AVX512 : sd_isa()];
}

void
sd_isa_force(enum sd_isa isa)
{
    if (isa > sd_isa_best())
        sd_bug("sd_isa_force", "%s: this machine has %s", names[isa], names[sd_isa_best()]);
    chosen = (int)isa;
}
