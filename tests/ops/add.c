#include "../check_op.h"

static struct sd_tensor *
f(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_add(g, in[0], in[1]);
}

int
main(void)
{
    check_gradient("add", f, "2x3x5 2x3x5", 1e-8);
    check_paths("add", f, "3x7x13 3x7x13", 0);
    check_paths("add, several chunks", f, "5x41x101 5x41x101", 0);
    return check_done();
}
