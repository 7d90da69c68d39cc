/* sd-train-lora and sd-train-ti against 20 steps of diffusers, transformers and PEFT (tests/reference/train.py): the
 * same recorded batches, the same first values.  The loss of each step, and what was learned: over all down factors,
 * all up factors and all token rows, ||ours - theirs|| / ||theirs - start||.
 *
 * Each case also runs with faults (a rate times 1.01, a term of the gradient changed): those must be found. */
#include "../check.h"
#include "json.h"
#include "model/embedding.h"
#include "model/lora.h"

#include <unistd.h>

#define DATA "tests/data/train/"
enum { STEPS = 20 };
static const double loss_bound = 1e-4, change_bound = 1e-3;

static const struct tcase {
    const char *name, *model, *start, *replay;
    const char *token;          /* NULL: none is learned */
    const char *options;
} cases[] = {
    { "lora", "sd1", "sd1", "sd1", NULL, "--learning-rate 1e-3 --max-grad-norm 0.05" },
    { "lora_v", "sd2", "sd2", "sd2", NULL, "--learning-rate 1e-3 --snr-gamma 5" },
    { "ti", "sd1", NULL, "sd1.2", "sd1.2", "--num-vectors 2 --learning-rate 5e-3 --max-grad-norm 0" },
    { "pivotal", "sd1", "sd1", "sd1.1", "sd1.1", "--learning-rate 1e-3 --ti-learning-rate 5e-3" },
    { "accumulate", "sd1", "sd1", "sd1", NULL,
      "--learning-rate 2e-3 --gradient-accumulation-steps 2 --lr-scheduler cosine --lr-warmup-steps 3" },
    { "prodigy", "sd1", "sd1", "sd1.1", "sd1.1",
      "--optimizer prodigy --prodigy-d0 1e-4 --adam-beta2 0.99 --prodigy-use-bias-correction "
      "--prodigy-safeguard-warmup --ti-until 1" },
    { "wide", "sd1", "wide", "sd1", NULL,
      "--learning-rate 1e-3 --text-encoder-learning-rate 5e-4 --target-modules "
      "to_q,to_k,to_v,to_out.0,conv1,conv2,conv_shortcut,"
      "time_emb_proj,proj_in,downsamplers.0.conv,ff.net.0.proj --train-text-encoder" },
};

/* More options, which change what is computed by little: the comparison has to see it. */
static const struct fault {
    const char *name, *what, *options;
} faults[] = {
    { "lora", "the rate times 1.01", "--learning-rate 1.01e-3" },
    { "lora", "no weight decay", "--adam-weight-decay 0" },
    { "lora", "no clipping", "--max-grad-norm 0" },
    { "lora", "clipping at 0.3", "--max-grad-norm 0.3" },
    { "lora", "beta2 0.99", "--adam-beta2 0.99" },
    { "lora_v", "gamma 5.1", "--snr-gamma 5.1" },
    { "lora_v", "another layer of text states", "--clip-skip 1" },
    { "ti", "the rate times 1.01", "--learning-rate 5.05e-3" },
    { "pivotal", "the tokens' rate times 1.01", "--ti-learning-rate 5.05e-3" },
    { "pivotal", "the tokens stop a step later", "--ti-until 0.75" },
    { "accumulate", "warm-up one step longer", "--lr-warmup-steps 4" },
    { "accumulate", "a linear schedule", "--lr-scheduler linear" },
    { "prodigy", "without safeguard", "--no-prodigy-safeguard-warmup" },
    { "prodigy", "the multiplier times 1.01", "--learning-rate 1.01" },
    { "wide", "the text encoder's rate times 1.01", "--text-encoder-learning-rate 5.05e-4" },
};

struct found {
    int status;
    double loss, down, up, rows;        /* worst relative loss; changes, 0 where there is nothing */
    size_t factors;
};

static struct sd_scope *scope;
static char folder[] = "/tmp/sd-train-XXXXXX";

