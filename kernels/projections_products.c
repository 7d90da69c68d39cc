/* projections_products - projections on the CPU as products of gathered rows (gemm.h), part by part: columns of y are
 * written, and weights read, where they lie. */
#include "projections_products.h"

#include <omp.h>
#include <stdlib.h>

#include "gemm.h"

#if SD_REAL_IS_FLOAT

enum {
    CHUNK = 1024,               /* positions of a gradient's chunk, summed chunk after chunk */
    MANY_COLUMNS = 3072         /* with bf16: what so many columns read is turned into pairs once */
};

static const struct gemm_tap one = { 0, 0, 1, 1 };

struct fast { int threads; };

/* Places in scratch. */
struct room {
    float *narrow;                      /* [rows, rank] */
    float *pairs;                       /* [rows, half of in], or NULL */
    float *panels;                      /* of gemm_run, or */
    const float **row;                  /* [CHUNK] */
    float *turned, *packed, *result;    /* [rank, CHUNK], panels of CHUNK rows, [rank, columns] */
    size_t bytes;
};

bool
projections_readable(const struct sd_param *p)
{
    return !p->trainable && (p->dtype == SD_F32 || p->dtype == SD_F16 || p->dtype == SD_BF16);
}

/* transposed: products of gradients, which run over the rows of the matrix */
static struct gemm_weight
weight_of(struct sd_param *p, bool transposed)
{
    struct gemm_weight w = { .dtype = SD_F32, .out = p->shape[0], .in = p->shape[1], .height = 1, .width = 1,
                             .transposed = transposed };

    if (projections_readable(p)) {
        w.values = p->raw;
        w.dtype = p->dtype;
    } else
        w.values = sd_param_values(p);
    return w;
}

static struct gemm
gemm_of(const struct sd_node *n, const struct gemm_weight *w)
{
    const struct fast *f = n->vendor;
    int64_t rows = sd_rows(n->in[X]);

    return (struct gemm){ .batch = 1, .height = 1, .width = rows, .depth = w->transposed ? w->out : w->in,
                          .columns = w->transposed ? w->in : w->out, .taps = 1, .tap = &one, .x_height = 1,
                          .x_width = rows, .step = 1, .bf16 = n->bf16, .weight = w, .threads = f->threads };
}

static size_t
room_of(const struct sd_node *n, int64_t out, int64_t in, bool transposed)
{
    struct gemm_weight w = { .dtype = SD_F32, .out = out, .in = in, .height = 1, .width = 1, .transposed = transposed };
    struct gemm g = gemm_of(n, &w);

    return gemm_room(&g);
}

static size_t
larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static size_t
take(size_t *at, size_t bytes)
{
    size_t begin = *at;

    *at += (bytes + 63) / 64 * 64;
    return begin;
}

static struct room
rooms(const struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    int64_t rows = sd_rows(n->in[X]), in = sd_cols(n->in[X]), rank = most_rank(a), widest = in;
    int64_t chunk = rows < CHUNK ? rows : CHUNK;
    char *base = n->scratch;
    struct room r = { 0 };
    size_t at = 0, panels = 0, narrow, pairs, row, turned, packed, result;
    bool paired = n->bf16 && sd_cols(n->out) >= MANY_COLUMNS;

    for (int i = 0; i < a->parts; i++) {
        int64_t out = projection_out(&a->part[i]), k = projection_rank(&a->part[i]);

        widest = out > widest ? out : widest;
        for (int transposed = 0; transposed < 2; transposed++) {
            panels = larger(panels, room_of(n, out, in, transposed));
            if (k)
                panels = larger(panels, larger(room_of(n, k, in, transposed), room_of(n, out, k, transposed)));
        }
    }
    narrow = take(&at, (size_t)(rows * rank) * sizeof(float));
    pairs = take(&at, paired ? (size_t)(rows * ((in + 1) / 2)) * sizeof(float) : 0);
    r.bytes = at + panels;
    r.panels = (float *)(base + at);
    row = take(&at, (size_t)chunk * sizeof(float *));
    turned = take(&at, (size_t)(rank * chunk) * sizeof(float));
    packed = take(&at, gemm_matrix_bytes(chunk, widest, n->bf16));
    result = take(&at, (size_t)(rank * widest) * sizeof(float));
    if (n->din[PARTS])
        r.bytes = larger(r.bytes, at);
    r.narrow = (float *)(base + narrow);
    r.pairs = paired ? (float *)(base + pairs) : NULL;
    r.row = (const float **)(base + row);
    r.turned = (float *)(base + turned);
    r.packed = (float *)(base + packed);
    r.result = (float *)(base + result);
    return r;
}

/* to (rows to_pitch apart) = start, or zero, + x w' + bias */
static void
multiply(const struct sd_node *n, const struct room *r, float *to, int64_t to_pitch, const float *x, int64_t pitch,
         struct gemm_weight w, const float *start, const float *bias)
{
    struct gemm g = gemm_of(n, &w);

    g.paired = r->pairs && x == r->pairs;
    g.x = x;
    g.x_batch = g.x_row = g.x_column = pitch;
    g.room = r->panels;
    g.out = to;
    g.out_batch = g.out_row = g.out_column = to_pitch;
    g.start = start;
    g.bias = bias;
    gemm_run(&g);
}

