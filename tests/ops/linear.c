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
    return sd_op_linear(g, sd_op_linear(g, in[0], in[2], NULL, NULL), in[3], NULL, sd_op_linear(g, in[0], in[1], NULL, NULL));
}

/* Half-precision weights are the same as their values written out in f32. */
static void
check_dtype(enum sd_dtype dtype, const char *name)
{
    enum { ROWS = 13, IN = 37, OUT = 53 };
    struct sd_scope *s = sd_scope_open();
    static uint16_t raw[OUT * IN + 1];
    static float values[OUT * IN], x[ROWS * IN], y[2][ROWS * OUT];
    struct sd_param *param, *converted;

    for (int i = 0; i < OUT * IN; i++)          /* exponents around one, odd mantissas; a mapping that is not aligned */
        raw[i + 1] = (uint16_t)(dtype == SD_BF16 ? 0x3f00 + i * 37 % 256 : 0x3800 + i * 37 % 2048) | (i % 3 ? 0x8000 : 0);
    for (int i = 0; i < ROWS * IN; i++)
        x[i] = (float)(i * 29 % 101 - 50) / 50;
    param = sd_param_new(s, "w", dtype, 2, (int64_t[]){ OUT, IN }, raw + 1);
    {
        real wide[OUT * IN];

        sd_param_convert(wide, param, 0, OUT * IN);
        for (int i = 0; i < OUT * IN; i++)
            values[i] = (float)wide[i];
    }
    converted = sd_param_new(s, "w", SD_F32, 2, (int64_t[]){ OUT, IN }, values);
    for (int i = 0; i < 2; i++) {
        struct sd_graph *g = sd_graph_new();
        struct sd_tensor *in = sd_input(g, "x", SD_F32, 2, (int64_t[]){ ROWS, IN });
        struct sd_tensor *out = sd_keep(sd_op_linear(g, in, sd_use(g, i ? converted : param), NULL, NULL));
        struct sd_plan *p = sd_plan_inference(g, 0);

        sd_plan_bind(p, NULL);
        sd_feed(p, in, x);
        sd_run(p);
        sd_fetch(p, out, y[i]);
        sd_plan_free(p);
        sd_graph_free(g);
    }
    CHECK(memcmp(y[0], y[1], sizeof y[0]) == 0 && check_distance(y[0], y[1], ROWS * OUT) == 0 && y[0][5] != 0,
          "a weight in %s counts as its values in F32", name);
    sd_scope_close(s);
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
    CHECK(!sd_graph_ok(g) && strstr(sd_reason(), "to_k") && strstr(sd_reason(), "[5, 7]"), "a weight that does not fit: %s",
          sd_reason());
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

    /* sums of up to 3000 terms in f32, in another order than the C loops */
    check_paths("linear", full, "2x31x40 70x40 70 2x31x70", 2e-6);
    check_paths("linear, one row", biased, "1x320 1280x320 1280", 2e-6);
    check_paths("linear, odd", full, "7x3 5x3 5 7x5", 2e-6);
    check_paths("linear, deep", biased, "97x1000 49x1000 49", 5e-6);
    check_paths("linear, many rows", full, "2999x20 33x20 33 2999x33", 5e-6);
    check_paths("linear, 1x1 weight", biased, "66x17 18x17x1x1 18", 2e-6);
    check_paths("linear, LoRA", lora, "2100x48 96x48 4x48 96x4", 5e-6);
    check_paths("linear, twice", twice, "100x30 48x30 48x30", 2e-6);
    check_dtype(SD_F16, "F16");
    check_dtype(SD_BF16, "BF16");
    check_faults();
    return check_done();
}
