/* mirror - trainables and optimizer on a device. */
#include "mirror.h"

#include "device.h"

#include <string.h>

#if SD_WITH_CUDA && SD_REAL_IS_FLOAT
#include "device_ops.h"
#include "update.h"

enum { LEVELS = 32 };

struct sd_mirror {
    struct sd_device *device;
    struct sd_optimizer *o;
    enum sd_dtype dtype;
    float *value, *grad, *buffer[SD_MAX_BUFFERS];
    void *shadow;                   /* value as dtype; NULL where that is F32 */
    float *sum[LEVELS];             /* as in accumulate.c */
    uint32_t taken;
    int64_t samples;
    double *loss;                   /* sum over the window */
    double *room;
    struct sd_update_values *values;
    struct sd_update_result *result;
    struct sd_prodigy_state *state;
    struct sd_prodigy_work *work;
    struct sd_repeat end;           /* of a window */
    struct asked {                  /* an update whose result was not waited for */
        int number;
        int64_t samples;
        bool counted[SD_MAX_GROUPS];    /* AdamW's count of steps */
    } asked[SD_MIRROR_AHEAD];       /* the oldest first */
    int ahead;
};

static size_t
bytes(const struct sd_mirror *m)
{
    return m->o->t->count * sizeof(float);
}

void
sd_mirror_bytes(const struct sd_optimizer *o, enum sd_dtype dtype, uint32_t accumulation, struct sd_device_bytes *b)
{
    size_t n = o->t->count, sums = accumulation > 1;
    const struct sd_mirror *m = NULL;

    for (uint32_t k = accumulation; k > 1; k >>= 1)
        sums++;
    b->trained = n * sizeof(float) + (dtype == SD_F32 ? 0 : n * sd_dtype_size(dtype));
    b->gradients = n * sizeof(float) * (1 + sums);
    b->optimizer = n * sizeof(float) * (size_t)o->buffers + sd_update_room(n) * sizeof(double) + sizeof *m->loss + sizeof *m->values
                   + sizeof *m->result + SD_MAX_GROUPS * (sizeof *m->state + sizeof *m->work);
}

struct sd_mirror *
sd_mirror_open(struct sd_device *d, struct sd_optimizer *o, enum sd_dtype dtype)
{
    struct sd_trainables *t = o->t;
    struct sd_mirror *m = sd_alloc(t->scope, sizeof *m);
    size_t at = 0;

    m->device = d;
    m->o = o;
    m->dtype = dtype;
    m->value = sd_device_alloc(d, bytes(m), "trainables");
    m->grad = sd_device_alloc(d, bytes(m), "gradients");
    for (int b = 0; b < o->buffers; b++)
        m->buffer[b] = sd_device_alloc(d, bytes(m), o->buffer_name[b]);
    if (dtype != SD_F32)
        m->shadow = sd_device_alloc(d, t->count * sd_dtype_size(dtype), "trainables");
    m->room = sd_device_alloc(d, sd_update_room(t->count) * sizeof(double), "sums");
    m->loss = sd_device_alloc(d, sizeof *m->loss, "loss");
    m->values = sd_device_alloc(d, sizeof *m->values, "step values");
    m->result = sd_device_alloc(d, sizeof *m->result, "step result");
    m->state = sd_device_alloc(d, SD_MAX_GROUPS * sizeof *m->state, "optimizer");
    m->work = sd_device_alloc(d, SD_MAX_GROUPS * sizeof *m->work, "optimizer");
    for (size_t i = 0; i < t->params; i++) {
        struct sd_param *p = t->param[i];

        p->device_value = m->value + at;
        p->device_grad = m->grad + at;
        if (m->shadow) {
            p->device_shadow = (char *)m->shadow + at * sd_dtype_size(dtype);
            p->shadow_dtype = dtype;
        }
        at += p->numel;
    }
    sd_device_fill(d, m->result, 0, sizeof *m->result);
    sd_mirror_clear(m);
    return m;
}

void
sd_mirror_free(struct sd_mirror *m)
{
    struct sd_device *d;

    if (!m)
        return;
    d = m->device;
    sd_device_wait(d);
    sd_repeat_end(&m->end);
    sd_device_free(d, m->value);
    sd_device_free(d, m->grad);
    for (int b = 0; b < m->o->buffers; b++)
        sd_device_free(d, m->buffer[b]);
    if (m->shadow)
        sd_device_free(d, m->shadow);
    for (int l = 0; l < LEVELS; l++)
        if (m->sum[l])
            sd_device_free(d, m->sum[l]);
    sd_device_free(d, m->room);
    sd_device_free(d, m->loss);
    sd_device_free(d, m->values);
    sd_device_free(d, m->result);
    sd_device_free(d, m->state);
    sd_device_free(d, m->work);
}

