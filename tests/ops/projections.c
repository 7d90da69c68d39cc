/* projections: against linear, scale and concat, which say the same with a node for each step; gradients against
 * differences.  One file, as all cases are described and run by `compute`. */
#include <omp.h>

#include "check_op.h"
#include "device.h"
#include "plan_internal.h"
#include "projections.h"

enum { PARTS = SD_MAX_PROJECTIONS, BEFORE = 1, WIDER = 3 };

/* One case: parts are cycled through the lists until there are `parts`. */
struct shape {
    int64_t rows, in;
    int parts;
    const char *outs, *ranks;       /* "5 7 3"; rank 0: no adapter */
    bool bias, scale, residual;
};

/* gradients: x, all of part 0, every down, every up */
enum wanted { DX = 1, FIRST = 2, DOWN = 4, UP = 8, ALL = 15 };

struct how {
    bool composed;                  /* linear by linear */
    unsigned wanted;
    bool pitched;
    bool twice;                     /* the residual is x's own layer: what is stored, what is added */
    bool twice_after;
    enum sd_dtype frozen;           /* of parameters in files, off their alignment */
    enum sd_dtype activations, products;
    struct sd_device *device;
    int runs;
    bool refresh;                   /* the first run is with zeros for down and up */
    bool block, redo;               /* silu behind it, in one block;  which is redone */
};

struct result {
    size_t count;
    float *data;
    double *wide;
    size_t forms;                   /* bytes of parameters on the device */
    int redone;
};

struct trial {
    struct sd_scope *scope;
    struct sd_param *param[5 * PARTS + 2];
    int params;
    uint64_t state;
    const struct how *how;
};

static float
next_value(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (float)((int)(z >> 56) - 128) / 128;         /* numbers that every type holds */
}

static int64_t
at_list(const char *list, int i)
{
    int64_t value[16];
    int count = 0;
    char *end;

    for (const char *p = list; *p; p = end)
        value[count++] = strtoll(p, &end, 10);
    return value[i % count];
}

/* nudge: element `at` of parameter `which` differs by `by` */
struct nudge { int which; size_t at; double by; };

static struct sd_param *
parameter(struct trial *t, bool trainable, int ndim, const int64_t *shape, const struct nudge *nudge)
{
    struct sd_param *p = sd_param_new(t->scope, "p", SD_F32, ndim, shape, NULL);
    enum sd_dtype dtype = t->how->frozen;
    size_t size = sd_dtype_size(dtype);
    char *raw = sd_alloc(t->scope, (p->numel + 1) * size);

    t->param[t->params] = p;
    p->trainable = trainable;
    if (trainable) {
        p->value = sd_alloc_array(t->scope, p->numel, sizeof(real));
        p->grad = sd_alloc_array(t->scope, p->numel, sizeof(real));
    } else {
        p->raw = raw = raw + (dtype == SD_F32 ? 2 : 1);
        p->dtype = dtype;
    }
    for (size_t i = 0; i < p->numel; i++) {
        real v = (real)next_value(&t->state);

        if (trainable)
            p->value[i] = v + (nudge && nudge->which == t->params && nudge->at == i ? (real)nudge->by : 0);
        else if (dtype == SD_F32)
            memcpy(raw + 4 * i, &(float){ (float)v }, 4);
        else
            sd_from_real(raw + size * i, dtype, &v, 1);
    }
    if (trainable && t->how->device) {
        struct sd_device *d = t->how->device;

        p->device_value = sd_device_alloc(d, p->numel * sizeof(float), "p");
        p->device_grad = sd_device_alloc(d, p->numel * sizeof(float), "p");
        if (t->how->refresh && t->params)
            sd_device_fill(d, p->device_value, 0, p->numel * sizeof(float));
        else
            sd_device_write(d, p->device_value, p->value, p->numel * sizeof(float));
    }
    t->params++;
    return p;
}

