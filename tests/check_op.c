/* check_op - gradient checks (double build) and path checks (float build) of ops. */
#include "check_op_trial.h"

#include <omp.h>

void
check_fill(int input, int64_t limit)
{
    integer_limit[input] = limit;
}

/* -- gradients ------------------------------------------------------------------------------------------------------ */

static double
projection(struct trial *t, const real *weights)
{
    const real *y;
    double sum = 0;
    int64_t cols = sd_cols(t->out);

    sd_run(t->plan);
    y = sd_data(t->plan, t->out);
    for (size_t i = 0; i < t->out->numel; i++)
        sum += (double)(y[(int64_t)i / cols * t->out->pitch + (int64_t)i % cols] * weights[i]);
    return sum;
}

static double
gradient_error(struct trial *t, int input, const double *expected)
{
    struct operand *o = &t->in[input];
    double rms = 0, worst = 0;

    for (size_t k = 0; k < o->shape.numel; k++)
        rms += expected[k] * expected[k];
    rms = sqrt(rms / (double)o->shape.numel);
    for (size_t k = 0; k < o->shape.numel; k++) {
        size_t p = place_of(o, k);
        double found = (double)(o->param->grad[p] - o->start[p]);
        double error = fabs(found - expected[k]) / (fabs(expected[k]) + rms + 1e-12);

        if (!(error <= worst))
            worst = error;
    }
    return worst;
}

void
check_gradient_of(const char *name, check_describe *f, const char *text, unsigned mask, double tolerance)
{
    struct shape shapes[MAX_IN];
    int count = parse(text, shapes);
    struct sd_scope *s = sd_scope_open();
    float **values = random_values(s, shapes, count);
    double *expected[MAX_IN] = { 0 };
    struct trial t = { 0 };
    real *weights;
    uint64_t state = 99;
    unsigned able = 0;

    if (SD_REAL_IS_FLOAT) {
        sd_scope_close(s);
        return;
    }
    for (int i = 0; i < count; i++)
        able |= !integer_limit[i] && mask >> i & 1 ? 1u << i : 0;
    trial_open(&t, f, shapes, count, able, 0, ADD, values);
    weights = sd_alloc_array(s, t.out->numel, sizeof *weights);
    for (size_t i = 0; i < t.out->numel; i++)
        weights[i] = (real)next_value(&state);
    sd_plan_seed(t.plan, weights);
    for (int i = 0; i < count; i++) {
        if (!(able >> i & 1))
            continue;
        expected[i] = sd_alloc_array(s, shapes[i].numel, sizeof **expected);
        for (size_t k = 0; k < shapes[i].numel; k++) {
            real *v = &t.in[i].param->value[k], old = *v;
            const double h = 1e-5;
            double up, down;

            *v = old + (real)h;
            up = projection(&t, weights);
            *v = old - (real)h;
            down = projection(&t, weights);
            *v = old;
            expected[i][k] = (up - down) / (2 * h);
        }
    }
    trial_close(&t);
    for (enum way way = ADD; way < WAYS; way++) {
        double worst = 0;
        unsigned worst_subset = 0;
        int worst_input = 0, subsets = 0;

        for (unsigned subset = 1; subset <= able; subset++) {
            if (subset & ~able)
                continue;
            subsets++;
            trial_open(&t, f, shapes, count, subset, 0, way, values);
            sd_plan_seed(t.plan, weights);
            for (int i = 0; i < count; i++)
                for (size_t k = 0; t.in[i].param && t.in[i].param->grad && k < t.in[i].param->numel; k++)
                    t.in[i].param->grad[k] = t.in[i].start[k] = (real)next_value(&state);
            sd_run(t.plan);
            for (int i = 0; i < count; i++) {
                double error = subset >> i & 1 ? gradient_error(&t, i, expected[i]) : 0;

                if (!(error <= worst)) {
                    worst = error;
                    worst_subset = subset;
                    worst_input = i;
                }
            }
            trial_close(&t);
        }
        CHECK(subsets > 0 && worst <= tolerance,
              "%s [%s]: gradients %s, %d combinations, worst %.1e (input %d of %#x), allowed %.0e", name, text,
              way_names[way], subsets, worst, worst_input, worst_subset, tolerance);
    }
    sd_scope_close(s);
}

