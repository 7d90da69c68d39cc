/* session - a training run: open, resume, update, save, publish.  Over 600 lines would be two files; see targets, tokens,
 * session_options, metadata for the parts. */
#include "session.h"

#include "hash.h"
#include "metadata.h"
#include "model/model_tokenizer.h"
#include "op.h"
#include "safetensors.h"
#include "session_options.h"
#include "state.h"
#include "targets.h"
#include "tokens.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define S sd_session

struct session {
    struct sd_scope *scope;
    enum sd_session_kind kind;
    struct sd_model *model;
    struct sd_trainer_model m;
    struct sd_trainer_options o;
    struct sd_trainables *t;
    struct sd_adapters *adapters;
    struct sd_tokens *tokens;
    struct sd_targets targets;
    struct sd_dataset *data;
    struct sd_replay *replay;
    struct sd_trainer *trainer;
    json_t *settings;           /* everything a resumed run must have alike */
    pthread_t hashing;
    bool hash_running;
    int hash_status;
    char model_hash[65], vae_hash[65];
    int bad;                    /* records left out */
    FILE *log;
    double started;
    int64_t first;              /* updates done when this process began */
};

static volatile sig_atomic_t stop_signal;

static void
on_stop(int number)
{
    stop_signal = number;
}

static double
now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* -- opening -------------------------------------------------------------------------------------------------------- */

/* The weights' identity, found beside the work: a file of gigabytes takes seconds the first time, then it is remembered. */
static void *
hash_model(void *argument)
{
    struct session *x = argument;

    x->hash_status = sd_weights_hash(x->m.unet->weights, x->model_hash);
    return NULL;
}

static void
start_hashing(struct session *x)
{
    x->hash_running = pthread_create(&x->hashing, NULL, hash_model, x) == 0;
    if (!x->hash_running)
        hash_model(x);
}

static void
wait_for_hash(struct session *x)
{
    if (x->hash_running) {
        pthread_join(x->hashing, NULL);
        x->hash_running = false;
    }
    if (x->hash_status < 0)
        sd_die(S.model, "cannot hash its weights");
    json_object_set_new(x->settings, "model-hash", json_string(x->model_hash));
}

static void
open_model(struct session *x)
{
    if (!(x->model = sd_model_open(x->scope, S.model, NULL)) || !(x->m.unet = sd_model_unet(x->model))
        || !(x->m.text = sd_model_text_encoder(x->model)))
        sd_die(S.model, "%s", sd_reason());
    if (!(x->m.tokenizer = sd_model_tokenizer(x->model, S.tokenizer)))
        sd_die(S.tokenizer ? S.tokenizer : S.model, "%s", sd_reason());
    if (!(x->m.scheduler = sd_noise_scheduler_new(x->scope, x->model->scheduler, SD_DDPM)))
        sd_die(S.model, "scheduler: %s", sd_reason());
    if (S.clip_skip > x->model->text_config.num_hidden_layers)
        sd_usage("--clip-skip", "%lld, the text encoder has %d layers", (long long)S.clip_skip,
                 x->model->text_config.num_hidden_layers);
    x->m.scaling_factor = x->model->vae_config.scaling_factor;
}

static void
add_adapters(struct session *x)
{
    const char *patterns = S.target_modules;
    bool with_text = false;

    if (x->kind == SD_SESSION_TI)
        return;
    if (S.train_text_encoder)
        patterns = sd_sprintf(x->scope, "%s%ste:q_proj,te:k_proj,te:v_proj,te:out_proj", patterns, *patterns ? "," : "");
    x->targets = (struct sd_targets){ patterns, S.rank, S.conv_rank, S.alpha, S.conv_alpha, (uint64_t)sd_shared.seed };
    x->adapters = sd_adapters_new(x->scope);
    if (sd_targets_add(&x->targets, x->m.unet->weights, x->m.text->weights, x->t, x->adapters, &with_text) < 0)
        sd_usage("--target-modules", "%s", sd_reason());
    if (!with_text && sd_option_given("text-encoder-learning-rate"))
        sd_usage("--text-encoder-learning-rate", "has no effect: nothing of the text encoder is trained");
    x->m.adapters = x->adapters;
    x->m.text_trains |= with_text;
}

static void
add_tokens(struct session *x)
{
    if (!S.tokens.count)
        return;
    if (!(x->tokens = sd_tokens_add(x->scope, &S.tokens, S.num_vectors, x->m.tokenizer, x->model, x->t)))
        sd_usage("--placeholder-token", "%s", sd_reason());
    x->m.rows = x->tokens->rows;
    x->m.text_trains = true;
}

