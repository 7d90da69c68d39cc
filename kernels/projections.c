/* projections, several linear layers over the same x, side by side; of part p, whose columns of y begin at c:
 *     y[r, c + o] = sum_i x[r, i] w[o, i] + b[o] + sum_k u[r, k] up[o, k] + residual[r, c + o]
 *     u[r, k] = scale sum_i x[r, i] down[k, i]
 * gradients, with v[r, k] = scale sum_o dy[r, c + o] up[o, k]:
 *     dx[r, i] += sum_o dy[r, c + o] w[o, i] + sum_k v[r, k] down[k, i]
 *     dup[o, k] += sum_r dy[r, c + o] u[r, k]     ddown[k, i] += sum_r v[r, k] x[r, i]     dresidual += dy
 * x, w, dy, down, up, u and v as products see them: sd_operand().  u is computed again for the gradient of up.
 * Fast path: the same products one after the other by gemm.h, weights read where they lie. */
#include "product.h"
#include "projections.h"

#include <omp.h>
#include <stdlib.h>

#include "gemm.h"

enum { X, PARTS, RESIDUAL };

static const struct sd_projections *
parts_of(const struct sd_node *n)
{
    return n->in[PARTS]->param->joined;
}

static int64_t
out_of(const struct sd_projection *p)
{
    return p->weight->shape[0];
}

static int64_t
rank_of(const struct sd_projection *p)
{
    return p->down ? p->down->shape[0] : 0;
}

static int64_t
most_rank(const struct sd_projections *a)
{
    int64_t most = 0;

    for (int i = 0; i < a->parts; i++)
        most = rank_of(&a->part[i]) > most ? rank_of(&a->part[i]) : most;
    return most;
}

static bool
trains(const struct sd_node *n, const struct sd_param *p)
{
    return n->din[PARTS] && p && p->trainable;
}

static real
scale_of(const struct sd_projection *p)
{
    return p->scale ? *sd_param_values(p->scale) : 1;
}

struct sd_tensor *
sd_op_projections(struct sd_graph *g, struct sd_tensor *x, const struct sd_projections *a, struct sd_tensor *residual)
{
    return sd_apply(g, SD_OP_projections, (struct sd_tensor *[]){ x, sd_use(g, sd_param_join(a)), residual }, NULL, 0);
}

static void
expect(struct sd_node *n, const struct sd_param *p, int64_t rows, int64_t cols)
{
    struct sd_tensor x = { .ndim = p->ndim };

    memcpy(x.shape, p->shape, sizeof x.shape);
    if (!cols)
        sd_expect_shape(n, p->path, &x, 1, &rows);
    else
        sd_expect_shape(n, p->path, &x, p->ndim == 4 ? 4 : 2, (int64_t[]){ rows, cols, 1, 1 });
}

void
projections_shape(struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    const struct sd_tensor *x = n->in[X];
    int64_t shape[SD_MAX_DIMS], in = sd_cols(x), out = 0;

    for (int i = 0; i < a->parts; i++) {
        const struct sd_projection *p = &a->part[i];

        if (!p->weight || !p->down != !p->up || (p->scale && !p->down))
            sd_bug(n->path, "projections: part %d has no weight, or half an adapter", i);
        if (p->weight->trainable || (p->bias && p->bias->trainable) || (p->scale && p->scale->trainable))
            sd_bug(n->path, "projections: of part %d more than the adapter is trainable", i);
        expect(n, p->weight, -1, in);
        if (p->bias)
            expect(n, p->bias, out_of(p), 0);
        if (p->down) {
            expect(n, p->down, -1, in);
            expect(n, p->up, out_of(p), rank_of(p));
        }
        if (p->scale)
            expect(n, p->scale, 1, 0);
        out += out_of(p);
    }
    memcpy(shape, x->shape, sizeof shape);
    shape[x->ndim - 1] = out;
    if (n->in[RESIDUAL])
        sd_expect_shape(n, "residual", n->in[RESIDUAL], x->ndim, shape);
    sd_expect_dtype(n, "residual", n->in[RESIDUAL]);
    sd_out(n, x->dtype, x->ndim, shape);
    for (int i = 0; i < a->parts; i++)
        n->flops += 2.0 * (double)sd_rows(x) * (double)(in * out_of(&a->part[i]) +
                                                        rank_of(&a->part[i]) * (in + out_of(&a->part[i])));
}

