/* ops_own - the kernels of our own (attention, norms, activations) on SD1.5's shapes at 512x512, each beside the
 * machine's sgemm and copy rates taken in between.  ops_own [what]: only ops whose name holds `what`.  With
 * OMP_NUM_THREADS=1 processor time is taken instead of the clock's: of use on a machine shared with others. */
#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "op.h"
#include "ops.h"
#include "plan.h"

enum { N = 2048, RUNS = 5 };

static float *a, *b, *c;

static double
now(void)
{
    return sd_clock_of(omp_get_max_threads() == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC);
}

static double
sgemm_rate(void)
{
    double start = now();

    dnnl_sgemm('N', 'N', N, N, N, 1, a, N, b, N, 0, c, N);
    return 2.0 * N * N * N / (now() - start);
}

static double
copy_rate(void)
{
    double start = now();

#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < 16; i++)
        memcpy(c + i * N * N / 16, a + i * N * N / 16, sizeof *a * N * N / 16);
    return 2.0 * sizeof *a * N * N / (now() - start);
}

static void
fill(float *x, size_t count)
{
    uint64_t z = 1;

    for (size_t i = 0; i < count; i++) {
        z = z * 6364136223846793005u + 1442695040888963407u;
        x[i] = (float)(int64_t)(z >> 40) * 0x1p-23f - 1;
    }
}

static struct sd_scope *scope;
static struct sd_graph *graph;
static struct sd_param *params[3];

static struct sd_tensor *
input(int which, bool train, int ndim, const int64_t *shape)
{
    struct sd_param *p = sd_param_new(scope, "x", SD_F32, ndim, shape, NULL);

    p->trainable = train;
    p->value = sd_alloc_array(scope, p->numel, sizeof(float));
    p->grad = sd_alloc_array(scope, p->numel, sizeof(float));
    fill(p->value, p->numel);
    if (!train)
        p->raw = p->value;
    params[which] = p;
    return sd_use(graph, p);
}

/* Seconds of the fastest run; the sgemm and copy rates around it. */
static double
fastest(struct sd_plan *p, double *gemm, double *copy)
{
    double best = 1e30;

    sd_run(p);
    for (int i = 0; i < RUNS; i++) {
        double start, rate = sgemm_rate(), bytes = copy_rate();

        *gemm = rate > *gemm ? rate : *gemm;
        *copy = bytes > *copy ? bytes : *copy;
        start = now();
        sd_run(p);
        if (now() - start < best)
            best = now() - start;
    }
    return best;
}

struct run { double forward, both, gemm, copy, flops; size_t bytes; };

typedef struct sd_tensor *describe(bool train);

static struct run
measure(describe *f)
{
    struct run r = { 0 };

    for (int train = 0; train < 2; train++) {
        struct sd_plan *p;
        struct sd_tensor *y;
        double seconds;

        scope = sd_scope_open();
        graph = sd_graph_new();
        y = sd_keep(f(train));
        p = train ? sd_plan_training(graph, y, SD_KEEP_ALL, 0) : sd_plan_inference(graph, 0);
        if (!p)
            sd_die("ops_own", "%s", sd_reason());
        sd_plan_bind(p, NULL);
        seconds = fastest(p, &r.gemm, &r.copy);
        if (train)
            r.both = seconds;
        else {
            r.forward = seconds;
            r.flops = sd_plan_report(p).flops;
            r.bytes = sizeof(float) * (params[0]->numel + y->numel);
        }
        sd_plan_free(p);
        sd_graph_free(graph);
        sd_scope_close(scope);
    }
    return r;
}

static int64_t B, L, S, D;
static int heads;
static bool train_kv, silu;

static struct sd_tensor *
attention(bool train)
{
    struct sd_tensor *q = input(0, train, 3, (int64_t[]){ B, L, D });
    struct sd_tensor *k = input(1, train && train_kv, 3, (int64_t[]){ B, S, D });
    struct sd_tensor *v = input(2, train && train_kv, 3, (int64_t[]){ B, S, D });

    return sd_op_attention(graph, q, k, v, (struct sd_attention){ heads, false, 0 });
}

static struct sd_tensor *
group_norm(bool train)
{
    struct sd_tensor *weight = input(1, false, 1, &D), *bias = input(2, false, 1, &D);

    return sd_op_group_norm(graph, input(0, train, 3, (int64_t[]){ B, L, D }), weight, bias, 32, 1e-5, silu);
}

