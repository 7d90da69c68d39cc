/* winograd_simd.c - the transforms of winograd.h, vectors of channels; that of the weights in double, rounded once.
 *
 *          4  0 -5  0  1  0               1  1  1  1  1  0
 *          0 -4 -4  1  1  0               0  1 -1  2 -2  0
 *     B' = 0  4 -4 -1  1  0          A' = 0  1  1  4  4  0
 *          0 -2 -1  2  1  0               0  1 -1  8 -8  1
 *          0  2 -1 -2  1  0
 *          0  4  0 -5  0  1
 *
 *          6  0  0
 *         -4 -4 -4
 *     G = -4  4 -4   / 24
 *          1  2  4
 *          1 -2  4
 *          0  0 24 */
#include "simd.h"
#include "winograd.h"

enum { IN = WINOGRAD_IN, OUT = WINOGRAD_OUT };

/* r[0], r[step], ... = B' d */
SD_INLINE void
source_axis(vf *r, int step, const vf *d, int d_step)
{
    vf d0 = d[0], d1 = d[d_step], d2 = d[2 * d_step], d3 = d[3 * d_step], d4 = d[4 * d_step], d5 = d[5 * d_step];
    vf a = v_fma(v_set(-4), d2, d4), b = v_fma(v_set(-4), d1, d3), c = d4 - d2, e = 2 * (d3 - d1);

    r[0] = v_fma(v_set(4), d0, v_fma(v_set(-5), d2, d4));
    r[step] = a + b;
    r[2 * step] = a - b;
    r[3 * step] = c + e;
    r[4 * step] = c - e;
    r[5 * step] = v_fma(v_set(4), d1, v_fma(v_set(-5), d3, d5));
}

/* r[0], r[step], ... = A' m */
SD_INLINE void
result_axis(vf *r, int step, const vf *m, int m_step)
{
    vf a = m[m_step] + m[2 * m_step], b = m[m_step] - m[2 * m_step];
    vf c = m[3 * m_step] + m[4 * m_step], d = m[3 * m_step] - m[4 * m_step];

    r[0] = m[0] + a + c;
    r[step] = v_fma(v_set(2), d, b);
    r[2 * step] = v_fma(v_set(4), c, a);
    r[3 * step] = v_fma(v_set(8), d, b) + m[5 * m_step];
}

struct place { int64_t b, y, x; };      /* a tile's sample and first pixel of out */

static struct place
place(const struct winograd *w, int64_t tile)
{
    int64_t down = (w->height + OUT - 1) / OUT, across = (w->width + OUT - 1) / OUT;

    return (struct place){ tile / (down * across), tile / across % down * OUT, tile % across * OUT };
}

void
SD_V(winograd_source)(const struct winograd_tiles *t)
{
    const struct winograd *w = t->w;

    for (int64_t i = t->begin; i < t->end; i++) {
        struct place at = place(w, t->first + i);
        const float *from[IN * IN];
        float *to = t->parts + i * w->depth;

        for (int k = 0; k < IN * IN; k++) {
            int64_t y = at.y - w->top + k / IN, x = at.x - w->left + k % IN;
            bool inside = y >= 0 && y < w->x_height * w->enlarged && x >= 0 && x < w->x_width * w->enlarged;

            if (w->enlarged == 2) {
                y >>= 1;
                x >>= 1;
            }
            from[k] = inside ? w->x + ((at.b * w->x_height + y) * w->x_width + x) * w->depth : t->zeros;
        }
        for (int64_t c = 0; c < w->depth; c += VW) {
            int64_t left = w->depth - c;
            vf d[IN * IN], r[IN];

            for (int x = 0; x < IN; x++) {
                SD_UNROLL
                for (int y = 0; y < IN; y++) {
                    r[y] = v_get(from[y * IN + x] + c, left);
                    if (w->bf16)
                        r[y] = v_bf16(r[y]);
                }
                source_axis(d + x, IN, r, 1);
            }
            for (int y = 0; y < IN; y++) {
                source_axis(r, 1, d + y * IN, 1);
                SD_UNROLL
                for (int x = 0; x < IN; x++)
                    v_put(to + (y * IN + x) * t->part + c, r[x], left);
            }
        }
    }
}

