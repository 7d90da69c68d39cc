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

static void
fill_decoder(struct sd_draw *d, struct net *n, const float *latents)
{
    size_t numel = (size_t)(d->h * d->w * d->channels);
    float *in = sd_data(n->plan, n->in[0]);

    draw_to_nhwc(in, latents, d->channels, d->h * d->w);
    for (size_t i = 0; i < numel; i++)
        in[i] /= (float)d->m.model->vae_config.scaling_factor;
}

struct sd_image *
sd_draw_decode(struct sd_draw *d, struct sd_scope *s, const float *latents)
{
    struct net *n = draw_ready(d, DECODE, 1, 1);
    size_t numel = (size_t)(d->o.width * d->o.height * 3);
    struct sd_image *image;
    const float *out;

    if (!n)
        return NULL;
    fill_decoder(d, n, latents);
    sd_run(n->plan);
    out = sd_data(n->plan, n->out);
    if (!draw_finite(out, numel)) {
        fill_decoder(d, n, latents);
        draw_not_finite(n);
        return NULL;
    }
    image = sd_image_new(s, (int)d->o.width, (int)d->o.height, 3);
    for (size_t i = 0; i < numel; i++) {
        float v = out[i] / 2 + 0.5f;

        image->data[i] = (uint8_t)lrintf((v < 0 ? 0 : v > 1 ? 1 : v) * 255);
    }
    return image;
}

static void
fill_encoder(struct net *n, const struct sd_image *image)
{
    float *in = sd_data(n->plan, n->in[0]);

    for (size_t i = 0; i < n->in[0]->numel; i++)
        in[i] = 2 * ((float)image->data[i] / 255.0f) - 1;       /* as diffusers rounds it */
}

int
sd_draw_encode(struct sd_draw *d, struct sd_scope *s, const struct sd_image *image, struct sd_draw_posterior *posterior)
{
    size_t pixels = (size_t)(d->h * d->w), channels = (size_t)d->channels;
    struct net *n = draw_ready(d, ENCODE, 1, 1);
    const float *moments;

    if (!n)
        return -1;
    if (image->width != d->o.width || image->height != d->o.height)
        return sd_fail("picture of %dx%d, expected %lldx%lld", image->width, image->height, (long long)d->o.width,
                       (long long)d->o.height);
    fill_encoder(n, image);
    sd_run(n->plan);
    moments = sd_data(n->plan, n->out);
    if (!draw_finite(moments, n->out->numel)) {
        fill_encoder(n, image);
        return draw_not_finite(n);
    }
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
