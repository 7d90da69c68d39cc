/* layers.c - linear, convolution and norms by module path. */
#include "layers.h"

#include <stdlib.h>
#include <string.h>

struct sd_module
sd_module_begin(struct sd_graph *g, struct sd_weights *weights, const struct sd_adapters *adapters)
{
    size_t root = strlen(sd_path(g));

    sd_path_push(g, "%s", sd_weights_name(weights));
    return (struct sd_module){ g, weights, adapters, root ? root + 1 : 0 };
}

void
sd_module_end(struct sd_module *m)
{
    sd_path_pop(m->graph);
}

struct sd_tensor *
sd_parameter(const struct sd_module *m, const char *name, int ndim, const int64_t *shape)
{
    const char *module = sd_path(m->graph) + m->root + strlen(sd_weights_name(m->weights));
    char path[512];
    struct sd_param *p;

    snprintf(path, sizeof path, "%s%s%s", *module ? module + 1 : "", *module ? "." : "", name);
    p = sd_weights_get(m->weights, path, ndim, shape);
    if (!p) {
        const char *why = sd_reason(), *here = sd_path(m->graph) + m->root;
        size_t n = strlen(here);

        if (strncmp(why, here, n) == 0 && why[n] == '.') /* the graph says the module itself */
            why += n + 1;
        sd_graph_fault(m->graph, "%s", why);
        p = sd_param_new(sd_graph_scope(m->graph), path, SD_F32, ndim, shape, NULL);
    }
    return sd_use(m->graph, p);
}

static int
enter(const struct sd_module *m, const char *name)
{
    if (*name)
        sd_path_push(m->graph, "%s", name);
    return *name != 0;
}

static void
leave(const struct sd_module *m, int entered)
{
    if (entered)
        sd_path_pop(m->graph);
}

/* y + scale * up(down(x)): the product with `up` is added to y as its residual, so that the only further pass is over
 * the narrow tensor between them. */
static struct sd_tensor *
adapt(const struct sd_module *m, struct sd_tensor *x, struct sd_tensor *beside, struct sd_tensor *y,
      const struct sd_conv2d *a)
{
    struct sd_graph *g = m->graph;
    struct sd_adapter *l = sd_adapters_find(m->adapters, sd_path(g) + m->root);

    for (; l; l = l->next) {
        struct sd_tensor *u, *down = sd_use(g, l->down);

        l->used = true;
        sd_path_push(g, "lora_down");
        u = a ? sd_op_conv2d(g, x, down, NULL, NULL, NULL, *a) : sd_op_linear_beside(g, x, beside, down, NULL, NULL);
        if (l->scale)
            u = sd_op_scale(g, u, sd_use(g, l->scale));
        sd_path_pop(g);
        sd_path_push(g, "lora_up");
        y = sd_op_linear(g, u, sd_use(g, l->up), NULL, y);
        sd_path_pop(g);
    }
    return y;
}

/* A layer as a part of sd_op_projections.  false: it cannot be one, its weight or several adapters on it train. */
static bool
as_projection(const struct sd_module *m, const struct sd_tensor *weight, const struct sd_tensor *bias,
              struct sd_projection *p)
{
    const struct sd_adapter *l = NULL;

    if (weight->param->trainable || (bias && bias->param->trainable)
        || !sd_adapters_as_one(m->adapters, sd_path(m->graph) + m->root, &l))
        return false;
    *p = (struct sd_projection){ weight->param, bias ? bias->param : NULL, NULL, NULL, NULL };
    if (l) {
        p->down = l->down;
        p->up = l->up;
        p->scale = l->scale;
    }
    return true;
}

/* On a device adapters ride in the columns of their layer's product. */
static bool
together(const struct sd_module *m)
{
    const char *off = getenv("SD_TOGETHER");

    return sd_graph_device(m->graph) && !(off && *off == '0');
}

static int64_t
channels_of(const struct sd_tensor *x, const struct sd_tensor *beside)
{
    return sd_cols(x) + (beside ? sd_cols(beside) : 0);
}

struct sd_tensor *
sd_linear_beside(const struct sd_module *m, const char *name, struct sd_tensor *x, struct sd_tensor *beside,
                 int64_t out, bool bias, struct sd_tensor *residual)
{
    int in = enter(m, name);
    struct sd_tensor *weight = sd_parameter(m, "weight", 2, (int64_t[]){ out, channels_of(x, beside) });
    struct sd_tensor *b = bias ? sd_parameter(m, "bias", 1, &out) : NULL;
    struct sd_projection one;
    struct sd_tensor *y;

    if (!beside && together(m) && sd_adapters_find(m->adapters, sd_path(m->graph) + m->root)
        && as_projection(m, weight, b, &one))
        y = sd_op_projections(m->graph, x, &(struct sd_projections){ 1, &one }, residual);
    else
        y = adapt(m, x, beside, sd_op_linear_beside(m->graph, x, beside, weight, b, residual), NULL);
    leave(m, in);
    return y;
}

