/* cublasLt.c - the entry points that kernels/cublas.c opens, as far as it uses them.  Columns, as the library counts. */
#include "fake.h"

struct layout { int32_t type, count; uint64_t rows, columns; int64_t pitch, apart; uint64_t rest[3]; };
struct desc { int32_t turned[2], bias_type; uint32_t epilogue; const void *bias; uint64_t rest[29]; };
struct algo { uint64_t version, number, workspace, rest[5]; };
struct found { struct algo algo; size_t workspace; int state; float waves; int reserved[4]; };
struct work { struct desc m; struct layout a, b, c, d; const void *at_a, *at_b, *at_c; void *at_d; float beta; };

_Static_assert(sizeof(struct layout) == 64 && sizeof(struct desc) == 256 && sizeof(struct algo) == 64, "as large as the library's");

struct fake fake = { .version = 130100 };

size_t cublasLtGetVersion(void);
int cublasLtCreate(void **handle);
int cublasLtDestroy(void *handle);
int cublasLtMatrixLayoutInit_internal(struct layout *l, size_t size, int type, uint64_t rows, uint64_t columns, int64_t pitch);
int cublasLtMatrixLayoutSetAttribute(struct layout *l, int name, const void *value, size_t size);
int cublasLtMatrixLayoutGetAttribute(const struct layout *l, int name, void *value, size_t size, size_t *written);
int cublasLtMatmulDescInit_internal(struct desc *m, size_t size, int compute, int scale);
int cublasLtMatmulDescSetAttribute(struct desc *m, int name, const void *value, size_t size);
int cublasLtMatmulDescGetAttribute(const struct desc *m, int name, void *value, size_t size, size_t *written);
int cublasLtMatmulPreferenceInit_internal(uint64_t *p, size_t size);
int cublasLtMatmulPreferenceSetAttribute(uint64_t *p, int name, const void *value, size_t size);
int cublasLtMatmulAlgoGetHeuristic(void *handle, struct desc *m, struct layout *a, struct layout *b, struct layout *c, struct layout *d,
                                   uint64_t *p, int count, struct found *found, int *returned);
int cublasLtMatmulAlgoCheck(void *handle, struct desc *m, struct layout *a, struct layout *b, struct layout *c, struct layout *d,
                            const struct algo *algo, struct found *found);
int cublasLtMatmul(void *handle, struct desc *m, const float *alpha, const void *a, struct layout *la, const void *b, struct layout *lb,
                   const float *beta, const void *c, struct layout *lc, void *d, struct layout *ld, const struct algo *algo,
                   void *workspace, size_t bytes, void *stream);

size_t cublasLtGetVersion(void) { return fake.version; }

int
cublasLtCreate(void **handle)
{
    *handle = &fake;
    fake.handles += fake.refuses != FAKE_CREATE;
    return fake.refuses == FAKE_CREATE;
}

int
cublasLtDestroy(void *handle)
{
    fake.handles--;
    return handle != &fake;
}

int
cublasLtMatrixLayoutInit_internal(struct layout *l, size_t size, int type, uint64_t rows, uint64_t columns, int64_t pitch)
{
    memset(l, 0, size);
    *l = (struct layout){ .type = type == 14 ? 9 : type, .count = 1, .rows = rows, .columns = columns, .pitch = pitch };
    return pitch < (int64_t)rows || fake.refuses == FAKE_DESCRIBE;
}

int
cublasLtMatrixLayoutSetAttribute(struct layout *l, int name, const void *value, size_t size)
{
    if (name == 5 && size == 4)
        memcpy(&l->count, value, size);
    else if (name == 6 && size == 8)
        memcpy(&l->apart, value, size);
    else
        return 7;
    return 0;
}

int
cublasLtMatrixLayoutGetAttribute(const struct layout *l, int name, void *value, size_t size, size_t *written)
{
    (void)l, (void)name, (void)value, (void)size, (void)written;
    return 7;
}

int
cublasLtMatmulDescInit_internal(struct desc *m, size_t size, int compute, int scale)
{
    memset(m, 0, size);
    m->epilogue = 1;
    return (compute != 68 && compute != 77) || scale != 0;
}

