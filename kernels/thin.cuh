/* thin.cuh - several products with a thin side (an adapter's rank) as one launch: thin.cu.
 *
 * One rule: the parts share operands and differ in corners and sides; cut by shape alone, sums in a fixed order. */
#ifndef SD_THIN_CUH
#define SD_THIN_CUH

#include "cuda.h"
#include "ops.h"

namespace sd {

enum { THIN_TILE = 64, THIN_PARTS = 90 };       /* most rows and columns of a tile; parts of a launch */

/* Operands of some parts.  A deep: [m, k], else [k, m];  B deep: [n, k], else [k, n].  chunk: of the depth, whose sums go to
 * part + number of the chunk * part_size; 0: all of it. */
struct thin_pair {
    const void *a, *b;
    int64_t a_pitch, b_pitch;
    float *part;
    int64_t part_size;
    int chunk;
};

/* One product of a pair: its corner in each matrix, its sides, and the first of its blocks.  With a gradient `to`, F32, sums
 * are added to that, [m, n], rows times scale[a + row] where there are any, or turned, [n, m]. */
struct thin_part {
    float *to;
    int a, b, d;
    int m, n, k, first;
    short pair;
    bool turned;
};

/* D = A B + C + E of T: C, E (or NULL), D and where D goes `again` (or NULL) [m, n], C and E may be D;  or to gradients;  or,
 * with `part`, sums over chunks, to part + d [m, n] F32.  copy: where A goes too (both deep, one part). */
struct thin {
    thin_pair pair[3];
    const void *c, *e;
    void *d, *again, *copy;
    const float *scale;
    int64_t c_pitch, e_pitch, d_pitch, again_pitch, copy_pitch;
    int parts, blocks;
    thin_part at[THIN_PARTS];
};
static_assert(sizeof(thin) < 4000, "kernels take 4 KB of arguments");

/* thin_add - one more product, m x n sums of k; its `to` and `turned` are the caller's to set.
 * thin_run - all, of pair 0, A deep, B deep or not.
 * thin_run_gradients - all, of pairs 0 and 1 neither deep, to gradients or chunks; of pair 2, THIN_DATA, A deep, to D. */
enum { THIN_DATA = 2 };
thin_part *thin_add(struct thin *p, int pair, int64_t a, int64_t b, int64_t d, int64_t m, int64_t n, int64_t k);
void thin_run(struct sd_device *d, enum sd_dtype dtype, struct thin *p, bool b_deep);
void thin_run_gradients(struct sd_device *d, enum sd_dtype dtype, struct thin *p);

}   /* namespace sd */

#endif
