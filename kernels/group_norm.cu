/* group_norm: CUDA twin of group_norm.c, where the formulas are.
 *
 * NHWC: a pixel's channels are neighbours, and a group's are some 4 to 80 of them, not always a multiple of 8.  So a thread has a
 * unit of N neighbouring channels (16 bytes) of every lanes-th pixel of a chunk, and keeps sums by channel; a group may have
 * channels of x and of what lies beside it, a unit has not.  Channels are put together to groups in shared memory, chunks by whoever
 * needs them, always in the same order: the cut hangs on the shape alone.
 *   forward    1. mean and sum of squares about it of each chunk and group   2. all chunks together, then y
 *   gradient   1. sums of g and g n of each chunk and group (and channel, when weights learn)   2. all chunks together, then dx
 * Step 2 of a small picture puts the chunks together in every block; of a large one (the VAE's) a kernel between does it once.
 * What a block can hold goes another way: group_norm_small.cu.
 * Squares are summed about the first pixel's value of the channel, then about means (Chan et al.): nothing cancels in f32.
 * Bound by memory: x is read twice (the second time from L2 up to some 40 MB) and y written once; the gradient reads x and dy
 * twice and writes dx.  SiLU costs an exp and a division an element, below the transfer's time. */
#include "group_norm_cuda.cuh"

using namespace sd;