static void
start_values(struct session *x)
{
    sd_trainables_allocate(x->t);
    if (x->adapters) {
        struct sd_lora *init = NULL;

        if (S.init_lora && !(init = sd_lora_load(x->scope, S.init_lora)))
            sd_die(S.init_lora, "%s", sd_reason());
        if (sd_targets_start(&x->targets, x->adapters, init) < 0)
            sd_die(S.init_lora, "%s", sd_reason());
    }
    if (x->tokens) {
        struct sd_embedding *init = NULL;

        if (S.init_embedding && !(init = sd_embedding_load(x->scope, S.init_embedding)))
            sd_die(S.init_embedding, "%s", sd_reason());
        if (sd_tokens_start(x->tokens, x->model, x->m.tokenizer, init, (uint64_t)sd_shared.seed) < 0)
            sd_usage("--placeholder-token", "%s", sd_reason());
    }
}

/* Every token must stand in some caption, or it would never learn. */
static void
check_captions(struct session *x)
{
    for (size_t k = 0; x->tokens && x->data && k < x->tokens->count; k++) {
        bool found = false;

        for (size_t i = 0; i < x->data->count && !found; i++) {
            struct sd_scope *s = sd_scope_open();
            struct sd_ids ids;
            const char *caption = x->data->sample[i].caption;

            if (sd_tokenizer_encode(x->m.tokenizer, s, caption, strlen(caption), &ids) == 0)
                found = sd_tokens_in(x->tokens, k, x->model->text_config.vocab_size, ids.id, ids.count);
            sd_scope_close(s);
        }
        if (!found)
            sd_usage("--placeholder-token", "%s stands in no caption", x->tokens->token[k].name);
    }
}

static void
open_data(struct session *x, int argc, char **argv)
{
    if (S.replay) {
        if (argc > 1)
            sd_usage("--replay", "reads no records: %s", argv[1]);
        if (!(x->replay = sd_replay_open(x->scope, S.replay)))
            sd_die(S.replay, "%s", sd_reason());
        return;
    }
    if (!(x->data = sd_dataset_load(x->scope, argc, argv, &x->bad)))
        sd_die(NULL, "%s", sd_reason());
    if (S.masked_loss) {
        size_t masks = 0;

        for (size_t i = 0; i < x->data->count; i++)
            masks += x->data->sample[i].mask != NULL;
        if (!masks)
            sd_usage("--masked-loss", "no record has a mask");
        if (masks < x->data->count)
            sd_warn("--masked-loss", "%zu of %zu records have no mask and count whole", x->data->count - masks, x->data->count);
    }
    if (S.epochs) {
        int64_t batches = (int64_t)sd_batches_per_epoch(x->data, (uint32_t)S.batch_size) * S.epochs;

        S.max_train_steps = (batches + S.accumulation - 1) / S.accumulation;
    }
}

static void
trainer_options(struct session *x)
{
    struct sd_trainer_options *o = &x->o;

    *o = (struct sd_trainer_options){
        .seed = (uint64_t)sd_shared.seed, .batch_size = (uint32_t)S.batch_size, .accumulation = (uint32_t)S.accumulation,
        .updates = S.max_train_steps, .snr_gamma = S.snr_gamma, .noise_offset = S.noise_offset, .masked = S.masked_loss,
        .mask_normalize = strcmp(S.mask_normalize, "none") == 0 ? SD_MASK_NONE : SD_MASK_AREA,
        .unmasked_weight = S.unmasked_weight, .caption_dropout = S.caption_dropout,
        .dropped_caption = strcmp(S.caption_dropout_to, "trigger") == 0 ? x->tokens->token[0].name : "",
        .clip_skip = (int)S.clip_skip, .max_grad_norm = S.max_grad_norm, .lr_scheduler = S.lr_scheduler, .warmup = S.warmup,
        .optimizer = { strcmp(S.optimizer, "prodigy") == 0 ? SD_PRODIGY : SD_ADAMW, S.beta1, S.beta2, S.epsilon, S.weight_decay,
                       S.d0, S.d_coef, S.safeguard_warmup, S.use_bias_correction },
        .memory = sd_shared.memory };
    for (int g = 0; g < x->t->groups; g++) {
        const char *name = x->t->group[g].name;

        o->until[g] = strcmp(name, "tokens") == 0 ? S.ti_until : 1;
        o->learning_rate[g] = strcmp(name, "tokens") == 0 ? S.ti_learning_rate
                              : strcmp(name, "text_encoder") == 0 ? S.text_encoder_learning_rate : S.learning_rate;
    }
}

