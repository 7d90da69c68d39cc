/* libcommon/device_cuda_copy.cu on a CUDA runtime of two streams, whose pace is the test's: everything a stream is given waits in
 * its list, and who goes on is the worst for one party or the other, or drawn.  Copies read pinned memory when they are run, so a
 * sector that is filled again too early is seen too.  A wait that is left out is planted, and must show. */
#include <algorithm>
#include <deque>
#include <functional>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <utility>
#include <vector>

#include "diag.h"

/* -- the runtime, as far as device_cuda_copy.cu asks for it --------------------------------------------------------------------- */

enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation };
enum { cudaHostAllocDefault, cudaStreamNonBlocking, cudaEventDisableTiming };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };

struct event { uint64_t recorded, done; };
typedef struct event *cudaEvent_t;
struct task {
    std::function<void()> run;
    cudaEvent_t until;                  /* not before it was recorded so often; NULL: at once */
    uint64_t ticket;
};
struct stream { std::deque<struct task> list; };
typedef struct stream *cudaStream_t;

enum pace { QUEUE_FIRST, AHEAD_FIRST, DRAWN, PACES };
static struct runtime {
    enum pace pace;
    int deaf;                           /* the stream whose waits are left out; -1: none */
    bool no_pinned;
    std::vector<cudaStream_t> streams;  /* the queue, and what goes ahead of it */
    std::vector<std::pair<char *, size_t>> pinned;
    uint64_t state;                     /* of what is drawn */
} cuda;

static uint32_t
draw(uint32_t below)
{
    cuda.state = cuda.state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(cuda.state >> 33) % below;
}

/* One piece of work; false: there is none, or it waits. */
static bool
go_on(cudaStream_t s)
{
    if (s->list.empty() || (s->list.front().until && s->list.front().until->done < s->list.front().ticket))
        return false;

    struct task w = std::move(s->list.front());
    s->list.pop_front();
    if (w.run)
        w.run();
    return true;
}

/* What runs by itself between two calls: one stream all it can, and the other nothing; or some of each. */
static void
by_itself(void)
{
    if (cuda.pace != DRAWN)
        while (go_on(cuda.streams[cuda.pace == AHEAD_FIRST])) { }
    for (uint32_t n = cuda.pace == DRAWN ? draw(4) : 0; n--; )
        go_on(cuda.streams[draw(2)]);
}

/* Until it is so: of the streams the one that is asked for, others when it waits for them. */
template <class F> static void
run_until(cudaStream_t first, F done)
{
    while (!done()) {
        bool went = first && go_on(first);

        for (cudaStream_t s : cuda.streams)
            went = went || go_on(s);
        if (!went)
            sd_bug("streams", "all streams wait for ever");
    }
}

static cudaError_t
give(cudaStream_t s, std::function<void()> run, cudaEvent_t until = NULL, uint64_t ticket = 0)
{
    s->list.push_back({ std::move(run), until, ticket });
    by_itself();
    return cudaSuccess;
}

static cudaError_t
cudaStreamSynchronize(cudaStream_t s)
{
    run_until(s, [s] { return s->list.empty(); });
    return cudaSuccess;
}

static cudaError_t
cudaHostAlloc(void **p, size_t bytes, int)
{
    if (cuda.no_pinned)
        return cudaErrorMemoryAllocation;
    *p = malloc(bytes);
    cuda.pinned.push_back({ (char *)*p, bytes });
    return cudaSuccess;
}

static cudaError_t
cudaFreeHost(void *p)
{
    cuda.pinned.erase(std::remove_if(cuda.pinned.begin(), cuda.pinned.end(), [p](auto &x) { return x.first == p; }), cuda.pinned.end());
    free(p);
    return cudaSuccess;
}

static cudaError_t
cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t s)
{
    bool pinned = kind != cudaMemcpyHostToDevice;

    for (auto &x : cuda.pinned)
        pinned |= (const char *)from >= x.first && (const char *)from + bytes <= x.first + x.second;
    give(s, [=] { memcpy(to, from, bytes); });
    return pinned ? cudaSuccess : cudaStreamSynchronize(s);         /* the driver takes it before it returns */
}