void
check_gradient(const char *name, check_describe *f, const char *shapes, double tolerance)
{
    check_gradient_of(name, f, shapes, ~0u, tolerance);
}

/* -- paths ---------------------------------------------------------------------------------------------------------- */

struct result {
    size_t count;
    float *data;        /* output, then the gradients */
    double flops;       /* that the plan says it takes */
};

static struct result
compute(struct sd_scope *s, check_describe *f, const struct shape *shapes, int count, unsigned wanted, unsigned frozen,
        enum way way, float *const *values)
{
    struct trial t = { 0 };
    struct result r = { 0 };
    float *seed;
    uint64_t state = 5;

    trial_open(&t, f, shapes, count, wanted, frozen, way, values);
    seed = sd_alloc_array(s, t.out->numel, sizeof *seed);
    for (size_t i = 0; i < t.out->numel; i++)
        seed[i] = next_value(&state);
    if (wanted)
        sd_plan_seed(t.plan, seed);
    sd_run(t.plan);
    sd_run(t.plan);             /* the second run must not depend on what the first left behind; gradients double */
    sd_run(t.plan);             /* on a device: once as it stands, recorded and replayed, replayed */
    r.flops = sd_plan_report(t.plan).flops;
    r.count = t.out->numel;
    for (int i = 0; i < count; i++)
        r.count += wanted >> i & 1 && t.in[i].param ? t.in[i].param->numel : 0;
    r.data = sd_alloc_array(s, r.count, sizeof *r.data);
    if (t.out->dtype == SD_F32)
        sd_fetch(t.plan, t.out, r.data);
    else {
        void *raw = sd_alloc(s, t.out->numel * sizeof(real));
        real *values_out = sd_alloc_array(s, t.out->numel, sizeof *values_out);

        sd_fetch(t.plan, t.out, raw);
        sd_to_real(values_out, raw, t.out->dtype, t.out->numel);
        for (size_t i = 0; i < t.out->numel; i++)
            r.data[i] = (float)values_out[i];
    }
    for (int i = 0; device && i < count; i++)
        if (wanted >> i & 1 && t.in[i].param)
            sd_device_read(device, t.in[i].param->grad, t.in[i].param->device_grad, t.in[i].param->numel * sizeof(float));
    r.count = t.out->numel;
    for (int i = 0; i < count; i++)
        for (size_t k = 0; wanted >> i & 1 && t.in[i].param && k < t.in[i].param->numel; k++)
            r.data[r.count++] = (float)t.in[i].param->grad[k];
    trial_close(&t);
    return r;
}

