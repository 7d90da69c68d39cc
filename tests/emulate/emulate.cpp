/* emulate.cpp - runs the blocks of a grid: fibres and barriers (warps: emulate_warp.cpp).  emulate.h says what is caught.
 *
 * A worker is what one OpenMP thread runs blocks with: up to 1024 fibres, each a stack of its own, and one piece of
 * shared memory.  A thread of a block takes a fibre when it is first run and gives it back when it returns; a kernel
 * without barriers runs all its threads on one fibre, without a switch.  A thread that must wait switches to the next
 * that need not; the last to arrive does what all came for. */
#include "emulate_internal.h"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#endif
#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace sd {
namespace emulate {

enum { GUARD = 512, PAGE = 4096 };
enum { MAX_SHARED = 99 << 10 };         /* of sm_86, sm_89 and sm_120: the least of the cards that we run on */
#ifdef WITH_ASAN
static const size_t STACK = 512 << 10;
#else
static const size_t STACK = 128 << 10;
#endif
static const unsigned char GUARD_BYTE = 0xa5;

const char *const reasons[] = {
    "nothing", "__syncthreads", "__syncwarp", "a shuffle", "a vote", "mma", "ldmatrix"
};

__thread struct place here;
const struct moment *moment;
void (*watch)(const void *p, size_t bytes, bool write);
__thread struct worker *mine;
static std::vector<struct worker *> workers;        /* reachable, for leak checkers and in_stack_guard */

static uint64_t
mix(uint64_t x)
{
    x = (x ^ x >> 31) * 0x7fb5d329728ea185u;
    x = (x ^ x >> 27) * 0x81dadef4bc2dd44du;
    return x ^ x >> 33;
}

bool
whereabouts(char *text, size_t room)
{
    if (!mine || !mine->launch)
        return false;
    snprintf(text, room, "kernel %s, block %u %u %u, thread %u %u %u", mine->launch->kernel, here.block.x, here.block.y, here.block.z,
             here.thread.x, here.thread.y, here.thread.z);
    return true;
}

void
wrong(const char *format, ...)
{
    char where[512] = "emulate", text[512];
    va_list ap;

    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    whereabouts(where, sizeof where);
    sd_bug(where, "%s", text);
}

/* -- fibres -------------------------------------------------------------------------------------------------------- */

#ifdef __x86_64__
extern "C" void sd_emulate_switch(void **from, void *to);
__asm__(".text\n"
        ".p2align 4\n"
        ".globl sd_emulate_switch\n"
        ".hidden sd_emulate_switch\n"
        ".type sd_emulate_switch, @function\n"
        "sd_emulate_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size sd_emulate_switch, .-sd_emulate_switch\n");
#endif

static void fibre_main(void);

/* The tops of the stacks lie at different places of the caches' sets. */
static inline size_t
stack_top(const struct worker *w, const struct fibre *f)
{
    return STACK - (size_t)(f - w->fibres) % 61 * 320;
}

static void
fibre_prepare(struct worker *w, struct fibre *f)
{
    size_t top = stack_top(w, f);

    f->stack = w->stacks + (size_t)(f - w->fibres) * STACK;
    if (mprotect(f->stack, PAGE, PROT_NONE))
        sd_bug("emulate", "no guard page for a stack");
#ifdef __x86_64__
    void **sp = (void **)(f->stack + top - 128);        /* seven words are popped: a multiple of 16 here is what a call leaves */

    memset(sp, 0, 56);
    sp[6] = (void *)fibre_main;
    f->sp = sp;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack + PAGE;
    f->context.uc_stack.ss_size = top - PAGE;
    makecontext(&f->context, fibre_main, 0);
#endif
}

static inline void
fibre_switch(struct fibre *from, struct fibre *to)
{
#ifdef WITH_ASAN
    const struct worker *w = mine;

    __sanitizer_start_switch_fiber(&from->asan, to->stack, to == &w->host ? w->host_bytes : STACK);
#endif
#ifdef __x86_64__
    sd_emulate_switch(&from->sp, to->sp);
#else
    swapcontext(&from->context, &to->context);
#endif
#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(from->asan, NULL, NULL);
#endif
}

static inline void
set_thread(struct worker *w, unsigned t)
{
    unsigned x = here.block_dim.x, y = here.block_dim.y;

    w->now = w->moment.thread = t;
    if (y == 1 && here.block_dim.z == 1)
        here.thread = { t, 0, 0 };
    else
        here.thread = { t % x, t / x % y, t / x / y };
}

/* -- who is next --------------------------------------------------------------------------------------------------- */

static inline unsigned
pick_bit(uint32_t set, bool last)
{
    return last ? 31 - (unsigned)__builtin_clz(set) : (unsigned)__builtin_ctz(set);
}

static void
new_phase(struct worker *w)
{
    w->order = mix(w->order + 1);
    w->moment.phase++;
    for (unsigned i = 0; i < w->warps; i++)
        w->ready[i] = lanes_of(w, i);
    w->ready_warps = w->warps == 32 ? 0xffffffffu : (1u << w->warps) - 1;
}

static void SD_NORETURN
stuck(struct worker *w)
{
    unsigned a = 0, b;

    while (w->lanes[a].returned)
        a++;
    for (b = 0; b < w->threads; b++)
        if (w->lanes[b].returned || w->lanes[b].reason != w->lanes[a].reason)
            break;
    set_thread(w, a);
    if (b == w->threads)            /* all wait at warp collectives, of other masks than arrived */
        wrong("waits at %s (mask %08x), as all do", reasons[w->lanes[a].reason], w->lanes[a].mask);
    wrong("waits at %s, which thread %u never reaches: it %s%s", reasons[w->lanes[a].reason], b,
          w->lanes[b].returned ? "has returned" : "waits at ", w->lanes[b].returned ? "" : reasons[w->lanes[b].reason]);
}

/* The thread to run now, or -1 when all have returned.  Stays in a warp as long as somebody of it can run. */
static inline int
pick(struct worker *w)
{
    for (;;) {
        unsigned warp = w->now / LANES;
        uint32_t *ready = &w->ready[warp];

        if (!*ready) {
            w->ready_warps &= ~(1u << warp);
            if (!w->ready_warps) {
                if (w->returned == w->threads)
                    return -1;
                if (w->waiting_threads != w->threads)
                    stuck(w);
                w->waiting_threads = 0;
                w->barrier_result = w->true_threads;
                w->true_threads = 0;
                new_phase(w);
            }
            warp = pick_bit(w->ready_warps, w->order >> 40 & 1);
            ready = &w->ready[warp];
        }
        if (*ready) {
            unsigned l = pick_bit(*ready, w->order >> (warp & 31) & 1);

            *ready &= ~(1u << l);
            return (int)(warp * LANES + l);
        }
        w->now = warp * LANES;
    }
}

static struct fibre *
fibre_for(struct worker *w, struct lane *l)
{
    if (!l->started) {
        if (!w->idle_count) {
            fibre_prepare(w, &w->fibres[w->fibre_count]);
            w->idle[w->idle_count++] = &w->fibres[w->fibre_count++];
        }
        l->fibre = w->idle[--w->idle_count];
    }
    return l->fibre;
}

/* -- this thread waits --------------------------------------------------------------------------------------------- */

void
wait_here(struct worker *w)
{
    unsigned me = w->now;
    struct fibre *mine_now = w->lanes[me].fibre;
    int next = pick(w);

    if ((unsigned)next != me) {
        struct lane *l = &w->lanes[next];
        struct fibre *f = fibre_for(w, l);

        set_thread(w, (unsigned)next);
        fibre_switch(mine_now, f);
    }
    set_thread(w, me);
    w->lanes[me].reason = NOTHING;
}

static void
fibre_main(void)
{
    struct worker *w = mine;
    struct fibre *self = NULL;

#ifdef WITH_ASAN
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
    for (;;) {
        struct lane *l = &w->lanes[w->now];
        int next;

        l->started = true;
        self = l->fibre;
        (*w->body)();
        if (!l->begun)
            wrong("returns without SD_BEGIN(): on a card it may run before what it reads is written");
        if (!l->copies.empty())
            wrong("returns while %zu asynchronous copies are under way", l->copies.size());
        l->returned = true;
        w->returned++;
        next = pick(w);
        if (next >= 0 && !w->lanes[next].started) {
            set_thread(w, (unsigned)next);
            w->lanes[next].fibre = self;
            continue;
        }
        w->idle[w->idle_count++] = self;
        if (next >= 0)
            set_thread(w, (unsigned)next);
        fibre_switch(self, next < 0 ? &w->host : w->lanes[next].fibre);
    }
}

/* -- blocks and grids ---------------------------------------------------------------------------------------------- */

static unsigned char *
map(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (p == MAP_FAILED)
        sd_die("emulate", "no memory for stacks");
    return static_cast<unsigned char *>(p);
}

static struct worker *
worker_of_this_thread(void)
{
    if (!mine) {
        stack_t alternate = {};

        mine = new struct worker();
        mine->stacks = map((size_t)MAX_THREADS * STACK);
        mine->room = map(MAX_SHARED + 2 * PAGE);
        mine->shared = mine->room + PAGE + 128;         /* aligned as __align__(128) promises and no better */
        pthread_attr_t attributes;
        void *bottom = NULL;

        if (!pthread_getattr_np(pthread_self(), &attributes)) {
            pthread_attr_getstack(&attributes, &bottom, &mine->host_bytes);
            pthread_attr_destroy(&attributes);
        }
        mine->host.stack = static_cast<unsigned char *>(bottom);
        if (!sigaltstack(NULL, &alternate) && alternate.ss_flags & SS_DISABLE) {    /* a full stack cannot tell of itself */
            alternate = {};
            alternate.ss_size = 64 << 10;
            alternate.ss_sp = map(alternate.ss_size);
            sigaltstack(&alternate, NULL);
        }
#pragma omp critical(sd_emulate)
        workers.push_back(mine);
    }
    return mine;
}

bool
in_stack_guard(const void *p)
{
    for (const struct worker *w : workers)
        if ((const unsigned char *)p >= w->stacks && (const unsigned char *)p < w->stacks + (size_t)MAX_THREADS * STACK)
            return ((const unsigned char *)p - w->stacks) % STACK < PAGE;
    return false;
}

static void
check_shared_guards(const struct worker *w)
{
    const unsigned char *before = w->shared - GUARD, *after = w->shared + w->shared_bytes;

    for (int i = 0; i < GUARD; i++) {
        if (before[GUARD - 1 - i] != GUARD_BYTE)
            wrong("some thread of this block wrote %d bytes before shared memory", i + 1);
        if (after[i] != GUARD_BYTE)
            wrong("some thread of this block wrote %d bytes behind the end of shared memory (%zu bytes)", i, w->shared_bytes);
    }
}

static void
run_block(struct worker *w, int64_t index)
{
    const struct launch *l = w->launch;
    int64_t x = l->grid.x, y = l->grid.y;

    here.block = { (unsigned)(index % x), (unsigned)(index / x % y), (unsigned)(index / x / y) };
    for (unsigned i = 0; i < w->threads; i++) {
        struct lane *a = &w->lanes[i];

        a->started = a->begun = a->returned = false;
        a->reason = NOTHING;
        a->group = 0;
        a->copies.clear();
    }
    if (w->shared_bytes)
        memset(w->shared, POISON, w->shared_bytes);
    w->returned = w->waiting_threads = w->true_threads = 0;
    memset(w->waiting, 0, sizeof w->waiting);
    memset(w->mixed, 0, sizeof w->mixed);
    w->order = mix(w->seed + (uint64_t)index);
    w->moment.run++;
    w->moment.phase = 0;
    memset(w->moment.meetings, 0, sizeof w->moment.meetings);
    new_phase(w);
    set_thread(w, 0);
    int first = pick(w);
    struct fibre *f = fibre_for(w, &w->lanes[first]);

    set_thread(w, (unsigned)first);
    fibre_switch(&w->host, f);
    set_thread(w, 0);
    ASAN_UNPOISON_MEMORY_REGION(w->room, MAX_SHARED + 2 * PAGE);
    check_shared_guards(w);
    ASAN_POISON_MEMORY_REGION(w->room, (size_t)(w->shared - w->room));
    ASAN_POISON_MEMORY_REGION(w->shared + w->shared_bytes, (size_t)(w->room + MAX_SHARED + 2 * PAGE - w->shared) - w->shared_bytes);
}

void
check_launch(const launch &l)
{
    const struct extent &g = l.grid, &b = l.block;

    if (g.x < 1 || g.y < 1 || g.z < 1)
        sd_bug(l.kernel, "grid %lld %lld %lld: an empty tensor launches nothing", (long long)g.x, (long long)g.y, (long long)g.z);
    if (g.x > 0x7fffffff || g.y > 65535 || g.z > 65535)
        sd_bug(l.kernel, "grid %lld %lld %lld: at most 2147483647 65535 65535", (long long)g.x, (long long)g.y, (long long)g.z);
    if (b.x < 1 || b.y < 1 || b.z < 1 || b.x > MAX_THREADS || b.y > MAX_THREADS || b.z > 64 || b.x * b.y * b.z > MAX_THREADS)
        sd_bug(l.kernel, "block %lld %lld %lld: 1 to %d threads", (long long)b.x, (long long)b.y, (long long)b.z, MAX_THREADS);
    if (l.shared < 0 || l.shared > MAX_SHARED)
        sd_bug(l.kernel, "%lld bytes of shared memory: at most %d", (long long)l.shared, MAX_SHARED);
}

void
run_blocks(const launch &l, const std::function<void()> &body)
{
    static uint64_t launches;
    static const uint64_t first = getenv("SD_EMULATE_SEED") ? strtoull(getenv("SD_EMULATE_SEED"), NULL, 10) : 0;
    uint64_t seed = mix(mix(first) + ++launches);
    int64_t blocks, threads;

    blocks = l.grid.x * l.grid.y * l.grid.z;
    threads = l.block.x * l.block.y * l.block.z;
#pragma omp parallel if (blocks > 1 && blocks * threads > 2048 && !watch)
    {
        struct worker *w = worker_of_this_thread();

        w->launch = &l;
        w->body = &body;
        w->threads = (unsigned)threads;
        w->warps = (unsigned)(threads + LANES - 1) / LANES;
        w->shared_bytes = (size_t)l.shared;
        w->seed = seed;
        w->moment.launch = w->moment.run;
        w->moment.shared = w->shared;
        w->moment.shared_bytes = w->shared_bytes;
        if (watch)
            moment = &w->moment;
        here.block_dim = { (unsigned)l.block.x, (unsigned)l.block.y, (unsigned)l.block.z };
        here.grid_dim = { (unsigned)l.grid.x, (unsigned)l.grid.y, (unsigned)l.grid.z };
        ASAN_UNPOISON_MEMORY_REGION(w->room, MAX_SHARED + 2 * PAGE);
        memset(w->shared - GUARD, GUARD_BYTE, GUARD);
        memset(w->shared + w->shared_bytes, GUARD_BYTE, GUARD);
        ASAN_POISON_MEMORY_REGION(w->room, (size_t)(w->shared - w->room));
        ASAN_POISON_MEMORY_REGION(w->shared + w->shared_bytes,
                                  (size_t)(w->room + MAX_SHARED + 2 * PAGE - w->shared) - w->shared_bytes);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < blocks; i++)
            run_block(w, seed & 1 ? blocks - 1 - i : i);
        w->launch = NULL;
        if (watch)
            moment = NULL;
    }
}

void
begins(void)
{
    struct worker *w = mine;

    if (!w || !w->launch)
        wrong("SD_BEGIN() outside a kernel");
    w->lanes[w->now].begun = true;
}

void *
shared_memory(size_t bytes, size_t alignment)
{
    struct worker *w = mine;

    if (!w || !w->launch)
        wrong("shared memory outside a kernel");
    if (!w->lanes[w->now].begun)
        wrong("SD_BEGIN() is not the first statement");
    if (bytes > w->shared_bytes)
        wrong("shared memory of %zu bytes, launched with %zu", bytes, w->shared_bytes);
    if (alignment > 128)
        wrong("shared memory is aligned to 128 bytes, wanted are %zu", alignment);
    return w->shared;
}

/* -- barriers ------------------------------------------------------------------------------------------------------ */

int
barrier(bool predicate)
{
    struct worker *w = mine;

    w->lanes[w->now].reason = BARRIER;
    w->waiting_threads++;
    w->true_threads += predicate;
    wait_here(w);
    return (int)w->barrier_result;
}

}   /* namespace emulate */
}   /* namespace sd */
