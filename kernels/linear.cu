/* linear: CUDA twin of linear.c; three products (product_cuda.h), by cuBLASLt where it is there, else by gemm.cu.
 *     y = x w' + bias + residual      dx (+)= dy w      dw (+)= dy' x      bias: sums of columns      residual: dy itself
 * LoRA is linear(scale(linear(x, down)), up) + y in place: the first product reads x once into `rank` columns, the last reads and
 * writes y once: 2 (rows in + rows out) + ... bytes each, bound by memory; their gradients the same (tiles of 16, gemm.cu).
 * What lies beside x is a product of its own, with its columns of w; y is its C.  So y of 16 bits is rounded once more in between
 * and passes twice, 4 out bytes a row, where a copy of x and beside as one would cost 4 (in + in2). */
#include "device_ops.h"
#include "product.h"
#include "product_cuda.h"
#include "tile.cuh"
#include "vendor.h"

using namespace sd;

namespace {

enum { X, WEIGHT, BIAS, RESIDUAL, BESIDE };

int64_t rows_of(const struct sd_node *n) { return sd_rows(n->in[X]); }
int64_t first_of(const struct sd_node *n, int input) { return input == BESIDE ? sd_cols(n->in[X]) : 0; }
int64_t in_of(const struct sd_node *n) { return sd_cols(n->in[X]) + (n->in[BESIDE] ? sd_cols(n->in[BESIDE]) : 0); }
int64_t out_of(const struct sd_node *n) { return sd_cols(n->out); }

/* Bytes of scratch that an ordinary tensor of another type wants, to be read as the operands are. */
size_t
weight_room(const struct sd_node *n)
{
    const struct sd_tensor *w = n->in[WEIGHT];

    return whole_param(w) || w->dtype == n->in[X]->dtype ? 0 : round256(w->numel * sd_dtype_size(n->in[X]->dtype));
}

const void *
weight_of(const struct sd_node *n)
{
    const struct sd_tensor *w = n->in[WEIGHT];

    if (whole_param(w))
        return sd_param_on(w->param, n->in[X]->dtype, SD_ROWS);
    if (w->dtype == n->in[X]->dtype)
        return w->data;
    sd_device_cast(device_of(n), n->scratch, n->in[X]->dtype, w->data, w->dtype, w->numel);
    return n->scratch;
}

/* p, moved to the columns that `input` (X or BESIDE) has of w */
template <class P> P
columns_of(const struct sd_node *n, int input, P p, enum sd_dtype dtype)
{
    return (P)((uintptr_t)p + (size_t)first_of(n, input) * sd_dtype_size(dtype));
}

/* The three products over x or over what lies beside it, without what only a run knows. */
struct gemm_call
forward_call(const struct sd_node *n, int input)
{
    const struct sd_tensor *x = n->in[input], *c = input == BESIDE ? n->out : n->in[RESIDUAL];
    struct gemm_call g = {};

    g.rows = rows_of(n);
    g.columns = g.c_pitch = g.d_pitch = out_of(n);
    g.depth = sd_cols(x);
    g.b_pitch = in_of(n);
    g.a_pitch = x->pitch;
    g.b_turned = true;
    g.dtype = g.d_dtype = x->dtype;
    g.a = x->data;
    g.d = n->out->data;
    g.c = c ? c->data : nullptr;
    return g;
}

struct gemm_call
data_call(const struct sd_node *n, int input)
{
    const struct sd_tensor *x = n->in[input], *dx = n->din[input];
    struct gemm_call g = {};

    g.rows = rows_of(n);
    g.columns = sd_cols(x);
    g.b_pitch = in_of(n);
    g.depth = g.a_pitch = out_of(n);
    g.c_pitch = g.d_pitch = dx->pitch;
    g.dtype = x->dtype;
    g.d_dtype = dx->dtype;
    g.a = n->dout->data;
    g.d = dx->data;
    g.c = n->din_store[input] ? nullptr : g.d;
    return g;
}

struct gemm_call
weight_call(const struct sd_node *n, int input)
{
    const struct sd_tensor *x = n->in[input], *dw = n->din[WEIGHT];
    struct gemm_call g = {};

    g.rows = g.a_pitch = out_of(n);
    g.columns = sd_cols(x);
    g.c_pitch = g.d_pitch = in_of(n);
    g.depth = rows_of(n);
    g.b_pitch = x->pitch;
    g.a_turned = true;
    g.dtype = x->dtype;
    g.d_dtype = dw->dtype;
    g.a = n->dout->data;
    g.b = x->data;
    g.d = columns_of(n, input, dw->data, dw->dtype);
    g.c = n->din_store[WEIGHT] ? nullptr : g.d;
    return g;
}

void
multiply(const struct sd_node *n, struct gemm_call g)
{
    g.scratch = static_cast<char *>(n->scratch) + weight_room(n);
    if (g.rows && g.columns && !cublas_gemm(device_of(n), &g))
        gemm_cuda(device_of(n), &g);
}

size_t
larger(size_t bytes, const struct gemm_call &g)
{
    size_t wanted = gemm_scratch(&g);

    return wanted > bytes ? wanted : bytes;
}

}   /* namespace */

void
linear_prepare_cuda(struct sd_node *n)
{
    size_t most = 0;

    product_backward_flops(n);
    if (whole_param(n->in[WEIGHT]))
        sd_param_want(n->in[WEIGHT]->param, n->in[X]->dtype, SD_ROWS);
    bias_want(n->in[BIAS], n->in[X]->dtype);
    for (int i = X; i <= BESIDE; i += BESIDE) {
        if (!n->in[i])
            continue;
        most = larger(most, forward_call(n, i));
        if (n->din[i])
            most = larger(most, data_call(n, i));
        if (n->din[WEIGHT])
            most = larger(most, weight_call(n, i));
    }
    if (n->din[BIAS] && column_sums_bytes(1, rows_of(n), out_of(n)) > most)
        most = column_sums_bytes(1, rows_of(n), out_of(n));
    n->scratch_bytes = weight_room(n) + most;
}

void
linear_forward_cuda(struct sd_node *n)
{
    const void *w = weight_of(n);
    int last = n->in[BESIDE] ? BESIDE : X;

    for (int i = X; i <= last; i += BESIDE) {
        struct gemm_call call = forward_call(n, i);

        call.b = columns_of(n, i, w, call.dtype);
        call.bias = i == last ? bias_f32(n->in[BIAS]) : nullptr;
        call.bias_d = i == last ? bias_in(n->in[BIAS], call.d_dtype) : nullptr;
        multiply(n, call);
    }
}

void
linear_backward_cuda(struct sd_node *n)
{
    struct sd_device *d = device_of(n);
    const void *w = n->din[X] || n->din[BESIDE] ? weight_of(n) : nullptr;

    for (int i = X; i <= BESIDE; i += BESIDE) {
        if (n->din[i]) {
            struct gemm_call call = data_call(n, i);

            call.b = columns_of(n, i, w, call.dtype);
            multiply(n, call);
        }
        if (n->in[i] && n->din[WEIGHT])
            multiply(n, weight_call(n, i));
    }
    if (n->din[BIAS])
        column_sums(d, n->din[BIAS], n->din_store[BIAS], nullptr, false, n->dout, 1, n->scratch);
    if (n->din[RESIDUAL])
        residual_pass(n, RESIDUAL);
}