/* rounding: 0, or how far products of bf16 are from f32 */
static void
check_variants(const char *name, check_describe *f, const char *text, unsigned mask, double tolerance, double rounding)
{
    struct shape shapes[MAX_IN];
    int count = parse(text, shapes);
    struct sd_scope *s = sd_scope_open();
    float **values = random_values(s, shapes, count);
    unsigned able = 0;
    enum sd_isa best = sd_isa_best(), chosen = sd_isa(), least = rounding > 0 ? SD_ISA_AVX512BF16 : SD_ISA_SSE4;

    if (rounding == 0 && best > SD_ISA_AVX512)
        best = SD_ISA_AVX512;                   /* the same code */
    for (int i = 0; i < count; i++)
        able |= !integer_limit[i] && mask >> i & 1 ? 1u << i : 0;
    sd_guard = true;
    for (int variant = 0; variant < 4; variant++) {
        static const char *const names[] = { "all gradients", "frozen weight", "no gradient", "pitched" };
        unsigned wanted = variant == 2 ? 0 : variant == 1 ? able & ~2u : able, frozen = variant ? 2u : 0;
        enum way way = variant == 3 ? PITCHED : variant == 1 ? STORE : ADD;
        struct result plain, fast, again;

        double error;

        sd_plain = true;
        if (rounding > 0) {
            fast = compute(s, f, shapes, count, wanted, frozen, way, values);
            products = SD_BF16;
        }
        plain = compute(s, f, shapes, count, wanted, frozen, way, values);
        sd_plain = false;
        if (rounding > 0) {
            error = check_distance(plain.data, fast.data, plain.count);
            CHECK(error <= rounding && error >= rounding / 10, "%s [%s] %s: bf16 %.1e from f32, expected %.1e to %.0e", name, text,
                  names[variant], error, rounding / 10, rounding);
        }
        for (enum sd_isa isa = least; isa <= best; isa++) {
            int threads = omp_get_max_threads();

            sd_isa_force(isa);
            fast = compute(s, f, shapes, count, wanted, frozen, way, values);
            error = check_distance(fast.data, plain.data, plain.count);
            CHECK(error <= tolerance, "%s [%s] %s, %s: %.1e from the C loops, allowed %.0e", name, text, names[variant],
                  sd_isa_name(), error, tolerance);
            omp_set_num_threads(threads == 1 ? 2 : 1);
            again = compute(s, f, shapes, count, wanted, frozen, way, values);
            omp_set_num_threads(threads);
            CHECK(memcmp(fast.data, again.data, fast.count * sizeof *fast.data) == 0,
                  "%s [%s] %s, %s: the same bits with another number of threads", name, text, names[variant], sd_isa_name());
        }
        products = SD_F32;
    }
    sd_guard = false;
    sd_isa_force(chosen);
    sd_scope_close(s);
}

static void
same_bits(const char *name, check_describe *f, check_describe *other, const char *text, enum sd_isa least, enum sd_isa best)
{
    struct shape shapes[MAX_IN];
    int count = parse(text, shapes);
    struct sd_scope *s = sd_scope_open();
    float **values = random_values(s, shapes, count);
    enum sd_isa chosen = sd_isa();

    sd_guard = true;
    for (enum sd_isa isa = least; isa <= best; isa++) {
        unsigned all = (1u << count) - 1;
        struct result a, b;

        sd_isa_force(isa);
        a = compute(s, f, shapes, count, all, 0, STORE, values);
        b = compute(s, other, shapes, count, all, 0, STORE, values);
        CHECK(a.count == b.count && memcmp(a.data, b.data, a.count * sizeof *a.data) == 0, "%s [%s], %s: the same bits as in one piece",
              name, text, sd_isa_name());
    }
    sd_guard = false;
    sd_isa_force(chosen);
    sd_scope_close(s);
}

void
check_same(const char *name, check_describe *f, check_describe *other, const char *text)
{
    if (SD_REAL_IS_FLOAT && !check_tested_device())
        same_bits(name, f, other, text, SD_ISA_SSE4, sd_isa_best() > SD_ISA_AVX512 ? SD_ISA_AVX512 : sd_isa_best());
}

void
check_same_bf16(const char *name, check_describe *f, check_describe *other, const char *text)
{
    if (!SD_REAL_IS_FLOAT || check_tested_device())
        return;
    products = SD_BF16;
    if (sd_isa_best() < SD_ISA_AVX512BF16)
        check_skip(name, "products of bf16: this machine has no AVX512_BF16");
    else
        same_bits(name, f, other, text, SD_ISA_AVX512BF16, SD_ISA_AVX512BF16);
    products = SD_F32;
}

/* -- devices -------------------------------------------------------------------------------------------------------- */

