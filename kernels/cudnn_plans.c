/* cudnn_plans.c - cuDNN's plans: an engine for each graph, chosen by trial, kept while the device is open and on disk. */
#include "cudnn_internal.h"

#if SD_WITH_CUDA            /* this runs; it wants kernels of ours beside the library's */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "diag.h"
#include "vendor.h"

void
dnn_put(struct pack *p, int64_t uid, const void *at)
{
    union { const void *in; void *out; } u = { at };

    p->uid[p->count] = uid;
    p->at[p->count] = u.out;
    p->bytes[p->count++] = 0;
}

void
dnn_put_result(struct pack *p, int64_t uid, void *at, size_t count, enum sd_dtype type)
{
    dnn_put(p, uid, at);
    p->bytes[p->count - 1] = count * sd_dtype_size(type);
    p->type[p->count - 1] = type;
}

void *
dnn_result(const struct pack *p, int64_t uid)
{
    for (int i = 0; i < p->count; i++)
        if (p->uid[i] == uid)
            return p->at[i];
    return NULL;
}

static bool
execute(struct state *s, void *exec, const struct pack *p, void *workspace)
{
    struct graph g = { .count = 0 };
    void *pack = dnn_make(&g, VARIANT_PACK, "a pack");

    dnn_set(&g, pack, PACK_UNIQUE_IDS, TYPE_INT64, p->count, p->uid);
    dnn_set(&g, pack, PACK_DATA_POINTERS, TYPE_VOID_PTR, p->count, p->at);
    dnn_set(&g, pack, PACK_WORKSPACE, TYPE_VOID_PTR, 1, &workspace);
    dnn_finish(&g, pack, "a pack");
    if (!g.status)
        g.status = dnn.execute(s->handle, exec, pack);
    dnn_end(&g);
    return g.status == 0;
}

struct attempt {
    struct state *state;
    void *exec;
    int64_t workspace;
    struct pack pack;           /* results go to memory of their own */
    void *expected[CUDNN_MOST_TENSORS];     /* in the host's; NULL: not known */
    double apart;               /* from what is expected, in tuning_bound()s */
};

static bool
attempt(void *argument)
{
    struct attempt *t = argument;

    return execute(t->state, t->exec, &t->pack, sd_device_workspace(t->state->device, (size_t)t->workspace));
}

/* Twice into memory that was cleared, the second time from a recording: are the results the same bytes, and what is expected? */
static bool
repeats(struct attempt *t)
{
    bool same = true;

    t->apart = 0;
    for (int i = 0; i < t->pack.count && same; i++) {
        unsigned char *first, *again;
        struct sd_device *d = t->state->device;
        size_t bytes = t->pack.bytes[i];

        if (!bytes)
            continue;
        first = malloc(2 * bytes);
        if (!first)
            sd_die("memory", "no room for %zu bytes twice", bytes);
        again = first + bytes;
        for (int turn = 0; turn < 2 && same; turn++) {
            sd_device_fill(d, t->pack.at[i], 0, bytes);
            same = turn ? tuning_replay(d, attempt, t) : attempt(t);
            sd_device_read(d, turn ? again : first, t->pack.at[i], bytes);
        }
        if (same && t->expected[i]) {
            double apart = tuning_distance(first, t->expected[i], t->pack.type[i], bytes / sd_dtype_size(t->pack.type[i]))
                           / tuning_bound(t->pack.type[i]);

            if (!(apart <= t->apart))
                t->apart = apart;
        }
        same = same && memcmp(first, again, bytes) == 0;
        free(first);
    }
    return same && t->apart <= 1;
}

/* What the results are, by our own kernel. */
static void
expect(struct attempt *t)
{
    struct sd_device *d = t->state->device;

    for (int i = 0; i < t->pack.count; i++)
        if (t->pack.bytes[i])
            sd_device_fill(d, t->pack.at[i], 0, t->pack.bytes[i]);
    if (!t->pack.own(d, t->pack.call, &t->pack))
        return;
    for (int i = 0; i < t->pack.count; i++)
        if (t->pack.bytes[i] && !t->pack.inner[i] && (t->expected[i] = malloc(t->pack.bytes[i])))
            sd_device_read(d, t->expected[i], t->pack.at[i], t->pack.bytes[i]);
}

static bool
own_attempt(void *argument)
{
    struct attempt *t = argument;

    return t->pack.own(t->state->device, t->pack.call, &t->pack);
}

/* Of the proposals, the fastest that repeats, or not timed the first; -1: none, or our own kernel is faster. */
static int
pick(struct state *s, void *const *configs, int count, const struct pack *pack, const char *key, bool timed)
{
    struct attempt t = { .state = s, .pack = *pack };
    double best = -1, begin = tuning_clock();
    int chosen = -1, tried = 0;

    for (int i = 0; i < pack->count; i++)
        if (pack->bytes[i])
            t.pack.at[i] = sd_device_alloc(s->device, pack->bytes[i], "tuning");
    expect(&t);
    for (int i = 0; i < count && tried < TRIED && (chosen < 0 || (timed && tuning_clock() - begin < SECONDS)); i++) {
        double seconds = 0;

        if (dnn_engine(configs[i]) < 0 || !(t.exec = dnn_build(s->handle, NULL, configs[i], &t.workspace)))
            continue;
        tried++;
        t.apart = 0;
        if (sd_device_free_bytes(s->device) / 5 * 4 > (size_t)t.workspace && attempt(&t) && repeats(&t)) {
            if (timed)
                seconds = tuning_time(s->device, attempt, &t);
            if (seconds >= 0 && (best < 0 || seconds < best)) {
                best = seconds;
                chosen = i;
            }
        } else if (!(t.apart <= 1))
            sd_warn("cudnn", "%s: engine %lld is left out: %.1f times as far from our own kernel as rounding goes", key,
                    (long long)dnn_engine(configs[i]), t.apart);
        dnn.unmake(t.exec);
    }
    if (timed && chosen >= 0 && pack->own_timed) {
        double seconds = tuning_time(s->device, own_attempt, &t);

        if (seconds >= 0 && seconds < best)
            chosen = -1;
    }
    for (int i = 0; i < pack->count; i++) {
        if (pack->bytes[i])
            sd_device_free(s->device, t.pack.at[i]);
        free(t.expected[i]);
    }
    if (chosen < 0)
        sd_note(2, "%s: none of %d engines, %.1f s", key, count, tuning_clock() - begin);
    else
        sd_note(2, "%s: engine %d of %d, %d tried, %.1f us, chosen in %.1f s", key, chosen, count, tried, best * 1e6,
                tuning_clock() - begin);
    return chosen;
}

