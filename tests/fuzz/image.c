/* The picture front end: any bytes give a picture of a sane size or one line that says why not.  Pictures above a megapixel
 * are left out after their header, or the time goes into decoding. */
#include "fuzz.h"
#include "image.h"

#include <string.h>

/* Sides as the header gives them; damaged ones are the decoder's to refuse. */
static bool
large(const uint8_t *p, size_t size)
{
    uint64_t area = 0;

    if (size >= 24 && p[0] == 0x89)
        area = ((uint64_t)p[16] << 24 | (uint64_t)p[17] << 16 | (uint64_t)p[18] << 8 | p[19]) *
               ((uint64_t)p[20] << 24 | (uint64_t)p[21] << 16 | (uint64_t)p[22] << 8 | p[23]);
    for (size_t i = 0; p[0] == 0xff && i + 9 < size; i++)
        if (p[i] == 0xff && p[i + 1] >= 0xc0 && p[i + 1] <= 0xcf) {
            uint64_t a = (uint64_t)(p[i + 5] << 8 | p[i + 6]) * (uint64_t)(p[i + 7] << 8 | p[i + 8]);

            area = a > area ? a : area;
        }
    return area > 1000000 && area <= (uint64_t)SD_IMAGE_PIXELS_MAX;
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_image *image;
    volatile uint8_t last;
    int o = sd_exif_orientation(bytes, size), x = sd_xmp_orientation(bytes, size);

    if (o < 0 || o > 8 || x < 0 || x > 8)
        abort();
    if (size && !large(bytes, size)) {
        int channels = size & 1 ? 3 : 1;

        image = sd_image_decode(s, bytes, size, channels);
        if (image) {
            if (image->width < 1 || image->height < 1 || image->channels != channels)
                abort();
            last = image->data[(size_t)image->width * (size_t)image->height * (size_t)channels - 1];
            (void)last;
        } else if (!*sd_reason() || strchr(sd_reason(), '\n')) {
            abort();
        }
    }
    sd_scope_close(s);
    return 0;
}
