/* model.c - opening models: directories by their config.json files, single files by their family's table. */
#include "model.h"
#include "plan.h"
#include "tokenizer.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct sd_model_parts {
    struct sd_safetensors *file; /* of a single file */
    const char *variant, *vae;
    struct sd_unet unet;
    struct sd_vae *vae_part;
    struct sd_clip_text text;
};

/* What a single file of that family is: diffusers' config.json of the published models, fields with another default
 * only. */
struct published {
    const char *unet, *text, *vae, *scheduler;
};
#define VAE_SD "{\"block_out_channels\": [128, 256, 512, 512], \"layers_per_block\": 2, \"sample_size\": 512}"
#define BETAS_SD \
    "\"beta_start\": 0.00085, \"beta_end\": 0.012, \"beta_schedule\": \"scaled_linear\", " \
    "\"num_train_timesteps\": 1000, \"set_alpha_to_one\": false, \"steps_offset\": 1, \"clip_sample\": false"
static const struct published published[] = {
    [SD_FAMILY_SD1] = {
        "{\"cross_attention_dim\": 768, \"attention_head_dim\": 8, \"sample_size\": 64}",
        "{\"hidden_size\": 768, \"intermediate_size\": 3072, \"num_hidden_layers\": 12, \"num_attention_heads\": 12, "
        "\"projection_dim\": 768, \"eos_token_id\": 2, \"bos_token_id\": 0}",
        VAE_SD,
        "{\"_class_name\": \"PNDMScheduler\", \"skip_prk_steps\": true, " BETAS_SD "}",
    },
    [SD_FAMILY_SD2] = {
        "{\"cross_attention_dim\": 1024, \"attention_head_dim\": [5, 10, 20, 20], \"use_linear_projection\": true, "
        "\"sample_size\": 64}",
        "{\"hidden_size\": 1024, \"intermediate_size\": 4096, \"num_hidden_layers\": 23, \"num_attention_heads\": 16, "
        "\"hidden_act\": \"gelu\", \"projection_dim\": 512, \"eos_token_id\": 2, \"bos_token_id\": 0}",
        VAE_SD,
        "{\"_class_name\": \"DDIMScheduler\", " BETAS_SD "}",
    },
};

const char *
sd_family_name(enum sd_family f)
{
    return f == SD_FAMILY_SD1 ? "SD1" : "SD2";
}

