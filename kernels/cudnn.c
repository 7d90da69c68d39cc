/* cudnn.c - convolutions and attention by cuDNN 9: its backend API, without its headers.
 *
 * A call becomes a graph of tensors and operations; the library lists engines for it, of which those are kept that add in a fixed
 * order and lose no precision.  Each is timed, and run twice into fresh memory: one whose bits differ, or whose results are not
 * those of our own kernel, is left out, whatever the library says of it.  The choice is kept (vendor.h).
 *
 * Pictures: dimensions are counted [batch, channels, height, width], memory is NHWC.  Heads: [batch, heads, rows, d]. */
#include "cudnn.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device_ops.h"
#include "diag.h"
#include "vendor.h"

/* -- the library's words -------------------------------------------------------------------------------------------- */

enum {
    TYPE_HANDLE = 0, TYPE_DATA_TYPE = 1, TYPE_BOOLEAN = 2, TYPE_INT64 = 3, TYPE_FLOAT = 4, TYPE_VOID_PTR = 6, TYPE_CONVOLUTION_MODE = 7,
    TYPE_HEUR_MODE = 8, TYPE_NUMERICAL_NOTE = 11, TYPE_POINTWISE_MODE = 14, TYPE_DESCRIPTOR = 15, TYPE_BEHAVIOR_NOTE = 19,
    TYPE_CHAR = 24
};
enum {
    POINTWISE = 0, CONVOLUTION = 1, ENGINE = 2, ENGINECFG = 3, ENGINEHEUR = 4, EXECUTION_PLAN = 5, OPERATION_FORWARD = 10,
    OPERATION_WEIGHT = 11, OPERATION_DATA = 12, OPERATION_POINTWISE = 13, OPERATIONGRAPH = 15, VARIANT_PACK = 16, TENSOR = 17, DEVICEPROP = 38,
    OPERATION_SDPA_FORWARD = 41, OPERATION_SDPA_BACKWARD = 43
};
enum {
    POINTWISE_MODE = 0, POINTWISE_MATH_PREC = 1, CONVOLUTION_COMP_TYPE = 100, CONVOLUTION_CONV_MODE = 101, CONVOLUTION_DILATIONS = 102,
    CONVOLUTION_FILTER_STRIDES = 103, CONVOLUTION_POST_PADDINGS = 104, CONVOLUTION_PRE_PADDINGS = 105, CONVOLUTION_SPATIAL_DIMS = 106,
    ENGINEHEUR_MODE = 200, ENGINEHEUR_OPERATION_GRAPH = 201, ENGINEHEUR_RESULTS = 202, ENGINEHEUR_DEVICEPROP = 204, ENGINECFG_ENGINE = 300,
    EXECUTION_PLAN_HANDLE = 400, EXECUTION_PLAN_ENGINE_CONFIG = 401, EXECUTION_PLAN_WORKSPACE_SIZE = 402,
    EXECUTION_PLAN_DEVICEPROP = 407,
    FORWARD_ALPHA = 700, FORWARD_BETA = 701, FORWARD_CONV_DESC = 702, FORWARD_W = 703, FORWARD_X = 704, FORWARD_Y = 705,
    DATA_ALPHA = 706, DATA_BETA = 707, DATA_CONV_DESC = 708, DATA_W = 709, DATA_DX = 710, DATA_DY = 711,
    WEIGHT_ALPHA = 712, WEIGHT_BETA = 713, WEIGHT_CONV_DESC = 714, WEIGHT_DW = 715, WEIGHT_X = 716, WEIGHT_DY = 717,
    OPERATION_PW_DESCRIPTOR = 750, OPERATION_PW_X = 751, OPERATION_PW_B = 752, OPERATION_PW_Y = 753,
    GRAPH_HANDLE = 800, GRAPH_OPS = 801,
    TENSOR_ALIGNMENT = 900, TENSOR_DATA_TYPE = 901, TENSOR_DIMENSIONS = 902, TENSOR_STRIDES = 903, TENSOR_UNIQUE_ID = 906,
    TENSOR_IS_VIRTUAL = 907, TENSOR_IS_BY_VALUE = 908,
    PACK_UNIQUE_IDS = 1000, PACK_DATA_POINTERS = 1001, PACK_WORKSPACE = 1003,
    ENGINE_GLOBAL_INDEX = 1301, ENGINE_NUMERICAL_NOTE = 1303, ENGINE_BEHAVIOR_NOTE = 1305, DEVICEPROP_JSON = 2702,
    SDPA_F_Q = 2800, SDPA_F_K, SDPA_F_V, SDPA_F_O, SDPA_F_STATS, SDPA_F_SCALE,
    SDPA_B_Q = 2851, SDPA_B_K, SDPA_B_V, SDPA_B_O, SDPA_B_STATS, SDPA_B_SCALE, SDPA_B_DQ = 2859, SDPA_B_DK, SDPA_B_DV, SDPA_B_DO
};
enum { DATA_FLOAT = 0, DATA_HALF = 2, DATA_BFLOAT16 = 9, CROSS_CORRELATION = 1, POINTWISE_ADD = 0, HEUR_FALLBACK = 2, HEUR_A = 3 };
enum { NOTE_DOWN_CONVERT_INPUTS = 1, NOTE_REDUCED_PRECISION_REDUCTION = 2, NOTE_FFT = 3, NOTE_NONDETERMINISTIC = 4, NOTE_WINOGRAD = 5, NOTES = 10 };
enum { BEHAVIOR_RUNTIME_COMPILATION = 0, BEHAVIORS = 8 };
enum { SDPA_FORWARD_SINCE = 91301, SDPA_BACKWARD_SINCE = 92100, MANY = 64, ALIGNED = 16 };
enum { TRIED = 8, SECONDS = 3, WORKSPACE = 256 << 20 };     /* of engines: at most so many, so long, with so much */

