/* latents_text - the text encoder's states of captions, through the cache. */
#include "latents_private.h"
#include "model/prompt.h"

#include <math.h>
#include <string.h>

struct sd_captions {
    struct sd_clip_text *text;
    struct sd_tokenizer *tokenizer;
    struct sd_encoding e;
    char hash[SD_SHA256_HEX];
    const char *config;
    struct sd_latents_nets nets;
};

static void
describe_text(struct sd_latents_net *n, void *user)
{
    struct sd_captions *c = user;

    n->in = sd_input(n->graph, "input_ids", SD_I32, 2, (int64_t[]){ n->size[0], c->tokenizer->model_max_length });
    n->out = sd_op_cast(n->graph, sd_clip_text(n->graph, c->text, NULL, n->in, NULL, 0), SD_F32);
}

static const char *
config_text(struct sd_scope *s, const struct sd_clip_text_config *c)
{
    json_t *o = json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:f}", "vocab_size", c->vocab_size, "hidden_size",
                          c->hidden_size,
                          "intermediate_size", c->intermediate_size, "num_hidden_layers", c->num_hidden_layers,
                          "num_attention_heads", c->num_attention_heads, "max_position_embeddings",
                          c->max_position_embeddings, "quick_gelu", c->quick_gelu, "layer_norm_eps", c->layer_norm_eps);
    const char *text;

    if (!o)
        sd_die("memory", "no room for a configuration");
    text = sd_json_dump(s, o, 0);
    json_decref(o);
    return text;
}

struct sd_captions *
sd_captions_new(struct sd_scope *s, struct sd_model *m, struct sd_tokenizer *t, const struct sd_encoding *e)
{
    struct sd_captions *c = sd_alloc(s, sizeof *c);

    if (!(c->text = sd_model_text_encoder(m)) || sd_weights_hash(c->text->weights, c->hash) < 0)
        return NULL;
    c->tokenizer = t;
    c->e = *e;
    c->config = config_text(s, &c->text->config);
    sd_latents_nets_open(&c->nets, s, e, describe_text, c);
    return c;
}

const char *
sd_captions_hash(const struct sd_captions *c)
{
    return c->hash;
}

static int
make_states(struct sd_captions *c, struct sd_scope *s, const struct sd_prompt *p, const char *key,
            struct sd_caption_states *out)
{
    struct sd_latents_net *n = sd_latents_net(&c->nets, (int64_t[]){ p->chunks, 0, 0 }, true);
    struct sd_safetensors_writer *w;
    float *states;

    if (!n)
        return -2;
    states = sd_alloc_array(s, n->out->numel, sizeof *states);
    sd_feed(n->plan, n->in, p->input_ids);
    sd_run(n->plan);
    sd_fetch(n->plan, n->out, states);
    for (size_t i = 0; i < n->out->numel; i++)
        if (!isfinite(states[i]))
            return 0;
    w = sd_safetensors_writer_new(s);
    sd_safetensors_add_f32(w, "text_states", SD_F32, 2, (int64_t[]){ out->rows, out->width }, states);
    out->states = states;
    return sd_cache_put(c->e.cache, key, w) < 0 ? -2 : 0;
}

int
sd_caption_encode(struct sd_captions *c, struct sd_scope *s, const char *caption, bool make,
                  struct sd_caption_states *out)
{
    struct sd_safetensors *entry;
    struct sd_safetensor *t;
    char key[SD_SHA256_HEX];
    struct sd_prompt p;
    struct sd_key *k = sd_key_new(s);
    int found;

    if (sd_prompt_encode(c->tokenizer, s, SD_PROMPT_CAPTION, caption, &p) < 0)
        return -1;
    *out = (struct sd_caption_states){ p.chunks, (int64_t)p.chunks * p.length, c->text->config.hidden_size, NULL };
    sd_latents_key_parts(k, &c->e, "text_states", c->hash, c->config);
    sd_key_data(k, "input_ids", SD_I32, 2, (int64_t[]){ p.chunks, p.length }, p.input_ids);
    sd_key_hex(k, key);
    if ((found = sd_cache_get(c->e.cache, s, key, &entry)) < 0)
        return -2;
    if (!found)
        return make ? make_states(c, s, &p, key, out) : 0;
    if (!(t = sd_safetensors_get(entry, "text_states", 2, (int64_t[]){ out->rows, out->width }))
        || !(out->states = sd_safetensor_f32(s, t)))
        return sd_fail_prefix("cache entry %s", key), -2;
    return 1;
}

int
sd_captions_plan(struct sd_captions *c, int64_t chunks, struct sd_latents_plan *plan)
{
    plan->flops = 0;
    return sd_latents_plan_net(&c->nets, (int64_t[]){ chunks, 0, 0 }, plan);
}
