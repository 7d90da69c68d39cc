/* JSON from outside: refused with a reason, or a value that dumped and parsed again is the same; getters meet any type.
 */
#include "fuzz.h"
#include "json.h"

#include <string.h>

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sd_scope *s = sd_scope_open();
    unsigned flags = size && bytes[size - 1] & 1 ? SD_JSON_NONFINITE : 0;
    json_t *value = sd_json_parse(s, (const char *)bytes, size, flags), *again;
    static const char *const keys[] = { "a", "sample_size", "block_out_channels", "beta_start", "" };
    char *text;

    if (value) {
        text = sd_json_dump(s, value, 0);
        if (!(again = sd_json_parse(s, text, strlen(text), 0)) || !json_equal(value, again))
            abort();
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
            int64_t whole, wholes[4];
            double real, reals[4];
            const char *word, **words;
            bool flag;
            int n;

            sd_json_int(value, keys[i], -5, 5, &whole);
            sd_json_real(value, keys[i], &real);
            sd_json_bool(value, keys[i], &flag);
            sd_json_text(value, keys[i], &word);
            sd_json_ints(value, keys[i], wholes, 4, &n);
            sd_json_reals(value, keys[i], reals, 4, &n);
            sd_json_texts(s, value, keys[i], &words, &n);
        }
    }
    sd_scope_close(s);
    return 0;
}
