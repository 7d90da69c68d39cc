/* attention: CUDA twin of attention.c, where the formulas are.  Scores never leave the chip, forward or backward.
 *
 * Products: 2 of 2 L S d operations a head forward, 7 backward (5 are the least: dq in its own pass makes scores and dp
 * again, so that nothing is added to in an order that depends on time).  Bytes: q, k, v, y once each, k and v once more
 * per 64 queries from L2.  At L = S = 4096, d = 40, 8 heads: 21 GFLOP for 10 MB, so the matrix units are the limit, and
 * next to them exp2: one for 4 d operations.
 *
 *   narrow   BF16, F16, d <= 160: four warps hold 16 queries (or keys) each in registers, tiles of keys (queries) pass
 *            by in shared memory, two stages of asynchronous copies.  Heads are padded with zeros to 48, 64, 80 or 160.
 *   wide     BF16, F16, d <= 512, forward (the VAE's one head): eight warps share 32 queries; each makes scores of 16 x
 *            8 and then 64 columns of the output.  k is fetched while v is used and the other way round.
 *   plain    the rest, with ordinary multiply-adds: tiles of 64 x 64, columns of the output in chunks of 64 or 160.
 *
 * The largest score seen is rounded up to a power of two, so that scaling older sums is exact. */
#include "attention_cuda.h"
#include "ops.h"
#include "product_cuda.h"
#include "vendor.h"

using namespace sd_attend;

namespace {

/* delta[b, h, i] = dy_i . y_i: eight lanes each */
template <class T> static __global__ void
delta_kernel(problem<T> p, int64_t count)
{
    SD_BEGIN();
    const int W = wide<T>::count;
    int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 8, head = at % p.heads, row = at / p.heads;
    int lane = threadIdx.x % 8;
    float sum = 0;

    if (at < count) {
        const T *x = p.o + row * p.o_pitch + head * p.d, *g = p.dy + row * p.dy_pitch + head * p.d;

        if (p.aligned)
            for (int c = lane * W; c < p.d; c += 8 * W) {
                vec<T, W> a = load<W>(x + c), b = load<W>(g + c);

#pragma unroll
                for (int i = 0; i < W; i++)
                    sum += to_float(a.at[i]) * to_float(b.at[i]);
            }
        else
            for (int c = lane; c < p.d; c += 8)
                sum += to_float(x[c]) * to_float(g[c]);
    }
    for (int i = 4; i; i /= 2)
        sum += __shfl_xor_sync(ALL_LANES, sum, i);
    if (at < count && lane == 0)
        p.delta[(row / p.L * p.heads + head) * p.L + row % p.L] = sum;
}

void
run(struct sd_device *d, const problem<float> &p, int64_t batch, bool backward)
{
    run_plain(d, p, batch, backward);
}

template <class T> void
run(struct sd_device *d, const problem<T> &p, int64_t batch, bool backward)
{
    if (p.d <= NARROW_MAX)
        run_narrow(d, p, batch, backward);
    else if (p.d <= WIDE_MAX && !backward)
        run_wide(d, p, batch);
    else
        run_plain(d, p, batch, backward);
}

/* May dk and dv hold one element both?  Columns side by side of one tensor do not. */
static bool
overlap(const struct attention_call *c)
{
    int64_t size = (int64_t)sd_dtype_size(c->dtype), cols = c->heads * c->d, rows = c->batch * c->S, p = c->k_gradient_pitch,
            apart;
    uintptr_t k = (uintptr_t)c->k_gradient, v = (uintptr_t)c->v_gradient;

    if (!k || !v || k + (uintptr_t)(((rows - 1) * p + cols) * size) <= v
            || v + (uintptr_t)(((rows - 1) * c->v_gradient_pitch + cols) * size) <= k)
        return false;
    apart = ((int64_t)(k > v ? k - v : v - k) / size) % p;
    return p != c->v_gradient_pitch || apart < cols || p - apart < cols;
}

template <class T> static bool
even(const void *p, int64_t pitch)
{
    return !p || ((uintptr_t)p % (2 * sizeof(T)) == 0 && pitch % 2 == 0);
}

template <class T> static void
attend(struct sd_device *d, const struct attention_call *c)
{
    problem<T> p = {};
    int64_t size = sizeof(T), count = c->batch * c->L * c->heads;

    p.q = (const T *)c->q;
    p.k = (const T *)c->k;
    p.v = (const T *)c->v;
    p.lse = c->lse;
    p.L = c->L;
    p.S = c->S;
    p.q_pitch = c->q_pitch;
    p.k_pitch = c->k_pitch;
    p.v_pitch = c->v_pitch;
    p.o_pitch = c->o_pitch;
    p.heads = (int)c->heads;
    p.d = (int)c->d;
    p.scale = (float)c->scale;
    p.causal = c->causal;
    p.aligned = aligned16(c->q, c->q_pitch * size) && aligned16(c->k, c->k_pitch * size) && aligned16(c->v,
                                                                                                      c->v_pitch * size)
                && c->d * size % 16 == 0;
    if (!c->backward) {
        p.y = (T *)c->o;
        p.paired = c->d % 2 == 0 && even<T>(c->o, c->o_pitch);
        run(d, p, c->batch, false);
        return;
    }
    p.o = (const T *)c->o;
    p.dy = (const T *)c->o_gradient;
    p.dq = c->L ? (T *)c->q_gradient : NULL;
    p.dk = c->S ? (T *)c->k_gradient : NULL;
    p.dv = c->S ? (T *)c->v_gradient : NULL;
    p.dy_pitch = c->o_gradient_pitch;
    p.dq_pitch = c->q_gradient_pitch;
    p.dk_pitch = c->k_gradient_pitch;
    p.dv_pitch = c->v_gradient_pitch;
    p.add_q = !c->q_store;
    p.add_k = !c->k_store;
    p.add_v = !c->v_store;
    p.delta = (float *)c->scratch;
    p.paired = c->d % 2 == 0 && even<T>(p.dq, p.dq_pitch) && even<T>(p.dk, p.dk_pitch) && even<T>(p.dv, p.dv_pitch);
    p.aligned = p.aligned && aligned16(p.o, p.o_pitch * size) && aligned16(p.dy, p.dy_pitch * size);
    if (count && (p.dq || p.dk))
        SD_LAUNCH(d, delta_kernel<T>, (unsigned)ceil_div(count * 8, 256), 256, 0, p, count);
    if (overlap(c)) {           /* one after the other: which adds first is then certain */
        problem<T> values = p;

        p.dv = NULL;
        run(d, p, c->batch, true);
        values.dq = values.dk = NULL;
        run(d, values, c->batch, true);
    } else
        run(d, p, c->batch, true);
}

}   /* namespace */

