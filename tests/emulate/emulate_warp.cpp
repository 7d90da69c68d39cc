/* emulate_warp.cpp - what the threads of a warp do together, and asynchronous copies: the last lane to arrive does the work of all. */
#include "emulate_internal.h"

#include <math.h>
#include <string.h>

namespace sd {
namespace emulate {

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
