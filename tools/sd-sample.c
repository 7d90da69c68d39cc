/* sd-sample - prompts to pictures. */
#include "compute.h"
#include "diffusion/draw.h"
#include "diffusion/infotext.h"
#include "diffusion/start.h"
#include "gallery.h"
#include "hash.h"
#include "model/model_tokenizer.h"
#include "opt.h"
#include "preview.h"
#include "prompts.h"
#include "threads.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PICTURES_MAX = 100000 };

static struct sd_list prompts, negatives, loras, embeddings, sheet_with;
static const char *model_name, *vae, *tokenizer, *syntax = "a1111", *sampler_name = "ddim", *spacing = "", *noise_file,
    *rng = "counter", *save_latents, *init_image, *lora_dir, *output, *output_dir, *sheet;
static int64_t steps = 30, clip_skip, width, height, num_images = 1, batch_size = 1, sheet_columns, sheet_scale = 1;
static double guidance_scale = 7.5, guidance_rescale, strength = 0.8;
static bool preview;

static const struct sd_opt options[] = {
    { 0, "model", SD_OPT_TEXT, &model_name, 0, 0, "MODEL",
      "diffusers directory, checkpoint file, or org/name in the Hub's cache" },
    { 0, "vae", SD_OPT_TEXT, &vae, 0, 0, "PATH", "VAE in place of the model's" },
    { 0, "tokenizer", SD_OPT_TEXT, &tokenizer, 0, 0, "PATH", "tokenizer folder, tokenizer.json or merge list" },
    { 0, "prompt", SD_OPT_LIST, &prompts, 0, 0, "TEXT", "what to draw; repeatable" },
    { 0, "negative-prompt", SD_OPT_LIST, &negatives, 0, 0, "TEXT", "what to keep away from (empty)" },
    { 0, "prompt-syntax", SD_OPT_CHOICE, &syntax, 0, 0, "a1111|plain",
      "weights and long prompts, or as diffusers (a1111)" },
    { 0, "sampler", SD_OPT_CHOICE, &sampler_name, 0, 0, "ddim|euler|euler_a|dpmpp_2m|dpmpp_2m_karras|unipc|pndm",
      "(ddim)" },
    { 0, "num-inference-steps", SD_OPT_INT, &steps, 1, 1000, "N", "denoising steps (30)" },
    { 0, "guidance-scale", SD_OPT_REAL, &guidance_scale, 0, 100, "X", "1 or less: no guidance (7.5)" },
    { 0, "guidance-rescale", SD_OPT_REAL, &guidance_rescale, 0, 1, "X", "(0)" },
    { 0, "timestep-spacing", SD_OPT_CHOICE, &spacing, 0, 0, "linspace|leading|trailing", "in place of the model's" },
    { 0, "clip-skip", SD_OPT_INT, &clip_skip, 0, 64, "N",
      "layers of the text encoder left out, as diffusers counts (0)" },
    { 0, "width", SD_OPT_INT, &width, 8, 16384, "PIXELS", "(the model's)" },
    { 0, "height", SD_OPT_INT, &height, 8, 16384, "PIXELS", "(the model's)" },
    { 0, "num-images", SD_OPT_INT, &num_images, 1, 100000, "N", "pictures of each prompt (1)" },
    { 0, "batch-size", SD_OPT_INT, &batch_size, 1, 256, "N", "pictures denoised together (1)" },
    { 0, "noise", SD_OPT_TEXT, &noise_file, 0, 0, "FILE", "start noise from a safetensors file: noise, step_noise" },
    { 0, "rng", SD_OPT_CHOICE, &rng, 0, 0, "counter|torch",
      "our counter generator, or PyTorch's on the CPU (counter)" },
    { 0, "save-latents", SD_OPT_TEXT, &save_latents, 0, 0, "FILE", "final latents as safetensors" },
    { 0, "init-image", SD_OPT_TEXT, &init_image, 0, 0, "FILE", "picture to start from" },
    { 0, "strength", SD_OPT_REAL, &strength, 0, 1, "X", "how far from the picture (0.8)" },
    { 0, "lora", SD_OPT_LIST, &loras, 0, 0, "FILE[:SCALE]", "adapter; repeatable" },
    { 0, "lora-dir", SD_OPT_TEXT, &lora_dir, 0, 0, "DIR", "where <lora:NAME:SCALE> in prompts is looked up" },
    { 0, "embedding", SD_OPT_LIST, &embeddings, 0, 0, "FILE[:TOKEN]", "learned token; repeatable" },
    { 0, "output", SD_OPT_TEXT, &output, 0, 0, "FILE", "the one picture, .png or .jpg; - for records" },
    { 0, "output-dir", SD_OPT_TEXT, &output_dir, 0, 0, "DIR", "00000.png, 00001.png ..." },
    { 0, "sheet", SD_OPT_TEXT, &sheet, 0, 0, "FILE", "all pictures on one contact sheet" },
    { 0, "sheet-with", SD_OPT_LIST, &sheet_with, 0, 0, "FILE", "a picture to put on the sheet in front; repeatable" },
    { 0, "sheet-columns", SD_OPT_INT, &sheet_columns, 1, 1000, "N", "(--num-images, else at most 4)" },
    { 0, "sheet-scale", SD_OPT_INT, &sheet_scale, 1, 16, "N", "enlarge the pictures on the sheet (1)" },
    { 0, "preview", SD_OPT_FLAG, &preview, 0, 0, NULL, "show the pictures in a terminal that can (kitty, iTerm2)" },
    { 0 }
};

