/* draw_private.h - what draw.c and draw_pixels.c share. */
#ifndef SD_DRAW_PRIVATE_H
#define SD_DRAW_PRIVATE_H

#include "draw.h"

enum net_kind { TEXT, TEXT_KV, UNET, DECODE, ENCODE };

/* A planned network with one or more inputs and one output. */
struct net {
    enum net_kind kind;
    int64_t batch, chunks;
    const struct sd_adapters *adapters;     /* NULL where the kind has none */
    struct sd_graph *graph;
    struct sd_plan *plan;
    struct sd_tensor *in[3], *out;
    bool bound;
    struct net *next;
};

struct sd_draw {
    struct sd_scope *scope;
    struct sd_draw_model m;
    struct sd_draw_options o;
    int64_t h, w, channels, length, state_width;
    int64_t kv_width;               /* sd_unet_text_width */
    size_t kv_bytes;                /* on the host: keys and values of the texts of the largest batch */
    struct sd_arena *arena;
    struct net *nets;
    struct draw_loop *loops;        /* draw_device.c's */
    double step_flops;
    struct draw_batch_planned {
        struct sd_draw_batch b;
        const struct sd_adapters *adapters;
        struct draw_batch_planned *next;
    } *batches;                     /* on a device: each kind once */
    size_t device_bytes;            /* theirs */
};

/* draw_ready - planned (now, or before), with the adapters of now, and bound.  NULL with sd_fail. */
struct net *draw_ready(struct sd_draw *d, enum net_kind kind, int64_t batch, int64_t chunks);

/* draw_not_finite - run it again, its inputs filled anew, and fail with the name of the first module that is not
 * finite. */
int draw_not_finite(struct net *n);
bool draw_finite(const float *x, size_t n);

/* draw_text_kv - keys and values of a text: their network, run; its result lasts until another runs.  look: NULL with
 * sd_fail also where something is not finite. */
struct net *draw_text_kv(struct sd_draw *d, const struct sd_draw_text *text, bool look);

/* draw_on_device - sd_draw_pictures where the networks run on a device.  false: not done (the CPU; a sampler that sorts;
 * a result that is not finite), the loop of draw.c does it, or finds out where. */
bool draw_on_device(struct sd_draw *d, const struct sd_draw_picture *pictures, int count,
                    void (*progress)(void *, int, int), void *user, int *status);
void draw_loops_free(struct sd_draw *d);
/* draw_loop_bytes - what a loop over these networks will take beside them; the second NULL where there is one. */
size_t draw_loop_bytes(const struct sd_draw *d, int count, bool guided, struct net *const nets[2]);

/* Latents of one picture: [channels, pixels] of files, [pixels, channels] in memory. */
void draw_to_nhwc(float *to, const float *from, int64_t channels, int64_t pixels);
void draw_to_nchw(float *to, const float *from, int64_t channels, int64_t pixels);

#endif
