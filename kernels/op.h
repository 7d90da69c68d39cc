/* op.h - what a kernel sees of a node.  Kernels are <op>_shape, <op>_prepare (optional), <op>_forward_cpu, <op>_backward_cpu, and
 * <op>_prepare_cuda, <op>_forward_cuda, <op>_backward_cuda of the CUDA twin (<op>.cu).
 *
 * shape     checks n->in, sets n->out by sd_out(), saved tensors by sd_save(), flops; attributes are in n->attr.
 *           A mismatch is sd_graph_fault(), then sd_out() with the best shape there is.
 * prepare   runs when the plan knows which gradients are wanted (n->din) and before any byte is allocated: choose the
 *           implementation, make vendor primitives, sd_param_reserve() packed weights, set n->scratch_bytes, sd_save()
 *           what only some gradients read.
 * forward   computes n->out (and n->saved) from n->in.  backward computes every n->din[i] that is not NULL from n->dout
 *           and what ops.def says it reads; n->din_store[i]: store, else add.  Neither allocates.
 * Parallel loops are cut by the shape, never by the thread count; reductions sum in a fixed order.
 * Inputs may be pitched only where ops.def says so (rows n->in[i]->pitch apart); a din has the pitch of its own tensor.
 *
 * dtypes: activations (and their gradients) are F32, BF16 or F16, all of one node alike; the gradients of parameters are F32,
 * and saved tensors, but for what a CUDA twin's prepare saves.  The C loops see F32 alone: around them, run.c converts.  A
 * CUDA twin takes all three and sums in F32.
 * On a device: every data pointer is device memory.  prepare_cuda announces by sd_param_want() the forms of the weights (W_IN)
 * that it will read by sd_param_on(); parameters that are ordinary operands are there as F32 rows at tensor->data. */
#ifndef SD_OP_H
#define SD_OP_H

#include <string.h>

#include "graph.h"
#include "param.h"
#include "real.h"

