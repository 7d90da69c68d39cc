/* diag.c - messages, scopes, outputs; the rules are in diag.h. */
#include "diag.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LINE = 4096, ALIGN = 64 };

const char *sd_program = "sd";
int sd_verbosity;

static _Thread_local char reason[LINE / 2];
static atomic_int error_count;

/* ---- why ---------------------------------------------------------------------------------------------------- */

static void
set_reason(const char *format, va_list ap)
{
    char text[sizeof reason];   /* the arguments may point into the old reason */

    vsnprintf(text, sizeof text, format, ap);
    memcpy(reason, text, sizeof reason);
}

int
sd_fail(const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    set_reason(format, ap);
    va_end(ap);
    return -1;
}

void *
sd_fail_null(const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    set_reason(format, ap);
    va_end(ap);
    return NULL;
}

int
sd_fail_errno(const char *format, ...)
{
    int e = errno;
    va_list ap;
    size_t n;

    va_start(ap, format);
    set_reason(format, ap);
    va_end(ap);
    n = strlen(reason);
    snprintf(reason + n, sizeof reason - n, "%s%s", n ? ": " : "", strerror(e));
    return -1;
}

int
sd_fail_prefix(const char *format, ...)
{
    char old[sizeof reason];
    va_list ap;

    memcpy(old, sd_reason(), strlen(sd_reason()) + 1);
    va_start(ap, format);
    set_reason(format, ap);
    va_end(ap);
    strncat(reason, ": ", sizeof reason - strlen(reason) - 1);
    strncat(reason, old, sizeof reason - strlen(reason) - 1);
    return -1;
}

const char *
sd_reason(void)
{
    if (!reason[0])
        strcpy(reason, "unknown error");
    return reason;
}

/* ---- lines on stderr ---------------------------------------------------------------------------------------- */

/* The length of the UTF-8 sequence at p when it may be shown as it is; 0 for control characters (C0, DEL, C1) and
 * for bytes that are no UTF-8. */
static size_t
printable(const unsigned char *p)
{
    size_t n = *p < 0x80 ? 1 : *p >= 0xc2 && *p < 0xe0 ? 2 : *p >= 0xe0 && *p < 0xf0 ? 3 : *p >= 0xf0 && *p < 0xf5 ? 4 : 0;

    if (n == 1)
        return *p >= 0x20 && *p != 0x7f;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    return p[0] == 0xc2 && p[1] < 0xa0 ? 0 : n;
}

/* Appends text to line, escaped, leaving room for " ...\n". */
static size_t
append(char *line, size_t at, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; ) {
        size_t n = printable(p);

        if (at + 10 > LINE) {
            memcpy(line + at, " ...", 4);
            return at + 4;
        }
        if (n) {
            memcpy(line + at, p, n);
            at += n;
            p += n;
        } else if (*p == '\n' || *p == '\t') {
            line[at++] = '\\';
            line[at++] = *p++ == '\n' ? 'n' : 't';
        } else {
            at += (size_t)sprintf(line + at, "\\x%02x", *p++);
        }
    }
    return at;
}

static void
say(const char *tag, const char *subject, const char *format, va_list ap)
{
    char line[LINE + 8], text[LINE];
    size_t n;

    vsnprintf(text, sizeof text, format, ap);
    n = append(line, 0, sd_program);
    n = append(line, n, ": ");
    n = append(line, n, tag);
    if (subject) {
        n = append(line, n, subject);
        n = append(line, n, ": ");
    }
    n = append(line, n, text);
    line[n++] = '\n';
    fwrite(line, 1, n, stderr);         /* one write: lines of several processes do not mix */
}

void
sd_error(const char *subject, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    say("", subject, format, ap);
    va_end(ap);
    error_count++;
}

void
sd_warn(const char *subject, const char *format, ...)
{
    va_list ap;

    if (sd_verbosity < 0)
        return;
    va_start(ap, format);
    say("warning: ", subject, format, ap);
    va_end(ap);
}

void
sd_note(int level, const char *format, ...)
{
    va_list ap;

    if (sd_verbosity < level)
        return;
    va_start(ap, format);
    say("", NULL, format, ap);
    va_end(ap);
}

int
sd_error_count(void)
{
    return error_count;
}

/* ---- outputs ------------------------------------------------------------------------------------------------ */

/* Never freed, only used again: a signal handler may look at the list at any time. */
struct sd_output {
    struct sd_output *next;
    atomic_bool in_use, part_exists;
    bool direct;                        /* a device or pipe: written in place */
    FILE *file;
    char path[LINE], part[LINE];
};
static struct sd_output *_Atomic outputs;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct sd_output *
new_output(void)
{
    struct sd_output *o;

    pthread_mutex_lock(&lock);
    for (o = outputs; o && o->in_use; o = o->next)
        ;
    if (!o && (o = calloc(1, sizeof *o))) {
        o->next = outputs;
        outputs = o;
    }
    if (o)
        o->in_use = true;
    pthread_mutex_unlock(&lock);
    if (!o)
        sd_die("memory", "no room for an output");
    return o;
}