static bool
is_folder(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* ---- configurations --------------------------------------------------------------------------------------------- */

/* json_t of FOLDER/PART/config.json, or of the text when there is no folder. */
static const json_t *
load_config(struct sd_scope *s, const char *folder, const char *file, const char *text)
{
    const char *path = folder ? sd_sprintf(s, "%s/%s", folder, file) : NULL;
    const json_t *o = path ? sd_json_load(s, path, SD_JSON_NONFINITE) : sd_json_parse(s, text, strlen(text), 0);

    if (!o && path)
        sd_fail_prefix("%s", file);
    else if (o && !json_is_object(o)) {
        sd_fail("%s: expected an object, found %s", file, sd_json_kind(o));
        o = NULL;
    }
    return o;
}

/* _class_name, where it is given, must be that. */
static int
expect_class(const json_t *o, const char *wanted)
{
    const char *found = wanted;

    if (sd_json_text(o, "_class_name", &found) < 0)
        return -1;
    return strcmp(found, wanted) == 0 ? 0
                                      : sd_fail("_class_name: %.100s is not supported here, only %s", found, wanted);
}

static int
load_configs(struct sd_model *m, const char *folder, const struct published *p)
{
    struct sd_scope *s = m->scope;
    const char *unet = "unet/config.json", *vae = "vae/config.json", *text = "text_encoder/config.json";
    const char *scheduler = "scheduler/scheduler_config.json", *prediction = "epsilon";
    const json_t *o;

    if (!(o = load_config(s, folder, unet, p ? p->unet : NULL)))
        return -1;
    if (expect_class(o, "UNet2DConditionModel") < 0 || sd_unet_config_read(o, &m->unet_config) < 0)
        return sd_fail_prefix("%s", unet);
    /* with --vae the model's own VAE may be absent; where it is there, it says what a file without configuration is */
    if (!m->parts->vae || !folder || access(sd_sprintf(s, "%s/%s", folder, vae), F_OK) == 0) {
        if (!(o = load_config(s, folder, vae, p ? p->vae : NULL)))
            return -1;
        if (expect_class(o, "AutoencoderKL") < 0 || sd_vae_config_read(o, &m->vae_config) < 0)
            return sd_fail_prefix("%s", vae);
    }
    if (!(o = load_config(s, folder, text, p ? p->text : NULL)))
        return -1;
    if (sd_clip_text_config_read(o, &m->text_config) < 0)
        return sd_fail_prefix("%s", text);
    if (!(m->scheduler = load_config(s, folder, scheduler, p ? p->scheduler : NULL)))
        return -1;
    if (sd_json_text(m->scheduler, "prediction_type", &prediction) < 0)
        return sd_fail_prefix("%s", scheduler);
    m->v_prediction = strcmp(prediction, "v_prediction") == 0;
    return 0;
}

/* What must hold between the components. */
static int
check_together(const struct sd_model *m)
{
    const struct sd_unet_config *u = &m->unet_config;

    if (u->in_channels != u->out_channels)
        return sd_fail("unet/config.json: in_channels %d, out_channels %d: inpainting and image-conditioned models are "
                       "not supported",
                       u->in_channels, u->out_channels);
    if (m->text_config.hidden_size != u->cross_attention_dim)
        return sd_fail("text_encoder/config.json: hidden_size %d, the UNet's cross_attention_dim is %d",
                       m->text_config.hidden_size, u->cross_attention_dim);
    if (m->vae_config.latent_channels != u->in_channels)
        return sd_fail("vae: latent_channels %d, the UNet's in_channels is %d", m->vae_config.latent_channels,
                       u->in_channels);
    return 0;
}

/* ---- directories ------------------------------------------------------------------------------------------------ */

static int
open_folder(struct sd_model *m)
{
    const json_t *index = load_config(m->scope, m->path, "model_index.json", NULL);
    const char *class_name = NULL, *tokenizer;

    if (!index)
        return -1;
    if (sd_json_text(index, "_class_name", &class_name) < 0)
        return sd_fail_prefix("model_index.json");
    if (!class_name || strcmp(class_name, "StableDiffusionPipeline") != 0)
        return sd_fail("model_index.json: _class_name: %.100s is not supported here, only StableDiffusionPipeline",
                       class_name ? class_name : "(none)");
    if (load_configs(m, m->path, NULL) < 0)
        return -1;
    m->family = m->unet_config.cross_attention_dim == 1024 || m->unet_config.use_linear_projection ? SD_FAMILY_SD2
                                                                                                   : SD_FAMILY_SD1;
    tokenizer = sd_sprintf(m->scope, "%s/tokenizer", m->path);
    m->tokenizer = is_folder(tokenizer) ? tokenizer : NULL;
    return 0;
}

/* ---- single files ----------------------------------------------------------------------------------------------- */

#define UNET "model.diffusion_model."

static bool
has(const struct sd_safetensors *f, const char *name)
{
    return sd_safetensors_find(f, name) != NULL;
}

/* Family by the width of the text that cross attention reads (formats 2.2). */
static int
find_family(const struct sd_safetensors *f, enum sd_family *family)
{
    const struct sd_safetensor *k = sd_safetensors_find(f,
                                                        UNET "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight");
    const struct sd_safetensor *in = sd_safetensors_find(f, UNET "input_blocks.0.0.weight");

    if (has(f, UNET "joint_blocks.0.context_block.attn.qkv.weight")
        || has(f, "joint_blocks.0.context_block.attn.qkv.weight"))
        return sd_fail("a checkpoint of the SD3 family, which is not supported");
    if (!in && (has(f, "input_blocks.0.0.weight") || has(f, "conv_in.weight")))
        return sd_fail("a UNet alone, not a whole checkpoint");
    if (!in)
        return sd_fail("no Stable Diffusion checkpoint: it has no " UNET "input_blocks.0.0.weight");
    if (!k)
        k = sd_safetensors_find(f, UNET "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight");
    if (!k || k->ndim != 2)
        return sd_fail("no Stable Diffusion checkpoint: its UNet has no cross attention");
    if (has(f, UNET "label_emb.0.0.weight") || k->shape[1] == 2048 || k->shape[1] == 1280)
        return sd_fail("a checkpoint of the SDXL family, which is not supported");
    if (in->ndim != 4 || in->shape[1] != 4)
        return sd_fail("a UNet of %lld input channels: inpainting and image-conditioned models are not supported",
                       (long long)(in->ndim == 4 ? in->shape[1] : 0));
    *family = k->shape[1] == 1024 ? SD_FAMILY_SD2 : SD_FAMILY_SD1;
    if (k->shape[1] != 1024 && k->shape[1] != 768)
        return sd_fail("cross attention reads texts %lld wide: of no family known here (768 SD1, 1024 SD2)",
                       (long long)k->shape[1]);
    return 0;
}

/* prediction_type of a single file: its metadata, else by the spread of one bias (ComfyUI's test). */
static bool
predicts_v(struct sd_scope *s, const struct sd_safetensors *f, enum sd_family family)
{
    const char *type = sd_safetensors_metadata(f, "modelspec.prediction_type"),
               *key = sd_safetensors_metadata(f, "modelspec.predict_key");
    const char *architecture = sd_safetensors_metadata(f, "modelspec.architecture");
    const struct sd_safetensor *t = sd_safetensors_find(f, UNET "output_blocks.11.1.transformer_blocks.0.norm1.bias");
    double sum = 0, squares = 0;
    const float *x;

    if (type || key)
        return strcmp(type ? type : key, "v") == 0 || strcmp(type ? type : key, "v_prediction") == 0;
    if (architecture && strlen(architecture) > 6 && strcmp(architecture + strlen(architecture) - 6, "-768-v") == 0)
        return true;
    if (family == SD_FAMILY_SD1 || !t || !t->numel || !(x = sd_safetensor_f32(s, t)))
        return false;
    for (size_t i = 0; i < t->numel; i++) {
        sum += x[i];
        squares += (double)x[i] * x[i];
    }
    sum /= (double)t->numel;
    return squares / (double)t->numel - sum * sum > 0.09 * 0.09;
}

static int
open_single(struct sd_model *m, const char *config)
{
    struct sd_safetensors *f = m->parts->file = sd_safetensors_open(m->scope, m->path);

    if (!f) {
        size_t n = strlen(m->path);

        if (n > 5 && (strcmp(m->path + n - 5, ".ckpt") == 0 || strcmp(m->path + n - 4, ".bin") == 0))
            return sd_fail("a pickled checkpoint, which is not read here: convert it to safetensors");
        return -1;
    }
    m->single_file = true;
    if (config) {
        if (load_configs(m, config, NULL) < 0)
            return -1;
        m->family = m->unet_config.cross_attention_dim == 1024 || m->unet_config.use_linear_projection ? SD_FAMILY_SD2
                                                                                                       : SD_FAMILY_SD1;
        return 0;
    }
    if (find_family(f, &m->family) < 0 || load_configs(m, NULL, &published[m->family]) < 0)
        return -1;
    if (predicts_v(m->scope, f, m->family)) {
        json_object_set_new((json_t *)m->scheduler, "prediction_type", json_string("v_prediction"));
        m->v_prediction = true;
        m->unet_config.sample_height = m->unet_config.sample_width = 96;
    }
    return 0;
}

struct sd_model *
sd_model_open(struct sd_scope *s, const char *name, const struct sd_model_options *options)
{
    static const struct sd_model_options none;
    struct sd_model *m = sd_alloc(s, sizeof *m);
    int failed;

    if (!options)
        options = &none;
    m->scope = s;
    m->name = sd_strdup(s, name);
    m->parts = sd_alloc(s, sizeof *m->parts);
    m->parts->variant = options->variant;
    m->parts->vae = options->vae;
    m->path = access(name, F_OK) == 0 ? m->name : sd_hub_snapshot(s, name);
    if (!m->path)
        return NULL;
    failed = is_folder(m->path) ? open_folder(m) : open_single(m, options->config);
    if (failed)
        return NULL;
    if (options->vae) {
        m->parts->vae_part = sd_vae_open(s, options->vae, m->vae_config.levels ? &m->vae_config : NULL);
        if (!m->parts->vae_part)
            return sd_fail_prefix("%s", options->vae), NULL;
        m->vae_config = m->parts->vae_part->config;
    }
    return check_together(m) < 0 ? NULL : m;
}

/* ---- components ------------------------------------------------------------------------------------------------- */

/* One line per unused tensor, up to a few. */
static void
warn_unused(struct sd_weights *w)
{
    enum { SHOWN = 5 };
    struct sd_scope *s = sd_scope_open();
    const char **names;
    size_t count = sd_weights_unused(w, s, &names);

    for (size_t i = 0; i < count && i < SHOWN; i++)
        sd_warn(sd_weights_path(w), "tensor %s is not used", names[i]);
    if (count > SHOWN)
        sd_warn(sd_weights_path(w), "and %zu more tensors are not used", count - SHOWN);
    sd_scope_close(s);
}

static struct sd_weights *
open_weights(struct sd_model *m, const char *name, const char *base, const struct sd_key_map *map)
{
    if (m->single_file)
        return sd_weights_new(m->scope, name, map, m->parts->file, m->path);
    return sd_weights_open(m->scope, name, map, sd_sprintf(m->scope, "%s/%s", m->path, name), base, m->parts->variant);
}

struct sd_unet *
sd_model_unet(struct sd_model *m)
{
    struct sd_unet *u = &m->parts->unet;
    struct sd_key_map map = { SD_LAYOUT_DIFFUSERS, "", NULL, NULL };

    if (u->weights)
        return u;
    u->config = m->unet_config;
    if (m->single_file)
        map = (struct sd_key_map){ SD_LAYOUT_LDM_UNET, UNET, &u->config, NULL };
    u->weights = open_weights(m, "unet", "diffusion_pytorch_model", &map);
    if (!u->weights || sd_unet_account(u) < 0)
        return u->weights = NULL, NULL;
    warn_unused(u->weights);
    return u;
}

struct sd_clip_text *
sd_model_text_encoder(struct sd_model *m)
{
    struct sd_clip_text *t = &m->parts->text;
    struct sd_key_map map = { SD_LAYOUT_CLIP, "", NULL, NULL };

    if (t->weights)
        return t;
    t->config = m->text_config;
    if (m->single_file) {
        static const struct sd_key_map maps[] = {
            { SD_LAYOUT_CLIP, "cond_stage_model.transformer.", NULL, NULL },
            { SD_LAYOUT_OPENCLIP, "cond_stage_model.model.", NULL, NULL },
            { SD_LAYOUT_OPENCLIP, "conditioner.embedders.0.model.", NULL, NULL },
            { SD_LAYOUT_CLIP, "conditioner.embedders.0.transformer.", NULL, NULL },
        };
        struct sd_key key;
        size_t i, count = sizeof maps / sizeof *maps;

        for (i = 0; i < count; i++) {
            bool found = false;

            for (int j = 0; !found && sd_key_spell(&maps[i], "text_model.final_layer_norm.weight", j, &key); j++)
                found = has(m->parts->file, key.name);
            if (found)
                break;
        }
        if (i == count)
            return sd_fail_null("no text encoder in it");
        map = maps[i];
    }
    t->weights = open_weights(m, "text_encoder", "model", &map);
    if (!t->weights || sd_clip_text_account(t) < 0)
        return t->weights = NULL, NULL;
    warn_unused(t->weights);
    return t;
}

/* The VAE in a file: alone or in a checkpoint, by LDM's names or diffusers'. */
static int
vae_in_file(struct sd_scope *s, struct sd_vae *v, struct sd_safetensors *f, const char *path)
{
    static const char *const prefixes[] = { "", "first_stage_model.", "vae." };

    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        bool ldm = has(f, sd_sprintf(s, "%sdecoder.mid.block_1.norm1.weight", prefixes[i]));

        if (ldm || has(f, sd_sprintf(s, "%sdecoder.mid_block.resnets.0.norm1.weight", prefixes[i]))) {
            struct sd_key_map map = { ldm ? SD_LAYOUT_LDM_VAE : SD_LAYOUT_DIFFUSERS, prefixes[i], NULL, &v->config };

            v->weights = sd_weights_new(s, "vae", &map, f, path);
            return 0;
        }
    }
    return sd_fail("no VAE in it");
}

