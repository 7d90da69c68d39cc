/* ops_matrix - GFLOP/s of linear and conv2d, forward and gradients, on the shapes of SD1.5, beside a plain matrix
 * product of oneDNN's in the same run (medians).  Arguments: "bf16" first for products of bf16; then none for all
 * shapes, or words that a shape's name must contain.
 * Counts are 2 multiply-adds of the plain convolution, so Winograd and folded enlargements may pass the base rate. */
#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "op.h"
#include "ops.h"
#include "plan.h"

enum { RUNS = 9 };

static enum sd_dtype products = SD_F32;

/* CPU seconds of the process per thread: on a machine that others use too, wall time says little.  Run with
 * OMP_WAIT_POLICY=passive, or waiting threads count as working. */
static double
now(void)
{
    return sd_clock_of(CLOCK_PROCESS_CPUTIME_ID) / omp_get_max_threads();
}

static int
by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static float *
values(struct sd_scope *s, size_t count)
{
    float *v = sd_alloc_array(s, count, sizeof *v);
    uint32_t state = 1;

    for (size_t i = 0; i < count; i++) {
        state = state * 1664525u + 1013904223u;
        v[i] = (float)(state >> 8) / (1 << 24) - 0.5f;
    }
    return v;
}

static double
sgemm_rate(void)
{
    enum { N = 2048 };
    struct sd_scope *s = sd_scope_open();
    float *a = values(s, N * N), *b = values(s, N * N), *c = values(s, N * N);
    double t[RUNS];

    for (int r = 0; r < RUNS; r++) {
        double start = now();

        dnnl_sgemm('N', 'N', N, N, N, 1, a, N, b, N, 0, c, N);
        t[r] = now() - start;
    }
    qsort(t, RUNS, sizeof *t, by_value);
    sd_scope_close(s);
    return 2.0 * N * N * N / t[RUNS / 2] * 1e-9;
}

enum what { FORWARD, DATA, WEIGHT };

/* One node by itself: seconds of its forward step or of one gradient, median. */
static double
seconds(enum what what, bool is_conv, const int64_t *x, const int64_t *w, struct sd_conv2d a, bool extras,
        double *flops)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_graph *g = sd_graph_new();
    int wn = is_conv ? 4 : 2, xn = is_conv ? 4 : 2;
    struct sd_param *weight = sd_param_new(s, "weight", SD_F32, wn, w, NULL),
        *bias = sd_param_new(s, "bias", SD_F32, 1, w, NULL);
    struct sd_param *in = sd_param_new(s, "x", SD_F32, xn, x, NULL);
    struct sd_tensor *out, *tx, *residual = NULL;
    struct sd_plan *p;
    double t[RUNS], start, total = 0;
    struct sd_node *n;
    int runs = 0;

    sd_graph_products(g, products);
    weight->raw = values(s, weight->numel);
    bias->raw = values(s, bias->numel);
    if (what == WEIGHT) {
        weight->trainable = true;
        weight->value = values(s, weight->numel);
        weight->grad = values(s, weight->numel);
    }
    if (what == DATA) {
        in->trainable = true;
        in->value = values(s, in->numel);
        in->grad = values(s, in->numel);
        tx = sd_op_copy(g, sd_use(g, in));
    } else
        tx = sd_input(g, "x", SD_F32, xn, x);
    if (is_conv && extras) {
        struct sd_tensor *first = sd_op_conv2d(g, tx, sd_use(g, weight), NULL, NULL, NULL, a);

        residual = sd_input(g, "residual", SD_F32, first->ndim, first->shape);
    }
    out = sd_keep(is_conv ? sd_op_conv2d(g, tx, sd_use(g, weight), sd_use(g, bias), NULL, residual, a)
                          : sd_op_linear(g, tx, sd_use(g, weight), sd_use(g, bias), NULL));
    n = out->node;
    p = what == FORWARD ? sd_plan_inference(g, 0) : sd_plan_training(g, out, SD_KEEP_ALL, 0);
    if (!p)
        sd_die("bench", "%s", sd_reason());
    sd_plan_bind(p, NULL);
    if (what != DATA)
        sd_feed(p, tx, values(s, tx->numel));
    if (residual)
        sd_feed(p, residual, values(s, residual->numel));
    sd_run(p);                          /* packs, leaves every tensor at its address */
    for (; runs < RUNS && (runs < 3 || total < 0.6); runs++) {
        start = now();
        if (what == FORWARD)
            sd_run(p);
        else
            sd_ops[n->op].backward_cpu(n);
        t[runs] = now() - start;
        total += t[runs];
    }
    qsort(t, (size_t)runs, sizeof *t, by_value);
    *flops = what == FORWARD ? n->flops : n->backward_flops;
    sd_plan_free(p);
    sd_graph_free(g);
    sd_scope_close(s);
    return t[runs / 2];
}

struct shape { const char *name; int64_t x[4], w[4]; int stride, upsample; int calls; };

