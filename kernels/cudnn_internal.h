/* cudnn_internal.h - cuDNN's words, and what cudnn*.c share.
 *
 * One rule: a graph remembers its first failure, and nothing is asked of the library after it. */
#ifndef SD_CUDNN_INTERNAL_H
#define SD_CUDNN_INTERNAL_H

#include "cudnn.h"
#include "diag.h"

/* -- the library's words -------------------------------------------------------------------------------------------- */

enum {
    TYPE_HANDLE = 0, TYPE_DATA_TYPE = 1, TYPE_BOOLEAN = 2, TYPE_INT64 = 3, TYPE_FLOAT = 4, TYPE_VOID_PTR = 6, TYPE_CONVOLUTION_MODE = 7,
    TYPE_HEUR_MODE = 8, TYPE_NUMERICAL_NOTE = 11, TYPE_POINTWISE_MODE = 14, TYPE_DESCRIPTOR = 15, TYPE_REDUCTION_OPERATOR = 18,
    TYPE_BEHAVIOR_NOTE = 19,
    TYPE_CHAR = 24
};
enum {
    POINTWISE = 0, CONVOLUTION = 1, ENGINE = 2, ENGINECFG = 3, ENGINEHEUR = 4, EXECUTION_PLAN = 5, OPERATION_FORWARD = 10,
    OPERATION_WEIGHT = 11, OPERATION_DATA = 12, OPERATION_POINTWISE = 13, OPERATIONGRAPH = 15, VARIANT_PACK = 16, TENSOR = 17, DEVICEPROP = 38,
    MATMUL = 18, OPERATION_MATMUL = 19, REDUCTION = 21, OPERATION_REDUCTION = 22, OPERATION_RESHAPE = 31, OPERATION_SDPA_FORWARD = 41
};
enum {
    POINTWISE_MODE = 0, POINTWISE_MATH_PREC = 1, CONVOLUTION_COMP_TYPE = 100, CONVOLUTION_CONV_MODE = 101, CONVOLUTION_DILATIONS = 102,
    CONVOLUTION_FILTER_STRIDES = 103, CONVOLUTION_POST_PADDINGS = 104, CONVOLUTION_PRE_PADDINGS = 105, CONVOLUTION_SPATIAL_DIMS = 106,
    ENGINEHEUR_MODE = 200, ENGINEHEUR_OPERATION_GRAPH = 201, ENGINEHEUR_RESULTS = 202, ENGINEHEUR_DEVICEPROP = 204, ENGINECFG_ENGINE = 300, ENGINECFG_WORKSPACE_SIZE = 303,
    EXECUTION_PLAN_HANDLE = 400, EXECUTION_PLAN_ENGINE_CONFIG = 401, EXECUTION_PLAN_WORKSPACE_SIZE = 402,
    EXECUTION_PLAN_JSON = 405, EXECUTION_PLAN_DEVICEPROP = 407,
    FORWARD_ALPHA = 700, FORWARD_BETA = 701, FORWARD_CONV_DESC = 702, FORWARD_W = 703, FORWARD_X = 704, FORWARD_Y = 705,
    DATA_ALPHA = 706, DATA_BETA = 707, DATA_CONV_DESC = 708, DATA_W = 709, DATA_DX = 710, DATA_DY = 711,
    WEIGHT_ALPHA = 712, WEIGHT_BETA = 713, WEIGHT_CONV_DESC = 714, WEIGHT_DW = 715, WEIGHT_X = 716, WEIGHT_DY = 717,
    OPERATION_PW_DESCRIPTOR = 750, OPERATION_PW_X = 751, OPERATION_PW_B = 752, OPERATION_PW_Y = 753,
    GRAPH_HANDLE = 800, GRAPH_OPS = 801,
    TENSOR_ALIGNMENT = 900, TENSOR_DATA_TYPE = 901, TENSOR_DIMENSIONS = 902, TENSOR_STRIDES = 903, TENSOR_UNIQUE_ID = 906,
    TENSOR_IS_VIRTUAL = 907, TENSOR_IS_BY_VALUE = 908,
    PACK_UNIQUE_IDS = 1000, PACK_DATA_POINTERS = 1001, PACK_WORKSPACE = 1003,
    ENGINE_GLOBAL_INDEX = 1301, ENGINE_NUMERICAL_NOTE = 1303, ENGINE_BEHAVIOR_NOTE = 1305, DEVICEPROP_JSON = 2702,
    MATMUL_COMP_TYPE = 1500, OPERATION_MATMUL_A = 1520, OPERATION_MATMUL_B = 1521, OPERATION_MATMUL_C = 1522,
    OPERATION_MATMUL_DESC = 1523, REDUCTION_OPERATOR = 1600, REDUCTION_COMP_TYPE = 1601, REDUCTION_X = 1610, REDUCTION_Y = 1611,
    REDUCTION_DESC = 1612, RESHAPE_X = 2200, RESHAPE_Y = 2201,
    SDPA_F_Q = 2800, SDPA_F_K, SDPA_F_V, SDPA_F_O, SDPA_F_STATS, SDPA_F_SCALE
};
enum { DATA_FLOAT = 0, DATA_HALF = 2, DATA_BFLOAT16 = 9, CROSS_CORRELATION = 1, REDUCTION_ADD = 0, HEUR_FALLBACK = 2, HEUR_A = 3 };
enum { POINTWISE_ADD = 0, POINTWISE_MULTIPLY = 1, POINTWISE_SUBTRACT = 9, POINTWISE_EXP = 13, POINTWISE_IDENTITY = 21 };
enum { NOTE_DOWN_CONVERT_INPUTS = 1, NOTE_REDUCED_PRECISION_REDUCTION = 2, NOTE_FFT = 3, NOTE_NONDETERMINISTIC = 4, NOTE_WINOGRAD = 5, NOTES = 10 };
enum { BEHAVIOR_RUNTIME_COMPILATION = 0, BEHAVIORS = 8 };
enum { SDPA_FORWARD_SINCE = 91301, MANY = 64, ALIGNED = 16 };
/* Of configurations at most so many are tried, of one engine at most so many; after so long no more plans are begun. */
enum { TRIED = 12, SAME = 4, SECONDS = 1 };

