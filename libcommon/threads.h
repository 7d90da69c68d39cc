/* threads.h - how the threads of a program wait for each other. */
#ifndef SD_THREADS_H
#define SD_THREADS_H

/* sd_threads_yield - lets threads that wait at the end of a loop sleep after some 20 microseconds.  GNU OpenMP's spin for
 * milliseconds, which costs a machine that does other work too several times the time of the work itself, and reads its
 * settings before main: so this starts the program once more, in the same process, with GOMP_SPINCOUNT set for it alone.
 * Call first in main, with no file open and no thread made.  What the user has set (GOMP_SPINCOUNT, OMP_WAIT_POLICY)
 * stays; where the program cannot be started again it goes on as it is. */
void sd_threads_yield(char **argv);

#endif
