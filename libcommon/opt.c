/* opt.c - the option table's parser, and --config. */
#include "opt_private.h"

#include "json.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

struct sd_shared_options sd_shared = { .device = "auto", .dtype = "" };

static bool help, version, quiet;
static const char *config;

static const struct sd_opt everywhere[] = {
    { 'h', "help", SD_OPT_FLAG, &help, 0, 0, NULL, "print this and end; --help=json for programs" },
    { 'V', "version", SD_OPT_FLAG, &version, 0, 0, NULL, "print the version and end" },
    { 'q', "quiet", SD_OPT_FLAG, &quiet, 0, 0, NULL, "no warnings, no progress" },
    { 'v', "verbose", SD_OPT_FLAG, NULL, 0, 0, NULL, "say more; twice: more still" },
    { 0, "config", SD_OPT_TEXT, &config, 0, 0, "FILE", "JSON object of long option names; the command line wins" },
    { 0 }
}, records[] = {
    { 'j', "json", SD_OPT_FLAG, &sd_shared.json_lines, 0, 0, NULL, "records as JSON lines, tensors as dtype, shape" },
    { 'k', "keep-going", SD_OPT_FLAG, &sd_shared.keep_going, 0, 0, NULL, "bad inputs only warn: status 0, not 1" },
    { 0 }
}, threads[] = {
    { 0, "threads", SD_OPT_INT, &sd_shared.threads, 0, 1024, "N", "threads (0: OMP_NUM_THREADS, else the cores allowed)" },
    { 0 }
}, compute[] = {
    { 0, "device", SD_OPT_TEXT, &sd_shared.device, 0, 0, "auto|cpu|cuda[:N]", "where to compute (auto)" },
    { 0, "dtype", SD_OPT_CHOICE, &sd_shared.dtype, 0, 0, "f32|bf16|tf32|f16",
      "precision (f32 on a CPU, bf16 on a GPU)" },
    { 0, "memory", SD_OPT_SIZE, &sd_shared.memory, 0, 0, "SIZE", "stay within so many bytes; K, M, G (no limit)" },
    { 0, "plan", SD_OPT_FLAG, &sd_shared.plan, 0, 0, NULL, "print memory and work as JSON and end" },
    { 0 }
}, seeds[] = {
    { 0, "seed", SD_OPT_INT, &sd_shared.seed, 0, 9007199254740992.0, "N", "names all randomness (0)" },
    { 0 }
}, overwrites[] = {
    { 0, "overwrite", SD_OPT_FLAG, &sd_shared.overwrite, 0, 0, NULL, "replace existing outputs" },
    { 0 }
};

struct sd_opt_entry *sd_opt_entries;
size_t sd_opt_count;

static void
add(const struct sd_opt *table, bool own)
{
    size_t n = 0;

    while (table[n].name)
        n++;
    sd_opt_entries = realloc(sd_opt_entries, (sd_opt_count + n + 1) * sizeof *sd_opt_entries);
    if (!sd_opt_entries)
        sd_die("memory", "no room for options");
    for (size_t i = 0; i < n; i++)
        sd_opt_entries[sd_opt_count++] = (struct sd_opt_entry){ &table[i], SD_OPT_BY_DEFAULT, own };
}

static struct sd_opt_entry *
find(const char *name, size_t length)
{
    for (size_t i = 0; i < sd_opt_count; i++)
        if (strlen(sd_opt_entries[i].opt->name) == length && !memcmp(sd_opt_entries[i].opt->name, name, length))
            return &sd_opt_entries[i];
    return NULL;
}

/* ---- values ------------------------------------------------------------------------------------------------- */

/* Is `text` one of the words of "a|b|c"? */
static bool
one_of(const char *words, const char *text)
{
    size_t n = strlen(text);

    for (const char *w = words; ; w++) {
        if (!strncmp(w, text, n) && (w[n] == '|' || !w[n]) && n)
            return true;
        if (!(w = strchr(w, '|')))
            return false;
    }
}

