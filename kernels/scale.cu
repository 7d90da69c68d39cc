/* scale: CUDA twin of scale.c.  One read and one write an element: bound by memory.  The factor is read on the device. */
#include "pointwise.cuh"
#include "sums.cuh"

using namespace sd;

namespace {

struct scaled {
    struct operand s;
    __device__ float operator()(float x) const { return read_operand(s, 0) * x; }
};
struct product {
    struct operand dy, x;
    __device__ double operator()(int64_t, int64_t i) const { return (double)read_operand(dy, i) * read_operand(x, i); }
};
struct into {
    struct operand ds;
    int64_t add;
    __device__ void
    operator()(int64_t, double sum) const
    {
        write_operand(const_cast<void *>(ds.p), ds.dtype, 0, add ? read_operand(ds, 0) + (float)sum : (float)sum);
    }
};

}   /* namespace */

void
scale_prepare_cuda(struct sd_node *n)
{
    n->scratch_bytes = n->din[1] ? (size_t)sum_chunks((int64_t)n->out->numel) * sizeof(double) : 0;
}

void
scale_forward_cuda(struct sd_node *n)
{
    SD_BY_DTYPE(n->out->dtype, T, pointwise(device_of(n), data<T>(n->out), (int64_t)n->out->numel, false,
                                            scaled{ operand_of(n->in[1]) }, data<T>(n->in[0])));
}

void
scale_backward_cuda(struct sd_node *n)
{
    int64_t count = (int64_t)n->out->numel;

    if (n->din[1])          /* before dx, which may have the bytes of dy */
        sums(device_of(n), static_cast<double *>(n->scratch), 1, count, product{ operand_of(n->dout), operand_of(n->in[0]) },
             into{ operand_of(n->din[1]), n->din_store[1] ? 0 : 1 });
    if (n->din[0])
        SD_BY_DTYPE(n->out->dtype, T, pointwise(device_of(n), data<T>(n->din[0]), count, !n->din_store[0],
                                                scaled{ operand_of(n->in[1]) }, data<T>(n->dout)));
}
