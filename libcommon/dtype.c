/* dtype.c - the table behind dtype.h; `order` is safetensors' enumeration (tensor.rs). */
#include "dtype.h"

#include <string.h>

static const struct { const char *name; unsigned bits; int order; } table[SD_DTYPE_COUNT] = {
    [SD_BOOL] = { "BOOL", 8, 0 },
    [SD_F4] = { "F4", 4, 1 },
    [SD_F6_E2M3] = { "F6_E2M3", 6, 2 },
    [SD_F6_E3M2] = { "F6_E3M2", 6, 3 },
    [SD_U8] = { "U8", 8, 4 },
    [SD_I8] = { "I8", 8, 5 },
    [SD_F8_E5M2] = { "F8_E5M2", 8, 6 },
    [SD_F8_E4M3] = { "F8_E4M3", 8, 7 },
    [SD_F8_E8M0] = { "F8_E8M0", 8, 8 },
    [SD_F8_E4M3FNUZ] = { "F8_E4M3FNUZ", 8, 9 },
    [SD_F8_E5M2FNUZ] = { "F8_E5M2FNUZ", 8, 10 },
    [SD_I16] = { "I16", 16, 11 },
    [SD_U16] = { "U16", 16, 12 },
    [SD_F16] = { "F16", 16, 13 },
    [SD_BF16] = { "BF16", 16, 14 },
    [SD_I32] = { "I32", 32, 15 },
    [SD_U32] = { "U32", 32, 16 },
    [SD_F32] = { "F32", 32, 17 },
    [SD_C64] = { "C64", 64, 18 },
    [SD_F64] = { "F64", 64, 19 },
    [SD_I64] = { "I64", 64, 20 },
    [SD_U64] = { "U64", 64, 21 },
};

unsigned
sd_dtype_bits(enum sd_dtype t)
{
    return table[t].bits;
}

size_t
sd_dtype_size(enum sd_dtype t)
{
    return table[t].bits / 8;
}

const char *
sd_dtype_name(enum sd_dtype t)
{
    return table[t].name;
}

int
sd_dtype_order(enum sd_dtype t)
{
    return table[t].order;
}

bool
sd_dtype_find(const char *name, size_t length, enum sd_dtype *t)
{
    for (int i = 0; i < SD_DTYPE_COUNT; i++)
        if (strlen(table[i].name) == length && !memcmp(table[i].name, name, length)) {
            *t = (enum sd_dtype)i;
            return true;
        }
    return false;
}
