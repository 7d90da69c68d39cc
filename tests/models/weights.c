/* weights.c - names and accounts of weights, models opened: what is refused, and with which words. */
#include "models.h"

#include <sys/stat.h>
#include <unistd.h>

static char folder[] = "/tmp/sd-weights-XXXXXX";

/* ---- files changed one tensor at a time -------------------------------------------------------------------------- */

/* A copy of a file without `drop`, with `add` of one element, with `bend` losing its last row; `seed` changes one
 * value. */
static const char *
changed(struct sd_scope *s, const char *from, const char *to, const char *drop, const char *add, const char *bend,
        const char *touch)
{
    struct sd_safetensors *f = sd_safetensors_open(s, from);
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);

    for (size_t i = 0; f && i < sd_safetensors_count(f); i++) {
        const struct sd_safetensor *t = sd_safetensors_at(f, i);
        int64_t *shape = sd_alloc_array(s, (size_t)t->ndim + 1, sizeof *shape);
        char *data = sd_alloc(s, t->bytes + 1);

        if (drop && strcmp(t->name, drop) == 0)
            continue;
        memcpy(shape, t->shape, (size_t)t->ndim * sizeof *shape);
        memcpy(data, t->data, t->bytes);
        if (bend && strcmp(t->name, bend) == 0)
            shape[0]--;
        if (touch && strcmp(t->name, touch) == 0)
            data[0] ^= 1;
        sd_safetensors_add(w, t->name, t->dtype, t->ndim, shape, data);
    }
    if (add)
        sd_safetensors_add(w, add, SD_F16, 1, (int64_t[]){ 1 }, sd_alloc(s, 2));
    if (!f || sd_safetensors_save(w, to) < 0)
        printf("# %s: %s\n", to, sd_reason());
    return to;
}