/* -- the library: cudnn.c ------------------------------------------------------------------------------------------- */

struct dnn {
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
};
extern struct dnn dnn;
bool dnn_open(void);

/* -- graphs: cudnn.c ------------------------------------------------------------------------------------------------ */

/* Everything made for one graph, ended together; the first failure is remembered and nothing is asked after it. */
struct graph {
    void *made[256], *operation[24], *graph, *device;
    int count, operations, tensors;
    void *tensor[CUDNN_MOST_TENSORS];
    int status;
    const char *failed;
};
void *dnn_make(struct graph *g, int kind, const char *what);
void  dnn_set(struct graph *g, void *d, int name, int type, int64_t count, const void *values);
void  dnn_set_number(struct graph *g, void *d, int name, int64_t value);
void  dnn_set_word(struct graph *g, void *d, int name, int type, int value);
void  dnn_set_part(struct graph *g, void *d, int name, void *part);
void  dnn_finish(struct graph *g, void *d, const char *what);
/* y = x op b; b NULL: of one operand */
void  dnn_pointwise(struct graph *g, int mode, void *x, void *b, void *y, const char *what);
void  dnn_add_operation(struct graph *g, void *o, const char *what);
void  dnn_close(struct graph *g, void *handle);        /* no more operations; handle NULL: no card */
void  dnn_end(struct graph *g);

enum tensor_kind { IN_MEMORY, HIDDEN, BY_VALUE };
int   dnn_type(enum sd_dtype t);
void *dnn_tensor(struct graph *g, int64_t uid, int type, const int64_t dims[4], const int64_t strides[4], enum tensor_kind kind);

/* -- engines: cudnn_engines.c --------------------------------------------------------------------------------------- */

/* dnn_propose - the configurations that the library proposes, best first, the preferred ones and then those to fall back on; they live
 * as long as g.
 * dnn_engine - which engine: its number, or -1 where it is none for us.
 * dnn_build - handle: of the card; else device: a described one. */
int     dnn_propose(struct graph *g, void *configs[MANY], int *preferred);
int64_t dnn_engine(void *config);
void   *dnn_build(void *handle, void *device, void *config, int64_t *workspace);
/* dnn_text - a plan as text, with its compiled code; NULL where the library makes none of it.
 * dnn_build_from - the plan again, without compiling; NULL where the library does not take it. */
char   *dnn_text(struct sd_scope *s, void *exec, size_t *length);
void   *dnn_build_from(void *handle, void *device, const char *text, size_t length, int64_t *workspace);
/* What the library holds of the graph, which is ended; json: a card of which only the description is here, or NULL. */
bool    dnn_read_back(struct graph *g, const char *json, struct cudnn_asked *asked, const char **why);

#if SD_WITH_CUDA
/* -- plans: cudnn_plans.c ------------------------------------------------------------------------------------------- */

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
    bool inner[CUDNN_MOST_TENSORS];         /* of results: only the library's, our own kernel has none like it */
    bool (*own)(struct sd_device *d, const void *call, const struct pack *to);      /* the same by our own kernel */
    bool own_timed;                         /* which may be the faster one, and can be recorded */
    const void *call;
};
void   dnn_put(struct pack *p, int64_t uid, const void *at);
void   dnn_put_result(struct pack *p, int64_t uid, void *at, size_t count, enum sd_dtype type);
void  *dnn_result(const struct pack *p, int64_t uid);
struct state *dnn_state(struct sd_device *d);          /* NULL: the library cannot be used */
struct plan  *dnn_find_plan(struct state *s, const char *key);
struct plan  *dnn_new_plan(struct state *s, const char *key, struct graph *g, const struct pack *pack);    /* g is ended */
size_t dnn_round_up(size_t bytes);      /* room behind a plan's workspace, 256-byte aligned */
bool   dnn_run(struct state *s, struct plan *p, const struct pack *pack, void *workspace);
#endif

#endif
