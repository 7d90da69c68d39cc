/* plan_internal.h - what plan.c shares with run.c. */
#ifndef SD_PLAN_INTERNAL_H
#define SD_PLAN_INTERNAL_H

#include "graph_internal.h"
#include "plan.h"
#include "repeat.h"

enum sd_step_kind { SD_STEP_FORWARD, SD_STEP_REDO, SD_STEP_BACKWARD, SD_STEP_ZERO, SD_STEP_ONE };

/* One stretch of steps during which a tensor's bytes are held.  A tensor that is recomputed has two. */
struct sd_life {
    struct sd_tensor *tensor;       /* NULL: a step's scratch */
    int begin, end;                 /* steps, inclusive */
    size_t bytes, offset;
    struct sd_life *heir;           /* lies on the same bytes: the later life this one hands them to */
    struct sd_life *from;
    bool forward;                   /* a forward result (for the report) */
};

struct sd_step {
    enum sd_step_kind kind;
    struct sd_node *node;           /* FORWARD, REDO, BACKWARD */
    struct sd_tensor *tensor;       /* ZERO, ONE: a gradient */
    struct sd_array begins;         /* lives that begin here: their tensors (and views) get addresses */
    struct sd_life *scratch;
    bool din_store[SD_MAX_IN];      /* BACKWARD */
    double seconds;                 /* profile */
    long calls;
};

struct sd_plan {
    struct sd_graph *graph;
    struct sd_scope *scope;
    struct sd_array steps, lives;
    size_t arena_bytes;
    struct sd_arena *arena;
    bool own_arena;
    const void *seed;
    void *device_seed;
    struct sd_repeat repeat;        /* of all steps, on a device */
    bool guarded;
    struct sd_plan_report report;
};

enum { SD_ALIGN = 64, SD_GUARD = 64 };      /* SD_GUARD: bytes behind every buffer in tests */

struct sd_arena {
    struct sd_device *device;
    char *base;
    size_t bytes;
    unsigned moves;             /* times that it has grown: addresses are new */
};

/* run.c for run_device.c */
void sd_step_addresses(struct sd_plan *p, struct sd_step *s);
void sd_address(struct sd_tensor *x, void *data);
/* and for profiles: "linear forward 4096x320 -> 320", op, kind, shapes */
void sd_step_describe(char *text, size_t room, const struct sd_step *s);

/* run_device.c - the same for a plan on a device.  sd_device_run: by repeat.h. */
void sd_device_bind(struct sd_plan *p);
void sd_device_run(struct sd_plan *p);
void sd_device_step(struct sd_plan *p, struct sd_step *s);
bool sd_device_is_finite(struct sd_device *d, const struct sd_tensor *x);
void sd_device_forget(struct sd_plan *p);

/* run_convert.c - a node whose activations are not F32, by the C loops: operands are converted, the loops run, results are
 * rounded.  sd_convert_bytes - room for that behind the op's own scratch; 0 when there is nothing to convert. */
size_t sd_convert_bytes(const struct sd_node *n);
void   sd_convert_run(struct sd_node *n, bool backward);
void   sd_to_real(real *to, const void *from, enum sd_dtype dtype, size_t count);
void   sd_from_real(void *to, enum sd_dtype dtype, const real *from, size_t count);

static inline struct sd_tensor *
base_of(struct sd_tensor *x)
{
    return x->base ? x->base : x;
}

static inline struct sd_storage *
storage(struct sd_tensor *x)
{
    return base_of(x)->storage;
}

static inline struct sd_node *
node_at(const struct sd_graph *g, size_t i)
{
    return g->nodes.item[i];
}

static inline size_t
tensor_bytes(const struct sd_tensor *x)
{
    return (x->numel * sd_element_size(x->dtype) + SD_ALIGN - 1) / SD_ALIGN * SD_ALIGN + (sd_guard ? SD_GUARD : 0);
}

/* What the backward step of n reads, from the table: inputs, output, saved. */
static inline unsigned
backward_reads(const struct sd_node *n)
{
    unsigned reads = 0;

    for (int a = 0; a < n->n_in; a++)
        if (n->din[a])
            reads |= sd_ops[n->op].reads[a];
    return reads;
}

/* sd_plan_place - the steps are made: lives, places, and their sums in the report.  plan_lives.c */
void sd_plan_place(struct sd_plan *p, struct sd_tensor *loss);

#endif
