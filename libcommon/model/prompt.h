/* prompt.h - prompts: weights, BREAK, chunks, <lora:...>.
 *
 * One rule: what a prompt means is A1111's meaning, quirks included, for SD_PROMPT_A1111; the other syntaxes read no
 * weights.  Differences on purpose: a weight that is no number ("(a:1.2.3)") is refused, and digits are
 * ASCII's. */
#ifndef SD_PROMPT_H
#define SD_PROMPT_H

#include "model/tokenizer.h"

#ifdef __cplusplus
extern "C" {
#endif

enum sd_prompt_syntax {
    SD_PROMPT_A1111,        /* weights, BREAK, as many chunks as it takes */
    SD_PROMPT_PLAIN,        /* one chunk, as diffusers; what is too long is cut off and can be named */
    SD_PROMPT_CAPTION       /* no weights, as many chunks as it takes: captions in training */
};

struct sd_prompt_item { const char *text; double weight; bool is_break; };
struct sd_prompt_items { size_t count; struct sd_prompt_item *item; };

/* sd_prompt_parse - a prompt's items in A1111's syntax, neighbours of equal weight merged; at least one (empty, 1).  A
 * BREAK inside brackets is the word "BREAK" with a negative weight, as upstream.  -1 with sd_fail. */
int sd_prompt_parse(struct sd_scope *s, const char *text, struct sd_prompt_items *items);

/* A prompt as ids.  Chunks are framed, padded with eos and then pad, to be encoded each by itself and joined along the
 * tokens; frames and padding have weight 1; the pooled state is the first chunk's. */
struct sd_prompt {
    int chunks, length;     /* length: the tokenizer's model_max_length */
    int32_t *input_ids;     /* [chunks][length] */
    float *weights;         /* [chunks][length] */
    size_t tokens;          /* ids of the text itself */
    bool weighted;          /* some weight is not 1 */
    size_t cut;             /* SD_PROMPT_PLAIN: ids dropped, and their text (else "") */
    const char *cut_text;
};

/* sd_prompt_encode - -1 with sd_fail: not UTF-8, a bad weight, a new token of more vectors than a chunk has room. */
int sd_prompt_encode(struct sd_tokenizer *t, struct sd_scope *s, enum sd_prompt_syntax syntax, const char *text,
                     struct sd_prompt *prompt);
/* sd_prompt_pad - empty chunks at the end, up to `chunks`, so that the prompts of a batch are equally long. */
void sd_prompt_pad(const struct sd_tokenizer *t, struct sd_scope *s, struct sd_prompt *prompt, int chunks);

/* <kind:name[:te[:unet[:dyn]]]>, or with te=, unet=, dyn= */
struct sd_prompt_network {
    const char *kind;       /* "lora"; what a program does not know it reports */
    const char *name;
    double te, unet;        /* strengths; 1 and te where not given, 1 for kinds other than lora */
    int64_t dyn;            /* the rank to cut to; 0: whole */
};
/* sd_prompt_networks - take the networks out of a prompt: *rest is the prompt without them, in scope s. */
int sd_prompt_networks(struct sd_scope *s, const char *text, const char **rest, struct sd_prompt_network **networks,
                       size_t *count);

#ifdef __cplusplus
}
#endif
#endif