static struct sd_vae *
vae_checked(struct sd_vae *v)
{
    if (sd_vae_account(v) < 0)
        return NULL;
    warn_unused(v->weights);
    return v;
}

struct sd_vae *
sd_model_vae(struct sd_model *m)
{
    static const struct sd_key_map map = { SD_LAYOUT_DIFFUSERS, "", NULL, NULL };
    struct sd_vae *v = m->parts->vae_part;

    if (v)
        return v;
    v = sd_alloc(m->scope, sizeof *v);
    v->config = m->vae_config;
    if (m->single_file) {
        if (vae_in_file(m->scope, v, m->parts->file, m->path) < 0)
            return NULL;
    } else if (!(v->weights = open_weights(m, "vae", "diffusion_pytorch_model", &map))) {
        return NULL;
    }
    return m->parts->vae_part = vae_checked(v);
}

/* The configuration of a VAE: config.json in its folder; else `like`; else the published one. */
static int
vae_configure(struct sd_scope *s, struct sd_vae *v, const char *folder, const struct sd_vae_config *like)
{
    const json_t *o;

    if (!folder && like) {
        v->config = *like;
        return 0;
    }
    if (!(o = load_config(s, folder, "config.json", VAE_SD)))
        return -1;
    if (expect_class(o, "AutoencoderKL") < 0 || sd_vae_config_read(o, &v->config) < 0)
        return sd_fail_prefix("config.json");
    return 0;
}

