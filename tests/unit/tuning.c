/* Choices of algorithms: the first is kept, by whichever process it was made.  The device here is the test's own: it only counts. */
#include "tuning.h"
#include "vendor.h"

#include <ftw.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "diag.h"
#include "file.h"
#include "tests/check.h"

struct sd_device {
    const char *name, *engine;          /* engine NULL: "engine 1" */
    void *value;
    void (*close)(void *);
    int recorded, replayed;
    struct tuning_way *runs;            /* not NULL: the n-th recording runs the n-th of these when it is replayed */
    int made;
};
struct sd_recording { int number; };

static struct sd_recording all_recordings[16];
static bool recordable = true;

const char *sd_device_name(const struct sd_device *d) { return d->name; }
const char *sd_device_engine(const struct sd_device *d) { return d->engine ? d->engine : "engine 1"; }
void *sd_device_slot(const struct sd_device *d, enum sd_device_slot slot) { return slot == SD_SLOT_TUNING ? d->value : NULL; }
void sd_device_wait(struct sd_device *d) { (void)d; }
void sd_device_record(struct sd_device *d) { d->recorded++; }
void sd_recording_free(struct sd_recording *r) { (void)r; }

struct sd_recording *
sd_device_recorded(struct sd_device *d)
{
    struct sd_recording *r = &all_recordings[d->runs ? d->made++ : 0];

    r->number = (int)(r - all_recordings);
    return recordable ? r : NULL;
}

void
sd_device_replay(struct sd_device *d, struct sd_recording *r)
{
    if (d->runs)
        d->runs[r->number].run(d->runs[r->number].argument);
    d->replayed++;
}

void
sd_device_set_slot(struct sd_device *d, enum sd_device_slot slot, void *value, void (*close)(void *))
{
    (void)slot;
    d->value = value;
    d->close = close;
}

static void
end(struct sd_device *d)
{
    if (d->close)
        d->close(d->value);
    d->value = NULL;
    d->close = NULL;
}

static int
remove_it(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st, (void)kind, (void)at;
    return remove(path);
}

static void
kept(void)
{
    struct sd_device a = { .name = "card A" }, b = { .name = "card B" }, again = { .name = "card A" };
    struct sd_device other = { .name = "card A", .engine = "engine 2" }, back = { .name = "card A" };

    CHECK(!tuning_find(&a, "gemm", "1x2"), "nothing is there at first");
    CHECK(strcmp(tuning_store(&a, "gemm", "1x2", "seven"), "seven") == 0, "a choice is kept");
    CHECK(strcmp(tuning_store(&a, "gemm", "1x2", "eight"), "seven") == 0, "the first one stays");
    tuning_store(&a, "dnn", "1x2", "nine");
    tuning_store(&a, "gemm", "1x2 bias", "ten");
    CHECK(strcmp(tuning_find(&a, "gemm", "1x2"), "seven") == 0 && strcmp(tuning_find(&a, "dnn", "1x2"), "nine") == 0
              && strcmp(tuning_find(&a, "gemm", "1x2 bias"), "ten") == 0,
          "by library and call");
    CHECK(!tuning_find(&a, "gemm", "1x"), "a part of a call is not it");
    CHECK(!tuning_find(&b, "gemm", "1x2"), "another card has choices of its own");
    CHECK(strcmp(tuning_find(&again, "gemm", "1x2 bias"), "ten") == 0, "a later run reads them");
    CHECK(!tuning_find(&other, "gemm", "1x2"), "other versions of the libraries have choices of their own");
    tuning_store(&other, "gemm", "1x2", "eleven");
    CHECK(strcmp(tuning_find(&back, "gemm", "1x2"), "seven") == 0, "which leave those of this one as they were");
    end(&a);
    end(&b);
    end(&again);
    end(&other);
    end(&back);
}

/* Processes that have all looked before any has chosen. */
static void
together(void)
{
    enum { MANY = 6 };
    int ready[2], go[2], answers[2], same = 0, first = -1;
    char c;

    if (pipe(ready) || pipe(go) || pipe(answers))
        sd_die("pipe", "cannot be made");
    for (int i = 0; i < MANY; i++)
        if (fork() == 0) {
            struct sd_device d = { .name = "card C" };
            char choice[2] = { (char)('a' + i), 0 };

            close(go[1]);
            if (tuning_find(&d, "gemm", "x"))
                _exit(1);
            if (write(ready[1], "r", 1) != 1 || read(go[0], &c, 1) != 0)
                _exit(1);
            if (write(answers[1], tuning_store(&d, "gemm", "x", choice), 1) != 1)
                _exit(1);
            _exit(0);
        }
    close(answers[1]);
    for (int i = 0; i < MANY; i++)
        if (read(ready[0], &c, 1) != 1)
            sd_die("a child", "is not ready");
    close(go[1]);
    while (read(answers[0], &c, 1) == 1) {
        first = first < 0 ? c : first;
        same += c == first;
    }
    while (wait(NULL) > 0)
        ;
    CHECK(same == MANY, "%d processes choose at once: %d go with '%c'", MANY, same, first);
}

