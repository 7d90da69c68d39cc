/* image_jpeg.c - JPEG through libjpeg-turbo, the only file that knows it.
 *
 * Defaults are kept (islow DCT, fancy upsampling), because Pillow keeps them: the pixels are then the same.
 * libjpeg calls a cut file a warning and makes up the rest; here it is an error. */
#include "image.h"

#include <ctype.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

enum {
    SCANS_MAX = 500,
    SEGMENT_MAX = 65533,
    PIXELS_PER_BYTE = 2048      /* Huffman codes need a bit for 64 pixels, for 256 with the oddest sampling */
};

struct errors {
    struct jpeg_error_mgr manager;      /* first: libjpeg hands a pointer to it back */
    struct jpeg_progress_mgr progress;
    jmp_buf leave;
};

static struct errors *
errors_of(j_common_ptr common)
{
    return (struct errors *)(void *)common->err;
}

SD_NORETURN static void
leave(j_common_ptr common)
{
    char text[JMSG_LENGTH_MAX];

    common->err->format_message(common, text);
    if (common->err->msg_code == JERR_INPUT_EOF)
        sd_fail("truncated JPEG");
    else
        sd_fail("damaged JPEG: %c%s", tolower((unsigned char)text[0]), text + 1);
    longjmp(errors_of(common)->leave, 1);
}

/* Warnings about pixels that are made up are errors; about harmless oddities of headers they are not. */
static void
message(j_common_ptr common, int level)
{
    if (level >= 0)
        return;
    switch (common->err->msg_code) {
    case JWRN_JPEG_EOF:
        sd_fail("truncated JPEG");
        longjmp(errors_of(common)->leave, 1);
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_MUST_RESYNC:
    case JWRN_NOT_SEQUENTIAL:
    case JWRN_ARITH_BAD_CODE:
        leave(common);
    default:
        break;
    }
}

static void
count_scans(j_common_ptr common)
{
    if (common->is_decompressor && ((j_decompress_ptr)common)->input_scan_number > SCANS_MAX) {
        sd_fail("JPEG of more than %d scans", SCANS_MAX);
        longjmp(errors_of(common)->leave, 1);
    }
}

static void
init_errors(struct errors *e, struct jpeg_error_mgr **slot)
{
    *slot = jpeg_std_error(&e->manager);
    e->manager.error_exit = leave;
    e->manager.emit_message = message;
}

/* ---- decoding ------------------------------------------------------------------------------------------------ */

static int
orientation_of(const struct jpeg_decompress_struct *jpeg)
{
    static const char xap[] = "http://ns.adobe.com/xap/1.0/";
    int exif = 0, xmp = 0;

    for (jpeg_saved_marker_ptr m = jpeg->marker_list; m; m = m->next) {
        if (m->marker != JPEG_APP0 + 1)
            continue;
        if (!exif && m->data_length > 6 && !memcmp(m->data, "Exif\0\0", 6))
            exif = sd_exif_orientation(m->data + 6, m->data_length - 6);
        else if (!xmp && m->data_length > sizeof xap && !memcmp(m->data, xap, sizeof xap))
            xmp = sd_xmp_orientation(m->data + sizeof xap, m->data_length - sizeof xap);
    }
    return exif ? exif : xmp ? xmp : 1;
}

/* Adobe stores inks inverted, and Pillow takes every file for Adobe's: what is read is 255 - ink already. */
static void
cmyk_to_rgb(uint8_t *to, const uint8_t *from, int width)
{
    for (int x = 0; x < width; x++, from += 4, to += 3) {
        int nk = from[3];       /* 255 - K */

        for (int i = 0; i < 3; i++) {
            unsigned t = (255u - from[i]) * (unsigned)nk + 128;
            int value = nk - (int)(((t >> 8) + t) >> 8);

            to[i] = (uint8_t)(value < 0 ? 0 : value);
        }
    }
}

/* Refused before anything is decoded: libjpeg has no limit of its own. */
static int
check_header(const struct jpeg_decompress_struct *jpeg, size_t size)
{
    long pixels = (long)jpeg->image_width * (long)jpeg->image_height;

    if (jpeg->num_components != 1 && jpeg->num_components != 3 && jpeg->num_components != 4)
        return sd_fail("JPEG of %d components, expected 1, 3 or 4", jpeg->num_components);
    if (pixels > SD_IMAGE_PIXELS_MAX)
        return sd_fail("%u x %u pixels, at most %ld are decoded", jpeg->image_width, jpeg->image_height,
                       SD_IMAGE_PIXELS_MAX);
    if (!jpeg->arith_code && (size_t)pixels / PIXELS_PER_BYTE > size)
        return sd_fail("truncated JPEG");
    return 0;
}

struct sd_image *
sd_jpeg_decode(struct sd_scope *s, const uint8_t *bytes, size_t size, int *orientation)
{
    struct jpeg_decompress_struct jpeg = { 0 };
    struct errors errors = { 0 };
    struct sd_image *volatile image = NULL;
    uint8_t *volatile line = NULL;

    init_errors(&errors, &jpeg.err);
    if (setjmp(errors.leave)) {
        image = NULL;
        goto done;
    }
    jpeg_create_decompress(&jpeg);
    errors.progress.progress_monitor = count_scans;
    jpeg.progress = &errors.progress;
    jpeg_mem_src(&jpeg, bytes, (unsigned long)size);
    jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(&jpeg, TRUE);
    if (check_header(&jpeg, size) < 0)
        goto done;
    *orientation = orientation_of(&jpeg);
    jpeg.out_color_space = jpeg.num_components == 1 ? JCS_GRAYSCALE : jpeg.num_components == 3 ? JCS_RGB : JCS_CMYK;
    jpeg_start_decompress(&jpeg);
    image = sd_image_new(s, (int)jpeg.output_width, (int)jpeg.output_height, jpeg.num_components == 1 ? 1 : 3);
    if (jpeg.num_components == 4)
        line = sd_alloc(s, (size_t)jpeg.output_width * 4);
    while (jpeg.output_scanline < jpeg.output_height) {
        uint8_t *to = image->data + (size_t)jpeg.output_scanline * (size_t)image->width * (size_t)image->channels;
        JSAMPROW row = line ? line : to;

        jpeg_read_scanlines(&jpeg, &row, 1);
        if (line)
            cmyk_to_rgb(to, line, image->width);
    }
    jpeg_finish_decompress(&jpeg);
done:
    jpeg_destroy_decompress(&jpeg);
    return image;
}

