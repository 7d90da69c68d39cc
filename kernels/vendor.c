/* vendor.c - finding NVIDIA's libraries, and remembering which of their algorithms was the fastest. */
#include "vendor.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <glob.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "diag.h"
#include "file.h"
#include "hash.h"

bool vendor_tf32;

/* -- libraries ------------------------------------------------------------------------------------------------------ */

static void *
open_in(const char *folder, size_t length, const char *const *names)
{
    struct sd_scope *s = sd_scope_open();
    void *library = NULL;

    for (size_t i = 0; names[i] && !library; i++) {
        const char *path = sd_sprintf(s, "%.*s/%s", (int)length, folder, names[i]);

        if (access(path, F_OK) == 0 && !(library = dlopen(path, RTLD_NOW | RTLD_LOCAL)))
            sd_fail("%s", dlerror());
    }
    sd_scope_close(s);
    return library;
}

static void *
open_matching(const char *pattern, const char *const *names)
{
    void *library = NULL;
    glob_t found;

    if (glob(pattern, GLOB_BRACE | GLOB_ONLYDIR, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc && !library; i++)
            library = open_in(found.gl_pathv[i], strlen(found.gl_pathv[i]), names);
        globfree(&found);
    }
    return library;
}

static const char packages[] = "/python3*/{site,dist}-packages/nvidia/{cu13,cu12,cublas,cudnn,cuda_nvrtc}/lib";

/* An environment's bin/python3 is a link, and another may lead to it: its packages lie beside any of them. */
static void *
open_beside_python(struct sd_scope *s, const char *const *names)
{
    const char *path = getenv("PATH");
    char at[4096] = "", to[4096];
    void *library = NULL;

    for (const char *f = path; f && *f && !*at; ) {
        size_t n = strcspn(f, ":");

        if (n && n + sizeof "/python3" <= sizeof at) {
            snprintf(at, sizeof at, "%.*s/python3", (int)n, f);
            if (access(at, X_OK))
                *at = '\0';
        }
        f += n + (f[n] == ':');
    }
    for (int i = 0; i < 16 && *at && !library; i++) {
        char *name = strrchr(at, '/');
        ssize_t n;

        library = open_matching(sd_sprintf(s, "%.*s/../lib%s", (int)(name - at), at, packages), names);
        n = readlink(at, to, sizeof to - 1);
        if (n <= 0)
            break;
        to[n] = '\0';
        if (*to == '/')
            name = at;
        else
            name++;
        if ((size_t)(name - at) + (size_t)n >= sizeof at)
            break;
        memcpy(name, to, (size_t)n + 1);
    }
    return library;
}

void *
vendor_open(const char *const *names)
{
    static const char *const prefixes[] = { "VIRTUAL_ENV", "CONDA_PREFIX" }, *const toolkits[] = { "CUDA_HOME", "CUDA_PATH" };
    const char *own = getenv("SD_CUDA_LIBS"), *home = getenv("HOME");
    struct sd_scope *s = sd_scope_open();
    void *library = NULL;

    sd_fail("%s: not found", names[0]);
    for (const char *f = own; f && *f && !library; ) {
        size_t n = strcspn(f, ":");

        if (n)
            library = open_in(f, n, names);
        f += n + (f[n] == ':');
    }
    if (!own || *own) {
        for (size_t i = 0; names[i] && !library; i++)
            library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        for (size_t i = 0; i < sizeof toolkits / sizeof *toolkits && !library; i++)
            if (getenv(toolkits[i]))
                library = open_matching(sd_sprintf(s, "%s/{lib64,lib}", getenv(toolkits[i])), names);
        if (!library)
            library = open_matching("/usr/local/cuda/{lib64,lib}", names);
        for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes && !library; i++)
            if (getenv(prefixes[i]))
                library = open_matching(sd_sprintf(s, "%s/lib%s", getenv(prefixes[i]), packages), names);
        if (!library)
            library = open_beside_python(s, names);
        if (!library && home)
            library = open_matching(sd_sprintf(s, "%s/.local/lib%s", home, packages), names);
        if (!library)
            library = open_matching(sd_sprintf(s, "/usr/{local/,}lib%s", packages), names);
    }
    sd_scope_close(s);
    return library;
}

