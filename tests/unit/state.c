/* state: everything comes back, nothing of another run, nothing damaged; replay files likewise. */
#include "../check.h"
#include "safetensors.h"
#include "train/replay.h"
#include "train/state.h"

#include <unistd.h>

static struct sd_scope *s;
static const char *path;

struct run {
    struct sd_trainables *t;
    struct sd_optimizer *o;
    json_t *settings;
};

static struct run
new_run(enum sd_optimizer_kind kind, int64_t rows, float value)
{
    struct run r = { .t = sd_trainables_new(s), .settings = json_pack("{s:i, s:s}", "rank", 4, "optimizer", "x") };
    struct sd_optimizer_options options = {
        .kind = kind, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .d0 = 1e-6, .d_coef = 1
    };

    sd_on_close(s, (void (*)(void *))json_decref, r.settings);
    sd_trainables_add(r.t, "unet", "a", 2, (int64_t[]){ rows, 5 });
    sd_trainables_add(r.t, "tokens", "b", 1, (int64_t[]){ 3 });
    sd_trainables_allocate(r.t);
    r.o = sd_optimizer_new(r.t, &options);
    for (size_t i = 0; i < r.t->count; i++) {
        r.t->value[i] = value + (float)i;
        for (int b = 0; b < r.o->buffers; b++)
            r.o->buffer[b][i] = value * (float)(b + 2) - (float)i;
    }
    for (int g = 0; g < r.t->groups; g++)
        for (int k = 0; k < SD_MAX_SCALARS; k++)
            r.o->scalar[g][k] = value / 3 + g * 10 + k;
    return r;
}

static bool
same(const struct run *a, const struct run *b)
{
    size_t bytes = a->t->count * sizeof(float);
    bool equal = memcmp(a->t->value, b->t->value, bytes) == 0
                 && memcmp(a->o->scalar, b->o->scalar, sizeof(double) * (size_t)a->t->groups * SD_MAX_SCALARS) == 0;

    for (int k = 0; k < a->o->buffers; k++)
        equal &= memcmp(a->o->buffer[k], b->o->buffer[k], bytes) == 0;
    return equal;
}

static void
states(void)
{
    struct run a = new_run(SD_PRODIGY, 4, 2.5f), b = new_run(SD_PRODIGY, 4, 0), other;
    int64_t step = 0;
    int whole = 0;
    char *bytes;
    FILE *f;
    long size;

    CHECK(sd_state_load(path, b.t, b.o, &step, b.settings) == 0, "no state is no error");
    CHECK(sd_state_save(path, a.t, a.o, 123456789012, a.settings) == 0, "saved");
    CHECK(sd_state_load(path, b.t, b.o, &step, b.settings) == 1 && step == 123456789012 && same(&a, &b),
          "and everything is back");
    other = new_run(SD_PRODIGY, 4, 0);
    json_object_set_new(other.settings, "rank", json_integer(8));
    json_object_set_new(other.settings, "seed", json_integer(1));
    json_object_del(other.settings, "optimizer");
    CHECK(sd_state_load(path, other.t, other.o, &step, other.settings) == -2
              && strstr(sd_reason(), "rank: 4 in the state, 8 now")
              && strstr(sd_reason(), "seed: absent in the state, 1 now")
              && strstr(sd_reason(), "optimizer: \"x\" in the state, absent now"),
          "other settings: %s", sd_reason());
    CHECK(!same(&a, &other), "nothing was taken from it");
    other = new_run(SD_PRODIGY, 5, 0);
    CHECK(sd_state_load(path, other.t, other.o, &step, other.settings) == -2, "other parameters: %s", sd_reason());
    f = fopen(path, "rb");
    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);
    bytes = sd_alloc(s, (size_t)size);
    if (fread(bytes, 1, (size_t)size, f) != (size_t)size)
        exit(99);
    fclose(f);
    for (long at = 0; at < size; at++) {        /* each byte, changed */
        struct run c = new_run(SD_PRODIGY, 4, 0);

        bytes[at] ^= 1;
        f = fopen(path, "wb");
        fwrite(bytes, 1, (size_t)size, f);
        fclose(f);
        bytes[at] ^= 1;
        if (sd_state_load(path, c.t, c.o, &step, c.settings) == 1 && !(same(&a, &c) && step == 123456789012)) {
            printf("# byte %ld of %ld\n", at, size);
            whole++;
        }
    }
    CHECK(!whole, "of %ld bytes none can be changed unnoticed", size);
    whole = 0;
    for (long length = 0; length < size; length += 7) {
        f = fopen(path, "wb");
        fwrite(bytes, 1, (size_t)length, f);
        fclose(f);
        whole += sd_state_load(path, b.t, b.o, &step, b.settings) != -1;
    }
    CHECK(!whole, "nor cut: %s", sd_reason());
}

/* -- replay ------------------------------------------------------------------------------------------------------ */

static struct sd_replay *
replay(const char *leave_out, const char *wrong, enum sd_dtype dtype)
{
    static const float values[2 * 4 * 3 * 2];
    static const int64_t integers[2 * 5];
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);

    for (int k = 0; k < 3; k++)
        for (int i = 0; i < 4; i++) {
            static const char *const names[] = { "latents", "noise", "timesteps", "input_ids" };
            const char *name = sd_sprintf(s, "step_%04d.%s", k, names[i]);

            if (leave_out && strcmp(name, leave_out) == 0)
                continue;
            if (wrong && strcmp(name, wrong) == 0)
                sd_safetensors_add(w, name, dtype, 1, (int64_t[]){ 3 }, integers);
            else if (i < 2)
                sd_safetensors_add(w, name, SD_F32, 4, (int64_t[]){ 2, 4, 3, 2 }, values);
            else
                sd_safetensors_add(w, name, SD_I64, i - 1, (int64_t[]){ 2, 5 }, integers);
        }
    if (sd_safetensors_save(w, path) < 0)
        exit(99);
    return sd_replay_open(s, path);
}

static void
replays(void)
{
    struct sd_replay *r = replay(NULL, NULL, SD_F32);
    struct sd_replay_step step;

    CHECK(r && r->count == 3 && sd_replay_step(r, s, 2, &step) == 0 && step.batch == 2 && step.channels == 4
              && step.height == 3 && step.width == 2 && step.length == 5,
          "three recorded micro-batches");
    CHECK(r && sd_replay_step(r, s, 3, &step) < 0 && strstr(sd_reason(), "step_0003.latents: not in the file"),
          "no fourth: %s", sd_reason());
    CHECK(!replay("step_0001.noise", NULL, SD_F32) && strstr(sd_reason(), "step_0001.noise"), "%s", sd_reason());
    CHECK(!replay("step_0002.latents", NULL, SD_F32), "a step that is not whole: %s", sd_reason());
    CHECK(!replay(NULL, "step_0001.timesteps", SD_F32), "%s", sd_reason());
    CHECK(!replay(NULL, "step_0001.timesteps", SD_I64), "%s", sd_reason());
    CHECK(!replay(NULL, "step_0000.latents", SD_F32), "%s", sd_reason());
}

int
main(void)
{
    char folder[] = "/tmp/sd-state-XXXXXX";

    s = sd_scope_open();
    if (!mkdtemp(folder))
        return 99;
    path = sd_sprintf(s, "%s/state", folder);
    states();
    replays();
    unlink(path);
    rmdir(folder);
    sd_scope_close(s);
    return check_done();
}
