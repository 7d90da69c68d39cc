/* faults: the emulator's own test.  Kernels that a GPU would run wrong without a word must end the program by name, or
 * give NaN. What right ones give is language.cu's. */
#include "cuda.h"
#include "../check.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace sd;

static struct sd_device *device;
#ifdef __SANITIZE_THREAD__
static const bool races = true;         /* they are caught before they show (races.cpp) */
#else
static const bool races = false;
#endif

/* what happens in a child ends it by abort(), with `words` on its standard error */
template <class F> static void
check_fault(const char *what, const char *words, F f)
{
    char text[4096];
    size_t n = 0;
    ssize_t got;
    int pipes[2], status;
    pid_t child;

    fflush(stdout);
    if (pipe(pipes) || (child = fork()) < 0) {
        CHECK(false, "%s: no pipe, no child", what);
        return;
    }
    if (child == 0) {
        struct rlimit none = { 0, 0 };

        setrlimit(RLIMIT_CORE, &none);
        dup2(pipes[1], 2);
        close(pipes[0]);
        f();
        sd_device_wait(device);
        _exit(0);
    }
    close(pipes[1]);
    while (n + 1 < sizeof text && (got = read(pipes[0], text + n, sizeof text - 1 - n)) > 0)
        n += (size_t)got;
    close(pipes[0]);
    text[n] = 0;
    waitpid(child, &status, 0);
    CHECK(status != 0 && strstr(text, words), "%s is caught: \"%s\"", what, words);
    if (!status || !strstr(text, words))
        printf("# status %d, said: %s\n", status, text);
}

template <class T> static T *
on_device(const T *from, size_t count, const char *what)
{
    T *p = static_cast<T *>(sd_device_alloc(device, count * sizeof(T), what));

    if (from)
        sd_device_write(device, p, from, count * sizeof(T));
    return p;
}

template <int N> static void
read_back(float (&to)[N], const float *from)
{
    sd_device_read(device, to, from, sizeof to);
}

static int
count_nan(const float *x, int n)
{
    int nan = 0;

    for (int i = 0; i < n; i++)
        nan += x[i] != x[i];
    return nan;
}

/* -- what is not there yet is NaN ---------------------------------------------------------------------------------- */

enum { BLOCK = 128, BLOCKS = 64 };
struct row { float at[BLOCK]; };

/* y[i] = x[n-1-i] within each block; without the barrier some thread reads what is not there yet */
static __global__ void
turn_kernel(float *y, const float *x, bool with_barrier)
{
    SD_BEGIN();
    SD_SHARED(struct row, s);
    int t = (int)threadIdx.x;

    s.at[t] = x[blockIdx.x * BLOCK + t];
    if (with_barrier)
        __syncthreads();
    y[blockIdx.x * BLOCK + t] = s.at[BLOCK - 1 - t];
}

static void
check_barriers(void)
{
    static float x[BLOCKS * BLOCK], y[BLOCKS * BLOCK];
    int wrong = 0;

    for (int i = 0; i < BLOCKS * BLOCK; i++)
        x[i] = (float)(i % 1000);

    float *dx = on_device(x, BLOCKS * BLOCK, "x"), *dy = on_device<float>(NULL, BLOCKS * BLOCK, "y");

    read_back(y, dy);
    CHECK(count_nan(y, BLOCKS * BLOCK) == BLOCKS * BLOCK, "fresh device memory is NaN");
    SD_LAUNCH(device, turn_kernel, BLOCKS, BLOCK, sizeof(struct row), dy, dx, true);
    read_back(y, dy);
    for (int i = 0; i < BLOCKS * BLOCK; i++)
        wrong += y[i] != x[i / BLOCK * BLOCK + BLOCK - 1 - i % BLOCK];
    CHECK(wrong == 0, "shared memory behind a barrier: %d of %d wrong", wrong, BLOCKS * BLOCK);

    if (!races) {
        SD_LAUNCH(device, turn_kernel, BLOCKS, BLOCK, sizeof(struct row), dy, dx, false);
        read_back(y, dy);
        wrong = count_nan(y, BLOCKS * BLOCK);
        CHECK(wrong > BLOCKS, "a missing barrier: %d of %d are NaN", wrong, BLOCKS * BLOCK);
    }
    sd_device_free(device, dx);
    sd_device_free(device, dy);
}

