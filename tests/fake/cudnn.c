/* cudnn.c - the entry points that kernels/cudnn.c opens.  A graph is computed operation by operation as it is described, so that a
 * result says whether the description means what it should; nothing says that the library has an engine for it. */
#include "fake.h"

enum { MANY = 40, ENGINES = 3 };
enum { CONFIG = 3, HEURISTIC = 4, PLAN = 5, FORWARD = 10, WEIGHT = 11, DATA = 12, POINTWISE = 13, GRAPH = 15, TENSOR = 17, MATMUL = 19,
       REDUCTION = 22, RESHAPE = 31, ATTENTION = 41 };
enum { TYPE_DESCRIPTOR = 15, TEXT = 405, PREFERRED = 3 };      /* PREFERRED: the mode of heuristics, hundreds of its engines */

struct attribute { int name, type; int64_t count; void *values; };
struct descriptor {
    int kind, uses, count;
    bool from_text;
    int64_t engine;
    struct attribute attribute[16];
};

struct fake fake = { .version = 92600 };

size_t cudnnGetVersion(void);
int cudnnCreate(void **handle);
int cudnnDestroy(void *handle);
int cudnnSetStream(void *handle, void *stream);
int cudnnBackendCreateDescriptor(int kind, void **to);
int cudnnBackendDestroyDescriptor(struct descriptor *d);
int cudnnBackendFinalize(struct descriptor *d);
int cudnnBackendSetAttribute(struct descriptor *d, int name, int type, int64_t count, const void *values);
int cudnnBackendGetAttribute(struct descriptor *d, int name, int type, int64_t count, int64_t *found, void *values);
int cudnnBackendExecute(void *handle, struct descriptor *plan, struct descriptor *pack);

static void *the_stream;

size_t cudnnGetVersion(void) { return fake.version; }

int
cudnnCreate(void **handle)
{
    *handle = &fake;
    fake.handles += fake.refuses != FAKE_CREATE;
    return fake.refuses == FAKE_CREATE;
}

int
cudnnDestroy(void *handle)
{
    fake.handles--;
    return handle != &fake;
}

int
cudnnSetStream(void *handle, void *stream)
{
    the_stream = stream;
    return handle != &fake;
}

int
cudnnBackendCreateDescriptor(int kind, void **to)
{
    struct descriptor *d = calloc(1, sizeof *d);

    d->kind = kind;
    d->uses = 1;
    *to = d;
    __atomic_add_fetch(&fake.descriptors, 1, __ATOMIC_RELAXED);        /* plans are made by many threads */
    return 0;
}

static void
release(struct descriptor *d)
{
    if (--d->uses)
        return;
    for (int i = 0; i < d->count; i++) {
        struct attribute *a = &d->attribute[i];

        for (int64_t j = 0; a->type == TYPE_DESCRIPTOR && j < a->count; j++)
            release(((struct descriptor **)a->values)[j]);
        free(a->values);
    }
    free(d);
}

int
cudnnBackendDestroyDescriptor(struct descriptor *d)
{
    __atomic_sub_fetch(&fake.descriptors, 1, __ATOMIC_RELAXED);
    release(d);
    return 0;
}

static size_t
size_of(int type)
{
    return type == 0 || type == 3 || type == 6 || type == TYPE_DESCRIPTOR ? 8 : type == 2 || type == 24 ? 1 : 4;
}

static int read_text(struct descriptor *d, const char *from, int64_t length);

int
cudnnBackendSetAttribute(struct descriptor *d, int name, int type, int64_t count, const void *values)
{
    struct attribute *a = &d->attribute[d->count];
    size_t bytes = (size_t)count * size_of(type);

    if (d->count == (int)(sizeof d->attribute / sizeof *d->attribute) || count < 1 || (fake.refuses == FAKE_DESCRIBE && d->kind == TENSOR))
        return 2000;
    if (name == TEXT)
        return read_text(d, values, count);
    *a = (struct attribute){ name, type, count, malloc(bytes) };
    memcpy(a->values, values, bytes);
    for (int64_t j = 0; type == TYPE_DESCRIPTOR && j < count; j++)
        ((struct descriptor **)a->values)[j]->uses++;
    d->count++;
    return 0;
}

