#include "../check_op.h"

static struct sd_tensor *
f(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_concat(g, in[0], in[1]);
}

int
main(void)
{
    check_gradient("concat", f, "2x3x5 2x3x4", 1e-8);
    check_paths("concat", f, "3x50x130 3x50x7", 0);
    check_paths("concat, aligned", f, "3x7x48 3x7x16", 0);
    return check_done();
}
