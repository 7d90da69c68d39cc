/* The safetensors reader: any bytes are a file of sound tensors, which written anew read the same, or one line that
 * says why not. */
#include "fuzz.h"
#include "safetensors.h"

#include <string.h>

static volatile char sink;      /* what was read */

/* What was accepted is consistent: tensors fill the region one after the other, all bytes can be read, all are found.
 */
static void
check(struct sd_scope *s, struct sd_safetensors *f)
{
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);
    size_t at = 0, region_bytes;
    const char *region = sd_safetensors_region(f, &region_bytes), *value;
    bool writable = true;

    for (size_t i = 0; i < sd_safetensors_count(f); i++) {
        struct sd_safetensor *t = sd_safetensors_at(f, i);

        if ((const char *)t->data != region + at || t->numel * sd_dtype_bits(t->dtype) != 8 * t->bytes)
            abort();
        for (size_t j = 0; j < t->bytes; j++)
            sink ^= ((const char *)t->data)[j];
        at += t->bytes;
        writable &= sd_dtype_size(t->dtype) != 0 && strlen(t->name) == t->name_length;
        for (int d = 0; d < t->ndim; d++)
            writable &= t->shape[d] < INT64_MAX;
        if (strlen(t->name) == t->name_length && sd_safetensors_find(f, t->name) != t)
            abort();
        if (writable)
            sd_safetensors_add(w, t->name, t->dtype, t->ndim, t->shape, t->data);
        sd_safetensor_f32(s, t);
    }
    if (at != region_bytes)
        abort();
    for (size_t i = 0; i < sd_safetensors_metadata_count(f); i++)
        sd_safetensors_metadata(f, sd_safetensors_metadata_at(f, i, &value));
    if (writable) {
        char *text = NULL;
        size_t n;
        FILE *out = open_memstream(&text, &n);
        struct sd_safetensors *again;

        if (sd_safetensors_write(w, out) || fclose(out)
            || !(again = sd_safetensors_open(s, as_file((uint8_t *)text, n)))
            || sd_safetensors_count(again) != sd_safetensors_count(f))
            abort();
        free(text);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *f = sd_safetensors_open(s, as_file(bytes, size));

    if (f)
        check(s, f);
    else if (strlen(sd_reason()) < 3)
        abort();
    sd_scope_close(s);
    return 0;
}