static void
remove_parts(void)      /* safe in a signal handler */
{
    for (struct sd_output *o = outputs; o; o = o->next)
        if (o->part_exists)
            unlink(o->part);
}

struct sd_output *
sd_output_open(const char *path)
{
    struct sd_output *o;
    struct stat st;
    int fd;

    if (strlen(path) + sizeof ".part" > LINE)
        return sd_fail_null("name too long");
    o = new_output();
    strcpy(o->path, path);
    strcpy(stpcpy(o->part, path), ".part");
    o->direct = !stat(path, &st) && !S_ISREG(st.st_mode);
    if (o->direct && S_ISDIR(st.st_mode)) {
        o->in_use = false;
        return sd_fail_null("is a directory");
    }
    if (o->direct) {
        fd = open(path, O_WRONLY | O_CLOEXEC);
    } else {
        unlink(o->part);                /* left by a run that was killed */
        fd = open(o->part, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        o->part_exists = fd >= 0;
    }
    if (fd < 0 || !(o->file = fdopen(fd, o->direct ? "w" : "w+"))) {
        sd_fail_errno("cannot be written");
        if (fd >= 0)
            close(fd);
        o->file = NULL;
        sd_output_abandon(o);
        return NULL;
    }
    return o;
}

FILE *
sd_output_file(struct sd_output *o)
{
    return o->file;
}

/* A rename is durable only when its directory is written too. */
static int
sync_directory(const char *path)
{
    char name[LINE];
    char *slash;
    int fd, status;

    strcpy(name, path);
    slash = strrchr(name, '/');
    if (!slash)
        strcpy(name, ".");
    else
        slash[slash == name] = '\0';
    if ((fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        return errno == EACCES ? 0 : -1;        /* a directory may be writable and not readable */
    status = fsync(fd);
    if (status && (errno == EINVAL || errno == EROFS || errno == ENOTSUP))
        status = 0;                             /* file systems without it */
    close(fd);
    return status;
}

int
sd_output_commit(struct sd_output *o)
{
    struct stat ours, theirs;
    bool bad = ferror(o->file);
    int status;

    if (bad)
        errno = errno ? errno : EIO;
    if (bad || fflush(o->file) || (!o->direct && fsync(fileno(o->file)))) {
        sd_fail_errno("cannot be written");
        sd_output_abandon(o);
        return -1;
    }
    if (!o->direct && (fstat(fileno(o->file), &ours) || stat(o->part, &theirs) || ours.st_ino != theirs.st_ino
            || ours.st_dev != theirs.st_dev)) {
        o->part_exists = false;                 /* not ours any more */
        sd_output_abandon(o);
        return sd_fail("another process writes it too (its .part was replaced)");
    }
    status = fclose(o->file);
    o->file = NULL;
    if (status || (!o->direct && rename(o->part, o->path))) {
        sd_fail_errno("cannot be written");
        sd_output_abandon(o);
        return -1;
    }
    o->part_exists = false;
    if (!o->direct && sync_directory(o->path))
        status = sd_fail_errno("its directory cannot be synced");
    o->in_use = false;
    return status;
}

void
sd_output_abandon(struct sd_output *o)
{
    if (!o)
        return;
    if (o->part_exists)
        unlink(o->part);
    o->part_exists = false;
    if (o->file)
        fclose(o->file);
    o->file = NULL;
    o->in_use = false;
}

void
sd_output_refuse(const char *path, bool overwrite)
{
    struct stat st;

    if (!overwrite && !stat(path, &st) && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode)))
        sd_usage(path, "exists (use --overwrite)");
}

/* ---- ends --------------------------------------------------------------------------------------------------- */

void
sd_die(const char *subject, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    say("", subject, format, ap);
    va_end(ap);
    remove_parts();
    exit(SD_FAILED);
}

void
sd_usage(const char *subject, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    say("", subject, format, ap);
    va_end(ap);
    remove_parts();
    exit(SD_USAGE);
}

void
sd_bug(const char *where, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    say("bug: ", where, format, ap);
    va_end(ap);
    remove_parts();
    abort();
}

static void
on_signal(int number)
{
    remove_parts();
    signal(number, SIG_DFL);
    raise(number);              /* pending until this handler returns */
}

/* A mapped file that somebody cut short; the only other cause here is a failing disk. */
static void
on_bus_error(int number)
{
    static const char text[] = ": a mapped file was cut short\n";
    ssize_t n;

    (void)number;
    remove_parts();
    n = write(2, sd_program, strlen(sd_program)) + write(2, text, sizeof text - 1);
    (void)n;
    _exit(SD_FAILED);
}

static void
on_pipe(int number)
{
    (void)number;
}

void
sd_catch_signals(void)
{
    static const int ends[] = { SIGINT, SIGTERM, SIGHUP };
    struct sigaction action = { .sa_handler = on_signal }, old;

    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (!sigaction(ends[i], NULL, &old) && old.sa_handler != SIG_IGN)       /* nohup stays nohup */
            sigaction(ends[i], &action, NULL);
    /* A dead reader or a size limit is a failed write with a message.  Handlers, not SIG_IGN: children get the default. */
    action.sa_handler = on_pipe;
    action.sa_flags = SA_RESTART;
    sigaction(SIGPIPE, &action, NULL);
    sigaction(SIGXFSZ, &action, NULL);
    action.sa_handler = on_bus_error;
    sigaction(SIGBUS, &action, NULL);
    /* Closed standard descriptors are filled, the wrong way round, so that no output file becomes number 1. */
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", fd ? O_RDONLY : O_WRONLY) != fd)
            exit(SD_FAILED);
}

/* ---- scopes ------------------------------------------------------------------------------------------------- */

struct block {
    struct block *next;
};
struct cleanup {
    struct cleanup *next;
    void (*f)(void *);
    void *argument;
};
struct sd_scope {
    struct block *blocks;
    struct cleanup *cleanups;
};
static struct sd_scope root;    /* what a NULL scope means */

struct sd_scope *
sd_scope_open(void)
{
    struct sd_scope *s = calloc(1, sizeof *s);

    if (!s)
        sd_die("memory", "no room for a scope");
    return s;
}

static void
run_cleanups(struct sd_scope *s)
{
    struct cleanup *c;

    while ((c = s->cleanups)) {
        s->cleanups = c->next;
        c->f(c->argument);
    }
}

void
sd_scope_close(struct sd_scope *s)
{
    struct block *b;

    if (!s)
        return;
    run_cleanups(s);
    while ((b = s->blocks)) {
        s->blocks = b->next;
        free(b);
    }
    free(s);
}

void *
sd_alloc(struct sd_scope *s, size_t bytes)
{
    const size_t extra = sizeof(struct block) + ALIGN - 1;
    struct block *b = bytes <= PTRDIFF_MAX - extra ? calloc(1, bytes + extra) : NULL;

    if (!b)
        sd_die("memory", "%zu bytes wanted, not there", bytes);
    if (!s)
        s = &root;
    pthread_mutex_lock(&lock);
    b->next = s->blocks;
    s->blocks = b;
    pthread_mutex_unlock(&lock);
    return (void *)(((uintptr_t)(b + 1) + ALIGN - 1) / ALIGN * ALIGN);
}

void *
sd_alloc_array(struct sd_scope *s, size_t count, size_t size)
{
    size_t bytes;

    if (__builtin_mul_overflow(count, size, &bytes))
        sd_die("memory", "%zu times %zu bytes wanted, not there", count, size);
    return sd_alloc(s, bytes);
}

char *
sd_strndup(struct sd_scope *s, const char *text, size_t length)
{
    char *copy = sd_alloc(s, length + 1);

    memcpy(copy, text, length);
    return copy;
}

char *
sd_strdup(struct sd_scope *s, const char *text)
{
    return sd_strndup(s, text, strlen(text));
}

char *
sd_sprintf(struct sd_scope *s, const char *format, ...)
{
    va_list ap;
    char *text, *copy;
    int n;

    va_start(ap, format);
    n = vasprintf(&text, format, ap);
    va_end(ap);
    if (n < 0)
        sd_die("memory", "no room for a text");
    copy = sd_strndup(s, text, (size_t)n);
    free(text);
    return copy;
}

void
sd_on_close(struct sd_scope *s, void (*f)(void *), void *argument)
{
    struct cleanup *c = sd_alloc(s, sizeof *c);

    if (!s)
        s = &root;
    c->f = f;
    c->argument = argument;
    pthread_mutex_lock(&lock);
    c->next = s->cleanups;
    s->cleanups = c;
    pthread_mutex_unlock(&lock);
}

int
sd_finish(int status)
{
    bool pending = __fpending(stdout) > 0, failed = ferror(stdout);

    run_cleanups(&root);
    remove_parts();
    errno = 0;
    if ((fclose(stdout) && (pending || errno != EBADF)) || failed) {
        sd_error("standard output", "%s", errno ? strerror(errno) : "cannot be written");
        return SD_FAILED;
    }
    return status;
}
