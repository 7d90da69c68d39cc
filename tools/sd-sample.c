/* sd-sample - prompts to pictures. */
#include "diffusion/draw.h"
#include "file.h"
#include "hash.h"
#include "model/embedding.h"
#include "model/lora.h"
#include "model/model_tokenizer.h"
#include "opt.h"
#include "preview.h"
#include "random.h"
#include "record.h"

#include <jansson.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct sd_list prompts, negatives, loras, embeddings, sheet_with;
static const char *model_name, *vae, *tokenizer, *syntax = "a1111", *sampler_name = "ddim", *spacing = "", *noise_file, *rng = "counter",
    *save_latents, *init_image, *lora_dir, *output, *output_dir, *sheet;
static int64_t steps = 30, clip_skip, width, height, num_images = 1, batch_size = 1, sheet_columns, sheet_scale = 1;
static double guidance_scale = 7.5, guidance_rescale, strength = 0.8;
static bool preview;

static const struct sd_opt options[] = {
    { 0, "model", SD_OPT_TEXT, &model_name, 0, 0, "MODEL", "diffusers directory, checkpoint file, or org/name in the Hub's cache" },
    { 0, "vae", SD_OPT_TEXT, &vae, 0, 0, "PATH", "VAE in place of the model's" },
    { 0, "tokenizer", SD_OPT_TEXT, &tokenizer, 0, 0, "PATH", "tokenizer folder, tokenizer.json or merge list" },
    { 0, "prompt", SD_OPT_LIST, &prompts, 0, 0, "TEXT", "what to draw; repeatable" },
    { 0, "negative-prompt", SD_OPT_LIST, &negatives, 0, 0, "TEXT", "what to keep away from (empty)" },
    { 0, "prompt-syntax", SD_OPT_CHOICE, &syntax, 0, 0, "a1111|plain", "weights and long prompts, or as diffusers (a1111)" },
    { 0, "sampler", SD_OPT_CHOICE, &sampler_name, 0, 0, "ddim|euler|euler_a|dpmpp_2m|dpmpp_2m_karras|unipc|pndm", "(ddim)" },
    { 0, "num-inference-steps", SD_OPT_INT, &steps, 1, 1000, "N", "denoising steps (30)" },
    { 0, "guidance-scale", SD_OPT_REAL, &guidance_scale, 0, 100, "X", "1 or less: no guidance (7.5)" },
    { 0, "guidance-rescale", SD_OPT_REAL, &guidance_rescale, 0, 1, "X", "(0)" },
    { 0, "timestep-spacing", SD_OPT_CHOICE, &spacing, 0, 0, "linspace|leading|trailing", "in place of the model's" },
    { 0, "clip-skip", SD_OPT_INT, &clip_skip, 0, 64, "N", "layers of the text encoder left out, as diffusers counts (0)" },
    { 0, "width", SD_OPT_INT, &width, 8, 16384, "PIXELS", "(the model's)" },
    { 0, "height", SD_OPT_INT, &height, 8, 16384, "PIXELS", "(the model's)" },
    { 0, "num-images", SD_OPT_INT, &num_images, 1, 100000, "N", "pictures of each prompt (1)" },
    { 0, "batch-size", SD_OPT_INT, &batch_size, 1, 256, "N", "pictures denoised together (1)" },
    { 0, "noise", SD_OPT_TEXT, &noise_file, 0, 0, "FILE", "start noise from a safetensors file: noise, step_noise" },
    { 0, "rng", SD_OPT_CHOICE, &rng, 0, 0, "counter|torch", "our counter generator, or PyTorch's on the CPU (counter)" },
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

/* -- what is drawn -------------------------------------------------------------------------------------------------- */

struct job {                        /* one prompt */
    const char *prompt, *negative;  /* as given */
    const char *text;               /* without <lora:...> */
    struct sd_draw_text states, negative_states;
};

struct run {
    struct sd_scope *scope;
    struct sd_model *model;
    struct sd_tokenizer *tokenizer;
    struct sd_adapters *adapters;
    struct sd_param *rows;
    const json_t *scheduler;
    struct sd_sampler *sampler;
    struct sd_draw *draw;
    struct job *jobs;
    size_t count;                   /* prompts */
    int64_t pictures, h, w;         /* in all; latents */
    size_t numel;
    const float *file_noise, *file_step_noise;

    struct sd_image *init_picture;
    float *latents;                 /* [pictures, 4, h, w] */
    struct sd_image **image;
    const char *model_hash;
};

static int
add_prompt(struct run *r, const char *text, const char *negative)
{
    if ((r->count & (r->count - 1)) == 0) {
        struct job *grown = sd_alloc_array(r->scope, r->count ? 2 * r->count : 1, sizeof *grown);

        if (r->count)
            memcpy(grown, r->jobs, r->count * sizeof *grown);
        r->jobs = grown;
    }
    r->jobs[r->count++] = (struct job){ .prompt = sd_strdup(r->scope, text), .negative = negative };
    return 0;
}

static int
take_record(struct sd_scope *s SD_UNUSED, struct sd_record *record, void *user)
{
    struct run *r = user;
    const char *text = sd_record_text(record, "prompt"), *negative = sd_record_text(record, "negative_prompt");

    if (!text)
        text = sd_record_text(record, "caption");
    if (!text)
        return sd_fail("a record without prompt or caption");
    return add_prompt(r, text, negative ? sd_strdup(r->scope, negative) : NULL);
}

static void
read_prompt_file(struct run *r, const char *path)
{
    size_t length;
    char *text = sd_file_read(r->scope, path, 64 << 20, &length), *line, *next;

    if (!text)
        sd_die(path, "%s", sd_reason());
    for (line = text; line < text + length; line = next) {
        char *end = memchr(line, '\n', (size_t)(text + length - line));

        next = end ? end + 1 : text + length;
        if (end)
            *end = 0;
        if (end && end > line && end[-1] == '\r')
            end[-1] = 0;
        if (line[strspn(line, " \t")])
            add_prompt(r, line, NULL);
    }
}

static int
collect_prompts(struct run *r, int argc, char **argv)
{
    int status = SD_OK;

    for (size_t i = 0; i < prompts.count; i++)
        add_prompt(r, prompts.item[i], NULL);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-") == 0 || sd_is_record_stream(argv[i])) {
            struct sd_each each = { .one = take_record, .user = r };
            char *operand[2] = { argv[0], argv[i] };

            status |= sd_each(2, operand, &each);
        } else
            read_prompt_file(r, argv[i]);
    }
    if (negatives.count > 1 && negatives.count != r->count)
        sd_usage("--negative-prompt", "%zu given for %zu prompts: give one, or one for each", negatives.count, r->count);
    for (size_t i = 0; i < r->count; i++)
        if (!r->jobs[i].negative)
            r->jobs[i].negative = negatives.count ? negatives.item[negatives.count > 1 ? i : 0] : "";
    return status;
}

