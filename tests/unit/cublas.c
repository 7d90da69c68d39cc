/* What is asked of cuBLASLt: the descriptors that the library holds, read back and multiplied out as it would, give what gemm_call
 * says.  Needs the library, no card. */
#include "cublas.h"

#include "tests/check.h"
#include "vendor.h"

static float
number(const void *at, uint32_t type, int64_t i)
{
    union { uint32_t u; float f; } x;

    if (type == 0)
        return ((const float *)at)[i];
    x.u = (uint32_t)((const uint16_t *)at)[i] << 16;        /* BF16: the other type of 16 bits is laid out alike */
    return x.f;
}

static float
element(const struct cublas_matrix *m, bool turned, uint64_t i, uint64_t j, int64_t product)
{
    return number(m->at, m->type, (int64_t)(turned ? j : i) + (int64_t)(turned ? i : j) * m->pitch + product * m->apart);
}

/* d = op(a) op(b) + bias + beta c, in columns; -1 where the sizes of the four do not meet */
static int
as_asked(const struct cublas_asked *q, float *d)
{
    uint64_t m = q->d.rows, n = q->d.columns, k = q->a_turned ? q->a.rows : q->a.columns;

    if ((q->a_turned ? q->a.columns : q->a.rows) != m || (q->b_turned ? q->b.columns : q->b.rows) != k
            || (q->b_turned ? q->b.rows : q->b.columns) != n || q->c.rows != m || q->c.columns != n || q->a.count != q->d.count
            || q->b.count != q->d.count || q->c.count != q->d.count)
        return -1;
    for (int64_t p = 0; p < q->d.count; p++)
        for (uint64_t i = 0; i < m; i++)
            for (uint64_t j = 0; j < n; j++) {
                float sum = q->epilogue == 4 ? number(q->bias, q->bias_type, (int64_t)i) : 0;

                for (uint64_t l = 0; l < k; l++)
                    sum += element(&q->a, q->a_turned, i, l, p) * element(&q->b, q->b_turned, l, j, p);
                if (q->beta != 0)
                    sum += q->beta * element(&q->c, false, i, j, p);
                d[(int64_t)i + (int64_t)j * q->d.pitch + p * q->d.apart] = sum;
            }
    return 0;
}

static void
fill(void *to, enum sd_dtype t, int64_t count, unsigned seed)
{
    for (int64_t i = 0; i < count; i++) {
        union { uint32_t u; float f; } x;

        seed = seed * 1664525u + 1013904223u;
        x.f = (float)((int)(seed >> 24) - 128);         /* whole numbers: sums are exact */
        if (t == SD_F32)
            ((float *)to)[i] = x.f;
        else
            ((uint16_t *)to)[i] = (uint16_t)(x.u >> 16);
    }
}

static void
product(const char *name, enum sd_dtype dtype, enum sd_dtype d_dtype, bool a_turned, bool b_turned, bool bias, bool add, int64_t batch)
{
    enum { ROWS = 5, COLUMNS = 7, DEPTH = 4, PAD = 3, MOST = 1024 };
    _Alignas(16) static float a[MOST], b[MOST], c[MOST], bias_values[16], d[MOST], expected[MOST];
    struct gemm_call g = { .rows = ROWS, .columns = COLUMNS, .depth = DEPTH, .dtype = dtype, .d_dtype = d_dtype, .a = a, .b = b,
                           .d = d, .a_turned = a_turned, .b_turned = b_turned, .batch = batch };
    struct cublas_asked asked;
    uint32_t type = dtype == SD_F32 ? 0 : 14, d_type = d_dtype == SD_F32 ? 0 : 14;
    const char *why;
    bool taken;

    fill(a, dtype, 300, 1);
    fill(b, dtype, 300, 2);
    fill(c, d_dtype, 300, 3);
    fill(bias_values, d_dtype, COLUMNS, 4);
    g.a_pitch = (a_turned ? ROWS : DEPTH) + PAD;
    g.b_pitch = (b_turned ? DEPTH : COLUMNS) + PAD + 1;
    g.c_pitch = COLUMNS + 2;
    g.d_pitch = COLUMNS + 5;
    g.a_batch = g.a_pitch * ROWS;
    g.b_batch = g.b_pitch * COLUMNS;
    g.c_batch = g.c_pitch * ROWS;
    g.d_batch = g.d_pitch * ROWS;
    g.c = add ? c : NULL;
    g.bias_d = bias ? bias_values : NULL;
    taken = cublas_ask(&g, &asked, &why);
    if (!taken && why && strcmp(why, "no cublasLt") == 0) {
        check_skip(name, why);
        return;
    }
    memset(d, 0, sizeof d);
    memset(expected, 0, sizeof expected);
    for (int64_t p = 0; p < (batch > 1 ? batch : 1); p++)
        for (int64_t i = 0; i < ROWS; i++)
            for (int64_t j = 0; j < COLUMNS; j++) {
                float sum = bias ? number(bias_values, d_type, j) : 0;

                for (int64_t l = 0; l < DEPTH; l++)
                    sum += number(a, type, p * g.a_batch + (a_turned ? l * g.a_pitch + i : i * g.a_pitch + l))
                           * number(b, type, p * g.b_batch + (b_turned ? j * g.b_pitch + l : l * g.b_pitch + j));
                if (add)
                    sum += number(c, d_type, p * g.c_batch + i * g.c_pitch + j);
                expected[p * g.d_batch + i * g.d_pitch + j] = sum;
            }
    CHECK(taken && as_asked(&asked, d) == 0 && memcmp(d, expected, sizeof d) == 0 && asked.a.type == type && asked.d.type == d_type
              && asked.c.type == d_type && asked.compute == 68,
          "%s: %lld x %lld x %lld as asked (%s)", name, (long long)asked.d.rows, (long long)asked.d.columns,
          (long long)(asked.a_turned ? asked.a.rows : asked.a.columns), why ? why : "taken");
}

static void
refused(void)
{
    struct gemm_call g = { .rows = 1, .columns = 1, .depth = 1, .a_pitch = 1, .b_pitch = 1, .d_pitch = 1 }, h = g;
    struct cublas_asked asked;
    const char *why;
    float bias[2] = { 0 };

    h.depth = 0;
    CHECK(!cublas_ask(&h, &asked, &why) && !why, "no depth: not for the library");
    h = g;
    h.dtype = h.d_dtype = SD_BF16;
    h.bias = bias;
    CHECK(!cublas_ask(&h, &asked, &why) && !why, "a bias in F32 alone beside BF16: not for the library");
    h.d_dtype = SD_F16;
    h.bias = NULL;
    CHECK(!cublas_ask(&h, &asked, &why) && !why, "F16 from BF16: not for the library");
}

int
main(void)
{
    printf("# %s\n", cublas_version());
    for (int way = 0; way < 4; way++) {
        static const char *const names[] = { "A B", "A' B", "A B'", "A' B'" };

        product(names[way], SD_F32, SD_F32, way & 1, way & 2, false, false, 0);
        product(names[way], SD_BF16, SD_BF16, way & 1, way & 2, false, false, 3);
    }
    product("with bias", SD_F32, SD_F32, false, true, true, false, 1);
    product("with bias, BF16", SD_BF16, SD_BF16, false, true, true, true, 0);
    product("added to C", SD_F32, SD_F32, false, false, false, true, 2);
    product("F32 from BF16", SD_BF16, SD_F32, true, false, false, true, 0);
    refused();
    return check_done();
}