struct text {
    struct sd_prompt tokens;
    struct sd_draw_text states;
};

struct job {                        /* one prompt */
    const char *prompt, *negative;  /* as given */
    const char *words;              /* without <lora:...> */
    const struct sd_record *record; /* it came in; NULL */
    const struct sd_concept_set *set;
    struct text *text, *negative_text;
};

struct run {
    struct sd_scope *scope;
    struct sd_model *model;
    struct sd_tokenizer *tokenizer;
    struct sd_concepts *concepts;
    struct sd_sampler *sampler;
    struct sd_draw *draw;
    struct sd_start start;
    struct job *jobs;
    size_t count;                   /* prompts */
    int64_t pictures, channels, h, w;
    float *latents;                 /* [pictures, channels, h, w], for --save-latents; else of one batch */
    struct sd_gallery gallery;
    bool records;                   /* on standard output */
    const char *model_hash;
};

/* -- before anything is loaded ------------------------------------------------------------------------------------- */

static int
collect_jobs(struct run *r, int argc, char **argv)
{
    struct sd_prompts p = { .scope = r->scope };
    int status = sd_prompts_collect(&p, &prompts, &negatives, argc, argv);

    if ((int64_t)p.count > PICTURES_MAX / num_images)
        sd_usage("--num-images", "%lld of %zu prompts, at most %d pictures are drawn in one run", (long long)num_images,
                 p.count, PICTURES_MAX);
    r->count = p.count;
    r->pictures = (int64_t)p.count * num_images;
    r->jobs = sd_alloc_array(r->scope, p.count, sizeof *r->jobs);
    for (size_t i = 0; i < p.count; i++)
        r->jobs[i] = (struct job){ .prompt = p.line[i].prompt,
                                   .negative = p.line[i].negative,
                                   .record = p.line[i].record };
    return status;
}

static void
check_outputs(struct run *r)
{
    bool records = output && strcmp(output, "-") == 0;

    if (!output && !output_dir && !sheet && !save_latents && !preview && !sd_shared.json_lines && !sd_shared.plan)
        sd_usage(NULL, "nothing to do with the pictures: give --output, --output-dir, --sheet, --save-latents, "
                 "--preview or -j");
    r->records = records || sd_shared.json_lines;
    r->gallery = (struct sd_gallery){ records ? NULL : output, output_dir, sheet, save_latents, &sheet_with, sheet_columns,
                                      sheet_scale, r->pictures, NULL };
    sd_gallery_check(&r->gallery);
    if (!sheet_columns)
        r->gallery.columns = num_images > 1 ? num_images : 4;
}