/* What a resumed run must have alike, and what stands in the output: options, data, model; no paths. */
static void
make_settings(struct session *x)
{
    static const char *const except[] = { "overwrite", "resume", "threads", "memory", "plan", "checkpointing-steps",
                                          "validation-prompt", "sample-every", "name", "device", NULL };
    struct sd_sha256 *h = sd_sha256_new(x->scope);
    char hex[SD_SHA256_HEX];

    x->settings = sd_options_json(except);
    sd_on_close(x->scope, (void (*)(void *))json_decref, x->settings);
    if (S.epochs) {
        json_object_del(x->settings, "num-train-epochs");
        json_object_set_new(x->settings, "max-train-steps", json_integer(S.max_train_steps));
    }
    for (size_t i = 0; x->data && i < x->data->count; i++) {
        const struct sd_sample *k = &x->data->sample[i];
        size_t n = (size_t)(k->height * k->width), all = n * (size_t)x->data->channels;

        sd_sha256_update(h, k->id, strlen(k->id) + 1);
        sd_sha256_update(h, k->caption, strlen(k->caption) + 1);
        sd_sha256_update(h, k->mean, all * sizeof *k->mean);
        sd_sha256_update(h, k->logvar, all * sizeof *k->logvar);
        if (k->mask)
            sd_sha256_update(h, k->mask, n * sizeof *k->mask);
    }
    sd_sha256_hex(h, hex);
    if (x->data)
        json_object_set_new(x->settings, "data-hash", json_string(hex));
    if (x->replay && sd_hash_file(S.replay, hex) == 0)
        json_object_set_new(x->settings, "replay-hash", json_string(hex));
    json_object_set_new(x->settings, "numeric-contract", json_string("1 " SD_VERSION));
    json_object_set_new(x->settings, "isa", json_string(sd_isa_name()));
}

/* -- log and state -------------------------------------------------------------------------------------------------- */

/* Keep the lines up to `step`; later ones belong to updates that will be made again. */
static void
cut_log(int64_t step)
{
    FILE *f = fopen(S.log, "r+");
    char *line = NULL;
    size_t room = 0;
    off_t keep = 0;
    int64_t last = 0;

    if (!f)
        return;
    while (last < step && getline(&line, &room, f) > 0) {
        const char *at = strstr(line, "\"step\": ");

        last = at ? strtoll(at + 8, NULL, 10) : last + 1;
        if (last <= step)
            keep = ftello(f);
    }
    free(line);
    if (ftruncate(fileno(f), keep) < 0)
        sd_die(S.log, "cannot be cut: %s", strerror(errno));
    fclose(f);
}

static void
open_log(int64_t step)
{
    if (!S.log)
        return;
    if (step)
        cut_log(step);
}

static void
save_state(struct session *x, int64_t step)
{
    wait_for_hash(x);
    if (sd_state_save(S.state, x->t, sd_trainer_optimizer(x->trainer), step, x->settings) < 0)
        sd_die(S.state, "%s", sd_reason());
}

/* Returns the updates already done. */
static int64_t
take_up(struct session *x)
{
    int64_t step = 0;
    int found;

    if (!S.resume) {
        if (access(S.state, F_OK) == 0) {
            if (!sd_shared.overwrite)
                sd_usage(S.state, "a state of an unfinished run is there: --resume goes on, --overwrite begins again");
            if (unlink(S.state) < 0)
                sd_die(S.state, "%s", strerror(errno));
        }
        return 0;
    }
    if (access(S.state, F_OK) != 0) {
        sd_note(0, "no state to resume from, beginning");
        return 0;
    }
    wait_for_hash(x);
    found = sd_state_load(S.state, x->t, sd_trainer_optimizer(x->trainer), &step, x->settings);
    if (found == -2)
        sd_usage(S.state, "belongs to another run: %s", sd_reason());
    if (found < 0)
        sd_die(S.state, "%s", sd_reason());
    sd_note(0, "resuming after step %lld", (long long)step);
    return step;
}