/* The word itself, which must outlive a configuration file. */
static char *
keep(const char *text)
{
    return sd_strdup(NULL, text);
}

static void
set_size(const struct sd_opt *o, const char *subject, const char *text)
{
    static const char units[] = "KMGT";
    const char *unit;
    char *end;
    double x;

    errno = 0;
    x = strtod(text, &end);
    if (end == text || !isdigit((unsigned char)text[0]))
        sd_usage(subject, "expected a size such as 8G, found \"%s\"", text);
    if (*end && (unit = strchr(units, toupper((unsigned char)*end)))) {
        x = ldexp(x, 10 * (int)(unit - units + 1));
        end++;
    }
    if (*end || strpbrk(text, "xXpP") || !(x < 0x1p62) || x != floor(x))
        sd_usage(subject, "expected a size such as 8G, found \"%s\"", text);
    *(int64_t *)o->value = (int64_t)x;
}

static void
set_int(const struct sd_opt *o, const char *subject, int64_t x)
{
    if ((o->min != 0 || o->max != 0) && ((double)x < o->min || (double)x > o->max))
        sd_usage(subject, "expected %.0f to %.0f, found %lld", o->min, o->max, (long long)x);
    *(int64_t *)o->value = x;
}

static void
set_real(const struct sd_opt *o, const char *subject, double x, const char *text)
{
    if ((o->min != 0 || o->max != 0) && !(x >= o->min && x <= o->max))
        sd_usage(subject, "expected %.10g to %.10g, found %s", o->min, o->max, text);
    if (!isfinite(x))
        sd_usage(subject, "expected a finite number, found %s", text);
    *(double *)o->value = x;
}

/* An empty name is a variable of the shell that was not set: better said now than when the work is done. */
static void
check_name(const struct sd_opt *o, const char *subject, const char *text)
{
    static const char *const names[] = { "FILE", "DIR", "PATH", "MODEL" };
    bool name = o->argument && !strcmp(o->argument, "M");

    for (size_t i = 0; o->argument && i < sizeof names / sizeof *names; i++)
        name |= !strncmp(o->argument, names[i], strlen(names[i]));
    if (name && !*text)
        sd_usage(subject, "expected %s, found \"\"", o->argument);
}

static void
append_list(struct sd_list *list, const char *text)
{
    const char **more = sd_alloc_array(NULL, list->count + 1, sizeof *more);

    if (list->count)
        memcpy(more, list->item, list->count * sizeof *more);
    more[list->count++] = keep(text);
    list->item = more;
}

/* A value given as text. */
static void
set(struct sd_opt_entry *e, const char *subject, const char *text)
{
    const struct sd_opt *o = e->opt;
    char *end;

    errno = 0;
    switch (o->kind) {
    case SD_OPT_INT: {
        long long x = strtoll(text, &end, 10);

        if (end == text || *end || (errno && errno != ERANGE) || isspace((unsigned char)text[0]) || text[0] == '+')
            sd_usage(subject, "expected an integer, found \"%s\"", text);
        if (errno && (o->min != 0 || o->max != 0))
            sd_usage(subject, "expected %.0f to %.0f, found %s", o->min, o->max, text);
        if (errno)
            sd_usage(subject, "expected an integer of 64 bits, found %s", text);
        set_int(o, subject, x);
        break;
    }
    case SD_OPT_REAL: {
        double x = strtod(text, &end);

        if (end == text || *end || isspace((unsigned char)text[0]) || text[0] == '+' || strpbrk(text, "xXpP"))
            sd_usage(subject, "expected a number, found \"%s\"", text);
        set_real(o, subject, x, text);
        break;
    }
    case SD_OPT_TEXT:
        check_name(o, subject, text);
        *(const char **)o->value = keep(text);
        break;
    case SD_OPT_LIST:
        check_name(o, subject, text);
        append_list(o->value, text);
        break;
    case SD_OPT_CHOICE:
        if (strchr(text, '|') || !one_of(o->argument, text))
            sd_usage(subject, "expected %s, found \"%s\"", o->argument, text);
        *(const char **)o->value = keep(text);
        break;
    case SD_OPT_SIZE:
        set_size(o, subject, text);
        break;
    case SD_OPT_FLAG:
    case SD_OPT_END:
        sd_bug("opt", "%s takes no value", o->name);
    }
}

