/* check_op.h - checks of ops.  A test file describes the op in f(); check_gradient runs in the f64 build only, check_paths in
 * the f32 build only (vendor and vector paths against the C loops).  Shapes: "2x3x5x6 6 6", one word per input. */
#ifndef SD_CHECK_OP_H
#define SD_CHECK_OP_H

#include "check.h"
#include "op.h"
#include "ops.h"
#include "param.h"
#include "plan.h"

typedef struct sd_tensor *check_describe(struct sd_graph *g, struct sd_tensor **in);

/* check_gradient - f64: for every combination of wanted gradients (each subset of inputs), backward of a random projection
 * of the output against central differences, three ways: gradients added to random numbers, stored, and through pitched
 * views of wider tensors.  tolerance: largest |difference| / (|reference| + rms).
 * check_gradient_of - the same for the inputs in `mask` only (ids, timesteps and targets have no gradient). */
void check_gradient(const char *name, check_describe *f, const char *shapes, double tolerance);
void check_gradient_of(const char *name, check_describe *f, const char *shapes, unsigned mask, double tolerance);
/* check_fill - input i of the next checks is SD_I32, drawn from 0..limit-1; limit 0: reals again. */
void check_fill(int input, int64_t limit);
/* check_paths - f32: forward and all gradients with the fast paths on, for each instruction set the machine has, against the C
 * loops (sd_plain), with inputs trainable, with weights (input 1) frozen, and without gradients:
 * ||a-b||/||b|| <= tolerance, fresh buffers poisoned with NaN, guards around every buffer untouched, and the same bits
 * with one thread and with two.  check_paths_of: gradients for the inputs in `mask` only. */
/* Where SD_TEST_DEVICE names a device, and in the emulated build, check_paths checks the CUDA twins instead: each type of
 * activations, the same variants, run as it stands and recorded, against the C loops; the same bits twice. */
/* check_tested_device - the device that this run of the tests is about: SD_TEST_DEVICE, or the emulated one; NULL: the CPU. */
struct sd_device *check_tested_device(void);
void check_paths(const char *name, check_describe *f, const char *shapes, double tolerance);
void check_paths_of(const char *name, check_describe *f, const char *shapes, unsigned mask, double tolerance);
/* check_bf16 - f32: the same as check_paths with products of bf16, on a machine that has them (else skipped aloud): fast paths
 * against the C loops within `tolerance` (sums in another order), and the C loops against the C loops in f32, within
 * `rounding` and not within a tenth of it.  check_bf16_of: gradients for the inputs in `mask` only. */
void check_bf16(const char *name, check_describe *f, const char *shapes, double tolerance, double rounding);
void check_bf16_of(const char *name, check_describe *f, const char *shapes, unsigned mask, double tolerance, double rounding);
/* check_same - f32, on the CPU: two descriptions give the same bits, output and gradients that are stored, for each instruction set
 * the machine has.  check_same_bf16: with products of bf16. */
void check_same(const char *name, check_describe *f, check_describe *other, const char *shapes);
void check_same_bf16(const char *name, check_describe *f, check_describe *other, const char *shapes);
/* check_dtypes - f32: input 1, a frozen weight, as F32, F16 and BF16 in mappings that are not aligned, each against the same values
 * in aligned F32: the same bits of the output and of the gradient of input 0, for each instruction set the machine has, planned
 * for one thread and run with two; what is kept in forms of its own is what was announced, and is forms() bytes
 * and the values of biases, which are F16. */
void check_dtypes(const char *name, check_describe *f, const char *shapes, size_t (*forms)(void));

#endif