/* three stages of asynchronous copies; `left` groups may be under way at each wait: one more than is right reads NaN */
struct stages { float at[3][BLOCK]; };
template <int LEFT> static __global__ void
copy_kernel(float *y, const float *x, int steps)
{
    SD_BEGIN();
    SD_SHARED(struct stages, s);
    int t = (int)threadIdx.x;

    for (int i = 0; i < steps + 2; i++) {
        if (t < BLOCK / 4)
            copy_async16(&s.at[i % 3][t * 4], x + (i < steps ? i * BLOCK + t * 4 : 0), i < steps);
        copy_async_commit();
        copy_async_wait<LEFT>();
        __syncthreads();
        if (i >= 2)
            y[(i - 2) * BLOCK + t] = s.at[(i - 2) % 3][t];
        else if (i == 1 && LEFT == 0)
            y[steps * BLOCK + t] = s.at[1][t];
        __syncthreads();
    }
    copy_async_wait<0>();
}

static void
check_copies(void)
{
    enum { STEPS = 7 };
    float x[STEPS * BLOCK], y[(STEPS + 1) * BLOCK];
    int wrong = 0;

    for (int i = 0; i < STEPS * BLOCK; i++)
        x[i] = (float)i;

    float *dx = on_device(x, STEPS * BLOCK, "x"), *dy = on_device<float>(NULL, (STEPS + 1) * BLOCK, "y");

    SD_LAUNCH(device, copy_kernel<2>, 1, BLOCK, sizeof(struct stages), dy, dx, +STEPS);
    read_back(y, dy);
    CHECK(memcmp(x, y, sizeof x) == 0, "asynchronous copies, two groups under way");
    SD_LAUNCH(device, copy_kernel<0>, 1, BLOCK, sizeof(struct stages), dy, dx, +STEPS);
    read_back(y, dy);
    CHECK(memcmp(x, y, sizeof x) == 0 && y[STEPS * BLOCK] == BLOCK, "asynchronous copies, none under way");
    if (!races) {
        SD_LAUNCH(device, copy_kernel<3>, 1, BLOCK, sizeof(struct stages), dy, dx, +STEPS);
        read_back(y, dy);
        for (int i = 0; i < STEPS * BLOCK; i++)
            wrong += y[i] != x[i];
        CHECK(wrong == STEPS * BLOCK && count_nan(y, 3 * BLOCK) == 3 * BLOCK, "a wait for one group too few: %d of %d wrong, at first NaN",
              wrong, STEPS * BLOCK);
    }
    sd_device_free(device, dx);
    sd_device_free(device, dy);
}

/* -- wrong kernels ------------------------------------------------------------------------------------------------- */

enum fault {
    RETURNS, OTHER_WAIT, LANE_RETURNS, TWO_COLLECTIVES, NO_SUCH_LANE, NOT_IN_MASK, READS_OUTSIDE_MASK, PAST_SHARED, BEFORE_SHARED, ODD_ROW,
    FAR_COPY, COPY_LEFT, ODD_VECTOR, ODD_SHARED_VECTOR, TOO_MUCH_SHARED, DEEP
};

static int __attribute__((noinline))
deep(volatile int *p, int n)
{
    volatile char room[4096];

    room[n % 4096] = 1;
    return n ? deep(p, n - 1) + room[(n + 1) % 4096] : *p;
}

static __global__ void
fault_kernel(int fault, float *y)
{
    SD_BEGIN();
    SD_SHARED(struct row, s);
    int t = (int)threadIdx.x, warp = t / WARP;
    uint32_t r[4];

    s.at[t] = 0;
    switch (fault) {
    case RETURNS:
        if (t == 70)
            return;
        __syncthreads();
        break;
    case OTHER_WAIT:
        if (warp == 1)
            __syncthreads();
        else if (t != 5)
            __syncwarp();
        __syncthreads();
        break;
    case LANE_RETURNS:
        if (t == 37)
            return;
        y[t] = warp_sum(1);
        break;
    case TWO_COLLECTIVES:
        y[t] = t % 2 ? __shfl_sync(ALL_LANES, 1.0f, 0) : (float)__ballot_sync(ALL_LANES, 1);
        break;
    case NO_SUCH_LANE:          /* launched with 100 threads */
        y[t] = warp_sum(1);
        break;
    case NOT_IN_MASK:
        y[t] = (float)__ballot_sync(0xffff, 1);
        break;
    case READS_OUTSIDE_MASK:
        if (t % WARP < 16)
            y[t] = __shfl_sync(0xffff, 1.0f, 16);
        break;
    case PAST_SHARED:
        if (t == 1)
            (&s.at[0])[BLOCK + (t == 1 ? 0 : 1)] = 1;
        break;
    case BEFORE_SHARED:
        if (t == 1)
            (&s.at[0])[t - 2] = 1;
        break;
    case ODD_ROW:
        __syncthreads();
        ldmatrix4(r, &s.at[t % WARP * 2]);
        break;
    case FAR_COPY:
        copy_async16(y + 4, y, true);
        break;
    case COPY_LEFT:             /* in no group, so that no wait is for it */
        copy_async16(&s.at[t / 4 * 4], y, true);
        copy_async_wait<0>();
        break;
    case ODD_VECTOR:
        y[0] = load<2>(y + 1).at[0];
        break;
    case ODD_SHARED_VECTOR:
        store(&s.at[2], vec<float, 4>{ { 1, 2, 3, 4 } });
        break;
    case TOO_MUCH_SHARED: {
        SD_SHARED(struct stages, more);

        more.at[2][0] = 1;
        break;
    }
    case DEEP:
        y[0] = (float)deep(reinterpret_cast<int *>(y), 1000);
        break;
    }
}

