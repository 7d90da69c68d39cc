/* silu, in vectors. */
#include "elementwise_simd.h"

SD_ELEMENTWISE(silu)