/* -- adapters and tokens -------------------------------------------------------------------------------------------- */

/* "FILE:0.8" to FILE and 0.8; a file whose own name holds the colon wins */
static const char *
split_scale(struct sd_scope *s, const char *option, const char *value, double *scale)
{
    const char *colon = strrchr(value, ':');
    char *end;

    *scale = 1;
    if (!colon || access(value, F_OK) == 0)
        return value;
    *scale = strtod(colon + 1, &end);
    if (end == colon + 1 || *end || !isfinite(*scale))
        sd_usage(option, "%s: %s is not a scale", value, colon + 1);
    return sd_strndup(s, value, (size_t)(colon - value));
}

static void
add_lora(struct run *r, const char *path, double unet, double text)
{
    struct sd_lora *lora = sd_lora_load(r->scope, path);

    if (!lora)
        sd_die(path, "%s", sd_reason());
    if (!r->adapters)
        r->adapters = sd_adapters_new(r->scope);
    sd_lora_adapters(lora, r->adapters, unet, text);
}

static const char *
find_lora(struct run *r, const char *name)
{
    char *path;

    if (!lora_dir)
        sd_usage("--lora-dir", "a prompt asks for <lora:%s>: say where adapters are", name);
    if (strchr(name, '/') || name[0] == '.')
        sd_usage("--lora-dir", "<lora:%s>: a name, not a path", name);
    path = sd_sprintf(r->scope, "%s/%s.safetensors", lora_dir, name);
    if (access(path, F_OK) == 0)
        return path;
    path = sd_sprintf(r->scope, "%s/%s", lora_dir, name);
    if (access(path, F_OK) != 0)
        sd_die(name, "no such adapter in %s", lora_dir);
    return path;
}

