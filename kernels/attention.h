/* attention.h - what attention.c and its vector twin share. */
#ifndef SD_ATTENTION_H
#define SD_ATTENTION_H

#include "ops.h"
#include "simd.h"

#define ATTENTION_LOG2E 1.44269504088896340736
enum { ATTENTION_MAX_D = 512 };     /* widest head of the vector twin: its blocks live on the stack */

/* batch B, heads H, queries L, keys S, head width d; rows lie pitch elements apart */
struct attention {
    int64_t B, H, L, S, d;
    int64_t q_pitch, k_pitch, v_pitch, o_pitch;
    const real *q, *k, *v;
    real *lse;                      /* [B, H, L] log of the sum of exponentials */
    double scale;
    bool causal;
};

static inline struct attention
attention_of(const struct sd_node *n)
{
    const struct sd_attention *a = n->attr;
    const struct sd_tensor *q = n->in[0], *k = n->in[1], *v = n->in[2];
    int64_t d = sd_cols(q) / a->heads;

    return (struct attention){
        .B = q->shape[0], .H = a->heads, .L = q->shape[1], .S = k->shape[1], .d = d,
        .q_pitch = q->pitch, .k_pitch = k->pitch, .v_pitch = v->pitch, .o_pitch = sd_cols(q),
        .q = q->data, .k = k->data, .v = v->data, .lse = n->saved[0] ? n->saved[0]->data : NULL,
        .scale = a->scale != 0 ? a->scale : 1 / sqrt((double)d), .causal = a->causal,
    };
}

/* The backward pass cuts the queries of each head into parts, so that some 16 pieces of work can run at once. */
static inline int64_t
attention_parts(const struct attention *a)
{
    int64_t heads = a->B * a->H, wanted = heads > 0 ? (16 + heads - 1) / heads : 1, most = a->L / 256;

    return wanted < most ? wanted : most > 1 ? most : 1;
}

/* May products of bf16 run in vectors?  Numbers of scratch that their pairs take, of k and v or of q and dy: `rows`
 * rows a head. */
static inline bool
attention_fast(const struct sd_node *n, const struct attention *a)
{
    return sd_fast() && a->d <= ATTENTION_MAX_D && (!n->bf16 || sd_isa() >= SD_ISA_AVX512BF16);
}

static inline int64_t
attention_pairs_size(const struct attention *a, int64_t rows)
{
    return 2 * a->B * a->H * (rows * ((a->d + 1) / 2) + (rows + 1) / 2 * a->d);
}

#endif
