/* real.h - the number type of the C loops: float, or double in the gradient tests (-DSD_REAL=double), where every
 * tensor that says SD_F32 holds doubles and no vendor library or vector code is used. */
#ifndef SD_REAL_H
#define SD_REAL_H

#ifdef __cplusplus
#include <math.h>
#else
#include <tgmath.h>
#endif

#ifndef SD_REAL
#define SD_REAL float
#define SD_REAL_IS_FLOAT 1
#else
#define SD_REAL_IS_FLOAT 0
#endif
typedef SD_REAL real;

#endif
