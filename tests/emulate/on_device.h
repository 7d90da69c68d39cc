/* on_device.h - for tests of what kernels/ does on a device outside ops: a device, and arrays to it and back.  They run on the
 * emulator and, built by nvcc, on a card (make check-cuda). */
#ifndef SD_TEST_ON_DEVICE_H
#define SD_TEST_ON_DEVICE_H

#include <vector>

#include "check.h"
#include "device.h"
#include "diag.h"

static inline struct sd_device *
open_device(void)
{
    const char *text = getenv("SD_TEST_DEVICE");        /* the emulator sets it */
    struct sd_device *d;

    if (!text) {
        check_skip("on a device", "SD_TEST_DEVICE is not set");
        exit(check_done());
    }
    if (sd_device_open(&d, text) < 0)
        sd_bug("check", "%s", sd_reason());
    return d;
}

template <class T> static inline T *
up(struct sd_device *d, const std::vector<T> &x)
{
    T *p = static_cast<T *>(sd_device_alloc(d, (x.size() + !x.size()) * sizeof(T), "a test"));

    if (!x.empty())
        sd_device_write(d, p, x.data(), x.size() * sizeof(T));
    return p;
}

template <class T> static inline std::vector<T>
down(struct sd_device *d, const T *p, size_t n)
{
    std::vector<T> x(n);

    if (n)
        sd_device_read(d, x.data(), p, n * sizeof(T));
    return x;
}

/* splitmix64: values in (-1, 1) */
static inline std::vector<float>
numbers(size_t n, uint64_t seed)
{
    std::vector<float> x(n);

    for (float &v : x) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;

        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        v = (float)((double)(int64_t)(z >> 40) * 0x1p-23 - 1 + 0x1p-24);
    }
    return x;
}

template <class T> static inline bool
same_bits(const std::vector<T> &a, const std::vector<T> &b)
{
    return a.size() == b.size() && (a.empty() || memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

#endif
