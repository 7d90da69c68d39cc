/* Forms of parameters on a device: where they lie, what they hold, and when they go. */
#include "on_device.h"

#include "cuda.h"
#include "ops.h"
#include "param.h"
extern "C" {
#include "plan.h"
}

typedef std::vector<float> floats;

static struct sd_param *
param(struct sd_scope *s, const char *name, const floats &values, int ndim, const int64_t *shape)
{
    return sd_param_new(s, name, SD_F32, ndim, shape, values.data());
}

/* What a form holds, as F32. */
template <class T> static floats
held(struct sd_device *d, const struct sd_param *p, enum sd_param_layout layout)
{
    floats f;

    for (T x : down(d, static_cast<const T *>(sd_param_on(p, sd::dtype_of<T>::value, layout)), p->numel))
        f.push_back(sd::to_float(x));
    return f;
}

template <class T> static floats
rounded(const floats &x)
{
    floats f;

    for (float v : x)
        f.push_back(sd::to_float(sd::from_float<T>(v)));
    return f;
}

/* [out, in, taps] to [out, taps, in] */
static floats
turned(const floats &x, int64_t out, int64_t in, int64_t taps)
{
    floats y(x.size());

    for (int64_t o = 0; o < out; o++)
        for (int64_t i = 0; i < in; i++)
            for (int64_t t = 0; t < taps; t++)
                y[(size_t)((o * taps + t) * in + i)] = x[(size_t)((o * in + i) * taps + t)];
    return y;
}

static bool
aligned(const struct sd_param *p, enum sd_dtype dtype, enum sd_param_layout layout)
{
    return (uintptr_t)sd_param_on(p, dtype, layout) % 256 == 0;
}

/* Three parameters, one of which dies before the others; forms that are wanted later, and again. */
static void
check_lives(struct sd_device *d)
{
    struct sd_scope *s = sd_scope_open(), *inner = sd_scope_open();
    const int64_t square[] = { 7, 5 }, kernel[] = { 3, 5, 3, 3 }, row[] = { 111 };
    const floats v[3] = { numbers(35, 1), numbers(135, 2), numbers(111, 3) };
    struct sd_param *a = param(s, "a", v[0], 2, square), *b = param(s, "b", v[1], 4, kernel), *c = param(inner, "c", v[2], 1, row);
    struct sd_param *all[] = { a, c, b, a };
    size_t before, counted = sd_param_device_bytes();
    uint64_t written;
    void *was;

    sd_param_want(a, SD_F32, SD_ROWS);
    sd_param_want(a, SD_BF16, SD_ROWS);
    sd_param_want(b, SD_F16, SD_TAPS);
    sd_param_want(c, SD_BF16, SD_ROWS);
    sd_device_workspace(d, sd_param_device_scratch());
    before = sd_device_allocated(d);
    sd_params_upload(all, 4, d);
    CHECK(sd_device_allocated(d) - before == 4 * 256 + 256 && sd_param_device_bytes() - counted == 4 * 256 + 256,
          "allocated and counted, in parts of 256 bytes: %zu, %zu", sd_device_allocated(d) - before, sd_param_device_bytes() - counted);
    CHECK(aligned(a, SD_F32, SD_ROWS) && aligned(a, SD_BF16, SD_ROWS) && aligned(b, SD_F16, SD_TAPS) && aligned(c, SD_BF16, SD_ROWS),
          "each is aligned");
    CHECK(held<float>(d, a, SD_ROWS) == v[0] && held<sd::bf16>(d, a, SD_ROWS) == rounded<sd::bf16>(v[0])
          && held<sd::f16>(d, b, SD_TAPS) == rounded<sd::f16>(turned(v[1], 3, 5, 9)) && held<sd::bf16>(d, c, SD_ROWS) == rounded<sd::bf16>(v[2]),
          "each holds its parameter");

    was = sd_param_on(a, SD_BF16, SD_ROWS);
    sd_param_want(a, SD_F16, SD_ROWS);
    sd_params_upload(all, 4, d);
    CHECK(sd_device_allocated(d) - before == 6 * 256 && sd_param_on(a, SD_BF16, SD_ROWS) == was, "a form wanted later has its own");
    written = sd_device_counts(d).written;
    sd_params_upload(all, 4, d);
    CHECK(sd_device_allocated(d) - before == 6 * 256 && sd_device_counts(d).written == written
          && held<sd::f16>(d, a, SD_ROWS) == rounded<sd::f16>(v[0]), "nothing is made twice");

    sd_scope_close(inner);
    CHECK(sd_device_allocated(d) - before == 5 * 256, "what dies first goes: %zu left", sd_device_allocated(d) - before);
    CHECK(sd_param_is_on_device(a), "it is known to be there");
    sd_param_forget(a);
    CHECK(!sd_param_is_on_device(a), "and not to be, when it is forgotten");
    CHECK(sd_param_device_bytes() - counted == 2 * 256, "forgotten forms are not counted");
    CHECK(held<sd::f16>(d, b, SD_TAPS) == rounded<sd::f16>(turned(v[1], 3, 5, 9)), "what lies beside them is untouched");
    sd_param_want(a, SD_BF16, SD_ROWS);
    sd_params_upload(all, 1, d);
    CHECK(held<sd::bf16>(d, a, SD_ROWS) == rounded<sd::bf16>(v[0]), "and may be made again");
    sd_scope_close(s);
    CHECK(sd_device_allocated(d) == before && sd_param_device_bytes() == counted, "all is freed");
}