static void
check_accounts(void)
{
    struct sd_scope *s = sd_scope_open();
    const char *file = MODELS "sd1.safetensors", *to = sd_sprintf(s, "%s/changed.safetensors", folder);
    const char *vae_to = sd_sprintf(s, "%s/vae.safetensors", folder), **names;
    struct sd_model_options options = { .config = MODELS "sd1" };
    struct sd_model *m;
    int before;

    m = sd_model_open(
        s, changed(s, file, to, "model.diffusion_model.input_blocks.1.0.in_layers.2.bias", NULL, NULL, NULL), &options);
    CHECK(m && !sd_model_unet(m) && says("unet.down_blocks.0.resnets.0.conv1: bias: missing"),
          "a missing tensor is named");
    CHECK(m && sd_model_vae(m) && sd_model_text_encoder(m), "and only its component is refused");
    m = sd_model_open(s, changed(s, file, to, NULL, NULL, "model.diffusion_model.out.2.weight", NULL), &options);
    CHECK(m && !sd_model_unet(m) && says("unet.conv_out: weight: shape [3, 8, 3, 3], expected [4, 8, 3, 3]"),
          "a tensor of another shape is named with both");
    m = sd_model_open(s,
                      changed(s, file, to, "model.diffusion_model.time_embed.2.weight",
                              "model.diffusion_model.input_blocks.99.0.op.weight", NULL, NULL),
                      &options);
    CHECK(m && !sd_model_unet(m) && says("unet.time_embedding.linear_2: weight: missing"),
          "missing weight of a linear layer");

    sd_verbosity = -1;
    m = sd_model_open(s, changed(s, file, to, NULL, "model.diffusion_model.input_blocks.99.0.op.weight", NULL, NULL),
                      &options);
    CHECK(m && sd_model_unet(m) && sd_weights_unused(sd_model_unet(m)->weights, s, &names) == 1
              && strcmp(names[0], "model.diffusion_model.input_blocks.99.0.op.weight") == 0,
          "a tensor without use is named");
    m = sd_model_open(s, changed(s, file, to, NULL, "model_ema.diffusion_modelout2bias", NULL, NULL), &options);
    before = sd_error_count();
    CHECK(m && sd_model_unet(m) && sd_weights_unused(sd_model_unet(m)->weights, s, &names) == 0
              && sd_error_count() == before,
          "outside the prefixes nothing is");
    sd_verbosity = 0;
    m = sd_model_open(s, MODELS "sd2.safetensors", &(struct sd_model_options){ .config = MODELS "sd2" });
    CHECK(m && sd_model_text_encoder(m) && sd_weights_unused(sd_model_text_encoder(m)->weights, s, &names) == 0,
          "OpenCLIP's last layer and projection are known to be without use");

    /* --vae */
    changed(s, MODELS "sd1/vae/diffusion_pytorch_model.safetensors", vae_to, NULL, NULL, NULL, "encoder.conv_in.bias");
    options = (struct sd_model_options){ .vae = vae_to };
    m = sd_model_open(s, MODELS "sd1", &options);
    CHECK(m && sd_model_vae(m) && m->vae_config.scaling_factor == 0.3,
          "--vae: a file alone is like the model's own VAE");
    CHECK(!sd_vae_open(s, vae_to, NULL)
              && says("vae.encoder.conv_in: weight: shape [8, 3, 3, 3], expected [128, 3, 3, 3]"),
          "without a model it is of the published shape");
    CHECK(!sd_model_open(s, MODELS "sd2", &options) && says("vae.safetensors: vae.encoder.conv_in: weight: shape"),
          "--vae of another shape is named");
    options.vae = MODELS "sd1.safetensors";
    m = sd_model_open(s, MODELS "sd1", &options);
    CHECK(m && sd_model_vae(m), "--vae takes a whole checkpoint");
    options.vae = MODELS "sd2";
    m = sd_model_open(s, MODELS "sd1", &options);
    CHECK(m && m->vae_config.levels == 2 && sd_model_vae(m) && sd_model_vae(m)->config.levels == 2,
          "--vae takes a pipeline's folder");
    options.vae = MODELS "sd2/vae";
    m = sd_model_open(s, MODELS "sd1", &options);
    CHECK(m && m->vae_config.levels == 2, "--vae takes a component's folder");
    options.vae = MODELS "sd1/vae/diffusion_pytorch_model.safetensors";
    m = sd_model_open(s, MODELS "sd1", &options);
    CHECK(m && m->vae_config.scaling_factor == 0.3, "--vae takes a file with config.json beside it");
    options.vae = MODELS "sd1.text.safetensors";
    CHECK(!sd_model_open(s, MODELS "sd1", &options) && says("sd1.text.safetensors: no VAE in it"),
          "--vae without a VAE");
    sd_scope_close(s);
}

static void
check_parts(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_model *m = sd_model_open(s, MODELS "sd2.safetensors",
                                       &(struct sd_model_options){ .config = MODELS "sd2" });
    struct sd_clip_text *t = m ? sd_model_text_encoder(m) : NULL;
    struct sd_weights_place place = { 0 };
    struct sd_weights *w = t ? t->weights : NULL;
    bool equal = true;
    struct sd_param *p;

    CHECK(w && sd_weights_place(w, "text_model.encoder.layers.1.self_attn.k_proj.bias", &place) && place.part == 1
              && place.parts == 3
              && strcmp(place.tensor->name, "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias") == 0,
          "k_proj is the second third of in_proj");
    p = w ? sd_weights_get(w, "text_projection.weight", 2, (int64_t[]){ 20, 20 }) : NULL;
    for (int i = 0; p && i < 20; i++)
        for (int j = 0; j < 20; j++)
            equal = equal
                    && sd_param_values(p)[20 * i + j]
                           == sd_safetensor_f32(
                               s, sd_safetensors_find(sd_weights_file(w),
                                                      "cond_stage_model.model.text_projection"))[20 * j + i];
    CHECK(p && equal, "text_projection is transposed");
    CHECK(w && sd_weights_get(w, "text_projection.weight", 2, (int64_t[]){ 20, 20 }) == p,
          "the same parameter every time");
    CHECK(w && !sd_weights_get(w, "text_projection.weight", 2, (int64_t[]){ 20, 10 })
              && says("text_encoder.text_projection.weight: shape [20, 20], expected [20, 10]"),
          "asked for with another shape");
    sd_scope_close(s);
}

