/* step - the graph of one micro-batch. */
#include "step.h"

#include "ops.h"

static struct sd_tensor *
per_sample(const struct sd_train_step *x, enum sd_step_value i)
{
    return sd_reshape(sd_slice(x->values, 0, i, 1), 1, (int64_t[]){ x->shape.batch });
}

static struct sd_tensor *
text_states(struct sd_train_step *x, const struct sd_trainer_model *m, int clip_skip)
{
    const struct sd_step_shape *k = &x->shape;
    int64_t width = m->unet->config.cross_attention_dim, shape[3] = { k->batch, k->chunks * k->length, width };
    struct sd_tensor *states;

    if (!m->text_trains)
        return x->states = sd_input(x->graph, "encoder_hidden_states", SD_F32, 3, shape);
    x->input_ids = sd_input(x->graph, "input_ids", SD_I32, 2, (int64_t[]){ k->batch * k->chunks, k->length });
    states = sd_clip_text(x->graph, m->text, m->adapters, x->input_ids, m->rows, clip_skip);
    if (sd_cols(states) != width) {
        sd_graph_fault(x->graph, "text encoder is %lld wide, unet expects %lld", (long long)sd_cols(states),
                       (long long)width);
        return sd_input(x->graph, "encoder_hidden_states", SD_F32, 3, shape);
    }
    return sd_reshape(states, 3, shape);
}

struct sd_train_step *
sd_train_step_new(struct sd_scope *s, const struct sd_trainer_model *m, const struct sd_step_shape *shape,
                  int clip_skip, int64_t memory)
{
    struct sd_train_step *x = sd_alloc(s, sizeof *x);
    int64_t B = shape->batch, picture[4] = { B, shape->height, shape->width, shape->channels };
    struct sd_graph *g = x->graph = sd_graph_new();
    struct sd_tensor *noisy, *target, *pred;

    sd_graph_on(g, &m->compute);
    x->shape = *shape;
    x->latents = sd_input(g, "latents", SD_F32, 4, picture);
    x->noise = sd_input(g, "noise", SD_F32, 4, picture);
    x->values = sd_input(g, "values", SD_F32, 2, (int64_t[]){ SD_STEP_VALUES, B });
    if (shape->masked)
        x->mask = sd_input(g, "latent_mask", SD_F32, 3, picture);
    noisy = sd_op_add_noise(g, x->latents, x->noise, per_sample(x, SD_NOISY_LATENTS_BY),
                            per_sample(x, SD_NOISY_NOISE_BY));
    target = sd_op_add_noise(g, x->latents, x->noise, per_sample(x, SD_TARGET_LATENTS_BY),
                             per_sample(x, SD_TARGET_NOISE_BY));
    pred = sd_unet(g, m->unet, m->adapters, noisy, per_sample(x, SD_STEP_TIMESTEP), text_states(x, m, clip_skip));
    x->loss = sd_keep(sd_op_mse(g, pred, target, x->mask, per_sample(x, SD_LOSS_WEIGHT)));
    /* a norm more is nothing to a CPU, and memory is much to a laptop; to a device each is a launch, and it has the room */
    x->plan = sd_plan_training(g, x->loss, m->compute.device ? SD_KEEP_ALL : SD_REDO_CHEAP, memory);
    if (!x->plan) {
        sd_graph_free(g);
        return NULL;
    }
    return x;
}

void
sd_train_step_free(struct sd_train_step *x)
{
    sd_repeat_end(&x->whole);
    sd_repeat_end(&x->alone);
    sd_plan_free(x->plan);
    sd_graph_free(x->graph);
}

struct sd_text_states *
sd_text_states_new(struct sd_scope *s, const struct sd_trainer_model *m, int64_t chunks, int64_t length, int clip_skip)
{
    struct sd_text_states *x = sd_alloc(s, sizeof *x);
    struct sd_tensor *states;

    x->graph = sd_graph_new();
    sd_graph_on(x->graph, &m->compute);
    x->chunks = chunks;
    x->length = length;
    x->input_ids = sd_input(x->graph, "input_ids", SD_I32, 2, (int64_t[]){ chunks, length });
    states = sd_clip_text(x->graph, m->text, m->adapters, x->input_ids, m->rows, clip_skip);
    x->states = sd_keep(sd_op_cast(x->graph, states, SD_F32));
    x->plan = sd_plan_inference(x->graph, 0);
    if (!x->plan) {
        sd_graph_free(x->graph);
        return NULL;
    }
    return x;
}

void
sd_text_states_free(struct sd_text_states *x)
{
    sd_plan_free(x->plan);
    sd_graph_free(x->graph);
}
