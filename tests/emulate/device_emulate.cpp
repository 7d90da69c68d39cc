/* device_emulate.cpp - libcommon/device.h for the tests: memory with guards, kernels run by emulate.cpp.
 *
 * All device memory lies in one reserved range of addresses, which the host may touch only inside the functions here and
 * kernels only while they run: elsewhere it is PROT_NONE, and a fault names what was touched.  Allocations are poisoned with
 * 0xff (NaN) and lie between guards of 256 bytes, looked at after every launch while there are few, else on wait and free.  What a
 * card has as the parts of one allocation has guards of its own here, each part, and is counted as the card's.
 * A process that links this runs the tests on the emulated device: SD_TEST_DEVICE is set to "cuda" unless it says otherwise.
 * Where nothing runs (dry.cpp) memory is neither poisoned nor cleared, so that what is not written takes none of the machine's:
 * it holds zeros, or what was there before. */
#include "device_emulate.h"

#include "clock.h"

#include <algorithm>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

using namespace sd::emulate;

enum { GUARD = 256, PAGE = 4096, FEW = 128, MULTIPROCESSORS = 132 };
static const unsigned char GUARD_BYTE = 0x5a;

struct allocation {
    unsigned char *data;            /* GUARD bytes before and behind are ours */
    size_t bytes, room;             /* room: with guards, whole pages */
    size_t counted;
    std::string what;
    struct sd_device *device;
    const void *whole;              /* the first part of what is freed as one */
};

static unsigned char *base, *high, *limit;          /* the range; the end of the last allocation; its end */
static int opened;
static std::vector<struct allocation> live;         /* by address */
static std::string last_kernel;

static bool
strict(void)
{
    static const bool on = !dry() && (!getenv("SD_EMULATE_STRICT") || strcmp(getenv("SD_EMULATE_STRICT"), "0") != 0);

    return on;
}

static bool
is_device(const void *p)
{
    return p >= base && p < limit;
}

static struct allocation *
find(const void *p)
{
    auto a = std::upper_bound(live.begin(), live.end(), p, [](const void *q, const allocation &x) { return q < x.data; });

    if (a == live.begin())
        return NULL;
    a--;
    return p <= a->data + a->bytes ? &*a : NULL;
}

/* -- the door ------------------------------------------------------------------------------------------------------- */

static void
say(const char *text)
{
    if (write(2, text, strlen(text)) < 0)
        abort();
}

static struct sigaction before;

static void
on_fault(int number, siginfo_t *info, void *context)
{
    char where[512] = "the host", text[1024];
    const void *p = info->si_addr;
    const struct allocation *a;

    if (!is_device(p) && !sd::emulate::in_stack_guard(p)) {
        if (before.sa_flags & SA_SIGINFO && before.sa_sigaction) {
            before.sa_sigaction(number, info, context);
        } else {
            signal(number, SIG_DFL);
            raise(number);
        }
        return;
    }
    sd::emulate::whereabouts(where, sizeof where);
    a = is_device(p) ? find(p) : NULL;
    if (!is_device(p))
        snprintf(text, sizeof text, "emulate: %s: the stack is full\n", where);
    else if (a)
        snprintf(text, sizeof text, "emulate: %s touches device memory, byte %td of %s\n", where, (const unsigned char *)p - a->data,
                 a->what.c_str());
    else
        snprintf(text, sizeof text, "emulate: %s touches address %p, which is in no allocation\n", where, p);
    say(text);
    signal(SIGABRT, SIG_DFL);
    abort();
}

static void
reserve(void)
{
    struct sigaction on = {};

    for (size_t bytes = (size_t)64 << 30; !base; bytes /= 2) {
        void *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        if (p != MAP_FAILED) {
            base = high = static_cast<unsigned char *>(p);
            limit = base + bytes;
        } else if (bytes < (size_t)1 << 28) {
            sd_die("emulate", "no address space for device memory");
        }
    }
    on.sa_sigaction = on_fault;
    on.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &on, &before);
}

