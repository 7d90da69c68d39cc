/* thin: products with a thin side, for projections.cu.
 *
 * A block of four warps makes a tile of 64 x 64 sums, or 16 x 16 or 16 x 64 where that would leave a card idle or a tile
 * empty.  Depth comes in steps through a ring of shared memory (cp.async).  16-bit: ldmatrix and mma.m16n8k16, sums f32; a
 * warp has 16 rows and all columns, and where a tile has fewer than 64 rows the warps share the depth, 16 of it each in
 * turn, and add up in order at the end.  f32: FFMA, tiles of 64 x 64.  What 16-byte copies cannot take goes element by
 * element.
 *
 * As one side is thin, it is bound by what it reads of the other, and with few rows by the time that reads take: on an
 * H100 some 0.7 us from asking to having (L2, HBM), then 30 to 40 bytes a clock and SM, 60 KB a us.  So a block asks for
 * some 50 KB before it waits, and is small:
 *     u, 16 x 16           a step of 256 bytes is 4 + 4 KB, 7 under way: 1280 deep is 10 steps, 80 KB, 2 us; 64 x 64, with
 *                          3 steps of 10 KB under way, would be 204 KB, 5 us.  64 rows are 4 blocks instead of 1.  Rank 48
 *                          is three blocks a row that read x each, 2 us, where one would read 160 KB, 3.3 us
 *     u, many rows         64 x 64: 16 x 16 would read 2 (rank 16) or 4 (48) times as much of L2, and more than two blocks
 *                          an SM are no faster; 4096 rows, 320 deep, rank 48: 72 KB a block, 2 us
 *     gradients, rank 16   16 x 64: a step of 64 rows is 2 + 8 KB, 5 under way: 256 rows 1.3 us, 1024 rows 3.4 us
 *     dx                   64 x 64, one step (rank 16: 2 + 2 KB); C and E are asked for before the first wait */
#include "thin.cuh"

using namespace sd;

