/* cudnn_plans.c - cuDNN's plans: an engine for each graph, chosen by trial, kept while the device is open and on disk. */
#include "cudnn_internal.h"

#if SD_WITH_CUDA            /* this runs; it wants kernels of ours beside the library's */

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "diag.h"
#include "tuning.h"
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

/* -- choosing ------------------------------------------------------------------------------------------------------- */

/* One call by each of the engines, and by our own kernel, into memory of its own: the results twice, and what is expected. */
struct trial {
    struct state *state;
    struct pack found, again, expected;
    bool known;                 /* what is expected */
    void *room;                 /* workspace of all engines */
    size_t room_bytes;
};

struct attempt {
    struct trial *trial;
    const struct pack *to;
    int number;                 /* of the configuration */
    int64_t engine;
    void *exec;                 /* NULL: no plan */
    int64_t workspace;
};

static bool
attempt(void *argument)
{
    struct attempt *a = argument;

    return execute(a->trial->state, a->exec, a->to, a->trial->room);
}

static bool
own_attempt(void *argument)
{
    struct trial *t = argument;

    return t->expected.own(t->state->device, t->expected.call, &t->expected);
}

static void
clear(struct sd_device *d, const struct pack *p)
{
    for (int i = 0; i < p->count; i++)
        if (p->bytes[i])
            sd_device_fill(d, p->at[i], 0, p->bytes[i]);
}

static void
begin_trial(struct trial *t)
{
    struct sd_device *d = t->state->device;

    for (int i = 0; i < t->found.count; i++)
        if (t->found.bytes[i]) {
            t->found.at[i] = sd_device_alloc(d, t->found.bytes[i], "tuning");
            t->again.at[i] = sd_device_alloc(d, t->found.bytes[i], "tuning");
            t->expected.at[i] = sd_device_alloc(d, t->found.bytes[i], "tuning");
        }
    clear(d, &t->expected);
    t->known = own_attempt(t);
}

static void
end_trial(struct trial *t)
{
    struct sd_device *d = t->state->device;

    sd_device_wait(d);
    for (int i = 0; i < t->found.count; i++)
        if (t->found.bytes[i]) {
            sd_device_free(d, t->found.at[i]);
            sd_device_free(d, t->again.at[i]);
            sd_device_free(d, t->expected.at[i]);
        }
    sd_device_free(d, t->room);
}

/* Room for this engine, and leave for what the library allocates beside. */
static bool
has_room(struct trial *t, int64_t workspace)
{
    struct sd_device *d = t->state->device;

    if ((size_t)workspace <= t->room_bytes && t->room)
        return true;
    if (sd_device_free_bytes(d) / 5 * 4 <= (size_t)workspace)
        return false;
    if (t->room)
        sd_device_free(d, t->room);
    t->room_bytes = (size_t)workspace;
    t->room = sd_device_alloc(d, t->room_bytes, "tuning");
    return true;
}

/* How far from what is expected, in tuning_bound()s, of two runs, the second from a recording; infinite where these differ;
 * negative where the library refuses. */
static double
distance(struct attempt *a)
{
    struct trial *t = a->trial;
    struct sd_device *d = t->state->device;
    double worst = 0;
    bool ran;

    clear(d, &t->found);
    clear(d, &t->again);
    a->to = &t->found;
    ran = attempt(a);
    a->to = &t->again;
    ran = ran && tuning_replay(d, attempt, a);
    a->to = &t->found;
    for (int i = 0; ran && i < t->found.count; i++) {
        const void *expected = t->known && !t->found.inner[i] ? t->expected.at[i] : NULL;
        double apart;

        if (!t->found.bytes[i])
            continue;
        apart = tuning_distance(d, t->found.at[i], t->again.at[i], expected, t->found.type[i],
                                t->found.bytes[i] / sd_dtype_size(t->found.type[i])) / tuning_bound(t->found.type[i]);
        if (!(apart <= worst))
            worst = apart;
    }
    return ran ? worst : -1;
}

