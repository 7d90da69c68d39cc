/* cuda_peers.h - the same rows in processes of others, asked through pipes; rows whose peers do not fit on the card
 * together come in waves, one after the other. */
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
    int wave;
    pid_t pid;                  /* 0: not started, or gone */
    int to, from;
    double step;
    char line[LINE];
    size_t filled;
} peers[MAX_PEERS];
static int peer_count;

static void
start_peer(struct peer *p, const char *command)
{
    char *whole = sd_sprintf(scope, "exec %s --peer %s --row %s", command, p->name, p->row->name);
    int to[2], from[2];

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

/* Rows that have peers, the most wanted first; GB that a peer takes, its context too: what saved_tensors_hooks count in
 * one step of theirs (2.5 for lora1, the weights among them), and room for their allocator. */
static const struct { const char *row; double gb; } order[] = {
    { "lora1", 4.5 }, { "guided", 4 }, { "lora8", 11 }, { "decode1024", 5 }, { "ti", 5.5 }
};
enum { ORDER = sizeof order / sizeof *order };

/* A row's peers are there at the same time, in the first wave that has room for them, or in one of their own. */
static int
choose_waves(const char *names, double room)
{
    double taken[ORDER] = { 0 };
    int waves = 1;

    for (int k = 0; k < ORDER; k++)
        for (int i = 0; i < ROWS; i++) {
            int first = peer_count, wave = 0;

            if (!rows[i].wanted || strcmp(rows[i].name, order[k].row) != 0)
                continue;
            for (const char *name = names; *name; name += strcspn(name, ",") + (name[strcspn(name, ",")] == ',')) {
                if (peer_count == MAX_PEERS)
                    sd_usage("--peers", "at most %d", MAX_PEERS);
                snprintf(peers[peer_count].name, sizeof peers->name, "%.*s", (int)strcspn(name, ","), name);
                peers[peer_count++].row = &rows[i];
            }
            while (taken[wave] > 0 && taken[wave] + (peer_count - first) * order[k].gb > room)
                wave++;
            taken[wave] += (peer_count - first) * order[k].gb;
            waves = wave + 1 > waves ? wave + 1 : waves;
            rows[i].wave = wave;
            for (int p = first; p < peer_count; p++)
                peers[p].wave = wave;
        }
    return waves;
}

/* Until all of the wave are ready: at most two thirds of its time, for the rounds need some. */
static void
start_wave(const char *command, int wave, double end)
{
    double until = sd_clock() + (end - sd_clock()) * 2 / 3;

    for (int i = 0; i < peer_count; i++)
        if (peers[i].wave == wave)
            start_peer(&peers[i], command);
    for (int i = 0; i < peer_count; i++) {
        const char *text;

        if (peers[i].wave != wave)
            continue;
        text = wait_for(&peers[i], "ready", until, "not ready in time (compiling, or loading)");
        peers[i].step = text ? strtod(text, NULL) : 0;
        if (text)
            fprintf(stderr, "cuda: %s %s is ready after %.0f s, %.2f ms a step\n", peers[i].name, peers[i].row->name,
                    sd_clock() - begun, peers[i].step * 1e3);
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
