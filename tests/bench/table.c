/* table - what `cuda` measured, from standard input, as one table: medians over rounds, floors, goals, ratios to the peers.
 * floor    operations of the row over the best matrix product of its type in the same run
 * kernels  the network's plan alone, replayed; ours: what a program waits for
 * spread   of ours: largest less smallest round, over the median
 * Goals are those of the specification for an H200, in bf16: on another card they are what to compare with, no more. */
#include "diag.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { KEYS = 512, VALUES = 64, FIELDS = 8, PARTS = 512 };

static struct key {
    char kind[8], row[64], who[32], unit[16];
    double value[VALUES];
    int count;
} keys[KEYS];
static int key_count;

/* Of a row's profile, in the order in which it came. */
static struct part {
    const char *row, *op, *shape;
    double calls, us, flops, bytes;
} parts[PARTS];
static int part_count;

static struct sd_scope *scope;
static const char *about[32][2], *notes[256];
static int abouts, note_count;

static const struct goal {
    const char *row, *text, *id;
    double ms, eager, best;     /* 0: none.  Ratios to the peer as it is, and to the best that PyTorch can be made */
    bool by_ours;               /* ours is what counts, else the kernels: pictures end on the device */
} goals[] = {
    { "text", "text, 2 prompts", "", 0, 0, 0, true },
    { "guided", "guided step, 512x512", "S1", 1000.0 / 175, 2.5, 1.25, true },
    { "decode512", "VAE decode, 512x512", "", 0, 0, 0, false },
    { "decode1024", "VAE decode, 1024x1024", "S4", 24, 2, 2, false },
    { "lora1", "LoRA step, attention, r16, batch 1", "T1", 9.5, 8, 1.6, true },
    { "lora8", "LoRA step, attention, r16, batch 8", "T2", 48, 2.5, 1.4, true },
    { "ti", "TI step, batch 1", "T7", 9.5, 6, 1.4, true },
    { "lora1-tf32", "LoRA step, batch 1, f32 by tf32", "", 0, 0, 0, true },
};
enum { GOALS = sizeof goals / sizeof *goals };
static const char *const peers[] = { "eager", "graph", "compile" };
enum { PEERS = sizeof peers / sizeof *peers };
static const double memory_goal = 2.6, start_goal = 3;

static struct key *
find(const char *kind, const char *row, const char *who)
{
    for (int i = 0; i < key_count; i++)
        if (!strcmp(keys[i].kind, kind) && !strcmp(keys[i].row, row) && (!who || !strcmp(keys[i].who, who)))
            return &keys[i];
    return NULL;
}

static int
by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* 0 where nothing was measured */
static double
median(const struct key *k)
{
    double t[VALUES];

    if (!k)
        return 0;
    memcpy(t, k->value, (size_t)k->count * sizeof *t);
    qsort(t, (size_t)k->count, sizeof *t, by_value);
    return k->count % 2 ? t[k->count / 2] : (t[k->count / 2 - 1] + t[k->count / 2]) / 2;
}

static double
spread(const struct key *k)
{
    double least = k->value[0], most = k->value[0];

    for (int i = 1; i < k->count; i++) {
        least = k->value[i] < least ? k->value[i] : least;
        most = k->value[i] > most ? k->value[i] : most;
    }
    return (most - least) / median(k);
}

/* -- reading ------------------------------------------------------------------------------------------------------- */

static int
put(const char *kind, const char *row, const char *who, const char *unit, const char *text)
{
    struct key *k = find(kind, row, who);
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end || !(value > 0))
        return sd_fail("%s %s: %s is no measurement", kind, row, text);
    if (!k) {
        if (key_count == KEYS || strlen(row) >= sizeof k->row || strlen(who) >= sizeof k->who || strlen(unit) >= sizeof k->unit)
            return sd_fail("%s %s %s: too many, or too long", kind, row, who);
        k = &keys[key_count++];
        snprintf(k->kind, sizeof k->kind, "%s", kind);
        snprintf(k->row, sizeof k->row, "%s", row);
        snprintf(k->who, sizeof k->who, "%s", who);
        snprintf(k->unit, sizeof k->unit, "%s", unit);
    }
    if (k->count == VALUES)
        return sd_fail("%s %s %s: more than %d rounds", kind, row, who, VALUES);
    k->value[k->count++] = value;
    return 0;
}

/* An about that comes from many processes is said once. */
static int
put_about(const char *name, const char *text)
{
    for (int i = 0; i < abouts; i++)
        if (!strcmp(about[i][0], name) && !strcmp(about[i][1], text))
            return 0;
    if (abouts == sizeof about / sizeof *about)
        return sd_fail("too many lines of \"about\"");
    about[abouts][0] = sd_strdup(scope, name);
    about[abouts++][1] = sd_strdup(scope, text);
    return 0;
}

