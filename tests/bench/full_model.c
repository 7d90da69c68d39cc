/* full_model - a full-size model with random weights, for benchmarks and `make check-full`: the published
 * configuration of SD1.5 or
 * SD2.1, f16, as a diffusers directory without tokenizer.  Usage: full_model sd1|sd2 FOLDER
 * Weights are normal with deviation 1 / sqrt(fan in) (outputs of residual branches a tenth of it), norms one, biases
 * zero: activations stay of order one, so that timings see ordinary numbers. */
#include "file.h"
#include "hash.h"
#include "json.h"
#include "model/model.h"
#include "diffusion/noise_scheduler.h"
#include "random.h"
#include "safetensors.h"

#include <math.h>
#include <string.h>

static const char unet1[] =
    "{\"_class_name\": \"UNet2DConditionModel\", \"sample_size\": 64, \"cross_attention_dim\": 768,"
    "\"attention_head_dim\": 8, \"block_out_channels\": [320, 640, 1280, 1280], \"in_channels\": 4, \"out_channels\": 4}";
static const char unet2[] =
    "{\"_class_name\": \"UNet2DConditionModel\", \"sample_size\": 96, \"cross_attention_dim\": 1024,"
    "\"attention_head_dim\": [5, 10, 20, 20], \"block_out_channels\": [320, 640, 1280, 1280], \"in_channels\": 4,"
    "\"out_channels\": 4, \"use_linear_projection\": true}";
static const char vae[] = "{\"_class_name\": \"AutoencoderKL\", \"block_out_channels\": [128, 256, 512, 512],"
    "\"down_block_types\": [\"DownEncoderBlock2D\", \"DownEncoderBlock2D\", \"DownEncoderBlock2D\", \"DownEncoderBlock2D\"],"
    "\"up_block_types\": [\"UpDecoderBlock2D\", \"UpDecoderBlock2D\", \"UpDecoderBlock2D\", \"UpDecoderBlock2D\"],"
    "\"layers_per_block\": 2, \"latent_channels\": 4, \"sample_size\": 512, \"scaling_factor\": 0.18215, \"in_channels\": 3,"
    "\"out_channels\": 3, \"norm_num_groups\": 32, \"act_fn\": \"silu\"}";
static const char text1[] =
    "{\"architectures\": [\"CLIPTextModel\"], \"model_type\": \"clip_text_model\", \"vocab_size\": 49408,"
    "\"hidden_size\": 768, \"intermediate_size\": 3072, \"num_hidden_layers\": 12, \"num_attention_heads\": 12,"
    "\"max_position_embeddings\": 77, \"hidden_act\": \"quick_gelu\", \"layer_norm_eps\": 1e-5, \"projection_dim\": 768,"
    "\"bos_token_id\": 0, \"eos_token_id\": 2}";
static const char text2[] =
    "{\"architectures\": [\"CLIPTextModel\"], \"model_type\": \"clip_text_model\", \"vocab_size\": 49408,"
    "\"hidden_size\": 1024, \"intermediate_size\": 4096, \"num_hidden_layers\": 23, \"num_attention_heads\": 16,"
    "\"max_position_embeddings\": 77, \"hidden_act\": \"gelu\", \"layer_norm_eps\": 1e-5, \"projection_dim\": 512,"
    "\"bos_token_id\": 0, \"eos_token_id\": 2}";
static const char index_json[] = "{\"_class_name\": \"StableDiffusionPipeline\", \"_diffusers_version\": \"0.42.1\","
    "\"scheduler\": [\"diffusers\", \"PNDMScheduler\"], \"text_encoder\": [\"transformers\", \"CLIPTextModel\"],"
    "\"tokenizer\": [\"transformers\", \"CLIPTokenizer\"], \"unet\": [\"diffusers\", \"UNet2DConditionModel\"],"
    "\"vae\": [\"diffusers\", \"AutoencoderKL\"], \"safety_checker\": [null, null], \"feature_extractor\": [null, null]}";

static void
must(int status, const char *what)
{
    if (status < 0)
        sd_die(what, "%s", sd_reason());
}

struct filler {
    uint64_t name;
    double deviation;
    bool ones;
    size_t count;
};

/* Pieces are generated as they are written: nothing of the model is in memory. */
static int
generate(void *user, void *buffer, size_t offset, size_t bytes)
{
    enum { PIECE = 4096 };
    const struct filler *f = user;
    float values[PIECE];
    size_t at = offset / 2, end = at + bytes / 2;

    for (; at < end; at = (at / PIECE + 1) * PIECE) {
        size_t stop = (at / PIECE + 1) * PIECE < end ? (at / PIECE + 1) * PIECE : end, skip = at % PIECE;

        if (f->deviation > 0)
            sd_random_normal(values, PIECE, 15, SD_FOR_INIT, f->name, (uint32_t)(at / PIECE));
        for (size_t i = skip; i < skip + stop - at; i++)
            values[i] = f->deviation > 0 ? (float)f->deviation * values[i] : f->ones;
        if (sd_from_f32((char *)buffer + 2 * (at - offset / 2), SD_F16, values + skip, stop - at) < 0)
            return -1;
    }
    return 0;
}

