/* config.c - fields of config.json: read, bounded, checked against each other.
 *
 * `only` lists the fields whose other values would change the computation and are not built: each with the JSON of the
 * values that are the same as leaving it out.  `idle` lists fields that change nothing in what is computed here. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_CHANNELS = 1 << 16, MAX_LAYERS = 16, MAX_TRANSFORMERS = 64, MAX_BLOCKS = 1024 };

struct only {
    const char *key, *values; /* JSON array */
};

/* Numbers are equal by value: 1 and 1.0 are written by different versions of the same library. */
static bool
same(const json_t *a, const json_t *b)
{
    if (json_is_number(a) && json_is_number(b))
        return json_number_value(a) == json_number_value(b);
    return json_equal(a, b);
}

static int
check_only(const json_t *object, const struct only *table)
{
    for (; table->key; table++) {
        const json_t *value = json_object_get(object, table->key), *allowed;
        json_t *values;
        bool ok = !value;
        size_t i;

        if (ok)
            continue;
        values = json_loads(table->values, 0, NULL);
        if (!values)
            sd_bug("config", "%s: %s", table->key, table->values);
        json_array_foreach(values, i, allowed)
            ok = ok || same(value, allowed);
        json_decref(values);
        if (!ok) {
            char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);

            sd_fail("%s: %.200s is not supported, only %s", table->key, text ? text : "this value", table->values);
            free(text);
            return -1;
        }
    }
    return 0;
}

static bool
among(const char *key, const char *const *names)
{
    for (; *names; names++)
        if (strcmp(key, *names) == 0)
            return true;
    return false;
}

static void
note_unknown(json_t *object, const char *class_name, const struct only *only, const char *const *idle,
             const char *const *read)
{
    const char *key;
    json_t *value;

    json_object_foreach(object, key, value) {
        bool known = key[0] == '_' || among(key, idle) || among(key, read);

        for (const struct only *o = only; o->key && !known; o++)
            known = strcmp(key, o->key) == 0;
        if (!known)
            sd_note(1, "%s: field %s is not known, ignored", class_name, key);
    }
}

static int
get_int(const json_t *o, const char *key, int64_t min, int64_t max, int *value)
{
    int64_t v = *value;

    if (sd_json_int(o, key, min, max, &v) < 0)
        return -1;
    *value = (int)v;
    return 0;
}

/* One integer for all levels, or one per level; absent leaves `value` in every level. */
static int
get_levels(const json_t *o, const char *key, int levels, int64_t min, int64_t max, int value, int *out)
{
    int64_t list[SD_MAX_LEVELS];
    int count = 0, found = sd_json_ints(o, key, list, SD_MAX_LEVELS, &count);

    if (found < 0)
        return -1;
    if (found && count != levels && !(count == 1 && !json_is_array(json_object_get(o, key))))
        return sd_fail("%s: %d values, block_out_channels has %d", key, count, levels);
    for (int i = 0; i < levels; i++) {
        int64_t v = !found ? value : list[count == 1 ? 0 : i];

        if (v < min || v > max)
            return sd_fail("%s: %lld, expected %lld to %lld", key, (long long)v, (long long)min, (long long)max);
        out[i] = (int)v;
    }
    return 0;
}

static int
get_channels(const json_t *o, int *levels, int *channels)
{
    int64_t list[SD_MAX_LEVELS];
    int found = sd_json_ints(o, "block_out_channels", list, SD_MAX_LEVELS, levels);

    if (found < 0)
        return -1;
    if (found && !*levels)
        return sd_fail("block_out_channels: empty");
    for (int i = 0; found && i < *levels; i++) {
        if (list[i] < 1 || list[i] > MAX_CHANNELS)
            return sd_fail("block_out_channels: %lld, expected 1 to %d", (long long)list[i], MAX_CHANNELS);
        channels[i] = (int)list[i];
    }
    return 0;
}

static int
get_sample_size(const json_t *o, int max, int *height, int *width)
{
    int64_t list[2] = { 0, 0 };
    int count = 0, found = sd_json_ints(o, "sample_size", list, 2, &count);

    if (found < 0)
        return -1;
    if (found && (count < 1 || list[0] < 1 || list[0] > max || (count == 2 && (list[1] < 1 || list[1] > max))))
        return sd_fail("sample_size: expected one or two integers from 1 to %d", max);
    if (found) {
        *height = (int)list[0];
        *width = (int)list[count - 1];
    }
    return 0;
}