static cudaError_t
cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    uint64_t ticket = ++e->recorded;

    return give(s, [=] { e->done = std::max(e->done, ticket); });
}

static cudaError_t
cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, int)
{
    bool deaf = cuda.deaf >= 0 && s == cuda.streams[(size_t)cuda.deaf];

    return give(s, NULL, deaf ? NULL : e, e->recorded);
}

static cudaError_t
cudaEventSynchronize(cudaEvent_t e)
{
    uint64_t ticket = e->recorded;

    run_until(NULL, [=] { return e->done >= ticket; });
    return cudaSuccess;
}

static cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, int) { cuda.streams.push_back(*s = new struct stream()); return cudaSuccess; }
static cudaError_t cudaStreamDestroy(cudaStream_t s) { delete s; return cudaSuccess; }
static cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, int) { *e = new struct event(); return cudaSuccess; }
static cudaError_t cudaEventDestroy(cudaEvent_t e) { delete e; return cudaSuccess; }
static cudaError_t cudaMemsetAsync(void *to, int c, size_t n, cudaStream_t s) { return give(s, [=] { memset(to, c, n); }); }
static cudaError_t cudaMalloc(void **p, size_t bytes) { *p = malloc(bytes); return cudaSuccess; }
static cudaError_t cudaFree(void *p) { free(p); return cudaSuccess; }
static cudaError_t cudaMemGetInfo(size_t *available, size_t *total) { *available = *total = 0; return cudaSuccess; }
static cudaError_t cudaGetLastError(void) { return cudaSuccess; }
static const char *cudaGetErrorName(cudaError_t) { return "planted"; }

/* the emulated device has functions of these names */
#define sd_device real_device
#define sd_device_alloc real_device_alloc
#define sd_device_free real_device_free
#define sd_device_allocated real_device_allocated
#define sd_device_alloc_parts real_device_alloc_parts
#define sd_device_write real_device_write
#define sd_device_write_ahead real_device_write_ahead
#define sd_device_take real_device_take
#define sd_device_release real_device_release
#define sd_device_read real_device_read
#define sd_device_counts real_device_counts
#define sd_device_copy real_device_copy
#define sd_device_fill real_device_fill
#define sd_device_wait real_device_wait
#define sd_device_ask real_device_ask
#define sd_device_answer real_device_answer
#include "../../libcommon/device_cuda_copy.cu"
#undef CHECK
#include "check.h"

void
sd_cuda_check(const struct sd_device *, cudaError_t e, const char *what)
{
    if (e != cudaSuccess)
        sd_bug("streams", "%s: %d", what, (int)e);
}

void
sd_cuda_not_recording(const struct sd_device *d, const char *what)
{
    if (d->recording)
        sd_bug("streams", "%s while recording", what);
}

/* -- what is asked of it -------------------------------------------------------------------------------------------------------- */

static const size_t LARGEST = 11 << 20;         /* more than the ring of what goes ahead */
enum { MANY = 1 << 19, BEHIND = 3 };            /* numbers; answers that are waited for later, as by training */

static unsigned char
byte_of(int round, size_t i)
{
    return (unsigned char)((uint32_t)(round * 40503 + (int)(i >> 6)) * 2654435761u >> 24);
}

static void
fill(std::vector<unsigned char> &v, int round, size_t bytes)
{
    v.resize(bytes);
    for (size_t i = 0; i < bytes; i++)
        v[i] = byte_of(round, i);
}

