/* latents - the VAE's posterior of pictures, through the cache. */
#include "latents_private.h"
#include "compute.h"
#include "device_bytes.h"
#include "image.h"
#include "kernels/op.h"

#include <math.h>
#include <string.h>

struct sd_latents {
    struct sd_scope *scope;
    struct sd_vae *vae;
    struct sd_encoding e;
    int factor;
    int64_t channels;
    char vae_hash[SD_SHA256_HEX];
    const char *config;         /* canonical JSON of what the file says */
    struct sd_latents_nets nets;
    size_t together;            /* pictures that fit into the memory at once, as found out so far */
};

/* -- networks ----------------------------------------------------------------------------------------------------- */

static void
close_nets(void *argument)
{
    struct sd_latents_nets *x = argument;

    for (struct sd_latents_net *n = x->first; n; n = n->next) {
        sd_plan_free(n->plan);
        sd_graph_free(n->graph);
    }
}

void
sd_latents_nets_open(struct sd_latents_nets *x, struct sd_scope *s, const struct sd_encoding *e,
                     void (*describe)(struct sd_latents_net *n, void *user), void *user)
{
    *x = (struct sd_latents_nets){ .scope = s, .arena = e->arena, .memory = e->memory, .compute = e->compute,
                                   .describe = describe, .user = user };
    sd_on_close(s, close_nets, x);
}

static int
check_memory(const struct sd_latents_nets *x, const struct sd_plan *p)
{
    size_t packed = sd_param_bytes_reserved(), arena = sd_plan_report(p).arena_bytes;

    if (x->compute.device) {
        struct sd_device_bytes b;

        sd_device_bytes_of(&b, x->compute.device, arena);
        arena = b.activations;
        packed = b.weights + sd_device_bytes_workspace(&b);
    }
    if (!x->memory || packed + arena <= (size_t)x->memory)
        return 0;
    return sd_fail("needs %.1f MiB for activations and %.1f MiB for weights%s, --memory is %.1f MiB",
                   (double)arena / 0x1p20, (double)packed / 0x1p20,
                   x->compute.device ? " and workspace" : "", (double)x->memory / 0x1p20);
}

struct sd_latents_net *
sd_latents_net(struct sd_latents_nets *x, const int64_t size[3], bool bind)
{
    struct sd_latents_net *n = x->first;

    while (n && memcmp(n->size, size, sizeof n->size) != 0)
        n = n->next;
    if (!n) {
        n = sd_alloc(x->scope, sizeof *n);
        memcpy(n->size, size, sizeof n->size);
        n->graph = sd_graph_new();
        sd_graph_on(n->graph, &x->compute);
        x->describe(n, x->user);
        sd_keep(n->out);
        n->plan = sd_plan_inference(n->graph, 0);
        if (!n->plan || check_memory(x, n->plan) < 0) {
            if (n->plan)
                sd_plan_free(n->plan);
            sd_graph_free(n->graph);
            return NULL;
        }
        n->next = x->first;
        x->first = n;
    }
    if (bind && !n->bound) {
        sd_plan_bind(n->plan, x->arena);
        n->bound = true;
    }
    return n;
}

static void
describe_encoder(struct sd_latents_net *n, void *user)
{
    struct sd_latents *l = user;

    n->in = sd_input(n->graph, "pixel_values", SD_F32, 4, (int64_t[]){ n->size[0], n->size[1], n->size[2], 3 });
    n->out = sd_vae_encode(n->graph, l->vae, n->in);
}

/* -- keys --------------------------------------------------------------------------------------------------------- */

void
sd_latents_key_parts(struct sd_key *k, const struct sd_encoding *e, const char *kind, const char *weights_hash,
                     const char *config)
{
    sd_key_int(k, "format", SD_LATENTS_FORMAT);
    sd_key_text(k, "kind", kind);
    sd_key_text(k, "weights", weights_hash);
    sd_key_text(k, "config", config);
    sd_key_text(k, "dtype", sd_compute_dtype(&e->compute));
    sd_key_text(k, "salt", e->salt ? e->salt : "");
    if (!e->portable) {
        sd_key_text(k, "engine", sd_compute_engine(&e->compute));
        sd_key_text(k, "isa", sd_compute_unit(&e->compute));
    }
}

static bool
in_tiles(const struct sd_latents *l, int64_t height, int64_t width)
{
    return l->e.tile && (height > l->e.tile || width > l->e.tile);
}

