/* clip_text.c - CLIP's text encoder: pre-norm causal transformer.
 *   x = token[id] + position;   x += out_proj(attention(layer_norm1(x)));   x += fc2(act(fc1(layer_norm2(x)))) */
#include "clip_text.h"

static struct sd_tensor *
embeddings(const struct sd_module *m, const struct sd_clip_text_config *c, struct sd_tensor *ids, struct sd_param *rows)
{
    struct sd_tensor *table, *positions, *x;

    sd_path_push(m->graph, "embeddings");
    table = sd_parameter(m, "token_embedding.weight", 2, (int64_t[]){ c->vocab_size, c->hidden_size });
    positions = sd_parameter(m, "position_embedding.weight", 2,
                             (int64_t[]){ c->max_position_embeddings, c->hidden_size });
    x = sd_op_embedding(m->graph, ids, table, rows ? sd_use(m->graph, rows) : NULL, positions);
    sd_path_pop(m->graph);
    return x;
}

static struct sd_tensor *
layer(const struct sd_module *m, const struct sd_clip_text_config *c, int i, struct sd_tensor *x)
{
    struct sd_graph *g = m->graph;
    const struct sd_part part[3] = { { "q_proj", c->hidden_size, true }, { "k_proj", c->hidden_size, true },
                                     { "v_proj", c->hidden_size, true } };
    struct sd_tensor *h, *qkv[3];

    sd_path_push(g, "encoder.layers.%d", i);
    sd_block_begin(g);
    h = sd_layer_norm(m, "layer_norm1", x, c->layer_norm_eps);
    sd_path_push(g, "self_attn");
    sd_linears(m, "qkv_proj", h, part, 3, qkv);
    h = sd_op_attention(g, qkv[0], qkv[1], qkv[2],
                        (struct sd_attention){ .heads = c->num_attention_heads, .causal = true });
    x = sd_linear(m, "out_proj", h, c->hidden_size, true, x);
    sd_path_pop(g);
    h = sd_layer_norm(m, "layer_norm2", x, c->layer_norm_eps);
    sd_path_push(g, "mlp");
    h = sd_linear(m, "fc1", h, c->intermediate_size, true, NULL);
    h = c->quick_gelu ? sd_op_quick_gelu(g, h) : sd_op_gelu(g, h);
    x = sd_linear(m, "fc2", h, c->hidden_size, true, x);
    sd_path_pop(g);
    sd_block_end(g);
    sd_path_pop(g);
    return x;
}

struct sd_tensor *
sd_clip_text(struct sd_graph *g, struct sd_clip_text *text, const struct sd_adapters *adapters, struct sd_tensor *ids,
             struct sd_param *rows, int clip_skip)
{
    const struct sd_clip_text_config *c = &text->config;
    struct sd_module m = sd_module_begin(g, text->weights, adapters);
    struct sd_tensor *x;

    if (clip_skip < 0 || clip_skip > c->num_hidden_layers)
        sd_graph_fault(g, "clip_skip %d, the encoder has %d layers", clip_skip, c->num_hidden_layers);
    if (ids->ndim != 2 || ids->shape[1] > c->max_position_embeddings)
        sd_graph_fault(g, "input_ids of %lld tokens, the encoder takes %d", (long long)ids->shape[ids->ndim - 1],
                       c->max_position_embeddings);
    sd_path_push(g, "text_model");
    x = embeddings(&m, c, ids, rows);
    for (int i = 0; i < c->num_hidden_layers - clip_skip; i++)
        x = layer(&m, c, i, x);
    x = sd_layer_norm(&m, "final_layer_norm", x, c->layer_norm_eps);
    sd_path_pop(g);
    sd_module_end(&m);
    return x;
}
