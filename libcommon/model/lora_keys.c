/* lora_keys - names of adapter tensors (formats.md 3.1 to 3.3, 3.7). */
#include "lora_keys.h"

#include "keys.h"

#include <stdio.h>
#include <string.h>

static bool
starts_with(const char *text, const char *start, const char **rest)
{
    size_t n = strlen(start);

    if (strncmp(text, start, n) != 0)
        return false;
    *rest = text + n;
    return true;
}

/* ---- underscores to dots ----------------------------------------------------------------------------------------- */

/* Words that hold an underscore, or end where another begins; the longest that fits wins: the step back is unique. */
static const char *const words[] = {
    "down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "transformer_blocks", "attn1", "attn2", "to_q",
    "to_k", "to_v", "to_out", "ff", "net", "proj_in", "proj_out", "proj", "norm", "conv1", "conv2", "conv_in",
    "conv_out", "conv_shortcut", "conv", "time_emb_proj", "time_embedding", "linear_1", "linear_2", "downsamplers",
    "upsamplers", "text_model", "encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "mlp",
    "fc1", "fc2", "input_blocks", "output_blocks", "middle_block", "in_layers", "out_layers", "emb_layers",
    "skip_connection", "time_embed", "op", "out"
};

static int
dotted(const char *text, char *path, size_t room)
{
    size_t n = 0;

    while (*text) {
        size_t best = strspn(text, "0123456789");

        for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
            size_t m = strlen(words[i]);

            if (m > best && strncmp(text, words[i], m) == 0 && (text[m] == '_' || !text[m]))
                best = m;
        }
        if (!best || (text[best] && text[best] != '_') || n + best + 2 > room)
            return -1;
        if (n)
            path[n++] = '.';
        memcpy(path + n, text, best);
        n += best;
        text += best;
        text += *text == '_' && text[1];
    }
    path[n] = 0;
    return n ? 0 : -1;
}

/* ---- LDM paths (published UNets: two layers a block) ------------------------------------------------------------- */

static const char *const resnet[][2] = { { "in_layers.0", "norm1" },          { "in_layers.2", "conv1" },
                                         { "emb_layers.1", "time_emb_proj" }, { "out_layers.0", "norm2" },
                                         { "out_layers.3", "conv2" },         { "skip_connection", "conv_shortcut" } };
static const char *const single[][2] = { { "input_blocks.0.0", "conv_in" },
                                         { "time_embed.0", "time_embedding.linear_1" },
                                         { "time_embed.2", "time_embedding.linear_2" },
                                         { "out.2", "conv_out" } };

static const char *
lookup(const char *const (*table)[2], size_t count, const char *text, int from)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(table[i][from], text) == 0)
            return table[i][!from];
    return NULL;
}

static int
module(char *path, size_t room, const char *block, int i, int j, int slot, const char *rest)
{
    const char *inner = slot ? rest : lookup(resnet, sizeof resnet / sizeof *resnet, rest, 0);

    if (!inner)
        return -1;
    if (i < 0)
        snprintf(path, room, "%s.%s.%d.%s", block, slot ? "attentions" : "resnets", j, inner);
    else
        snprintf(path, room, "%s.%d.%s.%d.%s", block, i, slot ? "attentions" : "resnets", j, inner);
    return 0;
}

static int
from_ldm(const char *ldm, char *path, size_t room)
{
    const char *one = lookup(single, sizeof single / sizeof *single, ldm, 0);
    int n, slot, used = 0;

    if (one) {
        snprintf(path, room, "%s", one);
        return 0;
    }
    if (sscanf(ldm, "input_blocks.%d.%d.%n", &n, &slot, &used) == 2 && used && n > 0) {
        if (n % 3 == 0 && slot == 0 && strcmp(ldm + used, "op") == 0) {
            snprintf(path, room, "down_blocks.%d.downsamplers.0.conv", n / 3 - 1);
            return 0;
        }
        return n % 3 == 0 || slot > 1 ? -1
                                      : module(path, room, "down_blocks", (n - 1) / 3, (n - 1) % 3, slot, ldm + used);
    }
    used = 0;
    if (sscanf(ldm, "output_blocks.%d.%d.%n", &n, &slot, &used) == 2 && used) {
        if (slot > 0 && strcmp(ldm + used, "conv") == 0) {
            snprintf(path, room, "up_blocks.%d.upsamplers.0.conv", n / 3);
            return 0;
        }
        return slot > 1 ? -1 : module(path, room, "up_blocks", n / 3, n % 3, slot, ldm + used);
    }
    used = 0;
    if (sscanf(ldm, "middle_block.%d.%n", &n, &used) == 1 && used && n <= 2)
        return module(path, room, "mid_block", -1, n == 2, n == 1, ldm + used);
    return -1;
}

/* The other way keys.c knows, for any configuration. */
static const struct sd_unet_config published_unet = { .levels = 4, .up_attention = { false, true, true, true },
                                                      .layers_per_block = { 2, 2, 2, 2 } };
