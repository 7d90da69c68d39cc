/* cudnn_conv.c - convolutions and their gradients by cuDNN. */
#include "cudnn_internal.h"

#include <stdio.h>

#include "device_ops.h"
#include "vendor.h"

enum { X = 1, W, DY, TO, BIAS, CHANNEL_ADD, RESIDUAL, BETWEEN };        /* uids */

static bool
takes_conv(const struct conv_call *c)
{
    bool type = c->dtype == SD_BF16 || c->dtype == SD_F16 || (c->dtype == SD_F32 && vendor_tf32);
    uintptr_t all = (uintptr_t)c->x | (uintptr_t)c->w | (uintptr_t)c->dy | (uintptr_t)c->bias | (uintptr_t)c->channel_add
                    | (uintptr_t)c->residual | (uintptr_t)c->to;
    int64_t size = (int64_t)sd_dtype_size(c->dtype);

    return type && c->upsample < 2 && all % ALIGNED == 0 && c->in * size % ALIGNED == 0 && c->out * size % ALIGNED == 0
           && c->batch > 0 && c->height > 0 && c->width > 0 && c->in > 0 && c->out_height > 0 && c->out_width > 0 && c->out > 0
           && (!c->bias_d || c->bias);
}

/* [n, c, h, w] in NHWC; of weights [out, in, kh, kw] in [out, kh, kw, in] */
static void *
picture(struct graph *g, int64_t uid, int type, int64_t n, int64_t c, int64_t h, int64_t w, enum tensor_kind kind)
{
    return dnn_tensor(g, uid, type, (int64_t[]){ n, c, h, w }, (int64_t[]){ h * w * c, 1, w * c, c }, kind);
}

static void *
convolution(struct graph *g, const struct conv_call *c)
{
    void *d = dnn_make(g, CONVOLUTION, "a convolution");

    dnn_set_word(g, d, CONVOLUTION_COMP_TYPE, TYPE_DATA_TYPE, DATA_FLOAT);
    dnn_set_word(g, d, CONVOLUTION_CONV_MODE, TYPE_CONVOLUTION_MODE, CROSS_CORRELATION);
    dnn_set_number(g, d, CONVOLUTION_SPATIAL_DIMS, 2);
    dnn_set(g, d, CONVOLUTION_DILATIONS, TYPE_INT64, 2, (int64_t[]){ 1, 1 });
    dnn_set(g, d, CONVOLUTION_FILTER_STRIDES, TYPE_INT64, 2, (int64_t[]){ c->stride, c->stride });
    dnn_set(g, d, CONVOLUTION_PRE_PADDINGS, TYPE_INT64, 2, (int64_t[]){ c->top, c->left });
    dnn_set(g, d, CONVOLUTION_POST_PADDINGS, TYPE_INT64, 2, (int64_t[]){ c->bottom, c->right });
    dnn_finish(g, d, "a convolution");
    return d;
}

/* to = from + more, which may be one row for a sample or for all */
static void *
added(struct graph *g, const struct conv_call *c, void *from, void *more, bool last, int *between)
{
    void *to = last ? picture(g, TO, dnn_type(c->dtype), c->batch, c->out, c->out_height, c->out_width, IN_MEMORY)
                    : picture(g, (*between)++, DATA_FLOAT, c->batch, c->out, c->out_height, c->out_width, HIDDEN);

    dnn_pointwise(g, POINTWISE_ADD, from, more, to, "an addition");
    return to;
}

static void
conv_graph(struct graph *g, const struct conv_call *c, void *handle)
{
    static const int kinds[] = { OPERATION_FORWARD, OPERATION_DATA, OPERATION_WEIGHT };
    static const int names[][6] = {     /* alpha, beta, convolution, x, w, y */
        { FORWARD_ALPHA, FORWARD_BETA, FORWARD_CONV_DESC, FORWARD_X, FORWARD_W, FORWARD_Y },
        { DATA_ALPHA, DATA_BETA, DATA_CONV_DESC, DATA_DX, DATA_W, DATA_DY },
        { WEIGHT_ALPHA, WEIGHT_BETA, WEIGHT_CONV_DESC, WEIGHT_X, WEIGHT_DW, WEIGHT_DY }
    };
    const int *name = names[c->kind];
    int type = dnn_type(c->dtype), between = BETWEEN, rest = !!c->bias + !!c->channel_add + !!c->residual;
    bool forward = c->kind == CONV_FORWARD;
    const float one = 1, zero = 0;
    void *d = convolution(g, c), *o, *x, *w, *y;

    if (!forward)
        rest = 0;
    x = picture(g, c->kind == CONV_DATA ? TO : X, type, c->batch, c->in, c->height, c->width, IN_MEMORY);
    w = picture(g, c->kind == CONV_WEIGHT ? TO : W, c->kind == CONV_WEIGHT ? DATA_FLOAT : type, c->out, c->in, c->kernel_height,
                c->kernel_width, IN_MEMORY);
    y = picture(g, !forward ? DY : rest ? between++ : TO, rest ? DATA_FLOAT : type, c->batch, c->out, c->out_height, c->out_width,
                rest ? HIDDEN : IN_MEMORY);
    o = dnn_make(g, kinds[c->kind], "a convolution");
    dnn_set(g, o, name[0], TYPE_FLOAT, 1, &one);
    dnn_set(g, o, name[1], TYPE_FLOAT, 1, &zero);
    dnn_set_part(g, o, name[2], d);
    dnn_set_part(g, o, name[3], x);
    dnn_set_part(g, o, name[4], w);
    dnn_set_part(g, o, name[5], y);
    dnn_add_operation(g, o, "a convolution");
    if (forward && c->bias)
        y = added(g, c, y, picture(g, BIAS, DATA_FLOAT, 1, c->out, 1, 1, IN_MEMORY), --rest == 0, &between);
    if (forward && c->channel_add)
        y = added(g, c, y, picture(g, CHANNEL_ADD, type, c->batch, c->out, 1, 1, IN_MEMORY), --rest == 0, &between);
    if (forward && c->residual)
        added(g, c, y, picture(g, RESIDUAL, type, c->batch, c->out, c->out_height, c->out_width, IN_MEMORY), --rest == 0, &between);
    dnn_close(g, handle);
}

