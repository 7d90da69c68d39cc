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
    struct sd_tensor **time;           /* each resnet's, in the order of the net: [B, out] */
    int time_at;                       /* of them that are taken */
    struct sd_tensor *text_kv;         /* sd_unet_text */
    int64_t text_at;                   /* columns of it that are taken */
    struct sd_tensor *skip[MAX_SKIPS]; /* down blocks' outputs, for the up blocks */
    int skips;
};

/* attn1: q, k and v of the same x. */
static struct sd_tensor *
self_attention(struct describe *d, struct sd_tensor *x, int heads, struct sd_tensor *residual)
{
    int64_t width = sd_cols(x);
    const struct sd_part part[3] = { { "to_q", width, false }, { "to_k", width, false }, { "to_v", width, false } };
    struct sd_tensor *qkv[3], *y;

    sd_path_push(d->m.graph, "attn1");
    sd_linears(&d->m, "to_qkv", x, part, 3, qkv);
    y = sd_op_attention(d->m.graph, qkv[0], qkv[1], qkv[2], (struct sd_attention){ .heads = heads });
    y = sd_linear(&d->m, "to_out.0", y, width, true, residual);
    sd_path_pop(d->m.graph);
    return y;
}

/* attn2: k and v of the text are there already. */
static struct sd_tensor *
cross_attention(struct describe *d, struct sd_tensor *x, int heads, struct sd_tensor *residual)
{
    int64_t width = sd_cols(x);
    struct sd_tensor *q, *k, *v, *y;

    sd_path_push(d->m.graph, "attn2");
    q = sd_linear(&d->m, "to_q", x, width, false, NULL);
    k = sd_slice(d->text_kv, 2, d->text_at, width);
    v = sd_slice(d->text_kv, 2, d->text_at + width, width);
    d->text_at += 2 * width;
    y = sd_op_attention(d->m.graph, q, k, v, (struct sd_attention){ .heads = heads });
    y = sd_linear(&d->m, "to_out.0", y, width, true, residual);
    sd_path_pop(d->m.graph);
    return y;
}