static const struct attribute *
find(const struct descriptor *d, int name)
{
    for (int i = 0; i < d->count; i++)
        if (d->attribute[i].name == name)
            return &d->attribute[i];
    return NULL;
}

static struct descriptor *
part(const struct descriptor *d, int name)
{
    const struct attribute *a = find(d, name);

    return a ? *(struct descriptor **)a->values : NULL;
}

static int64_t
number(const struct descriptor *d, int name, int i)
{
    const struct attribute *a = find(d, name);

    return !a ? 0 : size_of(a->type) == 8 ? ((int64_t *)a->values)[i] : size_of(a->type) == 1 ? ((bool *)a->values)[i]
           : ((int *)a->values)[i];
}

/* -- plans as text: of more than one operation, which the library would compile ------------------------------------- */

enum { MOST_DESCRIPTORS = 512 };

/* All that d is made of, d first: what it is, and its attributes, of which a descriptor's is its number here. */
struct text {
    const struct descriptor *all[MOST_DESCRIPTORS];
    int count;
    char *at;                           /* NULL: only measured */
    int64_t length;
};

static void
put(struct text *t, const void *bytes, int64_t count)
{
    if (t->at)
        memcpy(t->at + t->length, bytes, (size_t)count);
    t->length += count;
}

static int64_t
number_of(struct text *t, const struct descriptor *d)
{
    int i = 0;

    while (i < t->count && t->all[i] != d)
        i++;
    if (i == MOST_DESCRIPTORS)
        abort();
    if (i == t->count)
        t->all[t->count++] = d;
    return i;
}

static int64_t
write_text(const struct descriptor *plan, char *at)
{
    struct text t = { .all = { plan }, .count = 1, .at = at };

    for (int i = 0; i < t.count; i++) {
        const struct descriptor *d = t.all[i];

        put(&t, &d->kind, sizeof d->kind);
        put(&t, &d->count, sizeof d->count);
        put(&t, &d->engine, sizeof d->engine);
        for (int k = 0; k < d->count; k++) {
            const struct attribute *a = &d->attribute[k];

            put(&t, a, offsetof(struct attribute, values));
            for (int64_t j = 0; a->type == TYPE_DESCRIPTOR && j < a->count; j++)
                put(&t, &(int64_t){ number_of(&t, ((struct descriptor **)a->values)[j]) }, sizeof(int64_t));
            if (a->type != TYPE_DESCRIPTOR)
                put(&t, a->values, a->count * (int64_t)size_of(a->type));
        }
    }
    return t.length;
}

/* The same again, d being the first. */
static int
read_text(struct descriptor *d, const char *from, int64_t length)
{
    struct descriptor *all[MOST_DESCRIPTORS] = { d };
    int64_t at = 0;

#define TAKE(to, bytes) (memcpy(to, from + at, (size_t)(bytes)), at += (int64_t)(bytes))
    for (int i = 0; at < length; i++) {
        struct descriptor *x = all[i] ? all[i] : (all[i] = calloc(1, sizeof *x));

        TAKE(&x->kind, sizeof x->kind);
        TAKE(&x->count, sizeof x->count);
        TAKE(&x->engine, sizeof x->engine);
        for (int k = 0; k < x->count; k++) {
            struct attribute *a = &x->attribute[k];
            size_t bytes;

            TAKE(a, offsetof(struct attribute, values));
            bytes = (size_t)a->count * size_of(a->type);
            a->values = malloc(bytes);
            TAKE(a->values, bytes);
            for (int64_t j = 0; a->type == TYPE_DESCRIPTOR && j < a->count; j++) {
                int64_t n = ((int64_t *)a->values)[j];

                if (!all[n])
                    all[n] = calloc(1, sizeof *x);
                all[n]->uses++;
                ((struct descriptor **)a->values)[j] = all[n];
            }
        }
    }
    d->from_text = true;
    return 0;
}

static int64_t
operations_of(const struct descriptor *plan)
{
    return find(part(part(plan, 401), 201), 801)->count;
}

