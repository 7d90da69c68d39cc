/* Pictures: every mode and orientation decodes to Pillow's bytes (stored sums), damage is named, what is written reads
 * back, bombs are refused before they are decoded. */
#include "image.h"
#include "file.h"
#include "tests/check.h"

#include <openssl/sha.h>
#include <unistd.h>

#define HERE "tests/data/images/"
static const char *data;

/* "data/..." lies in $SD_TEST_DATA, everything else in the tree */
static char *
place(struct sd_scope *s, const char *name)
{
    return !strncmp(name, "data/", 5) ? sd_sprintf(s, "%s/%s", data, name + 5) : sd_sprintf(s, HERE "%s", name);
}

static const char *
sum_of(struct sd_scope *s, const struct sd_image *image)
{
    uint8_t digest[SHA256_DIGEST_LENGTH];
    char *text = sd_alloc(s, 65);

    SHA256(image->data, (size_t)image->width * (size_t)image->height * (size_t)image->channels, digest);
    for (int i = 0; i < 32; i++)
        sprintf(text + 2 * i, "%02x", digest[i]);
    return text;
}

static struct sd_image *
decode_file(struct sd_scope *s, const char *path, int channels)
{
    size_t size;
    char *bytes = sd_file_read(s, path, SD_IMAGE_FILE_MAX, &size);

    return bytes ? sd_image_decode(s, bytes, size, channels) : NULL;
}

static void
check_stored(void)
{
    FILE *f = fopen(HERE "expected.txt", "r");
    char kind[16], name[256], sum[65], line[512];
    int w, h, n = 0;

    if (!CHECK(f != NULL, "stored values are there"))
        return;
    while (fgets(line, sizeof line, f)) {
        struct sd_scope *s = sd_scope_open();
        struct sd_image *image;

        if (sscanf(line, "%15s %255s %d %d %64s", kind, name, &w, &h, sum) != 5 ||
            (strcmp(kind, "rgb") && strcmp(kind, "grey"))) {
            sd_scope_close(s);
            continue;
        }
        n++;
        if (!strncmp(name, "data/", 5) && access(place(s, name), R_OK)) {
            check_skip(name, "no SD_TEST_DATA");
        } else {
            image = decode_file(s, place(s, name), strcmp(kind, "rgb") ? 1 : 3);
            CHECK(image && image->width == w && image->height == h && !strcmp(sum_of(s, image), sum), "%s as %s%s%s", name,
                  kind, image ? "" : ": ", image ? "" : sd_reason());
        }
        sd_scope_close(s);
    }
    fclose(f);
    CHECK(n > 100, "%d stored pictures", n);
}

/* All eight orientations of one photo look alike. */
static void
check_alike(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_image *first = sd_image_load(s, place(s, "data/exif/landscape_1.jpg"));

    for (int o = 2; first && o <= 8; o++) {
        struct sd_image *other = sd_image_load(s, sd_sprintf(s, "%s/exif/landscape_%d.jpg", data, o));
        double sum = 0;
        size_t n = (size_t)first->width * (size_t)first->height * 3;

        if (!CHECK(other && other->width == first->width && other->height == first->height, "orientation %d: size", o))
            continue;
        for (size_t i = 0; i < n; i++)
            sum += abs(other->data[i] - first->data[i]);
        CHECK(sum / (double)n < 4, "orientation %d: mean difference %.2f of 255 (compressed apart)", o, sum / (double)n);
    }
    if (!first)
        check_skip("orientations look alike", "no SD_TEST_DATA");
    sd_scope_close(s);
}

/* ---- damage -------------------------------------------------------------------------------------------------- */

static void
check_cuts(const char *name, const char *reason)
{
    struct sd_scope *s = sd_scope_open();
    size_t size, wrong = 0;
    char *bytes = sd_file_read(s, place(s, name), 1 << 20, &size);
    const char *said = "";

    for (size_t n = 24; n < size; n++) {        /* every place a file can be cut at, behind the magic bytes */
        struct sd_scope *inner = sd_scope_open();
        uint8_t *copy = malloc(n);              /* exact size: an instrumented build sees a read behind the end */

        memcpy(copy, bytes, n);
        if (sd_image_decode(inner, copy, n, 3))
            wrong++, said = "nothing";
        else if (strcmp(sd_reason(), reason))
            wrong++, said = sd_strdup(s, sd_reason());
        free(copy);
        sd_scope_close(inner);
    }
    CHECK(wrong == 0, "%s cut anywhere is \"%s\" (%zu of %zu say \"%s\")", name, reason, wrong, size - 24, said);
    sd_scope_close(s);
}

