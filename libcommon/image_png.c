/* image_png.c - PNG through libpng, the only file that knows it.
 *
 * Everything becomes 8 bits: 16-bit samples give their high byte (Pillow turns 16-bit grey white instead), palettes are
 * looked up, transparency is composited.  No gamma or profile is applied, as in Pillow.  Of the chunks beside the pixels
 * only the palette, transparency and orientation are looked at; the others are skipped unread. */
#include "image.h"

#include <setjmp.h>
#include <string.h>

#include <png.h>

enum { SIGNATURE = 8, CHUNK = 12, DEFLATE_MAX = 1032 };  /* deflate cannot shrink by more */

struct source {
    const uint8_t *bytes;
    size_t size, at;
};

SD_NORETURN static void
leave(png_structp png, png_const_charp text)
{
    if (strcmp(text, "truncated"))
        sd_fail("damaged PNG: %s", text);
    else
        sd_fail("truncated PNG");
    png_longjmp(png, 1);
}

static void
ignore(png_structp png SD_UNUSED, png_const_charp text SD_UNUSED)
{
}

static void
take(png_structp png, png_bytep to, size_t n)
{
    struct source *src = png_get_io_ptr(png);

    if (n > src->size - src->at)
        png_error(png, "truncated");
    memcpy(to, src->bytes + src->at, n);
    src->at += n;
}

static uint32_t
get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* eXIf and uncompressed XMP lie before or behind the pixels. */
static int
orientation_of(const uint8_t *bytes, size_t size)
{
    static const char xmp_key[] = "XML:com.adobe.xmp\0";    /* and the flag: not compressed */
    int exif = 0, xmp = 0;

    for (size_t at = SIGNATURE; size - at >= CHUNK; ) {
        uint32_t n = get32(bytes + at);
        const uint8_t *type = bytes + at + 4, *data = type + 4;

        if (n > size - at - CHUNK)
            break;
        if (!exif && !memcmp(type, "eXIf", 4))
            exif = sd_exif_orientation(data, n);
        else if (!xmp && !memcmp(type, "iTXt", 4) && n > sizeof xmp_key && !memcmp(data, xmp_key, sizeof xmp_key))
            xmp = sd_xmp_orientation(data, n);
        at += CHUNK + n;
    }
    return exif ? exif : xmp ? xmp : 1;
}

/* Refused before anything is decoded; the header is the first chunk, at a fixed place. */
static int
check_header(const uint8_t *bytes, size_t size)
{
    static const int samples[7] = { 1, 0, 3, 1, 2, 0, 4 };  /* per pixel, by colour type */
    uint32_t w, h;
    uint64_t row;

    if (size < SIGNATURE + CHUNK + 13)
        return sd_fail("truncated PNG");
    if (memcmp(bytes + 12, "IHDR", 4))
        return sd_fail("damaged PNG: no header");
    w = get32(bytes + 16);
    h = get32(bytes + 20);
    if (w > SD_IMAGE_SIDE_MAX || h > SD_IMAGE_SIDE_MAX || (uint64_t)w * h > SD_IMAGE_PIXELS_MAX)
        return sd_fail("%u x %u pixels, at most %ld are decoded", w, h, SD_IMAGE_PIXELS_MAX);
    row = bytes[25] < 7 ? ((uint64_t)w * (uint64_t)samples[bytes[25]] * bytes[24] + 7) / 8 : 0;
    if (row * h / DEFLATE_MAX > size)
        return sd_fail("truncated PNG");
    return 0;
}

/* Pillow's rounding: (v + 128 + ((v + 128) >> 8)) >> 8 is v / 255, rounded. */
static uint8_t
over(unsigned value, unsigned alpha, unsigned background)
{
    unsigned t = value * alpha + background * (255 - alpha) + 128;

    return (uint8_t)(((t >> 8) + t) >> 8);
}

static void
composite(struct sd_image *image, const uint8_t *from, unsigned background)
{
    int c = image->channels;
    uint8_t *to = image->data;

    for (size_t i = 0, n = (size_t)image->width * (size_t)image->height; i < n; i++, from += c + 1, to += c)
        for (int k = 0; k < c; k++)
            to[k] = over(from[k], from[c], background);
}

static void
limit(png_structp png)
{
    static const uint8_t kept[] = "tRNS";

    png_set_user_limits(png, SD_IMAGE_SIDE_MAX, SD_IMAGE_SIDE_MAX);
    png_set_chunk_malloc_max(png, 8 << 20);
    png_set_chunk_cache_max(png, 1000);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);     /* all that are not needed to decode ... */
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_AS_DEFAULT, kept, 1); /* ... but this one */
#ifdef SD_FUZZ                              /* made-up bytes never have the right checksum */
    png_set_crc_action(png, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
#endif
}

