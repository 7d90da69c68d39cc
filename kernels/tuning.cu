/* tuning: how far a library's results are from our own, where they lie.  Reads each element of the three once: bound by memory;
 * sums of squares in double, of a thread, then of a block, then of all blocks on the host, in a fixed order. */
#include "tuning.h"

#include "cuda.h"

using namespace sd;

namespace {

enum { THREADS = 256, MOST_BLOCKS = 512 };

/* Of one block */
struct sums {
    double apart, all;          /* squares of found - expected, of expected */
    double other;               /* elements of `again` with other bits */
};
struct room { sums at[THREADS]; };

/* the bits of an element, whatever it is */
__device__ inline uint32_t bits_of(float x) { return bits_of_float(x); }
__device__ inline uint32_t bits_of(bf16 x) { return x.bits; }
__device__ inline uint32_t bits_of(f16 x) { return x.bits; }

template <int N, class T> __device__ inline void
compare(sums *s, const vec<T, N> &found, const vec<T, N> &again, const vec<T, N> *expected)
{
#pragma unroll
    for (int i = 0; i < N; i++) {
        s->other += bits_of(found.at[i]) != bits_of(again.at[i]);
        if (expected) {
            double e = to_float(expected->at[i]), a = to_float(found.at[i]) - e;

            s->apart += a * a;
            s->all += e * e;
        }
    }
}

template <class T> __global__ void
__launch_bounds__(THREADS)
distance_kernel(sums *to, const T *found, const T *again, const T *expected, int64_t count)
{
    SD_BEGIN();
    constexpr int N = wide<T>::count;
    SD_SHARED(struct room, s);
    int64_t step = (int64_t)gridDim.x * THREADS, at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    sums sum = { 0, 0, 0 };

    for (int64_t i = at; i < count / N; i += step) {
        vec<T, N> e = {};

        if (expected)
            e = load<N>(expected + i * N);
        compare<N>(&sum, load<N>(found + i * N), load<N>(again + i * N), expected ? &e : nullptr);
    }
    for (int64_t i = count / N * N + at; i < count; i += step) {
        vec<T, 1> e = {};

        if (expected)
            e.at[0] = expected[i];
        compare<1>(&sum, vec<T, 1>{ { found[i] } }, vec<T, 1>{ { again[i] } }, expected ? &e : nullptr);
    }
    s.at[threadIdx.x] = sum;
    for (int half = THREADS / 2; half; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) {
            sums &a = s.at[threadIdx.x];
            const sums &b = s.at[threadIdx.x + half];

            a.apart += b.apart;
            a.all += b.all;
            a.other += b.other;
        }
    }
    if (threadIdx.x == 0)
        to[blockIdx.x] = s.at[0];
}

}   /* namespace */

double
tuning_distance(struct sd_device *d, const void *found, const void *again, const void *expected, enum sd_dtype dtype, size_t count)
{
    sums part[MOST_BLOCKS], sum = { 0, 0, 0 }, *to = static_cast<sums *>(sd_device_workspace(d, sizeof part));
    int64_t blocks = ceil_div((int64_t)count, THREADS * 32);

    if (!count)
        return 0;
    blocks = blocks < (int64_t)MOST_BLOCKS ? blocks : (int64_t)MOST_BLOCKS;
    SD_BY_DTYPE(dtype, T, SD_LAUNCH(d, distance_kernel<T>, (unsigned)blocks, THREADS, sizeof(struct room), to,
                                    static_cast<const T *>(found), static_cast<const T *>(again), static_cast<const T *>(expected),
                                    (int64_t)count));
    sd_device_read(d, part, to, (size_t)blocks * sizeof *part);
    for (int64_t i = 0; i < blocks; i++) {
        sum.apart += part[i].apart;
        sum.all += part[i].all;
        sum.other += part[i].other;
    }
    if (sum.other > 0)
        return INFINITY;
    if (!expected || !isfinite(sum.all))
        return 0;
    return sum.all > 0 ? sqrt(sum.apart / sum.all) : sum.apart > 0 ? INFINITY : sum.apart;      /* NaN stays NaN */
}
