/* cudnn_attention.c - attention and its gradients by cuDNN. */
#include "cudnn_internal.h"

#include <stdio.h>

#include "device_ops.h"
#include "vendor.h"

enum { Q = 1, K, V, O, STATS, SCALE, D_O, D_Q, D_K, D_V };      /* uids */

static bool
takes_attention(const struct attention_call *c)
{
    uintptr_t all = (uintptr_t)c->q | (uintptr_t)c->k | (uintptr_t)c->v | (uintptr_t)c->o | (uintptr_t)c->o_gradient
                    | (uintptr_t)c->q_gradient | (uintptr_t)c->k_gradient | (uintptr_t)c->v_gradient;
    int64_t pitches = c->q_pitch | c->k_pitch | c->v_pitch | c->o_pitch | c->o_gradient_pitch | c->q_gradient_pitch
                      | c->k_gradient_pitch | c->v_gradient_pitch;

    return (c->dtype == SD_BF16 || c->dtype == SD_F16) && !c->causal && all % ALIGNED == 0 && pitches % 8 == 0 && c->d % 8 == 0
           && c->batch * c->heads * c->L * c->S * c->d > 0 && (c->lse || !c->backward);
}

/* The descriptor of the backward pass is there since 9.17, and refused in every graph before 9.21. */
static size_t
since(const struct attention_call *c)
{
    return c->backward ? SDPA_BACKWARD_SINCE : SDPA_FORWARD_SINCE;
}

static void *
heads(struct graph *g, int64_t uid, const struct attention_call *c, int64_t rows, int64_t pitch)
{
    return dnn_tensor(g, uid, dnn_type(c->dtype), (int64_t[]){ c->batch, c->heads, rows, c->d },
                  (int64_t[]){ rows * pitch, c->d, pitch, 1 }, IN_MEMORY);
}

/* Gradients that are to be added to are made dense beside, and added afterwards. */
static int64_t
gradient_pitch(const struct attention_call *c, const void *to, int64_t pitch, bool store)
{
    return to && store ? pitch : c->heads * c->d;
}

static void
attention_graph(struct graph *g, const struct attention_call *c, void *handle)
{
    bool back = c->backward;
    void *o = dnn_make(g, back ? OPERATION_SDPA_BACKWARD : OPERATION_SDPA_FORWARD, "attention");

    dnn_set_part(g, o, back ? SDPA_B_Q : SDPA_F_Q, heads(g, Q, c, c->L, c->q_pitch));
    dnn_set_part(g, o, back ? SDPA_B_K : SDPA_F_K, heads(g, K, c, c->S, c->k_pitch));
    dnn_set_part(g, o, back ? SDPA_B_V : SDPA_F_V, heads(g, V, c, c->S, c->v_pitch));
    dnn_set_part(g, o, back ? SDPA_B_O : SDPA_F_O, heads(g, O, c, c->L, c->o_pitch));
    if (c->lse)
        dnn_set_part(g, o, back ? SDPA_B_STATS : SDPA_F_STATS,
                 dnn_tensor(g, STATS, DATA_FLOAT, (int64_t[]){ c->batch, c->heads, c->L, 1 },
                        (int64_t[]){ c->heads * c->L, c->L, 1, 1 }, IN_MEMORY));
    dnn_set_part(g, o, back ? SDPA_B_SCALE : SDPA_F_SCALE,
             dnn_tensor(g, SCALE, DATA_FLOAT, (int64_t[]){ 1, 1, 1, 1 }, (int64_t[]){ 1, 1, 1, 1 }, BY_VALUE));
    if (back) {
        dnn_set_part(g, o, SDPA_B_DO, heads(g, D_O, c, c->L, c->o_gradient_pitch));
        dnn_set_part(g, o, SDPA_B_DQ, heads(g, D_Q, c, c->L, gradient_pitch(c, c->q_gradient, c->q_gradient_pitch, c->q_store)));
        dnn_set_part(g, o, SDPA_B_DK, heads(g, D_K, c, c->S, gradient_pitch(c, c->k_gradient, c->k_gradient_pitch, c->k_store)));
        dnn_set_part(g, o, SDPA_B_DV, heads(g, D_V, c, c->S, gradient_pitch(c, c->v_gradient, c->v_gradient_pitch, c->v_store)));
    }
    dnn_add_operation(g, o, "attention");
    dnn_close(g, handle);
}

bool
cudnn_ask_attention(const struct attention_call *c, const char *device, struct cudnn_asked *asked, const char **why)
{
    struct graph g = { .count = 0 };

    *why = takes_attention(c) ? "no cudnn" : NULL;
    if (!*why || !dnn_open())
        return false;
    *why = "this version has no such operation";
    if (dnn.number < since(c))
        return false;
    attention_graph(&g, c, NULL);
    return dnn_read_back(&g, device, asked, why);
}

