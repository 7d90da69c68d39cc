/* hash.h - SHA-256 for identity, XXH3-128 against corruption.
 *
 * One rule: a remembered hash is used only for the very same file (device, inode, size, both times in ns). */
#ifndef SD_HASH_H
#define SD_HASH_H

#include "diag.h"

enum { SD_SHA256_HEX = 65, SD_XXH128_HEX = 33 };     /* with the final zero */

struct sd_sha256;
struct sd_sha256 *sd_sha256_new(struct sd_scope *s);
void sd_sha256_update(struct sd_sha256 *h, const void *data, size_t bytes);
void sd_sha256_hex(struct sd_sha256 *h, char hex[SD_SHA256_HEX]);      /* ends it */
/* All at once. */
void sd_sha256_of(const void *data, size_t bytes, char hex[SD_SHA256_HEX]);
void sd_xxh128_of(const void *data, size_t bytes, char hex[SD_XXH128_HEX]);

/* sd_hash_file - SHA-256 of a file's bytes;  sd_hash_file_cached - remembered in the cache folder.  -1 with sd_fail. */
int sd_hash_file(const char *path, char hex[SD_SHA256_HEX]);
int sd_hash_file_cached(const char *path, char hex[SD_SHA256_HEX]);

/* sd_hash_memory - what sd_hash_file_cached remembers by, for hashes of parts of files or of several: `what` says which
 * hash (""; the whole file's), st how the open files are before they are read.  sd_hash_recall: was it remembered?
 * sd_hash_remember - unless the files, as they are now, changed meanwhile or may just have; a hash that cannot be
 * remembered is computed again next time, that is all. */
struct stat;
struct sd_hash_memory;
struct sd_hash_memory *sd_hash_memory(struct sd_scope *s, const char *what, const struct stat *st, size_t files);
bool sd_hash_recall(const struct sd_hash_memory *m, char hex[SD_SHA256_HEX]);
void sd_hash_remember(const struct sd_hash_memory *m, const struct stat *now, const char *hex);

/* Lower-case hexadecimal digits of n bytes, 2 n + 1 characters. */
void sd_hex(char *hex, const void *bytes, size_t n);

#endif
