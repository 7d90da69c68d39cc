/* projections.h - what several projections over the same x are on a device: one block of bytes, the form of a joined
 * parameter.
 *
 *     weight  [out, in + beside]   the weights below one another; behind row o of part p its row of `up`, in the
 *                                  columns of part p, zeros in those of the others.  beside: `padded`, or 0 where `up`
 *                                  lies apart
 *     down    [padded, in]         scale_p down_p below one another, then zeros
 *     up      [out, wide]          where nothing lies beside: rows of `up`, padded to the largest rank
 *     scale   [padded] F32         scale_p, for the gradient of down
 *     bias    [out] F32, and in dtype where that is another; zeros for parts without
 *
 * One rule: made whole by projections_upload; down and up of trainables again by projections_refresh (recordable), of many
 * forms together. */
#ifndef SD_PROJECTIONS_H
#define SD_PROJECTIONS_H

#include "device.h"
#include "op.h"
#include "ops.h"

#ifdef __cplusplus
extern "C" {
#endif

struct projections_layout {
    enum sd_dtype dtype;
    int64_t in, out;            /* of all parts */
    int64_t rank, padded;       /* of all parts; to a multiple of 8 */
    int64_t beside, pitch;      /* columns behind the weights; of a row of them in all */
    int64_t wide;               /* pitch of up, 0: beside */
    bool biased;
    size_t weight, down, up, scale, bias, bias_d, bytes;    /* places of the sections */
};
static inline int64_t projection_out(const struct sd_projection *p) { return p->weight->shape[0]; }
static inline int64_t projection_rank(const struct sd_projection *p) { return p->down ? p->down->shape[0] : 0; }
/* projections_backward_flops - sets n->backward_flops for the wanted gradients: wherever they are computed. */
void projections_backward_flops(struct sd_node *n);
void projections_layout(struct projections_layout *l, const struct sd_projections *a, enum sd_dtype dtype);
void projections_upload(struct sd_device *d, void *form, enum sd_dtype dtype, const struct sd_projections *a);
struct projections_form {
    void *form;
    enum sd_dtype dtype;
    const struct sd_projections *parts;
};
void projections_refresh(struct sd_device *d, const struct projections_form *forms, size_t count);

#ifdef __cplusplus
}
#endif
#endif