int
cudnnBackendFinalize(struct descriptor *d)
{
    if (d->kind == PLAN && !d->from_text && operations_of(d) > 1)
        __atomic_add_fetch(&fake.compiled, 1, __ATOMIC_RELAXED);
    return fake.refuses == FAKE_HEURISTIC && d->kind == HEURISTIC ? 3000 : fake.refuses == FAKE_PLAN && d->kind == PLAN ? 3001 : 0;
}

int
cudnnBackendGetAttribute(struct descriptor *d, int name, int type, int64_t count, int64_t *found, void *values)
{
    int64_t workspace = fake.refuses == FAKE_HUNGRY ? (int64_t)1 << 40 : (int64_t)fake.workspace;

    *found = 1;
    if (d->kind == HEURISTIC && name == 202) {
        struct descriptor **config = values, *graph = part(d, 201);

        for (*found = 0; *found < ENGINES && *found < count; ++*found) {
            config[*found]->engine = *found + 100 * number(d, 200, 0);
            cudnnBackendSetAttribute(config[*found], 201, TYPE_DESCRIPTOR, 1, &graph);
        }
    } else if (d->kind == CONFIG && name == 300)
        (*(struct descriptor **)values)->engine = d->engine;
    else if (name == 1301)
        *(int64_t *)values = d->engine;
    else if (name == 1303)              /* the first says that it adds in any order, and does */
        *(int *)values = d->engine % 100 ? 0 : 4;
    else if (name == TEXT && d->kind == PLAN) {
        if (operations_of(d) < 2)
            return 3000;
        *found = write_text(d, NULL);
        if (count >= *found)
            write_text(d, values);
    } else if (name == 303 || name == 402)
        *(int64_t *)values = workspace;
    else
        return 2000 + type;
    return 0;
}

/* -- computing ------------------------------------------------------------------------------------------------------ */

struct work {
    const struct descriptor *plan;
    int count, run;
    int64_t uid[MANY];
    void *at[MANY];
    float number[MANY];                 /* of tensors by value */
};
struct array { const struct descriptor *d; void *at; int type; int64_t dims[4], strides[4]; };
struct memory { struct work *w; struct array array[MANY]; void *own[MANY]; int count, owned; };

/* Where the tensor lies; what is hidden gets memory when it is first met: an element each, whatever its strides say, which engines
 * do not go by (of NVIDIA's own graph of attention's gradients those of do * o fall together). */
static struct array
array_of(struct memory *m, const struct descriptor *d)
{
    struct array a = { .d = d, .type = (int)number(d, 901, 0) };
    int64_t last = 0, all = 1;

    for (int i = 0; i < m->count; i++)
        if (m->array[i].d == d)
            return m->array[i];
    for (int i = 0; i < 4; i++) {
        a.dims[i] = number(d, 902, i);
        a.strides[i] = number(d, 903, i);
        last += (a.dims[i] - 1) * a.strides[i];
        all *= a.dims[i];
    }
    for (int i = 0; i < m->w->count; i++)
        if (m->w->uid[i] == number(d, 906, 0))
            a.at = number(d, 908, 0) ? (void *)&m->w->number[i] : m->w->at[i];
    if (number(d, 907, 0)) {
        for (int64_t i = 3, step = 1; i >= 0 && last >= all; step *= a.dims[i--])
            a.strides[i] = step;
        a.at = m->own[m->owned++] = calloc((size_t)all, sizeof(double));
        a.type = -1;
    }
    if (!a.at)
        abort();                        /* a tensor that the pack has no address of */
    return m->array[m->count++] = a;
}

static double
load(const struct array *a, int64_t i, int64_t j, int64_t k, int64_t l)
{
    const int64_t at[] = { i, j, k, l };
    int64_t place = 0;

    for (int x = 0; x < 4; x++)
        place += a->dims[x] == 1 ? 0 : at[x] * a->strides[x];
    return fake_load(a->at, a->type, place);
}

static void
store(const struct memory *m, const struct array *a, int64_t i, int64_t j, int64_t k, int64_t l, double value)
{
    bool wrong = fake.refuses == FAKE_PREFERRED && part(m->w->plan, 401)->engine / 100 == PREFERRED;

    if (a->type != -1)
        value = fake_result(&(struct fake){ .refuses = wrong ? FAKE_WRONG : fake.refuses, .runs = m->w->run, .inside = fake.inside }, value);
    fake_store(a->at, a->type, i * a->strides[0] + j * a->strides[1] + k * a->strides[2] + l * a->strides[3], value);
}

