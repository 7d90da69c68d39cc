/* cudnn_conv.c - convolutions and their gradients by cuDNN.
 *
 * What is added to a picture (bias, channel_add, residual) is one graph with the convolution, whose engines are compiled, or comes
 * after a plain convolution, whose engines are the library's best, by conv_added(): the two are timed against one another.  Behind a
 * gradient of x, which the forward pass of an enlarged picture is (conv_transposed()), cuDNN 9.19 offers 8 engines for an H100 with a
 * bias or a residual (of Stable Diffusion's upsamplers and the VAE's; none for a row for each sample), and 33 without. */
#include "cudnn_internal.h"

#include <stdio.h>

#include "device_ops.h"
#include "tuning.h"
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
           && (!c->bias_d || c->bias) && (!c->channel_add || c->channel_add_pitch * size % ALIGNED == 0);
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

/* What the call makes, but for a gradient of w: a picture of so many channels. */
struct result { int64_t channels, height, width; };

static struct result
result_of(const struct conv_call *c)
{
    return c->kind == CONV_DATA ? (struct result){ c->in, c->height, c->width } : (struct result){ c->out, c->out_height, c->out_width };
}

static void *
result_picture(struct graph *g, const struct conv_call *c, int64_t uid, int type, enum tensor_kind kind)
{
    struct result r = result_of(c);

    return picture(g, uid, type, c->batch, r.channels, r.height, r.width, kind);
}

/* channel_add, which may be columns of something wider */
static void *
channels(struct graph *g, const struct conv_call *c, int64_t count)
{
    return dnn_tensor(g, CHANNEL_ADD, dnn_type(c->dtype), (int64_t[]){ c->batch, count, 1, 1 },
                      (int64_t[]){ c->channel_add_pitch, 1, count, count }, IN_MEMORY);
}

