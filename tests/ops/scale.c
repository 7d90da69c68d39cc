#include "../check_op.h"

static struct sd_tensor *
f(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_scale(g, in[0], in[1]);
}

int
main(void)
{
    check_gradient("scale", f, "2x3x5 1", 1e-7);
    check_paths("scale", f, "5x41x101 1", 0);
    return check_done();
}
