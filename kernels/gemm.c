/* gemm.c - blocks, threads and packing around the inner loop of gemm_simd.c; the formula is in gemm.h. */
#include "gemm.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#if SD_REAL_IS_FLOAT

enum {
    /* elements of k per block: few loads and stores of sums, a tile's rows still fit the first cache */
    DEPTH = 640,
    /* positions per block: whole tiles for 8 and for 6 rows; POSITIONS x DEPTH fit the second */
    POSITIONS = 96,
    COLUMNS = 192,          /* columns per block */
    TILES = POSITIONS / 6,
    SEGMENTS = 16,          /* most taps per block */
    TASKS = 16,             /* tasks are made smaller until there are so many: by shape, never by threads */
    BLOCKS = 16,            /* blocks of positions that share a task's panels */
    FEW_BLOCKS = 4,         /* rather fewer columns than less sharing */
    PANELS = 1536 << 10,    /* bytes of a task's panels, unless one panel alone is larger: a share of the last cache */
    PLACES = GEMM_PLACES,   /* kernel elements turned in one go, and of the largest kernel */
    STAGED = 256,           /* the same with bf16, where what was turned waits in the first cache to be paired */
    ALONG = 128             /* numbers of a row that are asked for ahead */
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

/* Elements along k: numbers, or pairs of them. */
static int64_t
elements(int64_t depth, bool bf16)
{
    return bf16 ? ceil_div(depth, 2) : depth;
}

size_t
gemm_matrix_bytes(int64_t depth, int64_t columns, bool bf16)
{
    int step = sizes().step;

    return (size_t)(elements(depth, bf16) * ceil_div(columns, step) * step) * sizeof(float);
}

/* Where the rows of one tile lie, for the taps [first, first + count). */
static void
gather(const struct gemm *g, const float **x, int64_t b, const int64_t *y0, const int64_t *x0, int rows, int first,
       int count)
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

/* Rows of a tile as pairs: elements [skip, skip + depth) of each segment, one after the other; x then points to
 * them. */
static void
pair_rows(const struct gemm *g, float *to, const float **x, int rows, int64_t skip, int64_t depth, int count)
{
    int64_t numbers = g->depth - 2 * skip < 2 * depth ? g->depth - 2 * skip : 2 * depth;

    for (int i = 0; i < rows; i++, to += count * depth) {
        for (int s = 0; s < count; s++)
            gemm_pair(to + s * depth, x[s * GEMM_ROWS + i] + 2 * skip, numbers);
        x[i] = to;
    }
}

/* One block: positions [p0, p1) of sample b, columns [n0, n1), all k; panels: those columns' weights.  The tiles of
 * the block pass by one panel's part after the other. */
static void
block(const struct gemm *g, struct gemm_sizes z, const float *panels, int64_t b, int64_t p0, int64_t p1, int64_t n0,
      int64_t n1)
{
    int64_t deep = elements(g->depth, g->bf16), parts = deep > DEPTH ? ceil_div(deep, DEPTH) : 1;
    int64_t part = ceil_div(deep, parts);
    int group = (int)(parts > 1 || !deep ? 1 : DEPTH / deep), first = 0, tiles = (int)ceil_div(p1 - p0, z.rows);
    const float *x[TILES][SEGMENTS * GEMM_ROWS];
    float paired[POSITIONS * DEPTH];
    bool pair = g->bf16 && !g->paired;
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

        for (int i = 0; i < tiles && !pair; i++)
            gather(g, x[i], b, ys[i], xs[i], z.rows, first, count);
        for (int64_t skip = 0; skip < deep; skip += part) {
            int64_t depth = deep - skip < part ? deep - skip : part;
            bool end = first + count >= g->taps && skip + depth >= deep;
            const float *start = first == 0 && skip == 0 ? g->start : g->out;

            for (int i = 0; i < tiles && pair; i++) {
                gather(g, x[i], b, ys[i], xs[i], z.rows, first, count);
                pair_rows(g, paired + i * z.rows * count * depth, x[i], z.rows, skip, depth, count);
            }
            for (int64_t n = n0; n < n1; n += z.width) {
                int64_t wide = g->columns - n < z.width ? ceil_div(g->columns - n, z.step) * z.step : z.width;
                struct gemm_tile t = { .skip = pair ? 0 : skip, .segments = pair ? 1 : count,
                                       .depth = pair ? count * depth : depth,
                                       .panel = panels + (n - n0) * g->taps * deep + (first * deep + skip) * wide,
                                       .out = g->out + n, .start = start ? start + n : NULL,
                                       .bias = end && g->bias ? g->bias + b * g->bias_batch + n : NULL,
                                       .columns = (int)(g->columns - n < z.width ? g->columns - n : z.width) };

                for (int i = 0; i < tiles; i++) {
                    t.x = x[i];
                    t.at = at[i];
                    t.rows = (int)(p1 - p0 - i * z.rows < z.rows ? p1 - p0 - i * z.rows : z.rows);
                    if (g->bf16)
                        gemm_tile_bf16(&t);
                    else
                        SD_V_CALL(gemm_tile)(&t);
                }
            }
        }
        first += count;
    } while (first < g->taps);
}

