/* sd-crop - photos, folders or records to records with pixel_values: upright, RGB, resized and cropped to one size or
 * to buckets.  Geometry is in libcommon/buckets.c and image_resize.c. */
#include "buckets.h"
#include "file.h"
#include "hash.h"
#include "image.h"
#include "json.h"
#include "model/model.h"
#include "opt.h"
#include "record.h"
#include "threads.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *resolution_text, *model_name, *bucket_policy = "keep", *resample = "lanczos", *center = "middle",
    *mask_dir, *report_path;
static bool use_buckets, no_upscale;
static int64_t bucket_step = 64, min_bucket, max_bucket, train_batch_size = 2;

static const struct sd_opt options[] = {
    { 0, "resolution", SD_OPT_TEXT, &resolution_text, 0, 0, "N|WxH", "size of the pictures (the model's, else 512)" },
    { 0, "model", SD_OPT_TEXT, &model_name, 0, 0, "M", "take the resolution from this model" },
    { 0, "buckets", SD_OPT_FLAG, &use_buckets, 0, 0, NULL,
      "keep aspects: about the resolution's area, sides by steps" },
    { 0, "bucket-step", SD_OPT_INT, &bucket_step, 1, 1024, "PIXELS", "sides are multiples of this (64)" },
    { 0, "min-bucket", SD_OPT_INT, &min_bucket, 1, 16384, "PIXELS", "smallest side (256, or half the resolution's)" },
    { 0, "max-bucket", SD_OPT_INT, &max_bucket, 1, 16384, "PIXELS", "largest side (1024, or twice the resolution's)" },
    { 0, "no-upscale", SD_OPT_FLAG, &no_upscale, 0, 0, NULL, "with buckets: never enlarge a picture" },
    { 0, "bucket-policy", SD_OPT_CHOICE, &bucket_policy, 0, 0, "keep|drop|repeat",
      "buckets of fewer pictures than the batch: what to do (keep)" },
    { 0, "train-batch-size", SD_OPT_INT, &train_batch_size, 2, 4096, "N", "the batch for --bucket-policy (2)" },
    { 0, "resample", SD_OPT_CHOICE, &resample, 0, 0, "lanczos|bicubic|box|area", "how to resize (lanczos)" },
    { 0, "center", SD_OPT_CHOICE, &center, 0, 0, "middle|mask", "where to crop (middle)" },
    { 0, "mask-dir", SD_OPT_TEXT, &mask_dir, 0, 0, "DIR", "folder of masks, named as the photos, .png or .jpg" },
    { 0, "report", SD_OPT_TEXT, &report_path, 0, 0, "FILE", "write sizes, crops and buckets as JSON" },
    { 0 }
};

/* What is counted per bucket, ascending by size when reported. */
struct tally {
    struct sd_size size;
    int64_t pictures, written, enlarged;
    double aspect_error, cropped;       /* sums */
    struct sd_record **held;            /* while there are fewer than a batch, unless the policy is keep */
};

static struct crop {
    struct sd_scope *scope;             /* lives as long as the program */
    struct sd_buckets *buckets;
    struct sd_size resolution;
    enum sd_filter filter;
    struct tally *tally;
    size_t tallies;
    struct seen { char hash[SD_SHA256_HEX]; struct sd_size size; char *name; } *seen;
    size_t pictures, room, duplicates, below, dropped, repeated, written, left_out;
    json_t *items;
} crop;

/* ---- one picture: what goes in --------------------------------------------------------------------------------- */

struct input {
    const char *name;                   /* for messages */
    struct sd_image *photo, *mask;      /* mask NULL for none */
};

