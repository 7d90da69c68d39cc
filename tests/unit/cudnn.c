/* What is asked of cuDNN: its own descriptors, read back, say which element lies where and which sizes meet.  Needs the library, no
 * card: graphs are finalized, engines are not chosen. */
#include "cudnn.h"

#include <dlfcn.h>

#include "tests/check.h"
#include "vendor.h"

/* A card that need not be here: cuDNN says which engines it would have for it. */
static const char H100[] =
    "{\"deviceVer\":900,\"multiProcessorCount\":132,\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,"
    "\"maxSharedMemoryPerBlockOptin\":232448,\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":32,"
    "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"regsPerBlock\":65536,\"totalGlobalMem\":85000000000,"
    "\"smClockRateKHz\":1980000,\"l2CacheSize\":52428800,\"maxBlockSize\":[1024,1024,64],\"memClockRateKHz\":2619000,"
    "\"maxGridSize\":[2147483647,65535,65535],\"supportCoopLaunch\":1,\"pciDeviceId\":0,\"isTccDriver\":0,\"cudaDeviceId\":0,"
    "\"driverVer\":13000,\"deviceName\":\"NVIDIA H100 80GB HBM3\"}";

static const char A100[] =
    "{\"deviceVer\":800,\"multiProcessorCount\":108,\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,"
    "\"maxSharedMemoryPerBlockOptin\":166912,\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":32,"
    "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"regsPerBlock\":65536,\"totalGlobalMem\":85000000000,"
    "\"smClockRateKHz\":1410000,\"l2CacheSize\":41943040,\"maxBlockSize\":[1024,1024,64],\"memClockRateKHz\":1593000,"
    "\"maxGridSize\":[2147483647,65535,65535],\"supportCoopLaunch\":1,\"pciDeviceId\":0,\"isTccDriver\":0,\"cudaDeviceId\":0,"
    "\"driverVer\":13000,\"deviceName\":\"NVIDIA A100-SXM4-80GB\"}";

static const struct cudnn_tensor *
find(const struct cudnn_asked *q, int64_t uid)
{
    for (int i = 0; i < q->tensors; i++)
        if (q->tensor[i].uid == uid)
            return &q->tensor[i];
    return NULL;
}

static bool
same(const int64_t *a, int64_t i, int64_t j, int64_t k, int64_t l)
{
    return a[0] == i && a[1] == j && a[2] == k && a[3] == l;
}

/* 0: skipped */
static int
asked(bool ok, const char *name, const char *const *reason)
{
    const char *why = *reason;

    if (!ok && why && (strcmp(why, "no cudnn") == 0 || strcmp(why, "this version has no such operation") == 0)) {
        check_skip(name, why);
        return 0;
    }
    return CHECK(ok, "%s: the graph is finalized (%s)", name, why ? why : "as asked");
}

_Alignas(64) static char bytes[64];

static struct conv_call
a_call(enum conv_kind kind)
{
    return (struct conv_call){ .kind = kind, .dtype = SD_BF16, .batch = 2, .height = 16, .width = 24, .in = 32, .out_height = 8,
                               .out_width = 12, .out = 64, .kernel_height = 3, .kernel_width = 3, .stride = 2, .bottom = 1, .right = 1,
                               .upsample = 1, .x = bytes, .w = bytes, .dy = bytes, .to = bytes };
}

/* Engines that are compiled when a plan is made want a driver to be offered, and a card to be made. */
static bool driver;

static void
engines(const char *name, const struct cudnn_asked *q, bool compiled)
{
    if (q->proposed == 0 && strncmp(name, "gradient of w", 13) == 0 && atoi(cudnn_version() + 6) < 92600)
        check_skip(name, "versions before 9.26 offer none for results of F32: our own kernel computes");
    else if (compiled && !driver)
        check_skip(name, "engines that are compiled are not offered without libcuda.so.1");
    else
        CHECK(q->kept > 0 && (compiled || (q->built && q->again)), "%s: %d engines offered, %d fit%s%s", name, q->proposed, q->kept,
              q->built ? ", a plan is made" : "", q->again ? ", and again from its text" : "");
}

