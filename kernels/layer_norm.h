/* layer_norm.h - what layer_norm.c and its vector twin share. */
#ifndef SD_LAYER_NORM_H
#define SD_LAYER_NORM_H

#include "ops.h"
#include "simd.h"

/* Gradients of weight and bias are summed over pieces of rows first, at most 64 of them. */
static inline int64_t
layer_norm_chunks(int64_t rows)
{
    return rows >= 64 * 16 ? 64 : rows > 16 ? rows / 16 : 1;
}

#endif
