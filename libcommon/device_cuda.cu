/* device_cuda.cu - device.h on the CUDA runtime, linked statically: a program starts without driver and CUDA libraries, and the
 * runtime opens libcuda.so.1 when it is first asked for something.
 *
 * Here: which GPU and whose turn it is, recordings, marks, what libraries keep.  Memory and copies: device_cuda_copy.cu. */
#include "device_cuda.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "vendor.h"

enum { LEAST_CAPABILITY = 80 };

struct sd_recording {
    struct sd_device *device;
    cudaGraphExec_t exec;
};

/* What cannot be recorded spoils the recording, which sd_device_recorded says. */
static bool
spoils_recording(const struct sd_device *d, cudaError_t e)
{
    if (!d || !d->recording || e < cudaErrorStreamCaptureUnsupported || e > cudaErrorStreamCaptureWrongThread)
        return false;
    (void)cudaGetLastError();
    return true;
}

void
sd_cuda_check(const struct sd_device *d, cudaError_t e, const char *what)
{
    if (e == cudaSuccess || spoils_recording(d, e))
        return;
    if (d && d->kernel)
        sd_die("cuda", "%s: %s (%s); launched last: %s%s", what, cudaGetErrorString(e), cudaGetErrorName(e), d->kernel,
               d->check ? "" : "; SD_CUDA_CHECK=1 waits after each launch");
    sd_die("cuda", "%s: %s (%s)", what, cudaGetErrorString(e), cudaGetErrorName(e));
}

void
sd_cuda_not_recording(const struct sd_device *d, const char *what)
{
    if (d->recording)
        sd_bug("device", "%s while recording", what);
}

/* -- opening -------------------------------------------------------------------------------------------------------- */

static int
fail_with(cudaError_t e)
{
    (void)cudaGetLastError();
    return sd_fail("%s (%s)", cudaGetErrorString(e), cudaGetErrorName(e));
}

/* How many devices there are, or -1 with sd_fail; *absent where nothing of NVIDIA's is there, which is no fault. */
static int
count_devices(bool *absent)
{
    int count = 0, driver = 0;
    cudaError_t e = cudaDriverGetVersion(&driver);

    *absent = e == cudaSuccess && !driver;
    if (*absent)
        return sd_fail("no driver (libcuda.so.1)");
    if (e == cudaSuccess)
        e = cudaGetDeviceCount(&count);
    if (e == cudaErrorInsufficientDriver)
        return sd_fail("the driver is for CUDA %d.%d, this build wants %d.%d", driver / 1000, driver % 1000 / 10,
                       CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    *absent = e == cudaErrorNoDevice || (e == cudaSuccess && !count);
    return *absent ? sd_fail("no device") : e != cudaSuccess ? fail_with(e) : count;
}

static int
look_at(int index, struct cudaDeviceProp *p)
{
    cudaError_t e = cudaGetDeviceProperties(p, index);

    if (e != cudaSuccess)
        return fail_with(e);
    if (p->major * 10 + p->minor < LEAST_CAPABILITY)
        return sd_fail("%s: compute capability %d.%d, at least %d.%d is wanted", p->name, p->major, p->minor,
                       LEAST_CAPABILITY / 10, LEAST_CAPABILITY % 10);
    return 0;
}

/* One of the GPU's lock files, opened; -1 with sd_fail.  It is never removed: another process may be about to lock it.  Opened for
 * reading, so that users of one machine queue for one another's. */
static int
open_lock(const struct cudaDeviceProp *p, const char *kind, char *path, size_t room)
{
    const char *folder = getenv("XDG_RUNTIME_DIR");
    char uuid[33];
    int fd;

    for (int i = 0; i < 16; i++)
        snprintf(uuid + 2 * i, 3, "%02x", (unsigned char)p->uuid.bytes[i]);
    snprintf(path, room, "%s/sd-tools-gpu-%s.%s", folder && folder[0] == '/' ? folder : "/tmp", uuid, kind);
    for (int attempt = 0; attempt < 2; attempt++) {
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0 && errno == ENOENT && (fd = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644)) >= 0)
            (void)fchmod(fd, 0644);             /* whatever the umask: others lock it too */
        if (fd >= 0)
            return fd;
        if (errno != EEXIST)
            break;
    }
    return sd_fail_errno("%s", path);
}