static struct sd_tensor *
transformer_block(struct describe *d, struct sd_tensor *x, int heads)
{
    struct sd_tensor *h;
    int64_t width = sd_cols(x);

    h = sd_layer_norm(&d->m, "norm1", x, layer_norm_eps);
    x = self_attention(d, h, heads, x);
    h = sd_layer_norm(&d->m, "norm2", x, layer_norm_eps);
    x = cross_attention(d, h, heads, x);
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
    x = sd_resnet(&d->m, x, beside, d->time[d->time_at++], out, d->c->norm_num_groups, d->c->norm_eps);
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

/* -- layers over the same thing all through the net --------------------------------------------------------------- */

/* In the order of the net. */
struct visit {
    struct sd_scope *scope;
    struct sd_part *part;           /* NULL: only counted */
    int count;
    int64_t width;                  /* of all */
};
typedef void visit_layers(const struct sd_unet_config *c, struct visit *v);

static void
visit(struct visit *v, int64_t width, bool bias, const char *block, int i, const char *layer)
{
    if (v->part)
        v->part[v->count] = (struct sd_part){
            i < 0 ? sd_sprintf(v->scope, "%s.%s", block, layer) : sd_sprintf(v->scope, "%s.%d.%s", block, i, layer), width, bias
        };
    v->count++;
    v->width += width;
}

static void
visit_text(struct visit *v, const char *block, int i, int j, int64_t width, int layers)
{
    static const char *const name[2] = { "to_k", "to_v" };
    char layer[80];

    for (int l = 0; l < layers; l++)
        for (int k = 0; k < 2; k++) {
            snprintf(layer, sizeof layer, "attentions.%d.transformer_blocks.%d.attn2.%s", j, l, name[k]);
            visit(v, width, false, block, i, layer);
        }
}

/* to_k and to_v of every cross-attention */
static void
visit_all_text(const struct sd_unet_config *c, struct visit *v)
{
    const int *width = c->block_out_channels, deepest = c->levels - 1;

    for (int i = 0; i < c->levels; i++)
        for (int j = 0; c->down_attention[i] && j < c->layers_per_block[i]; j++)
            visit_text(v, "down_blocks", i, j, width[i], c->transformer_layers[i]);
    if (c->mid_block)
        visit_text(v, "mid_block", -1, 0, width[deepest], c->transformer_layers[deepest]);
    for (int i = 0; i < c->levels; i++)
        for (int j = 0; c->up_attention[i] && j <= c->layers_per_block[deepest - i]; j++)
            visit_text(v, "up_blocks", i, j, width[deepest - i], c->up_transformer_layers[i]);
}

static void
visit_time(struct visit *v, const char *block, int i, int resnets, int64_t width)
{
    char layer[40];

    for (int j = 0; j < resnets; j++) {
        snprintf(layer, sizeof layer, "resnets.%d.time_emb_proj", j);
        visit(v, width, true, block, i, layer);
    }
}

/* time_emb_proj of every resnet */
static void
visit_all_time(const struct sd_unet_config *c, struct visit *v)
{
    const int *width = c->block_out_channels, deepest = c->levels - 1;

    for (int i = 0; i < c->levels; i++)
        visit_time(v, "down_blocks", i, c->layers_per_block[i], width[i]);
    if (c->mid_block)
        visit_time(v, "mid_block", -1, 2, width[deepest]);
    for (int i = 0; i < c->levels; i++)
        visit_time(v, "up_blocks", i, c->layers_per_block[deepest - i] + 1, width[deepest - i]);
}

static struct visit
visited(struct sd_scope *s, const struct sd_unet_config *c, visit_layers *all)
{
    struct visit v = { .scope = s };

    all(c, &v);
    v.part = sd_alloc_array(s, (size_t)v.count + 1, sizeof *v.part);
    v.count = 0;
    v.width = 0;
    all(c, &v);
    return v;
}

/* Of a number of parts, how many from the i-th on are one product's. */
static int
portion(const struct visit *v, int i)
{
    return v->count - i < SD_MAX_PROJECTIONS ? v->count - i : SD_MAX_PROJECTIONS;
}

/* On a device one product: the embedding has few rows, and weights are read at full speed only when they are many. */
static void
time_projections(struct describe *d, struct sd_tensor *emb)
{
    struct sd_scope *s = sd_graph_scope(d->m.graph);
    struct visit v = visited(s, d->c, visit_all_time);

    d->time = sd_alloc_array(s, (size_t)v.count + 1, sizeof *d->time);
    for (int i = 0; i < v.count; i += SD_MAX_PROJECTIONS)
        sd_linears(&d->m, "time_emb_proj", emb, v.part + i, portion(&v, i), d->time + i);
}

/* -- the text's keys and values ------------------------------------------------------------------------------------ */

int64_t
sd_unet_text_width(const struct sd_unet_config *c)
{
    struct visit v = { .count = 0 };

    visit_all_text(c, &v);
    return v.width;
}

static bool
text_fits(struct sd_graph *g, const struct sd_unet_config *c, const struct sd_tensor *states)
{
    if (states->ndim == 3 && states->shape[2] == c->cross_attention_dim)
        return true;
    sd_graph_fault(g, "encoder_hidden_states %lld wide, the model takes %d", (long long)sd_cols(states),
                   c->cross_attention_dim);
    return false;
}

struct sd_tensor *
sd_unet_text(struct sd_graph *g, struct sd_unet *unet, const struct sd_adapters *adapters,
             struct sd_tensor *encoder_hidden_states)
{
    struct sd_module m = sd_module_begin(g, unet->weights, adapters);
    struct sd_tensor *x = sd_op_cast(g, encoder_hidden_states, sd_graph_activations(g)), *all = NULL;
    struct visit v = visited(sd_graph_scope(g), &unet->config, visit_all_text);

    for (int i = 0; text_fits(g, &unet->config, x) && i < v.count; i += SD_MAX_PROJECTIONS) {
        struct sd_tensor *y = sd_projections(&m, "text_kv", x, v.part + i, portion(&v, i));

        all = all ? sd_op_concat(g, all, y) : y;
    }
    sd_module_end(&m);
    return all;
}

/* -- the net ------------------------------------------------------------------------------------------------------- */

static bool
fits(struct describe *d, const struct sd_tensor *sample, const struct sd_tensor *timesteps, const struct sd_tensor *text)
{
    const struct sd_unet_config *c = d->c;
    struct sd_graph *g = d->m.graph;

    if (sample->ndim != 4 || sample->shape[3] != c->in_channels)
        sd_graph_fault(g, "sample of %lld channels, the model takes %d", (long long)sd_cols(sample), c->in_channels);
    else if ((text && text->shape[0] != sample->shape[0]) || timesteps->ndim != 1
             || timesteps->shape[0] != sample->shape[0])
        sd_graph_fault(g, "batch of %lld samples, %lld timesteps, %lld texts", (long long)sample->shape[0],
                       (long long)timesteps->shape[0], (long long)(text ? text->shape[0] : 0));
    else
        return true;
    return false;
}

struct sd_tensor *
sd_unet_denoise(struct sd_graph *g, struct sd_unet *unet, const struct sd_adapters *adapters, struct sd_tensor *sample,
                struct sd_tensor *timesteps, struct sd_tensor *text_kv)
{
    const struct sd_unet_config *c = &unet->config;
    struct describe *d = sd_alloc(sd_graph_scope(g), sizeof *d);
    struct sd_tensor *x = sample;
    enum sd_dtype dtype = sd_graph_activations(g);

    d->m = sd_module_begin(g, unet->weights, adapters);
    d->c = c;
    d->text_kv = text_kv;
    if (text_kv && (text_kv->ndim != 3 || sd_cols(text_kv) != sd_unet_text_width(c)))
        sd_bug("unet", "text_kv %lld wide, %lld wanted", (long long)sd_cols(text_kv), (long long)sd_unet_text_width(c));
    if (fits(d, sample, timesteps, text_kv)) {
        time_projections(d, time_embedding(d, timesteps));
        x = sd_conv2d(&d->m, "conv_in", sd_op_cast(g, sample, dtype), c->block_out_channels[0], c->conv_in_kernel,
                      sd_same(c->conv_in_kernel), NULL, NULL);
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

struct sd_tensor *
sd_unet(struct sd_graph *g, struct sd_unet *unet, const struct sd_adapters *adapters, struct sd_tensor *sample,
        struct sd_tensor *timesteps, struct sd_tensor *encoder_hidden_states)
{
    struct sd_tensor *text_kv = sd_unet_text(g, unet, adapters, encoder_hidden_states);

    return text_kv || !sd_unet_text_width(&unet->config)
               ? sd_unet_denoise(g, unet, adapters, sample, timesteps, text_kv) : sample;
}
