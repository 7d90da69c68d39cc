/* projections: CUDA twin of projections.c; the adapters ride in the columns of one product.  N rows, T bytes each number.
 *
 *     forward   [x | u] = x beside x (scale down)'        one thin kernel: reads x once, writes it, and u
 *               y = [x | u] [w | up]' + bias + residual   one product (product_cuda.h); up is block-diagonal over parts
 *     backward  [s | v] = dy [w | up]                     one product
 *               dx (+)= s + v (scale down)                one thin kernel
 *               ddown += scale v' x,  dup += dy' u        a thin kernel each for all parts: sums of chunks of rows, cut
 *                                                         by shape, then a kernel that adds the chunks in order
 *
 * Beside or apart.  Apart, y is read and written once more: 2 N out T bytes.  Beside, x is written and read once more,
 * 2 N in T bytes (u reads x either way), and each y costs `rank`, of all parts, more multiplications.  An H100 makes
 * some 100 of these (of 16 bits) in the time that it moves a byte, so that the 4 bytes of y pay for 400; the zeros in
 * the weight are read too, rank out T bytes, which is less than 2 N out T where rank < 2 N.  Q, K and V of rank 16 have
 * 48 beside 320, an attention's output 16: beside, a seventh more multiplications for y's way to memory and back.
 * K and V of the text for a whole network, 32 parts of rank 16, would have 512 beside 768 for 77 to 308 rows: apart,
 * and y += u up', v = dy up are thin kernels over all parts.  One form of the weights serves all plans, so the ranks
 * alone decide (MOST_BESIDE, 256).  Where dx is not wanted, v = dy up is a thin kernel anyway: it reads dy once. */
#include "product_cuda.h"
#include "projections.h"
#include "thin.cuh"
#include "tile.cuh"
#include "vendor.h"

using namespace sd;

