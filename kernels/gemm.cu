/* gemm: our own matrix products on a CUDA device; all of linear, conv2d and their gradients are this one kernel (tile.cuh).
 *
 * A block makes BM x BN sums, 64 bytes of depth at a time (32 elements of 16 bits, 16 of f32), which cp.async brings into STAGES
 * buffers of shared memory ahead of the products.  16-bit: ldmatrix and mma.m16n8k16, sums f32 in registers.  f32: FFMA.
 * Rows are padded by 16 bytes, so that ldmatrix meets 8 different groups of 4 banks.  Then the sums go through shared memory, so
 * that the result is read (C), added to and written in rows of 16 bytes.
 *
 *     tile      threads  bytes/step  flops/step  flops/byte  for
 *     128x128   256      16384       1048576     64          both sides long.  Needs 132 SM x 2048 flops/clock (mma.sync reaches
 *                                                            some 60 % of wgmma's 4096): 32 bytes/clock/SM of L2 traffic, in reach
 *     128x64    128      12288       524288      43          320 columns: no column tile half empty
 *     64x64     128      8192        262144      32          few blocks otherwise: bound by L2
 *     64x16     128      5120        65536       13          LoRA's thin sides, gradients of them; reads A once: bound by memory
 *     16x64     128      5120        65536       13          few rows (time embedding, dw of lora_down): reads B once, the same
 *     f32 64x64 128      8192        131072      16          where cuBLAS is not: 3/8 LDS an FFMA, about half of the f32 peak
 *
 * Depth is split, by shape alone, where the tiles would not fill 132 SMs; a second pass adds the parts in order.
 * Edges: outside elements are zeros in shared memory.  Rows that 16-byte copies cannot take (pitch, channels or address not
 * divisible by 8) are brought in by 8 bytes or one by one by the GENERAL form of the smaller tiles. */
#include "gemm_share.cuh"
#include "product_cuda.h"

using namespace sd;

namespace {

enum { STAGES = 4, GROUP = 8, FILL = 132, SHORTEST = 8, MOST_SPLITS = 64 };

/* -- the products of one step ---------------------------------------------------------------------------------------- */

template <class T, int BM, int BN, int DOWN, int ACROSS, bool A_DEEP, bool B_DEEP> struct sums;

/* 16-bit: warps DOWN x ACROSS; lane's sums as mma leaves them. */
template <class T, int BM, int BN, int DOWN, int ACROSS, bool A_DEEP, bool B_DEEP>
struct mma_sums {
    static const int WM = BM / DOWN, WN = BN / ACROSS, MT = WM / 16, NT = WN / 8;
    static_assert(WM % 16 == 0 && WN % 16 == 0, "B comes by pairs of eight columns");
    float d[MT][NT][4];

    __device__ mma_sums()
    {
        #pragma unroll
        for (int i = 0; i < MT * NT * 4; i++)
            (&d[0][0][0])[i] = 0;
    }

    __device__ void
    step(const T *a, const T *b, int a_pitch, int b_pitch)
    {
        int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
        int m0 = warp / ACROSS * WM, n0 = warp % ACROSS * WN, low = lane % 8, odd = lane / 8 % 2 * 8, high = lane / 16 * 8;

        #pragma unroll
        for (int k = 0; k < 32; k += 16) {
            uint32_t fa[MT][4], fb[NT][2];

            #pragma unroll
            for (int i = 0; i < MT; i++)            /* matrices: rows 0, 8 at k 0, then at k 8 */
                if (A_DEEP)
                    ldmatrix4(fa[i], a + (m0 + i * 16 + odd + low) * a_pitch + k + high);
                else
                    ldmatrix4_turned(fa[i], a + (k + high + low) * a_pitch + m0 + i * 16 + odd);
            #pragma unroll
            for (int j = 0; j < NT; j += 2) {       /* matrices: k 0, 8 of columns 0..7, then of columns 8..15 */
                uint32_t four[4];

                if (B_DEEP)
                    ldmatrix4(four, b + (n0 + j * 8 + high + low) * b_pitch + k + odd);
                else
                    ldmatrix4_turned(four, b + (k + odd + low) * b_pitch + n0 + j * 8 + high);
                fb[j][0] = four[0];
                fb[j][1] = four[1];
                fb[j + 1][0] = four[2];
                fb[j + 1][1] = four[3];
            }
            #pragma unroll
            for (int i = 0; i < MT; i++)
                #pragma unroll
                for (int j = 0; j < NT; j++)
                    mma<T>(d[i][j], fa[i], fb[j]);
        }
    }