/* Block types, one per level: `with` sets the flag, `without` (may be NULL) clears it. */
static int
get_types(const json_t *o, const char *key, int levels, const char *with, const char *without, bool *flags)
{
    const json_t *list = json_object_get(o, key), *item;
    size_t i;

    if (!list || json_is_null(list))
        return 0;
    if (!json_is_array(list))
        return sd_fail("%s: expected an array of texts, found %s", key, sd_json_kind(list));
    if (json_array_size(list) != (size_t)levels)
        return sd_fail("%s: %zu blocks, block_out_channels has %d", key, json_array_size(list), levels);
    json_array_foreach(list, i, item) {
        const char *name = json_string_value(item);

        if (!name)
            return sd_fail("%s: expected texts, found %s", key, sd_json_kind(item));
        if (strcmp(name, with) == 0)
            flags[i] = true;
        else if (without && strcmp(name, without) == 0)
            flags[i] = false;
        else
            return sd_fail("%s: %.100s is not supported, only %s%s%s", key, name, with, without ? " and " : "",
                           without ? without : "");
    }
    return 0;
}

/* A text among the keys that mean the same here. */
static int
get_word(const json_t *o, const char *key, const char *const *words, int *which)
{
    const char *text;
    int found = sd_json_text(o, key, &text);

    if (found < 1)
        return found;
    for (int i = 0; words[i]; i++)
        if (strcmp(text, words[i]) == 0) {
            *which = i;
            return 0;
        }
    return sd_fail("%s: %.100s is not supported, only %s%s%s", key, text, words[0], words[1] ? " and " : "",
                   words[1] ? words[1] : "");
}

/* ---- UNet ------------------------------------------------------------------------------------------------------- */

static const struct only unet_only[] = {
    { "addition_embed_type", "[null]" },
    { "attention_type", "[\"default\", null]" },
    { "center_input_sample", "[false, null]" },
    { "class_embed_type", "[null]" },
    { "class_embeddings_concat", "[false, null]" },
    { "cross_attention_norm", "[null]" },
    { "downsample_padding", "[1, null]" },
    { "dual_cross_attention", "[false, null]" },
    { "encoder_hid_dim", "[null]" },
    { "encoder_hid_dim_type", "[null]" },
    { "mid_block_scale_factor", "[1, null]" },
    { "mid_block_only_cross_attention", "[null, false]" },
    { "num_attention_heads", "[null]" },
    { "num_class_embeds", "[null]" },
    { "only_cross_attention", "[false, null]" },
    { "resnet_out_scale_factor", "[1, null]" },
    { "resnet_skip_time_act", "[false, null]" },
    { "resnet_time_scale_shift", "[\"default\", null]" },
    { "time_cond_proj_dim", "[null]" },
    { "time_embedding_act_fn", "[null]" },
    { "time_embedding_type", "[\"positional\", null]" },
    { "timestep_post_act", "[null]" },
    { 0 }
};
static const char *const unet_idle[] = {
    "upcast_attention",         /* everything is f32 */
    "dropout",                  /* of the base model, in its own training */
    "addition_embed_type_num_heads", "addition_time_embed_dim", "projection_class_embeddings_input_dim", /* by types */
    NULL
};
static const char *const unet_read[] = {
    "sample_size", "in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types",
    "mid_block_type", "layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block",
    "attention_head_dim", "cross_attention_dim", "use_linear_projection", "norm_num_groups", "norm_eps", "act_fn",
    "flip_sin_to_cos", "freq_shift", "conv_in_kernel", "conv_out_kernel", "time_embedding_dim", NULL
};