namespace {

enum { X, PARTS, RESIDUAL };
enum {
    FILL = 264,             /* blocks wanted of a gradient, */
    FEWEST_ROWS = 128,      /* rows of a chunk, */
    MOST_CHUNKS = 64,
    THREADS = 128
};

/* -- gradients of the adapters ------------------------------------------------------------------------------------- */

/* to[c * across + r * down] += scale[r] * sum over chunks of part[r, c]: a product of the thin kernel to a gradient. */
struct sink {
    float *to;
    int64_t d;
    int m, n, across, down;
};
struct sinks {
    const float *part, *scale;          /* scale NULL: 1 */
    int64_t part_size;
    int chunks;
    sink at[SD_MAX_PROJECTIONS];
};

static __global__ void
__launch_bounds__(THREADS)
sink_kernel(struct sinks p)
{
    const sink &q = p.at[blockIdx.y];
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    int r = (int)(i / q.n), c = (int)(i % q.n);
    float sum = 0;

    if (r >= q.m)
        return;
    for (int k = 0; k < p.chunks; k++)
        sum += p.part[k * p.part_size + q.d + i];
    q.to[(int64_t)c * q.across + (int64_t)r * q.down] += p.scale ? sum * p.scale[q.d / q.n + r] : sum;
}

/* -- a node -------------------------------------------------------------------------------------------------------- */

/* A node, and the places of its scratch. */
struct work {
    const struct sd_node *n;
    const struct sd_projections *a;
    struct projections_layout l;
    char *form;
    int64_t rows;
    size_t size;
    char *wide;             /* [x | u] or [s | v]: rows of l.pitch */
    char *u, *v;            /* [rows, padded], where they are not in `wide` */
    float *part;
    void *products;
    size_t bytes;
    int down_chunks, up_chunks;
};

bool
trains(const struct sd_node *n, const struct sd_param *p)
{
    return n->din[PARTS] && p && p->trainable;
}

bool
any_trains(const struct work &w, bool up)
{
    for (int i = 0; i < w.a->parts; i++)
        if (projection_rank(&w.a->part[i]) && trains(w.n, up ? w.a->part[i].up : w.a->part[i].down))
            return true;
    return false;
}

/* The products of whole matrices, without what only a run knows. */
struct gemm_call
forward_call(const struct work &w)
{
    const struct sd_node *n = w.n;
    struct gemm_call g = {};

    g.rows = w.rows;
    g.columns = g.c_pitch = g.d_pitch = w.l.out;
    g.depth = g.b_pitch = w.l.pitch;
    g.b_turned = true;
    g.dtype = g.d_dtype = w.l.dtype;
    g.a = w.l.beside ? w.wide : n->in[X]->data;
    g.a_pitch = w.l.beside ? w.l.pitch : n->in[X]->pitch;
    g.d = n->out->data;
    g.c = n->in[RESIDUAL] ? n->in[RESIDUAL]->data : nullptr;
    return g;
}

struct gemm_call
data_call(const struct work &w)
{
    const struct sd_node *n = w.n;
    struct gemm_call g = {};

    g.rows = w.rows;
    g.columns = g.b_pitch = w.l.pitch;
    g.depth = g.a_pitch = w.l.out;
    g.dtype = g.d_dtype = w.l.dtype;
    g.a = n->dout->data;
    if (w.l.beside) {
        g.d = w.wide;
        g.c_pitch = g.d_pitch = w.l.pitch;
    } else {
        g.d = n->din[X]->data;
        g.c = n->din_store[X] ? nullptr : g.d;
        g.c_pitch = g.d_pitch = n->din[X]->pitch;
    }
    return g;
}

void
multiply(const struct work &w, struct gemm_call g)
{
    struct sd_device *d = device_of(w.n);

    g.b = w.form + w.l.weight;
    g.scratch = w.products;
    if (g.rows && g.columns && !cublas_gemm(d, &g))
        gemm_cuda(d, &g);
}

/* Chunks of rows for so many tiles of a gradient. */
int
chunks_of(int64_t tiles, int64_t rows)
{
    int64_t chunks = tiles ? ceil_div(FILL, tiles) : 1, most = ceil_div(rows, FEWEST_ROWS);

    chunks = chunks < most ? chunks : most;
    if (chunks > MOST_CHUNKS)
        chunks = MOST_CHUNKS;
    return chunks > 1 ? (int)chunks : 1;
}

/* Sums of one chunk: of all gradients of down, of all of up. */
int64_t down_size(const struct work &w) { return w.l.rank * w.l.in; }
int64_t
up_size(const struct work &w)
{
    int64_t size = 0;

    for (int i = 0; i < w.a->parts; i++)
        size += projection_rank(&w.a->part[i]) * projection_out(&w.a->part[i]);
    return size;
}

int64_t
up_tiles(const struct work &w)
{
    int64_t tiles = 0;

    for (int i = 0; i < w.a->parts; i++)
        tiles += ceil_div(projection_rank(&w.a->part[i]), THIN_TILE) *
            ceil_div(projection_out(&w.a->part[i]), THIN_TILE);
    return tiles;
}

size_t
larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* run: with what only a run knows. */
struct work
work_of(const struct sd_node *n, bool run)
{
    struct work w = {};
    size_t at = 0, narrow, part = 0;
    char *base = static_cast<char *>(n->scratch);
    struct gemm_call call;

    w.n = n;
    w.a = n->in[PARTS]->param->joined;
    projections_layout(&w.l, w.a, n->in[X]->dtype);
    w.rows = sd_rows(n->in[X]);
    w.size = sd_dtype_size(w.l.dtype);
    w.down_chunks = chunks_of(ceil_div(w.l.in, THIN_TILE) * ceil_div(w.l.rank, THIN_TILE), w.rows);
    w.up_chunks = chunks_of(up_tiles(w), w.rows);
    if (run)
        w.form = static_cast<char *>(sd_param_on(n->in[PARTS]->param, w.l.dtype, SD_ROWS));
    narrow = round256((size_t)(w.rows * w.l.padded) * w.size);
    w.wide = base;
    at += w.l.beside ? round256((size_t)(w.rows * w.l.pitch) * w.size) : 0;
    w.u = base + at;
    at += w.l.rank ? narrow : 0;
    if (n->training) {
        w.v = base + at;
        at += w.l.rank ? narrow : 0;
        w.part = reinterpret_cast<float *>(base + at);
        if (any_trains(w, false))
            part = (size_t)(w.down_chunks * down_size(w)) * sizeof(float);
        if (any_trains(w, true))
            part = larger(part, (size_t)(w.up_chunks * up_size(w)) * sizeof(float));
        at += round256(part);
    }
    w.products = base + at;
    call = forward_call(w);
    w.bytes = at + gemm_scratch(&call);
    if (n->din[X]) {
        call = data_call(w);
        w.bytes = larger(w.bytes, at + gemm_scratch(&call));
    }
    return w;
}

/* u = x (scale down)' to rows of `pitch`; copy: x beside it */
void
narrow(const struct work &w, void *u, int64_t pitch, void *copy)
{
    struct thin p = {};

    p.a = w.n->in[X]->data;
    p.a_pitch = w.n->in[X]->pitch;
    p.b = w.form + w.l.down;
    p.b_pitch = w.l.in;
    p.d = u;
    p.d_pitch = pitch;
    p.copy = copy;
    p.copy_pitch = pitch;
    thin_add(&p, 0, 0, 0, w.rows, w.l.padded, w.l.in);
    thin_run(device_of(w.n), w.l.dtype, p, true, true, 1);
}

/* where `up` of part p lies; rows up_pitch apart */
const void *up_of(const struct work &w) { return w.form + (w.l.beside ? w.l.weight : w.l.up); }
int64_t up_pitch(const struct work &w) { return w.l.beside ? w.l.pitch : w.l.wide; }
int64_t
up_at(const struct work &w, int64_t begin, int64_t rank)
{
    return begin * up_pitch(w) + (w.l.beside ? w.l.in + rank : 0);
}

/* y += u up' */
void
widen(const struct work &w)
{
    struct thin p = {};
    int64_t begin = 0, rank = 0;

    p.a = w.u;
    p.a_pitch = w.l.padded;
    p.b = up_of(w);
    p.b_pitch = up_pitch(w);
    p.c = p.d = w.n->out->data;
    p.c_pitch = p.d_pitch = w.l.out;
    for (int i = 0; i < w.a->parts; i++) {
        int64_t out = projection_out(&w.a->part[i]), k = projection_rank(&w.a->part[i]);

        if (k)
            thin_add(&p, rank, up_at(w, begin, rank), begin, w.rows, out, k);
        begin += out;
        rank += k;
    }
    thin_run(device_of(w.n), w.l.dtype, p, true, true, 1);
}

/* v = dy up */
void
narrow_gradient(const struct work &w)
{
    struct thin p = {};
    int64_t begin = 0, rank = 0;

    p.a = w.n->dout->data;
    p.a_pitch = w.l.out;
    p.b = up_of(w);
    p.b_pitch = up_pitch(w);
    p.d = w.v;
    p.d_pitch = w.l.padded;
    for (int i = 0; i < w.a->parts; i++) {
        int64_t out = projection_out(&w.a->part[i]), k = projection_rank(&w.a->part[i]);

        if (k)
            thin_add(&p, begin, up_at(w, begin, rank), rank, w.rows, k, out);
        begin += out;
        rank += k;
    }
    thin_run(device_of(w.n), w.l.dtype, p, true, false, 1);
}

/* dx (+)= s + v (scale down);  s NULL: dx is there */
void
finish_data(const struct work &w, const void *s, const void *v, int64_t pitch)
{
    const struct sd_tensor *dx = w.n->din[X];
    struct thin p = {};

    p.a = v;
    p.a_pitch = pitch;
    p.b = w.form + w.l.down;
    p.b_pitch = w.l.in;
    p.d = dx->data;
    p.d_pitch = dx->pitch;
    p.c = s ? s : dx->data;
    p.c_pitch = s ? w.l.pitch : dx->pitch;
    p.e = s && !w.n->din_store[X] ? dx->data : nullptr;
    p.e_pitch = dx->pitch;
    thin_add(&p, 0, 0, 0, w.rows, w.l.in, w.l.rank);
    thin_run(device_of(w.n), w.l.dtype, p, true, false, 1);
}

void
run_sinks(const struct work &w, struct sinks *s, int count)
{
    int64_t most = 0;

    for (int i = 0; i < count; i++) {
        int64_t size = (int64_t)s->at[i].m * s->at[i].n;

        most = size > most ? size : most;
    }
    if (!most)
        return;
    dim3 grid((unsigned)ceil_div(most, THREADS), (unsigned)count);

    SD_LAUNCH(device_of(w.n), sink_kernel, grid, THREADS, 0, *s);
}

/* ddown += scale v' x */
void
down_gradient(const struct work &w, const void *v, int64_t pitch)
{
    struct thin p = {};
    struct sinks s = {};
    int64_t rank = 0;
    int count = 0;

    p.a = v;
    p.a_pitch = pitch;
    p.b = w.n->in[X]->data;
    p.b_pitch = w.n->in[X]->pitch;
    p.part = w.part;
    p.part_size = down_size(w);
    p.chunk = (int)ceil_div(w.rows, w.down_chunks);
    thin_add(&p, 0, 0, 0, w.l.rank, w.l.in, w.rows);
    thin_run(device_of(w.n), w.l.dtype, p, false, false, w.down_chunks);
    s.part = w.part;
    s.part_size = p.part_size;
    s.chunks = w.down_chunks;
    s.scale = reinterpret_cast<const float *>(w.form + w.l.scale);
    for (int i = 0; i < w.a->parts; i++) {
        int64_t k = projection_rank(&w.a->part[i]);

        if (k && trains(w.n, w.a->part[i].down)) {
            sink *q = &s.at[count++];

            q->to = w.a->part[i].down->device_grad;
            q->d = rank * w.l.in;
            q->m = (int)k;
            q->n = q->down = (int)w.l.in;
            q->across = 1;
        }
        rank += k;
    }
    run_sinks(w, &s, count);
}

/* dup += dy' u, made as u' dy */
void
up_gradient(const struct work &w)
{
    struct thin p = {};
    struct sinks s = {};
    int64_t begin = 0, rank = 0, at = 0;
    int count = 0;

    p.a = w.u;
    p.a_pitch = w.l.padded;
    p.b = w.n->dout->data;
    p.b_pitch = w.l.out;
    p.part = w.part;
    p.part_size = up_size(w);
    p.chunk = (int)ceil_div(w.rows, w.up_chunks);
    for (int i = 0; i < w.a->parts; i++) {
        int64_t out = projection_out(&w.a->part[i]), k = projection_rank(&w.a->part[i]);

        if (k && trains(w.n, w.a->part[i].up)) {
            sink *q = &s.at[count++];

            thin_add(&p, rank, begin, at, k, out, w.rows);
            q->to = w.a->part[i].up->device_grad;
            q->d = at;
            q->m = q->across = (int)k;
            q->n = (int)out;
            q->down = 1;
        }
        begin += out;
        rank += k;
        at += k * out;
    }
    thin_run(device_of(w.n), w.l.dtype, p, false, false, w.up_chunks);
    s.part = w.part;
    s.part_size = p.part_size;
    s.chunks = w.up_chunks;
    run_sinks(w, &s, count);
}

}   /* namespace */

