/* projections: CUDA twin of projections.c; the adapters ride in the columns of one product.  T: bytes of an element, N rows.
 *
 *     forward   [x | u] = x beside x (scale down)'          one thin kernel: reads x once, writes it, and u
 *               y = [x | u] [w | up]' + bias + residual     one product (product_cuda.h); up is block-diagonal over parts
 *     backward  [s | v] = dy [w | up]                       one product
 *               dx (+)= s + v (scale down)                  one thin kernel
 *               ddown += scale v' x,  dup += dy' u          a thin kernel each for all parts: sums of chunks of rows, cut by
 *                                                           shape, then all chunks in order
 *
 * Beside or apart.  Without it y is read and written once more: 2 N out T bytes, and x is read for u all the same; with it x is
 * written and read, 2 N in T, and every output costs `rank` (of all parts) more multiplications.  An H100 makes some 300 products
 * of 16 bits in the time that it moves a byte: 4 bytes of y per output against rank / 300 of a byte's time, even at 1200, less
 * what the zeros in the weight take to read (rank out T, against 2 N out T: as long as rank < 2 N) and the launches saved.  Q, K
 * and V of rank 16 have 48 beside 320, an attention's output 16: beside.  K and V of the text for a whole network, 32 parts of
 * rank 16, would have 512 beside 768 for 77 to 308 rows: most of the weight would be zeros, so there u and up lie apart, and
 * y += u up', v = dy up are thin kernels over all parts.  One form for all plans, so the ranks alone decide: MOST_BESIDE.
 * Where dx is not wanted v = dy up comes from the thin kernel too: it reads dy once.
 *
 * The thin kernel makes 64 x 64 sums by 128 threads, 64 bytes of depth at a time through three buffers (cp.async); a warp has 16
 * columns, and leaves out products beyond the rank.  One side is thin, so it is bound by what it reads: x or dy, once. */
#include "device_ops.h"
#include "product_cuda.h"
#include "projections.h"
#include "tile.cuh"
#include "vendor.h"

#include <stdlib.h>

using namespace sd;

