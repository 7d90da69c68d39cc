/* gemm.c - blocks, threads and packing around the inner loop of gemm_simd.c; the formula is in gemm.h. */
#include "gemm.h"

#include <stdlib.h>
#include <string.h>

#if SD_REAL_IS_FLOAT

enum {
    DEPTH = 640,            /* k per block: few loads and stores of sums, a tile's rows still fit the first cache */
    POSITIONS = 96,         /* positions per block: whole tiles for 8 and for 6 rows; POSITIONS x DEPTH fit the second */
    COLUMNS = 192,          /* columns per block */
    TILES = POSITIONS / 6,
    SEGMENTS = 16,          /* most taps per block */
    TASKS = 16              /* blocks are made smaller until there are so many: by shape, never by threads */
};

static struct gemm_sizes
sizes(void)
{
    return SD_V_CALL(gemm_sizes)();
}

static int64_t
ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

size_t
gemm_matrix_bytes(int64_t depth, int64_t columns)
{
    int step = sizes().step;

    return (size_t)(depth * ceil_div(columns, step) * step) * sizeof(float);
}

/* Where the rows of one tile lie, for the taps [first, first + count). */
static void
gather(const struct gemm *g, const float **x, int64_t b, const int64_t *y0, const int64_t *x0, int rows, int first, int count)
{
    const float *sample = g->x + b * g->x_batch;

    for (int s = 0; s < count; s++) {
        const struct gemm_tap *t = &g->tap[first + s];
        for (int i = 0; i < GEMM_ROWS; i++) {
            int j = i < rows ? i : 0;
            int64_t y = y0[j] * g->step + t->y, c = x0[j] * g->step + t->x;
            bool inside = y >= 0 && y < g->x_height && c >= 0 && c < g->x_width;
            x[s * GEMM_ROWS + i] = inside ? sample + y * g->x_row + c * g->x_column : g->zeros;
        }
    }
}

/* One block: positions [p0, p1) of sample b, columns [n0, n1), all k.  The tiles of the block pass by one
 * panel's part after the other. */
static void
block(const struct gemm *g, struct gemm_sizes z, int64_t b, int64_t p0, int64_t p1, int64_t n0, int64_t n1)
{
    int64_t parts = g->depth > DEPTH ? ceil_div(g->depth, DEPTH) : 1, part = ceil_div(g->depth, parts);
    int group = (int)(parts > 1 || !g->depth ? 1 : DEPTH / g->depth), first = 0, tiles = (int)ceil_div(p1 - p0, z.rows);
    const float *x[TILES][SEGMENTS * GEMM_ROWS];
    int64_t ys[TILES][GEMM_ROWS], xs[TILES][GEMM_ROWS], at[TILES][GEMM_ROWS];

    if (group > SEGMENTS)
        group = SEGMENTS;
    for (int i = 0; i < tiles; i++)
        for (int j = 0; j < z.rows; j++) {
            int64_t p = p0 + i * z.rows + j < p1 ? p0 + i * z.rows + j : p0;

            ys[i][j] = p / g->width;
            xs[i][j] = p % g->width;
            at[i][j] = b * g->out_batch + ys[i][j] * g->out_row + xs[i][j] * g->out_column;
        }
    do {
        int count = g->taps - first < group ? g->taps - first : group;

        for (int i = 0; i < tiles; i++)
            gather(g, x[i], b, ys[i], xs[i], z.rows, first, count);
        for (int64_t skip = 0; skip < g->depth; skip += part) {
            int64_t depth = g->depth - skip < part ? g->depth - skip : part;
            bool end = first + count >= g->taps && skip + depth >= g->depth;
            const float *start = first == 0 && skip == 0 ? g->start : g->out;

            for (int64_t n = n0; n < n1; n += z.width) {
                int64_t wide = g->columns - n < z.width ? ceil_div(g->columns - n, z.step) * z.step : z.width;
                struct gemm_tile t = { .skip = skip, .segments = count, .depth = depth,
                                       .panel = g->packed + b * g->packed_batch + n * g->taps * g->depth +
                                                (first * g->depth + skip) * wide,
                                       .out = g->out + n, .start = start ? start + n : NULL,
                                       .bias = end && g->bias ? g->bias + b * g->bias_batch + n : NULL,
                                       .columns = (int)(g->columns - n < z.width ? g->columns - n : z.width) };

                for (int i = 0; i < tiles; i++) {
                    t.x = x[i];
                    t.at = at[i];
                    t.rows = (int)(p1 - p0 - i * z.rows < z.rows ? p1 - p0 - i * z.rows : z.rows);
                    SD_V_CALL(gemm_tile)(&t);
                }
            }
        }
        first += count;
    } while (first < g->taps);
}

