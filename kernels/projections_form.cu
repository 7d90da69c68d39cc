/* projections_form: the form of a joined parameter (projections.h): uploaded once; after each update one kernel makes
 * what trains again: reads 4 bytes of each element, writes it in the form's type. */
#include "device_ops.h"
#include "projections.h"
#include "tile.cuh"

#include <stdlib.h>

using namespace sd;

namespace {

enum { THREADS = 128 };

/* What down and up are made of; NULL: left as they are. */
struct adapter {
    const float *down, *up;
    int begin, out, rank_begin, rank;
};
struct adapters {
    void *to_down, *to_up;
    const float *scale;
    int64_t in, up_pitch;
    bool beside;
    adapter at[SD_MAX_PROJECTIONS];
};

template <class T> static __global__ void
__launch_bounds__(THREADS)
adapters_kernel(struct adapters p)
{
    const adapter &q = p.at[blockIdx.y];
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, downs = q.rank * p.in;

    if (i < downs) {
        if (q.down)
            static_cast<T *>(p.to_down)[q.rank_begin * p.in + i] =
                from_float<T>(q.down[i] * p.scale[q.rank_begin + (int)(i / p.in)]);
        return;
    }
    i -= downs;
    if (i >= (int64_t)q.out * q.rank || !q.up)
        return;
    int64_t o = i / q.rank, k = i % q.rank;

    static_cast<T *>(p.to_up)[(q.begin + o) * p.up_pitch + (p.beside ? q.rank_begin : 0) + k] = from_float<T>(q.up[i]);
}

template <class P> P *
section(void *form, size_t at)
{
    return reinterpret_cast<P *>(static_cast<char *>(form) + at);
}

/* Which elements lie where, without what they are made of. */
struct adapters
adapters_of(void *form, const struct projections_layout *l, const struct sd_projections *a)
{
    struct adapters p = {};
    int64_t begin = 0, rank = 0;

    p.to_down = section<char>(form, l->down);
    p.to_up = section<char>(form, l->beside ? l->weight + (size_t)l->in * sd_dtype_size(l->dtype) : l->up);
    p.scale = section<float>(form, l->scale);
    p.in = l->in;
    p.up_pitch = l->beside ? l->pitch : l->wide;
    p.beside = l->beside != 0;
    for (int i = 0; i < a->parts; i++) {
        p.at[i].begin = (int)begin;
        p.at[i].rank_begin = (int)rank;
        p.at[i].out = (int)projection_out(&a->part[i]);
        p.at[i].rank = (int)projection_rank(&a->part[i]);
        begin += projection_out(&a->part[i]);
        rank += projection_rank(&a->part[i]);
    }
    return p;
}

void
make_adapters(struct sd_device *d, const struct projections_layout *l, const struct adapters &p, int parts)
{
    int64_t most = 0;

    for (int i = 0; i < parts; i++)
        if (p.at[i].down || p.at[i].up) {
            int64_t count = p.at[i].rank * (p.in + p.at[i].out);

            most = count > most ? count : most;
        }
    if (!most)
        return;
    dim3 grid((unsigned)ceil_div(most, THREADS), (unsigned)parts);

    SD_BY_DTYPE(l->dtype, T, SD_LAUNCH(d, adapters_kernel<T>, grid, THREADS, 0, p));
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
write_weight(struct sd_device *d, void *to, const struct projections_layout *l, const struct sd_param *p)
{
    size_t size = sd_dtype_size(p->dtype);
    bool known = sd_dtype_is_real(p->dtype);
    void *room = sd_device_workspace(d, p->numel * (known ? size : sizeof(float)));

    if (known)
        sd_device_write(d, room, p->raw, p->numel * size);
    else
        write_values(d, static_cast<float *>(room), p);
    sd_device_rows(d, to, l->dtype, l->pitch, room, known ? p->dtype : SD_F32, l->in, p->shape[0], l->in, false);
}

}   /* namespace */

void
projections_refresh(struct sd_device *d, void *form, enum sd_dtype dtype, const struct sd_projections *a)
{
    struct projections_layout l;
    struct adapters p;

    projections_layout(&l, a, dtype);
    p = adapters_of(form, &l, a);
    for (int i = 0; i < a->parts; i++) {
        const struct sd_projection *q = &a->part[i];

        p.at[i].down = q->down && q->down->trainable ? q->down->device_value : nullptr;
        p.at[i].up = q->up && q->up->trainable ? q->up->device_value : nullptr;
    }
    make_adapters(d, &l, p, a->parts);
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
        const struct sd_projection *q = &a->part[i];
        const struct sd_param *pair[] = { q->down, q->up };

        for (int k = 0; k < 2; k++) {
            struct adapters p;
            float *room;

            if (!pair[k] || pair[k]->trainable)
                continue;
            room = static_cast<float *>(sd_device_workspace(d, pair[k]->numel * sizeof *room));
            write_values(d, room, pair[k]);
            p = adapters_of(form, &l, a);
            (k ? p.at[i].up : p.at[i].down) = room;
            make_adapters(d, &l, p, a->parts);
        }
    }
    projections_refresh(d, form, dtype, a);
}