/* Whoever has a GPU and reads from a pipe, or writes to one, shows it by a shared lock on a file of its own.  A process at the
 * other end of that pipe would wait for ever for one that waits for it: it does not queue. */
static const char *const shown[] = { "reads", "writes" };

static bool
is_pipe(int fd)
{
    struct stat s;

    return fstat(fd, &s) == 0 && S_ISFIFO(s.st_mode);
}

static void
show_pipes(const struct cudaDeviceProp *p, int locks[LOCKS])
{
    char path[512];

    for (int fd = 0; fd < 2; fd++)
        if (is_pipe(fd) && (locks[1 + fd] = open_lock(p, shown[fd], path, sizeof path)) >= 0)
            (void)flock(locks[1 + fd], LOCK_SH);
}

static bool
is_piped_to_its_owner(const struct cudaDeviceProp *p)
{
    bool yes = false;
    char path[512];

    for (int fd = 0; fd < 2 && !yes; fd++) {
        int other = is_pipe(fd) ? open_lock(p, shown[!fd], path, sizeof path) : -1;

        yes = other >= 0 && flock(other, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK;
        if (other >= 0)
            close(other);
    }
    return yes;
}

/* Locks one of the devices first..last of the kind of the first and returns its index, -1 with sd_fail; waits while all are
 * taken.  locks[0] is -1 where locking is off, or the device is shared. */
static int
take(int first, int last, int locks[LOCKS], struct cudaDeviceProp *p)
{
    const char *off = getenv("SD_GPU_LOCK");
    char kind[sizeof p->name], path[512];
    bool said = false;

    for (int i = 0; i < LOCKS; i++)
        locks[i] = -1;
    if (look_at(first, p))
        return -1;
    if (off && strcmp(off, "0") == 0)
        return first;
    memcpy(kind, p->name, sizeof kind);
    for (;;) {
        struct timespec pause = { 0, 200000000 };

        for (int i = first; i <= last; i++) {
            if (look_at(i, p)) {
                if (i == first)
                    return -1;
                continue;
            }
            if (strcmp(p->name, kind))
                continue;
            if ((locks[0] = open_lock(p, "lock", path, sizeof path)) < 0)
                return -1;
            if (flock(locks[0], LOCK_EX | LOCK_NB) == 0) {
                show_pipes(p, locks);
                return i;
            }
            if (errno != EWOULDBLOCK && errno != EINTR)
                return sd_fail_errno("%s", path);
            close(locks[0]);
            locks[0] = -1;
            if (is_piped_to_its_owner(p)) {
                sd_note(1, "sharing %s with a program of the same pipe", kind);
                show_pipes(p, locks);
                return i;
            }
        }
        if (!said)
            sd_note(0, "waiting for %s: another process has it (%s; SD_GPU_LOCK=0 does not wait)", kind, path);
        said = true;
        nanosleep(&pause, NULL);
    }
}

static void
unlock(const int locks[LOCKS])
{
    for (int i = 0; i < LOCKS; i++)
        if (locks[i] >= 0)
            close(locks[i]);
}

/* The driver may let nobody in: another has the device for itself, or all of its memory. */
static int
enter(int index, const struct cudaDeviceProp *p, const int locks[LOCKS])
{
    cudaError_t e = cudaSetDevice(index);

    if (e == cudaSuccess)
        return 0;
    unlock(locks);
    fail_with(e);
    return sd_fail_prefix("%s", p->name);
}

static void
start(struct sd_device *d, const struct cudaDeviceProp *p)
{
    const char *text = getenv("SD_CUDA_CHECK"), *overlap = getenv("SD_OVERLAP");

    d->check = text && strcmp(text, "0") != 0;
    d->capability = p->major * 10 + p->minor;
    d->overlaps = d->capability >= 90 && !(overlap && strcmp(overlap, "0") == 0);
    d->multiprocessors = p->multiProcessorCount;
    snprintf(d->name, sizeof d->name, "%s (sm_%d)", p->name, d->capability);
    sd_cuda_copies_open(d);
}

extern "C" int
sd_device_open(struct sd_device **out, const char *text)
{
    bool automatic = strcmp(text, "auto") == 0, absent;
    struct cudaDeviceProp p;
    struct sd_device *d;
    int first = 0, last, locks[LOCKS], index;
    char *end;

    *out = NULL;
    if (strcmp(text, "cpu") == 0)
        return 0;
    if (!automatic && strncmp(text, "cuda", 4) != 0)
        return sd_fail("--device %s: expected auto, cpu, cuda or cuda:N", text);
    last = count_devices(&absent) - 1;
    if (!automatic && text[4]) {
        first = text[4] == ':' ? (int)strtol(text + 5, &end, 10) : -1;
        if (first < 0 || end == text + 5 || *end)
            return sd_fail("--device %s: expected auto, cpu, cuda or cuda:N", text);
        if (last >= 0 && first > last)
            return sd_fail("--device %s: the last of %d is cuda:%d", text, last + 1, last);
        last = last >= 0 ? first : last;
    }
    if (last < 0 || (index = take(first, last, locks, &p)) < 0 || enter(index, &p, locks) < 0) {
        if (!automatic)
            return sd_fail_prefix("--device %s", text);
        sd_note(absent, "computing on the CPU: %s", sd_reason());
        return 0;
    }
    d = (struct sd_device *)calloc(1, sizeof *d);
    if (!d)
        sd_die("memory", "no room for a device");
    d->index = index;
    memcpy(d->locks, locks, sizeof locks);
    start(d, &p);
    *out = d;
    return 0;
}

extern "C" void
sd_device_close(struct sd_device *d)
{
    if (!d)
        return;
    sd_cuda_copies_wait(d);
    d->kernel = NULL;               /* a library's call is named by what its slot holds */
    for (int i = SD_SLOTS; i--; )
        if (d->slots[i].close)
            d->slots[i].close(d->slots[i].value);
    for (size_t i = 0; i < d->block_count; i++)
        CHECK(d, cudaFree(d->blocks[i].at));
    for (int i = 0; d->marks && i < SD_MARKS; i++)
        if (d->marks[i])
            CHECK(d, cudaEventDestroy(d->marks[i]));
    free(d->marks);
    sd_cuda_copies_close(d);
    unlock(d->locks);
    free(d->blocks);
    free(d);
}

extern "C" void
sd_device_leave(struct sd_device *d)
{
    (void)d;            /* the driver frees what a process had; its locks go with it */
}

extern "C" const char *sd_device_name(const struct sd_device *d) { return d->name; }
extern "C" int sd_device_multiprocessors(const struct sd_device *d) { return d->multiprocessors; }
extern "C" int sd_device_capability(const struct sd_device *d) { return d->capability; }

extern "C" const char *
sd_device_engine(const struct sd_device *c)
{
    struct sd_device *d = (struct sd_device *)c;        /* made when first asked for: it opens the libraries */

    if (!*d->engine)
        snprintf(d->engine, sizeof d->engine, "cuda %d sm_%d %s %s", CUDART_VERSION, d->capability, cublas_version(), cudnn_version());
    return d->engine;
}

extern "C" size_t
sd_device_free_bytes(const struct sd_device *d)
{
    size_t available, total;

    CHECK(d, cudaMemGetInfo(&available, &total));
    return available;
}

/* -- recording ------------------------------------------------------------------------------------------------------ */

extern "C" void
sd_device_record(struct sd_device *d)
{
    sd_cuda_not_recording(d, "a second recording");
    CHECK(d, cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal));
    d->recording = true;
}

