/* dry.cpp - SD_EMULATE_DRY=FILE: what would run is written down.  A line each, words between tabs:
 *   recording NUMBER LAUNCHES   before its first replay, followed by these launches:
 *   kernel FILE NAME GRID BLOCK SHARED    library CALL    copy BYTES    fill BYTES
 *   replay NUMBER               each time
 *   now ...                     a launch that is in no recording
 * CALL is what the library's file in kernels/ calls it.  What is read is zero.  A call that was an attempt, made to choose, is "an attempt". */
#include "device_emulate.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

bool
sd::emulate::dry(void)
{
    static const bool on = getenv("SD_EMULATE_DRY") != NULL;

    return on;
}

/* Closed when the program ends, by whatever way: each part is flushed. */
static FILE *
file(void)
{
    static FILE *f;
    const char *path = getenv("SD_EMULATE_DRY");

    if (!f && !(f = fopen(path, "we")))
        sd_die(path, "%s", strerror(errno));
    return f;
}

std::string
sd::emulate::dry_line(const char *format, ...)
{
    char text[1024];
    va_list ap;

    if (!dry())
        return std::string();
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    return text;
}

void
sd::emulate::dry_now(const std::string &line)
{
    if (dry())
        fprintf(file(), "now\t%s\n", line.c_str());
}

void
sd::emulate::dry_replay(struct sd_recording *r)
{
    static int recordings;

    if (!dry())
        return;
    if (!r->number) {
        r->number = ++recordings;
        fprintf(file(), "recording\t%d\t%zu\n", r->number, r->list.size());
        for (const struct launched &l : r->list)
            fprintf(file(), "%s\n", l.line.c_str());
    }
    fprintf(file(), "replay\t%d\n", r->number);
    if (fflush(file()) || ferror(file()))
        sd_die(getenv("SD_EMULATE_DRY"), "%s", strerror(errno));
}
