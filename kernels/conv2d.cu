/* conv2d: CUDA twin of conv2d.c; products (product_cuda.h) by cuDNN where it is there and takes them, else by gemm.cu over gathered
 * rows, with no im2col in memory:
 *     forward   y[p] = sum over taps and channels of x[source(p, tap)] w[tap]            A gathers pixels, B is w as it lies
 *     data      by phases of the stride: dx[s i + p] = sum over the taps that fall there dy[i + (p + top - k) / s] w[k]
 *     weight    dw[tap] = dy' x[source(., tap)], a product for each tap
 *     enlarged  conv_transposed(): 4/9 of the multiplications, by a form of the weight that is made once
 * Bytes: each tap reads its pixels again, from L2; from memory x, w and y once.  Flops: 2 pixels out in taps; a 3x3 layer of 320
 * channels has 9 x 320 x 2 / 4 = 1440 flops a byte: bound by the matrix units, but for conv_in and conv_out (4 channels).
 * A 1x1 kernel is a gemm_call. */
#include "device_ops.h"
#include "ops.h"
#include "product.h"
#include "product_cuda.h"
#include "tile.cuh"
#include "vendor.h"

using namespace sd;

namespace {

enum { X, WEIGHT, BIAS, ADD, RESIDUAL };
/* -- products -------------------------------------------------------------------------------------------------------- */

const char *
at(const void *p, int64_t elements, enum sd_dtype dtype)
{
    return static_cast<const char *>(p) + elements * (int64_t)sd_dtype_size(dtype);
}

struct operand
picture(const void *data, int64_t height, int64_t width, int64_t channels)
{
    struct operand o = {};

    o.data = data;
    o.sb = height * width * channels;
    o.sy = (int)(width * channels);
    o.sx = (int)channels;
    o.high = (int)height;
    o.wide = (int)width;
    o.channels = (int)channels;
    o.step = o.dir = o.across = 1;
    return o;
}

/* The rows of the result of a phase: every s-th pixel from (y, x) on. */
void
phase_result(struct product *p, void *to, const void *c, int64_t height, int64_t width, int64_t channels, int s, int y, int x,
             enum sd_dtype dtype)
{
    struct result *r = &p->to;

