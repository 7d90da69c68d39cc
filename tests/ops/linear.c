/* linear: gradients in f64 against differences; own products in f32 against the C loops. */
#include <omp.h>

#include "check_op.h"

static struct sd_tensor *
plain(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear(g, in[0], in[1], NULL, NULL);
}

static struct sd_tensor *
biased(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear(g, in[0], in[1], in[2], NULL);
}

static struct sd_tensor *
full(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear(g, in[0], in[1], in[2], in[3]);
}

/* one tensor in two places: its gradient is stored by one node and added to by the other */
static struct sd_tensor *
twice(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear(g, in[0], in[1], NULL, sd_op_linear(g, in[0], in[2], NULL, NULL));
}

/* LoRA: base and update, the base output as residual of the update */
static struct sd_tensor *
lora(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear(g, sd_op_linear(g, in[0], in[2], NULL, NULL), in[3], NULL,
                        sd_op_linear(g, in[0], in[1], NULL, NULL));
}

/* x in two pieces, with a weight of the whole */
static struct sd_tensor *
beside(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear_beside(g, in[0], in[3], in[1], in[2], NULL);
}

static struct sd_tensor *
full_beside(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear_beside(g, in[0], in[4], in[1], in[2], in[3]);
}

static struct sd_tensor *
joined(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear(g, sd_op_concat(g, in[0], in[4]), in[1], in[2], in[3]);
}

/* one tensor on both sides: both pieces of the gradient go to the same bytes */
static struct sd_tensor *
mirrored(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear_beside(g, in[0], in[0], in[1], in[2], NULL);
}

static struct sd_tensor *
lora_beside(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear(g, sd_op_linear_beside(g, in[0], in[4], in[2], NULL, NULL), in[3], NULL,
                        sd_op_linear_beside(g, in[0], in[4], in[1], NULL, NULL));
}

/* one piece read by another node too: of the two gradients one is stored, the other added to what is there */
static struct sd_tensor *
beside_again(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear(g, in[3], in[2], NULL, sd_op_linear_beside(g, in[0], in[3], in[1], NULL, NULL));
}

static struct sd_tensor *
x_again(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_linear(g, in[0], in[2], NULL, sd_op_linear_beside(g, in[0], in[3], in[1], NULL, NULL));
}

static size_t
nothing(void)
{
    return 0;
}

static void
check_faults(void)
{
    struct sd_graph *g = sd_graph_new();
    struct sd_tensor *x = sd_input(g, "x", SD_F32, 2, (int64_t[]){ 4, 6 });
    struct sd_tensor *w = sd_input(g, "w", SD_F32, 2, (int64_t[]){ 5, 7 });

    sd_path_push(g, "to_k");
    sd_op_linear(g, x, w, NULL, NULL);
    sd_path_pop(g);
    CHECK(!sd_graph_ok(g) && strstr(sd_reason(), "to_k") && strstr(sd_reason(), "[5, 7]"),
          "a weight that does not fit: %s",
          sd_reason());
    sd_graph_free(g);

    g = sd_graph_new();
    x = sd_input(g, "x", SD_F32, 2, (int64_t[]){ 4, 6 });
    sd_path_push(g, "conv_shortcut");
    sd_op_linear_beside(g, x, sd_input(g, "y", SD_F32, 2, (int64_t[]){ 3, 1 }), sd_input(g, "w", SD_F32, 2, (int64_t[]){ 5, 7 }),
                        NULL, NULL);
    sd_path_pop(g);
    CHECK(!sd_graph_ok(g) && strstr(sd_reason(), "conv_shortcut") && strstr(sd_reason(), "[3, 1]"),
          "beside it other rows: %s", sd_reason());
    sd_graph_free(g);
}

