/* cublas.c - matrix products by cuBLASLt, without its headers.
 *
 * The library counts in columns, so it is asked for the turned product: our row-major D [rows, columns] is its D' [columns, rows],
 * D' = B' A' + bias of the rows + C'.
 * Of its algorithms those with a split depth whose parts are kept in f32 and added in a fixed order may be used, those that add in
 * place not.  The fastest for each call is kept (tuning.h), of those that give the same bits twice, once from a recording, and
 * those of our own kernel but for rounding. */
#include "cublas.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "diag.h"
#include "tuning.h"
#include "vendor.h"

/* -- the library's words -------------------------------------------------------------------------------------------- */

enum { R_32F = 0, R_16F = 2, R_16BF = 14 };
enum { COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77 };
enum { LAYOUT_TYPE = 0, LAYOUT_ROWS = 2, LAYOUT_COLS = 3, LAYOUT_LD = 4, LAYOUT_BATCH_COUNT = 5, LAYOUT_BATCH_OFFSET = 6 };
enum { DESC_COMPUTE_TYPE = 0, DESC_TRANSA = 3, DESC_TRANSB = 4, DESC_EPILOGUE = 7, DESC_BIAS_POINTER = 8, DESC_BIAS_DATA_TYPE = 26 };
enum { PREF_MAX_WORKSPACE = 1, PREF_REDUCTION_SCHEME_MASK = 3, PREF_MIN_ALIGNMENT_A = 5 };     /* then B, C, D */
enum { REDUCTION_COMPUTE_TYPE = 2, REDUCTION_OUTPUT_TYPE = 4, EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4, MANY = 8 };
enum { ALIGNMENT = 16 };

struct layout { uint64_t data[8]; };
struct desc { uint64_t data[32]; };
struct preference { uint64_t data[8]; };
struct algo { uint64_t data[8]; };
struct found {
    struct algo algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

static struct {
    void *library;
    char version[32];
    size_t (*get_version)(void);
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*layout_init)(struct layout *l, size_t size, int type, uint64_t rows, uint64_t cols, int64_t ld);
    int (*layout_set)(struct layout *l, int attribute, const void *value, size_t size);
    int (*layout_get)(const struct layout *l, int attribute, void *value, size_t size, size_t *written);
    int (*desc_init)(struct desc *m, size_t size, int compute, int scale);
    int (*desc_set)(struct desc *m, int attribute, const void *value, size_t size);
    int (*desc_get)(const struct desc *m, int attribute, void *value, size_t size, size_t *written);
    int (*preference_init)(struct preference *p, size_t size);
    int (*preference_set)(struct preference *p, int attribute, const void *value, size_t size);
    int (*heuristic)(void *handle, struct desc *m, struct layout *a, struct layout *b, struct layout *c, struct layout *d,
                     struct preference *p, int count, struct found *found, int *returned);
    int (*check)(void *handle, struct desc *m, struct layout *a, struct layout *b, struct layout *c, struct layout *d,
                 const struct algo *algo, struct found *found);
    int (*matmul)(void *handle, struct desc *m, const void *alpha, const void *a, struct layout *la, const void *b, struct layout *lb,
                  const void *beta, const void *c, struct layout *lc, void *d, struct layout *ld, const struct algo *algo,
                  void *workspace, size_t bytes, void *stream);
} lt;

static bool
find_all(void)
{
    return vendor_find(lt.library, "cublasLtGetVersion", &lt.get_version) && vendor_find(lt.library, "cublasLtCreate", &lt.create)
           && vendor_find(lt.library, "cublasLtDestroy", &lt.destroy)
           && vendor_find(lt.library, "cublasLtMatrixLayoutInit_internal", &lt.layout_init)
           && vendor_find(lt.library, "cublasLtMatrixLayoutSetAttribute", &lt.layout_set)
           && vendor_find(lt.library, "cublasLtMatrixLayoutGetAttribute", &lt.layout_get)
           && vendor_find(lt.library, "cublasLtMatmulDescInit_internal", &lt.desc_init)
           && vendor_find(lt.library, "cublasLtMatmulDescSetAttribute", &lt.desc_set)
           && vendor_find(lt.library, "cublasLtMatmulDescGetAttribute", &lt.desc_get)
           && vendor_find(lt.library, "cublasLtMatmulPreferenceInit_internal", &lt.preference_init)
           && vendor_find(lt.library, "cublasLtMatmulPreferenceSetAttribute", &lt.preference_set)
           && vendor_find(lt.library, "cublasLtMatmulAlgoGetHeuristic", &lt.heuristic)
           && vendor_find(lt.library, "cublasLtMatmulAlgoCheck", &lt.check) && vendor_find(lt.library, "cublasLtMatmul", &lt.matmul);
}

