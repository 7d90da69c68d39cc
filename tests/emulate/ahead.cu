/* Writes that go ahead: batches to two sides in turn, each read by a step that is recorded once and told which side; every
 * word of every batch is seen by its own step.  On a card the steps take longer than the copies, and the host is ahead of both, so a
 * wait that were missing would show; and three times are printed, none checked: without copies, in the order of the queue,
 * ahead. */
#include "cuda.h"
#include "on_device.h"

#include <time.h>

enum way { NOT_AT_ALL, IN_ORDER, AHEAD, WAYS };
enum { THREADS = 128, WORDS = 1024 };

struct given {
    struct sd_device *d;
    uint32_t *pool, *seen;
    int64_t *at;
    int64_t n;                  /* words of a side */
    int turns;
};

/* seen = 3 seen + word; turns: what a step takes */
static __global__ void
step_kernel(uint32_t *seen, const uint32_t *pool, const int64_t *at, int64_t n, int turns)
{
    SD_BEGIN();
    uint32_t busy = 1;

    for (int k = 0; k < turns; k++)
        busy = busy * 1664525u + 1013904223u;
    for (int64_t i = blockIdx.x * THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS)
        seen[i] = 3 * seen[i] + pool[*at + i] + (busy & 1 ? 0 : n < 0);         /* used, so that it is computed */
}

static void
step(const struct given *g)
{
    SD_LAUNCH(g->d, step_kernel, dim3((unsigned)((g->n + WORDS - 1) / WORDS)), dim3(THREADS), 0, g->seen, g->pool, g->at, g->n, g->turns);
}

static double
now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint32_t
word(int round, int64_t i)
{
    return (uint32_t)round * 2654435761u ^ (uint32_t)i;
}

/* Microseconds a round; wrong: words that are not what they should be. */
static double
rounds(const struct given *g, enum way way, int count, size_t *wrong)
{
    std::vector<uint32_t> batch((size_t)g->n), expected((size_t)g->n);
    struct sd_recording *r = NULL;
    double start = 0;

    sd_device_fill(g->d, g->seen, 0, (size_t)g->n * sizeof *g->seen);
    if (way == NOT_AT_ALL)
        sd_device_fill(g->d, g->pool, 0, (size_t)(SD_SIDES * g->n) * sizeof *g->pool);
    for (int round = 0; round < count; round++) {
        int side = round % SD_SIDES;
        int64_t at = side * g->n;

        if (round == 1) {
            sd_device_record(g->d);
            step(g);
            r = sd_device_recorded(g->d);
            CHECK(r != NULL, "the step is recorded: %s", r ? "yes" : sd_reason());
            sd_device_wait(g->d);
            start = now();
        }
        if (way != NOT_AT_ALL)
            for (int64_t i = 0; i < g->n; i++)
                expected[i] = 3 * expected[i] + (batch[i] = word(round, i));
        if (way == IN_ORDER)
            sd_device_write(g->d, g->pool + at, batch.data(), batch.size() * sizeof batch[0]);
        if (way == AHEAD) {
            sd_device_write_ahead(g->d, side, g->pool + at, batch.data(), batch.size() * sizeof batch[0]);
            sd_device_take(g->d, side);
        }
        sd_device_write(g->d, g->at, &at, sizeof at);
        if (r)
            sd_device_replay(g->d, r);
        else
            step(g);
        if (way == AHEAD)
            sd_device_release(g->d, side);
    }
    sd_device_wait(g->d);
    start = (now() - start) / (count - 1) * 1e6;
    batch = down(g->d, g->seen, batch.size());
    *wrong = 0;
    for (int64_t i = 0; i < g->n; i++)
        *wrong += batch[i] != expected[i];
    sd_recording_free(r);
    return start;
}

int
main(void)
{
    static const char *const names[WAYS] = { "no copies", "in the queue's order", "ahead" };
    struct sd_device *d = open_device();
    bool card = sd_device_capability(d) > 0;
    size_t wrong;

    for (int64_t n : { (int64_t)1000, (int64_t)300000 }) {
        struct given g = { d, NULL, NULL, NULL, n, card ? 500000 : 1 };
        uint64_t written = sd_device_counts(d).written;

        g.pool = static_cast<uint32_t *>(sd_device_alloc(d, (size_t)(SD_SIDES * n) * sizeof *g.pool, "two sides"));
        g.seen = static_cast<uint32_t *>(sd_device_alloc(d, (size_t)n * sizeof *g.seen, "what was seen"));
        g.at = static_cast<int64_t *>(sd_device_alloc(d, sizeof *g.at, "place"));
        for (int way = 0; way < WAYS; way++) {
            double us = rounds(&g, (enum way)way, card ? 200 : 7, &wrong);

            CHECK(wrong == 0, "%lld words a batch, %s: %zu wrong", (long long)n, names[way], wrong);
            if (card)
                printf("# %lld words a batch, %s: %.1f us a step\n", (long long)n, names[way], us);
        }
        written = sd_device_counts(d).written - written;
        CHECK(written == (uint64_t)(card ? 200 : 7) * (8 * WAYS + 2 * 4 * (uint64_t)n), "%llu bytes were written",
              (unsigned long long)written);
        sd_device_free(d, g.pool);
        sd_device_free(d, g.seen);
        sd_device_free(d, g.at);
    }
    sd_device_close(d);
    return check_done();
}
