/* tokenizer.h - text to ids: CLIP's byte-level BPE, as the tokenizers library computes it.
 *
 * One rule: nothing of a model is a constant here.  Ids of begin, end and padding, the length, the vocabulary and the
 * added tokens with their flags come from the files; the same text gives the ids of the reference, for every code
 * point, as tokenizer_text.h says.
 *
 * A tokenizer keeps a cache of words: one thread at a time. */
#ifndef SD_TOKENIZER_H
#define SD_TOKENIZER_H

#include "diag.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SD_TOKENIZER_TEXT_MAX (1L << 20)        /* bytes of one text */

struct sd_tokenizer_tables;                     /* vocabulary, merges, added tokens, cache: tokenizer.c */
struct sd_tokenizer {
    int32_t bos, eos, pad;      /* <|startoftext|>, <|endoftext|>, what fills a short text */
    int32_t comma;              /* a comma as a word of its own; -1 when the vocabulary has none */
    int32_t length;             /* the id after the highest one: rows of the embedding table, and the next new token */
    int32_t model_max_length;   /* ids of a framed text */
    bool pad_named;             /* some file says what the padding is; else it is eos, as CLIP-L's */
    bool length_named;          /* some file says the length; else it is CLIP's 77 */
    struct sd_tokenizer_tables *tables;
};

/* Ids of a text without frame.  `span` says how they hold together: n at the first of the n ids of one new token, 0 at
 * the n-1 that follow it, 1 everywhere else. */
struct sd_ids {
    size_t count;
    int32_t *id;
    int32_t *span;
};

/* sd_tokenizer_load - the tokenizer of a path, in scope s:
 *   folder          vocab.json + merges.txt (and tokenizer.json, which must then agree), or tokenizer.json alone;
 *                   with special_tokens_map.json, tokenizer_config.json, added_tokens.json where present.
 *                   A model's folder stands for its tokenizer/.
 *   tokenizer.json  that form alone, with the files beside it
 *   any other file  a merge list (bpe_simple_vocab_16e6.txt, merges.txt): the vocabulary is built from it
 * model_max_length is the configuration's, else (absent, or Python's "very large") the positions of the text encoder
 * beside the folder, else CLIP's 77.  NULL with sd_fail: "merges.txt: line 7: expected two words". */
struct sd_tokenizer *sd_tokenizer_load(struct sd_scope *s, const char *path);

/* sd_tokenizer_find - the tokenizer of a model, as --model and --tokenizer name them; either may be NULL.
 * `tokenizer` when given; else the tokenizer/ in the model's folder; else, for a single-file checkpoint or no model,
 * the Hub's cache on disk (openai/clip-vit-large-patch14, the published SD repositories), then DATADIR/clip.  NULL with
 * sd_fail that says what to do; name the option's path, else the model, before it.  Where a model is open already,
 * sd_model_tokenizer (model_tokenizer.h) knows more. */
struct sd_tokenizer *sd_tokenizer_find(struct sd_scope *s, const char *model, const char *tokenizer);
/* sd_hub_snapshot - the folder of "org/name[@revision]" in the Hub's cache on disk; NULL with sd_fail. */
const char *sd_hub_snapshot(struct sd_scope *s, const char *name);

/* sd_tokenizer_set_pad - pad with this token instead, cut out of texts wherever it stands, as the reference does with a
 * pad token named in the files.  For single-file checkpoints of SD2 and SDXL's second encoder: "!". */
int sd_tokenizer_set_pad(struct sd_tokenizer *t, const char *token);

/* sd_tokenizer_add - a new token of `count` vectors: ids length .. length + count - 1, named token, token_1 ...;
 * where a text says `token` (any case, no word boundary, longest first) all of them stand.  Returns the first id;
 * -1 with sd_fail when one of the names exists already. */
int32_t sd_tokenizer_add(struct sd_tokenizer *t, const char *token, int count);

/* sd_tokenizer_encode - ids of a text of `bytes` bytes, without frame; -1 with sd_fail ("not UTF-8 at byte 7"). */
int sd_tokenizer_encode(struct sd_tokenizer *t, struct sd_scope *s, const char *text, size_t bytes, struct sd_ids *ids);
/* sd_tokenizer_frame - ids[model_max_length]: bos, as many as fit, eos, pads.  Returns how many were cut off. */
size_t sd_tokenizer_frame(const struct sd_tokenizer *t, const struct sd_ids *ids, int32_t *framed);
/* sd_tokenizer_decode - the text of ids, words separated by a space; bytes that are no UTF-8 become U+FFFD. */
char *sd_tokenizer_decode(const struct sd_tokenizer *t, struct sd_scope *s, const int32_t *ids, size_t count);
/* sd_tokenizer_id - of a token by its text in the vocabulary or among the added ones; -1 when there is none. */
int32_t sd_tokenizer_id(const struct sd_tokenizer *t, const char *token);

#ifdef __cplusplus
}
#endif
#endif
