/* gelu, in vectors; formulas in gelu.c. */
#include "simd.h"

void
SD_V(gelu_forward)(struct sd_node *n)
{
    const float *x = n->in[0]->data;
    float *y = n->out->data;
    int64_t count = (int64_t)n->out->numel;

#pragma omp parallel for schedule(static) if (count > SD_CHUNK)
    for (int64_t from = 0; from < count; from += SD_CHUNK)
        for (int64_t i = from; i < count && i < from + SD_CHUNK; i += VW)
            v_put(y + i, v_gelu(v_get(x + i, count - i)), count - i);
}

void
SD_V(gelu_backward)(struct sd_node *n)
{
    const float *x = n->in[0]->data, *dy = n->dout->data;
    float *dx = n->din[0]->data;
    int64_t count = (int64_t)n->out->numel;
    bool store = n->din_store[0];

#pragma omp parallel for schedule(static) if (count > SD_CHUNK)
    for (int64_t from = 0; from < count; from += SD_CHUNK)
        for (int64_t i = from; i < count && i < from + SD_CHUNK; i += VW) {
            vf d = v_get(dy + i, count - i) * v_gelu_slope(v_get(x + i, count - i));

            v_put(dx + i, store ? d : v_get(dx + i, count - i) + d, count - i);
        }
}