static int
run(const struct tcase *c, const char *more)
{
    const char *ti = c->start ? "lora" : "ti";
    char *command = sd_sprintf(scope,
                               "sd-train-%s -q --threads 1 --overwrite --model tests/data/models/%s --replay " DATA
                               "%s.replay.safetensors "
                               "--max-train-steps %d --log %s/log --output %s/out.safetensors %s",
                               ti, c->model, c->replay, STEPS, folder, folder, c->options);

    if (c->start)
        command = sd_sprintf(scope, "%s --rank 4 --init-lora " DATA "%s.start.safetensors", command, c->start);
    if (c->token)
        command =
            sd_sprintf(scope, "%s --placeholder-token '<new>' --init-embedding " DATA "%s.token.safetensors%s", command,
                       c->token, c->start ? sd_sprintf(scope, " --output-embedding %s/token.safetensors", folder) : "");
    if (getenv("SD_TEST_DEVICE"))       /* "cuda": a card, or the emulated one where PATH leads there */
        command = sd_sprintf(scope, "%s --device %s --dtype f32", command, getenv("SD_TEST_DEVICE"));
    return system(sd_sprintf(scope, "%s %s", command, more));
}

/* The worst relative difference of a step's loss; infinite when the log is not as long. */
static double
compare_losses(struct sd_safetensors *want)
{
    const struct sd_safetensor *t = sd_safetensors_find(want, "losses");
    FILE *log = fopen(sd_sprintf(scope, "%s/log", folder), "r");
    double worst = 0, losses[STEPS];
    char line[4096];
    int steps = 0;

    memcpy(losses, t->data, sizeof losses);
    while (log && fgets(line, sizeof line, log)) {
        json_t *j = sd_json_parse(scope, line, strlen(line), 0);
        double loss = NAN, d;
        int64_t step = 0;

        sd_json_real(j, "loss", &loss);
        sd_json_int(j, "step", 1, STEPS, &step);
        if (step != ++steps)
            return INFINITY;
        d = fabs(loss - losses[step - 1]) / losses[step - 1];
        if (!(d <= worst))
            worst = d;
    }
    if (log)
        fclose(log);
    return steps == STEPS ? worst : INFINITY;
}

struct sums {
    double difference, change;
};

static void
add(struct sums *s, const float *ours, double scale, const float *theirs, const float *start, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double d = scale * ours[i] - (double)theirs[i], c = (double)theirs[i] - (start ? start[i] : 0);

        s->difference += d * d;
        s->change += c * c;
    }
}

static const struct sd_lora_layer *
layer(const struct sd_lora *l, const char *path)
{
    for (size_t i = 0; i < l->count; i++)
        if (strcmp(l->layer[i].path, path) == 0)
            return &l->layer[i];
    return NULL;
}

/* The factor of the reference: "unet.a.b.lora_A.weight", "text_encoder.encoder..." (no text_model in transformers 5).
 */
static const float *
factor(struct sd_safetensors *want, const char *path, char which, size_t n)
{
    const char *text = "text_encoder.text_model.";
    const char *at =
        strncmp(path, text, strlen(text)) == 0 ? sd_sprintf(scope, "text_encoder.%s", path + strlen(text)) : path;
    struct sd_safetensor *t = sd_safetensors_find(want, sd_sprintf(scope, "%s.lora_%c.weight", at, which));

    if (!t || t->numel != n)
        return NULL;
    t->used = true;
    return sd_safetensor_f32(scope, t);
}

