/* session_options - the options of the training programs. */
#include "session_options.h"

#include "compute.h"
#include "model/lora.h"

#include <string.h>

struct sd_session_options sd_session = {
    .format = "", .save_dtype = "", .rank = 16, .target_modules = "to_q,to_k,to_v,to_out.0", .num_vectors = 1,
    .ti_learning_rate = 1e-3, .ti_until = 0.7, .learning_rate = 1e-4, .lr_scheduler = "constant", .optimizer = "adamw",
    .max_train_steps = 1000, .batch_size = 1, .accumulation = 1, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8,
    .weight_decay = 0.01, .d0 = 1e-6, .d_coef = 1, .max_grad_norm = 1, .mask_normalize = "area",
    .caption_dropout_to = "empty", .checkpointing_steps = 100
};
#define S sd_session

#define COMMON_OPTIONS \
    { 0, "model", SD_OPT_TEXT, &S.model, 0, 0, "MODEL", \
      "diffusers directory, checkpoint file, or org/name in the Hub's cache" }, \
    { 0, "vae", SD_OPT_TEXT, &S.vae, 0, 0, "PATH", "VAE in place of the model's" }, \
    { 0, "tokenizer", SD_OPT_TEXT, &S.tokenizer, 0, 0, "PATH", "tokenizer folder, tokenizer.json or merge list" }, \
    { 0, "output", SD_OPT_TEXT, &S.output, 0, 0, "FILE", "what was learned, safetensors" }, \
    { 0, "name", SD_OPT_TEXT, &S.name, 0, 0, "TEXT", "name in the metadata (the output's stem)" }, \
    { 0, "save-dtype", SD_OPT_CHOICE, &S.save_dtype, 0, 0, "f16|bf16|f32", "(f16; f32 with --replay)" }, \
    { 0, "placeholder-token", SD_OPT_LIST, &S.tokens, 0, 0, "TOK[=WORDS]", \
      "new token, started from words or at random; repeatable" }, \
    { 0, "num-vectors", SD_OPT_INT, &S.num_vectors, 1, 64, "N", "rows of each new token (1)" }, \
    { 0, "init-embedding", SD_OPT_TEXT, &S.init_embedding, 0, 0, "FILE", "start the token from a file" }, \
    { 0, "lr-scheduler", SD_OPT_CHOICE, &S.lr_scheduler, 0, 0, \
      "constant|linear|cosine|polynomial|constant_with_warmup", "(constant)" }, \
    { 0, "lr-warmup-steps", SD_OPT_INT, &S.warmup, 0, 1e9, "N", "(0)" }, \
    { 0, "optimizer", SD_OPT_CHOICE, &S.optimizer, 0, 0, "adamw|prodigy", "(adamw)" }, \
    { 0, "adam-beta1", SD_OPT_REAL, &S.beta1, 0, 0.99999999, "X", "(0.9)" }, \
    { 0, "adam-beta2", SD_OPT_REAL, &S.beta2, 0, 0.99999999, "X", "(0.999)" }, \
    { 0, "adam-epsilon", SD_OPT_REAL, &S.epsilon, 0, 1, "X", "(1e-8)" }, \
    { 0, "adam-weight-decay", SD_OPT_REAL, &S.weight_decay, 0, 1, "X", "(0.01)" }, \
    { 0, "prodigy-d0", SD_OPT_REAL, &S.d0, 1e-12, 1, "X", "first estimate (1e-6)" }, \
    { 0, "prodigy-d-coef", SD_OPT_REAL, &S.d_coef, 1e-6, 1e6, "X", "factor on the estimate (1)" }, \
    { 0, "prodigy-safeguard-warmup", SD_OPT_FLAG, &S.safeguard_warmup, 0, 0, NULL, \
      "keep warm-up out of the estimate" }, \
    { 0, "prodigy-use-bias-correction", SD_OPT_FLAG, &S.use_bias_correction, 0, 0, NULL, "Adam's bias correction" }, \
    { 0, "max-train-steps", SD_OPT_INT, &S.max_train_steps, 1, 1e9, "N", "optimizer updates (1000)" }, \
    { 0, "num-train-epochs", SD_OPT_INT, &S.epochs, 1, 1e9, "N", \
      "passes over the data, in place of --max-train-steps" }, \
    { 0, "train-batch-size", SD_OPT_INT, &S.batch_size, 1, 4096, "N", "samples of a micro-batch (1)" }, \
    { 0, "gradient-accumulation-steps", SD_OPT_INT, &S.accumulation, 1, 65536, "N", \
      "micro-batches of an update (1)" }, \
    { 0, "max-grad-norm", SD_OPT_REAL, &S.max_grad_norm, 0, 1e9, "X", "clip the gradient's norm; 0: never (1)" }, \
    { 0, "snr-gamma", SD_OPT_REAL, &S.snr_gamma, 0, 1e6, "X", "min-SNR weighting; 0: off (0)" }, \
    { 0, "noise-offset", SD_OPT_REAL, &S.noise_offset, 0, 10, "X", "(0)" }, \
    { 0, "masked-loss", SD_OPT_FLAG, &S.masked_loss, 0, 0, NULL, "only what the masks show counts" }, \
    { 0, "mask-normalize", SD_OPT_CHOICE, &S.mask_normalize, 0, 0, "area|none", "divide by the mask's area (area)" }, \
    { 0, "unmasked-weight", SD_OPT_REAL, &S.unmasked_weight, 0, 1, "X", \
      "what is outside the mask still counts this much (0)" }, \
    { 0, "caption-dropout", SD_OPT_REAL, &S.caption_dropout, 0, 1, "X", \
      "probability of training without caption (0)" }, \
    { 0, "caption-dropout-to", SD_OPT_CHOICE, &S.caption_dropout_to, 0, 0, "empty|trigger", \
      "what stands instead (empty)" }, \
    { 0, "clip-skip", SD_OPT_INT, &S.clip_skip, 0, 64, "N", "layers of the text encoder left out (0)" }, \
    { 0, "state", SD_OPT_TEXT, &S.state, 0, 0, "FILE", "where the run saves itself (OUTPUT.state)" }, \
    { 0, "checkpointing-steps", SD_OPT_INT, &S.checkpointing_steps, 1, 1e9, "N", "updates between saves (100)" }, \
    { 0, "resume", SD_OPT_FLAG, &S.resume, 0, 0, NULL, "go on from the state, if there is one" }, \
    { 'k', "keep-going", SD_OPT_FLAG, &sd_shared.keep_going, 0, 0, NULL, "bad records only warn: status 0, not 1" }, \
    { 0, "log", SD_OPT_TEXT, &S.log, 0, 0, "FILE", "a JSON line for each update" }, \
    { 0, "replay", SD_OPT_TEXT, &S.replay, 0, 0, "FILE", "train on recorded micro-batches, for comparing trainers" }, \
    { 0, "validation-prompt", SD_OPT_LIST, &S.validation_prompts, 0, 0, "TEXT", \
      "drawn with what was learned so far; repeatable" }, \
    { 0, "sample-every", SD_OPT_INT, &S.sample_every, 1, 1e9, "N", \
      "updates between validation pictures (only at the end)" }

