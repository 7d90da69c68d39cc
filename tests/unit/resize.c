/* Resizing: equal to Pillow byte for byte (golden rows of the specification, stored sums of whole pictures, parts equal to
 * crops, vector code equal to the C loops), and area averaging equal to OpenCV's. */
#include "image.h"
#include "tests/check.h"

#include <openssl/sha.h>
#include <unistd.h>

#define HERE "tests/data/images/"
static const char *data;

static bool
same(const struct sd_image *a, const struct sd_image *b)
{
    return a->width == b->width && a->height == b->height && a->channels == b->channels &&
           !memcmp(a->data, b->data, (size_t)a->width * (size_t)a->height * (size_t)a->channels);
}

static void
check_golden(void)
{
    static const uint8_t row[10] = { 0, 255, 0, 255, 10, 200, 128, 7, 90, 33 };
    static const struct { enum sd_filter filter; int n; uint8_t want[13]; } golden[] = {
        { SD_FILTER_BOX, 4, { 85, 133, 112, 62 } },
        { SD_FILTER_BOX, 7, { 0, 128, 255, 105, 128, 49, 33 } },
        { SD_FILTER_BOX, 13, { 0, 255, 255, 0, 255, 10, 200, 200, 128, 7, 90, 90, 33 } },
        { SD_FILTER_BILINEAR, 4, { 116, 129, 108, 55 } },
        { SD_FILTER_BILINEAR, 7, { 88, 113, 159, 105, 125, 45, 53 } },
        { SD_FILTER_BILINEAR, 13, { 0, 167, 147, 49, 245, 76, 105, 181, 123, 30, 55, 70, 33 } },
        { SD_FILTER_BICUBIC, 4, { 112, 129, 113, 49 } },
        { SD_FILTER_BICUBIC, 7, { 92, 117, 157, 106, 135, 40, 55 } },
        { SD_FILTER_BICUBIC, 13, { 0, 187, 157, 25, 254, 58, 94, 201, 124, 18, 54, 77, 30 } },
        { SD_FILTER_LANCZOS, 4, { 110, 134, 112, 46 } },
        { SD_FILTER_LANCZOS, 7, { 99, 130, 136, 113, 140, 35, 59 } },
        { SD_FILTER_LANCZOS, 13, { 0, 196, 156, 22, 253, 63, 77, 220, 121, 12, 53, 81, 27 } },
    };
    struct sd_scope *s = sd_scope_open();

    for (size_t g = 0; g < sizeof golden / sizeof *golden; g++)
        for (int upright = 0; upright < 2; upright++)
            for (int c = 1; c <= 3; c += 2) {
                struct sd_image *in = sd_image_new(s, upright ? 1 : 10, upright ? 10 : 1, c), *out;
                int n = golden[g].n, wrong = 0;

                for (int i = 0; i < 10 * c; i++)
                    in->data[i] = row[i / c];
                out = sd_image_resize(s, in, upright ? 1 : n, upright ? n : 1, golden[g].filter, NULL, NULL);
                for (int i = 0; i < n * c; i++)
                    wrong += out->data[i] != golden[g].want[i / c];
                CHECK(wrong == 0, "golden: filter %d to %d, %s, %d channels: %d wrong", (int)golden[g].filter, n,
                      upright ? "down" : "across", c, wrong);
            }
    sd_scope_close(s);
}

static void
check_stored(void)
{
    FILE *f = fopen(HERE "expected.txt", "r");
    char name[256], filter[16], sum[65], line[512], path[4096];
    float box[4];
    int w, h, n = 0, skipped = 0;

    if (!CHECK(f != NULL, "stored values are there"))
        return;
    while (fgets(line, sizeof line, f)) {
        struct sd_scope *s = sd_scope_open();
        struct sd_image *in, *out, *plain;
        uint8_t digest[32];
        char text[65];
        bool whole;

        if (sscanf(line, "resize %255s %15s %d %d %f %f %f %f %64s", name, filter, &w, &h, box, box + 1, box + 2, box + 3,
                   sum) != 9) {
            sd_scope_close(s);
            continue;
        }
        snprintf(path, sizeof path, "%s%s", strncmp(name, "data/", 5) ? HERE : data, name + (strncmp(name, "data/", 5) ? 0 : 4));
        if (!strncmp(name, "data/", 5) && access(path, R_OK)) {
            skipped++;
            sd_scope_close(s);
            continue;
        }
        n++;
        in = sd_image_load(s, path);
        whole = !box[2];
        out = sd_image_resize(s, in, w, h, (enum sd_filter)sd_filter_named(filter), whole ? NULL : box, NULL);
        sd_image_resize_plain = true;
        plain = sd_image_resize(s, in, w, h, (enum sd_filter)sd_filter_named(filter), whole ? NULL : box, NULL);
        sd_image_resize_plain = false;
        SHA256(out->data, (size_t)w * (size_t)h * 3, digest);
        for (int i = 0; i < 32; i++)
            sprintf(text + 2 * i, "%02x", digest[i]);
        CHECK(!strcmp(text, sum) && same(out, plain), "%s %d x %d to %d x %d, %s%s", name, in->width, in->height, w, h,
              filter, whole ? "" : " of a box");
        sd_scope_close(s);
    }
    fclose(f);
    CHECK(n > 60, "%d stored resizes", n);
    if (skipped)
        check_skip("resizes of photos", "no SD_TEST_DATA");
}

/* A part is what a crop afterwards gives, for every filter, order of passes, and skipped pass; grey is a channel of RGB. */
static void
check_parts(void)
{
    static const int sizes[][2] = { { 30, 21 }, { 120, 90 }, { 61, 20 }, { 20, 43 }, { 100, 5 }, { 61, 43 } };
    struct sd_scope *s = sd_scope_open();
    struct sd_image *in = sd_image_load(s, HERE "rgb.png"), *red = sd_image_new(s, in->width, in->height, 1);

    for (int i = 0; i < in->width * in->height; i++)
        red->data[i] = in->data[3 * i];
    for (int f = SD_FILTER_LANCZOS; f <= SD_FILTER_AREA; f++)
        for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
            int w = sizes[k][0], h = sizes[k][1], part[4] = { w / 3, h / 4, w - w / 3 - w / 5, h - h / 4 }, wrong = 0;
            struct sd_image *all = sd_image_resize(s, in, w, h, (enum sd_filter)f, NULL, NULL);
            struct sd_image *piece = sd_image_resize(s, in, w, h, (enum sd_filter)f, NULL, part);
            struct sd_image *grey = sd_image_resize(s, red, w, h, (enum sd_filter)f, NULL, NULL);

            for (int i = 0; i < w * h; i++)
                wrong += grey->data[i] != all->data[3 * i];
            CHECK(same(piece, sd_image_crop(s, all, part[0], part[1], part[2], part[3])), "filter %d to %d x %d: part", f, w, h);
            CHECK(wrong == 0, "filter %d to %d x %d: grey is as red (%d differ)", f, w, h, wrong);
        }
    sd_scope_close(s);
}

int
main(void)
{
    data = getenv("SD_TEST_DATA") ? getenv("SD_TEST_DATA") : "../shared/data";
    check_golden();
    check_parts();
    check_stored();
    return check_done();
}
