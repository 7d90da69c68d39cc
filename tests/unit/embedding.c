/* Learned tokens in files: what each writer calls them, shapes, refusals; written and read again. */
#include "check.h"
#include "child.h"
#include "model/embedding.h"

static float numbers[64];
static struct sd_safetensors_writer *writer;

static void
tensor(const char *name, int ndim, int64_t a, int64_t b)
{
    sd_safetensors_add_f32(writer, name, SD_F32, ndim, (int64_t[]){ a, b }, numbers);
}

static struct sd_embedding *
finish(struct sd_scope *s, const char *path)
{
    struct sd_embedding *e = sd_safetensors_save(writer, path) < 0 ? NULL : sd_embedding_load(s, path);

    writer = sd_safetensors_writer_new(s);
    return e;
}

static void
read_as(struct sd_scope *s, const char *path, const char *token, int64_t vectors, int64_t width)
{
    struct sd_embedding *e = finish(s, path);

    CHECK(e && strcmp(e->token, token) == 0 && e->vectors == vectors && e->width == width
          && memcmp(e->values, numbers, (size_t)(vectors * width) * sizeof(float)) == 0, "%s: %s, %lld x %lld", path,
          e ? e->token : sd_reason(), e ? (long long)e->vectors : 0, e ? (long long)e->width : 0);
}

static void
refused(struct sd_scope *s, const char *why)
{
    struct sd_embedding *e = finish(s, "made.safetensors");

    CHECK(!e && strstr(sd_reason(), why), "refused: %s", e ? e->token : sd_reason());
}

static void
test_reading(struct sd_scope *s)
{
    tensor("<cat>", 1, 8, 0);
    read_as(s, "a.safetensors", "<cat>", 1, 8);
    tensor("<cat>", 2, 3, 8);
    read_as(s, "a.safetensors", "<cat>", 3, 8);
    tensor("emb_params", 2, 2, 8);
    read_as(s, "blue cat.v2.safetensors", "blue cat.v2", 2, 8);
    tensor("emb_params", 2, 2, 8);
    sd_safetensors_set_metadata(writer, "name", "named");
    read_as(s, "a.safetensors", "named", 2, 8);
    tensor("emb_params", 2, 2, 8);
    sd_safetensors_set_metadata(writer, "name", "named");
    sd_safetensors_set_metadata(writer, "sd_tools.token", "<ours>");
    read_as(s, "a.safetensors", "<ours>", 2, 8);
    tensor("string_to_param.*", 2, 2, 8);
    tensor("other", 2, 2, 8);
    read_as(s, "nested.safetensors", "nested", 2, 8);
    tensor("clip_l", 2, 2, 8);
    read_as(s, "l.safetensors", "l", 2, 8);
    tensor("text_encoders_0", 2, 2, 8);
    read_as(s, "seed.safetensors", "seed", 2, 8);

    refused(s, "0 tensors");
    tensor("a", 2, 1, 8);
    tensor("b", 2, 1, 8);
    refused(s, "2 tensors, expected the one embedding");
    tensor("string_to_param.a", 2, 1, 8);
    tensor("string_to_param.b", 2, 1, 8);
    refused(s, "2 embeddings in one file");
    tensor("clip_l", 2, 1, 8);
    tensor("clip_g", 2, 1, 8);
    refused(s, "SDXL");
    sd_safetensors_add_f32(writer, "<cat>", SD_F32, 3, (int64_t[]){ 1, 2, 8 }, numbers);
    refused(s, "shape [1, 2, 8]");
    tensor("<cat>", 2, 0, 8);
    refused(s, "shape [0, 8]");
    sd_safetensors_add(writer, "<cat>", SD_I32, 2, (int64_t[]){ 1, 8 }, numbers);
    refused(s, "I32");
    numbers[5] = INFINITY;
    tensor("<cat>", 1, 8, 0);
    refused(s, "not finite");
    numbers[5] = 5;
    CHECK(!sd_embedding_load(s, "old.pt") && strstr(sd_reason(), "pickle"), "%s", sd_reason());
    CHECK(!sd_embedding_load(s, "absent") && strstr(sd_reason(), "No such file"), "%s", sd_reason());
}

static void
test_writing(struct sd_scope *s)
{
    struct sd_embedding e = { .token = "<cat>", .vectors = 2, .width = 8, .values = numbers }, *back;
    const char *const pairs[] = { "k", "v", NULL };
    struct sd_safetensors *f;

    CHECK(sd_embedding_save(&e, "d", SD_EMBEDDING_DIFFUSERS, SD_F32, pairs) == 0 && (f = sd_safetensors_open(s, "d"))
              && sd_safetensors_count(f) == 1 && sd_safetensors_get(f, "<cat>", 2, (int64_t[]){ 2, 8 })
              && strcmp(sd_safetensors_metadata(f, "format"), "pt") == 0
              && strcmp(sd_safetensors_metadata(f, "k"), "v") == 0,
          "diffusers: the key is the token");
    CHECK((back = sd_embedding_load(s, "d")) && sd_embedding_equal(&e, back, SD_F32)
              && !sd_embedding_equal(&e, back, SD_BF16) && back->dtype == SD_F32,
          "and reads back");
    CHECK(sd_embedding_save(&e, "a", SD_EMBEDDING_A1111, SD_F16, NULL) == 0 && (f = sd_safetensors_open(s, "a"))
              && sd_safetensors_count(f) == 1 && sd_safetensors_get(f, "emb_params", 2, (int64_t[]){ 2, 8 }),
          "A1111: emb_params");
    CHECK((back = sd_embedding_load(s, "a")) && sd_embedding_equal(&e, back, SD_F16)
              && !sd_embedding_equal(&e, back, SD_F32) && strcmp(back->token, "<cat>") == 0 && back->dtype == SD_F16,
          "and reads back, its token from the metadata");
    CHECK(sd_embedding_save(&e, "no/such/folder", SD_EMBEDDING_A1111, SD_F16, NULL) < 0, "%s", sd_reason());
}

int
main(void)
{
    struct sd_scope *s = sd_scope_open();

    for (int i = 0; i < 64; i++)
        numbers[i] = (float)i * 1.0001f;    /* in no narrower dtype */
    writer = sd_safetensors_writer_new(s);
    child_enter();
    test_reading(s);
    test_writing(s);
    child_leave();
    sd_scope_close(s);
    return check_done();
}
