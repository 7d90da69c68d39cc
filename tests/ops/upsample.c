#include "../check_op.h"

static struct sd_tensor *
f(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_upsample(g, in[0]);
}

int
main(void)
{
    check_gradient("upsample", f, "2x3x5x3", 1e-8);
    check_paths("upsample", f, "2x9x7x33", 0);
    return check_done();
}