    __device__ void
    put(float (*to)[BN + 4]) const
    {
        int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
        int m = warp / ACROSS * WM + lane / 4, n = warp % ACROSS * WN + lane % 4 * 2;

        #pragma unroll
        for (int i = 0; i < MT; i++)
            #pragma unroll
            for (int j = 0; j < NT; j++) {
                store<2>(&to[m + i * 16][n + j * 8], vec<float, 2>{ { d[i][j][0], d[i][j][1] } });
                store<2>(&to[m + i * 16 + 8][n + j * 8], vec<float, 2>{ { d[i][j][2], d[i][j][3] } });
            }
    }
};
template <int BM, int BN, int DOWN, int ACROSS, bool A_DEEP, bool B_DEEP>
struct sums<bf16, BM, BN, DOWN, ACROSS, A_DEEP, B_DEEP> : mma_sums<bf16, BM, BN, DOWN, ACROSS, A_DEEP, B_DEEP> {};
template <int BM, int BN, int DOWN, int ACROSS, bool A_DEEP, bool B_DEEP>
struct sums<f16, BM, BN, DOWN, ACROSS, A_DEEP, B_DEEP> : mma_sums<f16, BM, BN, DOWN, ACROSS, A_DEEP, B_DEEP> {};

/* f32: a thread has every (threads / 16)th row and every 16th column. */
template <int BM, int BN, int DOWN, int ACROSS, bool A_DEEP, bool B_DEEP>
struct sums<float, BM, BN, DOWN, ACROSS, A_DEEP, B_DEEP> {
    static const int LINES = DOWN * ACROSS * WARP / 16, MT = BM / LINES, NT = BN / 16;
    float d[MT][NT];

    __device__ sums()
    {
        #pragma unroll
        for (int i = 0; i < MT * NT; i++)
            (&d[0][0])[i] = 0;
    }

    __device__ void
    step(const float *a, const float *b, int a_pitch, int b_pitch)
    {
        int line = (int)threadIdx.x / 16, column = (int)threadIdx.x % 16;

        #pragma unroll 4
        for (int k = 0; k < STEP_BYTES / 4; k++) {
            float x[MT], y[NT];

            #pragma unroll
            for (int i = 0; i < MT; i++)
                x[i] = A_DEEP ? a[(line + i * LINES) * a_pitch + k] : a[k * a_pitch + line + i * LINES];
            #pragma unroll
            for (int j = 0; j < NT; j++)
                y[j] = B_DEEP ? b[(column + j * 16) * b_pitch + k] : b[k * b_pitch + column + j * 16];
            #pragma unroll
            for (int i = 0; i < MT; i++)
                #pragma unroll
                for (int j = 0; j < NT; j++)
                    d[i][j] += x[i] * y[j];
        }
    }

