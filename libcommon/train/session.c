/* session - a training run from options to the first step: model, adapters, tokens, data, what all was made from. */
#include "session_private.h"

#include "compute.h"
#include "file.h"
#include "op.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* -- the model's identity ---------------------------------------------------------------------------------------- */

/* Found beside the work: a file of gigabytes takes seconds the first time, then it is remembered. */
static void *
hash_model(void *argument)
{
    struct sd_run *x = argument;

    if (sd_weights_hash(x->m.unet->weights, x->unet_hash) < 0 || sd_weights_hash(x->m.text->weights, x->text_hash) < 0)
        x->hash_fault = sd_strdup(NULL, sd_reason());
    return NULL;
}

static void
start_hashing(struct sd_run *x)
{
    x->hash_running = pthread_create(&x->hashing, NULL, hash_model, x) == 0;
    if (!x->hash_running)
        hash_model(x);
}

void
sd_run_wait_for_hash(struct sd_run *x)
{
    if (x->hash_running) {
        pthread_join(x->hashing, NULL);
        x->hash_running = false;
    }
    if (x->hash_fault)
        sd_die(S.model, "%s", x->hash_fault);
    json_object_set_new(x->made_from, "unet-hash", json_string(x->unet_hash));
    json_object_set_new(x->made_from, "text-encoder-hash", json_string(x->text_hash));
}

/* -- opening ----------------------------------------------------------------------------------------------------- */

/* Recorded batches are ids already: only words to start from need a tokenizer then. */
static bool
needs_tokenizer(void)
{
    bool words = false;

    for (size_t i = 0; i < S.tokens.count; i++)
        words |= strchr(S.tokens.item[i], '=') != NULL;
    if (S.replay && !words && S.tokenizer)
        sd_usage("--tokenizer", "has no effect with --replay");
    return !S.replay || words;
}

static void
open_model(struct sd_run *x)
{
    const struct sd_model_options with = { .vae = S.vae };

    if (!(x->model = sd_model_open(x->scope, S.model, &with)) || !(x->m.unet = sd_model_unet(x->model))
        || !(x->m.text = sd_model_text_encoder(x->model)))
        sd_die(S.model, "%s", sd_reason());
    if (needs_tokenizer() && !(x->m.tokenizer = sd_model_tokenizer(x->model, S.tokenizer)))
        sd_die(S.tokenizer ? S.tokenizer : S.model, "%s", sd_reason());
    if (!(x->m.scheduler = sd_noise_scheduler_new(x->scope, x->model->scheduler, SD_DDPM)))
        sd_die(S.model, "scheduler: %s", sd_reason());
    if (S.clip_skip >= x->model->text_config.num_hidden_layers)
        sd_usage("--clip-skip", "%lld, the text encoder has %d layers", (long long)S.clip_skip,
                 x->model->text_config.num_hidden_layers);
    x->m.scaling_factor = x->model->vae_config.scaling_factor;
    x->m.compute = *sd_shared_compute();
}

static void
add_adapters(struct sd_run *x)
{
    const char *patterns = S.target_modules;
    bool with_text = false, with_conv = false;

    if (x->kind == SD_SESSION_TI)
        return;
    if (S.train_text_encoder)
        patterns =
            sd_sprintf(x->scope, "%s%ste:q_proj,te:k_proj,te:v_proj,te:out_proj", patterns, *patterns ? "," : "");
    x->targets = (struct sd_targets){ .patterns = patterns, .rank = S.rank, .conv_rank = S.conv_rank, .alpha = S.alpha,
                                      .conv_alpha = S.conv_alpha, .seed = (uint64_t)sd_shared.seed };
    x->adapters = sd_adapters_new(x->scope);
    if (sd_targets_add(&x->targets, x->m.unet->weights, x->m.text->weights, x->t, x->adapters, &with_text) < 0)
        sd_usage("--target-modules", "%s", sd_reason());
    if (!sd_adapters_count(x->adapters))
        sd_usage("--target-modules", "\"%s\" names no layer", patterns);
    for (size_t i = 0; i < sd_adapters_count(x->adapters); i++)
        with_conv |= sd_adapters_at(x->adapters, i)->kind == SD_ADAPTER_CONV;
    if (!with_conv)
        sd_session_idle("conv-rank", "no convolution larger than 1x1 is adapted");
    if (!with_text)
        sd_session_idle("text-encoder-learning-rate", "nothing of the text encoder is adapted");
    x->m.adapters = x->adapters;
    x->m.text_trains |= with_text;
}

