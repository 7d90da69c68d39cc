/* conv2d: gradients in f64 against differences; fast paths in f32 against the C loops. */
#include "check_op.h"

static struct sd_conv2d how;

static struct sd_tensor *
plain(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_conv2d(g, in[0], in[1], NULL, NULL, NULL, how);
}

static struct sd_tensor *
biased(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_conv2d(g, in[0], in[1], in[2], NULL, NULL, how);
}

static struct sd_tensor *
full(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_conv2d(g, in[0], in[1], in[2], in[3], in[4], how);
}

/* channel_add is columns of something wider */
static struct sd_tensor *
sliced(struct sd_graph *g, struct sd_tensor **in)
{
    int64_t out = in[1]->shape[0];
    struct sd_tensor *y = sd_op_conv2d(g, in[0], in[1], in[2], sd_slice(in[3], 1, 3, out), NULL, how);

    return sd_op_conv2d(g, in[0], in[1], NULL, sd_slice(in[3], 1, out + 3, out), y, how);
}

static struct sd_tensor *
residual(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_conv2d(g, in[0], in[1], NULL, NULL, in[2], how);
}

/* x in two places: its gradient is stored by the outer node, then added to by the inner one, whose weight may be
 * frozen */
static struct sd_tensor *
twice(struct sd_graph *g, struct sd_tensor **in)
{
    return sd_op_conv2d(g, in[0], in[2], NULL, NULL, sd_op_conv2d(g, in[0], in[1], NULL, NULL, NULL, how), how);
}

/* the enlargement folded in is the enlargement written out */
static struct sd_tensor *
apart(struct sd_graph *g, struct sd_tensor **in)
{
    struct sd_conv2d same = { 1, 1, 1, 1, 1, 1 };

    return sd_op_conv2d(g, sd_op_upsample(g, in[0]), in[1], in[2], NULL, NULL, same);
}

static size_t
nothing(void)
{
    return 0;
}

/* Both directions of 33 to 50 channels by Winograd: 36 matrices, columns rounded up to whole vectors. */
static size_t
two_forms(void)
{
    size_t lanes = sd_isa() >= SD_ISA_AVX512 ? 16 : sd_isa() == SD_ISA_AVX2 ? 8 : 4;

    return 36 * sizeof(float) * (33 * ((50 + lanes - 1) / lanes * lanes) + 50 * ((33 + lanes - 1) / lanes * lanes));
}

static void
check_faults(void)
{
    struct sd_graph *g = sd_graph_new();
    struct sd_tensor *x = sd_input(g, "x", SD_F32, 4, (int64_t[]){ 1, 4, 4, 6 });
    struct sd_tensor *w = sd_input(g, "w", SD_F32, 4, (int64_t[]){ 5, 7, 3, 3 });

    sd_path_push(g, "conv_in");
    sd_op_conv2d(g, x, w, NULL, NULL, NULL, (struct sd_conv2d){ 1, 1, 1, 1, 1, 1 });
    sd_path_pop(g);
    CHECK(!sd_graph_ok(g) && strstr(sd_reason(), "conv_in") && strstr(sd_reason(), "[5, 7, 3, 3]"),
          "a weight that does not fit: %s", sd_reason());
    sd_graph_free(g);
}

static void
run_once(check_describe *f, float *y, size_t numel, float *const *values, int64_t (*shapes)[4], int count)
{
    struct sd_graph *g = sd_graph_new();
    struct sd_tensor *in[3], *out;
    struct sd_plan *p;

    for (int i = 0; i < count; i++)
        in[i] = sd_input(g, "in", SD_F32, i < 2 ? 4 : 1, shapes[i]);
    out = sd_keep(f(g, in));
    p = sd_plan_inference(g, 0);
    if (!p || out->numel != numel)
        sd_bug("check", "%s", sd_reason());
    sd_plan_bind(p, NULL);
    for (int i = 0; i < count; i++)
        sd_feed(p, in[i], values[i]);
    sd_run(p);
    sd_fetch(p, out, y);
    sd_plan_free(p);
    sd_graph_free(g);
}

