/* buckets.h - which size a picture is trained at: kohya's buckets, or one size for all.
 *
 * One rule: the same picture size and the same settings give the same bucket, resized size and crop as sd-scripts does. */
#ifndef SD_BUCKETS_H
#define SD_BUCKETS_H

#include "diag.h"

struct sd_size {
    int width, height;
};

struct sd_buckets {
    struct sd_size resolution;
    int min, max, step;         /* rounded to multiples of step */
    bool no_upscale;            /* pictures only shrink; buckets follow from the picture, the list is not used */
    struct sd_size *list;       /* ascending by width, then height */
    size_t count;
};

/* sd_buckets_make - all sizes of about resolution's area whose sides are multiples of step between min and max.
 * NULL with sd_fail when min or max do not embrace the resolution. */
struct sd_buckets *sd_buckets_make(struct sd_scope *s, struct sd_size resolution, int min, int max, int step,
                                   bool no_upscale);
/* sd_buckets_one - no buckets: every picture becomes resolution. */
struct sd_buckets *sd_buckets_one(struct sd_scope *s, struct sd_size resolution);

/* sd_buckets_assign - for a picture of this size: its bucket, and the size it is resized to (covering the bucket) before it
 * is cropped.  -1 with sd_fail when no side may be that small. */
int sd_buckets_assign(const struct sd_buckets *b, struct sd_size picture, struct sd_size *bucket, struct sd_size *resized);

#endif