namespace {

enum {
    THREADS = 256, WARPS = THREADS / WARP, BATCH = 4, PAIRS = 2,        /* pixels of a thread under way at once: of x; of x and dy */
    MAX_CHANNELS = 4096,
    FEW_CHUNKS = 64,        /* up to these, of FEW_GROUPS, step 2 puts the chunks together itself */
    MANY_CHUNKS = 2048      /* of 128 channels of 1024 x 1024 pixels: up to these, the kernel between reads each once */
};

/* How a picture is cut: a function of its shape. */
struct cut {
    int64_t B, P;           /* samples, pixels of each */
    int C, groups, size;    /* channels, of a group */
    int chunks, blocks;     /* of a sample: for the sums, for the results */
    int units, lanes;       /* units of N channels; pixels side by side in a block */
    int border, border_unit;        /* first channel and unit that lie beside x */
    int few;                /* not bool: no byte of an argument is left open */
};

struct sums_room { float a[MAX_CHANNELS], b[MAX_CHANNELS]; };      /* by lane and channel */
struct stat_room { float at[FEW_GROUPS][2]; };
struct join_room { float at[WARP]; };

/* where a unit lies: channels c .. of the whole, `left` of them in its piece, whose pixels lie `wide` elements apart */
struct spot { int c, left, wide; bool beside; };

template <int N> __device__ inline struct spot
spot_of(const struct cut &k, int unit)
{
    struct spot s;

    s.beside = unit >= k.border_unit;
    s.c = s.beside ? k.border + (unit - k.border_unit) * N : unit * N;
    s.wide = s.beside ? k.C - k.border : k.border;
    s.left = (s.beside ? k.C : k.border) - s.c;
    return s;
}

/* the unit's channels of pixel `first`; NULL: the piece is not there (a gradient that is not wanted) */
template <class T> __device__ inline T *
at_spot(T *x, T *beside, const struct spot &s, const struct cut &k, int64_t first)
{
    T *piece = s.beside ? beside : x;

    return piece ? piece + first * s.wide + (s.beside ? s.c - k.border : s.c) : NULL;
}

__device__ inline int64_t begin_of(int64_t P, int64_t i, int64_t pieces) { return P * i / pieces; }

/* of a group, in chunk i */
__device__ inline float
chunk_elements(const struct cut &k, int i)
{
    return (float)((begin_of(k.P, i + 1, k.chunks) - begin_of(k.P, i, k.chunks)) * k.size);
}

/* the thread's place: its first unit, its lane (>= lanes: idle), the distance to its next unit */
__device__ inline void
place(const struct cut &k, int *unit, int *lane, int *step)
{
    int t = threadIdx.x;

    *unit = k.units < THREADS ? t % k.units : t;
    *lane = k.units < THREADS ? t / k.units : 0;
    *step = k.units < THREADS ? k.units : (int)THREADS;
}

/* pixels of `count` that lane l of `lanes` has */
__device__ inline int64_t pixels_of(int64_t count, int l, int lanes) { return l < count ? (count - l + lanes - 1) / lanes : 0; }

/* Q pixels from p on, `lanes` apart, of those before `count`; they lie `wide` elements apart */
template <int Q, int N, class T> __device__ inline void
take_pixels(few<N, T> v[Q], const T *x, int wide, int64_t p, const struct cut &k, int64_t count, int left, bool whole)
{
#pragma unroll
    for (int q = 0; q < Q; q++)
        if (p + q * k.lanes < count)
            take(v[q], x + (p + q * k.lanes) * wide, left, whole);
}

/* -- forward ---------------------------------------------------------------------------------------------------------- */

/* part[b, chunk, g] = mean, sum of squares about it */
template <int N, class T> __global__ void
__launch_bounds__(THREADS, 2)
moments_kernel(float *part, struct source<T> from, struct cut k, bool whole)
{
    SD_BEGIN();
    SD_SHARED(struct sums_room, room);
    int64_t b = blockIdx.y, first = begin_of(k.P, blockIdx.x, k.chunks), count = begin_of(k.P, blockIdx.x + 1, k.chunks) - first;
    int unit, lane, step, warp = threadIdx.x / WARP, items = k.lanes * k.size;

    place(k, &unit, &lane, &step);
    for (; lane < k.lanes && unit < k.units; unit += step) {
        struct spot s = spot_of<N>(k, unit);
        const T *x = at_spot(from.x, from.beside, s, k, b * k.P + first);
        float start[N] = {}, sum[N] = {}, square[N] = {}, n = (float)pixels_of(count, lane, k.lanes);
        few<N, T> v[BATCH];

        if (lane < count)
            take_as_floats<N>(start, x + (int64_t)lane * s.wide, s.left, whole);
        for (int64_t p = lane; p < count; p += BATCH * k.lanes) {
            take_pixels<BATCH>(v, x, s.wide, p, k, count, s.left, whole);
#pragma unroll
            for (int q = 0; q < BATCH; q++)
                if (p + q * k.lanes < count)
#pragma unroll
                    for (int j = 0; j < N; j++) {
                        float e = v[q][j] - start[j];

                        sum[j] += e;
                        square[j] += e * e;
                    }
        }
#pragma unroll
        for (int j = 0; j < N; j++)
            if (j < s.left) {
                float mean = n > 0 ? sum[j] / n : 0;

                room.a[lane * k.C + s.c + j] = start[j] + mean;
                room.b[lane * k.C + s.c + j] = fmaxf(square[j] - sum[j] * mean, 0);
            }
    }
    __syncthreads();
    for (int g = warp; g < k.groups; g += WARPS) {          /* a warp, a group: the means' mean, then squares about it */
        float anchor = room.a[g * k.size], sum = 0, square = 0, mean;

        for (int i = threadIdx.x % WARP; i < items; i += WARP) {
            int l = i / k.size, at = l * k.C + g * k.size + i % k.size;

            if (l < count)
                sum += (float)pixels_of(count, l, k.lanes) * (room.a[at] - anchor);
        }
        mean = anchor + warp_sum(sum) / (float)(count * k.size);
        for (int i = threadIdx.x % WARP; i < items; i += WARP) {
            int l = i / k.size, at = l * k.C + g * k.size + i % k.size;
            float e = l < count ? room.a[at] - mean : 0;

            if (l < count)
                square += room.b[at] + (float)pixels_of(count, l, k.lanes) * e * e;
        }
        square = warp_sum(square);
        if (threadIdx.x % WARP == 0) {
            float *to = part + ((b * k.chunks + blockIdx.x) * k.groups + g) * 2;

            to[0] = mean;
            to[1] = square;
        }
    }
}

/* all chunks of one group, by MANY threads (a warp, or a block, whose room it is): mean and 1/std in each of them.  The first HELD
 * chunks of a thread are all asked for at once. */
template <int MANY, int HELD> __device__ inline void
join_moments(float *mean, float *inverse, const float *part, int64_t b, int g, const struct cut &k, float eps, struct join_room *room)
{
    const float *from = part + (b * k.chunks * k.groups + g) * 2;
    float anchor = from[0], sum = 0, square = 0, total = (float)(k.P * k.size), n[HELD];
    int first = threadIdx.x % MANY;
    vec<float, 2> held[HELD];

#pragma unroll
    for (int h = 0; h < HELD; h++) {
        int i = first + h * MANY;

        n[h] = i < k.chunks ? chunk_elements(k, i) : 0;
        held[h] = i < k.chunks ? load<2>(from + (int64_t)i * k.groups * 2) : vec<float, 2>{};
    }
#pragma unroll
    for (int h = 0; h < HELD; h++)
        sum += n[h] * (held[h].at[0] - anchor);
    for (int i = first + HELD * MANY; i < k.chunks; i += MANY)
        sum += chunk_elements(k, i) * (from[(int64_t)i * k.groups * 2] - anchor);
    *mean = anchor + (MANY == WARP ? warp_sum(sum) : block_sum(sum, room->at)) / total;
#pragma unroll
    for (int h = 0; h < HELD; h++) {
        float e = held[h].at[0] - *mean;

        square += held[h].at[1] + n[h] * e * e;
    }
    for (int i = first + HELD * MANY; i < k.chunks; i += MANY) {
        vec<float, 2> chunk = load<2>(from + (int64_t)i * k.groups * 2);
        float e = chunk.at[0] - *mean;

        square += chunk.at[1] + chunk_elements(k, i) * e * e;
    }
    *inverse = 1.0f / sqrtf((MANY == WARP ? warp_sum(square) : block_sum(square, room->at)) / total + eps);
}

/* saved[b, g] = mean, 1/std; a block a group */
__global__ void
__launch_bounds__(THREADS)
join_moments_kernel(float *saved, const float *part, struct cut k, float eps)
{
    SD_BEGIN();
    SD_SHARED(struct join_room, room);
    int64_t b = blockIdx.y;
    int g = (int)blockIdx.x;
    float mean, inverse;

    join_moments<THREADS, MANY_CHUNKS / THREADS>(&mean, &inverse, part, b, g, k, eps, &room);
    if (threadIdx.x == 0) {
        saved[(b * k.groups + g) * 2] = mean;
        saved[(b * k.groups + g) * 2 + 1] = inverse;
    }
}

/* part not NULL: the chunks are put together here, and block 0 of each sample saves what comes out */
template <int N, class T> __global__ void
__launch_bounds__(THREADS, 2)
normalise_kernel(T *y, float *saved, const float *part, struct source<T> from, struct operand weight, struct operand bias,
                 struct cut k, float eps, bool silu, bool whole)
{
    SD_BEGIN();
    SD_SHARED(struct stat_room, room);
    int64_t b = blockIdx.y, first = begin_of(k.P, blockIdx.x, k.blocks), count = begin_of(k.P, blockIdx.x + 1, k.blocks) - first;
    const float *stat = saved + b * k.groups * 2;
    int unit, lane, step;

