/* linear: CUDA twin of linear.c; three products (product_cuda.h), by cuBLASLt where it is there, else by gemm.cu.
 *     y = x w' + bias + residual      dx (+)= dy w      dw (+)= dy' x      bias: sums of columns      residual: dy itself
 * LoRA is linear(scale(linear(x, down)), up) + y in place: the first product reads x once into `rank` columns, the last reads and
 * writes y once: 2 (rows in + rows out) + ... bytes each, bound by memory; their gradients the same (tiles of 16, gemm.cu). */
#include "device_ops.h"
#include "product_cuda.h"
#include "tile.cuh"
#include "vendor.h"

using namespace sd;

namespace {

enum { X, WEIGHT, BIAS, RESIDUAL };

int64_t rows_of(const struct sd_node *n) { return sd_rows(n->in[X]); }
int64_t in_of(const struct sd_node *n) { return sd_cols(n->in[X]); }
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

/* The three products, without what only a run knows. */
struct gemm_call
forward_call(const struct sd_node *n)
{
    struct gemm_call g = {};

    g.rows = rows_of(n);
    g.columns = g.c_pitch = g.d_pitch = out_of(n);
    g.depth = g.b_pitch = in_of(n);
    g.a_pitch = n->in[X]->pitch;
    g.b_turned = true;
    g.dtype = g.d_dtype = n->in[X]->dtype;
    g.a = n->in[X]->data;
    g.d = n->out->data;
    if (n->in[RESIDUAL])
        g.c = n->in[RESIDUAL]->data;
    return g;
}

struct gemm_call
data_call(const struct sd_node *n)
{
    struct gemm_call g = {};

    g.rows = rows_of(n);
    g.columns = g.b_pitch = in_of(n);
    g.depth = g.a_pitch = out_of(n);
    g.c_pitch = g.d_pitch = n->din[X]->pitch;
    g.dtype = n->in[X]->dtype;
    g.d_dtype = n->din[X]->dtype;
    g.a = n->dout->data;
    g.d = n->din[X]->data;
    g.c = n->din_store[X] ? nullptr : g.d;
    return g;
}

struct gemm_call
weight_call(const struct sd_node *n)
{
    struct gemm_call g = {};

    g.rows = g.a_pitch = out_of(n);
    g.columns = g.c_pitch = g.d_pitch = in_of(n);
    g.depth = rows_of(n);
    g.b_pitch = n->in[X]->pitch;
    g.a_turned = true;
    g.dtype = n->in[X]->dtype;
    g.d_dtype = n->din[WEIGHT]->dtype;
    g.a = n->dout->data;
    g.b = n->in[X]->data;
    g.d = n->din[WEIGHT]->data;
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

}   /* namespace */

void
linear_prepare_cuda(struct sd_node *n)
{
    struct gemm_call call = forward_call(n);
    size_t most = gemm_scratch(&call);

    if (whole_param(n->in[WEIGHT]))
        sd_param_want(n->in[WEIGHT]->param, n->in[X]->dtype, SD_ROWS);
    bias_want(n->in[BIAS], n->in[X]->dtype);
    if (n->din[X]) {
        call = data_call(n);
        most = most > gemm_scratch(&call) ? most : gemm_scratch(&call);
    }
    if (n->din[WEIGHT]) {
        call = weight_call(n);
        most = most > gemm_scratch(&call) ? most : gemm_scratch(&call);
    }
    if (n->din[BIAS] && column_sums_bytes(1, rows_of(n), out_of(n)) > most)
        most = column_sums_bytes(1, rows_of(n), out_of(n));
    n->scratch_bytes = weight_room(n) + most;
}

void
linear_forward_cuda(struct sd_node *n)
{
    struct gemm_call call = forward_call(n);

    call.b = weight_of(n);
    call.bias = bias_f32(n->in[BIAS]);
    call.bias_d = bias_in(n->in[BIAS], call.d_dtype);
    multiply(n, call);
}

void
linear_backward_cuda(struct sd_node *n)
{
    struct sd_device *d = device_of(n);

    if (n->din[X]) {
        struct gemm_call call = data_call(n);

        call.b = weight_of(n);
        multiply(n, call);
    }
    if (n->din[WEIGHT])
        multiply(n, weight_call(n));
    if (n->din[BIAS])
        column_sums(d, n->din[BIAS], n->din_store[BIAS], nullptr, false, n->dout, 1, n->scratch);
    if (n->din[RESIDUAL])
        residual_pass(n, RESIDUAL);
}
