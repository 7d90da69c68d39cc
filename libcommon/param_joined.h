/* param_joined.h - for param_device.c: the joined parameters whose first trainable member is p. */
#ifndef SD_PARAM_JOINED_H
#define SD_PARAM_JOINED_H

#include "param.h"

void sd_param_each_joined(struct sd_param *p, void (*f)(struct sd_param *joined, void *argument), void *argument);

#endif