static void
check_options(void)
{
    if (!model_name)
        sd_usage("--model", "which model? a diffusers directory, a checkpoint file, or org/name");
    if (init_image && strength == 0)
        sd_usage("--strength", "0 draws nothing");
    if (!init_image && sd_option_given("strength"))
        sd_usage("--strength", "has no effect without --init-image");
    if (noise_file && !init_image && strcmp(rng, "torch") == 0)
        sd_usage("--rng", "has no effect with --noise");
    if (guidance_scale <= 1 && negatives.count)
        sd_warn("--negative-prompt", "has no effect with --guidance-scale %g", guidance_scale);
    if (guidance_scale <= 1 && guidance_rescale > 0)
        sd_warn("--guidance-rescale", "has no effect with --guidance-scale %g", guidance_scale);
}

/* -- loading ------------------------------------------------------------------------------------------------------- */

/* The adapters of each prompt: --lora's, and those it names. */
static void
prompt_networks(struct run *r)
{
    bool named = strcmp(syntax, "a1111") == 0;

    for (size_t i = 0; i < r->count; i++) {
        struct job *job = &r->jobs[i];
        struct sd_prompt_network *n = NULL;
        const char *rest;
        size_t count = 0;

        job->words = job->prompt;
        if (named && sd_prompt_networks(r->scope, job->prompt, &job->words, &n, &count) < 0)
            sd_die(job->prompt, "%s", sd_reason());
        for (size_t k = 0; k < count; k++)
            if (strcmp(n[k].kind, "lora") != 0)
                sd_warn(job->prompt, "<%s:%s> is not known here, left out", n[k].kind, n[k].name);
            else if (!lora_dir)
                sd_usage("--lora-dir", "a prompt asks for <lora:%s>: say where adapters are", n[k].name);
        if (!(job->set = sd_concepts_set(r->concepts, lora_dir, n, count)))
            sd_die(job->prompt, "%s", sd_reason());
        if (named && guidance_scale > 1 && sd_prompt_networks(r->scope, job->negative, &rest, &n, &count) == 0 && count)
            sd_warn(job->negative, "<%s:%s> means nothing in a negative prompt, and is read as words", n[0].kind,
                    n[0].name);
    }
}

static void
load_concepts(struct run *r)
{
    int64_t state_width = r->model->text_config.hidden_size;
    const char *path, *rest;

    r->concepts = sd_concepts_new(r->scope);
    for (size_t i = 0; i < embeddings.count; i++) {
        path = sd_concept_file(r->scope, embeddings.item[i], &rest);
        if (sd_concepts_embedding(r->concepts, r->tokenizer, state_width, path, rest) < 0)
            sd_die(path, "%s", sd_reason());
    }
    sd_concepts_rows(r->concepts, state_width);
    for (size_t i = 0; i < loras.count; i++) {
        double scale = 1;
        char *end;

        path = sd_concept_file(r->scope, loras.item[i], &rest);
        if (rest && ((scale = strtod(rest, &end)), end == rest || *end || !isfinite(scale)))
            sd_usage("--lora", "%s: \"%s\" is not a scale", loras.item[i], rest);
        if (sd_concepts_lora(r->concepts, path, scale, scale) < 0)
            sd_die(path, "%s", sd_reason());
    }
    prompt_networks(r);
}

static void
load_sampler(struct run *r)
{
    json_t *config = json_deep_copy(r->model->scheduler);
    static const char *const of_options[] = { "num_inference_steps", "strength" };

    sd_on_close(r->scope, (void (*)(void *))json_decref, config);
    if (*spacing)
        json_object_set_new(config, "timestep_spacing", json_string(spacing));
    r->sampler = sd_sampler_new(r->scope, config, sampler_name, (int)steps, init_image ? &strength : NULL);
    for (size_t i = 0; !r->sampler && i < 2; i++)
        if (strncmp(sd_reason(), of_options[i], strlen(of_options[i])) == 0)
            sd_usage(sampler_name, "%s", sd_reason());
    if (!r->sampler)
        sd_die(sampler_name, "%s", sd_reason());
    if (r->sampler->scheduler->unused)
        sd_note(0, "%s: scheduler settings not known here: %s", model_name, r->sampler->scheduler->unused);
    if (r->sampler->clamp == SD_CLAMP_RANGE && !json_object_get(config, "clip_sample"))
        sd_warn(model_name, "its scheduler settings do not say clip_sample: %s clips x0 to +-%g, as its class does",
                sampler_name, r->sampler->clamp_range);
}

