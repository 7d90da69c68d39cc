/* resnet.c - resnet and upsampling blocks. */
#include "resnet.h"

/* h = conv1(silu(norm1(x))) + time, which is time_emb_proj(silu(emb));   y = conv_shortcut(x) + conv2(silu(norm2(h)))
 * conv_shortcut (1x1) only where the width changes. */
struct sd_tensor *
sd_resnet(const struct sd_module *m, struct sd_tensor *x, struct sd_tensor *beside, struct sd_tensor *time, int out,
          int groups, double eps)
{
    struct sd_tensor *h, *shortcut;

    sd_block_begin(m->graph);
    h = sd_group_norm_beside(m, "norm1", x, beside, groups, eps, true);
    h = sd_conv2d(m, "conv1", h, out, 3, sd_same(3), time, NULL);
    h = sd_group_norm(m, "norm2", h, groups, eps, true);
    if (sd_cols(x) + (beside ? sd_cols(beside) : 0) != out)
        shortcut = sd_linear_beside(m, "conv_shortcut", x, beside, out, true, NULL);
    else
        shortcut = beside ? sd_op_concat(m->graph, x, beside) : x;
    h = sd_conv2d(m, "conv2", h, out, 3, sd_same(3), NULL, shortcut);
    sd_block_end(m->graph);
    return h;
}

/* The first `height` rows and `width` columns of x [B, H, W, C]; axes in the middle become last ones by reshaping. */
static struct sd_tensor *
crop(struct sd_graph *g, struct sd_tensor *x, int64_t height, int64_t width)
{
    int64_t B = x->shape[0], H = x->shape[1], W = x->shape[2], C = x->shape[3];

    if (width < W) {
        x = sd_reshape(x, 2, (int64_t[]){ B * H, W * C });
        x = sd_op_copy(g, sd_slice(x, 1, 0, width * C));
    }
    if (height < H) {
        x = sd_reshape(x, 2, (int64_t[]){ B, H * width * C });
        x = sd_op_copy(g, sd_slice(x, 1, 0, height * width * C));
    }
    return sd_reshape(x, 4, (int64_t[]){ B, height, width, C });
}

struct sd_tensor *
sd_upsample_conv(const struct sd_module *m, const char *name, struct sd_tensor *x, int64_t height, int64_t width)
{
    struct sd_conv2d a = sd_same(3);

    if (height == 2 * x->shape[1] && width == 2 * x->shape[2]) {
        a.upsample = 2; /* folded into the convolution */
        return sd_conv2d(m, name, x, sd_cols(x), 3, a, NULL, NULL);
    }
    /* an odd size above: nearest-neighbour to 2H-1 is the doubled picture without its last row (diffusers'
     * upsample_size) */
    sd_path_push(m->graph, "%s", name);
    x = crop(m->graph, sd_op_upsample(m->graph, x), height, width);
    sd_path_pop(m->graph);
    return sd_conv2d(m, name, x, sd_cols(x), 3, a, NULL, NULL);
}