static void
check_hashes(void)
{
    struct sd_scope *s = sd_scope_open();
    const char *file = MODELS "sd1.safetensors", *to = sd_sprintf(s, "%s/touched.safetensors", folder);
    struct sd_model_options options = { .config = MODELS "sd1" };
    char hex[5][SD_SHA256_HEX] = { "" };
    struct sd_model *m;

    m = sd_model_open(s, MODELS "sd1", NULL);
    CHECK(m && !sd_weights_hash(sd_model_vae(m)->weights, hex[0])
              && !sd_hash_file(MODELS "sd1/vae/diffusion_pytorch_model.safetensors", hex[1])
              && strcmp(hex[0], hex[1]) == 0,
          "hash of a component's only file is the file's");
    m = sd_model_open(s, file, &options);
    CHECK(m && !sd_weights_hash(sd_model_vae(m)->weights, hex[2]) && !sd_weights_hash(sd_model_vae(m)->weights, hex[3])
              && strcmp(hex[2], hex[3]) == 0 && strlen(hex[2]) == 64,
          "a single file's VAE has a hash");
    m = sd_model_open(s, changed(s, file, to, NULL, NULL, NULL, "model.diffusion_model.out.2.weight"), &options);
    CHECK(m && !sd_weights_hash(sd_model_vae(m)->weights, hex[3]) && strcmp(hex[2], hex[3]) == 0,
          "which the UNet has no part in");
    m = sd_model_open(s, changed(s, file, to, NULL, NULL, NULL, "first_stage_model.decoder.up.2.block.1.conv2.weight"),
                      &options);
    CHECK(m && !sd_weights_hash(sd_model_vae(m)->weights, hex[3]) && strcmp(hex[2], hex[3]) != 0,
          "and one bit of the VAE changes");
    m = sd_model_open(s, MODELS "sd2", NULL);
    CHECK(m && !sd_weights_hash(sd_model_unet(m)->weights, hex[4]) && strlen(hex[4]) == 64,
          "shards have a hash together");
    /* remembered: another one put into the memory comes back; but not for files that changed since */
    CHECK(!setenv("XDG_CACHE_HOME", sd_sprintf(s, "%s/remembered", folder), 1), "a cache of its own");
    file = changed(s, file, to, NULL, NULL, NULL, NULL);
    usleep(100000);
    m = sd_model_open(s, file, &options);
    CHECK(m && !sd_weights_hash(sd_model_vae(m)->weights, hex[3]) && strcmp(hex[2], hex[3]) == 0
              && system(sd_sprintf(s, "sed -i 's/ [0-9a-f]*$/ %064d/' %s/remembered/sd-tools/hashes/*", 7, folder)) == 0
              && !sd_weights_hash(sd_model_vae(m)->weights, hex[3]) && strspn(hex[3], "0") == 63,
          "a single file's hash is remembered: %s", hex[3]);
    CHECK(!sd_weights_hash(sd_model_unet(m)->weights, hex[4]) && strspn(hex[4], "0") < 60, "the UNet's is its own");
    m = sd_model_open(s, changed(s, file, to, NULL, NULL, NULL, NULL), &options);
    CHECK(m && !sd_weights_hash(sd_model_vae(m)->weights, hex[3]) && strcmp(hex[2], hex[3]) == 0,
          "and forgotten once the file is another");
    sd_scope_close(s);
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static void
write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    if (!f || fputs(text, f) < 0 || fclose(f))
        printf("# cannot write %s\n", path);
}