namespace {

enum { X, PARTS, RESIDUAL };
enum { TILE = 64, STEP_BYTES = 64, STAGES = 3, THREADS = 128, WARPS = THREADS / WARP, PIECE = 8 };
enum { FILL = 264, FEWEST_ROWS = 128, MOST_CHUNKS = 64 };   /* of a gradient: blocks wanted, rows of a chunk */

/* -- the thin kernel --------------------------------------------------------------------------------------------------- */

/* One product: its corner in each matrix, its sides, and where its tiles begin among those of all. */
struct thin_part {
    int64_t a, b, d;
    int m, n, k, first;
};

/* D = A B + C + E.  A deep: [m, k], else [k, m];  B deep: [n, k], else [k, n];  C, E, D [m, n] of T; or, with `part`, sums over
 * chunks of `chunk` of the depth, to part + chunk * part_size + d [m, n] F32.
 * copy: where A goes too, rows copy_pitch apart (first tiles of columns; A deep). */
struct thin {
    const void *a, *b, *c, *e;
    void *d, *copy;
    float *part;
    int64_t a_pitch, b_pitch, c_pitch, e_pitch, d_pitch, copy_pitch, part_size;
    int chunk, parts, across;           /* across: tiles of columns, of all parts */
    thin_part at[SD_MAX_PROJECTIONS];
};
static_assert(sizeof(thin) < 4000, "kernels take 4 KB of arguments");

template <class T, bool A_DEEP, bool B_DEEP> struct thin_tiles {
    static const int STEP = STEP_BYTES / sizeof(T), EACH = 16 / sizeof(T);
    static const int A_ROWS = A_DEEP ? TILE : STEP, A_COLUMNS = A_DEEP ? STEP : TILE, A_PITCH = A_COLUMNS + EACH;
    static const int B_ROWS = B_DEEP ? TILE : STEP, B_COLUMNS = B_DEEP ? STEP : TILE, B_PITCH = B_COLUMNS + EACH;
    struct buffers { T a[STAGES][A_ROWS * A_PITCH], b[STAGES][B_ROWS * B_PITCH]; };
    union alignas(128) memory {
        buffers in;
        float sum[TILE][TILE + 4];
    };
};

template <class T> static __device__ inline bool
on_16(const T *p)
{
    return (uintptr_t)p % 16 == 0;
}

/* A tile whose corner is at `from`; rows x columns of it are there, the rest is zero. */
template <class T, int ROWS, int COLUMNS, int PITCH> static __device__ inline void
bring(T *to, const T *from, int64_t pitch, int rows, int columns)
{
    const int EACH = 16 / (int)sizeof(T), ACROSS = COLUMNS / EACH;

#pragma unroll
    for (int i = 0; i < ROWS * ACROSS / THREADS; i++) {
        int row = ((int)threadIdx.x + i * THREADS) / ACROSS, column = ((int)threadIdx.x + i * THREADS) % ACROSS * EACH;
        int left = row < rows ? columns - column : 0;
        T *s = to + row * PITCH + column;
        const T *g = from + row * pitch + column;

        if (left >= EACH && on_16(g))
            copy_async16(s, g, true);
        else if (left <= 0)
            store<EACH>(s, vec<T, EACH>{});
        else
            for (int e = 0; e < EACH; e++)
                s[e] = e < left ? g[e] : T{};
    }
}

/* PIECE neighbours, or the first `count` of them */
template <class T> static __device__ inline void
add_piece(float *sum, const T *from, int count)
{
    const int EACH = 16 / (int)sizeof(T);

    if (count >= PIECE && on_16(from)) {
#pragma unroll
        for (int i = 0; i < PIECE; i += EACH) {
            vec<T, EACH> v = load<EACH>(from + i);

#pragma unroll
            for (int e = 0; e < EACH; e++)
                sum[i + e] += to_float(v.at[e]);
        }
    } else
        for (int i = 0; i < PIECE && i < count; i++)
            sum[i] += to_float(from[i]);
}

template <class T> static __device__ inline void
put_piece(T *to, const float *sum, int count)
{
    const int EACH = 16 / (int)sizeof(T);

    if (count >= PIECE && on_16(to)) {
#pragma unroll
        for (int i = 0; i < PIECE; i += EACH) {
            vec<T, EACH> v;

#pragma unroll
            for (int e = 0; e < EACH; e++)
                v.at[e] = from_float<T>(sum[i + e]);
            store<EACH>(to + i, v);
        }
    } else
        for (int i = 0; i < PIECE && i < count; i++)
            to[i] = from_float<T>(sum[i]);
}

/* 16-bit: a warp has all rows of 16 columns, as mma leaves them.  m, n: rows and columns that are there. */
template <class T, bool A_DEEP, bool B_DEEP> struct thin_sums {
    float d[TILE / 16][2][4];

    __device__ thin_sums()
    {
#pragma unroll
        for (int i = 0; i < TILE / 16 * 8; i++)
            (&d[0][0][0])[i] = 0;
    }

    __device__ void
    step(const T *a, const T *b, int m, int n)
    {
        typedef thin_tiles<T, A_DEEP, B_DEEP> S;
        int lane = (int)threadIdx.x % WARP, n0 = (int)threadIdx.x / WARP * 16;
        int low = lane % 8, odd = lane / 8 % 2 * 8, high = lane / 16 * 8;

        if (n0 >= n)
            return;
#pragma unroll
        for (int k = 0; k < S::STEP; k += 16) {
            uint32_t fa[4], fb[4];

            if (B_DEEP)
                ldmatrix4(fb, b + (n0 + high + low) * S::B_PITCH + k + odd);
            else
                ldmatrix4_turned(fb, b + (k + odd + low) * S::B_PITCH + n0 + high);
#pragma unroll
            for (int i = 0; i < TILE / 16; i++)
                if (i * 16 < m) {
                    if (A_DEEP)
                        ldmatrix4(fa, a + (i * 16 + odd + low) * S::A_PITCH + k + high);
                    else
                        ldmatrix4_turned(fa, a + (k + high + low) * S::A_PITCH + i * 16 + odd);
                    mma<T>(d[i][0], fa, fb);
                    mma<T>(d[i][1], fa, fb + 2);
                }
        }
    }

    __device__ void
    put(float (*to)[TILE + 4]) const
    {
        int lane = (int)threadIdx.x % WARP, m = lane / 4, n = (int)threadIdx.x / WARP * 16 + lane % 4 * 2;

#pragma unroll
        for (int i = 0; i < TILE / 16; i++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                store<2>(&to[m + i * 16][n + j * 8], vec<float, 2>{ { d[i][j][0], d[i][j][1] } });
                store<2>(&to[m + i * 16 + 8][n + j * 8], vec<float, 2>{ { d[i][j][2], d[i][j][3] } });
            }
    }
};

/* f32: a thread has every 8th row of every 16th column. */
template <bool A_DEEP, bool B_DEEP> struct thin_sums<float, A_DEEP, B_DEEP> {
    float d[8][4];

    __device__ thin_sums()
    {
#pragma unroll
        for (int i = 0; i < 32; i++)
            (&d[0][0])[i] = 0;
    }

    __device__ void
    step(const float *a, const float *b, int, int)
    {
        typedef thin_tiles<float, A_DEEP, B_DEEP> S;
        int line = (int)threadIdx.x / 16, column = (int)threadIdx.x % 16;

#pragma unroll 4
        for (int k = 0; k < S::STEP; k++) {
            float x[8], y[4];

#pragma unroll
            for (int i = 0; i < 8; i++)
                x[i] = A_DEEP ? a[(line + i * 8) * S::A_PITCH + k] : a[k * S::A_PITCH + line + i * 8];
#pragma unroll
            for (int j = 0; j < 4; j++)
                y[j] = B_DEEP ? b[(column + j * 16) * S::B_PITCH + k] : b[k * S::B_PITCH + column + j * 16];
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    d[i][j] += x[i] * y[j];
        }
    }

    __device__ void
    put(float (*to)[TILE + 4]) const
    {
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                to[(int)threadIdx.x / 16 + i * 8][(int)threadIdx.x % 16 + j * 16] = d[i][j];
    }
};

/* A's tile, as it lies in shared memory, to its second place */
template <class T, int PITCH, int STEP> static __device__ inline void
copy_tile(T *to, int64_t pitch, const T *from, int rows, int columns)
{
    const int EACH = 16 / (int)sizeof(T), ACROSS = STEP / EACH;

#pragma unroll
    for (int i = 0; i < TILE * ACROSS / THREADS; i++) {
        int row = ((int)threadIdx.x + i * THREADS) / ACROSS, column = ((int)threadIdx.x + i * THREADS) % ACROSS * EACH;
        int left = row < rows ? columns - column : 0;
        T *g = to + row * pitch + column;

        if (left >= EACH && on_16(g))
            store<EACH>(g, load<EACH>(from + row * PITCH + column));
        else
            for (int e = 0; e < EACH && e < left; e++)
                g[e] = from[row * PITCH + column + e];
    }
}

template <class T, bool A_DEEP, bool B_DEEP> static __global__ void
__launch_bounds__(THREADS)
thin_kernel(struct thin p)
{
    typedef thin_tiles<T, A_DEEP, B_DEEP> S;
    typedef typename S::memory memory;
    SD_SHARED(memory, s);
    thin_sums<T, A_DEEP, B_DEEP> sum;
    int tile = (int)(blockIdx.x % (unsigned)p.across), i = 0;

    while (i + 1 < p.parts && p.at[i + 1].first <= tile)
        i++;
    const thin_part &q = p.at[i];
    int n0 = (tile - q.first) * TILE, m0 = (int)(blockIdx.x / (unsigned)p.across) * TILE, m = q.m - m0, n = q.n - n0;
    int begin = (int)blockIdx.y * p.chunk, end = min(q.k, begin + p.chunk), steps = (end - begin + S::STEP - 1) / S::STEP;
    const T *a = static_cast<const T *>(p.a) + q.a + (A_DEEP ? m0 * p.a_pitch + begin : begin * p.a_pitch + m0);
    const T *b = static_cast<const T *>(p.b) + q.b + (B_DEEP ? n0 * p.b_pitch + begin : begin * p.b_pitch + n0);
    int64_t a_step = A_DEEP ? S::STEP : S::STEP * p.a_pitch, b_step = B_DEEP ? S::STEP : S::STEP * p.b_pitch;

    if (m <= 0 || n <= 0)               /* the whole block */
        return;
    auto bring_both = [&](int step) {
        int left = end - begin - step * S::STEP;

        if (left > 0) {
            bring<T, S::A_ROWS, S::A_COLUMNS, S::A_PITCH>(s.in.a[step % STAGES], a + step * a_step, p.a_pitch, A_DEEP ? m : left,
                                                          A_DEEP ? left : m);
            bring<T, S::B_ROWS, S::B_COLUMNS, S::B_PITCH>(s.in.b[step % STAGES], b + step * b_step, p.b_pitch, B_DEEP ? n : left,
                                                          B_DEEP ? left : n);
        }
        copy_async_commit();
    };
    for (int k = 0; k < STAGES - 1; k++)
        bring_both(k);
    for (int k = 0; k < steps; k++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        bring_both(k + STAGES - 1);
        sum.step(s.in.a[k % STAGES], s.in.b[k % STAGES], m, n);
        if (A_DEEP && p.copy && tile == q.first)
            copy_tile<T, S::A_PITCH, S::STEP>(static_cast<T *>(p.copy) + m0 * p.copy_pitch + k * S::STEP, p.copy_pitch,
                                              s.in.a[k % STAGES], m, end - k * S::STEP);
    }
    copy_async_wait<0>();
    __syncthreads();
    sum.put(s.sum);
    __syncthreads();
    for (int k = (int)threadIdx.x; k < TILE * TILE / PIECE; k += THREADS) {
        int row = k / (TILE / PIECE), column = k % (TILE / PIECE) * PIECE, count = n - column;
        float *x = &s.sum[row][column];

        if (row >= m || count <= 0)
            continue;
        if (p.part) {
            put_piece<float>(p.part + blockIdx.y * p.part_size + q.d + (int64_t)(m0 + row) * q.n + n0 + column, x, count);
            continue;
        }
        int64_t r = m0 + row, at = q.d + n0 + column;

        if (p.c)
            add_piece<T>(x, static_cast<const T *>(p.c) + at + r * p.c_pitch, count);
        if (p.e)
            add_piece<T>(x, static_cast<const T *>(p.e) + at + r * p.e_pitch, count);
        put_piece<T>(static_cast<T *>(p.d) + at + r * p.d_pitch, x, count);
    }
}

/* add_part - one more product */
void
add_part(struct thin *p, int64_t a, int64_t b, int64_t d, int64_t m, int64_t n, int64_t k)
{
    thin_part *q = &p->at[p->parts];

    if (m > INT32_MAX || n > INT32_MAX || k > INT32_MAX - STEP_BYTES * STAGES)
        sd_bug("projections", "%lld x %lld x %lld", (long long)m, (long long)n, (long long)k);
    q->a = a;
    q->b = b;
    q->d = d;
    q->m = (int)m;
    q->n = (int)n;
    q->k = (int)k;
    q->first = p->across;
    p->across += (int)ceil_div(n, TILE);
    p->parts++;
}

void
run_thin(struct sd_device *d, enum sd_dtype dtype, struct thin p, bool a_deep, bool b_deep, int chunks)
{
    int64_t down = 0, most = 0;

    for (int i = 0; i < p.parts; i++) {
        down = down < p.at[i].m ? p.at[i].m : down;
        most = most < p.at[i].k ? p.at[i].k : most;
    }
    down = ceil_div(down, TILE);
    if (!down || !p.across)
        return;
    if (chunks == 1)
        p.chunk = (int)most;
    if (down * p.across > INT32_MAX)
        sd_bug("projections", "%lld tiles", (long long)(down * p.across));
    dim3 grid((unsigned)(down * p.across), (unsigned)chunks);

#define SD_THIN(A, B)                                                                                                \
    SD_BY_DTYPE(dtype, T, SD_LAUNCH(d, (thin_kernel<T, A, B>), grid, THREADS, sizeof(thin_tiles<T, A, B>::memory), p))
    if (a_deep && b_deep)
        SD_THIN(true, true);
    else if (a_deep)
        SD_THIN(true, false);
    else
        SD_THIN(false, false);
#undef SD_THIN
}

/* -- gradients of the adapters ------------------------------------------------------------------------------------------- */

/* to[c * across + r * down] += scale[r] * sum over chunks of part[r, c]: rows of a product of the thin kernel to a gradient. */
struct sink {
    float *to;
    int64_t d;
    int m, n, across, down;
};
struct sinks {
    const float *part, *scale;          /* scale NULL: 1 */
    int64_t part_size;
    int chunks;
    sink at[SD_MAX_PROJECTIONS];
};

static __global__ void
__launch_bounds__(THREADS)
sink_kernel(struct sinks p)
{
    const sink &q = p.at[blockIdx.y];
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int r = (int)(i / q.n), c = (int)(i % q.n);
    float sum = 0;

    if (r >= q.m)
        return;
    for (int k = 0; k < p.chunks; k++)
        sum += p.part[k * p.part_size + q.d + i];
    q.to[(int64_t)c * q.across + (int64_t)r * q.down] += p.scale ? sum * p.scale[q.d / q.n + r] : sum;
}

/* -- the form on the device ---------------------------------------------------------------------------------------------- */

/* What down and up are made of; NULL: left as they are. */
struct adapter {
    const float *down, *up;
    int begin, out, rank_begin, rank;
};
struct adapters {
    void *to_down, *to_up;
    const float *scale;
    int64_t in, up_pitch;
    bool beside;
    adapter at[SD_MAX_PROJECTIONS];
};

template <class T> static __global__ void
__launch_bounds__(THREADS)
adapters_kernel(struct adapters p)
{
    const adapter &q = p.at[blockIdx.y];
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, downs = q.rank * p.in;

    if (i < downs) {
        if (q.down)
            static_cast<T *>(p.to_down)[q.rank_begin * p.in + i] =
                from_float<T>(q.down[i] * p.scale[q.rank_begin + (int)(i / p.in)]);
        return;
    }
    i -= downs;
    if (i >= (int64_t)q.out * q.rank || !q.up)
        return;
    int64_t o = i / q.rank, k = i % q.rank;

    static_cast<T *>(p.to_up)[(q.begin + o) * p.up_pitch + (p.beside ? q.rank_begin : 0) + k] = from_float<T>(q.up[i]);
}

template <class P> P *
section(void *form, size_t at)
{
    return reinterpret_cast<P *>(static_cast<char *>(form) + at);
}

int64_t out_of(const struct sd_projection *p) { return p->weight->shape[0]; }
int64_t rank_of(const struct sd_projection *p) { return p->down ? p->down->shape[0] : 0; }

/* Which elements lie where, without what they are made of. */
struct adapters
adapters_of(void *form, const struct projections_layout *l, const struct sd_projections *a)
{
    struct adapters p = {};
    int64_t begin = 0, rank = 0;

    p.to_down = section<char>(form, l->down);
    p.to_up = section<char>(form, l->beside ? l->weight + (size_t)l->in * sd_dtype_size(l->dtype) : l->up);
    p.scale = section<float>(form, l->scale);
    p.in = l->in;
    p.up_pitch = l->beside ? l->pitch : l->wide;
    p.beside = l->beside != 0;
    for (int i = 0; i < a->parts; i++) {
        p.at[i].begin = (int)begin;
        p.at[i].rank_begin = (int)rank;
        p.at[i].out = (int)out_of(&a->part[i]);
        p.at[i].rank = (int)rank_of(&a->part[i]);
        begin += out_of(&a->part[i]);
        rank += rank_of(&a->part[i]);
    }
    return p;
}

void
make_adapters(struct sd_device *d, const struct projections_layout *l, const struct adapters &p, int parts)
{
    int64_t most = 0;

    for (int i = 0; i < parts; i++)
        if (p.at[i].down || p.at[i].up) {
            int64_t count = p.at[i].rank * (p.in + p.at[i].out);

            most = count > most ? count : most;
        }
    if (!most)
        return;
    dim3 grid((unsigned)ceil_div(most, THREADS), (unsigned)parts);

    SD_BY_DTYPE(l->dtype, T, SD_LAUNCH(d, adapters_kernel<T>, grid, THREADS, 0, p));
}

/* The parameter's values as F32 at `to` on the device. */
void
write_values(struct sd_device *d, float *to, const struct sd_param *p)
{
    float *values = static_cast<float *>(malloc(p->numel * sizeof *values + 1));

    if (!values)
        sd_die(p->path, "out of memory");
    sd_param_convert(values, p, 0, p->numel);
    sd_device_write(d, to, values, p->numel * sizeof *values);
    free(values);
}

/* Rows of a weight to their place. */
void
write_weight(struct sd_device *d, void *to, const struct projections_layout *l, const struct sd_param *p)
{
    size_t size = sd_dtype_size(p->dtype);
    bool known = sd_dtype_is_real(p->dtype);
    void *room = sd_device_workspace(d, p->numel * (known ? size : sizeof(float)));

    if (known)
        sd_device_write(d, room, p->raw, p->numel * size);
    else
        write_values(d, static_cast<float *>(room), p);
    sd_device_rows(d, to, l->dtype, l->pitch, room, known ? p->dtype : SD_F32, l->in, p->shape[0], l->in, false);
}

}   /* namespace */