/* Which inputs of the op under test are weights, and does every op in it take 16-bit activations? */
static bool
classify(check_describe *f, const struct shape *shapes, int count)
{
    static const unsigned of_op[SD_OP_COUNT] = {
        [SD_OP_linear] = 6, [SD_OP_conv2d] = 6, [SD_OP_group_norm] = 6, [SD_OP_layer_norm] = 6, [SD_OP_embedding] = 14, [SD_OP_scale] = 2
    };
    struct sd_graph *g = sd_graph_new();
    struct sd_tensor *in[MAX_IN] = { 0 };
    bool any = true;

    weight_inputs = 0;
    for (int i = 0; i < count; i++)
        in[i] = sd_input(g, "in", integer_limit[i] ? SD_I32 : SD_F32, shapes[i].ndim, shapes[i].side);
    f(g, in);
    for (size_t k = 0; k < g->nodes.count; k++) {
        const struct sd_node *n = g->nodes.item[k];

        any &= n->op != SD_OP_add_noise && n->op != SD_OP_mse && n->op != SD_OP_timestep_embedding;
        for (int a = 0; a < n->n_in; a++)
            for (int i = 0; i < count; i++)
                if (n->in[a] && base_of(n->in[a]) == in[i] && of_op[n->op] >> a & 1)
                    weight_inputs |= 1u << i;
    }
    sd_graph_free(g);
    return any;
}

/* The CUDA twins against the C loops, for each type of activations. */
static void
check_device(struct sd_device *d, const char *name, check_describe *f, const char *text, unsigned mask, double tolerance)
{
    static const enum sd_dtype dtypes[] = { SD_F32, SD_BF16, SD_F16 };
    static const double allowed[] = { 2e-6, 6e-3, 8e-4 };
    struct shape shapes[MAX_IN];
    int count = parse(text, shapes);
    struct sd_scope *s = sd_scope_open();
    float **values = random_values(s, shapes, count);
    bool all = classify(f, shapes, count);
    unsigned able = 0;

    for (int i = 0; i < count; i++)
        able |= !integer_limit[i] && mask >> i & 1 ? 1u << i : 0;
    for (int k = 0; k < (all ? 3 : 1); k++)
        for (int variant = 0; variant < 4; variant++) {
            static const char *const names[] = { "all gradients", "frozen weight", "no gradient", "pitched" };
            unsigned wanted = variant == 2 ? 0 : variant == 1 ? able & ~2u : able, frozen = variant ? 2u : 0;
            enum way way = variant == 3 ? PITCHED : variant == 1 ? STORE : ADD;
            double limit = k ? allowed[k] : tolerance > allowed[0] ? tolerance : allowed[0], error;
            struct result plain, found, again;

            compute_dtype = dtypes[k];
            for (int i = 0; i < count; i++)     /* numbers that every type holds */
                for (size_t e = 0; e < shapes[i].numel && !integer_limit[i]; e++)
                    values[i][e] = roundf(values[i][e] * 128) / 128;
            sd_plain = true;
            plain = compute(s, f, shapes, count, wanted, frozen, way, values);
            sd_plain = false;
            device = d;
            found = compute(s, f, shapes, count, wanted, frozen, way, values);
            again = compute(s, f, shapes, count, wanted, frozen, way, values);
            device = NULL;
            error = check_distance(found.data, plain.data, plain.count);
            CHECK(error <= limit && found.flops == plain.flops,
                  "%s [%s] %s, %s on %s: %.1e from the C loops, allowed %.0e; %.0f operations, not other ones (%.0f)", name, text,
                  names[variant], sd_dtype_name(dtypes[k]), sd_device_name(d), error, limit, found.flops, plain.flops);
            CHECK(memcmp(found.data, again.data, found.count * sizeof *found.data) == 0, "%s [%s] %s, %s: the same bits twice", name,
                  text, names[variant], sd_dtype_name(dtypes[k]));
        }
    compute_dtype = SD_F32;
    weight_inputs = 0;
    sd_scope_close(s);
}