namespace {

enum { THREADS = 128, WARPS = THREADS / WARP, PIECE = 8, FEW = 264 };   /* FEW: blocks that are two an SM */

/* How a product is cut: rows and columns of a tile, steps of STEP_BYTES of each row that lies along the depth, as many
 * elements of the others; STAGES of the ring. */
template <class TYPE, bool A_DEEP_, bool B_DEEP_, int TM_, int TN_, int STEP_BYTES, int STAGES_> struct cut {
    typedef TYPE T;
    static const bool A_DEEP = A_DEEP_, B_DEEP = B_DEEP_, ADDS = A_DEEP_ && TM_ == THIN_TILE;   /* takes C and E */
    static const int TM = TM_, TN = TN_, STAGES = STAGES_, STEP = STEP_BYTES / sizeof(T), EACH = 16 / sizeof(T);
    static const int A_ROWS = A_DEEP ? TM : STEP, A_COLUMNS = A_DEEP ? STEP : TM;
    static const int B_ROWS = B_DEEP ? TN : STEP, B_COLUMNS = B_DEEP ? STEP : TN;
    static const int A_PITCH = A_COLUMNS + EACH, B_PITCH = B_COLUMNS + EACH;
    struct buffers { T a[STAGES][A_ROWS * A_PITCH], b[STAGES][B_ROWS * B_PITCH]; };
    union alignas(128) memory {
        buffers in;
        float sum[16 * WARPS][TN + 4];
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

/* A tile whose corner is at `from`; rows x columns of it are there, the rest up to the next 16 is zero, and beyond that not
 * set. */
template <class T, int ROWS, int COLUMNS, int PITCH> static __device__ inline void
bring(T *to, const T *from, int64_t pitch, int rows, int columns, bool whole)
{
    const int EACH = 16 / (int)sizeof(T), ACROSS = COLUMNS / EACH, APART = THREADS / ACROSS;
    int first = (int)threadIdx.x / ACROSS, column = (int)threadIdx.x % ACROSS * EACH;
    int limit = (rows + 15) / 16 * 16;

    static_assert(THREADS % ACROSS == 0 && ROWS % APART == 0, "all pieces of a thread in one column");
    if (column >= (columns + 15) / 16 * 16)
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

/* PIECE neighbours, or the first `count` of them and zeros */
template <class T> static __device__ inline few<PIECE, T>
fetch_piece(const T *from, int count)
{
    few<PIECE, T> v = {};

    if (count >= PIECE && on_16(from))
        v.load(from);
    else
#pragma unroll
        for (int i = 0; i < PIECE; i++)
            if (i < count)
                v.set(i, from[i]);
    return v;
}

template <class T> static __device__ inline void
add_piece(float *sum, const few<PIECE, T> &v)
{
#pragma unroll
    for (int i = 0; i < PIECE; i++)
        sum[i] += v[i];
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
    } else {
#pragma unroll
        for (int i = 0; i < PIECE; i++)
            if (i < count)
                to[i] = from_float<T>(sum[i]);
    }
}

/* -- sums ----------------------------------------------------------------------------------------------------------- */

/* 16-bit, as mma leaves them: warp w has the rows of strip w % strips, and of each step's depth every piece of 16 that is
 * w / strips of as many as there are warps to a strip.  m, n: rows and columns that are there. */
template <class S, class T = typename S::T> struct thin_sums {
    float d[S::TN / 16][2][4];
    int strips;

    __device__
    thin_sums(int m)
    {
        strips = S::TM == 16 || m <= 16 ? 1 : m <= 32 ? 2 : 4;
#pragma unroll
        for (int i = 0; i < S::TN / 16 * 8; i++)
            (&d[0][0][0])[i] = 0;
    }

    __device__ void
    step(const T *a, const T *b, int m, int n, int depth)
    {
        int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, row = warp % strips * 16;
        int low = lane % 8, odd = lane / 8 % 2 * 8, high = lane / 16 * 8;

        if (row >= m)
            return;
        for (int k = warp / strips * 16; k < S::STEP && k < depth; k += WARPS / strips * 16) {
            uint32_t fa[4], fb[4];

            if (S::A_DEEP)
                ldmatrix4(fa, a + (row + odd + low) * S::A_PITCH + k + high);
            else
                ldmatrix4_turned(fa, a + (k + high + low) * S::A_PITCH + row + odd);
#pragma unroll
            for (int j = 0; j < S::TN / 16; j++)
                if (j * 16 < n) {
                    if (S::B_DEEP)
                        ldmatrix4(fb, b + (j * 16 + high + low) * S::B_PITCH + k + odd);
                    else
                        ldmatrix4_turned(fb, b + (k + odd + low) * S::B_PITCH + j * 16 + high);
                    mma<T>(d[j][0], fa, fb);
                    mma<T>(d[j][1], fa, fb + 2);
                }
        }
    }

    __device__ void
    put(float (*to)[S::TN + 4]) const
    {
        int lane = (int)threadIdx.x % WARP, m = (int)threadIdx.x / WARP * 16 + lane / 4;

#pragma unroll
        for (int j = 0; j < S::TN / 16; j++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int n = j * 16 + i * 8 + lane % 4 * 2;

                store<2>(&to[m][n], vec<float, 2>{ { d[j][i][0], d[j][i][1] } });
                store<2>(&to[m + 8][n], vec<float, 2>{ { d[j][i][2], d[j][i][3] } });
            }
    }

    /* COUNT of the sums of a row, of all warps that share it */
    template <int COUNT> __device__ vec<float, COUNT>
    get(const float (*from)[S::TN + 4], int row, int column) const
    {
        vec<float, COUNT> x = {};

        for (int r = row; r < 16 * WARPS; r += strips * 16)
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                x.at[i] += from[r][column + i];
        return x;
    }
};

/* f32: a thread has every 8th row of every 16th column. */
template <class S> struct thin_sums<S, float> {
    float d[8][4];

    __device__
    thin_sums(int)
    {
        static_assert(S::TM == 64 && S::TN == 64, "f32");
#pragma unroll
        for (int i = 0; i < 32; i++)
            (&d[0][0])[i] = 0;
    }

    __device__ void
    step(const float *a, const float *b, int, int, int depth)
    {
        int line = (int)threadIdx.x / 16, column = (int)threadIdx.x % 16;

#pragma unroll 4
        for (int k = 0; k < min(depth, S::STEP); k++) {
            float x[8], y[4];

#pragma unroll
            for (int i = 0; i < 8; i++)
                x[i] = S::A_DEEP ? a[(line + i * 8) * S::A_PITCH + k] : a[k * S::A_PITCH + line + i * 8];
#pragma unroll
            for (int j = 0; j < 4; j++)
                y[j] = S::B_DEEP ? b[(column + j * 16) * S::B_PITCH + k] : b[k * S::B_PITCH + column + j * 16];
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    d[i][j] += x[i] * y[j];
        }
    }

    __device__ void
    put(float (*to)[S::TN + 4]) const
    {
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                to[(int)threadIdx.x / 16 + i * 8][(int)threadIdx.x % 16 + j * 16] = d[i][j];
    }

    template <int COUNT> __device__ vec<float, COUNT>
    get(const float (*from)[S::TN + 4], int row, int column) const
    {
        vec<float, COUNT> x;

#pragma unroll
        for (int i = 0; i < COUNT; i++)
            x.at[i] = from[row][column + i];
        return x;
    }
};

/* -- a tile --------------------------------------------------------------------------------------------------------- */

/* A's tile, as it lies in shared memory, to its second place */
template <class S> static __device__ inline void
copy_tile(typename S::T *to, int64_t pitch, const typename S::T *from, int rows, int columns)
{
    const int ACROSS = S::STEP / S::EACH, APART = THREADS / ACROSS;
    int row = (int)threadIdx.x / ACROSS, column = (int)threadIdx.x % ACROSS * S::EACH, left = columns - column;
    bool whole = whole_rows(to, pitch);

    to += row * pitch + column;
    from += row * S::A_PITCH + column;
    for (; row < rows && row < S::TM; row += APART, to += APART * pitch, from += APART * S::A_PITCH)
        if (left >= S::EACH && whole)
            store<S::EACH>(to, load<S::EACH>(from));
        else
            for (int e = 0; e < S::EACH && e < left; e++)
                to[e] = from[e];
}

/* Where a block is: its tile's corner, what is there of it, its stretch of the depth. */
struct place { int m0, n0, m, n, begin, end, chunk; };

template <class S> static __device__ inline struct place
place_of(const thin_part &q, const thin_pair &o, int block)
{
    int across = (q.n + S::TN - 1) / S::TN, down = (q.m + S::TM - 1) / S::TM;
    struct place t;

    t.n0 = block % across * S::TN;
    block /= across;
    t.m0 = block % down * S::TM;
    t.chunk = block / down;
    t.m = min(q.m - t.m0, S::TM);
    t.n = min(q.n - t.n0, S::TN);
    t.begin = t.chunk * o.chunk;
    t.end = o.chunk ? min(q.k, t.begin + o.chunk) : q.k;
    return t;
}

/* Pieces of a tile that a thread puts where they go: the i-th one's row and column. */
template <class S> struct pieces {
    static const int COUNT = (S::TM * S::TN / PIECE + THREADS - 1) / THREADS;
    int row[COUNT], column[COUNT], count[COUNT];

    __device__
    pieces(const struct place &t)
    {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int k = (int)threadIdx.x + i * THREADS;

            row[i] = k / (S::TN / PIECE);
            column[i] = k % (S::TN / PIECE) * PIECE;
            count[i] = row[i] < t.m ? t.n - column[i] : 0;
        }
    }
};

/* to the gradient [n, m]: neighbours are those of a column */
template <class S> static __device__ inline void
add_turned(const thin_part &q, const struct place &t, const thin_sums<S> &sum, const float (*from)[S::TN + 4])
{
    for (int i = (int)threadIdx.x; i < t.m * t.n; i += THREADS) {
        int row = i % t.m, column = i / t.m;

        q.to[(int64_t)(t.n0 + column) * q.m + t.m0 + row] += sum.template get<1>(from, row, column).at[0];
    }
}

template <class S> static __device__ inline void
make_tile(typename S::memory &s, const struct thin &p, const thin_part &q, int block)
{
    typedef typename S::T T;
    const thin_pair &o = p.pair[q.pair];
    const struct place t = place_of<S>(q, o, block);
    const pieces<S> mine(t);
    const int PIECES = pieces<S>::COUNT;
    thin_sums<S> sum(t.m);
    few<PIECE, T> c[PIECES], e[PIECES];
    int steps = (t.end - t.begin + S::STEP - 1) / S::STEP;
    const T *a = static_cast<const T *>(o.a) + q.a + (S::A_DEEP ? t.m0 * o.a_pitch + t.begin : t.begin * o.a_pitch + t.m0);
    const T *b = static_cast<const T *>(o.b) + q.b + (S::B_DEEP ? t.n0 * o.b_pitch + t.begin : t.begin * o.b_pitch + t.n0);
    bool a_whole = whole_rows(a, o.a_pitch), b_whole = whole_rows(b, o.b_pitch);
    int64_t a_step = S::A_DEEP ? S::STEP : S::STEP * o.a_pitch, b_step = S::B_DEEP ? S::STEP : S::STEP * o.b_pitch;
    auto bring_both = [&](int step) {
        int left = min(S::STEP, t.end - t.begin - step * S::STEP);

        if (left > 0) {
            bring<T, S::A_ROWS, S::A_COLUMNS, S::A_PITCH>(s.in.a[step % S::STAGES], a + step * a_step, o.a_pitch,
                                                          S::A_DEEP ? t.m : left, S::A_DEEP ? left : t.m, a_whole);
            bring<T, S::B_ROWS, S::B_COLUMNS, S::B_PITCH>(s.in.b[step % S::STAGES], b + step * b_step, o.b_pitch,
                                                          S::B_DEEP ? t.n : left, S::B_DEEP ? left : t.n, b_whole);
        }
        copy_async_commit();
    };

    for (int k = 0; k < S::STAGES - 1; k++)
        bring_both(k);
    if (S::ADDS) {
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            int64_t r = t.m0 + mine.row[i], at = q.d + t.n0 + mine.column[i];

            c[i] = fetch_piece(static_cast<const T *>(p.c) + at + r * p.c_pitch, p.c ? mine.count[i] : 0);
            e[i] = fetch_piece(static_cast<const T *>(p.e) + at + r * p.e_pitch, p.e ? mine.count[i] : 0);
        }
    }
    for (int k = 0; k < steps; k++) {
        copy_async_wait<S::STAGES - 2>();
        __syncthreads();
        bring_both(k + S::STAGES - 1);
        sum.step(s.in.a[k % S::STAGES], s.in.b[k % S::STAGES], t.m, t.n, t.end - t.begin - k * S::STEP);
        if (S::A_DEEP && S::B_DEEP && p.copy && t.n0 == 0)
            copy_tile<S>(static_cast<T *>(p.copy) + t.m0 * p.copy_pitch + k * S::STEP, p.copy_pitch, s.in.a[k % S::STAGES],
                         t.m, t.end - k * S::STEP);
    }
    copy_async_wait<0>();
    __syncthreads();
    sum.put(s.sum);
    __syncthreads();
    if (!S::A_DEEP && q.to && q.turned) {
        add_turned<S>(q, t, sum, s.sum);
        return;
    }
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        int count = mine.count[i];
        int64_t r = t.m0 + mine.row[i], column = t.n0 + mine.column[i];

        if (count <= 0)
            continue;
        vec<float, PIECE> x = sum.template get<PIECE>(s.sum, mine.row[i], mine.column[i]);

        if (!S::A_DEEP && q.to) {
            float *to = q.to + r * q.n + column, scale = p.scale ? p.scale[q.a + r] : 1;

#pragma unroll
            for (int k = 0; k < PIECE; k++)
                x.at[k] *= scale;
            add_piece(x.at, fetch_piece(static_cast<const float *>(to), count));
            put_piece(to, x.at, count);
        } else if (!S::A_DEEP)
            put_piece(o.part + t.chunk * o.part_size + q.d + r * q.n + column, x.at, count);
        else {
            if (S::ADDS && p.c)
                add_piece(x.at, c[i]);
            if (S::ADDS && p.e)
                add_piece(x.at, e[i]);
            put_piece(static_cast<T *>(p.d) + q.d + column + r * p.d_pitch, x.at, count);
            if (p.again)
                put_piece(static_cast<T *>(p.again) + q.d + column + r * p.again_pitch, x.at, count);
        }
    }
}