int
sd_latents_key(struct sd_latents *l, struct sd_latents_picture *p)
{
    struct sd_scope *s;
    struct sd_key *k;

    if (p->height < 1 || p->width < 1 || p->height % l->factor || p->width % l->factor)
        return sd_fail("pixel_values: %lldx%lld, sides must be multiples of %d", (long long)p->width,
                       (long long)p->height, l->factor);
    s = sd_scope_open();
    k = sd_key_new(s);
    sd_latents_key_parts(k, &l->e, "latents", l->vae_hash, l->config);
    sd_key_data(k, "pixel_values", SD_U8, 3, (int64_t[]){ p->height, p->width, 3 }, p->pixels);
    /* a picture that is one tile is encoded as without tiles */
    sd_key_int(k, "tile", in_tiles(l, p->height, p->width) ? l->e.tile : 0);
    sd_key_hex(k, p->key);
    sd_scope_close(s);
    return 0;
}

static const char *
config_text(struct sd_scope *s, const struct sd_vae_config *c)
{
    json_t *widths = json_array(), *o;
    const char *text;

    for (int i = 0; i < c->levels; i++)
        json_array_append_new(widths, json_integer(c->block_out_channels[i]));
    o = json_pack("{s:i, s:i, s:i, s:o, s:i, s:i, s:f, s:b, s:b, s:b}", "in_channels", c->in_channels, "out_channels",
                  c->out_channels, "latent_channels", c->latent_channels, "block_out_channels", widths,
                  "layers_per_block", c->layers_per_block, "norm_num_groups", c->norm_num_groups, "scaling_factor",
                  c->scaling_factor, "use_quant_conv", c->use_quant_conv, "use_post_quant_conv", c->use_post_quant_conv,
                  "mid_block_add_attention", c->mid_block_add_attention);
    if (!o)
        sd_die("memory", "no room for a configuration");
    text = sd_json_dump(s, o, 0);
    json_decref(o);
    return text;
}

struct sd_latents *
sd_latents_new(struct sd_scope *s, struct sd_vae *vae, const struct sd_encoding *e)
{
    struct sd_latents *l = sd_alloc(s, sizeof *l);
    int factor = sd_vae_factor(&vae->config);

    if (vae->config.in_channels != 3)
        return sd_fail_null("the vae takes pictures of %d channels, not 3", vae->config.in_channels);
    if (e->tile % (4 * factor))
        return sd_fail_null("tiles of %lld pixels: expected a multiple of %d", (long long)e->tile, 4 * factor);
    l->scope = s;
    l->vae = vae;
    l->e = *e;
    l->factor = factor;
    l->channels = vae->config.latent_channels;
    l->together = SIZE_MAX;
    if (sd_weights_hash(vae->weights, l->vae_hash) < 0)
        return NULL;
    l->config = config_text(s, &vae->config);
    sd_latents_nets_open(&l->nets, s, e, describe_encoder, l);
    return l;
}

const char *
sd_latents_vae_hash(const struct sd_latents *l)
{
    return l->vae_hash;
}

/* -- the cache ---------------------------------------------------------------------------------------------------- */

int
sd_latents_find(struct sd_latents *l, struct sd_scope *s, struct sd_latents_picture *p)
{
    const int64_t shape[3] = { l->channels, p->height / l->factor, p->width / l->factor };
    struct sd_safetensors *entry;
    struct sd_safetensor *mean, *logvar;
    int found = sd_cache_get(l->e.cache, s, p->key, &entry);

    if (found < 1)
        return found;
    if (!(mean = sd_safetensors_get(entry, "mean", 3, shape))
        || !(logvar = sd_safetensors_get(entry, "logvar", 3, shape))
        || !(p->mean = sd_safetensor_f32(s, mean)) || !(p->logvar = sd_safetensor_f32(s, logvar)))
        return sd_fail_prefix("cache entry %s", p->key);
    return 1;
}

static int
store(struct sd_latents *l, const struct sd_latents_picture *p)
{
    const int64_t shape[3] = { l->channels, p->height / l->factor, p->width / l->factor };
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);
    int status;

    sd_safetensors_add_f32(w, "mean", SD_F32, 3, shape, p->mean);
    sd_safetensors_add_f32(w, "logvar", SD_F32, 3, shape, p->logvar);
    status = sd_cache_put(l->e.cache, p->key, w);
    sd_scope_close(s);
    return status;
}

/* -- encoding ----------------------------------------------------------------------------------------------------- */

/* The part of a picture that lies at (top, left) as an input of the network. */
static void
fill(float *in, const struct sd_latents_net *n, const struct sd_latents_picture *p, int64_t top, int64_t left)
{
    int64_t height = n->size[1], width = n->size[2];

    for (int64_t y = 0; y < height; y++) {
        const uint8_t *row = p->pixels + ((top + y) * p->width + left) * 3;

        for (int64_t i = 0; i < width * 3; i++)
            *in++ = sd_pixel_value(row[i]);
    }
}