static void
load_sizes(struct run *r)
{
    int factor = sd_vae_factor(&r->model->vae_config), layers = r->model->text_config.num_hidden_layers;

    if (!width)
        width = (int64_t)r->model->unet_config.sample_width * factor;
    if (!height)
        height = (int64_t)r->model->unet_config.sample_height * factor;
    if (!width || !height)
        sd_usage("--width", "the model does not say its size: give --width and --height");
    if (sd_draw_size(r->model, width, height) < 0)
        sd_usage("--width, --height", "%s", sd_reason());
    if (clip_skip > layers)
        sd_usage("--clip-skip", "%lld, the text encoder has %d layers", (long long)clip_skip, layers);
    r->channels = r->model->vae_config.latent_channels;
    r->h = height / factor;
    r->w = width / factor;
    r->start = (struct sd_start){ .sampler = r->sampler,
                                  .torch = strcmp(rng, "torch") == 0,
                                  .seed = (uint64_t)sd_shared.seed,
                                  .pictures = r->pictures, .numel = (size_t)(r->channels * r->h * r->w) };
}

static void
load(struct run *r)
{
    struct sd_model_options o = { .vae = vae };

    if (!(r->model = sd_model_open(r->scope, model_name, &o)))
        sd_die(model_name, "%s", sd_reason());
    load_sampler(r);
    if (!(r->tokenizer = sd_model_tokenizer(r->model, tokenizer)))
        sd_die(tokenizer ? tokenizer : model_name, "%s", sd_reason());
    load_sizes(r);
    load_concepts(r);
    if (!(r->draw = sd_draw_new(
              r->scope, &(struct sd_draw_model){ r->model, r->tokenizer, NULL, r->concepts->rows },
              &(struct sd_draw_options){ .width = width, .height = height, .sampler = r->sampler,
                                         .guidance_scale = guidance_scale, .guidance_rescale = guidance_rescale,
                                         .clip_skip = (int)clip_skip, .compute = *sd_shared_compute() })))
        sd_die(model_name, "%s", sd_reason());
    r->start.draw = r->draw;
    if (noise_file && sd_start_load(&r->start, r->scope, noise_file, r->channels, r->h, r->w) < 0)
        sd_die(noise_file, "%s", sd_reason());
}

/* -- planning ------------------------------------------------------------------------------------------------------ */

static struct text *
tokenize(struct run *r, const char *given, const char *words)
{
    struct text *t = sd_alloc(r->scope, sizeof *t);

    if (sd_prompt_encode(r->tokenizer, r->scope, strcmp(syntax, "plain") == 0 ? SD_PROMPT_PLAIN : SD_PROMPT_A1111,
                         words, &t->tokens)
        < 0)
        sd_die(given, "%s", sd_reason());
    if (t->tokens.cut)
        sd_warn(given, "%zu tokens do not fit and are cut off: %s", t->tokens.cut, t->tokens.cut_text);
    sd_concepts_use(r->concepts, &t->tokens);
    if (sd_draw_plan_text(r->draw, t->tokens.chunks) < 0)
        sd_die(sd_concepts_blame(r->concepts, model_name), "%s", sd_reason());
    return t;
}

static void
tokenize_all(struct run *r)
{
    for (size_t i = 0; i < r->count; i++) {
        struct job *job = &r->jobs[i], *before = i ? job - 1 : job;

        sd_draw_with(r->draw, job->set->adapters);
        job->text = tokenize(r, job->prompt, job->words);
        if (guidance_scale > 1)
            job->negative_text = i && strcmp(job->negative, before->negative) == 0 && job->set == before->set
                                     ? before->negative_text
                                     : tokenize(r, job->negative, job->negative);
    }
    for (size_t i = 0; i < r->concepts->count; i++)
        if (!r->concepts->concept[i].used)
            sd_warn("--embedding", "no prompt says %s", r->concepts->concept[i].token);
}