    __device__ void
    put(float (*to)[BN + 4]) const
    {
        #pragma unroll
        for (int i = 0; i < MT; i++)
            #pragma unroll
            for (int j = 0; j < NT; j++)
                to[(int)threadIdx.x / 16 + i * LINES][(int)threadIdx.x % 16 + j * 16] = d[i][j];
    }
};

/* -- from sums to the result ----------------------------------------------------------------------------------------- */

template <class U, int N> static __device__ inline void
add_vector(float *sum, const void *from, int64_t at)
{
    static const int EACH = 16 / sizeof(U) < N ? 16 / sizeof(U) : N;

    #pragma unroll
    for (int i = 0; i < N; i += EACH) {
        vec<U, EACH> x = load<EACH>(static_cast<const U *>(from) + at + i);

        #pragma unroll
        for (int e = 0; e < EACH; e++)
            sum[i + e] += to_float(x.at[e]);
    }
}

template <class U, int N> static __device__ inline void
put_vector(void *to, int64_t at, const float *sum)
{
    static const int EACH = 16 / sizeof(U) < N ? 16 / sizeof(U) : N;

    #pragma unroll
    for (int i = 0; i < N; i += EACH) {
        vec<U, EACH> x;

        #pragma unroll
        for (int e = 0; e < EACH; e++)
            x.at[e] = from_float<U>(sum[i + e]);
        store<EACH>(static_cast<U *>(to) + at + i, x);
    }
}

/* N neighbours of row m, from column n on; U: of D. */
template <class T, class U, int N> static __device__ inline void
finish(const struct result &r, float *sum, int m, int n, int z)
{
    int b = 0, i = 0, j = m;
    int64_t d, c;

    if (r.n0 <= m) {
        j = m % r.n0;
        i = m / r.n0 % r.n1;
        b = m / r.n0 / r.n1;
    }
    d = z * r.d_batch + b * r.d_sb + i * r.d_sy + j * r.d_sx + (int64_t)n * r.sn;
    c = z * r.c_batch + b * r.c_sb + i * r.c_sy + j * r.c_sx + (int64_t)n * r.sn;
    if (r.bias)
        add_vector<float, N>(sum, r.bias, n);
    else if (r.bias_d)
        add_vector<U, N>(sum, r.bias_d, n);
    if (r.channel_add)
        add_vector<T, N>(sum, r.channel_add, b * r.channel_add_pitch + n);
    if (r.c)
        add_vector<U, N>(sum, r.c, c);
    put_vector<U, N>(r.d, d, sum);
}

template <class T, int N> static __device__ inline void
finish_any(const struct result &r, float *sum, int m, int n, int z)
{
    if (sizeof(T) == 4 || !r.f32)
        finish<T, T, N>(r, sum, m, n, z);
    else
        finish<T, float, N>(r, sum, m, n, z);
}

/* -- kernels --------------------------------------------------------------------------------------------------------- */

template <class T, int BM, int BN, int DOWN, int ACROSS, bool A_DEEP, bool B_DEEP, bool GENERAL>
struct shape {
    static const int THREADS = DOWN * ACROSS * WARP;
    typedef share<T, BM, A_DEEP, THREADS, GENERAL> a_share;
    typedef share<T, BN, B_DEEP, THREADS, GENERAL> b_share;
    struct buffers { T a[STAGES][a_share::ELEMENTS], b[STAGES][b_share::ELEMENTS]; };
    union alignas(128) memory {
        buffers in;
        float sum[BM][BN + 4];
    };
};

template <class T, int BM, int BN, int DOWN, int ACROSS, bool A_DEEP, bool B_DEEP, bool GENERAL>
static __global__ void
__launch_bounds__(DOWN * ACROSS * WARP, 16 / (DOWN * ACROSS))    /* 16 warps an SM: 128 registers */
product_kernel(struct product p)
{
    SD_BEGIN();
    typedef shape<T, BM, BN, DOWN, ACROSS, A_DEEP, B_DEEP, GENERAL> S;
    typedef typename S::memory memory;
    static const int STEP = STEP_BYTES / sizeof(T);
    SD_SHARED(memory, s);
    sums<T, BM, BN, DOWN, ACROSS, A_DEEP, B_DEEP> sum;
    typename S::a_share a;
    typename S::b_share b;
    int down = (p.rows + BM - 1) / BM, across = (p.columns + BN - 1) / BN, z = (int)blockIdx.y;
    /* GROUP tiles below one another, then the next column: what runs at the same time shares rows and columns in L2 */
    int group = (int)blockIdx.x / (GROUP * across) * GROUP, high = min(GROUP, down - group);
    int within = (int)blockIdx.x % (GROUP * across), m0 = (group + within % high) * BM, n0 = within / high * BN;
    int begin = (int)blockIdx.z * p.split_steps * STEP, end = min(p.depth, begin + p.split_steps * STEP);
    int steps = (end - begin + STEP - 1) / STEP;

    a.start(p.a, m0, p.rows, begin, z);
    b.start(p.b, n0, p.columns, begin, z);
    #pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < steps) {
            a.step(p.a, s.in.a[i], begin + i * STEP, end, p.rows);
            b.step(p.b, s.in.b[i], begin + i * STEP, end, p.columns);
        }
        copy_async_commit();
    }
    for (int i = 0; i < steps; i++) {
        int next = i + STAGES - 1;

        copy_async_wait<STAGES - 2>();
        __syncthreads();
        if (next < steps) {
            a.step(p.a, s.in.a[next % STAGES], begin + next * STEP, end, p.rows);
            b.step(p.b, s.in.b[next % STAGES], begin + next * STEP, end, p.columns);
        }
        copy_async_commit();
        sum.step(s.in.a[i % STAGES], s.in.b[i % STAGES], S::a_share::PITCH, S::b_share::PITCH);
    }
    copy_async_wait<0>();
    __syncthreads();
    sum.put(s.sum);
    __syncthreads();
    for (int k = (int)threadIdx.x; k < BM * BN / 8; k += S::THREADS) {
        int m = k / (BN / 8), n = k % (BN / 8) * 8, columns = min(8, p.columns - n0 - n);
        float *x = &s.sum[m][n];

        if (m0 + m >= p.rows || columns <= 0)
            continue;
        if (p.splits > 1) {
            float *to = p.part + ((int64_t)(z * p.splits + (int)blockIdx.z) * p.rows + m0 + m) * p.columns + n0 + n;

            for (int e = 0; e < columns; e++)
                to[e] = x[e];
        } else if (p.to.vectors)
            finish_any<T, 8>(p.to, x, m0 + m, n0 + n, z);
        else
            for (int e = 0; e < columns; e++)
                finish_any<T, 1>(p.to, x + e, m0 + m, n0 + n + e, z);
    }
}

