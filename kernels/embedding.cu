/* embedding: CUDA twin of embedding.c.  A frozen table is read in the output's type, what is learned and the positions in F32.
 * 77 rows a prompt: bound by the launches.  Gradients by rows: a block goes through all ids in order and adds what is its row's,
 * so that nothing meets (learned rows: a few blocks; a whole table is correct, not fast). */
#include "pointwise.cuh"

using namespace sd;

namespace {

enum { THREADS = 128 };

template <class T> __global__ void
embedding_forward_kernel(T *y, const int32_t *ids, struct operand table, int64_t V, struct operand rows, int64_t learned,
                         struct operand positions, int64_t L, int64_t D)
{
    SD_BEGIN();
    int64_t t = blockIdx.x, c = (int64_t)blockIdx.y * THREADS + threadIdx.x, id = ids[t];
    float x;

    if (c >= D)
        return;
    if (id >= 0 && id < V)
        x = read_operand(table, id * D + c);
    else if (id >= V && id < V + learned)
        x = read_operand(rows, (id - V) * D + c);
    else
        x = float_of_bits(0x7fc00000);          /* the caller looked before: never seen */
    y[t * D + c] = from_float<T>(positions.p ? x + read_operand(positions, t % L * D + c) : x);
}

struct ids_room { int32_t id[THREADS]; };

/* row r of d: the sum of dy[t] over the tokens t with id first + r, in order */
__global__ void
embedding_rows_kernel(struct operand d, const int32_t *ids, int64_t tokens, int64_t first, struct operand dy, int64_t D, bool add)
{
    SD_BEGIN();
    SD_SHARED(struct ids_room, room);
    int64_t r = blockIdx.x, c = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    float sum = add && c < D ? read_operand(d, r * D + c) : 0;

    for (int64_t from = 0; from < tokens; from += THREADS) {
        int count = tokens - from < THREADS ? (int)(tokens - from) : (int)THREADS;

        if ((int)threadIdx.x < count)
            room.id[threadIdx.x] = ids[from + threadIdx.x];
        __syncthreads();
        for (int k = 0; k < count; k++)
            if (room.id[k] == first + r && c < D)
                sum += read_operand(dy, (from + k) * D + c);
        __syncthreads();
    }
    if (c < D)
        write_operand(const_cast<void *>(d.p), d.dtype, r * D + c, sum);
}

/* row l of d: the sum of dy[b, l] over b, in order */
__global__ void
embedding_positions_kernel(struct operand d, int64_t B, int64_t L, struct operand dy, int64_t D, bool add)
{
    SD_BEGIN();
    int64_t l = blockIdx.x, c = (int64_t)blockIdx.y * THREADS + threadIdx.x;
    float sum;

    if (c >= D)
        return;
    sum = add ? read_operand(d, l * D + c) : 0;
    for (int64_t b = 0; l < L && b < B; b++)
        sum += read_operand(dy, (b * L + l) * D + c);
    write_operand(const_cast<void *>(d.p), d.dtype, l * D + c, sum);
}

bool
whole(const struct sd_tensor *x)
{
    return x && x->param && !x->base;
}

enum sd_dtype
form_of(const struct sd_node *n, int i)
{
    if (i == 1 && !n->in[1]->param->trainable)
        return n->out->dtype;
    return SD_F32;
}

struct operand
weight(const struct sd_node *n, int i)
{
    struct operand o = { nullptr, SD_F32 };

    if (!whole(n->in[i]))
        return operand_of(n->in[i]);
    o.dtype = form_of(n, i);
    o.p = sd_param_on(n->in[i]->param, form_of(n, i), SD_ROWS);
    return o;
}

}   /* namespace */

void
embedding_prepare_cuda(struct sd_node *n)
{
    n->scratch_bytes = 0;
    for (int i = 1; i < 4; i++)
        if (whole(n->in[i]))
            sd_param_want(n->in[i]->param, form_of(n, i), SD_ROWS);
}

void
embedding_forward_cuda(struct sd_node *n)
{
    int64_t B = n->out->shape[0], L = n->out->shape[1], D = n->out->shape[2];

    if (!n->out->numel)
        return;
    SD_BY_DTYPE(n->out->dtype, T,
                SD_LAUNCH(device_of(n), embedding_forward_kernel<T>, dim3((unsigned)(B * L), (unsigned)ceil_div(D, THREADS)), THREADS,
                          0, data<T>(n->out), data<const int32_t>(n->in[0]), weight(n, 1), n->in[1]->shape[0], weight(n, 2),
                          n->in[2] ? n->in[2]->shape[0] : 0, weight(n, 3), L, D));
}

void
embedding_backward_cuda(struct sd_node *n)
{
    int64_t B = n->out->shape[0], L = n->out->shape[1], D = n->out->shape[2], V = n->in[1]->shape[0];
    struct operand dy = operand_of(n->dout);

    for (int i = 1; i < 4; i++) {
        dim3 grid((unsigned)(n->in[i] ? n->in[i]->shape[0] : 0), (unsigned)ceil_div(D, THREADS));

        if (!n->din[i] || !n->din[i]->numel)
            continue;
        if (i < 3)
            SD_LAUNCH(device_of(n), embedding_rows_kernel, grid, THREADS, sizeof(struct ids_room), operand_of(n->din[i]),
                      data<const int32_t>(n->in[0]), B * L, i == 1 ? (int64_t)0 : V, dy, D, !n->din_store[i]);
        else
            SD_LAUNCH(device_of(n), embedding_positions_kernel, grid, THREADS, 0, operand_of(n->din[i]), B, L, dy, D,
                      !n->din_store[i]);
    }
}