/* Networks named in prompts belong to the whole run: every prompt must ask for the same. */
static void
prompt_networks(struct run *r)
{
    struct sd_prompt_network *first = NULL;
    size_t first_count = 0;

    for (size_t i = 0; i < r->count; i++) {
        struct job *job = &r->jobs[i];
        struct sd_prompt_network *n;
        size_t count;

        job->text = job->prompt;
        if (strcmp(syntax, "a1111") != 0)
            continue;
        if (sd_prompt_networks(r->scope, job->prompt, &job->text, &n, &count) < 0)
            sd_die(job->prompt, "%s", sd_reason());
        for (size_t k = 0; k < count; k++)
            if (strcmp(n[k].kind, "lora") != 0)
                sd_warn(job->prompt, "<%s:%s> is not known here, left out", n[k].kind, n[k].name);
            else if (n[k].dyn)
                sd_usage(job->prompt, "<lora:%s>: dyn is not supported", n[k].name);
        if (i == 0) {
            first = n;
            first_count = count;
            for (size_t k = 0; k < count; k++)
                if (strcmp(n[k].kind, "lora") == 0)
                    add_lora(r, find_lora(r, n[k].name), n[k].unet, n[k].te);
            continue;
        }
        if (count != first_count)
            sd_usage(job->prompt, "prompts with different <lora:...> need runs of their own");
        for (size_t k = 0; k < count; k++)
            if (strcmp(n[k].name, first[k].name) != 0 || n[k].unet != first[k].unet || n[k].te != first[k].te)
                sd_usage(job->prompt, "prompts with different <lora:...> need runs of their own");
    }
}

static void
load_embeddings(struct run *r)
{
    struct sd_embedding **e = sd_alloc_array(r->scope, embeddings.count + 1, sizeof *e);
    int64_t vectors = 0, width_of = r->model->text_config.hidden_size, at = 0, old = r->tokenizer->length;
    float *values;

    for (size_t i = 0; i < embeddings.count; i++) {
        const char *value = embeddings.item[i], *colon = strrchr(value, ':'), *path = value, *token;

        if (colon && access(value, F_OK) != 0)
            path = sd_strndup(r->scope, value, (size_t)(colon - value));
        if (!(e[i] = sd_embedding_load(r->scope, path)))
            sd_die(path, "%s", sd_reason());
        token = path != value ? colon + 1 : e[i]->token;
        if (e[i]->width != width_of)
            sd_die(path, "vectors of %lld, this model's text encoder is %lld wide", (long long)e[i]->width, (long long)width_of);
        if (sd_tokenizer_add(r->tokenizer, token, (int)e[i]->vectors) < 0)
            sd_die(path, "%s", sd_reason());
        vectors += e[i]->vectors;
    }
    if (!vectors)
        return;
    if (old != r->model->text_config.vocab_size)
        sd_die(model_name, "the tokenizer has %lld tokens, the text encoder %d: new ones would not line up", (long long)old,
               r->model->text_config.vocab_size);
    values = sd_alloc_array(r->scope, (size_t)(vectors * width_of), sizeof *values);
    for (size_t i = 0; i < embeddings.count; i++) {
        memcpy(values + at * width_of, e[i]->values, (size_t)(e[i]->vectors * width_of) * sizeof *values);
        at += e[i]->vectors;
    }
    r->rows = sd_param_new(r->scope, "tokens", SD_F32, 2, (int64_t[]){ vectors, width_of }, values);
}