/* The file of a card, NULL where there is none. */
static const char *
file_of(struct sd_scope *s, const char *folder, const char *card)
{
    const char **names, *path = NULL;
    size_t count;

    sd_folder_list(s, folder, &names, &count);
    for (size_t i = 0; i < count; i++) {
        size_t length;
        char *text = sd_file_read(s, sd_sprintf(s, "%s/%s", folder, names[i]), 1 << 20, &length);

        if (text && strstr(text, card))
            path = sd_sprintf(s, "%s/%s", folder, names[i]);
    }
    return path;
}

static void
put(const char *path, const char *text, size_t length)
{
    FILE *f = fopen(path, "w");

    if (!f || fwrite(text, 1, length, f) != length || fclose(f))
        sd_die(path, "cannot be written");
}

/* A file that says `text`: are "p" and "q" what is expected (NULL: not there), and is what is then chosen kept? */
static void
found_in(const char *what, const char *path, const char *card, const char *text, size_t length, const char *p, const char *q)
{
    struct sd_device d = { .name = card }, again = { .name = card };
    const char *a, *b;

    put(path, text, length);
    a = tuning_find(&d, "gemm", "p");
    b = tuning_find(&d, "gemm", "q");
    CHECK(!a == !p && (!a || strcmp(a, p) == 0) && !b == !q && (!b || strcmp(b, q) == 0), "%s: p is %s, q is %s", what,
          a ? a : "not there", b ? b : "not there");
    tuning_store(&d, "gemm", "r", "new");
    CHECK(strcmp(tuning_find(&d, "gemm", "r"), "new") == 0 && tuning_find(&again, "gemm", "r"), "%s: what is chosen then is kept", what);
    a = tuning_find(&again, "gemm", "p");
    CHECK(!a == !p && (!a || strcmp(a, p) == 0), "%s: and what was right with it", what);
    end(&d);
    end(&again);
}

static void
strange(const char *folder)
{
    struct sd_device d = { .name = "card F" };
    struct sd_scope *s = sd_scope_open();
    static const char title[] = "sd-tuning 1: card F, engine 1\n";
    char noise[4096];
    const char *path, *text;

    tuning_store(&d, "gemm", "p", "first");
    end(&d);
    path = file_of(s, folder, "card F");
    CHECK(path && (text = sd_file_read(s, path, 1 << 20, &(size_t){ 0 })) && strncmp(text, title, sizeof title - 1) == 0,
          "the first line names the card and the libraries");
    if (!path)
        return;
#define IN(what, text, p, q) found_in(what, path, "card F", text, sizeof(text) - 1, p, q)
    IN("another card's file", "sd-tuning 1: card G, engine 1\ngemm p\tone\n", NULL, NULL);
    IN("another version's file", "sd-tuning 1: card F, engine 12\ngemm p\tone\n", NULL, NULL);
    IN("another form of file", "sd-tuning 2: card F, engine 1\ngemm p\tone\n", NULL, NULL);
    IN("an empty file", "", NULL, NULL);
    IN("a title alone, cut", "sd-tuning 1: card F, engine 1", NULL, NULL);
    IN("the last line is cut", "sd-tuning 1: card F, engine 1\ngemm p\tone\ngemm q\ttw", "one", NULL);
    IN("lines that say nothing", "sd-tuning 1: card F, engine 1\n\nnothing\n\t\ngemm q\n\tx\ngemm p\tone\n", "one", NULL);
    IN("one call twice", "sd-tuning 1: card F, engine 1\ngemm p\tone\ngemm p\ttwo\ngemm q\t\n", "one", "");
    IN("a zero inside", "sd-tuning 1: card F, engine 1\ngemm p\tone\n\0gemm q\ttwo\n", NULL, NULL);
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (char)(i * 2654435761u >> 13);
    found_in("noise", path, "card F", noise, sizeof noise, NULL, NULL);
    memcpy(noise, title, sizeof title - 1);
    found_in("noise behind the title", path, "card F", noise, sizeof noise, NULL, NULL);
    sd_scope_close(s);
}

