/* tuning.c - remembering which of a library's algorithms was the fastest, and finding it out.  How far results are from one
 * another: tuning.cu. */
#include "tuning.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "diag.h"
#include "file.h"
#include "hash.h"
#include "vendor.h"

/* -- what is kept -------------------------------------------------------------------------------------------------- */

/* One line each, "library call\tchoice"; the first names the GPU model and the libraries. */
struct tuning {
    struct sd_scope *scope;
    char *path, *title;
    char **line;
    size_t count, room;
    bool said;                  /* that choosing takes a while */
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

/* -- what goes with a choice ---------------------------------------------------------------------------------------- */

enum { MOST_BYTES = 64 << 20 };

/* Its path; its first line, with which it begins, says whose it is, and ends in the checksum of what follows. */
static const char *
file_of(struct sd_scope *s, struct sd_device *d, const char *library, const char *call, const char *choice)
{
    const char *name = sd_sprintf(s, "%s %s\t%s", library, call, choice);
    char hex[SD_SHA256_HEX];

    sd_sha256_of(name, strlen(name), hex);
    return sd_sprintf(s, "%s.plans/%.32s", tuning_of(d)->path, hex);
}

static const char *
first_line(struct sd_scope *s, const char *library, const char *call, const char *choice, const void *bytes, size_t length)
{
    char hex[SD_XXH128_HEX];

    sd_xxh128_of(bytes, length, hex);
    return sd_sprintf(s, "sd-tuning 1: %s %s\t%s\t%zu %s\n", library, call, choice, length, hex);
}

void
tuning_save(struct sd_device *d, const char *library, const char *call, const char *choice, const void *bytes, size_t length)
{
    struct sd_scope *s = sd_scope_open();
    const char *path = file_of(s, d, library, call, choice), *title = first_line(s, library, call, choice, bytes, length);
    struct sd_output *o = NULL;

    if (length <= MOST_BYTES && !sd_make_folders(sd_sprintf(s, "%s.plans", tuning_of(d)->path)))
        o = sd_output_open(path);
    if (o) {
        fwrite(title, 1, strlen(title), sd_output_file(o));
        fwrite(bytes, 1, length, sd_output_file(o));
        if (sd_output_commit(o))
            o = NULL;
    }
    if (!o)
        sd_note(1, "%s: not kept: %s", path, length > MOST_BYTES ? "too large" : sd_reason());
    sd_scope_close(s);
}

void *
tuning_load(struct sd_scope *s, struct sd_device *d, const char *library, const char *call, const char *choice, size_t *length)
{
    size_t all, title;
    char *text = sd_file_read(s, file_of(s, d, library, call, choice), MOST_BYTES + 4096, &all), *end;

    if (!text || !(end = memchr(text, '\n', all)))
        return NULL;
    title = (size_t)(end + 1 - text);
    *length = all - title;
    if (strncmp(text, first_line(s, library, call, choice, text + title, *length), title))
        return NULL;
    return text + title;
}

/* -- trials --------------------------------------------------------------------------------------------------------- */

bool
tuning_wanted(struct sd_device *d)
{
    const char *text = getenv("SD_TUNE");
    struct tuning *t = tuning_of(d);

    if (text && strcmp(text, "0") == 0)
        return false;
    if (!t->said)
        sd_note(0, "%s: choosing among algorithms for what was not computed on it before; kept in %s", sd_device_name(d), t->path);
    t->said = true;
    return true;
}

double
tuning_bound(enum sd_dtype dtype)
{
    return dtype == SD_BF16 ? 2e-2 : dtype == SD_F16 ? 4e-3 : vendor_tf32 ? 1e-2 : 1e-3;
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

/* Half a millisecond of runs, in one recording; NULL: it cannot be recorded. */
static struct sd_recording *
record(struct sd_device *d, const struct tuning_way *w, int *times)
{
    struct sd_recording *r;
    double begin;
    bool ok;

    sd_device_wait(d);
    begin = sd_clock();
    ok = w->run(w->argument);
    sd_device_wait(d);
    *times = (int)(5e-4 / (sd_clock() - begin + 1e-9));
    *times = *times < 1 ? 1 : *times > 20 ? 20 : *times;
    if (!ok)
        return NULL;
    sd_device_record(d);
    for (int i = 0; i < *times && ok; i++)
        ok = w->run(w->argument);
    r = sd_device_recorded(d);
    if (r && !ok) {
        sd_recording_free(r);
        return NULL;
    }
    return r;
}

int
tuning_race(struct sd_device *d, struct tuning_way *way, int count)
{
    enum { ROUNDS = 4 };
    const double warm = 1e-2;           /* seconds: a card's clocks are low while it waits for the host */
    struct sd_recording *runs[TUNING_WAYS];
    int times[TUNING_WAYS], best = -1;
    double begin;

    if (count > TUNING_WAYS)
        sd_bug("tuning", "%d ways", count);
    for (int i = 0; i < count; i++) {
        way[i].seconds = -1;
        runs[i] = record(d, &way[i], &times[i]);
    }
    begin = sd_clock();
    for (int round = -1; round < ROUNDS; round++) {
        for (int i = 0; i < count; i++) {
            double start, t;

            if (!runs[i])
                continue;
            sd_device_wait(d);
            start = sd_clock();
            sd_device_replay(d, runs[i]);
            sd_device_wait(d);
            t = (sd_clock() - start) / times[i];
            if (round >= 0 && (way[i].seconds < 0 || t < way[i].seconds))
                way[i].seconds = t;
        }
        if (round < 0 && sd_clock() - begin < warm && count > 0)
            round--;
    }
    for (int i = 0; i < count; i++) {
        sd_recording_free(runs[i]);
        if (way[i].seconds >= 0 && (best < 0 || way[i].seconds < way[best].seconds))
            best = i;
    }
    return best;
}