extern "C" struct sd_recording *
sd_device_recorded(struct sd_device *d)
{
    struct sd_recording *r = (struct sd_recording *)calloc(1, sizeof *r);
    cudaGraph_t graph = NULL;
    cudaError_t e;

    if (!r)
        sd_die("memory", "no room for a recording");
    if (!d->recording)
        sd_bug("device", "nothing is being recorded");
    d->recording = false;
    r->device = d;
    if ((e = cudaStreamEndCapture(d->stream, &graph)) == cudaSuccess)
        e = cudaGraphInstantiate(&r->exec, graph, 0);
    if (graph)
        CHECK(d, cudaGraphDestroy(graph));
    if (e != cudaSuccess) {
        (void)cudaGetLastError();
        free(r);
        sd_fail("%s (%s)", cudaGetErrorString(e), cudaGetErrorName(e));
        return NULL;
    }
    d->recordings++;
    CHECK(d, cudaGraphUpload(r->exec, d->stream));
    return r;
}

extern "C" void
sd_device_replay(struct sd_device *d, struct sd_recording *r)
{
    sd_cuda_not_recording(d, "a replay");
    d->kernel = "a recording";
    CHECK(d, cudaGraphLaunch(r->exec, d->stream));
    if (d->check)
        CHECK(d, cudaStreamSynchronize(d->stream));
}