/* What the op computes, by the ops that a layer and its adapter are made of. */
static struct sd_tensor *
composed(struct sd_graph *g, struct sd_tensor *x, const struct sd_projections *a, struct sd_tensor *residual)
{
    struct sd_tensor *y = NULL;
    int64_t begin = 0;

    for (int i = 0; i < a->parts; i++) {
        const struct sd_projection *p = &a->part[i];
        struct sd_tensor *slice = residual ? sd_slice(residual, 1, begin, p->weight->shape[0]) : NULL;
        struct sd_tensor *part = sd_op_linear(g, x, sd_use(g, p->weight), sd_use(g, p->bias), slice), *u;

        if (p->down) {
            u = sd_op_linear(g, x, sd_use(g, p->down), NULL, NULL);
            if (p->scale)
                u = sd_op_scale(g, u, sd_use(g, p->scale));
            part = sd_op_linear(g, u, sd_use(g, p->up), NULL, part);
        }
        y = y ? sd_op_concat(g, y, part) : part;
        begin += p->weight->shape[0];
    }
    return y;
}

static bool
trained(const struct how *h, int part, unsigned which)
{
    return h->wanted & which || (part == 0 && h->wanted & FIRST);
}

/* Is there anything to train? */
static bool
possible(const struct shape *s, unsigned wanted)
{
    bool any = !wanted || wanted & DX || (wanted & FIRST && at_list(s->ranks, 0));

    for (int i = 0; i < s->parts; i++)
        any |= wanted & (DOWN | UP) && at_list(s->ranks, i);
    return any;
}