static void
check_upsample(void)
{
    enum { B = 2, H = 5, W = 7, C = 6, O = 9 };
    static float x[B * H * W * C], w[O * C * 9], bias[O], y[2][B * H * W * 4 * O];
    int64_t shapes[3][4] = { { B, H, W, C }, { O, C, 3, 3 }, { O } };
    float *values[3] = { x, w, bias };

    for (size_t i = 0; i < sizeof x / sizeof *x; i++)
        x[i] = (float)((int)(i * 37 % 101) - 50) / 64;
    for (size_t i = 0; i < sizeof w / sizeof *w; i++)
        w[i] = (float)((int)(i * 53 % 103) - 51) / 64;
    how = (struct sd_conv2d){ 1, 1, 1, 1, 1, 2 };
    run_once(biased, y[0], sizeof y[0] / sizeof **y, values, shapes, 3);
    run_once(apart, y[1], sizeof y[1] / sizeof **y, values, shapes, 3);
    CHECK(check_distance(y[0], y[1], sizeof y[0] / sizeof **y) <= 1e-6 && y[0][3] != 0,
          "enlargement folded in equals enlargement written out: %.1e",
              check_distance(y[0], y[1], sizeof y[0] / sizeof **y));
}

/* A kernel that is one at a single element moves the picture: what the paddings and the order of a kernel's elements
 * mean. */
static void
check_shift(struct sd_conv2d a, int kernel, int ky, int kx)
{
    enum { H = 9, W = 8, C = 33, O = 34 };
    static float x[H * W * C], w[O * C * 9], y[4 * H * W * O];
    int64_t shapes[3][4] = { { 1, H, W, C }, { O, C, kernel, kernel } };
    int64_t high = (H * a.upsample + a.top + a.bottom - kernel) / a.stride + 1;
    int64_t wide = (W * a.upsample + a.left + a.right - kernel) / a.stride + 1;
    double worst = 0;

    memset(w, 0, sizeof w);
    for (int i = 0; i < H * W * C; i++)
        x[i] = (float)(i * 37 % 101 - 50);
    for (int o = 0; o < O; o++)                 /* output o shows input channel 32 - o */
        if (o < C)
            w[((o * C + C - 1 - o) * kernel + ky) * kernel + kx] = 1;
    how = a;
    run_once(plain, y, (size_t)(high * wide * O), (float *[]){ x, w }, shapes, 2);
    for (int64_t i = 0; i < high; i++)
        for (int64_t j = 0; j < wide; j++)
            for (int o = 0; o < O; o++) {
                int64_t r = i * a.stride + ky - a.top, c = j * a.stride + kx - a.left;
                bool inside = r >= 0 && r < H * a.upsample && c >= 0 && c < W * a.upsample && o < C;
                float wanted = inside ? x[(r / a.upsample * W + c / a.upsample) * C + C - 1 - o] : 0;
                double error = fabs((double)y[(i * wide + j) * O + o] - (double)wanted);

                if (!(error <= worst))
                    worst = error;
            }
    CHECK(worst <= 1e-3, "%dx%d, one at (%d, %d), stride %d, padding %d %d %d %d, enlarged %d: moved as it says, within %.1e of 50",
          kernel, kernel, ky, kx, a.stride, a.top, a.left, a.bottom, a.right, a.upsample, worst);
}

