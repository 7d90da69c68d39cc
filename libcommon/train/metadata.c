/* metadata - pairs for the files a run writes. */
#include "metadata.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct pairs {
    struct sd_scope *s;
    const char **item;
    size_t count;
};

static void
put(struct pairs *p, const char *key, const char *value)
{
    if (!value)
        return;
    p->item[p->count++] = key;
    p->item[p->count++] = value;
}

static const char *
number(struct pairs *p, double x)
{
    /* Python's str(): 0.0001, 1e-05, 16 */
    return sd_sprintf(p->s, x >= 1e-4 || x == 0 ? "%.10g" : "%.10e", x);
}

static const char *
integer(struct pairs *p, int64_t x)
{
    return sd_sprintf(p->s, "%lld", (long long)x);
}

/* What kohya's readers look at to choose the model's family. */
static void
put_model(struct pairs *p, const struct sd_metadata *m)
{
    bool sd2 = m->model->family == SD_FAMILY_SD2;

    put(p, "ss_base_model_version",
        sd2                      ? m->model->v_prediction ? "sd_v2_v" : "sd_v2"
        : m->model->v_prediction ? "sd_v1_v"
                                 : "sd_v1");
    put(p, "ss_v2", sd2 ? "True" : "False");
    put(p, "ss_new_sd_model_hash", m->model_hash);
    put(p, "ss_new_vae_hash", m->vae_hash);
}

static void
put_modelspec(struct pairs *p, const struct sd_metadata *m)
{
    bool sd2 = m->model->family == SD_FAMILY_SD2, v = m->model->v_prediction;
    const char *epoch = getenv("SOURCE_DATE_EPOCH");

    put(p, "modelspec.sai_model_spec", "1.0.1");
    put(p, "modelspec.architecture",
        sd_sprintf(p->s, "%s/%s",
                   !sd2 ? "stable-diffusion-v1"
                   : v  ? "stable-diffusion-v2-768-v"
                        : "stable-diffusion-v2-512",
                   m->lora ? "lora" : "textual-inversion"));
    put(p, "modelspec.implementation", m->lora ? "diffusers" : "https://github.com/Stability-AI/generative-models");
    put(p, "modelspec.title", m->name);
    put(p, "modelspec.resolution", sd_sprintf(p->s, "%lldx%lld", (long long)m->width, (long long)m->height));
    put(p, "modelspec.prediction_type", v ? "v" : "epsilon");
    if (epoch) {
        time_t t = (time_t)strtoll(epoch, NULL, 10);
        struct tm tm;
        char text[32];

        gmtime_r(&t, &tm);
        strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm);
        put(p, "modelspec.date", sd_strdup(p->s, text));
    }
}

/* made_from without what the settings say already */
static const json_t *
only_hashes(struct sd_scope *s, const struct sd_metadata *m)
{
    json_t *rest = json_copy((json_t *)(uintptr_t)m->made_from);
    const char *key;
    json_t *value;

    sd_on_close(s, (void (*)(void *))json_decref, rest);
    json_object_foreach((json_t *)(uintptr_t)m->settings, key, value)
        json_object_del(rest, key);
    return rest;
}

const char *const *
sd_metadata_pairs(struct sd_scope *s, const struct sd_metadata *m)
{
    struct pairs p = { s, sd_alloc_array(s, 128, sizeof(char *)), 0 };

    put_model(&p, m);
    put_modelspec(&p, m);
    put(&p, "ss_output_name", m->name);
    if (m->lora) {
        put(&p, "ss_network_module", "networks.lora");
        put(&p, "ss_network_dim", integer(&p, m->rank));
        put(&p, "ss_network_alpha", number(&p, m->alpha));
        put(&p, "ss_network_args",
            !m->conv_rank ? "{}"
                          : sd_sprintf(s, "{\"conv_dim\": \"%lld\", \"conv_alpha\": \"%s\"}", (long long)m->conv_rank,
                                       number(&p, m->conv_alpha)));
    }
    put(&p, "ss_steps", integer(&p, m->steps));
    put(&p, "ss_max_train_steps", integer(&p, m->steps));
    put(&p, "ss_num_epochs", integer(&p, m->epochs));
    put(&p, "ss_num_train_images", integer(&p, m->images));
    put(&p, "ss_batch_size_per_device", integer(&p, m->batch_size));
    put(&p, "ss_gradient_accumulation_steps", integer(&p, m->accumulation));
    put(&p, "ss_seed", sd_sprintf(s, "%llu", (unsigned long long)m->seed));
    put(&p, "ss_optimizer", m->optimizer);
    put(&p, "ss_lr_scheduler", m->lr_scheduler);
    put(&p, "ss_learning_rate", number(&p, m->learning_rate));
    if (m->lora) {
        put(&p, "ss_unet_lr", number(&p, m->unet_lr));
        put(&p, "ss_text_encoder_lr", number(&p, m->text_encoder_lr));
    }
    put(&p, "sd_tools.version", SD_VERSION);
    put(&p, "sd_tools.settings", sd_json_dump(s, m->settings, 0));
    put(&p, "sd_tools.made_from", sd_json_dump(s, only_hashes(p.s, m), 0));
    return p.item;
}
