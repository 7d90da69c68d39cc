/* embedding.h - learned tokens in files: A1111 and ComfyUI (emb_params), diffusers (the key is the token), kohya.
 * No pickles are executed; .pt and .bin are refused with the line that converts them. */
#ifndef SD_MODEL_EMBEDDING_H
#define SD_MODEL_EMBEDDING_H

#include "safetensors.h"

struct sd_embedding {
    const char *token;          /* the key unless emb_params, else metadata, else the file's stem */
    int64_t vectors, width;
    const float *values;        /* [vectors, width] */
    enum sd_dtype dtype;        /* of the file */
};

enum sd_embedding_format { SD_EMBEDDING_DIFFUSERS, SD_EMBEDDING_A1111 };    /* a1111 and comfy are one layout */

/* sd_embedding_load - reader rules of formats.md 4.1.  NULL with sd_fail. */
struct sd_embedding *sd_embedding_load(struct sd_scope *s, const char *path);
int sd_embedding_save(const struct sd_embedding *e, const char *path, enum sd_embedding_format format, enum sd_dtype dtype,
                      const char *const *metadata);
/* sd_embedding_size - bytes of that file; nothing is written. */
int sd_embedding_size(const struct sd_embedding *e, enum sd_embedding_format format, enum sd_dtype dtype,
                      const char *const *metadata, uint64_t *bytes);
/* sd_embedding_equal - is b what a becomes when it is written in dtype?  The tokens' names may differ. */
bool sd_embedding_equal(const struct sd_embedding *a, const struct sd_embedding *b, enum sd_dtype dtype);

#endif
