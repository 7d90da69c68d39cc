/* graph - tensors, nodes, views, module paths.  The table of ops is expanded here. */
#include "graph_internal.h"

#include "device.h"

#include <stdlib.h>
#include <string.h>

#if SD_WITH_CUDA && SD_REAL_IS_FLOAT
#define TWIN_CUDA(name) name##_prepare_cuda, name##_forward_cuda, name##_backward_cuda
#else
#define TWIN_CUDA(name) NULL, NULL, NULL
#endif
#define TWIN_CPU(name)  NULL, NULL, NULL

const struct sd_op_info sd_ops[SD_OP_COUNT] = {
#define OP(name, n_in, prep, twins, flags, ...) \
    { #name, n_in, name##_shape, prep, name##_forward_cpu, name##_backward_cpu, TWIN_##twins(name), flags, { __VA_ARGS__ } },
#include "ops.def"
#undef OP
};

size_t
sd_element_size(enum sd_dtype dtype)
{
    return dtype == SD_F32 ? sizeof(real) : sd_dtype_size(dtype);
}

void
sd_array_push(struct sd_scope *s, struct sd_array *a, void *item)
{
    if (a->count == a->room) {
        size_t room = a->room ? 2 * a->room : 64;
        void **grown = sd_alloc_array(s, room, sizeof *grown);

        if (a->count)
            memcpy(grown, a->item, a->count * sizeof *grown);
        a->item = grown;
        a->room = room;
    }
    a->item[a->count++] = item;
}

static const char *
shape_text(char *text, size_t room, int ndim, const int64_t *shape)
{
    size_t n = 0;

    text[0] = 0;
    for (int i = 0; i < ndim && n < room; i++)
        n += (size_t)snprintf(text + n, room - n, shape[i] < 0 ? "%s*" : "%s%lld", i ? ", " : "", (long long)shape[i]);
    return text;
}

struct sd_graph *
sd_graph_new(void)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_graph *g = sd_alloc(s, sizeof *g);

    g->scope = s;
    g->products = SD_F32;
    return g;
}

void
sd_graph_products(struct sd_graph *g, enum sd_dtype dtype)
{
    if (dtype != SD_F32 && dtype != SD_BF16)
        sd_bug("graph", "products of %s", sd_dtype_name(dtype));
    g->products = dtype;
}

void
sd_graph_free(struct sd_graph *g)
{
    if (!g)
        return;
    for (size_t i = 0; i < g->nodes.count; i++) {
        struct sd_node *n = g->nodes.item[i];

        if (n->vendor && n->vendor_free)
            n->vendor_free(n->vendor);
    }
    sd_scope_close(g->scope);
}

struct sd_scope *
sd_graph_scope(struct sd_graph *g)
{
    return g->scope;
}

void
sd_graph_on(struct sd_graph *g, const struct sd_compute *c)
{
    if (g->nodes.count || !sd_dtype_is_real(c->activations))
        sd_bug("graph", "device and dtype %s come before the first node", sd_dtype_name(c->activations));
    g->device = c->device;
    g->activations = c->activations;
    sd_graph_products(g, c->products);
}

struct sd_device *
sd_graph_device(const struct sd_graph *g)
{
    return g->device;
}

enum sd_dtype
sd_graph_activations(const struct sd_graph *g)
{
    return g->activations;
}

/* The product of the sides; false, and 0, when a side is negative or there are more elements than any machine holds:
 * sides come from configuration files. */
static bool
count_elements(size_t *numel, int ndim, const int64_t *shape)
{
    enum { MOST_BITS = 44 };

    *numel = 1;
    for (int i = 0; i < ndim; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(*numel, (size_t)shape[i], numel) || *numel >> MOST_BITS) {
            *numel = 0;
            return false;
        }
    return true;
}

struct sd_tensor *
sd_tensor_new(struct sd_graph *g, const char *name, enum sd_dtype dtype, int ndim, const int64_t *shape)
{
    struct sd_tensor *x = sd_alloc(g->scope, sizeof *x);

    if (ndim < 0 || ndim > SD_MAX_DIMS)
        sd_bug(name, "%d dimensions", ndim);
    x->graph = g;
    x->name = name;
    x->dtype = dtype;
    x->ndim = ndim;
    memcpy(x->shape, shape, (size_t)ndim * sizeof *shape);
    if (!count_elements(&x->numel, ndim, shape)) {
        char text[128];

        sd_graph_fault(g, "%s [%s]: too large", name, shape_text(text, sizeof text, ndim, shape));
    }
    x->pitch = sd_cols(x);
    sd_array_push(g->scope, &g->tensors, x);
    return x;
}

