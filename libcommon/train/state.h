/* state.h - everything a run needs to go on after any death, in one file.
 *
 * One rule: the file under its final name is always whole (written beside, synced, renamed), and is taken up again only
 * by a run with the same settings, data, model and numeric contract; what differs is named.  The order of the data,
 * noise and dropout need nothing here: they are functions of the seed and the step. */
#ifndef SD_STATE_H
#define SD_STATE_H

#include "json.h"
#include "optimizer.h"

/* sd_state_save - step: updates done; settings: a JSON object of everything that must be the same on resume. */
int sd_state_save(const char *path, const struct sd_trainables *t, const struct sd_optimizer *o, int64_t step,
                  const json_t *settings);
/* sd_state_load - into t and o; 1 with *step; 0 when there is no such file; -1 with sd_fail when it is damaged;
 * -2 with sd_fail when it belongs to other settings: "rank: 8 in the state, 16 now; seed: 0 in the state, 1 now". */
int
sd_state_load(const char *path, struct sd_trainables *t, struct sd_optimizer *o, int64_t *step, const json_t *settings);

#endif
