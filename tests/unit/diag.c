/* Messages, statuses, scopes, outputs that are whole or not there, also when the program is killed. */
#include "../check.h"
#include "../child.h"
#include "diag.h"

#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

static bool
exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static bool
holds(const char *path, const char *text)
{
    char found[256] = { 0 };
    FILE *f = fopen(path, "rb");

    if (!f)
        return false;
    found[fread(found, 1, sizeof found - 1, f)] = '\0';
    fclose(f);
    return !strcmp(found, text);
}

/* ---- children ----------------------------------------------------------------------------------------------- */

static int
messages(void *argument)
{
    (void)argument;
    sd_program = "sd-test";
    sd_error("a\nb\x1b[31m\x7f", "tab\tbell\a \xc2\x9b \xff caf\u00e9 \U0001f600");
    sd_warn(NULL, "careful");
    sd_note(0, "step %d", 3);
    sd_note(1, "not shown");
    sd_verbosity = -1;
    sd_warn(NULL, "not shown");
    sd_note(0, "not shown");
    sd_error("x", "shown");
    return sd_finish(sd_error_count());
}

static int
long_message(void *argument)
{
    static char text[20000];

    (void)argument;
    memset(text, '\1', sizeof text - 1);
    sd_error(text, "%s", text);
    return 0;
}

static int
die(void *argument)
{
    struct sd_output *o = sd_output_open("dies");

    (void)argument;
    fputs("half", sd_output_file(o));
    sd_die("subject", "no more %s", "disk");
}

static int
usage(void *argument)
{
    (void)argument;
    sd_output_refuse("none", false);
    sd_output_refuse("old", true);
    sd_output_refuse("/dev/null", false);
    sd_output_refuse("old", false);
    return 0;
}

static int
bug(void *argument)
{
    (void)argument;
    sd_bug("here", "%d groups", 3);
}

static int
by_signal(void *argument)
{
    struct sd_output *o;

    sd_catch_signals();
    o = sd_output_open("killed");
    fputs("half", sd_output_file(o));
    fflush(sd_output_file(o));
    if (!exists("killed.part"))
        return 90;
    raise(*(int *)argument);
    return 0;
}

static int
ignores_hangup(void *argument)
{
    (void)argument;
    signal(SIGHUP, SIG_IGN);
    sd_catch_signals();
    raise(SIGHUP);
    return 7;
}

static int
closed_descriptors(void *argument)
{
    struct sd_output *o;

    (void)argument;
    close(1);
    sd_catch_signals();
    o = sd_output_open("closed");
    printf("must not land in the file");
    fflush(stdout);
    fputs("file", sd_output_file(o));
    return sd_output_commit(o) ? 90 : sd_finish(0);
}

static int
full_stdout(void *argument)
{
    (void)argument;
    if (!freopen("/dev/full", "wb", stdout))
        return 90;
    printf("lost");
    return sd_finish(0);
}

static int
file_too_large(void *argument)
{
    static char megabyte[1 << 20];
    struct sd_output *o = sd_output_open("large");

    (void)argument;
    sd_catch_signals();
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){ 65536, 65536 });
    fwrite(megabyte, 1, sizeof megabyte, sd_output_file(o));
    return sd_output_commit(o) == 0 ? 0 : (sd_error("large", "%s", sd_reason()), 3);
}

static int
no_memory(void *argument)
{
    (void)argument;
    sd_alloc_array(NULL, SIZE_MAX / 2, 3);
    return 0;
}

/* ---- reasons, scopes ---------------------------------------------------------------------------------------- */

static char order[8];
static void
note_order(void *argument)
{
    strcat(order, argument);
}

static void
reasons(void)
{
    CHECK(!strcmp(sd_reason(), "unknown error"), "no reason yet: %s", sd_reason());
    CHECK(sd_fail("expected %d", 3) == -1 && !strcmp(sd_reason(), "expected 3"), "sd_fail");
    CHECK(sd_fail_prefix("to_q") == -1 && !strcmp(sd_reason(), "to_q: expected 3"), "sd_fail_prefix");
    CHECK(sd_fail("again: %s", sd_reason()) == -1 && !strcmp(sd_reason(), "again: to_q: expected 3"),
          "a reason made of the old one");
    errno = ENOSPC;
    CHECK(sd_fail_errno("x %d", 1) == -1 && !strcmp(sd_reason(), "x 1: No space left on device"), "sd_fail_errno");
    CHECK(sd_fail_null("n") == NULL && !strcmp(sd_reason(), "n"), "sd_fail_null");
}

static void
scopes(void)
{
    struct sd_scope *s = sd_scope_open();
    bool aligned = true, zero = true;
    char *text;

    for (size_t n = 0; n < 300; n += 7) {
        unsigned char *p = sd_alloc(s, n);

        aligned &= (uintptr_t)p % 64 == 0;
        for (size_t i = 0; i < n; i++)
            zero &= p[i] == 0;
        memset(p, 255, n);
    }
    CHECK(aligned && zero, "aligned to 64 bytes, zeroed");
    text = sd_sprintf(s, "%s-%05d", "x", 42);
    CHECK(!strcmp(text, "x-00042") && !strcmp(sd_strndup(s, "hello", 3), "hel")
              && !strcmp(sd_strdup(NULL, "abc"), "abc"),
          "texts");
    sd_on_close(s, note_order, (void *)"1");
    sd_on_close(s, note_order, (void *)"2");
    sd_scope_close(s);
    CHECK(!strcmp(order, "21"), "last registered, first run: %s", order);
}

