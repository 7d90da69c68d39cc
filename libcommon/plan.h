/* plan.h - plan a described graph once, run it many times.
 *
 * One rule: everything is known before the first byte is allocated: which gradients, what is recomputed, where every
 * tensor lies in the one arena, which packed weights will be made.  Running allocates nothing. */
#ifndef SD_PLAN_H
#define SD_PLAN_H

#include "graph.h"

struct sd_plan;

enum sd_recompute {         /* how much of the forward pass is done again to save memory, cheapest first */
    SD_KEEP_ALL,            /* nothing redone (default of training on a device) */
    SD_REDO_CHEAP,          /* norms, activations, concatenations (default on a CPU) */
    SD_REDO_FEED_FORWARD,   /* and what stands between a block's cheap ops */
    SD_REDO_BLOCKS          /* whole blocks from what enters them */
};

/* sd_plan_inference - computes every kept tensor.  sd_plan_training - loss (any shape, summed) and the gradients of all
 * trainable parameters upstream (added to param->grad), and kept tensors.
 * budget: bytes the arena may take, 0 for no limit: recomputation is raised from `least` until it fits, else NULL with
 * sd_fail ("needs 3.1 GiB, --memory leaves 2.0 GiB").  Also NULL when the graph has a fault. */
struct sd_plan *sd_plan_inference(struct sd_graph *g, int64_t budget);
struct sd_plan *sd_plan_training(struct sd_graph *g, struct sd_tensor *loss, enum sd_recompute least, int64_t budget);
void sd_plan_free(struct sd_plan *p);           /* before its graph */

struct sd_plan_report {
    size_t arena_bytes;         /* inputs, activations, gradients, scratch */
    size_t activations_bytes;   /* peak of forward results alive at once */
    size_t copies;              /* dense ones that had to be inserted, and concatenations */
    size_t redone;              /* forward steps run twice */
    double flops;               /* forward and backward, redone ones included */
    enum sd_recompute recompute;
    int steps;
};
struct sd_plan_report sd_plan_report(const struct sd_plan *p);

/* sd_plan_bind - allocate.  Plans that never run together may share one arena: pass the same struct sd_arena; it grows to the
 * largest (kept outputs of a plan are then valid until another plan runs).  NULL: an arena of its own. */
enum { SD_ARENA_STEP = 2 << 20 };       /* an arena's bytes are a multiple */
struct sd_arena;
struct sd_arena *sd_arena_new(void);
void sd_arena_free(struct sd_arena *a);
/* sd_arena_moves - how often it has grown: addresses in it are new then. */
unsigned sd_arena_moves(const struct sd_arena *a);
void sd_plan_bind(struct sd_plan *p, struct sd_arena *arena);

/* sd_feed - copy dense data (numel elements of the input's dtype; SD_F32 as float even in the double build) into an input.
 * sd_fetch - copy a kept tensor out, dense.  */
void  sd_feed(struct sd_plan *p, struct sd_tensor *input, const void *data);
void  sd_fetch(struct sd_plan *p, struct sd_tensor *output, void *data);

/* sd_data - where a kept tensor or an input lies (`real` elements, rows `pitch` apart). */
void *sd_data(struct sd_plan *p, struct sd_tensor *x);

/* For tests.  sd_plan_seed - what the backward pass starts from instead of ones (numel of the loss; the caller keeps it).
 * sd_guard - set before planning: every buffer is followed by a guard and begins as NaN; sd_run is then sd_bug() when a
 * guard was overwritten. */
void sd_plan_seed(struct sd_plan *p, const void *seed);
extern bool sd_guard;

/* sd_run - all steps.  sd_run_scan - the same with every output scanned: returns the module path of the first step whose
 * result is not finite, or NULL. */
void        sd_run(struct sd_plan *p);
const char *sd_run_scan(struct sd_plan *p);
/* sd_run_steps - on a device: all steps as they stand, for a caller that records them with work of its own (repeat.h; the
 * plan's addresses are good as long as sd_arena_moves stays as it is). */
void        sd_run_steps(struct sd_plan *p);

/* sd_plan_profile - with SD_PROFILE in the environment: seconds, calls and GFLOP/s by op and shape, on stderr, when the plan is freed. */
void sd_plan_profile(struct sd_plan *p);

#endif