/* A single file with only the tensors that tell the family. */
static const char *
family_file(struct sd_scope *s, int in_channels, int context, const char *more)
{
    static const float spread[] = { 1, -1, 1, -1 };
    const char *path = sd_sprintf(s, "%s/family.safetensors", folder);
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);

    sd_safetensors_add(w, "model.diffusion_model.input_blocks.0.0.weight", SD_F16, 4,
                       (int64_t[]){ 1, in_channels, 1, 1 }, sd_alloc(s, 64));
    if (context)
        sd_safetensors_add(w, "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", SD_F16,
                           2, (int64_t[]){ 1, context }, sd_alloc(s, 2 * (size_t)context));
    if (more)
        sd_safetensors_add(w, more, SD_F32, 1, (int64_t[]){ 4 }, spread);
    sd_safetensors_set_metadata(w, "modelspec.architecture",
                                context == 1024 && !more ? "stable-diffusion-v2-768-v" : "x");
    if (sd_safetensors_save(w, path) < 0)
        printf("# %s\n", sd_reason());
    return path;
}

static void
check_families(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_model *m;

    m = sd_model_open(s, family_file(s, 4, 768, NULL), NULL);
    CHECK(m && m->family == SD_FAMILY_SD1 && !m->v_prediction && m->text_config.quick_gelu
              && m->unet_config.heads[3] == 8 && m->vae_config.levels == 4 && !m->tokenizer
              && m->unet_config.sample_width == 64,
          "SD1 by its text's width");
    m = sd_model_open(s, family_file(s, 4, 1024, NULL), NULL);
    CHECK(m && m->family == SD_FAMILY_SD2 && m->v_prediction && !m->text_config.quick_gelu
              && m->unet_config.heads[3] == 20 && m->unet_config.sample_width == 96
              && m->text_config.num_hidden_layers == 23,
          "SD2 768-v by its metadata");
    m = sd_model_open(
        s, family_file(s, 4, 1024, "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"), NULL);
    CHECK(m && m->v_prediction, "v by the spread of a bias");
    m = sd_model_open(s, family_file(s, 4, 1024, "other"), NULL);
    CHECK(m && !m->v_prediction, "epsilon without");
    CHECK(!sd_model_open(s, family_file(s, 9, 768, NULL), NULL) && says("9 input channels"), "inpainting is refused");
    CHECK(!sd_model_open(s, family_file(s, 4, 2048, NULL), NULL) && says("SDXL"), "SDXL is refused by name");
    CHECK(!sd_model_open(s, family_file(s, 4, 640, NULL), NULL) && says("640 wide"), "an unknown width is refused");
    CHECK(!sd_model_open(s, family_file(s, 4, 0, NULL), NULL) && says("no cross attention"),
          "a UNet without text is refused");
    CHECK(!sd_model_open(s, MODELS "sd1/vae/diffusion_pytorch_model.safetensors", NULL)
              && says("no Stable Diffusion checkpoint"),
          "a file of something else is refused");
    CHECK(!sd_model_open(s, MODELS "sd1/unet/diffusion_pytorch_model.safetensors", NULL) && says("a UNet alone"),
          "a component file is refused by name");
    sd_scope_close(s);
}

