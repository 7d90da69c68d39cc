/* cuda_rates.h - a card's base rates: products, convolutions, attention, copies, as libraries and as we make them. */
#ifndef SD_BENCH_CUDA_RATES_H
#define SD_BENCH_CUDA_RATES_H

#include "cuda.h"
#include "random.h"

enum { MAX_RATES = 64, MAX_HELD = 256 };
static void *held[MAX_HELD];
static int held_count;
static struct rate {
    const char *what, *who, *unit;
    double work;                /* of one run, in units a second; 0: microseconds of one of `times` */
    int times;                  /* runs in the recording */
    struct sd_recording *recording;
} rates[MAX_RATES];
static int rate_count;

static void *
hold(size_t bytes, const char *what)
{
    if (held_count == MAX_HELD)
        sd_bug("cuda", "more than %d operands", MAX_HELD);
    return held[held_count++] = sd_device_alloc(device, bytes, what);
}

/* Normal numbers, a million of them again and again: no row of a product is like its neighbour. */
static void *
numbers(enum sd_dtype dtype, int64_t count, double scale)
{
    enum { BLOCK = (1 << 20) + 8 };
    size_t size = sd_dtype_size(dtype), n = count < BLOCK ? (size_t)count : BLOCK;
    struct sd_scope *s = sd_scope_open();
    float *values = sd_alloc_array(s, n, sizeof *values);
    char *bytes = sd_alloc_array(s, n, size), *to = hold((size_t)count * size, "a base rate's operand");
    static uint64_t which;

    sd_random_normal(values, n, 1, SD_FOR_INIT, which++, 0);
    for (size_t i = 0; i < n; i++)
        values[i] *= (float)scale;
    if (sd_from_f32(bytes, dtype, values, n) < 0)
        sd_die("numbers", "%s", sd_reason());
    sd_device_write(device, to, bytes, n * size);
    for (size_t at = n; at < (size_t)count; at += n)
        sd_device_copy(device, to + at * size, to, (at + n <= (size_t)count ? n : (size_t)count - at) * size);
    sd_device_wait(device);
    sd_scope_close(s);
    return to;
}

static void *
room(size_t bytes)
{
    return bytes ? hold(bytes, "a base rate's result") : NULL;
}

/* Run once (what is tuned or loaded), timed once, then recorded as often as fills some milliseconds. */
static void
add_rate(const char *what, const char *who, const char *unit, double work, bool (*run)(void *), void *argument,
         int least)
{
    struct rate *r = &rates[rate_count];
    double start;

    if (rate_count == MAX_RATES)
        sd_bug("cuda", "more than %d base rates", MAX_RATES);
    if (!run(argument)) {
        note("base rate %s: not taken by %s", what, who);
        return;
    }
    sd_device_wait(device);
    start = sd_clock();
    run(argument);
    sd_device_wait(device);
    r->times = tiny ? 1 : (int)(0.01 / (sd_clock() - start + 1e-6));
    r->times = r->times < least ? least : r->times > 200 && least < 200 ? 200 : r->times;
    sd_device_record(device);
    for (int i = 0; i < r->times; i++)
        run(argument);
    if (!(r->recording = sd_device_recorded(device))) {
        note("base rate %s: %s cannot be recorded: %s", what, who, sd_reason());
        return;
    }
    r->what = what;
    r->who = who;
    r->unit = unit;
    r->work = work;
    rate_count++;
}

static void
measure_rates(void)
{
    for (int i = 0; i < rate_count; i++) {
        const struct rate *r = &rates[i];
        double t[4];

        for (int k = 0; k < 4; k++) {           /* the first warms the clocks up */
            double start = sd_clock();

            sd_device_replay(device, r->recording);
            sd_device_wait(device);
            t[k] = (sd_clock() - start) / r->times;
        }
        for (int k = 2; k < 4; k++)
            t[1] = t[k] < t[1] ? t[k] : t[1];
        printf("rate\t%s\t%s\t%s\t%.6g\n", r->what, r->who, r->unit, r->work > 0 ? r->work / t[1] : t[1] * 1e6);
    }
    fflush(stdout);
}

struct gemm_rate {
    struct gemm_call call;
    bool vendor, tf32;
};