static void
write_log(struct session *x, const struct sd_update *u, double seconds)
{
    if (!S.log)
        return;
    if (!x->log && !(x->log = fopen(S.log, u->step == 1 ? "w" : "a")))
        sd_die(S.log, "%s", strerror(errno));
    fprintf(x->log, "{\"step\": %lld, \"loss\": %.9g, \"lr\": %.9g", (long long)u->step, u->loss, u->lr[0]);
    for (int g = 0; g < x->t->groups; g++)
        fprintf(x->log, ", \"lr_%s\": %.9g", x->t->group[g].name, u->lr[g]);
    fprintf(x->log, ", \"grad_norm\": %.9g", u->grad_norm);
    for (int g = 0; g < x->t->groups; g++)
        fprintf(x->log, ", \"grad_norm_%s\": %.9g", x->t->group[g].name, u->group_norm[g]);
    fprintf(x->log, ", \"seconds\": %.4f, \"images_per_second\": %.4f}\n", seconds, (double)u->samples / seconds);
    if (fflush(x->log) != 0)
        sd_die(S.log, "%s", strerror(errno));
}

/* -- publishing ----------------------------------------------------------------------------------------------------- */

static enum sd_dtype
save_dtype(void)
{
    return strcmp(S.save_dtype, "f32") == 0 ? SD_F32 : strcmp(S.save_dtype, "bf16") == 0 ? SD_BF16 : SD_F16;
}

static const char *
stem(struct session *x, const char *path)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path, *dot = strrchr(base, '.');

    return dot && dot > base ? sd_strndup(x->scope, base, (size_t)(dot - base)) : base;
}

static const char *const *
metadata(struct session *x, const struct sd_lora *lora, const char *name, int64_t step)
{
    int factor = sd_vae_factor(&x->model->vae_config);
    struct sd_metadata m = { .name = name, .model = x->model, .model_hash = x->model_hash, .settings = x->settings, .lora = lora,
                             .vae_hash = x->data ? x->data->vae_hash : NULL,
                             .alpha = S.alpha > 0 ? S.alpha : (double)S.rank, .steps = step,
                             .images = x->data ? (int64_t)x->data->count : 0, .batch_size = S.batch_size,
                             .accumulation = S.accumulation, .seed = (uint64_t)sd_shared.seed, .optimizer = S.optimizer,
                             .lr_scheduler = S.lr_scheduler, .learning_rate = lora ? S.learning_rate : S.ti_learning_rate,
                             .unet_lr = S.learning_rate, .text_encoder_lr = S.text_encoder_learning_rate };

    if (x->data) {
        m.width = x->data->bucket[0].width * factor;
        m.height = x->data->bucket[0].height * factor;
        m.epochs = step * S.accumulation / sd_batches_per_epoch(x->data, (uint32_t)S.batch_size);
    } else
        m.width = m.height = (int64_t)x->model->unet_config.sample_width * factor;
    return sd_metadata_pairs(x->scope, &m);
}

/* "emb-%s.safetensors" with the token, without characters that a file name should not hold */
static const char *
token_path(struct session *x, const char *pattern, const char *token)
{
    const char *at = strstr(pattern, "%s");
    char *clean = sd_strdup(x->scope, token);

    if (!at)
        return pattern;
    for (char *c = clean; *c; c++)
        if (strchr("/\\<>:|?*\"", *c))
            *c = '_';
    return sd_sprintf(x->scope, "%.*s%s%s", (int)(at - pattern), pattern, clean, at + 2);
}

static void
save_tokens(struct session *x, const char *pattern, bool a1111, int64_t step)
{
    int64_t width = x->model->text_config.hidden_size;

    for (size_t i = 0; i < x->tokens->count; i++) {
        const struct sd_token *k = &x->tokens->token[i];
        struct sd_embedding e = { .token = k->name, .vectors = k->vectors, .width = width,
                                  .values = (const float *)x->tokens->rows->value + k->first_row * width };
        const char *path = token_path(x, pattern, k->name);

        if (sd_embedding_save(&e, path, a1111 ? SD_EMBEDDING_A1111 : SD_EMBEDDING_DIFFUSERS, save_dtype(),
                              metadata(x, NULL, S.name ? S.name : stem(x, path), step)) < 0)
            sd_die(path, "%s", sd_reason());
    }
}