bool
vendor_find(void *library, const char *name, void *function)
{
    void *f = dlsym(library, name);

    memcpy(function, &f, sizeof f);
    return f || sd_fail("%s is not in the library", name) == 0;
}

/* -- choices -------------------------------------------------------------------------------------------------------- */

/* One line each, "library call\tchoice"; the first names the GPU model and the libraries. */
struct tuning {
    struct sd_scope *scope;
    char *path, *title;
    char **line;
    size_t count, room;
};

static void
add_line(struct tuning *t, const char *text, size_t length)
{
    if (t->count == t->room) {
        size_t room = t->room ? 2 * t->room : 64;
        char **more = sd_alloc_array(t->scope, room, sizeof *more);

        if (t->count)
            memcpy(more, t->line, t->count * sizeof *more);
        t->line = more;
        t->room = room;
    }
    t->line[t->count++] = sd_strndup(t->scope, text, length);
}

/* What the file has beyond what we know is added; a file of another kind, or none, adds nothing. */
static void
read_lines(struct tuning *t)
{
    struct sd_scope *s = sd_scope_open();
    size_t length, title = strlen(t->title);
    char *text = sd_file_read(s, t->path, 16 << 20, &length);

    t->count = 0;
    if (text && strlen(text) == length && strncmp(text, t->title, title) == 0 && text[title] == '\n')
        for (char *p = text + title + 1, *end; (end = strchr(p, '\n')); p = end + 1)
            if (memchr(p, '\t', (size_t)(end - p)))
                add_line(t, p, (size_t)(end - p));
    sd_scope_close(s);
}

static void
close_tuning(void *value)
{
    struct tuning *t = value;

    sd_scope_close(t->scope);
}

static struct tuning *
tuning_of(struct sd_device *d)
{
    struct tuning *t = sd_device_slot(d, SD_SLOT_TUNING);
    struct sd_scope *s;
    char hex[SD_SHA256_HEX];

    if (t)
        return t;
    s = sd_scope_open();
    t = sd_alloc(s, sizeof *t);
    t->scope = s;
    t->title = sd_sprintf(s, "sd-tuning 1: %s, %s", sd_device_name(d), sd_device_engine(d));
    sd_sha256_of(t->title, strlen(t->title), hex);
    t->path = sd_sprintf(s, "%s/tuning/%.16s", sd_cache_folder(s), hex);
    read_lines(t);
    sd_device_set_slot(d, SD_SLOT_TUNING, t, close_tuning);
    return t;
}

static const char *
find_line(const struct tuning *t, const char *library, const char *call)
{
    size_t a = strlen(library), b = strlen(call);

    for (size_t i = 0; i < t->count; i++) {
        const char *p = t->line[i];

        if (strncmp(p, library, a) == 0 && p[a] == ' ' && strncmp(p + a + 1, call, b) == 0 && p[a + 1 + b] == '\t')
            return p + a + 1 + b + 1;
    }
    return NULL;
}

/* Is there a choice for the call that this line is about? */
static bool
has_line(const struct tuning *t, const char *line)
{
    size_t n = strcspn(line, "\t") + 1;

    for (size_t i = 0; i < t->count; i++)
        if (strncmp(t->line[i], line, n) == 0)
            return true;
    return false;
}

const char *
tuning_find(struct sd_device *d, const char *library, const char *call)
{
    return find_line(tuning_of(d), library, call);
}

static int
write_lines(const struct tuning *t)
{
    struct sd_output *o = sd_output_open(t->path);

    if (!o)
        return -1;
    fprintf(sd_output_file(o), "%s\n", t->title);
    for (size_t i = 0; i < t->count; i++)
        fprintf(sd_output_file(o), "%s\n", t->line[i]);
    return sd_output_commit(o);
}

