/* column_sums: the gradients of a bias and of channel_add: sums over the rows of dy [batch, rows, columns].
 * A block sums SUM_ROWS rows of 32 columns, eight rows apart from thread to thread; then the chunks are added in order, then the
 * samples.  Reads dy once: bound by memory.  Beside it, what linear.cu and conv2d.cu share. */
#include "device_ops.h"
#include "tile.cuh"

using namespace sd;

namespace {

enum { SUM_ROWS = 256, LINES = 8 };

struct lines { float at[LINES][WARP]; };

template <class T> static __global__ void
chunk_kernel(float *part, const T *dy, int64_t rows, int64_t columns)
{
    SD_BEGIN();
    SD_SHARED(struct lines, s);
    int64_t column = (int64_t)blockIdx.y * WARP + threadIdx.x % WARP, b = blockIdx.z, chunk = blockIdx.x;
    int64_t end = min(rows, (chunk + 1) * SUM_ROWS);
    int line = (int)threadIdx.x / WARP;
    float sum = 0;

    if (column < columns)
        for (int64_t r = chunk * SUM_ROWS + line; r < end; r += LINES)
            sum += to_float(dy[(b * rows + r) * columns + column]);
    s.at[line][threadIdx.x % WARP] = sum;
    __syncthreads();
    if (line == 0 && column < columns) {
        for (int i = 1; i < LINES; i++)
            sum += s.at[i][threadIdx.x % WARP];
        part[(b * gridDim.x + chunk) * columns + column] = sum;
    }
}

/* sums over the chunks to one sample's row, or over all samples too */
template <class U> static __global__ void
finish_kernel(U *to, int64_t pitch, const float *part, int64_t chunks, int64_t samples, int64_t columns, bool store)
{
    SD_BEGIN();
    int64_t column = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, b = blockIdx.y;
    float sum = 0;

    if (column >= columns)
        return;
    for (int64_t i = 0; i < samples; i++) {
        float one = 0;

        for (int64_t k = 0; k < chunks; k++)
            one += part[((b + i) * chunks + k) * columns + column];
        sum += one;
    }
    to += b * pitch + column;
    *to = from_float<U>(sum + (store ? 0 : to_float(*to)));
}

void
finish(struct sd_device *d, const struct sd_tensor *to, const float *part, int64_t chunks, int64_t rows, int64_t samples,
       int64_t columns, bool store)
{
    dim3 grid((unsigned)ceil_div(columns, 128), (unsigned)rows);

    SD_BY_DTYPE(to->dtype, U, SD_LAUNCH(d, finish_kernel<U>, grid, 128, 0, data<U>(to), to->pitch, part, chunks, samples, columns,
                                         store));
}

}   /* namespace */

namespace sd {

size_t
column_sums_bytes(int64_t batch, int64_t rows, int64_t columns)
{
    return (size_t)(batch * ceil_div(rows, SUM_ROWS) * columns) * sizeof(float);
}

void
column_sums(struct sd_device *d, const struct sd_tensor *bias, bool bias_store, const struct sd_tensor *channel_add,
            bool channel_add_store, const struct sd_tensor *dy, int64_t batch, void *scratch)
{
    int64_t columns = sd_cols(dy), rows = batch ? sd_rows(dy) / batch : 0, chunks = ceil_div(rows, SUM_ROWS);
    float *part = static_cast<float *>(scratch);

    if (!columns || !batch)
        return;
    if (rows) {
        dim3 grid((unsigned)chunks, (unsigned)ceil_div(columns, WARP), (unsigned)batch);

        SD_BY_DTYPE(dy->dtype, T, SD_LAUNCH(d, chunk_kernel<T>, grid, LINES * WARP, sizeof(struct lines), part, data<const T>(dy), rows,
                                            columns));
    }
    if (channel_add)
        finish(d, channel_add, part, chunks, batch, 1, columns, channel_add_store);
    if (bias)
        finish(d, bias, part, chunks, 1, batch, columns, bias_store);
}

void
residual_pass(const struct sd_node *n, int input)
{
    const struct sd_tensor *to = n->din[input], *dy = n->dout;
    int64_t count = (int64_t)dy->numel;

    if (!n->din_store[input] || to->data != dy->data)
        sd_device_rows(device_of(n), to->data, to->dtype, count, dy->data, dy->dtype, count, 1, count, !n->din_store[input]);
}

const float *
bias_f32(const struct sd_tensor *bias)
{
    return bias && bias->dtype == SD_F32 ? data<float>(bias) : nullptr;
}

const void *
bias_in(const struct sd_tensor *bias, enum sd_dtype dtype)
{
    if (!bias || bias->dtype == dtype)
        return data<void>(bias);
    return whole_param(bias) ? sd_param_on(bias->param, dtype, SD_ROWS) : nullptr;
}

void
bias_want(const struct sd_tensor *bias, enum sd_dtype dtype)
{
    if (bias && bias->dtype != dtype && whole_param(bias))
        sd_param_want(bias->param, dtype, SD_ROWS);
}

}   /* namespace sd */