static void
save_all(struct session *x, const char *output, const char *embedding, int64_t step)
{
    wait_for_hash(x);
    if (x->kind == SD_SESSION_TI) {
        save_tokens(x, output, strcmp(S.format, "diffusers") != 0, step);
        return;
    }
    if (x->tokens)
        save_tokens(x, embedding, false, step);
    {
        struct sd_lora *lora = sd_targets_lora(x->scope, x->adapters);
        double worst, allowed = save_dtype() == SD_F32 ? 1e-6 : save_dtype() == SD_F16 ? 2e-3 : 2e-2;

        if (sd_lora_save(lora, output, sd_lora_format(S.format), save_dtype(),
                         metadata(x, lora, S.name ? S.name : stem(x, output), step)) < 0)
            sd_die(output, "%s", sd_reason());
        if (sd_lora_verify(lora, output, &worst) < 0 || !(worst <= allowed))
            sd_die(output, "was written, but reads back differently: %s", worst <= allowed ? sd_reason() : "weights differ");
    }
}

/* Pictures through the written file and sd-sample, as its users will draw them. */
static void
validate(struct session *x, int64_t step)
{
    extern char **environ;
    const char *lora = sd_sprintf(x->scope, "%s.step%lld.safetensors", S.output, (long long)step);
    const char *embedding = sd_sprintf(x->scope, "%s.step%lld-%%s.safetensors", S.output, (long long)step);
    const char *sheet = sd_sprintf(x->scope, "%s.step%06lld.png", S.output, (long long)step);
    const char **argv = sd_alloc_array(x->scope, 24 + 2 * (S.validation_prompts.count + S.tokens.count), sizeof *argv);
    size_t n = 0;
    pid_t child;
    int status;

    if (x->kind == SD_SESSION_TI)
        save_tokens(x, embedding, false, step);
    else
        save_all(x, lora, embedding, step);
    argv[n++] = "sd-sample";
    argv[n++] = "--model";
    argv[n++] = S.model;
    for (size_t i = 0; i < S.validation_prompts.count; i++) {
        argv[n++] = "--prompt";
        argv[n++] = S.validation_prompts.item[i];
    }
    for (size_t i = 0; i < S.tokens.count; i++) {
        argv[n++] = "--embedding";
        argv[n++] = token_path(x, embedding, x->tokens->token[i].name);
    }
    if (x->kind == SD_SESSION_LORA) {
        argv[n++] = "--lora";
        argv[n++] = lora;
    }
    argv[n++] = "--sheet";
    argv[n++] = sheet;
    argv[n++] = "--overwrite";
    argv[n++] = "-q";
    argv[n++] = "--seed";
    argv[n++] = sd_sprintf(x->scope, "%lld", (long long)sd_shared.seed);
    if (posix_spawnp(&child, argv[0], NULL, NULL, (char *const *)(uintptr_t)argv, environ) != 0 || waitpid(child, &status, 0) < 0
        || status != 0)
        sd_warn("--validation-prompt", "sd-sample drew nothing at step %lld", (long long)step);
    if (x->kind == SD_SESSION_LORA)
        unlink(lora);
    for (size_t i = 0; i < S.tokens.count; i++)
        unlink(token_path(x, embedding, x->tokens->token[i].name));
}

/* -- the loop ------------------------------------------------------------------------------------------------------- */

static void
report(struct session *x, const struct sd_update *u, double seconds)
{
    bool terminal = isatty(STDERR_FILENO), expected = u->step == x->first + 3;
    double mean = (now() - x->started) / (double)(u->step - x->first);

    if (u->step == 1)
        for (int g = 0; g < x->t->groups; g++) {
            sd_note(0, "%s: %zu numbers, gradient norm %.4g", x->t->group[g].name, x->t->group[g].count, u->group_norm[g]);
            if (!(u->group_norm[g] > 0))
                sd_die(x->t->group[g].name, "its gradient is zero: nothing would be learned");
        }
    if (expected)
        sd_note(0, "about %.0f s more at %.2f s a step", mean * (double)(S.max_train_steps - u->step), mean);
    if (terminal && sd_verbosity >= 0)
        fprintf(stderr, "\r%s: step %lld/%lld loss %.4f lr %.2e %.2f s/step ", sd_program, (long long)u->step,
                (long long)S.max_train_steps, u->loss, u->lr[0], seconds);
    else if (u->step % 50 == 0 || u->step == S.max_train_steps)
        sd_note(0, "step %lld/%lld loss %.4f lr %.2e %.2f s/step", (long long)u->step, (long long)S.max_train_steps, u->loss,
                u->lr[0], seconds);
}

static void
stop(struct session *x, int64_t step)
{
    int number = stop_signal;

    save_state(x, step);
    sd_note(0, "stopped after step %lld and saved; the same command with --resume goes on", (long long)step);
    signal(number, SIG_DFL);
    raise(number);
}