void
SD_V(winograd_result)(const struct winograd_tiles *t)
{
    const struct winograd *w = t->w;

    for (int64_t i = t->begin; i < t->end; i++) {
        struct place at = place(w, t->first + i);
        const float *from = t->parts + i * w->columns;
        int64_t height = w->height / w->pooled, width = w->width / w->pooled;
        int64_t first = ((at.b * height + at.y / w->pooled) * width + at.x / w->pooled) * w->columns;
        int high = (int)(w->height - at.y < OUT ? w->height - at.y : OUT) / w->pooled;
        int wide = (int)(w->width - at.x < OUT ? w->width - at.x : OUT) / w->pooled;

        for (int64_t c = 0; c < w->columns; c += VW) {
            int64_t left = w->columns - c;
            vf d[OUT * IN], r[IN], y4[OUT][OUT], bias = w->bias ? v_get(w->bias + at.b * w->bias_batch + c,
                                                                        left) : v_zero();

            for (int x = 0; x < IN; x++) {
                SD_UNROLL
                for (int y = 0; y < IN; y++)
                    r[y] = v_get(from + (y * IN + x) * t->part + c, left);
                result_axis(d + x, IN, r, 1);
            }
            SD_UNROLL
            for (int y = 0; y < OUT; y++)
                result_axis(y4[y], 1, d + y * IN, 1);
            for (int y = 0; y < OUT / 2 && w->pooled == 2; y++)
                for (int x = 0; x < OUT / 2; x++)
                    y4[y][x] = (y4[2 * y][2 * x] + y4[2 * y][2 * x + 1]) +
                        (y4[2 * y + 1][2 * x] + y4[2 * y + 1][2 * x + 1]);
            for (int y = 0; y < high; y++)
                for (int x = 0; x < wide; x++) {
                    int64_t to = first + (y * width + x) * w->columns + c;
                    vf v = y4[y][x] + bias;

                    if (w->start)
                        v += v_get(w->start + to, left);
                    v_put(w->out + to, v, left);
                }
        }
    }
}

/* u[0], u[step], ... = G w, for `wide` kernels at once */
SD_INLINE void
weight_axis(double *restrict u, int step, const double *restrict a, const double *restrict b, const double *restrict c,
            int wide)
{
    for (int n = 0; n < wide; n++) {
        double even = (a[n] + c[n]) * (1.0 / 6), odd = b[n] * (1.0 / 6), far = a[n] * (1.0 / 24) + c[n] * (1.0 / 6);

        u[n] = a[n] * 0.25;
        u[step + n] = -even - odd;
        u[2 * step + n] = odd - even;
        u[3 * step + n] = far + b[n] * (1.0 / 12);
        u[4 * step + n] = far - b[n] * (1.0 / 12);
        u[5 * step + n] = c[n];
    }
}

void
SD_V(winograd_weights)(float *packed, int64_t part, const float *kernel, int wide, bool bf16)
{
    enum { WIDE = WINOGRAD_WIDE };
    double w[9 * WIDE], half[3 * IN * WIDE], row[IN * WIDE];

    for (int i = 0; i < 9; i++)
        for (int n = 0; n < wide; n += VW) {
            vf v = v_load(kernel + i * wide + n);

            if (bf16)
                v = v_bf16(v);
            for (int j = 0; j < VW; j++)
                w[i * WIDE + n + j] = (double)v[j];
        }
    for (int x = 0; x < 3; x++)
        weight_axis(half + x * WIDE, 3 * WIDE, w + x * WIDE, w + (3 + x) * WIDE, w + (6 + x) * WIDE, wide);
    for (int i = 0; i < IN; i++) {
        const double *h = half + 3 * i * WIDE;

        weight_axis(row, WIDE, h, h + WIDE, h + 2 * WIDE, wide);
        for (int j = 0; j < IN; j++)
            for (int n = 0; n < wide; n++)
                packed[(i * IN + j) * part + n] = (float)row[j * WIDE + n];
    }
}