    r->n1 = (int)ceil_div(height - y, s);
    r->n0 = (int)ceil_div(width - x, s);
    r->d = const_cast<char *>(at(to, (y * width + x) * channels, dtype));
    r->c = c ? at(c, (y * width + x) * channels, dtype) : nullptr;
    r->d_sb = r->c_sb = height * width * channels;
    r->d_sy = r->c_sy = s * width * channels;
    r->d_sx = r->c_sx = s * channels;
    r->sn = 1;
}

/* What is added to each number of a picture before it is rounded. */
void
add_to_result(struct result *r, const struct conv_call *k)
{
    r->bias = k->bias;
    r->bias_d = k->bias_d;
    r->channel_add = k->channel_add;
    r->channel_add_pitch = k->channel_add_pitch;
}

struct product
forward_product(const struct conv_call *k)
{
    struct product p = {};
    int64_t depth = (int64_t)k->kernel_height * k->kernel_width * k->in;

    p.dtype = k->dtype;
    p.batch = 1;
    p.a_deep = p.b_deep = true;
    phase_result(&p, k->to, k->residual, k->out_height, k->out_width, k->out, 1, 0, 0, k->dtype);
    add_to_result(&p.to, k);
    p.rows = (int)k->batch * p.to.n1 * p.to.n0;
    p.columns = (int)k->out;
    p.depth = (int)depth;
    p.a = picture(k->x, k->height, k->width, k->in);
    p.a.n1 = p.to.n1;
    p.a.n0 = p.to.n0;
    p.a.across = k->kernel_width > 0 ? k->kernel_width : 1;
    p.a.step = k->stride;
    p.a.y0 = -k->top;
    p.a.x0 = -k->left;
    p.b = plain_operand(k->w, k->out, depth, depth, 0);
    p.b.across = 1;
    return p;
}

/* Taps of a phase on one axis: tap u is the kernel's element first + stride u, at i + y0 - u. */
struct taps { int count, first, y0; };

struct taps
taps_of_phase(int phase, int before, int kernel, int stride)
{
    struct taps t;

    t.first = (phase + before) % stride;
    t.count = t.first < kernel ? (kernel - t.first + stride - 1) / stride : 0;
    t.y0 = (phase + before - t.first) / stride;
    return t;
}

struct product
data_product(const struct conv_call *k, int y, int x)
{
    struct taps m = taps_of_phase(y, k->top, k->kernel_height, k->stride), h = taps_of_phase(x, k->left, k->kernel_width, k->stride);
    struct product p = {};

    p.dtype = k->dtype;
    p.batch = 1;
    p.a_deep = true;
    phase_result(&p, k->to, k->residual, k->height, k->width, k->in, k->stride, y, x, k->dtype);
    add_to_result(&p.to, k);
    p.rows = (int)k->batch * p.to.n1 * p.to.n0;
    p.columns = (int)k->in;
    p.depth = (int)(m.count * h.count * k->out);
    p.a = picture(k->dy, k->out_height, k->out_width, k->out);
    p.a.n1 = p.to.n1;
    p.a.n0 = p.to.n0;
    p.a.dir = -1;
    p.a.y0 = m.y0;
    p.a.x0 = h.y0;
    p.a.across = h.count > 0 ? h.count : 1;
    p.b.data = at(k->w, p.depth ? (int64_t)(m.first * k->kernel_width + h.first) * k->in : 0, k->dtype);
    p.b.n1 = p.b.high = h.count > 0 ? h.count : 1;
    p.b.n0 = p.b.wide = (int)k->out;
    p.b.step = 1;
    p.b.sb = (int64_t)k->stride * k->kernel_width * k->in;
    p.b.sy = (int)(k->stride * k->in);
    p.b.sx = (int)(k->kernel_height * k->kernel_width * k->in);
    return p;
}

struct product
weight_product(const struct conv_call *k)
{
    int64_t pixels = k->batch * k->out_height * k->out_width;
    int taps = k->kernel_height * k->kernel_width;
    struct product p = {};

    p.dtype = k->dtype;
    p.batch = taps;
    p.rows = (int)k->out;
    p.columns = (int)k->in;
    p.depth = (int)pixels;
    p.a = plain_operand(k->dy, pixels, k->out, k->out, 0);
    p.b = picture(k->x, k->height, k->width, k->in);
    p.b.n1 = (int)k->out_height;
    p.b.n0 = (int)k->out_width;
    p.b.step = k->stride;
    p.b.y0 = -k->top;
    p.b.x0 = -k->left;
    p.b.shift = k->upsample - 1;
    p.b.high *= k->upsample;
    p.b.wide *= k->upsample;
    p.b.across = k->kernel_width;
    p.to = plain_result(k->to, k->out, k->in * taps, 1);
    p.to.sn = taps;
    p.to.f32 = true;
    if (k->add) {
        p.to.c = p.to.d;
        p.to.c_sx = p.to.d_sx;
        p.to.c_batch = 1;
    }
    return p;
}

/* Each product of the call: d NULL: only the scratch of the hungriest is found. */
size_t
all_products(struct sd_device *d, const struct conv_call *k)
{
    int phases = k->kind == CONV_DATA ? k->stride : 1;
    size_t most = 0;

    for (int i = 0; i < phases * phases; i++) {
        struct product p = k->kind == CONV_WEIGHT ? weight_product(k) : k->kind == CONV_FORWARD ? forward_product(k)
                           : data_product(k, i / phases, i % phases);

        if (p.rows <= 0)
            continue;
        if (!d) {
            most = most > product_scratch(p) ? most : product_scratch(p);
            continue;
        }
        p.part = static_cast<float *>(k->scratch);
        product_run(d, p);
    }
    return most;
}

static __global__ void
taps_to_rows_kernel(float *to, const float *from, int64_t count, int64_t in, int64_t taps, bool add)
{
    SD_BEGIN();
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    int64_t tap = at % taps, c = at / taps % in, o = at / taps / in;

    if (at < count)
        to[at] = from[(o * taps + tap) * in + c] + (add ? to[at] : 0);
}

/* 16 bytes a thread, of the pixels of one sample */
template <class T> static __global__ void
added_kernel(T *to, const T *from, const float *bias, const T *channel_add, int64_t pitch, const T *residual, unsigned count,
             unsigned across)
{
    SD_BEGIN();
    static const int N = wide<T>::count;
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x, column = i % across * N;
    int64_t at = ((int64_t)blockIdx.y * count + i) * N;
    few<N, T> x, channels = {}, more = {};
    few<N, float> row = {};

    if (i >= count)
        return;
    x.load(from + at);
    if (bias)
        row.load(bias + column);
    if (channel_add)
        channels.load(channel_add + blockIdx.y * pitch + column);
    if (residual)
        more.load(residual + at);
    #pragma unroll
    for (int e = 0; e < N; e++)
        x.set(e, from_float<T>(((x[e] + row[e]) + channels[e]) + more[e]));
    x.store(to + at);
}

}   /* namespace */