static const struct sd_key_map published = { SD_LAYOUT_LDM_UNET, "diffusion_model.", &published_unet, NULL };

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static const struct suffix {
    const char *text;
    enum sd_lora_part part;
    bool old;               /* of diffusers' middle and oldest generation */
} suffixes[] = { { ".lora_down.weight", SD_LORA_DOWN, false },
                 { ".lora_up.weight", SD_LORA_UP, false },
                 { ".lora_mid.weight", SD_LORA_MID, false },
                 { ".alpha", SD_LORA_ALPHA, false },
                 { ".lora_A.default.weight", SD_LORA_DOWN, false },
                 { ".lora_B.default.weight", SD_LORA_UP, false },
                 { ".lora_A.weight", SD_LORA_DOWN, false },
                 { ".lora_B.weight", SD_LORA_UP, false },
                 { ".lora_linear_layer.down.weight", SD_LORA_DOWN, true },
                 { ".lora_linear_layer.up.weight", SD_LORA_UP, true },
                 { ".lora.down.weight", SD_LORA_DOWN, true },
                 { ".lora.up.weight", SD_LORA_UP, true },
                 { "_lora.down.weight", SD_LORA_DOWN, true },
                 { "_lora.up.weight", SD_LORA_UP, true },
                 { ".lora_A", SD_LORA_DOWN, false },
                 { ".lora_B", SD_LORA_UP, false } };

static int
refuse(const char *key)
{
    static const char *const kinds[][2] = { { "model.diffusion_model.", "a whole model's weight and no adapter" },
                                            { "dora_scale", "a DoRA adapter" },
                                            { "lora_magnitude_vector", "a DoRA adapter" },
                                            { "hada_", "a LoHa adapter" },
                                            { "lokr_", "a LoKr adapter" },
                                            { "bundle_emb", "an embedding bundled in a LoRA" },
                                            { "oft_", "an OFT adapter" },
                                            { ".diff", "a weight difference" },
                                            { "w_norm", "a norm difference" },
                                            { "b_norm", "a norm difference" },
                                            { "lora_te2_", "an adapter for SDXL" },
                                            { "lora_te3_", "an adapter for SD3" },
                                            { "text_encoder_2", "an adapter for SDXL" },
                                            { "clip_g.", "an adapter for SDXL" },
                                            { "text_encoder_3", "an adapter for SD3" },
                                            { "joint_blocks", "an adapter for SD3" },
                                            { "transformer.transformer_blocks", "an adapter for SD3 or Flux" },
                                            { "double_blocks", "an adapter for Flux" },
                                            { "lora_transformer_", "an adapter for SD3 or Flux" },
                                            { "set_weight", "a weight that replaces another" },
                                            { "reshape_weight", "an adapter that changes shapes" },
                                            { "modules_to_save", "an adapter with whole weights" },
                                            { "lora_B.bias", "an adapter with a bias" } };

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strstr(key, kinds[i][0]))
            return sd_fail("%s: %s, not supported", key, kinds[i][1]);
    return sd_fail("%s: not a key of an adapter known here", key);
}

/* attn1.processor.to_q -> attn1.to_q, to_out -> to_out.0; self_attn.to_q -> self_attn.q_proj */
static void
modernise(char *path, size_t room)
{
    char *at = strstr(path, ".processor.");
    static const char *const text[][2] = { { "self_attn.to_q", "self_attn.q_proj" },
                                           { "self_attn.to_k", "self_attn.k_proj" },
                                           { "self_attn.to_v", "self_attn.v_proj" },
                                           { "self_attn.to_out", "self_attn.out_proj" } };
    size_t n;

    if (at)
        memmove(at, at + strlen(".processor"), strlen(at + strlen(".processor")) + 1);
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        size_t m = strlen(text[i][0]);

        n = strlen(path);
        if (n >= m && n + 2 <= room && strcmp(path + n - m, text[i][0]) == 0)
            memcpy(path + n - m, text[i][1], strlen(text[i][1]) + 1);
    }
    n = strlen(path);
    if (n >= 7 && n + 3 <= room && strcmp(path + n - 7, ".to_out") == 0)
        memcpy(path + n, ".0", 3);
}

/* A path of the models known here?  Every word is one of theirs; a UNet's begins with a block or an end of it. */
static bool
known(const char *component, const char *path)
{
    static const char *const tops[] = { "down_blocks.", "up_blocks.", "mid_block.",
                                        "conv_in",      "conv_out",   "time_embedding." };
    bool top = false;
    int n;

    if (strcmp(component, "text_encoder") == 0)
        return sd_key_match(path, "encoder.layers.#.self_attn.*", &n)
               || sd_key_match(path, "encoder.layers.#.mlp.*", &n);
    for (size_t i = 0; i < sizeof tops / sizeof *tops; i++)
        top |= strncmp(path, tops[i], strlen(tops[i])) == 0;
    while (top && *path) {
        size_t m = strcspn(path, "."), digits = strspn(path, "0123456789");
        bool word = digits == m && m > 0;

        for (size_t i = 0; i < sizeof words / sizeof *words && !word; i++)
            word = strlen(words[i]) == m && memcmp(words[i], path, m) == 0;
        if (!word || (path[m] && !path[m + 1]))
            return false;
        path += m + (path[m] == '.');
    }
    return top;
}

