/* safetensors.h - safetensors files: read by mapping, written whole.
 *
 * One rule: a file is believed only after every check of the format has passed (the reference's, in its order, and no
 * duplicate names); what is written has one name, sorted tensors, aligned data, sorted metadata.
 * Everything returned lives in the scope. */
#ifndef SD_SAFETENSORS_H
#define SD_SAFETENSORS_H

#include "diag.h"
#include "dtype.h"

struct sd_safetensor {
    const char *name;           /* ended by a zero, but may hold others: compare with name_length */
    size_t name_length;
    enum sd_dtype dtype;
    int ndim;
    const int64_t *shape;       /* a length of 2^63 or more, legal beside a zero, reads as INT64_MAX */
    size_t numel;
    const void *data;           /* in the mapping: may be unaligned for its dtype, see sd_safetensor_aligned */
    size_t bytes;
    bool used;                  /* the caller's own mark, to name what was never asked for */
};

struct sd_safetensors;

/* sd_safetensors_open - maps a file; a name that ends in .json is a sharded index, whose files are all mapped and must
 * hold exactly the tensors the index says.  NULL with sd_fail. */
struct sd_safetensors *sd_safetensors_open(struct sd_scope *s, const char *path);
size_t sd_safetensors_count(const struct sd_safetensors *f);
/* Tensors in the order of their data (index: file by file). */
struct sd_safetensor *sd_safetensors_at(const struct sd_safetensors *f, size_t i);
/* sd_safetensors_stat - fstat of the mapped files: of `room` of them at most; returns how many there are, 0 with sd_fail. */
struct stat;
size_t sd_safetensors_stat(const struct sd_safetensors *f, struct stat *st, size_t room);
/* sd_safetensors_find - by name; NULL when absent (no sd_fail). */
struct sd_safetensor *sd_safetensors_find(const struct sd_safetensors *f, const char *name);
/* sd_safetensors_get - by name and shape; NULL with sd_fail that names both shapes. ndim < 0 takes any shape. */
struct sd_safetensor *sd_safetensors_get(const struct sd_safetensors *f, const char *name, int ndim,
                                         const int64_t *shape);
/* __metadata__: untrusted text.  Number of pairs; the i-th; by key (NULL when absent). */
size_t sd_safetensors_metadata_count(const struct sd_safetensors *f);
const char *sd_safetensors_metadata_at(const struct sd_safetensors *f, size_t i, const char **value);
const char *sd_safetensors_metadata(const struct sd_safetensors *f, const char *key);
/* The data region of a single file (NULL, 0 for an index). */
const void *sd_safetensors_region(const struct sd_safetensors *f, size_t *bytes);
/* sd_safetensors_unchanged - 0 while the files still are what was mapped; -1 with sd_fail.  A file cut short behind our
 * back ends the program with one line (sd_catch_signals). */
int sd_safetensors_unchanged(const struct sd_safetensors *f);
/* Is the data aligned for its dtype? */
bool sd_safetensor_aligned(const struct sd_safetensor *t);
/* sd_safetensor_f32 - the values as floats: the mapping itself where it can be, else converted into the scope. NULL
 * with sd_fail for a dtype that is no float. */
const float *sd_safetensor_f32(struct sd_scope *s, const struct sd_safetensor *t);
/* "[320, 8]" in scope s. */
const char *sd_shape_text(struct sd_scope *s, int ndim, const int64_t *shape);

/* Numbers: F64, F32, F16, BF16 to float and back (nearest, ties to even; NaN stays NaN, overflow is infinite).  `from`
 * and `to` may be unaligned.  -1 with sd_fail for another dtype.  Many cores are used for many numbers. */
int sd_to_f32(float *to, const void *from, enum sd_dtype dtype, size_t n);
int sd_from_f32(void *to, enum sd_dtype dtype, const float *from, size_t n);

/* Writing: declare all tensors, then save.  Data are pulled in 1 MiB pieces while the file is written, so that no copy
 * of it is in memory; what `data` and `user` point to must live until then.  Names must differ (sd_fail in save).
 * `format` = `pt` is added to the metadata where it is not set.  A value of NULL takes a key away. */
struct sd_safetensors_writer;
struct sd_safetensors_writer *sd_safetensors_writer_new(struct sd_scope *s);
void sd_safetensors_set_metadata(struct sd_safetensors_writer *w, const char *key, const char *value);
/* data: bytes as they are to stand in the file */
void sd_safetensors_add(struct sd_safetensors_writer *w, const char *name, enum sd_dtype dtype, int ndim,
                        const int64_t *shape, const void *data);
/* values: floats, converted to dtype on the way */
void sd_safetensors_add_f32(struct sd_safetensors_writer *w, const char *name, enum sd_dtype dtype, int ndim,
                            const int64_t *shape, const float *values);
/* read(user, buffer, offset, bytes): puts `bytes` bytes from `offset` of the tensor into buffer; -1 with sd_fail stops.
 * Offsets ascend, and bytes is a multiple of the element's size. */
void sd_safetensors_add_from(struct sd_safetensors_writer *w, const char *name, enum sd_dtype dtype, int ndim,
                             const int64_t *shape, int (*read)(void *user, void *buffer, size_t offset, size_t bytes),
                             void *user);
enum { SD_SAFETENSORS_PIECE = 1 << 20 };
/* sd_safetensors_save - through sd_output: the name appears when the file is complete. */
int sd_safetensors_save(struct sd_safetensors_writer *w, const char *path);
/* sd_safetensors_size - bytes of the file that it would write, for plans: no data are asked for.  -1 with sd_fail. */
int sd_safetensors_size(struct sd_safetensors_writer *w, uint64_t *bytes);
/* sd_safetensors_write - saved into an open stream, for callers with their own way of publishing. */
int sd_safetensors_write(struct sd_safetensors_writer *w, FILE *f);
/* sd_safetensors_data_hash - XXH3-128 of the data region as it will be written, in hex. */
int sd_safetensors_data_hash(struct sd_safetensors_writer *w, char hex[33]);
/* sd_safetensors_header_hash - likewise of the header. */
int sd_safetensors_header_hash(struct sd_safetensors_writer *w, char hex[33]);

#endif
