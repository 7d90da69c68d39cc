/* configs.c - configurations: what is refused, and with which words; at full size, what they count and cost. */
#include "models.h"

#include "clock.h"

#include <unistd.h>

static const json_t *
parse(struct sd_scope *s, const char *text)
{
    const json_t *o = sd_json_parse(s, text, strlen(text), SD_JSON_NONFINITE);

    if (!o)
        printf("# %s: %s\n", text, sd_reason());
    return o;
}

/* ---- configurations --------------------------------------------------------------------------------------------- */

static void
check_configs(void)
{
    static const struct {
        const char *text, *says;
    } unet[] = {
        { "[]", "expected an object" },
        { "{\"block_out_channels\": [320, 641, 1280, 1280]}", "641 is not divisible by norm_num_groups 32" },
        { "{\"block_out_channels\": []}", "block_out_channels: empty" },
        { "{\"block_out_channels\": [320, \"a\"]}", "block_out_channels" },
        { "{\"block_out_channels\": [99999999, 320, 320, 320]}", "block_out_channels: 99999999" },
        { "{\"block_out_channels\": [32, 64]}", "down_block_types, up_block_types: missing" },
        { "{\"down_block_types\": [\"DownBlock2D\", \"DownBlock2D\", \"DownBlock2D\", \"AttnDownBlock2D\"]}",
          "down_block_types: AttnDownBlock2D is not supported, only CrossAttnDownBlock2D and DownBlock2D" },
        { "{\"up_block_types\": [\"UpBlock2D\"]}", "up_block_types: 1 blocks, block_out_channels has 4" },
        { "{\"attention_head_dim\": [5, 10, 20]}", "attention_head_dim: 3 values, block_out_channels has 4" },
        { "{\"attention_head_dim\": 7}", "attention_head_dim: 7 heads" },
        { "{\"attention_head_dim\": 0}", "attention_head_dim: 0, expected 1" },
        { "{\"cross_attention_dim\": [768, 768, 768, 1024]}", "cross_attention_dim: 768 and 1024" },
        { "{\"act_fn\": \"mish\"}", "act_fn: mish is not supported, only silu" },
        { "{\"center_input_sample\": true}", "center_input_sample: true is not supported" },
        { "{\"class_embed_type\": \"timestep\"}", "class_embed_type: \"timestep\" is not supported, only [null]" },
        { "{\"addition_embed_type\": \"text_time\"}", "addition_embed_type" },
        { "{\"resnet_time_scale_shift\": \"scale_shift\"}", "resnet_time_scale_shift" },
        { "{\"time_cond_proj_dim\": 256}", "time_cond_proj_dim: 256" },
        { "{\"mid_block_type\": \"UNetMidBlock2D\"}", "mid_block_type: UNetMidBlock2D" },
        { "{\"mid_block_scale_factor\": 1.5}", "mid_block_scale_factor: 1.5" },
        { "{\"dual_cross_attention\": true}", "dual_cross_attention" },
        { "{\"only_cross_attention\": [true, true, true, false]}", "only_cross_attention" },
        { "{\"downsample_padding\": 0}", "downsample_padding: 0" },
        { "{\"layers_per_block\": 16, \"transformer_layers_per_block\": 64}", "8448 blocks, at most 1024" },
        { "{\"norm_num_groups\": null}", "norm_num_groups: null" },
        { "{\"norm_eps\": 0}", "norm_eps: 0" },
        { "{\"freq_shift\": NaN}", "freq_shift: nan" },
        { "{\"conv_in_kernel\": 4}", "expected odd numbers" },
        { "{\"use_linear_projection\": 1}", "use_linear_projection" },
        { "{\"sample_size\": -3}", "sample_size" },
    };
    static const struct {
        const char *text, *says;
    } vae[] = {
        { "{\"block_out_channels\": [48]}", "48 is not divisible by norm_num_groups 32" },
        { "{\"shift_factor\": 0.0609}", "shift_factor: 0.0609" },
        { "{\"latents_mean\": [0, 0, 0, 0]}", "latents_mean" },
        { "{\"down_block_types\": [\"AttnDownEncoderBlock2D\"]}", "down_block_types: AttnDownEncoderBlock2D" },
        { "{\"scaling_factor\": 0}", "scaling_factor: 0" },
    };
    static const struct {
        const char *text, *says;
    } text[] = {
        { "{\"hidden_act\": \"gelu_new\"}", "hidden_act: gelu_new is not supported, only quick_gelu and gelu" },
        { "{\"num_attention_heads\": 7}", "num_attention_heads: 7 does not divide hidden_size 512" },
        { "{\"model_type\": \"t5\"}", "model_type: \"t5\"" },
        { "{\"vocab_size\": 0}", "vocab_size" },
    };
    struct sd_scope *s = sd_scope_open();
    struct sd_unet_config u;
    struct sd_vae_config v;
    struct sd_clip_text_config t;

    for (size_t i = 0; i < sizeof unet / sizeof *unet; i++)
        CHECK(sd_unet_config_read(parse(s, unet[i].text), &u) < 0 && says(unet[i].says), "UNet refuses %s",
              unet[i].text);
    for (size_t i = 0; i < sizeof vae / sizeof *vae; i++)
        CHECK(sd_vae_config_read(parse(s, vae[i].text), &v) < 0 && says(vae[i].says), "VAE refuses %s", vae[i].text);
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        CHECK(sd_clip_text_config_read(parse(s, text[i].text), &t) < 0 && says(text[i].says), "CLIP refuses %s",
              text[i].text);
    CHECK(!sd_unet_config_read(
              parse(s, "{\"mid_block_scale_factor\": 1.0, \"class_embed_type\": null, \"resnet_out_scale_"
                       "factor\": 1, \"upcast_attention\": true, \"dropout\": 0.1, \"_x\": 1, \"new\": 2}"),
              &u),
          "fields without effect and unknown fields are taken");
    CHECK(!sd_unet_config_read(
              parse(s, "{\"layers_per_block\": [1, 2, 3, 4], \"transformer_layers_per_block\": [1, 2, 10, 1], "
                       "\"attention_head_dim\": [5, 10, 20, 20], \"sample_size\": [40, 64]}"),
              &u)
              && u.layers_per_block[3] == 4 && u.transformer_layers[2] == 10 && u.up_transformer_layers[1] == 10
              && u.heads[1] == 10 && u.sample_height == 40 && u.sample_width == 64,
          "lists per level");
    sd_scope_close(s);
}

