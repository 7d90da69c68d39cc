/* folder.h - outputs that are folders: made beside their name, given it when complete. */
#ifndef SD_FOLDER_H
#define SD_FOLDER_H

#include "diag.h"

struct sd_folder;

/* sd_folder_open - makes "path.part", empty (one left by a run that was killed is removed).  An existing path is
 * replaced by sd_folder_commit, as a whole, and only where it is empty or holds one of the files `marks` (ended by
 * NULL): what is not of our kind is not thrown away.  NULL with sd_fail. */
struct sd_folder *sd_folder_open(struct sd_scope *s, const char *path, const char *const *marks);
/* sd_folder_path - where to write a file of it; folders on the way are made.  NULL with sd_fail. */
const char *sd_folder_path(struct sd_folder *f, const char *name);
int sd_folder_commit(struct sd_folder *f);
void sd_folder_abandon(struct sd_folder *f);

#endif