/* operands: bit 0 bias, bit 1 channel_add, bit 2 residual */
static void
forward(int operands)
{
    struct conv_call c = a_call(CONV_FORWARD);
    struct cudnn_asked q;
    const struct cudnn_tensor *x, *w, *to, *bias, *add, *residual;
    int extras = (operands & 1) + (operands >> 1 & 1) + (operands >> 2 & 1), hidden = 0;
    const char *why;
    char name[64];

    snprintf(name, sizeof name, "convolution with %d more operands (%d)", extras, operands);
    c.bias = operands & 1 ? (const float *)bytes : NULL;
    c.channel_add = operands & 2 ? bytes : NULL;
    c.channel_add_pitch = 96;
    c.residual = operands & 4 ? bytes : NULL;
    if (!asked(cudnn_ask_conv2d(&c, H100, &q, &why), name, &why))
        return;
    engines(name, &q, extras > 0);
    x = find(&q, 1);
    w = find(&q, 2);
    to = find(&q, 4);
    bias = find(&q, 5);
    add = find(&q, 6);
    residual = find(&q, 7);
    for (int i = 0; i < q.tensors; i++)
        hidden += q.tensor[i].hidden;
    CHECK(q.operations == 1 + extras && hidden == extras && q.tensors == 3 + 2 * extras, "%s: %d operations, %d tensors, %d hidden", name,
          q.operations, q.tensors, hidden);
    CHECK(x && same(x->dims, 2, 32, 16, 24) && same(x->strides, 16 * 24 * 32, 1, 24 * 32, 32) && x->type == 9, "%s: x is NHWC", name);
    CHECK(w && same(w->dims, 64, 32, 3, 3) && same(w->strides, 9 * 32, 1, 3 * 32, 32), "%s: taps outside of channels", name);
    CHECK(to && same(to->dims, 2, 64, 8, 12) && same(to->strides, 8 * 12 * 64, 1, 12 * 64, 64) && to->type == 9 && !to->hidden,
          "%s: y is NHWC", name);
    CHECK(!bias == !(operands & 1) && (!bias || (same(bias->dims, 1, 64, 1, 1) && bias->type == 0)), "%s: bias, F32", name);
    CHECK(!add == !(operands & 2) && (!add || (same(add->dims, 2, 64, 1, 1) && add->strides[0] == 96 && add->strides[1] == 1)),
          "%s: one row for each sample, columns of something wider", name);
    CHECK(!residual == !(operands & 4) && (!residual || same(residual->dims, 2, 64, 8, 12)), "%s: residual like y", name);
}

/* Upsamplers of Stable Diffusion and of the VAE, at 512 x 512: the transposed convolution that a doubled picture is, and back. */
static void
doubled(const char *card, const char *described)
{
    static const int64_t sizes[][3] = { { 2, 8, 1280 }, { 2, 16, 1280 }, { 2, 32, 640 }, { 1, 64, 512 }, { 1, 128, 512 }, { 1, 256, 256 } };

    for (int i = 0; i < 24; i++) {
        int64_t batch = sizes[i / 4][0], n = sizes[i / 4][1], channels = sizes[i / 4][2];
        struct conv_call c = { .kind = i % 4 < 3 ? CONV_DATA : CONV_FORWARD, .dtype = SD_BF16, .batch = batch, .height = 2 * n,
                               .width = 2 * n, .in = channels, .out_height = n, .out_width = n, .out = channels, .kernel_height = 4,
                               .kernel_width = 4, .stride = 2, .top = 1, .left = 1, .bottom = 1, .right = 1, .upsample = 1, .x = bytes,
                               .w = bytes, .dy = bytes, .to = bytes };
        int more = i % 4 == 1 ? 1 : i % 4 == 2 ? 2 : 0;
        const struct cudnn_tensor *to, *bias, *residual;
        struct cudnn_asked q;
        const char *why;
        char name[96];

        c.bias = more ? (const float *)bytes : NULL;
        c.residual = more == 2 ? bytes : NULL;
        snprintf(name, sizeof name, "%lld x %lld doubled, %lld channels, on an %s, %s%s", (long long)n, (long long)n, (long long)channels,
                 card, c.kind == CONV_DATA ? "forward" : "gradient", more == 2 ? ", bias and residual" : more ? ", bias" : "");
        if (!asked(cudnn_ask_conv2d(&c, described, &q, &why), name, &why))
            continue;
        engines(name, &q, more > 0);
        to = find(&q, 4);
        bias = find(&q, 5);
        residual = find(&q, 7);
        CHECK(q.operations == 1 + more && to && !to->hidden && to->type == 9
              && (c.kind == CONV_DATA ? same(to->dims, batch, channels, 2 * n, 2 * n) : same(to->dims, batch, channels, n, n))
              && !bias == !more && (!bias || (same(bias->dims, 1, channels, 1, 1) && bias->type == 0))
              && !residual == (more < 2) && (!residual || same(residual->dims, batch, channels, 2 * n, 2 * n)),
              "%s: %d operations", name, q.operations);
    }
}

