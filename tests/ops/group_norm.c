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

/* x in two pieces, with weights of the whole */
static struct sd_tensor *
beside(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_group_norm_beside(g, in[0], in[3], in[1], in[2], 3, 1e-5, silu);
}

static struct sd_tensor *
bare_beside(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_group_norm_beside(g, in[0], in[1], NULL, NULL, 2, 1e-5, silu);
}

static struct sd_tensor *
pairs_beside(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_group_norm_beside(g, in[0], in[3], in[1], in[2], 65, 1e-5, silu);
}

/* one tensor on both sides: both pieces of the gradient go to the same bytes */
static struct sd_tensor *
mirrored(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_group_norm_beside(g, in[0], in[0], in[1], in[2], 3, 1e-5, silu);
}

/* one piece read by another node too: of the two gradients one is stored, the other added to what is there */
static struct sd_tensor *
beside_again(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear(g, in[3], in[4], NULL, beside(g, in));
}

static struct sd_tensor *
x_again(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear(g, in[0], in[4], NULL, beside(g, in));
}

static struct sd_tensor *
joined(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_group_norm(g, sd_op_concat(g, in[0], in[3]), in[1], in[2], 3, 1e-5, silu);
}

/* Shapes of which a block of the CUDA twin holds a whole group, and the next larger; weights frozen, as it wants it: pieces of 16,
 * 8, 4 and 2 bytes, pictures of a pixel, groups that lie on both sides of the border. */
static void
check_one_launch(void)
{
    const char *name = silu ? "group_norm + silu, a block a group" : "group_norm, a block a group",
               *wide = silu ? "group_norm + silu, beside, a block a group" : "group_norm, beside, a block a group";

    check_paths_of(name, f, "2x8x8x120 120 120", 1, 2e-6);
    check_paths_of(name, f, "1x16x16x60 60 60", 1, 2e-6);               /* 20 channels: 8 bytes */
    check_paths_of(name, f, "3x9x5x30 30 30", 1, 2e-6);                 /* 10: 4 */
    check_paths_of(name, f, "2x13x11x9 9 9", 1, 2e-6);                  /* 3: 2 */
    check_paths_of(name, f, "2x17x15 15 15", 1, 2e-6);
    check_paths_of(name, f, "2x1x24 24 24", 1, 2e-6);                   /* a pixel */
    check_paths_of(name, f, "2x1x9 9 9", 1, 2e-6);
    check_paths_of(name, f, "1x3843 3843 3843", 1, 2e-6);               /* 1281 channels: more pieces than threads */
    if (silu) {
        check_paths_of("group_norm + silu", f, "1x1061x57 57 57", 1, 2e-6);     /* larger, of any number of channels */
        check_paths_of("group_norm + silu, beside", beside, "1x1061x40 57 57 1x1061x17", 9, 2e-6);
        check_paths_of(name, f, "1x256x240 240 240", 1, 2e-6);          /* all that a block holds at 16 bits, and a pixel more */
        check_paths_of(name, f, "1x257x240 240 240", 1, 2e-6);
        check_paths_of(name, f, "1x128x240 240 240", 1, 2e-6);          /* at 32 bits */
        check_paths_of("group_norm + silu, 43 chunks", f, "1x3400x129 129 129", 1, 2e-6);   /* more than the lanes of a warp */
        check_paths_of("group_norm + silu, 65 groups of 44 chunks", pairs, "1x3400x130 130 130", 1, 2e-6);
    }
    check_paths_of(wide, beside, "2x8x8x40 60 60 2x8x8x20", 9, 2e-6);
    check_paths_of(wide, beside, "1x12x7x100 180 180 1x12x7x80", 9, 2e-6);      /* the second group is on both sides */
    check_paths_of(wide, beside, "1x12x7x100 180 180 1x12x7x80", 1, 2e-6);
    check_paths_of(wide, beside, "1x12x7x100 180 180 1x12x7x80", 8, 2e-6);
    check_paths_of(wide, beside, "2x13x11x2 9 9 2x13x11x7", 9, 2e-6);
    check_paths_of(wide, beside_again, "2x65x24 45 45 2x65x21 45x21", 9, 2e-6);
    check_paths_of(wide, x_again, "2x65x24 48 48 2x65x24 48x24", 9, 2e-6);
    check_paths_of(wide, mirrored, "2x65x24 48 48", 1, 2e-6);
}

