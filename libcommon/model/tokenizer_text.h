/* tokenizer_text.h - the Unicode side of the CLIP tokenizer: UTF-8, normal form, lower case, classes.
 *
 * One rule: equal to tokenizers 0.23 on every code point.  utf8proc has one version of Unicode; the reference has three
 * (NFC 9.0, letters and numbers 16.0, lower case 17.0), so short tables of the differences are in tokenizer_text.c. */
#ifndef SD_TOKENIZER_TEXT_H
#define SD_TOKENIZER_TEXT_H

#include "diag.h"

struct sd_codepoints {
    size_t count;
    int32_t *at;
};

enum sd_class { SD_CLASS_OTHER, SD_CLASS_SPACE, SD_CLASS_LETTER, SD_CLASS_NUMBER };

/* sd_codepoints - of a text; -1 with sd_fail when it is not UTF-8 (surrogates and overlong forms included) or longer
 * than SD_TOKENIZER_TEXT_MAX. */
int sd_codepoints(struct sd_scope *s, const char *text, size_t bytes, struct sd_codepoints *out);
/* sd_codepoints_normalise - NFC, each run of whitespace to one space, lower case: a new array in scope s. */
struct sd_codepoints sd_codepoints_normalise(struct sd_scope *s, const int32_t *at, size_t count);
/* sd_codepoint_write - UTF-8 of a code point; returns its 1 to 4 bytes. */
int sd_codepoint_write(int32_t c, char *to);
enum sd_class sd_codepoint_class(int32_t c);
/* sd_utf8_repair - the bytes as UTF-8 text in scope s; each byte that is none becomes U+FFFD. */
char *sd_utf8_repair(struct sd_scope *s, const char *bytes, size_t count);

#endif
