#include "../check_op.h"

static bool silu;

static struct sd_tensor *
f(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_group_norm(g, in[0], in[1], in[2], 3, 1e-5, silu);
}

static struct sd_tensor *
bare(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_group_norm(g, in[0], NULL, NULL, 2, 1e-5, silu);
}

static struct sd_tensor *
pairs(struct sd_graph *g, struct sd_tensor **in)        /* more groups than a block of the CUDA twin puts together itself */
{
    return sd_op_group_norm(g, in[0], in[1], in[2], 65, 1e-5, silu);
}

int
main(void)
{
    for (int i = 0; i < 2; i++) {
        silu = i;
        check_gradient(silu ? "group_norm + silu" : "group_norm", f, "2x3x5x6 6 6", 1e-6);
        check_gradient(silu ? "group_norm + silu, tokens, no weight" : "group_norm, tokens, no weight", bare, "2x7x4", 1e-6);
        /* sums over pieces of 64 pixels are made in float, elsewhere each side rounds some five times */
        check_paths(silu ? "group_norm + silu" : "group_norm", f, "2x3x5x6 6 6", 2e-6);
        check_paths(silu ? "group_norm + silu" : "group_norm", f, "2x13x11x57 57 57", 2e-6);
        check_paths(silu ? "group_norm + silu" : "group_norm", f, "1x31x32x96 96 96", 2e-6);
        check_paths(silu ? "group_norm + silu, no weight" : "group_norm, no weight", bare, "2x300x14", 2e-6);
        check_paths(silu ? "group_norm + silu, 65 groups" : "group_norm, 65 groups", pairs, "2x9x13x130 130 130", 2e-6);
        check_paths(silu ? "group_norm + silu, wide" : "group_norm, wide", bare, "1x7x2200", 2e-6);
    }
    return check_done();
}