/* -- kernels -------------------------------------------------------------------------------------------------------- */

static __device__ inline int
part_of(const struct thin &p, int block)
{
    int found = 0, beyond = p.parts;

    while (beyond - found > 1) {
        int middle = (found + beyond) / 2;

        if (p.at[middle].first <= block)
            found = middle;
        else
            beyond = middle;
    }
    return found;
}

template <class S> static __global__ void
__launch_bounds__(THREADS)
thin_kernel(struct thin p)
{
    SD_BEGIN();
    typedef typename S::memory memory;
    SD_SHARED(memory, s);
    const thin_part &q = p.at[part_of(p, (int)blockIdx.x)];

    make_tile<S>(s, p, q, (int)blockIdx.x - q.first);
}

template <class GRADIENT, class DATA> union either {
    typename GRADIENT::memory gradient;
    typename DATA::memory data;
};

template <class GRADIENT, class DATA> static __global__ void
__launch_bounds__(THREADS)
gradients_kernel(struct thin p)
{
    SD_BEGIN();
    typedef either<GRADIENT, DATA> memory;
    SD_SHARED(memory, s);
    const thin_part &q = p.at[part_of(p, (int)blockIdx.x)];

    if (q.pair == THIN_DATA)
        make_tile<DATA>(s.data, p, q, (int)blockIdx.x - q.first);
    else
        make_tile<GRADIENT>(s.gradient, p, q, (int)blockIdx.x - q.first);
}