static void
gradients(void)
{
    struct conv_call c = a_call(CONV_DATA);
    struct cudnn_asked q;
    const struct cudnn_tensor *to, *dy;
    const char *why;

    if (!asked(cudnn_ask_conv2d(&c, H100, &q, &why), "gradient of x", &why))
        return;
    engines("gradient of x", &q, false);
    to = find(&q, 4);
    dy = find(&q, 3);
    CHECK(to && same(to->dims, 2, 32, 16, 24) && to->type == 9 && dy && same(dy->dims, 2, 64, 8, 12) && find(&q, 2) && !find(&q, 1),
          "gradient of x: from dy and w");
    c.batch = 64;
    c.in = c.out = 512;
    c.height = c.width = c.out_height = c.out_width = 1024;
    c.stride = c.top = c.left = 1;
    asked(cudnn_ask_conv2d(&c, NULL, &q, &why), "2^35 numbers from as many", &why);
    c = a_call(CONV_WEIGHT);
    if (!asked(cudnn_ask_conv2d(&c, H100, &q, &why), "gradient of w", &why))
        return;
    to = find(&q, 4);
    CHECK(to && same(to->dims, 64, 32, 3, 3) && to->type == 0 && find(&q, 1) && find(&q, 3) && !find(&q, 2),
          "gradient of w: F32, from x and dy");
    engines("gradient of w", &q, true);
}

/* Of the gradients' graph: 17 operations; scores are F32, what is turned of them has the operands' type. */
static void
between(const char *name, const struct cudnn_asked *q)
{
    int hidden = 0, square = 0, views = 0;

    for (int i = 0; i < q->tensors; i++) {
        const struct cudnn_tensor *t = &q->tensor[i];

        hidden += t->hidden;
        square += t->hidden && t->type == 0 && same(t->dims, 2, 5, 100, 77) && same(t->strides, 5 * 7700, 7700, 77, 1);
        views += t->hidden && t->type == 2 && same(t->dims, 2, 5, 77, 100) && same(t->strides, 5 * 7700, 7700, 1, 77);
        views += t->hidden && t->type == 2 && same(t->dims, 2, 5, 77, 40) && same(t->strides, 77 * 400, 40, 400, 1);
    }
    CHECK(q->operations == 17 && hidden == 13 && square == 8 && views == 3, "%s: %d operations, %d hidden tensors, %d of scores, %d views",
          name, q->operations, hidden, square, views);
}