/* "a_0_b" of the UNet, by diffusers' words or LDM's. */
static const char *
unet_from_underscores(const char *text, char *path, size_t room)
{
    char dots[SD_LORA_PATH_MAX];

    if (dotted(text, dots, sizeof dots) < 0)
        return NULL;
    if (from_ldm(dots, path, room) < 0)
        snprintf(path, room, "%s", dots);
    return "unet";
}

static bool
of_text(const char *path)
{
    return strstr(path, "self_attn") || strstr(path, "mlp.fc") || strstr(path, "mlp_fc");
}

/* base: the key without its suffix.  Fills path without the component's name; returns the component, or NULL. */
static const char *
place(const char *base, const char *component, char *path, size_t room, const char **dialect)
{
    const char *rest;

    *dialect = "kohya";
    if (starts_with(base, "lora_te_", &rest) || starts_with(base, "lora_te1_", &rest)
        || (of_text(base) && starts_with(base, "lycoris_", &rest)))
        return dotted(rest, path, room) < 0 ? NULL : "text_encoder";
    if (starts_with(base, "lora_unet_", &rest) || starts_with(base, "lycoris_", &rest))
        return unet_from_underscores(rest, path, room);
    *dialect = "comfy";
    if (starts_with(base, "diffusion_model.", &rest))
        return from_ldm(rest, path, room) < 0 ? NULL : "unet";
    if (starts_with(base, "text_encoders.clip_l.transformer.", &rest)
        || starts_with(base, "text_encoders.clip_h.transformer.", &rest))
        component = "text_encoder";
    else if (starts_with(base, "base_model.model.", &rest)) {
        *dialect = "peft";
        component = component ? component : of_text(rest) ? "text_encoder" : "unet";
    } else {
        *dialect = "diffusers";
        if (starts_with(base, "text_encoder.", &rest))
            component = "text_encoder";
        else if (starts_with(base, "unet.", &rest) || (rest = base))
            component = component ? component : "unet";
    }
    snprintf(path, room, "%s", rest);
    modernise(path, room);
    return component;
}

int
sd_lora_key_read(const char *key, const char *component, struct sd_lora_key *k)
{
    size_t n = strlen(key);

    if (n >= SD_LORA_PATH_MAX - 32)
        return sd_fail("a key of %zu characters", n);
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        size_t m = strlen(suffixes[i].text);
        char base[SD_LORA_PATH_MAX], path[SD_LORA_PATH_MAX];
        const char *of, *inner = path;

        if (n <= m || strcmp(key + n - m, suffixes[i].text) != 0)
            continue;
        memcpy(base, key, n - m);
        base[n - m] = 0;
        if (!(of = place(base, component, path, sizeof path, &k->dialect)))
            break;
        if (strcmp(of, "text_encoder") == 0)
            starts_with(path, "text_model.", &inner);
        if (!known(of, inner))
            break;
        if (suffixes[i].old)
            k->dialect = "diffusers (old)";
        k->part = suffixes[i].part;
        if (snprintf(k->path, sizeof k->path, "%s.%s%s", of, strcmp(of, "unet") == 0 ? "" : "text_model.", inner)
            >= (int)sizeof k->path)
            return sd_fail("a key of %zu characters", n);
        return 0;
    }
    return refuse(key);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

const char *
sd_lora_key_write(struct sd_scope *s, const char *path, enum sd_lora_part part, enum sd_lora_format format)
{
    static const char *const kohya[] = { "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha" };
    static const char *const peft[] = { "lora_A.weight", "lora_B.weight", NULL, NULL };
    const char *inner, *bare;
    bool text = starts_with(path, "text_encoder.", &inner);
    char *name;
    struct sd_key ldm;

    if (!text && !starts_with(path, "unet.", &inner))
        return sd_fail_null("%s: of no component", path);
    if (format == SD_LORA_COMFY && !text) {
        if (!sd_key_spell(&published, sd_sprintf(s, "%s.", inner), 0, &ldm))
            return sd_fail_null("%s: has no name in ComfyUI's layout", path);
        return sd_sprintf(s, "%s%s", ldm.name, kohya[part]);
    }
    switch (format) {
    case SD_LORA_DIFFUSERS:
        /* with "text_model.": as old and new ones read it */
        return sd_sprintf(s, "%s.%s", path, peft[part]);
    case SD_LORA_PEFT:
        /* as transformers 5 names its modules; those of older ones have "text_model." */
        if (text && starts_with(inner, "text_model.", &bare))
            inner = bare;
        return sd_sprintf(s, "base_model.model.%s.%s", inner, peft[part]);
    default:
        name = sd_sprintf(s, "%s_%s.%s", text ? "lora_te" : "lora_unet", inner, kohya[part]);
        for (char *c = name; c < name + strlen(name) - strlen(kohya[part]) - 1; c++)
            if (*c == '.')
                *c = '_';
        return name;
    }
}
