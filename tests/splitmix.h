/* splitmix.h - numbers and a hash that tests/reference has too, so that what is drawn there is drawn here again. */
#ifndef SPLITMIX_H
#define SPLITMIX_H

#include <stddef.h>
#include <stdint.h>

#define FNV UINT64_C(0xCBF29CE484222325)

static uint64_t state;          /* all that the next numbers depend on */

static inline uint64_t
next(void)
{
    uint64_t z = state += UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static inline uint64_t
below(uint64_t n)
{
    return n ? next() % n : 0;
}

/* FNV-1a, on from h. */
static inline uint64_t
hash(uint64_t h, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ ((const unsigned char *)data)[i]) * UINT64_C(0x100000001B3);
    return h;
}

#endif