static struct result
compute(struct sd_scope *s, const struct shape *shape, const struct how *how, const struct nudge *nudge, bool sum)
{
    struct trial t = { .scope = sd_scope_open(), .state = 5, .how = how };
    struct sd_graph *g = sd_graph_new();
    struct sd_projection part[PARTS] = { 0 };
    struct sd_projections a = { shape->parts, part };
    int64_t in = shape->in, wide = how->pitched ? in + WIDER : in, out = 0;
    struct sd_tensor *x, *leaf, *residual = NULL, *y;
    struct sd_param *px, *pr = NULL, *first = NULL;
    struct sd_plan *plan;
    struct result r = { 0 };
    real *seed;
    size_t forms = sd_param_device_bytes();

    sd_graph_on(g, &(struct sd_compute){ .device = how->device, .activations = how->activations,
                                         .products = how->products });
    for (int i = 0; i < shape->parts; i++)
        out += at_list(shape->outs, i);
    px = parameter(&t, true, 2, (int64_t[]){ shape->rows, wide }, nudge);
    px->trainable = how->wanted & DX;
    if (px->trainable)
        leaf = sd_op_cast(g, sd_use(g, px), how->activations);
    else
        leaf = sd_input(g, "x", how->activations, 2, px->shape);
    x = how->pitched ? sd_slice(leaf, 1, BEFORE, in) : leaf;
    for (int i = 0; i < shape->parts; i++) {
        int64_t o = at_list(shape->outs, i), k = at_list(shape->ranks, i);

        part[i].weight = parameter(&t, false, i % 2 ? 4 : 2, (int64_t[]){ o, in, 1, 1 }, nudge);
        if (shape->bias && i != 1)
            part[i].bias = parameter(&t, false, 1, &o, nudge);
        if (!k)
            continue;
        part[i].down = parameter(&t, trained(how, i, DOWN), 2, (int64_t[]){ k, in }, nudge);
        part[i].up = parameter(&t, trained(how, i, UP), 2, (int64_t[]){ o, k }, nudge);
        if (shape->scale && i != 2)
            part[i].scale = parameter(&t, false, 1, (int64_t[]){ 1 }, nudge);
    }
    if (shape->residual) {
        pr = parameter(&t, true, 2, (int64_t[]){ shape->rows, out }, nudge);
        pr->trainable = how->wanted & DX;
        residual = pr->trainable ? sd_op_cast(g, sd_use(g, pr), how->activations)
                                 : sd_input(g, "residual", how->activations, 2, pr->shape);
    }
    if (how->twice || how->twice_after)
        first = parameter(&t, false, 2, (int64_t[]){ out, in }, nudge);
    if (how->twice)
        residual = sd_op_linear(g, x, sd_use(g, first), NULL, residual);
    if (how->block)
        sd_block_begin(g);
    y = how->composed ? composed(g, x, &a, residual) : sd_op_projections(g, x, &a, residual);
    if (how->block) {
        y = sd_op_silu(g, y);
        sd_block_end(g);
    }
    if (how->twice_after)
        y = sd_op_linear(g, x, sd_use(g, first), NULL, y);
    sd_keep(y);
    plan = how->wanted ? sd_plan_training(g, y, how->redo ? SD_REDO_BLOCKS : SD_KEEP_ALL, 0)
                       : sd_plan_inference(g, 0);
    if (!plan)
        sd_bug("check", "%s", sd_reason());
    r.redone = sd_plan_report(plan).redone;
    sd_plan_bind(plan, NULL);
    r.forms = sd_param_device_bytes() - forms;
    seed = sd_alloc_array(t.scope, y->numel, sizeof *seed);
    for (size_t i = 0; i < y->numel; i++)
        seed[i] = (real)next_value(&t.state);
    sd_plan_seed(plan, seed);
    for (int i = 0; i < 2; i++) {
        struct sd_param *p = i ? pr : px;
        struct sd_tensor *to = i ? residual : leaf;
        float *values;
        char *rounded;

        if (!p || p->trainable || (i && how->twice))
            continue;
        values = sd_alloc_array(t.scope, p->numel, sizeof *values);
        rounded = sd_alloc(t.scope, p->numel * sizeof(real));
        for (size_t k = 0; k < p->numel; k++)
            values[k] = (float)p->value[k];
        sd_from_real(rounded, how->activations, p->value, p->numel);
        sd_feed(plan, to, how->activations == SD_F32 ? (void *)values : rounded);
    }
    for (int run = 0; run < (how->runs ? how->runs : 1); run++) {
        uint64_t state = 77;

        for (int i = 1; i < t.params && how->refresh && run == 1; i++)
            if (t.param[i]->trainable)
                sd_device_write(how->device, t.param[i]->device_value, t.param[i]->value,
                                t.param[i]->numel * sizeof(float));
        if (how->refresh && run == 1)
            sd_params_refresh(t.param + 1, (size_t)t.params - 1, how->device);
        for (int i = 0; i < t.params; i++) {        /* gradients are added to what is there */
            struct sd_param *p = t.param[i];

            for (size_t k = 0; p->trainable && k < p->numel; k++)
                p->grad[k] = (real)next_value(&state);
            if (p->trainable && how->device)
                sd_device_write(how->device, p->device_grad, p->grad, p->numel * sizeof(float));
        }
        sd_run(plan);
    }
    r.count = y->numel;
    for (int i = 0; i < t.params; i++)
        r.count += t.param[i]->trainable ? t.param[i]->numel : 0;
    r.data = sd_alloc_array(s, r.count, sizeof *r.data);
    r.wide = sd_alloc_array(s, r.count, sizeof *r.wide);
    if (how->device || how->activations != SD_F32) {
        char *raw = sd_alloc(t.scope, y->numel * sizeof(real));
        real *values = sd_alloc_array(t.scope, y->numel, sizeof *values);

        sd_fetch(plan, y, raw);
        sd_to_real(values, raw, y->dtype, y->numel);
        for (size_t i = 0; i < y->numel; i++)
            r.wide[i] = (double)values[i];
    } else
        for (size_t i = 0; i < y->numel; i++)
            r.wide[i] = (double)((real *)sd_data(plan, y))[i];
    if (sum) {                                      /* the projection that the gradient is of */
        r.wide[0] *= (double)seed[0];
        for (size_t i = 1; i < y->numel; i++)
            r.wide[0] += r.wide[i] * (double)seed[i];
    }
    r.count = y->numel;
    for (int i = 0; i < t.params; i++) {
        struct sd_param *p = t.param[i];

        if (p->trainable && how->device)
            sd_device_read(how->device, p->grad, p->device_grad, p->numel * sizeof(float));
        for (size_t k = 0; p->trainable && k < p->numel; k++)
            r.wide[r.count++] = (double)p->grad[k];
    }
    for (size_t i = 0; i < r.count; i++)
        r.data[i] = (float)r.wide[i];
    sd_plan_free(plan);
    sd_graph_free(g);
    for (int i = 0; i < t.params; i++)
        if (t.param[i]->device_value) {
            sd_device_free(how->device, t.param[i]->device_value);
            sd_device_free(how->device, t.param[i]->device_grad);
        }
    sd_scope_close(t.scope);
    return r;
}

