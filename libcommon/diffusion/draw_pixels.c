/* draw_pixels - latents to pictures, and back. */
#include "draw_private.h"

#include <math.h>

void
draw_to_nhwc(float *to, const float *from, int64_t channels, int64_t pixels)
{
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < channels; c++)
            to[p * channels + c] = from[c * pixels + p];
}

void
draw_to_nchw(float *to, const float *from, int64_t channels, int64_t pixels)
{
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < channels; c++)
            to[c * pixels + p] = from[p * channels + c];
}

/* n's result on `in`, dense; NULL, with a module named, when it is not finite. */
static float *
run_on(struct net *n, struct sd_scope *s, const float *in)
{
    float *out = sd_alloc_array(s, n->out->numel, sizeof *out);

    sd_feed(n->plan, n->in[0], in);
    sd_run(n->plan);
    sd_fetch(n->plan, n->out, out);
    if (draw_finite(out, n->out->numel))
        return out;
    sd_feed(n->plan, n->in[0], in);         /* the input may have been written over */
    draw_not_finite(n);
    return NULL;
}

struct sd_image *
sd_draw_decode(struct sd_draw *d, struct sd_scope *s, const float *latents)
{
    struct net *n = draw_ready(d, DECODE, 1, 1);
    size_t numel = (size_t)(d->o.width * d->o.height * 3), inputs = (size_t)(d->h * d->w * d->channels);
    struct sd_scope *room = sd_scope_open();
    float *in = sd_alloc_array(room, inputs, sizeof *in);
    struct sd_image *image;
    const float *out = NULL;

    draw_to_nhwc(in, latents, d->channels, d->h * d->w);
    for (size_t i = 0; i < inputs; i++)
        in[i] /= (float)d->m.model->vae_config.scaling_factor;
    if (!n || !(out = run_on(n, room, in))) {
        sd_scope_close(room);
        return NULL;
    }
    image = sd_image_new(s, (int)d->o.width, (int)d->o.height, 3);
    for (size_t i = 0; i < numel; i++) {
        float v = out[i] / 2 + 0.5f;

        image->data[i] = (uint8_t)lrintf((v < 0 ? 0 : v > 1 ? 1 : v) * 255);
    }
    sd_scope_close(room);
    return image;
}

int
sd_draw_encode(struct sd_draw *d, struct sd_scope *s, const struct sd_image *image, struct sd_draw_posterior *posterior)
{
    size_t pixels = (size_t)(d->h * d->w), channels = (size_t)d->channels;
    struct net *n = draw_ready(d, ENCODE, 1, 1);
    const float *moments;
    float *in;

    if (!n)
        return -1;
    if (image->width != d->o.width || image->height != d->o.height)
        return sd_fail("picture of %dx%d, expected %lldx%lld", image->width, image->height, (long long)d->o.width,
                       (long long)d->o.height);
    in = sd_alloc_array(s, n->in[0]->numel, sizeof *in);
    for (size_t i = 0; i < n->in[0]->numel; i++)
        in[i] = sd_pixel_value(image->data[i]);
    if (!(moments = run_on(n, s, in)))
        return -1;
    posterior->mean = sd_alloc_array(s, pixels * channels, sizeof(float));
    posterior->deviation = sd_alloc_array(s, pixels * channels, sizeof(float));
    for (size_t p = 0; p < pixels; p++)
        for (size_t c = 0; c < channels; c++) {
            float logvar = moments[p * 2 * channels + channels + c];

            posterior->mean[c * pixels + p] = moments[p * 2 * channels + c];
            posterior->deviation[c * pixels + p] = expf(0.5f * (logvar < -30 ? -30 : logvar > 20 ? 20 : logvar));
        }
    return 0;
}

void
sd_draw_sample(const struct sd_draw *d, const struct sd_draw_posterior *p, const float *noise, float *latents)
{
    size_t numel = (size_t)(d->h * d->w * d->channels);

    for (size_t i = 0; i < numel; i++)
        latents[i] = (p->mean[i] + p->deviation[i] * noise[i]) * (float)d->m.model->vae_config.scaling_factor;
}