static void
heads(bool backward)
{
    struct attention_call c = { .backward = backward, .dtype = SD_F16, .batch = 2, .heads = 5, .L = 100, .S = 77, .d = 40, .scale = 0.1,
                                .q = bytes, .k = bytes, .v = bytes, .o = bytes, .lse = (float *)bytes, .q_pitch = 200, .k_pitch = 400,
                                .v_pitch = 400, .o_pitch = 200, .o_gradient = bytes, .o_gradient_pitch = 200, .q_gradient = bytes,
                                .q_gradient_pitch = 600, .q_store = true, .k_gradient = bytes, .k_gradient_pitch = 400 };
    struct cudnn_asked q;
    const struct cudnn_tensor *t;
    const char *why, *name = backward ? "attention, gradients" : "attention";

    if (!backward) {
        c.o_gradient = c.q_gradient = c.k_gradient = NULL;
        c.o_gradient_pitch = c.q_gradient_pitch = c.k_gradient_pitch = 0;
    }
    if (!asked(cudnn_ask_attention(&c, H100, &q, &why), name, &why))
        return;
    engines(name, &q, true);
    t = find(&q, 1);
    CHECK(t && same(t->dims, 2, 5, 100, 40) && same(t->strides, 100 * 200, 40, 200, 1) && t->type == 2, "%s: queries", name);
    t = find(&q, 2);
    CHECK(t && (backward ? same(t->dims, 2, 5, 40, 77) && same(t->strides, 77 * 400, 40, 1, 400)
                         : same(t->dims, 2, 5, 77, 40) && same(t->strides, 77 * 400, 40, 400, 1)),
          "%s: keys, columns of something wider%s", name, backward ? ", turned" : "");
    t = find(&q, 5);
    CHECK(t && same(t->dims, 2, 5, 100, 1) && same(t->strides, 500, 100, 1, 1) && t->type == 0, "%s: statistics", name);
    t = find(&q, 6);
    CHECK(t && t->by_value && t->type == 0, "%s: scale is a number", name);
    if (!backward)
        return;
    t = find(&q, 8);
    CHECK(t && same(t->strides, 100 * 600, 40, 600, 1), "%s: dq is stored in its place", name);
    t = find(&q, 9);
    CHECK(t && same(t->strides, 77 * 200, 40, 200, 1), "%s: dk, which is added, is made dense beside", name);
    CHECK(find(&q, 10) && find(&q, 7), "%s: dv is made though nobody wants it", name);
    t = find(&q, 11);
    CHECK(t && same(t->dims, 2, 5, 100, 1) && same(t->strides, 500, 100, 1, 1) && t->type == 0 && !t->hidden, "%s: sums of do * o", name);
    t = find(&q, 12);
    CHECK(t && t->by_value && t->type == 0, "%s: one is a number", name);
    between(name, &q);
}

/* What Stable Diffusion asks for at 512 x 512 */
static void
stable_diffusion(void)
{
    static const int levels[][3] = { { 4096, 40, 8 }, { 1024, 80, 8 }, { 256, 160, 8 }, { 64, 160, 8 }, { 4096, 64, 5 }, { 1024, 64, 10 } };
    static const int convs[][3] = { { 64, 320, 320 }, { 64, 960, 320 }, { 32, 640, 640 }, { 16, 1280, 1280 }, { 8, 2560, 1280 } };
    struct cudnn_asked q;
    const char *why;
    char name[80];

    for (int i = 0; i < 12; i++) {
        int L = levels[i / 2][0], d = levels[i / 2][1], h = levels[i / 2][2], S = i % 2 ? 77 : L;
        int64_t width = (int64_t)d * h;
        struct attention_call c = { .dtype = SD_BF16, .batch = 2, .heads = h, .L = L, .S = S, .d = d, .scale = 0.1, .q = bytes, .k = bytes,
                                    .v = bytes, .o = bytes, .lse = i % 2 ? NULL : (float *)bytes, .q_pitch = 3 * width,
                                    .k_pitch = 3 * width, .v_pitch = 3 * width, .o_pitch = width };

        snprintf(name, sizeof name, "attention, %d queries, %d keys, %d x %d", L, S, h, d);
        if (asked(cudnn_ask_attention(&c, H100, &q, &why), name, &why))
            engines(name, &q, true);
    }
    for (int i = 0; i < 24; i++) {
        int L = levels[i / 4][0], d = levels[i / 4][1], h = levels[i / 4][2], S = i % 2 ? 77 : L;
        bool ampere = i / 2 % 2, wide = ampere && d > 128;
        int64_t width = (int64_t)d * h, squares;
        struct attention_call c = { .backward = true, .dtype = i % 3 ? SD_BF16 : SD_F16, .batch = 4, .heads = h, .L = L, .S = S, .d = d,
                                    .scale = 0.1, .q = bytes, .k = bytes, .v = bytes, .o = bytes, .lse = (float *)bytes,
                                    .q_pitch = 3 * width, .k_pitch = 3 * width, .v_pitch = 3 * width, .o_pitch = width,
                                    .o_gradient = bytes, .o_gradient_pitch = width, .q_gradient = bytes, .q_store = true,
                                    .q_gradient_pitch = 3 * width, .k_gradient = bytes, .k_gradient_pitch = 3 * width };

        snprintf(name, sizeof name, "gradients of attention on sm_%d, %d queries, %d keys, %d x %d", ampere ? 80 : 90, L, S, h, d);
        if (!asked(cudnn_ask_attention(&c, ampere ? A100 : H100, &q, &why), name, &why))
            continue;
        if (!driver) {
            check_skip(name, "engines that are compiled are not offered without libcuda.so.1");
            continue;
        }
        CHECK(wide ? q.kept == 0 : q.kept > 0 && q.within == q.kept, "%s: %d engines fit, %d of them into the workspace: %lld bytes", name,
              q.kept, q.within, (long long)q.wanted);
        squares = find(&q, 1)->dims[0] * find(&q, 1)->dims[1] * L * S * 2;
        CHECK(wide || q.wanted >= squares, "%s: %lld bytes, with all of ds: nothing is added to out of order", name, (long long)q.wanted);
    }
    for (int i = 0; i < 15; i++) {
        static const char *const kinds[] = { "convolution", "gradient of x", "gradient of w" };
        const int *s = convs[i / 3];
        struct conv_call c = { .kind = (enum conv_kind)(i % 3), .dtype = SD_BF16, .batch = 2, .height = s[0], .width = s[0],
                               .in = s[1], .out_height = s[0], .out_width = s[0], .out = s[2], .kernel_height = 3, .kernel_width = 3,
                               .stride = 1, .top = 1, .left = 1, .bottom = 1, .right = 1, .upsample = 1, .x = bytes, .w = bytes,
                               .dy = bytes, .to = bytes };

        if (c.kind == CONV_FORWARD) {
            c.bias = (float *)bytes;
            c.channel_add = bytes;
            c.channel_add_pitch = 20160;
        }
        snprintf(name, sizeof name, "%s, %d x %d, %d to %d channels", kinds[i % 3], s[0], s[0], s[1], s[2]);
        if (asked(cudnn_ask_conv2d(&c, H100, &q, &why), name, &why))
            engines(name, &q, c.kind != CONV_DATA);
    }
}

