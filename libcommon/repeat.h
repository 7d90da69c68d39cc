/* repeat.h - the same work asked of a device again and again.
 *
 * One rule: the first time it is asked for as it stands, while libraries choose and allocate; then it is recorded, and
 * from there on one launch is all of it.  What it reads and writes stays where it is; where it was moved (`moves` is
 * another than the last time) it is recorded anew.  Where it cannot be recorded it is asked for as it stands every time,
 * and that is said once. */
#ifndef SD_REPEAT_H
#define SD_REPEAT_H

#include "device.h"

struct sd_repeat {              /* all zero at first */
    struct sd_recording *recording;
    unsigned moves;
    bool begun, one_by_one;
};
void sd_repeat(struct sd_device *d, struct sd_repeat *r, unsigned moves, void (*work)(void *), void *argument);
void sd_repeat_end(struct sd_repeat *r);

#endif