int
main(void)
{
    for (int ky = 0; ky < 3; ky += 2)
        for (int kx = 0; kx < 3; kx++) {
            check_shift((struct sd_conv2d){ 1, 1, 1, 1, 1, 1 }, 3, ky, kx);
            check_shift((struct sd_conv2d){ 1, 2, 0, 1, 1, 1 }, 3, ky, kx);
            check_shift((struct sd_conv2d){ 2, 0, 0, 1, 1, 1 }, 3, ky, kx);
            check_shift((struct sd_conv2d){ 1, 1, 1, 1, 1, 2 }, 3, ky, kx);
        }
    check_shift((struct sd_conv2d){ 2, 0, 0, 0, 0, 1 }, 2, 1, 0);

    how = (struct sd_conv2d){ 1, 1, 1, 1, 1, 1 };
    check_gradient("conv 3x3", plain, "2x3x5x3 4x3x3x3", 1e-7);
    check_gradient("conv 3x3, all inputs", full, "2x3x4x3 5x3x3x3 5 2x5 2x3x4x5", 1e-7);
    check_gradient("conv 3x3, added columns", sliced, "2x3x4x3 5x3x3x3 5 2x13", 1e-7);
    check_gradient("conv 3x3, one pixel", biased, "1x1x1x2 3x2x3x3 3", 1e-7);
    check_gradient("conv 3x3, twice", twice, "1x3x4x2 3x2x3x3 3x2x3x3", 1e-7);
    check_gradient("conv 3x3, many rows", biased, "1x30x21x1 2x1x3x3 2", 1e-7);
    how = (struct sd_conv2d){ 2, 1, 1, 1, 1, 1 };
    check_gradient("conv 3x3 stride 2", biased, "2x5x4x3 4x3x3x3 4", 1e-7);
    how = (struct sd_conv2d){ 2, 0, 0, 1, 1, 1 };
    check_gradient("conv 3x3 stride 2, padded below and right", biased, "2x4x7x3 4x3x3x3 4", 1e-7);
    how = (struct sd_conv2d){ 1, 0, 0, 0, 0, 1 };
    check_gradient("conv 1x1", residual, "2x3x3x4 5x4x1x1 2x3x3x5", 1e-7);
    check_gradient("conv 2x3 unpadded", biased, "1x4x5x3 2x3x2x3 2", 1e-7);
    how = (struct sd_conv2d){ 2, 0, 0, 0, 0, 1 };
    check_gradient("conv 1x1 stride 2", plain, "1x5x4x3 2x3x1x1", 1e-7);
    how = (struct sd_conv2d){ 3, 2, 1, 0, 3, 1 };
    check_gradient("conv 4x4 stride 3", plain, "1x7x6x2 3x2x4x4", 1e-7);
    how = (struct sd_conv2d){ 1, 1, 1, 1, 1, 2 };
    check_gradient("conv 3x3 of an enlarged picture", full, "2x2x3x3 4x3x3x3 4 2x4 2x4x6x4", 1e-7);
    how = (struct sd_conv2d){ 1, 0, 2, 1, 1, 2 };
    check_gradient("conv 3x3 of an enlarged picture, uneven padding", biased, "1x3x2x3 4x3x3x3 4", 1e-7);

    /* sums of up to 20000 terms in f32, in another order than the C loops */
    how = (struct sd_conv2d){ 1, 1, 1, 1, 1, 1 };
    check_paths("conv 3x3", full, "2x9x7x32 64x32x3x3 64 2x64 2x9x7x64", 5e-6);
    check_paths("conv 3x3, added columns", sliced, "2x9x7x32 64x32x3x3 64 2x136", 5e-6);
    check_paths("conv 3x3, into 4", biased, "2x8x9x33 4x33x3x3 4", 5e-6);
    check_paths("conv 3x3, out of 4", biased, "2x8x9x4 50x4x3x3 50", 5e-6);
    check_paths("conv 3x3, 3 to 5", full, "2x7x5x3 5x3x3x3 5 2x5 2x7x5x5", 5e-6);
    check_paths("conv 3x3, whole tiles", residual, "2x16x16x64 48x64x3x3 2x16x16x48", 5e-6);
    check_paths("conv 3x3, deep", biased, "1x5x6x400 17x400x3x3 17", 1e-5);
    check_paths("conv 3x3, one pixel", biased, "1x1x1x16 16x16x3x3 16", 5e-6);
    /* with a frozen weight these go through Winograd's F(4,3), whose constants cost about a digit */
    check_paths("conv 3x3, tiles", full, "2x8x12x32 64x32x3x3 64 2x64 2x8x12x64", 1e-5);
    check_paths("conv 3x3, broken tiles", full, "2x9x14x33 50x33x3x3 50 2x50 2x9x14x50", 1e-5);
    check_paths("conv 3x3, deep tiles", biased, "1x12x12x512 32x512x3x3 32", 1e-5);
    check_paths("conv 3x3, twice", twice, "2x9x10x34 33x34x3x3 33x34x3x3", 1e-5);
    check_paths("conv 3x3, many tiles", residual, "1x94x91x40 36x40x3x3 1x94x91x36", 1e-5);
    how = (struct sd_conv2d){ 1, 0, 2, 1, 0, 1 };
    check_paths("conv 3x3, uneven padding", biased, "1x11x10x36 37x36x3x3 37", 1e-5);
    how = (struct sd_conv2d){ 1, 0, 0, 0, 0, 1 };
    check_paths("conv 3x3, no padding", biased, "1x11x13x36 37x36x3x3 37", 1e-5);
    how = (struct sd_conv2d){ 2, 1, 1, 1, 1, 1 };
    check_paths("conv 3x3 stride 2", full, "2x9x8x16 40x16x3x3 40 2x40 2x5x4x40", 5e-6);
    how = (struct sd_conv2d){ 2, 0, 0, 1, 1, 1 };
    check_paths("conv 3x3 stride 2, padded below and right", biased, "2x10x13x16 48x16x3x3 48", 5e-6);
    how = (struct sd_conv2d){ 1, 0, 0, 0, 0, 1 };
    check_paths("conv 1x1", residual, "2x7x9x33 49x33x1x1 2x7x9x49", 5e-6);
    check_paths("conv 2x3 unpadded", biased, "1x9x8x20 18x20x2x3 18", 5e-6);
    how = (struct sd_conv2d){ 2, 0, 0, 0, 0, 1 };
    check_paths("conv 1x1 stride 2", plain, "1x5x4x20 18x20x1x1", 5e-6);
    how = (struct sd_conv2d){ 3, 2, 1, 0, 3, 1 };
    check_paths("conv 4x4 stride 3", plain, "1x7x9x5 3x5x4x4", 5e-6);
    how = (struct sd_conv2d){ 1, 1, 1, 1, 1, 2 };
    check_paths("conv 3x3 of an enlarged picture", full, "2x5x7x31 64x31x3x3 64 2x64 2x10x14x64", 5e-6);
    check_paths("conv 3x3 of an enlarged picture, broken tiles", biased, "2x5x7x40 36x40x3x3 36", 1e-5);
    how = (struct sd_conv2d){ 1, 0, 2, 1, 1, 2 };
    check_paths("conv 3x3 of an enlarged picture, uneven padding", biased, "2x5x6x33 36x33x3x3 36", 1e-5);
    check_upsample();

    /* operands of eight bits: 1.5e-3 to 3e-3 off; sums in another order, in f32 on both sides */
    how = (struct sd_conv2d){ 1, 1, 1, 1, 1, 1 };
    check_bf16("conv 3x3", full, "2x9x7x32 64x32x3x3 64 2x64 2x9x7x64", 5e-6, 4e-3);
    check_bf16("conv 3x3, into 4", biased, "2x8x9x33 4x33x3x3 4", 5e-6, 4e-3);
    check_bf16("conv 3x3, 3 to 5", full, "2x7x5x3 5x3x3x3 5 2x5 2x7x5x5", 5e-6, 4e-3);
    check_bf16("conv 3x3, deep", biased, "1x5x6x401 17x401x3x3 17", 1e-5, 4e-3);
    check_bf16("conv 3x3, tiles", biased, "1x41x39x130 128x130x3x3 128", 2e-5, 4e-3);
    check_bf16("conv 3x3, pairs made once", biased, "2x5x6x33 345x33x3x3 345", 1e-5, 4e-3);
    how = (struct sd_conv2d){ 2, 0, 0, 1, 1, 1 };
    check_bf16("conv 3x3 stride 2, pairs made once", biased, "1x5x6x9 345x9x3x3 345", 1e-5, 4e-3);
    check_bf16("conv 3x3 stride 2, padded below and right", biased, "2x10x13x17 49x17x3x3 49", 5e-6, 4e-3);
    how = (struct sd_conv2d){ 1, 0, 0, 0, 0, 1 };
    check_bf16("conv 1x1", residual, "2x7x9x33 49x33x1x1 2x7x9x49", 5e-6, 4e-3);
    how = (struct sd_conv2d){ 3, 2, 1, 0, 3, 1 };
    check_bf16("conv 4x4 stride 3", plain, "1x7x9x5 3x5x4x4", 5e-6, 4e-3);
    how = (struct sd_conv2d){ 1, 1, 1, 1, 1, 2 };
    /* weights that fall on one pixel are rounded when they are summed, by the C loops one by one */
    check_bf16("conv 3x3 of an enlarged picture", full, "2x5x7x31 64x31x3x3 64 2x64 2x10x14x64", 3e-3, 4e-3);
    check_bf16("conv 3x3 of an enlarged picture, pairs made once", biased, "1x3x2x130 345x130x3x3 345", 3e-3, 4e-3);

    how = (struct sd_conv2d){ 1, 1, 1, 1, 1, 1 };
    check_dtypes("conv 3x3", full, "2x5x7x33 50x33x3x3 50 2x50 2x5x7x50", nothing);
    check_dtypes("conv 3x3, added columns", sliced, "2x5x7x33 40x33x3x3 40 2x83", nothing);
    check_dtypes("conv 3x3, deep", plain, "1x4x5x130 17x130x3x3", nothing);
    check_dtypes("conv 3x3, tiles", full, "2x9x14x33 50x33x3x3 50 2x50 2x9x14x50", two_forms);
    how = (struct sd_conv2d){ 2, 0, 0, 1, 1, 1 };
    check_dtypes("conv 3x3 stride 2", biased, "2x10x13x17 49x17x3x3 49", nothing);
    how = (struct sd_conv2d){ 2, 0, 0, 0, 0, 1 };
    check_dtypes("conv 1x1 stride 2", plain, "1x5x4x20 18x20x1x1", nothing);
    how = (struct sd_conv2d){ 1, 1, 1, 1, 1, 2 };
    check_dtypes("conv 3x3 of an enlarged picture", biased, "2x3x2x120 130x120x3x3 130", nothing);
    check_faults();
    return check_done();
}
