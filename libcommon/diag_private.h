/* diag_private.h - what diag.c, scope.c and output.c owe each other. */
#ifndef SD_DIAG_PRIVATE_H
#define SD_DIAG_PRIVATE_H

#include "diag.h"

/* Unlinks the parts of all open outputs; safe in a signal handler. */
void sd_outputs_remove(void);
/* Runs what sd_on_close registered for the program's own scope. */
void sd_root_close(void);

#endif
