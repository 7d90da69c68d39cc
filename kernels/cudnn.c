/* cudnn.c - cuDNN 9 by its backend API, without its headers: the library, and graphs of tensors and operations.
 *
 * A call becomes such a graph (cudnn_conv.c, cudnn_attention.c); the library lists engines for it, of which those are kept that
 * add in a fixed order and lose no precision (cudnn_engines.c).  Each is timed, and run twice into fresh memory, the second time
 * from a recording: one whose bits differ, or whose results are not those of our own kernel, is left out, whatever the library
 * says of it.  The choice is kept (cudnn_plans.c, tuning.h).
 *
 * Pictures: dimensions are counted [batch, channels, height, width], memory is NHWC.  Heads: [batch, heads, rows, d]. */
#include "cudnn_internal.h"

#include <stdio.h>

#include "diag.h"
#include "vendor.h"

struct dnn dnn;

/* The most of an engine's own memory.  Of what cuDNN 9.19 offers for an H100 at Stable Diffusion's sizes, the engines it puts first
 * want some bytes or a few MiB; 165 MiB those that turn pictures of 512 x 512 x 256; 161 MiB, of five heads, the gradients of
 * attention over 4096 x 4096, of which eight are made in two parts of 129.  Only engines that it puts last want more. */
int64_t cudnn_workspace = 168 << 20;

static bool
find_all(void)
{
    return vendor_find(dnn.library, "cudnnGetVersion", &dnn.get_version) && vendor_find(dnn.library, "cudnnCreate", &dnn.create)
           && vendor_find(dnn.library, "cudnnDestroy", &dnn.destroy) && vendor_find(dnn.library, "cudnnSetStream", &dnn.set_stream)
           && vendor_find(dnn.library, "cudnnBackendCreateDescriptor", &dnn.make)
           && vendor_find(dnn.library, "cudnnBackendDestroyDescriptor", &dnn.unmake)
           && vendor_find(dnn.library, "cudnnBackendFinalize", &dnn.finalize)
           && vendor_find(dnn.library, "cudnnBackendSetAttribute", &dnn.set)
           && vendor_find(dnn.library, "cudnnBackendGetAttribute", &dnn.get)
           && vendor_find(dnn.library, "cudnnBackendExecute", &dnn.execute);
}

/* What cuDNN's engines compile with: once open, it is found by name.  So is a part of it, which it opens when it compiles, and does
 * not look for where it lies itself: among Python's packages it would find none. */
static void
open_compiler(void)
{
    static const char *const compilers[] = { "libnvrtc.so.13", "libnvrtc.so.12", NULL };
    int (*version)(int *major, int *minor), major, minor;
    char part[48];
    const char *const parts[] = { part, NULL };
    void *library = vendor_open(compilers);
    bool known = library && vendor_find(library, "nvrtcVersion", &version) && !version(&major, &minor);

    if (known)
        snprintf(part, sizeof part, "libnvrtc-builtins.so.%d.%d", major, minor);
    if (!known || !vendor_open(parts))
        sd_note(1, "cudnn: %s: engines that are compiled may be missing", sd_reason());
}

bool
dnn_open(void)
{
    static const char *const names[] = { "libcudnn.so.9", NULL };
    static bool tried;

    if (!tried && (dnn.library = vendor_open(names))) {
        if (find_all()) {
            dnn.number = dnn.get_version();
            snprintf(dnn.version, sizeof dnn.version, "cudnn %zu", dnn.number);
            open_compiler();
            cublas_version();
        } else
            dnn.library = NULL;
    }
    tried = true;
    return dnn.library != NULL;
}

const char *
cudnn_version(void)
{
    return dnn_open() ? dnn.version : "no cudnn";
}

/* -- graphs --------------------------------------------------------------------------------------------------------- */

void *
dnn_make(struct graph *g, int kind, const char *what)
{
    void *d = NULL;

    if (g->status)
        return NULL;
    if (g->count == (int)(sizeof g->made / sizeof *g->made))
        sd_bug("cudnn", "%d descriptors", g->count);
    g->status = dnn.make(kind, &d);
    if (g->status)
        g->failed = what;
    else
        g->made[g->count++] = d;
    return d;
}