static void
backward_flops(struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    int64_t in = sd_cols(n->in[X]), sums = 0;

    for (int i = 0; i < a->parts; i++) {
        const struct sd_projection *p = &a->part[i];
        int64_t out = out_of(p), rank = rank_of(p);
        bool down = trains(n, p->down), up = trains(n, p->up);

        sums += (n->din[X] ? in * (out + rank) : 0) + (n->din[X] || down ? rank * out : 0) + (down ? rank * in : 0) +
            (up ? rank * (in + out) : 0);
    }
    n->backward_flops = 2.0 * (double)sd_rows(n->in[X]) * (double)sums;
}

/* -- the form on a device ------------------------------------------------------------------------------------------ */

enum { MOST_BESIDE = 256 };     /* ranks of all parts: projections.cu has the reason */

static size_t
section(size_t *at, int64_t elements, size_t size)
{
    size_t begin = *at;

    *at += ((size_t)elements * size + 255) / 256 * 256;
    return begin;
}

void
projections_layout(struct projections_layout *l, const struct sd_projections *a, enum sd_dtype dtype)
{
    size_t at = 0, size = sd_dtype_size(dtype);
    int64_t most = (most_rank(a) + 7) / 8 * 8;

    *l = (struct projections_layout){ .dtype = dtype, .in = a->part[0].weight->shape[1] };
    for (int i = 0; i < a->parts; i++) {
        l->out += out_of(&a->part[i]);
        l->rank += rank_of(&a->part[i]);
        l->biased |= a->part[i].bias != NULL;
    }
    l->padded = (l->rank + 7) / 8 * 8;
    l->beside = l->padded <= MOST_BESIDE ? l->padded : 0;
    l->pitch = l->in + l->beside;
    l->wide = l->beside ? 0 : most;
    l->weight = section(&at, l->out * l->pitch, size);
    l->down = section(&at, l->padded * l->in, size);
    l->up = section(&at, l->out * l->wide, size);
    l->scale = section(&at, l->padded, sizeof(float));
    l->bias = l->bias_d = section(&at, l->biased ? l->out : 0, sizeof(float));
    if (dtype != SD_F32)
        l->bias_d = section(&at, l->biased ? l->out : 0, size);
    l->bytes = at;
}

/* -- C loops ------------------------------------------------------------------------------------------------------- */

/* u[r, k], rows of `rank` */
static void
narrow_loops(const struct sd_node *n, const struct sd_projection *p, real *u)
{
    int64_t rows = sd_rows(n->in[X]), in = sd_cols(n->in[X]), rank = rank_of(p), pitch = n->in[X]->pitch;
    const real *down = sd_param_values(p->down), *x = n->in[X]->data;
    real scale = scale_of(p);

#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < rank; k++) {
            real sum = 0;

            for (int64_t i = 0; i < in; i++)
                sum += sd_operand(n, x[r * pitch + i]) * sd_operand(n, down[k * in + i]);
            u[r * rank + k] = scale * sum;
        }
}

/* v[r, k] */
static void
narrow_gradient_loops(const struct sd_node *n, const struct sd_projection *p, int64_t begin, real *v)
{
    int64_t rows = sd_rows(n->in[X]), out = out_of(p), rank = rank_of(p), pitch = sd_cols(n->out);
    const real *up = sd_param_values(p->up), *dy = (const real *)n->dout->data + begin;
    real scale = scale_of(p);

#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < rank; k++) {
            real sum = 0;

            for (int64_t o = 0; o < out; o++)
                sum += sd_operand(n, dy[r * pitch + o]) * sd_operand(n, up[o * rank + k]);
            v[r * rank + k] = scale * sum;
        }
}