static void
warn_unused_adapters(struct run *r)
{
    size_t unused = 0, count = r->adapters ? sd_adapters_count(r->adapters) : 0;

    for (size_t i = 0; i < count; i++)
        if (!sd_adapters_at(r->adapters, i)->used && unused++ < 3)
            sd_error(sd_adapters_at(r->adapters, i)->path, "no such layer in this model");
    if (unused)
        sd_die("--lora", "%zu of %zu layers do not belong to this model", unused, count);
}

/* -- noise ---------------------------------------------------------------------------------------------------------- */

struct fresh {
    struct run *run;
    int64_t picture;
    struct sd_torch_generator torch;
};

static void
draw_fresh(void *user, int call, float *noise)
{
    struct fresh *f = user;
    struct run *r = f->run;

    if (r->file_step_noise)
        memcpy(noise, r->file_step_noise + ((size_t)call * (size_t)r->pictures + (size_t)f->picture) * r->numel,
               r->numel * sizeof *noise);
    else if (strcmp(rng, "torch") == 0)
        sd_torch_randn(&f->torch, noise, r->numel);
    else
        sd_random_normal(noise, r->numel, (uint64_t)(sd_shared.seed + f->picture), SD_FOR_SAMPLER, 0, (uint32_t)call);
}

/* The start of picture i: noise, or the encoded picture and noise mixed.  PyTorch's order: the posterior first. */
static void
start_of(struct run *r, struct fresh *f, struct sd_scope *s, float *start)
{
    uint64_t seed = (uint64_t)(sd_shared.seed + f->picture);
    float *noise = sd_alloc_array(s, r->numel, sizeof *noise), *latents = NULL;
    bool torch = strcmp(rng, "torch") == 0;

    if (torch)
        sd_torch_generator_seed(&f->torch, seed);
    if (r->init_picture) {
        latents = sd_alloc_array(s, r->numel, sizeof *latents);
        if (torch)
            sd_torch_randn(&f->torch, noise, r->numel);
        else
            sd_random_normal(noise, r->numel, seed, SD_FOR_POSTERIOR, 0, 0);
        if (sd_draw_encode(r->draw, r->init_picture, noise, latents) < 0)
            sd_die(init_image, "%s", sd_reason());
    }
    if (r->file_noise)
        memcpy(noise, r->file_noise + (size_t)f->picture * r->numel, r->numel * sizeof *noise);
    else if (torch)
        sd_torch_randn(&f->torch, noise, r->numel);
    else
        sd_random_normal(noise, r->numel, seed, SD_FOR_NOISE, 0, 0);
    sd_sampler_start(r->sampler, start, latents, noise, r->numel);
}

static void
load_noise(struct run *r)
{
    struct sd_safetensors *f;
    struct sd_safetensor *t;
    int64_t channels = r->model->vae_config.latent_channels;

    if (!noise_file)
        return;
    if (!(f = sd_safetensors_open(r->scope, noise_file))
        || !(t = sd_safetensors_get(f, "noise", 4, (int64_t[]){ r->pictures, channels, r->h, r->w }))
        || !(r->file_noise = sd_safetensor_f32(r->scope, t)))
        sd_die(noise_file, "%s", sd_reason());
    if (!r->sampler->draws_noise)
        return;
    if (!(t = sd_safetensors_get(f, "step_noise", 5, (int64_t[]){ r->sampler->calls, r->pictures, channels, r->h, r->w }))
        || !(r->file_step_noise = sd_safetensor_f32(r->scope, t)))
        sd_die(noise_file, "%s needs the noise of its steps: %s", sampler_name, sd_reason());
}

/* -- drawing -------------------------------------------------------------------------------------------------------- */

struct progress {
    int64_t first, count, all;
};

static void
show_progress(void *user, int call, int calls)
{
    struct progress *p = user;

    if (sd_verbosity >= 0 && isatty(STDERR_FILENO))
        fprintf(stderr, "\r%s: picture %lld/%lld step %d/%d ", sd_program, (long long)(p->first + p->count), (long long)p->all, call,
                calls);
}