static int
encode_whole(struct sd_latents *l, struct sd_latents_picture **p, size_t count, float *moments)
{
    struct sd_latents_net *n = sd_latents_net(&l->nets, (int64_t[]){ (int64_t)count, p[0]->height, p[0]->width }, true);

    struct sd_scope *s;
    float *in;

    if (!n)
        return -1;
    s = sd_scope_open();
    in = sd_alloc_array(s, n->in->numel, sizeof *in);
    for (size_t b = 0; b < count; b++)
        fill(in + b * (n->in->numel / count), n, p[b], 0, 0);
    sd_feed(n->plan, n->in, in);
    sd_scope_close(s);
    sd_run(n->plan);
    sd_fetch(n->plan, n->out, moments);
    return 0;
}

/* Tiles as diffusers': of `tile` pixels, a quarter over the neighbour, linear in between; places are latents. */
struct tiling {
    int64_t step, extent, keep; /* from tile to tile in pixels; blended places; places of a tile that are kept */
    int64_t rows, columns;
};

static struct tiling
tile_up(const struct sd_latents *l, int64_t height, int64_t width)
{
    int64_t step = l->e.tile / 4 * 3, places = l->e.tile / l->factor;

    return (struct tiling){ step, places / 4, places - places / 4, (height + step - 1) / step,
                            (width + step - 1) / step };
}

struct tile {
    int64_t h, w;
    float *moments;             /* [h, w, 2 * channels] */
};

static int64_t
least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* to becomes from's end over to's beginning: rows (down) or columns. */
static void
blend(struct tile *to, const struct tile *from, bool down, int64_t extent, int64_t channels)
{
    extent = least(extent, down ? least(from->h, to->h) : least(from->w, to->w));
    for (int64_t e = 0; e < extent; e++) {
        float share = (float)((double)e / (double)extent), rest = (float)(1 - (double)e / (double)extent);

        for (int64_t i = 0; i < (down ? to->w : to->h); i++) {
            float *a = to->moments + (down ? e * to->w + i : i * to->w + e) * channels;
            int64_t end = down ? (from->h - extent + e) * from->w + i : i * from->w + from->w - extent + e;
            const float *b = from->moments + end * channels;

            for (int64_t c = 0; c < channels; c++)
                a[c] = b[c] * rest + a[c] * share;
        }
    }
}

static int
encode_tile(struct sd_latents *l, struct sd_scope *s, const struct sd_latents_picture *p, int64_t top, int64_t left,
            struct tile *t)
{
    int64_t height = least(l->e.tile, p->height - top), width = least(l->e.tile, p->width - left);
    struct sd_latents_net *n = sd_latents_net(&l->nets, (int64_t[]){ 1, height, width }, true);
    struct sd_scope *room;
    float *in;

    if (!n)
        return -1;
    t->h = height / l->factor;
    t->w = width / l->factor;
    t->moments = sd_alloc_array(s, n->out->numel, sizeof *t->moments);
    room = sd_scope_open();
    in = sd_alloc_array(room, n->in->numel, sizeof *in);
    fill(in, n, p, top, left);
    sd_feed(n->plan, n->in, in);
    sd_scope_close(room);
    sd_run(n->plan);
    sd_fetch(n->plan, n->out, t->moments);
    return 0;
}

static int
encode_in_tiles(struct sd_latents *l, const struct sd_latents_picture *p, float *moments)
{
    struct tiling g = tile_up(l, p->height, p->width);
    struct sd_scope *s = sd_scope_open();
    struct tile *tile = sd_alloc_array(s, (size_t)(g.rows * g.columns), sizeof *tile);
    int64_t w = p->width / l->factor, channels = 2 * l->channels;

    for (int64_t i = 0; i < g.rows * g.columns; i++) {
        int64_t row = i / g.columns, column = i % g.columns;
        struct tile *t = &tile[i];

        if (encode_tile(l, s, p, row * g.step, column * g.step, t) < 0) {
            sd_scope_close(s);
            return -1;
        }
        if (row)
            blend(t, t - g.columns, true, g.extent, channels);
        if (column)
            blend(t, t - 1, false, g.extent, channels);
        for (int64_t y = 0; y < least(t->h, g.keep); y++)
            memcpy(moments + ((row * g.keep + y) * w + column * g.keep) * channels, t->moments + y * t->w * channels,
                   (size_t)(least(t->w, g.keep) * channels) * sizeof *moments);
    }
    sd_scope_close(s);
    return 0;
}