static void
add_tokens(struct sd_run *x)
{
    if (!S.tokens.count)
        return;
    if (!(x->tokens = sd_tokens_add(x->scope, &S.tokens, S.num_vectors, x->m.tokenizer, x->model, x->t)))
        sd_usage("--placeholder-token", "%s", sd_reason());
    x->m.rows = x->tokens->rows;
    x->m.text_trains = true;
}

static void
start_values(struct sd_run *x)
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
        if (sd_tokens_start(x->tokens, x->model, x->m.tokenizer, init, (uint64_t)sd_shared.seed) < 0) {
            if (init)
                sd_die(S.init_embedding, "%s", sd_reason());
            sd_usage("--placeholder-token", "%s", sd_reason());
        }
    }
}

/* Every token must stand in some caption, or it would never learn. */
static void
check_captions(struct sd_run *x)
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
check_masks(struct sd_run *x)
{
    size_t masks = 0;

    if (!S.masked_loss)
        return;
    for (size_t i = 0; i < x->data->count; i++)
        masks += x->data->sample[i].mask != NULL;
    if (!masks)
        sd_usage("--masked-loss", "no record has a mask");
    if (masks < x->data->count)
        sd_warn("--masked-loss", "%zu of %zu records have no mask and count whole", x->data->count - masks,
                x->data->count);
}

/* Latents of another VAE than the model's may be meant (a finer decoder of the same latents), and must be said. */
static void
check_vae(struct sd_run *x)
{
    struct sd_vae *vae = x->data->vae_hash ? sd_model_vae(x->model) : NULL;
    char hex[SD_SHA256_HEX];

    if (vae && sd_weights_hash(vae->weights, hex) == 0 && strcmp(hex, x->data->vae_hash) != 0)
        sd_warn(NULL, "the records were encoded by another VAE (%.12s) than the model's (%.12s)", x->data->vae_hash,
                hex);
}

static void
open_data(struct sd_run *x, int argc, char **argv)
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
    check_masks(x);
    check_vae(x);
    if (S.epochs) {
        int64_t batches = (int64_t)sd_batches_per_epoch(x->data, (uint32_t)S.batch_size) * S.epochs;

        S.max_train_steps = (batches + S.accumulation - 1) / S.accumulation;
    }
}

static void
trainer_options(struct sd_run *x)
{
    struct sd_trainer_options *o = &x->o;

    *o = (struct sd_trainer_options){
        .seed = (uint64_t)sd_shared.seed,
        .batch_size = (uint32_t)S.batch_size,
        .accumulation = (uint32_t)S.accumulation,
        .updates = S.max_train_steps,
        .snr_gamma = S.snr_gamma,
        .noise_offset = S.noise_offset,
        .masked = S.masked_loss,
        .mask_normalize = strcmp(S.mask_normalize, "none") == 0 ? SD_MASK_NONE : SD_MASK_AREA,
        .unmasked_weight = S.unmasked_weight,
        .caption_dropout = S.caption_dropout,
        .dropped_caption = strcmp(S.caption_dropout_to, "trigger") == 0 ? x->tokens->token[0].name : "",
        .clip_skip = (int)S.clip_skip,
        .max_grad_norm = S.max_grad_norm,
        .lr_scheduler = S.lr_scheduler,
        .warmup = S.warmup,
        .optimizer = { strcmp(S.optimizer, "prodigy") == 0 ? SD_PRODIGY : SD_ADAMW, S.beta1, S.beta2, S.epsilon,
                       S.weight_decay, S.d0, S.d_coef, S.safeguard_warmup, S.use_bias_correction },
        .memory = sd_shared.memory
    };
    for (int g = 0; g < x->t->groups; g++) {
        const char *name = x->t->group[g].name;

        o->until[g] = strcmp(name, "tokens") == 0 ? S.ti_until : 1;
        o->learning_rate[g] = strcmp(name, "tokens") == 0 ? S.ti_learning_rate
                              : strcmp(name, "text_encoder") == 0 ? S.text_encoder_learning_rate : S.learning_rate;
    }
}

/* -- what a run is made from ------------------------------------------------------------------------------------- */

