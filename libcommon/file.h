/* file.h - whole files and folders.
 *
 * One rule: what is read is bounded by the caller. */
#ifndef SD_FILE_H
#define SD_FILE_H

#include "diag.h"

/* sd_file_read - all bytes of a file (or pipe) of at most `max`; a zero byte follows them.  NULL with sd_fail. */
char *sd_file_read(struct sd_scope *s, const char *path, size_t max, size_t *length);
/* sd_folder_list - the names in a folder in byte order, without dot files; -1 with sd_fail. */
int   sd_folder_list(struct sd_scope *s, const char *path, const char ***names, size_t *count);
/* sd_make_folders - mkdir -p;  -1 with sd_fail. */
int   sd_make_folders(const char *path);
/* sd_same_file - do two names mean one file, be it there or not yet?  A device is nobody's: it takes all. */
bool  sd_same_file(const char *a, const char *b);
/* sd_cache_folder - $XDG_CACHE_HOME/sd-tools, else ~/.cache/sd-tools; not made. */
const char *sd_cache_folder(struct sd_scope *s);

#endif
