/* device_cuda_copy.cu - device.h's memory, and what is copied there and back.
 *
 * One stream does everything but the writes that go ahead, which have a stream of their own.  Each of the two writes through a
 * ring of pinned sectors: many small writes share a sector, whose event is recorded when the next one is begun, so that the host
 * waits only when it is a whole ring ahead.  Where pinned memory is refused the driver copies from the caller's before it returns.
 * Answers have a pinned slot and an event each. */
#include "device_cuda.h"

#include <stdlib.h>
#include <string.h>

/* -- opening -------------------------------------------------------------------------------------------------------- */

/* Memory that copies go to and from by themselves, or NULL; that is said once. */
static unsigned char *
pinned(struct sd_device *d, size_t bytes)
{
    void *p = NULL;
    cudaError_t e = cudaHostAlloc(&p, bytes, cudaHostAllocDefault);

    if (e == cudaSuccess)
        return (unsigned char *)p;
    (void)cudaGetLastError();
    sd_note(0, "%s: no pinned memory (%s): copies wait", d->name, cudaGetErrorName(e));
    return NULL;
}

static cudaEvent_t
event(struct sd_device *d)
{
    cudaEvent_t e;

    CHECK(d, cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    return e;
}

static cudaStream_t
open_ring(struct sd_device *d, struct ring *r, int first, int sectors)
{
    CHECK(d, cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking));
    r->at = d->pinned ? d->pinned + (size_t)first * SECTOR_BYTES : NULL;
    r->sectors = sectors;
    for (int i = 0; i < sectors; i++)
        r->copied[i] = event(d);
    return r->stream;
}

static void
close_ring(struct sd_device *d, struct ring *r)
{
    for (int i = 0; i < r->sectors; i++)
        CHECK(d, cudaEventDestroy(r->copied[i]));
    CHECK(d, cudaStreamDestroy(r->stream));
}

void
sd_cuda_copies_open(struct sd_device *d)
{
    d->pinned = pinned(d, (size_t)(SECTORS + SECTORS_AHEAD) * SECTOR_BYTES);
    if (d->pinned)
        d->answers = pinned(d, SD_ASKED * SD_ASKED_BYTES);
    d->answers_pinned = d->answers != NULL;
    if (!d->answers && !(d->answers = (unsigned char *)malloc(SD_ASKED * SD_ASKED_BYTES)))
        sd_die("memory", "no room for a device");
    d->stream = open_ring(d, &d->ring, 0, SECTORS);
    open_ring(d, &d->ahead, SECTORS, SECTORS_AHEAD);
    for (int i = 0; i < SD_SIDES; i++)
        d->side[i] = { event(d), event(d), false, false };
    for (int i = 0; i < SD_ASKED; i++)
        d->answered[i] = event(d);
}

void
sd_cuda_copies_wait(struct sd_device *d)
{
    CHECK(d, cudaStreamSynchronize(d->stream));
    CHECK(d, cudaStreamSynchronize(d->ahead.stream));
}

void
sd_cuda_copies_close(struct sd_device *d)
{
    for (int i = 0; i < SD_ASKED; i++)
        CHECK(d, cudaEventDestroy(d->answered[i]));
    for (int i = 0; i < SD_SIDES; i++) {
        CHECK(d, cudaEventDestroy(d->side[i].written));
        CHECK(d, cudaEventDestroy(d->side[i].released));
    }
    close_ring(d, &d->ahead);
    close_ring(d, &d->ring);
    if (d->pinned)
        CHECK(d, cudaFreeHost(d->pinned));
    if (d->answers_pinned)
        CHECK(d, cudaFreeHost(d->answers));
    else
        free(d->answers);
}

/* -- memory --------------------------------------------------------------------------------------------------------- */

extern "C" void *
sd_device_alloc(struct sd_device *d, size_t bytes, const char *what)
{
    void *p = NULL;
    cudaError_t e;

    sd_cuda_not_recording(d, "memory was asked for");
    if (!bytes)
        bytes = 1;
    if (d->block_count == d->block_room) {
        d->block_room = d->block_room ? 2 * d->block_room : 256;
        d->blocks = (struct block *)realloc(d->blocks, d->block_room * sizeof *d->blocks);
        if (!d->blocks)
            sd_die("memory", "no room for %zu blocks", d->block_room);
    }
    e = cudaMalloc(&p, bytes);
    if (e == cudaErrorMemoryAllocation) {
        size_t available = 0, total = 0;

        (void)cudaGetLastError();
        CHECK(d, cudaMemGetInfo(&available, &total));
        sd_die(d->name, "out of memory: %s: %.3f GiB, free %.3f of %.3f GiB, held by this process %.3f GiB", what,
               (double)bytes / (1 << 30), (double)available / (1 << 30), (double)total / (1 << 30), (double)d->allocated / (1 << 30));
    }
    sd_cuda_check(d, e, "cudaMalloc");
    d->blocks[d->block_count].at = p;
    d->blocks[d->block_count++].bytes = bytes;
    d->allocated += bytes;
    return p;
}

extern "C" void
sd_device_alloc_parts(struct sd_device *d, struct sd_device_part *part, size_t parts)
{
    size_t bytes = 0;
    char *at;

    for (size_t i = 0; i < parts; i++)
        bytes += sd_device_rounded(part[i].bytes);
    at = (char *)sd_device_alloc(d, bytes, part[0].what);
    for (size_t i = 0; i < parts; i++) {
        part[i].at = at;
        at += sd_device_rounded(part[i].bytes);
    }
}