struct conv_call
conv_transposed(const struct conv_call *k)
{
    struct conv_call t = *k;

    t.kind = k->kind == CONV_FORWARD ? CONV_DATA : CONV_FORWARD;
    t.height = k->out_height;
    t.width = k->out_width;
    t.in = k->out;
    t.out_height = k->height;
    t.out_width = k->width;
    t.out = k->in;
    t.kernel_height = k->kernel_height + 1;
    t.kernel_width = k->kernel_width + 1;
    t.stride = 2;
    t.top = k->kernel_height - 1 - k->top;
    t.left = k->kernel_width - 1 - k->left;
    t.bottom = k->kernel_height - 1 - k->bottom;
    t.right = k->kernel_width - 1 - k->right;
    t.upsample = 1;
    t.x = k->dy;
    t.dy = k->x;
    return t;
}

size_t
conv_scratch(const struct conv_call *k)
{
    return all_products(nullptr, k);
}

bool
conv_cuda(struct sd_device *d, const struct conv_call *k)
{
    int64_t most = INT32_MAX / 2;

    if (k->upsample == 2 && k->kind != CONV_WEIGHT)
        sd_bug("conv2d", "an enlarged picture");        /* conv_transposed() */
    if (k->batch * k->height * k->width * k->upsample > most || k->batch * k->out_height * k->out_width > most ||
        k->width * k->in > most || k->out_width * k->out > most || (int64_t)k->kernel_height * k->kernel_width * k->in > most ||
        (int64_t)k->kernel_height * k->kernel_width * k->out > most)
        sd_bug("conv2d", "pictures of %lld x %lld, %lld at once", (long long)k->width, (long long)k->height, (long long)k->batch);
    all_products(d, k);
    return true;
}

void
conv_taps_to_rows(struct sd_device *d, float *to, const float *from, int64_t out, int64_t in, int64_t taps, bool add)
{
    int64_t count = out * in * taps;

    if (count)
        SD_LAUNCH(d, taps_to_rows_kernel, (unsigned)ceil_div(count, 256), 256, 0, to, from, count, in, taps, add);
}

void
conv_added(struct sd_device *d, const struct conv_call *k, const void *from)
{
    bool data = k->kind == CONV_DATA;
    int64_t each = 16 / (int64_t)sd_dtype_size(k->dtype), across = (data ? k->in : k->out) / each;
    int64_t count = (data ? k->height * k->width : k->out_height * k->out_width) * across;
    dim3 grid((unsigned)ceil_div(count, 256), (unsigned)k->batch);

    if (count > INT32_MAX || k->batch > 65535)
        sd_bug("conv2d", "%lld samples of %lld x 16 bytes", (long long)k->batch, (long long)count);
    SD_BY_DTYPE(k->dtype, T, SD_LAUNCH(d, added_kernel<T>, grid, 256, 0, static_cast<T *>(k->to), static_cast<const T *>(from), k->bias,
                                       static_cast<const T *>(k->channel_add), k->channel_add_pitch,
                                       static_cast<const T *>(k->residual), (unsigned)count, (unsigned)across));
}

/* -- the op ---------------------------------------------------------------------------------------------------------- */