static bool
open_library(void)
{
    static const char *const names[] = { "libcublasLt.so.13", "libcublasLt.so.12", NULL };
    static bool tried;

    if (!tried && (lt.library = vendor_open(names))) {
        if (find_all())
            snprintf(lt.version, sizeof lt.version, "cublasLt %zu", lt.get_version());
        else
            lt.library = NULL;
    }
    tried = true;
    return lt.library != NULL;
}

const char *
cublas_version(void)
{
    return open_library() ? lt.version : "no cublasLt";
}

/* -- what is asked -------------------------------------------------------------------------------------------------- */

/* All that the choice of an algorithm may hang on, without padding that is not zero: compared as bytes. */
struct shape {
    int64_t m, n, k, a_pitch, b_pitch, c_pitch, d_pitch, batch, a_apart, b_apart, c_apart, d_apart;
    int32_t type, d_type, a_turned, b_turned, bias, beta, compute;
    int32_t align_a, align_b, align_c, align_d;
    int32_t room;               /* keeps the size a multiple of 8 */
};

struct plan {
    struct shape shape;
    char *key;                  /* "gemm 320x4096x320/...": for messages */
    struct desc desc;
    struct layout a, b, c, d;
    struct algo algo;
    size_t workspace;
    bool none;                  /* the library has no algorithm */
};

struct state {
    struct sd_device *device;
    void *handle;
    struct plan *plans;
    size_t count, room;
};

static int
type_of(enum sd_dtype t)
{
    return t == SD_F32 ? R_32F : t == SD_F16 ? R_16F : R_16BF;
}

static int32_t
alignment(const void *p)
{
    uintptr_t low = (uintptr_t)p & -(uintptr_t)p;

    return low == 0 || low > ALIGNMENT ? ALIGNMENT : (int32_t)low;
}

/* "its" a is our B and the other way round */
static struct shape
shape_of(const struct gemm_call *g)
{
    struct shape s;

    memset(&s, 0, sizeof s);
    s.m = g->columns;
    s.n = g->rows;
    s.k = g->depth;
    s.a_pitch = g->b_pitch;
    s.b_pitch = g->a_pitch;
    s.d_pitch = g->d_pitch;
    s.c_pitch = g->c ? g->c_pitch : g->d_pitch;
    s.batch = g->batch > 1 ? g->batch : 1;
    if (s.batch > 1) {
        s.a_apart = g->b_batch;
        s.b_apart = g->a_batch;
        s.d_apart = g->d_batch;
        s.c_apart = g->c ? g->c_batch : g->d_batch;
    }
    s.type = type_of(g->dtype);
    s.d_type = type_of(g->d_dtype);
    s.a_turned = g->b_turned;
    s.b_turned = g->a_turned;
    s.bias = g->bias_d != NULL;
    s.beta = g->c != NULL;
    s.compute = g->dtype == SD_F32 && vendor_tf32 ? COMPUTE_32F_FAST_TF32 : COMPUTE_32F;
    s.align_a = alignment(g->b);
    s.align_b = alignment(g->a);
    s.align_c = alignment(g->c ? g->c : g->d);
    s.align_d = alignment(g->d);
    return s;
}

static bool
takes(const struct gemm_call *g)
{
    bool types = g->dtype == SD_F32 || g->dtype == SD_BF16 || g->dtype == SD_F16;

    return types && (g->d_dtype == g->dtype || g->d_dtype == SD_F32) && g->rows > 0 && g->columns > 0 && g->depth > 0
           && (!g->bias || g->bias_d) && alignment(g->bias_d) == ALIGNMENT;
}