static void
protect(int how)
{
    if (high > base && mprotect(base, (size_t)(high - base), how))
        sd_die("emulate", "mprotect: %s", strerror(errno));
}

sd::emulate::door::door(void) { if (opened++ == 0 && strict()) protect(PROT_READ | PROT_WRITE); }
sd::emulate::door::~door(void) { if (--opened == 0 && strict()) protect(PROT_NONE); }

static void
check_guards(const struct allocation &a)
{
    static const std::string &whole = *new std::string(GUARD, (char)GUARD_BYTE);     /* the device is closed at exit */
    const char *kernel = last_kernel.empty() ? "nothing" : last_kernel.c_str();

    ASAN_UNPOISON_MEMORY_REGION(a.data - GUARD, GUARD);
    ASAN_UNPOISON_MEMORY_REGION(a.data + a.bytes, a.room - GUARD - a.bytes);
    bool good = !memcmp(a.data - GUARD, whole.data(), GUARD) && !memcmp(a.data + a.bytes, whole.data(), GUARD);
    for (size_t i = 0; !good && i < GUARD; i++) {
        if (a.data[-1 - (ptrdiff_t)i] != GUARD_BYTE)
            sd_bug("emulate", "%s: written %zu bytes before its begin; last run: %s", a.what.c_str(), i + 1, kernel);
        if (a.data[a.bytes + i] != GUARD_BYTE)
            sd_bug("emulate", "%s: written %zu bytes behind its end (%zu bytes); last run: %s", a.what.c_str(), i, a.bytes, kernel);
    }
    ASAN_POISON_MEMORY_REGION(a.data - GUARD, GUARD);
    ASAN_POISON_MEMORY_REGION(a.data + a.bytes, a.room - GUARD - a.bytes);
}

void
sd::emulate::check_all_guards(void)
{
    for (const struct allocation &a : live)
        check_guards(a);
}

/* -- what emulate.h asks -------------------------------------------------------------------------------------------- */

void
sd::emulate::check_pointer(const char *kernel, int argument, const void *p)
{
    if (p && !find(p))
        sd_bug(kernel, is_device(p) ? "argument %d (from 0) points at freed device memory" : "argument %d (from 0) is a host address",
               argument);
}

bool
sd::emulate::device_range(const unsigned char **from, const unsigned char **to)
{
    *from = base;
    *to = limit;
    return base != NULL;
}

/* A word that is the address of a mapped page of the host is no number by chance; but a small number may be followed by four
 * bytes of padding that an old pointer left. */
void
sd::emulate::check_struct(const char *kernel, int argument, const void *words, size_t bytes)
{
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        uintptr_t v;
        unsigned char there;

        memcpy(&v, (const char *)words + i, 8);
        if ((uint32_t)v < 1u << 20)
            continue;
        if (is_device((const void *)v) && !find((const void *)v))
            sd_bug(kernel, "argument %d (from 0) holds, at byte %zu, an address of freed device memory", argument, i);
        if (!is_device((const void *)v) && v >> 40 >= 0x55 && v >> 47 == 0 &&
            mincore((void *)(v & ~(uintptr_t)(PAGE - 1)), PAGE, &there) == 0)
            sd_bug(kernel, "argument %d (from 0) holds, at byte %zu, a host address", argument, i);
    }
}

void
sd::emulate::do_or_record(struct sd_device *d, std::string line, std::function<void()> what)
{
    if (d->recording) {
        d->recording->list.push_back({ std::move(line), std::move(what) });
        return;
    }
    dry_now(line);
    what();
}

static std::string
kernel_line(const launch &l)
{
    return dry_line("kernel\t%s\t%s\t%lldx%lldx%lld\t%lldx%lldx%lld\t%lld", l.file, l.kernel, (long long)l.grid.x,
                    (long long)l.grid.y, (long long)l.grid.z, (long long)l.block.x, (long long)l.block.y, (long long)l.block.z,
                    (long long)l.shared);
}