static void
check_opening(void)
{
    struct sd_scope *s = sd_scope_open();
    char *hub = sd_sprintf(s, "%s/hub", folder), *repository = sd_sprintf(s, "%s/models--some--tiny", hub),
         *here = getcwd(NULL, 0);
    char *bad = sd_sprintf(s, "%s/bad", folder);
    struct sd_model *m;

    m = sd_model_open(s, MODELS "sd2", NULL);
    CHECK(m && m->family == SD_FAMILY_SD2 && m->v_prediction && !m->single_file, "a directory: SD2, v-prediction");
    m = sd_model_open(s, MODELS "sd1", NULL);
    CHECK(m && m->family == SD_FAMILY_SD1 && !m->v_prediction && m->vae_config.scaling_factor == 0.3,
          "a directory: SD1, epsilon");
    CHECK(!sd_model_open(s, "no/such", NULL), "a name that is nowhere: %s", sd_reason());
    CHECK(!sd_model_open(s, MODELS "sd1/unet", NULL) && says("model_index.json"), "a folder without model_index.json");

    mkdir(hub, 0777);
    mkdir(repository, 0777);
    mkdir(sd_sprintf(s, "%s/refs", repository), 0777);
    mkdir(sd_sprintf(s, "%s/snapshots", repository), 0777);
    write_text(sd_sprintf(s, "%s/refs/main", repository), "0123abc\n");
    if (symlink(sd_sprintf(s, "%s/" MODELS "sd1", here), sd_sprintf(s, "%s/snapshots/0123abc", repository)))
        printf("# cannot make a link\n");
    setenv("HF_HUB_CACHE", hub, 1);
    m = sd_model_open(s, "some/tiny", NULL);
    CHECK(m && sd_model_text_encoder(m), "a name in the Hub's cache");
    CHECK(sd_model_open(s, "some/tiny@0123abc", NULL) && !sd_model_open(s, "some/tiny@v2", NULL), "and its revisions");

    mkdir(bad, 0777);
    write_text(sd_sprintf(s, "%s/model_index.json", bad), "{\"_class_name\": \"StableDiffusion3Pipeline\"}");
    CHECK(!sd_model_open(s, bad, NULL)
              && says("model_index.json: _class_name: StableDiffusion3Pipeline is not supported"),
          "another pipeline is refused by name");
    write_text(sd_sprintf(s, "%s/model_index.json", bad), "{\"_class_name\": \"StableDiffusionPipeline\"}");
    CHECK(!sd_model_open(s, bad, NULL) && says("unet/config.json"), "a missing component is named");
    mkdir(sd_sprintf(s, "%s/unet", bad), 0777);
    write_text(sd_sprintf(s, "%s/unet/config.json", bad), "{\"act_fn\": \"mish\"}");
    CHECK(!sd_model_open(s, bad, NULL) && says("unet/config.json: act_fn: mish"), "a field is named with its file");
    write_text(sd_sprintf(s, "%s/unet/config.json", bad), "{\"act_fn\": ");
    CHECK(!sd_model_open(s, bad, NULL) && says("unet/config.json: "), "a broken file is named");
    free(here);
    sd_scope_close(s);
}

/* A whole model's folder, then one file after the other away or cut. */
static void
check_damage(void)
{
    struct sd_scope *s = sd_scope_open();
    char *copy = sd_sprintf(s, "%s/copy", folder), *unet = sd_sprintf(s, "%s/unet", copy);
    char *vae = sd_sprintf(s, "%s/vae/diffusion_pytorch_model.fp16.safetensors", copy);
    char *text = sd_sprintf(s, "%s/text_encoder/model.safetensors", copy);
    struct sd_model *m;

    if (system(sd_sprintf(s, "cp -r " MODELS "sd2 %s", copy)))
        printf("# cannot copy\n");
    m = sd_model_open(s, copy, NULL);
    CHECK(m && sd_model_unet(m) && sd_model_vae(m) && sd_model_text_encoder(m), "a copy is whole");
    truncate(vae, 5000);
    m = sd_model_open(s, copy, NULL);
    CHECK(m && !sd_model_vae(m) && says("vae/diffusion_pytorch_model.fp16.safetensors: "), "a cut file is named");
    unlink(vae);
    CHECK(m && !sd_model_vae(m) && says("/vae: no diffusion_pytorch_model.safetensors"), "a missing file is named");
    write_text(sd_sprintf(s, "%s/vae/diffusion_pytorch_model.bin", copy), "PK");
    CHECK(m && !sd_model_vae(m) && says("pickled weights (.bin) are not read here"), "a pickle is refused by name");
    rename(text, sd_sprintf(s, "%s/text_encoder/model.fp16.safetensors", copy));
    m = sd_model_open(s, copy, &(struct sd_model_options){ .variant = "ema" });
    CHECK(m && sd_model_text_encoder(m), "a variant that is absent falls back");
    unlink(sd_sprintf(s, "%s/diffusion_pytorch_model-00002-of-00003.safetensors", unet));
    CHECK(m && !sd_model_unet(m) && says("diffusion_pytorch_model-00002-of-00003.safetensors"),
          "a missing shard is named");
    write_text(sd_sprintf(s, "%s/text_encoder/config.json", copy), "{\"hidden_size\": 24, \"num_attention_heads\": 2}");
    CHECK(!sd_model_open(s, copy, NULL)
              && says("text_encoder/config.json: hidden_size 24, the UNet's cross_attention_dim is 20"),
          "components that do not fit are named");
    sd_scope_close(s);
}