static int
vae_open_file(struct sd_scope *s, struct sd_vae *v, const char *path, const struct sd_vae_config *like)
{
    struct sd_safetensors *f = sd_safetensors_open(s, path);
    const char *slash = strrchr(path, '/');
    const char *folder = !slash ? "." : sd_strndup(s, path, slash == path ? 1 : (size_t)(slash - path));
    bool alone;

    if (!f || vae_in_file(s, v, f, sd_strdup(s, path)) < 0)
        return -1;
    /* taken out of a diffusers folder, or still in it */
    alone = has(f, "encoder.conv_norm_out.weight") && access(sd_sprintf(s, "%s/config.json", folder), F_OK) == 0;
    return vae_configure(s, v, alone ? folder : NULL, like);
}

static int
vae_open_folder(struct sd_scope *s, struct sd_vae *v, const char *path)
{
    static const struct sd_key_map map = { SD_LAYOUT_DIFFUSERS, "", NULL, NULL };
    const char *inside = sd_sprintf(s, "%s/vae", path), *folder = is_folder(inside) ? inside : path;

    if (vae_configure(s, v, folder, NULL) < 0)
        return -1;
    v->weights = sd_weights_open(s, "vae", &map, folder, "diffusion_pytorch_model", NULL);
    return v->weights ? 0 : -1;
}

