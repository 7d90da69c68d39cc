#include "../check_op.h"

static struct sd_tensor *
f(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_quick_gelu(g, in[0]);
}

int
main(void)
{
    check_gradient("quick_gelu", f, "2x3x6", 1e-7);
    check_gradient("quick_gelu, one element pair", f, "1x2", 1e-7);
    /* both sides round each operation once and differ by their exp and erf of about 1 ulp */
    check_paths("quick_gelu", f, "3x7x14", 1e-6);
    check_paths("quick_gelu, several chunks", f, "5x41x202", 1e-6);
    return check_done();
}