#ifdef __cplusplus
extern "C" {
#endif

enum sd_op {
#define OP(name, ...) SD_OP_##name,
#include "ops.def"
#undef OP
    SD_OP_COUNT
};

enum { SD_MAX_SAVED = 2 };

struct sd_node {
    enum sd_op op;
    struct sd_graph *graph;
    const char *path;                           /* module path */
    int n_in;
    struct sd_tensor *in[SD_MAX_IN];            /* NULL where an optional input is absent */
    struct sd_tensor *out;
    struct sd_tensor *saved[SD_MAX_SAVED];      /* what the gradient needs besides inputs and output */
    const void *attr;                           /* copy of the struct given to sd_apply */
    double flops, backward_flops;               /* of matrix products only; backward for the wanted gradients (prepare) */
    size_t scratch_bytes;                       /* wanted while forward or backward runs */
    size_t own_scratch;                         /* of these, the op's own; the rest is run_convert.c's */
    void *scratch;                              /* 64-byte aligned, given while it runs */
    bool training;                              /* some gradient flows through this node */
    bool apart;                                 /* set by prepare: out may lie on no input, whatever the table says */
    bool bf16;                                  /* operands of products are rounded: sd_operand() */
    struct sd_tensor *dout;
    struct sd_tensor *din[SD_MAX_IN];           /* NULL: not wanted */
    bool din_store[SD_MAX_IN];
    void *vendor;                               /* vendor primitives; freed by vendor_free when the graph dies */
    void (*vendor_free)(void *);
    size_t index;                               /* in the order described */
    int block;                                  /* unit of recomputation, 0 for none */
    bool converted;                             /* on the CPU, and some operand is BF16 or F16: run_convert.c */
};

/* What a gradient reads, for the table: inputs by index, the output, the saved tensors. */
#define R_IN(i)  (1u << (i))
#define R_OUT    (1u << 8)
#define R_SAVED  (1u << 9)
#define R_NONE   (1u << 10)     /* there is no such gradient: sd_bug() when it is wanted */

/* Flags */
#define F_CHEAP    1u       /* output is worth recomputing rather than keeping for the backward pass */
#define F_NO_GRAD  2u       /* no gradient flows through (schedules, noise) */
#define I_IN(i)    (65536u << (i))  /* output may take the bytes of in[i] when that dies here: n->out->data == n->in[i]->data */
#define D_IN(i)    (512u << (i))    /* the gradient of in[i] is dout itself: where it is stored it may lie there, and nothing is done */
#define P_IN(i)    (16u << (i))     /* in[i] (and its gradient) may be pitched */
#define W_IN(i)    (1u << (24 + (i)))   /* in[i], when it is a whole parameter, is read in a form that the kernel asks for itself */

struct sd_op_info {
    const char *name;
    int n_in;
    void (*shape)(struct sd_node *n);
    void (*prepare)(struct sd_node *n);         /* NULL: none */
    void (*forward_cpu)(struct sd_node *n);
    void (*backward_cpu)(struct sd_node *n);
    void (*prepare_cuda)(struct sd_node *n);        /* these three NULL: there is no CUDA twin */
    void (*forward_cuda)(struct sd_node *n);
    void (*backward_cuda)(struct sd_node *n);
    unsigned flags;
    unsigned reads[SD_MAX_IN];                  /* by gradient */
};
extern const struct sd_op_info sd_ops[SD_OP_COUNT];

/* sd_apply - add a node.  in: sd_ops[op].n_in tensors (NULL = absent); attr is copied.  Inputs that may not be pitched are
 * made dense by a counted copy.  Returns the output. */
struct sd_tensor *sd_apply(struct sd_graph *g, enum sd_op op, struct sd_tensor *const *in, const void *attr, size_t attr_size);

/* For shape rules; sd_save for prepare too. */
void sd_out(struct sd_node *n, enum sd_dtype dtype, int ndim, const int64_t *shape);
void sd_out_like(struct sd_node *n, const struct sd_tensor *x);
void sd_save(struct sd_node *n, int index, enum sd_dtype dtype, int ndim, const int64_t *shape);
/* sd_expect_shape - fault unless x has this shape (-1 matches anything): "to_k: weight [320, 768], expected [320, 1024]". */
bool sd_expect_shape(struct sd_node *n, const char *what, const struct sd_tensor *x, int ndim, const int64_t *shape);

/* What a leaf weight input holds: sd_values(n->in[1]) is row-major real for parameters and ordinary tensors alike (CPU). */
static inline const real *
sd_values(const struct sd_tensor *x)
{
    return x->param && !x->base ? sd_param_values(x->param) : (const real *)x->data;
}

void linear_prepare(struct sd_node *n);
void projections_prepare(struct sd_node *n);
void conv2d_prepare(struct sd_node *n);
void group_norm_prepare(struct sd_node *n);
void layer_norm_prepare(struct sd_node *n);
void attention_prepare(struct sd_node *n);
#define OP(name, n_in, prep, twins, flags, ...) \
    void name##_shape(struct sd_node *n); void name##_forward_cpu(struct sd_node *n); void name##_backward_cpu(struct sd_node *n); \
    void name##_prepare_cuda(struct sd_node *n); void name##_forward_cuda(struct sd_node *n); void name##_backward_cuda(struct sd_node *n);
#include "ops.def"
#undef OP

/* For shape rules: fault unless x (NULL is fine) holds what the node's first input holds. */
bool sd_expect_dtype(struct sd_node *n, const char *what, const struct sd_tensor *x);

#ifndef __cplusplus

/* sd_fast - may vendor and vector paths be used?  False in the f64 build and while sd_plain is set (tests: the C loops are the
 * definition).  Kernels: `if (sd_fast() && onednn_linear_forward(n)) return;` */
extern bool sd_plain;
static inline bool
sd_fast(void)
{
    return SD_REAL_IS_FLOAT && !sd_plain;
}

/* sd_operand - what a product of this node sees of a number: itself, or the nearest bf16 (ties to even; NaN stays NaN). */
static inline real
sd_operand(const struct sd_node *n, real x)
{
    union { float f; uint32_t bits; } v = { (float)x };

    if (!n->bf16)
        return x;
    v.bits = v.f != v.f ? v.bits | 0x10000 : (v.bits + 0x7fff + (v.bits >> 16 & 1));
    v.bits &= 0xffff0000u;
    return (real)v.f;
}

/* sd_din - where the gradient of input i is added; zeroed first when it is to be stored; NULL when it is not wanted. */
static inline real *
sd_din(const struct sd_node *n, int i)
{
    const struct sd_tensor *d = n->din[i];

    for (int64_t r = 0; d && n->din_store[i] && r < sd_rows(d); r++)
        memset((real *)d->data + r * d->pitch, 0, (size_t)sd_cols(d) * sizeof(real));
    return d ? d->data : NULL;
}

/* Vector code: one source <name>_simd.c, compiled for sse4, avx2, avx512 with -DSD_ISA=...; each defines SD_V(f).
 * SD_V_DECLARE(void, f, (args)) declares the three; SD_V_CALL(f)(args) calls the one chosen at start (SD_ISA=sse4|avx2|avx512
 * in the environment forces one; asking for what the machine lacks is status 2).
 * SD_ISA_AVX512BF16 is AVX-512 with products of bf16: the same code but for functions of its own, the same bits in f32. */
enum sd_isa { SD_ISA_SSE4, SD_ISA_AVX2, SD_ISA_AVX512, SD_ISA_AVX512BF16 };
enum sd_isa sd_isa(void);
const char *sd_isa_name(void);              /* "avx512" with bf16 or without */
enum sd_isa sd_isa_best(void);              /* what the machine has */
void sd_isa_force(enum sd_isa isa);         /* tests */
#define SD_V_JOIN2(a, b) a##_##b
#define SD_V_JOIN(a, b)  SD_V_JOIN2(a, b)
#define SD_V(f)          SD_V_JOIN(f, SD_ISA)
#define SD_V_DECLARE(type, f, args) type f##_sse4 args; type f##_avx2 args; type f##_avx512 args
#define SD_V_CALL(f)     (sd_isa() >= SD_ISA_AVX512 ? f##_avx512 : sd_isa() == SD_ISA_AVX2 ? f##_avx2 : f##_sse4)

#else
}
#endif
#endif