/* ---- the command line --------------------------------------------------------------------------------------- */

/* Edits between two words (optimal string alignment without transpositions), for "did you mean". */
static size_t
edits(const char *a, size_t n, const char *b)
{
    size_t m = strlen(b), row[128];

    if (m >= 128)
        return m;
    for (size_t j = 0; j <= m; j++)
        row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0];

        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);

            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[m];
}

static const struct sd_opt vaes[] = { { 0, "vae", SD_OPT_TEXT, NULL, 0, 0, NULL, NULL }, { 0 } },
    tokenizers[] = { { 0, "tokenizer", SD_OPT_TEXT, NULL, 0, 0, NULL, NULL }, { 0 } };

/* Shared options of other programs, and why this one has none. */
static const struct {
    const struct sd_opt *table;
    const char *why;
} elsewhere[] = { { records, "is for records, one by one; this program does all or nothing" },
                  { threads, "is for arithmetic on many cores; this program has none" },
                  { compute, "is for models; this program runs none" },
                  { seeds, "is for random numbers; this program draws none" },
                  { vaes, "is for encoding and drawing pictures; this program does neither" },
                  { tokenizers, "is for prompts and captions; this program reads none" },
                  { overwrites,
                   "is for files written by name; this program writes to standard output, and adds to its cache" } };

static const char *
refusal(const char *name, size_t length, char letter)
{
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
        for (const struct sd_opt *o = elsewhere[i].table; o->name; o++)
            if (name ? strlen(o->name) == length && !memcmp(o->name, name, length) : o->short_name == letter)
                return elsewhere[i].why;
    return NULL;
}

static void
unknown(const char *subject, const char *name, size_t length)
{
    const char *near = NULL, *why = refusal(name, length, 0);
    size_t best = 2 + length / 5;           /* fewer edits than this */

    if (why)
        sd_usage(subject, "%s", why);

    for (size_t i = 0; i < sd_opt_count; i++) {
        const char *other = sd_opt_entries[i].opt->name;
        size_t d = length > 2 && !strncmp(name, other, length) ? 1 : edits(name, length, other);

        if (d < best) {
            best = d;
            near = sd_opt_entries[i].opt->name;
        }
    }
    if (near)
        sd_usage(subject, "unknown option, did you mean --%s?", near);
    sd_usage(subject, "unknown option (--help lists them)");
}

static void
set_flag(struct sd_opt_entry *e, bool value)
{
    if (!strcmp(e->opt->name, "verbose"))
        sd_verbosity = value ? (sd_verbosity < 0 ? 1 : sd_verbosity + 1) : 0;
    else
        *(bool *)e->opt->value = value;
    if (e->opt->value == &quiet)
        sd_verbosity = value ? -1 : 0;
    e->origin = SD_OPT_BY_USER;
}