void
sd::emulate::submit(struct sd_device *d, const launch &l, size_t argument_bytes, std::function<void()> check, std::function<void()> body)
{
    if (!d)
        sd_bug(l.kernel, "launched on no device");
    if (argument_bytes > 4096)
        sd_bug(l.kernel, "%zu bytes of arguments: at most 4096", argument_bytes);
    check_launch(l);
    do_or_record(d, kernel_line(l), [l, check, body] {
        door open;

        check();
        if (dry())
            return;
        last_kernel = l.kernel;
        run_blocks(l, body);
        if (live.size() <= FEW)
            check_all_guards();
    });
}

/* A library's work: of the stream's device, with a copy of its argument.  sd_device_launched says what it was. */
void
sd::emulate::library_work(void *stream, void (*work)(void *), const void *argument, size_t bytes)
{
    std::string copy((const char *)argument, bytes);

    do_or_record(static_cast<struct sd_device *>(stream), dry_line("library\tan attempt"), [work, copy]() mutable {
        door open;

        if (dry())
            return;

        last_kernel = "a library";
        work(&copy[0]);
        check_all_guards();
    });
}

/* For tests/fake, which finds it in the program that opened it. */
extern "C" void
sd_emulate_library_work(void *stream, void (*work)(void *), const void *argument, size_t bytes)
{
    sd::emulate::library_work(stream, work, argument, bytes);
}

/* -- device.h ------------------------------------------------------------------------------------------------------- */

static void __attribute__((constructor))
test_device(void)
{
    setenv("SD_TEST_DEVICE", "cuda", 0);
}

int
sd_device_open(struct sd_device **d, const char *text)
{
    *d = NULL;
    if (strcmp(text, "cpu") == 0)
        return 0;
    if (strcmp(text, "auto") != 0 && strcmp(text, "cuda") != 0 && strcmp(text, "cuda:0") != 0)
        return strncmp(text, "cuda:", 5) == 0 ? sd_fail("--device %s: there is one device, emulated", text)
                                              : sd_fail("--device %s: expected auto, cpu, cuda or cuda:N", text);
    if (!base)
        reserve();
    *d = new struct sd_device();
    return 0;
}

void
sd_device_close(struct sd_device *d)
{
    if (!d)
        return;
    for (int i = SD_SLOTS - 1; i >= 0; i--)
        sd_device_set_slot(d, (enum sd_device_slot)i, NULL, NULL);
    if (d->workspace)
        sd_device_free(d, d->workspace);
    sd_device_wait(d);
    for (const struct allocation &a : live)
        if (a.device == d)
            sd_bug("emulate", "the device is closed with %s (%zu bytes) still allocated", a.what.c_str(), a.bytes);
    delete d->recording;
    delete d;
}

void
sd_device_leave(struct sd_device *d)
{
    if (d) {                            /* a program that gives up frees nothing */
        door open;

        check_all_guards();
    }
}

const char *sd_device_name(const struct sd_device *d) { (void)d; return "emulated"; }
const char *sd_device_engine(const struct sd_device *d) { (void)d; return "emulated"; }
int sd_device_multiprocessors(const struct sd_device *d) { (void)d; return MULTIPROCESSORS; }
void *sd_device_stream(struct sd_device *d) { return d; }
bool sd_device_overlaps(const struct sd_device *d) { (void)d; return true; }
void sd_device_enter(struct sd_device *d) { (void)d; }
size_t sd_device_allocated(const struct sd_device *d) { return d->allocated; }

/* Libraries alone say so here: of kernels SD_LAUNCH tells more. */
void
sd_device_launched(struct sd_device *d, const char *call)
{
    last_kernel = call;
    if (d->recording)
        d->recording->list.back().line = dry_line("library\t%s", call);
}

/* 0: libraries are not asked; SD_EMULATE_CAPABILITY says otherwise, for those of tests/fake. */
int
sd_device_capability(const struct sd_device *d)
{
    const char *text = getenv("SD_EMULATE_CAPABILITY");

    (void)d;
    return text ? atoi(text) : 0;
}

