/* replay - micro-batches recorded by another trainer. */
#include "replay.h"

#include <string.h>

static struct sd_safetensor *
find(const struct sd_replay *r, int64_t index, const char *what, enum sd_dtype dtype, int ndim)
{
    char name[64];
    struct sd_safetensor *t;

    snprintf(name, sizeof name, "step_%04lld.%s", (long long)index, what);
    t = sd_safetensors_find(r->file, name);
    if (!t)
        return sd_fail_null("%s: not in the file", name);
    if (t->dtype != dtype || t->ndim != ndim)
        return sd_fail_null("%s: %s of %d dimensions, expected %s of %d", name, sd_dtype_name(t->dtype), t->ndim,
                            sd_dtype_name(dtype), ndim);
    t->used = true;
    return t;
}

static const int64_t *
integers(struct sd_scope *s, const struct sd_safetensor *t)
{
    return memcpy(sd_alloc_array(s, t->numel + 1, sizeof(int64_t)), t->data, t->bytes);
}

int
sd_replay_step(const struct sd_replay *r, struct sd_scope *s, int64_t index, struct sd_replay_step *step)
{
    struct sd_safetensor *latents = find(r, index, "latents", SD_F32, 4), *noise, *timesteps, *ids;

    if (!latents || !(noise = find(r, index, "noise", SD_F32, 4))
        || !(timesteps = find(r, index, "timesteps", SD_I64, 1)) || !(ids = find(r, index, "input_ids", SD_I64, 2)))
        return -1;
    if (memcmp(latents->shape, noise->shape, 4 * sizeof *noise->shape) != 0)
        return sd_fail("step_%04lld: latents and noise differ in shape", (long long)index);
    if (timesteps->shape[0] != latents->shape[0] || ids->shape[0] != latents->shape[0] || !latents->numel)
        return sd_fail("step_%04lld: %lld latents, %lld timesteps, %lld texts", (long long)index,
                       (long long)latents->shape[0], (long long)timesteps->shape[0], (long long)ids->shape[0]);
    *step = (struct sd_replay_step){ .batch = latents->shape[0],
                                     .channels = latents->shape[1],
                                     .height = latents->shape[2],
                                     .width = latents->shape[3],
                                     .length = ids->shape[1],
                                     .latents = sd_safetensor_f32(s, latents),
                                     .noise = sd_safetensor_f32(s, noise),
                                     .timesteps = integers(s, timesteps),
                                     .input_ids = integers(s, ids) };
    return step->latents && step->noise ? 0 : -1;
}

struct sd_replay *
sd_replay_open(struct sd_scope *s, const char *path)
{
    struct sd_replay *r = sd_alloc(s, sizeof *r);
    struct sd_scope *look;
    int status = 0;

    if (!(r->file = sd_safetensors_open(s, path)))
        return NULL;
    look = sd_scope_open();
    while (status == 0 && (size_t)r->count < sd_safetensors_count(r->file) / 4) {
        struct sd_replay_step step;

        status = sd_replay_step(r, look, r->count, &step);
        r->count += status == 0;
    }
    sd_scope_close(look);
    if (status < 0)
        return NULL;
    for (size_t i = 0; i < sd_safetensors_count(r->file); i++)
        if (!sd_safetensors_at(r->file, i)->used)
            return sd_fail_null("%s: belongs to no step", sd_safetensors_at(r->file, i)->name);
    return r->count ? r : sd_fail_null("no step_0000");
}
