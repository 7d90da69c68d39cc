/* latents_private.h - what latents.c and latents_text.c share: networks planned by size, what all keys have. */
#ifndef SD_LATENTS_PRIVATE_H
#define SD_LATENTS_PRIVATE_H

#include "latents.h"

/* One planned network: one input, one output. */
struct sd_latents_net {
    int64_t size[3];            /* batch, height, width; or chunks */
    struct sd_graph *graph;
    struct sd_plan *plan;
    struct sd_tensor *in, *out;
    bool bound;
    struct sd_latents_net *next;
};
struct sd_latents_nets {
    struct sd_scope *scope;
    struct sd_arena *arena;
    int64_t memory;
    struct sd_compute compute;
    struct sd_latents_net *first;
    /* describes n->in and n->out for n->size */
    void (*describe)(struct sd_latents_net *n, void *user);
    void *user;
};
void sd_latents_nets_open(struct sd_latents_nets *x, struct sd_scope *s, const struct sd_encoding *e,
                          void (*describe)(struct sd_latents_net *n, void *user), void *user);
/* The network of a size, planned; bind: ready to run.  NULL with sd_fail: it does not fit into the memory. */
struct sd_latents_net *sd_latents_net(struct sd_latents_nets *x, const int64_t size[3], bool bind);

/* sd_latents_plan_net - that network's work is added to plan->flops; its memory raises plan's where it is more. */
int sd_latents_plan_net(struct sd_latents_nets *x, const int64_t size[3], struct sd_latents_plan *plan);

/* The parts of a key that do not belong to one picture or text. */
void sd_latents_key_parts(struct sd_key *k, const struct sd_encoding *e, const char *kind, const char *weights_hash,
                          const char *config);

#endif