size_t
attention_scratch(const struct attention_call *c)
{
    return c->backward ? (size_t)(c->batch * c->heads * c->L) * sizeof(float) : 0;
}

bool
attention_cuda(struct sd_device *d, const struct attention_call *c)
{
    if (c->batch * c->heads * c->d > 0 && (c->L > 0 || (c->backward && c->S > 0)))
        SD_BY_DTYPE(c->dtype, T, attend<T>(d, c));
    return true;
}

/* -- the node ------------------------------------------------------------------------------------------------------ */

static void
gradient(const struct sd_node *n, int i, void **data, int64_t *pitch, bool *store)
{
    const struct sd_tensor *g = n->din[i];

    if (g && g->dtype != n->in[0]->dtype)
        sd_bug("attention", "gradient %d is %s, expected %s", i, sd_dtype_name(g->dtype),
               sd_dtype_name(n->in[0]->dtype));
    *data = g ? g->data : NULL;
    *pitch = g ? g->pitch : 0;
    *store = n->din_store[i];
}

static struct attention_call
call_of(const struct sd_node *n, bool backward)
{
    const struct sd_attention *a = static_cast<const struct sd_attention *>(n->attr);
    const struct sd_tensor *q = n->in[0], *k = n->in[1], *v = n->in[2];
    struct attention_call c = {};

    c.backward = backward;
    c.causal = a->causal;
    c.dtype = q->dtype;
    c.batch = q->shape[0];
    c.heads = a->heads;
    c.L = q->shape[1];
    c.S = k->shape[1];
    c.d = sd_cols(q) / a->heads;
    c.scale = a->scale != 0 ? a->scale : 1 / sqrt((double)c.d);
    c.q = q->data;
    c.k = k->data;
    c.v = v->data;
    c.o = n->out->data;
    c.lse = n->saved[0] ? data<float>(n->saved[0]) : NULL;
    c.q_pitch = q->pitch;
    c.k_pitch = k->pitch;
    c.v_pitch = v->pitch;
    c.o_pitch = n->out->pitch;
    c.scratch = n->scratch;
    if (backward) {
        c.o_gradient = n->dout->data;
        c.o_gradient_pitch = n->dout->pitch;
        gradient(n, 0, &c.q_gradient, &c.q_gradient_pitch, &c.q_store);
        gradient(n, 1, &c.k_gradient, &c.k_gradient_pitch, &c.k_store);
        gradient(n, 2, &c.v_gradient, &c.v_gradient_pitch, &c.v_store);
    }
    return c;
}

void
attention_prepare_cuda(struct sd_node *n)
{
    struct attention_call c = call_of(n, false);

    n->backward_flops = n->flops / 2 * (n->din[1] || n->din[2] ? 1 + 1 + !!n->din[0] + !!n->din[1] + !!n->din[2] : 3);
    c.backward = n->training;
    n->scratch_bytes = attention_scratch(&c);
}

void
attention_forward_cuda(struct sd_node *n)
{
    struct attention_call c = call_of(n, false);

    cudnn_attention(device_of(n), &c) || attention_cuda(device_of(n), &c);
}

void
attention_backward_cuda(struct sd_node *n)
{
    struct attention_call c = call_of(n, true);

    cudnn_attention(device_of(n), &c) || attention_cuda(device_of(n), &c);
}