size_t
sd_device_free_bytes(const struct sd_device *d)
{
    const char *text = getenv("SD_EMULATE_MEMORY");         /* bytes of the whole device */
    size_t all = text ? strtoull(text, NULL, 10) : (size_t)8 << 30;

    return all > d->allocated ? all - d->allocated : 0;
}

void
sd::emulate::not_recording(const struct sd_device *d, const char *what)
{
    if (d->recording)
        sd_bug("emulate", "%s while the device records", what);
}

/* SD_EMULATE_ALLOCATIONS: a file that gets a line for each: all that is allocated now, this one's bytes, what it is. */
static void
note_allocation(const struct sd_device *d, size_t bytes, const char *what)
{
    const char *path = getenv("SD_EMULATE_ALLOCATIONS");
    FILE *f = path ? fopen(path, "a") : NULL;

    if (f) {
        fprintf(f, "%zu %zu %s\n", d->allocated, bytes, what);
        fclose(f);
    }
}

static void
check_free(const struct sd_device *d, size_t bytes, const char *what)
{
    not_recording(d, "sd_device_alloc");
    if (bytes > sd_device_free_bytes(d))
        sd_die("device", "out of memory: %zu bytes for %s, %zu are free", bytes, what, sd_device_free_bytes(d));
}

/* whole: NULL where this is the first part. */
static void *
allocate(struct sd_device *d, size_t bytes, size_t counted, const char *what, const void *whole)
{
    size_t room = (bytes + 2 * GUARD + PAGE - 1) / PAGE * PAGE;
    unsigned char *at = base;
    auto place = live.begin();

    for (; place != live.end(); place++) {                  /* the first gap that is wide enough */
        if ((size_t)(place->data - GUARD - at) >= room)
            break;
        at = place->data - GUARD + place->room;
    }
    if (room > (size_t)(limit - at))
        sd_die("device", "out of address space: %zu bytes for %s", bytes, what);
    if (at + room > high) {
        high = at + room;
        if (!strict() || opened)
            protect(PROT_READ | PROT_WRITE);
    }

    door open;

    ASAN_UNPOISON_MEMORY_REGION(at, room);
    memset(at, GUARD_BYTE, GUARD);
    memset(at + GUARD + bytes, GUARD_BYTE, room - GUARD - bytes);
    if (!dry())
        memset(at + GUARD, FRESH, bytes);
    ASAN_POISON_MEMORY_REGION(at, GUARD);
    ASAN_POISON_MEMORY_REGION(at + GUARD + bytes, room - GUARD - bytes);
    live.insert(place, { at + GUARD, bytes, room, counted, what, d, whole ? whole : at + GUARD });
    d->allocated += counted;
    return at + GUARD;
}

void *
sd_device_alloc(struct sd_device *d, size_t bytes, const char *what)
{
    void *at;

    check_free(d, bytes, what);
    at = allocate(d, bytes, bytes, what, NULL);
    note_allocation(d, bytes, what);
    return at;
}

void
sd_device_alloc_parts(struct sd_device *d, struct sd_device_part *part, size_t parts)
{
    size_t bytes = 0;

    for (size_t i = 0; i < parts; i++)
        bytes += sd_device_rounded(part[i].bytes);
    check_free(d, bytes, part[0].what);
    for (size_t i = 0; i < parts; i++)
        part[i].at = allocate(d, part[i].bytes, sd_device_rounded(part[i].bytes), part[i].what, i ? part[0].at : NULL);
    note_allocation(d, bytes, part[0].what);
}

static void
drop(struct sd_device *d, struct allocation *a)
{
    for (struct side &side : d->side)       /* what was to be copied there is waited for, and gone */
        for (auto *list : { &side.pending, &side.taken })
            list->erase(std::remove_if(list->begin(), list->end(), [a](const side::write &w) {
                return w.to >= a->data && w.to < a->data + a->bytes; }), list->end());

    door open;

    check_guards(*a);
    if (!dry())
        memset(a->data, FRESH, a->bytes);
    ASAN_POISON_MEMORY_REGION(a->data, a->bytes);
    d->allocated -= a->counted;
    live.erase(live.begin() + (a - live.data()));
}