/* ---- full size: counts, and that the single-file names are a bijection ------------------------------------------- */

static void
check_full_size(const char *what, const char *text, int64_t elements, size_t tensors)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_unet unet = { .weights = sd_weights_imagine(s, "unet") };
    struct sd_key_map map = { SD_LAYOUT_LDM_UNET, "", &unet.config, NULL };
    struct sd_safetensors_writer *names = sd_safetensors_writer_new(s);
    char path[] = "/tmp/sd-names-XXXXXX";
    size_t count, spelled = 0;
    struct sd_safetensors *f;
    int fd = mkstemp(path);

    if (fd >= 0)
        close(fd);
    if (sd_unet_config_read(parse(s, text), &unet.config) < 0 || sd_unet_account(&unet) < 0)
        printf("# %s\n", sd_reason());
    count = sd_weights_count(unet.weights);
    CHECK(sd_weights_elements(unet.weights) == elements && count == tensors, "%s UNet: %lld parameters in %zu tensors",
          what, (long long)sd_weights_elements(unet.weights), count);
    for (size_t i = 0; i < count; i++) {
        struct sd_key *key = sd_alloc(s, sizeof *key);

        if (sd_key_spell(&map, sd_weights_at(unet.weights, i)->path + strlen("unet."), 0, key)) {
            spelled++;
            sd_safetensors_add(names, key->name, SD_U8, 1, (int64_t[]){ 0 }, NULL);
        } else {
            printf("# no LDM name: %s\n", sd_weights_at(unet.weights, i)->path);
        }
    }
    CHECK(spelled == count && sd_safetensors_save(names, path) == 0, "%s UNet: %zu different LDM names", what, spelled);
    f = sd_safetensors_open(s, path);
    CHECK(f && sd_safetensors_find(f, "input_blocks.11.0.emb_layers.1.bias")
              && sd_safetensors_find(f, "time_embed.2.weight") && sd_safetensors_find(f, "input_blocks.9.0.op.weight")
              && sd_safetensors_find(f, "output_blocks.2.1.conv.bias")
              && sd_safetensors_find(f, "output_blocks.8.2.conv.weight")
              && sd_safetensors_find(f, "middle_block.2.out_layers.3.bias")
              && sd_safetensors_find(f, "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0.bias")
              && sd_safetensors_find(f, "output_blocks.3.0.skip_connection.weight")
              && sd_safetensors_find(f, "out.2.bias"),
          "%s UNet: the LDM names of published files", what);
    unlink(path);
    sd_scope_close(s);
}

