/* adapter.h - low-rank additions to layers, found by the layer's module path.
 *
 * One rule: the model knows nothing of them; sd_linear and sd_conv2d ask here and add  scale * up(down(x)).
 * Any number of adapters may sit on one path; they are added in the order they were put in. */
#ifndef SD_MODEL_ADAPTER_H
#define SD_MODEL_ADAPTER_H

#include "param.h"

enum sd_adapter_kind { SD_ADAPTER_LINEAR, SD_ADAPTER_CONV };

struct sd_adapter {
    const char *path;          /* "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
                                * "text_encoder.text_model.encoder.layers.0.self_attn.q_proj" */
    enum sd_adapter_kind kind; /* of the layer: LINEAR also for 1x1 convolutions */
    struct sd_param *down;     /* [rank, in] or [rank, in, kh, kw] */
    struct sd_param *up;       /* [out, rank] or [out, rank, 1, 1] */
    struct sd_param *scale;    /* one element; NULL for 1 */
    struct sd_adapter *next;   /* on the same path; set by sd_adapters_add */
    bool used;                 /* some layer asked for it */
};

struct sd_adapters;
struct sd_adapters *sd_adapters_new(struct sd_scope *s);
/* sd_adapters_add - a copy of *a (path too) goes in; returns it. */
struct sd_adapter *sd_adapters_add(struct sd_adapters *adapters, const struct sd_adapter *a);
/* sd_adapters_find - the first on that path, NULL when there is none or adapters is NULL. */
struct sd_adapter *sd_adapters_find(const struct sd_adapters *adapters, const char *path);
/* sd_adapters_as_one - what lies on that path as one adapter, marked used: NULL where there is none, the only one, or, of
 * several that are frozen, their exact concatenation (made once).  false: several, and one of them trains. */
bool sd_adapters_as_one(const struct sd_adapters *adapters, const char *path, const struct sd_adapter **one);
/* All of them, in the order added. */
size_t sd_adapters_count(const struct sd_adapters *adapters);
struct sd_adapter *sd_adapters_at(const struct sd_adapters *adapters, size_t i);

#endif
