/* model_tokenizer.h - the tokenizer of an open model.
 *
 * One rule: it fits the text encoder, or it is refused by name. */
#ifndef SD_MODEL_TOKENIZER_H
#define SD_MODEL_TOKENIZER_H

#include "model/model.h"
#include "model/tokenizer.h"

/* sd_model_tokenizer - what --tokenizer names (NULL: not given), else the model's own, else the published one of its
 * family (sd_tokenizer_find), in the model's scope.  Where no file says how to pad, SD2 pads with "!"; where none says
 * how long a text is, it is as long as the text encoder has positions.  NULL with sd_fail, also when the tokenizer
 * knows another number of tokens than the text encoder, or is longer. */
struct sd_tokenizer *sd_model_tokenizer(const struct sd_model *m, const char *tokenizer);

#endif
