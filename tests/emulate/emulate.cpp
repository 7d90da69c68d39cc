/* emulate.cpp - runs the blocks of a grid: fibres, barriers, warps.  emulate.h says what is caught.
 *
 * A worker is what one OpenMP thread runs blocks with: up to 1024 fibres, each a stack of its own, and one piece of
 * shared memory.  A thread of a block takes a fibre when it is first run and gives it back when it returns; a kernel
 * without barriers runs all its threads on one fibre, without a switch.  A thread that must wait switches to the next
 * that need not; the last to arrive does what all came for. */
#include "emulate.h"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <vector>

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

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace sd {
namespace emulate {

enum { LANES = 32, MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / LANES, GUARD = 512, PAGE = 4096 };
enum { MAX_SHARED = 99 << 10 };         /* of sm_86, sm_89 and sm_120: the least of the cards that we run on */
#ifdef WITH_ASAN
static const size_t STACK = 512 << 10;
#else
static const size_t STACK = 128 << 10;
#endif
static const unsigned char POISON = 0xff, GUARD_BYTE = 0xa5;

/* what a thread waits for */
enum reason { NOTHING, BARRIER, MEET, SHUFFLE, BALLOT, PRODUCT, MATRICES };
static const char *const reasons[] = {
    "nothing", "__syncthreads", "__syncwarp", "a shuffle", "a vote", "mma", "ldmatrix"
};

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

__thread struct place here;
const struct moment *moment;
void (*watch)(const void *p, size_t bytes, bool write);
static __thread struct worker *mine;
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

static inline uint32_t
lanes_of(const struct worker *w, unsigned warp)
{
    unsigned left = w->threads - warp * LANES;

    return left >= LANES ? 0xffffffffu : (1u << left) - 1;
}

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

/* -- this thread waits; others run until it need not */
static void
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

/* -- warps --------------------------------------------------------------------------------------------------------- */

static void
perform_shuffle(struct lane *warp, uint32_t mask)
{
    for (int i = 0; i < LANES; i++)
        if (mask >> i & 1) {
            if (!(mask >> warp[i].from & 1))
                wrong("the shuffle of lane %d reads lane %d, which takes no part", i, warp[i].from);
            warp[i].result = warp[warp[i].from].value;
        }
}

static void
perform_ballot(struct lane *warp, uint32_t mask)
{
    uint64_t votes = 0;

    for (int i = 0; i < LANES; i++)
        if (mask >> i & 1)
            votes |= warp[i].value << i;
    for (int i = 0; i < LANES; i++)
        if (mask >> i & 1)
            warp[i].result = votes;
}

static struct f16_table {
    float of[65536];
    f16_table(void)
    {
        for (unsigned i = 0; i < 65536; i++) {
            int e = (int)(i >> 10 & 31), m = (int)(i & 1023);
            float x = e == 31 ? (m ? NAN : INFINITY) : e ? ldexpf((float)(m + 1024), e - 25) : ldexpf((float)m, -24);

            of[i] = i >> 15 ? -x : x;
        }
    }
} f16_values;

static inline float
element(uint32_t bits, bool is_f16)
{
    return is_f16 ? f16_values.of[bits & 0xffff] : __uint_as_float(bits << 16);
}

/* d += a b, 16 x 8 x 16; the fragments' layout is PTX's of mma.m16n8k16 */
static void
perform_product(struct lane *warp)
{
    float a[16][16], b[16][8], d[16][8];

    for (int l = 0; l < LANES; l++) {
        const uint32_t *fa = static_cast<const uint32_t *>(warp[l].a), *fb = static_cast<const uint32_t *>(warp[l].b);
        const float *fd = static_cast<const float *>(warp[l].out);
        int g = l / 4, t = l % 4;
        bool is_f16 = warp[l].value;

        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 2; j++)
                a[g + 8 * (i & 1)][2 * t + j + 8 * (i >> 1)] = element(fa[i] >> 16 * j, is_f16);
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++)
                b[2 * t + j + 8 * i][g] = element(fb[i] >> 16 * j, is_f16);
        for (int i = 0; i < 4; i++)
            d[g + 8 * (i >> 1)][2 * t + (i & 1)] = fd[i];
    }
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 8; n++)
                d[m][n] += a[m][k] * b[k][n];
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 4; i++)
            static_cast<float *>(warp[l].out)[i] = d[l / 4 + 8 * (i >> 1)][2 * (l % 4) + (i & 1)];
}

static void
perform_matrices(struct lane *warp)
{
    int count = warp[0].from;
    bool turned = warp[0].value;
    uint16_t m[4][8][8];

    for (int i = 0; i < 8 * count; i++)
        memcpy(m[i / 8][i % 8], warp[i].a, 16);
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < count; i++) {
            int row = l / 4, column = l % 4 * 2;
            uint32_t low = turned ? m[i][column][row] : m[i][row][column];
            uint32_t high = turned ? m[i][column + 1][row] : m[i][row][column + 1];

            static_cast<uint32_t *>(warp[l].out)[i] = low | high << 16;
        }
}

