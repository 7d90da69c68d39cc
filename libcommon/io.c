/* io.c - descriptors and streams that signals do not interrupt. */
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>

int
sd_open(const char *path, int flags)
{
    int fd;

    do
        fd = open(path, flags | O_CLOEXEC, 0666);
    while (fd < 0 && errno == EINTR);
    return fd;
}

ssize_t
sd_read(int fd, void *buffer, size_t n)
{
    size_t at = 0;

    while (at < n) {
        ssize_t got = read(fd, (char *)buffer + at, n - at);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        at += (size_t)got;
    }
    return (ssize_t)at;
}

int
sd_fsync(int fd)
{
    int status;

    do
        status = fsync(fd);
    while (status < 0 && errno == EINTR);
    return status;
}

/* ---- streams: the cookie is the descriptor ------------------------------------------------------------------------ */

static ssize_t
read_some(void *cookie, char *buffer, size_t n)
{
    ssize_t got;

    do
        got = read((int)(intptr_t)cookie, buffer, n);
    while (got < 0 && errno == EINTR);
    return got;
}

int sd_stdout_error;

/* What a stream counts as written: fewer than n, and errno, on an error. */
static ssize_t
write_all(void *cookie, const char *buffer, size_t n)
{
    size_t at = 0;

    while (at < n) {
        ssize_t put = write((int)(intptr_t)cookie, buffer + at, n - at);

        if (put > 0)
            at += (size_t)put;
        else if (put == 0 || errno != EINTR)
            break;
    }
    if (at < n && (intptr_t)cookie == STDOUT_FILENO)
        sd_stdout_error = errno;
    return (ssize_t)at;
}

static int
seek(void *cookie, off64_t *offset, int whence)
{
    off64_t at = lseek64((int)(intptr_t)cookie, *offset, whence);

    if (at < 0)
        return -1;
    *offset = at;
    return 0;
}

static int
close_it(void *cookie)
{
    return close((int)(intptr_t)cookie) < 0 && errno != EINTR ? -1 : 0;     /* Linux has closed it all the same */
}

FILE *
sd_stream(int fd, const char *mode)
{
    return fopencookie((void *)(intptr_t)fd, mode,
                       (cookie_io_functions_t){ .read = read_some, .write = write_all, .seek = seek, .close = close_it });
}

void
sd_stream_stdout(void)
{
    FILE *f = sd_stream(STDOUT_FILENO, "w");

    if (!f)
        return;                     /* the one that is there does */
    if (isatty(STDOUT_FILENO))
        setvbuf(f, NULL, _IOLBF, BUFSIZ);
    stdout = f;
}