const char *
tuning_store(struct sd_device *d, const char *library, const char *call, const char *choice)
{
    struct tuning *t = tuning_of(d);
    struct sd_scope *s = sd_scope_open();
    const char *folder = sd_sprintf(s, "%s/tuning", sd_cache_folder(s)), *kept;
    static bool said;
    int lock = -1, status = sd_make_folders(folder);
    char *line;

    if (!status) {
        lock = open(sd_sprintf(s, "%s.lock", t->path), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        status = lock < 0 || flock(lock, LOCK_EX) ? sd_fail_errno("%s.lock", t->path) : 0;
    }
    if (!status && access(t->path, F_OK) == 0) {
        struct tuning before = *t;

        read_lines(t);
        for (size_t i = 0; i < before.count; i++)           /* a file that was lost: what this run computed with stays */
            if (!has_line(t, before.line[i]))
                add_line(t, before.line[i], strlen(before.line[i]));
    }
    kept = find_line(t, library, call);
    if (!kept) {
        line = sd_sprintf(s, "%s %s\t%s", library, call, choice);
        add_line(t, line, strlen(line));
        kept = find_line(t, library, call);
        if (!status)
            status = write_lines(t);
    }
    if (status && !said) {
        sd_warn(t->path, "the choice of algorithms is not kept, the next run may choose others: %s", sd_reason());
        said = true;
    }
    if (lock >= 0)
        close(lock);
    sd_scope_close(s);
    return kept;
}

bool
tuning_wanted(void)
{
    const char *text = getenv("SD_TUNE");

    return !text || strcmp(text, "0") != 0;
}

double
tuning_clock(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double
tuning_time(struct sd_device *d, bool (*run)(void *), void *argument)
{
    enum { TIMES = 10, ROUNDS = 3 };
    struct sd_recording *r;
    double best = -1;
    bool ok = run(argument);                /* what is loaded or compiled on first use */

    if (!ok)
        return -1;
    sd_device_record(d);
    for (int i = 0; i < TIMES && ok; i++)
        ok = run(argument);
    if (!(r = sd_device_recorded(d)))
        return -1;
    for (int i = 0; i < ROUNDS + 1 && ok; i++) {
        double begin, t;

        sd_device_wait(d);
        begin = tuning_clock();
        sd_device_replay(d, r);
        sd_device_wait(d);
        t = (tuning_clock() - begin) / TIMES;
        if (i && (best < 0 || t < best))    /* the first warms up */
            best = t;
    }
    sd_recording_free(r);
    return best;
}

bool
tuning_replay(struct sd_device *d, bool (*run)(void *), void *argument)
{
    struct sd_recording *r;
    bool ok;

    sd_device_record(d);
    ok = run(argument);
    if (!(r = sd_device_recorded(d)))
        return false;
    if (ok)
        sd_device_replay(d, r);
    sd_recording_free(r);
    return ok;
}

static double
element(const void *p, enum sd_dtype dtype, size_t i)
{
    uint16_t bits;
    union { uint32_t u; float f; } x;

    if (dtype == SD_F32)
        return ((const float *)p)[i];
    bits = ((const uint16_t *)p)[i];
    if (dtype == SD_BF16)
        x.u = (uint32_t)bits << 16;
    else if ((bits & 0x7c00) == 0x7c00)
        return bits & 0x3ff ? NAN : INFINITY;
    else {                              /* 2^112 lifts subnormal numbers too */
        x.u = (uint32_t)(bits & 0x7fff) << 13;
        x.f *= 0x1p112f;
        if (bits & 0x8000)
            x.f = -x.f;
    }
    return x.f;
}

double
tuning_distance(const void *found, const void *expected, enum sd_dtype dtype, size_t count)
{
    double apart = 0, all = 0;

#pragma omp parallel for schedule(static) reduction(+ : apart, all)
    for (size_t i = 0; i < count; i++) {
        double e = element(expected, dtype, i), f = element(found, dtype, i);

        apart += (f - e) * (f - e);
        all += e * e;
    }
    if (!isfinite(all))
        return 0;
    return all > 0 ? sqrt(apart / all) : apart > 0 ? INFINITY : apart;      /* NaN stays NaN */
}

double
tuning_bound(enum sd_dtype dtype)
{
    return dtype == SD_BF16 ? 2e-2 : dtype == SD_F16 ? 4e-3 : vendor_tf32 ? 1e-2 : 1e-3;
}
