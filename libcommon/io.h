/* io.h - system calls on descriptors, and streams over them, that go on where a signal interrupted them.
 *
 * One rule: EINTR is nobody's error; every other one is the caller's. */
#ifndef SD_IO_H
#define SD_IO_H

#include <stdio.h>
#include <sys/types.h>

/* sd_open - closed in children; what is created is 0666 less the umask. */
int sd_open(const char *path, int flags);
/* sd_read - n bytes, fewer only at the end; -1 with errno. */
ssize_t sd_read(int fd, void *buffer, size_t n);
int sd_fsync(int fd);
/* sd_stream - as fdopen, but it has no fileno; fclose closes fd. */
FILE *sd_stream(int fd, const char *mode);
/* sd_stream_stdout - standard output becomes such a stream; called once, before anything is printed. */
void sd_stream_stdout(void);
/* Why a write to it failed last; 0: none did. */
extern int sd_stdout_error;

#endif
