/* projections_form: the form of a joined parameter (projections.h): uploaded once; after each update what trains is made
 * again, PIECES matrices of all forms in one kernel: reads 4 bytes of each element, writes it in the form's type.  A kernel
 * for each form would be some eighty an update of SD1.5's attention, each shorter than its launch. */
#include "device_ops.h"
#include "projections.h"
#include "tile.cuh"

#include <stdlib.h>

using namespace sd;

namespace {

enum { THREADS = 128, MOST_BLOCKS = 64, PIECES = 96 };

/* Rows of `from`, each times its number of `scale` where there are any, to rows of `to` that lie `pitch` elements apart. */
struct piece {
    const float *from, *scale;
    void *to;
    int rows, width, pitch;
};
struct pieces { piece at[PIECES]; };        /* the arguments of a kernel may be 4 KB */

template <class T> static __global__ void
__launch_bounds__(THREADS)
pieces_kernel(struct pieces p)
{
    SD_BEGIN();
    const piece &q = p.at[blockIdx.y];
    int64_t count = (int64_t)q.rows * q.width;

    for (int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * THREADS) {
        int64_t row = i / q.width;

        static_cast<T *>(q.to)[row * q.pitch + i % q.width] = from_float<T>(q.from[i] * (q.scale ? q.scale[row] : 1));
    }
}

/* Pieces of one type that have not been asked for yet. */
struct queue {
    struct sd_device *device;
    enum sd_dtype dtype;
    int count;
    int64_t most;           /* elements of the largest */
    struct pieces p;
};

void
flush(struct queue *q)
{
    int64_t blocks = ceil_div(q->most, THREADS);

    if (blocks > MOST_BLOCKS)
        blocks = MOST_BLOCKS;
    if (q->count) {
        dim3 grid((unsigned)blocks, (unsigned)q->count);

        SD_BY_DTYPE(q->dtype, T, SD_LAUNCH(q->device, pieces_kernel<T>, grid, THREADS, 0, q->p));
    }
    q->count = 0;
    q->most = 0;
    q->p = {};
}

void
put(struct queue *q, enum sd_dtype dtype, const struct piece &piece)
{
    int64_t count = (int64_t)piece.rows * piece.width;

    if (!count)
        return;
    if (q->count == PIECES || dtype != q->dtype)
        flush(q);
    q->dtype = dtype;
    q->p.at[q->count++] = piece;
    q->most = count > q->most ? count : q->most;
}

template <class P> P *
section(void *form, size_t at)
{
    return reinterpret_cast<P *>(static_cast<char *>(form) + at);
}

/* Down and up of part i of a form, from device memory; NULL: left as they are. */
void
put_adapter(struct queue *to, void *form, const struct projections_layout *l, const struct sd_projections *a, int part,
            const float *down, const float *up)
{
    int64_t begin = 0, rank_begin = 0, rank = projection_rank(&a->part[part]);
    size_t size = sd_dtype_size(l->dtype);

    for (int i = 0; i < part; i++) {
        begin += projection_out(&a->part[i]);
        rank_begin += projection_rank(&a->part[i]);
    }
    if (down)
        put(to, l->dtype, { down, section<float>(form, l->scale) + rank_begin,
                            section<char>(form, l->down + (size_t)(rank_begin * l->in) * size), (int)rank, (int)l->in,
                            (int)l->in });
    if (up) {
        int64_t pitch = l->beside ? l->pitch : l->wide;
        size_t at = l->beside ? l->weight + (size_t)(l->in + rank_begin) * size : l->up;

        put(to, l->dtype, { up, nullptr, section<char>(form, at + (size_t)(begin * pitch) * size),
                            (int)projection_out(&a->part[part]), (int)rank, (int)pitch });
    }
}

void
put_trainables(struct queue *to, void *form, enum sd_dtype dtype, const struct sd_projections *a)
{
    struct projections_layout l;

    projections_layout(&l, a, dtype);
    for (int i = 0; i < a->parts; i++) {
        const struct sd_projection *q = &a->part[i];

        put_adapter(to, form, &l, a, i, q->down && q->down->trainable ? q->down->device_value : nullptr,
                    q->up && q->up->trainable ? q->up->device_value : nullptr);
    }
}

/* The parameter's values as F32 at `to` on the device. */
void
write_values(struct sd_device *d, float *to, const struct sd_param *p)
{
    float *values = static_cast<float *>(malloc(p->numel * sizeof *values + 1));

    if (!values)
        sd_die(p->path, "out of memory");
    sd_param_convert(values, p, 0, p->numel);
    sd_device_write(d, to, values, p->numel * sizeof *values);
    free(values);
}

/* Rows of a weight to their place. */
void
write_weight(struct sd_device *d, char *to, const struct projections_layout *l, const struct sd_param *p)
{
    size_t in = (size_t)l->in, piece = sd_param_piece(p, in), row = (size_t)l->pitch * sd_dtype_size(l->dtype);

    for (size_t begin = 0; begin < p->numel; begin += piece) {
        size_t count = p->numel - begin < piece ? p->numel - begin : piece;
        void *room = sd_device_workspace(d, piece * sd_param_sent_size(p));
        enum sd_dtype dtype = sd_param_send(p, d, room, begin, count);

        sd_device_rows(d, to + begin / in * row, l->dtype, l->pitch, room, dtype, l->in, (int64_t)(count / in), l->in, false);
    }
}

}   /* namespace */