extern "C" void
sd_device_free(struct sd_device *d, void *p)
{
    if (!p)
        return;
    sd_cuda_not_recording(d, "memory was freed");
    for (size_t i = d->block_count; i--; )
        if (d->blocks[i].at == p) {
            d->allocated -= d->blocks[i].bytes;
            d->blocks[i] = d->blocks[--d->block_count];
            sd_cuda_copies_wait(d);
            CHECK(d, cudaFree(p));
            return;
        }
    sd_bug("device", "memory was freed that is not the device's");
}

extern "C" size_t
sd_device_allocated(const struct sd_device *d)
{
    return d->allocated;
}

/* -- writes --------------------------------------------------------------------------------------------------------- */

/* `from` has been taken when this returns. */
static void
send(struct sd_device *d, struct ring *r, void *to, const void *from, size_t bytes)
{
    unsigned char *t = (unsigned char *)to;
    const unsigned char *f = (const unsigned char *)from;

    d->counts.written += bytes;
    if (!r->at && bytes) {
        CHECK(d, cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, r->stream));
        return;
    }
    while (bytes) {
        size_t n = SECTOR_BYTES - r->filled;
        unsigned char *sector;

        if (!n) {
            CHECK(d, cudaEventRecord(r->copied[r->sector], r->stream));
            r->sector = (r->sector + 1) % r->sectors;
            r->filled = 0;
            CHECK(d, cudaEventSynchronize(r->copied[r->sector]));      /* one never recorded is done */
            continue;
        }
        if (n > bytes)
            n = bytes;
        sector = r->at + (size_t)r->sector * SECTOR_BYTES + r->filled;
        memcpy(sector, f, n);
        CHECK(d, cudaMemcpyAsync(t, sector, n, cudaMemcpyHostToDevice, r->stream));
        r->filled += (n + 63) / 64 * 64;        /* SECTOR_BYTES is a multiple */
        t += n;
        f += n;
        bytes -= n;
    }
}

extern "C" void
sd_device_write(struct sd_device *d, void *to, const void *from, size_t bytes)
{
    sd_cuda_not_recording(d, "a write");
    send(d, &d->ring, to, from, bytes);
}

extern "C" void
sd_device_write_ahead(struct sd_device *d, int side, void *to, const void *from, size_t bytes)
{
    struct side *s = &d->side[side];

    sd_cuda_not_recording(d, "a write");
    if (s->taken)
        sd_bug("device", "side %d is written before it is released", side);
    if (s->wait)                /* not when it was released: the other side's writes need not wait for that */
        CHECK(d, cudaStreamWaitEvent(d->ahead.stream, s->released, 0));
    s->wait = false;
    send(d, &d->ahead, to, from, bytes);
}

extern "C" void
sd_device_take(struct sd_device *d, int side)
{
    struct side *s = &d->side[side];

    sd_cuda_not_recording(d, "a side is taken");
    CHECK(d, cudaEventRecord(s->written, d->ahead.stream));
    CHECK(d, cudaStreamWaitEvent(d->stream, s->written, 0));
    s->taken = true;
}

extern "C" void
sd_device_release(struct sd_device *d, int side)
{
    struct side *s = &d->side[side];

    sd_cuda_not_recording(d, "a side is released");
    if (!s->taken)
        sd_bug("device", "side %d is released, and was not taken", side);
    CHECK(d, cudaEventRecord(s->released, d->stream));
    s->taken = false;
    s->wait = true;
}

/* -- reads, copies -------------------------------------------------------------------------------------------------- */

extern "C" void
sd_device_read(struct sd_device *d, void *to, const void *from, size_t bytes)
{
    sd_cuda_not_recording(d, "a read");
    d->counts.waits++;
    if (bytes)
        CHECK(d, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, d->stream));
    CHECK(d, cudaStreamSynchronize(d->stream));
}

extern "C" void
sd_device_copy(struct sd_device *d, void *to, const void *from, size_t bytes)
{
    if (bytes)
        CHECK(d, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, d->stream));
}

extern "C" void
sd_device_fill(struct sd_device *d, void *to, int byte, size_t bytes)
{
    if (bytes)
        CHECK(d, cudaMemsetAsync(to, byte, bytes, d->stream));
}

extern "C" void
sd_device_wait(struct sd_device *d)
{
    sd_cuda_not_recording(d, "a wait");
    d->counts.waits++;
    CHECK(d, cudaStreamSynchronize(d->stream));
}

extern "C" int
sd_device_ask(struct sd_device *d, const void *from, size_t bytes)
{
    int i = 0;

    sd_cuda_not_recording(d, "a read");
    while (i < SD_ASKED && d->asked[i])
        i++;
    if (i == SD_ASKED || !bytes || bytes > SD_ASKED_BYTES)
        sd_bug("device", "%zu bytes asked for, %d of %d places are taken", bytes, i, SD_ASKED);
    CHECK(d, cudaMemcpyAsync(d->answers + (size_t)i * SD_ASKED_BYTES, from, bytes, cudaMemcpyDeviceToHost, d->stream));
    CHECK(d, cudaEventRecord(d->answered[i], d->stream));
    d->asked[i] = bytes;
    return i;
}

extern "C" void
sd_device_answer(struct sd_device *d, int number, void *to)
{
    if (number < 0 || number >= SD_ASKED || !d->asked[number])
        sd_bug("device", "answer %d was not asked for", number);
    CHECK(d, cudaEventSynchronize(d->answered[number]));
    memcpy(to, d->answers + (size_t)number * SD_ASKED_BYTES, d->asked[number]);
    d->asked[number] = 0;
}

extern "C" struct sd_device_counts
sd_device_counts(const struct sd_device *d)
{
    return d->counts;
}