int
cublasLtMatmulDescSetAttribute(struct desc *m, int name, const void *value, size_t size)
{
    if ((name == 3 || name == 4) && size == 4)
        memcpy(&m->turned[name - 3], value, size);
    else if (name == 7 && size == 4)
        memcpy(&m->epilogue, value, size);
    else if (name == 8 && size == 8)
        memcpy(&m->bias, value, size);
    else if (name == 26 && size == 4) {
        memcpy(&m->bias_type, value, size);
        m->bias_type = m->bias_type == 14 ? 9 : m->bias_type;
    } else
        return 7;
    return 0;
}

int
cublasLtMatmulDescGetAttribute(const struct desc *m, int name, void *value, size_t size, size_t *written)
{
    (void)m, (void)name, (void)value, (void)size, (void)written;
    return 7;
}

int
cublasLtMatmulPreferenceInit_internal(uint64_t *p, size_t size)
{
    memset(p, 0, size);
    return 0;
}

int
cublasLtMatmulPreferenceSetAttribute(uint64_t *p, int name, const void *value, size_t size)
{
    if (name == 1 && size == 8)
        memcpy(p, value, size);
    return 0;
}

int
cublasLtMatmulAlgoGetHeuristic(void *handle, struct desc *m, struct layout *a, struct layout *b, struct layout *c, struct layout *d,
                               uint64_t *p, int count, struct found *found, int *returned)
{
    (void)handle, (void)m, (void)a, (void)b, (void)c, (void)d;
    for (*returned = 0; *returned < 3 && *returned < count; ++*returned) {
        struct found *f = &found[*returned];

        memset(f, 0, sizeof *f);
        f->workspace = fake.refuses == FAKE_HUNGRY ? *p + 1 : fake.workspace;
        f->algo = (struct algo){ .version = fake.version, .number = (uint64_t)*returned, .workspace = f->workspace };
        f->state = f->workspace > *p;
    }
    return fake.refuses == FAKE_HEURISTIC ? 15 : 0;
}

int
cublasLtMatmulAlgoCheck(void *handle, struct desc *m, struct layout *a, struct layout *b, struct layout *c, struct layout *d,
                        const struct algo *algo, struct found *found)
{
    (void)handle, (void)m, (void)a, (void)b, (void)c, (void)d;
    memset(found, 0, sizeof *found);
    found->algo = *algo;
    found->workspace = algo->workspace;
    return algo->version != fake.version;
}

static void
multiply(void *argument)
{
    const struct work *w = argument;
    int64_t depth = (int64_t)(w->m.turned[0] ? w->a.rows : w->a.columns);

    for (int64_t z = 0; z < w->d.count; z++)
        for (int64_t j = 0; j < (int64_t)w->d.columns; j++)
            for (int64_t i = 0; i < (int64_t)w->d.rows; i++) {
                double sum = w->m.epilogue == 4 ? fake_load(w->m.bias, w->m.bias_type, i) : 0;

                if (w->beta != 0)
                    sum += (double)w->beta * fake_load(w->at_c, w->c.type, z * w->c.apart + i + j * w->c.pitch);
                for (int64_t k = 0; k < depth; k++)
                    sum += fake_load(w->at_a, w->a.type, z * w->a.apart + (w->m.turned[0] ? k + i * w->a.pitch : i + k * w->a.pitch))
                           * fake_load(w->at_b, w->b.type, z * w->b.apart + (w->m.turned[1] ? j + k * w->b.pitch : k + j * w->b.pitch));
                fake_store(w->at_d, w->d.type, z * w->d.apart + i + j * w->d.pitch, fake_result(&fake, sum));
            }
}

int
cublasLtMatmul(void *handle, struct desc *m, const float *alpha, const void *a, struct layout *la, const void *b, struct layout *lb,
               const float *beta, const void *c, struct layout *lc, void *d, struct layout *ld, const struct algo *algo, void *workspace,
               size_t bytes, void *stream)
{
    struct work w = { *m, *la, *lb, *lc, *ld, a, b, c, d, *beta };

    if (handle != &fake || *alpha != 1 || fake.refuses == FAKE_RUN || algo->workspace > bytes || (algo->workspace && !workspace))
        return 15;
    fake.runs++;
    fake_queue(&fake, stream, multiply, &w, sizeof w);
    return 0;
}
