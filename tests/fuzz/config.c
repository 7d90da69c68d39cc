/* Model configurations and names of weights: what is accepted can be described (sizes that divide, counts in bounds),
 * and no name writes past its place.  Input: JSON, then after a zero byte a weight's name. */
#include "fuzz.h"
#include "model/keys.h"

#include <string.h>

static void
expect(bool ok)
{
    if (!ok)
        abort();
}

static void
check_unet(const struct sd_unet_config *c)
{
    expect(c->levels >= 1 && c->levels <= SD_MAX_LEVELS && c->norm_num_groups > 0 && c->time_embed_dim > 0);
    expect(c->block_out_channels[0] % 2 == 0 && c->cross_attention_dim > 0 && c->in_channels > 0);
    for (int i = 0; i < c->levels; i++) {
        expect(c->block_out_channels[i] > 0 && c->block_out_channels[i] % c->norm_num_groups == 0);
        expect(!c->down_attention[i] || c->block_out_channels[i] % c->heads[i] == 0);
        expect(c->layers_per_block[i] > 0 && c->layers_per_block[i] <= 16);
        expect(c->transformer_layers[i] > 0 && c->up_transformer_layers[i] > 0);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct sd_scope *s = sd_scope_open();
    const uint8_t *zero = size ? memchr(bytes, 0, size) : NULL;
    size_t length = zero ? (size_t)(zero - bytes) : size;
    json_t *o = sd_json_parse(s, (const char *)bytes, length, SD_JSON_NONFINITE);
    struct sd_unet_config unet;
    struct sd_vae_config vae;
    struct sd_clip_text_config text;
    const char *name = zero ? sd_strndup(s, (const char *)zero + 1, size - length - 1) : "conv_in.weight";

    if (o && sd_unet_config_read(o, &unet) == 0) {
        struct sd_key_map map = { SD_LAYOUT_LDM_UNET, "model.diffusion_model.", &unet, NULL };
        struct sd_key key;

        check_unet(&unet);
        if (sd_key_spell(&map, name, 0, &key))
            expect(strlen(key.name) < sizeof key.name && key.parts >= 1);
    }
    if (o && sd_vae_config_read(o, &vae) == 0) {
        struct sd_key_map map = { SD_LAYOUT_LDM_VAE, "first_stage_model.", NULL, &vae };
        struct sd_key key;

        for (int i = 0; i < vae.levels; i++)
            expect(vae.block_out_channels[i] > 0 && vae.block_out_channels[i] % vae.norm_num_groups == 0);
        expect(sd_vae_factor(&vae) >= 1 && vae.scaling_factor > 0);
        sd_key_spell(&map, name, 0, &key);
    }
    if (o && sd_clip_text_config_read(o, &text) == 0)
        expect(text.hidden_size > 0 && text.hidden_size % text.num_attention_heads == 0 && text.num_hidden_layers > 0);
    for (int layout = SD_LAYOUT_DIFFUSERS; layout <= SD_LAYOUT_OPENCLIP; layout += 3)
        for (int i = 0; i < 3; i++) {
            struct sd_key_map map = { layout, "", NULL, NULL };
            struct sd_key key;

            if (sd_key_spell(&map, name, i, &key))
                expect(key.part >= 0 && key.part < key.parts);
        }
    sd_scope_close(s);
    return 0;
}
