/* device_emulate.h - the emulated device in two files: device_emulate.cpp has its memory, recordings and what kernels ask for,
 * device_copies.cpp what is copied. */
#ifndef SD_DEVICE_EMULATE_H
#define SD_DEVICE_EMULATE_H

#include "emulate.h"

#include <string>
#include <vector>

static const unsigned char FRESH = 0xff;

/* Memory that is there twice: what was written to it, and not yet copied; and where it lies. */
struct side {
    struct write { unsigned char *to; std::string bytes; };
    std::vector<struct write> pending, taken;
    bool is_taken;
};

struct sd_recording {
    std::vector<std::function<void()>> list;
};

struct sd_device {
    struct sd_recording *recording;
    size_t allocated;
    void *workspace;
    size_t workspace_bytes;
    void *slot[SD_SLOTS];
    void (*close_slot[SD_SLOTS])(void *);
    std::vector<unsigned char> asked[SD_ASKED];
    struct side side[SD_SIDES];
    struct sd_device_counts counts;
};

namespace sd {
namespace emulate {
struct door {                       /* device memory can be touched while one lives */
    door(void);
    ~door(void);
};
void not_recording(const struct sd_device *d, const char *what);
void do_or_record(struct sd_device *d, std::function<void()> what);
void check_range(const char *what, const void *p, size_t bytes);
void check_host(const char *what, const void *p);
void check_all_guards(void);
}
}

#endif