/* Numbers the blocks of all parts. */
template <class GRADIENT, class DATA> static void
number(struct thin *p)
{
    int64_t blocks = 0;

    for (int i = 0; i < p->parts; i++) {
        thin_part *q = &p->at[i];
        bool data = q->pair == THIN_DATA;
        int chunk = p->pair[q->pair].chunk;

        q->first = (int)blocks;
        blocks += ceil_div(q->m, data ? DATA::TM : GRADIENT::TM) * ceil_div(q->n, data ? DATA::TN : GRADIENT::TN) *
            (chunk ? ceil_div(q->k, chunk) : 1);
        if (blocks > INT32_MAX)
            sd_bug("thin", "%lld tiles", (long long)blocks);
    }
    p->blocks = (int)blocks;
}

template <class S> static void
run(struct sd_device *d, struct thin *p)
{
    number<S, S>(p);
    if (p->blocks)
        SD_LAUNCH(d, thin_kernel<S>, p->blocks, THREADS, sizeof(typename S::memory), *p);
}

template <class GRADIENT, class DATA> static void
run_gradients(struct sd_device *d, struct thin *p)
{
    number<GRADIENT, DATA>(p);
    if (p->blocks)
        SD_LAUNCH(d, (gradients_kernel<GRADIENT, DATA>), p->blocks, THREADS, sizeof(either<GRADIENT, DATA>), *p);
}

