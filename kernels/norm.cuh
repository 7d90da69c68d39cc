/* norm.cuh - what group_norm.cu and layer_norm.cu share: weights of any type or none, and their gradients' last sum. */
#ifndef SD_NORM_CUH
#define SD_NORM_CUH

#include "pointwise.cuh"

namespace sd {

template <int N, class T> static __device__ inline void
take_as_floats(float to[N], const T *x, int64_t left, bool whole)
{
    few<N, T> v;

    take(v, x, left, whole);
#pragma unroll
    for (int j = 0; j < N; j++)
        to[j] = v[j];
}

/* N neighbours of a weight of any type, in the words that they lie in: asked for by take_weights(), waited for by weights_of() */
template <int N> struct raw_weights { uint32_t word[N]; };

template <int N, class T> static __device__ inline void
take_raw(raw_weights<N> *to, const T *x, int64_t left, bool whole)
{
    few<N, T> v;

    take(v, x, left, whole);
#pragma unroll
    for (int j = 0; j < v.WORDS; j++)
        to->word[j] = v.word[j];
}

/* weights i, i + 1, ... of w, of which `left` are there */
template <int N> static __device__ inline void
take_weights(raw_weights<N> *to, const struct operand &w, int64_t i, int64_t left)
{
    bool whole = (uintptr_t)w.p % 16 == 0 && i % N == 0;

    *to = {};
    if (w.p && w.dtype == SD_F32)
        take_raw(to, static_cast<const float *>(w.p) + i, left, whole);
    else if (w.p)               /* either type of 16 bits */
        take_raw(to, static_cast<const bf16 *>(w.p) + i, left, whole);
}

/* the same as floats; `absent` where there is none */
template <int N> static __device__ inline void
weights_of(float to[N], const raw_weights<N> &raw, const struct operand &w, float absent)
{
#pragma unroll
    for (int j = 0; j < N; j++) {
        uint16_t half = (uint16_t)(raw.word[j / 2] >> j % 2 * 16);

        to[j] = !w.p ? absent : w.dtype == SD_F32 ? float_of_bits(raw.word[j])
                : w.dtype == SD_BF16 ? to_float(bf16{ half }) : to_float(f16{ half });
    }
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
