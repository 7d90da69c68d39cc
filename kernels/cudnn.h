/* cudnn.h - what cudnn*.c ask of cuDNN, as far as it answers without a card: for tests.
 *
 * One rule: the graphs built here are those that run on a card, down to the last attribute. */
#ifndef SD_CUDNN_H
#define SD_CUDNN_H

#include "product_cuda.h"

enum { CUDNN_MOST_TENSORS = 40 };

/* The most bytes of workspace that an engine may want; tests ask for less. */
extern int64_t cudnn_workspace;

/* A tensor of the graph as the library holds it: dimensions and strides in elements, read back. */
struct cudnn_tensor {
    int64_t uid, dims[4], strides[4];
    int type;                       /* FLOAT 0, HALF 2, BFLOAT16 9 */
    bool hidden, by_value;          /* hidden: between two operations, without memory */
};
struct cudnn_asked {
    int tensors, operations;
    struct cudnn_tensor tensor[CUDNN_MOST_TENSORS];
    int proposed, kept;             /* engines for the device: the library's, and of these ours */
    int within;                     /* of these, how many want no more workspace than we give */
    int64_t wanted;                 /* the most that one wants */
    bool built;                     /* a plan was made of the first that can be, without compiling */
    int64_t workspace;
    bool again;                     /* and made once more, from its text */
};
/* device: NULL, or a card described in the library's JSON, which engines are asked for.
 * False where the library is absent or refuses (then *why says so), or the call is not one for it (*why is NULL). */
bool cudnn_ask_conv2d(const struct conv_call *call, const char *device, struct cudnn_asked *asked, const char **why);
bool cudnn_ask_attention(const struct attention_call *call, const char *device, struct cudnn_asked *asked, const char **why);

#endif