static bool
lay(struct layout *l, int type, int64_t rows, int64_t columns, bool turned, int64_t pitch, int64_t batch, int64_t apart)
{
    int32_t count = (int32_t)batch;

    return !lt.layout_init(l, sizeof *l, type, (uint64_t)(turned ? columns : rows), (uint64_t)(turned ? rows : columns), pitch)
           && !lt.layout_set(l, LAYOUT_BATCH_COUNT, &count, sizeof count)
           && !lt.layout_set(l, LAYOUT_BATCH_OFFSET, &apart, sizeof apart);
}

static bool
describe(struct plan *p)
{
    const struct shape *s = &p->shape;
    int32_t a_turned = s->a_turned, b_turned = s->b_turned, d_type = s->d_type;
    uint32_t epilogue = s->bias ? EPILOGUE_BIAS : EPILOGUE_DEFAULT;

    return !lt.desc_init(&p->desc, sizeof p->desc, s->compute, R_32F) && !lt.desc_set(&p->desc, DESC_TRANSA, &a_turned, sizeof a_turned)
           && !lt.desc_set(&p->desc, DESC_TRANSB, &b_turned, sizeof b_turned)
           && !lt.desc_set(&p->desc, DESC_EPILOGUE, &epilogue, sizeof epilogue)
           && (!s->bias || !lt.desc_set(&p->desc, DESC_BIAS_DATA_TYPE, &d_type, sizeof d_type))
           && lay(&p->a, s->type, s->m, s->k, s->a_turned, s->a_pitch, s->batch, s->a_apart)
           && lay(&p->b, s->type, s->k, s->n, s->b_turned, s->b_pitch, s->batch, s->b_apart)
           && lay(&p->c, s->d_type, s->m, s->n, false, s->c_pitch, s->batch, s->c_apart)
           && lay(&p->d, s->d_type, s->m, s->n, false, s->d_pitch, s->batch, s->d_apart);
}

static bool
set_bias(struct plan *p, const struct gemm_call *g)
{
    return !p->shape.bias || !lt.desc_set(&p->desc, DESC_BIAS_POINTER, &g->bias_d, sizeof g->bias_d);
}

static bool
read_back(struct cublas_matrix *m, const struct layout *l)
{
    size_t n;

    return !lt.layout_get(l, LAYOUT_TYPE, &m->type, sizeof m->type, &n) && !lt.layout_get(l, LAYOUT_ROWS, &m->rows, sizeof m->rows, &n)
           && !lt.layout_get(l, LAYOUT_COLS, &m->columns, sizeof m->columns, &n)
           && !lt.layout_get(l, LAYOUT_LD, &m->pitch, sizeof m->pitch, &n)
           && !lt.layout_get(l, LAYOUT_BATCH_COUNT, &m->count, sizeof m->count, &n)
           && !lt.layout_get(l, LAYOUT_BATCH_OFFSET, &m->apart, sizeof m->apart, &n);
}

bool
cublas_ask(const struct gemm_call *g, struct cublas_asked *asked, const char **why)
{
    struct plan p;
    size_t n;

    *why = NULL;
    if (!takes(g))
        return false;
    if (!open_library()) {
        *why = "no cublasLt";
        return false;
    }
    memset(&p, 0, sizeof p);
    memset(asked, 0, sizeof *asked);
    p.shape = shape_of(g);
    *why = "cublasLt refuses a descriptor";
    if (!describe(&p) || !set_bias(&p, g) || !read_back(&asked->a, &p.a) || !read_back(&asked->b, &p.b) || !read_back(&asked->c, &p.c)
            || !read_back(&asked->d, &p.d) || lt.desc_get(&p.desc, DESC_TRANSA, &asked->a_turned, sizeof asked->a_turned, &n)
            || lt.desc_get(&p.desc, DESC_TRANSB, &asked->b_turned, sizeof asked->b_turned, &n)
            || lt.desc_get(&p.desc, DESC_EPILOGUE, &asked->epilogue, sizeof asked->epilogue, &n)
            || lt.desc_get(&p.desc, DESC_COMPUTE_TYPE, &asked->compute, sizeof asked->compute, &n)
            || lt.desc_get(&p.desc, DESC_BIAS_DATA_TYPE, &asked->bias_type, sizeof asked->bias_type, &n)
            || lt.desc_get(&p.desc, DESC_BIAS_POINTER, &asked->bias, sizeof asked->bias, &n))
        return false;
    *why = NULL;
    asked->a.at = g->b;
    asked->b.at = g->a;
    asked->c.at = g->c;
    asked->d.at = g->d;
    asked->beta = g->c ? 1.0f : 0.0f;
    return true;
}

