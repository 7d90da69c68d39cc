/* run - bind a plan to memory, feed, run, fetch. */
#include "plan_internal.h"

#include "clock.h"
#include "device.h"
#include "ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

bool sd_plain, sd_guard;

/* -- memory -------------------------------------------------------------------------------------------------------- */

struct sd_arena *
sd_arena_new(void)
{
    struct sd_arena *a = calloc(1, sizeof *a);

    if (!a)
        sd_die("memory", "out of memory");
    return a;
}

static void
release(struct sd_arena *a)
{
    if (a->base && a->device)
        sd_device_free(a->device, a->base);
    else if (a->base)
        munmap(a->base, a->bytes);
}

void
sd_arena_free(struct sd_arena *a)
{
    if (!a)
        return;
    release(a);
    free(a);
}

unsigned
sd_arena_moves(const struct sd_arena *a)
{
    return a->moves;
}

static void
arena_grow(struct sd_arena *a, size_t bytes)
{
    if (bytes <= a->bytes)
        return;
    release(a);
    bytes = (bytes + SD_ARENA_STEP - 1) / SD_ARENA_STEP * SD_ARENA_STEP;
    a->bytes = bytes;
    a->moves++;
    if (a->device) {
        a->base = sd_device_alloc(a->device, bytes, "activations");
        return;
    }
    a->base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (a->base == MAP_FAILED)
        sd_die("memory", "cannot have %.2f GiB for activations", (double)bytes / (1 << 30));
    madvise(a->base, bytes, MADV_HUGEPAGE);
}

/* Give a tensor, and every view of it, its address. */
void
sd_address(struct sd_tensor *x, void *data)
{
    x->data = data;
    for (struct sd_tensor *v = x->views; v; v = v->next_view)
        v->data = (char *)data + (size_t)v->offset * sd_element_size(v->dtype);
}

static void
address_life(struct sd_plan *p, const struct sd_life *l)
{
    sd_address(l->tensor, p->arena->base + l->offset);
}

void
sd_plan_bind(struct sd_plan *p, struct sd_arena *arena)
{
    struct sd_graph *g = p->graph;

    p->own_arena = !arena;
    p->arena = arena ? arena : sd_arena_new();
    if (p->arena->base && p->arena->device != g->device)
        sd_bug("bind", "plans of two devices in one arena");
    p->arena->device = g->device;
    arena_grow(p->arena, p->arena_bytes);
    if (g->device) {
        sd_device_bind(p);
        return;
    }
    for (size_t i = 0; i < g->tensors.count; i++) {
        struct sd_tensor *x = g->tensors.item[i];

        if (x->param && !x->base && (x->param->trainable || x->storage->values))
            sd_address(x, (void *)(uintptr_t)sd_param_values(x->param));
    }
}

static const struct sd_life *
life_of(const struct sd_plan *p, const struct sd_tensor *x)
{
    const struct sd_life *found = NULL;

    for (size_t i = 0; i < p->lives.count; i++) {
        const struct sd_life *l = p->lives.item[i];

        if (l->tensor == x)
            found = l;
    }
    return found;
}

static char *
where(struct sd_plan *p, struct sd_tensor *x)
{
    struct sd_tensor *base = x->base ? x->base : x;
    const struct sd_life *l = life_of(p, base);

    if (base->param && p->graph->device)
        return (char *)sd_param_on(base->param, SD_F32, SD_ROWS) + (size_t)x->offset * sizeof(float);
    if (base->param)
        return (char *)(uintptr_t)sd_param_values(base->param) + (size_t)x->offset * sizeof(real);
    if (!l)
        sd_bug("feed", "%s has no place in this plan", x->name);
    return p->arena->base + l->offset + (size_t)x->offset * sd_element_size(x->dtype);
}

void *
sd_data(struct sd_plan *p, struct sd_tensor *x)
{
    return where(p, x);
}

