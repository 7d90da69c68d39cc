/* clock.h - how long something took; never what time it is. */
#ifndef SD_CLOCK_H
#define SD_CLOCK_H

#include <time.h>

/* sd_clock_of - seconds on one of clock_gettime's clocks: CLOCK_PROCESS_CPUTIME_ID, of work, by all threads together. */
static inline double
sd_clock_of(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* sd_clock - seconds since some moment, always forward. */
static inline double
sd_clock(void)
{
    return sd_clock_of(CLOCK_MONOTONIC);
}

#endif
