/* Adapter files: any bytes give layers that are whole and finite, written and read again the same, or one line that
 * says why not; any text is a key that comes back when written, or is refused. */
#include "fuzz.h"
#include "model/lora_keys.h"

#include <math.h>
#include <string.h>

static void
try_key(struct sd_scope *s, const char *text)
{
    struct sd_lora_key k, again;
    const char *key;

    if (sd_lora_key_read(text, NULL, &k) < 0)
        return;
    for (int format = 0; format < 4; format++) {
        if ((key = sd_lora_key_write(s, k.path, SD_LORA_DOWN, (enum sd_lora_format)format)) && strlen(key) < 200
            && (sd_lora_key_read(key, NULL, &again) < 0 || strcmp(again.path, k.path) != 0))
            abort();
    }
}

static void
check(struct sd_scope *s, struct sd_lora *lora)
{
    for (size_t i = 0; i < lora->count; i++) {
        const struct sd_lora_layer *l = &lora->layer[i];
        int64_t down = l->rank * l->in * l->kh * l->kw, up = l->out * l->rank;

        if (l->rank < 1 || l->in < 1 || l->out < 1 || l->kh < 1 || l->kw < 1 || (i && strcmp(l[-1].path, l->path) >= 0))
            abort();
        for (int64_t k = 0; k < down; k++)
            if (isnan(l->down[k]))
                abort();
        for (int64_t k = 0; k < up; k++)
            if (!isfinite(l->up[k]))
                abort();
    }
    if (sd_lora_join(s, &lora, (double[]){ 0.5 }, 1) == NULL)
        abort();
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_lora *lora;

    try_key(s, sd_strndup(s, (const char *)bytes, size < 300 ? size : 300));
    if ((lora = sd_lora_load(s, as_file(bytes, size))))
        check(s, lora);
    else if (strlen(sd_reason()) < 3)
        abort();
    sd_scope_close(s);
    return 0;
}
