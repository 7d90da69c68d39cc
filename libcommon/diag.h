/* diag.h - messages, failures, exit statuses, scopes.
 *
 * One rule: the library says why, the program says who and what.  Library code that meets a bad file,
 * record or option calls sd_fail() and returns -1 or NULL; the program prints one line.  Messages are
 * lower case, without a full stop, with expected and found values. */
#ifndef SD_DIAG_H
#define SD_DIAG_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

enum sd_status {
    SD_OK = 0,          /* all done */
    SD_SOME_BAD = 1,    /* at least one output, at least one bad input, named */
    SD_USAGE = 2,       /* options, configuration, refusal to overwrite: nothing touched */
    SD_FAILED = 3       /* no good output; model, device, memory, disk */
};

#if defined(__GNUC__)
#define SD_PRINTF(f, a) __attribute__((format(printf, f, a)))
#define SD_NORETURN     __attribute__((noreturn))
#define SD_UNUSED       __attribute__((unused))
#else
#define SD_PRINTF(f, a)
#define SD_NORETURN
#define SD_UNUSED
#endif

/* Name in front of every message; sd_options() sets it from argv[0]. */
extern const char *sd_program;
extern int sd_verbosity;    /* -1 with -q, 0, 1 and more with -v */

/* sd_fail - the world is wrong: remember why (per thread) and return -1.  Never prints.  A second sd_fail replaces
 * the first.  sd_fail_null is the same, returning NULL. */
int   sd_fail(const char *format, ...) SD_PRINTF(1, 2);
void *sd_fail_null(const char *format, ...) SD_PRINTF(1, 2);
/* sd_fail_errno - as sd_fail, with ": " and strerror(errno) behind. */
int   sd_fail_errno(const char *format, ...) SD_PRINTF(1, 2);
/* sd_fail_prefix - put "what: " in front of the remembered reason, for callers that know more; returns -1. */
int   sd_fail_prefix(const char *format, ...) SD_PRINTF(1, 2);
/* sd_reason - the text of the last sd_fail of this thread ("unknown error" if there was none); good until the next. */
const char *sd_reason(void);

/* sd_error - one line on stderr: "program: subject: text"; control characters of subject and text are escaped, so that
 * a file name or metadata cannot drive the terminal.  Subject may be NULL.  Counts errors. */
void sd_error(const char *subject, const char *format, ...) SD_PRINTF(2, 3);
/* sd_warn - the same with "warning: "; silent with -q.  Counts warnings. */
void sd_warn(const char *subject, const char *format, ...) SD_PRINTF(2, 3);
/* sd_note - the same without a tag; progress and reports; printed when sd_verbosity >= level. */
void sd_note(int level, const char *format, ...) SD_PRINTF(2, 3);
int  sd_error_count(void);

/* sd_die - the run cannot go on (device, memory, output): message, status 3, partial outputs removed. */
void sd_die(const char *subject, const char *format, ...) SD_PRINTF(2, 3) SD_NORETURN;
/* sd_die_stdout - standard output cannot be written, for this errno (0: unknown).  A reader that has gone ends the
 * program by SIGPIPE, without a word, unless the parent ignores that signal; else as sd_die. */
void sd_die_stdout(int error) SD_NORETURN;
/* sd_usage - wrong options: message, status 2. */
void sd_usage(const char *subject, const char *format, ...) SD_PRINTF(2, 3) SD_NORETURN;
/* sd_bug - the program is wrong: message and abort(). */
void sd_bug(const char *where, const char *format, ...) SD_PRINTF(2, 3) SD_NORETURN;

/* Memory that dies with a scope.  Allocation failure is sd_die("memory"); sizes are zeroed.
 * A NULL scope means "lives as long as the program". */
struct sd_scope;
struct sd_scope *sd_scope_open(void);
void  sd_scope_close(struct sd_scope *s);
void *sd_alloc(struct sd_scope *s, size_t bytes);                    /* 64-byte aligned, zeroed */
void *sd_alloc_array(struct sd_scope *s, size_t count, size_t size); /* product checked */
char *sd_strdup(struct sd_scope *s, const char *text);
char *sd_strndup(struct sd_scope *s, const char *text, size_t length);
char *sd_sprintf(struct sd_scope *s, const char *format, ...) SD_PRINTF(2, 3);
/* sd_on_close - run f(argument) when the scope closes, last registered first. */
void  sd_on_close(struct sd_scope *s, void (*f)(void *), void *argument);

/* Files with one name only when complete: sd_output_open(path) opens "path.part" (in the same directory, O_EXCL after
 * removing a stale one); sd_output_commit flushes, fsyncs, checks, renames; sd_output_abandon removes.  Open outputs
 * are abandoned by sd_die and by fatal signals caught by the program.  All return NULL/-1 with sd_fail. */
struct sd_output;
struct sd_output *sd_output_open(const char *path);
FILE *sd_output_file(struct sd_output *o);
int   sd_output_commit(struct sd_output *o);
void  sd_output_abandon(struct sd_output *o);
/* sd_output_refuse - status 2 unless path is absent or overwrite is set: "exists (use --overwrite)". */
void  sd_output_refuse(const char *path, bool overwrite);

/* sd_catch_signals - SIGINT, SIGTERM, SIGHUP remove partial outputs, then end the program by the signal; SIGPIPE and
 * SIGXFSZ become failed writes (sd_die_stdout); closed standard descriptors are filled.  sd_options calls it; a program that catches
 * SIGINT or SIGTERM itself installs its handler afterwards. */
void sd_catch_signals(void);

/* sd_finish - flush and check stdout (sd_die_stdout), return the status for main to return. */
int sd_finish(int status);

#ifdef __cplusplus
}
#endif
#endif