static void
train(struct session *x)
{
    int64_t done = take_up(x);
    struct sigaction action = { .sa_handler = on_stop };

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    open_log(done);
    x->first = done;
    x->started = now();
    while (done < S.max_train_steps) {
        struct sd_update u;
        double start = now(), seconds;

        if (sd_trainer_update(x->trainer, done, &u) < 0) {
            if (done > 0)
                save_state(x, done);
            sd_die(S.model, "%s%s", sd_reason(), done > 0 ? "; the state before it is saved" : "");
        }
        done++;
        seconds = now() - start;
        report(x, &u, seconds);
        write_log(x, &u, seconds);
        if (stop_signal)
            stop(x, done);
        if (done % S.checkpointing_steps == 0 && done < S.max_train_steps)
            save_state(x, done);
        if (S.sample_every && done % S.sample_every == 0 && done < S.max_train_steps)
            validate(x, done);
    }
    if (isatty(STDERR_FILENO) && sd_verbosity >= 0)
        fputc('\n', stderr);
    if (x->log && fclose(x->log) != 0)
        sd_die(S.log, "%s", strerror(errno));
    save_all(x, S.output, S.output_embedding, done);
    if (S.validation_prompts.count)
        validate(x, done);
    if (access(S.state, F_OK) == 0 && unlink(S.state) < 0)
        sd_warn(S.state, "could not be removed: %s", strerror(errno));
}

static int
print_plan(struct session *x)
{
    struct sd_trainer_plan p;
    size_t weights, peak, trained = x->t->count * sizeof(float) * (size_t)(2 + sd_trainer_optimizer(x->trainer)->buffers);
    size_t sums = x->t->count * sizeof(float);      /* the accumulation tree */

    if (sd_trainer_plan(x->trainer, &p) < 0)
        sd_die(S.model, "%s", sd_reason());
    for (uint32_t k = (uint32_t)S.accumulation; k > 1; k >>= 1)
        sums += x->t->count * sizeof(float);
    weights = sizeof(float) * (size_t)(sd_weights_elements(x->m.unet->weights) + sd_weights_elements(x->m.text->weights));
    peak = sd_param_bytes_reserved() + p.arena_bytes + trained + sums;
    printf("{\"peak_bytes\": %zu, \"weights_bytes\": %zu, \"packed_bytes\": %zu, \"activations_bytes\": %zu, \"arena_bytes\": %zu, "
           "\"trainable_bytes\": %zu, \"flops\": %.0f, \"updates\": %lld, \"samples\": %zu, \"buckets\": %d}\n", peak, weights,
           sd_param_bytes_reserved(), p.activations_bytes, p.arena_bytes, trained + sums, p.flops, (long long)S.max_train_steps,
           x->data ? x->data->count : 0, p.buckets);
    return SD_OK;
}

/* Refuse before anything is loaded; with --resume an output that is there is a finished run. */
static bool
already_done(struct session *x)
{
    const char *last = x->kind == SD_SESSION_TI && S.tokens.count > 1
                       ? token_path(x, S.output, sd_strndup(x->scope, S.tokens.item[0], strcspn(S.tokens.item[0], "=")))
                       : S.output;

    if (sd_shared.plan || !*last || access(last, F_OK) != 0)
        return false;
    if (S.resume && access(S.state, F_OK) != 0 && !sd_shared.overwrite) {
        sd_note(0, "%s is finished, nothing to do", last);
        return true;
    }
    if (!(S.resume && access(S.state, F_OK) == 0))
        sd_output_refuse(last, sd_shared.overwrite);
    return false;
}

int
sd_session_main(int argc, char **argv, enum sd_session_kind kind)
{
    struct session x = { .scope = sd_scope_open(), .kind = kind };
    int status;

    sd_session_options_read(&argc, &argv, kind);
    if (already_done(&x))
        return sd_finish(SD_OK);
    open_model(&x);
    x.t = sd_trainables_new(x.scope);
    add_adapters(&x);
    add_tokens(&x);
    start_values(&x);
    open_data(&x, argc, argv);
    check_captions(&x);
    trainer_options(&x);
    make_settings(&x);
    if (!(x.trainer = sd_trainer_new(x.scope, &x.m, &x.o, x.t, x.data, x.replay)))
        sd_die(S.replay ? S.replay : S.model, "%s", sd_reason());
    if (sd_shared.plan)
        return sd_finish(print_plan(&x));
    start_hashing(&x);
    train(&x);
    status = x.bad ? SD_SOME_BAD : SD_OK;
    sd_scope_close(x.scope);
    return sd_finish(status);
}
