#include "../check_op.h"

static struct sd_tensor *
f(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_copy(g, in[0]);
}

int
main(void)
{
    check_gradient("copy", f, "2x3x5", 1e-8);
    check_paths("copy", f, "3x50x130", 0);
    return check_done();
}