/* Plans of so many configurations, some of which are compiled: by as many threads of the host as there are (SD_TUNE_THREADS). */
static void
build_together(struct state *s, void *const *configs, struct attempt *a, int count)
{
    const char *text = getenv("SD_TUNE_THREADS");
    const int wanted = text ? atoi(text) : 0, threads = wanted > 0 ? wanted : omp_get_max_threads();
    const double begin = sd_clock();

#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int i = 0; i < count; i++) {
        sd_device_enter(s->device);
        if (sd_clock() - begin < SECONDS)
            a[i].exec = dnn_build(s->handle, NULL, configs[a[i].number], &a[i].workspace);
    }
}

static bool
is_right(struct attempt *a, const char *key)
{
    double apart = has_room(a->trial, a->workspace) ? distance(a) : -1;

    if (apart < 0)
        sd_note(1, "cudnn: %s: engine %lld refuses, cannot be recorded, or wants more memory than there is", key, (long long)a->engine);
    else if (!(apart <= 1))
        sd_warn("cudnn", "%s: engine %lld is left out: %.1f times as far from our own kernel as rounding goes", key,
                (long long)a->engine, apart);
    return apart >= 0 && apart <= 1;
}

/* Of the proposals from `first` on those that are for us, best first, several engines among them. */
static int
to_try(struct trial *t, void *const *configs, int first, int end, struct attempt *a)
{
    int tried = 0;

    for (int i = first; i < end && tried < TRIED; i++) {
        int64_t engine = dnn_engine(configs[i]);
        int same = 0;

        for (int k = 0; k < tried; k++)
            same += a[k].engine == engine;
        if (engine >= 0 && same < SAME)
            a[tried++] = (struct attempt){ .trial = t, .number = i, .engine = engine };
    }
    return tried;
}

/* Moves those that are right to the front, in their order, with their plans; the other plans are ended.  Not timed: one will do. */
static int
keep_right(struct state *s, void *const *configs, struct attempt *a, int tried, const char *key, bool timed)
{
    int right = 0;

    if (timed)
        build_together(s, configs, a, tried);
    for (int i = 0; i < tried && (timed || !right); i++) {
        if (!timed)
            a[i].exec = dnn_build(s->handle, NULL, configs[a[i].number], &a[i].workspace);
        if (a[i].exec && is_right(&a[i], key))
            a[right++] = a[i];
        else if (a[i].exec)
            dnn.unmake(a[i].exec);
    }
    return right;
}

/* Of the proposals, the fastest that is right, or not timed the first: its plan becomes p's.  -1: none, or our own kernel is
 * faster.  What the library offers to fall back on, behind the preferred ones, is tried where none of these is right: it is slow, and
 * takes seconds to compile. */
static int
pick(struct state *s, struct plan *p, void *const *configs, int preferred, int count, const struct pack *pack, bool timed)
{
    struct trial t = { .state = s, .found = *pack, .again = *pack, .expected = *pack };
    struct attempt attempts[TRIED];
    struct tuning_way way[TRIED + 1];
    double begin = sd_clock();
    int tried, ways, best, chosen = -1;

    begin_trial(&t);
    tried = to_try(&t, configs, 0, preferred, attempts);
    ways = keep_right(s, configs, attempts, tried, p->key, timed);
    if (!ways) {
        tried = to_try(&t, configs, preferred, count, attempts);
        ways = keep_right(s, configs, attempts, tried, p->key, timed);
    }
    for (int i = 0; i < ways; i++)
        way[i] = (struct tuning_way){ attempt, &attempts[i], 0 };
    best = ways ? 0 : -1;
    if (timed && ways) {
        way[ways] = (struct tuning_way){ own_attempt, &t, 0 };
        best = tuning_race(s->device, way, ways + pack->own_timed);
    }
    if (best >= 0 && best < ways) {
        chosen = attempts[best].number;
        p->exec = attempts[best].exec;
        p->workspace = attempts[best].workspace;
        attempts[best].exec = NULL;
    }
    if (best >= 0)
        sd_note(2, "%s: %s %d of %d, %d tried, %d right, %.1f us, chosen in %.1f s", p->key, chosen < 0 ? "our own," : "engine", chosen,
                count, tried, ways, way[best].seconds * 1e6, sd_clock() - begin);
    else
        sd_note(2, "%s: none of %d engines, %.1f s", p->key, count, sd_clock() - begin);
    end_trial(&t);
    for (int i = 0; i < ways; i++)
        if (attempts[i].exec)
            dnn.unmake(attempts[i].exec);
    return chosen;
}