    if (part) {
        for (int g = threadIdx.x / WARP; g < k.groups; g += WARPS) {
            float mean, inverse;

            join_moments<WARP, FEW_CHUNKS / WARP>(&mean, &inverse, part, b, g, k, eps, NULL);
            if (threadIdx.x % WARP == 0) {
                room.at[g][0] = mean;
                room.at[g][1] = inverse;
                if (blockIdx.x == 0) {
                    saved[(b * k.groups + g) * 2] = mean;
                    saved[(b * k.groups + g) * 2 + 1] = inverse;
                }
            }
        }
        __syncthreads();
        stat = &room.at[0][0];
    }
    place(k, &unit, &lane, &step);
    y += (b * k.P + first) * k.C;
    for (; lane < k.lanes && unit < k.units; unit += step) {
        struct spot s = spot_of<N>(k, unit);
        const T *x = at_spot(from.x, from.beside, s, k, b * k.P + first);
        raw_weights<N> raw_by, raw_plus;
        float by[N], plus[N];
        few<N, T> v[BATCH];

        take_weights(&raw_by, weight, s.c, s.left);
        take_weights(&raw_plus, bias, s.c, s.left);
        weights_of(by, raw_by, weight, 1);
        weights_of(plus, raw_plus, bias, 0);
#pragma unroll
        for (int j = 0; j < N; j++)
            if (j < s.left) {
                int g = (s.c + j) / k.size;

                by[j] *= stat[2 * g + 1];
                plus[j] -= stat[2 * g] * by[j];
            }
        for (int64_t p = lane; p < count; p += BATCH * k.lanes) {
            take_pixels<BATCH>(v, x, s.wide, p, k, count, s.left, whole);
#pragma unroll
            for (int q = 0; q < BATCH; q++)
                if (p + q * k.lanes < count) {
#pragma unroll
                    for (int j = 0; j < N; j++) {
                        float z = v[q][j] * by[j] + plus[j];

                        v[q].set(j, from_float<T>(silu ? z * sigmoid<T>(z) : z));
                    }
                    give(y + (p + q * k.lanes) * k.C + s.c, v[q], s.left, whole);
                }
        }
    }
}

/* -- gradient --------------------------------------------------------------------------------------------------------- */

/* what the gradient needs of N channels: n = x by + plus;  z = x scale + shift */
template <int N> struct channels { float by[N], plus[N], scale[N], shift[N]; };

template <int N> __device__ inline void
open_channels(struct channels<N> *h, const float *stat, const struct operand &weight, const struct operand &bias,
              const struct spot &s, const struct cut &k)
{
    raw_weights<N> scale, shift;

    take_weights(&scale, weight, s.c, s.left);
    take_weights(&shift, bias, s.c, s.left);
    weights_of(h->scale, scale, weight, 1);
    weights_of(h->shift, shift, bias, 0);
#pragma unroll
    for (int j = 0; j < N; j++) {
        int g = (j < s.left ? s.c + j : s.c) / k.size;

        h->by[j] = stat[2 * g + 1];
        h->plus[j] = -stat[2 * g] * h->by[j];
        h->shift[j] += h->plus[j] * h->scale[j];
        h->scale[j] *= h->by[j];
    }
}

/* part[b, chunk, g] = sums of g and g n;  by_channel[b, chunk, c] = sums of dz and dz n, unless NULL */
template <int N, class T> __global__ void
__launch_bounds__(THREADS, 2)
gradient_sums_kernel(float *part, float *by_channel, const T *dy, struct source<T> from, const float *saved,
                     struct operand weight, struct operand bias, struct cut k, bool silu, bool whole)
{
    SD_BEGIN();
    SD_SHARED(struct sums_room, room);
    int64_t b = blockIdx.y, first = begin_of(k.P, blockIdx.x, k.chunks), count = begin_of(k.P, blockIdx.x + 1, k.chunks) - first;
    int unit, lane, step, items = k.lanes * k.size;