static int
put_part(char *const *field)
{
    struct part p = { sd_strdup(scope, field[1]), sd_strdup(scope, field[2]), sd_strdup(scope, field[3]), 0, 0, 0, 0 };
    double *const value[] = { &p.calls, &p.us, &p.flops, &p.bytes };

    for (int i = 0; i < 4; i++) {
        char *end;

        *value[i] = strtod(field[4 + i], &end);
        if (end == field[4 + i] || *end || !(*value[i] >= 0))
            return sd_fail("profile %s %s: %s is no measurement", p.row, p.op, field[4 + i]);
    }
    if (part_count == PARTS)
        return sd_fail("profile %s: more than %d parts of steps", p.row, PARTS);
    parts[part_count++] = p;
    return 0;
}

static int
put_line(char *line)
{
    char *field[FIELDS] = { line };
    int n = 1;

    for (char *p = line; *p && n < FIELDS; p++)
        if (*p == '\t') {
            *p = 0;
            field[n++] = p + 1;
        }
    if (!strcmp(field[0], "rate") && n == 5)
        return put("rate", field[1], field[2], field[3], field[4]);
    if ((!strcmp(field[0], "time") || !strcmp(field[0], "memory") || !strcmp(field[0], "start")) && n == 4)
        return put(field[0], field[1], field[2], "", field[3]);
    if (!strcmp(field[0], "flops") && n == 3)
        return put("flops", field[1], "", "", field[2]);
    if (!strcmp(field[0], "profile") && n == 8)
        return put_part(field);
    if (!strcmp(field[0], "about") && n == 3)
        return put_about(field[1], field[2]);
    if (!strcmp(field[0], "note") && n == 2 && note_count < (int)(sizeof notes / sizeof *notes)) {
        notes[note_count++] = sd_strdup(scope, field[1]);
        return 0;
    }
    return sd_fail("\"%s\" of %d words is nothing that is known here", field[0], n);
}

/* -- writing ------------------------------------------------------------------------------------------------------- */

static void
number(double x)
{
    if (x <= 0)
        printf(" – |");
    else
        printf(" %.*f |", x >= 100 ? 1 : x >= 1 ? 2 : 3, x);
}

static void
put_rates(void)
{
    printf("## The card's own rates\n\n| what | who | unit | median | spread |\n| --- | --- | --- | --- | --- |\n");
    for (int i = 0; i < key_count; i++)
        if (!strcmp(keys[i].kind, "rate")) {
            printf("| %s | %s | %s |", keys[i].row, keys[i].who, keys[i].unit);
            number(median(&keys[i]));
            printf(" %.0f %% |\n", 100 * spread(&keys[i]));
        }
    printf("\n");
}

/* The best matrix product whose name ends so, operations a second. */
static double
product_rate(const char *dtype)
{
    double best = 0;

    for (int i = 0; i < key_count; i++) {
        size_t n = strlen(keys[i].row), m = strlen(dtype);

        if (!strcmp(keys[i].kind, "rate") && !strncmp(keys[i].row, "GEMM", 4) && n > m && !strcmp(keys[i].row + n - m, dtype))
            best = median(&keys[i]) > best ? median(&keys[i]) : best;
    }
    return best * 1e12;
}

/* " 8.3x (8: met) |": the peer's time over ours, and what was wanted. */
static void
ratio(double theirs, double ours, double wanted)
{
    if (theirs <= 0 || ours <= 0)
        printf(" – |");
    else if (wanted > 0)
        printf(" %.2f (%.2f: %s) |", theirs / ours, wanted, theirs / ours >= wanted ? "met" : "**short**");
    else
        printf(" %.2f |", theirs / ours);
}

static void
put_row(const struct goal *g)
{
    const struct key *whole = find("time", g->row, "ours"), *kernels = find("time", g->row, "kernels");
    double flops = median(find("flops", g->row, NULL)), rate = product_rate(strstr(g->row, "tf32") ? "tf32" : "bf16");
    double floor = rate > 0 ? flops / rate * 1e3 : 0, ours = median(g->by_ours ? whole : kernels), best = 0;

    if (!whole && !kernels)
        return;
    printf("| %s | %s |", g->id, g->text);
    number(flops * 1e-12);
    number(floor);
    number(median(whole));
    number(median(kernels));
    if (whole)
        printf(" %.0f %% |", 100 * spread(whole));
    else
        printf(" – |");
    number(floor > 0 ? ours / floor : 0);
    if (g->ms > 0)
        printf(" %.2f: %s |", g->ms, ours > 0 && ours <= g->ms ? "met" : "**short**");
    else
        printf(" – |");
    for (int i = 0; i < PEERS; i++) {
        double theirs = median(find("time", g->row, peers[i]));

        number(theirs);
        if (i > 0 && theirs > 0 && (best == 0 || theirs < best))
            best = theirs;
    }
    ratio(median(find("time", g->row, "eager")), ours, g->eager);
    ratio(best, ours, g->best);
    printf("\n");
}

