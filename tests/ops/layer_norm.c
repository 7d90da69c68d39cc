#include "../check_op.h"

static struct sd_tensor *
f(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_layer_norm(g, in[0], in[1], in[2], 1e-5);
}

static struct sd_tensor *
bare(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_layer_norm(g, in[0], NULL, NULL, 1e-5);
}

int
main(void)
{
    check_gradient("layer_norm", f, "2x3x7 7 7", 1e-6);
    check_gradient("layer_norm, no weight", bare, "5x6", 1e-6);
    /* sums over a row are made in float by lanes, elsewhere each side rounds some five times */
    check_paths("layer_norm", f, "2x3x7 7 7", 2e-6);
    check_paths("layer_norm", f, "3x77x96 96 96", 2e-6);
    check_paths("layer_norm, many rows", f, "2x1031x35 35 35", 2e-6);
    check_paths("layer_norm, no weight", bare, "40x320", 2e-6);
    for (int i = 0; i < 6; i++) {           /* every number of units a lane of the CUDA twin */
        static const char *const rows[] = { "5x256 256 256", "3x648 648 648", "3x770 770 770", "2x1280 1280 1280", "2x2560 2560 2560", "1x2700 2700 2700" };

        check_paths("layer_norm", f, rows[i], 2e-6);
    }
    return check_done();
}