static void
check_refused(const char *what, const void *bytes, size_t size, const char *part)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_image *image = sd_image_decode(s, bytes, size, 3);

    CHECK(!image && strstr(sd_reason(), part) && !strchr(sd_reason(), '\n'), "%s: %s", what, image ? "accepted" : sd_reason());
    sd_scope_close(s);
}
#define REFUSED(what, bytes, part) check_refused(what, bytes, sizeof bytes - 1, part)

static void
check_kinds(void)
{
    REFUSED("HEIC", "\0\0\0\x18" "ftypheic\0\0\0\0mif1heic", "HEIC, not read here; try: heif-convert");
    REFUSED("AVIF", "\0\0\0\x1c" "ftypavif\0\0\0\0avifmif1", "AVIF, not read here");
    REFUSED("video", "\0\0\0\x18" "ftypisom\0\0\2\0isomiso2", "video, not read here; try: ffmpeg");
    REFUSED("Canon raw 3", "\0\0\0\x18" "ftypcrx \0\0\0\1crx isom", "RAW, not read here; try: dcraw");
    REFUSED("Canon raw 2", "II*\0\x10\0\0\0CR\2\0\0\0\0\0", "RAW, not read here");
    REFUSED("WebP", "RIFF\x24\0\0\0WEBPVP8 ", "WebP, not read here; try: dwebp");
    REFUSED("GIF", "GIF89a\1\0\1\0", "GIF, not read here; try: convert");
    REFUSED("TIFF", "II*\0\x08\0\0\0\0\0", "TIFF or RAW, not read here");
    REFUSED("BMP", "BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\2\0\0\0", "BMP, not read here");
    REFUSED("JPEG XL", "\xff\x0a\xfa\x7f\1", "JPEG XL, not read here; try: djxl");
    REFUSED("Matroska", "\x1a\x45\xdf\xa3\1\0\0\0", "video, not read here");
    REFUSED("text", "a photo of a cat\n", "not a picture");
    REFUSED("nothing", "", "empty file");
}

static void
check_bombs(void)
{
    struct sd_scope *s = sd_scope_open();
    size_t size;
    uint8_t *png = (uint8_t *)sd_file_read(s, HERE "rgb.png", 1 << 20, &size), *jpeg, *p;

    memcpy(png + 16, "\0\0\xff\xff\0\0\xff\xff", 8);            /* 65535 x 65535 */
    check_refused("PNG bomb", png, size, "65535 x 65535 pixels, at most 178956970 are decoded");
    memcpy(png + 16, "\0\0\x27\x10\0\0\x27\x10", 8);            /* 10000 x 10000: allowed, but not in so small a file */
    check_refused("PNG that cannot hold its size", png, size, "truncated PNG");
    memcpy(png + 16, "\0\0\0\0\0\0\0\1", 8);
    check_refused("PNG of no width", png, size, "damaged PNG");
    jpeg = (uint8_t *)sd_file_read(s, HERE "rgb.jpg", 1 << 20, &size);
    p = memmem(jpeg, size, "\xff\xc0", 2);
    memcpy(p + 5, "\xff\xdc\xff\xdc", 4);                       /* 65500 x 65500 */
    check_refused("JPEG bomb", jpeg, size, "65500 x 65500 pixels, at most 178956970 are decoded");
    memcpy(p + 5, "\x2e\xe0\x2e\xe0", 4);                       /* 12000 x 12000 */
    check_refused("JPEG that cannot hold its size", jpeg, size, "truncated JPEG");
    p[9] = 2;
    check_refused("JPEG of two components", jpeg, size, "damaged JPEG");
    sd_scope_close(s);
}

static void
check_flips(void)
{
    struct sd_scope *s = sd_scope_open();
    size_t size;
    uint8_t *png = (uint8_t *)sd_file_read(s, HERE "rgb.png", 1 << 20, &size);

    png[size / 2] ^= 1;                     /* inside IDAT: the chunk's checksum does not fit */
    check_refused("PNG with a flipped bit", png, size, "damaged PNG");
    sd_scope_close(s);
}

/* ---- writing ------------------------------------------------------------------------------------------------- */