static void
not_taken(void)
{
    struct conv_call c = a_call(CONV_FORWARD);
    struct attention_call a = { .causal = true, .dtype = SD_F16, .batch = 1, .heads = 1, .L = 8, .S = 8, .d = 8, .q = bytes, .k = bytes,
                                .v = bytes, .o = bytes, .q_pitch = 8, .k_pitch = 8, .v_pitch = 8, .o_pitch = 8 };
    struct cudnn_asked q;
    const char *why;

    c.dtype = SD_F32;
    CHECK(!cudnn_ask_conv2d(&c, NULL, &q, &why) && !why, "F32 is not rounded to TF32 unasked");
    c = a_call(CONV_FORWARD);
    c.in = 12;
    CHECK(!cudnn_ask_conv2d(&c, NULL, &q, &why) && !why, "12 channels of 16 bits: not for the library");
    c = a_call(CONV_FORWARD);
    c.channel_add = bytes;
    c.channel_add_pitch = 68;
    CHECK(!cudnn_ask_conv2d(&c, NULL, &q, &why) && !why, "what is added, in rows that are not aligned: not for the library");
    c = a_call(CONV_FORWARD);
    c.kind = CONV_WEIGHT;
    c.upsample = 2;
    CHECK(!cudnn_ask_conv2d(&c, NULL, &q, &why) && !why, "the gradient of w under an enlarged picture: not for the library");
    CHECK(!cudnn_ask_attention(&a, NULL, &q, &why) && !why, "causal: not for the library");
    a.causal = false;
    a.k_pitch = 12;
    CHECK(!cudnn_ask_attention(&a, NULL, &q, &why) && !why, "rows that are not aligned: not for the library");
    a.k_pitch = 8;
    a.lse = (float *)bytes + 1;
    CHECK(!cudnn_ask_attention(&a, NULL, &q, &why) && !why, "statistics that are not aligned: not for the library");
}

int
main(void)
{
    /* the toolkit's stub of the driver answers nothing, but is one: cuDNN finds it by name once it is open */
    driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL) || dlopen("/usr/local/cuda/lib64/stubs/libcuda.so", RTLD_NOW | RTLD_GLOBAL);
    printf("# %s\n", cudnn_version());
    for (int operands = 0; operands < 8; operands++)
        forward(operands);
    gradients();
    doubled("H100", H100);
    doubled("A100", A100);
    heads(false);
    heads(true);
    stable_diffusion();
    not_taken();
    return check_done();
}
