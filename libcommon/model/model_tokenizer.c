/* model_tokenizer.c - the tokenizer of an open model. */
#include "model/model_tokenizer.h"

struct sd_tokenizer *
sd_model_tokenizer(const struct sd_model *m, const char *tokenizer)
{
    struct sd_tokenizer *t = sd_tokenizer_find(m->scope, m->path, tokenizer);
    const struct sd_clip_text_config *text = &m->text_config;

    if (!t)
        return NULL;
    if (!t->pad_named && m->family == SD_FAMILY_SD2 && sd_tokenizer_set_pad(t, "!") < 0)
        return NULL;
    if (!t->length_named)
        t->model_max_length = text->max_position_embeddings;
    if (t->length != text->vocab_size)
        return sd_fail_null("tokenizer of %d tokens, the text encoder knows %d", t->length, text->vocab_size);
    if (t->model_max_length > text->max_position_embeddings)
        return sd_fail_null("tokenizer of %d ids, the text encoder has %d positions", t->model_max_length,
                            text->max_position_embeddings);
    return t;
}