/* A tensor of a record as a picture, without copying. */
static struct sd_image *
tensor_image(struct sd_scope *s, const char *key, const struct sd_record_tensor *t, int channels)
{
    struct sd_image *image = sd_alloc(s, sizeof *image);

    if (strcmp(t->dtype, "U8") || t->ndim != (channels == 3 ? 3 : 2) || (channels == 3 && t->shape[2] != 3) ||
        t->shape[0] < 1 || t->shape[1] < 1)
        return sd_fail_null("%s: expected U8 %s", key, channels == 3 ? "[height, width, 3]" : "[height, width]");
    if (t->shape[0] > SD_IMAGE_SIDE_MAX || t->shape[1] > SD_IMAGE_SIDE_MAX)
        return sd_fail_null("%s: %lld x %lld pixels", key, (long long)t->shape[1], (long long)t->shape[0]);
    *image = (struct sd_image){ (int)t->shape[1], (int)t->shape[0], channels, (uint8_t *)(uintptr_t)t->data };
    return image;
}

/* The record's pixels, else the photo that its source names; sets id. */
static struct sd_image *
load_photo(struct sd_scope *s, struct sd_record *r)
{
    const char *source = sd_record_text(r, "source");
    struct sd_record_tensor t;
    struct sd_image *photo;
    char id[SD_SHA256_HEX], *bytes;
    size_t size;
    int found = sd_record_tensor(r, "pixel_values", &t);

    if (found < 0)
        return NULL;
    if (found) {
        if (!(photo = tensor_image(s, "pixel_values", &t, 3)))
            return NULL;
        if (!sd_record_text(r, "id")) {
            sd_sha256_of(t.data, t.bytes, id);
            sd_record_set_text(r, "id", id);
        }
        return photo;
    }
    if (!source)
        return sd_fail_null("record has neither pixel_values nor source");
    if (!(bytes = sd_file_read(s, source, SD_IMAGE_FILE_MAX, &size)))
        return NULL;
    sd_sha256_of(bytes, size, id);
    sd_record_set_text(r, "id", id);
    return sd_image_decode(s, bytes, size, 3);
}

/* DIR/STEM.png, .jpg or .jpeg, whichever is there first. */
static struct sd_image *
load_mask_file(struct sd_scope *s, const char *source)
{
    static const char *const ends[] = { "png", "jpg", "jpeg" };
    const char *base = strrchr(source, '/'), *dot;
    struct sd_image *mask;
    char *bytes;
    size_t size;
    int length;

    base = base ? base + 1 : source;
    dot = strrchr(base, '.');
    length = (int)(dot && dot != base ? (size_t)(dot - base) : strlen(base));
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        const char *path = sd_sprintf(s, "%s/%.*s.%s", mask_dir, length, base, ends[i]);

        if (access(path, F_OK))
            continue;
        if (!(bytes = sd_file_read(s, path, SD_IMAGE_FILE_MAX, &size)) || !(mask = sd_image_decode(s, bytes, size, 1)))
            sd_fail_prefix("mask %s", path);
        else
            return mask;
        return NULL;
    }
    return sd_fail_null("no mask %s/%.*s.png or .jpg", mask_dir, length, base);
}

static int
load_mask(struct sd_scope *s, const struct sd_record *r, struct input *in)
{
    const char *source = sd_record_text(r, "source");
    struct sd_record_tensor t;
    int found = mask_dir ? 0 : sd_record_tensor(r, "mask", &t);

    if (found < 0)
        return -1;
    if (mask_dir) {
        if (!source)
            return sd_fail("record has no source, --mask-dir needs its name");
        in->mask = load_mask_file(s, source);
    } else if (found) {
        in->mask = tensor_image(s, "mask", &t, 1);
    } else {
        return strcmp(center, "mask") ? 0 : sd_fail("no mask to crop at (--mask-dir)");
    }
    if (!in->mask)
        return -1;
    if (in->mask->width != in->photo->width || in->mask->height != in->photo->height)
        return sd_fail("mask is %d x %d, the photo %d x %d", in->mask->width, in->mask->height, in->photo->width,
                       in->photo->height);
    return 0;
}

/* ---- one picture: what comes out ------------------------------------------------------------------------------- */