/* moments [h * w, 2 * channels] to mean and logvar [channels, h * w]. */
static void
split(struct sd_latents *l, struct sd_scope *s, struct sd_latents_picture *p, const float *moments)
{
    int64_t places = p->height / l->factor * (p->width / l->factor), channels = l->channels;
    float *mean = sd_alloc_array(s, (size_t)(places * channels), sizeof *mean);
    float *logvar = sd_alloc_array(s, (size_t)(places * channels), sizeof *logvar);

    for (int64_t i = 0; i < places * 2 * channels; i++)
        if (!isfinite(moments[i]))
            return;
    for (int64_t c = 0; c < channels; c++)
        for (int64_t i = 0; i < places; i++) {
            float v = moments[i * 2 * channels + channels + c];

            mean[c * places + i] = moments[i * 2 * channels + c];
            logvar[c * places + i] = v < -30 ? -30 : v > 20 ? 20 : v;
        }
    p->mean = mean;
    p->logvar = logvar;
}

/* How many of the pictures fit into the memory together. */
static size_t
fitting(struct sd_latents *l, const struct sd_latents_picture *p, size_t count)
{
    count = count < l->together ? count : l->together;
    while (count > 1 && !sd_latents_net(&l->nets, (int64_t[]){ (int64_t)count, p->height, p->width }, false))
        l->together = count /= 2;
    return count;
}

static int
encode_some(struct sd_latents *l, struct sd_scope *s, struct sd_latents_picture **p, size_t count)
{
    size_t numel = (size_t)(p[0]->height / l->factor * (p[0]->width / l->factor) * 2 * l->channels);
    struct sd_scope *mine = sd_scope_open();
    float *moments = sd_alloc_array(mine, count * numel, sizeof *moments);
    int status = in_tiles(l, p[0]->height, p[0]->width) ? encode_in_tiles(l, p[0], moments)
                                                        : encode_whole(l, p, count, moments);

    for (size_t b = 0; status == 0 && b < count; b++) {
        split(l, s, p[b], moments + b * numel);
        if (p[b]->mean)
            status = store(l, p[b]);
    }
    sd_scope_close(mine);
    return status;
}

int
sd_latents_encode(struct sd_latents *l, struct sd_scope *s, struct sd_latents_picture **p, size_t count)
{
    bool tiled = count && in_tiles(l, p[0]->height, p[0]->width);
    int status = 0;

    for (size_t i = 0, some; status == 0 && i < count; i += some) {
        some = tiled ? 1 : fitting(l, p[i], count - i);
        status = encode_some(l, s, p + i, some);
    }
    return status;
}

/* -- plans -------------------------------------------------------------------------------------------------------- */

int
sd_latents_plan_net(struct sd_latents_nets *x, const int64_t size[3], struct sd_latents_plan *plan)
{
    struct sd_latents_net *n = sd_latents_net(x, size, false);
    struct sd_plan_report r;

    if (!n)
        return -1;
    r = sd_plan_report(n->plan);
    if (r.arena_bytes > plan->arena_bytes)
        plan->arena_bytes = r.arena_bytes;
    if (r.activations_bytes > plan->activations_bytes)
        plan->activations_bytes = r.activations_bytes;
    plan->flops += r.flops;
    return 0;
}

int
sd_latents_plan(struct sd_latents *l, int64_t height, int64_t width, size_t count, struct sd_latents_plan *plan)
{
    struct sd_latents_picture p = { .height = height, .width = width };
    int64_t tile = l->e.tile;
    int status = 0;

    plan->flops = 0;
    if (!in_tiles(l, height, width)) {
        for (size_t i = 0, some; status == 0 && i < count; i += some) {
            some = fitting(l, &p, count - i);
            status = sd_latents_plan_net(&l->nets, (int64_t[]){ (int64_t)some, height, width }, plan);
        }
        return status;
    }
    for (int64_t y = 0; y < height; y += tile / 4 * 3)
        for (int64_t x = 0; x < width && status == 0; x += tile / 4 * 3)
            status = sd_latents_plan_net(
                &l->nets, (int64_t[]){ 1, least(tile, height - y), least(tile, width - x) }, plan);
    plan->flops *= (double)count;
    return status;
}

/* -- masks -------------------------------------------------------------------------------------------------------- */

void
sd_latent_mask(float *out, const uint8_t *mask, int64_t height, int64_t width, int factor)
{
    for (int64_t y = 0; y < height / factor; y++)
        for (int64_t x = 0; x < width / factor; x++) {
            int64_t sum = 0;

            for (int64_t i = 0; i < factor; i++)
                for (int64_t j = 0; j < factor; j++)
                    sum += mask[(y * factor + i) * width + x * factor + j];
            *out++ = (float)((double)sum / (255.0 * factor * factor));
        }
}
