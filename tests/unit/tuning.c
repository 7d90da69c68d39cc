/* Choices of algorithms: the first is kept, by whichever process it was made.  The device here is the test's own: it only counts. */
#include "vendor.h"

#include <ftw.h>
#include <math.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "diag.h"
#include "file.h"
#include "tests/check.h"

struct sd_device {
    const char *name;
    void *value;
    void (*close)(void *);
    int recorded, replayed;
};
struct sd_recording { int unused; };

static struct sd_recording one_recording;
static bool recordable = true;

const char *sd_device_name(const struct sd_device *d) { return d->name; }
const char *sd_device_engine(const struct sd_device *d) { (void)d; return "engine 1"; }
void *sd_device_slot(const struct sd_device *d, enum sd_device_slot slot) { return slot == SD_SLOT_TUNING ? d->value : NULL; }
void sd_device_wait(struct sd_device *d) { (void)d; }
void sd_device_record(struct sd_device *d) { d->recorded++; }
struct sd_recording *sd_device_recorded(struct sd_device *d) { (void)d; return recordable ? &one_recording : NULL; }
void sd_device_replay(struct sd_device *d, struct sd_recording *r) { (void)r; d->replayed++; }
void sd_recording_free(struct sd_recording *r) { (void)r; }

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
    end(&a);
    end(&b);
    end(&again);
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

static void
damaged(const char *folder)
{
    struct sd_device d = { .name = "card D" }, again = { .name = "card D" }, third = { .name = "card D" };
    struct sd_scope *s = sd_scope_open();
    const char **names, *path = NULL;
    size_t count;

    tuning_store(&d, "gemm", "p", "first");
    sd_folder_list(s, folder, &names, &count);
    for (size_t i = 0; i < count; i++) {
        size_t length;
        char *text = sd_file_read(s, sd_sprintf(s, "%s/%s", folder, names[i]), 1 << 20, &length);

        if (text && strstr(text, "card D"))
            path = sd_sprintf(s, "%s/%s", folder, names[i]);
    }
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

static void
distances(void)
{
    const float a[] = { 3, 4, 0 }, b[] = { 3, 4, 5 }, none[3] = { 0 }, endless[] = { INFINITY, 1, 2 }, nan[] = { NAN, 4, 0 };
    const uint16_t half[] = { 0x4200, 0xc400, 0x0001 }, brain[] = { 0x4040, 0xc080, 0x3300 };       /* 3, -4, 2^-24 */
    const uint16_t half_off[] = { 0x4200, 0xc400, 0x4200 };

    CHECK(tuning_distance(a, a, SD_F32, 3) == 0 && fabs(tuning_distance(b, a, SD_F32, 3) - 1) < 1e-12, "5 from a vector of length 5");
    CHECK(isnan(tuning_distance(nan, a, SD_F32, 3)) && !(tuning_distance(nan, none, SD_F32, 3) <= 1), "what is no number is never near");
    CHECK(tuning_distance(a, none, SD_F32, 3) == INFINITY && tuning_distance(none, none, SD_F32, 3) == 0, "nothing is near to zero but zero");
    CHECK(tuning_distance(a, endless, SD_F32, 3) == 0, "what is not finite is expected of nobody");
    CHECK(fabs(tuning_distance(half_off, half, SD_F16, 3) - 0.6) < 1e-6 && tuning_distance(brain, brain, SD_BF16, 3) == 0
              && fabs(tuning_distance(half, half_off, SD_F16, 3) - 3 / sqrt(34)) < 1e-6, "F16");
    CHECK(tuning_bound(SD_BF16) > tuning_bound(SD_F16) && tuning_bound(SD_F16) > tuning_bound(SD_F32), "rounding is larger in fewer bits");
}

static int calls;
static bool
run(void *argument)
{
    calls++;
    return calls <= *(int *)argument;
}

int
main(void)
{
    char root[] = "/tmp/sd-tuning-XXXXXX";
    struct sd_device d = { .name = "card E" };
    int enough = 1000, few = 3;
    double t;

    if (!mkdtemp(root))
        sd_die(root, "cannot be made");
    setenv("XDG_CACHE_HOME", root, 1);
    kept();
    together();
    damaged(sd_sprintf(NULL, "%s/sd-tools/tuning", root));
    t = tuning_time(&d, run, &enough);
    CHECK(t >= 0 && d.recorded == 1 && d.replayed > 1 && calls > 2, "timed: %d calls, %d replays, %.1e s", calls, d.replayed, t);
    calls = 0;
    CHECK(tuning_time(&d, run, &few) < 0 && calls == 4, "one that fails has no time");
    calls = 0;
    recordable = false;
    CHECK(tuning_time(&d, run, &enough) < 0, "one that cannot be recorded has no time");
    distances();
    setenv("SD_TUNE", "0", 1);
    CHECK(!tuning_wanted(), "SD_TUNE=0");
    nftw(root, remove_it, 16, FTW_DEPTH | FTW_PHYS);
    return check_done();
}
