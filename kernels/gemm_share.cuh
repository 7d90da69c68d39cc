/* gemm_share.cuh - for gemm.cu: a thread's share of a tile on its way from global to shared memory, by cp.async where 16
 * bytes lie in one piece. */
#ifndef SD_GEMM_SHARE_CUH
#define SD_GEMM_SHARE_CUH

#include "tile.cuh"

using namespace sd;

namespace {

enum { STEP_BYTES = 64, PAD_BYTES = 16 };       /* of depth at a time; behind each row of a tile */

/* A share of an operand's tile: OUT rows (or columns) of D times one step of depth, in 16-byte chunks; every chunk of a thread has
 * the same place in its row, so that what depends on the inner index is kept once. */
template <class T, int OUT, bool DEEP, int THREADS, bool GENERAL>
struct share {
    static const int STEP = STEP_BYTES / sizeof(T), EACH = 16 / sizeof(T);
    static const int ROWS = DEEP ? OUT : STEP, COLUMNS = DEEP ? STEP : OUT;
    static const int PITCH = COLUMNS + PAD_BYTES / (int)sizeof(T), ELEMENTS = ROWS * PITCH;
    static const int ACROSS = COLUMNS / EACH, CHUNKS = ROWS * ACROSS, COUNT = (CHUNKS + THREADS - 1) / THREADS;
    static const int APART = THREADS / ACROSS;      /* rows from chunk to chunk of a thread */
    static_assert(THREADS % ACROSS == 0, "all chunks of a thread in one column");

    const T *data;
    int inner;              /* element of the row */
    int u, v, c;            /* DEEP: of the inner index */
    int y[COUNT], x[COUNT]; /* DEEP: of the rows; WIDE: i and j of the outer index */
    int64_t base[COUNT];    /* DEEP: b sb of the rows; WIDE: b */

    __device__ void
    start(const struct operand &o, int first, int outside, int depth, int z)
    {
        int row = (int)threadIdx.x / ACROSS, column = (int)threadIdx.x % ACROSS * EACH;

        data = static_cast<const T *>(o.data) + z * o.batch;
        u = v = c = 0;
        if (DEEP) {
            inner = depth + column;
            if (o.across > 1 || o.channels <= inner) {
                c = inner % o.channels;
                v = inner / o.channels % o.across;
                u = inner / o.channels / o.across;
            } else
                c = inner;
        } else {
            inner = first + column;
            if (o.across) {
                u = z / o.across;
                v = z % o.across;
            }
        }
        #pragma unroll
        for (int k = 0; k < COUNT; k++) {
            int index = (DEEP ? first : depth) + row + k * APART, b = 0, i = 0, j = index;

            if (o.n0 <= index) {
                j = index % o.n0;
                i = index / o.n0 % o.n1;
                b = index / o.n0 / o.n1;
            }
            if (DEEP) {
                y[k] = index < outside ? i * o.step + o.y0 : -(1 << 29);
                x[k] = j * o.step + o.x0;
                base[k] = b * o.sb;
            } else {
                y[k] = i;
                x[k] = j;
                base[k] = b;
            }
        }
    }

    /* where element (row k, inner index at (u, v, c)) lies; false: it is zero */
    __device__ bool
    find(const struct operand &o, int k, int at_u, int at_v, int at_c, int64_t *at) const
    {
        int row = DEEP ? y[k] : y[k] * o.step + o.y0, column = DEEP ? x[k] : x[k] * o.step + o.x0;
        int64_t sample = DEEP ? base[k] : base[k] * o.sb;

        row += o.dir * at_u;
        column += o.dir * at_v;
        *at = sample + (int64_t)(row >> o.shift) * o.sy + (int64_t)(column >> o.shift) * o.sx + at_c;
        return (unsigned)row < (unsigned)o.high && (unsigned)column < (unsigned)o.wide;
    }

    __device__ static T nothing() { return from_float<T>(0); }

    /* a chunk that does not lie in one piece */
    __device__ void
    pieces(const struct operand &o, T *to, int k, bool there, int inner_end) const
    {
        int at_u = u, at_v = v, at_c = DEEP ? c : inner;

        #pragma unroll 1
        for (int e = 0; e < EACH; e += o.unit) {
            int64_t at;
            bool inside = find(o, k, at_u, at_v, at_c, &at) && there && inner + e < inner_end;

            if (o.unit == 4)
                store<4>(to + e, inside ? load<4>(data + at) : vec<T, 4>{ { nothing(), nothing(), nothing(), nothing() } });
            else
                to[e] = inside ? data[at] : nothing();
            at_c += o.unit;
            if (DEEP && at_c >= o.channels) {
                at_c = 0;
                if (++at_v == o.across) {
                    at_v = 0;
                    at_u++;
                }
            }
        }
    }

    /* one step into `tile`, then on to the next; depth: where the step begins, end: of the depth, size: of D on this side */
    __device__ void
    step(const struct operand &o, T *tile, int depth, int end, int size)
    {
        int row = (int)threadIdx.x / ACROSS, column = (int)threadIdx.x % ACROSS * EACH;

        #pragma unroll
        for (int k = 0; k < COUNT; k++)
            if (CHUNKS % THREADS == 0 || row + k * APART < ROWS) {
                T *to = tile + (row + k * APART) * PITCH + column;
                bool there = DEEP || depth + row + k * APART < end;
                int inner_end = DEEP ? end : size;

                if (GENERAL && o.unit != EACH)
                    pieces(o, to, k, there, inner_end);
                else {
                    int64_t at;
                    bool inside = find(o, k, u, v, DEEP ? c : inner, &at) && there && inner < inner_end;

                    copy_async16(to, inside ? data + at : data, inside);
                }
            }
        if constexpr (DEEP) {
            inner += STEP;
            for (c += STEP; c >= o.channels && inner < end; c -= o.channels)
                if (++v == o.across) {
                    v = 0;
                    u++;
                }
        } else {
            #pragma unroll
            for (int k = 0; k < COUNT; k++)
                for (x[k] += STEP; x[k] >= o.n0 && depth + STEP < end; x[k] -= o.n0)
                    if (++y[k] == o.n1) {
                        y[k] = 0;
                        base[k]++;
                    }
        }
    }
};

}   /* namespace */

#endif
