/* group_norm of small pictures, one launch each way: a block has one group of one sample and keeps it in registers.
 * Formulas: group_norm.c; the way of larger pictures: group_norm.cu.
 *
 * A block of at most 640 threads of 64 bytes holds 40 KB: at 16 bits 20480 elements, which is 8 x 8 and 16 x 16 of up to 2560
 * channels and 32 x 32 of up to 640 in 32 groups.  A thread has a piece of N neighbouring channels (16, 8, 4 or 2 bytes: the most
 * that divides a group and where x ends) of every lanes-th pixel; a piece never crosses the border between x and what lies beside
 * it, a group may.  All its loads are under way at once, of the gradient half of them: there it keeps g, in float, so that SiLU is
 * gone through once, and reads x again for dx, from L1; x too would not fit 96 registers.
 * What it costs (H200, calculated): a block's 40 KB come at some 60 bytes/ns in 0.7 us and leave in as much, 2 instructions of the
 * special unit an element for SiLU, 8 elements a cycle, are 1.5 us beside the stores; the reductions are 0.2 us.  Of one sample 32
 * blocks use a quarter of the processors, so 40 KB with SiLU take some 1.1 us longer than spread over all, and spare a launch, 1.5
 * to 2.5 us with its reading all again; a group of 5 to 20 KB, as most are, loses 0.1 to 0.6 us.  More bytes would lose what they
 * spare.  How many blocks there are does not matter: fewer have less to do in all.
 * Sums: by thread in order of pixels, then in a tree, the values' about the group's first value, the squares about the mean; the
 * cut hangs on the shape alone. */
#include "group_norm_cuda.cuh"

using namespace sd;

namespace {

enum { THREADS = 640, BYTES = 64 };     /* of a block; of a thread */

struct cut {
    int P, C, groups, size;     /* pixels of a sample; channels, of a group */
    int border;                 /* first channel beside x */
    int width, across, lanes;   /* channels of a piece, pieces of a pixel, pixels side by side in a block */
};

struct room { float a[WARP], b[WARP]; };

template <class T, int N> struct pieces { static const int count = BYTES / (N * (int)sizeof(T)); };      /* of N channels, of a thread */

/* where a thread's pieces lie: channel c of the whole, channel `at` of its tensor, whose pixels lie `wide` elements apart */
struct seat { int lane, c, at, wide; bool beside; };

/* lane P, which has no pixel: idle */
template <int N> __device__ inline struct seat
seat_of(const struct cut &k)
{
    struct seat s;
    int t = threadIdx.x;

    s.lane = t / k.across < k.lanes ? t / k.across : k.P;
    s.c = blockIdx.x * k.size + t % k.across * N;
    s.beside = s.c >= k.border;
    s.at = s.beside ? s.c - k.border : s.c;
    s.wide = s.beside ? k.C - k.border : k.border;
    return s;
}

/* the thread's channels of the sample's first pixel; NULL: the piece is not there (a gradient that is not wanted) */
template <class T> __device__ inline T *
at_seat(T *x, T *beside, const struct seat &s, const struct cut &k)
{
    T *piece = s.beside ? beside : x;

    return piece ? piece + (int64_t)blockIdx.y * k.P * s.wide + s.at : NULL;
}

/* a sample has at most 20480 x 64 elements: places in it are ints */
template <int K, int N, class T> __device__ inline void
take_pieces(few<N, T> v[K], const T *x, int wide, int lane, const struct cut &k, bool whole)
{
#pragma unroll
    for (int q = 0; q < K; q++)
        if (lane + q * k.lanes < k.P)
            take(v[q], x + (lane + q * k.lanes) * wide, N, whole);
}

/* -- forward ---------------------------------------------------------------------------------------------------------- */

/* mean and 1/std of the group in every thread */
template <int K, int N, class T> __device__ inline void
moments(float *mean, float *inverse, const few<N, T> v[K], float anchor, float eps, int lane, const struct cut &k, float *room)
{
    float sum = 0, square = 0, total = (float)(k.P * k.size);

#pragma unroll
    for (int q = 0; q < K; q++)
        if (lane + q * k.lanes < k.P)
#pragma unroll
            for (int j = 0; j < N; j++)
                sum += v[q][j] - anchor;
    *mean = anchor + block_sum(sum, room) / total;
#pragma unroll
    for (int q = 0; q < K; q++)
        if (lane + q * k.lanes < k.P)
#pragma unroll
            for (int j = 0; j < N; j++) {
                float e = v[q][j] - *mean;

                square += e * e;
            }
    *inverse = 1.0f / sqrtf(block_sum(square, room) / total + eps);
}

/* saved[b, g] = mean, 1/std;  block x, y: group, sample */
template <int N, class T> __global__ void
__launch_bounds__(THREADS)
small_forward_kernel(T *y, float *saved, struct source<T> from, struct operand weight, struct operand bias, struct cut k, float eps,
                     bool silu, bool whole)
{
    SD_BEGIN();
    SD_SHARED(struct room, room);
    const int K = pieces<T, N>::count;
    struct seat s = seat_of<N>(k), first = s;
    raw_weights<N> raw_by, raw_plus;
    float mean, inverse, by[N], plus[N];
    few<N, T> v[K];

    take_pieces<K>(v, at_seat(from.x, from.beside, s, k), s.wide, s.lane, k, whole);
    take_weights(&raw_by, weight, s.c, N);
    take_weights(&raw_plus, bias, s.c, N);
    first.c = blockIdx.x * k.size;
    first.beside = first.c >= k.border;
    first.at = first.beside ? first.c - k.border : first.c;
    first.wide = first.beside ? k.C - k.border : k.border;
    moments<K>(&mean, &inverse, v, to_float(*at_seat(from.x, from.beside, first, k)), eps, s.lane, k, room.a);
    if (threadIdx.x == 0) {
        float *to = saved + ((int64_t)blockIdx.y * k.groups + blockIdx.x) * 2;

        to[0] = mean;
        to[1] = inverse;
    }
    weights_of(by, raw_by, weight, 1);
    weights_of(plus, raw_plus, bias, 0);
    y += (int64_t)blockIdx.y * k.P * k.C + s.c;
#pragma unroll
    for (int q = 0; q < K; q++)
        if (s.lane + q * k.lanes < k.P) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                float z = (v[q][j] - mean) * (inverse * by[j]) + plus[j];

                v[q].set(j, from_float<T>(silu ? z * sigmoid<T>(z) : z));
            }
            give(y + (s.lane + q * k.lanes) * k.C, v[q], N, whole);
        }
}