static struct {
    void *library;
    char version[32];
    size_t number;
    size_t (*get_version)(void);
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*set_stream)(void *handle, void *stream);
    int (*make)(int kind, void **d);
    int (*unmake)(void *d);
    int (*finalize)(void *d);
    int (*set)(void *d, int name, int type, int64_t count, const void *values);
    int (*get)(void *d, int name, int type, int64_t count, int64_t *found, void *values);
    int (*execute)(void *handle, void *plan, void *pack);
} dnn;

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

static bool
open_library(void)
{
    static const char *const names[] = { "libcudnn.so.9", NULL };
    static const char *const compilers[] = { "libnvrtc.so.13", "libnvrtc.so.12", NULL };
    static bool tried;

    if (!tried && (dnn.library = vendor_open(names))) {
        if (find_all()) {
            dnn.number = dnn.get_version();
            snprintf(dnn.version, sizeof dnn.version, "cudnn %zu", dnn.number);
            vendor_open(compilers);             /* once open, they are found by name by cuDNN's engines */
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
    return open_library() ? dnn.version : "no cudnn";
}

/* -- graphs --------------------------------------------------------------------------------------------------------- */

/* Everything made for one graph, ended together; the first failure is remembered and nothing is asked after it. */
struct graph {
    void *made[128], *operation[8], *graph, *device;
    int count, operations, tensors;
    void *tensor[CUDNN_MOST_TENSORS];
    int status;
    const char *failed;
};

static void *
make(struct graph *g, int kind, const char *what)
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

static void
set(struct graph *g, void *d, int name, int type, int64_t count, const void *values)
{
    if (!g->status && (g->status = dnn.set(d, name, type, count, values)))
        g->failed = "an attribute";
}

static void
set_number(struct graph *g, void *d, int name, int64_t value)
{
    set(g, d, name, TYPE_INT64, 1, &value);
}

static void
set_word(struct graph *g, void *d, int name, int type, int value)
{
    set(g, d, name, type, 1, &value);
}

static void
set_part(struct graph *g, void *d, int name, void *part)
{
    set(g, d, name, TYPE_DESCRIPTOR, 1, &part);
}

static void
finish(struct graph *g, void *d, const char *what)
{
    if (!g->status && (g->status = dnn.finalize(d)))
        g->failed = what;
}

static void
end_graph(struct graph *g)
{
    while (g->count)
        dnn.unmake(g->made[--g->count]);
}

static int
type_of(enum sd_dtype t)
{
    return t == SD_F32 ? DATA_FLOAT : t == SD_F16 ? DATA_HALF : DATA_BFLOAT16;
}

enum tensor_kind { IN_MEMORY, HIDDEN, BY_VALUE };

static void *
tensor(struct graph *g, int64_t uid, int type, const int64_t dims[4], const int64_t strides[4], enum tensor_kind kind)
{
    void *t = make(g, TENSOR, "a tensor");
    bool yes = true;

    set_number(g, t, TENSOR_UNIQUE_ID, uid);
    set_word(g, t, TENSOR_DATA_TYPE, TYPE_DATA_TYPE, type);
    set(g, t, TENSOR_DIMENSIONS, TYPE_INT64, 4, dims);
    set(g, t, TENSOR_STRIDES, TYPE_INT64, 4, strides);
    set_number(g, t, TENSOR_ALIGNMENT, ALIGNED);
    if (kind == HIDDEN)
        set(g, t, TENSOR_IS_VIRTUAL, TYPE_BOOLEAN, 1, &yes);
    if (kind == BY_VALUE)
        set(g, t, TENSOR_IS_BY_VALUE, TYPE_BOOLEAN, 1, &yes);
    finish(g, t, "a tensor");
    if (g->tensors == CUDNN_MOST_TENSORS)
        sd_bug("cudnn", "%d tensors", g->tensors);
    g->tensor[g->tensors++] = t;
    return t;
}

/* [n, c, h, w] in NHWC; of weights [out, in, kh, kw] in [out, kh, kw, in] */
static void *
picture(struct graph *g, int64_t uid, int type, int64_t n, int64_t c, int64_t h, int64_t w, enum tensor_kind kind)
{
    return tensor(g, uid, type, (int64_t[]){ n, c, h, w }, (int64_t[]){ h * w * c, 1, w * c, c }, kind);
}

static void
add_operation(struct graph *g, void *o, const char *what)
{
    finish(g, o, what);
    g->operation[g->operations++] = o;
}

static void
close_graph(struct graph *g, void *handle)
{
    g->graph = make(g, OPERATIONGRAPH, "the graph");
    if (handle)
        set(g, g->graph, GRAPH_HANDLE, TYPE_HANDLE, 1, &handle);
    set(g, g->graph, GRAPH_OPS, TYPE_DESCRIPTOR, g->operations, g->operation);
    finish(g, g->graph, "the graph");
}

/* -- convolutions --------------------------------------------------------------------------------------------------- */

enum { X = 1, W, DY, TO, BIAS, CHANNEL_ADD, RESIDUAL, BETWEEN };        /* uids */

static bool
takes_conv(const struct conv_call *c)
{
    bool type = c->dtype == SD_BF16 || c->dtype == SD_F16 || (c->dtype == SD_F32 && vendor_tf32);
    uintptr_t all = (uintptr_t)c->x | (uintptr_t)c->w | (uintptr_t)c->dy | (uintptr_t)c->bias | (uintptr_t)c->channel_add
                    | (uintptr_t)c->residual | (uintptr_t)c->to;
    int64_t size = (int64_t)sd_dtype_size(c->dtype);

    return type && c->upsample < 2 && all % ALIGNED == 0 && c->in * size % ALIGNED == 0 && c->out * size % ALIGNED == 0
           && c->batch * c->height * c->width * c->in * c->out_height * c->out_width * c->out > 0 && (!c->bias_d || c->bias);
}

static void *
convolution(struct graph *g, const struct conv_call *c)
{
    void *d = make(g, CONVOLUTION, "a convolution");

    set_word(g, d, CONVOLUTION_COMP_TYPE, TYPE_DATA_TYPE, DATA_FLOAT);
    set_word(g, d, CONVOLUTION_CONV_MODE, TYPE_CONVOLUTION_MODE, CROSS_CORRELATION);
    set_number(g, d, CONVOLUTION_SPATIAL_DIMS, 2);
    set(g, d, CONVOLUTION_DILATIONS, TYPE_INT64, 2, (int64_t[]){ 1, 1 });
    set(g, d, CONVOLUTION_FILTER_STRIDES, TYPE_INT64, 2, (int64_t[]){ c->stride, c->stride });
    set(g, d, CONVOLUTION_PRE_PADDINGS, TYPE_INT64, 2, (int64_t[]){ c->top, c->left });
    set(g, d, CONVOLUTION_POST_PADDINGS, TYPE_INT64, 2, (int64_t[]){ c->bottom, c->right });
    finish(g, d, "a convolution");
    return d;
}

/* to = from + more, which may be one row for a sample or for all */
static void *
added(struct graph *g, const struct conv_call *c, void *from, void *more, bool last, int *between)
{
    void *p = make(g, POINTWISE, "an addition"), *o, *to;

    set_word(g, p, POINTWISE_MODE, TYPE_POINTWISE_MODE, POINTWISE_ADD);
    set_word(g, p, POINTWISE_MATH_PREC, TYPE_DATA_TYPE, DATA_FLOAT);
    finish(g, p, "an addition");
    to = last ? picture(g, TO, type_of(c->dtype), c->batch, c->out, c->out_height, c->out_width, IN_MEMORY)
              : picture(g, (*between)++, DATA_FLOAT, c->batch, c->out, c->out_height, c->out_width, HIDDEN);
    o = make(g, OPERATION_POINTWISE, "an addition");
    set_part(g, o, OPERATION_PW_DESCRIPTOR, p);
    set_part(g, o, OPERATION_PW_X, from);
    set_part(g, o, OPERATION_PW_B, more);
    set_part(g, o, OPERATION_PW_Y, to);
    add_operation(g, o, "an addition");
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
    int type = type_of(c->dtype), between = BETWEEN, rest = !!c->bias + !!c->channel_add + !!c->residual;
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
    o = make(g, kinds[c->kind], "a convolution");
    set(g, o, name[0], TYPE_FLOAT, 1, &one);
    set(g, o, name[1], TYPE_FLOAT, 1, &zero);
    set_part(g, o, name[2], d);
    set_part(g, o, name[3], x);
    set_part(g, o, name[4], w);
    set_part(g, o, name[5], y);
    add_operation(g, o, "a convolution");
    if (forward && c->bias)
        y = added(g, c, y, picture(g, BIAS, DATA_FLOAT, 1, c->out, 1, 1, IN_MEMORY), --rest == 0, &between);
    if (forward && c->channel_add)
        y = added(g, c, y, picture(g, CHANNEL_ADD, type, c->batch, c->out, 1, 1, IN_MEMORY), --rest == 0, &between);
    if (forward && c->residual)
        added(g, c, y, picture(g, RESIDUAL, type, c->batch, c->out, c->out_height, c->out_width, IN_MEMORY), --rest == 0, &between);
    close_graph(g, handle);
}

/* -- attention ------------------------------------------------------------------------------------------------------ */

enum { Q = 1, K, V, O, STATS, SCALE, D_O, D_Q, D_K, D_V };      /* uids */

static bool
takes_attention(const struct attention_call *c)
{
    uintptr_t all = (uintptr_t)c->q | (uintptr_t)c->k | (uintptr_t)c->v | (uintptr_t)c->o | (uintptr_t)c->o_gradient
                    | (uintptr_t)c->q_gradient | (uintptr_t)c->k_gradient | (uintptr_t)c->v_gradient;
    int64_t pitches = c->q_pitch | c->k_pitch | c->v_pitch | c->o_pitch | c->o_gradient_pitch | c->q_gradient_pitch
                      | c->k_gradient_pitch | c->v_gradient_pitch;

    return (c->dtype == SD_BF16 || c->dtype == SD_F16) && !c->causal && all % ALIGNED == 0 && pitches % 8 == 0 && c->d % 8 == 0
           && c->batch * c->heads * c->L * c->S * c->d > 0 && (c->lse || !c->backward);
}

/* The descriptor of the backward pass is there since 9.17, and refused in every graph before 9.21. */
static size_t
since(const struct attention_call *c)
{
    return c->backward ? SDPA_BACKWARD_SINCE : SDPA_FORWARD_SINCE;
}

static void *
heads(struct graph *g, int64_t uid, const struct attention_call *c, int64_t rows, int64_t pitch)
{
    return tensor(g, uid, type_of(c->dtype), (int64_t[]){ c->batch, c->heads, rows, c->d },
                  (int64_t[]){ rows * pitch, c->d, pitch, 1 }, IN_MEMORY);
}

/* Gradients that are to be added to are made dense beside, and added afterwards. */
static int64_t
gradient_pitch(const struct attention_call *c, const void *to, int64_t pitch, bool store)
{
    return to && store ? pitch : c->heads * c->d;
}

static void
attention_graph(struct graph *g, const struct attention_call *c, void *handle)
{
    bool back = c->backward;
    void *o = make(g, back ? OPERATION_SDPA_BACKWARD : OPERATION_SDPA_FORWARD, "attention");

    set_part(g, o, back ? SDPA_B_Q : SDPA_F_Q, heads(g, Q, c, c->L, c->q_pitch));
    set_part(g, o, back ? SDPA_B_K : SDPA_F_K, heads(g, K, c, c->S, c->k_pitch));
    set_part(g, o, back ? SDPA_B_V : SDPA_F_V, heads(g, V, c, c->S, c->v_pitch));
    set_part(g, o, back ? SDPA_B_O : SDPA_F_O, heads(g, O, c, c->L, c->o_pitch));
    if (c->lse)
        set_part(g, o, back ? SDPA_B_STATS : SDPA_F_STATS,
                 tensor(g, STATS, DATA_FLOAT, (int64_t[]){ c->batch, c->heads, c->L, 1 },
                        (int64_t[]){ c->heads * c->L, c->L, 1, 1 }, IN_MEMORY));
    set_part(g, o, back ? SDPA_B_SCALE : SDPA_F_SCALE,
             tensor(g, SCALE, DATA_FLOAT, (int64_t[]){ 1, 1, 1, 1 }, (int64_t[]){ 1, 1, 1, 1 }, BY_VALUE));
    if (back) {
        set_part(g, o, SDPA_B_DO, heads(g, D_O, c, c->L, c->o_gradient_pitch));
        set_part(g, o, SDPA_B_DQ, heads(g, D_Q, c, c->L, gradient_pitch(c, c->q_gradient, c->q_gradient_pitch, c->q_store)));
        set_part(g, o, SDPA_B_DK, heads(g, D_K, c, c->S, gradient_pitch(c, c->k_gradient, c->k_gradient_pitch, c->k_store)));
        set_part(g, o, SDPA_B_DV, heads(g, D_V, c, c->S, gradient_pitch(c, c->v_gradient, c->v_gradient_pitch, c->v_store)));
    }
    add_operation(g, o, "attention");
    close_graph(g, handle);
}

/* -- engines ---------------------------------------------------------------------------------------------------------- */

/* Which engine: its number, or -1 where it is none for us. */
static int64_t
engine_of(void *config)
{
    struct graph g = { .count = 0 };
    void *engine = make(&g, ENGINE, "an engine");
    int notes[NOTES];
    int64_t number = -1, found = 0, n;

    if (!engine || dnn.get(config, ENGINECFG_ENGINE, TYPE_DESCRIPTOR, 1, &n, &engine)
            || dnn.get(engine, ENGINE_GLOBAL_INDEX, TYPE_INT64, 1, &n, &number)
            || dnn.get(engine, ENGINE_NUMERICAL_NOTE, TYPE_NUMERICAL_NOTE, NOTES, &found, notes))
        number = -1;
    for (int64_t i = 0; i < found && i < NOTES; i++)
        if (notes[i] == NOTE_REDUCED_PRECISION_REDUCTION || notes[i] == NOTE_FFT || notes[i] == NOTE_NONDETERMINISTIC
                || (notes[i] >= NOTE_WINOGRAD && notes[i] <= NOTE_WINOGRAD + 3) || (notes[i] == NOTE_DOWN_CONVERT_INPUTS && !vendor_tf32))
            number = -1;
    end_graph(&g);
    return number;
}

/* The configurations that the library proposes, best first; they live as long as g. */
static int
propose(struct graph *g, void *configs[MANY])
{
    static const int modes[] = { HEUR_A, HEUR_FALLBACK };
    int total = 0;

    for (int m = 0; m < 2 && !g->status; m++) {
        void *heuristic = make(g, ENGINEHEUR, "a heuristic");
        int64_t found = 0;
        int first = total, most = MANY / 2;

        set_part(g, heuristic, ENGINEHEUR_OPERATION_GRAPH, g->graph);
        if (g->device)
            set_part(g, heuristic, ENGINEHEUR_DEVICEPROP, g->device);
        set_word(g, heuristic, ENGINEHEUR_MODE, TYPE_HEUR_MODE, modes[m]);
        finish(g, heuristic, "a heuristic");
        if (g->status) {                        /* this mode has nothing to say */
            g->status = 0;
            continue;
        }
        for (int i = 0; i < most; i++)
            configs[first + i] = make(g, ENGINECFG, "a configuration");
        if (!g->status && !dnn.get(heuristic, ENGINEHEUR_RESULTS, TYPE_DESCRIPTOR, most, &found, configs + first))
            total += (int)(found < most ? found : most);
    }
    return total;
}

/* handle: of the card; else device: a described one */
static void *
build(void *handle, void *device, void *config, int64_t *workspace)
{
    void *exec = NULL;
    int64_t n;

    if (dnn.make(EXECUTION_PLAN, &exec))
        return NULL;
    if ((handle ? dnn.set(exec, EXECUTION_PLAN_HANDLE, TYPE_HANDLE, 1, &handle)
                : dnn.set(exec, EXECUTION_PLAN_DEVICEPROP, TYPE_DESCRIPTOR, 1, &device))
            || dnn.set(exec, EXECUTION_PLAN_ENGINE_CONFIG, TYPE_DESCRIPTOR, 1, &config) || dnn.finalize(exec)
            || dnn.get(exec, EXECUTION_PLAN_WORKSPACE_SIZE, TYPE_INT64, 1, &n, workspace)) {
        dnn.unmake(exec);
        return NULL;
    }
    if (*workspace > WORKSPACE) {
        dnn.unmake(exec);
        return NULL;
    }
    return exec;
}

/* -- for tests ------------------------------------------------------------------------------------------------------ */

/* A card of which only the description is here; NULL where this version does not take it. */
static void *
described_device(struct graph *g, const char *json)
{
    void *d = make(g, DEVICEPROP, "a device");

    set(g, d, DEVICEPROP_JSON, TYPE_CHAR, (int64_t)strlen(json) + 1, json);
    finish(g, d, "a device");
    return d;
}

/* Is the engine compiled when its plan is made?  That takes long, and a card. */
static bool
is_compiled(void *config)
{
    struct graph g = { .count = 0 };
    void *engine = make(&g, ENGINE, "an engine");
    int notes[BEHAVIORS] = { 0 };
    int64_t found = 0, n;
    bool yes = !engine || dnn.get(config, ENGINECFG_ENGINE, TYPE_DESCRIPTOR, 1, &n, &engine)
               || dnn.get(engine, ENGINE_BEHAVIOR_NOTE, TYPE_BEHAVIOR_NOTE, BEHAVIORS, &found, notes);

    for (int64_t i = 0; i < found && i < BEHAVIORS; i++)
        yes |= notes[i] == BEHAVIOR_RUNTIME_COMPILATION;
    end_graph(&g);
    return yes;
}

static void
count_engines(struct graph *g, const char *json, struct cudnn_asked *asked)
{
    void *configs[MANY] = { NULL };

    g->device = described_device(g, json);
    asked->proposed = propose(g, configs);
    for (int i = 0; i < asked->proposed; i++)
        if (engine_of(configs[i]) >= 0)
            asked->kept++;
    for (int i = 0; i < asked->proposed && !asked->built; i++) {
        int64_t workspace;
        void *exec = NULL;

        if (engine_of(configs[i]) >= 0 && !is_compiled(configs[i]))
            exec = build(NULL, g->device, configs[i], &workspace);

        if (exec) {
            asked->built = true;
            asked->workspace = workspace;
            dnn.unmake(exec);
        }
    }
}

static bool
read_back(struct graph *g, const char *json, struct cudnn_asked *asked, const char **why)
{
    static char text[128];
    bool ok = !g->status;

    memset(asked, 0, sizeof *asked);
    asked->tensors = g->tensors;
    asked->operations = g->operations;
    for (int i = 0; i < g->tensors && ok; i++) {
        struct cudnn_tensor *t = &asked->tensor[i];
        int64_t n;

        ok = !dnn.get(g->tensor[i], TENSOR_UNIQUE_ID, TYPE_INT64, 1, &n, &t->uid)
             && !dnn.get(g->tensor[i], TENSOR_DATA_TYPE, TYPE_DATA_TYPE, 1, &n, &t->type)
             && !dnn.get(g->tensor[i], TENSOR_DIMENSIONS, TYPE_INT64, 4, &n, t->dims)
             && !dnn.get(g->tensor[i], TENSOR_STRIDES, TYPE_INT64, 4, &n, t->strides)
             && !dnn.get(g->tensor[i], TENSOR_IS_VIRTUAL, TYPE_BOOLEAN, 1, &n, &t->hidden)
             && !dnn.get(g->tensor[i], TENSOR_IS_BY_VALUE, TYPE_BOOLEAN, 1, &n, &t->by_value);
    }
    if (ok && json)
        count_engines(g, json, asked);
    ok = ok && !g->status;
    snprintf(text, sizeof text, "%s refused, status %d", g->failed ? g->failed : "reading back", g->status);
    *why = ok ? NULL : text;
    end_graph(g);
    return ok;
}

bool
cudnn_ask_conv2d(const struct conv_call *c, const char *device, struct cudnn_asked *asked, const char **why)
{
    struct graph g = { .count = 0 };

    *why = takes_conv(c) ? "no cudnn" : NULL;
    if (!*why || !open_library())
        return false;
    conv_graph(&g, c, NULL);
    return read_back(&g, device, asked, why);
}

bool
cudnn_ask_attention(const struct attention_call *c, const char *device, struct cudnn_asked *asked, const char **why)
{
    struct graph g = { .count = 0 };

    *why = takes_attention(c) ? "no cudnn" : NULL;
    if (!*why || !open_library())
        return false;
    *why = "this version has no such operation";
    if (dnn.number < since(c))
        return false;
    attention_graph(&g, c, NULL);
    return read_back(&g, device, asked, why);
}

#if SD_WITH_CUDA            /* what follows runs; it wants kernels of ours beside the library's */

/* -- plans ---------------------------------------------------------------------------------------------------------- */

struct plan {
    char *key;
    void *exec;                 /* NULL: no engine */
    int64_t workspace;
};

struct state {
    struct sd_device *device;
    void *handle;
    struct plan *plans;
    size_t count, room;
};

/* What a plan is run on. */
struct pack {
    int count;
    int64_t uid[CUDNN_MOST_TENSORS];
    void *at[CUDNN_MOST_TENSORS];
    size_t bytes[CUDNN_MOST_TENSORS];       /* of results, from first to last; 0: an operand */
    enum sd_dtype type[CUDNN_MOST_TENSORS]; /* of results */
    bool (*own)(struct sd_device *d, const void *call, const struct pack *to);      /* the same by our own kernel; false: it cannot */
    const void *call;
};

static void
put(struct pack *p, int64_t uid, const void *at)
{
    union { const void *in; void *out; } u = { at };

    p->uid[p->count] = uid;
    p->at[p->count] = u.out;
    p->bytes[p->count++] = 0;
}

static void
put_result(struct pack *p, int64_t uid, void *at, size_t count, enum sd_dtype type)
{
    put(p, uid, at);
    p->bytes[p->count - 1] = count * sd_dtype_size(type);
    p->type[p->count - 1] = type;
}

static void *
result(const struct pack *p, int64_t uid)
{
    for (int i = 0; i < p->count; i++)
        if (p->uid[i] == uid)
            return p->at[i];
    return NULL;
}

static bool
execute(struct state *s, void *exec, const struct pack *p, void *workspace)
{
    struct graph g = { .count = 0 };
    void *pack = make(&g, VARIANT_PACK, "a pack");

    set(&g, pack, PACK_UNIQUE_IDS, TYPE_INT64, p->count, p->uid);
    set(&g, pack, PACK_DATA_POINTERS, TYPE_VOID_PTR, p->count, p->at);
    set(&g, pack, PACK_WORKSPACE, TYPE_VOID_PTR, 1, &workspace);
    finish(&g, pack, "a pack");
    if (!g.status)
        g.status = dnn.execute(s->handle, exec, pack);
    end_graph(&g);
    return g.status == 0;
}

struct attempt {
    struct state *state;
    void *exec;
    int64_t workspace;
    struct pack pack;           /* results go to memory of their own */
    void *expected[CUDNN_MOST_TENSORS];     /* in the host's; NULL: not known */
    double apart;               /* from what is expected, in tuning_bound()s */
};

static bool
attempt(void *argument)
{
    struct attempt *t = argument;

    return execute(t->state, t->exec, &t->pack, sd_device_workspace(t->state->device, (size_t)t->workspace));
}

/* Twice into memory that was cleared: are the results the same bytes, and what is expected? */
static bool
repeats(struct attempt *t)
{
    bool same = true;

    t->apart = 0;
    for (int i = 0; i < t->pack.count && same; i++) {
        unsigned char *first, *again;
        struct sd_device *d = t->state->device;
        size_t bytes = t->pack.bytes[i];

        if (!bytes)
            continue;
        first = malloc(2 * bytes);
        if (!first)
            sd_die("memory", "no room for %zu bytes twice", bytes);
        again = first + bytes;
        for (int turn = 0; turn < 2 && same; turn++) {
            sd_device_fill(d, t->pack.at[i], 0, bytes);
            same = attempt(t);
            sd_device_read(d, turn ? again : first, t->pack.at[i], bytes);
        }
        if (same && t->expected[i]) {
            double apart = tuning_distance(first, t->expected[i], t->pack.type[i], bytes / sd_dtype_size(t->pack.type[i]))
                           / tuning_bound(t->pack.type[i]);

            if (!(apart <= t->apart))
                t->apart = apart;
        }
        same = same && memcmp(first, again, bytes) == 0;
        free(first);
    }
    return same && t->apart <= 1;
}

/* What the results are, by our own kernel. */
static void
expect(struct attempt *t)
{
    struct sd_device *d = t->state->device;

    for (int i = 0; i < t->pack.count; i++)
        if (t->pack.bytes[i])
            sd_device_fill(d, t->pack.at[i], 0, t->pack.bytes[i]);
    if (!t->pack.own(d, t->pack.call, &t->pack))
        return;
    for (int i = 0; i < t->pack.count; i++)
        if (t->pack.bytes[i] && (t->expected[i] = malloc(t->pack.bytes[i])))
            sd_device_read(d, t->expected[i], t->pack.at[i], t->pack.bytes[i]);
}

/* Of the proposals, the fastest that repeats; -1: none. */
static int
fastest(struct state *s, void *const *configs, int count, const struct pack *pack, const char *key)
{
    struct attempt t = { .state = s, .pack = *pack };
    double best = -1, begin = tuning_clock();
    int chosen = -1, tried = 0;

    for (int i = 0; i < pack->count; i++)
        if (pack->bytes[i])
            t.pack.at[i] = sd_device_alloc(s->device, pack->bytes[i], "tuning");
    expect(&t);
    for (int i = 0; i < count && tried < TRIED && (chosen < 0 || tuning_clock() - begin < SECONDS); i++) {
        double seconds;

        if (engine_of(configs[i]) < 0 || !(t.exec = build(s->handle, NULL, configs[i], &t.workspace)))
            continue;
        tried++;
        t.apart = 0;
        if (sd_device_free_bytes(s->device) > (size_t)t.workspace && attempt(&t) && repeats(&t)) {
            seconds = tuning_time(s->device, attempt, &t);
            if (seconds >= 0 && (best < 0 || seconds < best)) {
                best = seconds;
                chosen = i;
            }
        } else if (!(t.apart <= 1))
            sd_warn("cudnn", "%s: engine %lld is left out: %.1f times as far from our own kernel as rounding goes", key,
                    (long long)engine_of(configs[i]), t.apart);
        dnn.unmake(t.exec);
    }
    for (int i = 0; i < pack->count; i++) {
        if (pack->bytes[i])
            sd_device_free(s->device, t.pack.at[i]);
        free(t.expected[i]);
    }
    if (chosen < 0)
        sd_note(2, "%s: none of %d engines, %.1f s", key, count, tuning_clock() - begin);
    else
        sd_note(2, "%s: engine %d of %d, %d tried, %.1f us, chosen in %.1f s", key, chosen, count, tried, best * 1e6,
                tuning_clock() - begin);
    return chosen;
}

/* Untimed: the first engine that a plan can be made of. */
static void
take_first(struct state *s, struct plan *p, void *const *configs, int count)
{
    for (int i = 0; i < count && !p->exec; i++)
        if (engine_of(configs[i]) >= 0)
            p->exec = build(s->handle, NULL, configs[i], &p->workspace);
}

/* Sets p->exec; leaves it NULL where there is no engine. */
static void
choose(struct state *s, struct plan *p, struct graph *g, const struct pack *pack)
{
    void *configs[MANY] = { NULL };
    const char *kept = tuning_find(s->device, "dnn", p->key);
    int count = propose(g, configs), chosen = -1;
    long long number = -1;
    size_t bytes = 0;
    char text[64];

    for (int i = 0; i < pack->count; i++)
        bytes += pack->bytes[i];
    if (!kept && tuning_wanted() && count > 0 && sd_device_free_bytes(s->device) > bytes + bytes / 4) {
        chosen = fastest(s, configs, count, pack, p->key);
        snprintf(text, sizeof text, "%d %lld", chosen, chosen < 0 ? -1LL : (long long)engine_of(configs[chosen]));
        kept = tuning_store(s->device, "dnn", p->key, text);
    }
    if (!kept) {
        take_first(s, p, configs, count);
        return;
    }
    if (sscanf(kept, "%d %lld", &chosen, &number) == 2 && chosen < count
            && (chosen < 0 || (engine_of(configs[chosen]) == number
                               && (p->exec = build(s->handle, NULL, configs[chosen], &p->workspace)))))
        return;
    sd_warn("cudnn", "the engine that was chosen before is not offered now, another is taken: %s: %s", p->key, kept);
    take_first(s, p, configs, count);
}

static void
close_state(void *value)
{
    struct state *s = value;

    for (size_t i = 0; i < s->count; i++) {
        if (s->plans[i].exec)
            dnn.unmake(s->plans[i].exec);
        free(s->plans[i].key);
    }
    dnn.destroy(s->handle);
    free(s->plans);
    free(s);
}

static struct state *
state_of(struct sd_device *d)
{
    struct state *s = sd_device_slot(d, SD_SLOT_CUDNN);
    void *handle = NULL;
    int status;

    if (s)
        return s;
    if ((status = dnn.create(&handle)) || (status = dnn.set_stream(handle, sd_device_stream(d)))) {
        sd_warn(dnn.version, "cannot be used, our own kernels compute: status %d", status);
        dnn.library = NULL;
        return NULL;
    }
    s = calloc(1, sizeof *s);
    if (!s)
        sd_die("memory", "no room for cuDNN's state");
    s->device = d;
    s->handle = handle;
    sd_device_set_slot(d, SD_SLOT_CUDNN, s, close_state);
    return s;
}

static struct plan *
find_plan(struct state *s, const char *key)
{
    for (size_t i = 0; i < s->count; i++)
        if (strcmp(s->plans[i].key, key) == 0)
            return &s->plans[i];
    return NULL;
}

/* A plan for the graph, which is ended. */
static struct plan *
new_plan(struct state *s, const char *key, struct graph *g, const struct pack *pack)
{
    struct plan *p;

    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 64;
        s->plans = realloc(s->plans, s->room * sizeof *s->plans);
        if (!s->plans)
            sd_die("memory", "no room for %zu plans", s->room);
    }
    p = &s->plans[s->count++];
    memset(p, 0, sizeof *p);
    p->key = strdup(key);
    if (!p->key)
        sd_die("memory", "no room for a plan");
    if (!g->status)
        choose(s, p, g, pack);
    else
        sd_note(2, "%s: %s refused, status %d", key, g->failed, g->status);
    end_graph(g);
    return p;
}

/* Room behind the plan's workspace, 256-byte aligned. */
static size_t
round_up(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

static bool
run(struct state *s, struct plan *p, const struct pack *pack, void *workspace)
{
    if (!execute(s, p->exec, pack, workspace)) {
        sd_warn("cudnn", "refuses what it offered, our own kernel takes over: %s", p->key);
        dnn.unmake(p->exec);
        p->exec = NULL;
        return false;
    }
    sd_device_launched(s->device, "cudnn");
    return true;
}

/* -- calls ---------------------------------------------------------------------------------------------------------- */

static bool
own_conv(struct sd_device *d, const void *call, const struct pack *to)
{
    struct conv_call c = *(const struct conv_call *)call;

    c.to = result(to, TO);
    c.add = false;
    return c.kind != CONV_WEIGHT && conv_cuda(d, &c);       /* there the order is the file's */
}

static bool
own_attention(struct sd_device *d, const void *call, const struct pack *to)
{
    struct attention_call c = *(const struct attention_call *)call;

    c.o = result(to, O);
    c.lse = result(to, STATS);
    return !c.backward && attention_cuda(d, &c);
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

    if (sd_device_capability(d) == 0 || !takes_conv(c) || !open_library() || !(s = state_of(d)))
        return false;
    snprintf(key, sizeof key, "conv %d %s %lldx%lldx%lldx%lld>%lldx%lldx%lld k %dx%d/%d pad %d,%d,%d,%d%s%s%s%s", (int)c->kind,
             sd_dtype_name(c->dtype), (long long)c->batch, (long long)c->height, (long long)c->width, (long long)c->in,
             (long long)c->out_height, (long long)c->out_width, (long long)c->out, c->kernel_height, c->kernel_width, c->stride, c->top,
             c->left, c->bottom, c->right, forward && c->bias ? " bias" : "", forward && c->channel_add ? " channels" : "",
             forward && c->residual ? " residual" : "", vendor_tf32 ? " tf32" : "");
    if (c->kind != CONV_DATA)
        put(&pack, X, c->x);
    if (c->kind != CONV_WEIGHT)
        put(&pack, W, c->w);
    if (!forward)
        put(&pack, DY, c->dy);
    if (forward && c->bias)
        put(&pack, BIAS, c->bias);
    if (forward && c->channel_add)
        put(&pack, CHANNEL_ADD, c->channel_add);
    if (forward && c->residual)
        put(&pack, RESIDUAL, c->residual);
    put_result(&pack, TO, c->to, (size_t)count, type);
    if (!(p = find_plan(s, key))) {
        struct graph g = { .count = 0 };

        conv_graph(&g, c, s->handle);
        p = new_plan(s, key, &g, &pack);
    }
    if (!p->exec)
        return false;
    /* nothing says that a result may lie on an operand; sums and the file's order are made afterwards */
    aside = c->kind == CONV_WEIGHT || (!forward && c->add) || (forward && c->residual == c->to);
    workspace = sd_device_workspace(d, round_up((size_t)p->workspace) + (aside ? bytes : 0));
    if (aside)
        to = workspace + round_up((size_t)p->workspace);
    pack.at[pack.count - 1] = to;
    if (!run(s, p, &pack, workspace))
        return false;
    if (c->kind == CONV_WEIGHT)
        conv_taps_to_rows(d, c->to, to, c->out, c->in, (int64_t)c->kernel_height * c->kernel_width, c->add);
    else if (aside && forward)
        sd_device_copy(d, c->to, to, bytes);
    else if (aside)
        sd_device_rows(d, c->to, type, c->in, to, type, c->in, count / c->in, c->in, true);
    return true;
}

bool
cudnn_attention(struct sd_device *d, const struct attention_call *c)
{
    const float scale = (float)c->scale;
    const int64_t width = c->heads * c->d;
    struct { int64_t uid; void *to; int64_t pitch, rows; bool store; } gradient[] = {
        { D_Q, c->q_gradient, c->q_gradient_pitch, c->batch * c->L, c->q_store },
        { D_K, c->k_gradient, c->k_gradient_pitch, c->batch * c->S, c->k_store },
        { D_V, c->v_gradient, c->v_gradient_pitch, c->batch * c->S, c->v_store },
    };
    struct state *s;
    struct plan *p;
    struct pack pack = { .own = own_attention, .call = c };
    size_t room, at;
    char key[256], *workspace;
    int first;

    if (sd_device_capability(d) == 0 || !takes_attention(c) || !open_library()
            || dnn.number < since(c) || !(s = state_of(d)))
        return false;
    snprintf(key, sizeof key, "attention %s%s %lldx%lldx%lldx%lldx%lld ld %lld,%lld,%lld,%lld,%lld d %lld,%lld,%lld",
             c->backward ? "back " : c->lse ? "" : "only ", sd_dtype_name(c->dtype), (long long)c->batch, (long long)c->heads,
             (long long)c->L, (long long)c->S, (long long)c->d, (long long)c->q_pitch, (long long)c->k_pitch, (long long)c->v_pitch,
             (long long)c->o_pitch, (long long)c->o_gradient_pitch,
             (long long)gradient_pitch(c, c->q_gradient, c->q_gradient_pitch, c->q_store),
             (long long)gradient_pitch(c, c->k_gradient, c->k_gradient_pitch, c->k_store),
             (long long)gradient_pitch(c, c->v_gradient, c->v_gradient_pitch, c->v_store));
    put(&pack, Q, c->q);
    put(&pack, K, c->k);
    put(&pack, V, c->v);
    put(&pack, SCALE, &scale);
    if (c->backward)
        put(&pack, O, c->o);
    else
        put_result(&pack, O, c->o, (size_t)((c->batch * c->L - 1) * c->o_pitch + width), c->dtype);
    if (c->lse && c->backward)
        put(&pack, STATS, c->lse);
    else if (c->lse)
        put_result(&pack, STATS, c->lse, (size_t)(c->batch * c->heads * c->L), SD_F32);
    if (c->backward)
        put(&pack, D_O, c->o_gradient);
    first = pack.count;
    for (int i = 0; c->backward && i < 3; i++) {
        int64_t pitch = gradient_pitch(c, gradient[i].to, gradient[i].pitch, gradient[i].store);

        put_result(&pack, gradient[i].uid, gradient[i].to, (size_t)((gradient[i].rows - 1) * pitch + width), c->dtype);
    }
    if (!(p = find_plan(s, key))) {
        struct graph g = { .count = 0 };

        attention_graph(&g, c, s->handle);
        p = new_plan(s, key, &g, &pack);
    }
    if (!p->exec)
        return false;
    room = round_up((size_t)p->workspace);
    for (int i = first; i < pack.count; i++)
        if (!gradient[i - first].to || !gradient[i - first].store)
            room += round_up(pack.bytes[i]);
    workspace = sd_device_workspace(d, room);
    at = round_up((size_t)p->workspace);
    for (int i = first; i < pack.count; i++)
        if (!gradient[i - first].to || !gradient[i - first].store) {
            pack.at[i] = workspace + at;
            at += round_up(pack.bytes[i]);
        }
    if (!run(s, p, &pack, workspace))
        return false;
    for (int i = first; i < pack.count; i++)
        if (gradient[i - first].to && !gradient[i - first].store)
            sd_device_rows(d, gradient[i - first].to, c->dtype, gradient[i - first].pitch, pack.at[i], c->dtype, width,
                           gradient[i - first].rows, width, true);
    return true;
}

#endif
