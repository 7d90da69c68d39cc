/* cuda - a card's base rates, our rows on it, and the same rows of PyTorch processes, in turn: raw numbers for `table`.
 * Usage: cuda [--tiny] [--rounds N] [--steps N] [--seconds N] [--peers COMMAND NAMES] MODEL [ROW ...]
 *        cuda [--tiny] --alone ROW MODEL     that row in a process of its own: start to first step, memory
 *        cuda --rates                        the base rates alone
 *   MODEL   a model's folder; its tokenizer is not used (captions are letters here)
 *   ROW     text guided decode512 decode1024 lora1 lora8 ti lora1-tf32 (without: all)
 *   --tiny  small shapes, for the emulated device: proves that it runs, measures nothing
 *   --peers `COMMAND --peer NAME --row ROW` is started for each NAME (commas between) and row: peers.py says what it is told
 *   --seconds  wall time of it all: peers not ready in time are ended, rounds not begun in time are left out, aloud
 *
 * Standard output, words between tabs:   rate WHAT WHO UNIT VALUE    time ROW WHO MS    start ROW WHO SECONDS
 *   memory ROW WHO GB    flops ROW VALUE    about NAME TEXT    note TEXT          one line for each round; `table` takes medians.
 * WHO of ours: "ours" is what a program of ours waits for (training: the update with noise, optimizer and its loss read back;
 * guided: the loop of a picture; decode: latents to a picture in memory), "kernels" the network's plan alone, replayed. */
#include "device.h"
#include "diffusion/draw_private.h"
#include "kernels/device_ops.h"
#include "kernels/vendor.h"
#include "random.h"
#include "train/targets.h"
#include "train/tokens.h"
#include "train/trainer_private.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct sd_device *device;
static struct sd_scope *scope;
static bool tiny;
static int rounds = 3, steps = 50;
static double begun, seconds = 1e9;

static double
now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void
must(const void *p, const char *what)
{
    if (!p)
        sd_die(what, "%s", sd_reason());
}

static void
note(const char *format, ...)
{
    va_list ap;

    printf("note\t");
    va_start(ap, format);
    vprintf(format, ap);
    va_end(ap);
    printf("\n");
    fflush(stdout);
}

/* -- base rates ---------------------------------------------------------------------------------------------------- */

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
add_rate(const char *what, const char *who, const char *unit, double work, bool (*run)(void *), void *argument, int least)
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
    start = now();
    run(argument);
    sd_device_wait(device);
    r->times = tiny ? 1 : (int)(0.01 / (now() - start + 1e-6));
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
            double start = now();

            sd_device_replay(device, r->recording);
            sd_device_wait(device);
            t[k] = (now() - start) / r->times;
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
    *c = (struct gemm_call){ .rows = n, .columns = n, .depth = n, .dtype = dtype, .d_dtype = dtype, .a_pitch = n, .b_pitch = n,
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
    *c = (struct conv_call){ .kind = kind, .dtype = SD_BF16, .batch = batch, .height = side, .width = side, .in = channels,
                             .out_height = side, .out_width = side, .out = channels, .kernel_height = 3, .kernel_width = 3,
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
                                  .scale = 1 / sqrt((double)d), .q_pitch = width, .k_pitch = width, .v_pitch = width, .o_pitch = width };
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
    add_rate("kernel of one number, recorded, one after the other", "own", "us", 0, run_small, room(256), tiny ? 10 : 1000);
    conv_rates("3x3 convolution, 2x320 64^2", CONV_FORWARD, 320, 64);
    conv_rates("3x3 convolution, 2x640 32^2", CONV_FORWARD, 640, 32);
    conv_rates("3x3 convolution, 2x1280 16^2", CONV_FORWARD, 1280, 16);
    conv_rates("its data gradient, 2x320 64^2", CONV_DATA, 320, 64);
    conv_rates("its data gradient, 2x640 32^2", CONV_DATA, 640, 32);
    conv_rates("its data gradient, 2x1280 16^2", CONV_DATA, 1280, 16);
    attention_rates("attention, batch 2, 8 heads of 40, 4096 x 4096", "forward and backward, 4096 x 4096", 8, 4096, 4096, 40);
    attention_rates("attention, batch 2, 8 heads of 80, 1024 x 1024", "forward and backward, 1024 x 1024", 8, 1024, 1024, 80);
    attention_rates("attention, batch 2, 8 heads of 40, 4096 x 77", "forward and backward, 4096 x 77", 8, 4096, 77, 40);
    attention_rates("attention of the VAE, 1 head of 512, 4096 x 4096", NULL, 1, 4096, 4096, 512);
}

