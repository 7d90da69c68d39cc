/* What sd-crop does to a 12-megapixel photo: decode, upright, resize to 512 on the short side, crop.  The photo is
 * made on the spot by enlarging one of the stored pictures, with grain, and kept as crop.jpg when a path is given, so
 * that tests/reference/bench_crop.py can time Pillow on the same file.
 *     bench/crop [crop.jpg]            one line per step: the best of 9, in milliseconds */
#include "clock.h"
#include "image.h"

#include <stdlib.h>

enum { RUNS = 9, WIDTH = 4000, HEIGHT = 3000 };

static struct sd_image *
photo(struct sd_scope *s)
{
    struct sd_image *small = sd_image_load(s, "tests/data/images/rgb.png"), *large;
    uint32_t x = 1;

    if (!small)
        sd_die("tests/data/images/rgb.png", "%s", sd_reason());
    large = sd_image_resize(s, small, WIDTH, HEIGHT, SD_FILTER_BICUBIC, NULL, NULL);
    for (size_t i = 0; i < (size_t)WIDTH * HEIGHT * 3; i++) {
        int grain = 0, value;

        if (i % 3 == 0)
            for (int k = 0; k < 4; k++)         /* about normal, of deviation 6 */
                x = x * 1664525u + 1013904223u, grain += (int)(x >> 24) - 128;
        value = large->data[i] + grain / 24;
        large->data[i] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
    }
    return large;
}

int
main(int argc, char **argv)
{
    struct sd_scope *s = sd_scope_open();
    static const char *const names[] = { "decode", "lanczos", "bicubic", "area" };
    static const enum sd_filter filters[] = { 0, SD_FILTER_LANCZOS, SD_FILTER_BICUBIC, SD_FILTER_AREA };
    const int part[4] = { 85, 0, 512, 512 };
    double best[4] = { 1e9, 1e9, 1e9, 1e9 };
    struct sd_image *large = photo(s);
    uint8_t *jpeg;
    size_t size;

    if (sd_image_encode_jpeg(s, large, 92, NULL, &jpeg, &size) < 0 ||
        (argc > 1 && sd_image_save_jpeg(argv[1], large, 92, NULL) < 0))
        sd_die(argc > 1 ? argv[1] : "JPEG", "%s", sd_reason());
    for (int run = 0; run < RUNS; run++) {
        struct sd_scope *inner = sd_scope_open();
        double start = 1e3 * sd_clock(), end;
        struct sd_image *image = sd_image_decode(inner, jpeg, size, 3);

        for (int i = 0; i < 4; i++) {
            if (i)
                sd_image_resize(inner, image, 683, 512, filters[i], NULL, part);
            end = 1e3 * sd_clock();
            best[i] = end - start < best[i] ? end - start : best[i];
            start = end;
        }
        sd_scope_close(inner);
    }
    printf("crop: %d x %d JPEG of %.1f MB", WIDTH, HEIGHT, (double)size / 1e6);
    for (int i = 0; i < 4; i++)
        printf(", %s %.1f ms", names[i], best[i]);
    printf("\n");
    sd_scope_close(s);
    return 0;
}
