/* opt_private.h - what opt.c (tables, command line, configuration) and opt_print.c (help, settings as JSON) share. */
#ifndef SD_OPT_PRIVATE_H
#define SD_OPT_PRIVATE_H

#include "opt.h"

/* All options of this run, and how each came by its value. */
enum sd_opt_origin { SD_OPT_BY_DEFAULT, SD_OPT_BY_CONFIG, SD_OPT_BY_USER };
struct sd_opt_entry {
    const struct sd_opt *opt;
    enum sd_opt_origin origin;
    bool own;               /* the program's, not shared */
};
extern struct sd_opt_entry *sd_opt_entries;
extern size_t sd_opt_count;

static inline bool
sd_opt_takes_value(const struct sd_opt *o)
{
    return o->kind != SD_OPT_FLAG;
}

/* sd_opt_value - a new reference; NULL for none. */
struct json_t *sd_opt_value(const struct sd_opt *o);
/* Both end the program. */
void sd_opt_print_help(const char *synopsis, const char *purpose) SD_NORETURN;
void sd_opt_print_json(const char *synopsis, const char *purpose) SD_NORETURN;

#endif
