/* emulate_internal.h - the block that a worker runs: emulate.cpp has its threads, emulate_warp.cpp what they do in warps. */
#ifndef EMULATE_INTERNAL_H
#define EMULATE_INTERNAL_H

#include "emulate.h"

#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace sd {
namespace emulate {

enum { LANES = 32, MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / LANES };
static const unsigned char POISON = 0xff;

/* what a thread waits for */
enum reason { NOTHING, BARRIER, MEET, SHUFFLE, BALLOT, PRODUCT, MATRICES };
extern const char *const reasons[];         /* their names */

struct copy { unsigned char *shared; const unsigned char *global; bool inside; unsigned group; };

struct fibre {
#ifdef __x86_64__
    void *sp;
#else
    ucontext_t context;
#endif
    unsigned char *stack;
    void *asan;                         /* its fake stack while another runs */
    bool begun;
};

struct lane {                           /* one thread of the block that runs */
    enum reason reason;
    bool started, begun, returned;
    unsigned mask;
    struct fibre *fibre;
    uint64_t value, result;             /* shuffle, ballot */
    int from;
    const void *a, *b;                  /* product: fragments; matrices: the row's address */
    void *out;
    unsigned group;                     /* asynchronous copies */
    std::vector<struct copy> copies;
};

struct worker {
    struct fibre fibres[MAX_THREADS], host, *idle[MAX_THREADS];
    struct lane lanes[MAX_THREADS];
    unsigned char *stacks, *room, *shared;
    size_t shared_bytes;
    const struct launch *launch;
    const std::function<void()> *body;
    unsigned fibre_count, idle_count, threads, warps, now, waiting_threads, true_threads, barrier_result, returned;
    bool mixed[MAX_WARPS];
    uint32_t ready[MAX_WARPS], waiting[MAX_WARPS], ready_warps;
    uint64_t order;                     /* of this phase */
    uint64_t seed;
    size_t host_bytes;                  /* of the OpenMP thread's own stack, for AddressSanitizer */
    struct moment moment;
};

extern __thread struct worker *mine;

static inline uint32_t
lanes_of(const struct worker *w, unsigned warp)
{
    unsigned left = w->threads - warp * LANES;

    return left >= LANES ? 0xffffffffu : (1u << left) - 1;
}

/* This thread waits, for lanes[now].reason; others run until it need not. */
void wait_here(struct worker *w);

}   /* namespace emulate */
}   /* namespace sd */

#endif