/* What is trained on: pictures, and captions as the ids they have with this tokenizer. */
static void
hash_data(struct sd_run *x, char hex[SD_SHA256_HEX])
{
    struct sd_scope *s = sd_scope_open();
    struct sd_sha256 *h = sd_sha256_new(s);

    for (size_t i = 0; i < x->data->count; i++) {
        const struct sd_sample *k = &x->data->sample[i];
        size_t n = (size_t)(k->height * k->width), all = n * (size_t)x->data->channels;
        struct sd_ids ids = { 0 };

        if (sd_tokenizer_encode(x->m.tokenizer, s, k->caption, strlen(k->caption), &ids) < 0)
            sd_die(k->source, "%s", sd_reason());
        sd_sha256_update(h, k->id, strlen(k->id) + 1);
        sd_sha256_update(h, (int64_t[]){ k->height, k->width, (int64_t)ids.count, k->mask != NULL },
                         4 * sizeof(int64_t));
        sd_sha256_update(h, ids.id, ids.count * sizeof *ids.id);
        sd_sha256_update(h, k->mean, all * sizeof *k->mean);
        sd_sha256_update(h, k->logvar, all * sizeof *k->logvar);
        if (k->mask)
            sd_sha256_update(h, k->mask, n * sizeof *k->mask);
    }
    sd_sha256_hex(h, hex);
    sd_scope_close(s);
}

static void
put_file_hash(struct sd_run *x, const char *key, const char *path)
{
    char hex[SD_SHA256_HEX];

    if (!path)
        return;
    if (sd_hash_file(path, hex) < 0)
        sd_die(path, "%s", sd_reason());
    json_object_set_new(x->made_from, key, json_string(hex));
}

/* A LoRA may be a folder: what counts is the factors, and their scales. */
static void
put_start_hash(struct sd_run *x)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_sha256 *h = sd_sha256_new(s);
    char hex[SD_SHA256_HEX];

    sd_sha256_update(h, x->t->value, x->t->count * sizeof *x->t->value);
    for (size_t i = 0; x->adapters && i < sd_adapters_count(x->adapters); i++)
        sd_sha256_update(h, sd_adapters_at(x->adapters, i)->scale->raw, sizeof(float));
    sd_sha256_hex(h, hex);
    json_object_set_new(x->made_from, "start-hash", json_string(hex));
    sd_scope_close(s);
}

/* settings: what the user chose, usable as --config.  made_from: that and everything else a resumed run must have
 * alike. */
static void
make_settings(struct sd_run *x)
{
    static const char *const except[] = { "overwrite",         "resume",       "keep-going", "checkpointing-steps",
                                          "validation-prompt", "sample-every", "name",       NULL };
    const char *winograd = getenv("SD_WINOGRAD");       /* other bits, see kernels/winograd.h */
    char hex[SD_SHA256_HEX];

    x->settings = sd_options_json(except);
    sd_on_close(x->scope, (void (*)(void *))json_decref, x->settings);
    sd_session_remove_idle(x->settings);
    if (S.epochs) {         /* the data may have more samples the next time; the schedule is in steps */
        json_object_del(x->settings, "num-train-epochs");
        json_object_set_new(x->settings, "max-train-steps", json_integer(S.max_train_steps));
    }
    x->made_from = json_copy(x->settings);
    sd_on_close(x->scope, (void (*)(void *))json_decref, x->made_from);
    if (x->data) {
        hash_data(x, hex);
        json_object_set_new(x->made_from, "data-hash", json_string(hex));
    }
    put_file_hash(x, "replay-hash", S.replay);
    put_start_hash(x);
    {
        struct sd_scope *s = sd_scope_open();
        const char *scheduler = sd_json_dump(s, x->model->scheduler, 0);

        sd_sha256_of(scheduler, strlen(scheduler), hex);
        json_object_set_new(x->made_from, "scheduler-hash", json_string(hex));
        sd_scope_close(s);
    }
    json_object_set_new(x->made_from, "scaling-factor", json_real(x->m.scaling_factor));
    json_object_set_new(x->made_from, "numeric-contract", json_string("1 " SD_VERSION));
    json_object_set_new(x->made_from, "isa", json_string(sd_compute_unit(&x->m.compute)));
    json_object_set_new(x->made_from, "dtype", json_string(sd_compute_dtype(&x->m.compute)));
    json_object_set_new(x->made_from, "winograd", json_boolean(!winograd || *winograd != '0'));
}

/* -- --plan ------------------------------------------------------------------------------------------------------ */