/* What was kept; false where the library does not offer it now. */
static bool
use_kept(struct state *s, struct plan *p, void *const *configs, int count, const char *kept)
{
    long long chosen, number;

    if (sscanf(kept, "%lld %lld", &chosen, &number) != 2 || chosen < -1 || chosen >= count)
        return false;
    return chosen < 0 ? number == -1 : dnn_engine(configs[chosen]) == number
                                       && (p->exec = dnn_build(s->handle, NULL, configs[chosen], &p->workspace));
}

/* Sets p->exec; leaves it NULL where there is no engine, or no memory to compare what one makes. */
static void
choose(struct state *s, struct plan *p, struct graph *g, const struct pack *pack)
{
    void *configs[MANY] = { NULL };
    const char *kept = tuning_find(s->device, "dnn", p->key);
    int count = dnn_propose(g, configs), chosen = -1;
    size_t bytes = 0;
    char text[64];

    for (int i = 0; i < pack->count; i++)
        bytes += pack->bytes[i];
    if (kept && use_kept(s, p, configs, count, kept))
        return;
    if (kept)
        sd_warn("cudnn", "the engine that was chosen before is not offered now, another is taken: %s: %s", p->key, kept);
    if (count == 0 || sd_device_free_bytes(s->device) <= 2 * bytes + bytes / 4)      /* own_conv() has them twice */
        return;
    chosen = pick(s, configs, count, pack, p->key, !kept && tuning_wanted());
    if (!kept && tuning_wanted()) {
        snprintf(text, sizeof text, "%d %lld", chosen, chosen < 0 ? -1LL : (long long)dnn_engine(configs[chosen]));
        kept = tuning_store(s->device, "dnn", p->key, text);
        if (strcmp(kept, text) && use_kept(s, p, configs, count, kept))     /* another process was first */
            return;
    }
    if (chosen >= 0)
        p->exec = dnn_build(s->handle, NULL, configs[chosen], &p->workspace);
}

static void
close_state(void *value)
{
    struct state *s = value;

    for (size_t i = 0; i < s->count; i++) {
        if (s->plans[i].exec)
            dnn.unmake(s->plans[i].exec);
        free(s->plans[i].key);
    }
    dnn.destroy(s->handle);
    free(s->plans);
    free(s);
}

struct state *
dnn_state(struct sd_device *d)
{
    struct state *s = sd_device_slot(d, SD_SLOT_CUDNN);
    void *handle = NULL;
    int status;

    if (s)
        return s;
    if ((status = dnn.create(&handle)) || (status = dnn.set_stream(handle, sd_device_stream(d)))) {
        sd_warn(dnn.version, "cannot be used, our own kernels compute: status %d", status);
        dnn.library = NULL;
        return NULL;
    }
    s = calloc(1, sizeof *s);
    if (!s)
        sd_die("memory", "no room for cuDNN's state");
    s->device = d;
    s->handle = handle;
    sd_device_set_slot(d, SD_SLOT_CUDNN, s, close_state);
    return s;
}

struct plan *
dnn_find_plan(struct state *s, const char *key)
{
    for (size_t i = 0; i < s->count; i++)
        if (strcmp(s->plans[i].key, key) == 0)
            return &s->plans[i];
    return NULL;
}

/* A plan for the graph, which is ended. */
struct plan *
dnn_new_plan(struct state *s, const char *key, struct graph *g, const struct pack *pack)
{
    struct plan *p;

    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 64;
        s->plans = realloc(s->plans, s->room * sizeof *s->plans);
        if (!s->plans)
            sd_die("memory", "no room for %zu plans", s->room);
    }
    p = &s->plans[s->count++];
    memset(p, 0, sizeof *p);
    p->key = strdup(key);
    if (!p->key)
        sd_die("memory", "no room for a plan");
    if (!g->status)
        choose(s, p, g, pack);
    else
        sd_note(2, "%s: %s refused, status %d", key, g->failed, g->status);
    dnn_end(g);
    return p;
}

/* Room behind the plan's workspace, 256-byte aligned. */
size_t
dnn_round_up(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

bool
dnn_run(struct state *s, struct plan *p, const struct pack *pack, void *workspace)
{
    if (!execute(s, p->exec, pack, workspace)) {
        sd_warn("cudnn", "refuses what it offered, our own kernel takes over: %s", p->key);
        dnn.unmake(p->exec);
        p->exec = NULL;
        return false;
    }
    sd_device_launched(s->device, "cudnn");
    return true;
}

#endif