void
sd_plan_seed(struct sd_plan *p, const void *seed)
{
    p->seed = seed;
}

void
sd_feed(struct sd_plan *p, struct sd_tensor *input, const void *data)
{
    char *to;

    if (input->node || input->param || input->base)
        sd_bug("feed", "%s is not an input", input->name);
    if (!life_of(p, input))
        return;                     /* nothing in this plan reads it */
    to = where(p, input);
    if (p->graph->device)
        sd_device_write(p->graph->device, to, data, input->numel * sd_dtype_size(input->dtype));
    else if (input->dtype == SD_F32 && !SD_REAL_IS_FLOAT)
        for (size_t i = 0; i < input->numel; i++)
            ((real *)to)[i] = ((const float *)data)[i];
    else
        memcpy(to, data, input->numel * sd_dtype_size(input->dtype));
}

void
sd_fetch(struct sd_plan *p, struct sd_tensor *output, void *data)
{
    const char *from = where(p, output);
    size_t size = sd_element_size(output->dtype);
    int64_t rows = sd_dense(output) ? 1 : sd_rows(output), cols = sd_dense(output) ? (int64_t)output->numel : sd_cols(output);

    for (int64_t r = 0; r < rows; r++) {
        const char *row = from + (size_t)(r * output->pitch) * size;

        if (p->graph->device)
            sd_device_read(p->graph->device, (char *)data + (size_t)(r * cols) * size, row, (size_t)cols * size);
        else if (output->dtype == SD_F32 && !SD_REAL_IS_FLOAT)
            for (int64_t c = 0; c < cols; c++)
                ((float *)data)[r * cols + c] = (float)((const real *)row)[c];
        else
            memcpy((char *)data + (size_t)(r * cols) * size, row, (size_t)cols * size);
    }
}

/* -- running ------------------------------------------------------------------------------------------------------- */

/* The gradient of the loss, of 16-bit elements too. */
static void
fill(struct sd_tensor *x, const real *values, real value)
{
    size_t size = sd_element_size(x->dtype);

    for (size_t i = 0; i < x->numel; i++)
        sd_from_real((char *)x->data + i * size, x->dtype, values ? &values[i] : &value, 1);
}

/* Poison a buffer that is about to be written, and fence it. */
static void
set_guard(struct sd_plan *p, const struct sd_life *l)
{
    char *data = p->arena->base + l->offset;
    bool input = l->tensor && !l->tensor->node && !l->tensor->storage->is_gradient;

    if (!l->from && !input)
        memset(data, 0xff, l->bytes - SD_GUARD);
    memset(data + l->bytes - SD_GUARD, 0xa5, SD_GUARD);
}

static void
check_guards(struct sd_plan *p, const struct sd_step *s)
{
    int now_at = 0;

    while (p->steps.item[now_at] != s)
        now_at++;
    for (size_t i = 0; i < p->lives.count; i++) {
        const struct sd_life *l = p->lives.item[i];
        const unsigned char *guard = (unsigned char *)p->arena->base + l->offset + l->bytes - SD_GUARD;

        for (int k = 0; l->begin <= now_at && now_at <= l->end && k < SD_GUARD; k++)
            if (guard[k] != 0xa5)
                sd_bug(s->node ? s->node->path : "guard", "%s, step %d wrote past the end of %s",
                       s->node ? sd_ops[s->node->op].name : "fill", now_at, l->tensor ? l->tensor->name : "its scratch");
    }
}

void
sd_step_addresses(struct sd_plan *p, struct sd_step *s)
{
    for (size_t i = 0; i < s->begins.count; i++)
        address_life(p, s->begins.item[i]);
    if (s->node)
        s->node->scratch = s->scratch ? p->arena->base + s->scratch->offset : NULL;
    if (s->kind == SD_STEP_BACKWARD)
        memcpy(s->node->din_store, s->din_store, sizeof s->din_store);
}

