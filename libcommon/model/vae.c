/* vae.c - AutoencoderKL: encoder, decoder, one attention in the middle of each. */
#include "vae.h"
#include "resnet.h"

static const double norm_eps = 1e-6;

/* One head as wide as the feature map. */
static struct sd_tensor *
attention(const struct sd_module *m, struct sd_tensor *x, int groups)
{
    struct sd_graph *g = m->graph;
    int64_t B = x->shape[0], H = x->shape[1], W = x->shape[2], C = x->shape[3];
    struct sd_tensor *h, *q, *k, *v;

    sd_path_push(g, "attentions.0");
    sd_block_begin(g);
    x = sd_reshape(x, 3, (int64_t[]){ B, H * W, C });
    h = sd_group_norm(m, "group_norm", x, groups, norm_eps, false);
    q = sd_linear(m, "to_q", h, C, true, NULL);
    k = sd_linear(m, "to_k", h, C, true, NULL);
    v = sd_linear(m, "to_v", h, C, true, NULL);
    h = sd_op_attention(g, q, k, v, (struct sd_attention){ .heads = 1 });
    h = sd_linear(m, "to_out.0", h, C, true, x);
    sd_block_end(g);
    sd_path_pop(g);
    return sd_reshape(h, 4, (int64_t[]){ B, H, W, C });
}

static struct sd_tensor *
resnet_at(const struct sd_module *m, int j, struct sd_tensor *x, int out, int groups)
{
    sd_path_push(m->graph, "resnets.%d", j);
    x = sd_resnet(m, x, NULL, NULL, out, groups, norm_eps);
    sd_path_pop(m->graph);
    return x;
}

static struct sd_tensor *
mid_block(const struct sd_module *m, const struct sd_vae_config *c, struct sd_tensor *x)
{
    int channels = (int)sd_cols(x);

    sd_path_push(m->graph, "mid_block");
    x = resnet_at(m, 0, x, channels, c->norm_num_groups);
    if (c->mid_block_add_attention)
        x = attention(m, x, c->norm_num_groups);
    x = resnet_at(m, 1, x, channels, c->norm_num_groups);
    sd_path_pop(m->graph);
    return x;
}

struct sd_tensor *
sd_vae_encode(struct sd_graph *g, struct sd_vae *vae, struct sd_tensor *x)
{
    const struct sd_vae_config *c = &vae->config;
    struct sd_module m = sd_module_begin(g, vae->weights, NULL);
    int factor = sd_vae_factor(c);

    if (x->ndim != 4 || x->shape[3] != c->in_channels || x->shape[1] % factor || x->shape[2] % factor) {
        sd_graph_fault(g, "picture of %lld x %lld pixels, %lld channels: sides must be multiples of %d, channels %d",
                       (long long)x->shape[2], (long long)x->shape[1], (long long)sd_cols(x), factor, c->in_channels);
        sd_module_end(&m);
        return x;
    }
    sd_path_push(g, "encoder");
    x = sd_op_cast(g, x, sd_graph_activations(g));
    x = sd_conv2d(&m, "conv_in", x, c->block_out_channels[0], 3, sd_same(3), NULL, NULL);
    for (int i = 0; i < c->levels; i++) {
        sd_path_push(g, "down_blocks.%d", i);
        for (int j = 0; j < c->layers_per_block; j++)
            x = resnet_at(&m, j, x, c->block_out_channels[i], c->norm_num_groups);
        if (i < c->levels - 1) /* pads right and below only; padding all round shifts the picture at each level */
            x = sd_conv2d(&m, "downsamplers.0.conv", x, c->block_out_channels[i], 3,
                          (struct sd_conv2d){ .stride = 2, .bottom = 1, .right = 1, .upsample = 1 }, NULL, NULL);
        sd_path_pop(g);
    }
    x = mid_block(&m, c, x);
    x = sd_group_norm(&m, "conv_norm_out", x, c->norm_num_groups, norm_eps, true);
    x = sd_conv2d(&m, "conv_out", x, 2 * c->latent_channels, 3, sd_same(3), NULL, NULL);
    sd_path_pop(g);
    if (c->use_quant_conv)
        x = sd_linear(&m, "quant_conv", x, 2 * c->latent_channels, true, NULL);
    sd_module_end(&m);
    return sd_op_cast(g, x, SD_F32);
}

struct sd_tensor *
sd_vae_decode(struct sd_graph *g, struct sd_vae *vae, struct sd_tensor *x)
{
    const struct sd_vae_config *c = &vae->config;
    struct sd_module m = sd_module_begin(g, vae->weights, NULL);

    if (x->ndim != 4 || x->shape[3] != c->latent_channels) {
        sd_graph_fault(g, "latents of %lld channels, the model takes %d", (long long)sd_cols(x), c->latent_channels);
        sd_module_end(&m);
        return x;
    }
    x = sd_op_cast(g, x, sd_graph_activations(g));
    if (c->use_post_quant_conv)
        x = sd_linear(&m, "post_quant_conv", x, c->latent_channels, true, NULL);
    sd_path_push(g, "decoder");
    x = sd_conv2d(&m, "conv_in", x, c->block_out_channels[c->levels - 1], 3, sd_same(3), NULL, NULL);
    x = mid_block(&m, c, x);
    for (int i = 0; i < c->levels; i++) {
        int channels = c->block_out_channels[c->levels - 1 - i];

        sd_path_push(g, "up_blocks.%d", i);
        for (int j = 0; j <= c->layers_per_block; j++)
            x = resnet_at(&m, j, x, channels, c->norm_num_groups);
        if (i < c->levels - 1)
            x = sd_upsample_conv(&m, "upsamplers.0.conv", x, 2 * x->shape[1], 2 * x->shape[2]);
        sd_path_pop(g);
    }
    x = sd_group_norm(&m, "conv_norm_out", x, c->norm_num_groups, norm_eps, true);
    x = sd_conv2d(&m, "conv_out", x, c->out_channels, 3, sd_same(3), NULL, NULL);
    sd_path_pop(g);
    sd_module_end(&m);
    return sd_op_cast(g, x, SD_F32);
}