/* Where nothing can be kept, the run goes on with what it chose. */
static void
unwritable(const char *root)
{
    struct sd_scope *s = sd_scope_open();
    const char *where[] = { sd_sprintf(s, "%s/a file", root), sd_sprintf(s, "%s/half", root) };

    put(where[0], "x", 1);              /* in the place of the folder; of the file itself, a folder */
    for (int i = 0; i < 2; i++) {
        struct sd_device d = { .name = "card H" }, again = { .name = "card H" };
        const char *path;

        setenv("XDG_CACHE_HOME", where[i], 1);
        if (i) {
            tuning_store(&d, "gemm", "p", "first");
            end(&d);
            path = file_of(s, sd_sprintf(s, "%s/sd-tools/tuning", where[i]), "card H");
            if (!path || remove(path) || mkdir(path, 0777))
                sd_die(where[i], "no file to put a folder in the place of");
        }
        CHECK(!tuning_find(&d, "gemm", "p"), "nothing can be read");
        CHECK(strcmp(tuning_store(&d, "gemm", "p", "one"), "one") == 0 && strcmp(tuning_store(&d, "gemm", "q", "two"), "two") == 0
                  && strcmp(tuning_store(&d, "gemm", "p", "three"), "one") == 0 && strcmp(tuning_find(&d, "gemm", "q"), "two") == 0,
              "nothing can be kept: this run goes on with its choices");
        CHECK(!tuning_find(&again, "gemm", "p"), "the next one chooses anew");
        end(&d);
        end(&again);
    }
    sd_scope_close(s);
}

static void
damaged(const char *folder)
{
    struct sd_device d = { .name = "card D" }, again = { .name = "card D" }, third = { .name = "card D" };
    struct sd_scope *s = sd_scope_open();
    const char *path;

    tuning_store(&d, "gemm", "p", "first");
    path = file_of(s, folder, "card D");
    CHECK(path != NULL, "the file names its card");
    if (path && truncate(path, 5))
        path = NULL;
    CHECK(path && !tuning_find(&again, "gemm", "p"), "a file that is cut holds nothing");
    tuning_store(&d, "gemm", "q", "second");
    CHECK(strcmp(tuning_find(&third, "gemm", "p"), "first") == 0 && strcmp(tuning_find(&third, "gemm", "q"), "second") == 0,
          "a run that knew the choices writes them again");
    end(&d);
    end(&again);
    end(&third);
    sd_scope_close(s);
}

/* What goes with a choice: whole, and of that choice alone. */
static void
saved(const char *folder)
{
    static char bytes[100000];
    struct sd_device d = { .name = "card G" }, other = { .name = "card H" };
    struct sd_scope *s = sd_scope_open();
    size_t length = 0;
    const char *all, **name;
    size_t count;
    char *found;

    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)(i * 7);
    CHECK(!tuning_load(s, &d, "dnn", "1x2", "3 4", &length), "nothing is there at first");
    tuning_save(&d, "dnn", "1x2", "3 4", bytes, sizeof bytes);
    found = tuning_load(s, &d, "dnn", "1x2", "3 4", &length);
    CHECK(found && length == sizeof bytes && memcmp(found, bytes, length) == 0, "%zu bytes are there again", length);
    CHECK(!tuning_load(s, &d, "dnn", "1x2", "3 5", &length) && !tuning_load(s, &d, "dnn", "1x3", "3 4", &length)
              && !tuning_load(s, &other, "dnn", "1x2", "3 4", &length), "not for another choice, call or card");
    tuning_save(&d, "dnn", "empty", "3 4", bytes, 0);
    CHECK(tuning_load(s, &d, "dnn", "empty", "3 4", &length) && length == 0, "no bytes at all");
    tuning_store(&d, "dnn", "1x2", "3 4");
    all = file_of(s, folder, "card G");
    CHECK(all && !sd_folder_list(s, sd_sprintf(s, "%s.plans", all), &name, &count) && count == 2, "two files");
    for (size_t i = 0; all && i < count; i++) {
        const char *path = sd_sprintf(s, "%s.plans/%s", all, name[i]);
        struct stat st;

        if (!stat(path, &st) && st.st_size > 1000 && truncate(path, st.st_size - 1))
            sd_die(path, "cannot be cut");
    }
    CHECK(!tuning_load(s, &d, "dnn", "1x2", "3 4", &length), "not when it is cut");
    tuning_save(&d, "dnn", "1x2", "3 4", bytes, 5);
    CHECK((found = tuning_load(s, &d, "dnn", "1x2", "3 4", &length)) && length == 5 && memcmp(found, bytes, 5) == 0, "saved again");
    end(&d);
    end(&other);
    sd_scope_close(s);
}