static const struct sd_opt lora_options[] = {
    COMMON_OPTIONS,
    { 0, "format", SD_OPT_CHOICE, &S.format, 0, 0, SD_LORA_FORMATS, "(kohya)" },
    { 0, "rank", SD_OPT_INT, &S.rank, 1, 4096, "N", "(16)" },
    { 0, "alpha", SD_OPT_REAL, &S.alpha, 0, 1e6, "X", "scale is alpha / rank (the rank)" },
    { 0, "conv-rank", SD_OPT_INT, &S.conv_rank, 1, 4096, "N", "rank of convolutions larger than 1x1 (the rank)" },
    { 0, "conv-alpha", SD_OPT_REAL, &S.conv_alpha, 0, 1e6, "X", "(the convolutions' rank)" },
    { 0, "target-modules", SD_OPT_TEXT, &S.target_modules, 0, 0, "PATTERNS",
      "layers, comma-separated (to_q,to_k,to_v,to_out.0)" },
    { 0, "train-text-encoder", SD_OPT_FLAG, &S.train_text_encoder, 0, 0, NULL,
      "adapters on the text encoder's attention too" },
    { 0, "init-lora", SD_OPT_TEXT, &S.init_lora, 0, 0, "FILE", "start from these factors" },
    { 0, "learning-rate", SD_OPT_REAL, &S.learning_rate, 0, 1e6, "X", "(1e-4; prodigy 1)" },
    { 0, "text-encoder-learning-rate", SD_OPT_REAL, &S.text_encoder_learning_rate, 0, 1e6, "X", "(--learning-rate)" },
    { 0, "ti-learning-rate", SD_OPT_REAL, &S.ti_learning_rate, 0, 1e6, "X", "of the token rows (1e-3; prodigy 1)" },
    { 0, "ti-until", SD_OPT_REAL, &S.ti_until, 0, 1, "X", "fraction of the run after which token rows stop (0.7)" },
    { 0, "output-embedding", SD_OPT_TEXT, &S.output_embedding, 0, 0, "FILE", "the learned tokens" },
    { 0 }
};
static const struct sd_opt ti_options[] = {
    COMMON_OPTIONS,
    { 0, "format", SD_OPT_CHOICE, &S.format, 0, 0, "diffusers|a1111|comfy", "(diffusers)" },
    { 0, "learning-rate", SD_OPT_REAL, &S.learning_rate, 0, 1e6, "X", "the same as --ti-learning-rate" },
    { 0, "ti-learning-rate", SD_OPT_REAL, &S.ti_learning_rate, 0, 1e6, "X", "of the token rows (1e-3; prodigy 1)" },
    { 0, "ti-until", SD_OPT_REAL, &S.ti_until, 0, 1, "X", "fraction of the run after which token rows stop (1)" },
    { 0 }
};