static bool
run_gemm(void *argument)
{
    const struct gemm_rate *g = argument;
    bool taken;

    vendor_tf32 = g->tf32;
    taken = g->vendor ? cublas_gemm(device, &g->call) : gemm_cuda(device, &g->call);
    vendor_tf32 = false;
    return taken;
}

static void
gemm_rates(const char *what, int64_t n, enum sd_dtype dtype, bool tf32)
{
    struct gemm_rate *g = sd_alloc_array(scope, 2, sizeof *g);
    struct gemm_call *c = &g[0].call;

    if (tiny)
        n = 64;
    *c = (struct gemm_call){ .rows = n, .columns = n, .depth = n, .dtype = dtype, .d_dtype = dtype, .a_pitch = n,
                            .b_pitch = n,
                             .c_pitch = n, .d_pitch = n, .b_turned = true };
    c->a = numbers(dtype, n * n, 1);
    c->b = numbers(dtype, n * n, 1);
    c->d = room((size_t)(n * n) * sd_dtype_size(dtype));
    c->scratch = room(gemm_scratch(c));
    g[0].tf32 = tf32;
    g[1] = g[0];
    g[0].vendor = true;
    add_rate(what, "cuBLASLt", "TFLOP/s", 2e-12 * (double)(n * n * n), run_gemm, &g[0], 1);
    add_rate(what, "own", "TFLOP/s", 2e-12 * (double)(n * n * n), run_gemm, &g[1], 1);
}

struct conv_rate {
    struct conv_call call;
    bool vendor;
};

static bool
run_conv(void *argument)
{
    const struct conv_rate *c = argument;

    return c->vendor ? cudnn_conv2d(device, &c->call) : conv_cuda(device, &c->call);
}

static void
conv_rates(const char *what, enum conv_kind kind, int64_t channels, int64_t side)
{
    struct conv_rate *r = sd_alloc_array(scope, 2, sizeof *r);
    struct conv_call *c = &r[0].call;
    int64_t batch = 2, pixels, flops;

    if (tiny)
        channels /= 10, side /= 8;
    pixels = batch * side * side;
    flops = 2 * 9 * pixels * channels * channels;
    *c = (struct conv_call){ .kind = kind, .dtype = SD_BF16, .batch = batch, .height = side, .width = side,
                            .in = channels,
                             .out_height = side, .out_width = side, .out = channels, .kernel_height = 3,
                                 .kernel_width = 3,
                             .stride = 1, .top = 1, .left = 1, .bottom = 1, .right = 1, .upsample = 1 };
    *(kind == CONV_FORWARD ? &c->x : &c->dy) = numbers(SD_BF16, pixels * channels, 1);
    c->w = numbers(SD_BF16, channels * channels * 9, 0.02);
    c->to = room((size_t)(pixels * channels) * 2);
    c->scratch = room(conv_scratch(c));
    r[1] = r[0];
    r[0].vendor = true;
    add_rate(what, "cuDNN", "TFLOP/s", 1e-12 * (double)flops, run_conv, &r[0], 1);
    add_rate(what, "own", "TFLOP/s", 1e-12 * (double)flops, run_conv, &r[1], 1);
}

struct attention_rate {
    struct attention_call forward, backward;
    bool vendor, both;
};

static bool
run_attention(void *argument)
{
    const struct attention_rate *a = argument;
    bool (*f)(struct sd_device *, const struct attention_call *) = a->vendor ? cudnn_attention : attention_cuda;

    return f(device, &a->forward) && (!a->both || f(device, &a->backward));
}