/* -- our rows ------------------------------------------------------------------------------------------------------ */

enum kind { TEXTS, GUIDED, PICTURE, LORA, TOKEN };
static struct row {
    const char *name;
    enum kind kind;
    int64_t size;               /* training: batch; else: pictures' sides over that of the latents * 8 */
    bool tf32, wanted;
    double flops, step;         /* step: seconds, about */
    struct sd_draw *draw;
    struct net *net;
    struct sd_trainer *trainer;
    struct sd_prompt prompt;
    struct sd_draw_text texts[2];
    int64_t done;
} rows[] = {
    { "text", TEXTS, 1, false, true, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "guided", GUIDED, 1, false, true, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "decode512", PICTURE, 1, false, true, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "decode1024", PICTURE, 2, false, true, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "lora1", LORA, 1, false, true, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "lora8", LORA, 8, false, true, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "ti", TOKEN, 1, false, true, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "lora1-tf32", LORA, 1, true, true, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
};
enum { ROWS = sizeof rows / sizeof *rows, SAMPLES = 16, CALLS = 50 };

static struct sd_model *model;

static struct sd_compute
compute_of(const struct row *r)
{
    return (struct sd_compute){ device, r->tf32 ? SD_F32 : SD_BF16, SD_F32, r->tf32 };
}

static int64_t
side(void)
{
    return tiny ? 8 : 64;
}

/* Of letters alone: bytes, begin and end, and the new tokens behind the text encoder's own. */
static struct sd_tokenizer *
tokenizer(void)
{
    char path[] = "/tmp/sd-bench-merges-XXXXXX";
    int fd = mkstemp(path);
    struct sd_tokenizer *t;

    if (fd < 0 || dprintf(fd, "#version: 0.2\na b\n") < 0)
        sd_die(path, "%s", strerror(errno));
    close(fd);
    t = sd_tokenizer_load(scope, path);
    unlink(path);
    must(t, "tokenizer");
    if (t->length > model->text_config.vocab_size)
        sd_die("tokenizer", "%d letters, the text encoder knows %d", t->length, model->text_config.vocab_size);
    t->length = model->text_config.vocab_size;
    t->model_max_length = model->text_config.max_position_embeddings;
    return t;
}

static void
open_draw(struct row *r)
{
    struct sd_tokenizer *t = tokenizer();
    int64_t pixels = side() * r->size * sd_vae_factor(&model->vae_config);
    struct sd_draw_options o = { .width = pixels, .height = pixels, .guidance_scale = 7.5, .compute = compute_of(r) };
    struct sd_draw_model m = { model, t, NULL, NULL };

    must(o.sampler = sd_sampler_new(scope, model->scheduler, "ddim", tiny ? 4 : steps < CALLS ? steps : CALLS, NULL), "sampler");
    must(r->draw = sd_draw_new(scope, &m, &o), r->name);
    if (sd_prompt_encode(t, scope, SD_PROMPT_PLAIN, "a photo of a cat", &r->prompt) < 0)
        sd_die(r->name, "%s", sd_reason());
    if (r->kind == TEXTS)
        sd_prompt_pad(t, scope, &r->prompt, 2);
    if (r->kind == GUIDED)
        for (int i = 0; i < 2; i++) {
            float *states = sd_alloc_array(scope, (size_t)(t->model_max_length * r->draw->state_width), sizeof *states);

            sd_random_normal(states, (size_t)(t->model_max_length * r->draw->state_width), 2, SD_FOR_INIT, (uint64_t)i, 0);
            r->texts[i] = (struct sd_draw_text){ 1, states };
        }
    must(r->net = draw_ready(r->draw, r->kind == TEXTS ? TEXT : r->kind == GUIDED ? UNET : DECODE, r->kind == PICTURE ? 1 : 2, 1),
         r->name);
    r->flops = sd_plan_report(r->net->plan).flops;
}

static struct sd_dataset *
dataset(void)
{
    struct sd_dataset *d = sd_alloc(scope, sizeof *d);
    size_t numel = (size_t)(side() * side() * 4);

    d->scope = scope;
    d->count = SAMPLES;
    d->sample = sd_alloc_array(scope, SAMPLES, sizeof *d->sample);
    d->buckets = 1;
    d->bucket = sd_alloc(scope, sizeof *d->bucket);
    d->bucket->height = d->bucket->width = side();
    d->bucket->count = SAMPLES;
    d->bucket->sample = sd_alloc_array(scope, SAMPLES, sizeof *d->bucket->sample);
    d->channels = 4;
    for (uint32_t i = 0; i < SAMPLES; i++) {
        float *mean = sd_alloc_array(scope, numel, sizeof *mean), *logvar = sd_alloc_array(scope, numel, sizeof *logvar);

        sd_random_normal(mean, numel, 3, SD_FOR_INIT, i, 0);
        for (size_t k = 0; k < numel; k++) {
            mean[k] *= 5;
            logvar[k] = -8;
        }
        d->sample[i] = (struct sd_sample){ .id = sd_sprintf(scope, "%u", i), .source = "a sample", .caption = "a photo of <new>",
                                           .hash = i, .height = side(), .width = side(), .mean = mean, .logvar = logvar };
        d->bucket->sample[i] = i;
    }
    return d;
}

static void
open_trainer(struct row *r)
{
    struct sd_trainables *t = sd_trainables_new(scope);
    struct sd_targets targets = { .patterns = "to_q,to_k,to_v,to_out.0", .rank = 16, .seed = 1 };
    struct sd_adapters *adapters = sd_adapters_new(scope);
    struct sd_tokens *tokens = NULL;
    const char *new_token[] = { "<new>" };
    struct sd_list list = { .count = 1, .item = new_token };
    struct sd_trainer_model m = { .unet = sd_model_unet(model), .text = sd_model_text_encoder(model), .tokenizer = tokenizer(),
                                  .scaling_factor = model->vae_config.scaling_factor, .compute = compute_of(r) };
    struct sd_trainer_options o = { .seed = 1, .batch_size = (uint32_t)r->size, .accumulation = 1, .updates = 1000000,
                                    .dropped_caption = "", .max_grad_norm = 1, .learning_rate = { 1e-4 }, .until = { 1 },
                                    .lr_scheduler = "constant",
                                    .optimizer = { .kind = SD_ADAMW, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .weight_decay = 0.01 } };
    bool with_text = false;

    must(m.unet, r->name);
    must(m.text, r->name);
    must(m.scheduler = sd_noise_scheduler_new(scope, model->scheduler, SD_DDPM), r->name);
    if (r->kind == LORA) {
        if (sd_targets_add(&targets, m.unet->weights, m.text->weights, t, adapters, &with_text) < 0)
            sd_die(r->name, "%s", sd_reason());
        m.adapters = adapters;
    } else {
        must(tokens = sd_tokens_add(scope, &list, 1, m.tokenizer, model, t), r->name);
        m.rows = tokens->rows;
        m.text_trains = true;
    }
    sd_trainables_allocate(t);
    if (tokens ? sd_tokens_start(tokens, model, m.tokenizer, NULL, 1) : sd_targets_start(&targets, adapters, NULL))
        sd_die(r->name, "%s", sd_reason());
    must(r->trainer = sd_trainer_new(scope, &m, &o, t, dataset(), NULL), r->name);
}

static void
open_row(struct row *r)
{
    if (r->kind == LORA || r->kind == TOKEN)
        open_trainer(r);
    else
        open_draw(r);
}

static void
update(struct row *r)
{
    struct sd_update u;

    if (sd_trainer_update(r->trainer, r->done++, &u) < 0)
        sd_die(r->name, "%s", sd_reason());
    if (r->done == 1 && !(u.grad_norm > 0))
        sd_die(r->name, "the gradient is zero");
}

static void
draw_picture(struct row *r)
{
    struct sd_scope *s = sd_scope_open();
    size_t numel = (size_t)(r->draw->h * r->draw->w * 4);
    float *start = sd_alloc_array(s, numel, sizeof *start), *latents = sd_alloc_array(s, numel, sizeof *latents);
    struct sd_draw_picture picture = { .prompt = &r->texts[0], .negative = &r->texts[1], .start = start, .latents = latents };

    sd_random_normal(start, numel, 4, SD_FOR_NOISE, 0, 0);
    if (sd_draw_pictures(r->draw, &picture, 1, NULL, NULL) < 0)
        sd_die(r->name, "%s", sd_reason());
    sd_scope_close(s);
}

static void
decode(struct row *r)
{
    struct sd_scope *s = sd_scope_open();
    float *latents = sd_alloc_array(s, (size_t)(r->draw->h * r->draw->w * 4), sizeof *latents);

    sd_random_normal(latents, (size_t)(r->draw->h * r->draw->w * 4), 5, SD_FOR_NOISE, 0, 0);
    must(sd_draw_decode(r->draw, s, latents), r->name);
    sd_scope_close(s);
}

static void
encode(struct row *r)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_draw_text text;

    if (sd_draw_text(r->draw, s, &r->prompt, &text) < 0)
        sd_die(r->name, "%s", sd_reason());
    sd_scope_close(s);
}

