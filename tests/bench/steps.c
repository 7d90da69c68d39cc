/* steps - what a user waits for, on a full-size model, beside this machine's own rate in the same run:
 * guided step, VAE decode and encode, text, LoRA step, TI step, in f32 and, where the machine has it, with products of
 * bf16.
 * Usage: steps MODEL [f32|bf16] [WORD ...]; words choose rows.
 *
 * floor   operations of the row (matrix products, as counted by the plan; equal to flops.py) over the base rate
 * base    best median of sgemm 4096^3 and of direct 3x3 convolutions 2x320 64^2 and 2x1280 16^2 (C loops' formula,
 * oneDNN's sgemm) start   from the model's folder to the end of the first run, less a later run: opening, accounts, plan,
 * packed weights, memory touched for the first time
 * packed  weights in forms of their own, made so far; anonymous: memory of the process that no file backs, when the
 * row ends
 * Rows are measured in turn with the base rate; medians.  With CPU=1 in the environment, process time per thread
 * instead of wall time, for machines that others use too (then run with OMP_WAIT_POLICY=passive). */
#include "clock.h"
#include "model/model.h"
#include "plan.h"
#include "train/step.h"
#include "train/targets.h"
#include "op.h"

#include <dnnl.h>
#include <math.h>
#include <omp.h>
#include <string.h>
#include <sys/resource.h>

enum { RUNS = 5, MAX_TIMES = 64 };

static bool cpu_time;
static enum sd_dtype products;

static double
now(void)
{
    return cpu_time ? sd_clock_of(CLOCK_PROCESS_CPUTIME_ID) / omp_get_max_threads() : sd_clock();
}

static int
by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double
median(double *t, int n)
{
    qsort(t, (size_t)n, sizeof *t, by_value);
    return n % 2 ? t[n / 2] : (t[n / 2 - 1] + t[n / 2]) / 2;
}

/* -- base rate ----------------------------------------------------------------------------------------------------- */

static double base_times[MAX_TIMES];
static int base_count;

static void
measure_base(void)
{
    enum { N = 4096 };
    static float *a, *b, *c;
    double start;

    if (!a) {
        a = sd_alloc_array(NULL, (size_t)N * N, sizeof *a);
        b = sd_alloc_array(NULL, (size_t)N * N, sizeof *b);
        c = sd_alloc_array(NULL, (size_t)N * N, sizeof *c);
        for (size_t i = 0; i < (size_t)N * N; i++)
            a[i] = b[i] = (float)(i * 2654435761u % 1000) / 1000 - 0.5f;
        dnnl_sgemm('N', 'N', N, N, N, 1, a, N, b, N, 0, c, N);
    }
    start = now();
    dnnl_sgemm('N', 'N', N, N, N, 1, a, N, b, N, 0, c, N);
    if (base_count < MAX_TIMES)
        base_times[base_count++] = 2.0 * N * N * N / (now() - start);
}

/* oneDNN's own direct convolution in the layout it likes best: forward, bias left out */
static double
convolution_rate(int64_t batch, int64_t channels, int64_t side)
{
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_memory_desc_t md[3];
    dnnl_dims_t x = { batch, channels, side, side }, w = { channels, channels, 3, 3 }, one = { 1, 1 }, zero = { 0, 0 };
    dnnl_convolution_desc_t cd;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t args[3] = { { DNNL_ARG_SRC, NULL }, { DNNL_ARG_WEIGHTS, NULL }, { DNNL_ARG_DST, NULL } };
    const dnnl_query_t queries[3] = { dnnl_query_src_md, dnnl_query_weights_md, dnnl_query_dst_md };
    double t[RUNS];

    if (dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success || dnnl_stream_create(&stream, engine,
                                                                                       0) != dnnl_success)
        return 0;
    dnnl_memory_desc_init_by_tag(&md[0], 4, x, dnnl_f32, dnnl_format_tag_any);
    dnnl_memory_desc_init_by_tag(&md[1], 4, w, dnnl_f32, dnnl_format_tag_any);
    dnnl_memory_desc_init_by_tag(&md[2], 4, x, dnnl_f32, dnnl_format_tag_any);
    if (dnnl_dilated_convolution_forward_desc_init(&cd, dnnl_forward_inference, dnnl_convolution_direct, &md[0], &md[1],
                                                   NULL, &md[2],
                                                   one, zero, one, one) != dnnl_success
        || dnnl_primitive_desc_create(&pd, &cd, NULL, engine, NULL) != dnnl_success
        || dnnl_primitive_create(&primitive, pd) != dnnl_success)
        return 0;
    for (int i = 0; i < 3; i++) {
        float *data = NULL;
        const dnnl_memory_desc_t *d = dnnl_primitive_desc_query_md(pd, queries[i], 0);
        size_t bytes = dnnl_memory_desc_get_size(d);

        data = sd_alloc(NULL, bytes);
        for (size_t k = 0; k < bytes / sizeof *data; k++)
            data[k] = (float)(k * 2654435761u % 1000) / 1000 - 0.5f;
        dnnl_memory_create(&args[i].memory, d, engine, data);
    }
    for (int r = -1; r < RUNS; r++) {
        double start = now();

        dnnl_primitive_execute(primitive, stream, 3, args);
        dnnl_stream_wait(stream);
        if (r >= 0)
            t[r] = now() - start;
    }
    return 2.0 * 9 * (double)(batch * channels * channels * side * side) / median(t, RUNS);
}

