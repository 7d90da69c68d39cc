/* session_private.h - a training run in three files: session.c opens it, session_loop.c runs it, session_publish.c
 * writes what it made. */
#ifndef SD_SESSION_PRIVATE_H
#define SD_SESSION_PRIVATE_H

#include "hash.h"
#include "model/model_tokenizer.h"
#include "session.h"
#include "session_options.h"
#include "state.h"
#include "targets.h"
#include "tokens.h"
#include "trainer.h"

#include <pthread.h>

#define S sd_session

struct sd_run {
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
    json_t *settings;           /* options, no paths: usable as --config */
    json_t *made_from;          /* hashes of data, model, starts; numeric contract */
    pthread_t hashing;
    bool hash_running;
    const char *hash_fault;
    char unet_hash[SD_SHA256_HEX], text_hash[SD_SHA256_HEX];
    int bad;                    /* records left out */
};

/* session.c: the model's hashes are in made_from when this returns. */
void sd_run_wait_for_hash(struct sd_run *x);

/* session_loop.c: from the state, or the beginning, to the published files. */
void sd_run_train(struct sd_run *x);

/* session_publish.c */
struct sd_outputs {             /* names of what a run publishes, or of a preview of it */
    const char *lora;           /* NULL where there is none */
    size_t tokens;
    const char **token;         /* a file each */
};
/* sd_run_outputs - the names by the options; needs nothing loaded. */
struct sd_outputs sd_run_outputs(struct sd_scope *s, enum sd_session_kind kind);
/* sd_run_save - write, read again, compare.  Ends the program where that fails. */
void sd_run_save(struct sd_run *x, const struct sd_outputs *to, const char *lora_format, int64_t step);
/* sd_run_preview - pictures of --validation-prompt at `step`: from `made`, or (NULL) from files made for them. */
void sd_run_preview(struct sd_run *x, const struct sd_outputs *made, int64_t step);
/* sd_is_kept - a file or folder is there that a program could write (not a device). */
bool sd_is_kept(const char *path);

#endif
