/* group_norm.h - what group_norm.c and its vector twin share. */
#ifndef SD_GROUP_NORM_H
#define SD_GROUP_NORM_H

#include "ops.h"
#include "simd.h"

struct group_norm { int groups; double eps; bool silu; };
enum { GROUP_NORM_TERMS = 6 };      /* numbers kept for each sample and channel beside the sums */
enum { GROUP_NORM_BESIDE = 3 };     /* the input whose channels follow those of x; groups may have channels of both */

static inline int64_t
group_norm_channels(const struct sd_node *n)
{
    const struct sd_tensor *beside = n->in[GROUP_NORM_BESIDE];

    return sd_cols(n->in[0]) + (beside ? sd_cols(beside) : 0);
}

/* Sums run over pieces of some 64 pixels first: piece i of a sample of P pixels starts at P i / chunks. */
static inline int64_t
group_norm_chunks(int64_t P)
{
    return P > 64 ? (P + 63) / 64 : 1;
}

#endif
