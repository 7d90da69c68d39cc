/* diag.c - messages and ends; scopes are in scope.c, outputs in output.c. */
#include "diag_private.h"
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE = 4096 };

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
    size_t n = *p < 0x80 ? 1 : *p < 0xc2 ? 0 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : *p < 0xf5 ? 4 : 0;

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

/* ---- ends --------------------------------------------------------------------------------------------------- */

void
sd_die(const char *subject, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    say("", subject, format, ap);
    va_end(ap);
    sd_outputs_remove();
    exit(SD_FAILED);
}

void
sd_usage(const char *subject, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    say("", subject, format, ap);
    va_end(ap);
    sd_outputs_remove();
    exit(SD_USAGE);
}

void
sd_bug(const char *where, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    say("bug: ", where, format, ap);
    va_end(ap);
    sd_outputs_remove();
    abort();
}

static void
on_signal(int number)
{
    sd_outputs_remove();
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
    sd_outputs_remove();
    n = write(2, sd_program, strlen(sd_program)) + write(2, text, sizeof text - 1);
    (void)n;
    _exit(SD_FAILED);
}

static void
on_pipe(int number)
{
    (void)number;
}

static bool deaf;               /* SIGPIPE was ignored when the program began: the parent wants a message */

void
sd_die_stdout(int error)
{
    sigset_t pipe_signal;

    sd_outputs_remove();
    if (error == EPIPE && !deaf) {
        sigemptyset(&pipe_signal);
        sigaddset(&pipe_signal, SIGPIPE);
        signal(SIGPIPE, SIG_DFL);
        raise(SIGPIPE);
        pthread_sigmask(SIG_UNBLOCK, &pipe_signal, NULL);       /* where it was blocked, it ends the program here */
    }
    sd_error("standard output", "%s", error ? strerror(error) : "cannot be written");
    exit(SD_FAILED);
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
    /* A dead reader or a size limit is a failed write: of standard output it ends the program (sd_die_stdout), of
     * another pipe it is that one's trouble.  Not SIG_IGN, which children would inherit. */
    action.sa_handler = on_pipe;
    action.sa_flags = SA_RESTART;
    if (!sigaction(SIGPIPE, &action, &old) && old.sa_handler != on_pipe)
        deaf = old.sa_handler == SIG_IGN;
    sigaction(SIGXFSZ, &action, NULL);
    action.sa_handler = on_bus_error;
    sigaction(SIGBUS, &action, NULL);
    /* Closed standard descriptors are filled, the wrong way round, so that no output file becomes number 1. */
    for (int fd = 0; fd < 3; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", fd ? O_RDONLY : O_WRONLY) != fd)
            exit(SD_FAILED);
    sd_stream_stdout();
}

int
sd_finish(int status)
{
    bool pending = __fpending(stdout) > 0, failed = ferror(stdout);

    sd_root_close();
    sd_outputs_remove();
    errno = 0;
    if ((fclose(stdout) && (pending || errno != EBADF)) || failed)
        sd_die_stdout(errno ? errno : sd_stdout_error);
    return status;
}