struct sd_device *
check_tested_device(void)
{
    static struct sd_device *d;
    static bool asked;
    const char *wanted = getenv("SD_TEST_DEVICE");

#ifdef SD_EMULATE
    wanted = "cuda";
#endif
    if (!asked && wanted && sd_device_open(&d, wanted) < 0)
        sd_bug("check", "%s", sd_reason());
    asked = true;
    return d;
}

void
check_paths_of(const char *name, check_describe *f, const char *text, unsigned mask, double tolerance)
{
    if (SD_REAL_IS_FLOAT && check_tested_device())
        check_device(check_tested_device(), name, f, text, mask, tolerance);
    else if (SD_REAL_IS_FLOAT)
        check_variants(name, f, text, mask, tolerance, 0);
}

void
check_bf16_of(const char *name, check_describe *f, const char *text, unsigned mask, double tolerance, double rounding)
{
    if (check_tested_device())
        return;
    if (SD_REAL_IS_FLOAT && sd_isa_best() < SD_ISA_AVX512BF16)
        check_skip(name, "products of bf16: this machine has no AVX512_BF16");
    else if (SD_REAL_IS_FLOAT)
        check_variants(name, f, text, mask, tolerance, rounding);
}

void
check_bf16(const char *name, check_describe *f, const char *shapes, double tolerance, double rounding)
{
    check_bf16_of(name, f, shapes, ~0u, tolerance, rounding);
}

void
check_paths(const char *name, check_describe *f, const char *shapes, double tolerance)
{
    check_paths_of(name, f, shapes, ~0u, tolerance);
}

/* -- dtypes of weights ---------------------------------------------------------------------------------------------- */

/* A number of any exponent that sums can bear, subnormal ones of F16 among them; every bit of the mantissa. */
static uint16_t
half_bits(enum sd_dtype dtype, uint32_t random)
{
    uint32_t e = random >> 16 & 15, sign = random & 0x8000;

    return (uint16_t)(sign | (dtype == SD_BF16 ? (116 + e) << 7 | (random & 127) : e << 10 | (random & 1023)));
}

static struct result
compute_weight(struct sd_scope *s, check_describe *f, const struct shape *shapes, int count, enum sd_dtype dtype, const void *raw,
               float *const *values, size_t *reserved, size_t *made)
{
    struct sd_scope *own = sd_scope_open();
    struct sd_graph *g = sd_graph_new();
    struct sd_param *x = sd_param_new(own, "x", SD_F32, shapes[0].ndim, shapes[0].side, NULL);
    struct sd_param *w = sd_param_new(own, "w", dtype, shapes[1].ndim, shapes[1].side, raw);
    struct sd_tensor *in[MAX_IN], *out;
    struct sd_plan *p;
    struct result r;
    uint16_t bias[1024];
    size_t before = sd_param_bytes_reserved(), before_made = sd_param_bytes_made();
    int threads = omp_get_max_threads();

    x->trainable = true;
    x->value = sd_alloc_array(own, x->numel, sizeof(real));
    x->grad = sd_alloc_array(own, x->numel, sizeof(real));
    for (size_t i = 0; i < x->numel; i++)
        x->value[i] = values[0][i];
    in[0] = sd_use(g, x);
    in[1] = sd_use(g, w);
    for (size_t i = 0; i < sizeof bias / sizeof *bias; i++)
        bias[i] = (uint16_t)(0x3800 + 37 * i % 2048);
    for (int i = 2; i < count; i++)
        in[i] = shapes[i].ndim > 1 ? sd_input(g, "in", SD_F32, shapes[i].ndim, shapes[i].side)
                                   : sd_use(g, sd_param_new(own, "bias", SD_F16, 1, shapes[i].side, bias));
    out = sd_keep(f(g, in));
    omp_set_num_threads(1);
    p = sd_plan_training(g, out, SD_KEEP_ALL, 0);
    omp_set_num_threads(2);
    if (!p)
        sd_bug("check", "%s", sd_reason());
    *reserved = sd_param_bytes_reserved() - before;
    sd_plan_bind(p, NULL);
    for (int i = 2; i < count; i++)
        if (shapes[i].ndim > 1)
            sd_feed(p, in[i], values[i]);
    sd_run(p);
    *made = sd_param_bytes_made() - before_made;
    omp_set_num_threads(threads);
    r = (struct result){ .count = out->numel + x->numel, .data = sd_alloc_array(s, out->numel + x->numel, sizeof(float)) };
    sd_fetch(p, out, r.data);
    for (size_t i = 0; i < x->numel; i++)
        r.data[out->numel + i] = (float)x->grad[i];
    sd_plan_free(p);
    sd_graph_free(g);
    sd_scope_close(own);
    return r;
}

