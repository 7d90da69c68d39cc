/* The tokenizer of an open model: padding by family, and what does not fit is refused. */
#include "tests/check.h"

#include "model/model_tokenizer.h"

#include <unistd.h>

#define TINY "tests/data/tokenizer/tiny"

/* The two tensors by which a single file's family is known; the width of cross attention decides. */
static const char *
checkpoint(struct sd_scope *s, const char *folder, int width)
{
    const char *path = sd_sprintf(s, "%s/%d.safetensors", folder, width);
    char *header =
        sd_sprintf(s,
                   "{\"model.diffusion_model.input_blocks.0.0.weight\":{\"dtype\":\"F32\",\"shape\":[1,4,1,1],"
                   "\"data_offsets\":[0,16]},\"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k."
                   "weight\":{\"dtype\":\"F32\",\"shape\":[1,%d],\"data_offsets\":[16,%d]}}",
                   width, 16 + 4 * width);
    uint64_t length = strlen(header);
    FILE *f = fopen(path, "w");

    if (!f || fwrite(&length, 1, 8, f) != 8 || fwrite(header, 1, length, f) != length || fflush(f)
            || ftruncate(fileno(f), (off_t)(8 + length + 16 + 4 * (uint64_t)width)) || fclose(f))
        CHECK(false, "writing %s", path);
    return path;
}

static struct sd_tokenizer *
tokenizer_of(struct sd_scope *s, const char *path, const char *list, int positions)
{
    struct sd_model *m = sd_model_open(s, path, NULL);
    struct sd_tokenizer *t = NULL;

    if (m) {
        m->text_config.max_position_embeddings = positions;
        t = sd_model_tokenizer(m, list);
    }
    if (!t)
        printf("# %s\n", sd_reason());
    unlink(path);
    return t;
}

int
main(void)
{
    char folder[] = "/tmp/sd-model-tokenizer-XXXXXX";
    struct sd_scope *s = sd_scope_open();
    const char *data = getenv("SD_TEST_DATA"),
               *list = sd_sprintf(s, "%s/clip-tokenizer/merges.txt", data ? data : "../shared/data");
    struct sd_model *m = sd_model_open(s, "tests/data/models/sd1", NULL);
    struct sd_tokenizer *t;

    if (CHECK(m != NULL, "a small model: %s", m ? "opens" : sd_reason())) {
        CHECK(!sd_model_tokenizer(m, NULL) && strstr(sd_reason(), "no tokenizer in it"), "it has none: %s",
              sd_reason());
        CHECK(!sd_model_tokenizer(m, TINY) && strstr(sd_reason(), "tokenizer of 664 tokens, the text encoder knows"),
              "another number of tokens: %s", sd_reason());
        m->text_config.vocab_size = 664;
        m->text_config.max_position_embeddings = 15;
        CHECK(!sd_model_tokenizer(m, TINY)
                  && strstr(sd_reason(), "tokenizer of 16 ids, the text encoder has 15 positions"),
              "longer than the text encoder: %s", sd_reason());
        m->text_config.max_position_embeddings = 20;
        t = sd_model_tokenizer(m, TINY);
        CHECK(t && t->model_max_length == 16, "shorter: the tokenizer's length");
    }
    if (!access(list, R_OK)) {
        if (!mkdtemp(folder))
            return 1;
        t = tokenizer_of(s, checkpoint(s, folder, 768), list, 77);
        CHECK(t && t->pad == t->eos && t->model_max_length == 77, "SD1 in a single file pads with the end token");
        t = tokenizer_of(s, checkpoint(s, folder, 1024), list, 50);
        CHECK(t && t->pad == 0, "SD2 in a single file pads with \"!\"");
        CHECK(t && t->model_max_length == 50, "where no file says the length, the text encoder's");
        rmdir(folder);
    } else {
        check_skip("single files", "clip-tokenizer is not in SD_TEST_DATA");
    }
    sd_scope_close(s);
    return check_done();
}
