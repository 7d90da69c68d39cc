#include "../check_op.h"

static int heads = 1;
static bool causal;
static double scale;

static struct sd_tensor *
f(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_attention(g, in[0], in[1], in[2], (struct sd_attention){ heads, causal, scale });
}

static struct sd_tensor *
itself(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_attention(g, in[0], in[0], in[0], (struct sd_attention){ heads, false, 0 });
}

static struct sd_tensor *
shared_keys(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_attention(g, in[0], in[1], in[1], (struct sd_attention){ heads, false, 0 });
}

static void
gradient(int h, bool masked, double factor, const char *shapes)
{
    heads = h;
    causal = masked;
    scale = factor;
    check_gradient(masked ? "attention, causal" : "attention", f, shapes, 1e-6);
}

/* Sums of some hundred products in another order, in float on both sides; exp differs by 1 ulp. */
static void
paths(int h, bool masked, double factor, const char *shapes)
{
    heads = h;
    causal = masked;
    scale = factor;
    check_paths(masked ? "attention, causal" : "attention", f, shapes, 5e-6);
}

/* Operands of eight bits; a p that lies between two of them may fall to the other side when exp is 1 ulp off. */
static void
bf16(int h, bool masked, const char *shapes)
{
    heads = h;
    causal = masked;
    scale = 0;
    check_bf16(masked ? "attention, causal" : "attention", f, shapes, 1e-4, 6e-3);
}

int
main(void)
{
    gradient(2, false, 0, "2x5x6 2x7x6 2x7x6");
    gradient(1, false, 0.7, "2x4x3 2x3x3 2x3x3");
    gradient(2, true, 0, "2x5x6 2x5x6 2x5x6");
    check_gradient("attention of a tensor with itself", itself, "2x5x6", 1e-6);
    check_gradient("attention, keys are values", shared_keys, "2x5x6 2x7x6", 1e-6);
    check_paths("attention of a tensor with itself", itself, "2x70x24", 5e-6);
    check_paths("attention, keys are values", shared_keys, "2x70x24 2x33x24", 5e-6);
    check_paths("attention, keys are values, in parts", shared_keys, "1x600x24 1x33x24", 5e-6);
    paths(2, false, 0, "2x5x6 2x7x6 2x7x6");
    paths(2, false, 2, "1x50x80 1x77x80 1x77x80");
    paths(3, true, 0, "2x77x24 2x77x24 2x77x24");
    paths(2, false, 0, "1x100x80 1x100x80 1x100x80");
    paths(1, false, 0, "2x49x160 2x97x160 2x97x160");
    paths(2, false, 0, "1x600x22 1x130x22 1x130x22");
    paths(1, true, 0, "1x210x40 1x210x40 1x210x40");
    paths(1, false, 0, "1x70x512 1x65x512 1x65x512");
    bf16(2, false, "2x5x6 2x7x6 2x7x6");
    bf16(3, true, "2x77x24 2x77x24 2x77x24");
    bf16(2, false, "1x100x80 1x100x80 1x100x80");
    bf16(1, false, "2x49x160 2x97x160 2x97x160");
    bf16(2, false, "1x601x22 1x131x22 1x131x22");
    bf16(1, true, "1x210x41 1x210x41 1x210x41");
    bf16(1, false, "1x70x512 1x65x512 1x65x512");
    return check_done();
}
