/* graph_internal.h - what graph.c shares with plan.c and run.c; nobody else includes it. */
#ifndef SD_GRAPH_INTERNAL_H
#define SD_GRAPH_INTERNAL_H

#include "op.h"

enum { SD_MAX_DEPTH = 32 };

struct sd_array {               /* growing array of pointers in the graph's scope */
    size_t count, room;
    void **item;
};
void sd_array_push(struct sd_scope *s, struct sd_array *a, void *item);

struct sd_graph {
    struct sd_scope *scope;
    struct sd_device *device;   /* NULL: the CPU */
    enum sd_dtype activations;
    struct sd_array nodes;      /* in the order described: every input before its reader */
    struct sd_array tensors;    /* all, views too */
    struct sd_array kept;
    char path[1024];
    int depth;
    size_t cut[SD_MAX_DEPTH];   /* length of path before each push */
    int block, blocks;
    enum sd_dtype products;     /* of the nodes described next */
    size_t copies;              /* dense ones inserted because an op takes no pitched input, and concatenations */
    char *fault;                /* first shape that did not fit */
    bool planned;
};

struct sd_tensor *sd_tensor_new(struct sd_graph *g, const char *name, enum sd_dtype dtype, int ndim, const int64_t *shape);

void sd_view_link(struct sd_tensor *v);     /* v->base is set: enter v among its views */

/* sd_storage - what the planner knows of one tensor that has bytes of its own (views have none). */
struct sd_storage {
    struct sd_tensor *grad;     /* gradient of this tensor, NULL when none flows */
    bool wanted;                /* a trainable lies upstream */
    bool read_in_backward;
    bool redo;                  /* its node is run again before the backward pass reads it */
    bool redone;
    bool is_gradient;
    bool elsewhere;             /* the gradient of a parameter: no bytes of the arena */
    bool written;               /* a gradient: an earlier step has stored into it */
    bool values;                /* a parameter: read as row-major numbers, so that it gets an address */
    struct sd_life *life;       /* the one being built */
};

#endif
