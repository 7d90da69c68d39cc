/* session_publish - what a run writes: adapters, tokens, their metadata; and pictures drawn through them. */
#include "session_private.h"

#include "metadata.h"

#include <errno.h>
#include <math.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

bool
sd_is_kept(const char *path)
{
    struct stat st;

    return path && *path && stat(path, &st) == 0 && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode));
}

/* "emb-%s.safetensors" with the token, without characters that a file name should not hold */
static const char *
token_path(struct sd_scope *s, const char *pattern, const char *token)
{
    const char *at = strstr(pattern, "%s");
    char *clean = sd_strdup(s, token);

    if (!at)
        return pattern;
    for (char *c = clean; *c; c++)
        if (strchr("/\\<>:|?*\"", *c) || (unsigned char)*c < 32)
            *c = '_';
    return sd_sprintf(s, "%.*s%s%s", (int)(at - pattern), pattern, clean, at + 2);
}

static struct sd_outputs
outputs(struct sd_scope *s, const char *lora, const char *pattern)
{
    struct sd_outputs o = { .lora = lora, .tokens = pattern ? S.tokens.count : 0 };

    o.token = sd_alloc_array(s, o.tokens + 1, sizeof *o.token);
    for (size_t i = 0; i < o.tokens; i++) {
        const char *name = S.tokens.item[i];

        o.token[i] = token_path(s, pattern, sd_strndup(s, name, strcspn(name, "=")));
        for (size_t j = 0; j < i; j++)
            if (strcmp(o.token[i], o.token[j]) == 0)
                sd_usage("--placeholder-token", "two tokens would be written to %s", o.token[i]);
    }
    return o;
}

struct sd_outputs
sd_run_outputs(struct sd_scope *s, enum sd_session_kind kind)
{
    bool ti = kind == SD_SESSION_TI;

    return outputs(s, ti ? NULL : S.output, ti ? S.output : S.output_embedding);
}

static enum sd_dtype
save_dtype(void)
{
    return strcmp(S.save_dtype, "f32") == 0 ? SD_F32 : strcmp(S.save_dtype, "bf16") == 0 ? SD_BF16 : SD_F16;
}

static const char *
stem(struct sd_scope *s, const char *path)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *dot = strrchr(base, '.');

    return dot && dot > base ? sd_strndup(s, base, (size_t)(dot - base)) : base;
}

/* The bucket with most samples stands for the resolution. */
static const struct sd_bucket *
main_bucket(const struct sd_dataset *d)
{
    const struct sd_bucket *best = &d->bucket[0];

    for (int b = 1; b < d->buckets; b++)
        if (d->bucket[b].count > best->count)
            best = &d->bucket[b];
    return best;
}

/* scale * rank of the first convolution: by the options, or as --init-lora brought it */
static double
conv_alpha(const struct sd_run *x)
{
    for (size_t i = 0; x->adapters && i < sd_adapters_count(x->adapters); i++) {
        const struct sd_adapter *a = sd_adapters_at(x->adapters, i);

        if (a->kind == SD_ADAPTER_CONV)
            return (double)*(const float *)a->scale->raw * (double)a->down->shape[0];
    }
    return 0;
}

/* of the adapters, or, where lora is NULL, of tokens */
static const char *const *
metadata(struct sd_run *x, struct sd_scope *s, const struct sd_lora *lora, const char *path, int64_t step)
{
    int factor = sd_vae_factor(&x->model->vae_config);
    struct sd_metadata m = { .name = S.name ? S.name : stem(s, path),
                             .model = x->model,
                             .model_hash = x->unet_hash,
                             .settings = x->settings,
                             .made_from = x->made_from,
                             .lora = lora != NULL,
                             .vae_hash = x->data ? x->data->vae_hash : NULL,
                             .conv_rank = S.conv_rank,
                             .conv_alpha = conv_alpha(x),
                             .steps = step,
                             .images = x->data ? (int64_t)x->data->count : 0,
                             .batch_size = S.batch_size,
                             .accumulation = S.accumulation,
                             .seed = (uint64_t)sd_shared.seed,
                             .optimizer = S.optimizer,
                             .lr_scheduler = S.lr_scheduler,
                             .learning_rate = lora ? S.learning_rate : S.ti_learning_rate,
                             .unet_lr = S.learning_rate,
                             .text_encoder_lr = S.text_encoder_learning_rate };

    if (lora)
        sd_lora_dim(lora, save_dtype(), &m.rank, &m.alpha);
    if (x->data) {
        m.width = main_bucket(x->data)->width * factor;
        m.height = main_bucket(x->data)->height * factor;
        m.epochs = step * S.accumulation / sd_batches_per_epoch(x->data, (uint32_t)S.batch_size);
    } else {
        m.width = (int64_t)x->model->unet_config.sample_width * factor;
        m.height = (int64_t)x->model->unet_config.sample_height * factor;
    }
    return sd_metadata_pairs(s, &m);
}

