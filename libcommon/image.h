/* image.h - pictures: JPEG and PNG in and out, EXIF orientation, resizing as Pillow does, cropping, contact sheets.
 *
 * One rule: a picture in memory is upright, 8 bits, row-major without padding, grey (1 channel) or RGB (3), and equal
 * byte for byte to what Pillow makes of the same file (man sd-crop, CAVEATS, lists the exceptions).
 * Every size is checked before anything is decoded. */
#ifndef SD_IMAGE_H
#define SD_IMAGE_H

#include "diag.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SD_IMAGE_PIXELS_MAX 178956970L      /* Pillow's limit for decompression bombs */
#define SD_IMAGE_SIDE_MAX   1000000L
#define SD_IMAGE_FILE_MAX   (1L << 30)

struct sd_image {
    int width, height;
    int channels;               /* 1 or 3 */
    uint8_t *data;              /* [height][width][channels] */
};

/* sd_pixel_value - a byte of a picture as networks take it, from -1 to 1, rounded as diffusers does. */
static inline float
sd_pixel_value(uint8_t byte)
{
    return 2 * ((float)byte / 255.0f) - 1;
}

/* sd_image_new - black, in scope s.  Sizes are the caller's to check. */
struct sd_image *sd_image_new(struct sd_scope *s, int width, int height, int channels);

/* What a file is, by its first bytes. */
enum sd_image_kind {
    SD_IMAGE_OTHER,             /* not a picture */
    SD_IMAGE_JPEG,
    SD_IMAGE_PNG,
    SD_IMAGE_FOREIGN            /* a picture or video of a kind that is not read here */
};
/* sd_image_kind - from the first bytes (32 are enough); *name, if not NULL, becomes "JPEG", "HEIC" ... or NULL. */
enum sd_image_kind sd_image_kind(const void *bytes, size_t size, const char **name);

/* sd_image_decode - a JPEG or PNG in memory, upright.  channels 3: RGB; 1: grey (L); transparency is composited onto
 * white for RGB, onto black for grey (a mask).  NULL with sd_fail: "truncated JPEG", "HEIC picture, not read here: ..." */
struct sd_image *sd_image_decode(struct sd_scope *s, const void *bytes, size_t size, int channels);
/* sd_image_load - the same from a file, RGB. */
struct sd_image *sd_image_load(struct sd_scope *s, const char *path);

/* sd_image_orient - the upright picture for an EXIF orientation 1..8 (1 and others: the same picture). */
struct sd_image *sd_image_orient(struct sd_scope *s, struct sd_image *image, int orientation);
/* sd_image_grey - RGB to L as Pillow: (19595 R + 38470 G + 7471 B + 32768) >> 16. */
struct sd_image *sd_image_grey(struct sd_scope *s, struct sd_image *image);

/* sd_image_crop - a copy of the rectangle, which must lie inside. */
struct sd_image *sd_image_crop(struct sd_scope *s, const struct sd_image *image, int left, int top, int width,
                               int height);

/* sd_image_centre - the centre of mass of a grey picture, (0, 0) its upper left corner, (width, height) its lower right
 * one; the middle, and false, when it is black. */
bool sd_image_centre(const struct sd_image *mask, double *x, double *y);

enum sd_filter {
    SD_FILTER_LANCZOS, SD_FILTER_BICUBIC, SD_FILTER_BOX, SD_FILTER_BILINEAR,     /* Pillow's, byte for byte */
    SD_FILTER_AREA      /* kohya's: area averaging (OpenCV's) when no side grows, else Lanczos */
};
/* sd_image_resize - Image.resize((width, height), filter, box) of Pillow 13.  box is left, top, right, bottom in the
 * source, NULL for all of it (AREA takes no box).  part is left, top, width, height of the piece of the result that is
 * wanted, NULL for all; only that piece is computed, with the same bytes as a crop afterwards. */
struct sd_image *sd_image_resize(struct sd_scope *s, const struct sd_image *image, int width, int height,
                                 enum sd_filter filter, const float box[4], const int part[4]);
/* For tests: the C loops only, no vector code; the same bytes. */
extern bool sd_image_resize_plain;
/* sd_filter_named - by the words lanczos bicubic box bilinear area; -1 for others. */
int sd_filter_named(const char *name);

/* Encoding, into memory of scope s.  texts: key, value, ... NULL (or NULL): PNG text chunks, tEXt where Latin-1 holds the
 * value, else iTXt.  parameters (may be NULL): EXIF UserComment, as A1111 writes it. */
int sd_image_encode_png(struct sd_scope *s, const struct sd_image *image, const char *const *texts, uint8_t **bytes,
                        size_t *size);
int sd_image_encode_jpeg(struct sd_scope *s, const struct sd_image *image, int quality, const char *parameters,
                         uint8_t **bytes, size_t *size);
/* The same into a file that gets its name only when complete. */
int sd_image_save_png(const char *path, const struct sd_image *image, const char *const *texts);
int sd_image_save_jpeg(const char *path, const struct sd_image *image, int quality, const char *parameters);

/* sd_image_sheet - a contact sheet: pictures in rows of `columns`, each centred in a cell of the largest size, on white,
 * with a margin; labels (NULL, or one per picture, each may be NULL) below in a 6x10 font, ASCII, cut to the cell. */
struct sd_image *sd_image_sheet(struct sd_scope *s, struct sd_image *const *images, int count, int columns,
                                const char *const *labels);
/* sd_image_text - draw ASCII text in black with its upper left corner at (x, y); clipped. */
void sd_image_text(struct sd_image *image, int x, int y, const char *text);

/* The decoders behind sd_image_decode, without turning: 1 channel when the file is grey.  *orientation is 1..8.
 * White or black (255 or 0) lies under transparency. */
struct sd_image *sd_jpeg_decode(struct sd_scope *s, const uint8_t *bytes, size_t size, int *orientation);
struct sd_image *sd_png_decode(struct sd_scope *s, const uint8_t *bytes, size_t size, int background, int *orientation);
/* sd_exif_orientation - from a TIFF structure ("II*\0" or "MM\0*" first): 1..8, 1 for a value out of range, 0 when it
 * says nothing or is damaged. */
int sd_exif_orientation(const uint8_t *tiff, size_t size);
/* sd_xmp_orientation - the same from an XMP packet, asked when there is no EXIF orientation, as Pillow does. */
int sd_xmp_orientation(const uint8_t *xmp, size_t size);

#ifdef __cplusplus
}
#endif
#endif
