/* folder.c - folders with one name only when complete. */
#include "folder.h"

#include "file.h"
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct sd_folder {
    struct sd_scope *scope;
    const char *path, *part;
    bool replaces;
};

static int
remove_one(const char *path, const struct stat *st, int type, struct FTW *walk)
{
    (void)st, (void)type, (void)walk;
    return remove(path);
}

static int
remove_tree(const char *path)
{
    int status;

    do
        status = nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    while (status < 0 && errno == EINTR);
    return status < 0 && errno != ENOENT ? -1 : 0;
}

static const char *
without_slashes(struct sd_scope *s, const char *path)
{
    size_t n = strlen(path);

    while (n > 1 && path[n - 1] == '/')
        n--;
    return sd_strndup(s, path, n);
}

/* Empty, or with one of the marks? */
static bool
is_ours(struct sd_scope *s, const char *path, const char *const *marks)
{
    for (size_t i = 0; marks[i]; i++)
        if (access(sd_sprintf(s, "%s/%s", path, marks[i]), F_OK) == 0)
            return true;
    if (rmdir(path) != 0)
        return false;
    return mkdir(path, 0777) == 0;
}

struct sd_folder *
sd_folder_open(struct sd_scope *s, const char *path, const char *const *marks)
{
    struct sd_folder *f = sd_alloc(s, sizeof *f);
    struct stat st;

    f->scope = s;
    f->path = without_slashes(s, path);
    f->part = sd_sprintf(s, "%s.part", f->path);
    if (lstat(f->path, &st) == 0) {
        f->replaces = true;
        if (!S_ISDIR(st.st_mode))
            return sd_fail_null("exists and is no folder");
        if (!is_ours(s, f->path, marks))
            return sd_fail_null("is a folder without %s: not replaced", marks[0]);
    }
    if (remove_tree(f->part) < 0 || mkdir(f->part, 0777) < 0)
        return sd_fail_errno("cannot be written"), NULL;
    return f;
}

const char *
sd_folder_path(struct sd_folder *f, const char *name)
{
    char *path = sd_sprintf(f->scope, "%s/%s", f->part, name), *slash = strrchr(path, '/');

    *slash = 0;
    if (sd_make_folders(path) < 0)
        return NULL;
    *slash = '/';
    return path;
}

int
sd_folder_commit(struct sd_folder *f)
{
    int fd = sd_open(f->part, O_RDONLY | O_DIRECTORY);
    bool exchanged = f->replaces && renameat2(AT_FDCWD, f->part, AT_FDCWD, f->path, RENAME_EXCHANGE) == 0;

    if (fd >= 0) {
        sd_fsync(fd);
        close(fd);
    }
    if (!exchanged && ((f->replaces && remove_tree(f->path) < 0) || rename(f->part, f->path) < 0)) {
        sd_fail_errno("cannot be written");
        sd_folder_abandon(f);
        return -1;
    }
    if (exchanged && remove_tree(f->part) < 0)
        return sd_fail_errno("%s: cannot be removed", f->part);
    return 0;
}

void
sd_folder_abandon(struct sd_folder *f)
{
    remove_tree(f->part);
}