/* ||a - b|| / ||b|| */
static double
distance(const float *a, const float *b, int64_t n)
{
    double d = 0, all = 0;

    for (int64_t i = 0; i < n; i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        all += (double)b[i] * b[i];
    }
    return sqrt(d / (all > 0 ? all : 1));
}

/* What a file of the chosen numbers loses of x. */
static double
rounding(const float *x, size_t n)
{
    struct sd_scope *s = sd_scope_open();
    float *kept = sd_alloc_array(s, n, sizeof *kept);
    void *file = sd_alloc_array(s, n, sizeof *kept);
    double d;

    sd_from_f32(file, save_dtype(), x, n);
    sd_to_f32(kept, file, save_dtype(), n);
    d = distance(kept, x, (int64_t)n);
    sd_scope_close(s);
    return d;
}

static void
say_rounding(const char *path, double r)
{
    if (!(r <= 0.005))
        sd_warn(path, "%s keeps its values to within %.2g %% only; --save-dtype f32 keeps them whole", S.save_dtype,
                100 * r);
}

static void
save_tokens(struct sd_run *x, struct sd_scope *s, const struct sd_outputs *to, int64_t step)
{
    int64_t width = x->model->text_config.hidden_size;
    bool a1111 = x->kind == SD_SESSION_TI && strcmp(S.format, "diffusers") != 0;

    for (size_t i = 0; i < to->tokens; i++) {
        const struct sd_token *k = &x->tokens->token[i];
        struct sd_embedding e = { .token = k->name, .vectors = k->vectors, .width = width,
                                  .values = (const float *)x->tokens->rows->value + k->first_row * width };
        struct sd_embedding *again;
        const char *path = to->token[i];
        double r;

        if (sd_embedding_save(&e, path, a1111 ? SD_EMBEDDING_A1111 : SD_EMBEDDING_DIFFUSERS, save_dtype(),
                              metadata(x, s, NULL, path, step)) < 0)
            sd_die(path, "%s", sd_reason());
        if (!sd_is_kept(path))
            continue;
        if (!(again = sd_embedding_load(s, path)))
            sd_die(path, "was written, but cannot be read again: %s", sd_reason());
        r = rounding(e.values, (size_t)(e.vectors * width));
        if (again->vectors != e.vectors || again->width != width
            || !(distance(again->values, e.values, e.vectors * width) <= 1.01 * r + 1e-6))
            sd_die(path, "was written, but reads back differently");
        say_rounding(path, r);
    }
}

static void
save_lora(struct sd_run *x, struct sd_scope *s, const char *path, const char *format, int64_t step)
{
    struct sd_lora *lora = sd_targets_lora(s, &x->targets, x->adapters);
    double worst;

    if (sd_lora_save(lora, path, sd_lora_format(format), save_dtype(), metadata(x, s, lora, path, step)) < 0)
        sd_die(path, "%s", sd_reason());
    if (!sd_is_kept(path))
        return;
    if (sd_lora_verify(lora, path, &worst) < 0)
        sd_die(path, "was written, but reads back differently: %s", sd_reason());
    say_rounding(path, worst);
}

void
sd_run_save(struct sd_run *x, const struct sd_outputs *to, const char *lora_format, int64_t step)
{
    struct sd_scope *s = sd_scope_open();

    sd_run_wait_for_hash(x);
    save_tokens(x, s, to, step);
    if (to->lora)
        save_lora(x, s, to->lora, lora_format, step);
    sd_scope_close(s);
}