struct sd_vae *
sd_vae_open(struct sd_scope *s, const char *name, const struct sd_vae_config *like)
{
    const char *path = access(name, F_OK) == 0 ? name : sd_hub_snapshot(s, name);
    struct sd_vae *v = sd_alloc(s, sizeof *v);

    if (!path || (is_folder(path) ? vae_open_folder(s, v, path) : vae_open_file(s, v, path, like)) < 0)
        return NULL;
    return vae_checked(v);
}

/* ---- accounts --------------------------------------------------------------------------------------------------- */

static int
account_done(struct sd_graph *g)
{
    int result = sd_graph_ok(g) ? 0 : -1;

    sd_graph_free(g);
    return result;
}

int
sd_unet_account(struct sd_unet *unet)
{
    struct sd_graph *g = sd_graph_new();
    struct sd_tensor *x = sd_input(g, "sample", SD_F32, 4, (int64_t[]){ 1, 1, 1, unet->config.in_channels });
    struct sd_tensor *t = sd_input(g, "timesteps", SD_F32, 1, (int64_t[]){ 1 });
    struct sd_tensor *c = sd_input(g, "encoder_hidden_states", SD_F32, 3,
                                   (int64_t[]){ 1, 1, unet->config.cross_attention_dim });

    sd_unet(g, unet, NULL, x, t, c);
    return account_done(g);
}

int
sd_vae_account(struct sd_vae *vae)
{
    struct sd_graph *g = sd_graph_new();
    int side = sd_vae_factor(&vae->config);

    sd_vae_encode(g, vae,
                  sd_input(g, "pixel_values", SD_F32, 4, (int64_t[]){ 1, side, side, vae->config.in_channels }));
    sd_vae_decode(g, vae, sd_input(g, "latents", SD_F32, 4, (int64_t[]){ 1, 1, 1, vae->config.latent_channels }));
    return account_done(g);
}

int
sd_clip_text_account(struct sd_clip_text *text)
{
    struct sd_graph *g = sd_graph_new();

    sd_clip_text(g, text, NULL, sd_input(g, "input_ids", SD_I32, 2, (int64_t[]){ 1, 1 }), NULL, 0);
    return account_done(g);
}