static void
put_rows(void)
{
    printf("## Rows\n\nMilliseconds. \"x floor\", goals and ratios are of \"ours\" (training, guided, text) or of \"kernels\" (decode, whose\n"
           "pictures the peers leave on the device too). P1 is the faster of graph and compile.\n\n"
           "| goal | what | TFLOP | floor | ours | kernels | spread | x floor | goal ms | eager | graph | compile | eager / ours | P1 / ours |\n"
           "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for (int i = 0; i < GOALS; i++)
        put_row(&goals[i]);
    printf("\n");
}

static void
put_memory(void)
{
    static const char *const whose[] = { "ours", "ours and libraries", "eager", "graph", "compile" };

    printf("## Memory and start\n\nGB of the device: ours as allocated, and with what driver and libraries took since the device was opened;\n"
           "the peers' by torch.cuda.max_memory_allocated. Start: a process of its own, from its first line to the end of its first step,\n"
           "the first time (nothing tuned yet) and after that.\n\n"
           "| what | ours | and libraries | eager | graph | compile | goal GB | first start s | start s | goal s |\n"
           "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for (int i = 0; i < GOALS; i++) {
        const struct key *start = find("start", goals[i].row, "ours");
        double ours = median(find("memory", goals[i].row, "ours")), last = start ? start->value[start->count - 1] : 0;
        bool any = start != NULL;

        for (int k = 0; k < 5; k++)
            any |= find("memory", goals[i].row, whose[k]) != NULL;
        if (!any)
            continue;
        printf("| %s |", goals[i].text);
        for (int k = 0; k < 5; k++)
            number(median(find("memory", goals[i].row, whose[k])));
        if (!strcmp(goals[i].row, "lora1"))
            printf(" M5 %.1f: %s |", memory_goal, ours > 0 && ours <= memory_goal ? "met" : "**short**");
        else
            printf(" – |");
        number(start ? start->value[0] : 0);
        number(start && start->count > 1 ? last : 0);
        if (start && start->count > 1)
            printf(" C7 %.0f: %s |\n", start_goal, last <= start_goal ? "met" : "**short**");
        else
            printf(" – |\n");
    }
    printf("\n");
}

/* 0: not known */
static void
rate(double amount, double us, double unit)
{
    number(us > 0 ? amount / us * 1e6 / unit : 0);
}

static void
put_parts(const char *row)
{
    double sum = 0;

    for (int i = 0; i < part_count; i++)
        sum += strcmp(parts[i].row, row) || !strcmp(parts[i].op, "all") ? 0 : parts[i].us;
    printf("## Where %s goes\n\nIts plan in sequence, with a mark after each step, by op and shape: operations and bytes are what a step cannot do without.\n"
           "\"all\" is the same plan without marks; the rest of \"ours\" above is noise, optimizer, feeding and waiting.\n\n"
           "| op | shape | calls | us | share | TFLOP/s | GB/s |\n| --- | --- | --- | --- | --- | --- | --- |\n", row);
    for (int i = 0; i < part_count; i++) {
        const struct part *p = &parts[i];

        if (strcmp(p->row, row))
            continue;
        printf("| %s | %s | %.0f |", p->op, p->shape, p->calls);
        number(p->us);
        printf(" %.1f %% |", sum > 0 ? 100 * p->us / sum : 0);
        rate(p->flops, p->us, 1e12);
        rate(p->bytes, p->us, 1e9);
        printf("\n");
    }
    printf("\n");
}

static void
put_profiles(void)
{
    for (int i = 0; i < part_count; i++) {
        int k = 0;

        while (strcmp(parts[k].row, parts[i].row))
            k++;
        if (k == i)
            put_parts(parts[i].row);
    }
}

int
main(int argc, char **argv)
{
    char *line = NULL;
    size_t size = 0;
    ssize_t n;
    int number_of = 0;

    sd_program = "table";
    if (argc > 1)
        sd_usage(argv[1], "usage: table < MEASUREMENTS");
    scope = sd_scope_open();
    while ((n = getline(&line, &size, stdin)) > 0) {
        number_of++;
        if (line[n - 1] != '\n')
            sd_warn(NULL, "line %d has no end: left out", number_of);       /* what measured was stopped */
        else {
            line[n - 1] = 0;
            if (put_line(line) < 0)
                sd_die(NULL, "line %d: %s", number_of, sd_reason());
        }
    }
    free(line);
    if (!key_count)
        sd_die(NULL, "no measurement");
    printf("# SD1.5, random weights, bf16%s\n\n", find("time", "lora1-tf32", NULL) ? " (one row f32)" : "");
    for (int i = 0; i < abouts; i++)
        printf("- %s: %s\n", about[i][0], about[i][1]);
    for (int i = 0; i < note_count; i++)
        printf("- **note**: %s\n", notes[i]);
    printf("\n");
    put_rates();
    put_rows();
    put_memory();
    put_profiles();
    sd_scope_close(scope);
    if (fflush(stdout) != 0 || ferror(stdout))
        sd_die("standard output", "%s", strerror(errno));
    return 0;
}