/* Seconds of one step out of `count`, as a program of ours takes them. */
static double
run_row(struct row *r, int count)
{
    double start = now();
    int done = 0;

    vendor_tf32 = r->tf32;
    while (done < count) {
        switch (r->kind) {
        case TEXTS: encode(r); done++; break;
        case GUIDED: draw_picture(r); done += r->draw->o.sampler->calls; break;
        case PICTURE: decode(r); done++; break;
        default: update(r); done++;
        }
    }
    sd_device_wait(device);
    vendor_tf32 = false;
    return (now() - start) / done;
}

/* The same of the plan alone, fed as ever, nothing read back. */
static double
run_kernels(struct row *r, int count)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_plan *plan = r->net ? r->net->plan : r->trainer->steps->plan;
    float *in[3] = { NULL };
    double start;

    for (int i = 0; i < 3 && r->net && r->kind != TEXTS; i++)
        if (r->net->in[i]) {
            in[i] = sd_alloc_array(s, r->net->in[i]->numel, sizeof *in[i]);
            sd_random_normal(in[i], r->net->in[i]->numel, 6, SD_FOR_NOISE, (uint64_t)i, 0);
        }
    if (in[1])
        in[1][0] = in[1][1] = 500;              /* timesteps */
    sd_device_wait(device);
    start = now();
    for (int k = 0; k < count; k++) {
        if (r->kind == TEXTS)
            sd_feed(plan, r->net->in[0], r->prompt.input_ids);
        for (int i = 0; i < 3; i++)
            if (in[i])
                sd_feed(plan, r->net->in[i], in[i]);
        sd_run(plan);
    }
    sd_device_wait(device);
    start = (now() - start) / count;
    if (r->trainer)
        sd_mirror_clear(r->trainer->mirror);    /* the plan adds to the gradient */
    sd_scope_close(s);
    return start;
}

