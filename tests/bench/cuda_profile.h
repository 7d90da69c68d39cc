/* cuda_profile.h - where a row's time goes: its plan recorded with a mark after each step, the steps summed by op and shape.
 *
 * One rule: what is timed is the sequence as it runs, not a step by itself, so that caches are as cold as they are.  What a mark costs
 * is measured beside it, by two with nothing between them, and taken off. */
#ifndef SD_BENCH_CUDA_PROFILE_H
#define SD_BENCH_CUDA_PROFILE_H

#include "cuda_rows.h"
#include "plan_internal.h"

enum { PROFILE_ROUNDS = 20, PROFILE_LINES = 40 };

struct line {
    char text[128];
    double seconds, flops, bytes;
    int calls;
};

static double
bytes_of(const struct sd_tensor *x)
{
    enum sd_dtype t = x->param && x->dtype == SD_F32 && !x->param->trainable ? sd_graph_activations(x->graph) : x->dtype;

    return (double)x->numel * (double)sd_dtype_size(t);
}

/* What the step reads and writes at least: each operand once, each result once, a sum that goes on twice. */
static double
step_bytes(const struct sd_step *s)
{
    const struct sd_node *n = s->node;
    double bytes = 0;
    unsigned reads;

    if (!n)
        return bytes_of(s->tensor);
    reads = s->kind == SD_STEP_BACKWARD ? backward_reads(n) : 0xff;
    for (int i = 0; i < n->n_in; i++)
        if (n->in[i] && reads & R_IN(i))
            bytes += bytes_of(n->in[i]);
    if (s->kind != SD_STEP_BACKWARD)
        return bytes + bytes_of(n->out);
    bytes += bytes_of(n->dout) + (reads & R_OUT ? bytes_of(n->out) : 0);
    for (int i = 0; i < n->n_in; i++)
        if (n->din[i])
            bytes += bytes_of(n->din[i]) * (s->din_store[i] ? 1 : 2);
    return bytes;
}

/* Mark i stands before step i; the two behind the last one have nothing between them. */
static void
marked_steps(struct sd_plan *p)
{
    int count = (int)p->steps.count;

    for (int i = 0; i < count; i++) {
        sd_device_mark(device, i);
        sd_step_addresses(p, p->steps.item[i]);
        sd_device_step(p, p->steps.item[i]);
    }
    sd_device_mark(device, count);
    sd_device_mark(device, count + 1);
}

static double
between(int first)
{
    double t = sd_device_between(device, first, first + 1);

    if (t < 0)
        sd_die("--profile", "%s", sd_reason());
    return t;
}

static int
profile_rounds(void)
{
    return tiny ? 1 : PROFILE_ROUNDS;
}

/* Adds to each step its share of the mean over the rounds; one before them warms up. */
static void
time_steps(struct sd_plan *p)
{
    struct sd_recording *recording;
    int count = (int)p->steps.count;

    marked_steps(p);
    sd_device_wait(device);
    sd_device_record(device);
    marked_steps(p);
    if (!(recording = sd_device_recorded(device)))
        note("no recording, so that launches are timed with the kernels: %s", sd_reason());
    for (int k = 0; k <= profile_rounds(); k++) {
        double mark;

        if (recording)
            sd_device_replay(device, recording);
        else
            marked_steps(p);
        mark = between(count);
        for (int i = 0; i < count && k > 0; i++) {
            struct sd_step *s = p->steps.item[i];
            double t = between(i) - mark;

            s->seconds += t > 0 ? t / profile_rounds() : 0;
        }
    }
    sd_recording_free(recording);
}

static int
by_seconds(const void *a, const void *b)
{
    double x = ((const struct line *)a)->seconds, y = ((const struct line *)b)->seconds;

    return (x < y) - (x > y);
}

static void
put_line(const struct row *r, const struct line *l)
{
    char *shape = strchr(l->text, ' ');

    shape = shape ? strchr(shape + 1, ' ') : NULL;          /* behind op and kind */
    printf("profile\t%s\t%.*s\t%s\t%d\t%.3f\t%.6g\t%.6g\n", r->name, shape ? (int)(shape - l->text) : (int)strlen(l->text), l->text,
           shape ? shape + 1 : "", l->calls, l->seconds * 1e6, l->flops, l->bytes);
}

static void
add(struct line *l, const struct line *more)
{
    l->seconds += more->seconds;
    l->flops += more->flops;
    l->bytes += more->bytes;
    l->calls += more->calls;
}

/* One line for each op and shape, the most time first. */
static void
put_profile(const struct row *r, const struct sd_plan *p)
{
    struct line *lines = sd_alloc_array(scope, p->steps.count + 1, sizeof *lines), others = { .text = "others" };
    int count = 0;

    for (size_t i = 0; i < p->steps.count; i++) {
        const struct sd_step *s = p->steps.item[i];
        struct line one = { .seconds = s->seconds, .bytes = step_bytes(s), .calls = 1 };
        int k = 0;

        if (s->node)
            one.flops = s->kind == SD_STEP_BACKWARD ? s->node->backward_flops : s->node->flops;
        sd_step_describe(one.text, sizeof one.text, s);
        while (k < count && strcmp(lines[k].text, one.text))
            k++;
        if (k == count)
            memcpy(lines[count++].text, one.text, sizeof one.text);
        add(&lines[k], &one);
    }
    qsort(lines, (size_t)count, sizeof *lines, by_seconds);
    for (int k = 0; k < count; k++)
        if (k < PROFILE_LINES)
            put_line(r, &lines[k]);
        else
            add(&others, &lines[k]);
    if (others.calls)
        put_line(r, &others);
}

static void
profile(struct row *r)
{
    struct sd_plan *p;
    double whole;

    open_row(r);
    run_row(r, tiny ? 1 : 3);               /* what is tuned and loaded is so afterwards */
    p = r->net ? r->net->plan : r->trainer->steps->plan;
    if (p->steps.count + 2 > SD_MARKS)
        sd_die(r->name, "%zu steps, there are %d marks", p->steps.count, SD_MARKS);
    run_kernels(r, tiny ? 1 : 2);
    whole = run_kernels(r, profile_rounds());
    vendor_tf32 = r->tf32;
    time_steps(p);
    if (r->trainer)
        sd_mirror_clear(r->trainer->mirror);    /* the plan adds to the gradient */
    put_profile(r, p);
    put_line(r, &(struct line){ .text = "all", .seconds = whole, .flops = sd_plan_report(p).flops, .calls = 1 });
}

#endif