void
projections_refresh(struct sd_device *d, void *form, enum sd_dtype dtype, const struct sd_projections *a)
{
    struct projections_layout l;
    struct adapters p;

    projections_layout(&l, a, dtype);
    p = adapters_of(form, &l, a);
    for (int i = 0; i < a->parts; i++) {
        const struct sd_projection *q = &a->part[i];

        p.at[i].down = q->down && q->down->trainable ? q->down->device_value : nullptr;
        p.at[i].up = q->up && q->up->trainable ? q->up->device_value : nullptr;
    }
    make_adapters(d, &l, p, a->parts);
}

void
projections_upload(struct sd_device *d, void *form, enum sd_dtype dtype, const struct sd_projections *a)
{
    struct projections_layout l;
    int64_t begin = 0, rank = 0;

    projections_layout(&l, a, dtype);
    sd_device_fill(d, form, 0, l.bytes);
    for (int i = 0; i < a->parts; i++) {
        const struct sd_projection *q = &a->part[i];
        int64_t k = rank_of(q);
        size_t row = (size_t)(begin * l.pitch) * sd_dtype_size(dtype);

        write_weight(d, section<char>(form, l.weight + row), &l, q->weight);
        if (q->bias)
            write_values(d, section<float>(form, l.bias) + begin, q->bias);
        if (k) {
            float *scales = static_cast<float *>(malloc((size_t)k * sizeof *scales));
            float scale = 1;

            if (!scales)
                sd_die(q->down->path, "out of memory");
            if (q->scale)
                sd_param_convert(&scale, q->scale, 0, 1);
            for (int64_t j = 0; j < k; j++)
                scales[j] = scale;
            sd_device_write(d, section<float>(form, l.scale) + rank, scales, (size_t)k * sizeof *scales);
            free(scales);
        }
        begin += out_of(q);
        rank += k;
    }
    if (l.biased && dtype != SD_F32)
        sd_device_cast(d, section<char>(form, l.bias_d), dtype, section<float>(form, l.bias), SD_F32, (size_t)l.out);
    for (int i = 0; i < a->parts; i++) {
        const struct sd_projection *q = &a->part[i];
        const struct sd_param *pair[] = { q->down, q->up };

        for (int k = 0; k < 2; k++) {
            struct adapters p;
            float *room;

            if (!pair[k] || pair[k]->trainable)
                continue;
            room = static_cast<float *>(sd_device_workspace(d, pair[k]->numel * sizeof *room));
            write_values(d, room, pair[k]);
            p = adapters_of(form, &l, a);
            (k ? p.at[i].up : p.at[i].down) = room;
            make_adapters(d, &l, p, a->parts);
        }
    }
    projections_refresh(d, form, dtype, a);
}