namespace {

bool
enlarges(const struct sd_node *n)
{
    return static_cast<const struct sd_conv2d *>(n->attr)->upsample == 2;
}

/* Forward: without what is added. */
struct conv_call
call_of(const struct sd_node *n, enum conv_kind kind)
{
    const struct sd_tensor *x = n->in[X], *w = n->in[WEIGHT], *y = n->out;
    const struct sd_conv2d *a = static_cast<const struct sd_conv2d *>(n->attr);
    struct conv_call k = {};

    k.kind = kind;
    k.dtype = x->dtype;
    k.batch = x->shape[0];
    k.height = x->shape[1];
    k.width = x->shape[2];
    k.in = x->shape[3];
    k.out_height = y->shape[1];
    k.out_width = y->shape[2];
    k.out = y->shape[3];
    k.kernel_height = (int)w->shape[2];
    k.kernel_width = (int)w->shape[3];
    k.stride = a->stride;
    k.top = a->top;
    k.left = a->left;
    k.bottom = a->bottom;
    k.right = a->right;
    k.upsample = a->upsample;
    k.x = x->data;
    k.dy = kind == CONV_FORWARD ? nullptr : n->dout->data;
    k.to = kind == CONV_FORWARD ? y->data : n->din[kind == CONV_DATA ? X : WEIGHT]->data;
    k.add = kind == CONV_WEIGHT && !n->din_store[WEIGHT];
    k.residual = kind == CONV_DATA && !n->din_store[X] ? k.to : nullptr;
    return kind != CONV_WEIGHT && enlarges(n) ? conv_transposed(&k) : k;
}

/* Nothing but a product of rows? */
bool
is_gemm(const struct conv_call &k)
{
    return k.kernel_height * k.kernel_width == 1 && k.stride == 1 && k.upsample == 1 && !(k.top | k.left | k.bottom | k.right) &&
           !k.channel_add;
}

struct gemm_call
gemm_of(const struct conv_call &k, enum sd_dtype to)
{
    int64_t pixels = k.batch * k.height * k.width;
    struct gemm_call g = {};

    g.rows = k.kind == CONV_WEIGHT ? k.out : pixels;
    g.columns = k.kind == CONV_FORWARD ? k.out : k.in;
    g.depth = k.kind == CONV_WEIGHT ? pixels : k.kind == CONV_FORWARD ? k.in : k.out;
    g.dtype = k.dtype;
    g.d_dtype = to;
    g.a = k.kind == CONV_FORWARD ? k.x : k.dy;
    g.a_pitch = k.kind == CONV_FORWARD ? k.in : k.out;
    g.a_turned = k.kind == CONV_WEIGHT;
    g.b = k.kind == CONV_WEIGHT ? k.x : k.w;
    g.b_pitch = k.in;
    g.b_turned = k.kind == CONV_FORWARD;
    g.d = k.to;
    g.c = k.add ? k.to : k.residual;
    g.c_pitch = g.d_pitch = g.columns;
    g.bias = k.bias;
    g.bias_d = k.bias_d;
    return g;
}

enum sd_param_layout
layout_of(const struct sd_node *n)
{
    return enlarges(n) ? SD_TAPS_UPSAMPLED : SD_TAPS;
}

/* Scratch, in this order: the weight in that layout where it is no parameter; dw in F32 where its gradient is not; the product's
 * own. */
size_t
weight_room(const struct sd_node *n)
{
    const struct sd_tensor *w = n->in[WEIGHT];
    int more = enlarges(n);

    return whole_param(w) ? 0 : round256((size_t)(w->shape[0] * w->shape[1] * (w->shape[2] + more) * (w->shape[3] + more)) *
                                         sd_dtype_size(n->in[X]->dtype));
}

size_t
gradient_room(const struct sd_node *n)
{
    return n->din[WEIGHT] && n->din[WEIGHT]->dtype != SD_F32 ? round256(n->in[WEIGHT]->numel * sizeof(float)) : 0;
}

const void *
weight_of(const struct sd_node *n)
{
    const struct sd_tensor *w = n->in[WEIGHT];

    if (whole_param(w))
        return sd_param_on(w->param, n->in[X]->dtype, layout_of(n));
    if (enlarges(n))
        sd_device_taps_upsampled(device_of(n), n->scratch, n->in[X]->dtype, w->shape[0], w->data, w->dtype, w->shape[0], w->shape[1],
                                 w->shape[2], w->shape[3]);
    else
        sd_device_taps(device_of(n), n->scratch, n->in[X]->dtype, w->data, w->dtype, w->shape[0], w->shape[1], w->shape[2],
                       w->shape[3]);
    return n->scratch;
}

void
convolve(const struct sd_node *n, struct conv_call k)
{
    struct sd_device *d = device_of(n);

    k.scratch = static_cast<char *>(n->scratch) + weight_room(n) + gradient_room(n);
    if (is_gemm(k)) {
        struct gemm_call g = gemm_of(k, k.kind == CONV_WEIGHT ? SD_F32 : k.dtype);

        g.scratch = k.scratch;
        if (!cublas_gemm(d, &g))
            gemm_cuda(d, &g);
    } else if (!cudnn_conv2d(d, &k))
        conv_cuda(d, &k);
}

/* Before anything has a place. */
bool
as_gemm(const struct sd_node *n, enum conv_kind kind)
{
    return is_gemm(call_of(n, kind)) && !(n->in[ADD] && kind == CONV_FORWARD);
}

size_t
scratch_of(const struct sd_node *n, enum conv_kind kind)
{
    struct conv_call k = call_of(n, kind);
    struct gemm_call g;

    if (!as_gemm(n, kind))
        return conv_scratch(&k);
    g = gemm_of(k, kind == CONV_WEIGHT ? SD_F32 : k.dtype);
    return gemm_scratch(&g);
}

}   /* namespace */

