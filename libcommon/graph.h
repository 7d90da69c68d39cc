/* graph.h - describe a network: tensors are handles in a graph, nothing is computed or allocated here.
 *
 * One rule: a tensor belongs to the graph it was made in and dies with it; shapes are checked when described and a
 * mismatch is named by module path (sd_graph_fault: the model does not fit its files or its input).
 * Shapes are row-major; pictures and latents are NHWC, so a feature map [B,H,W,C] is a token matrix [B,H*W,C].
 * A tensor is rows of shape[ndim-1] elements; consecutive rows lie `pitch` elements apart. */
#ifndef SD_GRAPH_H
#define SD_GRAPH_H

#include "diag.h"
#include "dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { SD_MAX_DIMS = 5, SD_MAX_IN = 6 };

struct sd_graph;
struct sd_node;
struct sd_param;
struct sd_device;

struct sd_tensor {
    struct sd_graph *graph;
    struct sd_node *node;           /* computes it; NULL for inputs, parameters and views */
    struct sd_param *param;         /* leaf that stands for a parameter */
    struct sd_tensor *base;         /* view: of this tensor, never itself a view */
    int64_t offset;                 /* of a view's first element in base, in elements */
    enum sd_dtype dtype;            /* SD_F32 means `real`: float, or double in the gradient tests */
    int ndim;
    int64_t shape[SD_MAX_DIMS];
    int64_t pitch;                  /* elements between rows; shape[ndim-1] when dense */
    size_t numel;
    const char *name;               /* "noisy_latents", or the module path of its node */
    void *data;                     /* valid only while a planned step that uses it runs (and for kept outputs after) */
    struct sd_storage *storage;     /* the planner's */
    struct sd_tensor *views, *next_view;    /* of a base: its views, so that they get addresses together */
};

struct sd_graph *sd_graph_new(void);
void sd_graph_free(struct sd_graph *g);
struct sd_scope *sd_graph_scope(struct sd_graph *g);

/* How a graph computes; all zero, as a new graph has it: on the CPU, in f32. */
struct sd_compute {
    struct sd_device *device;       /* NULL: the CPU */
    enum sd_dtype activations;      /* what they are held in: SD_F32, SD_BF16, SD_F16; networks cast what comes in and goes out */
    enum sd_dtype products;         /* sd_graph_products(); SD_F32 on a device */
    bool tf32;                      /* on a device, for all graphs: products of F32 may round their operands to tf32 */
};
/* sd_graph_on - before anything is described. */
void sd_graph_on(struct sd_graph *g, const struct sd_compute *c);
struct sd_device *sd_graph_device(const struct sd_graph *g);
enum sd_dtype sd_graph_activations(const struct sd_graph *g);

/* sd_graph_products - what the operands of the matrix products described from here on (linear, conv2d, attention and their
 * gradients) are rounded to: SD_F32 (as a new graph has it) or SD_BF16.  Sums, and all that is kept, stay f32. */
void sd_graph_products(struct sd_graph *g, enum sd_dtype dtype);

/* Inputs: fed before each run. */
struct sd_tensor *sd_input(struct sd_graph *g, const char *name, enum sd_dtype dtype, int ndim, const int64_t *shape);
/* sd_use - the leaf for a parameter (one per graph and parameter). */
struct sd_tensor *sd_use(struct sd_graph *g, struct sd_param *p);
/* sd_keep - this tensor's value is wanted after the run (an output). */
struct sd_tensor *sd_keep(struct sd_tensor *x);

/* Views, no bytes moved.  sd_slice: axis 0 (dense x) or the last axis (columns).  sd_reshape: dense x, or one that keeps
 * the last axis. */
struct sd_tensor *sd_slice(struct sd_tensor *x, int axis, int64_t begin, int64_t length);
struct sd_tensor *sd_reshape(struct sd_tensor *x, int ndim, const int64_t *shape);

/* Module path of what is described next: push "down_blocks.0", describe, pop.  Blocks are the units of recomputation:
 * between begin and end everything can be redone from what enters. */
void sd_path_push(struct sd_graph *g, const char *format, ...) SD_PRINTF(2, 3);
void sd_path_pop(struct sd_graph *g);
const char *sd_path(struct sd_graph *g);
/* sd_graph_find - the output of the last node described at this very path, NULL when there is none (tests, debugging). */
struct sd_tensor *sd_graph_find(struct sd_graph *g, const char *path);
void sd_block_begin(struct sd_graph *g);
void sd_block_end(struct sd_graph *g);

/* sd_graph_fault - shapes that do not fit, found while describing: remembered (first one wins) with the module path;
 * description goes on with what can be, planning then fails with this reason.  sd_graph_ok tells. */
void sd_graph_fault(struct sd_graph *g, const char *format, ...) SD_PRINTF(2, 3);
bool sd_graph_ok(struct sd_graph *g);      /* false: sd_reason() has the text */

static inline int64_t
sd_cols(const struct sd_tensor *x)
{
    return x->ndim ? x->shape[x->ndim - 1] : 1;
}
static inline int64_t
sd_rows(const struct sd_tensor *x)
{
    return sd_cols(x) ? (int64_t)x->numel / sd_cols(x) : 0;
}
static inline bool
sd_dense(const struct sd_tensor *x)
{
    return x->pitch == sd_cols(x) || sd_rows(x) <= 1;
}
size_t sd_element_size(enum sd_dtype dtype);    /* as held by graphs: SD_F32 is sizeof(real) */
/* May a gradient flow through a tensor of this type? */
static inline bool
sd_dtype_is_real(enum sd_dtype dtype)
{
    return dtype == SD_F32 || dtype == SD_BF16 || dtype == SD_F16;
}

#ifdef __cplusplus
}
#endif
#endif
