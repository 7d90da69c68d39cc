/* norm.cuh - what group_norm.cu and layer_norm.cu share: weights of any type or none, and their gradients' last sum. */
#ifndef SD_NORM_CUH
#define SD_NORM_CUH

#include "pointwise.cuh"

namespace sd {

template <int N, class T> static __device__ inline void
take_as_floats(float to[N], const T *x, int64_t left, bool whole)
{
    T v[N];

    take<N>(v, x, left, whole);
#pragma unroll
    for (int j = 0; j < N; j++)
        to[j] = to_float(v[j]);
}

/* weights i, i + 1, ... of w, `absent` where there is none */
template <int N> static __device__ inline void
take_weights(float to[N], const struct operand &w, int64_t i, int64_t left, float absent)
{
    bool whole = (uintptr_t)w.p % 16 == 0 && i % N == 0;

    if (!w.p) {
#pragma unroll
        for (int j = 0; j < N; j++)
            to[j] = absent;
    } else if (w.dtype == SD_F32)
        take_as_floats<N>(to, static_cast<const float *>(w.p) + i, left, whole);
    else if (w.dtype == SD_BF16)
        take_as_floats<N>(to, static_cast<const bf16 *>(w.p) + i, left, whole);
    else
        take_as_floats<N>(to, static_cast<const f16 *>(w.p) + i, left, whole);
}

/* d[c] (add: +)= sum over i of part[i, c, which], in order */
static __global__ void
weight_gradient_kernel(struct operand d, const float *part, int64_t count, int C, int which, bool add)
{
    SD_BEGIN();
    int64_t c = (int64_t)blockIdx.x * POINT_THREADS + threadIdx.x;
    double sum = 0;

    if (c >= C)
        return;
    for (int64_t i = 0; i < count; i++)
        sum += part[(i * C + c) * 2 + which];
    write_operand(const_cast<void *>(d.p), d.dtype, c, add ? read_operand(d, c) + (float)sum : (float)sum);
}

/* the gradients of weight (in[1]) and bias (in[2]) from part [count, C, 2]: of the bias, of the weight */
static inline void
weight_gradients(const struct sd_node *n, const float *part, int64_t count, int C)
{
    for (int i = 1; i < 3; i++)
        if (n->din[i])
            SD_LAUNCH(device_of(n), weight_gradient_kernel, (unsigned)ceil_div(C, POINT_THREADS), POINT_THREADS, 0,
                      operand_of(n->din[i]), part, count, C, 2 - i, !n->din_store[i]);
}

}   /* namespace sd */

#endif
