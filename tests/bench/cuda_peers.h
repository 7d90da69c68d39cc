/* cuda_peers.h - the same rows in processes of others, asked through pipes. */
#ifndef SD_BENCH_CUDA_PEERS_H
#define SD_BENCH_CUDA_PEERS_H

#include "cuda_rows.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_PEERS = 64, LINE = 512 };
static struct peer {
    char name[32];
    struct row *row;
    pid_t pid;                  /* 0: gone */
    int to, from;
    bool ready;
    double step;
    char line[LINE];
    size_t filled;
} peers[MAX_PEERS];
static int peer_count;

static void
start_peer(const char *command, const char *name, size_t length, struct row *row)
{
    struct peer *p = &peers[peer_count];
    char *whole = sd_sprintf(scope, "exec %s --peer %.*s --row %s", command, (int)length, name, row->name);
    int to[2], from[2];

    if (peer_count == MAX_PEERS)
        sd_usage("--peers", "at most %d", MAX_PEERS);
    if (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0 || (p->pid = fork()) < 0)
        sd_die("peers", "%s", strerror(errno));
    if (!p->pid) {
        setpgid(0, 0);          /* with what it starts itself */
        if (dup2(to[0], 0) < 0 || dup2(from[1], 1) < 0)
            _exit(127);
        execl("/bin/sh", "sh", "-c", whole, (char *)NULL);
        _exit(127);
    }
    setpgid(p->pid, p->pid);
    close(to[0]);
    close(from[1]);
    p->to = to[1];
    p->from = from[0];
    snprintf(p->name, sizeof p->name, "%.*s", (int)length, name);
    p->row = row;
    peer_count++;
}

static void
end_peer(struct peer *p, const char *why)
{
    int status;

    if (!p->pid)
        return;
    if (why)
        note("%s, %s: left out: %s", p->row->name, p->name, why);
    kill(-p->pid, SIGKILL);
    waitpid(p->pid, &status, 0);
    close(p->to);
    close(p->from);
    p->pid = 0;
}

/* The next line of it before `until`, without its end; NULL: none came, and it is ended. */
static char *
line_of(struct peer *p, double until, const char *late)
{
    static char line[LINE];

    for (;;) {
        char *end = memchr(p->line, '\n', p->filled);
        struct pollfd f = { .fd = p->from, .events = POLLIN };
        double left = until - sd_clock();
        ssize_t n;

        if (end) {
            size_t length = (size_t)(end - p->line);

            memcpy(line, p->line, length);
            line[length] = 0;
            p->filled -= length + 1;
            memmove(p->line, end + 1, p->filled);
            return line;
        }
        if (p->filled == LINE)
            p->filled = 0;      /* nothing of ours is so long */
        if (poll(&f, 1, left > 0 ? (int)(left * 1e3) + 1 : 0) == 0) {
            end_peer(p, late);
            return NULL;
        }
        if ((n = read(p->from, p->line + p->filled, LINE - p->filled)) <= 0) {
            end_peer(p, "it ended");
            return NULL;
        }
        p->filled += (size_t)n;
    }
}

/* Takes its lines until one begins with `word`: what follows, NULL when it is gone. */
static const char *
wait_for(struct peer *p, const char *word, double until, const char *late)
{
    char *line;

    while ((line = line_of(p, until, late))) {
        size_t n = strlen(word);

        if (strncmp(line, word, n) == 0 && line[n] == ' ')
            return line + n + 1;
        if (strncmp(line, "memory ", 7) == 0)
            printf("memory\t%s\t%s\t%s\n", p->row->name, p->name, line + 7);
        else if (strncmp(line, "about ", 6) == 0)
            printf("about\t%s\t%s\n", p->name, line + 6);
        else if (strncmp(line, "skip ", 5) == 0) {
            end_peer(p, line + 5);
            return NULL;
        } else
            fprintf(stderr, "%s %s: %s\n", p->name, p->row->name, line);
    }
    return NULL;
}

static void
start_peers(const char *command, const char *names)
{
    for (const char *name = names; *name; name += strcspn(name, ",") + (name[strcspn(name, ",")] == ',')) {
        static const char *const order[] = { "lora1", "guided", "lora8", "decode1024", "ti" };

        for (size_t k = 0; k < sizeof order / sizeof *order; k++)
            for (int i = 0; i < ROWS; i++)
                if (rows[i].wanted && strcmp(rows[i].name, order[k]) == 0)
                    start_peer(command, name, strcspn(name, ","), &rows[i]);
    }
}

/* Until all are ready: at most two thirds of the time that is left, for the rounds need some. */
static void
wait_for_peers(void)
{
    double until = sd_clock() + (begun + seconds - sd_clock()) * 2 / 3;

    for (int i = 0; i < peer_count; i++) {
        const char *text = wait_for(&peers[i], "ready", until, "not ready in time (compiling, or loading)");

        peers[i].ready = text != NULL;
        peers[i].step = text ? strtod(text, NULL) : 0;
        if (text)
            fprintf(stderr, "cuda: %s %s is ready after %.0f s, %.2f ms a step\n", peers[i].name, peers[i].row->name,
                    sd_clock() - begun,
                    peers[i].step * 1e3);
    }
}

static void
measure_peer(struct peer *p)
{
    int most = p->step > 0 ? (int)(4 / p->step) : steps, count = tiny ? 1 : most < 3 ? 3 : most < steps ? most : steps;
    const char *text;

    if (!p->pid)
        return;
    if (dprintf(p->to, "run %d\n", count) < 0) {
        end_peer(p, "it ended");
        return;
    }
    if ((text = wait_for(p, "time", sd_clock() + 60, "no answer in a minute")))
        printf("time\t%s\t%s\t%s\n", p->row->name, p->name, text);
    fflush(stdout);
}

#endif
