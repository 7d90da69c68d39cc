/* cuda_rows.h - our rows: a text, a guided step, a picture decoded, steps of training, each as a program of ours does
 * it. */
#ifndef SD_BENCH_CUDA_ROWS_H
#define SD_BENCH_CUDA_ROWS_H

#include "cuda.h"
#include "random.h"
#include "train/targets.h"
#include "train/tokens.h"
#include "train/trainer_private.h"

#include <errno.h>
#include <unistd.h>

enum kind { TEXTS, GUIDED, PICTURE, LORA, TOKEN };
static struct row {
    const char *name;
    enum kind kind;
    int64_t size;               /* training: batch; else: pictures' sides over that of the latents * 8 */
    bool tf32, wanted;
    int wave;                   /* 0: measured with the first peers, cuda_peers.h */
    double flops, step;         /* step: seconds, about */
    struct sd_draw *draw;
    struct net *net;
    struct sd_trainer *trainer;
    struct sd_prompt prompt;
    struct sd_draw_text texts[2];
    int64_t done;
} rows[] = {
    { "text", TEXTS, 1, false, true, 0, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "guided", GUIDED, 1, false, true, 0, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "decode512", PICTURE, 1, false, true, 0, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "decode1024", PICTURE, 2, false, true, 0, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "lora1", LORA, 1, false, true, 0, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "lora8", LORA, 8, false, true, 0, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "ti", TOKEN, 1, false, true, 0, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
    { "lora1-tf32", LORA, 1, true, true, 0, 0, 0, NULL, NULL, NULL, { 0 }, { { 0 } }, 0 },
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

    must(o.sampler = sd_sampler_new(scope, model->scheduler, "ddim", tiny ? 4 : steps < CALLS ? steps : CALLS, NULL),
         "sampler");
    must(r->draw = sd_draw_new(scope, &m, &o), r->name);
    if (sd_prompt_encode(t, scope, SD_PROMPT_PLAIN, "a photo of a cat", &r->prompt) < 0)
        sd_die(r->name, "%s", sd_reason());
    if (r->kind == TEXTS)
        sd_prompt_pad(t, scope, &r->prompt, 2);
    if (r->kind == GUIDED)
        for (int i = 0; i < 2; i++) {
            float *states = sd_alloc_array(scope, (size_t)(t->model_max_length * r->draw->state_width), sizeof *states);

            sd_random_normal(states, (size_t)(t->model_max_length * r->draw->state_width), 2, SD_FOR_INIT, (uint64_t)i,
                             0);
            r->texts[i] = (struct sd_draw_text){ 1, states };
        }
    must(r->net = draw_ready(r->draw, r->kind == TEXTS ? TEXT : r->kind == GUIDED ? UNET : DECODE, r->kind == PICTURE
                             ? 1 : 2, 1),
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
        float *mean = sd_alloc_array(scope, numel, sizeof *mean), *logvar = sd_alloc_array(scope, numel,
                                                                                           sizeof *logvar);

        sd_random_normal(mean, numel, 3, SD_FOR_INIT, i, 0);
        for (size_t k = 0; k < numel; k++) {
            mean[k] *= 5;
            logvar[k] = -8;
        }
        d->sample[i] = (struct sd_sample){ .id = sd_sprintf(scope, "%u", i), .source = "a sample",
                                          .caption = "a photo of <new>",
                                           .hash = i, .height = side(), .width = side(), .mean = mean,
                                               .logvar = logvar };
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
    struct sd_trainer_model m = { .unet = sd_model_unet(model), .text = sd_model_text_encoder(model),
                                 .tokenizer = tokenizer(),
                                  .scaling_factor = model->vae_config.scaling_factor, .compute = compute_of(r) };
    struct sd_trainer_options o = { .seed = 1, .batch_size = (uint32_t)r->size, .accumulation = 1, .updates = 1000000,
                                    .dropped_caption = "", .max_grad_norm = 1, .learning_rate = { 1e-4 },
                                        .until = { 1 },
                                    .lr_scheduler = "constant",
                                    .optimizer = { .kind = SD_ADAMW, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8,
                                                  .weight_decay = 0.01 } };
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

/* As sd-train-lora asks for them between two saves: some ahead. */
static void
updates(struct row *r, int count)
{
    int64_t end = r->done + count, asked = r->done, ahead = sd_trainer_ahead(r->trainer);
    struct sd_update u;

    while (r->done < end) {
        while (asked < end && asked - r->done < ahead)
            if (sd_trainer_ask(r->trainer, asked++) < 0)
                sd_die(r->name, "%s", sd_reason());
        if (sd_trainer_answer(r->trainer, &u) < 0)
            sd_die(r->name, "%s", sd_reason());
        if (r->done++ == 0 && !(u.grad_norm > 0))
            sd_die(r->name, "the gradient is zero");
    }
}

static void
draw_picture(struct row *r)
{
    struct sd_scope *s = sd_scope_open();
    size_t numel = (size_t)(r->draw->h * r->draw->w * 4);
    float *start = sd_alloc_array(s, numel, sizeof *start), *latents = sd_alloc_array(s, numel, sizeof *latents);
    struct sd_draw_picture picture = { .prompt = &r->texts[0], .negative = &r->texts[1], .start = start,
                                      .latents = latents };

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
    double start = sd_clock();
    int done = 0;

    vendor_tf32 = r->tf32;
    while (done < count) {
        switch (r->kind) {
        case TEXTS: encode(r); done++; break;
        case GUIDED: draw_picture(r); done += r->draw->o.sampler->calls; break;
        case PICTURE: decode(r); done++; break;
        default: updates(r, count); done = count;
        }
    }
    sd_device_wait(device);
    vendor_tf32 = false;
    return (sd_clock() - start) / done;
}

/* The same of the plan alone, fed as ever, nothing read back.  Keys and values of the text are there from the start. */
static double
run_kernels(struct row *r, int count)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_plan *plan = r->net ? r->net->plan : r->trainer->steps->plan;
    float *in[2] = { NULL };
    double start;

    if (r->kind == GUIDED)
        sd_feed(plan, r->net->in[2], sd_alloc_array(s, r->net->in[2]->numel, sizeof(float)));
    for (int i = 0; i < 2 && r->net && r->kind != TEXTS; i++)
        if (r->net->in[i]) {
            in[i] = sd_alloc_array(s, r->net->in[i]->numel, sizeof *in[i]);
            sd_random_normal(in[i], r->net->in[i]->numel, 6, SD_FOR_NOISE, (uint64_t)i, 0);
        }
    if (in[1])
        in[1][0] = in[1][1] = 500;              /* timesteps */
    vendor_tf32 = r->tf32;
    sd_device_wait(device);
    start = sd_clock();
    for (int k = 0; k < count; k++) {
        if (r->kind == TEXTS)
            sd_feed(plan, r->net->in[0], r->prompt.input_ids);
        for (int i = 0; i < 2; i++)
            if (in[i])
                sd_feed(plan, r->net->in[i], in[i]);
        sd_run(plan);
    }
    sd_device_wait(device);
    start = (sd_clock() - start) / count;
    vendor_tf32 = false;
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

#endif