void
projections_prepare_cuda(struct sd_node *n)
{
    sd_param_want(n->in[PARTS]->param, n->in[X]->dtype, SD_ROWS);
    n->scratch_bytes = work_of(n, false).bytes;
}

void
projections_forward_cuda(struct sd_node *n)
{
    struct work w = work_of(n, true);
    struct gemm_call call;

    if (!w.rows)
        return;
    if (w.l.beside)
        narrow(w, w.wide + (size_t)w.l.in * w.size, w.l.pitch, w.wide);
    call = forward_call(w);
    if (w.l.biased) {
        call.bias = reinterpret_cast<const float *>(w.form + w.l.bias);
        call.bias_d = w.form + w.l.bias_d;
    }
    multiply(w, call);
    if (w.l.rank && !w.l.beside) {
        narrow(w, w.u, w.l.padded, nullptr);
        widen(w);
    }
}

void
projections_backward_cuda(struct sd_node *n)
{
    struct work w = work_of(n, true);
    bool down = any_trains(w, false), up = any_trains(w, true), within = n->din[X] && w.l.beside;
    const void *v = within ? w.wide + (size_t)w.l.in * w.size : w.v;
    int64_t v_pitch = within ? w.l.pitch : w.l.padded;

    if (w.rows) {
        if (n->din[X])
            multiply(w, data_call(w));
        if (w.l.rank && !within && (n->din[X] || down))
            narrow_gradient(w);
        if (w.l.rank && n->din[X])
            finish_data(w, within ? w.wide : nullptr, v, v_pitch);
        if (down)
            down_gradient(w, v, v_pitch);
        if (up) {
            narrow(w, w.u, w.l.padded, nullptr);
            up_gradient(w);
        }
    }
    if (n->din[RESIDUAL])
        residual_pass(n, RESIDUAL);
}
