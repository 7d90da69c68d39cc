/* check.h - TAP for C tests.  CHECK(condition, "what, with numbers"); `return check_done();` at the end of main.
 * Gradient and twin checks of ops are in tests/ops/check_op.h. */
#ifndef SD_CHECK_H
#define SD_CHECK_H

#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* one pair for all objects of a test: check_op.c counts too */
__attribute__((weak)) int check_count, check_failed;

static inline bool __attribute__((format(printf, 4, 5)))
check_that(bool ok, const char *file, int line, const char *format, ...)
{
    va_list ap;

    printf("%sok %d - ", ok ? "" : "not ", ++check_count);
    va_start(ap, format);
    vprintf(format, ap);
    va_end(ap);
    printf("\n");
    if (!ok) {
        printf("# at %s:%d\n", file, line);
        check_failed++;
    }
    fflush(stdout);
    return ok;
}
#define CHECK(condition, ...) check_that((condition), __FILE__, __LINE__, __VA_ARGS__)

/* check_skip - a test that cannot run here says so aloud; it counts as skipped, never as passed. */
static inline void
check_skip(const char *what, const char *why)
{
    printf("ok %d - %s # SKIP %s\n", ++check_count, what, why);
}

static inline int
check_done(void)
{
    printf("1..%d\n", check_count);
    return check_failed != 0;
}

/* ||a - b|| / ||b||, in double; NaN anywhere gives NaN, which fails any comparison written as (error <= bound). */
static inline double
check_distance(const float *a, const float *b, size_t n)
{
    double d = 0, s = 0;

    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        s += (double)b[i] * b[i];
    }
    return sqrt(d) / (s > 0 ? sqrt(s) : 1);
}
#endif
