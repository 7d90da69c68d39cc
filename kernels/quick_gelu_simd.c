/* quick_gelu, in vectors. */
#include "elementwise_simd.h"

SD_ELEMENTWISE(quick_gelu)
