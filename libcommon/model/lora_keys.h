/* lora_keys.h - names of adapter tensors, in every dialect, to and from diffusers' module paths. */
#ifndef SD_MODEL_LORA_KEYS_H
#define SD_MODEL_LORA_KEYS_H

#include "lora.h"

enum sd_lora_part { SD_LORA_DOWN, SD_LORA_UP, SD_LORA_MID, SD_LORA_ALPHA };

enum { SD_LORA_PATH_MAX = 256 };

struct sd_lora_key {
    char path[SD_LORA_PATH_MAX];    /* "unet...." or "text_encoder.text_model...." */
    enum sd_lora_part part;
    const char *dialect;            /* which form this key has */
};

/* sd_lora_key_read - component: "unet" or "text_encoder" for keys that do not say (PEFT directories), else NULL.
 * -1 with sd_fail that says what the key is: of another model, of another kind of adapter, unknown. */
int sd_lora_key_read(const char *key, const char *component, struct sd_lora_key *k);

/* sd_lora_key_write - the name of a part in a format, in scope s; NULL with sd_fail where the format has none. */
const char *sd_lora_key_write(struct sd_scope *s, const char *path, enum sd_lora_part part, enum sd_lora_format format);

#endif
