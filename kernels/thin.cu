/* thin: products with a thin side, for projections.cu.
 *
 * A block of 128 threads makes 64 x 64 sums, 128 bytes of depth at a time through four buffers of shared memory
 * (cp.async; 74 KB, three blocks an SM of an H100); a warp has 16 columns, and leaves out products beyond the sides.
 * 16-bit: ldmatrix and mma.m16n8k16, sums f32; f32: FFMA.  As one side is thin, it is bound by what it reads of the
 * other, once; with few rows by the time that reads take: 1280 deep are 20 steps, three of them under way, some 5 us.
 * What 16-byte copies cannot take goes element by element. */
#include "thin.cuh"

using namespace sd;

namespace {

enum { STEP_BYTES = 128, STAGES = 4, THREADS = 128, PIECE = 8 };

template <class T, bool A_DEEP, bool B_DEEP> struct thin_tiles {
    static const int STEP = STEP_BYTES / sizeof(T), EACH = 16 / sizeof(T);
    static const int A_ROWS = A_DEEP ? THIN_TILE : STEP, A_COLUMNS = A_DEEP ? STEP : THIN_TILE;
    static const int B_ROWS = B_DEEP ? THIN_TILE : STEP, B_COLUMNS = B_DEEP ? STEP : THIN_TILE;
    static const int A_PITCH = A_COLUMNS + EACH, B_PITCH = B_COLUMNS + EACH;
    struct buffers { T a[STAGES][A_ROWS * A_PITCH], b[STAGES][B_ROWS * B_PITCH]; };
    union alignas(128) memory {
        buffers in;
        float sum[THIN_TILE][THIN_TILE + 4];
    };
};

template <class T> static __device__ inline bool
on_16(const T *p)
{
    return (uintptr_t)p % 16 == 0;
}

/* Rows that lie so and the corner among them: 16 bytes at a time? */
template <class T> static __device__ inline bool
whole_rows(const T *corner, int64_t pitch)
{
    return ((uintptr_t)corner | (uintptr_t)(pitch * (int64_t)sizeof(T))) % 16 == 0;
}

/* A tile whose corner is at `from`; rows x columns of it are there, the rest is zero.  DEEP: its rows are those of D,
 * or D's columns; else its columns are; of these, what lies beyond the next 16 is not looked at, and not set. */
template <class T, int ROWS, int COLUMNS, int PITCH, bool DEEP> static __device__ inline void
bring(T *to, const T *from, int64_t pitch, int rows, int columns, bool whole)
{
    const int EACH = 16 / (int)sizeof(T), ACROSS = COLUMNS / EACH, APART = THREADS / ACROSS;
    int first = (int)threadIdx.x / ACROSS, column = (int)threadIdx.x % ACROSS * EACH;
    int limit = DEEP ? (rows + 15) / 16 * 16 : ROWS;

    static_assert(THREADS % ACROSS == 0 && ROWS % APART == 0, "all pieces of a thread in one column");
    if (!DEEP && column >= (columns + 15) / 16 * 16)
        return;
    from += first * pitch + column;
    to += first * PITCH + column;
#pragma unroll
    for (int row = 0; row < ROWS; row += APART, from += APART * pitch, to += APART * PITCH) {
        int left = row + first < rows ? columns - column : 0;

        if (row + first >= limit)
            continue;
        if (left >= EACH && whole)
            copy_async16(to, from, true);
        else if (left <= 0)
            store<EACH>(to, vec<T, EACH>{});
        else
            for (int e = 0; e < EACH; e++)
                to[e] = e < left ? from[e] : T{};
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
    float d[THIN_TILE / 16][2][4];

    __device__ thin_sums()
    {
#pragma unroll
        for (int i = 0; i < THIN_TILE / 16 * 8; i++)
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
            for (int i = 0; i < THIN_TILE / 16; i++)
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
    put(float (*to)[THIN_TILE + 4]) const
    {
        int lane = (int)threadIdx.x % WARP, m = lane / 4, n = (int)threadIdx.x / WARP * 16 + lane % 4 * 2;

#pragma unroll
        for (int i = 0; i < THIN_TILE / 16; i++)
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
    put(float (*to)[THIN_TILE + 4]) const
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
    const int EACH = 16 / (int)sizeof(T), ACROSS = STEP / EACH, APART = THREADS / ACROSS;
    int row = (int)threadIdx.x / ACROSS, column = (int)threadIdx.x % ACROSS * EACH, left = columns - column;
    bool whole = whole_rows(to, pitch);

    to += row * pitch + column;
    from += row * PITCH + column;
    for (; row < rows && row < THIN_TILE; row += APART, to += APART * pitch, from += APART * PITCH)
        if (left >= EACH && whole)
            store<EACH>(to, load<EACH>(from));
        else
            for (int e = 0; e < EACH && e < left; e++)
                to[e] = from[e];
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
    int n0 = (tile - q.first) * THIN_TILE, m0 = (int)(blockIdx.x / (unsigned)p.across) * THIN_TILE;
    int m = q.m - m0, n = q.n - n0, begin = (int)blockIdx.y * p.chunk, end = min(q.k, begin + p.chunk);
    int steps = (end - begin + S::STEP - 1) / S::STEP;
    const T *a = static_cast<const T *>(p.a) + q.a + (A_DEEP ? m0 * p.a_pitch + begin : begin * p.a_pitch + m0);
    const T *b = static_cast<const T *>(p.b) + q.b + (B_DEEP ? n0 * p.b_pitch + begin : begin * p.b_pitch + n0);
    bool a_whole = whole_rows(a, p.a_pitch), b_whole = whole_rows(b, p.b_pitch);
    int64_t a_step = A_DEEP ? S::STEP : S::STEP * p.a_pitch, b_step = B_DEEP ? S::STEP : S::STEP * p.b_pitch;

    if (m <= 0 || n <= 0)               /* the whole block */
        return;
    auto bring_both = [&](int step) {
        int left = end - begin - step * S::STEP;

        if (left > 0) {
            bring<T, S::A_ROWS, S::A_COLUMNS, S::A_PITCH, A_DEEP>(s.in.a[step % STAGES], a + step * a_step, p.a_pitch,
                                                                  A_DEEP ? m : left, A_DEEP ? left : m, a_whole);
            bring<T, S::B_ROWS, S::B_COLUMNS, S::B_PITCH, B_DEEP>(s.in.b[step % STAGES], b + step * b_step, p.b_pitch,
                                                                  B_DEEP ? n : left, B_DEEP ? left : n, b_whole);
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
    for (int k = (int)threadIdx.x; k < THIN_TILE * THIN_TILE / PIECE; k += THREADS) {
        int row = k / (THIN_TILE / PIECE), column = k % (THIN_TILE / PIECE) * PIECE, count = n - column;
        float *x = &s.sum[row][column];
        int64_t r = m0 + row;

        if (row >= m || count <= 0)
            continue;
        if (p.part) {
            put_piece<float>(p.part + blockIdx.y * p.part_size + q.d + r * q.n + n0 + column, x, count);
            continue;
        }
        int64_t at = q.d + n0 + column;

        if (p.c)
            add_piece<T>(x, static_cast<const T *>(p.c) + at + r * p.c_pitch, count);
        if (p.e)
            add_piece<T>(x, static_cast<const T *>(p.e) + at + r * p.e_pitch, count);
        put_piece<T>(static_cast<T *>(p.d) + at + r * p.d_pitch, x, count);
    }
}

}   /* namespace */

namespace sd {

void
thin_add(struct thin *p, int64_t a, int64_t b, int64_t d, int64_t m, int64_t n, int64_t k)
{
    thin_part *q = &p->at[p->parts];

    if (m > INT32_MAX || n > INT32_MAX || k > INT32_MAX - STEP_BYTES * STAGES)
        sd_bug("thin", "%lld x %lld x %lld", (long long)m, (long long)n, (long long)k);
    q->a = a;
    q->b = b;
    q->d = d;
    q->m = (int)m;
    q->n = (int)n;
    q->k = (int)k;
    q->first = p->across;
    p->across += (int)ceil_div(n, THIN_TILE);
    p->parts++;
}

void
thin_run(struct sd_device *d, enum sd_dtype dtype, struct thin p, bool a_deep, bool b_deep, int chunks)
{
    int64_t down = 0, most = 0;

    for (int i = 0; i < p.parts; i++) {
        down = down < p.at[i].m ? p.at[i].m : down;
        most = most < p.at[i].k ? p.at[i].k : most;
    }
    down = ceil_div(down, THIN_TILE);
    if (!down || !p.across)
        return;
    if (chunks == 1)
        p.chunk = (int)most;
    if (down * p.across > INT32_MAX)
        sd_bug("thin", "%lld tiles", (long long)(down * p.across));
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

}   /* namespace sd */