/* Steps that look at a side and at a write of the queue's; how many saw something else. */
static int
steps(enum pace pace, int deaf, bool no_pinned, int rounds)
{
    struct sd_device *d = static_cast<struct sd_device *>(calloc(1, sizeof *d));
    std::vector<unsigned char> batch;
    unsigned char *side[SD_SIDES];
    std::vector<int> numbers;
    int wrong = 0, *on_queue, asked[BEHIND], answer = -1;

    cuda = runtime { pace, deaf, no_pinned, {}, {}, 1 };
    sd_cuda_copies_open(d);
    on_queue = static_cast<int *>(sd_device_alloc(d, MANY * sizeof *on_queue, "numbers"));
    for (unsigned char *&s : side)
        s = static_cast<unsigned char *>(sd_device_alloc(d, LARGEST, "side"));
    for (int round = 0; round < rounds; round++) {
        size_t bytes = round == 3 ? LARGEST : 1 + draw(round % 5 ? 3000 : 3 << 20), half = draw((uint32_t)bytes);
        unsigned char *on = side[round % SD_SIDES];

        fill(batch, round, bytes);
        sd_device_write_ahead(d, round % SD_SIDES, on, batch.data(), half);
        sd_device_write_ahead(d, round % SD_SIDES, on + half, batch.data() + half, bytes - half);
        std::fill(batch.begin(), batch.end(), 0);
        sd_device_take(d, round % SD_SIDES);
        numbers.assign(1 + draw(MANY), round);
        sd_device_write(d, on_queue, numbers.data(), numbers.size() * sizeof numbers[0]);
        give(d->stream, [=, &wrong, count = (int)numbers.size()] {
            bool good = std::count(on_queue, on_queue + count, round) == count;

            for (size_t i = 0; i < bytes; i++)
                good = good && on[i] == byte_of(round, i);
            wrong += !good;
        });
        sd_device_release(d, round % SD_SIDES);
        if (round >= BEHIND) {
            sd_device_answer(d, asked[round % BEHIND], &answer);
            wrong += answer != round - BEHIND;
        }
        asked[round % BEHIND] = sd_device_ask(d, on_queue, sizeof *on_queue);
    }
    sd_device_wait(d);
    for (unsigned char *s : side)
        sd_device_free(d, s);
    sd_device_free(d, on_queue);
    sd_cuda_copies_wait(d);
    sd_cuda_copies_close(d);
    if (!CHECK(d->allocated == 0 && cuda.pinned.empty(), "all memory is given back"))
        printf("# %zu bytes, %zu pinned blocks\n", d->allocated, cuda.pinned.size());
    free(d->blocks);
    free(d);
    return wrong;
}

/* Parts lie behind one another in one allocation, from multiples of 256 bytes on. */
static void
check_parts(void)
{
    struct sd_device *d = (struct sd_device *)calloc(1, sizeof *d);
    struct sd_device_part part[] = { { 300, "a", NULL }, { 256, "b", NULL }, { 1, "c", NULL } };
    char *first;

    sd_device_alloc_parts(d, part, 3);
    first = (char *)part[0].at;
    CHECK(part[1].at == first + 512 && part[2].at == first + 768 && d->allocated == 1024 && d->block_count == 1, "parts of one allocation");
    cuda = runtime { QUEUE_FIRST, -1, false, {}, {}, 1 };
    sd_cuda_copies_open(d);
    sd_device_free(d, first);
    sd_cuda_copies_close(d);
    CHECK(d->allocated == 0 && d->block_count == 0, "freed as one");
    free(d->blocks);
    free(d);
}

int
main(void)
{
    static const char *const names[PACES] = { "the queue runs first", "what goes ahead runs first", "by turns that are drawn" };

    for (int p = 0; p < PACES; p++) {
        int wrong = steps((enum pace)p, -1, false, 120);

        CHECK(wrong == 0, "%s: %d of 120 steps saw what was not theirs", names[p], wrong);
        wrong = steps((enum pace)p, -1, true, 20);
        CHECK(wrong == 0, "%s, without pinned memory: %d of 20", names[p], wrong);
    }
    check_parts();
    CHECK(steps(QUEUE_FIRST, 0, false, 20) > 0, "a queue that does not wait for a side is seen");
    CHECK(steps(AHEAD_FIRST, 1, false, 20) > 0, "a write that does not wait for a side's readers is seen");
    return check_done();
}