static const struct shape convs[] = {
    { "unet 64 320 320", { 2, 64, 64, 320 }, { 320, 320, 3, 3 }, 1, 1, 7 },
    { "unet 32 640 640", { 2, 32, 32, 640 }, { 640, 640, 3, 3 }, 1, 1, 6 },
    { "unet 16 1280 1280", { 2, 16, 16, 1280 }, { 1280, 1280, 3, 3 }, 1, 1, 7 },
    { "unet 8 1280 1280", { 2, 8, 8, 1280 }, { 1280, 1280, 3, 3 }, 1, 1, 12 },
    { "unet 16 2560 1280", { 2, 16, 16, 2560 }, { 1280, 2560, 3, 3 }, 1, 1, 2 },
    { "unet 64 960 320", { 2, 64, 64, 960 }, { 320, 960, 3, 3 }, 1, 1, 1 },
    { "unet 64 640 320 1x1", { 2, 64, 64, 640 }, { 320, 640, 1, 1 }, 1, 1, 2 },
    { "unet 64 320 down", { 2, 64, 64, 320 }, { 320, 320, 3, 3 }, 2, 1, 1 },
    { "unet 32 640 up", { 2, 32, 32, 640 }, { 640, 640, 3, 3 }, 1, 2, 1 },
    { "unet 64 4 320", { 2, 64, 64, 4 }, { 320, 4, 3, 3 }, 1, 1, 1 },
    { "unet 64 320 4", { 2, 64, 64, 320 }, { 4, 320, 3, 3 }, 1, 1, 1 },
    { "vae 512 128 128", { 1, 512, 512, 128 }, { 128, 128, 3, 3 }, 1, 1, 5 },
    { "vae 512 256 128", { 1, 512, 512, 256 }, { 128, 256, 3, 3 }, 1, 1, 1 },
    { "vae 256 256 256", { 1, 256, 256, 256 }, { 256, 256, 3, 3 }, 1, 1, 5 },
    { "vae 128 512 512", { 1, 128, 128, 512 }, { 512, 512, 3, 3 }, 1, 1, 6 },
    { "vae 64 512 512", { 1, 64, 64, 512 }, { 512, 512, 3, 3 }, 1, 1, 10 },
    { "vae 128 512 up", { 1, 128, 128, 512 }, { 512, 512, 3, 3 }, 1, 2, 1 },
    { "vae 256 256 up", { 1, 256, 256, 256 }, { 256, 256, 3, 3 }, 1, 2, 1 },
    { "vae 512 3 128", { 1, 512, 512, 3 }, { 128, 3, 3, 3 }, 1, 1, 1 },
    { "vae 512 128 3", { 1, 512, 512, 128 }, { 3, 128, 3, 3 }, 1, 1, 1 },
    { "vae 512 128 down", { 1, 512, 512, 128 }, { 128, 128, 3, 3 }, 2, 1, 1 },
    { "vae 512 256 128 1x1", { 1, 512, 512, 256 }, { 128, 256, 1, 1 }, 1, 1, 1 },
};
static const struct shape linears[] = {
    { "linear 8192 320 320", { 8192, 320 }, { 320, 320 }, 0, 0, 25 },
    { "linear 8192 320 2560", { 8192, 320 }, { 2560, 320 }, 0, 0, 5 },
    { "linear 8192 1280 320", { 8192, 1280 }, { 320, 1280 }, 0, 0, 5 },
    { "linear 2048 640 640", { 2048, 640 }, { 640, 640 }, 0, 0, 25 },
    { "linear 2048 640 5120", { 2048, 640 }, { 5120, 640 }, 0, 0, 5 },
    { "linear 512 1280 1280", { 512, 1280 }, { 1280, 1280 }, 0, 0, 25 },
    { "linear 512 1280 10240", { 512, 1280 }, { 10240, 1280 }, 0, 0, 5 },
    { "linear 154 768 1280", { 154, 768 }, { 1280, 768 }, 0, 0, 6 },
    { "linear 2 1280 1280", { 2, 1280 }, { 1280, 1280 }, 0, 0, 13 },
    { "linear lora 4096 320 16", { 4096, 320 }, { 16, 320 }, 0, 0, 1 },
    { "linear lora 4096 16 320", { 4096, 16 }, { 320, 16 }, 0, 0, 1 },
    { "linear lora 77 768 16", { 77, 768 }, { 16, 768 }, 0, 0, 1 },
};

static bool
wanted(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!strstr(name, argv[i]))
            return false;
    return true;
}

static void
line(const struct shape *s, bool is_conv)
{
    struct sd_conv2d a = { s->stride, 1, 1, 1, 1, s->upsample };

    if (is_conv && s->w[2] == 1)
        a.top = a.left = a.bottom = a.right = 0;
    printf("%-26s", s->name);
    for (enum what what = FORWARD; what <= WEIGHT; what++) {
        double flops, t;

        if (what == WEIGHT && is_conv && s->x[1] > 64) {
            printf("%9s%8s", "-", "");
            continue;
        }
        t = seconds(what, is_conv, s->x, s->w, a, false, &flops);
        printf("%9.2f%8.1f", t * 1e3, flops / t * 1e-9);
        fflush(stdout);
    }
    printf("\n");
}

int
main(int argc, char **argv)
{
    double before = sgemm_rate();

    if (argc > 1 && strcmp(argv[1], "bf16") == 0) {
        products = SD_BF16;
        argc--;
        argv++;
    }
    printf("%s, %s, %d threads; sgemm 2048: %.1f GFLOP/s\n", sd_isa_name(), sd_dtype_name(products),
           omp_get_max_threads(), before);
    printf("%-26s%9s%8s%9s%8s%9s%8s\n", "", "ms", "forward", "ms", "dx", "ms", "dw");
    for (size_t i = 0; i < sizeof convs / sizeof *convs; i++)
        if (wanted(convs[i].name, argc, argv))
            line(&convs[i], true);
    for (size_t i = 0; i < sizeof linears / sizeof *linears; i++)
        if (wanted(linears[i].name, argc, argv))
            line(&linears[i], false);
    printf("sgemm 2048: %.1f GFLOP/s\n", sgemm_rate());
    return 0;
}