#if SD_WITH_CUDA            /* what follows runs; it wants kernels of ours beside the library's */

/* -- choosing ------------------------------------------------------------------------------------------------------- */

struct attempt {
    struct state *state;
    struct plan *plan;
    const struct gemm_call *call;
    void *d;
};

static bool
multiply(void *argument)
{
    const struct attempt *t = argument;
    const struct gemm_call *g = t->call;
    const float alpha = 1, beta = g->c ? 1 : 0;
    struct plan *p = t->plan;

    return set_bias(p, g)
           && !lt.matmul(t->state->handle, &p->desc, &alpha, g->b, &p->a, g->a, &p->b, &beta, g->c ? g->c : t->d, &p->c, t->d, &p->d,
                         &p->algo, p->workspace ? sd_device_workspace(t->state->device, p->workspace) : NULL, p->workspace,
                         sd_device_stream(t->state->device));
}

static const char *
key_of(char *text, size_t room, const struct shape *s)
{
    snprintf(text, room, "%lldx%lldx%lld/%d>%d %c%c%s%s%s ld %lld,%lld,%lld,%lld x%lld,%lld,%lld,%lld,%lld al %d,%d,%d,%d",
             (long long)s->m, (long long)s->n, (long long)s->k, s->type, s->d_type, s->a_turned ? 't' : 'n', s->b_turned ? 't' : 'n',
             s->bias ? " bias" : "", s->beta ? " add" : "", s->compute == COMPUTE_32F ? "" : " tf32", (long long)s->a_pitch,
             (long long)s->b_pitch, (long long)s->c_pitch, (long long)s->d_pitch, (long long)s->batch, (long long)s->a_apart,
             (long long)s->b_apart, (long long)s->c_apart, (long long)s->d_apart, s->align_a, s->align_b, s->align_c, s->align_d);
    return text;
}

static char *
named(const struct shape *s)
{
    char text[512] = "gemm ";

    key_of(text + 5, sizeof text - 5, s);
    return strdup(text);
}

static const char *
algo_text(char text[2 * sizeof(struct algo) + 1], const struct algo *a)
{
    for (size_t i = 0; i < sizeof *a; i++)
        snprintf(text + 2 * i, 3, "%02x", ((const unsigned char *)a)[i]);
    return text;
}

/* The algorithm that was kept, when the library still takes it. */
static bool
use_kept(struct state *s, struct plan *p, const char *text)
{
    struct found found;
    unsigned char bytes[sizeof(struct algo)];

    if (strlen(text) != 2 * sizeof bytes)
        return false;
    for (size_t i = 0; i < sizeof bytes; i++) {
        unsigned x;

        if (sscanf(text + 2 * i, "%2x", &x) != 1)
            return false;
        bytes[i] = (unsigned char)x;
    }
    memcpy(&p->algo, bytes, sizeof bytes);
    if (lt.check(s->handle, &p->desc, &p->a, &p->b, &p->c, &p->d, &p->algo, &found) || found.workspace > CUBLAS_WORKSPACE)
        return false;
    p->workspace = found.workspace;
    return true;
}