static __global__ void
plain_kernel(float *y, int64_t i)
{
    SD_BEGIN();
    if (threadIdx.x == 0)
        y[i] = 1;
}

struct with_pointer { int64_t n; const float *p; };
static __global__ void
struct_kernel(float *y, struct with_pointer w)
{
    SD_BEGIN();
    y[0] = (float)w.n;
}

static void
launch_fault(enum fault fault, int threads)
{
    float *y = on_device<float>(NULL, 1024, "y");

    SD_LAUNCH(device, fault_kernel, 3, threads, sizeof(struct row), (int)fault, y);
}

/* begins late, or not at all */
static __global__ void
late_kernel(float *y, bool begins)
{
    if (begins) {
        SD_SHARED(struct row, s);

        s.at[0] = 0;
        SD_BEGIN();
    }
    y[0] = 0;
}

static void
check_faults(void)
{
    static const struct { enum fault fault; int threads; const char *what, *words; } faults[] = {
        { RETURNS, BLOCK, "a thread that returns before a barrier", "waits at __syncthreads, which thread 70 never reaches: it has returned" },
        { OTHER_WAIT, BLOCK, "a thread that waits elsewhere", "never reaches: it waits at __sync" },
        { LANE_RETURNS, BLOCK, "a lane that returns before a shuffle", "waits at a shuffle, which thread" },
        { TWO_COLLECTIVES, BLOCK, "a shuffle here and a vote there", "of its warp is at a" },
        { NO_SUCH_LANE, 100, "a shuffle of a warp that is not whole", "but the block's 100 threads end in this warp" },
        { NOT_IN_MASK, BLOCK, "a lane outside its own mask", "in which its lane" },
        { READS_OUTSIDE_MASK, BLOCK, "a shuffle from a lane outside", "reads lane 16, which takes no part" },
        { ODD_ROW, BLOCK, "ldmatrix of a row that is not aligned", "is no multiple of 16" },
        { FAR_COPY, BLOCK, "a copy to what is not shared memory", "copy_async16: 16 bytes at" },
        { COPY_LEFT, 1, "a copy that nobody waits for", "returns while 1 asynchronous copies are under way" },
        { ODD_VECTOR, 1, "a vector of device memory that is not aligned", "a vector of 8 bytes at address" },
        { ODD_SHARED_VECTOR, 1, "a vector of shared memory that is not aligned", "a vector of 16 bytes at shared address 8" },
        { TOO_MUCH_SHARED, BLOCK, "more shared memory than launched with", "shared memory of 1536 bytes, launched with 512" },
        { DEEP, 1, "a stack that is full", "stack" },
    };
#ifdef __SANITIZE_ADDRESS__
    const char *past = "use-after-poison", *before = past, *behind = past;
#else
    const char *past = "wrote 0 bytes behind the end of shared memory", *before = "bytes before shared memory";
    const char *behind = "written 0 bytes behind its end";
#endif
    float on_host[4] = { 0, 0, 0, 0 }, *y = on_device<float>(NULL, 100, "the output"), *gone = on_device<float>(NULL, 100, "gone");
    struct sd_device_part part[] = { { 40, "the first part", NULL }, { 500, "the second part", NULL } };

    sd_device_alloc_parts(device, part, 2);
    CHECK(sd_device_allocated(device) == 400 + 400 + 256 + 512, "parts are counted as a card's: %zu bytes", sd_device_allocated(device));
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
        check_fault(faults[i].what, faults[i].words, [&] { launch_fault(faults[i].fault, faults[i].threads); });
    check_fault("a write just behind shared memory", past, [] { launch_fault(PAST_SHARED, BLOCK); });
    check_fault("a write just before shared memory", before, [] { launch_fault(BEFORE_SHARED, BLOCK); });
    check_fault("a write just behind device memory", behind, [&] { SD_LAUNCH(device, plain_kernel, 1, 32, 0, y, 100); });
    check_fault("a write far from device memory", "is in no allocation", [&] { SD_LAUNCH(device, plain_kernel, 1, 32, 0, y, 1 << 26); });
    check_fault("a kernel that does not begin", "returns without SD_BEGIN()", [&] { SD_LAUNCH(device, late_kernel, 1, 1, 512, y, false); });
    check_fault("a kernel that begins late", "SD_BEGIN() is not the first statement", [&] { SD_LAUNCH(device, late_kernel, 1, 1, 512, y, true); });
    sd_device_free(device, gone);
    check_fault("a host pointer", "argument 0 (from 0) is a host address", [&] { SD_LAUNCH(device, plain_kernel, 1, 32, 0, on_host, 0); });
    check_fault("a host pointer in a struct", "argument 1 (from 0) holds, at byte 8, a host address",
                [&] { SD_LAUNCH(device, struct_kernel, 1, 32, 0, y, with_pointer{ 3, on_host }); });
    check_fault("memory that is freed", "argument 0 (from 0) points at freed device memory",
                [&] { SD_LAUNCH(device, plain_kernel, 1, 32, 0, gone, 0); });
    check_fault("the host reads device memory", "the host touches device memory, byte 4 of the output", [&] { on_host[0] = y[1]; });
    check_fault("1025 threads", "block 1025 1 1: 1 to 1024 threads", [&] { SD_LAUNCH(device, plain_kernel, 1, 1025, 0, y, 0); });
    check_fault("33 x 32 threads", "block 33 32 1", [&] { SD_LAUNCH(device, plain_kernel, 1, dim3(33, 32), 0, y, 0); });
    check_fault("an empty grid", "an empty tensor launches nothing", [&] { SD_LAUNCH(device, plain_kernel, 0, 32, 0, y, 0); });
    check_fault("a grid of 65536 rows", "at most 2147483647 65535 65535",
                [&] { SD_LAUNCH(device, plain_kernel, dim3(1, 65536), 32, 0, y, 0); });
    check_fault("too much shared memory", "101377 bytes of shared memory: at most 101376",
                [&] { SD_LAUNCH(device, plain_kernel, 1, 32, 101377, y, 0); });
    check_fault("a write while recording", "sd_device_write while the device records", [&] {
        sd_device_record(device);
        sd_device_write(device, y, on_host, 4);
    });
    check_fault("a copy that runs over", "8 bytes from byte 396 of the output, which has 400", [&] { sd_device_fill(device, y + 99, 0, 8); });
    check_fault("a write just behind a part of an allocation", behind, [&] { SD_LAUNCH(device, plain_kernel, 1, 32, 0, (float *)part[0].at, 10); });
    check_fault("a copy from one part to the next", "44 bytes from byte 0 of the first part, which has 40",
                [&] { sd_device_fill(device, part[0].at, 0, 44); });
    check_fault("a part that is freed by itself", "is not allocated by itself", [&] { sd_device_free(device, part[1].at); });
    sd_device_free(device, part[0].at);
    check_fault("memory that is left when the device closes", "is closed with the output (400 bytes) still allocated",
                [] { sd_device_close(device); });
    sd_device_free(device, y);
}

