/* keys.c - names of weights: diffusers to LDM, OpenCLIP and older spellings.  The tables are formats.md 2.3 to 2.5,
 * with the number of layers per block taken from the configuration instead of always 2. */
#include "keys.h"

#include <stdio.h>
#include <string.h>

struct pair {
    const char *name, *ldm;
};

const char *
sd_key_match(const char *text, const char *pattern, int *numbers)
{
    for (; *pattern; pattern++) {
        if (*pattern == '*')
            return text;
        if (*pattern == '#') {
            int n = 0, digits = 0;

            while (*text >= '0' && *text <= '9' && digits++ < 6)
                n = 10 * n + (*text++ - '0');
            if (!digits)
                return NULL;
            *numbers++ = n;
        } else if (*text++ != *pattern) {
            return NULL;
        }
    }
    return *text ? NULL : text;
}

static bool spell(struct sd_key *key, const char *format, ...) SD_PRINTF(2, 3);
static bool
spell(struct sd_key *key, const char *format, ...)
{
    va_list ap;
    int n;

    va_start(ap, format);
    n = vsnprintf(key->name, sizeof key->name, format, ap);
    va_end(ap);
    return n > 0 && n < (int)sizeof key->name;
}

/* The rest of the name behind the pair whose name it starts with, up to a dot. */
static const char *
replace(const char *text, const struct pair *table, const char **ldm)
{
    for (; table->name; table++) {
        size_t n = strlen(table->name);

        if (strncmp(text, table->name, n) == 0 && text[n] == '.') {
            *ldm = table->ldm;
            return text + n;
        }
    }
    return NULL;
}

/* ---- UNet ------------------------------------------------------------------------------------------------------- */

static const struct pair unet_top[] = { { "conv_in", "input_blocks.0.0" },
                                        { "time_embedding.linear_1", "time_embed.0" },
                                        { "time_embedding.linear_2", "time_embed.2" },
                                        { "add_embedding.linear_1", "label_emb.0.0" },
                                        { "add_embedding.linear_2", "label_emb.0.2" },
                                        { "conv_norm_out", "out.0" },
                                        { "conv_out", "out.2" },
                                        { 0 } };
static const struct pair unet_resnet[] = { { "norm1", "in_layers.0" },
                                           { "conv1", "in_layers.2" },
                                           { "time_emb_proj", "emb_layers.1" },
                                           { "norm2", "out_layers.0" },
                                           { "conv2", "out_layers.3" },
                                           { "conv_shortcut", "skip_connection" },
                                           { 0 } };

static bool
unet_resnet_key(struct sd_key *key, const char *prefix, const char *where, int at, const char *inner)
{
    const char *ldm, *rest = replace(inner, unet_resnet, &ldm);

    return rest && spell(key, "%s%s.%d.0.%s%s", prefix, where, at, ldm, rest);
}

static bool
unet_key(const struct sd_unet_config *c, const char *prefix, const char *name, struct sd_key *key)
{
    const char *rest, *ldm;
    int n[2], at;

    if ((rest = replace(name, unet_top, &ldm)))
        return spell(key, "%s%s%s", prefix, ldm, rest);
    if ((rest = sd_key_match(name, "down_blocks.#.*", n)) && n[0] < c->levels) {
        at = 1;
        for (int i = 0; i < n[0]; i++)
            at += c->layers_per_block[i] + 1;
        if ((rest = sd_key_match(name, "down_blocks.#.resnets.#.*", n)))
            return unet_resnet_key(key, prefix, "input_blocks", at + n[1], rest);
        if ((rest = sd_key_match(name, "down_blocks.#.attentions.#.*", n)))
            return spell(key, "%sinput_blocks.%d.1.%s", prefix, at + n[1], rest);
        if ((rest = sd_key_match(name, "down_blocks.#.downsamplers.0.conv.*", n)))
            return spell(key, "%sinput_blocks.%d.0.op.%s", prefix, at + c->layers_per_block[n[0]], rest);
    }
    if ((rest = sd_key_match(name, "mid_block.attentions.0.*", n)))
        return spell(key, "%smiddle_block.1.%s", prefix, rest);
    if ((rest = sd_key_match(name, "mid_block.resnets.#.*", n))) {
        rest = replace(rest, unet_resnet, &ldm);
        return rest && spell(key, "%smiddle_block.%d.%s%s", prefix, 2 * n[0], ldm, rest);
    }
    if ((rest = sd_key_match(name, "up_blocks.#.*", n)) && n[0] < c->levels) {
        int layers = c->layers_per_block[c->levels - 1 - n[0]] + 1;

        at = 0;
        for (int i = 0; i < n[0]; i++)
            at += c->layers_per_block[c->levels - 1 - i] + 1;
        if ((rest = sd_key_match(name, "up_blocks.#.resnets.#.*", n)))
            return unet_resnet_key(key, prefix, "output_blocks", at + n[1], rest);
        if ((rest = sd_key_match(name, "up_blocks.#.attentions.#.*", n)))
            return spell(key, "%soutput_blocks.%d.1.%s", prefix, at + n[1], rest);
        if ((rest = sd_key_match(name, "up_blocks.#.upsamplers.0.conv.*", n)))
            return spell(key, "%soutput_blocks.%d.%d.conv.%s", prefix, at + layers - 1, c->up_attention[n[0]] ? 2 : 1,
                         rest);
    }
    return false;
}

/* ---- VAE -------------------------------------------------------------------------------------------------------- */

static const struct pair vae_attention[] = {
    { "group_norm", "norm" }, { "to_q", "q" }, { "to_k", "k" }, { "to_v", "v" }, { "to_out.0", "proj_out" }, { 0 }
};
static const struct pair vae_old[] = {
    { "to_q", "query" }, { "to_k", "key" }, { "to_v", "value" }, { "to_out.0", "proj_attn" }, { 0 }
};