    place(k, &unit, &lane, &step);
    dy += (b * k.P + first) * k.C;
    for (; lane < k.lanes && unit < k.units; unit += step) {
        struct spot s = spot_of<N>(k, unit);
        const T *x = at_spot(from.x, from.beside, s, k, b * k.P + first);
        struct channels<N> h;
        float sum[N] = {}, sum_n[N] = {};
        few<N, T> v[PAIRS], d[PAIRS];

        open_channels<N>(&h, saved + b * k.groups * 2, weight, bias, s, k);
        for (int64_t p = lane; p < count; p += PAIRS * k.lanes) {
            take_pixels<PAIRS>(v, x, s.wide, p, k, count, s.left, whole);
            take_pixels<PAIRS>(d, dy + s.c, k.C, p, k, count, s.left, whole);
#pragma unroll
            for (int q = 0; q < PAIRS; q++)
                if (p + q * k.lanes < count)
#pragma unroll
                    for (int j = 0; j < N; j++) {
                        float n = v[q][j] * h.by[j] + h.plus[j], dz = d[q][j];

                        if (silu)
                            dz = through_silu<T>(dz, v[q][j] * h.scale[j] + h.shift[j]);
                        sum[j] += dz;
                        sum_n[j] += dz * n;
                    }
        }
#pragma unroll
        for (int j = 0; j < N; j++)
            if (j < s.left) {
                room.a[lane * k.C + s.c + j] = sum[j];
                room.b[lane * k.C + s.c + j] = sum_n[j];
            }
    }
    __syncthreads();
    for (int c = threadIdx.x; by_channel && c < k.C; c += THREADS) {
        float *to = by_channel + ((b * k.chunks + blockIdx.x) * k.C + c) * 2, sum = 0, sum_n = 0;

        for (int l = 0; l < k.lanes; l++) {
            sum += room.a[l * k.C + c];
            sum_n += room.b[l * k.C + c];
        }
        to[0] = sum;
        to[1] = sum_n;
    }
    for (int g = threadIdx.x / WARP; g < k.groups; g += WARPS) {
        float sum = 0, sum_n = 0;

        for (int i = threadIdx.x % WARP; i < items; i += WARP) {
            int c = g * k.size + i % k.size, at = i / k.size * k.C + c;
            float w = weight.p ? read_operand(weight, c) : 1;

            sum += w * room.a[at];
            sum_n += w * room.b[at];
        }
        sum = warp_sum(sum);
        sum_n = warp_sum(sum_n);
        if (threadIdx.x % WARP == 0) {
            float *to = part + ((b * k.chunks + blockIdx.x) * k.groups + g) * 2;

            to[0] = sum;
            to[1] = sum_n;
        }
    }
}

/* all chunks of one group, by a warp: averages of g and g n in every lane */
__device__ inline void
join_sums(float *g_average, float *gn_average, const float *part, int64_t b, int g, const struct cut &k)
{
    const float *from = part + (b * k.chunks * k.groups + g) * 2;
    float sum = 0, sum_n = 0, total = (float)(k.P * k.size);

    for (int i = threadIdx.x % WARP; i < k.chunks; i += WARP) {
        sum += from[(int64_t)i * k.groups * 2];
        sum_n += from[(int64_t)i * k.groups * 2 + 1];
    }
    *g_average = warp_sum(sum) / total;
    *gn_average = warp_sum(sum_n) / total;
}

__global__ void
join_sums_kernel(float *averages, const float *part, struct cut k)
{
    SD_BEGIN();
    int64_t b = blockIdx.y;
    int g = (int)(blockIdx.x * WARPS + threadIdx.x / WARP);
    float sum, sum_n;

    if (g >= k.groups)
        return;
    join_sums(&sum, &sum_n, part, b, g, k);
    if (threadIdx.x % WARP == 0) {
        averages[(b * k.groups + g) * 2] = sum;
        averages[(b * k.groups + g) * 2 + 1] = sum_n;
    }
}

/* averages: NULL where the chunks are put together here */
template <int N, class T> __global__ void
__launch_bounds__(THREADS, 2)
gradient_kernel(struct target<T> to, const float *part, const float *averages, const T *dy, struct source<T> from,
                const float *saved, struct operand weight, struct operand bias, struct cut k, bool silu, bool whole)
{
    SD_BEGIN();
    SD_SHARED(struct stat_room, room);
    int64_t b = blockIdx.y, first = begin_of(k.P, blockIdx.x, k.blocks), count = begin_of(k.P, blockIdx.x + 1, k.blocks) - first;
    const float *average = averages ? averages + b * k.groups * 2 : &room.at[0][0];
    int unit, lane, step;

    if (!averages) {
        for (int g = threadIdx.x / WARP; g < k.groups; g += WARPS) {
            float sum, sum_n;

            join_sums(&sum, &sum_n, part, b, g, k);
            if (threadIdx.x % WARP == 0) {
                room.at[g][0] = sum;
                room.at[g][1] = sum_n;
            }
        }
        __syncthreads();
    }
    place(k, &unit, &lane, &step);
    dy += (b * k.P + first) * k.C;
    for (; lane < k.lanes && unit < k.units; unit += step) {
        struct spot s = spot_of<N>(k, unit);
        const T *x = at_spot(from.x, from.beside, s, k, b * k.P + first);
        T *dx = at_spot(to.x, to.beside, s, k, b * k.P + first);
        bool add = s.beside ? to.add_beside : to.add_x;
        struct channels<N> h;
        few<N, T> v[PAIRS], d[PAIRS], old[PAIRS] = {};

        if (!dx)
            continue;

        open_channels<N>(&h, saved + b * k.groups * 2, weight, bias, s, k);
#pragma unroll
        for (int j = 0; j < N; j++) {           /* from here on by, plus: (average(g) + n average(g n)) / std = x by + plus */
            int g = (j < s.left ? s.c + j : s.c) / k.size;
            float slope = average[2 * g + 1] * h.by[j];

            h.plus[j] = h.plus[j] * slope + average[2 * g] * h.by[j];
            h.by[j] *= slope;
        }
        for (int64_t p = lane; p < count; p += PAIRS * k.lanes) {
            take_pixels<PAIRS>(v, x, s.wide, p, k, count, s.left, whole);
            take_pixels<PAIRS>(d, dy + s.c, k.C, p, k, count, s.left, whole);
            if (add)
                take_pixels<PAIRS>(old, (const T *)dx, s.wide, p, k, count, s.left, whole);
#pragma unroll
            for (int q = 0; q < PAIRS; q++)
                if (p + q * k.lanes < count) {
#pragma unroll
                    for (int j = 0; j < N; j++) {
                        float in = v[q][j], e = d[q][j];

                        if (silu)
                            e = through_silu<T>(e, in * h.scale[j] + h.shift[j]);
                        e = e * h.scale[j] - (in * h.by[j] + h.plus[j]);
                        v[q].set(j, from_float<T>(add ? old[q][j] + e : e));
                    }
                    give(dx + (p + q * k.lanes) * s.wide, v[q], s.left, whole);
                }
        }
    }
}

/* -- host ------------------------------------------------------------------------------------------------------------- */

int64_t at_least_1(int64_t x) { return x > 1 ? x : 1; }

/* Chunks of some 10 000 elements, at most 64 of a sample, keep all processors busy from 8 x 8 pixels up; above 4 million elements
 * chunks are larger, and as many as it takes. */
struct cut
cut_of(const struct sd_node *n)
{
    const struct attributes *a = attributes_of(n);
    const struct sd_tensor *x = n->in[0];
    int N = x->dtype == SD_F32 ? 4 : 8;
    struct cut k = {};
    int64_t elements, chunks;

    k.B = x->shape[0];
    k.P = k.B ? sd_rows(x) / k.B : 0;
    k.border = (int)sd_cols(x);
    k.C = k.border + (n->in[BESIDE] ? (int)sd_cols(n->in[BESIDE]) : 0);
    k.groups = a->groups;
    k.size = k.C / k.groups;
    elements = k.P * k.C;
    chunks = elements > (int64_t)FEW_CHUNKS << 16 ? ceil_div(elements, 1 << 16) : ceil_div(elements, 10240);
    if (elements <= (int64_t)FEW_CHUNKS << 16 && chunks > FEW_CHUNKS)
        chunks = FEW_CHUNKS;
    k.chunks = (int)at_least_1(chunks < k.P ? chunks : k.P);
    chunks = ceil_div(elements, 10240);
    k.blocks = (int)at_least_1(chunks < k.P ? chunks : k.P);
    k.border_unit = (int)ceil_div(k.border, N);
    k.units = k.border_unit + (int)ceil_div(k.C - k.border, N);
    k.lanes = k.units && k.units < THREADS ? (int)THREADS / k.units : 1;
    k.few = k.chunks <= FEW_CHUNKS && k.groups <= FEW_GROUPS;
    if (k.C > MAX_CHANNELS)
        sd_bug("group_norm", "%d channels on a device, at most %d", k.C, (int)MAX_CHANNELS);
    return k;
}

/* both pieces of `in` (or their gradients): there, and rows of 16-byte units */
bool
units_fit(const struct sd_node *n, struct sd_tensor *const *in)
{
    bool fit = true;

    for (int i = 0; i <= BESIDE; i += BESIDE)
        if (n->in[i])
            fit &= aligned16(in[i] ? in[i]->data : nullptr, sd_cols(n->in[i]) * (int64_t)sd_dtype_size(n->in[i]->dtype));
    return fit;
}

int64_t part_floats(const struct cut &k) { return k.B * k.chunks * k.groups * 2; }

}   /* namespace */

