/* check_op_trial.h - one graph with the op under test, for check_op.c: its shapes, values, parameters and inputs; added
 * to what is there, stored, or pitched. */
#ifndef CHECK_OP_TRIAL_H
#define CHECK_OP_TRIAL_H

#include "check_op.h"

#include "device.h"
#include "plan_internal.h"

enum { MAX_IN = SD_MAX_IN, WIDER = 3, BEFORE = 1 };
enum way { ADD, STORE, PITCHED, WAYS };
static const char *const way_names[] = { "added", "stored", "pitched" };

/* What the next trials run on, in what activations are, and which inputs are weights (never activations). */
static struct sd_device *device;
static enum sd_dtype compute_dtype = SD_F32;
static unsigned weight_inputs;

struct shape {
    int ndim;
    int64_t side[SD_MAX_DIMS];
    size_t numel;
};

static int64_t integer_limit[MAX_IN];
static enum sd_dtype products = SD_F32;      /* of the graphs under test */

static int
parse(const char *text, struct shape *s)
{
    int count = 0;

    while (*text) {
        s[count].numel = 1;
        s[count].ndim = 0;
        for (;;) {
            char *end;
            int64_t side = strtoll(text, &end, 10);

            s[count].side[s[count].ndim++] = side;
            s[count].numel *= (size_t)side;
            text = end;
            if (*text != 'x')
                break;
            text++;
        }
        count++;
        while (*text == ' ')
            text++;
    }
    return count;
}

/* splitmix64: values in (-1, 1) that are exact as float */
static float
next_value(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return (float)((double)(int64_t)(z >> 40) * 0x1p-23 - 1 + 0x1p-24);
}

/* One input of the op under test: its values, and the parameter or input that carries them. */
struct operand {
    struct shape shape;
    bool integer, wide;
    int64_t cols, wide_cols;
    float *plain;               /* dense values as float */
    struct sd_param *param;     /* NULL: fed */
    struct sd_tensor *input;
    real *start;                /* what param->grad held before */
};

struct trial {
    struct sd_scope *scope;
    struct sd_graph *graph;
    struct sd_plan *plan;
    struct sd_tensor *out;
    struct operand in[MAX_IN];
    int count;
};

static size_t
place_of(const struct operand *o, size_t i)
{
    return o->wide ? i / (size_t)o->cols * (size_t)o->wide_cols + BEFORE + i % (size_t)o->cols : i;
}

/* The trainable's place on the device. */
static void
to_device(struct sd_param *p)
{
    size_t bytes = p->numel * sizeof(float);

    p->device_value = sd_device_alloc(device, bytes, p->path);
    p->device_grad = sd_device_alloc(device, bytes, p->path);
    sd_device_write(device, p->device_value, p->value, bytes);
    sd_device_fill(device, p->device_grad, 0, bytes);
}

static void
feed(struct trial *t, struct sd_tensor *input, const float *values)
{
    real *wide = sd_alloc_array(t->scope, input->numel, sizeof *wide);
    void *data = sd_alloc(t->scope, input->numel * sizeof(real));

    if (input->dtype == SD_F32) {
        sd_feed(t->plan, input, values);
        return;
    }
    for (size_t i = 0; i < input->numel; i++)
        wide[i] = (real)values[i];
    sd_from_real(data, input->dtype, wide, input->numel);
    sd_feed(t->plan, input, data);
}

/* wanted: bit i = input i trainable; frozen: bit i = a frozen parameter instead of a fed input */
static void
trial_open(struct trial *t, check_describe *f, const struct shape *shapes, int count, unsigned wanted, unsigned frozen,
           enum way way, float *const *values)
{
    struct sd_tensor *in[MAX_IN] = { 0 };

