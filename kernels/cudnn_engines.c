/* cudnn_engines.c - which engines cuDNN has for a graph, and which of them are for us; what tests ask of it without a card. */
#include "cudnn_internal.h"

#include <stdio.h>
#include <string.h>

#include "vendor.h"

/* Which engine: its number, or -1 where it is none for us. */
int64_t
dnn_engine(void *config)
{
    struct graph g = { .count = 0 };
    void *engine = dnn_make(&g, ENGINE, "an engine");
    int notes[NOTES];
    int64_t number = -1, found = 0, n;

    if (!engine || dnn.get(config, ENGINECFG_ENGINE, TYPE_DESCRIPTOR, 1, &n, &engine)
            || dnn.get(engine, ENGINE_GLOBAL_INDEX, TYPE_INT64, 1, &n, &number)
            || dnn.get(engine, ENGINE_NUMERICAL_NOTE, TYPE_NUMERICAL_NOTE, NOTES, &found, notes))
        number = -1;
    for (int64_t i = 0; i < found && i < NOTES; i++)
        if (notes[i] == NOTE_REDUCED_PRECISION_REDUCTION || notes[i] == NOTE_FFT || notes[i] == NOTE_NONDETERMINISTIC
                || (notes[i] >= NOTE_WINOGRAD && notes[i] <= NOTE_WINOGRAD + 3) || (notes[i] == NOTE_DOWN_CONVERT_INPUTS && !vendor_tf32))
            number = -1;
    dnn_end(&g);
    return number;
}

/* The configurations that the library proposes, best first; they live as long as g. */
int
dnn_propose(struct graph *g, void *configs[MANY], int *preferred)
{
    static const int modes[] = { HEUR_A, HEUR_FALLBACK };
    int total = 0;

    *preferred = 0;
    for (int m = 0; m < 2 && !g->status; m++) {
        void *heuristic = dnn_make(g, ENGINEHEUR, "a heuristic");
        int64_t found = 0;
        int first = total, most = MANY / 2;

        dnn_set_part(g, heuristic, ENGINEHEUR_OPERATION_GRAPH, g->graph);
        if (g->device)
            dnn_set_part(g, heuristic, ENGINEHEUR_DEVICEPROP, g->device);
        dnn_set_word(g, heuristic, ENGINEHEUR_MODE, TYPE_HEUR_MODE, modes[m]);
        dnn_finish(g, heuristic, "a heuristic");
        if (g->status) {                        /* this mode has nothing to say */
            g->status = 0;
            continue;
        }
        for (int i = 0; i < most; i++)
            configs[first + i] = dnn_make(g, ENGINECFG, "a configuration");
        if (!g->status && !dnn.get(heuristic, ENGINEHEUR_RESULTS, TYPE_DESCRIPTOR, most, &found, configs + first))
            total += (int)(found < most ? found : most);
        if (modes[m] == HEUR_A)
            *preferred = total;
    }
    return total;
}

/* Ends the plan where it cannot be used. */
static void *
usable(void *exec, bool ok, int64_t *workspace)
{
    int64_t n;

    if (ok && !dnn.finalize(exec) && !dnn.get(exec, EXECUTION_PLAN_WORKSPACE_SIZE, TYPE_INT64, 1, &n, workspace)
            && *workspace <= cudnn_workspace)
        return exec;
    dnn.unmake(exec);
    return NULL;
}

/* handle: of the card; else device: a described one */
static bool
set_place(void *exec, void *handle, void *device)
{
    return !(handle ? dnn.set(exec, EXECUTION_PLAN_HANDLE, TYPE_HANDLE, 1, &handle)
                    : dnn.set(exec, EXECUTION_PLAN_DEVICEPROP, TYPE_DESCRIPTOR, 1, &device));
}

void *
dnn_build(void *handle, void *device, void *config, int64_t *workspace)
{
    void *exec = NULL;

    if (dnn.make(EXECUTION_PLAN, &exec))
        return NULL;
    return usable(exec, set_place(exec, handle, device) && !dnn.set(exec, EXECUTION_PLAN_ENGINE_CONFIG, TYPE_DESCRIPTOR, 1, &config), workspace);
}

char *
dnn_text(struct sd_scope *s, void *exec, size_t *length)
{
    int64_t count = 0;
    char *text;

    if (dnn.get(exec, EXECUTION_PLAN_JSON, TYPE_CHAR, 0, &count, NULL) || count <= 0)
        return NULL;
    text = sd_alloc(s, (size_t)count + 1);
    if (dnn.get(exec, EXECUTION_PLAN_JSON, TYPE_CHAR, count, &count, text))
        return NULL;
    *length = (size_t)count;
    return text;
}

