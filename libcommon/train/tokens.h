/* tokens.h - new tokens: their rows as trainables, started from words, from a file, or at random with the table's
 * spread. */
#ifndef SD_TOKENS_H
#define SD_TOKENS_H

#include "model/embedding.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "opt.h"
#include "trainables.h"

struct sd_token {
    const char *name, *words;       /* words: NULL for a random start */
    int64_t vectors, first_row;
    const struct sd_embedding *init;
};

struct sd_tokens {
    size_t count;
    struct sd_token *token;
    int64_t vectors;                /* of all */
    struct sd_param *rows;          /* [vectors, width], group "tokens" */
};

/* sd_tokens_add - each of `list` is TOK or TOK=words; enters them into the tokenizer (NULL: texts come
 * as ids) and the trainables.  NULL with sd_fail. */
struct sd_tokens *sd_tokens_add(struct sd_scope *s, const struct sd_list *list, int64_t vectors,
                                struct sd_tokenizer *tokenizer, struct sd_model *model, struct sd_trainables *t);
/* sd_tokens_start - first values, once the trainables are allocated; init (or NULL) for the one token.  -1 with
 * sd_fail. */
int sd_tokens_start(struct sd_tokens *k, struct sd_model *model, struct sd_tokenizer *tokenizer,
                    const struct sd_embedding *init, uint64_t seed);
/* sd_tokens_in - do these ids hold some row of the token? */
bool sd_tokens_in(const struct sd_tokens *k, size_t token, int64_t vocabulary, const int32_t *ids, size_t count);

#endif