/* to = from + more, which may be one row for a sample or for all */
static void *
added(struct graph *g, const struct conv_call *c, void *from, void *more, bool last, int *between)
{
    void *to = last ? result_picture(g, c, TO, dnn_type(c->dtype), IN_MEMORY)
                    : result_picture(g, c, (*between)++, DATA_FLOAT, HIDDEN);

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
    const float one = 1, zero = 0;
    void *d = convolution(g, c), *o, *part[3], *to;
    struct result r = result_of(c);

    if (c->kind == CONV_WEIGHT)
        to = picture(g, TO, DATA_FLOAT, c->out, c->in, c->kernel_height, c->kernel_width, IN_MEMORY);
    else
        to = rest ? result_picture(g, c, between++, DATA_FLOAT, HIDDEN) : result_picture(g, c, TO, type, IN_MEMORY);
    part[0] = c->kind == CONV_DATA ? to : picture(g, X, type, c->batch, c->in, c->height, c->width, IN_MEMORY);
    part[1] = c->kind == CONV_WEIGHT ? to : picture(g, W, type, c->out, c->in, c->kernel_height, c->kernel_width, IN_MEMORY);
    part[2] = c->kind == CONV_FORWARD ? to : picture(g, DY, type, c->batch, c->out, c->out_height, c->out_width, IN_MEMORY);
    o = dnn_make(g, kinds[c->kind], "a convolution");
    dnn_set(g, o, name[0], TYPE_FLOAT, 1, &one);
    dnn_set(g, o, name[1], TYPE_FLOAT, 1, &zero);
    dnn_set_part(g, o, name[2], d);
    for (int i = 0; i < 3; i++)
        dnn_set_part(g, o, name[3 + i], part[i]);
    dnn_add_operation(g, o, "a convolution");
    if (c->bias)
        to = added(g, c, to, picture(g, BIAS, DATA_FLOAT, 1, r.channels, 1, 1, IN_MEMORY), --rest == 0, &between);
    if (c->channel_add)
        to = added(g, c, to, channels(g, c, r.channels), --rest == 0, &between);
    if (c->residual)
        added(g, c, to, result_picture(g, c, RESIDUAL, type, IN_MEMORY), --rest == 0, &between);
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

static enum sd_dtype
result_type(const struct conv_call *c)
{
    return c->kind == CONV_WEIGHT ? SD_F32 : c->dtype;
}

static size_t
result_count(const struct conv_call *c)
{
    struct result r = result_of(c);

    return (size_t)(c->kind == CONV_WEIGHT ? c->out * c->in * c->kernel_height * c->kernel_width
                                           : c->batch * r.height * r.width * r.channels);
}

typedef bool own_kernel(struct sd_device *d, const void *call, const struct pack *to);

static void
fill_pack(struct pack *pack, const struct conv_call *c, own_kernel *own)
{
    /* strides are what libraries are worst at */
    *pack = (struct pack){ .own = own, .own_timed = own != own_conv || (c->stride > 1 && c->kind != CONV_WEIGHT), .call = c };
    if (c->kind != CONV_DATA)
        dnn_put(pack, X, c->x);
    if (c->kind != CONV_WEIGHT)
        dnn_put(pack, W, c->w);
    if (c->kind != CONV_FORWARD)
        dnn_put(pack, DY, c->dy);
    if (c->bias)
        dnn_put(pack, BIAS, c->bias);
    if (c->channel_add)
        dnn_put(pack, CHANNEL_ADD, c->channel_add);
    if (c->residual)
        dnn_put(pack, RESIDUAL, c->residual);
    dnn_put_result(pack, TO, c->to, result_count(c), result_type(c));
}

enum { KEY_BYTES = 256 };

static const char *
key_of(char key[KEY_BYTES], const struct conv_call *c)
{
    char channels[32] = "";

    if (c->channel_add)
        snprintf(channels, sizeof channels, " channels/%lld", (long long)c->channel_add_pitch);
    snprintf(key, KEY_BYTES, "conv %d %s %lldx%lldx%lldx%lld>%lldx%lldx%lld k %dx%d/%d pad %d,%d,%d,%d%s%s%s%s", (int)c->kind,
             sd_dtype_name(c->dtype), (long long)c->batch, (long long)c->height, (long long)c->width, (long long)c->in,
             (long long)c->out_height, (long long)c->out_width, (long long)c->out, c->kernel_height, c->kernel_width, c->stride, c->top,
             c->left, c->bottom, c->right, c->bias ? " bias" : "", channels, c->residual ? " residual" : "",
             vendor_tf32 ? " tf32" : "");
    return key;
}

/* The call's plan and what it runs on.  Plans move when one is made. */
static struct plan *
plan_of(struct state *s, const struct conv_call *c, own_kernel *own, struct pack *pack)
{
    char key[KEY_BYTES];
    struct plan *p;

    fill_pack(pack, c, own);
    key_of(key, c);
    if (!(p = dnn_find_plan(s, key))) {
        struct graph g = { .count = 0 };

        conv_graph(&g, c, s->handle);
        p = dnn_new_plan(s, key, &g, pack);
    }
    return p;
}

/* By one graph; aside: the result lies in the workspace, behind the plan's.  Where it lies; NULL: there is no engine. */
static void *
run(struct state *s, const struct conv_call *c, own_kernel *own, bool aside)
{
    struct pack pack;
    struct plan *p = plan_of(s, c, own, &pack);
    size_t room;
    char *workspace;

    if (!p->exec)
        return NULL;
    room = dnn_round_up((size_t)p->workspace);
    workspace = sd_device_workspace(s->device, room + (aside ? result_count(c) * sd_dtype_size(result_type(c)) : 0));
    if (aside)
        pack.at[pack.count - 1] = workspace + room;
    return dnn_run(s, p, &pack, workspace) ? pack.at[pack.count - 1] : NULL;
}

static bool
has_more(const struct conv_call *c)
{
    return c->bias || c->channel_add || c->residual;
}

static struct conv_call
plain(const struct conv_call *c)
{
    struct conv_call p = *c;

    p.bias = NULL;
    p.bias_d = p.channel_add = p.residual = NULL;
    return p;
}

/* The plain convolution, then what is added to it. */
static bool
run_apart(struct state *s, const struct conv_call *c)
{
    struct conv_call p = plain(c);
    void *from = run(s, &p, own_conv, c->residual == c->to);

    if (from)
        conv_added(s->device, c, from);
    return from != NULL;
}

/* What a graph that adds must be faster than. */
static bool
own_apart(struct sd_device *d, const void *call, const struct pack *to)
{
    struct conv_call c = *(const struct conv_call *)call;

    c.to = dnn_result(to, TO);
    return run_apart(dnn_state(d), &c) || conv_cuda(d, &c);
}

/* A picture: by one graph, or apart.  Nothing says that a graph's result may lie on an operand. */
static bool
run_picture(struct state *s, const struct conv_call *c)
{
    struct conv_call p = plain(c);
    struct pack pack;
    char key[KEY_BYTES];

    if (!has_more(c))
        return run(s, c, own_conv, false) != NULL;
    if (c->residual == c->to)
        return run_apart(s, c);
    if (c->dtype == SD_F16 && c->kind == CONV_FORWARD)          /* whose sum may fit where the convolution alone does not */
        return run(s, c, own_conv, false) || run_apart(s, c);
    if (!dnn_find_plan(s, key_of(key, c)) && !tuning_find(s->device, "dnn", key))
        plan_of(s, &p, own_conv, &pack);        /* before the one that is compared with it: a trial makes no plans */
    return run(s, c, own_apart, false) || run_apart(s, c);
}

bool
cudnn_conv2d(struct sd_device *d, const struct conv_call *c)
{
    struct state *s;
    void *from;

    if (!cudnn_takes_conv2d(d, c) || !(s = dnn_state(d)))
        return false;
    if (c->kind != CONV_WEIGHT)
        return run_picture(s, c);
    from = run(s, c, own_conv, true);
    if (from)                   /* to the file's order */
        conv_taps_to_rows(d, c->to, from, c->out, c->in, (int64_t)c->kernel_height * c->kernel_width, c->add);
    return from != NULL;
}

bool
cudnn_takes_conv2d(const struct sd_device *d, const struct conv_call *c)
{
    return sd_device_capability(d) != 0 && takes_conv(c) && dnn_open();
}

#endif