static void
encode_texts(struct run *r)
{
    for (size_t i = 0; i < r->count; i++) {
        struct job *job = &r->jobs[i];

        if (sd_draw_text(r->draw, r->scope, job->text, &job->states) < 0)
            sd_die(job->prompt, "%s", sd_reason());
        if (job->states.cut)
            sd_warn(job->prompt, "%zu tokens do not fit and are cut off: %s", job->states.cut, job->states.cut_text);
        if (guidance_scale > 1 && sd_draw_text(r->draw, r->scope, job->negative, &job->negative_states) < 0)
            sd_die(job->negative, "%s", sd_reason());
    }
}

static bool
same_length(const struct job *a, const struct job *b)
{
    return a->states.chunks == b->states.chunks && (guidance_scale <= 1 || a->negative_states.chunks == b->negative_states.chunks);
}

static void
draw_all(struct run *r)
{
    struct progress p = { .all = r->pictures };

    for (int64_t at = 0; at < r->pictures; at += p.count) {
        struct sd_scope *s = sd_scope_open();
        struct sd_draw_picture *batch = sd_alloc_array(s, (size_t)batch_size, sizeof *batch);
        struct fresh *fresh = sd_alloc_array(s, (size_t)batch_size, sizeof *fresh);

        p.first = at;
        for (p.count = 0; p.count < batch_size && at + p.count < r->pictures; p.count++) {
            struct job *job = &r->jobs[(at + p.count) / num_images];
            float *start = sd_alloc_array(s, r->numel, sizeof *start);

            if (!same_length(job, &r->jobs[at / num_images]))
                break;
            fresh[p.count] = (struct fresh){ .run = r, .picture = at + p.count };
            start_of(r, &fresh[p.count], s, start);
            batch[p.count] = (struct sd_draw_picture){ .prompt = &job->states,
                                                       .negative = guidance_scale > 1 ? &job->negative_states : NULL,
                                                       .start = start, .fresh = draw_fresh, .user = &fresh[p.count],
                                                       .latents = r->latents + (size_t)(at + p.count) * r->numel };
        }
        if (sd_draw_pictures(r->draw, batch, (int)p.count, show_progress, &p) < 0)
            sd_die(model_name, "%s", sd_reason());
        sd_scope_close(s);
        if (at == 0)
            warn_unused_adapters(r);
    }
    for (int64_t i = 0; i < r->pictures; i++)
        if (!(r->image[i] = sd_draw_decode(r->draw, r->scope, r->latents + (size_t)i * r->numel)))
            sd_die(model_name, "picture %lld: %s", (long long)i, sd_reason());
    if (sd_verbosity >= 0 && isatty(STDERR_FILENO))
        fputc('\n', stderr);
}

/* -- publishing ----------------------------------------------------------------------------------------------------- */

static const char *
a1111_sampler(void)
{
    static const char *const names[][2] = { { "ddim", "DDIM" }, { "euler", "Euler" }, { "euler_a", "Euler a" },
                                            { "dpmpp_2m", "DPM++ 2M" }, { "dpmpp_2m_karras", "DPM++ 2M Karras" },
                                            { "unipc", "UniPC" }, { "pndm", "PLMS" } };

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i][0], sampler_name) == 0)
            return names[i][1];
    return sampler_name;
}

/* A1111's text: what image viewers and web interfaces read back. */
static const char *
parameters(struct run *r, int64_t i)
{
    const struct job *job = &r->jobs[i / num_images];
    char *text = sd_sprintf(r->scope, "%s\n", job->prompt);

    if (guidance_scale > 1)
        text = sd_sprintf(r->scope, "%sNegative prompt: %s\n", text, job->negative);
    text = sd_sprintf(r->scope, "%sSteps: %lld, Sampler: %s, CFG scale: %g, Seed: %lld, Size: %lldx%lld", text, (long long)steps,
                      a1111_sampler(), guidance_scale, (long long)(sd_shared.seed + i), (long long)width, (long long)height);
    if (clip_skip)
        text = sd_sprintf(r->scope, "%s, Clip skip: %lld", text, (long long)clip_skip + 1);
    if (init_image)
        text = sd_sprintf(r->scope, "%s, Denoising strength: %g", text, strength);
    if (guidance_rescale > 0)
        text = sd_sprintf(r->scope, "%s, CFG Rescale: %g", text, guidance_rescale);
    return sd_sprintf(r->scope, "%s, Version: sd-tools %s", text, SD_VERSION);
}