/* How many steps a round has: as many as asked for, in a few seconds. */
static int
of_round(const struct row *r)
{
    int most = (int)(4 / r->step);

    return tiny ? 1 : most < 3 ? 3 : most < steps ? most : steps;
}

/* Twenty steps, or fewer where they take long: what is tuned, loaded and recorded is so afterwards. */
static void
warm_up(struct row *r)
{
    run_row(r, tiny ? 1 : 3);
    r->step = run_row(r, 1);
    run_row(r, tiny ? 1 : r->step * 17 < 4 ? 17 : 1);
    run_kernels(r, 2);          /* its plan has a recording of its own */
    if (r->trainer)
        r->flops = sd_plan_report(r->trainer->steps->plan).flops;
    printf("flops\t%s\t%.6g\n", r->name, r->flops);
    fflush(stdout);
}

static void
measure_row(struct row *r)
{
    printf("time\t%s\tours\t%.6g\n", r->name, 1e3 * run_row(r, of_round(r)));
    printf("time\t%s\tkernels\t%.6g\n", r->name, 1e3 * run_kernels(r, of_round(r)));
    fflush(stdout);
}

/* -- peers --------------------------------------------------------------------------------------------------------- */

enum { MAX_PEERS = 64, LINE = 512 };
static struct peer {
    char name[32];
    struct row *row;
    pid_t pid;                  /* 0: gone */
    int to, from;
    bool ready;
    double step;
    char line[LINE];
    size_t filled;
} peers[MAX_PEERS];
static int peer_count;

