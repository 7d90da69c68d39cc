/* weights.h - the weights of one component: a store from name to parameter over mapped safetensors files.
 *
 * One rule: every tensor is accounted for.  What a model asks for and does not find, or finds with another shape, is an
 * error that names it; what a file holds and no model asked for is listed.  Nothing is copied or converted here. */
#ifndef SD_MODEL_WEIGHTS_H
#define SD_MODEL_WEIGHTS_H

#include "hash.h"
#include "param.h"
#include "safetensors.h"
#include "keys.h"

struct sd_weights;

/* sd_weights_new - a store over a file or sharded index (which must live as long): its tensors that begin with the
 * prefix of the map.  name ("unet") is the first part of its parameters' paths; path is the file's, for messages and
 * for the hash; the map is copied, the configurations it points to must live on. */
struct sd_weights *sd_weights_new(struct sd_scope *s, const char *name, const struct sd_key_map *map,
                                  struct sd_safetensors *file, const char *path);
/* sd_weights_open - the weights in a component's folder: those of the variant (NULL for none), plain, fp16; at each
 * step a single file before an index.  base is the file's stem.  NULL with sd_fail: "vae: no
 * diffusion_pytorch_model.safetensors". */
struct sd_weights *sd_weights_open(struct sd_scope *s, const char *name, const struct sd_key_map *map,
                                   const char *folder, const char *base, const char *variant);
const char *sd_weights_name(const struct sd_weights *w);
const char *sd_weights_path(const struct sd_weights *w);
struct sd_safetensors *sd_weights_file(const struct sd_weights *w);

/* sd_weights_imagine - a store without files: every parameter asked for exists and has no values.  For counting and
 * planning. */
struct sd_weights *sd_weights_imagine(struct sd_scope *s, const char *name);

/* sd_weights_get - the parameter `path` ("conv_in.weight", diffusers' name without the component) of that shape; always
 * the same one for the same path.  A shape counts as equal when only trailing ones differ (linear and 1x1 convolution).
 * NULL with sd_fail: "unet.conv_in.weight: shape [8, 4, 3, 3], expected [8, 9, 3, 3]". */
struct sd_param *sd_weights_get(struct sd_weights *w, const char *path, int ndim, const int64_t *shape);

/* sd_weights_place - where a parameter lies in its file, for writers: the tensor, which part of its rows, whether
 * transposed. Does not count as use; false when there is none. */
struct sd_weights_place {
    struct sd_safetensor *tensor;
    int part, parts;
    bool transposed;
};
bool sd_weights_place(struct sd_weights *w, const char *path, struct sd_weights_place *place);

/* sd_weights_unused - names, as in the file, of the store's tensors that nobody asked for; buffers and layers known to
 * be without use are left out (position_ids, logit_scale; of OpenCLIP text_projection and the layers behind the last
 * one that was asked for).  *names in scope s.  Returns how many. */
size_t sd_weights_unused(struct sd_weights *w, struct sd_scope *s, const char ***names);

/* Parameters asked for so far: how many, the i-th in the order first asked, f of each in that order, their elements. */
size_t sd_weights_count(const struct sd_weights *w);
struct sd_param *sd_weights_at(const struct sd_weights *w, size_t i);
void sd_weights_each(const struct sd_weights *w, void (*f)(struct sd_param *p, void *user), void *user);
int64_t sd_weights_elements(const struct sd_weights *w);

/* sd_weights_hash - SHA-256, hex, of what the store holds.  All of one file: of its bytes (what sha256sum prints).  A
 * sharded index or a part of a file: for each tensor, in byte order of the names without the prefix, of the line "name
 * dtype [shape]\n" and its bytes. */
int sd_weights_hash(struct sd_weights *w, char hex[SD_SHA256_HEX]);

#endif