static int calls;
static bool
run(void *argument)
{
    calls++;
    return calls <= *(int *)argument;
}

/* Waits so many microseconds. */
static bool
last(void *argument)
{
    double end = sd_clock() + 1e-6 * *(int *)argument;

    while (sd_clock() < end)
        ;
    return true;
}

static void
races(void)
{
    struct sd_device d = { .name = "card F" };
    int enough = 1000000, none = 0, slow = 3000, fast = 30;
    struct tuning_way one = { run, &enough, 0 }, bad = { run, &none, 0 }, two[] = { { last, &slow, 0 }, { last, &fast, 0 } };
    int best;

    calls = 0;
    best = tuning_race(&d, &one, 1);
    CHECK(best == 0 && one.seconds >= 0 && d.recorded == 1 && d.replayed > 3 && calls > 1, "timed: %d calls, %d replays, %.1e s", calls,
          d.replayed, one.seconds);
    CHECK(tuning_race(&d, &bad, 1) == -1 && bad.seconds < 0, "one that fails has no time");
    CHECK(tuning_race(&d, two, 0) == -1, "none of none");
    recordable = false;
    CHECK(tuning_race(&d, &one, 1) == -1 && one.seconds < 0, "one that cannot be recorded has no time");
    recordable = true;
    d.runs = two;
    best = tuning_race(&d, two, 2);
    CHECK(best == 1 && two[1].seconds < two[0].seconds, "the faster one wins: %.1e and %.1e s", two[0].seconds, two[1].seconds);
}

/* What takes a while is said before it is begun, once, and not where nothing is timed. */
static void
said_once(struct sd_device *d, const char *folder)
{
    struct sd_scope *s = sd_scope_open();
    const char *file = sd_sprintf(s, "%s/said", folder), *text;
    size_t length;
    int before = dup(2);

    if (!freopen(file, "w", stderr))
        sd_die(file, "cannot be written");
    setenv("SD_TUNE", "0", 1);
    CHECK(!tuning_wanted(d), "SD_TUNE=0");
    setenv("SD_TUNE", "1", 1);
    CHECK(tuning_wanted(d) && tuning_wanted(d), "SD_TUNE=1");
    fflush(stderr);
    dup2(before, 2);
    close(before);
    text = sd_file_read(s, file, 4096, &length);
    CHECK(text && strstr(text, ": choosing among algorithms for what was not computed on it before; kept in ")
          && strchr(text, '\n') == strrchr(text, '\n'), "said once: %s", text ? text : "nothing");
    sd_scope_close(s);
}

int
main(void)
{
    char root[] = "/tmp/sd-tuning-XXXXXX";
    struct sd_device d = { .name = "card E" };
    int enough = 1000;

    if (!mkdtemp(root))
        sd_die(root, "cannot be made");
    setenv("XDG_CACHE_HOME", root, 1);
    kept();
    together();
    damaged(sd_sprintf(NULL, "%s/sd-tools/tuning", root));
    saved(sd_sprintf(NULL, "%s/sd-tools/tuning", root));
    strange(sd_sprintf(NULL, "%s/sd-tools/tuning", root));
    unwritable(root);
    setenv("XDG_CACHE_HOME", root, 1);
    races();
    calls = 0;
    CHECK(tuning_replay(&d, run, &enough) && calls == 1 && d.replayed == 1, "replayed once");
    CHECK(!tuning_replay(&d, run, &(int){ 1 }) && d.replayed == 1, "one that fails is not replayed");
    calls = 0;
    recordable = false;
    CHECK(!tuning_replay(&d, run, &enough) && d.replayed == 1, "one that cannot be recorded is not replayed");
    CHECK(tuning_bound(SD_BF16) > tuning_bound(SD_F16) && tuning_bound(SD_F16) > tuning_bound(SD_F32), "rounding is larger in fewer bits");
    said_once(&d, root);
    d.close(d.value);
    nftw(root, remove_it, 16, FTW_DEPTH | FTW_PHYS);
    return check_done();
}
