/* output.c - files that get their name only when they are whole. */
#include "diag_private.h"
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH = 4096 };

/* Never freed, only used again: a signal handler may look at the list at any time. */
struct sd_output {
    struct sd_output *next;
    atomic_bool in_use, part_exists;
    bool direct;                        /* a device or pipe: written in place */
    FILE *file;
    int fd;                             /* of file */
    char path[PATH], part[PATH];
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

void
sd_outputs_remove(void)      /* safe in a signal handler */
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

    if (strlen(path) + sizeof ".part" > PATH)
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
        fd = sd_open(path, O_WRONLY);
    } else {
        unlink(o->part);                /* left by a run that was killed */
        o->part_exists = true;          /* before it does: a signal may come between */
        fd = sd_open(o->part, O_RDWR | O_CREAT | O_EXCL);
        o->part_exists = fd >= 0;
    }
    if (fd < 0 || !(o->file = sd_stream(fd, o->direct ? "w" : "w+"))) {
        sd_fail_errno("cannot be written");
        if (fd >= 0)
            close(fd);
        o->file = NULL;
        sd_output_abandon(o);
        return NULL;
    }
    o->fd = fd;
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
    char name[PATH];
    char *slash;
    int fd, status;

    strcpy(name, path);
    slash = strrchr(name, '/');
    if (!slash)
        strcpy(name, ".");
    else
        slash[slash == name] = '\0';
    if ((fd = sd_open(name, O_RDONLY | O_DIRECTORY)) < 0)
        return errno == EACCES ? 0 : -1;        /* a directory may be writable and not readable */
    status = sd_fsync(fd);
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
    if (bad || fflush(o->file) || (!o->direct && sd_fsync(o->fd))) {
        sd_fail_errno("cannot be written");
        sd_output_abandon(o);
        return -1;
    }
    if (!o->direct && (fstat(o->fd, &ours) || stat(o->part, &theirs) || ours.st_ino != theirs.st_ino
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
