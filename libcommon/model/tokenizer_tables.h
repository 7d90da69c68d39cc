/* tokenizer_tables.h - what a tokenizer holds, filled by tokenizer_load.c, used by tokenizer.c. */
#ifndef SD_TOKENIZER_TABLES_H
#define SD_TOKENIZER_TABLES_H

#include "json.h"
#include "model/tokenizer.h"
#include "model/tokenizer_text.h"

/* A token that is cut out of the text before words are made. */
struct sd_added_token {
    int32_t id;
    int32_t span;               /* ids id .. id + span - 1 stand for it */
    bool normalised;            /* matched after NFC and lower case (its key is so too), else in the raw text */
    const char *text;
    struct sd_codepoints key;
};

struct sd_merge { const char *left, *right; };

struct sd_pair { int32_t left, right, rank, id; };     /* id < 0: an empty slot */

enum { SD_WORD_SLOTS = 4096, SD_WORD_BYTES = 40, SD_WORD_IDS = 12 };
struct sd_word { uint8_t bytes, ids; char text[SD_WORD_BYTES]; int32_t id[SD_WORD_IDS]; };

struct sd_tokenizer_tables {
    struct sd_scope *scope;
    json_t *vocab;              /* text: id */
    const char **text;          /* by id; NULL for a hole */
    int32_t texts;              /* ids of the vocabulary are below */
    int32_t unk;                /* -1: what is unknown is dropped */
    int32_t byte[2][256];       /* id of a byte, [1] at the end of a word; -1 where the vocabulary lacks it */
    struct sd_pair *pairs;      /* open hash, pair_mask + 1 slots */
    uint32_t pair_mask;
    struct sd_added_token *added;
    size_t added_count, added_room;
    unsigned char first[2][256];    /* [normalised][low byte of a code point]: some added token starts so */
    struct sd_word *words;      /* the cache: direct-mapped by hash, never grows */
};

/* sd_byte_codepoint - the printable code point that stands for a byte in vocabularies. */
int32_t sd_byte_codepoint(int byte);
/* sd_tokenizer_build - tables of a vocabulary (an object text: id) and its merges, in order of rank; -1 with sd_fail. */
int sd_tokenizer_build(struct sd_tokenizer *t, json_t *vocab, const struct sd_merge *merges, size_t count);
/* sd_tokenizer_set_added - add a token, or change the flag of the one of that text. */
int sd_tokenizer_set_added(struct sd_tokenizer *t, const char *text, int32_t id, int32_t span, bool normalised);
struct sd_added_token *sd_tokenizer_added(const struct sd_tokenizer *t, const char *text);

#endif