#define EACH(a, i, j, k, l) \
    for (int64_t i = 0; i < (a).dims[0]; i++) for (int64_t j = 0; j < (a).dims[1]; j++) \
        for (int64_t k = 0; k < (a).dims[2]; k++) for (int64_t l = 0; l < (a).dims[3]; l++)

static void
pointwise(struct memory *m, const struct descriptor *o)
{
    struct array x = array_of(m, part(o, 751)), y = array_of(m, part(o, 753)), b = x;
    int mode = (int)number(part(o, 750), 0, 0);

    if (find(o, 752))
        b = array_of(m, part(o, 752));
    EACH(y, i, j, k, l) {
        double p = load(&x, i, j, k, l), q = load(&b, i, j, k, l);

        store(m, &y, i, j, k, l, mode == 0 ? p + q : mode == 1 ? p * q : mode == 9 ? p - q : mode == 13 ? exp(p) : p);
    }
}

static void
product(struct memory *m, const struct descriptor *o)
{
    struct array a = array_of(m, part(o, 1520)), b = array_of(m, part(o, 1521)), c = array_of(m, part(o, 1522));

    if (a.dims[3] != b.dims[2] || a.dims[2] != c.dims[2] || b.dims[3] != c.dims[3])
        abort();
    EACH(c, i, j, k, l) {
        double sum = 0;

        for (int64_t z = 0; z < a.dims[3]; z++)
            sum += load(&a, i, j, k, z) * load(&b, i, j, z, l);
        store(m, &c, i, j, k, l, sum);
    }
}

static void
row_sums(struct memory *m, const struct descriptor *o)
{
    struct array x = array_of(m, part(o, 1610)), y = array_of(m, part(o, 1611));

    EACH(y, i, j, k, l) {
        double sum = 0;

        for (int64_t z = 0; z < x.dims[3]; z++)
            sum += load(&x, i, j, k, z);
        store(m, &y, i, j, k, l, sum);
    }
}

static void
attention(struct memory *m, const struct descriptor *o)
{
    struct array q = array_of(m, part(o, 2800)), k = array_of(m, part(o, 2801)), v = array_of(m, part(o, 2802));
    struct array y = array_of(m, part(o, 2803)), scale = array_of(m, part(o, 2805)), stats = y;
    double *p = malloc((size_t)k.dims[2] * sizeof *p);

    if (find(o, 2804))
        stats = array_of(m, part(o, 2804));
    for (int64_t b = 0; b < q.dims[0]; b++)
        for (int64_t h = 0; h < q.dims[1]; h++)
            for (int64_t r = 0; r < q.dims[2]; r++) {
                double sum = 0;

                for (int64_t c = 0; c < k.dims[2]; c++) {
                    p[c] = 0;
                    for (int64_t d = 0; d < q.dims[3]; d++)
                        p[c] += load(&q, b, h, r, d) * load(&k, b, h, c, d);
                    sum += p[c] = exp(p[c] * load(&scale, 0, 0, 0, 0));
                }
                for (int64_t d = 0; d < v.dims[3]; d++) {
                    double x = 0;

                    for (int64_t c = 0; c < k.dims[2]; c++)
                        x += p[c] / sum * load(&v, b, h, c, d);
                    store(m, &y, b, h, r, d, x);
                }
                if (stats.d != y.d)
                    store(m, &stats, b, h, r, 0, log(sum));
            }
    free(p);
}