/* This thread and all others of `mask` come together; the last does the work. */
static void
collect(struct worker *w, enum reason reason, uint32_t mask)
{
    unsigned warp = w->now / LANES, me = w->now % LANES;
    struct lane *lanes = &w->lanes[warp * LANES];
    uint32_t arrived = w->waiting[warp] & mask, others = arrived;

    if (!(mask >> me & 1))
        wrong("%s with mask %08x, in which its lane %u is not", reasons[reason], mask, me);
    if (mask & ~lanes_of(w, warp))
        wrong("%s with mask %08x, but the block's %u threads end in this warp", reasons[reason], mask, w->threads);
    lanes[me].reason = reason;
    lanes[me].mask = mask;
    if (mask != 0xffffffffu || (others && lanes[__builtin_ctz(others)].reason != reason))
        w->mixed[warp] = true;
    if (w->mixed[warp])             /* lanes of several collectives: legal while none waits for one that waits elsewhere */
        for (arrived = 0; others; others &= others - 1) {
            int other = __builtin_ctz(others);
            struct lane *o = &lanes[other];

            if (o->reason == reason && o->mask == mask)
                arrived |= 1u << other;
            else if (o->mask >> me & 1)
                wrong("at %s (mask %08x) while lane %d of its warp is at %s (mask %08x)", reasons[reason], mask, other,
                      reasons[o->reason], o->mask);
        }
    w->waiting[warp] |= 1u << me;
    if ((arrived | 1u << me) != mask) {
        wait_here(w);
        return;
    }
    switch (reason) {
    case SHUFFLE: perform_shuffle(lanes, mask); break;
    case BALLOT: perform_ballot(lanes, mask); break;
    case PRODUCT: perform_product(lanes); break;
    case MATRICES: perform_matrices(lanes); break;
    default: break;
    }
    if (reason == MEET && mask == lanes_of(w, warp))
        w->moment.meetings[warp]++;
    w->waiting[warp] &= ~mask;
    w->mixed[warp] &= w->waiting[warp] != 0;
    w->ready[warp] |= mask & ~(1u << me);
    w->ready_warps |= 1u << warp;
    lanes[me].reason = NOTHING;
}

static struct lane *
lane_here(void)
{
    return &mine->lanes[mine->now];
}

void
meet(unsigned mask)
{
    collect(mine, MEET, mask);
}

uint64_t
shuffle(shuffle_kind kind, unsigned mask, uint64_t value, int by, int width)
{
    struct lane *l = lane_here();
    int me = (int)(mine->now % LANES), begin = me & ~(width - 1), end = begin + width, from = me;

    if (width < 1 || width > LANES || width & (width - 1))
        wrong("a shuffle of width %d", width);
    switch (kind) {
    case SHUFFLE_FROM: from = begin + (by & (width - 1)); break;
    case SHUFFLE_UP: from = me - by; break;
    case SHUFFLE_DOWN: from = me + by; break;
    case SHUFFLE_XOR: from = me ^ by; break;
    }
    if (from >= end || from < 0 || (kind == SHUFFLE_UP && from < begin))
        from = me;
    l->value = value;
    l->from = from;
    collect(mine, SHUFFLE, mask);
    return l->result;
}

unsigned
ballot(unsigned mask, bool predicate)
{
    struct lane *l = lane_here();

    l->value = predicate;
    collect(mine, BALLOT, mask);
    return (unsigned)l->result;
}

void
matrix_product(float d[4], const uint32_t a[4], const uint32_t b[2], bool is_f16)
{
    struct lane *l = lane_here();

    l->a = a;
    l->b = b;
    l->out = d;
    l->value = is_f16;
    collect(mine, PRODUCT, 0xffffffffu);
}

void
misaligned(const void *p, size_t bytes)
{
    if (mine->launch && p >= mine->shared && p < mine->shared + mine->shared_bytes)
        wrong("a vector of %zu bytes at shared address %td", bytes, static_cast<const unsigned char *>(p) - mine->shared);
    wrong("a vector of %zu bytes at address %p, which is no multiple of it", bytes, p);
}

static void
check_row(const void *shared, const char *what)
{
    const unsigned char *p = static_cast<const unsigned char *>(shared);

    if (p < mine->shared || p + 16 > mine->shared + mine->shared_bytes)
        wrong("%s: 16 bytes at %td of %zu of shared memory", what, p - mine->shared, mine->shared_bytes);
    if ((uintptr_t)p % 16)
        wrong("%s: shared address %td is no multiple of 16", what, p - mine->shared);
}

void
load_matrices(uint32_t *r, const void *row, int count, bool turned)
{
    struct lane *l = lane_here();

    if ((int)(mine->now % LANES) < 8 * count) {
        check_row(row, "ldmatrix");
        if (watch)
            watch(row, 16, false);
    }
    l->a = row;
    l->out = r;
    l->from = count;
    l->value = turned;
    collect(mine, MATRICES, 0xffffffffu);
}

/* -- asynchronous copies: nothing arrives before the wait ---------------------------------------------------------- */

void
copy_begin(void *shared, const void *global, bool inside)
{
    struct lane *l = lane_here();

    check_row(shared, "copy_async16");
    if (inside && (uintptr_t)global % 16)
        wrong("copy_async16: global address %p is no multiple of 16", global);
    if (watch) {
        watch(shared, 16, true);
        if (inside)
            watch(global, 16, false);
    }
    memset(shared, POISON, 16);
    l->copies.push_back({ static_cast<unsigned char *>(shared), static_cast<const unsigned char *>(global), inside, l->group });
}

void
copy_group(void)
{
    lane_here()->group++;
}

void
copy_finish(int but)
{
    struct lane *l = lane_here();
    size_t left = 0;

    for (const struct copy &c : l->copies) {
        if (c.group + (unsigned)but >= l->group) {
            l->copies[left++] = c;
            continue;
        }
        if (watch)
            watch(c.shared, 16, true);
        if (c.inside)
            memcpy(c.shared, c.global, 16);
        else
            memset(c.shared, 0, 16);
    }
    l->copies.resize(left);
}

}   /* namespace emulate */
}   /* namespace sd */