extern "C" void
sd_recording_free(struct sd_recording *r)
{
    if (!r)
        return;
    CHECK(r->device, cudaStreamSynchronize(r->device->stream));         /* it may still run */
    CHECK(r->device, cudaGraphExecDestroy(r->exec));
    r->device->recordings--;
    free(r);
}

/* -- timing --------------------------------------------------------------------------------------------------------- */

extern "C" void
sd_device_mark(struct sd_device *d, int mark)
{
    if (mark < 0 || mark >= SD_MARKS)
        sd_bug("device", "mark %d of %d", mark, SD_MARKS);
    if (!d->marks && !(d->marks = (cudaEvent_t *)calloc(SD_MARKS, sizeof *d->marks)))
        sd_die("memory", "no room for marks");
    if (!d->marks[mark]) {
        sd_cuda_not_recording(d, "a mark's first use");
        CHECK(d, cudaEventCreate(&d->marks[mark]));
    }
    /* external: a node of the graph, which notes the time at each replay; else it would order streams and no more */
    CHECK(d, cudaEventRecordWithFlags(d->marks[mark], d->stream, d->recording ? cudaEventRecordExternal : cudaEventRecordDefault));
}

extern "C" double
sd_device_between(struct sd_device *d, int first, int last)
{
    float milliseconds = 0;
    cudaError_t e = cudaErrorInvalidResourceHandle;

    sd_cuda_not_recording(d, "a look at marks");
    if (d->marks && d->marks[first] && d->marks[last] && (e = cudaEventSynchronize(d->marks[last])) == cudaSuccess)
        e = cudaEventElapsedTime(&milliseconds, d->marks[first], d->marks[last]);
    if (e == cudaSuccess)
        return milliseconds * 1e-3;
    (void)cudaGetLastError();
    sd_fail("marks %d and %d: %s (%s)", first, last, cudaGetErrorString(e), cudaGetErrorName(e));
    return -1;
}

/* -- kernels and libraries ------------------------------------------------------------------------------------------ */

extern "C" void
sd_device_enter(struct sd_device *d)
{
    CHECK(d, cudaSetDevice(d->index));
}

extern "C" void *
sd_device_stream(struct sd_device *d)
{
    return d->stream;
}

/* Does a recording end in a kernel, and in nothing else?  A library's call may end in a fill, or where two streams meet. */
static bool
ends_in_a_kernel(const struct sd_device *d)
{
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
    const cudaGraphNode_t *last = NULL;
    const cudaGraphEdgeData *edges = NULL;
    size_t count = 0;

    if (cudaStreamGetCaptureInfo(d->stream, &status, NULL, NULL, &last, &edges, &count) == cudaSuccess && count == 1
            && cudaGraphNodeGetType(last[0], &type) == cudaSuccess)
        return type == cudaGraphNodeTypeKernel;
    (void)cudaGetLastError();
    return false;
}

extern "C" bool
sd_device_overlaps(const struct sd_device *d)
{
    return d->overlaps && d->recording && ends_in_a_kernel(d);
}

extern "C" void
sd_device_launched(struct sd_device *d, const char *what)
{
    d->kernel = what;
    sd_cuda_check(d, cudaPeekAtLastError(), what);
    if (d->check && !d->recording)
        sd_cuda_check(d, cudaStreamSynchronize(d->stream), what);
}

extern "C" void *
sd_device_workspace(struct sd_device *d, size_t bytes)
{
    if (bytes <= d->workspace_bytes)
        return d->workspace;
    sd_cuda_not_recording(d, "a larger workspace");
    if (!d->recordings)         /* a recording holds the old one's address */
        sd_device_free(d, d->workspace);
    d->workspace = sd_device_alloc(d, bytes, "workspace");
    d->workspace_bytes = bytes;
    return d->workspace;
}

extern "C" void *
sd_device_slot(const struct sd_device *d, enum sd_device_slot slot)
{
    return d->slots[slot].value;
}

extern "C" void
sd_device_set_slot(struct sd_device *d, enum sd_device_slot slot, void *value, void (*close)(void *))
{
    if (d->slots[slot].value)
        sd_bug("device", "slot %d is set twice", (int)slot);
    d->slots[slot].value = value;
    d->slots[slot].close = close;
}