static struct sd_tensor *
layer_norm(bool train)
{
    struct sd_tensor *weight = input(1, false, 1, &D), *bias = input(2, false, 1, &D);

    return sd_op_layer_norm(graph, input(0, train, 3, (int64_t[]){ B, L, D }), weight, bias, 1e-5);
}

static struct sd_tensor *
geglu(bool train)
{
    return sd_op_geglu(graph, input(0, train, 3, (int64_t[]){ B, L, D }));
}

static struct sd_tensor *
silu_alone(bool train)
{
    return sd_op_silu(graph, input(0, train, 3, (int64_t[]){ B, L, D }));
}

static void
attention_at(const char *only, int64_t batch, int64_t queries, int64_t keys, int h, int64_t d, bool kv)
{
    struct run r;
    double back;

    if (only && !strstr("attention", only))
        return;
    B = batch, L = queries, S = keys, heads = h, D = h * d, train_kv = kv;
    r = measure(attention);
    back = r.flops / 2 * (kv ? 5 : 3) / (r.both - r.forward);
    printf("attention  B %d  L %4d  S %4d  heads %2d  d %3d  forward %7.2f ms %3.0f GFLOP/s = %3.0f %%   backward%s %7.2f ms "
           "%3.0f GFLOP/s = %3.0f %%   of sgemm %.0f\n", (int)B, (int)L, (int)S, h, (int)d, 1e3 * r.forward,
           1e-9 * r.flops / r.forward, 100 * r.flops / r.forward / r.gemm, kv ? "" : " (q)", 1e3 * (r.both - r.forward),
           1e-9 * back, 100 * back / r.gemm, 1e-9 * r.gemm);
}

static void
rows_at(const char *only, const char *name, describe *f, int64_t rows, int64_t cols)
{
    struct run r;

    if (only && !strstr(name, only))
        return;
    B = 1, L = rows, D = cols;
    r = measure(f);
    printf("%-17s L %4d  C %4d  forward %7.3f ms %5.1f GB/s   backward %7.3f ms %5.1f GB/s   copy %.1f\n", name, (int)L,
           (int)D, 1e3 * r.forward, 1e-9 * (double)r.bytes / r.forward, 1e3 * (r.both - r.forward),
           2e-9 * (double)r.bytes / (r.both - r.forward), 1e-9 * r.copy);
}

int
main(int argc, char **argv)
{
    const char *only = argc > 1 ? argv[1] : NULL;

    a = sd_alloc_array(NULL, N * N, sizeof *a);
    b = sd_alloc_array(NULL, N * N, sizeof *b);
    c = sd_alloc_array(NULL, N * N, sizeof *c);
    fill(a, N * N);
    fill(b, N * N);
    printf("%s\n", sd_isa_name());
    attention_at(only, 2, 4096, 4096, 8, 40, true);
    attention_at(only, 2, 1024, 1024, 8, 80, true);
    attention_at(only, 2, 256, 256, 8, 160, true);
    attention_at(only, 2, 64, 64, 8, 160, true);
    attention_at(only, 2, 4096, 77, 8, 40, true);
    attention_at(only, 2, 4096, 77, 8, 40, false);
    attention_at(only, 2, 1024, 77, 8, 80, true);
    attention_at(only, 2, 256, 77, 8, 160, true);
    attention_at(only, 2, 77, 77, 12, 64, true);
    attention_at(only, 1, 4096, 4096, 1, 512, true);
    for (int i = 0; i < 2; i++) {
        silu = i;
        rows_at(only, silu ? "group_norm + silu" : "group_norm", group_norm, 4096, 320);
        rows_at(only, silu ? "group_norm + silu" : "group_norm", group_norm, 1024, 1280);
        rows_at(only, silu ? "group_norm + silu" : "group_norm", group_norm, 64, 2560);
    }
    rows_at(only, "layer_norm", layer_norm, 4096, 320);
    rows_at(only, "layer_norm", layer_norm, 256, 1280);
    rows_at(only, "geglu", geglu, 4096, 2560);
    rows_at(only, "geglu", geglu, 256, 10240);
    rows_at(only, "silu", silu_alone, 4096, 320);
    return 0;
}