/* -- panels of weights --------------------------------------------------------------------------------------------- */

static int64_t
area_of(const struct gemm_weight *w)
{
    return (int64_t)w->height * w->width;
}

/* The kernel elements of a tap, row by row. */
static int
elements_of(const struct gemm_weight *w, const struct gemm_tap *t, int *which)
{
    int count = 0;

    for (int y = 0; y < w->height; y++)
        for (int x = 0; x < w->width; x++)
            if ((t->ky >> y & 1) && (t->kx >> x & 1))
                which[count++] = y * w->width + x;
    return count;
}

/* tap[e]: the tap that element e is, -1 for none.  False when taps are sums of elements, or share them. */
static bool
taps_of(int *tap, const struct gemm *g)
{
    int which[PLACES];

    for (int64_t e = 0; e < area_of(g->weight); e++)
        tap[e] = -1;
    for (int t = 0; t < g->taps; t++) {
        if (elements_of(g->weight, &g->tap[t], which) != 1 || tap[*which] >= 0)
            return false;
        tap[*which] = t;
    }
    return true;
}

/* Depth that is turned in one go: with bf16 even, and what the stage has room for. */
static int64_t
depth_at_once(const struct gemm *g, bool single)
{
    const struct gemm_weight *w = g->weight;
    int64_t all = w->transposed ? w->out : w->in, most = (g->bf16 ? STAGED : PLACES) / area_of(w);

    if (g->bf16)
        return most < 2 ? 2 : most / 2 * 2;
    return (w->transposed && single) || most > all ? all : most;
}

/* Elements of room behind the panels of a task: kernel elements that are to be summed, and the stage. */
static int64_t
room_to_turn(const struct gemm *g, bool single, int width)
{
    return (single ? 0 : PLACES * width) + (g->bf16 ? depth_at_once(g, single) * g->taps * width : 0);
}

/* Panel of columns [n0, n0 + count) of g->weight; tap: as taps_of() sets it, NULL where taps are sums.  Columns are
 * output channels, and k runs along the rows of the file; transposed: columns are input channels, and k runs over
 * output channels. */
