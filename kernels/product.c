/* product.c - how linear and conv2d become products of gathered rows.
 *
 *     forward           y[i]           = sum_k  w[k] x[s i + k - top]                      a tap per kernel element
 *       enlarged x      y[2i + p]      = sum_j (sum of w[k] with (p + k - top) >> 1 = j) x[i + j]
 *     data gradient     dx[s i + p]    = sum of w[k] dy[i + (p + top - k) / s], k with s | p + top - k
 *       enlarged x      dx[i]          = sum_d (w[top - d] + w[top + 1 - d]) dy[2i + d]
 *     weight gradient   product_weight.c
 *     3x3 kernels of stride 1 over many pixels: winograd.h
 *
 * (one axis written; the other is the same; a product per phase p).  Weights that fall on one pixel are summed when
 * panels are made of them (gemm.h), and rounded after that where products are of bf16.
 * A linear layer over x and what lies beside it is two products, each with its columns of the weight; the second's sums
 * begin where the first's ended.
 * The only weights kept in a form of their own are Winograd's. */
#include "product.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#include "gemm.h"
#include "product_internal.h"
#include "winograd.h"

static int64_t
ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static struct product_shape
shape_of(const struct sd_node *n, int input)
{
    const struct sd_tensor *x = n->in[input], *w = n->in[1], *y = n->out;

    if (n->op == SD_OP_linear)
        return (struct product_shape){ .batch = 1, .height = 1, .width = sd_rows(x), .in = sd_cols(x),
                                       .x_pitch = x->pitch,
                                       .out_height = 1, .out_width = sd_rows(x), .out = sd_cols(y), .kernel_height = 1,
                                       .kernel_width = 1, .a = { .stride = 1, .upsample = 1 } };
    return (struct product_shape){ .batch = x->shape[0], .height = x->shape[1], .width = x->shape[2], .in = x->shape[3],
                                   .x_pitch = x->pitch, .out_height = y->shape[1], .out_width = y->shape[2],
                                   .out = y->shape[3], .kernel_height = (int)w->shape[2],
                                   .kernel_width = (int)w->shape[3],
                                   .a = *(const struct sd_conv2d *)n->attr };
}

struct product_shape
product_shape(const struct sd_node *n)
{
    return shape_of(n, 0);
}

static const struct sd_tensor *
beside(const struct sd_node *n)
{
    return n->op == SD_OP_linear ? n->in[PRODUCT_BESIDE] : NULL;
}

void
product_flops(struct sd_node *n)
{
    struct product_shape s = product_shape(n);
    int64_t in = s.in + (beside(n) ? sd_cols(beside(n)) : 0);

    n->flops = 2.0 * (double)(s.batch * s.out_height * s.out_width) * (double)(s.out * in) * s.kernel_height *
        s.kernel_width;
}

void
product_backward_flops(struct sd_node *n)
{
    double share = beside(n) ? (double)sd_cols(beside(n)) / (double)(sd_cols(n->in[0]) + sd_cols(beside(n))) : 0;

    n->backward_flops = n->flops * ((n->din[0] ? 1 - share : 0) + (n->din[1] != NULL));
    if (beside(n) && n->din[PRODUCT_BESIDE])
        n->backward_flops += n->flops * share;
}

enum { SUM_ROWS = 512 };

size_t
product_sums_bytes(int64_t batch, int64_t rows, int64_t columns)
{
    return (size_t)(batch * (ceil_div(rows, SUM_ROWS) + 1) * columns) * sizeof(real);
}

void
product_sums(real *sums, const real *dy, int64_t batch, int64_t rows, int64_t columns, void *scratch)
{
    int64_t chunks = ceil_div(rows, SUM_ROWS);
    real *part = scratch;

#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < batch * chunks; i++) {
        int64_t b = i / chunks, begin = i % chunks * SUM_ROWS, end = begin + SUM_ROWS < rows ? begin + SUM_ROWS : rows;
        real *sum = part + i * columns;

        for (int64_t o = 0; o < columns; o++)
            sum[o] = 0;
        for (int64_t r = begin; r < end; r++) {
            const real *row = dy + (b * rows + r) * columns;

            for (int64_t o = 0; o < columns; o++)
                sum[o] += row[o];
        }
    }
    for (int64_t b = 0; b < batch; b++)
        for (int64_t o = 0; o < columns; o++) {
            real sum = 0;

            for (int64_t c = 0; c < chunks; c++)
                sum += part[(b * chunks + c) * columns + o];
            sums[b * columns + o] = sum;
        }
}