static bool
ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcasecmp(text + n - m, end) == 0;
}

static void
save_picture(const char *path, const struct sd_image *image, const char *text)
{
    const char *const texts[] = { "parameters", text, NULL };
    bool jpeg = ends_with(path, ".jpg") || ends_with(path, ".jpeg");

    if ((jpeg ? sd_image_save_jpeg(path, image, 95, text) : sd_image_save_png(path, image, text ? texts : NULL)) < 0)
        sd_die(path, "%s", sd_reason());
}

static struct sd_image *
for_sheet(struct run *r, struct sd_image *image)
{
    return sheet_scale == 1 ? image : sd_image_resize(r->scope, image, image->width * (int)sheet_scale,
                                                      image->height * (int)sheet_scale, SD_FILTER_BOX, NULL, NULL);
}

static void
save_sheet(struct run *r)
{
    size_t others = sheet_with.count, count = others + (size_t)r->pictures;
    struct sd_image **images = sd_alloc_array(r->scope, count, sizeof *images);
    const char **labels = sd_alloc_array(r->scope, count, sizeof *labels);
    int columns = sheet_columns ? (int)sheet_columns : num_images > 1 ? (int)num_images : count < 4 ? (int)count : 4;

    for (size_t i = 0; i < others; i++) {
        const char *slash = strrchr(sheet_with.item[i], '/');

        if (!(images[i] = sd_image_load(r->scope, sheet_with.item[i])))
            sd_die(sheet_with.item[i], "%s", sd_reason());
        images[i] = for_sheet(r, images[i]);
        labels[i] = slash ? slash + 1 : sheet_with.item[i];
    }
    for (int64_t i = 0; i < r->pictures; i++) {
        images[others + (size_t)i] = for_sheet(r, r->image[i]);
        labels[others + (size_t)i] = r->jobs[i / num_images].prompt;
    }
    save_picture(sheet, sd_image_sheet(r->scope, images, (int)count, columns, labels), NULL);
}

static void
write_records(struct run *r)
{
    sd_writer_begin("pictures");
    for (int64_t i = 0; i < r->pictures; i++) {
        struct sd_record *record = sd_record_new(r->scope);
        struct sd_record_tensor pixels = { "U8", 3, { r->image[i]->height, r->image[i]->width, 3 }, r->image[i]->data,
                                           (size_t)r->image[i]->height * (size_t)r->image[i]->width * 3 };
        char id[SD_SHA256_HEX];
        int64_t seed = sd_shared.seed + i;

        sd_sha256_of(pixels.data, pixels.bytes, id);
        sd_record_set_text(record, "id", id);
        sd_record_set_text(record, "prompt", r->jobs[i / num_images].prompt);
        sd_record_set_text(record, "parameters", parameters(r, i));
        sd_record_set_ints(record, "seed", &seed, 1);
        if (output_dir)
            sd_record_set_text(record, "picture", sd_sprintf(r->scope, "%05lld.png", (long long)i));
        sd_record_set_tensor(record, "pixel_values", &pixels);
        sd_record_write(record);
    }
    sd_writer_end();
}

static void
publish(struct run *r)
{
    if (save_latents) {
        struct sd_safetensors_writer *w = sd_safetensors_writer_new(r->scope);

        sd_safetensors_add(w, "latents", SD_F32, 4, (int64_t[]){ r->pictures, r->model->vae_config.latent_channels, r->h, r->w },
                           r->latents);
        if (sd_safetensors_save(w, save_latents) < 0)
            sd_die(save_latents, "%s", sd_reason());
    }
    if (output && strcmp(output, "-") != 0)
        save_picture(output, r->image[0], parameters(r, 0));
    for (int64_t i = 0; output_dir && i < r->pictures; i++)
        save_picture(sd_sprintf(r->scope, "%s/%05lld.png", output_dir, (long long)i), r->image[i], parameters(r, i));
    if (sheet)
        save_sheet(r);
    if (sd_shared.json_lines || (output && strcmp(output, "-") == 0))
        write_records(r);
    for (int64_t i = 0; preview && i < r->pictures; i++)
        if (sd_preview(r->image[i]) < 0)
            sd_warn("--preview", "%s", sd_reason());
}

