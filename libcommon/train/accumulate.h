/* accumulate.h - gradient accumulation as a fixed binary tree over the micro-batches of one update.
 *
 * One rule: which sums are added to which depends on the micro-batch index alone (a binary counter of partial sums), so
 * that the same tree can later span several machines.  Loss and gradients are sums over samples; the division by the
 * number of samples happens once, at the end. */
#ifndef SD_ACCUMULATE_H
#define SD_ACCUMULATE_H

#include "trainables.h"

struct sd_accumulator;

struct sd_accumulator *sd_accumulator_new(struct sd_trainables *t);
/* sd_accumulate - take t->grad, the sum over one micro-batch of `samples` samples, and clear it. */
void sd_accumulate(struct sd_accumulator *a, double loss, int64_t samples);
/* sd_accumulator_finish - t->grad becomes the mean gradient, *loss the mean loss, of everything taken since the last
 * finish; returns the number of samples. */
int64_t sd_accumulator_finish(struct sd_accumulator *a, double *loss);

#endif
