/* image.c - what kind a file is, loading, turning upright, cropping.  image_jpeg.c and image_png.c hold the decoders,
 * image_resize.c the resizing, image_sheet.c contact sheets. */
#include "image.h"
#include "file.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* A photo is touched once from end to end: page by page that costs as much as a tenth of decoding it. */
static void
use_huge_pages(uint8_t *data, size_t bytes)
{
    enum { PAGE = 2 << 20 };
    uintptr_t from = ((uintptr_t)data + PAGE - 1) / PAGE * PAGE, to = ((uintptr_t)data + bytes) / PAGE * PAGE;

    if (to > from)
        madvise((void *)from, to - from, MADV_HUGEPAGE);
}

struct sd_image *
sd_image_new(struct sd_scope *s, int width, int height, int channels)
{
    struct sd_image *image = sd_alloc(s, sizeof *image);

    if (width < 1 || height < 1 || (channels != 1 && channels != 3))
        sd_bug("sd_image_new", "%d x %d, %d channels", width, height, channels);
    *image = (struct sd_image){ width, height, channels, NULL };
    image->data = sd_alloc_array(s, (size_t)width * (size_t)height, (size_t)channels);
    use_huge_pages(image->data, (size_t)width * (size_t)height * (size_t)channels);
    return image;
}

/* ---- kinds --------------------------------------------------------------------------------------------------- */

static bool
starts(const uint8_t *p, size_t size, size_t at, const char *magic, size_t length)
{
    return size >= at + length && !memcmp(p + at, magic, length);
}
#define STARTS(at, magic) starts(p, size, at, magic, sizeof magic - 1)

/* ISO media files (HEIC, AVIF, CR3, MP4 ...) differ by the brand behind "ftyp". */
static const char *
iso_brand(const uint8_t *p, size_t size)
{
    static const char heic[][5] = { "heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1", "heif" };

    if (STARTS(8, "avif") || STARTS(8, "avis"))
        return "AVIF";
    if (STARTS(8, "crx "))
        return "RAW";
    for (size_t i = 0; i < sizeof heic / sizeof *heic; i++)
        if (starts(p, size, 8, heic[i], 4))
            return "HEIC";
    return "video";
}

enum sd_image_kind
sd_image_kind(const void *bytes, size_t size, const char **name)
{
    const uint8_t *p = bytes;
    const char *n = NULL;

    if (STARTS(0, "\xff\xd8\xff"))
        n = "JPEG";
    else if (STARTS(0, "\x89PNG\r\n\x1a\n"))
        n = "PNG";
    else if (STARTS(4, "ftyp"))
        n = iso_brand(p, size);
    else if (STARTS(0, "RIFF") && STARTS(8, "WEBP"))
        n = "WebP";
    else if (STARTS(0, "GIF87a") || STARTS(0, "GIF89a"))
        n = "GIF";
    else if (STARTS(0, "BM") && size >= 18 && !p[6] && !p[7] && !p[8] && !p[9] && p[14] && !p[15] && !p[16])
        n = "BMP";
    else if (STARTS(0, "FUJIFILMCCD-RAW") || STARTS(0, "IIRO") || STARTS(0, "IIRS") || STARTS(0, "IIU\0") ||
             STARTS(0, "FOVb") || ((STARTS(0, "II*\0") || STARTS(0, "\0MRM")) && STARTS(8, "CR")))
        n = "RAW";
    else if (STARTS(0, "II*\0") || STARTS(0, "MM\0*") || STARTS(0, "II+\0") || STARTS(0, "MM\0+"))
        n = "TIFF or RAW";
    else if (STARTS(0, "\xff\x0a") || STARTS(0, "\0\0\0\x0cJXL \r\n\x87\n"))
        n = "JPEG XL";
    else if (STARTS(0, "\0\0\0\x0cjP  \r\n\x87\n") || STARTS(0, "\xff\x4f\xff\x51"))
        n = "JPEG 2000";
    else if (STARTS(0, "8BPS"))
        n = "Photoshop";
    else if (STARTS(0, "\x1a\x45\xdf\xa3") || (STARTS(0, "RIFF") && STARTS(8, "AVI ")) || STARTS(4, "moov") ||
             STARTS(4, "mdat") || STARTS(0, "FLV\x01") || STARTS(0, "\0\0\x01\xba"))
        n = "video";
    if (name)
        *name = n;
    return !n ? SD_IMAGE_OTHER : p[0] == 0xff && p[1] == 0xd8 ? SD_IMAGE_JPEG : p[0] == 0x89 ? SD_IMAGE_PNG
                                                                                             : SD_IMAGE_FOREIGN;
}