void
product_pass(struct sd_node *n, int input)
{
    const real *dy = n->dout->data;
    real *d = n->din[input]->data;
    int64_t count = (int64_t)n->dout->numel;
    bool store = n->din_store[input];

    if (store && d == dy)
        return;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i++)
        d[i] = store ? dy[i] : d[i] + dy[i];
}

#if SD_REAL_IS_FLOAT

static void
product_free(void *vendor)
{
    struct product *p = vendor;

    for (int i = 0; i < MAX_PHASES; i++) {
        free(p->forward.phase[i].tap);
        free(p->data.phase[i].tap);
    }
    if (p->beside)
        product_free(p->beside);
    free(p);
}

/* The taps of one axis: `at` on the source, `kernel` the set of kernel elements that fall there. */
static int
axis_taps(int *at, uint32_t *kernel, bool data, int phase, int size, int before, struct sd_conv2d a)
{
    int count = 0;

    for (int k = 0; k < size; k++)
        for (int p = 0; p < (data ? a.upsample : 1); p++) {
            int d, i;

            if (!data)                                  /* floor of a quotient by 1 or 2 */
                d = a.upsample == 2 ? (phase + k - before + 2 * MAX_KERNEL * 64) / 2 - MAX_KERNEL * 64 : k - before;
            else if (a.upsample == 2)
                d = p + before - k;
            else if ((phase + before - k) % a.stride)
                continue;
            else
                d = (phase + before - k) / a.stride;
            for (i = 0; i < count && at[i] != d; i++)
                ;
            if (i == count) {
                at[count] = d;
                kernel[count++] = 0;
            }
            kernel[i] |= 1u << k;
        }
    return count;
}

static bool
winograd_fits(const struct product_shape *s, bool data, bool bf16)
{
    /* four phases of four taps: as few products as Winograd's, each twice as fast */
    if (bf16 && s->a.upsample == 2)
        return false;
    return s->kernel_height == 3 && s->kernel_width == 3 && s->a.stride == 1 &&
           winograd_wanted(data ? s->height * s->a.upsample : s->out_height,
                           data ? s->width * s->a.upsample : s->out_width,
                           s->in, s->out);
}

static void
make_form(struct form *f, const struct product_shape *s, bool data, bool frozen, bool bf16)
{
    f->data = data;
    f->winograd = frozen && winograd_fits(s, data, bf16);
    if (f->winograd) {
        f->bytes = winograd_packed_bytes(data ? s->out : s->in, data ? s->in : s->out);
        snprintf(f->key, sizeof f->key, "winograd:%s:%s%s", sd_isa_name(), data ? "data" : "forward",
                 bf16 ? ":bf16" : "");
        return;
    }
    f->per_axis = data ? s->a.upsample == 2 ? 1 : s->a.stride : s->a.upsample;
    f->step = data ? s->a.upsample : s->a.stride;
    for (int i = 0; i < f->per_axis * f->per_axis; i++) {
        struct phase *h = &f->phase[i];
        int y[2 * MAX_KERNEL], x[2 * MAX_KERNEL], ny, nx;
        uint32_t ky[2 * MAX_KERNEL], kx[2 * MAX_KERNEL];

        h->y = i / f->per_axis;
        h->x = i % f->per_axis;
        ny = axis_taps(y, ky, data, h->y, s->kernel_height, s->a.top, s->a);
        nx = axis_taps(x, kx, data, h->x, s->kernel_width, s->a.left, s->a);
        h->taps = ny * nx;
        h->tap = calloc((size_t)h->taps + 1, sizeof *h->tap);
        if (!h->tap)
            sd_die("memory", "out of memory");
        for (int t = 0; t < h->taps; t++)
            h->tap[t] = (struct gemm_tap){ y[t / nx], x[t % nx], ky[t / nx], kx[t % nx] };
    }
}

