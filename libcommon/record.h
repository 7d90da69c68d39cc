/* record.h - streams of records (sd-records.5): msgpack maps on pipes and in files.
 *
 * One rule: a stream is whole or it is an error.  First {"sd": 1, "holds": WHAT}, a map per item, last {"end": N}.
 * Keys this library does not know pass through byte for byte, in their order. */
#ifndef SD_RECORD_H
#define SD_RECORD_H

#include "diag.h"

#define SD_RECORD_MAX   ((size_t)1 << 30)   /* bytes of one record */
#define SD_RECORD_KEYS  1024                /* keys of one record */

struct sd_record;   /* one item; lives in a scope */
struct sd_reader;

/* A tensor inside a record: little-endian, row-major; dtype by its safetensors name ("U8", "F32", "I64"). */
struct sd_record_tensor {
    char dtype[8];
    int ndim;
    int64_t shape[5];
    const void *data;
    size_t bytes;
};

/* Reading.  sd_reader_open(NULL or "-") reads stdin; refuses a terminal.  Bytes are bounded before they are unpacked:
 * depth 16, record size `SD_RECORD_MAX` (1 GiB), declared lengths never trusted beyond what has been read. */
struct sd_reader *sd_reader_open(const char *path);
const char *sd_reader_holds(const struct sd_reader *r);
/* sd_reader_next - 1 and *record in scope s; 0 at a proper end (count checked); -1 (sd_fail) on a broken stream. */
int  sd_reader_next(struct sd_reader *r, struct sd_scope *s, struct sd_record **record);
/* sd_reader_broken - after -1: true when nothing more can be read; false when only that record was bad (a caption that
 * is no text, invalid UTF-8), and the next may be asked for.  Whoever stops at every -1 need not ask. */
bool sd_reader_broken(const struct sd_reader *r);
/* sd_reader_count - records read so far, bad ones too: the number to name in messages. */
uint64_t sd_reader_count(const struct sd_reader *r);
void sd_reader_close(struct sd_reader *r);
/* sd_is_record_stream - does the file start like a record stream?  A pipe cannot be peeked at and is taken for one.
 * False with errno when the file cannot be opened. */
bool sd_is_record_stream(const char *path);

/* Values.  The setters replace or append; text is copied, tensor data is referenced and must outlive the write. */
struct sd_record *sd_record_new(struct sd_scope *s);
struct sd_record *sd_record_copy(struct sd_scope *s, const struct sd_record *r);   /* all of it, tensors' data too */
bool sd_record_was_read(const struct sd_record *r);      /* from a stream: what it says is not what the user said */
const char *sd_record_text(const struct sd_record *r, const char *key);          /* NULL when absent; UTF-8 checked */
/* 1, 0 absent, -1 bad; bytes = shape x dtype was checked, and data is aligned for the dtype. */
int  sd_record_tensor(const struct sd_record *r, const char *key, struct sd_record_tensor *t);
int  sd_record_ints(const struct sd_record *r, const char *key, int64_t *values, int count);   /* 1, 0 absent, -1 bad;
                                                    * an array of exactly `count`; for 1 also an integer by itself */
int  sd_record_real(const struct sd_record *r, const char *key, double *value);
void sd_record_set_text(struct sd_record *r, const char *key, const char *text);
void sd_record_set_tensor(struct sd_record *r, const char *key, const struct sd_record_tensor *t);
void sd_record_set_int(struct sd_record *r, const char *key, int64_t value);
void sd_record_set_ints(struct sd_record *r, const char *key, const int64_t *values, int count);
void sd_record_set_real(struct sd_record *r, const char *key, double value);
void sd_record_remove(struct sd_record *r, const char *key);

/* Writing to stdout: msgpack, or JSON lines with -j (tensors as {"dtype","shape"}).  Refuses a terminal for msgpack
 * (status 2).  A failed write ends the run: sd_die, status 3. */
void sd_writer_begin(const char *holds);
void sd_record_write(const struct sd_record *r);
void sd_writer_end(void);

/* sd_each - the loop of a filter.  Operands: picture files (given to `one` as a record with only "source"), folders
 * when `pictures` is set (flat, byte order, no dot files), record files; none: records from stdin.  `one` returns 0, or
 * -1 with sd_fail: the input is named on stderr and left out.  Returns the exit status (0, 1, 3; -k turns 1 into 0).
 * Writes head and end of the stream around the loop when `holds` is not NULL. */
struct sd_each {
    const char *holds;          /* NULL: the program writes no stream */
    bool pictures;              /* operands may be pictures and folders */
    int (*one)(struct sd_scope *s, struct sd_record *r, void *user);
    void *user;
};
int sd_each(int argc, char **argv, const struct sd_each *e);

#endif