static bool
compare_factors(const struct tcase *c, struct sd_safetensors *want, struct found *f)
{
    struct sd_lora *ours = sd_lora_load(scope, sd_sprintf(scope, "%s/out.safetensors", folder));
    struct sd_lora *start = sd_lora_load(scope, sd_sprintf(scope, DATA "%s.start.safetensors", c->start));
    struct sums down = { 0, 0 }, up = { 0, 0 };

    if (!ours || !start || ours->count != start->count)
        return false;
    for (size_t i = 0; i < ours->count; i++) {
        const struct sd_lora_layer *l = &ours->layer[i], *first = layer(start, l->path);
        size_t downs = (size_t)(l->rank * l->in * l->kh * l->kw), ups = (size_t)(l->out * l->rank);
        const float *a = factor(want, l->path, 'A', downs), *b = factor(want, l->path, 'B', ups);

        if (!a || !b || !first || first->rank != l->rank || fabs(first->scale - l->scale) > 1e-6 * first->scale) {
            printf("# %s: %s\n", l->path, a && b ? "another scale than at the start" : "not in the reference");
            return false;
        }
        add(&down, l->down, 1, a, first->down, downs);
        add(&up, l->up, 1, b, NULL, ups);
        f->factors += 2;
    }
    f->down = sqrt(down.difference / down.change);
    f->up = sqrt(up.difference / up.change);
    return true;
}

static bool
compare_rows(const struct tcase *c, struct sd_safetensors *want, struct found *f)
{
    struct sd_embedding *ours =
        sd_embedding_load(scope, sd_sprintf(scope, "%s/%s.safetensors", folder, c->start ? "token" : "out"));
    struct sd_embedding *start = sd_embedding_load(scope, sd_sprintf(scope, DATA "%s.token.safetensors", c->token));
    struct sd_safetensor *rows = sd_safetensors_find(want, "rows");
    struct sums s = { 0, 0 };

    if (!ours || !start || !rows || rows->numel != (size_t)(ours->vectors * ours->width)
        || ours->vectors != start->vectors)
        return false;
    add(&s, ours->values, 1, sd_safetensor_f32(scope, rows), start->values, rows->numel);
    f->rows = sqrt(s.difference / s.change);
    rows->used = true;
    return true;
}

static struct found
compare(const struct tcase *c, const char *more)
{
    struct sd_safetensors *want = sd_safetensors_open(scope, sd_sprintf(scope, DATA "%s.safetensors", c->name));
    struct found f = { .status = run(c, more) };

    if (f.status == 0
        && (!want || (c->start && !compare_factors(c, want, &f)) || (c->token && !compare_rows(c, want, &f))))
        f.status = -1;
    f.loss = f.status == 0 ? compare_losses(want) : INFINITY;
    for (size_t i = 0; f.status == 0 && i < sd_safetensors_count(want); i++) {
        const struct sd_safetensor *t = sd_safetensors_at(want, i);

        if (!t->used && strcmp(t->name, "losses") != 0) {
            printf("# %s: not learned\n", t->name);
            f.status = -1;
        }
    }
    return f;
}

static bool
equal(const struct found *f)
{
    return f->status == 0 && f->loss <= loss_bound && f->down <= change_bound && f->up <= change_bound
           && f->rows <= change_bound;
}

/* Words: these cases alone, without the faults. */
static bool
asked(int argc, char **argv, const char *name)
{
    bool found = argc < 2;

    for (int i = 1; i < argc; i++)
        found |= strcmp(argv[i], name) == 0;
    return found;
}

int
main(int argc, char **argv)
{
    scope = sd_scope_open();
    if (!mkdtemp(folder))
        return 99;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct found f;

        if (!asked(argc, argv, cases[i].name))
            continue;
        f = compare(&cases[i], "");

        CHECK(equal(&f), "%s as the reference: loss %.1e, down %.1e, up %.1e, rows %.1e (%zu factors)", cases[i].name,
              f.loss, f.down, f.up, f.rows, f.factors);
        for (size_t k = 0; argc < 2 && k < sizeof faults / sizeof *faults; k++)
            if (strcmp(faults[k].name, cases[i].name) == 0) {
                f = compare(&cases[i], faults[k].options);
                CHECK(f.status == 0 && !equal(&f), "%s, %s: found, loss %.1e, down %.1e, up %.1e, rows %.1e",
                      cases[i].name, faults[k].what, f.loss, f.down, f.up, f.rows);
            }
    }
    if (system(sd_sprintf(scope, "rm -rf %s", folder)))
        printf("# %s is left\n", folder);
    sd_scope_close(scope);
    return check_done();
}
