/* device_bytes - what a program will take of a device's memory. */
#include "device_bytes.h"

#include <string.h>

#include "param.h"
#include "plan.h"

#if SD_WITH_CUDA && SD_REAL_IS_FLOAT
#include "cudnn.h"
#include "vendor.h"

static void
libraries(struct sd_device_bytes *b, const struct sd_device *d)
{
    if (sd_device_capability(d) == 0)
        return;
    if (strncmp(cublas_version(), "no ", 3) != 0)
        b->cublaslt = CUBLAS_WORKSPACE;
    if (strncmp(cudnn_version(), "no ", 3) != 0)
        b->cudnn = (size_t)cudnn_workspace;
}
#else
static void
libraries(struct sd_device_bytes *b SD_UNUSED, const struct sd_device *d SD_UNUSED)
{
}
#endif

void
sd_device_bytes_of(struct sd_device_bytes *b, struct sd_device *d, size_t arena)
{
    memset(b, 0, sizeof *b);
    b->activations = (arena + SD_ARENA_STEP - 1) / SD_ARENA_STEP * SD_ARENA_STEP;
    b->weights = sd_param_device_bytes();
    b->upload = sd_param_device_scratch();
    libraries(b, d);
}

size_t
sd_device_bytes_workspace(const struct sd_device_bytes *b)
{
    size_t most = b->upload > b->cublaslt ? b->upload : b->cublaslt;

    return most > b->cudnn ? most : b->cudnn;
}

size_t
sd_device_bytes_sum(const struct sd_device_bytes *b)
{
    return b->activations + b->weights + b->trained + b->gradients + b->optimizer + b->samples + b->states + b->input + b->latents
           + sd_device_bytes_workspace(b);
}

char *
sd_device_bytes_json(struct sd_scope *s, const struct sd_device_bytes *b)
{
    return sd_sprintf(s, "{\"activations\": %zu, \"weights\": %zu, \"trained\": %zu, \"gradients\": %zu, \"optimizer\": %zu, "
                      "\"samples\": %zu, \"states\": %zu, \"input\": %zu, \"latents\": %zu, \"workspace\": %zu, \"sum\": %zu, "
                      "\"workspace_upload\": %zu, \"workspace_cublaslt\": %zu, \"workspace_cudnn\": %zu, \"pinned\": %zu}",
                      b->activations, b->weights, b->trained, b->gradients, b->optimizer, b->samples, b->states, b->input,
                      b->latents, sd_device_bytes_workspace(b), sd_device_bytes_sum(b), b->upload, b->cublaslt, b->cudnn,
                      (size_t)SD_PINNED_BYTES);
}