void
conv2d_prepare_cuda(struct sd_node *n)
{
    struct conv_call call = call_of(n, CONV_FORWARD);
    size_t most = scratch_of(n, CONV_FORWARD), sums = 0;

    product_backward_flops(n);
    n->apart = n->in[RESIDUAL] && !as_gemm(n, CONV_FORWARD) && cudnn_takes_conv2d(device_of(n), &call);  /* which adds it itself */
    if (whole_param(n->in[WEIGHT]))
        sd_param_want(n->in[WEIGHT]->param, n->in[X]->dtype, layout_of(n));
    bias_want(n->in[BIAS], n->in[X]->dtype);
    if (n->din[X] && scratch_of(n, CONV_DATA) > most)
        most = scratch_of(n, CONV_DATA);
    if (n->din[WEIGHT] && scratch_of(n, CONV_WEIGHT) > most)
        most = scratch_of(n, CONV_WEIGHT);
    if (n->din[BIAS] || n->din[ADD])
        sums = column_sums_bytes(n->out->shape[0], n->out->shape[1] * n->out->shape[2], n->out->shape[3]);
    most += weight_room(n) + gradient_room(n);
    n->scratch_bytes = most > sums ? most : sums;
}

void
conv2d_forward_cuda(struct sd_node *n)
{
    struct conv_call k = call_of(n, CONV_FORWARD);

    k.w = weight_of(n);
    k.bias = bias_f32(n->in[BIAS]);
    k.bias_d = bias_in(n->in[BIAS], k.dtype);
    k.channel_add = data<void>(n->in[ADD]);
    k.channel_add_pitch = n->in[ADD] ? n->in[ADD]->pitch : 0;
    k.residual = data<void>(n->in[RESIDUAL]);
    convolve(n, k);
}

void
conv2d_backward_cuda(struct sd_node *n)
{
    if (n->din[X]) {
        struct conv_call k = call_of(n, CONV_DATA);

        k.w = weight_of(n);
        convolve(n, k);
    }
    if (n->din[WEIGHT]) {
        struct conv_call k = call_of(n, CONV_WEIGHT);
        const struct sd_tensor *dw = n->din[WEIGHT];
        int64_t count = (int64_t)dw->numel;

        if (gradient_room(n)) {
            k.to = static_cast<char *>(n->scratch) + weight_room(n);
            k.add = false;
        }
        convolve(n, k);
        if (gradient_room(n))
            sd_device_rows(device_of(n), dw->data, dw->dtype, count, k.to, SD_F32, count, 1, count, !n->din_store[WEIGHT]);
    }
    if (n->din[BIAS] || n->din[ADD])
        column_sums(device_of(n), n->din[BIAS], n->din_store[BIAS], n->din[ADD], n->din_store[ADD], n->dout, n->out->shape[0],
                    n->scratch);
    if (n->din[RESIDUAL])
        residual_pass(n, RESIDUAL);
}