/* -- races: each of these gives the right numbers in some order of the threads ------------------------------------- */

enum race { NO_RACE, READ_AFTER_WRITE, WRITE_AFTER_READ, WRITE_AFTER_WRITE, WITHIN_WARP, BY_SHUFFLE, COPY_UNSEEN, COPY_OVER, BETWEEN_BLOCKS,
            BLOCKS_READ };

static __global__ void
race_kernel(int race, float *y, const float *x)
{
    SD_BEGIN();
    SD_SHARED(struct row, s);
    int t = (int)threadIdx.x, other = BLOCK - 1 - t, neighbour = t ^ 1;

    s.at[t] = 0;
    __syncthreads();
    switch (race) {
    case NO_RACE:               /* all of it ordered */
        for (int round = 0; round < 2; round++) {
            s.at[t] = x[t];
            __syncwarp();
            y[blockIdx.x * BLOCK + t] = s.at[neighbour];
            __syncthreads();
            y[blockIdx.x * BLOCK + t] += s.at[other] + x[other];
            __syncthreads();
        }
        break;
    case READ_AFTER_WRITE:
        s.at[t] = x[t];
        y[t] = s.at[other];
        break;
    case WRITE_AFTER_READ:
        y[t] = s.at[other];
        s.at[t] = x[t];
        break;
    case WRITE_AFTER_WRITE:
        if (t == 3 || t == 99)
            s.at[5] = x[t];
        break;
    case WITHIN_WARP:
        s.at[t] = x[t];
        y[t] = s.at[neighbour];
        break;
    case BY_SHUFFLE:            /* brings lanes together, orders no memory */
        s.at[t] = x[t];
        y[t] = warp_sum(1) + s.at[neighbour];
        break;
    case COPY_UNSEEN:           /* waited for by its own thread alone */
        if (t < BLOCK / 4)
            copy_async16(&s.at[4 * t], x + 4 * t, true);
        copy_async_commit();
        copy_async_wait<0>();
        y[t] = s.at[t];
        break;
    case COPY_OVER:             /* into what others may still read */
        y[t] = s.at[other];
        if (t < BLOCK / 4)
            copy_async16(&s.at[4 * t], x + 4 * t, true);
        copy_async_commit();
        copy_async_wait<0>();
        break;
    case BETWEEN_BLOCKS:
        y[t] = x[t];
        break;
    case BLOCKS_READ:
        y[blockIdx.x * BLOCK + t] = y[BLOCK + t];
        break;
    }
}