/* -- gradient --------------------------------------------------------------------------------------------------------- */

/* two sums of a block at once; every thread gets both.  The room is not free again until the next barrier. */
__device__ inline void
block_sums(float *a, float *b, struct room *room)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;

    *a = warp_sum(*a);
    *b = warp_sum(*b);
    if (lane == 0) {
        room->a[warp] = *a;
        room->b[warp] = *b;
    }
    __syncthreads();
    *a = warp_sum(lane < warps ? room->a[lane] : 0);
    *b = warp_sum(lane < warps ? room->b[lane] : 0);
}

template <int N, class T> __global__ void
__launch_bounds__(THREADS)
small_gradient_kernel(struct target<T> to, const T *dy, struct source<T> from, const float *saved, struct operand weight,
                      struct operand bias, struct cut k, bool silu, bool whole)
{
    SD_BEGIN();
    SD_SHARED(struct room, room);
    const int K = pieces<T, N>::count, H = K / 2;       /* pieces of x and dy under way at once: as many bytes as forward */
    struct seat s = seat_of<N>(k);
    const T *x = at_seat(from.x, from.beside, s, k);
    T *dx = at_seat(to.x, to.beside, s, k);
    few<N, T> v[H], d[H] = {};
    raw_weights<N> raw_by, raw_plus;
    const float *stat = saved + ((int64_t)blockIdx.y * k.groups + blockIdx.x) * 2;
    float mean = stat[0], inverse = stat[1], by[N], plus[N], g[K][N], sum = 0, sum_n = 0, total = (float)(k.P * k.size);
    bool add = s.beside ? to.add_beside : to.add_x;

    dy += (int64_t)blockIdx.y * k.P * k.C + s.c;
    take_weights(&raw_by, weight, s.c, N);
    take_weights(&raw_plus, bias, s.c, N);
#pragma unroll
    for (int i = 0; i < K; i += H) {
        int lane = s.lane + i * k.lanes;

        take_pieces<H>(v, x, s.wide, lane, k, whole);
        take_pieces<H>(d, dy, k.C, lane, k, whole);
        if (i == 0) {
            weights_of(by, raw_by, weight, 1);
            weights_of(plus, raw_plus, bias, 0);
        }
#pragma unroll
        for (int q = 0; q < H; q++)
            if (lane + q * k.lanes < k.P)
#pragma unroll
                for (int j = 0; j < N; j++) {
                    float n = (v[q][j] - mean) * inverse, dz = d[q][j];

                    if (silu)
                        dz = through_silu<T>(dz, n * by[j] + plus[j]);
                    g[i + q][j] = dz * by[j];
                    sum += g[i + q][j];
                    sum_n += g[i + q][j] * n;
                }
    }
    block_sums(&sum, &sum_n, &room);
    sum /= total;
    sum_n *= inverse / total;
    if (!dx)
        return;

#pragma unroll
    for (int i = 0; i < K; i += H) {
        int lane = s.lane + i * k.lanes;

        take_pieces<H>(v, x, s.wide, lane, k, whole);
        if (add)
            take_pieces<H>(d, (const T *)dx, s.wide, lane, k, whole);
#pragma unroll
        for (int q = 0; q < H; q++)
            if (lane + q * k.lanes < k.P) {
#pragma unroll
                for (int j = 0; j < N; j++) {
                    float e = (g[i + q][j] - sum - (v[q][j] - mean) * sum_n) * inverse;

                    v[q].set(j, from_float<T>(add ? d[q][j] + e : e));
                }
                give(dx + (lane + q * k.lanes) * s.wide, v[q], N, whole);
            }
    }
}