void *
dnn_build_from(void *handle, void *device, const char *text, size_t length, int64_t *workspace)
{
    void *exec = NULL;

    if (dnn.make(EXECUTION_PLAN, &exec))
        return NULL;
    return usable(exec, !dnn.set(exec, EXECUTION_PLAN_JSON, TYPE_CHAR, (int64_t)length, text)
                            && set_place(exec, handle, device), workspace);
}

/* -- for tests ------------------------------------------------------------------------------------------------------ */

/* A card of which only the description is here; NULL where this version does not take it. */
static void *
described_device(struct graph *g, const char *json)
{
    void *d = dnn_make(g, DEVICEPROP, "a device");

    dnn_set(g, d, DEVICEPROP_JSON, TYPE_CHAR, (int64_t)strlen(json) + 1, json);
    dnn_finish(g, d, "a device");
    return d;
}

/* Is the engine compiled when its plan is made?  That takes long, and a card. */
static bool
is_compiled(void *config)
{
    struct graph g = { .count = 0 };
    void *engine = dnn_make(&g, ENGINE, "an engine");
    int notes[BEHAVIORS] = { 0 };
    int64_t found = 0, n;
    bool yes = !engine || dnn.get(config, ENGINECFG_ENGINE, TYPE_DESCRIPTOR, 1, &n, &engine)
               || dnn.get(engine, ENGINE_BEHAVIOR_NOTE, TYPE_BEHAVIOR_NOTE, BEHAVIORS, &found, notes);

    for (int64_t i = 0; i < found && i < BEHAVIORS; i++)
        yes |= notes[i] == BEHAVIOR_RUNTIME_COMPILATION;
    dnn_end(&g);
    return yes;
}

/* Is the plan made again from its text, with the same workspace? */
static bool
comes_again(void *exec, void *device, int64_t workspace)
{
    struct sd_scope *s = sd_scope_open();
    size_t length = 0;
    char *text = dnn_text(s, exec, &length);
    int64_t as_much = -1;
    void *again = text ? dnn_build_from(NULL, device, text, length, &as_much) : NULL;

    if (again)
        dnn.unmake(again);
    sd_scope_close(s);
    return again && as_much == workspace;
}

static void
count_engines(struct graph *g, const char *json, struct cudnn_asked *asked)
{
    void *configs[MANY] = { NULL };
    int preferred;

    g->device = described_device(g, json);
    asked->proposed = dnn_propose(g, configs, &preferred);
    for (int i = 0; i < asked->proposed; i++) {
        int64_t workspace, n;

        if (dnn_engine(configs[i]) < 0)
            continue;
        asked->kept++;
        if (dnn.get(configs[i], ENGINECFG_WORKSPACE_SIZE, TYPE_INT64, 1, &n, &workspace))
            continue;
        asked->within += workspace <= cudnn_workspace;
        if (workspace > asked->wanted)
            asked->wanted = workspace;
    }
    for (int i = 0; i < asked->proposed && !asked->built; i++) {
        int64_t workspace;
        void *exec = NULL;

        if (dnn_engine(configs[i]) >= 0 && !is_compiled(configs[i]))
            exec = dnn_build(NULL, g->device, configs[i], &workspace);

        if (exec) {
            asked->built = true;
            asked->workspace = workspace;
            asked->again = comes_again(exec, g->device, workspace);
            dnn.unmake(exec);
        }
    }
}

bool
dnn_read_back(struct graph *g, const char *json, struct cudnn_asked *asked, const char **why)
{
    static char text[128];
    bool ok = !g->status;

    memset(asked, 0, sizeof *asked);
    asked->tensors = g->tensors;
    asked->operations = g->operations;
    for (int i = 0; i < g->tensors && ok; i++) {
        struct cudnn_tensor *t = &asked->tensor[i];
        int64_t n;

        ok = !dnn.get(g->tensor[i], TENSOR_UNIQUE_ID, TYPE_INT64, 1, &n, &t->uid)
             && !dnn.get(g->tensor[i], TENSOR_DATA_TYPE, TYPE_DATA_TYPE, 1, &n, &t->type)
             && !dnn.get(g->tensor[i], TENSOR_DIMENSIONS, TYPE_INT64, 4, &n, t->dims)
             && !dnn.get(g->tensor[i], TENSOR_STRIDES, TYPE_INT64, 4, &n, t->strides)
             && !dnn.get(g->tensor[i], TENSOR_IS_VIRTUAL, TYPE_BOOLEAN, 1, &n, &t->hidden)
             && !dnn.get(g->tensor[i], TENSOR_IS_BY_VALUE, TYPE_BOOLEAN, 1, &n, &t->by_value);
    }
    if (ok && json)
        count_engines(g, json, asked);
    ok = ok && !g->status;
    snprintf(text, sizeof text, "%s refused, status %d", g->failed ? g->failed : "reading back", g->status);
    *why = ok ? NULL : text;
    dnn_end(g);
    return ok;
}