static void
run_step(struct sd_plan *p, struct sd_step *s)
{
    struct sd_node *n = s->node;

    sd_step_addresses(p, s);
    if (p->graph->device) {
        sd_device_step(p, s);
        return;
    }
    for (size_t i = 0; p->guarded && i < s->begins.count; i++)
        set_guard(p, s->begins.item[i]);
    if (p->guarded && s->scratch)
        set_guard(p, s->scratch);
    switch (s->kind) {
    case SD_STEP_FORWARD:
    case SD_STEP_REDO:
        if (n->converted)
            sd_convert_run(n, false);
        else
            sd_ops[n->op].forward_cpu(n);
        break;
    case SD_STEP_BACKWARD:
        if (n->converted)
            sd_convert_run(n, true);
        else
            sd_ops[n->op].backward_cpu(n);
        break;
    case SD_STEP_ZERO:
        fill(s->tensor, NULL, 0);
        break;
    case SD_STEP_ONE:
        fill(s->tensor, p->seed, 1);
        break;
    }
    if (p->guarded)
        check_guards(p, s);
}

static int profiling = -1;

void
sd_run(struct sd_plan *p)
{
    if (profiling < 0)
        profiling = getenv("SD_PROFILE") != NULL;
    if (p->graph->device && !profiling) {
        sd_device_run(p);
        return;
    }
    /* lives that begin at step 0 without being written there are the inputs: addressed with it */
    for (size_t i = 0; i < p->steps.count; i++) {
        struct sd_step *s = p->steps.item[i];
        double start = profiling ? sd_clock() : 0;

        run_step(p, s);
        if (profiling && p->graph->device)
            sd_device_wait(p->graph->device);
        if (profiling) {
            s->seconds += sd_clock() - start;
            s->calls++;
        }
    }
}

static bool
finite_tensor(const struct sd_tensor *x)
{
    int64_t rows = sd_rows(x), cols = sd_cols(x);
    size_t size = sd_element_size(x->dtype);

    if (!sd_dtype_is_real(x->dtype))
        return true;
    if (x->graph->device)
        return sd_device_is_finite(x->graph->device, x);
    for (int64_t r = 0; r < rows; r++) {
        const char *row = (const char *)x->data + (size_t)(r * x->pitch) * size;

        for (int64_t c = 0; c < cols; c++) {
            real v;

            sd_to_real(&v, row + (size_t)c * size, x->dtype, 1);
            if (!isfinite(v))
                return false;
        }
    }
    return true;
}

/* The gradient d of input x: where x stands for several parameters, theirs. */
static bool
finite_gradient(const struct sd_tensor *x, const struct sd_tensor *d)
{
    const struct sd_projections *a = x->param ? x->param->joined : NULL;

    for (int i = 0; a && i < 2 * a->parts; i++) {
        const struct sd_param *p = i % 2 ? a->part[i / 2].up : a->part[i / 2].down;

        if (p && p->trainable &&
            !finite_tensor(&(struct sd_tensor){ .graph = x->graph, .dtype = SD_F32, .ndim = 1,
                                                .shape = { (int64_t)p->numel }, .pitch = (int64_t)p->numel,
                                                .numel = p->numel,
                                                .data = x->graph->device ? p->device_grad : (void *)p->grad }))
            return false;
    }
    return finite_tensor(d);
}

/* The module whose result is not finite: of several projections side by side, the first of these. */
static const char *
module_of(const struct sd_plan *p, const struct sd_node *n)
{
    const struct sd_projections *a = n->op == SD_OP_projections ? n->in[1]->param->joined : NULL;
    struct sd_tensor y = *n->out;
    size_t size = sd_element_size(y.dtype);

    for (int i = 0; a && i < a->parts; i++) {
        const char *path = a->part[i].weight->path, *dot = strrchr(path, '.');

        y.shape[y.ndim - 1] = a->part[i].weight->shape[0];
        y.numel = (size_t)(sd_rows(n->out) * sd_cols(&y));
        if (!finite_tensor(&y))
            return dot ? sd_strndup(p->scope, path, (size_t)(dot - path)) : path;
        y.data = (char *)y.data + (size_t)sd_cols(&y) * size;
    }
    return n->path;
}