static void
forward_loops(const struct sd_node *n, const struct sd_projection *p, int64_t begin)
{
    int64_t rows = sd_rows(n->in[X]), in = sd_cols(n->in[X]), out = out_of(p), rank = rank_of(p);
    int64_t wide = sd_cols(n->out);
    const real *w = sd_param_values(p->weight), *bias = p->bias ? sd_param_values(p->bias) : NULL;
    const real *residual = n->in[RESIDUAL] ? sd_values(n->in[RESIDUAL]) : NULL;
    const real *up = p->up ? sd_param_values(p->up) : NULL, *u = n->scratch;

    if (rank)
        narrow_loops(n, p, n->scratch);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const real *x = (const real *)n->in[X]->data + r * n->in[X]->pitch;
        real *y = (real *)n->out->data + r * wide + begin;

        for (int64_t o = 0; o < out; o++) {
            real sum = (bias ? bias[o] : 0) + (residual ? residual[r * wide + begin + o] : 0);

            for (int64_t i = 0; i < in; i++)
                sum += sd_operand(n, x[i]) * sd_operand(n, w[o * in + i]);
            for (int64_t k = 0; k < rank; k++)
                sum += sd_operand(n, u[r * rank + k]) * sd_operand(n, up[o * rank + k]);
            y[o] = sum;
        }
    }
}

static void
backward_x_loops(const struct sd_node *n, const struct sd_projection *p, int64_t begin, const real *v)
{
    int64_t rows = sd_rows(n->in[X]), in = sd_cols(n->in[X]), out = out_of(p), rank = rank_of(p);
    int64_t wide = sd_cols(n->out);
    const real *w = sd_param_values(p->weight), *down = p->down ? sd_param_values(p->down) : NULL;

#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        real *dx = (real *)n->din[X]->data + r * n->din[X]->pitch;
        const real *dy = (const real *)n->dout->data + r * wide + begin;

        for (int64_t o = 0; o < out; o++)
            for (int64_t i = 0; i < in; i++)
                dx[i] += sd_operand(n, dy[o]) * sd_operand(n, w[o * in + i]);
        for (int64_t k = 0; k < rank; k++)
            for (int64_t i = 0; i < in; i++)
                dx[i] += sd_operand(n, v[r * rank + k]) * sd_operand(n, down[k * in + i]);
    }
}

/* to[a, b] += sum_r left[r, a] right[r, b]; both are operands */
static void
sum_rows(const struct sd_node *n, real *to, const real *left, int64_t left_pitch, int64_t height, const real *right,
         int64_t right_pitch, int64_t width)
{
    int64_t rows = sd_rows(n->in[X]);

#pragma omp parallel for schedule(static)
    for (int64_t a = 0; a < height; a++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t b = 0; b < width; b++)
                to[a * width + b] +=
                    sd_operand(n, left[r * left_pitch + a]) * sd_operand(n, right[r * right_pitch + b]);
}

static void
backward_loops(struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    int64_t in = sd_cols(n->in[X]), wide = sd_cols(n->out), begin = 0;
    const real *x = n->in[X]->data, *dy = n->dout->data;

    sd_din(n, X);
    for (int i = 0; i < a->parts; begin += out_of(&a->part[i++])) {
        const struct sd_projection *p = &a->part[i];
        int64_t rank = rank_of(p);

        if (rank && (n->din[X] || trains(n, p->down)))
            narrow_gradient_loops(n, p, begin, n->scratch);
        if (n->din[X])
            backward_x_loops(n, p, begin, n->scratch);
        if (trains(n, p->down))
            sum_rows(n, p->down->grad, n->scratch, rank, rank, x, n->in[X]->pitch, in);
        if (trains(n, p->up)) {
            narrow_loops(n, p, n->scratch);
            sum_rows(n, p->up->grad, dy + begin, wide, out_of(p), n->scratch, rank, rank);
        }
    }
}

/* -- products ------------------------------------------------------------------------------------------------------ */

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

static bool
readable(const struct sd_param *p)
{
    return !p->trainable && (p->dtype == SD_F32 || p->dtype == SD_F16 || p->dtype == SD_BF16);
}

