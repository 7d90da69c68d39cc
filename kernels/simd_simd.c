/* The vector functions of simd.h by themselves, for tests of their error. */
#include "simd.h"

void
SD_V(sd_v_functions)(float *out, const float *in, size_t count, int which)
{
    for (size_t i = 0; i < count; i += VW) {
        vf x = v_load(in + i);

        v_store(out + i, which == 0 ? v_exp(x) : which == 1 ? v_exp2_down(x) : v_erf(x));
    }
}