/* -- before anything is loaded -------------------------------------------------------------------------------------- */

static void
check_outputs(struct run *r)
{
    if (!output && !output_dir && !sheet && !save_latents && !preview && !sd_shared.json_lines && !sd_shared.plan)
        sd_usage(NULL, "nothing to do with the pictures: give --output, --output-dir, --sheet, --save-latents, --preview or -j");
    if (output && strcmp(output, "-") != 0) {
        if (r->pictures > 1)
            sd_usage("--output", "%lld pictures need --output-dir", (long long)r->pictures);
        if (!ends_with(output, ".png") && !ends_with(output, ".jpg") && !ends_with(output, ".jpeg"))
            sd_usage("--output", "%s: expected .png or .jpg", output);
        sd_output_refuse(output, sd_shared.overwrite);
    }
    if (!sheet && (sheet_with.count || sheet_columns || sheet_scale > 1))
        sd_usage("--sheet", "the other --sheet options have no effect without it");
    if (sheet && !ends_with(sheet, ".png") && !ends_with(sheet, ".jpg"))
        sd_usage("--sheet", "%s: expected .png or .jpg", sheet);
    if (sheet)
        sd_output_refuse(sheet, sd_shared.overwrite);
    if (save_latents)
        sd_output_refuse(save_latents, sd_shared.overwrite);
    for (int64_t i = 0; output_dir && i < r->pictures; i++)
        sd_output_refuse(sd_sprintf(r->scope, "%s/%05lld.png", output_dir, (long long)i), sd_shared.overwrite);
    if (output_dir && !sd_shared.plan && sd_make_folders(output_dir) < 0)
        sd_die(output_dir, "%s", sd_reason());
}

static void
load(struct run *r)
{
    struct sd_model_options o = { .vae = vae };
    struct sd_draw_model m;
    struct sd_draw_options draw = { .syntax = strcmp(syntax, "plain") == 0 ? SD_PROMPT_PLAIN : SD_PROMPT_A1111,
                                    .guidance_scale = guidance_scale, .guidance_rescale = guidance_rescale,
                                    .clip_skip = (int)clip_skip, .memory = sd_shared.memory };
    json_t *scheduler;
    int factor;

    if (!(r->model = sd_model_open(r->scope, model_name, &o)))
        sd_die(model_name, "%s", sd_reason());
    if (!(r->tokenizer = sd_model_tokenizer(r->model, tokenizer)))
        sd_die(tokenizer ? tokenizer : model_name, "%s", sd_reason());
    factor = sd_vae_factor(&r->model->vae_config);
    if (!width)
        width = (int64_t)r->model->unet_config.sample_width * factor;
    if (!height)
        height = (int64_t)r->model->unet_config.sample_height * factor;
    if (!width || !height)
        sd_usage("--width", "the model does not say its size: give --width and --height");
    if (clip_skip > r->model->text_config.num_hidden_layers)
        sd_usage("--clip-skip", "%lld, the text encoder has %d layers", (long long)clip_skip, r->model->text_config.num_hidden_layers);
    scheduler = json_deep_copy(r->model->scheduler);
    sd_on_close(r->scope, (void (*)(void *))json_decref, scheduler);
    if (*spacing)
        json_object_set_new(scheduler, "timestep_spacing", json_string(spacing));
    if (!(r->sampler = sd_sampler_new(r->scope, scheduler, sampler_name, (int)steps, init_image ? &strength : NULL)))
        sd_die(sampler_name, "%s", sd_reason());
    load_embeddings(r);
    for (size_t i = 0; i < loras.count; i++) {
        double scale;
        const char *path = split_scale(r->scope, "--lora", loras.item[i], &scale);

        add_lora(r, path, scale, scale);
    }
    prompt_networks(r);
    r->h = height / factor;
    r->w = width / factor;
    r->numel = (size_t)(r->model->vae_config.latent_channels * r->h * r->w);
    m = (struct sd_draw_model){ r->model, r->tokenizer, r->adapters, r->rows };
    draw.width = width;
    draw.height = height;
    draw.sampler = r->sampler;
    if (!(r->draw = sd_draw_new(r->scope, &m, &draw)))
        sd_die(model_name, "%s", sd_reason());
    load_noise(r);
    if (init_image) {
        if (!(r->init_picture = sd_image_load(r->scope, init_image)))
            sd_die(init_image, "%s", sd_reason());
        if (r->init_picture->width != width || r->init_picture->height != height)
            r->init_picture = sd_image_resize(r->scope, r->init_picture, (int)width, (int)height, SD_FILTER_LANCZOS, NULL, NULL);
    }
}