/* Whatever the pieces are that a form is made in. */
static void
check_pieces(struct sd_device *d)
{
    const int64_t kernel[] = { 7, 5, 3, 3 }, matrix[] = { 11, 16 }, thin[] = { 3, 16 }, tall[] = { 11, 3 };
    const floats v[4] = { numbers(315, 1), numbers(176, 2), numbers(48, 3), numbers(33, 4) };
    std::vector<double> wide(v[1].begin(), v[1].end());
    const size_t whole = sd_upload_bytes, bytes[] = { whole, 1, 4 * 45, 2 * 4 * 45, 1000 };
    std::vector<uint8_t> first, form;

    for (size_t limit : bytes) {
        struct sd_scope *s = sd_scope_open();
        struct sd_projection part[2] = {};
        struct sd_param *all[3] = { param(s, "taps", v[0], 4, kernel), sd_param_new(s, "double", SD_F64, 2, matrix, wide.data()), NULL };
        struct sd_projections both = { 2, part };
        size_t size = sd_param_device_bytes();

        part[0].weight = param(s, "weight", v[1], 2, matrix);
        part[1].weight = all[1];
        part[1].down = param(s, "down", v[2], 2, thin);
        part[1].up = param(s, "up", v[3], 2, tall);
        all[2] = sd_param_join(&both);
        sd_upload_bytes = limit;
        sd_param_want(all[2], SD_BF16, SD_ROWS);
        size = sd_param_device_bytes() - size;
        sd_param_want(all[0], SD_BF16, SD_TAPS);
        sd_param_want(all[1], SD_F16, SD_ROWS);
        sd_params_upload(all, 3, d);
        CHECK(held<sd::bf16>(d, all[0], SD_TAPS) == rounded<sd::bf16>(turned(v[0], 7, 5, 9))
              && held<sd::f16>(d, all[1], SD_ROWS) == rounded<sd::f16>(v[1]), "in pieces of %zu bytes", limit);
        form = down(d, static_cast<const uint8_t *>(sd_param_on(all[2], SD_BF16, SD_ROWS)), size);
        if (limit == whole)
            first = form;
        CHECK(form == first, "joined ones too");
        sd_scope_close(s);
    }
    sd_upload_bytes = whole;
}

struct network {
    struct sd_graph *graph;
    struct sd_plan *plan;
    struct sd_tensor *x, *y;
};

/* y = (x shared') own' */
static struct network
network(struct sd_device *d, struct sd_param *shared, struct sd_param *own)
{
    const struct sd_compute on = { d, SD_BF16, SD_F32, false };
    struct network n = {};
    const int64_t shape[] = { 4, 6 };

    n.graph = sd_graph_new();
    sd_graph_on(n.graph, &on);
    n.x = sd_input(n.graph, "x", SD_BF16, 2, shape);
    n.y = sd_op_linear(n.graph, n.x, sd_use(n.graph, shared), NULL, NULL);
    n.y = sd_keep(sd_op_linear(n.graph, n.y, sd_use(n.graph, own), NULL, NULL));
    n.plan = sd_plan_inference(n.graph, 0);
    sd_plan_bind(n.plan, NULL);
    return n;
}

static std::vector<uint16_t>
result(struct network *n)
{
    std::vector<uint16_t> x(24), y(n->y->numel);

    for (size_t i = 0; i < x.size(); i++)
        x[i] = (uint16_t)(0x3f80 + 5 * i);
    sd_feed(n->plan, n->x, x.data());
    sd_run(n->plan);
    sd_fetch(n->plan, n->y, y.data());
    return y;
}

static void
end(struct network *n)
{
    sd_plan_free(n->plan);
    sd_graph_free(n->graph);
}

/* Two graphs over one parameter, and one of their own each: the first may go, with all that is its own. */
static void
check_graphs(struct sd_device *d)
{
    struct sd_scope *s = sd_scope_open(), *first = sd_scope_open(), *second = sd_scope_open();
    const int64_t square[] = { 6, 6 }, wide[] = { 9, 6 };
    const floats v[3] = { numbers(36, 1), numbers(54, 2), numbers(54, 3) };
    struct sd_param *shared = param(s, "shared", v[0], 2, square);
    struct network a = network(d, shared, param(first, "first", v[1], 2, wide)), b, again;
    size_t forms = sd_param_device_bytes(), all;
    std::vector<uint16_t> of_a = result(&a), of_b;

    b = network(d, shared, param(second, "second", v[2], 2, wide));
    CHECK(sd_param_device_bytes() - forms == 256, "one more form, not two: %zu bytes", sd_param_device_bytes() - forms);
    of_b = result(&b);
    CHECK(of_a != of_b && result(&a) == of_a, "each graph has its own");
    end(&a);
    all = sd_device_allocated(d);
    sd_scope_close(first);
    CHECK(all - sd_device_allocated(d) == 256, "the first one's goes with it: %zu bytes", all - sd_device_allocated(d));
    CHECK(result(&b) == of_b, "the second one's stay");
    end(&b);
    sd_param_drop(shared);
    again = network(d, shared, param(second, "first again", v[1], 2, wide));
    CHECK(result(&again) == of_a, "and what was dropped is made again");
    end(&again);
    sd_scope_close(second);
    sd_scope_close(s);
}

int
main(void)
{
    struct sd_device *d = open_device();

    check_lives(d);
    check_pieces(d);
    check_graphs(d);
    sd_device_close(d);
    return check_done();
}