struct collect {
    struct sd_scope *s;
    struct sd_safetensors_writer *w;
    size_t skip;
};

static bool
ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

static void
add(struct sd_param *p, void *user)
{
    struct collect *c = user;
    struct filler *f = sd_alloc(c->s, sizeof *f);
    const char *name = p->path + c->skip;
    char hex[SD_XXH128_HEX];
    bool out = ends_with(name, "conv2.weight") || ends_with(name, "to_out.0.weight") || ends_with(name, "net.2.weight")
               || ends_with(name, "proj_out.weight") || ends_with(name, "out_proj.weight") ||
                   ends_with(name, "fc2.weight");

    sd_xxh128_of(name, strlen(name), hex);
    hex[15] = 0;
    f->name = strtoull(hex, NULL, 16);
    f->ones = ends_with(name, ".weight");
    if (p->ndim > 1)
        f->deviation = (strstr(name, "embedding.weight") ? 0.02 : 1 / sqrt((double)p->numel / (double)p->shape[0])) *
            (out ? 0.1 : 1);
    sd_safetensors_add_from(c->w, name, SD_F16, p->ndim, p->shape, generate, f);
}

static void
component(const char *folder, const char *name, const char *base, const char *config, struct sd_weights *weights)
{
    struct sd_scope *s = sd_scope_open();
    struct collect c = { s, sd_safetensors_writer_new(s), strlen(name) + 1 };
    const char *path = sd_sprintf(s, "%s/%s", folder, name);
    json_t *object = sd_json_parse(s, config, strlen(config), 0);

    must(object ? 0 : -1, name);
    must(sd_make_folders(path), path);
    must(sd_json_save(object, sd_sprintf(s, "%s/config.json", path)), path);
    sd_weights_each(weights, add, &c);
    must(sd_safetensors_save(c.w, sd_sprintf(s, "%s/%s.safetensors", path, base)), path);
    sd_scope_close(s);
}

int
main(int argc, char **argv)
{
    struct sd_scope *s = sd_scope_open();
    bool sd2 = argc == 3 && strcmp(argv[1], "sd2") == 0;
    struct sd_unet unet = { .weights = sd_weights_imagine(s, "unet") };
    struct sd_vae autoencoder = { .weights = sd_weights_imagine(s, "vae") };
    struct sd_clip_text text = { .weights = sd_weights_imagine(s, "text_encoder") };
    const char *unet_json = sd2 ? unet2 : unet1, *text_json = sd2 ? text2 : text1, *path;
    json_t *index, *scheduler;

    sd_program = "full_model";
    if (argc != 3 || (!sd2 && strcmp(argv[1], "sd1") != 0))
        sd_usage(NULL, "usage: full_model sd1|sd2 FOLDER");
    must(sd_unet_config_read(sd_json_parse(s, unet_json, strlen(unet_json), 0), &unet.config), "unet");
    must(sd_vae_config_read(sd_json_parse(s, vae, strlen(vae), 0), &autoencoder.config), "vae");
    must(sd_clip_text_config_read(sd_json_parse(s, text_json, strlen(text_json), 0), &text.config), "text_encoder");
    must(sd_unet_account(&unet), "unet");
    must(sd_vae_account(&autoencoder), "vae");
    must(sd_clip_text_account(&text), "text_encoder");
    component(argv[2], "unet", "diffusion_pytorch_model", unet_json, unet.weights);
    component(argv[2], "vae", "diffusion_pytorch_model", vae, autoencoder.weights);
    component(argv[2], "text_encoder", "model", text_json, text.weights);
    path = sd_sprintf(s, "%s/scheduler", argv[2]);
    must(sd_make_folders(path), path);
    scheduler = sd_scheduler_config_published(s, sd2 ? "sd2-v" : "sd1");
    must(sd_json_save(scheduler, sd_sprintf(s, "%s/scheduler_config.json", path)), path);
    index = sd_json_parse(s, index_json, strlen(index_json), 0);
    must(sd_json_save(index, sd_sprintf(s, "%s/model_index.json", argv[2])), argv[2]);
    printf("%lld parameters in the unet, %lld in the vae, %lld in the text encoder\n",
           (long long)sd_weights_elements(unet.weights), (long long)sd_weights_elements(autoencoder.weights),
           (long long)sd_weights_elements(text.weights));
    return 0;
}