bool
cudnn_ask_conv2d(const struct conv_call *c, const char *device, struct cudnn_asked *asked, const char **why)
{
    struct graph g = { .count = 0 };

    *why = takes_conv(c) ? "no cudnn" : NULL;
    if (!*why || !dnn_open())
        return false;
    conv_graph(&g, c, NULL);
    return dnn_read_back(&g, device, asked, why);
}

#if SD_WITH_CUDA            /* what follows runs; it wants kernels of ours beside the library's */

static bool
own_conv(struct sd_device *d, const void *call, const struct pack *to)
{
    struct conv_call c = *(const struct conv_call *)call;

    c.to = dnn_result(to, TO);
    c.add = false;
    if (c.kind != CONV_WEIGHT)
        return conv_cuda(d, &c);
    c.to = sd_device_alloc(d, (size_t)(c.out * c.in * c.kernel_height * c.kernel_width) * sizeof(float), "tuning");
    conv_cuda(d, &c);           /* in the file's order */
    sd_device_taps(d, dnn_result(to, TO), SD_F32, c.to, SD_F32, c.out, c.in, c.kernel_height, c.kernel_width);
    sd_device_wait(d);
    sd_device_free(d, c.to);
    return true;
}

bool
cudnn_conv2d(struct sd_device *d, const struct conv_call *c)
{
    bool forward = c->kind == CONV_FORWARD, aside;
    int64_t count = forward ? c->batch * c->out_height * c->out_width * c->out
                    : c->kind == CONV_DATA ? c->batch * c->height * c->width * c->in
                                           : c->out * c->in * c->kernel_height * c->kernel_width;
    enum sd_dtype type = c->kind == CONV_WEIGHT ? SD_F32 : c->dtype;
    size_t bytes = (size_t)count * sd_dtype_size(type);
    struct state *s;
    struct plan *p;
    struct pack pack = { .own = own_conv, .call = c };
    char key[256], *workspace;
    void *to = c->to;

    if (sd_device_capability(d) == 0 || !takes_conv(c) || !dnn_open() || !(s = dnn_state(d)))
        return false;
    snprintf(key, sizeof key, "conv %d %s %lldx%lldx%lldx%lld>%lldx%lldx%lld k %dx%d/%d pad %d,%d,%d,%d%s%s%s%s", (int)c->kind,
             sd_dtype_name(c->dtype), (long long)c->batch, (long long)c->height, (long long)c->width, (long long)c->in,
             (long long)c->out_height, (long long)c->out_width, (long long)c->out, c->kernel_height, c->kernel_width, c->stride, c->top,
             c->left, c->bottom, c->right, forward && c->bias ? " bias" : "", forward && c->channel_add ? " channels" : "",
             forward && c->residual ? " residual" : "", vendor_tf32 ? " tf32" : "");
    if (c->kind != CONV_DATA)
        dnn_put(&pack, X, c->x);
    if (c->kind != CONV_WEIGHT)
        dnn_put(&pack, W, c->w);
    if (!forward)
        dnn_put(&pack, DY, c->dy);
    if (forward && c->bias)
        dnn_put(&pack, BIAS, c->bias);
    if (forward && c->channel_add)
        dnn_put(&pack, CHANNEL_ADD, c->channel_add);
    if (forward && c->residual)
        dnn_put(&pack, RESIDUAL, c->residual);
    dnn_put_result(&pack, TO, c->to, (size_t)count, type);
    if (!(p = dnn_find_plan(s, key))) {
        struct graph g = { .count = 0 };

        conv_graph(&g, c, s->handle);
        p = dnn_new_plan(s, key, &g, &pack);
    }
    if (!p->exec)
        return false;
    /* nothing says that a result may lie on an operand; sums and the file's order are made afterwards */
    aside = c->kind == CONV_WEIGHT || (!forward && c->add) || (forward && c->residual == c->to);
    workspace = sd_device_workspace(d, dnn_round_up((size_t)p->workspace) + (aside ? bytes : 0));
    if (aside)
        to = workspace + dnn_round_up((size_t)p->workspace);
    pack.at[pack.count - 1] = to;
    if (!dnn_run(s, p, &pack, workspace))
        return false;
    if (c->kind == CONV_WEIGHT)
        conv_taps_to_rows(d, c->to, to, c->out, c->in, (int64_t)c->kernel_height * c->kernel_width, c->add);
    else if (aside && forward)
        sd_device_copy(d, c->to, to, bytes);
    else if (aside)
        sd_device_rows(d, c->to, type, c->in, to, type, c->in, count / c->in, c->in, true);
    return true;
}

#endif