/* -- host ------------------------------------------------------------------------------------------------------------- */

/* false: not small.  More groups than group_norm.cu puts together in a block stay there: no model has them, and the tests reach what
 * it does for pictures of 4 million elements that way. */
bool
small_cut(struct cut *k, const struct sd_node *n)
{
    const struct sd_tensor *x = n->in[0], *beside = n->in[BESIDE];
    int64_t P = sd_rows(x) / x->shape[0], border = sd_cols(x), C = border + (beside ? sd_cols(beside) : 0);
    int64_t groups = attributes_of(n)->groups, size = C / groups, across, lanes;
    int64_t bytes = (int64_t)sd_dtype_size(x->dtype), width = 16 / bytes;

    while (size % width || border % width || (C - border) % width)
        width /= 2;
    across = size / width;
    if (across > THREADS || groups > FEW_GROUPS)
        return false;
    lanes = THREADS / across;
    if (P > lanes * (BYTES / (width * bytes)))
        return false;
    if (lanes > P)
        lanes = P;
    *k = { (int)P, (int)C, (int)groups, (int)size, (int)border, (int)width, (int)across, (int)lanes };
    return true;
}

bool
aligned(const struct sd_tensor *x, size_t bytes)
{
    return !x || (uintptr_t)x->data % bytes == 0;
}

dim3 grid_of(const struct sd_node *n, const struct cut &k) { return dim3((unsigned)k.groups, (unsigned)n->in[0]->shape[0]); }
unsigned threads_of(const struct cut &k) { return (unsigned)(ceil_div(k.across * k.lanes, WARP) * WARP); }

template <int N, class T> void
forward(const struct sd_node *n, const struct cut &k)
{
    const struct attributes *a = attributes_of(n);
    bool whole = aligned(n->in[0], N * sizeof(T)) && aligned(n->in[BESIDE], N * sizeof(T)) && aligned(n->out, N * sizeof(T));

    if constexpr (N > 1)
        if (k.width < N)
            return forward<N / 2, T>(n, k);
    SD_LAUNCH(device_of(n), (small_forward_kernel<N, T>), grid_of(n, k), threads_of(k), sizeof(struct room), data<T>(n->out),
              data<float>(n->saved[0]), source_of<T>(n), operand_of(n->in[1]), operand_of(n->in[2]), k, (float)a->eps, a->silu, whole);
}

template <int N, class T> void
backward(const struct sd_node *n, const struct cut &k)
{
    bool whole = aligned(n->dout, N * sizeof(T));

    for (int i = 0; i <= BESIDE; i += BESIDE)
        whole = whole && aligned(n->in[i], N * sizeof(T)) && aligned(n->din[i], N * sizeof(T));
    if constexpr (N > 1)
        if (k.width < N)
            return backward<N / 2, T>(n, k);
    SD_LAUNCH(device_of(n), (small_gradient_kernel<N, T>), grid_of(n, k), threads_of(k), sizeof(struct room), target_of<T>(n),
              data<const T>(n->dout), source_of<T>(n), data<const float>(n->saved[0]), operand_of(n->in[1]), operand_of(n->in[2]), k,
              attributes_of(n)->silu, whole);
}

}   /* namespace */

bool
group_norm_small_forward(const struct sd_node *n)
{
    struct cut k;

    if (!small_cut(&k, n))
        return false;
    SD_BY_DTYPE(n->out->dtype, T, forward<points<T>(), T>(n, k));
    return true;
}

bool
group_norm_small_backward(const struct sd_node *n)
{
    struct cut k;

    if (n->din[1] || n->din[2] || gradients_overlap(n) || !small_cut(&k, n))
        return false;
    SD_BY_DTYPE(n->out->dtype, T, backward<points<T>(), T>(n, k));
    return true;
}