void
dnn_set(struct graph *g, void *d, int name, int type, int64_t count, const void *values)
{
    if (!g->status && (g->status = dnn.set(d, name, type, count, values)))
        g->failed = "an attribute";
}

void
dnn_set_number(struct graph *g, void *d, int name, int64_t value)
{
    dnn_set(g, d, name, TYPE_INT64, 1, &value);
}

void
dnn_set_word(struct graph *g, void *d, int name, int type, int value)
{
    dnn_set(g, d, name, type, 1, &value);
}

void
dnn_set_part(struct graph *g, void *d, int name, void *part)
{
    dnn_set(g, d, name, TYPE_DESCRIPTOR, 1, &part);
}

void
dnn_finish(struct graph *g, void *d, const char *what)
{
    if (!g->status && (g->status = dnn.finalize(d)))
        g->failed = what;
}

void
dnn_end(struct graph *g)
{
    while (g->count)
        dnn.unmake(g->made[--g->count]);
}

int
dnn_type(enum sd_dtype t)
{
    return t == SD_F32 ? DATA_FLOAT : t == SD_F16 ? DATA_HALF : DATA_BFLOAT16;
}

void *
dnn_tensor(struct graph *g, int64_t uid, int type, const int64_t dims[4], const int64_t strides[4], enum tensor_kind kind)
{
    void *t = dnn_make(g, TENSOR, "a tensor");
    bool yes = true;

    dnn_set_number(g, t, TENSOR_UNIQUE_ID, uid);
    dnn_set_word(g, t, TENSOR_DATA_TYPE, TYPE_DATA_TYPE, type);
    dnn_set(g, t, TENSOR_DIMENSIONS, TYPE_INT64, 4, dims);
    dnn_set(g, t, TENSOR_STRIDES, TYPE_INT64, 4, strides);
    dnn_set_number(g, t, TENSOR_ALIGNMENT, ALIGNED);
    if (kind == HIDDEN)
        dnn_set(g, t, TENSOR_IS_VIRTUAL, TYPE_BOOLEAN, 1, &yes);
    if (kind == BY_VALUE)
        dnn_set(g, t, TENSOR_IS_BY_VALUE, TYPE_BOOLEAN, 1, &yes);
    dnn_finish(g, t, "a tensor");
    if (g->tensors == CUDNN_MOST_TENSORS)
        sd_bug("cudnn", "%d tensors", g->tensors);
    g->tensor[g->tensors++] = t;
    return t;
}

void
dnn_pointwise(struct graph *g, int mode, void *x, void *b, void *y, const char *what)
{
    void *p = dnn_make(g, POINTWISE, what), *o;

    dnn_set_word(g, p, POINTWISE_MODE, TYPE_POINTWISE_MODE, mode);
    dnn_set_word(g, p, POINTWISE_MATH_PREC, TYPE_DATA_TYPE, DATA_FLOAT);
    dnn_finish(g, p, what);
    o = dnn_make(g, OPERATION_POINTWISE, what);
    dnn_set_part(g, o, OPERATION_PW_DESCRIPTOR, p);
    dnn_set_part(g, o, OPERATION_PW_X, x);
    if (b)
        dnn_set_part(g, o, OPERATION_PW_B, b);
    dnn_set_part(g, o, OPERATION_PW_Y, y);
    dnn_add_operation(g, o, what);
}

void
dnn_add_operation(struct graph *g, void *o, const char *what)
{
    dnn_finish(g, o, what);
    if (g->operations == (int)(sizeof g->operation / sizeof *g->operation))
        sd_bug("cudnn", "%d operations", g->operations);
    g->operation[g->operations++] = o;
}

void
dnn_close(struct graph *g, void *handle)
{
    g->graph = dnn_make(g, OPERATIONGRAPH, "the graph");
    if (handle)
        dnn_set(g, g->graph, GRAPH_HANDLE, TYPE_HANDLE, 1, &handle);
    dnn_set(g, g->graph, GRAPH_OPS, TYPE_DESCRIPTOR, g->operations, g->operation);
    dnn_finish(g, g->graph, "the graph");
}
