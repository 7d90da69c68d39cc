/* Kernels that hang on one another, one by one and recorded: each must see all that the one before it wrote, though it was launched
 * while that still ran (kernels/cuda.h, SD_BEGIN).  On the emulated device they cannot overlap; on a card they do. */
#include "device_ops.h"

#include "cuda.h"
#include "on_device.h"
#include "vendor.h"

enum { SIDE = 24, FEW = SIDE * SIDE, ADDS = 20 };

/* Many numbers, of which the last are added to a few, and these to them: large kernels whose tail is what a small one waits for.
 * Between them a product by a matrix of the identity, of cuBLASLt where it is, cleared memory and copies. */
struct chain {
    struct sd_device *device;
    int64_t many;
    float *all, *ones, *few, *same, *unit;
    void *scratch;
};

static struct gemm_call
product_of(const struct chain *c)
{
    struct gemm_call g = {};

    g.rows = g.columns = g.depth = SIDE;
    g.a_pitch = g.b_pitch = g.c_pitch = g.d_pitch = SIDE;
    g.dtype = g.d_dtype = SD_F32;
    g.a = c->few;
    g.b = c->unit;
    g.d = c->same;
    g.scratch = c->scratch;
    return g;
}

static void
work(const struct chain *c)
{
    float *tail = c->all + c->many - FEW;
    struct gemm_call g = product_of(c);

    sd_device_fill_real(c->device, c->all, SD_F32, (size_t)c->many, 1);
    sd_device_fill_real(c->device, c->few, SD_F32, FEW, 0);
    for (int i = 0; i < ADDS; i++) {
        sd_device_rows(c->device, c->all, SD_F32, c->many, c->ones, SD_F32, c->many, 1, c->many, true);
        sd_device_rows(c->device, c->few, SD_F32, FEW, tail, SD_F32, FEW, 1, FEW, true);
        sd_device_fill(c->device, c->same, 0, FEW * sizeof(float));
        if (!cublas_gemm(c->device, &g))
            gemm_cuda(c->device, &g);
        if (i % 4 == 3)
            sd_device_copy(c->device, tail, c->same, FEW * sizeof(float));
        else if (i % 2)
            sd_device_rows(c->device, tail, SD_F32, FEW, c->same, SD_F32, FEW, 1, FEW, true);
    }
}

static bool
is_right(const struct chain *c)
{
    std::vector<float> all = down(c->device, c->all, (size_t)c->many), few = down(c->device, c->few, FEW);
    float one = 1, tail = 1, sum = 0;
    size_t wrong = 0;

    for (int i = 0; i < ADDS; i++) {
        one++;
        tail++;
        sum += tail;
        tail = i % 4 == 3 ? sum : i % 2 ? tail + sum : tail;
    }
    for (size_t i = 0; i < all.size(); i++)
        wrong += all[i] != ((int64_t)i < c->many - FEW ? one : tail);
    for (float x : few)
        wrong += x != sum;
    return wrong == 0;
}

int
main(void)
{
    std::vector<float> unit(FEW);
    struct chain c = {};
    struct gemm_call g;
    struct sd_recording *r;
    int rounds, good = 0;

    c.device = open_device();
    c.many = sd_device_capability(c.device) ? 1 << 22 : 1 << 13;
    rounds = sd_device_capability(c.device) ? 50 : 3;
    c.all = up(c.device, std::vector<float>((size_t)c.many));
    c.ones = up(c.device, std::vector<float>((size_t)c.many, 1.0f));
    c.few = up(c.device, std::vector<float>(FEW));
    c.same = up(c.device, std::vector<float>(FEW));
    for (int i = 0; i < SIDE; i++)
        unit[(size_t)(i * (SIDE + 1))] = 1;
    c.unit = up(c.device, unit);
    g = product_of(&c);
    c.scratch = sd_device_alloc(c.device, gemm_scratch(&g) + 1, "scratch");
    for (int i = 0; i < rounds; i++) {
        work(&c);
        good += is_right(&c);
    }
    CHECK(good == rounds, "one after the other: %d of %d runs are right", good, rounds);
    sd_device_record(c.device);
    work(&c);
    r = sd_device_recorded(c.device);
    CHECK(r != NULL, "they are recorded (%s)", r ? "so" : sd_reason());
    good = 0;
    for (int i = 0; r && i < rounds; i++) {
        sd_device_replay(c.device, r);
        sd_device_replay(c.device, r);          /* one recording behind the other */
        good += is_right(&c);
    }
    CHECK(good == rounds, "replayed: %d of %d runs are right", good, rounds);
    sd_recording_free(r);
    for (void *p : std::vector<void *>{ c.all, c.ones, c.few, c.same, c.unit, c.scratch })
        sd_device_free(c.device, p);
    sd_device_close(c.device);
    return check_done();
}
