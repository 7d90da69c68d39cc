/* compute.h - --device and --dtype, made real.
 *
 * One rule: called right after sd_options() by every program that computes, before anything is touched: a type that the machine
 * cannot compute in is status 2, a device that is not there status 3, one line each. */
#ifndef SD_COMPUTE_H
#define SD_COMPUTE_H

#include "graph.h"

/* sd_shared_compute - opened by the first call, the same ever after, to the program's end.  Without --dtype: f32 on the CPU, bf16 on
 * a CUDA device. */
const struct sd_compute *sd_shared_compute(void);
/* sd_compute_dtype - "f32", "bf16", "f16", "tf32": for keys, states and messages. */
const char *sd_compute_dtype(const struct sd_compute *c);
/* sd_compute_engine - what may change bits beside the program's version: "cpu 0.1.0", "cuda ...". */
const char *sd_compute_engine(const struct sd_compute *c);
/* sd_compute_unit - the kind of machine: "avx512", "NVIDIA H100 80GB HBM3 (sm_90)". */
const char *sd_compute_unit(const struct sd_compute *c);

#endif