/* The convolution's three arrays; each product of x and w that makes a part of y is met once. */
static void
convolution(struct memory *m, const struct descriptor *o)
{
    static const int names[][4] = { { 702, 704, 703, 705 }, { 714, 716, 715, 717 }, { 708, 710, 709, 711 } };
    const int *name = names[o->kind - FORWARD];
    const struct descriptor *c = part(o, name[0]);
    struct array x = array_of(m, part(o, name[1])), w = array_of(m, part(o, name[2])), y = array_of(m, part(o, name[3]));
    struct array *to = o->kind == FORWARD ? &y : o->kind == WEIGHT ? &w : &x;
    int64_t size = to->dims[0] * to->dims[1] * to->dims[2] * to->dims[3];
    double *sum = calloc((size_t)size, sizeof *sum);

#define AT(a, i, j, k, l) ((((i) * (a).dims[1] + (j)) * (a).dims[2] + (k)) * (a).dims[3] + (l))
    EACH(y, n, f, i, j)
        for (int64_t e = 0; e < w.dims[1]; e++)
            for (int64_t k = 0; k < w.dims[2]; k++)
                for (int64_t l = 0; l < w.dims[3]; l++) {
                    int64_t r = i * number(c, 103, 0) - number(c, 105, 0) + k, s = j * number(c, 103, 1) - number(c, 105, 1) + l;

                    if (r < 0 || s < 0 || r >= x.dims[2] || s >= x.dims[3])
                        continue;
                    if (o->kind == FORWARD)
                        sum[AT(y, n, f, i, j)] += load(&x, n, e, r, s) * load(&w, f, e, k, l);
                    else if (o->kind == WEIGHT)
                        sum[AT(w, f, e, k, l)] += load(&x, n, e, r, s) * load(&y, n, f, i, j);
                    else
                        sum[AT(x, n, e, r, s)] += load(&y, n, f, i, j) * load(&w, f, e, k, l);
                }
    EACH(*to, i, j, k, l)
        store(m, to, i, j, k, l, sum[AT(*to, i, j, k, l)]);
    free(sum);
}

static void
compute(void *argument)
{
    struct memory *m = calloc(1, sizeof *m);
    const struct descriptor *graph;
    const struct attribute *operations;

    m->w = argument;
    graph = part(part(m->w->plan, 401), 201);
    operations = find(graph, 801);
    for (int64_t i = 0; i < operations->count; i++) {
        const struct descriptor *o = ((struct descriptor **)operations->values)[i];

        if (o->kind == POINTWISE)
            pointwise(m, o);
        else if (o->kind == MATMUL)
            product(m, o);
        else if (o->kind == REDUCTION)
            row_sums(m, o);
        else if (o->kind == ATTENTION)
            attention(m, o);
        else if (o->kind == RESHAPE) {          /* another way to see the same memory */
            struct array x = array_of(m, part(o, 2200)), *y = &m->array[m->count++];

            *y = (struct array){ .d = part(o, 2201), .at = x.at, .type = x.type };
            for (int z = 0; z < 4; z++) {
                y->dims[z] = number(y->d, 902, z);
                y->strides[z] = number(y->d, 903, z);
            }
        } else
            convolution(m, o);
    }
    while (m->owned)
        free(m->own[--m->owned]);
    free(m);
}

int
cudnnBackendExecute(void *handle, struct descriptor *plan, struct descriptor *pack)
{
    const struct attribute *uids = find(pack, 1000), *at = find(pack, 1001);
    const struct attribute *operations = find(part(part(plan, 401), 201), 801);
    struct work w = { .plan = plan, .count = (int)uids->count, .run = fake.runs++ };

    if (handle != &fake || fake.refuses == FAKE_RUN || (fake.workspace && !number(pack, 1003, 0)))
        return 8000;
    memcpy(w.uid, uids->values, (size_t)uids->count * sizeof *w.uid);
    memcpy(w.at, at->values, (size_t)at->count * sizeof *w.at);
    for (int64_t i = 0; i < operations->count; i++) {           /* what is given by value is read now */
        const struct descriptor *o = ((struct descriptor **)operations->values)[i];

        for (int j = 0; j < o->count; j++) {
            const struct descriptor *t = o->attribute[j].type == TYPE_DESCRIPTOR ? *(struct descriptor **)o->attribute[j].values : NULL;

            for (int n = 0; t && t->kind == TENSOR && number(t, 908, 0) && n < w.count; n++)
                if (w.uid[n] == number(t, 906, 0))
                    w.number[n] = *(const float *)w.at[n];
        }
    }
    fake_queue(&fake, the_stream, compute, &w, sizeof w);
    return 0;
}
