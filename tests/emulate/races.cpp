/* races.cpp - which threads touch what, and what lies between: data races of kernels.  Linked only where kernels were
 * compiled with -fsanitize=thread (`make RACES=1 emulate`), whose calls before every read and write are answered here
 * instead of by its own library.
 *
 * Two threads may touch the same bytes, one of them writing, only in one block and with a __syncthreads() between, or
 * in one warp with a __syncwarp().  Shuffles, mma and ldmatrix order no memory.  Looked at by twos of bytes; of the
 * readers since the last write two are remembered, of different blocks, warps or threads where there are such. */
#include "emulate.h"

#include <sys/mman.h>

#ifndef __SANITIZE_THREAD__

using namespace sd::emulate;

namespace {

enum { GRAIN = 2, MOST_SHARED = 256 << 10, WARP_THREADS = 32 };

struct visit { uint32_t run, phase; uint16_t thread, meeting; };
struct cell { struct visit write, read[2]; };

struct cell *shared_cells, *device_cells;
const unsigned char *device_base, *device_limit;

struct cell *
map_cells(size_t bytes)
{
    void *p = mmap(NULL, bytes / GRAIN * sizeof(struct cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        sd_die("races", "no address space");
    return static_cast<struct cell *>(p);
}

/* 3: another block of this launch, which shares device memory alone; 2, 1: not ordered with us, of another warp or of
 * ours; 0: nothing to fear */
int
distance(const struct visit &v, const struct moment &m, bool shared)
{
    if (v.run <= (shared ? m.run - 1 : m.launch) || (v.run == m.run && v.thread == m.thread))
        return 0;
    if (v.run != m.run)
        return 3;
    if (v.phase != m.phase)
        return 0;
    if (v.thread / WARP_THREADS != m.thread / WARP_THREADS)
        return 2;
    return v.meeting == (uint16_t)m.meetings[m.thread / WARP_THREADS] ? 1 : 0;
}

void
race(const struct visit &v, const struct moment &m, const unsigned char *p, bool shared, const char *before, const char *now)
{
    char where[64];

    if (shared)
        snprintf(where, sizeof where, "byte %td of shared memory", p - m.shared);
    else
        snprintf(where, sizeof where, "device memory at %p", (const void *)p);
    wrong("race: %s %s, which thread %u of %s block %s, and nothing orders the two", now, where, v.thread,
          v.run == m.run ? "this" : "another", before);
}

void
look(const void *at, size_t bytes, bool write)
{
    const unsigned char *p = static_cast<const unsigned char *>(at), *base;
    const struct moment *m = moment;
    struct cell *cells;
    struct visit me;
    bool shared;

    if (!m)
        return;
    shared = p >= m->shared && p < m->shared + m->shared_bytes;
    if (shared) {
        base = m->shared;
        if (!shared_cells)
            shared_cells = map_cells(MOST_SHARED);
        cells = shared_cells;
    } else {
        if (!device_cells && device_range(&device_base, &device_limit))
            device_cells = map_cells((size_t)(device_limit - device_base));
        if (p < device_base || p >= device_limit)
            return;
        base = device_base;
        cells = device_cells;
    }
    me = { m->run, m->phase, (uint16_t)m->thread, (uint16_t)m->meetings[m->thread / WARP_THREADS] };
    for (size_t i = (size_t)(p - base) / GRAIN; i <= (size_t)(p - base + bytes - 1) / GRAIN; i++) {
        struct cell &c = cells[i];

        if (distance(c.write, *m, shared))
            race(c.write, *m, base + i * GRAIN, shared, "wrote", write ? "writes" : "reads");
        if (write) {
            for (const struct visit &v : c.read)
                if (distance(v, *m, shared))
                    race(v, *m, base + i * GRAIN, shared, "read", "writes");
            c.write = me;
        } else {
            if (distance(c.read[0], *m, shared) > distance(c.read[1], *m, shared))
                c.read[1] = c.read[0];
            c.read[0] = me;
        }
    }
}

}   /* namespace */

extern "C" {

void __tsan_init(void);
void __tsan_func_entry(void *);
void __tsan_func_exit(void);
void __tsan_vptr_update(void **, void *);
void __tsan_read_range(void *p, size_t n);
void __tsan_write_range(void *p, size_t n);

void __tsan_init(void) { watch = look; }
void __tsan_func_entry(void *) {}
void __tsan_func_exit(void) {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_read_range(void *p, size_t n) { look(p, n, false); }
void __tsan_write_range(void *p, size_t n) { look(p, n, true); }
#define SD_ACCESS(n)                                                                                                 \
    void __tsan_read##n(void *p);                                                                                    \
    void __tsan_write##n(void *p);                                                                                   \
    void __tsan_unaligned_read##n(void *p);                                                                          \
    void __tsan_unaligned_write##n(void *p);                                                                         \
    void __tsan_read##n(void *p) { look(p, n, false); }                                                              \
    void __tsan_write##n(void *p) { look(p, n, true); }                                                              \
    void __tsan_unaligned_read##n(void *p) { look(p, n, false); }                                                    \
    void __tsan_unaligned_write##n(void *p) { look(p, n, true); }
SD_ACCESS(1)
SD_ACCESS(2)
SD_ACCESS(4)
SD_ACCESS(8)
SD_ACCESS(16)

}
#endif