/* -- what was chosen ------------------------------------------------------------------------------------------------ */

/* The plan's text goes with the choice, so that the next process need not compile it. */
static void
save(struct state *s, const struct plan *p, const char *choice)
{
    struct sd_scope *scope = sd_scope_open();
    size_t length;
    char *text = p->exec ? dnn_text(scope, p->exec, &length) : NULL;

    if (text)
        tuning_save(s->device, "dnn", p->key, choice, text, length);
    sd_scope_close(scope);
}

static bool
use_saved(struct state *s, struct plan *p, const char *choice)
{
    struct sd_scope *scope = sd_scope_open();
    size_t length;
    char *text = tuning_load(scope, s->device, "dnn", p->key, choice, &length);

    if (text && !(p->exec = dnn_build_from(s->handle, NULL, text, length, &p->workspace)))
        sd_note(1, "cudnn: a plan that was kept is not taken, it is made again: %s", p->key);
    sd_scope_close(scope);
    return p->exec != NULL;
}

/* What was kept; false where the library does not offer it now. */
static bool
use_kept(struct state *s, struct plan *p, void *const *configs, int count, const char *kept)
{
    long long chosen, number;

    if (sscanf(kept, "%lld %lld", &chosen, &number) != 2 || chosen < -1 || chosen >= count)
        return false;
    if (chosen < 0)
        return number == -1;
    if (dnn_engine(configs[chosen]) != number || !(p->exec = dnn_build(s->handle, NULL, configs[chosen], &p->workspace)))
        return false;
    save(s, p, kept);
    return true;
}

/* The choice of another process, which was first, stands. */
static void
give_way(struct state *s, struct plan *p, void *const *configs, int count, const char *kept)
{
    void *own = p->exec;

    p->exec = NULL;
    if (use_saved(s, p, kept) || use_kept(s, p, configs, count, kept)) {
        if (own)
            dnn.unmake(own);
    } else
        p->exec = own;
}

/* Sets p->exec; leaves it NULL where there is no engine, or no memory to compare what one makes. */
static void
choose(struct state *s, struct plan *p, struct graph *g, const struct pack *pack)
{
    void *configs[MANY] = { NULL };
    const char *kept = tuning_find(s->device, "dnn", p->key);
    bool timed = !kept && tuning_wanted(s->device);
    size_t bytes = 0;
    int count, preferred, chosen;
    char text[64];

    if (kept && (strcmp(kept, "-1 -1") == 0 || use_saved(s, p, kept)))
        return;
    count = dnn_propose(g, configs, &preferred);
    for (int i = 0; i < pack->count; i++)
        bytes += pack->bytes[i];
    if (kept && use_kept(s, p, configs, count, kept))
        return;
    if (kept)
        sd_warn("cudnn", "the engine that was chosen before is not offered now, another is taken: %s: %s", p->key, kept);
    if (count == 0 || sd_device_free_bytes(s->device) <= 4 * bytes + (size_t)cudnn_workspace)    /* own_conv() has them once more */
        return;
    chosen = pick(s, p, configs, preferred, count, pack, timed);
    if (!timed)
        return;
    snprintf(text, sizeof text, "%d %lld", chosen, chosen < 0 ? -1LL : (long long)dnn_engine(configs[chosen]));
    kept = tuning_store(s->device, "dnn", p->key, text);
    if (strcmp(kept, text))
        give_way(s, p, configs, count, kept);
    else
        save(s, p, kept);
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

/* A plan for the graph, which is ended.  To choose its engine may make other plans: only then is there a place for it. */
struct plan *
dnn_new_plan(struct state *s, const char *key, struct graph *g, const struct pack *pack)
{
    struct plan made = { .key = strdup(key) };

    if (!made.key)
        sd_die("memory", "no room for a plan");
    if (!g->status)
        choose(s, &made, g, pack);
    else
        sd_note(2, "%s: %s refused, status %d", key, g->failed, g->status);
    dnn_end(g);
    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 64;
        s->plans = realloc(s->plans, s->room * sizeof *s->plans);
        if (!s->plans)
            sd_die("memory", "no room for %zu plans", s->room);
    }
    s->plans[s->count] = made;
    return &s->plans[s->count++];
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
    sd_device_launched(s->device, p->key);
    return true;
}

#endif
