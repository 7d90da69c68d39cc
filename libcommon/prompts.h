/* prompts.h - the prompts of a run, in order: from options, from files (one a line), from records. */
#ifndef SD_PROMPTS_H
#define SD_PROMPTS_H

#include "opt.h"
#include "record.h"

struct sd_prompt_line {
    const char *prompt, *negative;  /* negative: "" where none is given */
    const struct sd_record *record; /* it came in, without what told of the photo; NULL */
};

struct sd_prompts {
    struct sd_scope *scope;
    size_t count, room;
    struct sd_prompt_line *line;
};

/* sd_prompts_collect - `given` first, then the operands: files of prompts, record streams (key prompt, else caption;
 * negative_prompt), "-"; without any of these, records on standard input when something is there.  One negative prompt
 * is for all, several are one for each; a record's own goes before.  Returns SD_OK, or SD_SOME_BAD where records were
 * bad and named; ends the program for the rest (no prompt: status 2; a file that cannot be read, a broken stream: 3).
 */
int sd_prompts_collect(struct sd_prompts *p, const struct sd_list *given, const struct sd_list *negatives, int argc,
                       char **argv);

#endif