int
main(void)
{
    check_gradient("linear", plain, "2x3x5 7x5", 1e-7);
    check_gradient("linear", plain, "1x3 2x3", 1e-7);
    check_gradient("linear, bias", biased, "5x3 4x3 4", 1e-7);
    check_gradient("linear, 1x1 weight", biased, "5x3 4x3x1x1 4", 1e-7);
    check_gradient("linear, residual", full, "2x3x5 7x5 7 2x3x7", 1e-7);
    check_gradient("linear, many rows", biased, "600x1 2x1 2", 1e-7);
    check_gradient("linear, twice", twice, "3x5 4x5 4x5", 1e-7);
    check_gradient("linear, LoRA", lora, "6x5 7x5 2x5 7x2", 1e-7);
    check_gradient("linear, beside", full_beside, "2x3x5 7x8 7 2x3x7 2x3x3", 1e-7);
    check_gradient("linear, beside", beside, "4x1 2x7x1x1 2 4x6", 1e-7);
    check_gradient("linear, itself beside", mirrored, "3x5 4x10 4", 1e-7);
    check_gradient("linear, beside, which is read again", beside_again, "3x2 4x5 4x3 3x3", 1e-7);
    check_gradient("linear, beside, x read again", x_again, "3x2 4x5 4x2 3x3", 1e-7);
    check_gradient("linear, beside, LoRA", lora_beside, "6x2 7x5 2x5 7x2 6x3", 1e-7);

    /* sums of up to 3000 terms in f32, in another order than the C loops */
    check_paths("linear", full, "2x31x40 70x40 70 2x31x70", 2e-6);
    check_paths("linear, one row", biased, "1x320 1280x320 1280", 2e-6);
    check_paths("linear, odd", full, "7x3 5x3 5 7x5", 2e-6);
    check_paths("linear, deep", biased, "97x1000 49x1000 49", 5e-6);
    check_paths("linear, many rows", full, "2999x20 33x20 33 2999x33", 5e-6);
    check_paths("linear, 1x1 weight", biased, "66x17 18x17x1x1 18", 2e-6);
    check_paths("linear, LoRA", lora, "2100x48 96x48 4x48 96x4", 5e-6);
    check_paths("linear, twice", twice, "100x30 48x30 48x30", 2e-6);
    check_paths("linear, beside", full_beside, "2x31x40 70x63 70 2x31x70 2x31x23", 2e-6);
    check_paths("linear, beside", beside, "7x3 5x4 5 7x1", 2e-6);
    check_paths("linear, beside, one row", beside, "1x320 1280x640 1280 1x320", 2e-6);
    check_paths("linear, beside, 1x1 weight", beside, "66x17 18x48x1x1 18 66x31", 2e-6);
    check_paths("linear, beside, deep", beside, "97x700 49x1500 49 97x800", 5e-6);
    check_paths("linear, beside, many rows", full_beside, "2999x20 33x32 33 2999x33 2999x12", 5e-6);
    check_paths("linear, beside, LoRA", lora_beside, "2100x48 96x80 4x80 96x4 2100x32", 5e-6);
    check_paths("linear, beside, which is read again", beside_again, "100x24 48x43 48x19 100x19", 2e-6);
    check_paths("linear, beside, x read again", x_again, "100x24 48x43 48x24 100x19", 2e-6);
    check_paths("linear, itself beside", mirrored, "100x24 48x48 48", 2e-6);
    check_same("linear, beside", full_beside, joined, "2x31x40 70x63 70 2x31x70 2x31x23");
    check_same("linear, beside", full_beside, joined, "97x700 49x1500 49 97x49 97x800");
    check_same("linear, beside", full_beside, joined, "1x320 1280x640 1280 1x1280 1x320");
    check_same("linear, beside", full_beside, joined, "2999x20 33x32 33 2999x33 2999x12");
    /* operands of eight bits: 1.5e-3 to 3e-3 off; sums in another order, in f32 on both sides */
    check_bf16("linear", full, "2x31x40 70x40 70 2x31x70", 2e-6, 4e-3);
    check_bf16("linear, one row", biased, "1x320 1280x320 1280", 2e-6, 4e-3);
    check_bf16("linear, odd", full, "7x3 5x3 5 7x5", 2e-6, 4e-3);
    check_bf16("linear, deep", biased, "97x2701 49x2701 49", 5e-6, 4e-3);
    check_bf16("linear, many rows", full, "2999x20 33x20 33 2999x33", 5e-6, 4e-3);
    check_bf16("linear, 1x1 weight", biased, "66x17 18x17x1x1 18", 2e-6, 4e-3);
    check_bf16("linear, pairs made once", full, "31x13 3101x13 3101 31x3101", 2e-6, 4e-3);
    check_bf16("linear, one deep", biased, "66x1 18x1 18", 2e-6, 4e-3);
    check_bf16("linear, twice", twice, "100x30 48x30 48x30", 2e-6, 4e-3);
    check_bf16("linear, beside", full_beside, "2x31x40 70x63 70 2x31x70 2x31x23", 2e-6, 4e-3);
    check_bf16("linear, beside, odd", beside, "97x1301 49x2701 49 97x1400", 5e-6, 4e-3);
    check_bf16("linear, beside, pairs made once", full_beside, "31x13 3101x20 3101 31x3101 31x7", 2e-6, 4e-3);
    check_same_bf16("linear, beside", full_beside, joined, "2x31x40 70x63 70 2x31x70 2x31x23");
    check_dtypes("linear", full, "13x37 53x37 53 13x53", nothing);
    check_dtypes("linear, deep", plain, "200x1100 130x1100", nothing);
    check_dtypes("linear, one row", biased, "1x320 640x320 640", nothing);
    check_dtypes("linear, many rows", biased, "2100x24 40x24 40", nothing);
    check_dtypes("linear, 1x1 weight", biased, "66x17 18x17x1x1 18", nothing);
    check_dtypes("linear, beside", beside, "66x17 18x48x1x1 18 66x31", nothing);
    check_faults();
    return check_done();
}
