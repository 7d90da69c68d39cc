/* What kernels/cublas.c and kernels/cudnn*.c do with a library: tests/fake has two that compute, rightly or wrongly, or refuse.
 * Each case is a process of its own, as a library that failed once is not asked again.  Numbers of products are small multiples of
 * 1/8: there results are equal, not near. */
#include <dlfcn.h>
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "cuda.h"
extern "C" {
#include "cudnn.h"
}
#include "emulate.h"
#include "on_device.h"
#include "tests/fake/fake.h"
#include "tuning.h"
#include "vendor.h"

using namespace sd;

namespace {

std::string folder;                     /* of the libraries */

struct fake *
fake_of(const char *name)
{
    void *library = dlopen((folder + "/" + name).c_str(), RTLD_NOW);
    struct fake *f = library ? static_cast<struct fake *>(dlsym(library, "fake")) : NULL;

    if (!f)
        sd_die("vendors", "%s", dlerror());
    f->queue = emulate::library_work;
    return f;
}

int failures;

void
expect(bool good, const char *what)
{
    if (!good) {
        printf("# not so: %s\n", what);
        failures++;
    }
}

/* Runs the case in a child, which says what was wrong. */
void
in_child(const char *name, void (*test)(enum fake_refusal), enum fake_refusal refusal)
{
    pid_t child;
    int status;

    fflush(stdout);
    child = fork();
    if (child == 0) {
        test(refusal);
        fflush(stdout);
        exit(failures ? 1 : 0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "%s", name);
}

template <class T> std::vector<T>
eighths(size_t n, uint32_t seed)
{
    std::vector<T> x(n);

    for (T &v : x) {
        seed = seed * 1664525u + 1013904223u;
        v = from_float<T>((float)((int)(seed >> 16) % 9 - 4) / 8);
    }
    return x;
}

/* -- cuBLASLt ------------------------------------------------------------------------------------------------------- */

/* The product of whichever takes it, against our own. */
template <class T, class U> bool
same_product(struct sd_device *d, int form, bool *taken)
{
    const int64_t rows = 7, columns = 8, depth = 5, batch = 2, pitch = 16;
    std::vector<T> a = eighths<T>(batch * 8 * pitch, 1), b = eighths<T>(batch * 8 * pitch, 2), bias_d = eighths<T>(columns, 3);
    std::vector<U> c = eighths<U>(batch * 8 * pitch, 4), bias_u = eighths<U>(columns, 3);
    std::vector<float> bias = eighths<float>(columns, 3);
    T *on_a = up(d, a), *on_b = up(d, b);
    U *one = up(d, c), *two = up(d, c), *on_bias_d = up(d, bias_u);
    float *on_bias = up(d, bias);
    struct gemm_call g = {};
    bool same;

    g.rows = rows;
    g.columns = columns;
    g.depth = depth;
    g.dtype = dtype_of<T>::value;
    g.d_dtype = dtype_of<U>::value;
    g.a = on_a;
    g.b = on_b;
    g.a_turned = form & 1;
    g.b_turned = form & 2;
    g.a_pitch = g.b_pitch = g.c_pitch = g.d_pitch = pitch;
    g.batch = form & 16 ? batch : 0;
    g.a_batch = g.b_batch = g.c_batch = g.d_batch = 8 * pitch;
    if (form & 4) {
        g.bias = on_bias;
        g.bias_d = on_bias_d;
    }
    g.d = one;
    g.c = form & 8 ? one : NULL;
    *taken = cublas_gemm(d, &g);
    if (!*taken)
        gemm_cuda(d, &g);
    g.d = two;
    g.c = form & 8 ? two : NULL;
    gemm_cuda(d, &g);
    same = same_bits(down(d, one, c.size()), down(d, two, c.size()));
    for (void *p : std::vector<void *>{ on_a, on_b, one, two, on_bias_d, on_bias })
        sd_device_free(d, p);
    return same;
}

void
products(enum fake_refusal refusal)
{
    struct fake *f = fake_of("libcublasLt.so.13");
    struct sd_device *d = open_device();
    bool taken, good = refusal == FAKE_NOTHING;

    f->refuses = refusal;
    f->workspace = 1 << 20;
    for (int form = 0; form < 32; form += good ? 1 : 9) {
        expect(same_product<float, float>(d, form, &taken), "F32 as our own");
        expect(taken == good, "F32 taken, or not");
        expect(same_product<bf16, bf16>(d, form, &taken) && taken == good, "BF16 as our own, taken or not");
        expect(same_product<f16, float>(d, form, &taken) && taken == good, "F16 to F32 as our own, taken or not");
    }
    expect(f->handles == (refusal != FAKE_CREATE), "one handle");
    if (good) {                         /* it refuses later, what it had offered */
        f->refuses = FAKE_RUN;
        expect(same_product<float, float>(d, 0, &taken) && !taken, "refused when it runs: by our own");
        f->refuses = FAKE_NOTHING;
        expect(same_product<float, float>(d, 0, &taken) && !taken, "and stays so");
        expect(same_product<float, float>(d, 1, &taken) && taken, "others are not touched by that");
    }
    sd_device_close(d);
    expect(f->handles == 0, "no handle is left");
}

/* A second run computes once, with what the first chose; other versions and damaged files choose anew. */
size_t version = 130100;
int runs_wanted, compiled_wanted = -1;

void
kept(enum fake_refusal refusal)
{
    struct fake *f = fake_of("libcublasLt.so.13");
    struct sd_device *d = open_device();
    bool taken;

    f->refuses = refusal;
    f->version = version;
    expect(same_product<float, float>(d, 3, &taken) && taken, "taken, as our own");
    expect(runs_wanted ? f->runs == runs_wanted : f->runs > 10, "how often it ran");
    printf("# %d runs\n", f->runs);
    sd_device_close(d);
}

/* Each file of the tuning folder, changed so. */
template <class F> int
damage(const std::string &cache, F change)
{
    std::string at = cache + "/sd-tools/tuning";
    DIR *list = opendir(at.c_str());
    int count = 0;

    for (struct dirent *e; list && (e = readdir(list)); )
        if (*e->d_name != '.' && !strchr(e->d_name, '.')) {
            std::string path = at + "/" + e->d_name, text;
            FILE *file = fopen(path.c_str(), "r+");

            for (int c; (c = fgetc(file)) != EOF; )
                text += (char)c;
            text = change(text);
            if (freopen(path.c_str(), "w", file))
                fputs(text.c_str(), file);
            fclose(file);
            count++;
        }
    if (list)
        closedir(list);
    return count;
}

/* Whatever was chosen, here it is this. */
std::string
all_chose(std::string text, const char *choice)
{
    for (size_t at = 0; (at = text.find('\t', at)) != std::string::npos; at++)
        text.replace(at + 1, text.find('\n', at) - at - 1, choice);
    return text;
}

/* With what a file says that was kept for this card, whatever it says. */
void
kept_products(enum fake_refusal)
{
    struct fake *f = fake_of("libcublasLt.so.13");
    struct sd_device *d = open_device();
    bool taken;

    expect(same_product<float, float>(d, 3, &taken), "as our own");
    expect(taken == (f->runs > 0), "taken, if anything ran");
    expect(runs_wanted == f->runs, "how often it ran");
    printf("# %d runs\n", f->runs);
    sd_device_close(d);
}

/* -- cuDNN ---------------------------------------------------------------------------------------------------------- */

/* ||a - b|| / ||b|| of what lies at `bytes` apart */
template <class T> double
apart(struct sd_device *d, const T *a, const T *b, size_t n)
{
    return tuning_distance(d, a, a, b, dtype_of<T>::value, n);
}

template <class T> void
convolutions(struct sd_device *d, bool good, int *taken)
{
    const int64_t batch = 2, height = 6, width = 5, in = 8, out = 16;
    size_t nx = batch * height * width * in, ny = batch * height * width * out, nw = out * in * 9;
    T *x = up(d, eighths<T>(nx, 1)), *w = up(d, eighths<T>(nw, 2)), *dy = up(d, eighths<T>(ny, 3));
    T *add = up(d, eighths<T>(batch * (out + 8), 5));
    T *one = up(d, eighths<T>(ny, 6)), *two = up(d, eighths<T>(ny, 6)), *bias_d = up(d, eighths<T>(out, 4));
    float *bias = up(d, eighths<float>(out, 4)), *dw = up(d, eighths<float>(nw, 7)), *dw_own = up(d, eighths<float>(nw, 7));

    for (int i = 0; i < 12; i++) {
        struct conv_call c = {};
        bool took;
        size_t n;
        void *scratch;

        c.kind = (enum conv_kind)(i % 3);
        c.dtype = dtype_of<T>::value;
        c.batch = batch;
        c.height = c.out_height = height;
        c.width = c.out_width = width;
        c.in = in;
        c.out = out;
        c.kernel_height = c.kernel_width = 3;
        c.stride = c.top = c.left = c.bottom = c.right = c.upsample = 1;
        c.x = x;
        c.w = w;
        c.dy = dy;
        c.add = c.kind != CONV_FORWARD && i / 3 % 2;
        if (c.kind == CONV_FORWARD && i / 3 & 1) {
            c.bias = bias;
            c.bias_d = bias_d;
            c.channel_add = add;
            c.channel_add_pitch = out + 8;
        }
        c.to = c.kind == CONV_WEIGHT ? (void *)dw : one;
        c.residual = c.kind == CONV_FORWARD && i / 3 & 2 ? one : NULL;
        scratch = sd_device_alloc(d, conv_scratch(&c) + 1, "scratch");
        c.scratch = scratch;
        took = cudnn_conv2d(d, &c);
        expect(took == good, "a convolution is taken, or not");
        if (!took)
            conv_cuda(d, &c);
        c.to = c.kind == CONV_WEIGHT ? (void *)dw_own : two;
        c.residual = c.residual ? two : NULL;
        conv_cuda(d, &c);
        n = c.kind == CONV_DATA ? nx : ny;
        if (c.kind == CONV_WEIGHT)
            expect(apart(d, dw, dw_own, nw) < 1e-6, "a gradient of w as our own");
        else
            expect(apart(d, one, two, n) <= tuning_bound(c.dtype), "a convolution as our own");
        *taken += took;
        sd_device_free(d, scratch);
    }
    for (void *p : std::vector<void *>{ x, w, dy, add, one, two, bias_d, bias, dw, dw_own })
        sd_device_free(d, p);
}

/* A doubled picture's forward pass and gradient; always: there is no choice by time, in which our own kernel may win. */
template <class T> void
doubled(struct sd_device *d, bool good, bool always, int64_t batch)
{
    const int64_t height = 3, width = 4, in = 8, out = 16;
    size_t nx = batch * height * width * in, ny = 4 * batch * height * width * out;
    T *x = up(d, eighths<T>(nx, 1)), *w = up(d, eighths<T>(out * in * 16, 2)), *dy = up(d, eighths<T>(ny, 3));
    T *add = up(d, eighths<T>(batch * (out + 8), 5)), *more = up(d, eighths<T>(ny, 8));
    T *one = up(d, eighths<T>(ny, 6)), *two = up(d, eighths<T>(ny, 6));
    float *bias = up(d, eighths<float>(out, 4));

    for (int form = 0; form < 12; form++) {         /* bit 0 bias, bit 1 channel_add; 0 to 2: residual: none, beside, in place */
        bool forward = form < 10, took;
        struct conv_call c = {};
        void *scratch;

        c.kind = forward ? CONV_FORWARD : CONV_DATA;
        c.dtype = dtype_of<T>::value;
        c.batch = batch;
        c.height = height;
        c.width = width;
        c.in = in;
        c.out_height = 2 * height;
        c.out_width = 2 * width;
        c.out = out;
        c.kernel_height = c.kernel_width = 3;
        c.stride = c.top = c.left = c.bottom = c.right = 1;
        c.upsample = 2;
        c.x = x;
        c.dy = dy;
        c = conv_transposed(&c);
        c.w = w;
        c.bias = forward && form & 1 ? bias : NULL;
        c.channel_add = forward && form & 2 ? add : NULL;
        c.channel_add_pitch = out + 8;
        c.to = one;
        c.residual = !forward ? (form & 1 ? one : NULL) : form / 4 == 0 ? NULL : form / 4 == 1 ? more : one;
        scratch = sd_device_alloc(d, conv_scratch(&c) + 1, "scratch");
        c.scratch = scratch;
        took = cudnn_conv2d(d, &c);
        expect(always ? took == good : good || !took, "a doubled picture is taken, or not");
        if (!took)
            conv_cuda(d, &c);
        c.to = two;
        c.residual = c.residual == one ? two : c.residual;
        conv_cuda(d, &c);
        expect(apart(d, one, two, forward ? ny : nx) <= tuning_bound(c.dtype), "a doubled picture as our own");
        sd_device_free(d, scratch);
    }
    for (void *p : std::vector<void *>{ x, w, dy, add, more, one, two, bias })
        sd_device_free(d, p);
}

bool gradients_taken = true;            /* where attention is */

template <class T> void
heads(struct sd_device *d, bool good, int64_t batch, int64_t h, int64_t L, int64_t S, bool store)
{
    const int64_t width = 16, all = h * width, wide = 3 * all;
    std::vector<float> q = numbers(batch * L * wide, 1), k = numbers(batch * S * wide, 2), g = numbers(batch * L * all, 3);
    std::vector<T> hq(q.size()), hk(k.size()), hg(g.size());
    T *on_q, *on_k, *dy, *o[2], *dq[2], *dk[2], *dv[2];
    float *lse[2];
    struct attention_call c = {};
    void *scratch;
    bool took;

    for (size_t i = 0; i < q.size(); i++)
        hq[i] = from_float<T>(q[i]);
    for (size_t i = 0; i < k.size(); i++)
        hk[i] = from_float<T>(k[i]);
    for (size_t i = 0; i < g.size(); i++)
        hg[i] = from_float<T>(g[i]);
    on_q = up(d, hq);
    on_k = up(d, hk);
    dy = up(d, hg);
    c.dtype = dtype_of<T>::value;
    c.batch = batch;
    c.heads = h;
    c.L = L;
    c.S = S;
    c.d = width;
    c.scale = 0.25;
    c.q = on_q;
    c.k = on_k + all;
    c.v = on_k + 2 * all;
    c.q_pitch = c.k_pitch = c.v_pitch = wide;
    c.o_pitch = c.o_gradient_pitch = all;
    for (int i = 0; i < 2; i++) {
        std::vector<T> zeros(hg.size());

        o[i] = up(d, zeros);
        dq[i] = up(d, hq);
        dk[i] = up(d, hk);
        dv[i] = dk[i] + all;
        lse[i] = up(d, std::vector<float>(batch * h * L));
        c.o = o[i];
        c.lse = lse[i];
        c.backward = false;
        scratch = sd_device_alloc(d, attention_scratch(&c) + 1, "scratch");
        c.scratch = scratch;
        took = i == 0 && cudnn_attention(d, &c);
        expect(i || took == good, "attention is taken, or not");
        if (!took)
            attention_cuda(d, &c);
        sd_device_free(d, scratch);
        c.backward = true;
        c.o_gradient = dy;
        c.q_gradient = dq[i];
        c.k_gradient = store ? dk[i] : NULL;
        c.v_gradient = dv[i];
        c.q_gradient_pitch = c.k_gradient_pitch = c.v_gradient_pitch = wide;
        c.q_store = c.k_store = true;
        c.v_store = store;
        scratch = sd_device_alloc(d, attention_scratch(&c) + 1, "scratch");
        c.scratch = scratch;
        took = i == 0 && cudnn_attention(d, &c);
        expect(i || took == (good && gradients_taken), "gradients of attention are taken, or not");
        if (!took)
            attention_cuda(d, &c);
        sd_device_free(d, scratch);
    }
    expect(apart(d, o[0], o[1], hg.size()) <= tuning_bound(c.dtype), "attention as our own");
    expect(apart(d, lse[0], lse[1], (size_t)(batch * h * L)) <= 1e-3, "its statistics as our own");
    expect(apart(d, dq[0], dq[1], hq.size()) <= tuning_bound(c.dtype), "dq as our own");
    expect(apart(d, dk[0], dk[1], hk.size()) <= tuning_bound(c.dtype), "dk and dv as our own");
    for (void *p : std::vector<void *>{ on_q, on_k, dy, o[0], o[1], dq[0], dq[1], dk[0], dk[1], lse[0], lse[1] })
        sd_device_free(d, p);
}

void
kept_graphs(enum fake_refusal)
{
    struct fake *f = fake_of("libcudnn.so.9");
    struct sd_device *d = open_device();

    heads<bf16>(d, runs_wanted >= 0, 1, 1, 4, 8, true);
    expect(runs_wanted < 0 ? f->runs == 0 : runs_wanted ? f->runs >= 2 && f->runs <= runs_wanted : f->runs > 30, "how often it ran");
    expect(compiled_wanted < 0 || f->compiled == compiled_wanted, "how many plans were compiled");
    printf("# %d runs, %d compiled\n", f->runs, f->compiled);
    sd_device_close(d);
    expect(f->descriptors == 0, "no descriptor is left");
}

void
graphs(enum fake_refusal refusal)
{
    struct fake *f = fake_of("libcudnn.so.9");
    struct sd_device *d = open_device();
    bool good = refusal == FAKE_NOTHING || refusal == FAKE_PREFERRED;
    int taken = 0;

    f->refuses = refusal;
    f->workspace = 4096;
    convolutions<bf16>(d, good, &taken);
    convolutions<f16>(d, good, &taken);
    doubled<bf16>(d, good, false, 1);
    setenv("SD_TUNE", "0", 1);
    doubled<bf16>(d, good, true, 2);
    unsetenv("SD_TUNE");
    heads<bf16>(d, good, 2, 2, 9, 7, true);
    heads<f16>(d, good, 2, 2, 9, 7, false);
    heads<bf16>(d, good, 1, 2, 8, 8, true);
    expect(f->handles == (refusal != FAKE_CREATE), "one handle");
    expect(dlopen("libnvrtc-builtins.so.13.7", RTLD_NOW | RTLD_NOLOAD), "the compiler's part is open, for it to find");
    if (good) {
        int runs = f->runs;

        cudnn_workspace = 9000;         /* of 64 x 64 scores, one head's at a time */
        heads<f16>(d, good, 2, 2, 12, 7, true);
        heads<bf16>(d, good, 2, 2, 12, 5, false);
        expect(f->runs > runs + 8, "each head by itself");
        gradients_taken = false;
        heads<f16>(d, good, 2, 2, 9, 7, true);          /* the second head's statistics are not on 16 bytes */
        gradients_taken = true;
        f->refuses = FAKE_RUN;
        convolutions<bf16>(d, false, &taken);
        heads<bf16>(d, false, 2, 2, 9, 7, true);
    }
    sd_device_close(d);
    expect(f->handles == 0 && f->descriptors == 0, "no handle and no descriptor is left");
}

}

int
main(void)
{
    static const struct { enum fake_refusal refusal; const char *name; } cases[] = {
        { FAKE_NOTHING, "takes all, then refuses what it had offered" }, { FAKE_CREATE, "cannot be started" },
        { FAKE_DESCRIBE, "refuses a description" }, { FAKE_HEURISTIC, "has nothing to offer" }, { FAKE_PLAN, "cannot make a plan" },
        { FAKE_RUN, "refuses to run" }, { FAKE_WRONG, "computes wrongly" }, { FAKE_HUNGRY, "wants too much memory" },
        { FAKE_UNSTEADY, "computes something else each time" }, { FAKE_REPLAYED, "computes wrongly when a recording is replayed" },
        { FAKE_PREFERRED, "computes wrongly by all that it prefers: it is asked for what it falls back on" }
    };
    char path[4096], cache[] = "/tmp/sd-vendors-XXXXXX", name[128];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);

