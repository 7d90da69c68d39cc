/* unet.c - UNet2DConditionModel: time embedding, down blocks, middle, up blocks with what the down blocks left.
 * Module paths are diffusers' names. */
#include "unet.h"
#include "resnet.h"

enum { MAX_SKIPS = 1024 };

static const double transformer_norm_eps = 1e-6; /* of the GroupNorm that opens an attention module; not norm_eps */
static const double layer_norm_eps = 1e-5;

struct describe {
    struct sd_module m;
    const struct sd_unet_config *c;
    struct sd_tensor *emb;             /* silu(time embedding) [B, time_embed_dim] */
    struct sd_tensor *states;          /* encoder_hidden_states */
    struct sd_tensor *skip[MAX_SKIPS]; /* down blocks' outputs, for the up blocks */
    int skips;
};

/* attn1 (context = x) and attn2 (context = text): the one place where q, k and v are made. */
static struct sd_tensor *
attention(struct describe *d, const char *name, struct sd_tensor *x, struct sd_tensor *context, int heads,
          struct sd_tensor *residual)
{
    struct sd_graph *g = d->m.graph;
    int64_t width = sd_cols(x);
    struct sd_tensor *q, *k, *v, *y;

    sd_path_push(g, "%s", name);
    q = sd_linear(&d->m, "to_q", x, width, false, NULL);
    k = sd_linear(&d->m, "to_k", context, width, false, NULL);
    v = sd_linear(&d->m, "to_v", context, width, false, NULL);
    y = sd_op_attention(g, q, k, v, (struct sd_attention){ .heads = heads });
    y = sd_linear(&d->m, "to_out.0", y, width, true, residual);
    sd_path_pop(g);
    return y;
}

static struct sd_tensor *
transformer_block(struct describe *d, struct sd_tensor *x, int heads)
{
    struct sd_tensor *h;
    int64_t width = sd_cols(x);

    h = sd_layer_norm(&d->m, "norm1", x, layer_norm_eps);
    x = attention(d, "attn1", h, h, heads, x);
    h = sd_layer_norm(&d->m, "norm2", x, layer_norm_eps);
    x = attention(d, "attn2", h, d->states, heads, x);
    h = sd_layer_norm(&d->m, "norm3", x, layer_norm_eps);
    h = sd_linear(&d->m, "ff.net.0.proj", h, 8 * width, true, NULL);
    h = sd_op_geglu(d->m.graph, h);
    return sd_linear(&d->m, "ff.net.2", h, width, true, x);
}

/* Transformer2DModel.  proj_in and proj_out are 1x1 convolutions or linear layers: the same thing here. */
static struct sd_tensor *
transformer(struct describe *d, struct sd_tensor *x, int heads, int layers)
{
    struct sd_graph *g = d->m.graph;
    int64_t B = x->shape[0], H = x->shape[1], W = x->shape[2], C = sd_cols(x);
    struct sd_tensor *h;

    sd_block_begin(g);
    h = sd_group_norm(&d->m, "norm", x, d->c->norm_num_groups, transformer_norm_eps, false);
    h = sd_linear(&d->m, "proj_in", sd_reshape(h, 3, (int64_t[]){ B, H * W, C }), C, true, NULL);
    for (int i = 0; i < layers; i++) {
        sd_path_push(g, "transformer_blocks.%d", i);
        h = transformer_block(d, h, heads);
        sd_path_pop(g);
    }
    h = sd_linear(&d->m, "proj_out", h, C, true, sd_reshape(x, 3, (int64_t[]){ B, H * W, C }));
    sd_block_end(g);
    return sd_reshape(h, 4, (int64_t[]){ B, H, W, C });
}

static struct sd_tensor *
resnet_at(struct describe *d, int j, struct sd_tensor *x, struct sd_tensor *beside, int out)
{
    sd_path_push(d->m.graph, "resnets.%d", j);
    x = sd_resnet(&d->m, x, beside, d->emb, out, d->c->norm_num_groups, d->c->norm_eps);
    sd_path_pop(d->m.graph);
    return x;
}

static struct sd_tensor *
transformer_at(struct describe *d, int j, struct sd_tensor *x, int heads, int layers)
{
    sd_path_push(d->m.graph, "attentions.%d", j);
    x = transformer(d, x, heads, layers);
    sd_path_pop(d->m.graph);
    return x;
}

static void
push_skip(struct describe *d, struct sd_tensor *x)
{
    if (d->skips == MAX_SKIPS)
        sd_bug("unet", "more than %d layers", MAX_SKIPS);
    d->skip[d->skips++] = x;
}

static struct sd_tensor *
down_block(struct describe *d, int i, struct sd_tensor *x)
{
    const struct sd_unet_config *c = d->c;
    int out = c->block_out_channels[i];

    sd_path_push(d->m.graph, "down_blocks.%d", i);
    for (int j = 0; j < c->layers_per_block[i]; j++) {
        x = resnet_at(d, j, x, NULL, out);
        if (c->down_attention[i])
            x = transformer_at(d, j, x, c->heads[i], c->transformer_layers[i]);
        push_skip(d, x);
    }
    if (i < c->levels - 1) {
        x = sd_conv2d(&d->m, "downsamplers.0.conv", x, out, 3, (struct sd_conv2d){ 2, 1, 1, 1, 1, 1 }, NULL, NULL);
        push_skip(d, x);
    }
    sd_path_pop(d->m.graph);
    return x;
}