static void
check_races(void)
{
    static const struct { enum race race; const char *what, *words; } all[] = {
        { READ_AFTER_WRITE, "a read without a barrier after the write", "race: " },
        { WRITE_AFTER_READ, "a write without a barrier after the read", "race: " },
        { WRITE_AFTER_WRITE, "two writes to one place", "writes byte 20 of shared memory, which thread" },
        { WITHIN_WARP, "neighbours of a warp without __syncwarp", "race: " },
        { BY_SHUFFLE, "neighbours of a warp with a shuffle between", "race: " },
        { COPY_UNSEEN, "an asynchronous copy that another thread waited for", "race: " },
        { COPY_OVER, "an asynchronous copy over what is read", "race: " },
        { BETWEEN_BLOCKS, "two blocks that write the same", "of another block wrote" },
        { BLOCKS_READ, "a block that writes what another reads", "device memory at" },
    };
    float x[BLOCK] = {}, y[3 * BLOCK], *dx = on_device(x, BLOCK, "x"), *dy = on_device<float>(NULL, 3 * BLOCK, "y");

    SD_LAUNCH(device, race_kernel, 3, BLOCK, sizeof(struct row), (int)NO_RACE, dy, dx);
    read_back(y, dy);
    CHECK(count_nan(y, 3 * BLOCK) == 0, "a kernel without races runs");
    for (size_t i = 0; races && i < sizeof all / sizeof *all; i++)
        check_fault(all[i].what, all[i].words,
                    [&] { SD_LAUNCH(device, race_kernel, 3, BLOCK, sizeof(struct row), (int)all[i].race, dy, dx); });
    sd_device_free(device, dx);
    sd_device_free(device, dy);
}

/* -- recording ----------------------------------------------------------------------------------------------------- */

struct pair { float a, b; };
static __global__ void
affine_kernel(float *y, const float *x, struct pair p, int n)
{
    SD_BEGIN();
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);

    if (i < n)
        y[i] = p.a * x[i] + p.b;
}