static void
start_peer(const char *command, const char *name, size_t length, struct row *row)
{
    struct peer *p = &peers[peer_count];
    char *whole = sd_sprintf(scope, "exec %s --peer %.*s --row %s", command, (int)length, name, row->name);
    int to[2], from[2];

    if (peer_count == MAX_PEERS)
        sd_usage("--peers", "at most %d", MAX_PEERS);
    if (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0 || (p->pid = fork()) < 0)
        sd_die("peers", "%s", strerror(errno));
    if (!p->pid) {
        setpgid(0, 0);          /* with what it starts itself */
        if (dup2(to[0], 0) < 0 || dup2(from[1], 1) < 0)
            _exit(127);
        execl("/bin/sh", "sh", "-c", whole, (char *)NULL);
        _exit(127);
    }
    setpgid(p->pid, p->pid);
    close(to[0]);
    close(from[1]);
    p->to = to[1];
    p->from = from[0];
    snprintf(p->name, sizeof p->name, "%.*s", (int)length, name);
    p->row = row;
    peer_count++;
}

static void
end_peer(struct peer *p, const char *why)
{
    int status;

    if (!p->pid)
        return;
    if (why)
        note("%s, %s: left out: %s", p->row->name, p->name, why);
    kill(-p->pid, SIGKILL);
    waitpid(p->pid, &status, 0);
    close(p->to);
    close(p->from);
    p->pid = 0;
}

/* The next line of it before `until`, without its end; NULL: none came, and it is ended. */
static char *
line_of(struct peer *p, double until, const char *late)
{
    static char line[LINE];

    for (;;) {
        char *end = memchr(p->line, '\n', p->filled);
        struct pollfd f = { .fd = p->from, .events = POLLIN };
        double left = until - now();
        ssize_t n;

        if (end) {
            size_t length = (size_t)(end - p->line);

            memcpy(line, p->line, length);
            line[length] = 0;
            p->filled -= length + 1;
            memmove(p->line, end + 1, p->filled);
            return line;
        }
        if (p->filled == LINE)
            p->filled = 0;      /* nothing of ours is so long */
        if (poll(&f, 1, left > 0 ? (int)(left * 1e3) + 1 : 0) == 0) {
            end_peer(p, late);
            return NULL;
        }
        if ((n = read(p->from, p->line + p->filled, LINE - p->filled)) <= 0) {
            end_peer(p, "it ended");
            return NULL;
        }
        p->filled += (size_t)n;
    }
}

