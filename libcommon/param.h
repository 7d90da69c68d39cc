/* param.h - parameters: weights that outlive the graphs that use them.
 *
 * One rule: the raw bytes stay as the file has them (mapped, always readable); every other form (converted, packed for a
 * kernel) is made once on first use, shared by all graphs, and counted by --plan before it is made. */
#ifndef SD_PARAM_H
#define SD_PARAM_H

#include "graph.h"
#include "real.h"

#ifdef __cplusplus
extern "C" {
#endif

struct sd_pack;
struct sd_param_form;
struct sd_projections;          /* ops.h */

struct sd_param {
    const char *path;               /* "unet.conv_in.weight" */
    struct sd_scope *scope;         /* that it dies with */
    enum sd_dtype dtype;            /* of raw */
    int ndim;
    int64_t shape[SD_MAX_DIMS];     /* as in the file: Linear [out,in], conv [out,in,kh,kw] */
    size_t numel;
    const void *raw;                /* in dtype; may be unaligned; NULL for trainables */
    bool trainable;
    real *value, *grad;             /* trainable: parts of the flat buffers of struct sd_trainables; row-major as shape */
    struct sd_pack *packs;
    struct sd_param_form *forms;    /* on the device */
    float *device_value, *device_grad;      /* trainable: parts of the flat buffers on the device */
    void *device_shadow;                    /* and of one as shadow_dtype, in the file's order; NULL for none */
    enum sd_dtype shadow_dtype;
    const struct sd_projections *joined;    /* stands for all of these; has no values of its own */
    bool member;                            /* of a joined one */
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

/* sd_param_join - the one parameter that stands for these, for all graphs; trainable when some `down` or `up` is.  It has no
 * values (shape [0]); its gradients are those of its members.  It dies with the first of them. */
struct sd_param *sd_param_join(const struct sd_projections *a);
/* For param.c: the joined ones that p belongs to are forgotten on the device; and freed. */
void sd_param_forget_joined(struct sd_param *p, bool dies);

/* Totals over all parameters of the program, for --plan and reports; reserved: on a device too. */
size_t sd_param_bytes_reserved(void);
size_t sd_param_bytes_made(void);

/* Forms on a device: dense, in dtype, in the file's order (SD_ROWS) or, for convolutions, [out, kh, kw, in] (SD_TAPS) or, for those
 * over a doubled picture, [in, kh + 1, kw + 1, out], sums of what falls on one pixel, rounded once (SD_TAPS_UPSAMPLED).
 * sd_param_want - announced when a plan is prepared; counted once.  sd_param_on - where it lies, from the bind on.
 * A trainable's F32 rows are its device_value itself, rows of shadow_dtype its device_shadow, which whoever set it keeps true;
 * other forms of trainables are made again by sd_params_refresh (recordable), which is for all trainables when all have
 * their values: a joined parameter's one form, that of kernels/projections.h, is made again with the first of its own. */
enum sd_param_layout { SD_ROWS, SD_TAPS, SD_TAPS_UPSAMPLED };
void  sd_param_want(struct sd_param *p, enum sd_dtype dtype, enum sd_param_layout layout);
void *sd_param_on(const struct sd_param *p, enum sd_dtype dtype, enum sd_param_layout layout);
/* sd_params_upload - make all forms that are wanted and not there yet: one allocation for those of each scope, since they die
 * together; it goes with the last of its forms. */
void  sd_params_upload(struct sd_param *const *p, size_t count, struct sd_device *d);
void  sd_params_refresh(struct sd_param *const *p, size_t count, struct sd_device *d);
void  sd_param_forget(struct sd_param *p);      /* the forms on the device */
bool  sd_param_is_on_device(const struct sd_param *p);         /* some form: whoever asked for it may read it at any time */
size_t sd_param_device_bytes(void);             /* of all wanted forms of the program */
size_t sd_param_device_scratch(void);           /* the most of the workspace that uploading one of them needs */
/* What is to be converted goes through the workspace in pieces.  sd_param_piece - how many elements at a time, a multiple of
 * `unit`: what sd_upload_bytes have room for (16 MiB; tests ask for less), but at least one unit.  sd_param_send - elements
 * [begin, begin+count) of a frozen parameter go to `to` on the device, in the dtype that is returned: their own where the device
 * knows it, else F32; sd_param_sent_size bytes each. */
extern size_t sd_upload_bytes;
size_t sd_param_piece(const struct sd_param *p, size_t unit);
size_t sd_param_sent_size(const struct sd_param *p);
enum sd_dtype sd_param_send(const struct sd_param *p, struct sd_device *d, void *to, size_t begin, size_t count);

#ifdef __cplusplus
}
#endif

#endif
