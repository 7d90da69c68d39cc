/* run_device - a plan's steps on a device: the CUDA twins, recorded once and replayed. */
#include "device.h"
#include "plan_internal.h"

#include <string.h>

#if SD_WITH_CUDA && SD_REAL_IS_FLOAT
#include "device_ops.h"

void
sd_device_bind(struct sd_plan *p)
{
    struct sd_graph *g = p->graph;
    struct sd_scope *s = sd_scope_open();
    struct sd_param **params = sd_alloc_array(s, g->tensors.count, sizeof *params);
    size_t count = 0;

    for (size_t i = 0; i < g->tensors.count; i++) {
        struct sd_tensor *x = g->tensors.item[i];

        if (x->param && !x->base)
            params[count++] = x->param;
    }
    sd_params_upload(params, count, g->device);
    sd_scope_close(s);
    for (size_t i = 0; i < g->tensors.count; i++) {
        struct sd_tensor *x = g->tensors.item[i];

        if (!x->param || x->base || x->param->joined)
            continue;
        if (x->param->trainable && x->storage->grad)
            sd_address(x->storage->grad, x->param->device_grad);
        if (x->param->trainable || x->storage->values)
            sd_address(x, sd_param_on(x->param, SD_F32, SD_ROWS));
    }
}

/* What the backward pass starts from. */
static void
seed(struct sd_plan *p, struct sd_tensor *x)
{
    struct sd_device *d = p->graph->device;
    size_t bytes = x->numel * sizeof(float);

    if (!p->seed) {
        sd_device_fill_real(d, x->data, x->dtype, x->numel, 1);
        return;
    }
    if (!p->device_seed) {
        p->device_seed = sd_device_alloc(d, bytes, "seed");
        sd_device_write(d, p->device_seed, p->seed, bytes);
    }
    sd_device_cast(d, x->data, x->dtype, p->device_seed, SD_F32, x->numel);
}

void
sd_device_step(struct sd_plan *p, struct sd_step *s)
{
    struct sd_node *n = s->node;

    switch (s->kind) {
    case SD_STEP_FORWARD:
    case SD_STEP_REDO:
        sd_ops[n->op].forward_cuda(n);
        break;
    case SD_STEP_BACKWARD:
        sd_ops[n->op].backward_cuda(n);
        break;
    case SD_STEP_ZERO:
        sd_device_fill(p->graph->device, s->tensor->data, 0, s->tensor->numel * sd_element_size(s->tensor->dtype));
        break;
    case SD_STEP_ONE:
        seed(p, s->tensor);
        break;
    }
}

static void
all_steps(void *plan)
{
    struct sd_plan *p = plan;

    for (size_t i = 0; i < p->steps.count; i++) {
        sd_step_addresses(p, p->steps.item[i]);
        sd_device_step(p, p->steps.item[i]);
    }
}

void
sd_run_steps(struct sd_plan *p)
{
    all_steps(p);
}

void
sd_device_forget(struct sd_plan *p)
{
    sd_repeat_end(&p->repeat);
    if (p->device_seed)
        sd_device_free(p->graph->device, p->device_seed);
    p->device_seed = NULL;
}

void
sd_device_run(struct sd_plan *p)
{
    sd_repeat(p->graph->device, &p->repeat, p->arena->moves, all_steps, p);
}

bool
sd_device_is_finite(struct sd_device *d, const struct sd_tensor *x)
{
    int *flag = sd_device_workspace(d, sizeof *flag), found = 0;

    sd_device_fill(d, flag, 0, sizeof *flag);
    sd_device_finite(d, x->data, x->dtype, sd_rows(x), sd_cols(x), x->pitch, flag);
    sd_device_read(d, &found, flag, sizeof found);
    return !found;
}
#else
void
sd_device_bind(struct sd_plan *p SD_UNUSED)
{
    sd_bug("plan", "no devices in this build");
}

void
sd_device_run(struct sd_plan *p)
{
    sd_device_bind(p);
}

void
sd_device_step(struct sd_plan *p, struct sd_step *s SD_UNUSED)
{
    sd_device_bind(p);
}

void
sd_run_steps(struct sd_plan *p)
{
    sd_device_bind(p);
}

bool
sd_device_is_finite(struct sd_device *d SD_UNUSED, const struct sd_tensor *x SD_UNUSED)
{
    return false;
}

void
sd_device_forget(struct sd_plan *p SD_UNUSED)
{
}
#endif