/* -- the op -------------------------------------------------------------------------------------------------------------- */

namespace {

/* A node, and the places of its scratch. */
struct work {
    const struct sd_node *n;
    const struct sd_projections *a;
    struct projections_layout l;
    char *form;
    int64_t rows;
    size_t size;
    char *wide;             /* [x | u] or [s | v]: rows of l.pitch */
    char *u, *v;            /* [rows, padded], where they are not in `wide` */
    float *part;
    void *products;
    size_t bytes;
    int down_chunks, up_chunks;
};

bool
trains(const struct sd_node *n, const struct sd_param *p)
{
    return n->din[PARTS] && p && p->trainable;
}

bool
any_trains(const struct work &w, bool up)
{
    for (int i = 0; i < w.a->parts; i++)
        if (rank_of(&w.a->part[i]) && trains(w.n, up ? w.a->part[i].up : w.a->part[i].down))
            return true;
    return false;
}

/* The products of whole matrices, without what only a run knows. */
struct gemm_call
forward_call(const struct work &w)
{
    const struct sd_node *n = w.n;
    struct gemm_call g = {};

    g.rows = w.rows;
    g.columns = g.c_pitch = g.d_pitch = w.l.out;
    g.depth = g.b_pitch = w.l.pitch;
    g.b_turned = true;
    g.dtype = g.d_dtype = w.l.dtype;
    g.a = w.l.beside ? w.wide : n->in[X]->data;
    g.a_pitch = w.l.beside ? w.l.pitch : n->in[X]->pitch;
    g.d = n->out->data;
    g.c = n->in[RESIDUAL] ? n->in[RESIDUAL]->data : nullptr;
    return g;
}

struct gemm_call
data_call(const struct work &w)
{
    const struct sd_node *n = w.n;
    struct gemm_call g = {};

    g.rows = w.rows;
    g.columns = g.b_pitch = w.l.pitch;
    g.depth = g.a_pitch = w.l.out;
    g.dtype = g.d_dtype = w.l.dtype;
    g.a = n->dout->data;
    if (w.l.beside) {
        g.d = w.wide;
        g.c_pitch = g.d_pitch = w.l.pitch;
    } else {
        g.d = n->din[X]->data;
        g.c = n->din_store[X] ? nullptr : g.d;
        g.c_pitch = g.d_pitch = n->din[X]->pitch;
    }
    return g;
}

void
multiply(const struct work &w, struct gemm_call g)
{
    struct sd_device *d = device_of(w.n);

    g.b = w.form + w.l.weight;
    g.scratch = w.products;
    if (g.rows && g.columns && !cublas_gemm(d, &g))
        gemm_cuda(d, &g);
}

/* Chunks of rows for so many tiles of a gradient. */
int
chunks_of(int64_t tiles, int64_t rows)
{
    int64_t chunks = tiles ? ceil_div(FILL, tiles) : 1, most = ceil_div(rows, FEWEST_ROWS);

    chunks = chunks < most ? chunks : most;
    if (chunks > MOST_CHUNKS)
        chunks = MOST_CHUNKS;
    return chunks > 1 ? (int)chunks : 1;
}

/* Sums of one chunk: of all gradients of down, of all of up. */
int64_t down_size(const struct work &w) { return w.l.rank * w.l.in; }
int64_t
up_size(const struct work &w)
{
    int64_t size = 0;

    for (int i = 0; i < w.a->parts; i++)
        size += rank_of(&w.a->part[i]) * out_of(&w.a->part[i]);
    return size;
}

int64_t
up_tiles(const struct work &w)
{
    int64_t tiles = 0;

    for (int i = 0; i < w.a->parts; i++)
        tiles += ceil_div(rank_of(&w.a->part[i]), TILE) * ceil_div(out_of(&w.a->part[i]), TILE);
    return tiles;
}

size_t
larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* run: with what only a run knows. */
struct work
work_of(const struct sd_node *n, bool run)
{
    struct work w = {};
    size_t at = 0, narrow, part = 0;
    char *base = static_cast<char *>(n->scratch);
    struct gemm_call call;

    w.n = n;
    w.a = n->in[PARTS]->param->joined;
    projections_layout(&w.l, w.a, n->in[X]->dtype);
    w.rows = sd_rows(n->in[X]);
    w.size = sd_dtype_size(w.l.dtype);
    w.down_chunks = chunks_of(ceil_div(w.l.in, TILE) * ceil_div(w.l.rank, TILE), w.rows);
    w.up_chunks = chunks_of(up_tiles(w), w.rows);
    if (run)
        w.form = static_cast<char *>(sd_param_on(n->in[PARTS]->param, w.l.dtype, SD_ROWS));
    narrow = round256((size_t)(w.rows * w.l.padded) * w.size);
    w.wide = base;
    at += w.l.beside ? round256((size_t)(w.rows * w.l.pitch) * w.size) : 0;
    w.u = base + at;
    at += w.l.rank ? narrow : 0;
    if (n->training) {
        w.v = base + at;
        at += w.l.rank ? narrow : 0;
        w.part = reinterpret_cast<float *>(base + at);
        if (any_trains(w, false))
            part = (size_t)(w.down_chunks * down_size(w)) * sizeof(float);
        if (any_trains(w, true))
            part = larger(part, (size_t)(w.up_chunks * up_size(w)) * sizeof(float));
        at += round256(part);
    }
    w.products = base + at;
    call = forward_call(w);
    w.bytes = at + gemm_scratch(&call);
    if (n->din[X]) {
        call = data_call(w);
        w.bytes = larger(w.bytes, at + gemm_scratch(&call));
    }
    return w;
}

/* u = x (scale down)' to rows of `pitch`; copy: x beside it */
void
narrow(const struct work &w, void *u, int64_t pitch, void *copy)
{
    struct thin p = {};

    p.a = w.n->in[X]->data;
    p.a_pitch = w.n->in[X]->pitch;
    p.b = w.form + w.l.down;
    p.b_pitch = w.l.in;
    p.d = u;
    p.d_pitch = pitch;
    p.copy = copy;
    p.copy_pitch = pitch;
    add_part(&p, 0, 0, 0, w.rows, w.l.padded, w.l.in);
    run_thin(device_of(w.n), w.l.dtype, p, true, true, 1);
}

/* where `up` of part p lies; rows up_pitch apart */
const void *up_of(const struct work &w) { return w.form + (w.l.beside ? w.l.weight : w.l.up); }
int64_t up_pitch(const struct work &w) { return w.l.beside ? w.l.pitch : w.l.wide; }
int64_t
up_at(const struct work &w, int64_t begin, int64_t rank)
{
    return begin * up_pitch(w) + (w.l.beside ? w.l.in + rank : 0);
}

/* y += u up' */
void
widen(const struct work &w)
{
    struct thin p = {};
    int64_t begin = 0, rank = 0;

    p.a = w.u;
    p.a_pitch = w.l.padded;
    p.b = up_of(w);
    p.b_pitch = up_pitch(w);
    p.c = p.d = w.n->out->data;
    p.c_pitch = p.d_pitch = w.l.out;
    for (int i = 0; i < w.a->parts; i++) {
        int64_t out = out_of(&w.a->part[i]), k = rank_of(&w.a->part[i]);

        if (k)
            add_part(&p, rank, up_at(w, begin, rank), begin, w.rows, out, k);
        begin += out;
        rank += k;
    }
    run_thin(device_of(w.n), w.l.dtype, p, true, true, 1);
}

/* v = dy up */
void
narrow_gradient(const struct work &w)
{
    struct thin p = {};
    int64_t begin = 0, rank = 0;

    p.a = w.n->dout->data;
    p.a_pitch = w.l.out;
    p.b = up_of(w);
    p.b_pitch = up_pitch(w);
    p.d = w.v;
    p.d_pitch = w.l.padded;
    for (int i = 0; i < w.a->parts; i++) {
        int64_t out = out_of(&w.a->part[i]), k = rank_of(&w.a->part[i]);

        if (k)
            add_part(&p, begin, up_at(w, begin, rank), rank, w.rows, k, out);
        begin += out;
        rank += k;
    }
    run_thin(device_of(w.n), w.l.dtype, p, true, false, 1);
}

/* dx (+)= s + v (scale down);  s NULL: dx is there */
void
finish_data(const struct work &w, const void *s, const void *v, int64_t pitch)
{
    const struct sd_tensor *dx = w.n->din[X];
    struct thin p = {};

    p.a = v;
    p.a_pitch = pitch;
    p.b = w.form + w.l.down;
    p.b_pitch = w.l.in;
    p.d = dx->data;
    p.d_pitch = dx->pitch;
    p.c = s ? s : dx->data;
    p.c_pitch = s ? w.l.pitch : dx->pitch;
    p.e = s && !w.n->din_store[X] ? dx->data : nullptr;
    p.e_pitch = dx->pitch;
    add_part(&p, 0, 0, 0, w.rows, w.l.in, w.l.rank);
    run_thin(device_of(w.n), w.l.dtype, p, true, false, 1);
}

void
run_sinks(const struct work &w, struct sinks *s, int count)
{
    int64_t most = 0;

    for (int i = 0; i < count; i++) {
        int64_t size = (int64_t)s->at[i].m * s->at[i].n;

        most = size > most ? size : most;
    }
    if (!most)
        return;
    dim3 grid((unsigned)ceil_div(most, THREADS), (unsigned)count);

    SD_LAUNCH(device_of(w.n), sink_kernel, grid, THREADS, 0, *s);
}

/* ddown += scale v' x */
void
down_gradient(const struct work &w, const void *v, int64_t pitch)
{
    struct thin p = {};
    struct sinks s = {};
    int64_t rank = 0;
    int count = 0;

    p.a = v;
    p.a_pitch = pitch;
    p.b = w.n->in[X]->data;
    p.b_pitch = w.n->in[X]->pitch;
    p.part = w.part;
    p.part_size = down_size(w);
    p.chunk = (int)ceil_div(w.rows, w.down_chunks);
    add_part(&p, 0, 0, 0, w.l.rank, w.l.in, w.rows);
    run_thin(device_of(w.n), w.l.dtype, p, false, false, w.down_chunks);
    s.part = w.part;
    s.part_size = p.part_size;
    s.chunks = w.down_chunks;
    s.scale = reinterpret_cast<const float *>(w.form + w.l.scale);
    for (int i = 0; i < w.a->parts; i++) {
        int64_t k = rank_of(&w.a->part[i]);

        if (k && trains(w.n, w.a->part[i].down)) {
            sink *q = &s.at[count++];

            q->to = w.a->part[i].down->device_grad;
            q->d = rank * w.l.in;
            q->m = (int)k;
            q->n = q->down = (int)w.l.in;
            q->across = 1;
        }
        rank += k;
    }
    run_sinks(w, &s, count);
}

/* dup += dy' u, made as u' dy */
void
up_gradient(const struct work &w)
{
    struct thin p = {};
    struct sinks s = {};
    int64_t begin = 0, rank = 0, at = 0;
    int count = 0;

    p.a = w.u;
    p.a_pitch = w.l.padded;
    p.b = w.n->dout->data;
    p.b_pitch = w.l.out;
    p.part = w.part;
    p.part_size = up_size(w);
    p.chunk = (int)ceil_div(w.rows, w.up_chunks);
    for (int i = 0; i < w.a->parts; i++) {
        int64_t out = out_of(&w.a->part[i]), k = rank_of(&w.a->part[i]);

        if (k && trains(w.n, w.a->part[i].up)) {
            sink *q = &s.at[count++];

            add_part(&p, rank, begin, at, k, out, w.rows);
            q->to = w.a->part[i].up->device_grad;
            q->d = at;
            q->m = q->across = (int)k;
            q->n = (int)out;
            q->down = 1;
        }
        begin += out;
        rank += k;
        at += k * out;
    }
    run_thin(device_of(w.n), w.l.dtype, p, false, false, w.up_chunks);
    s.part = w.part;
    s.part_size = p.part_size;
    s.chunks = w.up_chunks;
    run_sinks(w, &s, count);
}

}   /* namespace */