static int
unet_check(const struct sd_unet_config *c)
{
    int blocks = 0;

    for (int i = 0; i < c->levels; i++) {
        bool attention = c->down_attention[i] || c->up_attention[c->levels - 1 - i]
                         || (c->mid_block && i == c->levels - 1);

        if (c->block_out_channels[i] % c->norm_num_groups)
            return sd_fail("block_out_channels: %d is not divisible by norm_num_groups %d", c->block_out_channels[i],
                           c->norm_num_groups);
        if (attention && c->block_out_channels[i] % c->heads[i])
            return sd_fail("attention_head_dim: %d heads (the field's name is a misnomer) do not divide %d channels",
                           c->heads[i], c->block_out_channels[i]);
        blocks += c->layers_per_block[i] * c->transformer_layers[i]
                  + (c->layers_per_block[i] + 1) * c->up_transformer_layers[c->levels - 1 - i];
    }
    if (blocks > MAX_BLOCKS)        /* SDXL has 70: a file that asks for this is not a model */
        return sd_fail("layers_per_block, transformer_layers_per_block: %d blocks, at most %d", blocks, MAX_BLOCKS);
    if (c->block_out_channels[0] < 2 || c->block_out_channels[0] % 2)
        return sd_fail("block_out_channels: the first, %d, is not even, the time embedding needs it",
                       c->block_out_channels[0]);
    if (!(c->conv_in_kernel & 1) || !(c->conv_out_kernel & 1))
        return sd_fail("conv_in_kernel, conv_out_kernel: %d, %d, expected odd numbers", c->conv_in_kernel,
                       c->conv_out_kernel);
    if (!(c->norm_eps > 0 && c->norm_eps < 1))
        return sd_fail("norm_eps: %g, expected more than 0, less than 1", c->norm_eps);
    if (!(c->freq_shift >= 0 && c->freq_shift < c->block_out_channels[0] / 2))
        return sd_fail("freq_shift: %g, expected 0 to less than half of the first of block_out_channels", c->freq_shift);
    return 0;
}

int
sd_unet_config_read(const json_t *object, struct sd_unet_config *c)
{
    static const char *const silu[] = { "silu", "swish", NULL };
    static const char *const mid[] = { "UNetMidBlock2DCrossAttn", NULL };
    int which = 0, context[SD_MAX_LEVELS];

    *c = (struct sd_unet_config){
        .in_channels = 4,
        .out_channels = 4,
        .levels = 4,
        .block_out_channels = { 320, 640, 1280, 1280 },
        .down_attention = { true, true, true, false },
        .up_attention = { false, true, true, true },
        .norm_num_groups = 32,
        .norm_eps = 1e-5,
        .mid_block = true,
        .flip_sin_to_cos = true,
        .conv_in_kernel = 3,
        .conv_out_kernel = 3,
    };
    if (!json_is_object(object))
        return sd_fail("expected an object, found %s", sd_json_kind(object));
    if (check_only(object, unet_only) < 0)
        return -1;
    if (get_channels(object, &c->levels, c->block_out_channels) < 0
        || get_types(object, "down_block_types", c->levels, "CrossAttnDownBlock2D", "DownBlock2D", c->down_attention)
               < 0
        || get_types(object, "up_block_types", c->levels, "CrossAttnUpBlock2D", "UpBlock2D", c->up_attention) < 0
        || get_levels(object, "layers_per_block", c->levels, 1, MAX_LAYERS, 2, c->layers_per_block) < 0
        || get_levels(object, "transformer_layers_per_block", c->levels, 1, MAX_TRANSFORMERS, 1, c->transformer_layers)
               < 0
        || get_levels(object, "attention_head_dim", c->levels, 1, MAX_CHANNELS, 8, c->heads) < 0
        || get_levels(object, "cross_attention_dim", c->levels, 1, MAX_CHANNELS, 1280, context) < 0)
        return -1;
    if (c->levels != 4 && (!json_object_get(object, "down_block_types") || !json_object_get(object, "up_block_types")))
        return sd_fail("down_block_types, up_block_types: missing, and block_out_channels has %d levels", c->levels);
    c->cross_attention_dim = context[0];
    for (int i = 0; i < c->levels; i++) {
        c->up_transformer_layers[i] = c->transformer_layers[c->levels - 1 - i];
        if (context[i] != context[0])
            return sd_fail("cross_attention_dim: %d and %d, different widths are not supported", context[0],
                           context[i]);
    }
    if (get_levels(object, "reverse_transformer_layers_per_block", c->levels, 1, MAX_TRANSFORMERS, 1, context) < 0)
        return -1;
    if (json_is_array(json_object_get(object, "reverse_transformer_layers_per_block")))
        memcpy(c->up_transformer_layers, context, sizeof context);
    if (json_object_get(object, "mid_block_type"))
        c->mid_block = !json_is_null(json_object_get(object, "mid_block_type"));
    c->time_embed_dim = 4 * c->block_out_channels[0];
    if (get_word(object, "mid_block_type", mid, &which) < 0 || get_word(object, "act_fn", silu, &which) < 0
        || get_sample_size(object, 1 << 14, &c->sample_height, &c->sample_width) < 0
        || get_int(object, "in_channels", 1, 64, &c->in_channels) < 0
        || get_int(object, "out_channels", 1, 64, &c->out_channels) < 0
        || get_int(object, "norm_num_groups", 1, MAX_CHANNELS, &c->norm_num_groups) < 0
        || get_int(object, "time_embedding_dim", 1, MAX_CHANNELS, &c->time_embed_dim) < 0
        || get_int(object, "conv_in_kernel", 1, 15, &c->conv_in_kernel) < 0
        || get_int(object, "conv_out_kernel", 1, 15, &c->conv_out_kernel) < 0
        || sd_json_real(object, "norm_eps", &c->norm_eps) < 0 || sd_json_real(object, "freq_shift", &c->freq_shift) < 0
        || sd_json_bool(object, "use_linear_projection", &c->use_linear_projection) < 0
        || sd_json_bool(object, "flip_sin_to_cos", &c->flip_sin_to_cos) < 0)
        return -1;
    if (json_object_get(object, "norm_num_groups") && json_is_null(json_object_get(object, "norm_num_groups")))
        return sd_fail("norm_num_groups: null is not supported");
    if (unet_check(c) < 0)
        return -1;
    note_unknown((json_t *)object, "UNet2DConditionModel", unet_only, unet_idle, unet_read);
    return 0;
}