static double
distance(struct result a, struct result b)
{
    double d = 0, n = 0;

    if (a.count != b.count)
        return INFINITY;
    for (size_t i = 0; i < a.count; i++) {
        d += (a.wide[i] - b.wide[i]) * (a.wide[i] - b.wide[i]);
        n += b.wide[i] * b.wide[i];
    }
    return sqrt(d / n);
}

/* Every combination of wanted gradients, stored, added and pitched, against the composition. */
static void
check_composed(const char *name, const struct shape *shape, double tolerance)
{
    static const char *const names[] = { "stored", "pitched", "added", "added to" };
    struct sd_scope *s = sd_scope_open();

    sd_plain = true;
    for (int way = 0; way < 4; way++) {
        double worst = 0;

        for (unsigned wanted = 0; wanted <= ALL; wanted++) {
            struct how how = { .wanted = wanted, .pitched = way == 1, .twice = way == 2, .twice_after = way == 3,
                               .frozen = SD_F32 };
            struct how other = how;
            double error;

            other.composed = true;
            if (!possible(shape, wanted))
                continue;
            error = distance(compute(s, shape, &how, NULL, false), compute(s, shape, &other, NULL, false));
            worst = error <= worst ? worst : error;
        }
        CHECK(worst <= tolerance, "%s, %s: as linear by linear for all combinations of gradients: %.1e, allowed %.0e",
              name, names[way], worst, tolerance);
    }
    sd_plain = false;
    sd_scope_close(s);
}

/* The gradient against differences: of x, of every down and up. */
static void
check_differences(const char *name, const struct shape *shape, double tolerance)
{
    struct sd_scope *s = sd_scope_open();
    struct how how = { .wanted = ALL, .frozen = SD_F32 };
    struct result base = compute(s, shape, &how, NULL, false);
    size_t at = (size_t)shape->rows, out = 0;
    double worst = 0, rms = 0;
    uint64_t state = 77;
    int which = 0;

    for (int i = 0; i < shape->parts; i++)
        out += (size_t)at_list(shape->outs, i);
    at *= out;
    for (size_t i = at; i < base.count; i++) {
        base.wide[i] -= (double)next_value(&state);
        rms += base.wide[i] * base.wide[i] / (double)(base.count - at);
    }
    rms = sqrt(rms);
    for (int i = -1; i <= shape->parts; i++) {
        int64_t o = i < 0 ? 0 : at_list(shape->outs, i), k = i < 0 ? 0 : at_list(shape->ranks, i);
        size_t counts[2] = { 0, 0 };

        if (i < 0)
            counts[0] = (size_t)(shape->rows * shape->in);
        else if (i < shape->parts) {
            which += 1 + (shape->bias && i != 1);
            counts[0] = (size_t)(k * shape->in);
            counts[1] = (size_t)(k * o);
        } else
            counts[0] = shape->residual ? (size_t)shape->rows * out : 0;
        for (int c = 0; c < 2; which += counts[c++] > 0)
            for (size_t e = 0; e < counts[c]; e++, at++) {
                const double h = 1e-5;
                double up = compute(s, shape, &how, &(struct nudge){ which, e, h }, true).wide[0];
                double down = compute(s, shape, &how, &(struct nudge){ which, e, -h }, true).wide[0];
                double error = fabs((up - down) / (2 * h) - base.wide[at]) / (fabs(base.wide[at]) + rms);

                worst = error <= worst ? worst : error;
            }
        if (i >= 0 && i < shape->parts && k)
            which += shape->scale && i != 2;
    }
    CHECK(at == base.count && worst <= tolerance, "%s: %zu gradients against differences: %.1e, allowed %.0e", name,
          base.count, worst, tolerance);
    sd_scope_close(s);
}