static void
check_recording(void)
{
    float x[50], y[50], z[50];
    struct pair p = { 2, 1 };
    struct sd_recording *r;
    int wrong = 0;

    for (int i = 0; i < 50; i++)
        x[i] = (float)i;

    float *dx = on_device(x, 50, "x"), *dy = on_device<float>(NULL, 50, "y"), *dz = on_device<float>(NULL, 50, "z");

    sd_device_record(device);
    SD_LAUNCH(device, affine_kernel, 2, 32, 0, dy, dx, p, 50);
    sd_device_copy(device, dz, dy, sizeof y);
    sd_device_fill(device, dy, 0, 4);
    r = sd_device_recorded(device);
    p = { 100, 100 };                   /* the arguments were those of then */
    read_back(y, dy);
    read_back(z, dz);
    CHECK(count_nan(y, 50) == 50 && count_nan(z, 50) == 50, "what is recorded does not run");
    for (int round = 1; round <= 2; round++) {
        sd_device_replay(device, r);
        read_back(y, dy);
        read_back(z, dz);
        for (int i = 0; i < 50; i++)
            wrong += z[i] != 2 * x[i] + 1 || y[i] != (i ? z[i] : 0);
        CHECK(wrong == 0, "replay %d, with the arguments of the recording and the memory of now: %d wrong", round, wrong);
        for (int i = 0; i < 50; i++)
            x[i] += 1000;
        sd_device_write(device, dx, x, sizeof x);
    }
    sd_recording_free(r);
    sd_device_free(device, dx);
    sd_device_free(device, dy);
    sd_device_free(device, dz);
    CHECK(sd_device_allocated(device) == 0, "allocations are counted: %zu bytes left", sd_device_allocated(device));
}

/* -- writes that go ahead: seen when their side is taken, not before and not longer ----------------------------------- */

static void
check_ahead(void)
{
    float x[50], y[50], *dx = on_device<float>(NULL, 50, "a side"), *dy = on_device<float>(NULL, 50, "y");
    struct pair p = { 2, 1 };
    int wrong = 0;

    for (int i = 0; i < 50; i++)
        x[i] = (float)i;

    auto nans = [&] {
        SD_LAUNCH(device, affine_kernel, 2, 32, 0, dy, dx, p, 50);
        read_back(y, dy);
        return count_nan(y, 50);
    };

    sd_device_write(device, dx, x, sizeof x);
    sd_device_write_ahead(device, 1, dx, x, sizeof x / 2);
    sd_device_write_ahead(device, 1, dx + 25, x + 25, sizeof x / 2);
    CHECK(nans() == 50, "a kernel that does not wait for what is written ahead gets NaN: %d of 50", nans());
    sd_device_take(device, 0);
    sd_device_wait(device);
    CHECK(nans() == 50, "nor does the other side, or a wait of the host, give it the bytes: %d NaN of 50", nans());
    sd_device_take(device, 1);
    CHECK(nans() == 0, "one that takes the side does not: %d of 50", nans());
    for (int i = 0; i < 50; i++)
        wrong += y[i] != 2 * x[i] + 1;
    CHECK(wrong == 0, "it gets what was written: %d wrong", wrong);
    sd_device_release(device, 0);
    CHECK(nans() == 0, "the other side is released: %d NaN of 50", nans());
    check_fault("a side that is written before it is released", "side 1 is taken, and was not released",
                [&] { sd_device_write_ahead(device, 1, dx, x, sizeof x); });
    sd_device_release(device, 1);
    CHECK(nans() == 50, "a kernel behind the release gets NaN: %d of 50", nans());
    check_fault("a side that is released twice", "side 1 was not taken", [] { sd_device_release(device, 1); });
    check_fault("a write ahead while recording", "sd_device_write_ahead while the device records", [&] {
        sd_device_record(device);
        sd_device_write_ahead(device, 0, dx, x, sizeof x);
    });
    check_fault("a side that is taken in a recording", "sd_device_take while the device records", [] {
        sd_device_record(device);
        sd_device_take(device, 0);
    });
    check_fault("a write ahead that runs over", "from byte 100 of a side, which has 200",
                [&] { sd_device_write_ahead(device, 0, dx + 25, x, sizeof x); });
    sd_device_write_ahead(device, 0, dx, x, sizeof x);
    sd_device_free(device, dx);
    sd_device_free(device, dy);
    sd_device_take(device, 0);                  /* what was written to memory that is gone by now is gone */
    sd_device_release(device, 0);
    CHECK(sd_device_allocated(device) == 0, "all memory is given back: %zu bytes left", sd_device_allocated(device));
}

int
main(void)
{
    struct sd_device *cpu = NULL;

    CHECK(sd_device_open(&cpu, "cpu") == 0 && !cpu, "--device cpu");
    CHECK(sd_device_open(&cpu, "cuda:1") < 0, "--device cuda:1: %s", sd_reason());
    if (!CHECK(sd_device_open(&device, "auto") == 0 && device, "--device auto"))
        return check_done();
    check_barriers();
    check_copies();
    check_races();
    check_recording();
    check_ahead();
    check_faults();
    sd_device_close(device);
    return check_done();
}