/* -- rows ---------------------------------------------------------------------------------------------------------- */

struct row {
    const char *name;
    enum sd_dtype products;
    double flops, seconds;
    double begun, first;                /* start of everything; end of the first run */
    double anonymous, packed;           /* bytes */
    struct sd_plan_report report;
};

/* A line of /proc/self/status, bytes */
static double
status(const char *name)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    double bytes = 0;

    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, name, strlen(name)) == 0)
            bytes = strtod(line + strlen(name), NULL) * 1024;
    if (f)
        fclose(f);
    return bytes;
}

static struct sd_graph *
graph(void)
{
    struct sd_graph *g = sd_graph_new();

    sd_graph_products(g, products);
    return g;
}

static void
fill_inputs(struct sd_plan *plan, struct sd_tensor *const *in, int count)
{
    for (int i = 0; i < count; i++) {
        if (!in[i])
            continue;
        if (in[i]->dtype == SD_I32) {
            int32_t *ids = sd_data(plan, in[i]);

            for (size_t k = 0; k < in[i]->numel; k++)
                ids[k] = (int32_t)(k * 97 % 40000);
        } else {
            float *x = sd_data(plan, in[i]);

            for (size_t k = 0; k < in[i]->numel; k++)
                x[k] = in[i]->ndim == 1 ? 500 : (float)(k * 2654435761u % 2000) / 1000 - 1;
        }
    }
}

static void
time_plan(struct row *row, struct sd_plan *plan, struct sd_tensor *const *in, int count)
{
    double t[RUNS];

    row->report = sd_plan_report(plan);
    row->flops = row->report.flops;
    sd_plan_bind(plan, NULL);
    fill_inputs(plan, in, count);
    sd_run(plan);           /* packs weights */
    row->first = now();
    row->anonymous = status("RssAnon:");
    row->packed = (double)sd_param_bytes_made();
    for (int r = 0; r < RUNS; r++) {
        double start;

        measure_base();
        start = now();
        sd_run(plan);
        t[r] = now() - start;
    }
    row->seconds = median(t, RUNS);
}

static void
must(const void *p, const char *what)
{
    if (!p)
        sd_die(what, "%s", sd_reason());
}

static void
inference(struct row *row, struct sd_graph *g, struct sd_tensor *out, struct sd_tensor *const *in, int count)
{
    struct sd_plan *plan;

    sd_keep(out);
    must(plan = sd_plan_inference(g, 0), row->name);
    time_plan(row, plan, in, count);
    sd_plan_free(plan);
    sd_graph_free(g);
}

static void
guided(struct row *row, struct sd_model *m)
{
    struct sd_unet *unet = sd_model_unet(m);
    struct sd_graph *g = graph();
    struct sd_tensor *in[3] = { sd_input(g, "sample", SD_F32, 4, (int64_t[]){ 2, 64, 64, 4 }),
                                sd_input(g, "timesteps", SD_F32, 1, (int64_t[]){ 2 }),
                                sd_input(g, "states", SD_F32, 3,
                                         (int64_t[]){ 2, 77, m->unet_config.cross_attention_dim }) };

    must(unet, row->name);
    inference(row, g, sd_unet(g, unet, NULL, in[0], in[1], in[2]), in, 3);
}

static void
decode(struct row *row, struct sd_model *m)
{
    struct sd_vae *vae = sd_model_vae(m);
    struct sd_graph *g = graph();
    struct sd_tensor *in[1] = { sd_input(g, "latents", SD_F32, 4, (int64_t[]){ 1, 64, 64, 4 }) };

    must(vae, row->name);
    inference(row, g, sd_vae_decode(g, vae, in[0]), in, 1);
}

static void
encode(struct row *row, struct sd_model *m)
{
    struct sd_vae *vae = sd_model_vae(m);
    struct sd_graph *g = graph();
    struct sd_tensor *in[1] = { sd_input(g, "pixel_values", SD_F32, 4, (int64_t[]){ 1, 512, 512, 3 }) };

    must(vae, row->name);
    inference(row, g, sd_vae_encode(g, vae, in[0]), in, 1);
}

static void
text(struct row *row, struct sd_model *m)
{
    struct sd_clip_text *encoder = sd_model_text_encoder(m);
    struct sd_graph *g = graph();
    struct sd_tensor *in[1] = { sd_input(g, "input_ids", SD_I32, 2, (int64_t[]){ 2, 77 }) };

    must(encoder, row->name);
    inference(row, g, sd_clip_text(g, encoder, NULL, in[0], NULL, 0), in, 1);
}