/* The command that makes something readable of each kind. */
static const char *
converter(const char *kind)
{
    static const struct { const char *kind, *command; } table[] = {
        { "HEIC", "heif-convert FILE out.png" },
        { "AVIF", "heif-convert FILE out.png" },
        { "WebP", "dwebp FILE -o out.png" },
        { "RAW", "dcraw -c -w FILE | pnmtopng > out.png" },
        { "JPEG XL", "djxl FILE out.png" },
        { "JPEG 2000", "opj_decompress -i FILE -o out.png" },
        { "video", "ffmpeg -i FILE -vf fps=1 out%03d.png" },
    };

    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(kind, table[i].kind))
            return table[i].command;
    return "convert FILE[0] out.png";
}

/* ---- loading ------------------------------------------------------------------------------------------------- */

static struct sd_image *
rgb(struct sd_scope *s, struct sd_image *image)
{
    struct sd_image *out;

    if (image->channels == 3)
        return image;
    out = sd_image_new(s, image->width, image->height, 3);
    for (size_t i = 0, n = (size_t)image->width * (size_t)image->height; i < n; i++)
        out->data[3 * i] = out->data[3 * i + 1] = out->data[3 * i + 2] = image->data[i];
    return out;
}

struct sd_image *
sd_image_grey(struct sd_scope *s, struct sd_image *image)
{
    struct sd_image *out;

    if (image->channels == 1)
        return image;
    out = sd_image_new(s, image->width, image->height, 1);
    for (size_t i = 0, n = (size_t)image->width * (size_t)image->height; i < n; i++) {
        const uint8_t *p = image->data + 3 * i;

        out->data[i] = (uint8_t)((19595u * p[0] + 38470u * p[1] + 7471u * p[2] + 32768u) >> 16);
    }
    return out;
}

struct sd_image *
sd_image_decode(struct sd_scope *s, const void *bytes, size_t size, int channels)
{
    struct sd_image *image = NULL;
    const char *name;
    int orientation = 1;

    switch (sd_image_kind(bytes, size, &name)) {
    case SD_IMAGE_JPEG:
        image = sd_jpeg_decode(s, bytes, size, &orientation);
        break;
    case SD_IMAGE_PNG:
        image = sd_png_decode(s, bytes, size, channels == 3 ? 255 : 0, &orientation);
        break;
    case SD_IMAGE_FOREIGN:
        return sd_fail_null("%s, not read here; try: %s", name, converter(name));
    default:
        return sd_fail_null(size ? "not a picture (JPEG and PNG are read)" : "empty file");
    }
    if (!image)
        return NULL;
    image = sd_image_orient(s, image, orientation);
    return channels == 3 ? rgb(s, image) : sd_image_grey(s, image);
}

struct sd_image *
sd_image_load(struct sd_scope *s, const char *path)
{
    size_t size;
    char *bytes = sd_file_read(s, path, SD_IMAGE_FILE_MAX, &size);

    return bytes ? sd_image_decode(s, bytes, size, 3) : NULL;
}

/* ---- turning and cropping ------------------------------------------------------------------------------------ */

/* Source (x, y) goes to (x', y') = mirrored or not, axes swapped or not:
 *   2 (W-1-x, y)  3 (W-1-x, H-1-y)  4 (x, H-1-y)  5 (y, x)  6 (H-1-y, x)  7 (H-1-y, W-1-x)  8 (y, W-1-x)
 * so each output row is read from the source with a fixed start and step. */