/* Takes its lines until one begins with `word`: what follows, NULL when it is gone. */
static const char *
wait_for(struct peer *p, const char *word, double until, const char *late)
{
    char *line;

    while ((line = line_of(p, until, late))) {
        size_t n = strlen(word);

        if (strncmp(line, word, n) == 0 && line[n] == ' ')
            return line + n + 1;
        if (strncmp(line, "memory ", 7) == 0)
            printf("memory\t%s\t%s\t%s\n", p->row->name, p->name, line + 7);
        else if (strncmp(line, "about ", 6) == 0)
            printf("about\t%s\t%s\n", p->name, line + 6);
        else if (strncmp(line, "skip ", 5) == 0) {
            end_peer(p, line + 5);
            return NULL;
        } else
            fprintf(stderr, "%s %s: %s\n", p->name, p->row->name, line);
    }
    return NULL;
}

static void
start_peers(const char *command, const char *names)
{
    for (const char *name = names; *name; name += strcspn(name, ",") + (name[strcspn(name, ",")] == ',')) {
        static const char *const order[] = { "lora1", "guided", "lora8", "decode1024", "ti" };

        for (size_t k = 0; k < sizeof order / sizeof *order; k++)
            for (int i = 0; i < ROWS; i++)
                if (rows[i].wanted && strcmp(rows[i].name, order[k]) == 0)
                    start_peer(command, name, strcspn(name, ","), &rows[i]);
    }
}

/* Until all are ready: at most two thirds of the time that is left, for the rounds need some. */
static void
wait_for_peers(void)
{
    double until = now() + (begun + seconds - now()) * 2 / 3;

    for (int i = 0; i < peer_count; i++) {
        const char *text = wait_for(&peers[i], "ready", until, "not ready in time (compiling, or loading)");

        peers[i].ready = text != NULL;
        peers[i].step = text ? strtod(text, NULL) : 0;
        if (text)
            fprintf(stderr, "cuda: %s %s is ready after %.0f s, %.2f ms a step\n", peers[i].name, peers[i].row->name, now() - begun,
                    peers[i].step * 1e3);
    }
}

static void
measure_peer(struct peer *p)
{
    int most = p->step > 0 ? (int)(4 / p->step) : steps, count = tiny ? 1 : most < 3 ? 3 : most < steps ? most : steps;
    const char *text;

    if (!p->pid)
        return;
    if (dprintf(p->to, "run %d\n", count) < 0) {
        end_peer(p, "it ended");
        return;
    }
    if ((text = wait_for(p, "time", now() + 60, "no answer in a minute")))
        printf("time\t%s\t%s\t%s\n", p->row->name, p->name, text);
    fflush(stdout);
}

/* -- the whole ------------------------------------------------------------------------------------------------------ */

static void
measure(bool rates_too)
{
    for (int k = 0; k < rounds; k++) {
        double start = now();

        if (rates_too)
            measure_rates();
        for (int i = 0; i < ROWS; i++) {
            if (rows[i].wanted)
                measure_row(&rows[i]);
            for (int p = 0; p < peer_count; p++)
                if (peers[p].row == &rows[i])
                    measure_peer(&peers[p]);
        }
        fprintf(stderr, "cuda: round %d of %d took %.0f s, %.0f s in all\n", k + 1, rounds, now() - start, now() - begun);
        if (k + 1 < rounds && now() + (now() - start) > begun + seconds) {
            note("%d of %d rounds: no time was left for more", k + 1, rounds);
            break;
        }
    }
}

