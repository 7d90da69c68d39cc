/* buckets.c - kohya's buckets (sd-scripts: library/model_util.py make_bucket_resolutions, library/train_util.py
 * BucketManager).  Divisions of integers round down; reals are double, as in Python. */
#include "buckets.h"

#include <math.h>
#include <stdlib.h>

static int
by_width(const void *a, const void *b)
{
    const struct sd_size *p = a, *q = b;

    return p->width != q->width ? p->width - q->width : p->height - q->height;
}

static void
add(struct sd_buckets *b, int width, int height)
{
    for (size_t i = 0; i < b->count; i++)
        if (b->list[i].width == width && b->list[i].height == height)
            return;
    b->list[b->count++] = (struct sd_size){ width, height };
}

struct sd_buckets *
sd_buckets_make(struct sd_scope *s, struct sd_size resolution, int min, int max, int step, bool no_upscale)
{
    struct sd_buckets *b = sd_alloc(s, sizeof *b);
    int w = resolution.width, h = resolution.height, square;
    int64_t area = (int64_t)w * h;

    *b = (struct sd_buckets){ resolution, min - min % step, (max + step - 1) / step * step, step, no_upscale, NULL, 0 };
    if (b->min < step)
        return sd_fail_null("the smallest side %d is below the step %d", min, step);
    if (b->min > (w < h ? w : h))
        return sd_fail_null("the smallest side %d is above the resolution %dx%d", min, w, h);
    if (b->max < (w > h ? w : h))
        return sd_fail_null("the largest side %d is below the resolution %dx%d", max, w, h);
    b->list = sd_alloc_array(s, 2 * (size_t)((b->max - b->min) / step + 1) + 1, sizeof *b->list);
    square = (int)(sqrt((double)area) / step) * step;
    if (square > 0)
        add(b, square, square);
    for (int width = b->min; width <= b->max; width += step) {
        int64_t height = area / width / step * step;

        height = height < b->max ? height : b->max;
        if (height >= b->min) {
            add(b, width, (int)height);
            add(b, (int)height, width);
        }
    }
    qsort(b->list, b->count, sizeof *b->list, by_width);
    return b;
}

struct sd_buckets *
sd_buckets_one(struct sd_scope *s, struct sd_size resolution)
{
    struct sd_buckets *b = sd_alloc(s, sizeof *b);

    b->resolution = resolution;
    b->list = sd_alloc(s, sizeof *b->list);
    b->list[0] = resolution;
    b->count = 1;
    return b;
}

/* The bucket of the same size, else the first of those nearest in width / height. */
static struct sd_size
nearest(const struct sd_buckets *b, struct sd_size p)
{
    double aspect = (double)p.width / p.height, least = INFINITY;
    struct sd_size best = b->list[0];

    for (size_t i = 0; i < b->count; i++) {
        struct sd_size q = b->list[i];
        double error = fabs((double)q.width / q.height - aspect);

        if (q.width == p.width && q.height == p.height)
            return q;
        if (error < least) {
            least = error;
            best = q;
        }
    }
    return best;
}

static int
rounded(double x, int step)
{
    int y = (int)(x + 0.5);

    return y - y % step;
}

/* Shrunk to the resolution's area, sides as near to multiples of step as the aspect allows; never enlarged. */
static int
assign_no_upscale(const struct sd_buckets *b, struct sd_size p, struct sd_size *bucket, struct sd_size *resized)
{
    int64_t area = (int64_t)b->resolution.width * b->resolution.height;
    double aspect = (double)p.width / p.height;

    *resized = p;
    if ((int64_t)p.width * p.height > area) {
        double width = sqrt((double)area * aspect), height = (double)area / width;
        int w1 = rounded(width, b->step), h1 = rounded(w1 / aspect, b->step);
        int h2 = rounded(height, b->step), w2 = rounded(h2 * aspect, b->step);

        if (!w1 || !h1 || !h2 || !w2)
            return sd_fail("%d x %d is too narrow for buckets in steps of %d", p.width, p.height, b->step);
        if (fabs((double)w1 / h1 - aspect) < fabs((double)w2 / h2 - aspect))
            *resized = (struct sd_size){ w1, (int)(w1 / aspect + 0.5) };
        else
            *resized = (struct sd_size){ (int)(h2 * aspect + 0.5), h2 };
    }
    *bucket = (struct sd_size){ resized->width - resized->width % b->step, resized->height - resized->height % b->step };
    if (!bucket->width || !bucket->height)
        return sd_fail("%d x %d is too small for buckets in steps of %d", p.width, p.height, b->step);
    return 0;
}

int
sd_buckets_assign(const struct sd_buckets *b, struct sd_size p, struct sd_size *bucket, struct sd_size *resized)
{
    double scale;

    if (b->no_upscale)
        return assign_no_upscale(b, p, bucket, resized);
    *bucket = nearest(b, p);
    if ((double)p.width / p.height > (double)bucket->width / bucket->height)
        scale = (double)bucket->height / p.height;
    else
        scale = (double)bucket->width / p.width;
    if (p.width * scale >= 1e6 || p.height * scale >= 1e6)
        return sd_fail("%d x %d is too narrow for %dx%d", p.width, p.height, bucket->width, bucket->height);
    *resized = (struct sd_size){ (int)(p.width * scale + 0.5), (int)(p.height * scale + 0.5) };
    return 0;
}
