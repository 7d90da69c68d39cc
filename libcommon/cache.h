/* cache.h - content-addressed entries: one safetensors file per SHA-256, filled by any number of processes at once.
 *
 * One rule: an entry that is there is whole and is what its key says; anything else is noticed, said, removed and made
 * again.  Nothing in a key or an entry is a path or a time. */
#ifndef SD_CACHE_H
#define SD_CACHE_H

#include "hash.h"
#include "safetensors.h"

/* Keys: SHA-256 of a msgpack map of named parts, in the byte order of the names whatever the order of the calls. Texts
 * and data are referenced until sd_key_hex. */
struct sd_key;
struct sd_key *sd_key_new(struct sd_scope *s);
void sd_key_text(struct sd_key *k, const char *name, const char *text);
void sd_key_int(struct sd_key *k, const char *name, int64_t value);
void sd_key_data(struct sd_key *k, const char *name, enum sd_dtype dtype, int ndim, const int64_t *shape,
                 const void *data);
void sd_key_hex(struct sd_key *k, char hex[SD_SHA256_HEX]);

struct sd_cache;
/* sd_cache_open - in a folder, made when first written to; NULL is $XDG_CACHE_HOME/sd-tools. */
struct sd_cache *sd_cache_open(struct sd_scope *s, const char *folder);
/* sd_cache_get - 1 and the entry, mapped in scope s; 0 when there is none, or a damaged one was removed (a warning says
 * so); -1 with sd_fail when the folder cannot be read. */
int sd_cache_get(struct sd_cache *c, struct sd_scope *s, const char *key, struct sd_safetensors **entry);
/* sd_cache_put - writes w under the key; of several writers the first wins, and all succeed.  -1 with sd_fail. */
int sd_cache_put(struct sd_cache *c, const char *key, struct sd_safetensors_writer *w);

#endif