static void
check_counts(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_vae vae = { .weights = sd_weights_imagine(s, "vae") };
    struct sd_clip_text l = { .weights = sd_weights_imagine(s, "text_encoder") }, h = l;
    double start = sd_clock();

    check_full_size("SD1", "{\"cross_attention_dim\": 768, \"attention_head_dim\": 8}", 859520964, 686);
    printf("# described in %.3f s\n", sd_clock() - start);
    check_full_size("SD2",
                    "{\"cross_attention_dim\": 1024, \"attention_head_dim\": [5, 10, 20, 20], "
                    "\"use_linear_projection\": true}",
                    865910724, 686);
    h.weights = sd_weights_imagine(s, "text_encoder");
    if (sd_vae_config_read(parse(s, "{\"block_out_channels\": [128, 256, 512, 512], \"layers_per_block\": 2}"),
                           &vae.config)
        || sd_vae_account(&vae))
        printf("# %s\n", sd_reason());
    CHECK(sd_weights_elements(vae.weights) == 83653863 && sd_weights_count(vae.weights) == 248,
          "SD VAE: %lld parameters", (long long)sd_weights_elements(vae.weights));
    if (sd_clip_text_config_read(
            parse(s, "{\"hidden_size\": 768, \"intermediate_size\": 3072, \"num_attention_heads\": 12}"), &l.config)
        || sd_clip_text_account(&l))
        printf("# %s\n", sd_reason());
    CHECK(sd_weights_elements(l.weights) == 123060480 && sd_weights_count(l.weights) == 196,
          "CLIP-L text: %lld parameters", (long long)sd_weights_elements(l.weights));
    if (sd_clip_text_config_read(
            parse(s, "{\"hidden_size\": 1024, \"intermediate_size\": 4096, \"num_attention_heads\": 16, "
                     "\"num_hidden_layers\": 23, \"hidden_act\": \"gelu\"}"),
            &h.config)
        || sd_clip_text_account(&h))
        printf("# %s\n", sd_reason());
    CHECK(sd_weights_elements(h.weights) == 340387840 && sd_weights_count(h.weights) == 372,
          "CLIP-H text: %lld parameters", (long long)sd_weights_elements(h.weights));
    sd_scope_close(s);
}

/* Matrix products of one pass at full size against a count made apart, in billions: a layer too many shows. */
static void
check_work(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_unet unet = { .weights = sd_weights_imagine(s, "unet") };
    struct sd_vae vae = { .weights = sd_weights_imagine(s, "vae") };
    static const char *const what[] = { "UNet, two samples", "VAE decode", "VAE encode" };
    static const double wanted[] = { 2 * 803.3, 2514.5, 1116.7 };

    if (sd_unet_config_read(parse(s, "{\"cross_attention_dim\": 768, \"attention_head_dim\": 8}"), &unet.config)
        || sd_vae_config_read(parse(s, "{\"block_out_channels\": [128, 256, 512, 512], \"layers_per_block\": 2}"),
                              &vae.config))
        printf("# %s\n", sd_reason());
    for (int i = 0; i < 3; i++) {
        struct sd_graph *g = sd_graph_new();
        struct sd_tensor *x = sd_input(g, "x", SD_F32, 4,
                                       i == 2 ? (int64_t[]){ 1, 512, 512, 3 } : (int64_t[]){ i ? 1 : 2, 64, 64, 4 });
        struct sd_plan *p;
        double found = 0;

        if (i == 0)
            x = sd_unet(g, &unet, NULL, x, sd_input(g, "t", SD_F32, 1, (int64_t[]){ 2 }),
                        sd_input(g, "c", SD_F32, 3, (int64_t[]){ 2, 77, 768 }));
        else
            x = i == 1 ? sd_vae_decode(g, &vae, x) : sd_vae_encode(g, &vae, x);
        sd_keep(x);
        if ((p = sd_plan_inference(g, 0))) {
            found = sd_plan_report(p).flops / 1e9;
            sd_plan_free(p);
        }
        CHECK(fabs(found - wanted[i]) < 0.2, "SD1.5 at 512, %s: %.1f GFLOP", what[i], found);
        sd_graph_free(g);
    }
    sd_scope_close(s);
}

int
main(void)
{
    check_configs();
    check_counts();
    check_work();
    return check_done();
}