void
check_dtypes(const char *name, check_describe *f, const char *text, size_t (*forms)(void))
{
    static const enum sd_dtype dtypes[] = { SD_F32, SD_F16, SD_BF16 };
    struct shape shapes[MAX_IN];
    int count = parse(text, shapes);
    enum sd_isa chosen = sd_isa(), best = sd_isa_best() < SD_ISA_AVX512 ? sd_isa_best() : SD_ISA_AVX512;

    sd_guard = true;
    for (int d = 0; d < 3 && SD_REAL_IS_FLOAT && !check_tested_device(); d++) {
        struct sd_scope *s = sd_scope_open();
        size_t numel = shapes[1].numel, size = sd_dtype_size(dtypes[d]), reserved, made;
        char *raw = sd_alloc(s, (numel + 1) * size);
        float **values = random_values(s, shapes, count), *wide = sd_alloc_array(s, numel, sizeof *wide);
        real *converted = sd_alloc_array(s, numel, sizeof *converted);
        uint64_t state = 11;
        size_t biases = 0;

        for (int i = 2; i < count; i++)
            biases += shapes[i].ndim == 1 ? shapes[i].numel * sizeof(float) : 0;
        raw += dtypes[d] == SD_F32 ? 2 : 1;
        for (size_t i = 0; i < numel; i++) {
            uint16_t bits = half_bits(dtypes[d], (uint32_t)(int32_t)(next_value(&state) * 0x1p23f) << 3);

            memcpy(raw + i * size, dtypes[d] == SD_F32 ? (void *)&values[1][i] : &bits, size);
        }
        sd_param_convert(converted, sd_param_new(s, "w", dtypes[d], shapes[1].ndim, shapes[1].side, raw), 0, numel);
        for (size_t i = 0; i < numel; i++)
            wide[i] = (float)converted[i];
        for (enum sd_isa isa = SD_ISA_SSE4; isa <= best; isa++) {
            struct result a, b;
            double power = 0;

            sd_isa_force(isa);
            a = compute_weight(s, f, shapes, count, SD_F32, wide, values, &reserved, &made);
            CHECK(reserved == made && made == forms() + biases, "%s [%s], %s: forms of %zu bytes announced, %zu made, %zu expected", name, text,
                  sd_isa_name(), reserved, made, forms() + biases);
            b = compute_weight(s, f, shapes, count, dtypes[d], raw, values, &reserved, &made);
            CHECK(reserved == made && made == forms() + biases, "%s [%s], %s, %s: forms of %zu bytes announced, %zu made, %zu expected", name,
                  text, sd_dtype_name(dtypes[d]), sd_isa_name(), reserved, made, forms() + biases);
            for (size_t i = 0; i < a.count; i++)
                power += (double)(a.data[i] * a.data[i]);
            CHECK(power > 0 && isfinite(power) && memcmp(a.data, b.data, a.count * sizeof *a.data) == 0,
                  "%s [%s], %s, %s: the same bits as the values in F32", name, text, sd_dtype_name(dtypes[d]), sd_isa_name());
        }
        sd_scope_close(s);
    }
    sd_guard = false;
    sd_isa_force(chosen);
}
