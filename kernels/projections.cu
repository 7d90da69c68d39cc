/* projections: CUDA twin of projections.c; the adapters ride in the columns of one product.  N rows, T bytes each number.
 *
 *     forward   [x | u] = x beside x (scale down)'        one thin kernel: reads x once, writes it, and u
 *               y = [x | u] [w | up]' + bias + residual   one product (product_cuda.h); up is block-diagonal over parts
 *               u is saved, in the type of x, where the gradient of up will read it: T `ranks` bytes a row
 *     backward  [s | v] = dy [w | up]                     one product
 *               dx (+)= s + v (scale down)                these three one thin kernel; gradients of many rows are sums
 *               ddown += scale v' x,  dup += dy' u        of chunks, cut by shape, and a kernel adds these in order
 *
 * Alone or in chunks.  A block that reads all rows for its 64 columns and 16 ranks takes some 0.7 us and 2.7 for each
 * 160 KB, and adds to the gradient itself.  In chunks it reads less, but the sums are one more launch, 1 to 2 us and
 * their way to memory and back, so up to 160 KB it is alone: 1024 rows of 16 bits.  Alone each part of down has its own
 * product, and x is read as often, from L2; in chunks one product for all parts reads x once.
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

enum { X, PARTS, RESIDUAL };    /* inputs */
enum { U };                     /* saved */
enum {
    FILL = 264,             /* blocks wanted of a gradient, */
    FEWEST_ROWS = 128,      /* rows of a chunk, */
    MOST_CHUNKS = 64,
    ALONE_BYTES = 160 << 10,    /* what a block reads of all rows rather than leave chunks to another kernel */
    THREADS = 128
};

/* -- gradients of the adapters ------------------------------------------------------------------------------------- */

enum { DOWN, UP };              /* pairs of operands: v and x, u and dy */

/* The sum over chunks of part + d [m, n] to a gradient: down's, [m, n], whose rows are scaled by scale[rank + row], or,
 * rank < 0, up's, [n, m]. */
struct sink {
    float *to;
    int d, m, n, rank;
};
struct sinks {
    const float *part[2], *scale;
    int64_t part_size[2];
    int chunks[2];
    sink at[2 * SD_MAX_PROJECTIONS];
};
static_assert(sizeof(sinks) < 4000, "kernels take 4 KB of arguments");

static __global__ void
__launch_bounds__(THREADS)
sink_kernel(struct sinks p)
{
    SD_BEGIN();
    const sink &q = p.at[blockIdx.y];
    unsigned i = blockIdx.x * THREADS + threadIdx.x, n = (unsigned)q.n;
    int r = (int)(i / n), c = (int)(i % n), pair = q.rank < 0 ? UP : DOWN;
    const float *from = p.part[pair] + q.d + i;
    float sum = 0;

    if (r >= q.m)
        return;
#pragma unroll 8
    for (int k = 0; k < p.chunks[pair]; k++)
        sum += from[k * p.part_size[pair]];
    if (pair == DOWN)
        q.to[i] += sum * p.scale[q.rank + r];
    else
        q.to[(int64_t)c * q.m + r] += sum;
}

/* -- a node -------------------------------------------------------------------------------------------------------- */

struct chunks { int count; int64_t rows; };

/* A node, and the places of its scratch. */
struct work {
    const struct sd_node *n;
    const struct sd_projections *a;
    struct projections_layout l;
    char *form;
    int64_t rows;
    size_t size;
    char *wide;             /* [x | u] or [s | v]: rows of l.pitch */
    void *u, *v;            /* [rows, padded]; u is the saved tensor, if up trains; NULL: in `wide` alone */
    float *part;            /* sums of chunks of down, then of up */
    void *products;
    size_t bytes;
    struct chunks cut[2];   /* of DOWN, UP */
    bool sunk[2];           /* sums go to `part` first */
    int64_t sums[2];        /* of a chunk there */
};

bool
trains(const struct sd_node *n, const struct sd_param *p)
{
    return n->din[PARTS] && p && p->trainable;
}