#if SD_WITH_CUDA            /* what follows runs; it wants kernels of ours beside the library's */

static bool
own_attention(struct sd_device *d, const void *call, const struct pack *to)
{
    struct attention_call c = *(const struct attention_call *)call;

    c.o = dnn_result(to, O);
    c.lse = dnn_result(to, STATS);
    return !c.backward && attention_cuda(d, &c);
}

bool
cudnn_attention(struct sd_device *d, const struct attention_call *c)
{
    const float scale = (float)c->scale;
    const int64_t width = c->heads * c->d;
    struct { int64_t uid; void *to; int64_t pitch, rows; bool store; } gradient[] = {
        { D_Q, c->q_gradient, c->q_gradient_pitch, c->batch * c->L, c->q_store },
        { D_K, c->k_gradient, c->k_gradient_pitch, c->batch * c->S, c->k_store },
        { D_V, c->v_gradient, c->v_gradient_pitch, c->batch * c->S, c->v_store },
    };
    struct state *s;
    struct plan *p;
    struct pack pack = { .own = own_attention, .call = c };
    size_t room, at;
    char key[256], *workspace;
    int first;

    if (sd_device_capability(d) == 0 || !takes_attention(c) || !dnn_open()
            || dnn.number < since(c) || !(s = dnn_state(d)))
        return false;
    snprintf(key, sizeof key, "attention %s%s %lldx%lldx%lldx%lldx%lld ld %lld,%lld,%lld,%lld,%lld d %lld,%lld,%lld",
             c->backward ? "back " : c->lse ? "" : "only ", sd_dtype_name(c->dtype), (long long)c->batch, (long long)c->heads,
             (long long)c->L, (long long)c->S, (long long)c->d, (long long)c->q_pitch, (long long)c->k_pitch, (long long)c->v_pitch,
             (long long)c->o_pitch, (long long)c->o_gradient_pitch,
             (long long)gradient_pitch(c, c->q_gradient, c->q_gradient_pitch, c->q_store),
             (long long)gradient_pitch(c, c->k_gradient, c->k_gradient_pitch, c->k_store),
             (long long)gradient_pitch(c, c->v_gradient, c->v_gradient_pitch, c->v_store));
    dnn_put(&pack, Q, c->q);
    dnn_put(&pack, K, c->k);
    dnn_put(&pack, V, c->v);
    dnn_put(&pack, SCALE, &scale);
    if (c->backward)
        dnn_put(&pack, O, c->o);
    else
        dnn_put_result(&pack, O, c->o, (size_t)((c->batch * c->L - 1) * c->o_pitch + width), c->dtype);
    if (c->lse && c->backward)
        dnn_put(&pack, STATS, c->lse);
    else if (c->lse)
        dnn_put_result(&pack, STATS, c->lse, (size_t)(c->batch * c->heads * c->L), SD_F32);
    if (c->backward)
        dnn_put(&pack, D_O, c->o_gradient);
    first = pack.count;
    for (int i = 0; c->backward && i < 3; i++) {
        int64_t pitch = gradient_pitch(c, gradient[i].to, gradient[i].pitch, gradient[i].store);

        dnn_put_result(&pack, gradient[i].uid, gradient[i].to, (size_t)((gradient[i].rows - 1) * pitch + width), c->dtype);
    }
    if (!(p = dnn_find_plan(s, key))) {
        struct graph g = { .count = 0 };

        attention_graph(&g, c, s->handle);
        p = dnn_new_plan(s, key, &g, &pack);
    }
    if (!p->exec)
        return false;
    room = dnn_round_up((size_t)p->workspace);
    for (int i = first; i < pack.count; i++)
        if (!gradient[i - first].to || !gradient[i - first].store)
            room += dnn_round_up(pack.bytes[i]);
    workspace = sd_device_workspace(d, room);
    at = dnn_round_up((size_t)p->workspace);
    for (int i = first; i < pack.count; i++)
        if (!gradient[i - first].to || !gradient[i - first].store) {
            pack.at[i] = workspace + at;
            at += dnn_round_up(pack.bytes[i]);
        }
    if (!dnn_run(s, p, &pack, workspace))
        return false;
    for (int i = first; i < pack.count; i++)
        if (gradient[i - first].to && !gradient[i - first].store)
            sd_device_rows(d, gradient[i - first].to, c->dtype, gradient[i - first].pitch, pack.at[i], c->dtype, width,
                           gradient[i - first].rows, width, true);
    return true;
}

#endif