/* The parts of each sum, one after the other. */
template <class T> static __global__ void
parts_kernel(struct product p)
{
    SD_BEGIN();
    int64_t each = (int64_t)p.rows * p.columns, at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    int z = (int)blockIdx.y;
    const float *part = p.part + z * p.splits * each + at;
    float sum = 0;

    if (at >= each)
        return;
    for (int i = 0; i < p.splits; i++)
        sum += part[i * each];
    finish_any<T, 1>(p.to, &sum, (int)(at / p.columns), (int)(at % p.columns), z);
}

/* -- which tile ------------------------------------------------------------------------------------------------------ */

struct tile { int rows, columns; double speed; };
enum { T128x128, T128x64, T64x64, T64x16, T16x64, TILES };
/* speed: of a full SM, against the largest; what decides is shape alone, 132 SMs whatever the card has */
const struct tile tiles[TILES] = { { 128, 128, 1 }, { 128, 64, 0.85 }, { 64, 64, 0.65 }, { 64, 16, 0.2 }, { 16, 64, 0.2 } };

static int64_t
tiles_of(const struct product &p, int t)
{
    return ceil_div(p.rows, tiles[t].rows) * ceil_div(p.columns, tiles[t].columns) * p.batch;
}

static bool
needs_general(const struct product &p)
{
    int each = 16 / (int)sd_dtype_size(p.dtype);

    return p.a.unit != each || p.b.unit != each || (!p.a_deep && p.b_deep);
}

/* Time of the waves of blocks, for a unit of depth. */
static int
choose_tile(const struct product &p)
{
    int best = T64x64;
    double least = 0;

    if (p.dtype == SD_F32)
        return T64x64;
    if (!p.a_deep && p.b_deep)
        return T64x64;
    if (p.columns <= 32 && p.rows > 32)
        return T64x16;
    if (p.rows <= 32)
        return T16x64;
    if (p.rows <= 64 || p.columns <= 64 || needs_general(p))
        return T64x64;
    for (int t = T128x128; t <= T64x64; t++) {
        double each = tiles[t].rows * tiles[t].columns / tiles[t].speed, time = (double)ceil_div(tiles_of(p, t), FILL) * each;

        if (t == T128x128 || time < least) {
            best = t;
            least = time;
        }
    }
    return best;
}

/* Parts of the depth, each SHORTEST steps or more. */
static void
choose_splits(struct product *p, int tile)
{
    int64_t step = STEP_BYTES / (int64_t)sd_dtype_size(p->dtype), steps = ceil_div(p->depth, step), blocks = tiles_of(*p, tile);
    int64_t splits = blocks < FILL ? 2 * FILL / blocks : 1;

    if (splits > steps / SHORTEST)
        splits = steps / SHORTEST;
    if (splits > MOST_SPLITS)
        splits = MOST_SPLITS;
    if (splits < 1)
        splits = 1;
    p->split_steps = (int)(splits > 1 ? ceil_div(steps, splits) : steps > 0 ? steps : 1);
    p->splits = splits > 1 ? (int)ceil_div(steps, p->split_steps) : 1;
}