struct sd_image *
sd_png_decode(struct sd_scope *s, const uint8_t *bytes, size_t size, int background, int *orientation)
{
    struct source source = { bytes, size, 0 };
    struct sd_image *volatile image = NULL;
    uint8_t *pixels;
    png_bytep *rows;
    png_structp png;
    png_infop info;
    int depth, channels;

    if (check_header(bytes, size) < 0)
        return NULL;
    if (!(png = png_create_read_struct(PNG_LIBPNG_VER_STRING, NULL, leave, ignore)) || !(info = png_create_info_struct(png)))
        sd_die("memory", "no room for a PNG decoder");
    if (setjmp(png_jmpbuf(png))) {
        image = NULL;
        goto done;
    }
    limit(png);
    png_set_read_fn(png, &source, take);
    png_read_info(png, info);
    png_set_expand(png);        /* palette, 1 2 4 bits, tRNS: 8 bits, with alpha where there is transparency */
    png_set_strip_16(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    channels = png_get_channels(png, info);
    depth = png_get_bit_depth(png, info);
    if (depth != 8 || channels < 1 || channels > 4)
        sd_bug("sd_png_decode", "%d bits, %d channels", depth, channels);
    image = sd_image_new(s, (int)png_get_image_width(png, info), (int)png_get_image_height(png, info),
                         channels <= 2 ? 1 : 3);
    pixels = channels == image->channels ? image->data
                                         : sd_alloc_array(s, (size_t)image->width * (size_t)image->height, (size_t)channels);
    rows = sd_alloc_array(s, (size_t)image->height, sizeof *rows);
    for (int y = 0; y < image->height; y++)
        rows[y] = pixels + (size_t)y * (size_t)image->width * (size_t)channels;
    png_read_image(png, rows);
    png_read_end(png, NULL);
    if (pixels != image->data)
        composite(image, pixels, (unsigned)background);
    *orientation = orientation_of(bytes, size);
done:
    png_destroy_read_struct(&png, &info, NULL);
    return image;
}

/* ---- encoding ------------------------------------------------------------------------------------------------ */

struct sink {
    struct sd_scope *scope;
    uint8_t *bytes;
    size_t size, room;
};

static void
give(png_structp png, png_bytep from, size_t n)
{
    struct sink *sink = png_get_io_ptr(png);

    if (n > sink->room - sink->size) {
        size_t room = 2 * sink->room + n;
        uint8_t *larger = sd_alloc(sink->scope, room);

        memcpy(larger, sink->bytes, sink->size);
        sink->bytes = larger;
        sink->room = room;
    }
    memcpy(sink->bytes + sink->size, from, n);
    sink->size += n;
}

static void
nothing(png_structp png SD_UNUSED)
{
}

/* UTF-8 to Latin-1; NULL when a character is outside. */
static char *
latin1(struct sd_scope *s, const char *text)
{
    const uint8_t *p = (const uint8_t *)text;
    char *out = sd_alloc(s, strlen(text) + 1), *to = out;

    for (; *p; p++) {
        if (*p < 0x80)
            *to++ = (char)*p;
        else if ((*p == 0xc2 || *p == 0xc3) && (p[1] & 0xc0) == 0x80)
            *to++ = (char)(*p == 0xc2 ? p[1] : p[1] + 0x40), p++;
        else
            return NULL;
    }
    return out;
}

static void
set_text(struct sd_scope *s, png_structp png, png_infop info, const char *key, const char *value)
{
    png_text text = { .compression = PNG_TEXT_COMPRESSION_NONE, .key = sd_strdup(s, key), .text = latin1(s, value) };

    if (text.text) {
        text.text_length = strlen(text.text);
    } else {
        text.compression = PNG_ITXT_COMPRESSION_NONE;
        text.text = sd_strdup(s, value);
        text.itxt_length = strlen(value);
        text.lang = text.lang_key = sd_strdup(s, "");
    }
    png_set_text(png, info, &text, 1);
}

int
sd_image_encode_png(struct sd_scope *s, const struct sd_image *image, const char *const *texts, uint8_t **bytes,
                    size_t *size)
{
    size_t pitch = (size_t)image->width * (size_t)image->channels;
    struct sink sink = { s, NULL, 0, 0 };
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, leave, ignore);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    volatile int status = -1;

    if (!info)
        sd_die("memory", "no room for a PNG encoder");
    sink.room = pitch * (size_t)image->height / 2 + 4096;
    sink.bytes = sd_alloc(s, sink.room);
    if (setjmp(png_jmpbuf(png)))
        goto done;
    png_set_user_limits(png, 0x7fffffff, 0x7fffffff);
    png_set_write_fn(png, &sink, give, nothing);
    png_set_IHDR(png, info, (png_uint_32)image->width, (png_uint_32)image->height, 8,
                 image->channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    for (int i = 0; texts && texts[i]; i += 2)
        set_text(s, png, info, texts[i], texts[i + 1]);
    png_write_info(png, info);
    for (int y = 0; y < image->height; y++)
        png_write_row(png, image->data + (size_t)y * pitch);
    png_write_end(png, info);
    *bytes = sink.bytes;
    *size = sink.size;
    status = 0;
done:
    png_destroy_write_struct(&png, &info);
    return status;
}
