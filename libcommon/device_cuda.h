/* device_cuda.h - the device of a build with nvcc: device_cuda.cu opens it, records and keeps the libraries' things;
 * device_cuda_copy.cu has its memory and what is copied there and back. */
#ifndef SD_DEVICE_CUDA_H
#define SD_DEVICE_CUDA_H

#include "device.h"

#if !SD_EMULATE         /* tests/emulate/streams.cu has one of its own */
#include <cuda_runtime.h>
#endif

#include "diag.h"

enum { SECTOR_BYTES = 1 << 20, SECTORS = 24, SECTORS_AHEAD = 8, LOCKS = 3 };
static_assert((SECTORS + SECTORS_AHEAD) * SECTOR_BYTES + SD_ASKED * SD_ASKED_BYTES == SD_PINNED_BYTES,
              "the pinned memory that --plan says");

struct block {
    void *at;
    size_t bytes;
};

/* Pinned sectors that the writes of one stream go through. */
struct ring {
    cudaStream_t stream;
    unsigned char *at;                  /* NULL: refused */
    int sectors, sector;                /* sector: being filled */
    size_t filled;                      /* of it */
    cudaEvent_t copied[SECTORS];
};

/* Memory of the caller's that is there twice. */
struct side {
    cudaEvent_t written, released;
    bool taken, wait;                   /* wait: for `released`, before it is written again */
};

struct sd_device {
    int index, capability, multiprocessors;
    int locks[LOCKS];                   /* -1: none */
    char name[300], engine[600];
    cudaStream_t stream;
    bool overlaps;
    bool recording, check;              /* check: wait after every launch (SD_CUDA_CHECK=1) */
    size_t recordings;                  /* that may be replayed */
    const char *kernel;                 /* launched last */
    struct block *blocks;
    size_t block_count, block_room, allocated;
    unsigned char *pinned;              /* of both rings; NULL: refused */
    struct ring ring, ahead;
    struct side side[SD_SIDES];
    unsigned char *answers;             /* SD_ASKED of SD_ASKED_BYTES */
    bool answers_pinned;
    cudaEvent_t answered[SD_ASKED];
    size_t asked[SD_ASKED];             /* bytes; 0: free */
    struct sd_device_counts counts;
    cudaEvent_t *marks;                 /* SD_MARKS of them, NULL until used */
    void *workspace;
    size_t workspace_bytes;
    struct { void *value; void (*close)(void *); } slots[SD_SLOTS];
};

/* device_cuda.cu: a call that failed, or a fault of a kernel before it that this call is the first to be told of, ends the
 * program; so does what cannot be recorded. */
void sd_cuda_check(const struct sd_device *d, cudaError_t e, const char *what);
void sd_cuda_not_recording(const struct sd_device *d, const char *what);
#define CHECK(d, call) sd_cuda_check(d, call, #call)

/* device_cuda_copy.cu: streams, pinned memory, events */
void sd_cuda_copies_open(struct sd_device *d);
void sd_cuda_copies_wait(struct sd_device *d);
void sd_cuda_copies_close(struct sd_device *d);

#endif
