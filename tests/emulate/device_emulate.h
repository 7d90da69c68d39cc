/* device_emulate.h - the emulated device in three files: device_emulate.cpp has its memory, recordings and what kernels ask for,
 * device_copies.cpp what is copied, dry.cpp what is written down where nothing runs. */
#ifndef SD_DEVICE_EMULATE_H
#define SD_DEVICE_EMULATE_H

#include "emulate.h"

#include <string>
#include <vector>

static const unsigned char FRESH = 0xff, DRY_ANSWER = 0x3c;   /* DRY_ANSWER: of any real type a small number, of any other true */

/* Memory that is there twice: what was written to it, and not yet copied; and where it lies. */
struct side {
    struct write { unsigned char *to; std::string bytes; };
    std::vector<struct write> pending, taken;
    bool is_taken;
};

/* line: dry.cpp's */
struct launched {
    std::string line;
    std::function<void()> run;
};
struct sd_recording {
    std::vector<struct launched> list;
    int number;                     /* in dry.cpp's file, 0: not yet there */
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
    std::vector<double> marks;      /* when, 0: never */
};

namespace sd {
namespace emulate {
struct door {                       /* device memory can be touched while one lives */
    door(void);
    ~door(void);
};
void not_recording(const struct sd_device *d, const char *what);
void do_or_record(struct sd_device *d, std::string line, std::function<void()> what);
bool dry(void);
std::string dry_line(const char *format, ...) __attribute__((format(printf, 1, 2)));   /* empty where things run */
void dry_now(const std::string &line);
void dry_replay(struct sd_recording *r);
void check_range(const char *what, const void *p, size_t bytes);
void check_host(const char *what, const void *p);
void check_all_guards(void);
}
}

#endif