static bool
vae_resnet_key(struct sd_key *key, const char *prefix, const char *where, int level, int block, const char *inner)
{
    const char *rest = sd_key_match(inner, "conv_shortcut.*", NULL);

    return spell(key, "%s%s.%d.block.%d.%s%s", prefix, where, level, block, rest ? "nin_shortcut." : "",
                 rest ? rest : inner);
}

static bool
vae_key(const struct sd_vae_config *c, const char *prefix, const char *name, struct sd_key *key)
{
    const char *part = strncmp(name, "encoder.", 8) == 0   ? "encoder"
                       : strncmp(name, "decoder.", 8) == 0 ? "decoder"
                                                           : NULL;
    const char *inner = part ? name + 8 : name, *rest, *ldm;
    int n[2], top = c->levels - 1;
    char where[16];

    if (!part)
        return spell(key, "%s%s", prefix, name);
    if ((rest = sd_key_match(inner, "conv_norm_out.*", n)))
        return spell(key, "%s%s.norm_out.%s", prefix, part, rest);
    if ((rest = sd_key_match(inner, "mid_block.resnets.#.*", n)))
        return spell(key, "%s%s.mid.block_%d.%s", prefix, part, n[0] + 1, rest);
    if ((rest = sd_key_match(inner, "mid_block.attentions.0.*", n))) {
        rest = replace(rest, vae_attention, &ldm);
        return rest && spell(key, "%s%s.mid.attn_1.%s%s", prefix, part, ldm, rest);
    }
    if ((rest = sd_key_match(inner, "down_blocks.#.resnets.#.*", n))
        || (rest = sd_key_match(inner, "up_blocks.#.resnets.#.*", n))) {
        snprintf(where, sizeof where, "%s.%s", part, inner[0] == 'd' ? "down" : "up");
        return vae_resnet_key(key, prefix, where, inner[0] == 'd' ? n[0] : top - n[0], n[1], rest);
    }
    if ((rest = sd_key_match(inner, "down_blocks.#.downsamplers.0.conv.*", n)))
        return spell(key, "%s%s.down.%d.downsample.conv.%s", prefix, part, n[0], rest);
    if ((rest = sd_key_match(inner, "up_blocks.#.upsamplers.0.conv.*", n)))
        return spell(key, "%s%s.up.%d.upsample.conv.%s", prefix, part, top - n[0], rest);
    return spell(key, "%s%s.%s", prefix, part, inner); /* conv_in, conv_out */
}

/* ---- CLIP ------------------------------------------------------------------------------------------------------- */

static const struct pair open_top[] = { { "embeddings.token_embedding", "token_embedding" },
                                        { "final_layer_norm", "ln_final" },
                                        { 0 } };
static const struct pair open_layer[] = { { "layer_norm1", "ln_1" },
                                          { "layer_norm2", "ln_2" },
                                          { "mlp.fc1", "mlp.c_fc" },
                                          { "mlp.fc2", "mlp.c_proj" },
                                          { "self_attn.out_proj", "attn.out_proj" },
                                          { 0 } };

static bool
openclip_key(const char *prefix, const char *name, struct sd_key *key)
{
    static const char *const qkv[] = { "self_attn.q_proj.*", "self_attn.k_proj.*", "self_attn.v_proj.*" };
    const char *rest, *inner, *ldm;
    int n[1];

    if (strcmp(name, "text_projection.weight") == 0) {
        key->transposed = true;
        return spell(key, "%stext_projection", prefix);
    }
    if (!(name = sd_key_match(name, "text_model.*", n)))
        return false;
    if (strcmp(name, "embeddings.position_embedding.weight") == 0)
        return spell(key, "%spositional_embedding", prefix);
    if ((rest = replace(name, open_top, &ldm)))
        return spell(key, "%s%s%s", prefix, ldm, rest);
    if (!(inner = sd_key_match(name, "encoder.layers.#.*", n)))
        return false;
    for (int i = 0; i < 3; i++)
        if ((rest = sd_key_match(inner, qkv[i], NULL))) {
            key->part = i;
            key->parts = 3;
            return spell(key, "%stransformer.resblocks.%d.attn.in_proj_%s", prefix, n[0], rest);
        }
    rest = replace(inner, open_layer, &ldm);
    return rest && spell(key, "%stransformer.resblocks.%d.%s%s", prefix, n[0], ldm, rest);
}

bool
sd_key_spell(const struct sd_key_map *m, const char *name, int i, struct sd_key *key)
{
    const char *at, *rest, *old;

    *key = (struct sd_key){ .parts = 1 };
    switch (m->layout) {
    case SD_LAYOUT_DIFFUSERS:
        if (i == 0)
            return spell(key, "%s%s", m->prefix, name);
        at = strstr(name, "mid_block.attentions.0.");
        if (i > 1 || !at)
            return false;
        at += strlen("mid_block.attentions.0.");
        rest = replace(at, vae_old, &old);
        return rest && spell(key, "%s%.*s%s%s", m->prefix, (int)(at - name), name, old, rest);
    case SD_LAYOUT_LDM_UNET:
        return i == 0 && unet_key(m->unet, m->prefix, name, key);
    case SD_LAYOUT_LDM_VAE:
        return i == 0 && vae_key(m->vae, m->prefix, name, key);
    case SD_LAYOUT_CLIP:
        rest = sd_key_match(name, "text_model.*", NULL);
        return i == 0 ? spell(key, "%s%s", m->prefix, name) : i == 1 && rest && spell(key, "%s%s", m->prefix, rest);
    case SD_LAYOUT_OPENCLIP:
        return i == 0 && openclip_key(m->prefix, name, key);
    }
    return false;
}