static int
print_plan(struct sd_run *x)
{
    const struct sd_device *device = x->m.compute.device;
    struct sd_trainer_plan p;
    size_t weights;

    if (sd_trainer_plan(x->trainer, &p) < 0)
        sd_die(S.replay ? S.replay : S.model, "%s", sd_reason());
    weights =
        sizeof(float) * (size_t)(sd_weights_elements(x->m.unet->weights) + sd_weights_elements(x->m.text->weights));
    printf("{\"peak_bytes\": %zu, \"weights_bytes\": %zu, \"packed_bytes\": %zu, \"activations_bytes\": %zu, "
           "\"arena_bytes\": %zu, "
           "\"flops\": %.0f, \"updates\": %lld, \"samples\": %zu, \"buckets\": %d%s%s}\n",
           p.peak_bytes, weights, sd_param_bytes_reserved(), p.activations_bytes, p.arena_bytes, p.flops,
           (long long)S.max_train_steps, x->data ? x->data->count : 0, p.buckets, device ? ", \"device\": " : "",
           device ? sd_device_bytes_json(x->scope, &p.device) : "");
    return SD_OK;
}

/* -- main -------------------------------------------------------------------------------------------------------- */

/* The folder of an output must be there and take files, and a folder is no file: better known now than after the last
 * step. */
static void
check_place(struct sd_scope *s, const char *path, bool may_be_folder)
{
    struct stat st;
    const char *slash = strrchr(path, '/');
    const char *folder = !slash ? "." : slash == path ? "/" : sd_strndup(s, path, (size_t)(slash - path));

    if (access(folder, W_OK | X_OK) != 0)
        sd_die(path, "cannot be written: %s", strerror(errno));
    if (!stat(path, &st) && (may_be_folder ? S_ISREG(st.st_mode) : S_ISDIR(st.st_mode)))
        sd_die(path, may_be_folder ? "exists and is no folder" : "is a directory");
}

/* What is written must not be written over, neither by another output nor by the state, nor replace what is read. */
static void
check_apart(struct sd_scope *s, const struct sd_outputs *to, int argc, char **argv)
{
    struct written { const char *what, *path; } *w = sd_alloc_array(s, to->tokens + 3, sizeof *w);
    const char *embedding = to->lora ? "--output-embedding" : "--output";
    size_t n = 0;

    for (size_t i = 0; i < to->tokens; i++)
        w[n++] = (struct written){ embedding, to->token[i] };
    if (to->lora)
        w[n++] = (struct written){ "--output", to->lora };
    w[n++] = (struct written){ "--state", S.state };
    if (S.log)
        w[n++] = (struct written){ "--log", S.log };
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < i; j++)
            if (sd_same_file(w[i].path, w[j].path))
                sd_usage(w[i].what, "%s: %s writes to it too", w[i].path, w[j].what);
        for (int j = 1; j < argc; j++)
            if (sd_same_file(w[i].path, argv[j]))
                sd_usage(w[i].what, "%s: the records are read from it", w[i].path);
    }
}

/* Refuse before anything is loaded; with --resume, outputs that are all there, and no state, are a finished run. */
static bool
already_done(struct sd_run *x, int argc, char **argv)
{
    struct sd_outputs to = sd_run_outputs(x->scope, x->kind);
    size_t count = to.tokens + (to.lora != NULL), there = 0;

    check_apart(x->scope, &to, argc, argv);
    for (size_t i = 0; i < count; i++)
        there += sd_is_kept(i < to.tokens ? to.token[i] : to.lora);
    if (S.resume && !sd_shared.overwrite && there == count && !sd_is_kept(S.state)) {
        sd_note(0, "%s is finished, nothing to do", to.lora ? to.lora : to.token[to.tokens - 1]);
        return true;
    }
    for (size_t i = 0; i < count; i++) {
        const char *path = i < to.tokens ? to.token[i] : to.lora;

        if (sd_is_kept(path) && !(S.resume && sd_is_kept(S.state)))
            sd_output_refuse(path, sd_shared.overwrite);
        check_place(x->scope, path, i >= to.tokens && strcmp(S.format, "peft") == 0);
    }
    check_place(x->scope, S.state, false);
    return false;
}

int
sd_session_main(int argc, char **argv, enum sd_session_kind kind)
{
    struct sd_run x = { .scope = sd_scope_open(), .kind = kind };
    int status;

    sd_session_options_read(&argc, &argv, kind);
    if (!sd_shared.plan && already_done(&x, argc, argv))
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
    sd_run_train(&x);
    status = x.bad && !sd_shared.keep_going ? SD_SOME_BAD : SD_OK;
    sd_scope_close(x.scope);
    return sd_finish(status);
}
