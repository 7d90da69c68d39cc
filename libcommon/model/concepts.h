/* concepts.h - learned concepts as options and prompts name them: adapters FILE[:SCALE] and <lora:NAME:SCALE>, tokens
 * FILE[:TOKEN].  The adapters of the options are every prompt's; those that a prompt names are its own.
 *
 * One rule: what is asked for is used, or named: an adapter none of whose layers the model has, a token that exists
 * already. */
#ifndef SD_MODEL_CONCEPTS_H
#define SD_MODEL_CONCEPTS_H

#include "adapter.h"
#include "model/prompt.h"

struct sd_concepts {
    struct sd_scope *scope;
    struct sd_param *rows;          /* learned tokens [n, width]; NULL: none */
    int32_t first_row;              /* the first one's id */
    size_t count, room;
    struct sd_concept {
        const char *token, *path;
        const char *hash;           /* SHA-256 of the file */
        int32_t id, vectors;
        const float *values;
        bool used;                  /* some prompt says it (sd_concepts_use) */
    } *concept;
    struct sd_concept_file *files;  /* adapters read */
    struct sd_concept_set *options, *sets;  /* adapters of the options; of prompts */
};

/* A file of adapters, read once. */
struct sd_concept_file {
    const char *path, *name;        /* name: its stem */
    const char *hash;               /* SHA-256 of the data region, as A1111 counts; NULL: a folder */
    struct sd_lora *lora;
    struct sd_concept_file *next;
};

/* What is added to the model together: the adapters of the options, then those that a prompt names. */
struct sd_concept_set {
    struct sd_adapters *adapters;   /* NULL: none */
    size_t count, room;
    struct sd_concept_use {
        struct sd_concept_file *file;
        double unet, text;          /* strengths */
    } *use;
    struct sd_concept_set *next;
};

struct sd_concepts *sd_concepts_new(struct sd_scope *s);

/* sd_concept_file - the file in "FILE:REST" (in scope s) and *rest, NULL where the whole value is the name: when a file
 * of that name exists, or nothing before any of its colons does. */
const char *sd_concept_file(struct sd_scope *s, const char *value, const char **rest);

/* sd_concepts_lora - an adapter for every prompt, with strengths for UNet and text encoder; before the first set.
 * sd_concepts_set - the adapters of a prompt that names these networks, of which those of kind "lora" count:
 * NAME.safetensors, else NAME, in `folder`.  The same set for the same files and strengths in the same order; NULL with
 * sd_fail.  sd_concepts_embedding - a learned token of the text encoder's width; token NULL: what the file says. -1 with
 * sd_fail. */
int sd_concepts_lora(struct sd_concepts *c, const char *path, double unet, double text);
struct sd_concept_set *sd_concepts_set(struct sd_concepts *c, const char *folder,
                                       const struct sd_prompt_network *network, size_t count);
int sd_concepts_embedding(struct sd_concepts *c, struct sd_tokenizer *t, int64_t width, const char *path,
                          const char *token);
/* sd_concepts_rows - after the last token: makes `rows`. */
void sd_concepts_rows(struct sd_concepts *c, int64_t width);

/* sd_concepts_use - mark the tokens that a prompt says.  sd_concepts_check - once all networks are described: -1 with
 * sd_fail when adapters have layers that this model does not; the text encoder's from `text_layers` to text_layers +
 * clip_skip - 1 are there, and left out. */
void sd_concepts_use(struct sd_concepts *c, const struct sd_prompt *prompt);
int sd_concepts_check(const struct sd_concepts *c, int text_layers, int clip_skip);
/* sd_concepts_blame - whose fault sd_reason() is after networks could not be described: the adapter's file where an
 * adapter does not fit (several adapters: "--lora"), else `model`. */
const char *sd_concepts_blame(const struct sd_concepts *c, const char *model);

#endif