struct sd_tensor *
sd_input(struct sd_graph *g, const char *name, enum sd_dtype dtype, int ndim, const int64_t *shape)
{
    return sd_tensor_new(g, sd_strdup(g->scope, name), dtype, ndim, shape);
}

struct sd_tensor *
sd_use(struct sd_graph *g, struct sd_param *p)
{
    struct sd_tensor *x;

    if (!p)
        return NULL;
    for (size_t i = g->tensors.count; i-- > 0;) {
        x = g->tensors.item[i];
        if (x->param == p && !x->base)
            return x;
    }
    x = sd_tensor_new(g, p->path, SD_F32, p->ndim, p->shape);
    x->param = p;
    return x;
}

struct sd_tensor *
sd_keep(struct sd_tensor *x)
{
    sd_array_push(x->graph->scope, &x->graph->kept, x);
    return x;
}

struct sd_tensor *
sd_graph_find(struct sd_graph *g, const char *path)
{
    for (size_t i = g->nodes.count; i-- > 0;) {
        struct sd_node *n = g->nodes.item[i];

        if (strcmp(n->path, path) == 0)
            return n->out;
    }
    return NULL;
}

/* -- views --------------------------------------------------------------------------------------------------------- */

void
sd_view_link(struct sd_tensor *v)
{
    v->next_view = v->base->views;
    v->base->views = v;
}

static struct sd_tensor *
view(struct sd_tensor *x, int64_t offset, int ndim, const int64_t *shape, int64_t pitch)
{
    struct sd_tensor *v = sd_tensor_new(x->graph, x->name, x->dtype, ndim, shape);

    v->base = x->base ? x->base : x;
    v->param = v->base->param;
    v->offset = x->offset + offset;
    v->pitch = pitch;
    sd_view_link(v);
    return v;
}

struct sd_tensor *
sd_slice(struct sd_tensor *x, int axis, int64_t begin, int64_t length)
{
    int64_t shape[SD_MAX_DIMS], offset;

    memcpy(shape, x->shape, sizeof shape);
    if (x->graph->fault && axis >= 0 && axis < x->ndim) {       /* x may have any shape by now; nothing will be run */
        shape[axis] = length;
        return sd_tensor_new(x->graph, x->name, x->dtype, x->ndim, shape);
    }
    if (axis < 0 || axis >= x->ndim || begin < 0 || length < 0 || begin + length > x->shape[axis])
        sd_bug("slice", "axis %d, %lld..%lld of %s", axis, (long long)begin, (long long)(begin + length), x->name);
    if (axis == x->ndim - 1)
        offset = begin;
    else if (axis == 0)
        offset = begin * (sd_rows(x) / (x->shape[0] ? x->shape[0] : 1)) * x->pitch;
    else
        sd_bug("slice", "axis %d of %d: only the first and the last can be sliced", axis, x->ndim);
    shape[axis] = length;
    return view(x, offset, x->ndim, shape, axis == x->ndim - 1 && x->ndim > 1 ? x->pitch : axis == 0 ? x->pitch : length);
}

struct sd_tensor *
sd_reshape(struct sd_tensor *x, int ndim, const int64_t *shape)
{
    size_t numel;

    if (x->graph->fault)
        return sd_tensor_new(x->graph, x->name, x->dtype, ndim, shape);
    count_elements(&numel, ndim, shape);
    if (numel != x->numel || (!sd_dense(x) && shape[ndim - 1] != sd_cols(x)))
        sd_bug("reshape", "%s: %zu elements, asked for %zu", x->name, x->numel, numel);
    return view(x, 0, ndim, shape, sd_dense(x) ? shape[ndim - 1] : x->pitch);
}

/* -- module paths and faults --------------------------------------------------------------------------------------- */

void
sd_path_push(struct sd_graph *g, const char *format, ...)
{
    size_t n = strlen(g->path);
    va_list ap;

    if (g->depth == SD_MAX_DEPTH)
        sd_bug("path", "deeper than %d", SD_MAX_DEPTH);
    g->cut[g->depth++] = n;
    if (n && n + 1 < sizeof g->path)
        g->path[n++] = '.';
    va_start(ap, format);
    if (n + (size_t)vsnprintf(g->path + n, sizeof g->path - n, format, ap) >= sizeof g->path)
        sd_bug("path", "longer than %zu", sizeof g->path);
    va_end(ap);
}