template <class T> static void
choose(struct sd_device *d, struct thin *p, bool b_deep)
{
    int64_t blocks = 0;

    for (int i = 0; i < p->parts; i++)
        blocks += ceil_div(p->at[i].m, 16) * ceil_div(p->at[i].n, 16);
    if constexpr (sizeof(T) == 2)
        if (!p->c && blocks <= FEW) {
            if (b_deep)
                run<cut<T, true, true, 16, 16, 256, 8>>(d, p);
            else
                run<cut<T, true, false, 16, 16, 256, 6>>(d, p);
            return;
        }
    if (b_deep)
        run<cut<T, true, true, 64, 64, 128, 4>>(d, p);
    else
        run<cut<T, true, false, 64, 64, 128, 4>>(d, p);
}

template <class T> static void
choose_gradients(struct sd_device *d, struct thin *p)
{
    typedef cut<T, true, false, 64, 64, 128, 4> data;
    int tallest = 0;

    for (int i = 0; i < p->parts; i++)
        if (p->at[i].pair != THIN_DATA)
            tallest = tallest < p->at[i].m ? p->at[i].m : tallest;
    if constexpr (sizeof(T) == 2)
        if (tallest <= 16) {
            run_gradients<cut<T, false, false, 16, 64, 128, 6>, data>(d, p);
            return;
        }
    run_gradients<cut<T, false, false, 64, 64, 128, 4>, data>(d, p);
}

int
small(int64_t x)
{
    if (x < 0 || x > INT32_MAX - 4096)
        sd_bug("thin", "a side or corner of %lld", (long long)x);
    return (int)x;
}

}   /* namespace */

namespace sd {

thin_part *
thin_add(struct thin *p, int pair, int64_t a, int64_t b, int64_t d, int64_t m, int64_t n, int64_t k)
{
    thin_part *q = &p->at[p->parts];

    if (p->parts++ == THIN_PARTS)
        sd_bug("thin", "more than %d parts", (int)THIN_PARTS);
    q->pair = (short)pair;
    q->a = small(a);
    q->b = small(b);
    q->d = small(d);
    q->m = small(m);
    q->n = small(n);
    q->k = small(k);
    return q;
}

void
thin_run(struct sd_device *d, enum sd_dtype dtype, struct thin *p, bool b_deep)
{
    SD_BY_DTYPE(dtype, T, choose<T>(d, p, b_deep));
}

void
thin_run_gradients(struct sd_device *d, enum sd_dtype dtype, struct thin *p)
{
    SD_BY_DTYPE(dtype, T, choose_gradients<T>(d, p));
}

}   /* namespace sd */
