#include "../check_op.h"

static struct sd_tensor *
masked(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_mse(g, in[0], in[1], in[2], in[3]);
}

static struct sd_tensor *
unmasked(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_mse(g, in[0], in[1], NULL, in[2]);
}

int
main(void)
{
    check_gradient_of("mse", masked, "2x3x5x4 2x3x5x4 2x3x5 2", 1, 1e-7);
    check_gradient_of("mse, no mask", unmasked, "2x3x5x4 2x3x5x4 2", 1, 1e-7);
    check_paths_of("mse", masked, "2x9x7x4 2x9x7x4 2x9x7 2", 1, 0);
    check_paths_of("mse, several chunks", masked, "2x41x37x4 2x41x37x4 2x41x37 2", 1, 1e-7);
    return check_done();
}
