/* winograd.c - batches of tiles, products and weights around the transforms of winograd_simd.c; formula in
 * winograd.h. */
#include "winograd.h"

#include <stdlib.h>

#if SD_REAL_IS_FLOAT

enum {
    BATCH_BYTES = 5 << 20,      /* of both sides of the products of a batch: a share of the last cache */
    MIN_TILES = 64,             /* else the weights are read too often */
    MAX_TILES = 512,
    PIECE = 4,                  /* tiles per parallel piece of a transform */
    PAD = 16                    /* floats between the 36 matrices: keeps them out of each other's cache sets */
};

/* Wanted where four times the weights are paid for by many pixels: U of at most 92 kB per pixel of out. */
bool
winograd_wanted(int64_t height, int64_t width, int64_t depth, int64_t columns)
{
    const char *off = getenv("SD_WINOGRAD");

    return !(off && *off == '0') && depth >= 32 && columns >= 32 && height >= 8 && width >= 8 &&
           depth * columns <= 640 * height * width;
}

size_t
winograd_packed_bytes(int64_t depth, int64_t columns)
{
    return WINOGRAD_PARTS * gemm_matrix_bytes(depth, columns, false);
}

static int64_t
tiles_of(const struct winograd *w)
{
    return w->batch * ((w->height + WINOGRAD_OUT - 1) / WINOGRAD_OUT) * ((w->width + WINOGRAD_OUT - 1) / WINOGRAD_OUT);
}

/* Tiles per batch: by shape. */
static int64_t
batch_of(const struct winograd *w)
{
    int64_t all = tiles_of(w), one = WINOGRAD_PARTS * (w->depth + w->columns) * (int64_t)sizeof(float);
    int64_t most = BATCH_BYTES / one;

    most = most < MIN_TILES ? MIN_TILES : most > MAX_TILES ? MAX_TILES : most / MIN_TILES * MIN_TILES;
    if (most >= all)
        return all;
    int64_t batches = (all + most - 1) / most;
    return ((all + batches - 1) / batches + PIECE - 1) / PIECE * PIECE;
}

static int64_t
part_of(int64_t tiles, int64_t channels)
{
    return (tiles * channels + PAD - 1) / PAD * PAD + PAD;
}

size_t
winograd_scratch(const struct winograd *w)
{
    int64_t tiles = batch_of(w);

    return (size_t)(WINOGRAD_PARTS * (part_of(tiles, w->depth) + part_of(tiles, w->columns)) + w->depth + PAD) *
        sizeof(float);
}

void
winograd_run(const struct winograd *w)
{
    int64_t all = tiles_of(w), batch = batch_of(w), source_part = part_of(batch, w->depth);
    int64_t result_part = part_of(batch, w->columns);
    float *source = w->scratch, *result = source + WINOGRAD_PARTS * source_part,
        *zeros = result + WINOGRAD_PARTS * result_part;
    static const struct gemm_tap one = { 0, 0, 1, 1 };

    memset(zeros, 0, (size_t)w->depth * sizeof *zeros);
    for (int64_t first = 0; first < all; first += batch) {
        int64_t tiles = all - first < batch ? all - first : batch, pieces = (tiles + PIECE - 1) / PIECE;
        struct gemm g = { .batch = WINOGRAD_PARTS, .height = 1, .width = tiles, .depth = w->depth,
                          .columns = w->columns,
                          .taps = 1, .tap = &one, .x = source, .x_height = 1, .x_width = tiles, .x_batch = source_part,
                          .x_column = w->depth, .step = 1, .packed = w->packed,
                          .packed_batch = (int64_t)(winograd_packed_bytes(w->depth,
                                                                          w->columns) / WINOGRAD_PARTS / sizeof(float)),
                          .out = result, .out_batch = result_part, .out_column = w->columns };

#pragma omp parallel for schedule(dynamic, 1)
        for (int64_t i = 0; i < pieces; i++) {
            struct winograd_tiles t = { w, first, i * PIECE, (i + 1) * PIECE < tiles ? (i + 1) * PIECE : tiles, source,
                                        source_part, zeros };

            SD_V_CALL(winograd_source)(&t);
        }
        gemm_run(&g);
#pragma omp parallel for schedule(dynamic, 1)
        for (int64_t i = 0; i < pieces; i++) {
            struct winograd_tiles t = { w, first, i * PIECE, (i + 1) * PIECE < tiles ? (i + 1) * PIECE : tiles, result,
                                        result_part, zeros };

            SD_V_CALL(winograd_result)(&t);
        }
    }
}

void
winograd_pack(float *packed, const struct gemm_weight *w, bool bf16)
{
    struct gemm_sizes z = SD_V_CALL(gemm_sizes)();
    int64_t depth = w->transposed ? w->out : w->in, columns = w->transposed ? w->in : w->out;
    int64_t part = (int64_t)(gemm_matrix_bytes(depth, columns, false) / sizeof(float));

    enum { RUN = 64 };                          /* of depth at a time */
    int64_t across = (columns + z.width - 1) / z.width, down = (depth + RUN - 1) / RUN;

#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t i = 0; i < across * down; i++) {
        int64_t n0 = i / down * z.width, k0 = i % down * RUN, run = depth - k0 < RUN ? depth - k0 : RUN, at[9 * RUN];
        int count = columns - n0 < z.width ? (int)(columns - n0) : z.width;
        int wide = (count + z.step - 1) / z.step * z.step;
        float kernel[9 * RUN * WINOGRAD_WIDE];

        for (int64_t j = 0; j < 9 * RUN; j++)
            at[j] = (w->transposed ? 8 - j : j) * wide;
        struct gemm_turn how = { .begin = (n0 * w->in + k0) * 9, .step = w->in * 9, .rows = count, .count = run * 9,
                                 .times = 1 };

        if (w->transposed)
            how = (struct gemm_turn){ .begin = (k0 * w->in + n0) * 9, .step = 9, .rows = count, .count = 9,
                                      .times = run,
                                      .from_step = w->in * 9, .to_step = 9 * wide };
        SD_V_CALL(gemm_turn)(kernel, at, w, &how);
        for (int64_t k = 0; k < run; k++)
            SD_V_CALL(winograd_weights)(packed + n0 * depth + (k0 + k) * wide, part, kernel + 9 * k * wide, wide, bf16);
    }
}

#endif