/* What kernels read, from the values: all at once, and the convolutions' own order. */
static void
refresh(struct sd_mirror *m)
{
    struct sd_trainables *t = m->o->t;

    if (m->shadow)
        sd_device_cast(m->device, m->shadow, m->dtype, m->value, SD_F32, t->count);
    sd_params_refresh(t->param, t->params, m->device);
}

/* Prodigy's doubles lie at the start of a group's scalars, as optimizer.c keeps them. */
void
sd_mirror_write(struct sd_mirror *m)
{
    struct sd_device *d = m->device;

    sd_device_write(d, m->value, m->o->t->value, bytes(m));
    for (int b = 0; b < m->o->buffers; b++)
        sd_device_write(d, m->buffer[b], m->o->buffer[b], bytes(m));
    for (int g = 0; m->o->options.kind == SD_PRODIGY && g < m->o->t->groups; g++)
        sd_device_write(d, &m->state[g], m->o->scalar[g], sizeof *m->state);
    refresh(m);
}

void
sd_mirror_read(struct sd_mirror *m)
{
    struct sd_device *d = m->device;

    sd_device_read(d, m->o->t->value, m->value, bytes(m));
    for (int b = 0; b < m->o->buffers; b++)
        sd_device_read(d, m->o->buffer[b], m->buffer[b], bytes(m));
    for (int g = 0; m->o->options.kind == SD_PRODIGY && g < m->o->t->groups; g++)
        sd_device_read(d, m->o->scalar[g], &m->state[g], sizeof *m->state);
}

void
sd_mirror_clear(struct sd_mirror *m)
{
    sd_device_fill(m->device, m->grad, 0, bytes(m));
}

void
sd_mirror_accumulate(struct sd_mirror *m, const float *loss, int64_t batch)
{
    struct sd_device *d = m->device;
    size_t n = m->o->t->count;
    int level = 0;

    sd_update_loss(d, m->loss, loss, (size_t)batch, m->taken == 0);
    for (; m->taken >> level & 1; level++)
        sd_update_add(d, m->grad, m->sum[level], n);
    if (!m->sum[level])
        m->sum[level] = sd_device_alloc(d, bytes(m), "sums of gradients");
    sd_device_copy(d, m->sum[level], m->grad, bytes(m));
    sd_mirror_clear(m);
    m->taken++;
    m->samples += batch;
}

static void
optimizer(struct sd_mirror *m, int g)
{
    const struct sd_optimizer_options *o = &m->o->options;
    size_t at = m->o->t->group[g].begin, n = m->o->t->group[g].count;

    if (o->kind == SD_PRODIGY) {
        struct sd_prodigy a = sd_optimizer_prodigy(o);
        struct sd_prodigy_buffers b = { m->value + at, m->grad + at, m->buffer[0] + at, m->buffer[1] + at, m->buffer[2] + at,
                                        m->buffer[3] + at, n };

        sd_update_prodigy(m->device, &m->state[g], &m->work[g], &a, &b, m->values, m->result, g, m->room);
    } else
        sd_update_adamw(m->device, m->value + at, m->grad + at, m->buffer[0] + at, m->buffer[1] + at, n, m->values, m->result, g);
}

/* What is the same at every update. */
static void
end_of_window(void *mirror)
{
    struct sd_mirror *m = mirror;
    struct sd_trainables *t = m->o->t;

    sd_update_mean(m->device, m->grad, t->count, m->values);
    for (int g = 0; g < t->groups; g++)
        sd_update_squares(m->device, m->result, g, m->grad + t->group[g].begin, t->group[g].count, m->room);
    sd_update_clip(m->device, m->result, t->groups, m->loss, m->values);
    for (int g = 0; g < t->groups; g++)
        optimizer(m, g);
    refresh(m);
    sd_mirror_clear(m);
}

static void
write_values(struct sd_mirror *m, const struct sd_mirror_step *step)
{
    const struct sd_optimizer_options *o = &m->o->options;
    struct sd_update_values v;
    struct asked *asked;

    if (m->ahead == SD_MIRROR_AHEAD)
        sd_bug("mirror", "%d updates that were not waited for", m->ahead);
    asked = &m->asked[m->ahead];
    memset(asked, 0, sizeof *asked);
    asked->samples = m->samples;
    memset(&v, 0, sizeof v);
    v.samples = m->samples;
    v.max_norm = step->max_norm;
    for (int g = 0; g < m->o->t->groups; g++) {
        struct sd_adamw a = { step->lr[g], o->beta1, o->beta2, o->eps, o->weight_decay, 1, 0 };

        v.group[g].moves = step->moves[g];
        v.group[g].lr = step->lr[g];
        if (!step->moves[g] || o->kind == SD_PRODIGY)
            continue;
        a.step = (int64_t)++m->o->scalar[g][0];
        asked->counted[g] = true;
        sd_update_values_adamw(&v.group[g], &a);
    }
    sd_device_write(m->device, m->values, &v, sizeof v);
}

