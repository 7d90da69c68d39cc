/* check_op.h - checks of ops.  A test file describes the op in f(); check_gradient runs in the f64 build only, check_paths in
 * the f32 build only (vendor and vector paths against the C loops).  Shapes: "2x3x5x6 6 6", one word per input. */
#ifndef SD_CHECK_OP_H
#define SD_CHECK_OP_H

#include "check.h"
#include "../libcommon/plan.h"
#include "../libcommon/param.h"
#include "../kernels/op.h"
#include "../kernels/ops.h"

typedef struct sd_tensor *check_describe(struct sd_graph *g, struct sd_tensor **in);

/* check_gradient - f64: for every combination of wanted gradients (each subset of inputs), backward of a random projection
 * of the output against central differences; gradients are added to random numbers, or stored; with inputs dense and, for the
 * operands ops.def allows, pitched.  tolerance: largest |difference| / (|reference| + rms). */
void check_gradient(const char *name, check_describe *f, const char *shapes, double tolerance);
/* check_gradient_of - the same for the inputs in `mask` only (ids, timesteps and targets have no gradient). */
void check_gradient_of(const char *name, check_describe *f, const char *shapes, unsigned mask, double tolerance);
/* check_fill - integer inputs: values of input i are drawn from 0..limit-1 as SD_I32. */
void check_fill(int input, int64_t limit);
/* check_paths - f32: forward and all gradients with the fast paths on (each ISA the machine has) against the C loops
 * (SD_PLAIN): ||a-b||/||b|| <= tolerance; guards around every buffer untouched. */
void check_paths(const char *name, check_describe *f, const char *shapes, double tolerance);

#endif
