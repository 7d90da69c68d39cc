/* start - noise of pictures. */
#include "start.h"

#include "safetensors.h"

#include <math.h>

static const float *
finite_tensor(struct sd_scope *s, const struct sd_safetensors *f, const char *name, int ndim, const int64_t *shape)
{
    const struct sd_safetensor *t = sd_safetensors_get(f, name, ndim, shape);
    const float *x = t ? sd_safetensor_f32(s, t) : NULL;

    for (size_t i = 0; x && i < t->numel; i++)
        if (!isfinite(x[i]))
            return sd_fail_null("%s: element %zu is not finite", name, i);
    return x;
}

int
sd_start_load(struct sd_start *start, struct sd_scope *s, const char *path, int64_t channels, int64_t h, int64_t w)
{
    struct sd_safetensors *f = sd_safetensors_open(s, path);

    if (!f || !(start->noise = finite_tensor(s, f, "noise", 4, (int64_t[]){ start->pictures, channels, h, w })))
        return -1;
    if (start->sampler->draws_noise
        && !(start->step_noise = finite_tensor(s, f, "step_noise", 5,
                                               (int64_t[]){ start->sampler->calls, start->pictures, channels, h, w })))
        return sd_fail_prefix("%s draws noise at every step", start->sampler->name);
    return 0;
}

static void
draw_noise(struct sd_start_picture *p, float *noise, enum sd_purpose purpose, int call)
{
    if (p->start->torch)
        sd_torch_randn(&p->torch, noise, p->start->numel);
    else
        sd_random_normal(noise, p->start->numel, p->start->seed + (uint64_t)p->picture, purpose, 0, (uint32_t)call);
}

void
sd_start_picture(struct sd_start_picture *p, const struct sd_start *start, int64_t picture, float *x)
{
    struct sd_scope *s = sd_scope_open();
    float *noise = sd_alloc_array(s, start->numel, sizeof *noise), *latents = NULL;

    p->start = start;
    p->picture = picture;
    sd_torch_generator_seed(&p->torch, start->seed + (uint64_t)picture);
    if (start->posterior) {
        latents = sd_alloc_array(s, start->numel, sizeof *latents);
        draw_noise(p, noise, SD_FOR_POSTERIOR, 0);
        sd_draw_sample(start->draw, start->posterior, noise, latents);
    }
    if (start->noise)
        memcpy(noise, start->noise + (size_t)picture * start->numel, start->numel * sizeof *noise);
    else
        draw_noise(p, noise, SD_FOR_NOISE, 0);
    sd_sampler_start(start->sampler, x, latents, noise, start->numel);
    sd_scope_close(s);
}

void
sd_start_fresh(void *picture, int call, float *noise)
{
    struct sd_start_picture *p = picture;
    const struct sd_start *start = p->start;

    if (start->step_noise)
        memcpy(noise, start->step_noise + ((size_t)call * (size_t)start->pictures + (size_t)p->picture) * start->numel,
               start->numel * sizeof *noise);
    else
        draw_noise(p, noise, SD_FOR_SAMPLER, call);
}