/* The next update writes over the result: what this one wrote is fetched before it. */
static void
ask(struct sd_mirror *m)
{
    m->asked[m->ahead++].number = sd_device_ask(m->device, m->result, sizeof *m->result);
    m->samples = 0;
}

void
sd_mirror_update(struct sd_mirror *m, const struct sd_mirror_step *step)
{
    struct sd_device *d = m->device;
    bool first = true;

    write_values(m, step);
    for (int l = 0; l < LEVELS; l++)            /* what the counter holds, the lowest level first */
        if (m->taken >> l & 1) {
            if (first)
                sd_device_copy(d, m->grad, m->sum[l], bytes(m));
            else
                sd_update_add(d, m->grad, m->sum[l], m->o->t->count);
            first = false;
        }
    sd_repeat(d, &m->end, 0, end_of_window, m);
    m->taken = 0;
    ask(m);
}

struct whole {
    struct sd_mirror *m;
    const struct sd_mirror_work *w;
};

static void
whole(void *argument)
{
    const struct whole *x = argument;

    x->w->steps(x->w->argument);
    sd_update_loss(x->m->device, x->m->loss, x->w->loss, (size_t)x->w->batch, true);
    end_of_window(x->m);
}

void
sd_mirror_whole(struct sd_mirror *m, const struct sd_mirror_step *step, struct sd_repeat *repeat,
                const struct sd_mirror_work *w)
{
    if (m->taken)
        sd_bug("mirror", "a whole step inside a window");
    m->samples = w->batch;
    write_values(m, step);
    sd_repeat(m->device, repeat, sd_arena_moves(w->arena), whole, &(struct whole){ m, w });
    ask(m);
}

void
sd_mirror_wait(struct sd_mirror *m, struct sd_mirror_result *r)
{
    struct sd_update_result found, dropped;

    if (!m->ahead)
        sd_bug("mirror", "there is no update to wait for");
    sd_device_answer(m->device, m->asked[0].number, &found);
    r->samples = m->asked[0].samples;
    r->loss = found.loss;
    r->grad_norm = found.grad_norm;
    memcpy(r->group_norm, found.group_norm, sizeof r->group_norm);
    r->finite = found.finite;
    if (r->finite) {
        memmove(&m->asked[0], &m->asked[1], (size_t)--m->ahead * sizeof m->asked[0]);
        return;
    }
    for (int i = 0; i < m->ahead; i++) {        /* none of these steps took place */
        if (i)
            sd_device_answer(m->device, m->asked[i].number, &dropped);
        for (int g = 0; g < m->o->t->groups; g++)
            if (m->asked[i].counted[g])
                m->o->scalar[g][0]--;
    }
    m->ahead = 0;
    sd_device_fill(m->device, m->result, 0, sizeof *m->result);
}
#else
static SD_NORETURN void
none(void)
{
    sd_bug("mirror", "no devices in this build");
}

void
sd_mirror_bytes(const struct sd_optimizer *o SD_UNUSED, enum sd_dtype dtype SD_UNUSED, uint32_t accumulation SD_UNUSED,
                struct sd_device_bytes *b SD_UNUSED)
{
    none();
}
struct sd_mirror *
sd_mirror_open(struct sd_device *d SD_UNUSED, struct sd_optimizer *o SD_UNUSED, enum sd_dtype dtype SD_UNUSED)
{
    none();
}
void sd_mirror_free(struct sd_mirror *m) { if (m) none(); }
void sd_mirror_write(struct sd_mirror *m SD_UNUSED) { none(); }
void sd_mirror_read(struct sd_mirror *m SD_UNUSED) { none(); }
void sd_mirror_accumulate(struct sd_mirror *m SD_UNUSED, const float *loss SD_UNUSED, int64_t batch SD_UNUSED) { none(); }
void sd_mirror_update(struct sd_mirror *m SD_UNUSED, const struct sd_mirror_step *step SD_UNUSED) { none(); }
void
sd_mirror_whole(struct sd_mirror *m SD_UNUSED, const struct sd_mirror_step *step SD_UNUSED,
                struct sd_repeat *repeat SD_UNUSED, const struct sd_mirror_work *w SD_UNUSED)
{
    none();
}
void sd_mirror_wait(struct sd_mirror *m SD_UNUSED, struct sd_mirror_result *r SD_UNUSED) { none(); }
void sd_mirror_clear(struct sd_mirror *m SD_UNUSED) { none(); }
#endif
