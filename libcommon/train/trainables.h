/* trainables.h - everything that learns, as flat buffers: value, gradient, and what the optimizer keeps.
 *
 * One rule: groups (unet, text_encoder, tokens) are contiguous and in a fixed order, parameters in the order added, so
 * that sums over the buffers have one order whatever the graph. */
#ifndef SD_TRAINABLES_H
#define SD_TRAINABLES_H

#include "param.h"

enum { SD_MAX_GROUPS = 4 };

struct sd_group {
    const char *name;
    size_t begin, count;            /* elements of the flat buffers */
};

struct sd_trainables {
    struct sd_scope *scope;
    int groups;
    struct sd_group group[SD_MAX_GROUPS];
    size_t params, room;
    struct sd_param **param;        /* by group, then in the order added */
    int *param_group;
    size_t count;                   /* elements in all */
    float *value, *grad;
};

/* sd_trainables_new - empty, in scope s.  sd_trainables_add - a parameter of the named group (a new group when the name
 * is new); zero until filled; usable after sd_trainables_allocate, which lays out the buffers (once). */
struct sd_trainables *sd_trainables_new(struct sd_scope *s);
struct sd_param *sd_trainables_add(struct sd_trainables *t, const char *group, const char *path, int ndim,
                                   const int64_t *shape);
void sd_trainables_allocate(struct sd_trainables *t);
struct sd_group *sd_trainables_group(struct sd_trainables *t, const char *name);   /* NULL: no such group */

/* sd_trainables_norm - of a buffer laid out like value, over one group: sqrt of the sum of squares, in double, summed
 * in a tree fixed by the size alone. */
double sd_trainables_norm(const struct sd_trainables *t, int group, const float *buffer);

#endif
