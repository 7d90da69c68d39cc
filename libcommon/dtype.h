/* dtype.h - the element types of tensors, in files, records and graphs.
 *
 * One rule: sizes here are sizes in files and in memory of the float build (SD_F32 is four bytes); only the graph of
 * the double build holds something else under SD_F32, and knows so itself. */
#ifndef SD_DTYPE_H
#define SD_DTYPE_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum sd_dtype {
    SD_F32 = 0, SD_BF16, SD_F16, SD_F64, SD_I64, SD_I32, SD_U8, SD_I8, SD_I16, SD_U16, SD_U32, SD_U64, SD_BOOL,
    SD_C64, SD_F8_E4M3, SD_F8_E5M2, SD_F8_E4M3FNUZ, SD_F8_E5M2FNUZ, SD_F8_E8M0,
    SD_F6_E2M3, SD_F6_E3M2, SD_F4,      /* less than a byte: containers only, sd_dtype_size is 0 */
    SD_DTYPE_COUNT
};

/* sd_dtype_bits - bits of an element;  sd_dtype_size - bytes, 0 for the types of less than a byte. */
unsigned sd_dtype_bits(enum sd_dtype t);
size_t sd_dtype_size(enum sd_dtype t);
/* sd_dtype_name - safetensors' name, "F32". */
const char *sd_dtype_name(enum sd_dtype t);
/* sd_dtype_order - place in safetensors' enumeration, by which its writer sorts (descending). */
int sd_dtype_order(enum sd_dtype t);
/* sd_dtype_find - by safetensors' name of that many bytes; false when there is none. */
bool sd_dtype_find(const char *name, size_t length, enum sd_dtype *t);

#ifdef __cplusplus
}
#endif
#endif