void
group_norm_prepare_cuda(struct sd_node *n)
{
    struct cut k = cut_of(n);
    int64_t floats = part_floats(k) + k.B * k.groups * 2;

    if (n->din[1] || n->din[2])
        floats += k.B * k.chunks * k.C * 2;
    n->scratch_bytes = (size_t)floats * sizeof(float);
}

void
group_norm_forward_cuda(struct sd_node *n)
{
    const struct attributes *a = attributes_of(n);
    struct cut k = cut_of(n);
    float *part = static_cast<float *>(n->scratch), *saved = data<float>(n->saved[0]);
    struct sd_device *d = device_of(n);

    if (!n->out->numel || group_norm_small_forward(n))
        return;
    SD_BY_DTYPE(n->out->dtype, T, {
        constexpr int N = points<T>();
        bool whole = units_fit(n, n->in) && aligned16(n->out->data, 0);

        SD_LAUNCH(d, (moments_kernel<N, T>), dim3((unsigned)k.chunks, (unsigned)k.B), THREADS, sizeof(struct sums_room), part,
                  source_of<T>(n), k, whole);
        if (!k.few)
            SD_LAUNCH(d, join_moments_kernel, dim3((unsigned)k.groups, (unsigned)k.B), THREADS, sizeof(struct join_room), saved,
                      (const float *)part, k, (float)a->eps);
        SD_LAUNCH(d, (normalise_kernel<N, T>), dim3((unsigned)k.blocks, (unsigned)k.B), THREADS, sizeof(struct stat_room),
                  data<T>(n->out), saved, k.few ? part : (const float *)nullptr, source_of<T>(n), operand_of(n->in[1]),
                  operand_of(n->in[2]), k, (float)a->eps, a->silu, whole);
    });
}