/* transposed: products of gradients, which run over the rows of the matrix */
static struct gemm_weight
weight_of(struct sd_param *p, bool transposed)
{
    struct gemm_weight w = { .dtype = SD_F32, .out = p->shape[0], .in = p->shape[1], .height = 1, .width = 1,
                             .transposed = transposed };

    if (readable(p)) {
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
        int64_t out = out_of(&a->part[i]), k = rank_of(&a->part[i]);

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
    int64_t count = sd_rows(n->in[X]) * rank_of(p);
    float scale = (float)scale_of(p);

    for (int64_t i = 0; p->scale && i < count; i++)
        u[i] *= scale;
}

static void
forward_products(const struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    const struct room r = rooms(n);
    const float *residual = n->in[RESIDUAL] ? sd_values(n->in[RESIDUAL]) : NULL;
    int64_t wide = sd_cols(n->out), begin = 0, pitch;
    const float *x = source_of(n, &r, &pitch);

    for (int i = 0; i < a->parts; begin += out_of(&a->part[i++])) {
        const struct sd_projection *p = &a->part[i];
        float *y = (float *)n->out->data + begin;

        multiply(n, &r, y, wide, x, pitch, weight_of(p->weight, false), residual ? residual + begin : NULL,
                 p->bias ? sd_param_values(p->bias) : NULL);
        if (!rank_of(p))
            continue;
        multiply(n, &r, r.narrow, rank_of(p), x, pitch, weight_of(p->down, false), NULL, NULL);
        scale_narrow(n, p, r.narrow);
        multiply(n, &r, y, wide, r.narrow, rank_of(p), weight_of(p->up, false), y, NULL);
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

static void
backward_products(const struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    const struct room r = rooms(n);
    int64_t in = sd_cols(n->in[X]), wide = sd_cols(n->out), begin = 0, dx_pitch = n->din[X] ? n->din[X]->pitch : 0;
    float *dx = n->din[X] ? n->din[X]->data : NULL;
    const float *x = n->in[X]->data;

    for (int i = 0; i < a->parts; begin += out_of(&a->part[i++])) {
        const struct sd_projection *p = &a->part[i];
        const float *dy = (const float *)n->dout->data + begin;
        int64_t rank = rank_of(p), out = out_of(p);

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

static bool
prepare_products(struct sd_node *n)
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

#else
static bool readable(const struct sd_param *p) { (void)p; return false; }
static bool prepare_products(struct sd_node *n) { (void)n; return false; }
static void forward_products(const struct sd_node *n) { (void)n; }
static void backward_products(const struct sd_node *n) { (void)n; }
#endif

/* -- entries ------------------------------------------------------------------------------------------------------- */

static void
reserve(struct sd_param *p, bool products)
{
    if (p && !(products && readable(p)))
        sd_param_reserve_values(p);
}

void
projections_prepare(struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    bool products = prepare_products(n);

    backward_flops(n);
    if (!products)
        n->scratch_bytes = (size_t)(sd_rows(n->in[X]) * most_rank(a)) * sizeof(real);
    for (int i = 0; i < a->parts; i++) {
        reserve(a->part[i].weight, products);
        reserve(a->part[i].down, products);
        reserve(a->part[i].up, products);
        reserve(a->part[i].bias, false);
        reserve(a->part[i].scale, false);
    }
}

void
projections_forward_cpu(struct sd_node *n)
{
    const struct sd_projections *a = parts_of(n);
    int64_t begin = 0;

    if (sd_fast() && n->vendor) {
        forward_products(n);
        return;
    }
    for (int i = 0; i < a->parts; begin += out_of(&a->part[i++]))
        forward_loops(n, &a->part[i], begin);
}

void
projections_backward_cpu(struct sd_node *n)
{
    if (n->din[X] || n->din[PARTS]) {
        if (sd_fast() && n->vendor)
            backward_products(n);
        else
            backward_loops(n);
    }
    if (n->din[RESIDUAL])
        product_pass(n, RESIDUAL);
}
