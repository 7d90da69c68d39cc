/* device_bytes.h - what a program will take of a device's memory, for --plan and --memory.
 *
 * One rule: a row is what sd_device_alloc will be asked for.  In none are what the driver and the libraries' code take, what the
 * timing of a library's algorithms takes (released at once), and results that cuDNN's callers lay behind its workspace. */
#ifndef SD_DEVICE_BYTES_H
#define SD_DEVICE_BYTES_H

#include "device.h"
#include "diag.h"

struct sd_device_bytes {
    size_t activations;             /* the arena, in its own steps */
    size_t weights;                 /* every form of every parameter */
    size_t trained, gradients, optimizer;       /* of training: values and shadow; with sums of accumulation; moments, results */
    size_t samples, states, input;  /* samples and texts' states that stay; what a step is sent */
    size_t latents;                 /* of sampling: latents, history, keys and values of the texts */
    size_t upload, cublaslt, cudnn; /* of the workspace, as large as the largest of them; 0: the library is absent */
};

/* sd_device_bytes_of - the rows that every program has, once its plans are made; the others are zero.  arena: of the largest. */
void sd_device_bytes_of(struct sd_device_bytes *b, struct sd_device *d, size_t arena);
size_t sd_device_bytes_workspace(const struct sd_device_bytes *b);
size_t sd_device_bytes_sum(const struct sd_device_bytes *b);
/* sd_device_bytes_json - {"activations": ..., "sum": ...}, and the pinned memory of the host. */
char *sd_device_bytes_json(struct sd_scope *s, const struct sd_device_bytes *b);

#endif
