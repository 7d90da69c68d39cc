/* file.c - whole files and folders. */
#include "file.h"
#include "io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void
free_buffer(void *p)
{
    free(*(void **)p);
}

char *
sd_file_read(struct sd_scope *s, const char *path, size_t max, size_t *length)
{
    void **buffer = sd_alloc(s, sizeof *buffer);
    int fd = sd_open(path, O_RDONLY);
    size_t n = 0, room = 0;
    ssize_t got;
    struct stat st;

    if (fd < 0)
        return sd_fail_null("%s", strerror(errno));
    sd_on_close(s, free_buffer, buffer);
    if (!fstat(fd, &st) && S_ISREG(st.st_mode) && (uintmax_t)st.st_size < max)
        room = (size_t)st.st_size + 2;          /* one read, and one that sees the end */
    do {
        if (n + 1 >= room) {
            void *more;

            if (!*buffer && !room)
                room = 65536;
            else if (*buffer)
                room *= 2;
            if (!(more = realloc(*buffer, room)))
                sd_die("memory", "%zu bytes wanted, not there", room);
            *buffer = more;
        } else if (!*buffer && !(*buffer = malloc(room))) {
            sd_die("memory", "%zu bytes wanted, not there", room);
        }
        if ((got = sd_read(fd, (char *)*buffer + n, room - n - 1)) > 0)
            n += (size_t)got;
    } while (got > 0 && n <= max);
    if (got < 0) {
        sd_fail_errno("cannot be read");
        close(fd);
        return NULL;
    }
    close(fd);
    if (n > max)
        return sd_fail_null("more than %zu bytes", max);
    ((char *)*buffer)[n] = '\0';
    *length = n;
    return *buffer;
}

static int
by_bytes(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int
sd_folder_list(struct sd_scope *s, const char *path, const char ***names, size_t *count)
{
    DIR *folder;
    struct dirent *e;
    const char **list = NULL;
    size_t n = 0, room = 0;

    do
        folder = opendir(path);
    while (!folder && errno == EINTR);
    if (!folder)
        return sd_fail("%s", strerror(errno));
    for (errno = 0; (e = readdir(folder)); errno = 0) {
        if (e->d_name[0] == '.')
            continue;
        if (n == room) {
            const char **more = sd_alloc_array(s, room = room ? 2 * room : 64, sizeof *more);

            if (n)
                memcpy(more, list, n * sizeof *more);
            list = more;
        }
        list[n++] = sd_strdup(s, e->d_name);
    }
    if (errno) {
        sd_fail_errno("cannot be read");
        closedir(folder);
        return -1;
    }
    closedir(folder);
    if (n)
        qsort(list, n, sizeof *list, by_bytes);
    *names = list;
    *count = n;
    return 0;
}

int
sd_make_folders(const char *path)
{
    char name[4096];
    size_t n = strlen(path);

    if (n >= sizeof name)
        return sd_fail("name too long");
    memcpy(name, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (name[i] && name[i] != '/')
            continue;
        name[i] = '\0';
        if (mkdir(name, 0777) && errno != EEXIST)
            return sd_fail_errno("%s: cannot be made", name);
        name[i] = path[i];
    }
    return 0;
}

/* The folder that a name is in, and its last part. */
static bool
place(const char *path, struct stat *folder, const char **name)
{
    const char *slash = strrchr(path, '/');
    char *before = slash ? strndup(path, (size_t)(slash - path) + 1) : NULL;
    bool there = !stat(before ? before : ".", folder);

    free(before);
    *name = slash ? slash + 1 : path;
    return there;
}

bool
sd_same_file(const char *a, const char *b)
{
    struct stat p, q;
    bool is_a = !stat(a, &p), is_b = !stat(b, &q);
    const char *x, *y;

    if (is_a != is_b || (is_a && !S_ISREG(p.st_mode) && !S_ISDIR(p.st_mode)))
        return false;
    if (is_a)
        return p.st_dev == q.st_dev && p.st_ino == q.st_ino;
    return !strcmp(a, b)
           || (place(a, &p, &x) && place(b, &q, &y) && p.st_dev == q.st_dev && p.st_ino == q.st_ino && !strcmp(x, y));
}

const char *
sd_cache_folder(struct sd_scope *s)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");

    if (xdg && xdg[0] == '/')           /* the XDG text: a relative one is to be ignored */
        return sd_sprintf(s, "%s/sd-tools", xdg);
    return sd_sprintf(s, "%s/.cache/sd-tools", home && *home ? home : ".");
}
