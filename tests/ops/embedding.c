#include "../check_op.h"

static struct sd_tensor *
learned(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_embedding(g, in[0], in[1], in[2], in[3]);
}

static struct sd_tensor *
plain(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_embedding(g, in[0], in[1], NULL, NULL);
}

int
main(void)
{
    check_fill(0, 9 + 3);       /* ids of the table and of the learned rows, most of them more than once */
    check_gradient("embedding, learned rows and positions", learned, "3x7 9x5 3x5 8x5", 1e-8);
    check_paths("embedding, learned rows and positions", learned, "3x7 9x5 3x5 8x5", 0);
    check_paths("embedding, wide", learned, "5x31 9x200 3x200 32x200", 0);
    check_fill(0, 9);
    check_gradient("embedding, table alone", plain, "3x7 9x5", 1e-8);
    return check_done();
}