static bool
frozen(const struct sd_tensor *w)
{
    return w->param && !w->base && !w->param->trainable;
}

/* Can products read the parameter's bytes as they are? */
static bool
readable(const struct sd_param *p)
{
    return p->dtype == SD_F32 || p->dtype == SD_F16 || p->dtype == SD_BF16;
}

/* With bf16, what many columns or taps read is turned into pairs once, else by each task for itself. */
static bool
pairs_once(const struct product *p, const struct form *f)
{
    const struct product_shape *s = &p->s;

    return p->bf16 && s->kernel_height * s->kernel_width * (f->data ? s->in : s->out) >= 640;
}

/* Numbers of the source of one direction from pixel to pixel, its pixels, and elements of a pixel in pairs. */
struct source { int64_t pixels, depth, pitch, half; };

static struct source
source_of(const struct product *p, const struct form *f)
{
    const struct product_shape *s = &p->s;
    int64_t depth = f->data ? s->out : s->in;

    return (struct source){ s->batch * (f->data ? s->out_height * s->out_width : s->height * s->width), depth,
                            f->data ? depth : s->x_pitch, (depth + 1) / 2 };
}

static struct gemm_weight
weight_of(const struct sd_tensor *w, const struct product *p, bool transposed)
{
    const struct product_shape *s = &p->s;
    struct gemm_weight r = { .dtype = SD_F32, .out = s->out, .in = s->in, .height = s->kernel_height,
                             .width = s->kernel_width,
                             .transposed = transposed, .row = p->row };

    if (frozen(w) && readable(w->param)) {
        r.values = w->param->raw;
        r.dtype = w->param->dtype;
    } else
        r.values = sd_values(w);
    r.values = (const char *)r.values + (size_t)p->first * sd_dtype_size(r.dtype);
    return r;
}

static void
make_winograd(void *out, const struct sd_param *p SD_UNUSED, const void *weight)
{
    winograd_pack(out, weight, false);
}

static void
make_winograd_bf16(void *out, const struct sd_param *p SD_UNUSED, const void *weight)
{
    winograd_pack(out, weight, true);
}

/* The forward pass or the data gradient as one call. */
static struct winograd
winograd_of(const struct product_shape *s, bool data)
{
    int up = s->a.upsample;

    if (data)
        return (struct winograd){ .batch = s->batch, .height = s->height * up, .width = s->width * up, .columns = s->in,
                                  .x_height = s->out_height, .x_width = s->out_width, .depth = s->out, .enlarged = 1,
                                  .pooled = up, .top = 2 - s->a.top, .left = 2 - s->a.left };
    return (struct winograd){ .batch = s->batch, .height = s->out_height, .width = s->out_width, .columns = s->out,
                              .x_height = s->height, .x_width = s->width, .depth = s->in, .enlarged = up, .pooled = 1,
                              .top = s->a.top, .left = s->a.left };
}

/* One phase as a product, without what only a run knows. */
static struct gemm
gemm_of(const struct product *p, const struct form *f, const struct phase *h, const struct gemm_weight *w)
{
    const struct product_shape *s = &p->s;
    bool once = pairs_once(p, f);
    struct source x = source_of(p, f);
    int64_t depth = x.depth, columns = f->data ? s->in : s->out, pitch = once ? x.half : x.pitch;
    int64_t height = f->data ? s->out_height : s->height, width = f->data ? s->out_width : s->width;
    int64_t out_height = f->data ? s->height : s->out_height, out_width = f->data ? s->width : s->out_width;

    return (struct gemm){ .batch = s->batch, .height = ceil_div(out_height - h->y, f->per_axis),
                          .width = ceil_div(out_width - h->x, f->per_axis), .depth = depth, .columns = columns,
                          .taps = h->taps,
                          .tap = h->tap, .x_height = height, .x_width = width, .x_batch = height * width * pitch,
                          .x_row = width * pitch, .x_column = pitch, .step = f->step, .bf16 = p->bf16, .paired = once,
                          .weight = w, .threads = p->threads };
}