static int
print_plan(struct run *r)
{
    int count = (int)(r->pictures < batch_size ? r->pictures : batch_size), chunks = 1;
    struct sd_draw_plan p;
    size_t weights = 0, peak;

    for (size_t i = 0; i < r->count; i++) {
        struct sd_prompt prompt;

        if (sd_prompt_encode(r->tokenizer, r->scope, strcmp(syntax, "plain") == 0 ? SD_PROMPT_PLAIN : SD_PROMPT_A1111,
                             r->jobs[i].text, &prompt) < 0)
            sd_die(r->jobs[i].prompt, "%s", sd_reason());
        chunks = prompt.chunks > chunks ? prompt.chunks : chunks;
    }
    if (sd_draw_plan(r->draw, count, chunks, r->init_picture != NULL, &p) < 0)
        sd_die(model_name, "%s", sd_reason());
    if (sd_model_unet(r->model))
        weights += sizeof(float) * (size_t)sd_weights_elements(sd_model_unet(r->model)->weights);
    weights += sizeof(float) * (size_t)(sd_weights_elements(sd_model_text_encoder(r->model)->weights)
                                        + sd_weights_elements(sd_model_vae(r->model)->weights));
    peak = sd_param_bytes_reserved() + p.arena_bytes + (size_t)r->pictures * (r->numel * sizeof(float) + (size_t)(width * height * 3));
    printf("{\"peak_bytes\": %zu, \"weights_bytes\": %zu, \"packed_bytes\": %zu, \"activations_bytes\": %zu, \"arena_bytes\": %zu, "
           "\"flops\": %.0f, \"decode_flops\": %.0f, \"text_flops\": %.0f, \"model_calls\": %d, \"pictures\": %lld}\n", peak, weights,
           sd_param_bytes_reserved(), p.activations_bytes, p.arena_bytes, p.step_flops, p.decode_flops, p.text_flops,
           r->sampler->calls, (long long)r->pictures);
    return SD_OK;
}

int
main(int argc, char **argv)
{
    struct run r = { .scope = sd_scope_open() };
    int status;

    sd_options(&argc, &argv, options, SD_OPT_RECORDS | SD_OPT_COMPUTE | SD_OPT_SEED | SD_OPT_OVERWRITE,
               "--model MODEL [--prompt TEXT] [file ...]", "draws pictures from prompts");
    if (!model_name)
        sd_usage("--model", "which model? a diffusers directory, a checkpoint file, or org/name");
    if (init_image && strength == 0)
        sd_usage("--strength", "0 draws nothing");
    status = collect_prompts(&r, argc, argv);
    if (!r.count)
        sd_usage(NULL, "no prompt: give --prompt or a file of prompts");
    r.pictures = (int64_t)r.count * num_images;
    check_outputs(&r);
    load(&r);
    if (sd_shared.plan)
        return sd_finish(print_plan(&r));
    r.latents = sd_alloc_array(r.scope, (size_t)r.pictures * r.numel, sizeof *r.latents);
    r.image = sd_alloc_array(r.scope, (size_t)r.pictures, sizeof *r.image);
    encode_texts(&r);
    draw_all(&r);
    publish(&r);
    sd_scope_close(r.scope);
    return sd_finish(status);
}