static void
check_writing(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_image *image = sd_image_load(s, HERE "rgb.png"), *back, *grey = sd_image_grey(s, image);
    const char *texts[] = { "parameters", "a caf\xc3\xa9\nSteps: 20, Seed: 1", "note", "\xe7\x8c\xab", NULL };
    uint8_t *bytes;
    size_t size;
    double sum = 0;

    CHECK(sd_image_encode_png(s, image, texts, &bytes, &size) == 0, "PNG is written");
    back = sd_image_decode(s, bytes, size, 3);
    CHECK(back && back->width == image->width && !memcmp(back->data, image->data, 61 * 43 * 3), "PNG reads back the same");
    CHECK(memmem(bytes, size, "tEXtparameters\0a caf\xe9\nSteps: 20, Seed: 1", 40), "tEXt in Latin-1");
    CHECK(memmem(bytes, size, "iTXtnote\0\0\0\0\0\xe7\x8c\xab", 16), "iTXt where Latin-1 does not hold it");
    CHECK(sd_image_encode_png(s, grey, NULL, &bytes, &size) == 0 && (back = sd_image_decode(s, bytes, size, 1)) &&
              !memcmp(back->data, grey->data, 61 * 43), "grey PNG reads back the same");

    CHECK(sd_image_encode_jpeg(s, image, 95, "caf\xc3\xa9 \xf0\x9f\x90\xb1", &bytes, &size) == 0, "JPEG is written");
    back = sd_image_decode(s, bytes, size, 3);
    for (int i = 0; back && i < 61 * 43 * 3; i++)
        sum += abs(back->data[i] - image->data[i]);
    CHECK(back && sum / (61 * 43 * 3) < 6, "JPEG reads back alike: mean difference %.2f", sum / (61 * 43 * 3));
    CHECK(memmem(bytes, size, "UNICODE\0\0c\0a\0f\0\xe9\0 \xd8\x3d\xdc\x31", 22), "UserComment in UTF-16");
    CHECK(sd_image_encode_jpeg(s, image, 95, "\xff", &bytes, &size) < 0 && !strcmp(sd_reason(), "text is not UTF-8"),
          "bad UTF-8 is refused");
    CHECK(sd_image_save_png("/nonexistent/x.png", image, NULL) < 0, "no folder: %s", sd_reason());
    CHECK(sd_image_save_png("/dev/full", image, NULL) < 0, "full disk: %s", sd_reason());
    sd_scope_close(s);
}

static void
check_sheet(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_image *image = sd_image_load(s, HERE "rgb.png"), *sheet;
    struct sd_image *three[3] = { image, image, sd_image_grey(s, image) };
    const char *labels[3] = { "one", NULL, "a label that is far too long for its cell" };
    int dark = 0;

    sheet = sd_image_sheet(s, three, 3, 2, NULL);
    CHECK(sheet->width == 2 * 61 + 3 * 8 && sheet->height == 2 * 43 + 3 * 8, "sheet of 3 in 2 columns: %d x %d",
          sheet->width, sheet->height);
    CHECK(!memcmp(sheet->data + (8 * (size_t)sheet->width + 8) * 3, image->data, 61 * 3), "the first picture is in its place");
    CHECK(sheet->data[0] == 255 && sheet->data[((size_t)sheet->height * (size_t)sheet->width - 1) * 3] == 255, "margin is white");
    sheet = sd_image_sheet(s, three, 3, 2, labels);
    for (int y = 8 + 43; y < 8 + 43 + 12; y++)
        for (int x = 0; x < sheet->width / 2; x++)
            dark += sheet->data[((size_t)y * (size_t)sheet->width + (size_t)x) * 3] == 0;
    CHECK(dark > 15 && dark < 100, "a label is drawn: %d dark pixels", dark);
    sd_scope_close(s);
}

int
main(void)
{
    data = getenv("SD_TEST_DATA") ? getenv("SD_TEST_DATA") : "../shared/data";
    check_stored();
    check_alike();
    check_cuts("rgb.jpg", "truncated JPEG");
    check_cuts("progressive.jpg", "truncated JPEG");
    check_cuts("rgb.png", "truncated PNG");
    check_cuts("interlaced_rgba.png", "truncated PNG");
    check_kinds();
    check_bombs();
    check_flips();
    check_writing();
    check_sheet();
    return check_done();
}