const char *
sd_run_scan(struct sd_plan *p)
{
    for (size_t i = 0; i < p->steps.count; i++) {
        struct sd_step *s = p->steps.item[i];
        struct sd_node *n = s->node;

        run_step(p, s);
        if (!n)
            continue;
        if (s->kind != SD_STEP_BACKWARD && !finite_tensor(n->out))
            return module_of(p, n);
        for (int a = 0; s->kind == SD_STEP_BACKWARD && a < n->n_in; a++)
            if (n->din[a] && !finite_gradient(n->in[a], n->din[a]))
                return n->path;
    }
    return NULL;
}

/* -- profile ------------------------------------------------------------------------------------------------------- */

struct row {
    char text[128];
    double seconds, flops;
    long calls;
};

static int
by_seconds(const void *a, const void *b)
{
    double x = ((const struct row *)a)->seconds, y = ((const struct row *)b)->seconds;

    return x < y ? 1 : x > y ? -1 : 0;
}

void
sd_step_describe(char *text, size_t room, const struct sd_step *s)
{
    static const char *const kinds[] = { "forward", "redo", "backward", "zero", "one" };
    const struct sd_tensor *x = s->node ? s->node->in[0] : s->tensor, *y = s->node ? s->node->out : NULL;
    size_t n = (size_t)snprintf(text, room, "%s %s", s->node ? sd_ops[s->node->op].name : "fill", kinds[s->kind]);

    for (int i = 0; x && i < x->ndim && n < room; i++)
        n += (size_t)snprintf(text + n, room - n, "%s%lld", i ? "x" : " ", (long long)x->shape[i]);
    if (y && n < room)
        n += (size_t)snprintf(text + n, room - n, " -> %lld", (long long)sd_cols(y));
    if (s->node && s->node->op == SD_OP_conv2d && n < room)
        snprintf(text + n, room - n, " k%lld", (long long)s->node->in[1]->shape[2]);
    if (s->node && s->node->op == SD_OP_attention && n < room)
        snprintf(text + n, room - n, " keys %lld", (long long)s->node->in[1]->shape[1]);
}

void
sd_plan_profile(struct sd_plan *p)
{
    struct row *rows = calloc(p->steps.count + 1, sizeof *rows);
    size_t count = 0;
    double total = 0;

    if (!rows)
        return;
    for (size_t i = 0; i < p->steps.count; i++) {
        struct sd_step *s = p->steps.item[i];
        char text[128];
        size_t k = 0;

        sd_step_describe(text, sizeof text, s);
        while (k < count && strcmp(rows[k].text, text))
            k++;
        if (k == count)
            snprintf(rows[count++].text, sizeof rows[0].text, "%s", text);
        rows[k].seconds += s->seconds;
        rows[k].calls += s->calls;
        if (s->node)
            rows[k].flops += (double)s->calls * (s->kind == SD_STEP_BACKWARD ? s->node->backward_flops : s->node->flops);
        total += s->seconds;
    }
    qsort(rows, count, sizeof *rows, by_seconds);
    fprintf(stderr, "%8s %6s %6s %9s\n", "seconds", "%", "calls", "GFLOP/s");
    for (size_t k = 0; k < count && k < 60; k++)
        fprintf(stderr, "%8.4f %6.2f %6ld %9.1f  %s\n", rows[k].seconds, 100 * rows[k].seconds / (total > 0 ? total : 1),
                rows[k].calls, rows[k].flops / (rows[k].seconds > 0 ? rows[k].seconds : 1) * 1e-9, rows[k].text);
    free(rows);
}