void
group_norm_backward_cuda(struct sd_node *n)
{
    const struct attributes *a = attributes_of(n);
    struct cut k = cut_of(n);
    bool weights = n->din[1] || n->din[2];
    float *part = static_cast<float *>(n->scratch), *averages = part + part_floats(k),
          *by_channel = weights ? averages + k.B * k.groups * 2 : nullptr;
    const float *saved = data<const float>(n->saved[0]);
    struct sd_device *d = device_of(n);
    int launches = gradients_overlap(n) ? 2 : 1;
    dim3 join((unsigned)ceil_div(k.groups, WARPS), (unsigned)k.B);

    if (!n->out->numel) {
        if (k.C)
            weight_gradients(n, part, 0, k.C);
        return;
    }
    if (group_norm_small_backward(n))
        return;
    SD_BY_DTYPE(n->out->dtype, T, {
        constexpr int N = points<T>();
        bool whole = units_fit(n, n->in) && units_fit(n, n->din) && aligned16(n->dout->data, 0);

        SD_LAUNCH(d, (gradient_sums_kernel<N, T>), dim3((unsigned)k.chunks, (unsigned)k.B), THREADS, sizeof(struct sums_room), part,
                  by_channel, data<const T>(n->dout), source_of<T>(n), saved, operand_of(n->in[1]), operand_of(n->in[2]), k,
                  a->silu, whole);
        if (weights)
            weight_gradients(n, by_channel, k.B * k.chunks, k.C);
        if (n->din[0] || n->din[BESIDE]) {
            if (!k.few)
                SD_LAUNCH(d, join_sums_kernel, join, THREADS, 0, averages, (const float *)part, k);
            for (int i = 0; i < launches; i++) {
                struct target<T> to = target_of<T>(n);

                if (launches == 2)
                    (i == 0 ? to.beside : to.x) = nullptr;
                SD_LAUNCH(d, (gradient_kernel<N, T>), dim3((unsigned)k.blocks, (unsigned)k.B), THREADS, sizeof(struct stat_room),
                          to, (const float *)part, k.few ? (const float *)nullptr : averages, data<const T>(n->dout),
                          source_of<T>(n), saved, operand_of(n->in[1]), operand_of(n->in[2]), k, a->silu, whole);
            }
        }
    });
}
