/* cudnn.c - convolutions and attention by cuDNN 9 (backend API). */
#include "vendor.h"

#include <stdio.h>

#include "product_cuda.h"

static void *library;
static char version[32];

static bool
open_library(void)
{
    static const char *const names[] = { "libcudnn.so.9", NULL };
    static bool tried;
    size_t (*get_version)(void);

    if (!tried && (library = vendor_open(names)) && vendor_find(library, "cudnnGetVersion", &get_version))
        snprintf(version, sizeof version, "cudnn %zu", get_version());
    else if (!tried)
        library = NULL;
    tried = true;
    return library != NULL;
}

const char *
cudnn_version(void)
{
    return open_library() ? version : "no cudnn";
}

bool
cudnn_conv2d(struct sd_device *d, const struct conv_call *call)
{
    (void)d, (void)call;
    return false;
}

bool
cudnn_attention(struct sd_device *d, const struct attention_call *call)
{
    (void)d, (void)call;
    return false;
}