/* The pictures from `at` on that are drawn together: --batch-size, cut where adapters or the lengths of texts change. */
static struct sd_draw_batch
batch_at(const struct run *r, int64_t at)
{
    const struct job *first = &r->jobs[at / num_images];
    struct sd_draw_batch b = { .chunks = first->text->tokens.chunks };

    b.negative_chunks = first->negative_text ? first->negative_text->tokens.chunks : 0;
    for (b.count = 1; b.count < batch_size && at + b.count < r->pictures; b.count++) {
        const struct job *job = &r->jobs[(at + b.count) / num_images];

        if (job->set != first->set || job->text->tokens.chunks != b.chunks
            || (job->negative_text && job->negative_text->tokens.chunks != b.negative_chunks))
            break;
    }
    return b;
}

static void
plan_all(struct run *r)
{
    tokenize_all(r);
    if (init_image && sd_draw_plan_encode(r->draw) < 0)
        sd_die(model_name, "%s", sd_reason());
    for (int64_t at = 0; at < r->pictures; ) {
        struct sd_draw_batch b = batch_at(r, at);

        sd_draw_with(r->draw, r->jobs[at / num_images].set->adapters);
        if (sd_draw_plan_batch(r->draw, &b) < 0)
            sd_die(sd_concepts_blame(r->concepts, model_name), "%s", sd_reason());
        at += b.count;
    }
    if (sd_concepts_check(r->concepts, r->model->text_config.num_hidden_layers - (int)clip_skip, (int)clip_skip) < 0)
        sd_die("--lora", "%s", sd_reason());
}

/* On a device, its memory.  Anonymous memory: packed weights, the arena, texts, latents of a batch (x, two predictions,
 * noise ...), pictures. */
static size_t
peak_bytes(struct run *r)
{
    size_t states = 0, numel = r->start.numel * sizeof(float),
           batch = (size_t)(r->pictures < batch_size ? r->pictures : batch_size);
    size_t picture = (size_t)(width * height * 3),
           kept = sheet ? (size_t)r->pictures * (size_t)(sheet_scale * sheet_scale) * 2 : 0;

    if (sd_shared_compute()->device) {
        struct sd_draw_report p = sd_draw_report(r->draw);

        return sd_device_bytes_sum(&p.device);
    }
    for (size_t i = 0; i < r->count; i++)
        states += (size_t)r->jobs[i].text->tokens.chunks
                  + (r->jobs[i].negative_text && (!i || r->jobs[i].negative_text != r->jobs[i - 1].negative_text)
                         ? (size_t)r->jobs[i].negative_text->tokens.chunks : 0);
    states *= (size_t)(r->tokenizer->model_max_length * r->model->unet_config.cross_attention_dim) * sizeof(float);
    return sd_param_bytes_reserved() + sd_draw_report(r->draw).arena_bytes + sd_draw_report(r->draw).kv_bytes + states
           + ((save_latents ? (size_t)r->pictures : batch) + (size_t)(7 + r->sampler->history) * batch) * numel
           + (kept + 2 + (init_image ? 2 : 0)) * picture;
}

static int
print_plan(struct run *r)
{
    const struct sd_device *device = sd_shared_compute()->device;
    struct sd_draw_report p = sd_draw_report(r->draw);
    int64_t elements = sd_weights_elements(sd_model_unet(r->model)->weights)
                       + sd_weights_elements(sd_model_text_encoder(r->model)->weights)
                       + sd_weights_elements(sd_model_vae(r->model)->weights);

    printf("{\"peak_bytes\": %zu, \"weights_bytes\": %zu, \"packed_bytes\": %zu, \"activations_bytes\": %zu, "
           "\"arena_bytes\": %zu, "
           "\"flops\": %.0f, \"decode_flops\": %.0f, \"text_flops\": %.0f, \"model_calls\": %d, \"pictures\": %lld%s%s}\n",
           peak_bytes(r), (size_t)elements * sizeof(float), sd_param_bytes_reserved(), p.activations_bytes,
           p.arena_bytes, p.step_flops, p.decode_flops, p.text_flops, r->sampler->calls, (long long)r->pictures,
           device ? ", \"device\": " : "", device ? sd_device_bytes_json(r->scope, &p.device) : "");
    return SD_OK;
}