void
sd_device_free(struct sd_device *d, void *p)
{
    struct allocation *a = p ? find(p) : NULL;
    unsigned char *end;

    if (!p)
        return;
    not_recording(d, "sd_device_free");
    if (!a || a->data != p || a->whole != p)
        sd_bug("emulate", "sd_device_free: %p is not allocated%s", p, a && a->data == p ? " by itself" : "");
    for (size_t i = live.size(); i--; )
        if (live[i].whole == p)
            drop(d, &live[i]);
    end = live.empty() ? base : live.back().data - GUARD + live.back().room;
    if (end < high && mprotect(end, (size_t)(high - end), PROT_NONE))
        sd_die("emulate", "mprotect: %s", strerror(errno));
    high = end;
}

void
sd::emulate::check_range(const char *what, const void *p, size_t bytes)
{
    const struct allocation *a = find(p);

    if (!a)
        sd_bug("emulate", "%s: %p is %s", what, p, is_device(p) ? "in no allocation" : "a host address");
    if (bytes > a->bytes - (size_t)((const unsigned char *)p - a->data))
        sd_bug("emulate", "%s: %zu bytes from byte %td of %s, which has %zu", what, bytes, (const unsigned char *)p - a->data,
               a->what.c_str(), a->bytes);
}

void
sd::emulate::check_host(const char *what, const void *p)
{
    if (is_device(p))
        sd_bug("emulate", "%s: %p is device memory, not the host's", what, p);
}

struct sd_device_counts
sd_device_counts(const struct sd_device *d)
{
    return d->counts;
}

void
sd_device_record(struct sd_device *d)
{
    not_recording(d, "sd_device_record");
    d->recording = new struct sd_recording();
}

struct sd_recording *
sd_device_recorded(struct sd_device *d)
{
    struct sd_recording *r = d->recording;

    if (!r)
        sd_bug("emulate", "sd_device_recorded: nothing was recorded");
    d->recording = NULL;
    if (getenv("SD_EMULATE_NO_RECORDING")) {
        delete r;
        sd_fail("SD_EMULATE_NO_RECORDING is set");
        return NULL;
    }
    return r;
}

void
sd_device_replay(struct sd_device *d, struct sd_recording *r)
{
    not_recording(d, "sd_device_replay");
    dry_replay(r);
    for (const struct launched &l : r->list)
        l.run();
}

void
sd_recording_free(struct sd_recording *r)
{
    delete r;
}

void
sd_device_mark(struct sd_device *d, int mark)
{
    if (mark < 0 || mark >= SD_MARKS)
        sd_bug("emulate", "mark %d of %d", mark, SD_MARKS);
    d->marks.resize(SD_MARKS);
    if (!d->marks[mark])
        not_recording(d, "sd_device_mark of a new number");
    do_or_record(d, dry_line("mark\t%d", mark), [d, mark] { d->marks[mark] = sd_clock(); });
}

double
sd_device_between(struct sd_device *d, int first, int last)
{
    not_recording(d, "sd_device_between");
    if (d->marks.empty() || !d->marks[first] || !d->marks[last]) {
        sd_fail("marks %d and %d: not both were noted", first, last);
        return -1;
    }
    return d->marks[last] - d->marks[first];
}

void *
sd_device_workspace(struct sd_device *d, size_t bytes)
{
    if (bytes > d->workspace_bytes) {
        not_recording(d, "sd_device_workspace grows");
        if (d->workspace)
            sd_device_free(d, d->workspace);
        d->workspace = sd_device_alloc(d, bytes, "workspace");
        d->workspace_bytes = bytes;
    }
    return d->workspace;
}

void *
sd_device_slot(const struct sd_device *d, enum sd_device_slot slot)
{
    return d->slot[slot];
}

void
sd_device_set_slot(struct sd_device *d, enum sd_device_slot slot, void *value, void (*close)(void *))
{
    if (d->slot[slot] && d->close_slot[slot])
        d->close_slot[slot](d->slot[slot]);
    d->slot[slot] = value;
    d->close_slot[slot] = close;
}