/* The part of the resized picture that is kept: left, top, width, height. */
static void
place(const struct input *in, struct sd_size resized, struct sd_size bucket, int part[4])
{
    int room_x = resized.width - bucket.width, room_y = resized.height - bucket.height;
    double x, y;

    part[0] = room_x / 2;
    part[1] = room_y / 2;
    part[2] = bucket.width;
    part[3] = bucket.height;
    if (strcmp(center, "mask"))
        return;
    if (!sd_image_centre(in->mask, &x, &y)) {
        sd_warn(in->name, "the mask is empty, cropped in the middle");
        return;
    }
    x = floor(x * resized.width / in->mask->width - bucket.width / 2.0 + 0.5);
    y = floor(y * resized.height / in->mask->height - bucket.height / 2.0 + 0.5);
    part[0] = x < 0 ? 0 : x > room_x ? room_x : (int)x;
    part[1] = y < 0 ? 0 : y > room_y ? room_y : (int)y;
}

static struct tally *
tally_of(struct sd_size size)
{
    struct tally *t, *more;
    size_t i = 0;

    while (i < crop.tallies && (crop.tally[i].size.width != size.width || crop.tally[i].size.height != size.height))
        i++;
    if (i == crop.tallies) {
        if (!(i & (i + 1))) {           /* full at 1, 3, 7 ...: make room for twice as many */
            more = sd_alloc_array(crop.scope, 2 * i + 1, sizeof *more);
            if (i)
                memcpy(more, crop.tally, i * sizeof *more);
            crop.tally = more;
        }
        t = &crop.tally[crop.tallies++];
        *t = (struct tally){ .size = size };
        t->held = sd_alloc_array(crop.scope, (size_t)train_batch_size, sizeof *t->held);
    }
    return &crop.tally[i];
}

/* The name of the first picture with the same pixels, or NULL. */
static const char *
same_as(const char *hash, struct sd_size size, const char *name)
{
    const char *first = NULL;

    for (size_t i = 0; i < crop.pictures && !first; i++)
        if (!strcmp(crop.seen[i].hash, hash) && crop.seen[i].size.width == size.width &&
            crop.seen[i].size.height == size.height)
            first = crop.seen[i].name;
    if (crop.pictures == crop.room) {
        size_t room = crop.room ? 2 * crop.room : 64;
        struct seen *more = sd_alloc_array(crop.scope, room, sizeof *more);

        if (crop.pictures)
            memcpy(more, crop.seen, crop.pictures * sizeof *more);
        crop.seen = more;
        crop.room = room;
    }
    crop.seen[crop.pictures] = (struct seen){ .size = size, .name = sd_strdup(crop.scope, name) };
    strcpy(crop.seen[crop.pictures++].hash, hash);
    return first;
}

/* Says what will teach badly, and counts it for the report. */
static void
judge(const struct input *in, const struct sd_record *r, struct sd_size resized, const int part[4], const char *hash)
{
    struct sd_size bucket = { part[2], part[3] }, p = { in->photo->width, in->photo->height };
    int side = p.width < p.height ? p.width : p.height;
    int least = crop.resolution.width < crop.resolution.height ? crop.resolution.width : crop.resolution.height;
    double scale = (double)resized.width / p.width, cropped, error;
    const char *first = same_as(hash, bucket, in->name);
    struct tally *t = tally_of(bucket);
    json_t *item;

    cropped = 1 - (double)bucket.width * bucket.height / ((double)resized.width * resized.height);
    error = fabs(log((double)bucket.width / bucket.height / ((double)p.width / p.height)));
    if (first) {
        crop.duplicates++;
        sd_warn(in->name, "the same picture as %s", first);
    }
    if (side < least) {
        crop.below++;
        if (scale > 1)
            sd_warn(in->name, "its shorter side, %d, is below the resolution %d: enlarged %.2f times", side, least,
                    scale);
        else
            sd_warn(in->name, "its shorter side, %d, is below the resolution %d", side, least);
    }
    t->pictures++;
    t->enlarged += scale > 1;
    t->aspect_error += error;
    t->cropped += cropped;
    if (!report_path)
        return;
    item = json_pack("{s:s, s:[i,i], s:[i,i], s:[i,i], s:[i,i], s:f, s:f, s:b, s:b}", "id", sd_record_text(r, "id"),
                     "original_size", p.height, p.width, "resized_size", resized.height, resized.width, "bucket",
                     bucket.height, bucket.width, "crop_top_left", part[1], part[0], "cropped", cropped, "scale", scale,
                     "duplicate", first != NULL, "below_resolution", side < least);
    if (!item)
        sd_die("report", "no memory, or an id that is not UTF-8");
    json_array_append_new(crop.items, item);
}

