/* Names of a LoRA file's tensors: every dialect's are read as the module paths of diffusers and written again; what
 * is not understood is refused by name. */
#include "check.h"
#include "model/lora_keys.h"

static void
test_keys(void)
{
#define B0 "unet.down_blocks.1.attentions.0.transformer_blocks.0."
#define TE "text_encoder.text_model.encoder.layers.11."
    static const struct {
        const char *key, *component, *path;
        enum sd_lora_part part;
    } good[] = {
        { "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_down.weight", NULL,
          B0 "attn1.to_out.0", 0 },
        { "lora_unet_input_blocks_4_1_transformer_blocks_0_ff_net_0_proj.lora_up.weight", NULL, B0 "ff.net.0.proj", 1 },
        { "lora_unet_input_blocks_3_0_op.alpha", NULL, "unet.down_blocks.0.downsamplers.0.conv", 3 },
        { "lora_unet_output_blocks_5_2_conv.alpha", NULL, "unet.up_blocks.1.upsamplers.0.conv", 3 },
        { "lora_unet_output_blocks_2_1_conv.alpha", NULL, "unet.up_blocks.0.upsamplers.0.conv", 3 },
        { "lora_unet_input_blocks_4_0_in_layers_2.lora_mid.weight", NULL, "unet.down_blocks.1.resnets.0.conv1", 2 },
        { "lora_unet_output_blocks_11_0_skip_connection.alpha", NULL, "unet.up_blocks.3.resnets.2.conv_shortcut", 3 },
        { "lora_unet_middle_block_1_proj_out.alpha", NULL, "unet.mid_block.attentions.0.proj_out", 3 },
        { "lora_unet_middle_block_2_emb_layers_1.alpha", NULL, "unet.mid_block.resnets.1.time_emb_proj", 3 },
        { "lora_unet_time_embed_2.alpha", NULL, "unet.time_embedding.linear_2", 3 },
        { "lora_unet_input_blocks_0_0.alpha", NULL, "unet.conv_in", 3 },
        { "lora_unet_conv_in.alpha", NULL, "unet.conv_in", 3 },
        { "lora_unet_out_2.alpha", NULL, "unet.conv_out", 3 },
        { "lora_te_text_model_encoder_layers_11_self_attn_out_proj.alpha", NULL, TE "self_attn.out_proj", 3 },
        { "lora_te1_text_model_encoder_layers_11_mlp_fc2.alpha", NULL, TE "mlp.fc2", 3 },
        { "lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_q.alpha", NULL, B0 "attn2.to_q", 3 },
        { "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_q.lora_A.weight", NULL, B0 "attn2.to_q", 0 },
        { "text_encoders.clip_l.transformer.text_model.encoder.layers.11.mlp.fc1.lora_B.weight", NULL, TE "mlp.fc1",
          1 },
        { "text_encoders.clip_h.transformer.text_model.encoder.layers.11.mlp.fc1.lora_B", NULL, TE "mlp.fc1", 1 },
        { B0 "attn1.to_q.lora_A.weight", NULL, B0 "attn1.to_q", 0 },
        { B0 "attn1.to_q.lora_A.default.weight", NULL, B0 "attn1.to_q", 0 },
        { B0 "attn1.to_q.lora.up.weight", NULL, B0 "attn1.to_q", 1 },
        { B0 "attn1.processor.to_out_lora.up.weight", NULL, B0 "attn1.to_out.0", 1 },
        { "down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_k_lora.down.weight", NULL,
          B0 "attn1.to_k", 0 },
        { "text_encoder.text_model.encoder.layers.11.self_attn.to_out_lora.up.weight", NULL, TE "self_attn.out_proj",
          1 },
        { "text_encoder.encoder.layers.11.self_attn.k_proj.lora_linear_layer.down.weight", NULL, TE "self_attn.k_proj",
          0 },
        { "base_model.model.encoder.layers.11.mlp.fc1.lora_A.weight", NULL, TE "mlp.fc1", 0 },
        { "base_model.model.text_model.encoder.layers.11.mlp.fc1.lora_A.weight", "text_encoder", TE "mlp.fc1", 0 },
        { "base_model.model.conv_in.lora_A.weight", NULL, "unet.conv_in", 0 },
    };
    static const char *const bad[][2] = {
        { "lora_unet_down_blocks_0_x.lora_down.weight", "not a key" },
        { "lora_unet_input_blocks_99.alpha", "not a key" },
        { "lora_unet_input_blocks_3_1_op.alpha", "not a key" },
        { "lora_unet_.alpha", "not a key" },
        { "unet.down_blocks..to_q.lora_A.weight", "not a key" },
        { "unet.down_blocks.0..lora_A.weight", "not a key" },
        { "unet.to_q.lora_A.weight", "not a key" },
        { "alpha", "not a key" },
        { ".alpha", "not a key" },
        { "model.diffusion_model.out.2.weight", "whole model" },
        { "base_model.model.conv_in.weight", "not a key" },
        { "text_encoder.text_model.embeddings.token_embedding.lora_A.weight", "not a key" },
        { "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha", "SDXL" },
        { "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "SDXL" },
        { "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "SD3" },
        { "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", "SD3" },
        { "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "LoHa" },
        { "lycoris_mid_block_attentions_0_proj_in.lokr_w1", "LoKr" },
        { "lora_unet_mid_block_attentions_0_proj_in.dora_scale", "DoRA" },
        { "unet.mid_block.attentions.0.proj_in.lora_magnitude_vector", "DoRA" },
        { "lora_unet_mid_block_attentions_0_norm.w_norm", "norm" },
        { "lora_unet_mid_block_attentions_0_proj_in.diff", "difference" },
        { "bundle_emb.cat.string_to_param.*", "embedding" },
        { "unet.mid_block.attentions.0.proj_in.lora_B.bias", "bias" },
    };
    char huge[400];
    struct sd_lora_key k;

    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        bool read = sd_lora_key_read(good[i].key, good[i].component, &k) == 0;

        CHECK(read && strcmp(k.path, good[i].path) == 0 && k.part == good[i].part, "%s: %s", good[i].key,
              read ? k.path : sd_reason());
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        bool read = sd_lora_key_read(bad[i][0], NULL, &k) == 0;

        CHECK(!read && strstr(sd_reason(), bad[i][1]), "refused: %s", read ? k.path : sd_reason());
    }
    memset(huge, 'a', sizeof huge - 1);
    huge[sizeof huge - 1] = 0;
    CHECK(sd_lora_key_read(huge, NULL, &k) < 0 && strcmp(sd_reason(), "a key of 399 characters") == 0, "%s",
          sd_reason());
}

/* Every name of a whole published UNet and text encoder is written and read in each format. */
static void
test_names(void)
{
    static const char *const inner[] = { "proj_in",
                                         "proj_out",
                                         "transformer_blocks.0.attn1.to_q",
                                         "transformer_blocks.0.attn2.to_out.0",
                                         "transformer_blocks.0.ff.net.0.proj",
                                         "transformer_blocks.0.ff.net.2" };
    static const char *const convs[] = { "conv1", "conv2", "conv_shortcut", "time_emb_proj" };
    static const char *const text[] = { "self_attn.q_proj",   "self_attn.k_proj", "self_attn.v_proj",
                                        "self_attn.out_proj", "mlp.fc1",          "mlp.fc2" };
    struct sd_scope *s = sd_scope_open();
    const char *paths[400];
    size_t n = 0, wrong = 0;

    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 3; j++)
            for (int up = 0; up < 2; up++) {
                const char *block = up ? "up" : "down";

                if (!up && j == 2)
                    continue;
                for (int k = 0; k < 6 && i != (up ? 0 : 3); k++)
                    paths[n++] = sd_sprintf(s, "unet.%s_blocks.%d.attentions.%d.%s", block, i, j, inner[k]);
                for (int k = 0; k < 4; k++)
                    paths[n++] = sd_sprintf(s, "unet.%s_blocks.%d.resnets.%d.%s", block, i, j, convs[k]);
                if (j == 1 && i < 3)
                    paths[n++] = sd_sprintf(s, "unet.%s_blocks.%d.%ssamplers.0.conv", block, i, block);
            }
    for (int k = 0; k < 6; k++)
        paths[n++] = sd_sprintf(s, "unet.mid_block.attentions.0.%s", inner[k]);
    for (int k = 0; k < 8; k++)
        paths[n++] = sd_sprintf(s, "unet.mid_block.resnets.%d.%s", k / 4, convs[k % 4]);
    for (int k = 0; k < 72; k++)
        paths[n++] = sd_sprintf(s, "text_encoder.text_model.encoder.layers.%d.%s", k / 6, text[k % 6]);
    paths[n++] = "unet.conv_in";
    paths[n++] = "unet.conv_out";
    paths[n++] = "unet.time_embedding.linear_1";
    for (size_t i = 0; i < n; i++)
        for (int format = 0; format < 4; format++) {
            struct sd_lora_key k = { .path = "" };
            const char *key = sd_lora_key_write(s, paths[i], SD_LORA_UP, (enum sd_lora_format)format);

            if (!key || sd_lora_key_read(key, NULL, &k) < 0 || strcmp(k.path, paths[i]) != 0 || k.part != SD_LORA_UP) {
                printf("# %s: %s: %s\n", paths[i], key ? key : sd_reason(), k.path);
                wrong++;
            }
        }
    CHECK(wrong == 0, "%zu names in 4 formats, %zu wrong", n, wrong);
    sd_scope_close(s);
}

int
main(void)
{
    test_keys();
    test_names();
    return check_done();
}