static void
check_memory(struct run *r)
{
    double peak = (double)peak_bytes(r) / (1 << 20),
           all = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) / (1 << 20);

    if (sd_shared.memory && peak * (1 << 20) > (double)sd_shared.memory)
        sd_die("--memory", "%.1f MiB are needed, %.1f MiB allowed (a smaller --batch-size or picture needs less)", peak,
               (double)sd_shared.memory / (1 << 20));
    if (sd_shared_compute()->device)
        all = (double)sd_device_free_bytes(sd_shared_compute()->device) / (1 << 20);
    if (peak > all)
        sd_die("memory", "%.0f MiB are needed, %s has %.0f MiB", peak, sd_shared_compute()->device ? "the device" : "this machine", all);
}

/* -- drawing ------------------------------------------------------------------------------------------------------- */

struct progress {
    int64_t first, count, all;
};

static void
show_progress(void *user, int call, int calls)
{
    struct progress *p = user;

    fprintf(stderr, "\r%s: picture %lld/%lld step %d/%d %s", sd_program, (long long)(p->first + p->count),
            (long long)p->all, call, calls, call == calls && p->first + p->count == p->all ? "\n" : "");
}

static void
encode_text(struct run *r, const char *given, struct text *t)
{
    if (t && !t->states.states && sd_draw_text(r->draw, r->scope, &t->tokens, &t->states) < 0)
        sd_die(model_name, "%s: %s", given, sd_reason());
}

static struct sd_draw_posterior *
encode_init_image(struct run *r)
{
    struct sd_draw_posterior *p = sd_alloc(r->scope, sizeof *p);
    struct sd_image *image = sd_image_load(r->scope, init_image);

    if (!image)
        sd_die(init_image, "%s", sd_reason());
    if ((int64_t)image->width * height != (int64_t)image->height * width)
        sd_warn(init_image, "%dx%d is stretched to %lldx%lld", image->width, image->height, (long long)width,
                (long long)height);
    if (image->width != width || image->height != height)
        image = sd_image_resize(r->scope, image, (int)width, (int)height, SD_FILTER_LANCZOS, NULL, NULL);
    if (sd_draw_encode(r->draw, r->scope, image, p) < 0)
        sd_die(model_name, "%s", sd_reason());
    return p;
}

static const char *
settings(struct run *r, struct sd_scope *s, int64_t i)
{
    const struct job *job = &r->jobs[i / num_images];
    char hex[SD_SHA256_HEX];

    if (!r->model_hash && (r->model->single_file ? sd_hash_file_cached(r->model->path, hex)
                                                 : sd_weights_hash(sd_model_unet(r->model)->weights, hex)) < 0)
        sd_die(model_name, "%s", sd_reason());
    if (!r->model_hash)
        r->model_hash = sd_strdup(r->scope, hex);
    return sd_infotext(s, &(struct sd_infotext){ .prompt = job->prompt,
                                                 .negative = guidance_scale > 1 ? job->negative : NULL,
                                                 .sampler = sampler_name,
                                                 .steps = (int)steps,
                                                 .clip_skip = (int)clip_skip,
                                                 .guidance_scale = guidance_scale,
                                                 .guidance_rescale = guidance_scale > 1 ? guidance_rescale : 0,
                                                 .strength = init_image ? strength : 0,
                                                 .seed = sd_shared.seed + i,
                                                 .width = width,
                                                 .height = height,
                                                 .torch = r->start.torch,
                                                 .model_hash = r->model_hash,
                                                 .concepts = r->concepts,
                                                 .set = job->set });
}

static void
write_record(struct run *r, struct sd_scope *s, int64_t i, const struct sd_image *image, const char *text)
{
    const struct job *job = &r->jobs[i / num_images];
    struct sd_record *record = job->record ? sd_record_copy(s, job->record) : sd_record_new(s);
    struct sd_record_tensor pixels = { "U8", 3, { image->height, image->width, 3 }, image->data,
                                       (size_t)image->height * (size_t)image->width * 3 };
    char id[SD_SHA256_HEX];

    sd_sha256_of(pixels.data, pixels.bytes, id);
    sd_record_set_text(record, "id", id);
    sd_record_set_text(record, "prompt", job->prompt);
    sd_record_set_text(record, "parameters", text);
    sd_record_set_int(record, "seed", sd_shared.seed + i);
    if (output_dir)
        sd_record_set_text(record, "picture", sd_gallery_name(s, i));
    sd_record_set_tensor(record, "pixel_values", &pixels);
    sd_record_write(record);
}

