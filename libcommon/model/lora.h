/* lora.h - low-rank adapters in files: kohya, diffusers (three generations), PEFT directories, ComfyUI; read, joined,
 * written.
 *
 * One rule: every key is accounted for, translated by itself, never by what the first key looks like; a key left over
 * is an error that names it.  What is read is one form: diffusers' module path, f32 factors, one scale. */
#ifndef SD_MODEL_LORA_H
#define SD_MODEL_LORA_H

#include "adapter.h"
#include "json.h"
#include "safetensors.h"

struct sd_lora_layer {
    const char *path; /* as struct sd_adapter: "unet.down_blocks.0...to_q", "text_encoder.text_model.encoder..." */
    int64_t rank, in, out, kh, kw;  /* linear: kh = kw = 1 */
    bool conv;                      /* factors are stored with four dimensions */
    const float *down;              /* [rank, in, kh, kw] */
    const float *up;                /* [out, rank] */
    double scale;                   /* change of the weight = scale * up down; alpha / rank, whatever said so */
};

struct sd_lora {
    struct sd_scope *scope;
    size_t count;
    struct sd_lora_layer *layer;    /* by path, in byte order */
    enum sd_dtype dtype;            /* the widest of its factors in the file */
    size_t held;                    /* bytes of factors in memory of our own: converted ones, sums; others lie in the file */
    const char *dialect;            /* "kohya", "diffusers", "diffusers (old)", "peft", "comfy" */
    size_t metadata;                /* pairs of the file */
    const char *(*pair)[2];
};

enum sd_lora_format { SD_LORA_KOHYA, SD_LORA_DIFFUSERS, SD_LORA_PEFT, SD_LORA_COMFY };
/* "kohya|diffusers|peft|comfy", for option tables, and the format of a word of it. */
#define SD_LORA_FORMATS "kohya|diffusers|peft|comfy"
enum sd_lora_format sd_lora_format(const char *word);

/* sd_lora_load - a safetensors file or a PEFT directory.  NULL with sd_fail: an unknown key, a factor without its
 * partner, ranks that differ, DoRA and other kinds by name. */
struct sd_lora *sd_lora_load(struct sd_scope *s, const char *path);

/* sd_lora_join - weight[i] * lora[i] summed by exact concatenation of factors: rank is the sum, scale 1; each file's
 * two factors are brought to one size by a power of two, so that f16 holds a small share too.  A layer that one file
 * alone has keeps its factors, and weight * scale.  NULL with sd_fail where shapes differ. */
struct sd_lora *sd_lora_join(struct sd_scope *s, struct sd_lora *const *lora, const double *weight, size_t count);

/* sd_lora_save - metadata: pairs of key and value, ended by NULL (kohya's ss_ and modelspec keys come from
 * sd_lora_metadata). kohya, comfy: one alpha per component, the rest of each layer's scale is folded into up;
 * diffusers: all of it; peft: a directory with unet/ and text_encoder/, scales in adapter_config.json.  Through
 * sd_output and sd_folder. */
int sd_lora_save(const struct sd_lora *lora, const char *path, enum sd_lora_format format, enum sd_dtype dtype,
                 const char *const *metadata);
/* sd_lora_size - what sd_lora_save would write, and the memory that it takes beside the adapters; for plans. */
struct sd_lora_size {
    uint64_t written;
    size_t memory;
};
int sd_lora_size(const struct sd_lora *lora, enum sd_lora_format format, enum sd_dtype dtype,
                 const char *const *metadata, struct sd_lora_size *size);
/* sd_lora_dim - for ss_network_dim and ss_network_alpha: the UNet's (without one, the text encoder's) most common rank,
 * and the alpha that sd_lora_save writes for it. */
void sd_lora_dim(const struct sd_lora *lora, enum sd_dtype dtype, int64_t *rank, double *alpha);
/* sd_lora_verify - read path again and compare effective weights (scale * up down) with lora's, by layer: the largest
 * relative difference in *worst.  -1 with sd_fail when layers are missing or differ in shape, or when a factor is not
 * lora's, rounded once to the file's dtype. */
int sd_lora_verify(const struct sd_lora *lora, const char *path, double *worst);

/* sd_lora_adapters - put every layer into adapters, with strengths for the UNet and the text encoder. */
void sd_lora_adapters(const struct sd_lora *lora, struct sd_adapters *adapters, double unet, double text);

/* sd_lora_merge - W += strength * scale * up down in f32: one weight, row-major [out, in, kh, kw]; `values` is in and
 * out. */
void sd_lora_merge(const struct sd_lora_layer *layer, double strength, float *values);

#endif
