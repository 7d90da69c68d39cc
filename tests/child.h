/* child.h - run a function as a program of its own: what it prints, and how it ends.  For what exits or reads stdin. */
#ifndef SD_CHILD_H
#define SD_CHILD_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct child {
    int status;                 /* exit status, or 128 + signal */
    size_t out_length;
    char out[1 << 20], err[1 << 14];
};

static inline size_t
child_take(const char *path, char *text, size_t room)
{
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(text, 1, room - 1, f) : 0;

    text[n] = '\0';
    if (f)
        fclose(f);
    return n;
}

/* Standard input is `in`, of n bytes; f's result is the exit status.  Works in the current directory. */
static inline struct child *
child_run(int (*f)(void *), void *argument, const void *in, size_t n)
{
    static struct child c;
    FILE *input = fopen("child.in", "wb");
    int status = 0;
    pid_t pid;

    if (!input || fwrite(in, 1, n, input) != n || fclose(input))
        exit(99);
    fflush(stdout);
    if (!(pid = fork())) {
        if (!freopen("child.in", "rb", stdin) || !freopen("child.out", "wb", stdout)
            || !freopen("child.err", "wb", stderr))
            _exit(98);
        setvbuf(stderr, NULL, _IONBF, 0);
        lseek(0, 0, SEEK_SET);
        exit(f(argument));
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        exit(97);
    c.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    c.out_length = child_take("child.out", c.out, sizeof c.out);
    child_take("child.err", c.err, sizeof c.err);
    return &c;
}

/* Text on one line, for a message of CHECK. */
static inline const char *
child_flat(const char *text)
{
    static char line[512];
    size_t n = strlen(text) < sizeof line ? strlen(text) : sizeof line - 1;

    for (size_t i = 0; i < n; i++)
        line[i] = text[i] == '\n' ? '~' : text[i];
    line[n] = '\0';
    return line;
}

/* A fresh directory to work in, removed with what is in it at the end by child_leave. */
static char child_folder[64];
static inline void
child_enter(void)
{
    strcpy(child_folder, "/tmp/sd-test-XXXXXX");
    if (!mkdtemp(child_folder) || chdir(child_folder))
        exit(96);
}
static inline void
child_leave(void)
{
    char command[96];

    snprintf(command, sizeof command, "rm -rf '%s'", child_folder);
    if (chdir("/") || system(command))
        fprintf(stderr, "%s is left\n", child_folder);
}
#endif