static void
publish(struct run *r, struct sd_scope *s, int64_t i, const struct sd_image *image)
{
    const char *text = r->records || sd_gallery_wants_settings(&r->gallery) ? settings(r, s, i) : NULL;

    sd_gallery_add(&r->gallery, i, image, text, r->jobs[i / num_images].prompt);
    if (r->records)
        write_record(r, s, i, image, text);
    if (preview && sd_preview(image) < 0) {
        sd_warn("--preview", "%s", sd_reason());
        preview = false;
    }
}

/* One batch: noise, the loop, and each picture decoded and published. */
static void
draw_batch(struct run *r, int64_t at, int count)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_draw_picture *pictures = sd_alloc_array(s, (size_t)count, sizeof *pictures);
    struct sd_start_picture *starts = sd_alloc_array(s, (size_t)count, sizeof *starts);
    float *latents = r->latents + (save_latents ? (size_t)at * r->start.numel : 0);
    struct progress p = { at, count, r->pictures };
    bool shown = sd_verbosity >= 0 && isatty(STDERR_FILENO);

    sd_draw_with(r->draw, r->jobs[at / num_images].set->adapters);
    for (int i = 0; i < count; i++) {
        struct job *job = &r->jobs[(at + i) / num_images];
        float *start = sd_alloc_array(s, r->start.numel, sizeof *start);

        encode_text(r, job->prompt, job->text);
        encode_text(r, job->negative, job->negative_text);
        sd_start_picture(&starts[i], &r->start, at + i, start);
        pictures[i] = (struct sd_draw_picture){ .prompt = &job->text->states,
                                                .negative = job->negative_text ? &job->negative_text->states : NULL,
                                                .start = start, .fresh = sd_start_fresh, .user = &starts[i],
                                                .latents = latents + (size_t)i * r->start.numel };
    }
    if (sd_draw_pictures(r->draw, pictures, count, shown ? show_progress : NULL, &p) < 0)
        sd_die(model_name, "%s", sd_reason());
    for (int i = 0; i < count && (r->records || output || output_dir || sheet || preview); i++) {
        struct sd_image *image = sd_draw_decode(r->draw, s, pictures[i].latents);

        if (!image)
            sd_die(model_name, "picture %lld: %s", (long long)(at + i), sd_reason());
        publish(r, s, at + i, image);
    }
    sd_scope_close(s);
}

static void
draw_all(struct run *r)
{
    r->latents = sd_alloc_array(
        r->scope, (size_t)(save_latents || r->pictures < batch_size ? r->pictures : batch_size) * r->start.numel,
        sizeof *r->latents);
    if (init_image)
        r->start.posterior = encode_init_image(r);
    if (r->records)
        sd_writer_begin("pictures");
    for (int64_t at = 0; at < r->pictures; ) {
        int count = batch_at(r, at).count;

        draw_batch(r, at, count);
        at += count;
    }
    if (save_latents) {
        struct sd_safetensors_writer *w = sd_safetensors_writer_new(r->scope);

        sd_safetensors_add(w, "latents", SD_F32, 4, (int64_t[]){ r->pictures, r->channels, r->h, r->w }, r->latents);
        if (sd_safetensors_save(w, save_latents) < 0)
            sd_die(save_latents, "%s", sd_reason());
    }
    sd_gallery_close(&r->gallery);
    if (r->records)
        sd_writer_end();
}

int
main(int argc, char **argv)
{
    struct run r = { .scope = sd_scope_open() };
    int status;

    sd_threads_yield(argv);
    sd_options(&argc, &argv, options, SD_OPT_RECORDS | SD_OPT_COMPUTE | SD_OPT_SEED | SD_OPT_OVERWRITE,
               "--model MODEL [--prompt TEXT] [file ...]", "draws pictures from prompts");
    sd_shared_compute();
    check_options();
    status = collect_jobs(&r, argc, argv);
    check_outputs(&r);
    load(&r);
    sd_gallery_open(&r.gallery, r.scope, width, height);
    plan_all(&r);
    if (sd_shared.plan)
        return sd_finish(print_plan(&r));
    check_memory(&r);
    draw_all(&r);
    sd_scope_close(r.scope);
    return sd_finish(status);
}