/* Scratch of forward and data gradient: zeros, biases, panels. */
static size_t
form_scratch(const struct product *p, const struct form *f)
{
    struct winograd w = winograd_of(&p->s, f->data);
    struct gemm_weight weight = { .dtype = SD_F32, .out = p->s.out, .in = p->s.in, .height = p->s.kernel_height,
                                  .width = p->s.kernel_width, .transposed = f->data };
    size_t biases = align((size_t)(p->s.batch * p->s.out) * sizeof(float)), panels = 0;

    if (f->winograd)
        return biases + winograd_scratch(&w);
    for (int i = 0; i < f->per_axis * f->per_axis; i++) {
        struct gemm g = gemm_of(p, f, &f->phase[i], &weight);

        if (gemm_room(&g) > panels)
            panels = gemm_room(&g);
    }
    struct source x = source_of(p, f);
    size_t pairs = pairs_once(p, f) ? align((size_t)(x.pixels * x.half) * sizeof(float)) : 0;

    return align((size_t)x.depth * sizeof(float)) + biases + pairs + panels;
}

/* [batch, out] or [out] */
static const float *
whole_bias(float *room, const struct sd_node *n, const struct product_shape *s)
{
    const float *bias = n->in[2] ? sd_values(n->in[2]) : NULL;
    const float *add = n->op == SD_OP_conv2d && n->in[3] ? sd_values(n->in[3]) : NULL;

    if (!add)
        return bias;
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t o = 0; o < s->out; o++)
            room[b * s->out + o] = add[b * n->in[3]->pitch + o] + (bias ? bias[o] : 0);
    return room;
}

static void
run_winograd(struct sd_node *n, const struct product *p, const struct form *f)
{
    const struct sd_tensor *residual = n->in[4];
    struct gemm_weight weight = weight_of(n->in[1], p, f->data);
    struct winograd w = winograd_of(&p->s, f->data);
    size_t biases = align((size_t)(p->s.batch * p->s.out) * sizeof(float));

    w.bf16 = p->bf16;
    w.packed = sd_param_packed(n->in[1]->param, f->key, f->bytes, p->bf16 ? make_winograd_bf16 : make_winograd,
                               &weight);
    w.scratch = (float *)((char *)n->scratch + biases);
    w.x = f->data ? n->dout->data : n->in[0]->data;
    w.out = f->data ? n->din[0]->data : n->out->data;
    if (f->data)
        w.start = n->din_store[0] ? NULL : w.out;
    else {
        w.start = residual ? residual->data : NULL;
        w.bias = whole_bias(n->scratch, n, &p->s);
        w.bias_batch = n->in[3] ? p->s.out : 0;
    }
    winograd_run(&w);
}

static void
pair_source(float *to, const float *from, const struct source *x)
{
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < x->pixels; i++)
        gemm_pair(to + i * x->half, from + i * x->pitch, x->depth);
}

/* Every phase of the forward pass or the data gradient: columns of y (or dx) are `pitch` apart from pixel to pixel. */
static void
run_phases(const struct sd_node *n, const struct product *p, const struct form *f, int64_t pitch, const float *start)
{
    const struct product_shape *s = &p->s;
    struct gemm_weight w = weight_of(n->in[1], p, f->data);
    int64_t height = f->data ? s->height : s->out_height, width = f->data ? s->width : s->out_width;
    struct source from = source_of(p, f);
    size_t zeros = align((size_t)from.depth * sizeof(float));
    size_t biases = align((size_t)(s->batch * s->out) * sizeof(float));
    const float *x = f->data ? n->dout->data : n->in[p->input]->data;
    const float *bias = f->data || p->beside ? NULL : whole_bias((float *)((char *)n->scratch + zeros), n, s);
    float *room = (float *)((char *)n->scratch + zeros + biases), *pairs = room;

    memset(n->scratch, 0, zeros);
    if (pairs_once(p, f)) {
        pair_source(pairs, x, &from);
        x = pairs;
        room += align((size_t)(from.pixels * from.half) * sizeof(float)) / sizeof(float);
    }
    for (int i = 0; i < f->per_axis * f->per_axis; i++) {
        const struct phase *h = &f->phase[i];
        struct gemm g = gemm_of(p, f, h, &w);
        int64_t first = (h->y * width + h->x) * pitch;

        g.x = x;
        g.zeros = n->scratch;
        g.room = room;
        g.bias = bias;
        g.bias_batch = bias && n->op == SD_OP_conv2d && n->in[3] ? s->out : 0;
        g.out = (float *)(f->data ? n->din[p->input] : n->out)->data + first;
        g.out_batch = height * width * pitch;
        g.out_row = f->per_axis * width * pitch;
        g.out_column = f->per_axis * pitch;
        g.start = start ? start + first : NULL;
        gemm_run(&g);
    }
}

