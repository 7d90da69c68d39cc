/* mse: CUDA twin of mse.c, where the formulas are.  Sums in double, in the tree of sums.cuh.  Latents: some ten thousand elements
 * a sample, bound by the launches. */
#include "pointwise.cuh"
#include "sums.cuh"

using namespace sd;

namespace {

struct squares {
    struct operand pred, target, mask;
    int64_t count, C;           /* elements of a sample, of a pixel */

    __device__ double
    operator()(int64_t b, int64_t i) const
    {
        int64_t at = b * count + i;
        double m = mask.p ? read_operand(mask, at / C) : 1, e = (double)read_operand(pred, at) - read_operand(target, at);

        return m * e * e;
    }
};
struct weighted {
    float *y;
    struct operand weight;
    __device__ void operator()(int64_t b, double sum) const { y[b] = (float)(read_operand(weight, b) * sum); }
};

template <class T> __global__ void
mse_backward_kernel(T *dx, struct operand pred, struct operand target, struct operand mask, struct operand weight, const float *dy,
                    int64_t count, int64_t C, bool add)
{
    SD_BEGIN();
    int64_t b = blockIdx.y, i = (int64_t)blockIdx.x * SUM_THREADS + threadIdx.x, at = b * count + i;
    float g;

    if (i >= count)
        return;
    g = 2 * dy[b] * read_operand(weight, b) * (mask.p ? read_operand(mask, at / C) : 1);
    g *= read_operand(pred, at) - read_operand(target, at);
    dx[at] = from_float<T>(add ? to_float(dx[at]) + g : g);
}

int64_t
elements(const struct sd_tensor *pred)
{
    return pred->shape[0] ? (int64_t)pred->numel / pred->shape[0] : 0;
}

}   /* namespace */

void
mse_prepare_cuda(struct sd_node *n)
{
    n->scratch_bytes = (size_t)(n->in[0]->shape[0] * sum_chunks(elements(n->in[0]))) * sizeof(double);
}

void
mse_forward_cuda(struct sd_node *n)
{
    const struct sd_tensor *pred = n->in[0];
    int64_t count = elements(pred);

    sums(device_of(n), static_cast<double *>(n->scratch), pred->shape[0], count,
         squares{ operand_of(pred), operand_of(n->in[1]), operand_of(n->in[2]), count, sd_cols(pred) },
         weighted{ data<float>(n->out), operand_of(n->in[3]) });
}

void
mse_backward_cuda(struct sd_node *n)
{
    const struct sd_tensor *pred = n->in[0];
    int64_t count = elements(pred);

    if (!pred->numel || !n->din[0])
        return;
    SD_BY_DTYPE(pred->dtype, T,
                SD_LAUNCH(device_of(n), mse_backward_kernel<T>,
                          dim3((unsigned)ceil_div(count, SUM_THREADS), (unsigned)pred->shape[0]), SUM_THREADS, 0,
                          data<T>(n->din[0]), operand_of(pred), operand_of(n->in[1]), operand_of(n->in[2]), operand_of(n->in[3]),
                          data<const float>(n->dout), count, sd_cols(pred), !n->din_store[0]));
}