/* ---- encoding ------------------------------------------------------------------------------------------------ */

static void
put(uint8_t **p, uint32_t value, int bytes)
{
    while (bytes-- > 0)
        *(*p)++ = (uint8_t)(value >> 8 * bytes);
}

/* UTF-8 to UTF-16BE, as much as fits; returns the bytes written, -1 for bad UTF-8 or too long a text. */
static long
utf16(uint8_t *to, size_t room, const char *text)
{
    const uint8_t *p = (const uint8_t *)text;
    uint8_t *start = to;

    while (*p) {
        int more = *p < 0x80 ? 0 : *p >= 0xc2 && *p < 0xe0 ? 1 : *p >= 0xe0 && *p < 0xf0 ? 2 : *p >= 0xf0 && *p < 0xf5 ? 3 : -1;
        uint32_t c = more <= 0 ? *p : *p & (0x3fu >> more);

        if (more < 0)
            return sd_fail("text is not UTF-8");
        for (p++; more > 0; more--) {
            if ((*p & 0xc0) != 0x80)
                return sd_fail("text is not UTF-8");
            c = c << 6 | (*p++ & 0x3fu);
        }
        if ((size_t)(to - start) + 4 > room)
            return sd_fail("%zu bytes of settings do not fit into a JPEG", strlen(text));
        if (c >= 0x10000) {
            put(&to, 0xd800 + ((c - 0x10000) >> 10), 2);
            put(&to, 0xdc00 + ((c - 0x10000) & 0x3ff), 2);
        } else {
            put(&to, c, 2);
        }
    }
    return (long)(to - start);
}

/* APP1 with one tag, ExifIFD's UserComment, in UTF-16 as A1111 writes it. */
static long
exif_comment(uint8_t segment[SEGMENT_MAX], const char *text)
{
    enum { HEAD = 6, COMMENT = 8 + (2 + 12 + 4) * 2 };  /* the comment, from the start of the TIFF structure */
    uint8_t *p = segment, *body = segment + HEAD + COMMENT + 8;
    long n = utf16(body, SEGMENT_MAX - (HEAD + COMMENT + 8), text);

    if (n < 0)
        return -1;
    memcpy(p, "Exif\0\0MM\0*", 10);
    p += 10;
    put(&p, 8, 4);
    put(&p, 1, 2);              /* IFD0: one entry, the place of the EXIF directory */
    put(&p, 0x8769, 2), put(&p, 4, 2), put(&p, 1, 4), put(&p, 26, 4);
    put(&p, 0, 4);
    put(&p, 1, 2);              /* EXIF directory: UserComment, undefined bytes */
    put(&p, 0x9286, 2), put(&p, 7, 2), put(&p, (uint32_t)n + 8, 4), put(&p, COMMENT, 4);
    put(&p, 0, 4);
    memcpy(p, "UNICODE\0", 8);
    return (p - segment) + 8 + n;
}

int
sd_image_encode_jpeg(struct sd_scope *s, const struct sd_image *image, int quality, const char *parameters,
                     uint8_t **bytes, size_t *size)
{
    struct jpeg_compress_struct jpeg = { 0 };
    struct errors errors = { 0 };
    unsigned char *volatile out = NULL;     /* libjpeg's, malloc'ed */
    unsigned char *buffer = NULL;
    unsigned long length = 0;
    uint8_t *segment = sd_alloc(s, SEGMENT_MAX);
    volatile int status = -1;
    long exif = 0;

    if (image->width > JPEG_MAX_DIMENSION || image->height > JPEG_MAX_DIMENSION)
        return sd_fail("%d x %d pixels, a JPEG holds %ld", image->width, image->height, JPEG_MAX_DIMENSION);
    if (parameters && (exif = exif_comment(segment, parameters)) < 0)
        return -1;
    init_errors(&errors, &jpeg.err);
    if (setjmp(errors.leave))
        goto done;
    jpeg_create_compress(&jpeg);
    jpeg_mem_dest(&jpeg, &buffer, &length);
    jpeg.image_width = (JDIMENSION)image->width;
    jpeg.image_height = (JDIMENSION)image->height;
    jpeg.input_components = image->channels;
    jpeg.in_color_space = image->channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_set_defaults(&jpeg);
    jpeg_set_quality(&jpeg, quality, TRUE);
    jpeg_start_compress(&jpeg, TRUE);
    if (exif)
        jpeg_write_marker(&jpeg, JPEG_APP0 + 1, segment, (unsigned)exif);
    while (jpeg.next_scanline < jpeg.image_height) {
        JSAMPROW row = image->data + (size_t)jpeg.next_scanline * (size_t)image->width * (size_t)image->channels;

        jpeg_write_scanlines(&jpeg, &row, 1);
    }
    jpeg_finish_compress(&jpeg);
    out = buffer;
    *bytes = sd_alloc(s, length);
    memcpy(*bytes, out, length);
    *size = length;
    status = 0;
done:
    jpeg_destroy_compress(&jpeg);
    free(out);
    return status;
}
