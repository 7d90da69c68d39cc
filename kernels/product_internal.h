/* product_internal.h - what product.c and product_weight.c know of a product. */
#ifndef SD_PRODUCT_INTERNAL_H
#define SD_PRODUCT_INTERNAL_H

#include "gemm.h"
#include "product.h"

enum {
    MAX_PHASES = 4,
    MAX_KERNEL = 32             /* rows or columns of a kernel: bits of gemm_tap */
};

struct phase {
    int y, x;                   /* first position; they lie phases_per_axis apart */
    int taps;
    struct gemm_tap *tap;
};

struct form {                   /* one direction */
    bool data;                  /* for the data gradient */
    int per_axis;               /* phases: 1 or 2 on each axis */
    int step;
    struct phase phase[MAX_PHASES];
    bool winograd;
    char key[32];               /* Winograd's weights */
    size_t bytes;
};

struct product {
    struct product_shape s;
    struct form forward, data;
    int input;                  /* which is x */
    int64_t first, row;         /* its first column in the weight; columns of the whole weight */
    struct product *beside;     /* over what lies beside x, or NULL */
    bool bf16;
    int threads;                /* that have room */
    bool swapped;               /* weight gradient: x is transposed, not dy */
};

/* Rooms of scratch begin on lines of the cache. */
static inline size_t
align(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

size_t product_weight_scratch(const struct product *p);     /* bytes, for the weight gradient */

#endif