static int
candidates(struct state *s, struct plan *p, struct found *found)
{
    const struct shape *q = &p->shape;
    const uint32_t align[] = { (uint32_t)q->align_a, (uint32_t)q->align_b, (uint32_t)q->align_c, (uint32_t)q->align_d };
    uint32_t schemes = REDUCTION_COMPUTE_TYPE | (q->d_type == R_32F ? REDUCTION_OUTPUT_TYPE : 0);
    struct preference preference;
    uint64_t workspace = CUBLAS_WORKSPACE;
    int count = 0, kept = 0;

    if (lt.preference_init(&preference, sizeof preference)
            || lt.preference_set(&preference, PREF_MAX_WORKSPACE, &workspace, sizeof workspace)
            || lt.preference_set(&preference, PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes))
        return 0;
    for (int i = 0; i < 4; i++)
        if (lt.preference_set(&preference, PREF_MIN_ALIGNMENT_A + i, &align[i], sizeof align[i]))
            return 0;
    if (lt.heuristic(s->handle, &p->desc, &p->a, &p->b, &p->c, &p->d, &preference, MANY, found, &count))
        return 0;
    for (int i = 0; i < count; i++)
        if (found[i].state == 0)
            found[kept++] = found[i];
    return kept;
}

/* The product by each of the candidates, and by our own kernel: what lies between rows is zero in all. */
struct trial {
    struct state *state;
    const struct gemm_call *call;
    size_t bytes;                       /* of a result */
    char *expected, *found, *again;
};

static void
begin_trial(struct trial *t)
{
    struct sd_device *d = t->state->device;
    size_t apart = (t->bytes + 255) / 256 * 256;
    struct gemm_call own = *t->call;

    own.d = t->expected = sd_device_alloc(d, 3 * apart, "tuning");
    t->found = t->expected + apart;
    t->again = t->found + apart;
    sd_device_fill(d, t->expected, 0, t->bytes);
    gemm_cuda(d, &own);
}

/* Of two runs, the second from a recording; negative where the library refuses. */
static double
distance(const struct trial *t, struct attempt *a)
{
    struct sd_device *d = t->state->device;
    bool ran;

    sd_device_fill(d, t->found, 0, (size_t)(t->again - t->found) + t->bytes);
    a->d = t->found;
    ran = multiply(a);
    a->d = t->again;
    ran = ran && tuning_replay(d, multiply, a);
    a->d = t->found;
    return ran ? tuning_distance(d, t->found, t->again, t->expected, t->call->d_dtype, t->bytes / sd_dtype_size(t->call->d_dtype))
               : -1;
}

/* Of the candidates, the fastest that is right, or not timed the first that is, into memory of their own (else every attempt would
 * add once more); -1: none. */
static int
fastest(struct state *s, const struct plan *p, const struct gemm_call *g, const struct found *candidate, int count, size_t bytes,
        const char *key, bool timed)
{
    struct trial t = { .state = s, .call = g, .bytes = bytes };
    struct plan plan[MANY];
    struct attempt attempt[MANY];
    struct tuning_way way[MANY];
    int right[MANY], ways = 0, chosen;

    begin_trial(&t);
    for (int i = 0; i < count && (timed || !ways); i++) {
        double apart;

        plan[ways] = *p;
        plan[ways].algo = candidate[i].algo;
        plan[ways].workspace = candidate[i].workspace;
        attempt[ways] = (struct attempt){ s, &plan[ways], g, NULL };
        apart = distance(&t, &attempt[ways]);
        if (apart < 0)
            continue;
        if (!(apart <= tuning_bound(g->d_dtype))) {
            sd_warn("cublasLt", "gemm %s: choice %d is left out: %.1e from our own", key, i, apart);
            continue;
        }
        way[ways] = (struct tuning_way){ multiply, &attempt[ways], 0 };
        right[ways++] = i;
    }
    chosen = timed ? tuning_race(s->device, way, ways) : ways - 1;
    sd_device_wait(s->device);
    sd_device_free(s->device, t.expected);
    if (chosen < 0)
        sd_note(2, "gemm %s: none of %d choices", key, count);
    else if (timed)
        sd_note(2, "gemm %s: choice %d of %d, %.1f us, %.1f TFLOP/s", key, right[chosen], count, way[chosen].seconds * 1e6,
                2e-12 * (double)g->rows * (double)g->columns * (double)g->depth * (double)p->shape.batch / way[chosen].seconds);
    return chosen < 0 ? -1 : right[chosen];
}