/* One product, or NULL where it cannot be. */
static struct sd_tensor *
one_product(const struct sd_module *m, const char *name, struct sd_tensor *x, const struct sd_part *part, int count)
{
    struct sd_projection p[SD_MAX_PROJECTIONS];
    struct sd_tensor *y = NULL;
    bool fit = count <= SD_MAX_PROJECTIONS;

    for (int i = 0; fit && i < count; i++) {
        int in = enter(m, part[i].name);
        struct sd_tensor *weight = sd_parameter(m, "weight", 2, (int64_t[]){ part[i].out, sd_cols(x) });
        struct sd_tensor *bias = part[i].bias ? sd_parameter(m, "bias", 1, &part[i].out) : NULL;

        fit = as_projection(m, weight, bias, &p[i]);
        leave(m, in);
    }
    if (fit) {
        int in = enter(m, name);

        y = sd_op_projections(m->graph, x, &(struct sd_projections){ count, p }, NULL);
        leave(m, in);
    }
    return y;
}

struct sd_tensor *
sd_projections(const struct sd_module *m, const char *name, struct sd_tensor *x, const struct sd_part *part, int count)
{
    struct sd_tensor *y = one_product(m, name, x, part, count);

    if (y)
        return y;
    for (int i = 0; i < count; i++) {
        struct sd_tensor *one = sd_linear(m, part[i].name, x, part[i].out, part[i].bias, NULL);

        y = y ? sd_op_concat(m->graph, y, one) : one;
    }
    return y;
}

void
sd_linears(const struct sd_module *m, const char *name, struct sd_tensor *x, const struct sd_part *part, int count,
           struct sd_tensor **y)
{
    struct sd_tensor *all = together(m) ? one_product(m, name, x, part, count) : NULL;
    int64_t at = 0;

    for (int i = 0; i < count; at += part[i++].out)
        y[i] = all ? sd_slice(all, all->ndim - 1, at, part[i].out)
                   : sd_linear(m, part[i].name, x, part[i].out, part[i].bias, NULL);
}

struct sd_tensor *
sd_linear(const struct sd_module *m, const char *name, struct sd_tensor *x, int64_t out, bool bias,
          struct sd_tensor *residual)
{
    return sd_linear_beside(m, name, x, NULL, out, bias, residual);
}

struct sd_tensor *
sd_conv2d(const struct sd_module *m, const char *name, struct sd_tensor *x, int64_t out, int kernel, struct sd_conv2d a,
          struct sd_tensor *channel_add, struct sd_tensor *residual)
{
    int in = enter(m, name);
    struct sd_tensor *weight = sd_parameter(m, "weight", 4, (int64_t[]){ out, sd_cols(x), kernel, kernel });
    struct sd_tensor *bias = sd_parameter(m, "bias", 1, &out);
    struct sd_tensor *y = adapt(m, x, NULL, sd_op_conv2d(m->graph, x, weight, bias, channel_add, residual, a), &a);

    leave(m, in);
    return y;
}

struct sd_tensor *
sd_group_norm_beside(const struct sd_module *m, const char *name, struct sd_tensor *x, struct sd_tensor *beside,
                     int groups, double eps, bool silu)
{
    int in = enter(m, name);
    int64_t channels = channels_of(x, beside);
    struct sd_tensor *weight = sd_parameter(m, "weight", 1, &channels), *bias = sd_parameter(m, "bias", 1, &channels);
    struct sd_tensor *y = sd_op_group_norm_beside(m->graph, x, beside, weight, bias, groups, eps, silu);

    leave(m, in);
    return y;
}

struct sd_tensor *
sd_group_norm(const struct sd_module *m, const char *name, struct sd_tensor *x, int groups, double eps, bool silu)
{
    return sd_group_norm_beside(m, name, x, NULL, groups, eps, silu);
}

struct sd_tensor *
sd_layer_norm(const struct sd_module *m, const char *name, struct sd_tensor *x, double eps)
{
    int in = enter(m, name);
    int64_t width = sd_cols(x);
    struct sd_tensor *weight = sd_parameter(m, "weight", 1, &width), *bias = sd_parameter(m, "bias", 1, &width);
    struct sd_tensor *y = sd_op_layer_norm(m->graph, x, weight, bias, eps);

    leave(m, in);
    return y;
}