static int
unit_of(const struct operand &o, bool deep, int64_t inner, enum sd_dtype dtype, int each)
{
    int64_t size = (int64_t)sd_dtype_size(dtype);
    int64_t any = (deep ? (int64_t)o.channels : inner) | o.batch | o.sb | o.sy | o.sx;

    for (int unit = each; unit > 1; unit = unit == 8 ? 4 : 1)
        if (any % unit == 0 && (uintptr_t)o.data % (uintptr_t)(unit * size) == 0)
            return unit;
    return 1;
}

static bool
vectors_fit(const struct product &p)
{
    const struct result &r = p.to;
    int64_t any = p.columns | r.d_batch | r.d_sb | r.d_sy | r.d_sx;
    uintptr_t at = (uintptr_t)r.d | (uintptr_t)r.bias | (uintptr_t)r.bias_d | (uintptr_t)r.channel_add | (uintptr_t)r.c;

    if (r.c)
        any |= r.c_batch | r.c_sb | r.c_sy | r.c_sx;
    if (r.channel_add)
        any |= r.channel_add_pitch;
    return r.sn == 1 && any % 8 == 0 && at % 16 == 0;
}

/* What the shape and the addresses say. */
static int
prepare(struct product *p)
{
    int each = 16 / (int)sd_dtype_size(p->dtype), tile;

    p->a.unit = unit_of(p->a, p->a_deep, p->rows, p->dtype, each);
    p->b.unit = unit_of(p->b, p->b_deep, p->columns, p->dtype, each);
    p->to.vectors = vectors_fit(*p);
    tile = choose_tile(*p);
    choose_splits(p, tile);
    return tile;
}

template <class T, int BM, int BN, int DOWN, int ACROSS, bool A_DEEP, bool B_DEEP, bool GENERAL> static void
launch(struct sd_device *d, const struct product &p, int tile)
{
    typedef typename shape<T, BM, BN, DOWN, ACROSS, A_DEEP, B_DEEP, GENERAL>::memory memory;
    dim3 grid((unsigned)(tiles_of(p, tile) / p.batch), (unsigned)p.batch, (unsigned)p.splits);

    SD_LAUNCH(d, (product_kernel<T, BM, BN, DOWN, ACROSS, A_DEEP, B_DEEP, GENERAL>), grid, DOWN * ACROSS * WARP, sizeof(memory), p);
}

template <class T, bool A_DEEP, bool B_DEEP> static void
launch_tile(struct sd_device *d, const struct product &p, int tile)
{
    bool general = needs_general(p);

    switch (tile) {
    case T128x128: launch<T, 128, 128, 2, 4, A_DEEP, B_DEEP, false>(d, p, tile); break;
    case T128x64: launch<T, 128, 64, 2, 2, A_DEEP, B_DEEP, false>(d, p, tile); break;
    case T64x16:
        if (general)
            launch<T, 64, 16, 4, 1, A_DEEP, B_DEEP, true>(d, p, tile);
        else
            launch<T, 64, 16, 4, 1, A_DEEP, B_DEEP, false>(d, p, tile);
        break;
    case T16x64:
        if (general)
            launch<T, 16, 64, 1, 4, A_DEEP, B_DEEP, true>(d, p, tile);
        else
            launch<T, 16, 64, 1, 4, A_DEEP, B_DEEP, false>(d, p, tile);
        break;
    default:
        if (general)
            launch<T, 64, 64, 2, 2, A_DEEP, B_DEEP, true>(d, p, tile);
        else
            launch<T, 64, 64, 2, 2, A_DEEP, B_DEEP, false>(d, p, tile);
    }
}

template <class T> static void
launch_any(struct sd_device *d, const struct product &p, int tile)
{
    if (p.a_deep && p.b_deep)
        launch_tile<T, true, true>(d, p, tile);
    else if (p.a_deep)
        launch_tile<T, true, false>(d, p, tile);
    else if (!p.b_deep)
        launch_tile<T, false, false>(d, p, tile);
    else
        launch<T, 64, 64, 2, 2, false, true, true>(d, p, tile);
}

template <> void
launch_any<float>(struct sd_device *d, const struct product &p, int tile)
{
    if (p.a_deep && p.b_deep)
        launch<float, 64, 64, 2, 2, true, true, true>(d, p, tile);
    else if (p.a_deep)
        launch<float, 64, 64, 2, 2, true, false, true>(d, p, tile);
    else if (p.b_deep)
        launch<float, 64, 64, 2, 2, false, true, true>(d, p, tile);
    else
        launch<float, 64, 64, 2, 2, false, false, true>(d, p, tile);
}