/* ---- VAE -------------------------------------------------------------------------------------------------------- */

static const struct only vae_only[] = {
    { "shift_factor", "[null, 0]" },
    { "latents_mean", "[null]" },
    { "latents_std", "[null]" },
    { 0 }
};
static const char *const vae_idle[] = {
    "force_upcast",             /* everything is f32 */
    NULL
};
static const char *const vae_read[] = {
    "in_channels", "out_channels", "latent_channels", "block_out_channels", "down_block_types", "up_block_types",
    "layers_per_block", "act_fn", "norm_num_groups", "sample_size", "scaling_factor", "use_quant_conv",
    "use_post_quant_conv", "mid_block_add_attention", NULL
};

int
sd_vae_config_read(const json_t *object, struct sd_vae_config *c)
{
    static const char *const silu[] = { "silu", "swish", NULL };
    bool types[SD_MAX_LEVELS];
    int which = 0;

    *c = (struct sd_vae_config){
        .in_channels = 3,
        .out_channels = 3,
        .latent_channels = 4,
        .levels = 1,
        .block_out_channels = { 64 },
        .layers_per_block = 1,
        .norm_num_groups = 32,
        .sample_height = 32,
        .sample_width = 32,
        .scaling_factor = 0.18215,
        .use_quant_conv = true,
        .use_post_quant_conv = true,
        .mid_block_add_attention = true,
    };
    if (!json_is_object(object))
        return sd_fail("expected an object, found %s", sd_json_kind(object));
    if (check_only(object, vae_only) < 0 || get_channels(object, &c->levels, c->block_out_channels) < 0
        || get_types(object, "down_block_types", c->levels, "DownEncoderBlock2D", NULL, types) < 0
        || get_types(object, "up_block_types", c->levels, "UpDecoderBlock2D", NULL, types) < 0
        || get_word(object, "act_fn", silu, &which) < 0
        || get_sample_size(object, 1 << 17, &c->sample_height, &c->sample_width) < 0
        || get_int(object, "in_channels", 1, 64, &c->in_channels) < 0
        || get_int(object, "out_channels", 1, 64, &c->out_channels) < 0
        || get_int(object, "latent_channels", 1, 64, &c->latent_channels) < 0
        || get_int(object, "layers_per_block", 1, MAX_LAYERS, &c->layers_per_block) < 0
        || get_int(object, "norm_num_groups", 1, MAX_CHANNELS, &c->norm_num_groups) < 0
        || sd_json_real(object, "scaling_factor", &c->scaling_factor) < 0
        || sd_json_bool(object, "use_quant_conv", &c->use_quant_conv) < 0
        || sd_json_bool(object, "use_post_quant_conv", &c->use_post_quant_conv) < 0
        || sd_json_bool(object, "mid_block_add_attention", &c->mid_block_add_attention) < 0)
        return -1;
    for (int i = 0; i < c->levels; i++)
        if (c->block_out_channels[i] % c->norm_num_groups)
            return sd_fail("block_out_channels: %d is not divisible by norm_num_groups %d", c->block_out_channels[i],
                           c->norm_num_groups);
    if (!(c->scaling_factor > 0 && c->scaling_factor < 1e6))
        return sd_fail("scaling_factor: %g, expected a positive number", c->scaling_factor);
    note_unknown((json_t *)object, "AutoencoderKL", vae_only, vae_idle, vae_read);
    return 0;
}