static void
write_record(struct tally *t, const struct sd_record *r)
{
    sd_record_write(r);
    t->written++;
    crop.written++;
}

/* Writes the record now, or holds a copy back until its bucket is as full as a batch. */
static void
pass_on(struct sd_size bucket, const struct sd_record *r)
{
    struct tally *t = tally_of(bucket);

    if (!strcmp(bucket_policy, "keep") || t->pictures > train_batch_size) {
        write_record(t, r);
        return;
    }
    t->held[t->pictures - 1] = sd_record_copy(crop.scope, r);
    if (t->pictures == train_batch_size)
        for (int64_t i = 0; i < train_batch_size; i++)
            write_record(t, t->held[i]);
}

static void
set_image(struct sd_scope *s, struct sd_record *r, const char *key, const struct sd_image *image)
{
    struct sd_record_tensor *t = sd_alloc(s, sizeof *t);

    *t = (struct sd_record_tensor){ "U8", image->channels == 3 ? 3 : 2, { image->height, image->width, 3 }, image->data,
                                    (size_t)image->height * (size_t)image->width * (size_t)image->channels };
    sd_record_set_tensor(r, key, t);
}

static void
set_pair(struct sd_record *r, const char *key, int first, int second)
{
    sd_record_set_ints(r, key, (int64_t[]){ first, second }, 2);
}

static int
crop_picture(struct sd_scope *s, struct sd_record *r)
{
    struct sd_size bucket, resized;
    struct sd_image *square;
    struct input in = { 0 };
    char hash[SD_SHA256_HEX];
    int64_t given[2];
    int part[4], known = sd_record_ints(r, "original_size", given, 2);

    if (known < 0 || !(in.photo = load_photo(s, r)))
        return -1;
    in.name = sd_record_text(r, "source") ? sd_record_text(r, "source") : sd_record_text(r, "id");
    if (load_mask(s, r, &in) < 0)
        return -1;
    if (sd_buckets_assign(crop.buckets, (struct sd_size){ in.photo->width, in.photo->height }, &bucket, &resized) < 0)
        return -1;
    place(&in, resized, bucket, part);
    square = sd_image_resize(s, in.photo, resized.width, resized.height, crop.filter, NULL, part);
    sd_sha256_of(square->data, (size_t)square->width * (size_t)square->height * 3, hash);

    set_image(s, r, "pixel_values", square);
    if (in.mask)
        set_image(s, r, "mask", sd_image_resize(s, in.mask, resized.width, resized.height, crop.filter, NULL, part));
    if (!known)                         /* a record that was cropped before remembers the photo's size */
        set_pair(r, "original_size", in.photo->height, in.photo->width);
    set_pair(r, "target_size", bucket.height, bucket.width);
    set_pair(r, "crop_top_left", part[1], part[0]);
    set_pair(r, "bucket", bucket.height, bucket.width);
    sd_record_set_text(r, "pixels_hash", hash);
    judge(&in, r, resized, part, hash);
    pass_on(bucket, r);
    return 0;
}

static int
crop_one(struct sd_scope *s, struct sd_record *r, void *user SD_UNUSED)
{
    int status = crop_picture(s, r);

    crop.left_out += status != 0;
    return status;
}

/* ---- after the last picture ------------------------------------------------------------------------------------ */

static int
by_size(const void *a, const void *b)
{
    const struct tally *p = a, *q = b;

    return p->size.width != q->size.width ? p->size.width - q->size.width : p->size.height - q->size.height;
}

