/* thin.cuh - several products with a thin side (an adapter's rank) as one launch: thin.cu.
 *
 * One rule: the parts share operands and differ in corners and sides; cut by shape alone, sums in a fixed order. */
#ifndef SD_THIN_CUH
#define SD_THIN_CUH

#include "cuda.h"
#include "ops.h"

namespace sd {

enum { THIN_TILE = 64 };        /* rows and columns of a tile */

/* One product: its corner in each matrix, its sides, and where its tiles begin among those of all. */
struct thin_part {
    int64_t a, b, d;
    int m, n, k, first;
};

/* D = A B + C + E.  A deep: [m, k], else [k, m];  B deep: [n, k], else [k, n];  C, E (or NULL) and D [m, n] of T, where
 * C and E may be D;  or, with `part`, sums over chunks of `chunk` of the depth, to part + chunk * part_size + d [m, n]
 * F32.  Both deep, A alone, or none.  copy: where A goes too (A deep, one part), rows copy_pitch apart. */
struct thin {
    const void *a, *b, *c, *e;
    void *d, *copy;
    float *part;
    int64_t a_pitch, b_pitch, c_pitch, e_pitch, d_pitch, copy_pitch, part_size;
    int chunk, parts, across;           /* across: tiles of columns, of all parts */
    thin_part at[SD_MAX_PROJECTIONS];
};
static_assert(sizeof(thin) < 4000, "kernels take 4 KB of arguments");

/* thin_add - one more product, m x n sums of k.  thin_run - all of them; chunks: of the depth, 1 without `part`. */
void thin_add(struct thin *p, int64_t a, int64_t b, int64_t d, int64_t m, int64_t n, int64_t k);
void thin_run(struct sd_device *d, enum sd_dtype dtype, struct thin p, bool a_deep, bool b_deep, int chunks);

}   /* namespace sd */

#endif