/* x, or its pairs */
static const float *
source_of(const struct sd_node *n, const struct room *r, int64_t *pitch)
{
    int64_t rows = sd_rows(n->in[X]), in = sd_cols(n->in[X]);
    const float *x = n->in[X]->data;

    *pitch = n->in[X]->pitch;
    if (!r->pairs)
        return x;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++)
        gemm_pair(r->pairs + i * ((in + 1) / 2), x + i * n->in[X]->pitch, in);
    *pitch = (in + 1) / 2;
    return r->pairs;
}

static void
scale_narrow(const struct sd_node *n, const struct sd_projection *p, float *u)
{
    int64_t count = sd_rows(n->in[X]) * projection_rank(p);
    float scale = (float)scale_of(p);

    for (int64_t i = 0; p->scale && i < count; i++)
        u[i] *= scale;
}

void
projections_forward_products(const struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    const struct room r = rooms(n);
    const float *residual = n->in[RESIDUAL] ? sd_values(n->in[RESIDUAL]) : NULL;
    int64_t wide = sd_cols(n->out), begin = 0, pitch;
    const float *x = source_of(n, &r, &pitch);

    for (int i = 0; i < a->parts; begin += projection_out(&a->part[i++])) {
        const struct sd_projection *p = &a->part[i];
        float *y = (float *)n->out->data + begin;

        multiply(n, &r, y, wide, x, pitch, weight_of(p->weight, false), residual ? residual + begin : NULL,
                 p->bias ? sd_param_values(p->bias) : NULL);
        if (!projection_rank(p))
            continue;
        multiply(n, &r, r.narrow, projection_rank(p), x, pitch, weight_of(p->down, false), NULL, NULL);
        scale_narrow(n, p, r.narrow);
        multiply(n, &r, y, wide, r.narrow, projection_rank(p), weight_of(p->up, false), y, NULL);
    }
}

/* result[k, c] = sum over the rows of narrow[row, k] right[row, c] */
static void
sum_products(const struct sd_node *n, const struct room *r, int64_t rank, const float *right, int64_t pitch,
             int64_t columns)
{
    int64_t rows = sd_rows(n->in[X]);

    for (int64_t first = 0; first < rows; first += CHUNK) {
        int64_t count = rows - first < CHUNK ? rows - first : CHUNK;
        const float *left = r->narrow + first * rank;
        struct gemm g = { .batch = 1, .height = 1, .width = rank, .depth = count, .columns = columns, .taps = 1,
                          .tap = &one, .x = r->turned, .x_height = 1, .x_width = rank, .x_column = count, .step = 1,
                          .bf16 = n->bf16, .packed = r->packed, .out = r->result, .out_column = columns,
                          .start = first ? r->result : NULL };

        for (int64_t i = 0; i < count; i++) {
            r->row[i] = right + (first + i) * pitch;
            for (int64_t k = 0; k < rank; k++)
                r->turned[k * count + i] = left[i * rank + k];
        }
        gemm_pack_rows(r->packed, r->row, count, columns, n->bf16);
        gemm_run(&g);
    }
}

void
projections_backward_products(const struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    const struct room r = rooms(n);
    int64_t in = sd_cols(n->in[X]), wide = sd_cols(n->out), begin = 0, dx_pitch = n->din[X] ? n->din[X]->pitch : 0;
    float *dx = n->din[X] ? n->din[X]->data : NULL;
    const float *x = n->in[X]->data;

    for (int i = 0; i < a->parts; begin += projection_out(&a->part[i++])) {
        const struct sd_projection *p = &a->part[i];
        const float *dy = (const float *)n->dout->data + begin;
        int64_t rank = projection_rank(p), out = projection_out(p);

        if (dx)
            multiply(n, &r, dx, dx_pitch, dy, wide, weight_of(p->weight, true), i || !n->din_store[X] ? dx : NULL,
                     NULL);
        if (rank && (dx || trains(n, p->down))) {
            multiply(n, &r, r.narrow, rank, dy, wide, weight_of(p->up, true), NULL, NULL);
            scale_narrow(n, p, r.narrow);
        }
        if (rank && dx)
            multiply(n, &r, dx, dx_pitch, r.narrow, rank, weight_of(p->down, true), dx, NULL);
        if (rank && trains(n, p->down)) {
            float *grad = p->down->grad;

            sum_products(n, &r, rank, x, n->in[X]->pitch, in);
            for (int64_t k = 0; k < rank * in; k++)
                grad[k] += r.result[k];
        }
        if (rank && trains(n, p->up)) {
            float *grad = p->up->grad;

            multiply(n, &r, r.narrow, rank, x, n->in[X]->pitch, weight_of(p->down, false), NULL, NULL);
            scale_narrow(n, p, r.narrow);
            sum_products(n, &r, rank, dy, wide, out);
            for (int64_t o = 0; o < out; o++)
                for (int64_t k = 0; k < rank; k++)
                    grad[o * rank + k] += r.result[k * out + o];
        }
    }
}

bool
projections_prepare_products(struct sd_node *n)
{
    struct fast *f;

    if (!sd_fast() || (n->bf16 && sd_isa() < SD_ISA_AVX512BF16))
        return false;
    if (!(f = calloc(1, sizeof *f)))
        sd_die("memory", "out of memory");
    f->threads = omp_get_max_threads();
    n->vendor = f;
    n->vendor_free = free;
    n->scratch_bytes = rooms(n).bytes;
    return true;
}

#endif