void
sd_path_pop(struct sd_graph *g)
{
    if (!g->depth)
        sd_bug("path", "pop without push");
    g->path[g->cut[--g->depth]] = 0;
}

const char *
sd_path(struct sd_graph *g)
{
    return g->path;
}

void
sd_block_begin(struct sd_graph *g)
{
    g->block = ++g->blocks;
}

void
sd_block_end(struct sd_graph *g)
{
    g->block = 0;
}

void
sd_graph_fault(struct sd_graph *g, const char *format, ...)
{
    char text[512];
    va_list ap;

    if (g->fault)
        return;
    va_start(ap, format);
    vsnprintf(text, sizeof text, format, ap);
    va_end(ap);
    g->fault = g->path[0] ? sd_sprintf(g->scope, "%s: %s", g->path, text) : sd_strdup(g->scope, text);
}

bool
sd_graph_ok(struct sd_graph *g)
{
    return !g->fault || (sd_fail("%s", g->fault), false);
}

/* -- nodes --------------------------------------------------------------------------------------------------------- */

struct sd_tensor *
sd_apply(struct sd_graph *g, enum sd_op op, struct sd_tensor *const *in, const void *attr, size_t attr_size)
{
    const struct sd_op_info *info = &sd_ops[op];
    struct sd_tensor *dense[SD_MAX_IN] = { 0 };
    struct sd_node *n;

    for (int i = 0; i < info->n_in; i++) {
        dense[i] = in[i];
        if (in[i] && in[i]->graph != g)
            sd_bug(info->name, "input %d belongs to another graph", i);
        if (in[i] && !sd_dense(in[i]) && !(info->flags & P_IN(i))) {
            dense[i] = sd_apply(g, SD_OP_copy, &in[i], NULL, 0);
            g->copies++;
        }
    }
    g->copies += op == SD_OP_concat;
    n = sd_alloc(g->scope, sizeof *n);
    n->op = op;
    n->graph = g;
    n->path = sd_strdup(g->scope, g->path[0] ? g->path : info->name);
    n->n_in = info->n_in;
    n->block = g->block;
    n->bf16 = g->products == SD_BF16;
    n->index = g->nodes.count;
    memcpy(n->in, dense, sizeof n->in);
    if (attr_size)
        n->attr = memcpy(sd_alloc(g->scope, attr_size), attr, attr_size);
    info->shape(n);
    if (!n->out)
        sd_bug(info->name, "shape rule set no output");
    sd_array_push(g->scope, &g->nodes, n);
    return n->out;
}

void
sd_out(struct sd_node *n, enum sd_dtype dtype, int ndim, const int64_t *shape)
{
    n->out = sd_tensor_new(n->graph, n->path, dtype, ndim, shape);
    n->out->node = n;
}

void
sd_out_like(struct sd_node *n, const struct sd_tensor *x)
{
    sd_out(n, x->dtype, x->ndim, x->shape);
}

void
sd_save(struct sd_node *n, int index, enum sd_dtype dtype, int ndim, const int64_t *shape)
{
    n->saved[index] = sd_tensor_new(n->graph, n->path, dtype, ndim, shape);
    n->saved[index]->node = n;
    if (n->graph->planned)
        n->saved[index]->storage = sd_alloc(n->graph->scope, sizeof *n->saved[index]->storage);
}

bool
sd_expect_dtype(struct sd_node *n, const char *what, const struct sd_tensor *x)
{
    enum sd_dtype wanted = n->in[0]->dtype;

    if (x && x->dtype != wanted)
        sd_graph_fault(n->graph, "%s: %s is %s, expected %s", sd_ops[n->op].name, what, sd_dtype_name(x->dtype),
                       sd_dtype_name(wanted));
    return !x || x->dtype == wanted;
}

bool
sd_expect_shape(struct sd_node *n, const char *what, const struct sd_tensor *x, int ndim, const int64_t *shape)
{
    char found[128], wanted[128];
    bool same = x->ndim == ndim;

    for (int i = 0; same && i < ndim; i++)
        same = shape[i] < 0 || shape[i] == x->shape[i];
    if (!same)
        sd_graph_fault(n->graph, "%s: %s [%s], expected [%s]", sd_ops[n->op].name, what,
                       shape_text(found, sizeof found, x->ndim, x->shape), shape_text(wanted, sizeof wanted, ndim, shape));
    return same;
}