static void
check_faults(void)
{
    struct sd_graph *g = sd_graph_new();
    struct sd_tensor *x = sd_input(g, "x", SD_F32, 3, (int64_t[]){ 2, 5, 6 }), *y = sd_input(g, "y", SD_F32, 3, (int64_t[]){ 2, 4, 6 });

    sd_path_push(g, "norm1");
    sd_op_group_norm_beside(g, x, y, NULL, NULL, 3, 1e-5, false);
    sd_path_pop(g);
    CHECK(!sd_graph_ok(g) && strstr(sd_reason(), "norm1") && strstr(sd_reason(), "[2, 4, 6]"), "beside it another size: %s",
          sd_reason());
    sd_graph_free(g);
}

int
main(void)
{
    check_faults();
    for (int i = 0; i < 2; i++) {
        silu = i;
        check_gradient(silu ? "group_norm + silu" : "group_norm", f, "2x3x5x6 6 6", 1e-6);
        check_gradient(silu ? "group_norm + silu, tokens, no weight" : "group_norm, tokens, no weight", bare, "2x7x4", 1e-6);
        /* the border between two groups, and within one */
        check_gradient(silu ? "group_norm + silu, beside" : "group_norm, beside", beside, "2x3x2x4 6 6 2x3x2x2", 1e-6);
        check_gradient(silu ? "group_norm + silu, beside" : "group_norm, beside", beside, "2x3x2x1 6 6 2x3x2x5", 1e-6);
        check_gradient(silu ? "group_norm + silu, beside, no weight" : "group_norm, beside, no weight", bare_beside,
                       "2x7x3 2x7x5", 1e-6);
        check_gradient(silu ? "group_norm + silu, itself beside" : "group_norm, itself beside", mirrored, "2x5x3 6 6", 1e-6);
        check_gradient(silu ? "group_norm + silu, beside, which is read again" : "group_norm, beside, which is read again", beside_again,
                       "2x5x1 3 3 2x5x2 3x2", 1e-6);
        check_gradient(silu ? "group_norm + silu, beside, x read again" : "group_norm, beside, x read again", x_again,
                       "2x5x1 3 3 2x5x2 3x1", 1e-6);
        check_same(silu ? "group_norm + silu, beside" : "group_norm, beside", beside, joined, "2x13x11x40 57 57 2x13x11x17");
        check_same(silu ? "group_norm + silu, beside" : "group_norm, beside", beside, joined, "2x5x4x3 96 96 2x5x4x93");
        /* sums over pieces of 64 pixels are made in float, elsewhere each side rounds some five times */
        check_paths(silu ? "group_norm + silu" : "group_norm", f, "2x3x5x6 6 6", 2e-6);
        check_paths(silu ? "group_norm + silu" : "group_norm", f, "2x13x11x57 57 57", 2e-6);
        check_paths(silu ? "group_norm + silu" : "group_norm", f, "1x31x32x96 96 96", 2e-6);
        check_paths(silu ? "group_norm + silu, no weight" : "group_norm, no weight", bare, "2x300x14", 2e-6);
        check_paths(silu ? "group_norm + silu, 65 groups" : "group_norm, 65 groups", pairs, "2x9x13x130 130 130", 2e-6);
        check_paths(silu ? "group_norm + silu, wide" : "group_norm, wide", bare, "1x7x2200", 2e-6);
        check_paths(silu ? "group_norm + silu, beside" : "group_norm, beside", beside, "2x13x11x40 57 57 2x13x11x17", 2e-6);
        check_paths(silu ? "group_norm + silu, beside" : "group_norm, beside", beside, "1x31x32x64 96 96 1x31x32x32", 2e-6);
        check_paths(silu ? "group_norm + silu, beside, no weight" : "group_norm, beside, no weight", bare_beside,
                    "2x300x5 2x300x9", 2e-6);
        check_paths(silu ? "group_norm + silu, beside, 65 groups" : "group_norm, beside, 65 groups", pairs_beside,
                    "2x9x13x33 130 130 2x9x13x97", 2e-6);
        check_paths(silu ? "group_norm + silu, beside, wide" : "group_norm, beside, wide", bare_beside, "1x7x1208 1x7x992", 2e-6);
        check_paths(silu ? "group_norm + silu, beside, which is read again" : "group_norm, beside, which is read again", beside_again,
                    "2x65x24 45 45 2x65x21 45x21", 2e-6);
        check_paths(silu ? "group_norm + silu, beside, x read again" : "group_norm, beside, x read again", x_again,
                    "2x65x24 45 45 2x65x21 45x24", 2e-6);
        check_paths(silu ? "group_norm + silu, itself beside" : "group_norm, itself beside", mirrored, "2x65x24 48 48", 2e-6);
        if (check_tested_device())
            check_one_launch();
    }
    return check_done();
}