    path[n > 0 ? n : 0] = '\0';
    folder = std::string(path);
    folder = folder.substr(0, folder.rfind('/')) + "/../fake";
    setenv("SD_CUDA_LIBS", folder.c_str(), 1);
    setenv("SD_EMULATE_CAPABILITY", "90", 1);
    if (!mkdtemp(cache))
        sd_die(cache, "cannot be made");
    for (const auto &c : cases) {
        std::string own = std::string(cache) + "/" + std::to_string((int)c.refusal);

        setenv("XDG_CACHE_HOME", own.c_str(), 1);
        setenv("SD_EMULATE_STRICT", "0", 1);            /* the door takes most of the time */
        if (c.refusal != FAKE_PLAN && c.refusal != FAKE_PREFERRED) {
            snprintf(name, sizeof name, "cuBLASLt %s", c.name);
            in_child(name, products, c.refusal);
        }
        if (c.refusal == FAKE_NOTHING)
            unsetenv("SD_EMULATE_STRICT");
        snprintf(name, sizeof name, "cuDNN %s", c.name);
        in_child(name, graphs, c.refusal);
    }
    setenv("XDG_CACHE_HOME", (std::string(cache) + "/kept").c_str(), 1);
    setenv("SD_EMULATE_STRICT", "0", 1);
    in_child("a choice is made by trial", kept, FAKE_NOTHING);
    runs_wanted = 1;
    in_child("a second run takes it as it is", kept, FAKE_NOTHING);
    version = 130200;
    runs_wanted = 3;
    in_child("another version of the library refuses it: the next is compared and taken, untimed", kept, FAKE_NOTHING);
    version = 130100;
    CHECK(damage(std::string(cache) + "/kept", [](std::string text) { return text.substr(0, 15); }) == 1, "a file of choices is cut");
    runs_wanted = 0;
    in_child("what is cut is chosen anew", kept, FAKE_NOTHING);
    runs_wanted = 1;
    in_child("and kept again", kept, FAKE_NOTHING);
    setenv("SD_TUNE", "0", 1);
    setenv("XDG_CACHE_HOME", (std::string(cache) + "/untimed").c_str(), 1);
    runs_wanted = 3;
    in_child("SD_TUNE=0: the first that is right", kept, FAKE_NOTHING);
    in_child("SD_TUNE=0: cuBLASLt computes wrongly", products, FAKE_WRONG);
    unsetenv("SD_TUNE");
    for (const char *was : { "", "zz", "none ", "6b6d", "\001\377" }) {
        damage(std::string(cache) + "/kept", [=](std::string text) { return all_chose(text, was); });
        setenv("XDG_CACHE_HOME", (std::string(cache) + "/kept").c_str(), 1);
        snprintf(name, sizeof name, "no choice of cuBLASLt's: %zu bytes", strlen(was));
        in_child(name, kept_products, FAKE_NOTHING);
    }
    damage(std::string(cache) + "/kept", [](std::string text) { return all_chose(text, std::string(128, 'f').c_str()); });
    in_child("an algorithm that the library does not know", kept_products, FAKE_NOTHING);
    damage(std::string(cache) + "/kept", [](std::string text) { return all_chose(text, "none"); });
    runs_wanted = 0;
    in_child("none was right before: none is asked", kept_products, FAKE_NOTHING);
    setenv("XDG_CACHE_HOME", (std::string(cache) + "/graphs").c_str(), 1);
    compiled_wanted = 2;
    in_child("cuDNN's engines are chosen by trial, those that it prefers alone", kept_graphs, FAKE_NOTHING);
    runs_wanted = 2;
    compiled_wanted = 0;
    in_child("a second run takes them as they are, compiled", kept_graphs, FAKE_NOTHING);
    if (system(("for f in " + std::string(cache) + "/graphs/sd-tools/tuning/*.plans/*; do truncate -s -1 $f; done").c_str()))
        sd_warn(cache, "nothing is cut");
    compiled_wanted = 1;
    in_child("a plan that is cut is compiled again", kept_graphs, FAKE_NOTHING);
    compiled_wanted = 0;
    in_child("and kept again", kept_graphs, FAKE_NOTHING);
    compiled_wanted = -1;
    runs_wanted = 30;                   /* the next is compared, untimed */
    for (const char *was : { "", "x", "1", "64 1", "2147483648 1", "1 7777", "-", "0 300" }) {
        damage(std::string(cache) + "/graphs", [=](std::string text) { return all_chose(text, was); });
        snprintf(name, sizeof name, "no engine of cuDNN's: '%s'", was);
        in_child(name, kept_graphs, FAKE_NOTHING);
    }
    damage(std::string(cache) + "/graphs", [](std::string text) { return all_chose(text, "-1 -1"); });
    runs_wanted = -1;
    in_child("no engine was right before: none is asked", kept_graphs, FAKE_NOTHING);
    if (system(("rm -rf '" + std::string(cache) + "'").c_str()))
        sd_warn(cache, "is left");
    return check_done();
}
