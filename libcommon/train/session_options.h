/* session_options.h - what the user of sd-train-lora and sd-train-ti chose.  Defaults are in the .c file. */
#ifndef SD_SESSION_OPTIONS_H
#define SD_SESSION_OPTIONS_H

#include "json.h"
#include "opt.h"
#include "session.h"
#include "trainer.h"

struct sd_session_options {
    const char *model, *vae, *tokenizer, *output, *output_embedding, *format, *save_dtype, *name;
    int64_t rank, conv_rank;
    double alpha, conv_alpha;
    const char *target_modules, *init_lora, *init_embedding;
    bool train_text_encoder;
    struct sd_list tokens;
    int64_t num_vectors;
    double ti_learning_rate, ti_until, text_encoder_learning_rate, learning_rate;
    const char *lr_scheduler, *optimizer;
    int64_t warmup, max_train_steps, epochs, batch_size, accumulation;
    double beta1, beta2, epsilon, weight_decay, d0, d_coef, max_grad_norm;
    bool safeguard_warmup, use_bias_correction;
    double snr_gamma, noise_offset, unmasked_weight, caption_dropout;
    bool masked_loss;
    const char *mask_normalize, *caption_dropout_to;
    int64_t clip_skip;
    const char *state, *log, *replay;
    int64_t checkpointing_steps;
    bool resume;
    struct sd_list validation_prompts;
    int64_t sample_every;
};
extern struct sd_session_options sd_session;

/* sd_session_options_read - parse, check what belongs together, fill in defaults that depend on others. */
void sd_session_options_read(int *argc, char ***argv, enum sd_session_kind kind);
/* sd_session_idle - this run does not look at the option: status 2 when it was given, and it is no part of the
 * settings. sd_session_remove_idle - take them out. */
void sd_session_idle(const char *option, const char *because);
void sd_session_remove_idle(json_t *settings);

#endif
