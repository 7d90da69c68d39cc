/* layers.h - the layers models are made of: a weight found by module path, an adapter looked up under the same path.
 *
 * One rule: a model describes itself through these only, so that LoRA on any layer of any model needs no code in the
 * model. `name` is relative to the module being described (sd_path), "" for the module itself.  A weight that is
 * missing or has another shape becomes the graph's fault, named, and description goes on. */
#ifndef SD_MODEL_LAYERS_H
#define SD_MODEL_LAYERS_H

#include "adapter.h"
#include "ops.h"
#include "weights.h"

struct sd_module {
    struct sd_graph *graph;
    struct sd_weights *weights;
    const struct sd_adapters *adapters;
    size_t root; /* where the component's name begins in sd_path() */
};

/* sd_module_begin - start describing a component: its name ("unet") is pushed; sd_module_end pops it. */
struct sd_module sd_module_begin(struct sd_graph *g, struct sd_weights *weights, const struct sd_adapters *adapters);
void sd_module_end(struct sd_module *m);

/* sd_parameter - the leaf of weight <module path>.<name>. */
struct sd_tensor *sd_parameter(const struct sd_module *m, const char *name, int ndim, const int64_t *shape);

/* sd_linear - x [..., in] to [..., out], bias if there is one, residual (or NULL) added; then the adapters of that
 * path. Also the 1x1 convolution of a feature map. */
struct sd_tensor *sd_linear(const struct sd_module *m, const char *name, struct sd_tensor *x, int64_t out, bool bias,
                            struct sd_tensor *residual);
/* sd_linear_beside, sd_group_norm_beside - over the channels of x and of beside (or NULL), as if the two were one. */
struct sd_tensor *sd_linear_beside(const struct sd_module *m, const char *name, struct sd_tensor *x,
                                   struct sd_tensor *beside, int64_t out, bool bias, struct sd_tensor *residual);
struct sd_tensor *sd_group_norm_beside(const struct sd_module *m, const char *name, struct sd_tensor *x,
                                       struct sd_tensor *beside, int groups, double eps, bool silu);
/* sd_projections - linear layers over the same x, side by side: [..., sum of outs], one product where the kernels can
 * (ops.h), named `name` as a whole; their own names stand in `part`.  sd_linears - the same as tensors of their own, y[0]
 * to y[count - 1]: together on a device, one by one elsewhere.  count is at most SD_MAX_PROJECTIONS. */
struct sd_part {
    const char *name;
    int64_t out;
    bool bias;
};
struct sd_tensor *sd_projections(const struct sd_module *m, const char *name, struct sd_tensor *x,
                                 const struct sd_part *part, int count);
void sd_linears(const struct sd_module *m, const char *name, struct sd_tensor *x, const struct sd_part *part, int count,
                struct sd_tensor **y);
/* sd_conv2d - kernel x kernel convolution with bias; channel_add and residual as in ops.h. */
struct sd_tensor *sd_conv2d(const struct sd_module *m, const char *name, struct sd_tensor *x, int64_t out, int kernel,
                            struct sd_conv2d a, struct sd_tensor *channel_add, struct sd_tensor *residual);
struct sd_tensor *sd_group_norm(const struct sd_module *m, const char *name, struct sd_tensor *x, int groups,
                                double eps, bool silu);
struct sd_tensor *sd_layer_norm(const struct sd_module *m, const char *name, struct sd_tensor *x, double eps);

/* sd_same - padding that keeps the size, stride 1. */
static inline struct sd_conv2d
sd_same(int kernel)
{
    int p = (kernel - 1) / 2;

    return (struct sd_conv2d){ 1, p, p, p, p, 1 };
}

#endif