/* -- pictures ---------------------------------------------------------------------------------------------------- */

struct words {
    struct sd_scope *s;
    const char **word;
    size_t count;
};

static void
say(struct words *w, const char *option, const char *value)
{
    w->word[w->count++] = option;
    if (value)
        w->word[w->count++] = value;
}

/* --output without a place for the token's name */
static const char *
base_name(struct sd_scope *s)
{
    return token_path(s, S.output, "tokens");
}

/* sd-sample beside this program, else the one in PATH. */
static const char *
sampler(struct sd_scope *s)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    char *slash;

    if (n > 0) {
        self[n] = 0;
        if ((slash = strrchr(self, '/'))) {
            const char *beside = sd_sprintf(s, "%.*s/sd-sample", (int)(slash - self), self);

            if (access(beside, X_OK) == 0)
                return beside;
        }
    }
    return "sd-sample";
}

static int
draw(struct sd_run *x, struct sd_scope *s, const struct sd_outputs *from, int64_t step)
{
    extern char **environ;
    struct words w = { s, sd_alloc_array(s, 32 + 2 * (S.validation_prompts.count + from->tokens), sizeof *w.word), 0 };
    pid_t child;
    int status, error;

    say(&w, sampler(s), NULL);
    say(&w, "--model", S.model);
    if (S.vae)
        say(&w, "--vae", S.vae);
    if (S.tokenizer)
        say(&w, "--tokenizer", S.tokenizer);
    for (size_t i = 0; i < S.validation_prompts.count; i++)
        say(&w, sd_sprintf(s, "--prompt=%s", S.validation_prompts.item[i]), NULL);
    for (size_t i = 0; i < from->tokens; i++)
        say(&w, "--embedding", sd_sprintf(s, "%s:%s", from->token[i], x->tokens->token[i].name));
    if (from->lora)
        say(&w, "--lora", from->lora);
    if (S.clip_skip)
        say(&w, "--clip-skip", sd_sprintf(s, "%lld", (long long)S.clip_skip));
    if (*sd_shared.dtype)
        say(&w, "--dtype", sd_shared.dtype);
    say(&w, "--device", sd_shared.device);
    setenv("SD_GPU_LOCK", "0", 1);      /* the device is this run's, and lent to it */
    if (sd_shared.threads)
        say(&w, "--threads", sd_sprintf(s, "%lld", (long long)sd_shared.threads));
    say(&w, "--sheet", sd_sprintf(s, "%s.step%06lld.png", base_name(s), (long long)step));
    say(&w, "--seed", sd_sprintf(s, "%lld", (long long)sd_shared.seed));
    say(&w, "--overwrite", "-q");
    if ((error = posix_spawnp(&child, w.word[0], NULL, NULL, (char *const *)(uintptr_t)w.word, environ)) != 0)
        return sd_fail("%s: %s", w.word[0], strerror(error));
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return sd_fail_errno("sd-sample");
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0
           : WIFEXITED(status) ? sd_fail("sd-sample ended with status %d", WEXITSTATUS(status))
           : sd_fail("sd-sample was ended by signal %d", WTERMSIG(status));
}

void
sd_run_preview(struct sd_run *x, const struct sd_outputs *made, int64_t step)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_outputs own;

    if (!made) {
        const char *base = sd_sprintf(s, "%s.step%06lld", base_name(s), (long long)step);

        own = outputs(s, x->kind == SD_SESSION_LORA ? sd_sprintf(s, "%s.safetensors", base) : NULL,
                      x->tokens ? sd_sprintf(s, "%s-%%s.safetensors", base) : NULL);
        sd_run_save(x, &own, "kohya", step);
    }
    if (draw(x, s, made ? made : &own, step) < 0)
        sd_warn("--validation-prompt", "no pictures of step %lld: %s", (long long)step, sd_reason());
    if (!made) {
        if (own.lora)
            unlink(own.lora);
        for (size_t i = 0; i < own.tokens; i++)
            unlink(own.token[i]);
    }
    sd_scope_close(s);
}
