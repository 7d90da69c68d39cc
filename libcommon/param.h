/* param.h - parameters: weights that outlive the graphs that use them.
 *
 * One rule: the raw bytes stay as the file has them (mapped, always readable); every other form (converted, packed for a
 * kernel) is made once on first use, shared by all graphs, and counted by --plan before it is made. */
#ifndef SD_PARAM_H
#define SD_PARAM_H

#include "graph.h"
#include "real.h"

struct sd_pack;

struct sd_param {
    const char *path;               /* "unet.conv_in.weight" */
    enum sd_dtype dtype;            /* of raw */
    int ndim;
    int64_t shape[SD_MAX_DIMS];     /* as in the file: Linear [out,in], conv [out,in,kh,kw] */
    size_t numel;
    const void *raw;                /* in dtype; may be unaligned; NULL for trainables */
    bool trainable;
    real *value, *grad;             /* trainable: parts of the flat buffers of struct sd_trainables; row-major as shape */
    struct sd_pack *packs;
    const float *columns[2];        /* reserved for merged adapters */
};

/* sd_param_new - a parameter over raw bytes that the caller keeps alive; lives in scope s. */
struct sd_param *sd_param_new(struct sd_scope *s, const char *path, enum sd_dtype dtype, int ndim, const int64_t *shape,
                              const void *raw);

/* sd_param_reserve - announce, when a plan is prepared, that form `key` of `bytes` bytes will be wanted; bytes of forms
 * already reserved or made are not counted again.  sd_param_packed - the form, made by make(out, p, arg) on first use
 * (64-byte aligned).  key is unique per layout, e.g. "onednn:fwd:<descriptor hash>". */
void  sd_param_reserve(struct sd_param *p, const char *key, size_t bytes);
void *sd_param_packed(struct sd_param *p, const char *key, size_t bytes,
                      void (*make)(void *out, const struct sd_param *p, const void *arg), const void *arg);

/* sd_param_values - row-major `real` values: the trainable's own, the mapping itself where it is aligned F32, else a
 * converted copy (a form with key "values"; sd_param_reserve_values announces it). */
const real *sd_param_values(struct sd_param *p);
void        sd_param_reserve_values(struct sd_param *p);
/* sd_param_convert - raw (or trainable) values to real, elements [begin, begin+count), for packers. */
void        sd_param_convert(real *out, const struct sd_param *p, size_t begin, size_t count);
/* sd_param_drop - forget the packed forms (weights were changed, or memory is wanted back). */
void        sd_param_drop(struct sd_param *p);

/* Totals over all parameters of the program, for --plan and reports. */
size_t sd_param_bytes_reserved(void);
size_t sd_param_bytes_made(void);

#endif
