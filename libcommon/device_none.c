/* device_none.c - device.h in a build without nvcc: every computation is the CPU's. */
#include "device.h"

#include <string.h>

#include "diag.h"

#define NONE sd_bug("device", "%s: built without CUDA", __func__)

int
sd_device_open(struct sd_device **d, const char *text)
{
    *d = NULL;
    if (strcmp(text, "auto") == 0 || strcmp(text, "cpu") == 0)
        return 0;
    return sd_fail("--device %s: built without CUDA", text);
}

void
sd_device_close(struct sd_device *d)
{
    if (d)
        NONE;
}

void
sd_device_leave(struct sd_device *d)
{
    sd_device_close(d);
}

const char *sd_device_name(const struct sd_device *d) { (void)d; NONE; }
const char *sd_device_engine(const struct sd_device *d) { (void)d; NONE; }
size_t sd_device_free_bytes(const struct sd_device *d) { (void)d; NONE; }
int sd_device_multiprocessors(const struct sd_device *d) { (void)d; NONE; }
int sd_device_capability(const struct sd_device *d) { (void)d; NONE; }

void *sd_device_alloc(struct sd_device *d, size_t bytes, const char *what) { (void)d, (void)bytes, (void)what; NONE; }
void sd_device_free(struct sd_device *d, void *p) { (void)d, (void)p; NONE; }
size_t sd_device_allocated(const struct sd_device *d) { (void)d; NONE; }
void sd_device_alloc_parts(struct sd_device *d, struct sd_device_part *part, size_t parts) { (void)d, (void)part, (void)parts; NONE; }

void
sd_device_write(struct sd_device *d, void *to, const void *from, size_t bytes)
{
    (void)d, (void)to, (void)from, (void)bytes;
    NONE;
}

void
sd_device_read(struct sd_device *d, void *to, const void *from, size_t bytes)
{
    (void)d, (void)to, (void)from, (void)bytes;
    NONE;
}

void
sd_device_copy(struct sd_device *d, void *to, const void *from, size_t bytes)
{
    (void)d, (void)to, (void)from, (void)bytes;
    NONE;
}

void
sd_device_write_ahead(struct sd_device *d, int side, void *to, const void *from, size_t bytes)
{
    (void)d, (void)side, (void)to, (void)from, (void)bytes;
    NONE;
}

void sd_device_take(struct sd_device *d, int side) { (void)d, (void)side; NONE; }
void sd_device_release(struct sd_device *d, int side) { (void)d, (void)side; NONE; }
void sd_device_fill(struct sd_device *d, void *to, int byte, size_t bytes) { (void)d, (void)to, (void)byte, (void)bytes; NONE; }
void sd_device_wait(struct sd_device *d) { (void)d; NONE; }
int sd_device_ask(struct sd_device *d, const void *from, size_t bytes) { (void)d, (void)from, (void)bytes; NONE; }
void sd_device_answer(struct sd_device *d, int number, void *to) { (void)d, (void)number, (void)to; NONE; }
struct sd_device_counts sd_device_counts(const struct sd_device *d) { (void)d; NONE; }

void sd_device_record(struct sd_device *d) { (void)d; NONE; }
struct sd_recording *sd_device_recorded(struct sd_device *d) { (void)d; NONE; }
void sd_device_replay(struct sd_device *d, struct sd_recording *r) { (void)d, (void)r; NONE; }

void
sd_recording_free(struct sd_recording *r)
{
    if (r)
        NONE;
}

void sd_device_mark(struct sd_device *d, int mark) { (void)d, (void)mark; NONE; }
double sd_device_between(struct sd_device *d, int first, int last) { (void)d, (void)first, (void)last; NONE; }

void sd_device_enter(struct sd_device *d) { (void)d; NONE; }
void *sd_device_stream(struct sd_device *d) { (void)d; NONE; }
bool sd_device_overlaps(const struct sd_device *d) { (void)d; NONE; }
void sd_device_launched(struct sd_device *d, const char *what) { (void)d, (void)what; NONE; }
void *sd_device_workspace(struct sd_device *d, size_t bytes) { (void)d, (void)bytes; NONE; }
void *sd_device_slot(const struct sd_device *d, enum sd_device_slot slot) { (void)d, (void)slot; NONE; }

void
sd_device_set_slot(struct sd_device *d, enum sd_device_slot slot, void *value, void (*close)(void *))
{
    (void)d, (void)slot, (void)value, (void)close;
    NONE;
}
