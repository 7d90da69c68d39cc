/* projections_layout - where the sections of a joined parameter's form lie (projections.h). */
#include "projections_products.h"

enum { MOST_BESIDE = 256 };     /* ranks of all parts: projections.cu has the reason */

static size_t
section(size_t *at, int64_t elements, size_t size)
{
    size_t begin = *at;

    *at += ((size_t)elements * size + 255) / 256 * 256;
    return begin;
}

void
projections_layout(struct projections_layout *l, const struct sd_projections *a, enum sd_dtype dtype)
{
    size_t at = 0, size = sd_dtype_size(dtype);
    int64_t most = (most_rank(a) + 7) / 8 * 8;

    *l = (struct projections_layout){ .dtype = dtype, .in = a->part[0].weight->shape[1] };
    for (int i = 0; i < a->parts; i++) {
        l->out += projection_out(&a->part[i]);
        l->rank += projection_rank(&a->part[i]);
        l->biased |= a->part[i].bias != NULL;
    }
    l->padded = (l->rank + 7) / 8 * 8;
    l->beside = l->padded <= MOST_BESIDE ? l->padded : 0;
    l->pitch = l->in + l->beside;
    l->wide = l->beside ? 0 : most;
    l->weight = section(&at, l->out * l->pitch, size);
    l->down = section(&at, l->padded * l->in, size);
    l->up = section(&at, l->out * l->wide, size);
    l->scale = section(&at, l->padded, sizeof(float));
    l->bias = l->bias_d = section(&at, l->biased ? l->out : 0, sizeof(float));
    if (dtype != SD_F32)
        l->bias_d = section(&at, l->biased ? l->out : 0, size);
    l->bytes = at;
}