void
projections_refresh(struct sd_device *d, const struct projections_form *forms, size_t count)
{
    struct queue q = {};

    q.device = d;
    for (size_t i = 0; i < count; i++)
        put_trainables(&q, forms[i].form, forms[i].dtype, forms[i].parts);
    flush(&q);
}

void
projections_upload(struct sd_device *d, void *form, enum sd_dtype dtype, const struct sd_projections *a)
{
    struct projections_layout l;
    int64_t begin = 0, rank = 0;

    projections_layout(&l, a, dtype);
    sd_device_fill(d, form, 0, l.bytes);
    for (int i = 0; i < a->parts; i++) {
        const struct sd_projection *q = &a->part[i];
        int64_t k = projection_rank(q);
        size_t row = (size_t)(begin * l.pitch) * sd_dtype_size(dtype);

        write_weight(d, section<char>(form, l.weight + row), &l, q->weight);
        if (q->bias)
            write_values(d, section<float>(form, l.bias) + begin, q->bias);
        if (k) {
            float *scales = static_cast<float *>(malloc((size_t)k * sizeof *scales));
            float scale = 1;

            if (!scales)
                sd_die(q->down->path, "out of memory");
            if (q->scale)
                sd_param_convert(&scale, q->scale, 0, 1);
            for (int64_t j = 0; j < k; j++)
                scales[j] = scale;
            sd_device_write(d, section<float>(form, l.scale) + rank, scales, (size_t)k * sizeof *scales);
            free(scales);
        }
        begin += projection_out(q);
        rank += k;
    }
    if (l.biased && dtype != SD_F32)
        sd_device_cast(d, section<char>(form, l.bias_d), dtype, section<float>(form, l.bias), SD_F32, (size_t)l.out);
    for (int i = 0; i < a->parts; i++) {
        const struct sd_param *pair[] = { a->part[i].down, a->part[i].up };

        for (int k = 0; k < 2; k++) {
            struct queue q = {};
            float *room;

            if (!pair[k] || pair[k]->trainable)
                continue;
            room = static_cast<float *>(sd_device_workspace(d, pair[k]->numel * sizeof *room));
            write_values(d, room, pair[k]);
            q.device = d;
            put_adapter(&q, form, &l, a, i, k ? nullptr : room, k ? room : nullptr);
            flush(&q);
        }
    }
    struct projections_form whole = { form, dtype, a };

    projections_refresh(d, &whole, 1);
}