void
gemm_run(const struct gemm *g)
{
    struct gemm_sizes z = sizes();
    int64_t positions = g->height * g->width, rows = POSITIONS;
    int64_t columns = COLUMNS / z.width * z.width;

    if (columns < z.width)
        columns = z.width;
    while (g->batch * ceil_div(positions, rows) * ceil_div(g->columns, columns) < TASKS && columns > z.width)
        columns = columns / z.width / 2 * z.width;
    while (g->batch * ceil_div(positions, rows) * ceil_div(g->columns, columns) < TASKS && rows > z.rows)
        rows = rows / 2 / z.rows * z.rows;
    int64_t down = ceil_div(positions, rows), across = ceil_div(g->columns, columns), tasks = g->batch * down * across;
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < tasks; i++) {
        int64_t b = i / (down * across), p = i / across % down * rows, n = i % across * columns;
        block(g, z, b, p, p + rows < positions ? p + rows : positions, n, n + columns < g->columns ? n + columns : g->columns);
    }
}

size_t
gemm_packed_bytes(const struct gemm_weight *w)
{
    return gemm_matrix_bytes(w->taps * (w->transposed ? w->out : w->in), w->transposed ? w->in : w->out);
}

/* `count` input channels of output channel o, all kernel elements: [count][height][width] */
static const float *
fetch(float *buffer, const struct gemm_weight *w, int64_t o, int64_t c, int64_t count)
{
    int64_t area = (int64_t)w->height * w->width, begin = (o * w->in + c) * area;

    if (w->values)
        return w->values + begin;
    sd_param_convert(buffer, w->param, (size_t)begin, (size_t)(count * area));
    return buffer;
}

static float
tap_weight(const float *kernel, const struct gemm_weight *w, const struct gemm_tap *t)
{
    float sum = 0;

    for (int y = 0; y < w->height; y++)
        for (int x = 0; x < w->width; x++)
            if ((t->ky >> y & 1) && (t->kx >> x & 1))
                sum += kernel[y * w->width + x];
    return sum;
}

/* The one kernel element of a tap, -1 when it sums several. */
static int
only_element(const struct gemm_weight *w, const struct gemm_tap *t)
{
    if (__builtin_popcount(t->ky) != 1 || __builtin_popcount(t->kx) != 1)
        return -1;
    return __builtin_ctz(t->ky) * w->width + __builtin_ctz(t->kx);
}

/* Tap t of `run` kernels, `area` apart, to places `step` apart. */
static void
put(float *to, int64_t step, const float *kernel, int64_t area, int64_t run, const struct gemm_weight *w, const struct gemm_tap *t)
{
    int only = only_element(w, t);

    if (only >= 0)
        for (int64_t i = 0; i < run; i++)
            to[i * step] = kernel[i * area + only];
    else
        for (int64_t i = 0; i < run; i++)
            to[i * step] = tap_weight(kernel + i * area, w, t);
}

void
gemm_pack(float *packed, const struct gemm_weight *w)
{
    enum { RUN = 64 };                          /* channels converted at a time */
    struct gemm_sizes z = sizes();
    int64_t area = (int64_t)w->height * w->width;
    int64_t depth = w->transposed ? w->out : w->in, columns = w->transposed ? w->in : w->out;

#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t n0 = 0; n0 < columns; n0 += z.width) {
        int64_t count = columns - n0 < z.width ? columns - n0 : z.width, wide = ceil_div(count, z.step) * z.step;
        float *panel = packed + n0 * w->taps * depth;
        float *buffer = malloc((size_t)(RUN * area) * sizeof *buffer);
        if (!buffer)
            sd_die("memory", "no room to pack weights");
        memset(panel, 0, (size_t)(w->taps * depth * wide) * sizeof *panel);
        /* the outer index walks output channels, the inner one input channels: as the file lies */
        int64_t o0 = w->transposed ? 0 : n0, o1 = w->transposed ? depth : n0 + count;
        int64_t c0 = w->transposed ? n0 : 0, c1 = w->transposed ? n0 + count : depth;
        for (int64_t o = o0; o < o1; o++)
            for (int64_t c = c0; c < c1; c += RUN) {
                int64_t run = c1 - c < RUN ? c1 - c : RUN;
                const float *kernel = fetch(buffer, w, o, c, run);

                for (int t = 0; t < w->taps; t++)
                    if (w->transposed)
                        put(panel + (t * depth + o) * wide + c - n0, 1, kernel, area, run, w, &w->tap[t]);
                    else
                        put(panel + (t * depth + c) * wide + o - n0, wide, kernel, area, run, w, &w->tap[t]);
            }
        free(buffer);
    }
}

void
gemm_pack_rows(float *packed, const float *const *rows, int64_t depth, int64_t columns)
{
    struct gemm_sizes z = sizes();

#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t n0 = 0; n0 < columns; n0 += z.width) {
        int64_t count = columns - n0 < z.width ? columns - n0 : z.width, wide = ceil_div(count, z.step) * z.step;
        float *panel = packed + n0 * depth;
        for (int64_t k = 0; k < depth; k++, panel += wide) {
            if (rows[k])
                memcpy(panel, rows[k] + n0, (size_t)count * sizeof *panel);
            else
                memset(panel, 0, (size_t)count * sizeof *panel);
            memset(panel + count, 0, (size_t)(wide - count) * sizeof *panel);
        }
    }
}

#endif
