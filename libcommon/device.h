/* device.h - where a plan's bytes lie and its kernels run.
 *
 * One rule: a device is a queue.  What is asked of it happens in the order asked, later; only sd_device_read and
 * sd_device_wait wait for all of it, sd_device_answer for a part.  One exception: sd_device_write_ahead has a queue of its own.
 * NULL is the CPU, and no function here takes it except sd_device_close.
 * Three implementations of this header: device_cuda.cu (a build with nvcc), device_none.c (without) and the emulator of
 * the tests, which runs the same kernels on the CPU. */
#ifndef SD_DEVICE_H
#define SD_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct sd_device;

/* sd_device_open - "cpu", "cuda", "cuda:N", or "auto": a CUDA device where one answers, else the CPU, which is said where one
 * is there and does not.  *d is NULL for the CPU.  -1 with sd_fail where what was asked for is not there ("--device cuda: no
 * driver (libcuda.so.1)").  One process at a time has a GPU: others wait for its lock, and say so once; programs that are piped to
 * one another share it.
 * sd_device_leave - instead of close when the program ends, by whatever way: libraries may have gone before, a fault may have
 * left the device dead, so nothing is asked of it. */
int  sd_device_open(struct sd_device **d, const char *text);
void sd_device_close(struct sd_device *d);
void sd_device_leave(struct sd_device *d);
/* "NVIDIA H100 80GB HBM3 (sm_90)": for messages, and with the library versions for the cache's engine key. */
const char *sd_device_name(const struct sd_device *d);
const char *sd_device_engine(const struct sd_device *d);
/* Bytes free now; multiprocessors; 10 * major + minor of the compute capability (0: emulated). */
size_t sd_device_free_bytes(const struct sd_device *d);
int sd_device_multiprocessors(const struct sd_device *d);
int sd_device_capability(const struct sd_device *d);

/* Memory, 256-byte aligned.  Running out ends the program with status 3, naming `what`. */
void *sd_device_alloc(struct sd_device *d, size_t bytes, const char *what);
void  sd_device_free(struct sd_device *d, void *p);
size_t sd_device_allocated(const struct sd_device *d);      /* by this process, for --plan's check */
/* sd_device_alloc_parts - one allocation for many things, each 256-byte aligned and counted as a multiple of that; what a card
 * asked for one by one would round up to 2 MiB each, and take up to a millisecond for.  Sets each part's `at`; the whole is freed
 * by sd_device_free(part[0].at). */
struct sd_device_part { size_t bytes; const char *what; void *at; };
void sd_device_alloc_parts(struct sd_device *d, struct sd_device_part *part, size_t parts);
static inline size_t sd_device_rounded(size_t bytes) { return (bytes + 255) / 256 * 256; }

/* sd_device_write - `from` may be reused when it returns.  sd_device_read - waits for all that was asked before.
 * sd_device_copy, sd_device_fill - on the device.  The last two may be recorded. */
void sd_device_write(struct sd_device *d, void *to, const void *from, size_t bytes);
void sd_device_read(struct sd_device *d, void *to, const void *from, size_t bytes);
void sd_device_copy(struct sd_device *d, void *to, const void *from, size_t bytes);
void sd_device_fill(struct sd_device *d, void *to, int byte, size_t bytes);
/* sd_device_ask - a read of at most SD_ASKED_BYTES that is asked for now and waited for later, by its number; at most SD_ASKED that
 * were not answered.  sd_device_answer - waits for what was asked before that read, not for what was asked since. */
enum { SD_ASKED = 8, SD_ASKED_BYTES = 256 };
/* Of the host, by a card's device: the rings of writes and the answers. */
enum { SD_PINNED_BYTES = (32 << 20) + SD_ASKED * SD_ASKED_BYTES };
int  sd_device_ask(struct sd_device *d, const void *from, size_t bytes);
void sd_device_answer(struct sd_device *d, int number, void *to);
/* sd_device_write_ahead - a write that waits for nothing that was asked before: a batch goes while the step before it is computed.
 * Its memory is there twice, a side each, used in turn; nothing else writes to it.  `from` may be reused when it returns.
 * sd_device_take - what is asked from here on sees all that was written to this side; nothing before it may look.
 * sd_device_release - of a side that was taken: what was asked so far was the last to read it; from here on its bytes are
 * undefined, and later writes to it wait for those readers alone.
 * None of the three is recorded: a recorded step that is to read either side is told by the memory it reads which one. */
enum { SD_SIDES = 2 };
void sd_device_write_ahead(struct sd_device *d, int side, void *to, const void *from, size_t bytes);
void sd_device_take(struct sd_device *d, int side);
void sd_device_release(struct sd_device *d, int side);
/* What the host did so far: bytes written, and how often it waited for all that was asked. */
struct sd_device_counts { uint64_t written, waits; };
struct sd_device_counts sd_device_counts(const struct sd_device *d);
/* sd_device_wait - until all is done.  A fault of any kernel (an illegal address) ends the program here or in
 * sd_device_read with the driver's words. */
void sd_device_wait(struct sd_device *d);

/* Recording: between record and recorded kernels and copies are noted, not run; replay runs them all, with the same
 * arguments, as one launch (a CUDA graph).  sd_device_recorded - NULL with sd_fail where something that was asked for cannot be
 * recorded: then nothing of it was done. */
struct sd_recording;
void sd_device_record(struct sd_device *d);
struct sd_recording *sd_device_recorded(struct sd_device *d);
void sd_device_replay(struct sd_device *d, struct sd_recording *r);
void sd_recording_free(struct sd_recording *r);

/* Timing, for benchmarks.  sd_device_mark - notes, as number `mark` below SD_MARKS, the moment at which all that was asked before is
 * done; it may be recorded, is then noted at each replay, and a recording is not the first to use its number.
 * sd_device_between - seconds from one mark to a later one, which it waits for; -1 with sd_fail where the driver has no answer. */
enum { SD_MARKS = 8192 };
void sd_device_mark(struct sd_device *d, int mark);
double sd_device_between(struct sd_device *d, int first, int last);

/* sd_device_enter - before another thread of the host asks a library for something of this device. */
void sd_device_enter(struct sd_device *d);
/* For kernels and vendor files: the CUDA stream.  sd_device_launched - after each launch: a fault is reported with `what`, a kernel's
 * name or a library's call and its shapes, which lies there until the slots are closed. */
void *sd_device_stream(struct sd_device *d);
/* May the next kernel be launched while what it follows runs (kernels/cuda.h)?  Of a recording, after a kernel; SD_OVERLAP=0: no. */
bool  sd_device_overlaps(const struct sd_device *d);
void  sd_device_launched(struct sd_device *d, const char *what);
/* Scratch of vendor libraries and the like, made once, at least `bytes` (grows only before recording). */
void *sd_device_workspace(struct sd_device *d, size_t bytes);
/* One slot for each vendor file's handles: set once, freed by `close` when the device is closed. */
enum sd_device_slot { SD_SLOT_CUBLAS, SD_SLOT_CUDNN, SD_SLOT_TUNING, SD_SLOTS };
void *sd_device_slot(const struct sd_device *d, enum sd_device_slot slot);
void  sd_device_set_slot(struct sd_device *d, enum sd_device_slot slot, void *value, void (*close)(void *));

#ifdef __cplusplus
}
#endif
#endif