    t->scope = sd_scope_open();
    t->graph = sd_graph_new();
    sd_graph_on(t->graph, &(struct sd_compute){ .device = device, .activations = compute_dtype, .products = products });
    t->count = count;
    for (int i = 0; i < count; i++) {
        struct operand *o = &t->in[i];
        int64_t side[SD_MAX_DIMS];
        char name[16];
        size_t n;
        /* beside 16-bit activations a weight is a parameter, whole */
        bool fixed = weight_inputs >> i & 1 && compute_dtype != SD_F32;
        enum sd_dtype dtype = fixed ? SD_F32 : compute_dtype;

        *o = (struct operand){ .shape = shapes[i], .integer = integer_limit[i] > 0, .plain = values[i] };
        memcpy(side, shapes[i].side, sizeof side);
        o->cols = o->wide_cols = side[shapes[i].ndim - 1];
        o->wide = way == PITCHED && shapes[i].ndim > 1 && !o->integer && !fixed;
        if (o->wide)
            o->wide_cols = side[shapes[i].ndim - 1] = o->cols + WIDER;
        n = shapes[i].numel / (size_t)o->cols * (size_t)o->wide_cols;
        snprintf(name, sizeof name, "in%d", i);
        if (!o->integer && (wanted >> i & 1 || o->wide)) {
            o->param = sd_param_new(t->scope, name, SD_F32, shapes[i].ndim, side, NULL);
            o->param->trainable = wanted >> i & 1;
            o->param->value = sd_alloc_array(t->scope, n, sizeof(real));
            o->param->grad = sd_alloc_array(t->scope, n, sizeof(real));
            o->start = sd_alloc_array(t->scope, n, sizeof(real));
            for (size_t k = 0; k < shapes[i].numel; k++)
                o->param->value[place_of(o, k)] = values[i][k];
            if (!o->param->trainable) {         /* a pitched input without gradient is fed */
                o->param = NULL;
                o->input = sd_input(t->graph, name, dtype, shapes[i].ndim, side);
                in[i] = o->input;
            } else {
                if (device)
                    to_device(o->param);
                in[i] = sd_op_cast(t->graph, sd_use(t->graph, o->param), dtype);
            }
        } else if (!o->integer && (fixed || (frozen >> i & 1 && dtype == SD_F32))) {
            o->param = sd_param_new(t->scope, name, SD_F32, shapes[i].ndim, side, values[i]);
            in[i] = sd_use(t->graph, o->param);
        } else
            in[i] = o->input = sd_input(t->graph, name, o->integer ? SD_I32 : dtype, shapes[i].ndim, side);
        if (o->wide)
            in[i] = sd_slice(in[i], shapes[i].ndim - 1, BEFORE, o->cols);
        else if (way == STORE && wanted >> i & 1 && !fixed)
            in[i] = sd_op_copy(t->graph, in[i]);
    }
    t->out = sd_keep(f(t->graph, in));
    if (wanted)
        t->plan = sd_plan_training(t->graph, t->out, SD_KEEP_ALL, 0);
    else
        t->plan = sd_plan_inference(t->graph, 0);
    if (!t->plan)
        sd_bug("check", "%s", sd_reason());
    sd_plan_bind(t->plan, NULL);
    for (int i = 0; i < count; i++) {
        struct operand *o = &t->in[i];

        if (!o->input)
            continue;
        if (o->integer) {
            int32_t *ids = sd_alloc_array(t->scope, o->shape.numel, sizeof *ids);

            for (size_t k = 0; k < o->shape.numel; k++)
                ids[k] = (int32_t)((values[i][k] * 0.5 + 0.5) * (double)integer_limit[i]);
            sd_feed(t->plan, o->input, ids);
        } else {
            float *wide = sd_alloc_array(t->scope, o->input->numel, sizeof *wide);

            for (size_t k = 0; k < o->shape.numel; k++)
                wide[place_of(o, k)] = values[i][k];
            feed(t, o->input, wide);
        }
    }
}

static void
trial_close(struct trial *t)
{
    for (int i = 0; device && i < t->count; i++)
        if (t->in[i].param && t->in[i].param->trainable) {
            sd_device_free(device, t->in[i].param->device_value);
            sd_device_free(device, t->in[i].param->device_grad);
        }
    sd_plan_free(t->plan);
    sd_graph_free(t->graph);
    sd_scope_close(t->scope);
}

static float **
random_values(struct sd_scope *s, const struct shape *shapes, int count)
{
    float **values = sd_alloc_array(s, MAX_IN, sizeof *values);
    uint64_t state = 7;

    for (int i = 0; i < count; i++) {
        values[i] = sd_alloc_array(s, shapes[i].numel, sizeof **values);
        for (size_t k = 0; k < shapes[i].numel; k++)
            values[i][k] = next_value(&state);
    }
    return values;
}

#endif
