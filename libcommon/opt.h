/* opt.h - option tables.  One table per program, ended by a row of zeros; the shared options
 * (-h -V -q -v -j -k --help=json --config --threads --device --dtype --seed --memory --overwrite --plan)
 * are added by sd_options when the program asks for their groups.
 *
 * One rule: an option is either understood, in range and used, or the program ends with status 2 and one line. */
#ifndef SD_OPT_H
#define SD_OPT_H

#include "diag.h"

enum sd_opt_kind {
    SD_OPT_END = 0,
    SD_OPT_FLAG,        /* bool *;  --name, --no-name */
    SD_OPT_INT,         /* int64_t *;  min..max inclusive (both 0: no range) */
    SD_OPT_REAL,        /* double *;  min..max inclusive */
    SD_OPT_TEXT,        /* const char ** */
    SD_OPT_LIST,        /* struct sd_list *: repeatable texts */
    SD_OPT_CHOICE,      /* const char **: one of the words of `argument`, separated by '|' */
    SD_OPT_SIZE         /* int64_t * bytes: K M G, powers of two */
};

struct sd_list {        /* grows in the program's scope */
    size_t count;
    const char **item;
};

struct sd_opt {
    char short_name;            /* 0 for none */
    const char *name;           /* long name with hyphens */
    enum sd_opt_kind kind;
    void *value;                /* holds the default before, the user's choice after */
    double min, max;            /* for INT and REAL */
    const char *argument;       /* "PIXELS", "ddim|euler" */
    const char *help;           /* one line; the default in parentheses at its end */
};

/* Which shared options a program has besides -h -V -q -v --help=json --config (which all have).  The others are refused
 * by name. */
enum {
    SD_OPT_RECORDS = 1,     /* -j -k */
    SD_OPT_COMPUTE = 2,     /* --threads --device --dtype --memory --plan */
    SD_OPT_SEED = 4,
    SD_OPT_OVERWRITE = 8,
    SD_OPT_THREADS = 16     /* --threads alone */
};

struct sd_shared_options {  /* what the user chose; one per program */
    bool json_lines, keep_going, overwrite, plan;
    int64_t threads;        /* 0: the affinity mask; OMP_NUM_THREADS wins over the mask */
    const char *device;     /* "auto", "cpu", "cuda", "cuda:N" */
    const char *dtype;      /* "" for the device's default; device and dtype are made real by compute.h */
    int64_t seed;
    int64_t memory;         /* 0: no limit */
};
extern struct sd_shared_options sd_shared;

/* sd_options - parse, apply --config (JSON object of long names; flags win), check ranges; leave operands in argc, argv
 * (argv[0] stays the program).  Ends the program for -h, -V, --help=json (status 0) and for any fault (status 2).
 * `--` ends options; `--name=value` and `--name value` both work; abbreviations do not.  In --config a flag is true or
 * false, a repeatable option a value or an array of them, and a number or text is what it is on the command line. */
void sd_options(int *argc, char ***argv, const struct sd_opt *table, unsigned shared, const char *synopsis,
                const char *purpose);

/* sd_option_given - was this long option on the command line or in --config? */
bool sd_option_given(const char *name);
/* sd_options_json - the effective settings (long name: value) of all options but paths and shared ones in `except`
 * (NULL-ended), as a jansson object the caller owns; for metadata and state. */
struct json_t *sd_options_json(const char *const *except);

#endif