/* Options that this run does not look at: refused when given, and no part of its settings. */
static const char *idle[32];
static size_t idle_count;

void
sd_session_idle(const char *option, const char *because)
{
    char name[64];

    snprintf(name, sizeof name, "--%s", option);
    if (sd_option_given(option))
        sd_usage(name, "has no effect: %s", because);
    idle[idle_count++] = option;
}

void
sd_session_remove_idle(json_t *settings)
{
    for (size_t i = 0; i < idle_count; i++)
        json_object_del(settings, idle[i]);
    if (!S.epochs)
        json_object_del(settings, "num-train-epochs");
}

static void
all_idle(const char *const *options, const char *because)
{
    for (size_t i = 0; options[i]; i++)
        sd_session_idle(options[i], because);
}

/* Programs that read embeddings take these names for pickles, whatever is in the file. */
static void
check_pickle(const char *option, const char *path)
{
    const char *dot = path ? strrchr(path, '.') : NULL;

    if (dot && (!strcmp(dot, ".pt") || !strcmp(dot, ".bin")))
        sd_usage(option, "%s: the name of a pickle; what is written is safetensors", path);
}

static void
check_outputs(enum sd_session_kind kind)
{
    bool several = S.tokens.count > 1;

    if (!S.output && !sd_shared.plan)
        sd_usage("--output", "where should the result go?");
    if (!S.output)
        S.output = several ? "%s" : "";
    if (kind == SD_SESSION_TI && several && !strstr(S.output, "%s"))
        sd_usage("--output", "%zu tokens: the name needs a %%s for the token", S.tokens.count);
    if (kind == SD_SESSION_LORA && S.tokens.count && !S.output_embedding && !sd_shared.plan)
        sd_usage("--output-embedding", "where should the learned tokens go?");
    if (kind == SD_SESSION_LORA && several && S.output_embedding && !strstr(S.output_embedding, "%s"))
        sd_usage("--output-embedding", "%zu tokens: the name needs a %%s for the token", S.tokens.count);
    check_pickle("--output", kind == SD_SESSION_TI ? S.output : NULL);
    check_pickle("--output-embedding", S.output_embedding);
    if (!*S.format)
        S.format = kind == SD_SESSION_LORA ? "kohya" : "diffusers";
    if (!*S.save_dtype)
        S.save_dtype = S.replay ? "f32" : "f16";
    if (!S.state)
        S.state = sd_sprintf(NULL, "%s.state", S.output);
}