struct sd_image *
sd_image_orient(struct sd_scope *s, struct sd_image *image, int orientation)
{
    enum { TILE = 32 };         /* swapped axes: in tiles, so that both sides stay in the cache */
    int w = image->width, h = image->height, c = image->channels;
    bool swap = orientation >= 5, flip_x, flip_y;   /* of the source coordinates */
    struct sd_image *out;

    if (orientation < 2 || orientation > 8)
        return image;
    flip_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    flip_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    out = sd_image_new(s, swap ? h : w, swap ? w : h, c);
    #pragma omp parallel for schedule(static)
    for (int top = 0; top < out->height; top += TILE)
        for (int left = 0; left < out->width; left += TILE)
            for (int y = top; y < top + TILE && y < out->height; y++)
                for (int x = left; x < left + TILE && x < out->width; x++) {
                    int u = swap ? y : x, v = swap ? x : y;
                    const uint8_t *from;
                    uint8_t *to = out->data + ((size_t)y * (size_t)out->width + (size_t)x) * (size_t)c;

                    if (flip_x)
                        u = w - 1 - u;
                    if (flip_y)
                        v = h - 1 - v;
                    from = image->data + ((size_t)v * (size_t)w + (size_t)u) * (size_t)c;
                    to[0] = from[0];
                    if (c == 3) {
                        to[1] = from[1];
                        to[2] = from[2];
                    }
                }
    return out;
}

struct sd_image *
sd_image_crop(struct sd_scope *s, const struct sd_image *image, int left, int top, int width, int height)
{
    struct sd_image *out;
    size_t c = (size_t)image->channels;

    if (left < 0 || top < 0 || width < 1 || height < 1 || width > image->width - left || height > image->height - top)
        sd_bug("sd_image_crop", "%d x %d at %d, %d of %d x %d", width, height, left, top, image->width, image->height);
    out = sd_image_new(s, width, height, image->channels);
    for (int y = 0; y < height; y++)
        memcpy(out->data + (size_t)y * (size_t)width * c,
               image->data + ((size_t)(top + y) * (size_t)image->width + (size_t)left) * c, (size_t)width * c);
    return out;
}

bool
sd_image_centre(const struct sd_image *mask, double *x, double *y)
{
    uint64_t sum = 0, sum_x = 0, sum_y = 0;     /* 2^8 x 2^20 x 2^28 fits */

    for (int v = 0; v < mask->height; v++) {
        const uint8_t *row = mask->data + (size_t)v * (size_t)mask->width;
        uint64_t in_row = 0;

        for (int u = 0; u < mask->width; u++) {
            in_row += row[u];
            sum_x += row[u] * (uint64_t)u;
        }
        sum += in_row;
        sum_y += in_row * (uint64_t)v;
    }
    *x = sum ? (double)sum_x / (double)sum + 0.5 : mask->width / 2.0;
    *y = sum ? (double)sum_y / (double)sum + 0.5 : mask->height / 2.0;
    return sum != 0;
}

/* ---- writing ------------------------------------------------------------------------------------------------- */

static int
save(const char *path, const uint8_t *bytes, size_t size)
{
    struct sd_output *o = sd_output_open(path);

    if (!o)
        return -1;
    if (fwrite(bytes, 1, size, sd_output_file(o)) != size) {
        sd_fail("%s", strerror(errno));
        sd_output_abandon(o);
        return -1;
    }
    return sd_output_commit(o);
}

int
sd_image_save_png(const char *path, const struct sd_image *image, const char *const *texts)
{
    struct sd_scope *s = sd_scope_open();
    uint8_t *bytes;
    size_t size;
    int status = sd_image_encode_png(s, image, texts, &bytes, &size);

    if (status == 0)
        status = save(path, bytes, size);
    sd_scope_close(s);
    return status;
}

int
sd_image_save_jpeg(const char *path, const struct sd_image *image, int quality, const char *parameters)
{
    struct sd_scope *s = sd_scope_open();
    uint8_t *bytes;
    size_t size;
    int status = sd_image_encode_jpeg(s, image, quality, parameters, &bytes, &size);

    if (status == 0)
        status = save(path, bytes, size);
    sd_scope_close(s);
    return status;
}