/* --name, --no-name, --name=value, --name value.  Returns how many words of argv were eaten. */
static int
long_option(char **word, const char *synopsis, const char *purpose)
{
    const char *name = word[0] + 2, *value = strchr(name, '=');
    size_t length = value ? (size_t)(value - name) : strlen(name);
    struct sd_opt_entry *e = find(name, length);
    struct sd_opt_entry *negated = !e && length > 3 && !strncmp(name, "no-", 3) ? find(name + 3, length - 3) : NULL;
    char *subject = sd_strndup(NULL, word[0], length + 2);

    if (value)
        value++;
    if (negated && !sd_opt_takes_value(negated->opt) && negated->opt->value != &help
        && negated->opt->value != &version) {
        if (value)
            sd_usage(subject, "takes no value");
        set_flag(negated, false);
        return 1;
    }
    if (!e)
        unknown(subject, name, length);
    if (e->opt->value == &help) {
        if (value && strcmp(value, "json"))
            sd_usage(subject, "expected --help or --help=json");
        (value ? sd_opt_print_json : sd_opt_print_help)(synopsis, purpose);
    }
    if (!sd_opt_takes_value(e->opt)) {
        if (value)
            sd_usage(subject, "takes no value");
        set_flag(e, true);
        return 1;
    }
    if (!value && !(value = word[1]))
        sd_usage(subject, "needs a value: %s", e->opt->argument ? e->opt->argument : "");
    if (e->origin != SD_OPT_BY_USER && e->opt->kind == SD_OPT_LIST)
        *(struct sd_list *)e->opt->value = (struct sd_list){ 0, NULL };     /* the default, if there was one */
    e->origin = SD_OPT_BY_USER;
    set(e, subject, value);
    return strchr(word[0] + 2, '=') ? 1 : 2;
}

/* -a, -abc, -n5, -n 5. */
static int
short_options(char **word, const char *synopsis, const char *purpose)
{
    for (const char *c = word[0] + 1; *c; c++) {
        struct sd_opt_entry *e = NULL;
        char subject[3] = { '-', *c, 0 };

        for (size_t i = 0; i < sd_opt_count && !e; i++)
            if (sd_opt_entries[i].opt->short_name == *c)
                e = &sd_opt_entries[i];
        if (!e && refusal(NULL, 0, *c))
            sd_usage(subject, "%s", refusal(NULL, 0, *c));
        if (!e)
            sd_usage(word[0], "unknown option (--help lists them)");
        if (e->opt->value == &help)
            sd_opt_print_help(synopsis, purpose);
        if (sd_opt_takes_value(e->opt)) {
            if (!c[1] && !word[1])
                sd_usage(subject, "needs a value: %s", e->opt->argument ? e->opt->argument : "");
            e->origin = SD_OPT_BY_USER;
            set(e, subject, c[1] ? c + 1 : word[1]);
            return c[1] ? 1 : 2;
        }
        set_flag(e, true);
    }
    return 1;
}

/* ---- --config ----------------------------------------------------------------------------------------------- */

/* The rule: a flag is true or false, a repeatable option may be an array, and whatever else is a text or a number means
 * what it means on the command line. */
static const char *
json_word(struct sd_scope *s, const json_t *value)
{
    double x = json_number_value(value);
    char text[32];

    if (json_is_string(value))
        return json_string_value(value);
    if (json_is_integer(value))
        return sd_sprintf(s, "%lld", (long long)json_integer_value(value));
    if (!json_is_real(value))
        return NULL;
    if (x == floor(x) && fabs(x) <= 0x1p53)         /* 1e3 is an integer too */
        return sd_sprintf(s, "%.0f", x);
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        if (strtod(text, NULL) == x)
            break;
    }
    return sd_strdup(s, text);
}

static void
set_from_json(struct sd_scope *s, struct sd_opt_entry *e, const char *subject, const json_t *value)
{
    static const char *const kinds[] = { "", "true or false", "an integer", "a number", "a text",
                                         "a text or an array of texts", "a text", "a size such as \"8G\"" };
    const struct sd_opt *o = e->opt;
    bool several = o->kind == SD_OPT_LIST && json_is_array(value);
    size_t count = several ? json_array_size(value) : 1;

    if (o->kind == SD_OPT_FLAG) {
        if (!json_is_boolean(value))
            sd_usage(subject, "expected true or false, found %s", sd_json_kind(value));
        if (o->value && o->value != &quiet)
            *(bool *)o->value = json_is_true(value);
        else
            set_flag(e, json_is_true(value));
    } else if (o->kind == SD_OPT_LIST) {
        *(struct sd_list *)o->value = (struct sd_list){ 0, NULL };
    }
    for (size_t i = 0; i < count && o->kind != SD_OPT_FLAG; i++) {
        const json_t *item = several ? json_array_get(value, i) : value;
        const char *word = json_word(s, item);

        if (!word)
            sd_usage(subject, "expected %s, found %s%s", several ? "an array of texts" : kinds[o->kind],
                     sd_json_kind(item), several ? " in it" : "");
        set(e, subject, word);
    }
    e->origin = SD_OPT_BY_CONFIG;
}