/* Buckets that never got as full as a batch. */
static void
finish_thin(struct tally *t)
{
    bool drop = !strcmp(bucket_policy, "drop");

    if (!strcmp(bucket_policy, "keep") || t->pictures >= train_batch_size)
        return;
    for (int64_t i = 0; i < t->pictures && drop; i++) {
        const char *source = sd_record_text(t->held[i], "source");

        sd_warn(source ? source : sd_record_text(t->held[i], "id"),
                "dropped: bucket %dx%d holds %lld of a batch of %lld",
                t->size.width, t->size.height, (long long)t->pictures, (long long)train_batch_size);
        crop.dropped++;
    }
    if (drop)
        return;
    for (int64_t i = 0; i < train_batch_size; i++)
        write_record(t, t->held[i % t->pictures]);
    crop.repeated += (size_t)(train_batch_size - t->pictures);
    sd_note(0, "bucket %dx%d: %lld of a batch of %lld, repeated", t->size.width, t->size.height, (long long)t->pictures,
            (long long)train_batch_size);
}

static void
write_report(void)
{
    json_t *buckets = json_array(), *all;
    int bad;

    for (size_t i = 0; i < crop.tallies; i++) {
        const struct tally *t = &crop.tally[i];
        double n = (double)t->pictures;

        json_array_append_new(buckets, json_pack("{s:[i,i], s:I, s:I, s:I, s:f, s:f}", "bucket", t->size.height,
                                                 t->size.width, "pictures", (json_int_t)t->pictures, "written",
                                                 (json_int_t)t->written, "enlarged", (json_int_t)t->enlarged,
                                                 "mean_aspect_error", t->aspect_error / n, "mean_cropped",
                                                 t->cropped / n));
    }
    all = json_pack("{s:[i,i], s:s, s:s, s:s, s:b, s:o, s:O, s:I, s:I, s:I, s:I, s:I, s:I}", "resolution",
                    crop.resolution.height, crop.resolution.width, "resample", resample, "center", center,
                    "bucket_policy", bucket_policy, "no_upscale", no_upscale, "buckets", buckets, "pictures", crop.items,
                    "written",
                    (json_int_t)crop.written, "duplicates", (json_int_t)crop.duplicates, "below_resolution",
                    (json_int_t)crop.below, "dropped", (json_int_t)crop.dropped, "repeated", (json_int_t)crop.repeated,
                    "left_out", (json_int_t)crop.left_out);
    if (!all)
        sd_die(report_path, "no memory");
    bad = sd_json_save(all, report_path);
    json_decref(all);
    if (bad)
        sd_die(report_path, "%s", sd_reason());
}

static int
finish(int status)
{
    if (status == SD_FAILED)
        return status;
    if (crop.tallies)
        qsort(crop.tally, crop.tallies, sizeof *crop.tally, by_size);
    for (size_t i = 0; i < crop.tallies; i++)
        finish_thin(&crop.tally[i]);
    if (!crop.written) {
        sd_error(NULL, crop.dropped ? "no bucket is as full as a batch, nothing is left" : "no pictures");
        return SD_FAILED;
    }
    if (crop.pictures < 3)
        sd_warn(NULL, "fewer than three pictures (%zu): little can be learned from them", crop.pictures);
    for (size_t i = 0; i < crop.tallies && use_buckets; i++)
        sd_note(1, "bucket %dx%d: %lld pictures", crop.tally[i].size.width, crop.tally[i].size.height,
                (long long)crop.tally[i].pictures);
    if (report_path)
        write_report();
    sd_writer_end();
    return status;
}

/* ---- options --------------------------------------------------------------------------------------------------- */

