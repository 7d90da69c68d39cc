/* kohya's buckets: the published vectors, and truths that hold for any picture. */
#include "buckets.h"
#include "tests/check.h"

static struct sd_buckets *
buckets(struct sd_scope *s, int w, int h, int min, int max, bool no_upscale)
{
    return sd_buckets_make(s, (struct sd_size){ w, h }, min, max, 64, no_upscale);
}

static void
check_lists(struct sd_scope *s)
{
    static const int want[17][2] = {
        { 256, 832 }, { 256, 896 }, { 256, 960 }, { 256, 1024 }, { 320, 704 }, { 320, 768 }, { 384, 640 }, { 448, 576 },
        { 512, 512 }, { 576, 448 }, { 640, 384 }, { 704, 320 }, { 768, 320 }, { 832, 256 }, { 896, 256 }, { 960, 256 },
        { 1024, 256 } };
    static const struct { int w, h, min, max; size_t count; } counts[] = {
        { 512, 512, 256, 1024, 17 }, { 1024, 1024, 256, 2048, 41 }, { 1024, 1024, 256, 1024, 25 },
        { 512, 768, 256, 1024, 19 }, { 768, 768, 256, 1024, 19 } };
    struct sd_buckets *b = buckets(s, 512, 512, 256, 1024, false);

    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        struct sd_buckets *c = buckets(s, counts[i].w, counts[i].h, counts[i].min, counts[i].max, false);

        CHECK(c && c->count == counts[i].count, "%dx%d, %d to %d: %zu buckets, expected %zu", counts[i].w, counts[i].h,
              counts[i].min, counts[i].max, c ? c->count : 0, counts[i].count);
    }
    for (size_t i = 0; i < 17; i++)
        CHECK(b->list[i].width == want[i][0] && b->list[i].height == want[i][1], "bucket %zu is %dx%d", i, b->list[i].width,
              b->list[i].height);
    b = buckets(s, 512, 512, 300, 1000, false);
    CHECK(b->min == 256 && b->max == 1024 && b->count == 17, "300 to 1000 becomes 256 to 1024");
    CHECK(!buckets(s, 512, 512, 576, 1024, false), "refused: %s", sd_reason());
    CHECK(!buckets(s, 512, 512, 256, 448, false), "refused: %s", sd_reason());
    CHECK(!buckets(s, 512, 512, 32, 1024, false), "refused: %s", sd_reason());
}

static void
check_vectors(struct sd_scope *s)
{
    static const struct { int w, h, res; bool no_upscale; int bucket[2], resized[2]; } v[] = {
        { 1920, 1080, 512, false, { 640, 384 }, { 683, 384 } }, { 1000, 1500, 512, false, { 384, 640 }, { 427, 640 } },
        { 500, 300, 512, false, { 640, 384 }, { 640, 384 } }, { 3000, 1000, 512, false, { 832, 256 }, { 832, 277 } },
        { 1920, 1080, 512, true, { 640, 384 }, { 683, 384 } }, { 1000, 1500, 512, true, { 384, 576 }, { 384, 576 } },
        { 500, 300, 512, true, { 448, 256 }, { 500, 300 } }, { 3000, 1000, 512, true, { 768, 256 }, { 768, 256 } },
        { 1920, 1080, 1024, true, { 1344, 768 }, { 1365, 768 } }, { 1000, 1500, 1024, true, { 832, 1216 }, { 832, 1248 } },
        { 500, 300, 1024, true, { 448, 256 }, { 500, 300 } }, { 3000, 1000, 1024, true, { 1728, 576 }, { 1728, 576 } },
        { 448, 576, 512, false, { 448, 576 }, { 448, 576 } },
        { 3050, 800, 1024, false, { 1920, 512 }, { 1952, 512 } },   /* as near to 1984x512: the first wins */
        { 1781, 1000, 512, true, { 640, 384 }, { 684, 384 } } };    /* 383.65 rounds to 384 before it is cut to the step */

    for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
        struct sd_buckets *b = buckets(s, v[i].res, v[i].res, 256, v[i].res == 512 ? 1024 : 2048, v[i].no_upscale);
        struct sd_size bucket = { 0, 0 }, resized = { 0, 0 };

        CHECK(!sd_buckets_assign(b, (struct sd_size){ v[i].w, v[i].h }, &bucket, &resized) &&
                  bucket.width == v[i].bucket[0] && bucket.height == v[i].bucket[1] && resized.width == v[i].resized[0] &&
                  resized.height == v[i].resized[1],
              "%d x %d at %d%s: bucket %dx%d, resized %dx%d", v[i].w, v[i].h, v[i].res, v[i].no_upscale ? ", no upscale" : "",
              bucket.width, bucket.height, resized.width, resized.height);
    }
}

/* Any picture: the resized one covers its bucket, one side fits exactly, sides are multiples of the step. */
static void
check_truths(struct sd_scope *s)
{
    struct sd_buckets *kinds[3] = { buckets(s, 512, 768, 256, 1024, false), buckets(s, 512, 768, 256, 1024, true),
                                    sd_buckets_one(s, (struct sd_size){ 512, 768 }) };
    uint32_t random = 1;
    int wrong = 0, refused = 0;

    for (int i = 0; i < 30000; i++) {
        struct sd_size p, bucket, resized;
        const struct sd_buckets *b = kinds[i % 3];

        random = random * 1664525u + 1013904223u;
        p.width = 1 + (int)(random >> 20);
        random = random * 1664525u + 1013904223u;
        p.height = 1 + (int)(random >> 20);
        if (sd_buckets_assign(b, p, &bucket, &resized) < 0) {
            refused++;
            continue;
        }
        wrong += resized.width < bucket.width || resized.height < bucket.height || bucket.width < 1 || bucket.height < 1 ||
                 bucket.width % 64 || bucket.height % 64;
        if (b->no_upscale)
            wrong += resized.width > p.width || resized.height > p.height;
        else
            wrong += resized.width != bucket.width && resized.height != bucket.height;
    }
    CHECK(wrong == 0, "30000 pictures: %d do not fit their bucket", wrong);
    CHECK(refused > 0 && refused < 3000, "%d too small or narrow are refused: %s", refused, sd_reason());
}

int
main(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_size bucket, resized;

    check_lists(s);
    check_vectors(s);
    check_truths(s);
    CHECK(sd_buckets_assign(buckets(s, 512, 512, 256, 1024, false), (struct sd_size){ 1, 100000 }, &bucket, &resized) < 0,
          "a line is refused: %s", sd_reason());
    sd_scope_close(s);
    return check_done();
}