/* A graph with input that does not fit: the reason names the module. */
static void
check_misfits(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_model *m = sd_model_open(s, MODELS "sd1", NULL);
    static const int64_t shapes[][4] = { { 1, 4, 4, 4 }, { 1, 4, 4, 3 }, { 2, 4, 4, 4 } };
    static const int widths[] = { 25, 24, 24 };
    static const char *const reasons[] = { "unet: encoder_hidden_states 25 wide, the model takes 24",
                                           "unet: sample of 3 channels, the model takes 4",
                                           "unet: batch of 2 samples, 1 timesteps, 1 texts" };
    struct sd_graph *g;

    for (size_t i = 0; m && i < 3; i++) {
        g = sd_graph_new();
        sd_unet(g, sd_model_unet(m), NULL, sd_input(g, "x", SD_F32, 4, shapes[i]),
                sd_input(g, "t", SD_F32, 1, (int64_t[]){ 1 }),
                sd_input(g, "c", SD_F32, 3, (int64_t[]){ 1, 5, widths[i] }));
        CHECK(!sd_graph_ok(g) && says(reasons[i]), "%s", reasons[i]);
        sd_graph_free(g);
    }
    g = sd_graph_new();
    sd_vae_encode(g, sd_model_vae(m), sd_input(g, "x", SD_F32, 4, (int64_t[]){ 1, 8, 10, 3 }));
    CHECK(!sd_graph_ok(g) && says("vae: picture of 10 x 8 pixels, 3 channels: sides must be multiples of 4"),
          "VAE: odd picture");
    sd_graph_free(g);
    g = sd_graph_new();
    sd_clip_text(g, sd_model_text_encoder(m), NULL, sd_input(g, "ids", SD_I32, 2, (int64_t[]){ 1, 14 }), NULL, 0);
    CHECK(!sd_graph_ok(g) && says("text_encoder: input_ids of 14 tokens, the encoder takes 13"),
          "CLIP: too many tokens");
    sd_graph_free(g);
    g = sd_graph_new();
    sd_clip_text(g, sd_model_text_encoder(m), NULL, sd_input(g, "ids", SD_I32, 2, (int64_t[]){ 1, 3 }), NULL, 4);
    CHECK(!sd_graph_ok(g) && says("clip_skip 4, the encoder has 3 layers"), "CLIP: clip_skip too large");
    sd_graph_free(g);
    sd_scope_close(s);
}

/* The model that users get with the source: every tensor used. */
static void
check_miniature(void)
{
    struct sd_scope *s = sd_scope_open();
    const char *path = getenv("SD_TEST_MODEL") ? getenv("SD_TEST_MODEL") : "examples/miniature/model", **names;
    struct sd_model *m;

    if (access(path, F_OK) != 0) {
        check_skip("the miniature: every tensor used", "examples/miniature/model is not there");
    } else {
        m = sd_model_open(s, path, NULL);
        CHECK(m && sd_model_unet(m) && sd_model_vae(m) && sd_model_text_encoder(m)
                  && !sd_weights_unused(sd_model_unet(m)->weights, s, &names)
                  && !sd_weights_unused(sd_model_vae(m)->weights, s, &names)
                  && !sd_weights_unused(sd_model_text_encoder(m)->weights, s, &names),
              "the miniature: every tensor used%s%s", m ? "" : ": ", m ? "" : sd_reason());
    }
    sd_scope_close(s);
}

static void
clean(void)
{
    struct sd_scope *s = sd_scope_open();

    if (system(sd_sprintf(s, "rm -rf '%s'", folder)))
        printf("# %s is left\n", folder);
    sd_scope_close(s);
}

int
main(void)
{
    if (!mkdtemp(folder))
        return 1;
    check_accounts();
    check_parts();
    check_hashes();
    check_families();
    check_opening();
    check_damage();
    check_misfits();
    check_miniature();
    clean();
    return check_done();
}
