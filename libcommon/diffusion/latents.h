/* latents.h - pictures to the VAE's posterior, captions to text states: each made once, and found in the cache later.
 *
 * One rule: what decides the bits of a result is in its key, and nothing else is. */
#ifndef SD_LATENTS_H
#define SD_LATENTS_H

#include "cache.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "plan.h"

/* Raised by hand when an entry's content, or the arithmetic before the network, changes. */
enum { SD_LATENTS_FORMAT = 1 };

struct sd_encoding {
    struct sd_cache *cache;
    const char *salt;           /* part of every key; NULL for none */
    bool portable;              /* keys without engine, its version and the instruction set */
    int64_t tile;               /* pixels of a side above which pictures are encoded in tiles; 0: never */
    struct sd_compute compute;  /* its dtypes and engine are part of every key */
    int64_t memory;             /* bytes for packed weights and activations; 0: no limit */
    struct sd_arena *arena;     /* for the activations of pictures and captions, which never run together */
};

/* -- pictures ----------------------------------------------------------------------------------------------------- */

struct sd_latents;
/* sd_latents_new - NULL with sd_fail: weights that cannot be hashed, a tile that does not fit.  No weight is read but for
 * the hash until a picture has to be encoded. */
struct sd_latents *sd_latents_new(struct sd_scope *s, struct sd_vae *vae, const struct sd_encoding *e);
/* sd_latents_vae_hash - SHA-256 of the VAE's weights. */
const char *sd_latents_vae_hash(const struct sd_latents *l);

struct sd_latents_picture {
    const uint8_t *pixels;      /* [height, width, 3] */
    int64_t height, width;
    char key[SD_SHA256_HEX];
    const float *mean, *logvar; /* [channels, height / factor, width / factor], not scaled, logvar within -30 and 20;
                                 * NULL: not there */
};
/* sd_latents_key - sets the key; -1 with sd_fail when a side is no multiple of the VAE's factor. */
int sd_latents_key(struct sd_latents *l, struct sd_latents_picture *p);
/* sd_latents_find - 1 and mean and logvar, mapped in scope s; 0 when the cache has none; -1 with sd_fail. */
int sd_latents_find(struct sd_latents *l, struct sd_scope *s, struct sd_latents_picture *p);
/* sd_latents_encode - encodes `count` pictures of one size at once (fewer where memory is limited: the bits are the
 * same) and puts them into the cache; mean and logvar in scope s.  A picture whose moments are not finite keeps NULL,
 * and is not stored.  -1 with sd_fail: no memory, a cache that cannot be written. */
int sd_latents_encode(struct sd_latents *l, struct sd_scope *s, struct sd_latents_picture **p, size_t count);

struct sd_latents_plan {
    size_t arena_bytes, activations_bytes;
    double flops;               /* of all `count` pictures */
};
/* sd_latents_plan - what encoding `count` pictures of a size at once takes, without allocating it.  Over several calls:
 * the largest arena, the last flops. */
int sd_latents_plan(struct sd_latents *l, int64_t height, int64_t width, size_t count, struct sd_latents_plan *plan);

/* sd_latent_mask - area average of a mask (U8, 255 = 1) over places of factor x factor pixels. */
void sd_latent_mask(float *out, const uint8_t *mask, int64_t height, int64_t width, int factor);

/* -- captions ----------------------------------------------------------------------------------------------------- */

struct sd_captions;
struct sd_captions *sd_captions_new(struct sd_scope *s, struct sd_model *m, struct sd_tokenizer *t,
                                    const struct sd_encoding *e);
/* sd_captions_hash - SHA-256 of the text encoder's weights. */
const char *sd_captions_hash(const struct sd_captions *c);

struct sd_caption_states {
    int64_t chunks, rows, width;    /* rows = chunks * model_max_length; width = hidden_size */
    const float *states;        /* NULL: they are not finite */
};
/* sd_caption_encode - the states of a caption (no weights, as many chunks as it takes), in scope s: 1 from the cache, 0
 * made and stored; -1 with sd_fail for a bad caption, -2 where the run cannot go on (cache, memory).  make = false only
 * looks: 0 and NULL when the cache has none. */
int sd_caption_encode(struct sd_captions *c, struct sd_scope *s, const char *caption, bool make,
                      struct sd_caption_states *out);
/* sd_captions_plan - as sd_latents_plan, for texts of `chunks` chunks. */
int sd_captions_plan(struct sd_captions *c, int64_t chunks, struct sd_latents_plan *plan);

#endif