/* The rates, and what only one optimizer or schedule knows. */
static void
check_optimizer(enum sd_session_kind kind)
{
    static const char *const prodigys[] = { "prodigy-d0", "prodigy-d-coef", "prodigy-safeguard-warmup",
                                            "prodigy-use-bias-correction", NULL };
    bool prodigy = strcmp(S.optimizer, "prodigy") == 0;

    if (prodigy && !sd_option_given("learning-rate"))
        S.learning_rate = 1;
    if (prodigy && !sd_option_given("ti-learning-rate"))
        S.ti_learning_rate = 1;
    if (!prodigy)
        all_idle(prodigys, "--optimizer is not prodigy");
    if (kind == SD_SESSION_TI) {
        if (sd_option_given("learning-rate") && sd_option_given("ti-learning-rate"))
            sd_usage("--learning-rate", "give this or --ti-learning-rate");
        if (sd_option_given("learning-rate"))
            S.ti_learning_rate = S.learning_rate;
        S.learning_rate = S.ti_learning_rate;
        idle[idle_count++] = "learning-rate";       /* another name of the same: one stands in the settings */
    }
    if (S.ti_until == 0)
        sd_usage("--ti-until", "0: the tokens would learn nothing");
    if (kind == SD_SESSION_TI || !sd_option_given("text-encoder-learning-rate"))
        S.text_encoder_learning_rate = S.learning_rate;
    if (strcmp(S.lr_scheduler, "constant") == 0)
        sd_session_idle("lr-warmup-steps", "--lr-scheduler is constant (constant_with_warmup has one)");
}

static void
check_tokens(enum sd_session_kind kind)
{
    static const char *const of_tokens[] = { "num-vectors", "init-embedding", "ti-learning-rate", "ti-until",
                                             "output-embedding", NULL };

    if (kind == SD_SESSION_TI && !S.tokens.count)
        sd_usage("--placeholder-token", "which token should be learned?");
    if (!S.tokens.count)
        all_idle(of_tokens, "there is no --placeholder-token");
    if (!S.tokens.count && strcmp(S.caption_dropout_to, "trigger") == 0)
        sd_usage("--caption-dropout-to", "trigger: there is no --placeholder-token");
    for (size_t i = 0; S.init_embedding && i < S.tokens.count; i++)
        if (strchr(S.tokens.item[i], '='))
            sd_usage("--init-embedding", "%s starts from words already", S.tokens.item[i]);
}

static void
check_loss(void)
{
    static const char *const recorded[] = { "noise-offset", "masked-loss", "caption-dropout", "train-batch-size",
                                            "num-train-epochs", NULL };

    if (S.replay)
        all_idle(recorded, "--replay brings its own batches");
    if (!S.masked_loss)
        all_idle((const char *const[]){ "mask-normalize", "unmasked-weight", NULL }, "there is no --masked-loss");
    if (S.caption_dropout == 0)
        sd_session_idle("caption-dropout-to", "there is no --caption-dropout");
}

static void
check_adapters(void)
{
    if (S.init_lora)
        all_idle((const char *const[]){ "alpha", "conv-alpha", NULL }, "--init-lora brings its own scale");
    else if (S.conv_rank == 0)
        sd_session_idle("conv-alpha", "there is no --conv-rank");
    if (S.alpha == 0)
        S.alpha = (double)S.rank;
    if (S.conv_rank == 0)
        sd_session_idle("conv-rank", "0");
    else if (S.conv_alpha == 0)
        S.conv_alpha = (double)S.conv_rank;
}

void
sd_session_options_read(int *argc, char ***argv, enum sd_session_kind kind)
{
    bool lora = kind == SD_SESSION_LORA;

    if (!lora) {
        S.ti_until = 1;
        S.learning_rate = S.ti_learning_rate;
    }
    sd_options(argc, argv, lora ? lora_options : ti_options, SD_OPT_COMPUTE | SD_OPT_SEED | SD_OPT_OVERWRITE,
               "--model MODEL --output FILE [stream ...]",
               lora ? "teaches a model by low-rank adapters, and new tokens, from records with latents"
                    : "teaches a model new tokens from records with latents");
    if (sd_shared_compute()->activations == SD_F16)
        sd_usage("--dtype", "f16: for drawing only: gradients leave its range");
    if (!S.model)
        sd_usage("--model", "which model? a diffusers directory, a checkpoint file, or org/name");
    if (sd_option_given("max-train-steps") && sd_option_given("num-train-epochs"))
        sd_usage("--num-train-epochs", "give this or --max-train-steps");
    check_tokens(kind);
    check_loss();
    if (lora)
        check_adapters();
    check_outputs(kind);
    check_optimizer(kind);
    if (!S.validation_prompts.count)
        sd_session_idle("sample-every", "there is no --validation-prompt");
}