/* Products against the C loops of the composition, on each instruction set; the same bits with another number of
 * threads, and whatever type the file has. */
static void
check_fast(const char *name, const struct shape *shape, enum sd_dtype products, double tolerance)
{
    static const unsigned wanted[] = { 0, ALL, DX | FIRST, DOWN, UP };
    static const enum sd_dtype types[] = { SD_F16, SD_BF16 };
    enum sd_isa chosen = sd_isa(), best = sd_isa_best(), least = products == SD_BF16 ? SD_ISA_AVX512BF16 : SD_ISA_SSE4;
    struct sd_scope *s = sd_scope_open();
    int threads = omp_get_max_threads();

    if (products == SD_F32 && best > SD_ISA_AVX512)
        best = SD_ISA_AVX512;
    sd_guard = true;
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        struct how how = { .wanted = wanted[i], .pitched = i % 2, .twice = i == 2, .frozen = SD_F32,
                           .products = products }, other = how;
        struct result plain;

        if (!possible(shape, wanted[i]))
            continue;
        other.composed = true;
        sd_plain = true;
        plain = compute(s, shape, &other, NULL, false);
        sd_plain = false;
        for (enum sd_isa isa = least; isa <= best; isa++) {
            struct result fast, again;
            double error;

            sd_isa_force(isa);
            fast = compute(s, shape, &how, NULL, false);
            error = distance(fast, plain);
            CHECK(error <= tolerance, "%s, gradients %u, %s: %.1e from the C loops of linear, allowed %.0e", name,
                  wanted[i], sd_isa_name(), error, tolerance);
            omp_set_num_threads(threads == 1 ? 2 : 1);
            again = compute(s, shape, &how, NULL, false);
            omp_set_num_threads(threads);
            CHECK(memcmp(fast.data, again.data, fast.count * sizeof *fast.data) == 0,
                  "%s, gradients %u, %s: the same bits with another number of threads", name, wanted[i], sd_isa_name());
            for (int k = 0; k < 2; k++) {
                size_t before = sd_param_bytes_reserved();
                struct how file = how;

                file.frozen = types[k];
                again = compute(s, shape, &file, NULL, false);
                CHECK(memcmp(fast.data, again.data, fast.count * sizeof *fast.data) == 0 &&
                      sd_param_bytes_reserved() == before, "%s, gradients %u, %s: the same bits from %s", name,
                      wanted[i], sd_isa_name(), sd_dtype_name(types[k]));
            }
        }
    }
    sd_guard = false;
    sd_isa_force(chosen);
    sd_scope_close(s);
}

/* Bytes of the one form on the device. */
static size_t
form_bytes(const struct shape *shape, enum sd_dtype dtype)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_projection part[PARTS] = { 0 };
    struct projections_layout l;
    float bias = 0;

    for (int i = 0; i < shape->parts; i++) {
        int64_t o = at_list(shape->outs, i), k = at_list(shape->ranks, i);

        part[i].weight = sd_param_new(s, "w", SD_F32, 2, (int64_t[]){ o, shape->in }, &bias);
        part[i].bias = shape->bias ? part[i].weight : NULL;
        if (k)
            part[i].down = sd_param_new(s, "d", SD_F32, 2, (int64_t[]){ k, shape->in }, &bias);
    }
    projections_layout(&l, &(struct sd_projections){ shape->parts, part }, dtype);
    sd_scope_close(s);
    return l.bytes;
}

/* The CUDA twin against the C loops of the composition, in each type of activations; the same bits recorded and
 * replayed, with adapters that came after the first run. */
