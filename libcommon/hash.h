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

/* Lower-case hexadecimal digits of n bytes, 2 n + 1 characters. */
void sd_hex(char *hex, const void *bytes, size_t n);

#endif
