/* elementwise_simd.h - SD_ELEMENTWISE(op): op_forward and op_backward in vectors from v_op and v_op_slope of simd.h;
 * formulas stand in <op>.c. */
#ifndef SD_ELEMENTWISE_SIMD_H
#define SD_ELEMENTWISE_SIMD_H

#include "simd.h"

#define SD_ELEMENTWISE(op)                                                                                             \
    void                                                                                                               \
    SD_V(op##_forward)(struct sd_node *n)                                                                              \
    {                                                                                                                  \
        const float *x = n->in[0]->data;                                                                               \
        float *y = n->out->data;                                                                                       \
        int64_t count = (int64_t)n->out->numel;                                                                        \
                                                                                                                       \
        _Pragma("omp parallel for schedule(static) if (count > SD_CHUNK)")                                             \
        for (int64_t from = 0; from < count; from += SD_CHUNK)                                                         \
            for (int64_t i = from; i < count && i < from + SD_CHUNK; i += VW)                                          \
                v_put(y + i, v_##op(v_get(x + i, count - i)), count - i);                                              \
    }                                                                                                                  \
                                                                                                                       \
    void                                                                                                               \
    SD_V(op##_backward)(struct sd_node *n)                                                                             \
    {                                                                                                                  \
        const float *x = n->in[0]->data, *dy = n->dout->data;                                                          \
        float *dx = n->din[0]->data;                                                                                   \
        int64_t count = (int64_t)n->out->numel;                                                                        \
        bool store = n->din_store[0];                                                                                  \
                                                                                                                       \
        _Pragma("omp parallel for schedule(static) if (count > SD_CHUNK)")                                             \
        for (int64_t from = 0; from < count; from += SD_CHUNK)                                                         \
            for (int64_t i = from; i < count && i < from + SD_CHUNK; i += VW) {                                        \
                vf d = v_get(dy + i, count - i) * v_##op##_slope(v_get(x + i, count - i));                             \
                                                                                                                       \
                v_put(dx + i, store ? d : v_get(dx + i, count - i) + d, count - i);                                    \
            }                                                                                                          \
    }

#endif