static void
outputs(void)
{
    struct sd_output *o = sd_output_open("f"), *p;
    struct stat st;

    CHECK(o && exists("f.part") && !exists("f"), "no name before the end");
    fputs("whole", sd_output_file(o));
    CHECK(sd_output_commit(o) == 0 && holds("f", "whole") && !exists("f.part"), "the name, and no part");
    CHECK(!stat("f", &st) && (st.st_mode & 0777) == 0644, "mode %o by the umask", st.st_mode & 0777);
    o = sd_output_open("f");
    fputs("other", sd_output_file(o));
    sd_output_abandon(o);
    CHECK(holds("f", "whole") && !exists("f.part"), "abandoned: the old file stays");
    CHECK(system("echo stale > g.part") == 0 && (o = sd_output_open("g")) && sd_output_commit(o) == 0 && holds("g", ""),
          "a stale part is replaced");
    o = sd_output_open("h");
    p = sd_output_open("h");
    CHECK(sd_output_commit(o) == -1 && strstr(sd_reason(), "another process"), "two writers of one name: %s",
          sd_reason());
    CHECK(sd_output_commit(p) == 0, "the second is whole");
    CHECK(!sd_output_open("none/f") && !strcmp(sd_reason(), "cannot be written: No such file or directory"),
          "no folder: %s", sd_reason());
    CHECK(!sd_output_open("/") && !strcmp(sd_reason(), "is a directory"), "a folder: %s", sd_reason());
    o = sd_output_open("/dev/full");
    fputs("x", sd_output_file(o));
    CHECK(sd_output_commit(o) == -1 && !strcmp(sd_reason(), "cannot be written: No space left on device"),
          "a full device: %s", sd_reason());
    o = sd_output_open("/dev/null");
    fputs("x", sd_output_file(o));
    CHECK(sd_output_commit(o) == 0 && !stat("/dev/null", &st) && S_ISCHR(st.st_mode), "a device is written in place");
    if (mkdir("k", 0777) || !(o = sd_output_open("k2")) || mkdir("k2", 0777))
        exit(99);
    CHECK(sd_output_commit(o) == -1 && !exists("k2.part"), "a rename that fails leaves nothing: %s", sd_reason());
}

int
main(void)
{
    static int ends[] = { SIGTERM, SIGINT, SIGHUP };
    struct child *c;

    umask(022);
    child_enter();
    reasons();
    scopes();
    outputs();
    c = child_run(messages, NULL, "", 0);
    CHECK(c->status == 2
              && !strcmp(c->err, "sd-test: a\\nb\\x1b[31m\\x7f: tab\\tbell\\x07 \\xc2\\x9b \\xff caf\u00e9 \U0001f600\n"
                                 "sd-test: warning: careful\nsd-test: step 3\nsd-test: x: shown\n"),
          "lines, escaped: %d %s", c->status, child_flat(c->err));
    c = child_run(long_message, NULL, "", 0);
    CHECK(c->status == 0 && strlen(c->err) < 4200 && strstr(c->err, " ...\n"),
          "a message of 80,000 characters is cut to %zu", strlen(c->err));
    c = child_run(die, NULL, "", 0);
    CHECK(c->status == 3 && !strcmp(c->err, "sd: subject: no more disk\n") && !exists("dies") && !exists("dies.part"),
          "sd_die: 3, nothing left");
    if (system("echo > old"))
        return 99;
    c = child_run(usage, NULL, "", 0);
    CHECK(c->status == 2 && !strcmp(c->err, "sd: old: exists (use --overwrite)\n"), "refusal to overwrite: %d %s",
          c->status, child_flat(c->err));
    c = child_run(bug, NULL, "", 0);
    CHECK(c->status == 128 + SIGABRT && strstr(c->err, "sd: bug: here: 3 groups"), "sd_bug aborts: %d", c->status);
    for (int i = 0; i < 3; i++) {
        c = child_run(by_signal, &ends[i], "", 0);
        CHECK(c->status == 128 + ends[i] && !exists("killed") && !exists("killed.part"),
              "dies by signal %d, leaves nothing: %d", ends[i], c->status);
    }
    c = child_run(ignores_hangup, NULL, "", 0);
    CHECK(c->status == 7, "under nohup SIGHUP stays ignored: %d", c->status);
    c = child_run(closed_descriptors, NULL, "", 0);
    CHECK(c->status == 3 && holds("closed", "file") && strstr(c->err, "standard output: "), "closed stdout: %d %s",
          c->status, child_flat(c->err));
    c = child_run(full_stdout, NULL, "", 0);
    CHECK(c->status == 3 && !strcmp(c->err, "sd: standard output: No space left on device\n"), "full stdout: %d %s",
          c->status, child_flat(c->err));
    c = child_run(no_memory, NULL, "", 0);
    CHECK(c->status == 3 && strstr(c->err, "sd: memory: "), "no memory: %d %s", c->status, child_flat(c->err));
    c = child_run(file_too_large, NULL, "", 0);
    CHECK(c->status == 3 && !strcmp(c->err, "sd: large: cannot be written: File too large\n") && !exists("large")
              && !exists("large.part"),
          "a size limit: %d %s", c->status, child_flat(c->err));
    child_leave();
    return check_done();
}