bool
any_trains(const struct sd_node *n, bool up)
{
    const struct sd_projections *a = n->in[PARTS]->param->joined;

    for (int i = 0; i < a->parts; i++)
        if (projection_rank(&a->part[i]) && trains(n, up ? a->part[i].up : a->part[i].down))
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

/* How the rows are cut for one gradient, or all of down together: tiles in all, ranks of one. */
struct chunks
chunks_of(const struct work &w, int64_t tiles, int64_t rank)
{
    int64_t chunks = ceil_div(FILL, tiles), most = ceil_div(w.rows, FEWEST_ROWS);
    int64_t tall = ceil_div(rank, 16) * 16, across = THIN_TILE + (tall < THIN_TILE ? tall : (int64_t)THIN_TILE);
    struct chunks c = { 1, w.rows };

    chunks = chunks < most ? chunks : most;
    if (chunks > MOST_CHUNKS)
        chunks = MOST_CHUNKS;
    if (chunks > 1 && w.rows * across * (int64_t)w.size > ALONE_BYTES) {
        c.rows = ceil_div(w.rows, chunks);
        c.count = (int)ceil_div(w.rows, c.rows);
    }
    return c;
}

/* Decides on chunks and sums what they take. */
void
cut_rows(struct work *w)
{
    int64_t down_tiles = 0, up_tiles = 0, most = 0, up = 0;
    int trained = 0;

    for (int i = 0; i < w->a->parts; i++) {
        int64_t k = projection_rank(&w->a->part[i]), out = projection_out(&w->a->part[i]);

        if (!k)
            continue;
        down_tiles += ceil_div(k, THIN_TILE) * ceil_div(w->l.in, THIN_TILE);
        up_tiles += ceil_div(k, THIN_TILE) * ceil_div(out, THIN_TILE);
        most = k > most ? k : most;
        up += trains(w->n, w->a->part[i].up) ? k * out : 0;
        trained += trains(w->n, w->a->part[i].down) + trains(w->n, w->a->part[i].up);
    }
    if (!w->l.rank || !w->rows)
        return;
    w->cut[DOWN] = chunks_of(*w, down_tiles, most);
    w->cut[UP] = chunks_of(*w, up_tiles, most);
    if (w->cut[DOWN].count > 1)         /* then x is read once for all parts */
        w->cut[DOWN] = chunks_of(*w, ceil_div(w->l.rank, THIN_TILE) * ceil_div(w->l.in, THIN_TILE), w->l.rank);
    w->sunk[DOWN] = w->cut[DOWN].count > 1 || trained >= THIN_PARTS;
    w->sunk[UP] = w->cut[UP].count > 1;
    w->sums[DOWN] = any_trains(w->n, false) && w->sunk[DOWN] ? w->l.rank * w->l.in : 0;
    w->sums[UP] = any_trains(w->n, true) && w->sunk[UP] ? up : 0;
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
    size_t at = 0, narrow;
    char *base = static_cast<char *>(n->scratch);
    struct gemm_call call;

    w.n = n;
    w.a = n->in[PARTS]->param->joined;
    projections_layout(&w.l, w.a, n->in[X]->dtype);
    w.rows = sd_rows(n->in[X]);
    w.size = sd_dtype_size(w.l.dtype);
    cut_rows(&w);
    if (run)
        w.form = static_cast<char *>(sd_param_on(n->in[PARTS]->param, w.l.dtype, SD_ROWS));
    narrow = round256((size_t)(w.rows * w.l.padded) * w.size);
    w.wide = base;
    at += w.l.beside ? round256((size_t)(w.rows * w.l.pitch) * w.size) : 0;
    if (n->saved[U])
        w.u = n->saved[U]->data;
    else if (w.l.rank && !w.l.beside) {
        w.u = base + at;
        at += narrow;
    }
    if (n->training) {
        if (w.l.rank && (n->din[X] ? !w.l.beside : any_trains(n, false))) {
            w.v = base + at;
            at += narrow;
        }
        w.part = reinterpret_cast<float *>(base + at);
        at += round256((size_t)(w.cut[DOWN].count * w.sums[DOWN] + w.cut[UP].count * w.sums[UP]) * sizeof(float));
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

/* u = x (scale down)', to `wide` behind x, or apart */
void
narrow(const struct work &w)
{
    struct thin p = {};

    p.pair[0].a = w.n->in[X]->data;
    p.pair[0].a_pitch = w.n->in[X]->pitch;
    p.pair[0].b = w.form + w.l.down;
    p.pair[0].b_pitch = w.l.in;
    p.d = w.u;
    p.d_pitch = w.l.padded;
    if (w.l.beside) {
        p.again = p.d;
        p.again_pitch = p.d_pitch;
        p.d = w.wide + (size_t)w.l.in * w.size;
        p.copy = w.wide;
        p.d_pitch = p.copy_pitch = w.l.pitch;
    }
    thin_add(&p, 0, 0, 0, 0, w.rows, w.l.padded, w.l.in);
    thin_run(device_of(w.n), w.l.dtype, &p, true);
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

    p.pair[0].a = w.u;
    p.pair[0].a_pitch = w.l.padded;
    p.pair[0].b = up_of(w);
    p.pair[0].b_pitch = up_pitch(w);
    p.c = p.d = w.n->out->data;
    p.c_pitch = p.d_pitch = w.l.out;
    for (int i = 0; i < w.a->parts; i++) {
        int64_t out = projection_out(&w.a->part[i]), k = projection_rank(&w.a->part[i]);

        if (k)
            thin_add(&p, 0, rank, up_at(w, begin, rank), begin, w.rows, out, k);
        begin += out;
        rank += k;
    }
    thin_run(device_of(w.n), w.l.dtype, &p, true);
}

/* v = dy up */
void
narrow_gradient(const struct work &w)
{
    struct thin p = {};
    int64_t begin = 0, rank = 0;

    p.pair[0].a = w.n->dout->data;
    p.pair[0].a_pitch = w.l.out;
    p.pair[0].b = up_of(w);
    p.pair[0].b_pitch = up_pitch(w);
    p.d = w.v;
    p.d_pitch = w.l.padded;
    for (int i = 0; i < w.a->parts; i++) {
        int64_t out = projection_out(&w.a->part[i]), k = projection_rank(&w.a->part[i]);

        if (k)
            thin_add(&p, 0, begin, up_at(w, begin, rank), rank, w.rows, k, out);
        begin += out;
        rank += k;
    }
    thin_run(device_of(w.n), w.l.dtype, &p, false);
}

/* dx (+)= s + v (scale down);  s NULL: dx is there */
void
finish_data(struct thin *p, const struct work &w, const void *s, const void *v, int64_t pitch)
{
    const struct sd_tensor *dx = w.n->din[X];
    thin_pair *o = &p->pair[THIN_DATA];

    o->a = v;
    o->a_pitch = pitch;
    o->b = w.form + w.l.down;
    o->b_pitch = w.l.in;
    p->d = dx->data;
    p->d_pitch = dx->pitch;
    p->c = s ? s : dx->data;
    p->c_pitch = s ? w.l.pitch : dx->pitch;
    p->e = s && !w.n->din_store[X] ? dx->data : nullptr;
    p->e_pitch = dx->pitch;
    thin_add(p, THIN_DATA, 0, 0, 0, w.rows, w.l.in, w.l.rank);
}

/* What the gradients are made by: products, and the sums of what these leave. */
struct gradients {
    struct thin thin;
    struct sinks sinks;
    int count;                  /* of sinks */
    int64_t most;               /* sums of the largest */
};

void
sink_to(struct gradients *g, float *to, int64_t d, int64_t m, int64_t n, int64_t rank)
{
    sink *q = &g->sinks.at[g->count++];

    if (d + m * n > INT32_MAX)
        sd_bug("projections", "%lld sums", (long long)(d + m * n));
    q->to = to;
    q->d = (int)d;
    q->m = (int)m;
    q->n = (int)n;
    q->rank = (int)rank;
    g->most = m * n > g->most ? m * n : g->most;
}

/* One product: to a gradient, or to the buffer at d. */
void
gradient(struct gradients *g, const struct work &w, int pair, float *to, int64_t a, int64_t b, int64_t d, int64_t m,
         int64_t n)
{
    thin_part *q = thin_add(&g->thin, pair, a, b, d, m, n, w.rows);

    q->to = w.sunk[pair] ? nullptr : to;
    q->turned = pair == UP;
}

/* ddown += scale v' x */
void
down_gradient(struct gradients *g, const struct work &w)
{
    int64_t rank = 0;

    if (w.sunk[DOWN])
        gradient(g, w, DOWN, nullptr, 0, 0, 0, w.l.rank, w.l.in);
    for (int i = 0; i < w.a->parts; i++) {
        int64_t k = projection_rank(&w.a->part[i]);

        if (k && trains(w.n, w.a->part[i].down)) {
            float *to = w.a->part[i].down->device_grad;

            if (w.sunk[DOWN])
                sink_to(g, to, rank * w.l.in, k, w.l.in, rank);
            else
                gradient(g, w, DOWN, to, rank, 0, 0, k, w.l.in);
        }
        rank += k;
    }
}

/* dup += dy' u, made as u' dy */
void
up_gradient(struct gradients *g, const struct work &w)
{
    int64_t begin = 0, rank = 0, at = 0;

    for (int i = 0; i < w.a->parts; i++) {
        int64_t out = projection_out(&w.a->part[i]), k = projection_rank(&w.a->part[i]);

        if (k && trains(w.n, w.a->part[i].up)) {
            float *to = w.a->part[i].up->device_grad;

            gradient(g, w, UP, to, rank, begin, at, k, out);
            if (w.sunk[UP])
                sink_to(g, to, at, k, out, -1);
            at += k * out;
        }
        begin += out;
        rank += k;
    }
}

void
set_pair(struct gradients *g, const struct work &w, int pair, const void *a, int64_t a_pitch, const void *b,
         int64_t b_pitch)
{
    thin_pair *o = &g->thin.pair[pair];

    o->a = a;
    o->a_pitch = a_pitch;
    o->b = b;
    o->b_pitch = b_pitch;
    o->chunk = (int)w.cut[pair].rows;
    o->part = w.part + (pair == UP ? w.cut[DOWN].count * w.sums[DOWN] : 0);
    o->part_size = w.sums[pair];
    g->sinks.part[pair] = o->part;
    g->sinks.part_size[pair] = o->part_size;
    g->sinks.chunks[pair] = w.cut[pair].count;
}

/* All that follows the product dy [w | up]: gradients, and dx, in one launch, and then the sums over chunks. */
void
finish(const struct work &w, const void *v, int64_t v_pitch, bool within)
{
    const struct sd_node *n = w.n;
    struct gradients g = {};

    g.thin.scale = g.sinks.scale = reinterpret_cast<const float *>(w.form + w.l.scale);
    set_pair(&g, w, DOWN, v, v_pitch, n->in[X]->data, n->in[X]->pitch);
    set_pair(&g, w, UP, w.u, w.l.padded, n->dout->data, w.l.out);
    if (any_trains(n, false))
        down_gradient(&g, w);
    if (any_trains(n, true))
        up_gradient(&g, w);
    if (n->din[X])
        finish_data(&g.thin, w, within ? w.wide : nullptr, v, v_pitch);
    thin_run_gradients(device_of(n), w.l.dtype, &g.thin);
    if (g.count) {
        dim3 grid((unsigned)ceil_div(g.most, THREADS), (unsigned)g.count);

        SD_LAUNCH(device_of(n), sink_kernel, grid, THREADS, 0, g.sinks);
    }
}

}   /* namespace */

void
projections_prepare_cuda(struct sd_node *n)
{
    const struct sd_tensor *x = n->in[X];
    struct projections_layout l;

    projections_backward_flops(n);
    sd_param_want(n->in[PARTS]->param, x->dtype, SD_ROWS);
    projections_layout(&l, n->in[PARTS]->param->joined, x->dtype);
    if (any_trains(n, true)) {
        const int64_t shape[] = { sd_rows(x), l.padded };

        sd_save(n, U, x->dtype, 2, shape);
    }
    n->scratch_bytes = work_of(n, false).bytes;
}

void
projections_forward_cuda(struct sd_node *n)
{
    struct work w = work_of(n, true);
    struct gemm_call call;

    if (!w.rows)
        return;
    if (w.l.rank)
        narrow(w);
    call = forward_call(w);
    if (w.l.biased) {
        call.bias = reinterpret_cast<const float *>(w.form + w.l.bias);
        call.bias_d = w.form + w.l.bias_d;
    }
    multiply(w, call);
    if (w.l.rank && !w.l.beside)
        widen(w);
}

void
projections_backward_cuda(struct sd_node *n)
{
    struct work w = work_of(n, true);
    bool within = n->din[X] && w.l.beside;
    const void *v = within ? w.wide + (size_t)w.l.in * w.size : w.v;
    int64_t v_pitch = within ? w.l.pitch : w.l.padded;

    if (w.rows) {
        if (n->din[X])
            multiply(w, data_call(w));
        if (w.l.rank && !within && (n->din[X] || any_trains(n, false)))
            narrow_gradient(w);
        if (w.l.rank)
            finish(w, v, v_pitch, within);
    }
    if (n->din[RESIDUAL])
        residual_pass(n, RESIDUAL);
}
