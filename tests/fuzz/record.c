/* The record reader: any bytes are a stream that ends properly, or an error; every value of every record can be asked
 * for, and every record can be written, as msgpack and as JSON. */
#include "fuzz.h"
#include "opt.h"
#include "record.h"

#include <string.h>

static volatile char sink;      /* what was read */

static void
ask(struct sd_record *r)
{
    static const char *const keys[] = { "id",     "source", "caption", "pixel_values", "mask", "latents_mean",
                                        "bucket", "a",      "b" };

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        struct sd_record_tensor t;
        int64_t pair[2];
        double x;

        sd_record_text(r, keys[i]);
        sd_record_ints(r, keys[i], pair, 2);
        sd_record_real(r, keys[i], &x);
        if (sd_record_tensor(r, keys[i], &t) == 1)
            for (size_t j = 0; j < t.bytes; j++)
                sink ^= ((const char *)t.data)[j];
    }
    sd_record_set_text(r, "a", "set");
    sd_record_remove(r, "b");
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static FILE *nowhere;           /* where records go */
    const char *path = as_file(bytes, size);
    bool looks = sd_is_record_stream(path);
    struct sd_reader *reader = sd_reader_open(path);
    int status = 1;

    if (!nowhere && !(nowhere = freopen("/dev/null", "wb", stdout)))
        abort();
    if (!reader)
        return 0;
    if (!looks && size < 256)       /* the look is at the first 256 bytes */
        abort();
    while (status && !sd_reader_broken(reader)) {
        struct sd_scope *s = sd_scope_open();
        struct sd_record *r;

        status = sd_reader_next(reader, s, &r);
        if (status == 1) {
            for (int json = 0; json < 2; json++) {
                sd_shared.json_lines = json;
                sd_record_write(r);
            }
            ask(r);
            sd_record_write(r);
        }
        sd_scope_close(s);
    }
    sd_reader_close(reader);
    return 0;
}