static void
check_twin(struct sd_device *d, const char *name, const struct shape *shape, double tolerance)
{
    static const unsigned wanted[] = { 0, ALL, DX | FIRST, DOWN, UP, DOWN | UP, DX };
    static const enum sd_dtype types[] = { SD_F32, SD_BF16, SD_F16 };
    const double allowed[] = { tolerance, 4e-3, 5e-4 };
    struct sd_scope *s = sd_scope_open();

    for (int t = 0; t < 3; t++)
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
            struct how how = { .wanted = wanted[i], .pitched = i % 2, .twice = i == 2,
                               .frozen = types[(t + (int)i) % 3], .activations = types[t], .device = d }, other = how;
            struct result plain, once, again;
            double error;
            size_t before, forms = sd_param_device_bytes();

            if (!possible(shape, wanted[i]))
                continue;
            other.composed = true;
            other.device = NULL;
            other.activations = SD_F32;         /* what comes in is the same number in every type */
            sd_plain = true;
            plain = compute(s, shape, &other, NULL, false);
            sd_plain = false;
            once = compute(s, shape, &how, NULL, false);
            error = distance(once, plain);
            CHECK(error <= allowed[t], "%s, gradients %u, %s on %s: %.1e from the C loops of linear, allowed %.0e",
                  name, wanted[i], sd_dtype_name(types[t]), sd_device_name(d), error, allowed[t]);
            how.runs = 2;
            how.refresh = wanted[i] & (FIRST | DOWN | UP);
            before = sd_device_allocated(d);
            again = compute(s, shape, &how, NULL, false);
            CHECK(sd_device_allocated(d) == before && sd_param_device_bytes() == forms, "%s: all is freed", name);
            if (i != 2)
                CHECK(once.forms == form_bytes(shape, types[t]), "%s, %s: %zu bytes of weights, one form: %zu", name,
                      sd_dtype_name(types[t]), once.forms, form_bytes(shape, types[t]));
            CHECK(memcmp(once.data, again.data, once.count * sizeof *once.data) == 0,
                  "%s, gradients %u, %s: the same bits, replayed", name, wanted[i], sd_dtype_name(types[t]));
        }
    sd_scope_close(s);
}

static void
check_paths_here(const char *name, const struct shape *shape, double tolerance)
{
    if (check_tested_device())
        check_twin(check_tested_device(), name, shape, tolerance);
    else {
        check_fast(name, shape, SD_F32, tolerance);
        if (sd_isa_best() >= SD_ISA_AVX512BF16)
            check_fast(name, shape, SD_BF16, tolerance);
        else
            check_skip(name, "products of bf16: this machine has no AVX512_BF16");
    }
}

/* Redone before its gradient or kept: the same bits. */
static void
check_redo(const char *name, const struct shape *shape)
{
    struct sd_scope *s = sd_scope_open();

    sd_guard = true;
    for (unsigned wanted = UP; wanted <= ALL; wanted += ALL - UP) {
        struct how how = { .wanted = wanted, .frozen = SD_F32, .activations = SD_BF16, .device = check_tested_device(),
                           .block = true };
        struct result kept = compute(s, shape, &how, NULL, false), redone;

        how.redo = true;
        redone = compute(s, shape, &how, NULL, false);
        CHECK(!kept.redone && redone.redone &&
              memcmp(kept.data, redone.data, kept.count * sizeof *kept.data) == 0,
              "%s, gradients %u: the same bits, redone", name, wanted);
    }
    sd_guard = false;
    sd_scope_close(s);
}