static struct sd_size
parse_resolution(const char *text)
{
    unsigned w, h;
    int end = -1;

    if (sscanf(text, "%5u%n", &w, &end) == 1 && end >= 0 && !text[end])
        h = w;
    else if (end = -1, sscanf(text, "%5ux%5u%n", &w, &h, &end) != 2 || end < 0 || text[end])
        sd_usage("--resolution", "%s is not a size (N or WxH)", text);
    if (text[0] < '0' || text[0] > '9' || w < 8 || h < 8 || w > 16384 || h > 16384)
        sd_usage("--resolution", "%s is out of range (8 to 16384)", text);
    return (struct sd_size){ (int)w, (int)h };
}

/* Other sides are a data set too, but not for every model. */
static void
say_odd_sides(struct sd_size r)
{
    if (use_buckets && bucket_step % 8)
        sd_note(1, "--bucket-step: %lld: no multiple of 8, which most VAEs need", (long long)bucket_step);
    else if (!use_buckets && (r.width % 8 || r.height % 8))
        sd_note(1, "--resolution: %dx%d: no multiples of 8, which most VAEs need", r.width, r.height);
}

static struct sd_size
choose_resolution(void)
{
    struct sd_model *m;
    int factor;

    if (resolution_text)
        return parse_resolution(resolution_text);
    if (!model_name)
        return (struct sd_size){ 512, 512 };
    if (!(m = sd_model_open(crop.scope, model_name, NULL)))
        sd_die(model_name, "%s", sd_reason());
    factor = sd_vae_factor(&m->vae_config);
    if (m->unet_config.sample_width < 1 || m->unet_config.sample_height < 1)
        sd_usage(model_name, "its configuration has no sample_size (give --resolution)");
    return (struct sd_size){ m->unet_config.sample_width * factor, m->unet_config.sample_height * factor };
}

/* kohya's limits where they embrace the resolution, else half and twice of it. */
static struct sd_buckets *
choose_buckets(struct sd_size r)
{
    int step = (int)bucket_step, least = r.width < r.height ? r.width : r.height,
        most = r.width > r.height ? r.width : r.height;
    int min = (int)min_bucket, max = (int)max_bucket;
    struct sd_buckets *b;

    if (!use_buckets)
        return sd_buckets_one(crop.scope, r);
    if (!min)
        min = least >= 256 ? 256 : least / 2 > step ? least / 2 : step;
    if (!max)
        max = most <= 1024 ? 1024 : 2 * most;
    if (!(b = sd_buckets_make(crop.scope, r, min, max, step, no_upscale)))
        sd_usage("--buckets", "%s", sd_reason());
    return b;
}

static void
check_options(void)
{
    static const char *const need_buckets[] = { "bucket-step", "min-bucket", "max-bucket", "no-upscale",
                                                "bucket-policy" };

    for (size_t i = 0; i < sizeof need_buckets / sizeof *need_buckets && !use_buckets; i++)
        if (sd_option_given(need_buckets[i]))
            sd_usage(sd_sprintf(NULL, "--%s", need_buckets[i]), "has no effect without --buckets");
    if (sd_option_given("train-batch-size") && !strcmp(bucket_policy, "keep"))
        sd_usage("--train-batch-size", "has no effect without --bucket-policy drop or repeat");
    if (mask_dir && access(mask_dir, R_OK | X_OK))
        sd_usage("--mask-dir", "%s: %s", mask_dir, strerror(errno));
    if (report_path)
        sd_output_refuse(report_path, sd_shared.overwrite);
}

int
main(int argc, char **argv)
{
    const struct sd_each each = { NULL, true, crop_one, NULL };

    sd_threads_yield(argv);
    sd_options(&argc, &argv, options, SD_OPT_RECORDS | SD_OPT_THREADS | SD_OPT_OVERWRITE,
               "[options] [photo | folder | records ...]", "photos to pictures of one size, or of a few");
    check_options();
    crop.resolution = choose_resolution();
    if (!model_name || resolution_text)
        say_odd_sides(crop.resolution);
    crop.buckets = choose_buckets(crop.resolution);
    crop.filter = (enum sd_filter)sd_filter_named(resample);
    crop.items = json_array();
    sd_writer_begin("pictures");
    return sd_finish(finish(sd_each(argc, argv, &each)));
}
