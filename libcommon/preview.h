/* preview.h - a picture in the terminal: kitty's and iTerm2's protocols, on stderr, when the terminal says it can. */
#ifndef SD_PREVIEW_H
#define SD_PREVIEW_H

#include "image.h"

/* sd_preview - show; -1 with sd_fail when stderr is no terminal or one that cannot. */
int sd_preview(const struct sd_image *image);

#endif