int
sd_vae_factor(const struct sd_vae_config *c)
{
    return 1 << (c->levels - 1);
}

/* ---- CLIP text -------------------------------------------------------------------------------------------------- */

static const struct only text_only[] = {
    { "model_type", "[\"clip_text_model\", null]" },
    { 0 }
};
static const char *const text_idle[] = {
    "attention_dropout", "dropout", "initializer_factor", "initializer_range", "architectures", "torch_dtype",
    "dtype", "transformers_version", "pad_token_id", "return_dict", "use_cache", "tie_word_embeddings", NULL
};
static const char *const text_read[] = {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "projection_dim", "hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id",
    NULL
};

int
sd_clip_text_config_read(const json_t *object, struct sd_clip_text_config *c)
{
    static const char *const act[] = { "quick_gelu", "gelu", NULL };
    int which = 0;

    *c = (struct sd_clip_text_config){
        .vocab_size = 49408,
        .hidden_size = 512,
        .intermediate_size = 2048,
        .num_hidden_layers = 12,
        .num_attention_heads = 8,
        .max_position_embeddings = 77,
        .projection_dim = 512,
        .layer_norm_eps = 1e-5,
        .bos_token_id = 49406,
        .eos_token_id = 49407,
    };
    if (!json_is_object(object))
        return sd_fail("expected an object, found %s", sd_json_kind(object));
    if (check_only(object, text_only) < 0 || get_word(object, "hidden_act", act, &which) < 0
        || get_int(object, "vocab_size", 1, 1 << 24, &c->vocab_size) < 0
        || get_int(object, "hidden_size", 1, MAX_CHANNELS, &c->hidden_size) < 0
        || get_int(object, "intermediate_size", 1, 4 * MAX_CHANNELS, &c->intermediate_size) < 0
        || get_int(object, "num_hidden_layers", 1, 256, &c->num_hidden_layers) < 0
        || get_int(object, "num_attention_heads", 1, 1024, &c->num_attention_heads) < 0
        || get_int(object, "max_position_embeddings", 2, 1 << 16, &c->max_position_embeddings) < 0
        || get_int(object, "projection_dim", 1, MAX_CHANNELS, &c->projection_dim) < 0
        || sd_json_real(object, "layer_norm_eps", &c->layer_norm_eps) < 0
        || sd_json_int(object, "bos_token_id", 0, 1 << 24, &c->bos_token_id) < 0
        || sd_json_int(object, "eos_token_id", 0, 1 << 24, &c->eos_token_id) < 0)
        return -1;
    c->quick_gelu = which == 0;
    if (c->hidden_size % c->num_attention_heads)
        return sd_fail("num_attention_heads: %d does not divide hidden_size %d", c->num_attention_heads,
                       c->hidden_size);
    if (!(c->layer_norm_eps > 0 && c->layer_norm_eps < 1))
        return sd_fail("layer_norm_eps: %g, expected more than 0, less than 1", c->layer_norm_eps);
    note_unknown((json_t *)object, "CLIPTextModel", text_only, text_idle, text_read);
    return 0;
}