static void
training(struct row *row, struct sd_model *m, bool lora)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_trainables *t = sd_trainables_new(s);
    struct sd_adapters *adapters = sd_adapters_new(s);
    struct sd_trainer_model tm = { .unet = sd_model_unet(m), .text = sd_model_text_encoder(m), .text_trains = !lora,
                                   .compute = { .products = products } };
    struct sd_step_shape shape = { 1, 4, 64, 64, 1, 77, false };
    struct sd_targets targets = { .patterns = "to_q,to_k,to_v,to_out.0", .rank = 16, .seed = 1 };
    struct sd_train_step *step;
    bool with_text;

    must(tm.unet, row->name);
    if (lora) {
        if (sd_targets_add(&targets, tm.unet->weights, tm.text->weights, t, adapters, &with_text) < 0)
            sd_die(row->name, "%s", sd_reason());
        tm.adapters = adapters;
    } else
        tm.rows = sd_trainables_add(t, "tokens", "tokens", 2, (int64_t[]){ 1, m->text_config.hidden_size });
    sd_trainables_allocate(t);
    if (lora)
        sd_targets_start(&targets, adapters, NULL);
    must(step = sd_train_step_new(s, &tm, &shape, 0, 0), row->name);
    time_plan(row, step->plan, (struct sd_tensor *[]){ step->latents, step->noise, step->values, step->input_ids,
                                                       step->states }, 5);
    sd_train_step_free(step);
    sd_scope_close(s);
}

static bool
chosen(const char *name, int argc, char **argv)
{
    for (int i = 2; i < argc; i++)
        if (strstr(name, argv[i]))
            return true;
    return argc <= 2;
}

int
main(int argc, char **argv)
{
    static const char *const names[] = { "text, 2 prompts", "guided step 512x512", "vae decode 512x512",
                                         "vae encode 512x512",
                                         "lora step r16, batch 1", "ti step, batch 1" };
    enum { KINDS = sizeof names / sizeof *names };
    struct row rows[2 * KINDS] = { 0 };
    struct sd_scope *s = sd_scope_open();
    struct sd_model *m = NULL;
    const char *only = NULL, *model;
    double base, conv[2];
    struct rusage usage;

    sd_program = "steps";
    cpu_time = getenv("CPU") != NULL;
    if (argc < 2)
        sd_usage(NULL, "usage: steps MODEL [f32|bf16] [WORD ...]");
    model = argv[1];
    if (argc > 2 && (strcmp(argv[2], "f32") == 0 || strcmp(argv[2], "bf16") == 0))
        only = argv++[2];
    argc -= only != NULL;
    for (size_t i = 0; i < 2 * KINDS; i++) {
        rows[i].name = names[i % KINDS];
        rows[i].products = products = i < KINDS ? SD_F32 : SD_BF16;
        if ((products == SD_BF16 && sd_isa() < SD_ISA_AVX512BF16) ||
            (only && (products == SD_BF16) != (*only == 'b')) ||
            !chosen(rows[i].name, argc, argv))
            continue;
        rows[i].begun = now();
        if (!m)
            must(m = sd_model_open(s, model, NULL), model);
        switch (i % KINDS) {
        case 0: text(&rows[i], m); break;
        case 1: guided(&rows[i], m); break;
        case 2: decode(&rows[i], m); break;
        case 3: encode(&rows[i], m); break;
        case 4: training(&rows[i], m, true); break;
        case 5: training(&rows[i], m, false); break;
        }
    }
    conv[0] = convolution_rate(2, 320, 64);
    conv[1] = convolution_rate(2, 1280, 16);
    base = median(base_times, base_count);
    printf("base rates, %d threads, %s time, medians: sgemm 4096^3 %.1f GFLOP/s; oneDNN's direct 3x3 convolution 2x320 64^2 %.1f, 2x1280 16^2 %.1f\n",
           omp_get_max_threads(), cpu_time ? "process" : "wall", base * 1e-9, conv[0] * 1e-9, conv[1] * 1e-9);
    for (int i = 0; i < 2; i++)
        base = conv[i] > base ? conv[i] : base;
    printf("| what | products | TFLOP | floor s | ours s | x floor | GFLOP/s | activations GB | arena GB | packed GB | anonymous GB | start s |\n"
           "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].seconds > 0)
            printf("| %s | %s | %.3f | %.3f | %.3f | %.2f | %.0f | %.2f | %.2f | %.2f | %.2f | %.2f |\n", rows[i].name,
                   rows[i].products == SD_BF16 ? "bf16" : "f32", rows[i].flops * 1e-12, rows[i].flops / base,
                       rows[i].seconds, rows[i].seconds * base / rows[i].flops, rows[i].flops / rows[i].seconds * 1e-9,
                   (double)rows[i].report.activations_bytes * 1e-9, (double)rows[i].report.arena_bytes * 1e-9,
                       rows[i].packed * 1e-9,
                   rows[i].anonymous * 1e-9, rows[i].first - rows[i].begun - rows[i].seconds);
    getrusage(RUSAGE_SELF, &usage);
    printf("largest resident size %.2f GB, packed weights %.2f GB\n", (double)usage.ru_maxrss * 1024e-9,
           (double)sd_param_bytes_made() * 1e-9);
    return 0;
}