static void
choose(struct state *s, struct plan *p, const struct gemm_call *g)
{
    struct found found[MANY];
    char key[512], text[2 * sizeof(struct algo) + 1];
    const char *kept = tuning_find(s->device, "gemm", key_of(key, sizeof key, &p->shape));
    size_t bytes = ((size_t)(p->shape.batch - 1) * (size_t)p->shape.d_apart + (size_t)(g->rows - 1) * (size_t)g->d_pitch
                    + (size_t)g->columns) * sd_dtype_size(g->d_dtype);
    int count, chosen = 0;
    bool compared, timed;

    if (kept && strcmp(kept, "none") == 0)
        p->none = true;
    if (p->none || (kept && use_kept(s, p, kept)))
        return;
    if (kept)
        sd_warn("cublasLt", "the algorithm that was chosen before is refused now, another is taken: %s", key);
    count = candidates(s, p, found);
    compared = count > 0 && sd_device_free_bytes(s->device) > 3 * bytes + bytes / 4;
    timed = compared && !kept && tuning_wanted(s->device);
    if (compared)
        chosen = fastest(s, p, g, found, count, bytes, key, timed);
    p->none = !compared || chosen < 0;
    if (!p->none) {
        p->algo = found[chosen].algo;
        p->workspace = found[chosen].workspace;
    }
    if (timed) {
        kept = tuning_store(s->device, "gemm", key, p->none ? strcpy(text, "none") : algo_text(text, &p->algo));
        if (strcmp(kept, text) && strcmp(kept, "none") && !use_kept(s, p, kept))        /* another process was first */
            sd_die("cublasLt", "the algorithm that another process chose is refused: %s", key);
        p->none = strcmp(kept, "none") == 0;
    }
}

static void
close_state(void *value)
{
    struct state *s = value;

    lt.destroy(s->handle);
    for (size_t i = 0; i < s->count; i++)
        free(s->plans[i].key);
    free(s->plans);
    free(s);
}

static struct state *
state_of(struct sd_device *d)
{
    struct state *s = sd_device_slot(d, SD_SLOT_CUBLAS);
    void *handle;
    int status;

    if (s)
        return s;
    if ((status = lt.create(&handle))) {
        sd_warn(lt.version, "cannot be used, our own kernels multiply: status %d", status);
        lt.library = NULL;
        return NULL;
    }
    s = calloc(1, sizeof *s);
    if (!s)
        sd_die("memory", "no room for cublasLt's state");
    s->device = d;
    s->handle = handle;
    sd_device_set_slot(d, SD_SLOT_CUBLAS, s, close_state);
    return s;
}

bool
cublas_gemm(struct sd_device *d, const struct gemm_call *g)
{
    struct state *s;
    struct shape shape;
    struct plan *p = NULL;
    struct attempt attempt;

    if (sd_device_capability(d) == 0 || !takes(g) || !open_library() || !(s = state_of(d)))
        return false;
    shape = shape_of(g);
    for (size_t i = 0; i < s->count && !p; i++)
        if (memcmp(&s->plans[i].shape, &shape, sizeof shape) == 0)
            p = &s->plans[i];
    if (!p) {
        if (s->count == s->room) {
            s->room = s->room ? 2 * s->room : 64;
            s->plans = realloc(s->plans, s->room * sizeof *s->plans);
            if (!s->plans)
                sd_die("memory", "no room for %zu products", s->room);
        }
        p = &s->plans[s->count++];
        memset(p, 0, sizeof *p);
        p->shape = shape;
        if (!(p->key = named(&shape)))
            sd_die("memory", "no room for a product's name");
        if (!describe(p) || !set_bias(p, g))
            p->none = true;
        else {
            sd_device_workspace(d, CUBLAS_WORKSPACE);
            choose(s, p, g);
        }
    }
    if (p->none)
        return false;
    attempt = (struct attempt){ s, p, g, g->d };
    if (!multiply(&attempt)) {
        sd_warn("cublasLt", "refuses what it offered, our own kernel takes over: %s", p->key);
        p->none = true;
        return false;
    }
    sd_device_launched(d, p->key);
    return true;
}

#endif