static struct sd_tensor *
mid_block(struct describe *d, struct sd_tensor *x)
{
    int deepest = d->c->levels - 1, out = d->c->block_out_channels[deepest];

    sd_path_push(d->m.graph, "mid_block");
    x = resnet_at(d, 0, x, NULL, out);
    x = transformer_at(d, 0, x, d->c->heads[deepest], d->c->transformer_layers[deepest]);
    x = resnet_at(d, 1, x, NULL, out);
    sd_path_pop(d->m.graph);
    return x;
}

static struct sd_tensor *
up_block(struct describe *d, int i, struct sd_tensor *x)
{
    const struct sd_unet_config *c = d->c;
    int level = c->levels - 1 - i, out = c->block_out_channels[level];

    sd_path_push(d->m.graph, "up_blocks.%d", i);
    for (int j = 0; j <= c->layers_per_block[level]; j++) {
        x = resnet_at(d, j, x, d->skip[--d->skips], out);
        if (c->up_attention[i])
            x = transformer_at(d, j, x, c->heads[level], c->up_transformer_layers[i]);
    }
    if (level > 0) {
        struct sd_tensor *next = d->skip[d->skips - 1]; /* what comes up must meet it in size */

        x = sd_upsample_conv(&d->m, "upsamplers.0.conv", x, next->shape[1], next->shape[2]);
    }
    sd_path_pop(d->m.graph);
    return x;
}

static struct sd_tensor *
time_embedding(struct describe *d, struct sd_tensor *timesteps)
{
    const struct sd_unet_config *c = d->c;
    struct sd_graph *g = d->m.graph;
    struct sd_tensor *t;

    sd_path_push(g, "time_proj");
    t = sd_op_timestep_embedding(
        g, timesteps, (struct sd_timestep_embedding){ c->block_out_channels[0], c->flip_sin_to_cos, c->freq_shift });
    sd_path_pop(g);
    sd_path_push(g, "time_embedding");
    t = sd_linear(&d->m, "linear_1", t, c->time_embed_dim, true, NULL);
    t = sd_linear(&d->m, "linear_2", sd_op_silu(g, t), c->time_embed_dim, true, NULL);
    sd_path_pop(g);
    return sd_op_silu(g, t); /* every resnet takes it through SiLU first: done once */
}

static bool
fits(struct describe *d, const struct sd_tensor *sample, const struct sd_tensor *timesteps,
     const struct sd_tensor *states)
{
    const struct sd_unet_config *c = d->c;
    struct sd_graph *g = d->m.graph;

    if (sample->ndim != 4 || sample->shape[3] != c->in_channels)
        sd_graph_fault(g, "sample of %lld channels, the model takes %d", (long long)sd_cols(sample), c->in_channels);
    else if (states->ndim != 3 || states->shape[2] != c->cross_attention_dim)
        sd_graph_fault(g, "encoder_hidden_states %lld wide, the model takes %d", (long long)sd_cols(states),
                       c->cross_attention_dim);
    else if (states->shape[0] != sample->shape[0] || timesteps->ndim != 1 || timesteps->shape[0] != sample->shape[0])
        sd_graph_fault(g, "batch of %lld samples, %lld timesteps, %lld texts", (long long)sample->shape[0],
                       (long long)timesteps->shape[0], (long long)states->shape[0]);
    else
        return true;
    return false;
}

struct sd_tensor *
sd_unet(struct sd_graph *g, struct sd_unet *unet, const struct sd_adapters *adapters, struct sd_tensor *sample,
        struct sd_tensor *timesteps, struct sd_tensor *encoder_hidden_states)
{
    const struct sd_unet_config *c = &unet->config;
    struct describe *d = sd_alloc(sd_graph_scope(g), sizeof *d);
    struct sd_tensor *x = sample;
    enum sd_dtype dtype = sd_graph_activations(g);

    d->m = sd_module_begin(g, unet->weights, adapters);
    d->c = c;
    d->states = sd_op_cast(g, encoder_hidden_states, dtype);
    if (fits(d, sample, timesteps, encoder_hidden_states)) {
        d->emb = time_embedding(d, timesteps);
        x = sd_conv2d(&d->m, "conv_in", sd_op_cast(g, sample, dtype), c->block_out_channels[0], c->conv_in_kernel, sd_same(c->conv_in_kernel),
                      NULL, NULL);
        push_skip(d, x);
        for (int i = 0; i < c->levels; i++)
            x = down_block(d, i, x);
        if (c->mid_block)
            x = mid_block(d, x);
        for (int i = 0; i < c->levels; i++)
            x = up_block(d, i, x);
        x = sd_group_norm(&d->m, "conv_norm_out", x, c->norm_num_groups, c->norm_eps, true);
        x = sd_conv2d(&d->m, "conv_out", x, c->out_channels, c->conv_out_kernel, sd_same(c->conv_out_kernel), NULL,
                      NULL);
        x = sd_op_cast(g, x, SD_F32);
    }
    sd_module_end(&d->m);
    return x;
}