bool
product_forward(struct sd_node *n)
{
    const struct product *p = n->vendor;
    const struct sd_tensor *start = n->in[n->op == SD_OP_linear ? 3 : 4];

    if (!p)
        return false;
    if (p->forward.winograd)
        run_winograd(n, p, &p->forward);
    else
        for (; p; p = p->beside) {
            run_phases(n, p, &p->forward, p->s.out, start ? start->data : NULL);
            start = n->out;
        }
    return true;
}

bool
product_backward_x(struct sd_node *n)
{
    const struct product *p = n->vendor;

    if (!p)
        return false;
    if (p->data.winograd)
        run_winograd(n, p, &p->data);
    else
        for (; p; p = p->beside) {
            const struct sd_tensor *d = n->din[p->input];

            if (d)
                run_phases(n, p, &p->data, d->pitch, n->din_store[p->input] ? NULL : d->data);
        }
    return true;
}

static void
reserve(struct sd_node *n, const struct product *p, const struct form *f)
{
    size_t bytes = form_scratch(p, f);

    if (f->winograd)
        sd_param_reserve(n->in[1]->param, f->key, f->bytes);
    if (frozen(n->in[1]) && !readable(n->in[1]->param))
        sd_param_reserve_values(n->in[1]->param);
    if (bytes > n->scratch_bytes)
        n->scratch_bytes = bytes;
}

/* The product over input `input`, whose columns of the weight begin at `first`. */
static struct product *
prepare(struct sd_node *n, int input, int64_t first)
{
    struct product *p = calloc(1, sizeof *p);
    struct product_shape s = shape_of(n, input);

    if (!p)
        sd_die("memory", "out of memory");
    p->s = s;
    p->input = input;
    p->first = first;
    p->row = n->in[1]->shape[1];
    p->bf16 = n->bf16;
    p->threads = omp_get_max_threads();
    p->swapped = s.kernel_height * s.kernel_width == 1 && s.out > 2 * s.in;
    make_form(&p->forward, &s, false, frozen(n->in[1]), n->bf16);
    reserve(n, p, &p->forward);
    if (n->din[input]) {
        make_form(&p->data, &s, true, frozen(n->in[1]), n->bf16);
        reserve(n, p, &p->data);
    }
    if (n->din[1] && product_weight_scratch(p) > n->scratch_bytes)
        n->scratch_bytes = product_weight_scratch(p);
    return p;
}

void
product_prepare(struct sd_node *n)
{
    struct product *p;
    struct product_shape s = product_shape(n);

    if (!sd_fast() || s.kernel_height > MAX_KERNEL || s.kernel_width > MAX_KERNEL ||
        (s.a.upsample == 2 && s.a.stride != 1) ||
        (n->din[0] && s.a.stride > 2))
        return;
    if (n->bf16 && (sd_isa() < SD_ISA_AVX512BF16 || s.kernel_height * s.kernel_width > GEMM_PLACES / 2))
        return;
    n->vendor = p = prepare(n, 0, 0);
    n->vendor_free = product_free;
    if (beside(n))
        p->beside = prepare(n, PRODUCT_BESIDE, s.in);
}

#endif
