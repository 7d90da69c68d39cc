/* The orientation tag: both byte orders, three types, every damage gives "says nothing", no read behind the end. */
#include "image.h"
#include "tests/check.h"

/* A TIFF structure with two entries, the second of them the orientation; returned in memory of its exact size. */
static uint8_t *
make(char order, int tag, int type, uint32_t count, uint32_t value, size_t *size)
{
    uint8_t *p = calloc(1, *size = 8 + 2 + 24 + 4), *e = p + 22;
    bool big = order == 'M';
#define PUT16(at, v) ((at)[!big] = (uint8_t)((v) >> 8), (at)[big] = (uint8_t)(v))
#define PUT32(at, v) (PUT16((at) + 2 * !big, (v) >> 16), PUT16((at) + 2 * big, (v)))

    memcpy(p, big ? "MM\0*" : "II*\0", 4);
    PUT32(p + 4, 8u);
    PUT16(p + 8, 2u);
    PUT16(p + 10, 0x010fu);     /* another tag first: Make */
    PUT16(p + 12, 2u);
    PUT32(p + 14, 4u);
    PUT16(e, (unsigned)tag);
    PUT16(e + 2, (unsigned)type);
    PUT32(e + 4, count);
    if (type == 3)
        PUT16(e + 8, value);
    else if (type == 4)
        PUT32(e + 8, value);
    else
        e[8] = (uint8_t)value;
    return p;
}

static int
orientation(char order, int tag, int type, uint32_t count, uint32_t value)
{
    size_t n;
    uint8_t *p = make(order, tag, type, count, value, &n);
    int o = sd_exif_orientation(p, n);

    free(p);
    return o;
}

static void
check_cuts(void)
{
    size_t n;
    uint8_t *p = make('I', 0x112, 3, 1, 6, &n);
    int wrong = 0;

    for (size_t cut = 0; cut < 34; cut++) {
        uint8_t *copy = malloc(cut ? cut : 1);

        memcpy(copy, p, cut);
        wrong += sd_exif_orientation(copy, cut) != 0;
        free(copy);
    }
    CHECK(wrong == 0, "cut anywhere before the entry's end it says nothing (%d say something)", wrong);
    CHECK(sd_exif_orientation(p, 34) == 6, "the link behind the directory is not needed");
    memcpy(p + 4, "\xff\xff\xff\xff", 4);
    CHECK(sd_exif_orientation(p, n) == 0, "a directory behind the end");
    memcpy(p + 4, "\x26\0\0\0", 4);        /* 38, the size: an instrumented build sees a read there */
    CHECK(sd_exif_orientation(p, n) == 0, "a directory at the end");
    memcpy(p + 4, "\x02\0\0\0", 4);
    CHECK(sd_exif_orientation(p, n) == 0, "a directory inside the header");
    memcpy(p + 4, "\x08\0\0\0\xff\xff", 6);
    CHECK(sd_exif_orientation(p, n) == 6, "a count of 65535 stops at the end");
    memcpy(p, "IM*\0", 4);
    CHECK(sd_exif_orientation(p, n) == 0, "neither byte order");
    free(p);
}

int
main(void)
{
    static const char xmp1[] = "<a tiff:Orientation=\"8\"/>", xmp2[] = "<tiff:Orientation>3</tiff:Orientation>";
    static const char cut[] = "<tiff:Orientation", odd[] = "<a tiff:Orientation='8'/>", nine[] = "<tiff:Orientation>9<";

    for (uint32_t o = 1; o <= 8; o++)
        CHECK(orientation('I', 0x112, 3, 1, o) == (int)o && orientation('M', 0x112, 3, 1, o) == (int)o, "SHORT %u", o);
    CHECK(orientation('I', 0x112, 4, 1, 6) == 6 && orientation('M', 0x112, 4, 1, 6) == 6, "LONG");
    CHECK(orientation('I', 0x112, 1, 1, 6) == 6, "BYTE");
    CHECK(orientation('I', 0x112, 3, 1, 0) == 1 && orientation('M', 0x112, 3, 1, 9) == 1, "out of range is upright");
    CHECK(orientation('M', 0x112, 4, 1, 0x00060000) == 1, "a LONG is not cut to its upper half");
    CHECK(orientation('I', 0x112, 3, 2, 6) == 0, "two values say nothing");
    CHECK(orientation('I', 0x112, 2, 1, 6) == 0, "text says nothing");
    CHECK(orientation('I', 0x113, 3, 1, 6) == 0, "another tag says nothing");
    check_cuts();
    CHECK(sd_xmp_orientation((const uint8_t *)xmp1, sizeof xmp1 - 1) == 8, "XMP attribute");
    CHECK(sd_xmp_orientation((const uint8_t *)xmp2, sizeof xmp2 - 1) == 3, "XMP element");
    CHECK(sd_xmp_orientation((const uint8_t *)cut, sizeof cut - 1) == 0, "XMP cut");
    CHECK(sd_xmp_orientation((const uint8_t *)odd, sizeof odd - 1) == 0, "XMP in other quotes: as Pillow, nothing");
    CHECK(sd_xmp_orientation((const uint8_t *)nine, sizeof nine - 1) == 1, "XMP out of range is upright");
    return check_done();
}