/* A row as a program of its own has it, from nothing to the end of its first step; then what it takes. */
static void
alone(const char *name, size_t free_before)
{
    struct row *r = NULL;

    for (int i = 0; i < ROWS; i++)
        if (strcmp(rows[i].name, name) == 0)
            r = &rows[i];
    if (!r)
        sd_usage("--alone", "there is no row %s", name);
    open_row(r);
    vendor_tf32 = r->tf32;
    if (r->trainer)
        update(r);
    else if (r->kind == GUIDED) {
        run_kernels(r, 1);
    } else
        run_row(r, 1);
    printf("start\t%s\tours\t%.3f\n", r->name, now() - begun);
    run_row(r, 2);
    printf("memory\t%s\tours\t%.3f\n", r->name, (double)sd_device_allocated(device) * 1e-9);
    printf("memory\t%s\tours and libraries\t%.3f\n", r->name, ((double)free_before - (double)sd_device_free_bytes(device)) * 1e-9);
}

static void
choose(int count, char **names)
{
    for (int i = 0; i < ROWS && count; i++)
        rows[i].wanted = false;
    for (int k = 0; k < count; k++) {
        bool found = false;

        for (int i = 0; i < ROWS; i++)
            if (strcmp(rows[i].name, names[k]) == 0)
                rows[i].wanted = found = true;
        if (!found)
            sd_usage(NULL, "there is no row %s", names[k]);
    }
}

int
main(int argc, char **argv)
{
    const char *command = NULL, *names = NULL, *only = NULL;
    bool rates_only = false;
    size_t free_before;
    int i = 1;

    sd_program = "cuda";
    begun = now();
    signal(SIGPIPE, SIG_IGN);
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++)
        if (strcmp(argv[i], "--tiny") == 0)
            tiny = true;
        else if (strcmp(argv[i], "--rates") == 0)
            rates_only = true;
        else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc)
            rounds = atoi(argv[++i]);
        else if (strcmp(argv[i], "--steps") == 0 && i + 1 < argc)
            steps = atoi(argv[++i]);
        else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            seconds = strtod(argv[++i], NULL);
        else if (strcmp(argv[i], "--alone") == 0 && i + 1 < argc)
            only = argv[++i];
        else if (strcmp(argv[i], "--peers") == 0 && i + 2 < argc) {
            command = argv[++i];
            names = argv[++i];
        } else
            sd_usage(argv[i], "is no option, or lacks a value; see tests/bench/cuda.c");
    if (rounds < 1 || steps < 1 || (!rates_only && i == argc))
        sd_usage(NULL, "usage: cuda [--tiny] [--rounds N] [--steps N] [--seconds N] [--peers COMMAND NAMES] MODEL [ROW ...]");
    scope = sd_scope_open();
    if (sd_device_open(&device, "cuda") < 0)
        sd_die(NULL, "%s", sd_reason());
    free_before = sd_device_free_bytes(device);
    if (!rates_only) {
        must(model = sd_model_open(scope, argv[i], NULL), argv[i]);
        choose(argc - i - 1, argv + i + 1);
    }
    if (only)
        alone(only, free_before);
    else {
        printf("about\tmachine\t%s\nabout\tlibraries\t%s\n", sd_device_name(device), sd_device_engine(device));
        printf("about\tsteps\t%d rounds of at most %d steps\n", rounds, steps);
        if (tiny)
            note("tiny shapes, which are not those that rows are named after");
        make_rates();
        for (int k = 0; k < ROWS; k++) {
            rows[k].wanted &= !rates_only;
            if (rows[k].wanted) {
                open_row(&rows[k]);
                warm_up(&rows[k]);
                fprintf(stderr, "cuda: %s is ready after %.0f s, %.2f ms a step\n", rows[k].name, now() - begun, rows[k].step * 1e3);
            }
        }
        if (command) {
            start_peers(command, names);
            wait_for_peers();
        }
        measure(true);
        for (int k = 0; k < peer_count; k++)
            end_peer(&peers[k], NULL);
    }
    for (int k = 0; k < rate_count; k++)
        sd_recording_free(rates[k].recording);
    for (int k = 0; k < held_count; k++)
        sd_device_free(device, held[k]);
    sd_scope_close(scope);
    sd_device_close(device);
    return 0;
}
