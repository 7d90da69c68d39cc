/* exif.c - which way up: the orientation tag of EXIF, or of XMP.  Nothing else of the metadata is read. */
#include "image.h"

#include <string.h>

enum { TAG_ORIENTATION = 0x0112, BYTE = 1, SHORT = 3, LONG = 4 };

static unsigned
get16(const uint8_t *p, bool big)
{
    return big ? (unsigned)p[0] << 8 | p[1] : (unsigned)p[1] << 8 | p[0];
}

static uint32_t
get32(const uint8_t *p, bool big)
{
    return big ? (uint32_t)get16(p, big) << 16 | get16(p + 2, big) : (uint32_t)get16(p + 2, big) << 16 | get16(p, big);
}

/* Only IFD0 is walked; it never follows an offset out of an entry, so there is no loop to be caught in. */
int
sd_exif_orientation(const uint8_t *tiff, size_t size)
{
    bool big;
    size_t at, count;

    if (size < 8 || (memcmp(tiff, "II*\0", 4) && memcmp(tiff, "MM\0*", 4)))
        return 0;
    big = tiff[0] == 'M';
    at = get32(tiff + 4, big);
    if (at < 8 || at > size - 2)
        return 0;
    count = get16(tiff + at, big);
    for (at += 2; count-- > 0 && at + 12 <= size; at += 12) {
        const uint8_t *entry = tiff + at;
        unsigned type = get16(entry + 2, big);
        uint32_t value;

        if (get16(entry, big) != TAG_ORIENTATION)
            continue;
        if (get32(entry + 4, big) != 1)
            return 0;
        if (type == SHORT)
            value = get16(entry + 8, big);
        else if (type == LONG)
            value = get32(entry + 8, big);
        else if (type == BYTE)
            value = entry[8];
        else
            return 0;
        return value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 0;
}

/* tiff:Orientation="6" or <tiff:Orientation>6 */
int
sd_xmp_orientation(const uint8_t *xmp, size_t size)
{
    static const char tag[] = "tiff:Orientation";
    const uint8_t *end = xmp + size, *p = xmp;

    while (p < end && (p = memmem(p, (size_t)(end - p), tag, sizeof tag - 1))) {
        p += sizeof tag - 1;
        if (end - p >= 3 && p[0] == '=' && p[1] == '"')
            p += 2;
        else if (end - p >= 2 && p[0] == '>')
            p++;
        else
            continue;
        if (*p >= '0' && *p <= '9')
            return *p >= '1' && *p <= '8' ? *p - '0' : 1;
    }
    return 0;
}
