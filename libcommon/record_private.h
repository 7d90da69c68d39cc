/* record_private.h - what record.c (records and their values), record_walk.c (framing), record_read.c and
 * record_write.c share. */
#ifndef SD_RECORD_PRIVATE_H
#define SD_RECORD_PRIVATE_H

#include "record.h"

#include <string.h>

enum { SD_RECORD_DEPTH = 16 };

/* Framing: a walk of our own, so that nothing is allocated for what a message only claims to hold. */
struct sd_walk {
    uint64_t left[SD_RECORD_DEPTH + 1]; /* objects still to come, per level */
    int depth;
    uint64_t at, objects;               /* bytes and objects passed */
    uint64_t need;                      /* bytes that must be there before it can go on */
};
enum sd_walk_result { SD_WALK_DONE, SD_WALK_MORE, SD_WALK_DEEP, SD_WALK_BAD };

uint64_t sd_walk_number(const unsigned char *p, size_t width);      /* big-endian */
/* sd_walk_head - of the object at p, n bytes there: its head's length; 0 when more bytes are needed to know; -1 when it
 * is no msgpack.  Sets the length of its payload and the number of objects inside. */
int sd_walk_head(const unsigned char *p, uint64_t n, uint64_t *payload, uint64_t *inside);
/* sd_walk - goes on through the n bytes at p from w->at (0 at first) to the end of one object. */
enum sd_walk_result sd_walk(struct sd_walk *w, const unsigned char *p, uint64_t n);
/* sd_walk_length - of the object at p, 0 when it is not whole; *objects may be NULL. */
uint64_t sd_walk_length(const unsigned char *p, uint64_t n, uint64_t *objects);
/* sd_walk_text - the bytes of the string at p, or NULL when there is none. */
const char *sd_walk_text(const unsigned char *p, uint64_t n, size_t *length);
bool sd_walk_is_map(unsigned char c);
/* sd_walk_kind - "a map", "an integer" ... by the first byte. */
const char *sd_walk_kind(unsigned char c);

struct sd_field {
    const char *name;                   /* not ended by a zero */
    size_t name_length;
    const unsigned char *key, *value;   /* msgpack, as they came or were packed */
    size_t key_length, value_length;
    struct sd_record_tensor tensor;     /* when value is NULL */
};
struct sd_record {
    struct sd_scope *scope;
    struct sd_field *field;
    size_t count, room;
    bool read;                          /* from a stream */
};
struct sd_field *sd_record_find(const struct sd_record *r, const char *key);
struct sd_field *sd_record_append(struct sd_record *r);

#endif
