/* projections_products.h - what projections.c and its fast path share.
 *
 * One rule: the C loops of projections.c define the result; prepare returns false where the products do not apply. */
#ifndef SD_PROJECTIONS_PRODUCTS_H
#define SD_PROJECTIONS_PRODUCTS_H

#include "projections.h"

enum { X, PARTS, RESIDUAL };    /* inputs */

static inline const struct sd_projections *
parts_of(const struct sd_node *n)
{
    return n->in[PARTS]->param->joined;
}
static inline int64_t
most_rank(const struct sd_projections *a)
{
    int64_t most = 0;

    for (int i = 0; i < a->parts; i++)
        most = projection_rank(&a->part[i]) > most ? projection_rank(&a->part[i]) : most;
    return most;
}
static inline bool
trains(const struct sd_node *n, const struct sd_param *p)
{
    return n->din[PARTS] && p && p->trainable;
}
static inline real
scale_of(const struct sd_projection *p)
{
    return p->scale ? *sd_param_values(p->scale) : 1;
}

#if SD_REAL_IS_FLOAT
bool projections_readable(const struct sd_param *p);        /* as the file has it, by products */
bool projections_prepare_products(struct sd_node *n);
void projections_forward_products(const struct sd_node *n);
void projections_backward_products(const struct sd_node *n);
#else
static inline bool projections_readable(const struct sd_param *p) { (void)p; return false; }
static inline bool projections_prepare_products(struct sd_node *n) { (void)n; return false; }
static inline void projections_forward_products(const struct sd_node *n) { (void)n; }
static inline void projections_backward_products(const struct sd_node *n) { (void)n; }
#endif

#endif