/* Only the gradient of down overflows: it is found, and named by the module. */
static void
check_scan(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_graph *g = sd_graph_new();
    struct how how = { .frozen = SD_F32, .device = check_tested_device() };
    struct trial t = { .scope = s, .how = &how };
    struct sd_tensor *x, *y;
    struct sd_projection part = { 0 };
    struct sd_plan *p;
    float big = 1e30f;
    const char *found;

    sd_graph_on(g, &(struct sd_compute){ .device = how.device });
    x = sd_input(g, "x", SD_F32, 2, (int64_t[]){ 1, 1 });
    part.weight = sd_param_new(s, "w", SD_F32, 2, (int64_t[]){ 1, 1 }, &(float){ 0 });
    part.down = parameter(&t, true, 2, (int64_t[]){ 1, 1 }, NULL);
    part.up = parameter(&t, true, 2, (int64_t[]){ 1, 1 }, NULL);
    part.down->value[0] = 0;
    part.up->value[0] = (real)1e10f;
    for (int i = 0; i < t.params && how.device; i++) {
        sd_device_write(how.device, t.param[i]->device_value, t.param[i]->value, sizeof(float));
        sd_device_fill(how.device, t.param[i]->device_grad, 0, sizeof(float));
    }
    sd_path_push(g, "attn");
    y = sd_keep(sd_op_projections(g, x, &(struct sd_projections){ 1, &part }, NULL));
    sd_path_pop(g);
    p = sd_plan_training(g, y, SD_KEEP_ALL, 0);
    if (!p)
        sd_bug("check", "%s", sd_reason());
    sd_plan_bind(p, NULL);
    sd_feed(p, x, &(float){ 1 });
    CHECK(!sd_run_scan(p), "gradients of parts, all finite");
    sd_feed(p, x, &big);
    found = sd_run_scan(p);
    CHECK(found && strcmp(found, "attn") == 0, "an infinite gradient of a part is found: %s", found ? found : "no");
    sd_plan_free(p);
    sd_graph_free(g);
    for (int i = 0; i < t.params && how.device; i++) {
        sd_device_free(how.device, t.param[i]->device_value);
        sd_device_free(how.device, t.param[i]->device_grad);
    }
    sd_scope_close(s);
}

int
main(void)
{
    /* exact: in double as linear by linear; 2: against differences too */
    static const struct { const char *name; double tolerance; int exact; struct shape shape; } cases[] = {
        { "one", 2e-6, 2, { 5, 4, 1, "3", "2", true, true, true } },
        { "few", 2e-6, 2, { 6, 5, 4, "3 7 2 4", "2 0 3 1", true, true, true } },
        { "bare", 2e-6, 1, { 4, 3, 3, "2 3 1", "0", false, false, false } },
        { "many", 2e-6, 1, { 7, 6, 40, "3 5 2", "1 2", true, false, false } },
        { "odd", 2e-6, 0, { 37, 29, 3, "19 31 7", "3 0 5", true, true, true } },
        { "heads", 2e-6, 0, { 70, 40, 3, "48 48 48", "4", false, true, false } },
        { "text", 2e-6, 0, { 77, 48, 32, "40 24", "16", false, true, false } },
        { "long", 5e-6, 0, { 2100, 24, 2, "40 16", "4 8", true, false, true } },
        { "apart", 2e-6, 0, { 130, 21, 40, "9 70 3", "9 0 12", true, true, true } },
        { "no adapters", 2e-6, 0, { 65, 40, 2, "24 56", "0", true, false, true } },
        { "middle", 5e-6, 0, { 33, 200, 3, "136 128 130", "16 8 0", true, true, false } },
        /* more depth than a block asks for at once; so many parts that their gradients are not one launch's; so many rows
         * that tiles are large */
        { "deep", 1e-5, 0, { 20, 1300, 3, "8 24 16", "16", true, true, false } },
        { "deep back", 1e-5, 0, { 17, 24, 1, "1100", "16", true, false, false } },
        { "most", 2e-6, 0, { 19, 12, 50, "9 8", "3 2", false, true, false } },
        { "rows", 2e-6, 0, { 4500, 24, 1, "8", "20", false, false, true } },
        { "broad", 5e-6, 0, { 33, 1100, 3, "1040 1024 1032", "16 8 0", true, true, false } },   /* on the CPU */
    };
    int count = (int)(sizeof cases / sizeof *cases) - (check_tested_device() != NULL);

    for (int i = 0; i < count; i++) {
        if (SD_REAL_IS_FLOAT) {
            check_paths_here(cases[i].name, &cases[i].shape, cases[i].tolerance);
            if (cases[i].shape.residual && at_list(cases[i].shape.ranks, 0))
                check_redo(cases[i].name, &cases[i].shape);
        } else if (cases[i].exact)
            check_composed(cases[i].name, &cases[i].shape, 1e-13);
        if (!SD_REAL_IS_FLOAT && cases[i].exact == 2)
            check_differences(cases[i].name, &cases[i].shape, 1e-7);
    }
    if (SD_REAL_IS_FLOAT)
        check_scan();
    return check_done();
}
