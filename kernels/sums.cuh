/* sums.cuh - long sums in double, in a tree that the count alone fixes.
 *
 * A block sums SUM_CHUNK neighbouring items: thread t takes items t, t + SUM_THREADS, ... in turn; threads are added by halves.
 * Then one block sums the chunks the same way.  Bound by memory; the second kernel by its launch. */
#ifndef SD_SUMS_CUH
#define SD_SUMS_CUH

#include "cuda.h"

namespace sd {

enum { SUM_THREADS = 256, SUM_CHUNK = 4096 };

struct sum_room { double warp[SUM_THREADS / WARP]; };

/* every thread of the block gets the result */
static __device__ inline double
sum_threads(double x, struct sum_room &room)
{
    double sum = 0;

    for (int i = WARP / 2; i; i /= 2)
        x += __shfl_xor_sync(ALL_LANES, x, i);
    if (threadIdx.x % WARP == 0)
        room.warp[threadIdx.x / WARP] = x;
    __syncthreads();
    for (int i = 0; i < SUM_THREADS / WARP; i++)
        sum += room.warp[i];
    __syncthreads();
    return sum;
}

/* partial[b, chunk] = sum of f(b, i) */
template <class F> static __global__ void
__launch_bounds__(SUM_THREADS)
chunk_sums_kernel(double *partial, int64_t count, F f)
{
    SD_BEGIN();
    SD_SHARED(struct sum_room, room);
    int64_t first = (int64_t)blockIdx.x * SUM_CHUNK, b = blockIdx.y;
    double sum = 0;

#pragma unroll
    for (int k = 0; k < SUM_CHUNK; k += SUM_THREADS) {
        int64_t i = first + k + threadIdx.x;

        if (i < count)
            sum += f(b, i);
    }
    sum = sum_threads(sum, room);
    if (threadIdx.x == 0)
        partial[b * gridDim.x + blockIdx.x] = sum;
}

/* g(b, sum of partial[b, all]) */
template <class G> static __global__ void
__launch_bounds__(SUM_THREADS)
finish_sums_kernel(const double *partial, int64_t chunks, G g)
{
    SD_BEGIN();
    SD_SHARED(struct sum_room, room);
    int64_t b = blockIdx.x;
    double sum = 0;

    for (int64_t i = threadIdx.x; i < chunks; i += SUM_THREADS)
        sum += partial[b * chunks + i];
    sum = sum_threads(sum, room);
    if (threadIdx.x == 0)
        g(b, sum);
}

/* Doubles of scratch for `batch` sums of `count` items; at least one chunk each, so that an empty sum is 0. */
static inline int64_t sum_chunks(int64_t count) { return count > SUM_CHUNK ? ceil_div(count, SUM_CHUNK) : 1; }

/* sums - g(b, sum of f(b, i) for i < count) for b < batch (at most 65535). */
template <class F, class G> static inline void
sums(struct sd_device *d, double *partial, int64_t batch, int64_t count, F f, G g)
{
    int64_t chunks = sum_chunks(count);

    if (!batch)
        return;
    SD_LAUNCH(d, chunk_sums_kernel<F>, dim3((unsigned)chunks, (unsigned)batch), SUM_THREADS, sizeof(struct sum_room), partial, count, f);
    SD_LAUNCH(d, finish_sums_kernel<G>, (unsigned)batch, SUM_THREADS, sizeof(struct sum_room), (const double *)partial, chunks, g);
}

}   /* namespace sd */

#endif