static void
read_config(void)
{
    struct sd_scope *s = sd_scope_open();
    json_t *object = sd_json_load(s, config, 0), *value;
    const char *name;

    if (!object)
        sd_usage(config, "%s", sd_reason());
    if (!json_is_object(object))
        sd_usage(config, "expected an object, found %s", sd_json_kind(object));
    json_object_foreach(object, name, value) {
        struct sd_opt_entry *e = find(name, strlen(name));
        char *subject = sd_sprintf(s, "%s: %s", config, name);

        if (!e)
            unknown(subject, name, strlen(name));
        if (e->opt->value == &help || e->opt->value == &version || e->opt->value == (void *)&config)
            sd_usage(subject, "belongs on the command line");
        if (e->origin != SD_OPT_BY_USER)
            set_from_json(s, e, subject, value);
    }
    sd_scope_close(s);
}

static void
check_shared(void)
{
    const char *d = sd_shared.device;

    if (strcmp(d, "auto") && strcmp(d, "cpu") && strcmp(d, "cuda")
            && (strncmp(d, "cuda:", 5) || !d[5] || strlen(d) > 8 || strspn(d + 5, "0123456789") != strlen(d + 5)))
        sd_usage("--device", "expected auto, cpu, cuda or cuda:N, found \"%s\"", d);
#ifdef _OPENMP
    if (sd_shared.threads)
        omp_set_num_threads((int)sd_shared.threads);
#endif
}

void
sd_options(int *argc, char ***argv, const struct sd_opt *table, unsigned shared, const char *synopsis,
           const char *purpose)
{
    char **words = *argv;
    int operands = 1;

    if (*argc > 0)
        sd_program = strrchr(words[0], '/') ? strrchr(words[0], '/') + 1 : words[0];
    sd_catch_signals();
    free(sd_opt_entries);
    sd_opt_entries = NULL;
    sd_opt_count = 0;
    if (table)
        add(table, true);
    if (shared & (SD_OPT_THREADS | SD_OPT_COMPUTE))
        add(threads, false);
    if (shared & SD_OPT_COMPUTE)
        add(compute, false);
    if (shared & SD_OPT_SEED)
        add(seeds, false);
    if (shared & SD_OPT_OVERWRITE)
        add(overwrites, false);
    if (shared & SD_OPT_RECORDS)
        add(records, false);
    add(everywhere, false);

    for (int i = 1; i < *argc; ) {
        if (!strcmp(words[i], "--")) {
            while (++i < *argc)
                words[operands++] = words[i];
        } else if (!strncmp(words[i], "--", 2)) {
            i += long_option(words + i, synopsis, purpose);
        } else if (words[i][0] == '-' && words[i][1]) {
            i += short_options(words + i, synopsis, purpose);
        } else {
            words[operands++] = words[i++];
        }
        if (version) {
            printf("%s %s\n", sd_program, SD_VERSION);
            exit(sd_finish(SD_OK));
        }
    }
    words[operands] = NULL;
    *argc = operands;
    if (config)
        read_config();
    check_shared();
}

bool
sd_option_given(const char *name)
{
    const struct sd_opt_entry *e = find(name, strlen(name));

    if (!e)
        sd_bug("sd_option_given", "no option %s", name);
    return e->origin != SD_OPT_BY_DEFAULT;
}
