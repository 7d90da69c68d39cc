/* tuning.h - choices among a library's algorithms, by library and call: made once by trial, kept in the cache folder (tuning/, a
 * file for each GPU model and library version), so that the same machine goes on with the same bits.
 *
 * One rule: nothing of a library is used whose results were not compared with those of our own kernel.  All of it is done on the
 * device: of results as large as a picture's only some sums come to the host. */
#ifndef SD_TUNING_H
#define SD_TUNING_H

#include <stdbool.h>
#include <stddef.h>

#include "device.h"
#include "diag.h"
#include "dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

/* tuning_find - the stored text, NULL when there is none; good until the device is closed.
 * tuning_store - keeps `choice`, unless another process was first; returns what is kept.
 * tuning_wanted - is what is not stored to be timed?  Not by SD_TUNE=0; else it is said once, for it may take a minute. */
const char *tuning_find(struct sd_device *d, const char *library, const char *call);
const char *tuning_store(struct sd_device *d, const char *library, const char *call, const char *choice);
bool tuning_wanted(struct sd_device *d);
/* tuning_save - what goes with a choice and takes long to make (compiled code), in a file of its own; where it cannot be kept it is
 * made again, that is all.  tuning_load - those bytes, in s; NULL when they are not there, or not whole. */
void tuning_save(struct sd_device *d, const char *library, const char *call, const char *choice, const void *bytes, size_t length);
void *tuning_load(struct sd_scope *s, struct sd_device *d, const char *library, const char *call, const char *choice, size_t *length);

/* tuning_distance - of `count` results in the device's memory: ||found - expected|| / ||expected||; infinite where `again`, the
 * same computed a second time, has other bits; 0 where what is expected is not finite, which says nothing, or is NULL.  Waits;
 * takes some of the device's workspace.  tuning_bound - what of it is rounding, of results of that type. */
double tuning_distance(struct sd_device *d, const void *found, const void *again, const void *expected, enum sd_dtype dtype,
                       size_t count);
double tuning_bound(enum sd_dtype dtype);

/* tuning_replay - run(argument) by way of a recording, as steps are; false where it cannot be recorded. */
bool tuning_replay(struct sd_device *d, bool (*run)(void *argument), void *argument);

/* tuning_race - the fastest of at most TUNING_WAYS to make the same, timed in turn, several rounds, from recordings; -1: none
 * can be recorded.  seconds: of one run of each, -1 where it cannot. */
enum { TUNING_WAYS = 16 };
struct tuning_way {
    bool (*run)(void *argument);
    void *argument;
    double seconds;
};
int tuning_race(struct sd_device *d, struct tuning_way *way, int count);

#ifdef __cplusplus
}
#endif
#endif