void
projections_prepare_cuda(struct sd_node *n)
{
    sd_param_want(n->in[PARTS]->param, n->in[X]->dtype, SD_ROWS);
    n->scratch_bytes = work_of(n, false).bytes;
}

void
projections_forward_cuda(struct sd_node *n)
{
    struct work w = work_of(n, true);
    struct gemm_call call;

    if (!w.rows)
        return;
    if (w.l.beside)
        narrow(w, w.wide + (size_t)w.l.in * w.size, w.l.pitch, w.wide);
    call = forward_call(w);
    if (w.l.biased) {
        call.bias = reinterpret_cast<const float *>(w.form + w.l.bias);
        call.bias_d = w.form + w.l.bias_d;
    }
    multiply(w, call);
    if (w.l.rank && !w.l.beside) {
        narrow(w, w.u, w.l.padded, nullptr);
        widen(w);
    }
}

void
projections_backward_cuda(struct sd_node *n)
{
    struct work w = work_of(n, true);
    bool down = any_trains(w, false), up = any_trains(w, true), within = n->din[X] && w.l.beside;
    const void *v = within ? w.wide + (size_t)w.l.in * w.size : w.v;
    int64_t v_pitch = within ? w.l.pitch : w.l.padded;

    if (w.rows) {
        if (n->din[X])
            multiply(w, data_call(w));
        if (w.l.rank && !within && (n->din[X] || down))
            narrow_gradient(w);
        if (w.l.rank && n->din[X])
            finish_data(w, within ? w.wide : nullptr, v, v_pitch);
        if (down)
            down_gradient(w, v, v_pitch);
        if (up) {
            narrow(w, w.u, w.l.padded, nullptr);
            up_gradient(w);
        }
    }
    if (n->din[RESIDUAL])
        residual_pass(n, RESIDUAL);
}