static void
panel_of(const struct gemm *g, const int *tap, float *to, float *room, int64_t n0, int count, int wide)
{
    const struct gemm_weight *w = g->weight;
    int64_t area = area_of(w), most = depth_at_once(g, tap != NULL), deep = elements(g->depth, g->bf16), at[PLACES];
    int64_t tap_step = (g->bf16 ? most : g->depth) * wide;
    float *stage = room + (tap ? 0 : PLACES * wide);
    int which[PLACES];

    if (area == 1 && tap) {
        int64_t row = w->row ? w->row : w->in;

        if (!w->transposed && !g->bf16)
            SD_V_CALL(gemm_turn)(to, NULL, w, &(struct gemm_turn){ .begin = n0 * row, .rows = count, .step = row,
                                                                   .count = w->in,
                                                                   .times = 1, .to_step = wide,
                                                                   .next = ALONG });
        else if (!w->transposed)
            gemm_turn_pairs(to, wide, w, n0 * row, row, count, w->in);
        else if (g->bf16)
            gemm_copy_pairs(to, wide, w, n0, row, w->out, count);
        else
            SD_V_CALL(gemm_copy)(to, wide, w, n0, row, w->out, count);
        return;
    }
    for (int64_t c = 0; c < (w->transposed ? 1 : most); c++)
        for (int64_t e = 0; e < area; e++)
            at[c * area + e] = !tap ? (e * most + c) * wide : tap[e] < 0 ? -1 : tap[e] * tap_step + c * wide;
    for (int64_t c = 0; c < g->depth; c += most) {
        int64_t run = g->depth - c < most ? g->depth - c : most;
        float *rows = g->bf16 ? stage : to + c * wide;
        struct gemm_turn how = { .begin = (n0 * w->in + c) * area, .rows = count, .step = w->in * area,
                                 .count = run * area,
                                 .times = 1, .next = most * area };

        if (w->transposed)
            how = (struct gemm_turn){ .begin = (c * w->in + n0) * area, .rows = count, .step = area, .count = area,
                                      .times = run,
                                      .from_step = w->in * area, .to_step = wide };
        SD_V_CALL(gemm_turn)(tap ? rows : room, at, w, &how);
        for (int t = 0; t < g->taps && !tap; t++)
            SD_V_CALL(gemm_sum)(rows + t * tap_step, room, most * wide, which, elements_of(w, &g->tap[t], which),
                                run * wide);
        for (int t = 0; t < g->taps && g->bf16; t++)
            for (int64_t k = 0; k < run; k += 2) {
                const float *a = rows + t * tap_step + k * wide;

                gemm_weave(to + (t * deep + (c + k) / 2) * wide, a, k + 1 < run ? a + wide : NULL, wide, wide);
            }
    }
}

/* Weights of columns [n0, n1) as panels. */
static void
panels_of(const struct gemm *g, struct gemm_sizes z, float *panels, int64_t n0, int64_t n1)
{
    int64_t deep = g->taps * elements(g->depth, g->bf16);
    float *room = panels + deep * ceil_div(n1 - n0, z.step) * z.step;
    int tap[PLACES];
    bool single = taps_of(tap, g);

    for (int64_t n = n0; n < n1 && g->taps; n += z.width) {
        int count = n1 - n < z.width ? (int)(n1 - n) : z.width, wide = (int)ceil_div(count, z.step) * z.step;

        panel_of(g, single ? tap : NULL, panels + (n - n0) * deep, room, n, count, wide);
    }
}

/* -- tasks --------------------------------------------------------------------------------------------------------- */

struct cut {                /* a task: `columns` columns of `blocks` blocks of `rows` positions */
    int64_t columns, rows, blocks;
    int64_t per_sample;     /* blocks */
    int64_t down, across;   /* tasks */
    int64_t panels;         /* floats of a thread's panels */
};

static int64_t
half(int64_t a, int64_t unit)
{
    return a / unit / 2 * unit;
}

