/* group_norm_cuda.cuh - what the two ways of group_norm on a device share: the node's attributes, its pieces, SiLU's derivative. */
#ifndef SD_GROUP_NORM_CUDA_CUH
#define SD_GROUP_NORM_CUDA_CUH

#include "norm.cuh"

/* group_norm_small_forward, _backward - the whole node in one launch, where the shape is small (group_norm_small.cu) and, of the
 * gradient, no weight's is wanted and no two gradients share bytes.  n->out has elements.  false: nothing is done. */
bool group_norm_small_forward(const struct sd_node *n);
bool group_norm_small_backward(const struct sd_node *n);

namespace sd {

struct attributes { int groups; double eps; bool silu; };       /* group_norm.h, which C++ does not read */
enum {
    BESIDE = 3,         /* input */
    FEW_GROUPS = 64     /* up to these are put together in one block */
};

static inline const struct attributes *attributes_of(const struct sd_node *n) { return static_cast<const struct attributes *>(n->attr); }

template <class T> struct source { const T *x, *beside; };       /* [B, P, border] and [B, P, C - border] or NULL */
template <class T> struct target { T *x, *beside; int add_x, add_beside; };     /* gradients of these; NULL: not wanted */

template <class T> static inline struct source<T>
source_of(const struct sd_node *n)
{
    return { data<const T>(n->in[0]), data<const T>(n->in[BESIDE]) };
}

template <class T> static inline struct target<T>
target_of(const struct sd_node *n)
{
    return { data<T>(n->din[0]), data<T>(n->din[BESIDE]), !n->din_store[0], !n->din_store[BESIDE] };
}

/* Two pieces of one tensor may share bytes: such are added to one after the other. */
static inline bool
gradients_overlap(const struct sd_node *n)
{
    const struct sd_tensor *x = n->din[0], *beside = n->din[BESIDE];

    return x && beside && (x->base ? x->base : x) == (beside->base ? beside->base : beside);
}

template <class T> static __device__ inline float
through_silu(float dy, float z)
{
    float s = sigmoid<T>(z);

    return dy * s * (1 + z * (1 - s));
}

}   /* namespace sd */

#endif
