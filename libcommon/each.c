/* each.c - sd_each, the loop of a filter: operands or standard input in, one call per item, one exit status out.
 *
 * A bad item is named and left out.  A broken stream is more than that: what came out of here is not all there would
 * have been, so no end is written, and the programs behind fail too. */
#include "file.h"
#include "io.h"
#include "json.h"
#include "opt.h"
#include "record.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct loop {
    const struct sd_each *each;
    uint64_t good, bad;
    bool broken;
};

static void
name_bad(struct loop *l, const char *subject)
{
    l->bad++;
    if (sd_shared.keep_going)
        sd_warn(subject, "%s", sd_reason());
    else
        sd_error(subject, "%s", sd_reason());
}

static void
do_one(struct loop *l, struct sd_scope *s, struct sd_record *r, const char *subject)
{
    if (l->each->one(s, r, l->each->user))
        name_bad(l, subject);
    else
        l->good++;
}

static void
do_picture(struct loop *l, const char *path)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_record *r = sd_record_new(s);

    if (sd_utf8_valid(path, strlen(path))) {
        sd_record_set_text(r, "source", path);
        do_one(l, s, r, path);
    } else {
        sd_fail("its name is not valid UTF-8");
        name_bad(l, path);
    }
    sd_scope_close(s);
}

static void
do_stream(struct loop *l, const char *path)
{
    const char *name = !path || !strcmp(path, "-") ? "standard input" : path;
    struct sd_reader *reader = sd_reader_open(path);
    int status = 1;

    if (!reader) {
        sd_error(name, "%s", sd_reason());
        l->broken = true;
        return;
    }
    while (status && !sd_reader_broken(reader)) {
        struct sd_scope *s = sd_scope_open();
        struct sd_record *r;

        status = sd_reader_next(reader, s, &r);
        if (status > 0) {
            const char *source = sd_record_text(r, "source");

            do_one(l, s, r, source ? source : sd_sprintf(s, "%s: record %" PRIu64, name, sd_reader_count(reader)));
        } else if (status < 0 && sd_reader_broken(reader)) {
            sd_error(name, "%s", sd_reason());      /* -k does not forgive this */
        } else if (status < 0) {
            name_bad(l, name);
        }
        sd_scope_close(s);
    }
    l->broken |= sd_reader_broken(reader);
    sd_reader_close(reader);
}

/* Does the file start like a picture, of a kind that is read here or not?  The other kinds go to the program, which
 * names the kind and the converter.  -1 with sd_fail when it cannot be opened. */
static int
looks_like_picture(const char *path)
{
    static const struct { int at; const char *magic; size_t length; } kinds[] = {
        { 0, "\xff\xd8\xff", 3 }, { 0, "\x89PNG", 4 }, { 4, "ftyp", 4 }, { 8, "WEBP", 4 }, { 0, "GIF8", 4 },
        { 0, "II*\0", 4 }, { 0, "MM\0*", 4 }, { 0, "II+\0", 4 }, { 0, "FUJIFILM", 8 }, { 0, "\0\0\0\fjP  ", 8 },
        { 0, "\xff\x0a", 2 }, { 0, "\0\0\0\fJXL ", 8 }, { 0, "8BPS", 4 }, { 0, "\x1a\x45\xdf\xa3", 4 },
        { 0, "IIRO", 4 }, { 0, "IIU\0", 4 },
    };
    static const char *const names[] = { ".jpg", ".jpeg", ".png" };     /* or says that it is one, and may be broken */
    const char *dot = strrchr(path, '.');
    char start[16] = { 0 };
    int fd;

    for (size_t i = 0; dot && i < sizeof names / sizeof *names; i++)
        if (!strcasecmp(dot, names[i]))
            return true;                /* unreadable: the program says why */
    if ((fd = sd_open(path, O_RDONLY)) < 0)
        return sd_fail("%s", strerror(errno));
    if (sd_read(fd, start, sizeof start) <= 0)
        start[0] = 0;
    close(fd);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!memcmp(start + kinds[i].at, kinds[i].magic, kinds[i].length))
            return true;
    return false;
}

static void
do_folder(struct loop *l, const char *path)
{
    struct sd_scope *s = sd_scope_open();
    const char **names;
    size_t count, pictures = 0, others = 0;

    if (sd_folder_list(s, path, &names, &count)) {
        name_bad(l, path);
        sd_scope_close(s);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        const char *file = sd_sprintf(s, "%s%s%s", path, path[strlen(path) - 1] == '/' ? "" : "/", names[i]);
        struct stat st;
        int picture = !stat(file, &st) && S_ISREG(st.st_mode) ? looks_like_picture(file) : 0;

        pictures += picture != 0;
        others += !picture;
        if (picture > 0)
            do_picture(l, file);
        else if (picture < 0)
            name_bad(l, file);
    }
    if (others)
        sd_note(0, "%s: %zu of %zu entries are no pictures, left out", path, others, count);
    if (!pictures) {
        sd_fail("no pictures in this folder");
        name_bad(l, path);
    }
    sd_scope_close(s);
}

static void
do_operand(struct loop *l, const char *path)
{
    struct stat st;

    errno = 0;
    if (!strcmp(path, "-")) {
        do_stream(l, NULL);
    } else if (stat(path, &st)) {
        sd_fail("%s", strerror(errno));
        name_bad(l, path);
    } else if (S_ISDIR(st.st_mode) && l->each->pictures) {
        do_folder(l, path);
    } else if (sd_is_record_stream(path)) {
        do_stream(l, path);
    } else if (l->each->pictures) {
        do_picture(l, path);
    } else {
        if (S_ISDIR(st.st_mode))
            sd_fail("is a folder, expected a record stream");
        else
            sd_fail("%s", errno ? strerror(errno) : "not a record stream");
        name_bad(l, path);
    }
}

int
sd_each(int argc, char **argv, const struct sd_each *e)
{
    struct loop l = { .each = e };

    if (argc < 2 && isatty(0))
        sd_usage(NULL, "records are wanted, and standard input is a terminal (--help)");
    if (e->holds)
        sd_writer_begin(e->holds);
    if (argc < 2)
        do_stream(&l, NULL);
    for (int i = 1; i < argc; i++)
        do_operand(&l, argv[i]);
    if (l.broken || (l.bad && !l.good))
        return SD_FAILED;
    if (e->holds)
        sd_writer_end();
    return l.bad && !sd_shared.keep_going ? SD_SOME_BAD : SD_OK;
}
