/* safetensors_private.h - what safetensors_header.c (the parser of headers) and safetensors.c (checks, files) share. */
#ifndef SD_SAFETENSORS_PRIVATE_H
#define SD_SAFETENSORS_PRIVATE_H

#include "safetensors.h"

struct pair {
    const char *key, *value;
    size_t key_length;
};

struct entry {                  /* as parsed, before any check of its numbers */
    const char *name;
    size_t name_length, first_dim, ndim;
    enum sd_dtype dtype;
    uint64_t begin, end;
};

struct parser {
    const unsigned char *start, *p, *end;
    char *text;                 /* room for all decoded strings: never more than the header's bytes */
    struct entry *entry;
    uint64_t *dim;
    struct pair *metadata;
    size_t entries, entry_room, dims, dim_room, pairs, pair_room;
    bool has_metadata;
};

/* sd_safetensors_parse - the JSON from start to end; arrays of malloc, the caller's in any case; -1 with sd_fail. */
int sd_safetensors_parse(struct parser *p);

#endif
