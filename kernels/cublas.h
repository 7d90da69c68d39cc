/* cublas.h - what cublas.c asks of cuBLASLt, read back from the library's own descriptors: for tests, which have no card.
 *
 * One rule: everything is in columns, as the library counts: element (i, j) of a matrix lies i + j * pitch behind its first. */
#ifndef SD_CUBLAS_H
#define SD_CUBLAS_H

#include "product_cuda.h"

struct cublas_matrix {
    const void *at;
    uint64_t rows, columns;
    int64_t pitch, apart;           /* apart: from product to product */
    int32_t count;
    uint32_t type;                  /* CUDA_R_32F 0, CUDA_R_16F 2, CUDA_R_16BF 14 */
};
struct cublas_asked {
    struct cublas_matrix a, b, c, d;        /* d = op(a) op(b) + bias of its rows + beta c */
    int32_t a_turned, b_turned;
    uint32_t epilogue, compute, bias_type;
    const void *bias;
    float beta;
};
/* cublas_ask - false where the library is absent (then *why is set) or the call is not one for it (*why is NULL). */
bool cublas_ask(const struct gemm_call *call, struct cublas_asked *asked, const char **why);

#endif