static struct cut
cut(const struct gemm *g, struct gemm_sizes z)
{
    int64_t positions = g->height * g->width, k = g->taps * elements(g->depth, g->bf16);
    struct cut c = { .columns = COLUMNS / z.width * z.width, .rows = POSITIONS, .blocks = g->weight ? BLOCKS : 1 };

    if (c.columns < z.width)
        c.columns = z.width;
    while (g->weight && c.columns > z.width && c.columns * k * (int64_t)sizeof(float) > PANELS)
        c.columns -= z.width;
    for (;;) {
        c.per_sample = ceil_div(positions, c.rows);
        if (c.blocks > g->batch * c.per_sample)
            c.blocks = g->batch * c.per_sample;
        c.down = ceil_div(g->batch * c.per_sample, c.blocks);
        c.across = ceil_div(g->columns, c.columns);
        if (c.down * c.across >= TASKS)
            break;
        if (c.blocks > FEW_BLOCKS)
            c.blocks = ceil_div(c.blocks, 2);
        else if (c.columns > z.width)
            c.columns = half(c.columns, z.width);
        else if (c.blocks > 1)
            c.blocks = ceil_div(c.blocks, 2);
        else if (c.rows > z.rows)
            c.rows = half(c.rows, z.rows);
        else
            break;
    }
    if (g->weight) {
        int tap[PLACES];
        int64_t widest = g->columns < c.columns ? ceil_div(g->columns, z.step) * z.step : c.columns;

        c.panels = ceil_div(k * widest + room_to_turn(g, taps_of(tap, g), z.width), 16) * 16;
    }
    return c;
}

/* No more threads than tasks, or than had room when the plan was made. */
static int
threads_for(const struct gemm *g, const struct cut *c)
{
    int threads = omp_get_max_threads();

    if (g->weight && g->threads && threads > g->threads)
        threads = g->threads;
    return c->down * c->across < threads ? (int)(c->down * c->across) : threads;
}

size_t
gemm_room(const struct gemm *g)
{
    struct cut c = cut(g, sizes());

    return (size_t)threads_for(g, &c) * (size_t)c.panels * sizeof(float);
}

static void
task(const struct gemm *g, struct gemm_sizes z, const struct cut *c, int64_t i)
{
    int64_t n0 = i % c->across * c->columns, n1 = n0 + c->columns < g->columns ? n0 + c->columns : g->columns;
    int64_t first = i / c->across * c->blocks, positions = g->height * g->width;
    float *room = g->weight ? g->room + omp_get_thread_num() * c->panels : NULL;

    if (room)
        panels_of(g, z, room, n0, n1);
    for (int64_t q = first; q < first + c->blocks && q < g->batch * c->per_sample; q++) {
        int64_t b = q / c->per_sample, p0 = q % c->per_sample * c->rows;
        int64_t p1 = p0 + c->rows < positions ? p0 + c->rows : positions;
        const float *panels = room ? room : g->packed + b * g->packed_batch + n0 * g->taps *
            elements(g->depth, g->bf16);

        block(g, z, panels, b, p0, p1, n0, n1);
    }
}

void
gemm_run(const struct gemm *g)
{
    struct gemm_sizes z = sizes();
    struct cut c = cut(g, z);
    int threads = threads_for(g, &c);

#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < c.down * c.across; i++)
        task(g, z, &c, i);
}

void
gemm_pack_rows(float *packed, const float *const *rows, int64_t depth, int64_t columns, bool bf16)
{
    struct gemm_sizes z = sizes();

#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t n0 = 0; n0 < columns; n0 += z.width) {
        int64_t count = columns - n0 < z.width ? columns - n0 : z.width, wide = ceil_div(count, z.step) * z.step;
        float *panel = packed + n0 * elements(depth, bf16);

        for (int64_t k = 0; k < depth && bf16; k += 2, panel += wide) {
            const float *a = rows[k], *b = k + 1 < depth ? rows[k + 1] : NULL;

            gemm_weave(panel, a ? a + n0 : NULL, b ? b + n0 : NULL, count, wide);
        }
        for (int64_t k = 0; k < depth && !bf16; k++, panel += wide) {
            if (rows[k])
                memcpy(panel, rows[k] + n0, (size_t)count * sizeof *panel);
            else
                memset(panel, 0, (size_t)count * sizeof *panel);
            memset(panel + count, 0, (size_t)(wide - count) * sizeof *panel);
        }
    }
}

#endif