static void
attention_rates(const char *forward, const char *both, int64_t heads, int64_t L, int64_t S, int64_t d)
{
    struct attention_rate *r = sd_alloc_array(scope, 4, sizeof *r);
    struct attention_call *a = &r[0].forward;
    int64_t batch = both ? 2 : 1, width = heads * d;
    double flops;

    if (tiny)
        L /= 64, S = S > 77 ? S / 64 : S / 7;
    flops = 4 * (double)(batch * heads * L * S * d);
    *a = (struct attention_call){ .dtype = SD_BF16, .batch = batch, .heads = heads, .L = L, .S = S, .d = d,
                                  .scale = 1 / sqrt((double)d), .q_pitch = width, .k_pitch = width, .v_pitch = width,
                                      .o_pitch = width };
    a->q = numbers(SD_BF16, batch * L * width, 1);
    a->k = numbers(SD_BF16, batch * S * width, 1);
    a->v = numbers(SD_BF16, batch * S * width, 1);
    a->o = room((size_t)(batch * L * width) * 2);
    a->lse = both ? room((size_t)(batch * heads * L) * sizeof(float)) : NULL;
    a->scratch = room(attention_scratch(a));
    if (both) {
        struct attention_call *b = &r[0].backward;

        *b = *a;
        b->backward = true;
        b->o_gradient = numbers(SD_BF16, batch * L * width, 1);
        b->o_gradient_pitch = b->q_gradient_pitch = b->k_gradient_pitch = b->v_gradient_pitch = width;
        b->q_gradient = room((size_t)(batch * L * width) * 2);
        b->k_gradient = room((size_t)(batch * S * width) * 2);
        b->v_gradient = room((size_t)(batch * S * width) * 2);
        b->q_store = b->k_store = b->v_store = true;
        b->scratch = room(attention_scratch(b));
    }
    for (int i = 1; i < 4; i++)
        r[i] = r[0];
    r[0].vendor = r[2].vendor = true;
    r[2].both = r[3].both = true;
    add_rate(forward, "cuDNN", "TFLOP/s", flops * 1e-12, run_attention, &r[0], 1);
    add_rate(forward, "own", "TFLOP/s", flops * 1e-12, run_attention, &r[1], 1);
    if (both) {
        add_rate(both, "cuDNN", "TFLOP/s", flops * 3.5e-12, run_attention, &r[2], 1);
        add_rate(both, "own", "TFLOP/s", flops * 3.5e-12, run_attention, &r[3], 1);
    }
}

struct copy_rate {
    void *to, *from;
    size_t bytes;
};

static bool
run_copy(void *argument)
{
    const struct copy_rate *c = argument;

    sd_device_copy(device, c->to, c->from, c->bytes);
    return true;
}

static bool
run_small(void *argument)
{
    sd_device_fill_real(device, argument, SD_F32, 1, 1);
    return true;
}

static void
make_rates(void)
{
    struct copy_rate *copy = sd_alloc(scope, sizeof *copy);

    gemm_rates("GEMM 4096^3, bf16", 4096, SD_BF16, false);
    gemm_rates("GEMM 8192^3, bf16", 8192, SD_BF16, false);
    gemm_rates("GEMM 4096^3, tf32", 4096, SD_F32, true);
    copy->bytes = (size_t)1 << (tiny ? 16 : 30);
    copy->from = numbers(SD_F32, (int64_t)copy->bytes / 4, 1);
    copy->to = room(copy->bytes);
    add_rate("copy on the device, read and written", "driver", "GB/s", 2e-9 * (double)copy->bytes, run_copy, copy, 1);
    add_rate("kernel of one number, recorded, one after the other", "own", "us", 0, run_small, room(256), tiny
             ? 10 : 1000);
    conv_rates("3x3 convolution, 2x320 64^2", CONV_FORWARD, 320, 64);
    conv_rates("3x3 convolution, 2x640 32^2", CONV_FORWARD, 640, 32);
    conv_rates("3x3 convolution, 2x1280 16^2", CONV_FORWARD, 1280, 16);
    conv_rates("its data gradient, 2x320 64^2", CONV_DATA, 320, 64);
    conv_rates("its data gradient, 2x640 32^2", CONV_DATA, 640, 32);
    conv_rates("its data gradient, 2x1280 16^2", CONV_DATA, 1280, 16);
    attention_rates("attention, batch 2, 8 heads of 40, 4096 x 4096", "forward and backward, 4096 x 4096", 8, 4096,
                    4096, 40);
    attention_rates("attention, batch 2, 8 heads of 80, 1024 x 1024", "forward and backward, 1024 x 1024", 8, 1024,
                    1024, 80);
    attention_rates("attention, batch 2, 8 heads of 40, 4096 x 77", "forward and backward, 4096 x 77", 8, 4096, 77, 40);
    attention_rates("attention of the VAE, 1 head of 512, 4096 x 4096", NULL, 1, 4096, 4096, 512);
}

#endif