static int
small(int64_t n)
{
    if (n < 0 || n > INT32_MAX / 2)
        sd_bug("gemm", "%lld rows, columns or elements between rows", (long long)n);
    return (int)n;
}

}   /* namespace */

namespace sd {

size_t
product_scratch(const struct product &p)
{
    size_t most = 0;

    if (!p.rows || !p.columns || !p.batch)
        return 0;
    for (int shifted = 0; shifted < 2; shifted++) {     /* addresses are not known yet, and may ask for the general form */
        struct product q = p;

        q.a.data = q.b.data = reinterpret_cast<const void *>((uintptr_t)shifted);
        prepare(&q);
        if (q.splits > 1 && (size_t)q.splits > most)
            most = (size_t)q.splits;
    }
    return most * (size_t)p.batch * (size_t)p.rows * (size_t)p.columns * sizeof(float);
}

void
product_run(struct sd_device *d, struct product p)
{
    int tile;

    if (!p.rows || !p.columns || !p.batch)
        return;
    tile = prepare(&p);
    if (!p.part)
        p.split_steps = (int)ceil_div(p.depth ? p.depth : 1, STEP_BYTES / (int64_t)sd_dtype_size(p.dtype)), p.splits = 1;
    SD_BY_DTYPE(p.dtype, T, launch_any<T>(d, p, tile));
    if (p.splits > 1) {
        dim3 grid((unsigned)ceil_div((int64_t)p.rows * p.columns, 256), (unsigned)p.batch);

        SD_BY_DTYPE(p.dtype, T, SD_LAUNCH(d, parts_kernel<T>, grid, 256, 0, p));
    }
}

struct operand
plain_operand(const void *data, int64_t rows, int64_t inner, int64_t pitch, int64_t batch)
{
    struct operand o = {};

    o.data = data;
    o.batch = batch;
    o.sx = small(pitch);
    o.n1 = o.high = o.step = 1;
    o.n0 = o.wide = small(rows > 0 ? rows : 1);
    o.channels = small(inner > 0 ? inner : 1);
    return o;
}

struct result
plain_result(void *d, int64_t rows, int64_t pitch, int64_t batch)
{
    struct result r = {};

    r.d = d;
    r.d_batch = batch;
    r.d_sx = pitch;
    r.n1 = 1;
    r.n0 = small(rows > 0 ? rows : 1);
    r.sn = 1;
    return r;
}

}   /* namespace sd */

static struct product
product_of(const struct gemm_call *g)
{
    struct product p = {};

    p.dtype = g->dtype;
    p.rows = small(g->rows);
    p.columns = small(g->columns);
    p.depth = small(g->depth);
    p.batch = g->batch ? small(g->batch) : 1;
    p.a_deep = !g->a_turned;
    p.b_deep = g->b_turned;
    p.a = plain_operand(g->a, p.a_deep ? g->rows : g->depth, p.a_deep ? g->depth : g->rows, g->a_pitch, g->a_batch);
    p.b = plain_operand(g->b, p.b_deep ? g->columns : g->depth, p.b_deep ? g->depth : g->columns, g->b_pitch, g->b_batch);
    if (p.a_deep)
        p.a.across = 1;
    if (p.b_deep)
        p.b.across = 1;
    p.to = plain_result(g->d, g->rows, g->d_pitch, g->d_batch);
    p.to.c = g->c;
    p.to.c_sx = g->c_pitch;
    p.to.c_batch = g->c_batch;
    p.to.f32 = g->d_dtype == SD_F32;
    p.to.bias = g->bias;
    p.to.bias_d = g->bias_d;
    p.part = static_cast<float *>(g->scratch);
    return p;
}

size_t
gemm_scratch(const struct gemm_call *call)
{
    return product_scratch(product_of(call));
}

bool
gemm_cuda(struct sd_device *d, const struct gemm_call *call)
{
    if (call->d_dtype != call->dtype && call->d_dtype != SD_F32)
        sd_bug("gemm", "%s from %s", sd_dtype_name(call->d_dtype), sd_dtype_name(call->dtype));
    product_run(d, product_of(call));
    return true;
}
