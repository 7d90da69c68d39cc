/* sample.c - sd-sample against diffusers: final latents and pixels of tests/data/sample (tests/reference/sample.py).
 *
 * The program itself is run, as its users run it; it is looked for on the PATH. */
#include "../check.h"
#include "diffusion/start.h"
#include "image.h"
#include "json.h"
#include "safetensors.h"

#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SAMPLE "tests/data/sample/"

/* f32 sums of a whole pass differ by a few 1e-7 per op, and six guided steps multiply that by up to 7.5 each. */
static const double bound = 1e-4;

extern char **environ;
static char folder[] = "/tmp/sd-test-XXXXXX";

static int
shell(struct sd_scope *s, const char *format, const char *argument)
{
    return system(sd_sprintf(s, format, argument, argument, argument, argument, argument));
}

/* The tiny models of tests/data/models under a text encoder that fits the tiny tokenizer. */
static int
lay_models(struct sd_scope *s)
{
    int bad = shell(s, "cp -r tests/data/models/sd1 tests/data/models/sd2 %s", folder);

    bad |= shell(s, "rm -r %s/sd1/text_encoder %s/sd2/text_encoder", folder);
    bad |= shell(s, "cp -r " SAMPLE "sd1 " SAMPLE "sd2 %s", folder);
    bad |= shell(s, "for m in sd1 sd2; do cp tests/data/tokenizer/tiny/vocab.json tests/data/tokenizer/tiny/merges.txt "
                    "%s/$m/tokenizer; done", folder);
    return bad;
}

static const char *
argument(struct sd_scope *s, const char *word, const char *model)
{
    if (strcmp(word, "NOISE") == 0)
        return sd_sprintf(s, SAMPLE "noise-%s.safetensors", model);
    return strcmp(word, "INIT") == 0 ? SAMPLE "init.png" : word;
}

/* Status of a program; argv ends with NULL. */
static int
run(const char *const *argv)
{
    pid_t child;
    int status;

    if (posix_spawnp(&child, argv[0], NULL, NULL, (char *const *)(uintptr_t)argv, environ) != 0
        || waitpid(child, &status, 0) < 0)
        return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int
run_case(struct sd_scope *s, const char *model, const json_t *args)
{
    const char **argv = sd_alloc_array(s, json_array_size(args) + 16, sizeof *argv);
    size_t n = 0;

    argv[n++] = "sd-sample";
    argv[n++] = "-q";
    argv[n++] = "--overwrite";
    argv[n++] = "--model";
    argv[n++] = strcmp(model, "miniature") == 0 ? "examples/miniature/model" : sd_sprintf(s, "%s/%s", folder, model);
    argv[n++] = "--save-latents";
    argv[n++] = sd_sprintf(s, "%s/latents.safetensors", folder);
    argv[n++] = "--output-dir";
    argv[n++] = sd_sprintf(s, "%s/pictures", folder);
    for (size_t i = 0; i < json_array_size(args); i++)
        argv[n++] = argument(s, json_string_value(json_array_get(args, i)), model);
    return run(argv);
}

static void
compare_latents(struct sd_scope *s, const char *name, const struct sd_safetensors *expected)
{
    struct sd_safetensor *want = sd_safetensors_find(expected, sd_sprintf(s, "%s.latents", name)), *got;
    struct sd_safetensors *f = sd_safetensors_open(s, sd_sprintf(s, "%s/latents.safetensors", folder));
    double d;

    if (!want || !f || !(got = sd_safetensors_get(f, "latents", 4, want->shape))) {
        CHECK(false, "%s: latents: %s", name, want ? sd_reason() : "no stored ones");
        return;
    }
    d = check_distance(sd_safetensor_f32(s, got), sd_safetensor_f32(s, want), want->numel);
    CHECK(d <= bound, "%s: latents within %.0e: %.1e", name, bound, d);
}

/* 1 is 1/255; where rounding is right, hardly any differ at all. */
static void
compare_pixels(struct sd_scope *s, const char *name, const struct sd_safetensors *expected)
{
    struct sd_safetensor *want = sd_safetensors_find(expected, sd_sprintf(s, "%s.pixels", name));
    int worst = 0;
    size_t differ = 0, inside = 0;

    if (!want)
        return;
    for (int64_t i = 0; i < want->shape[0]; i++) {
        struct sd_image *image = sd_image_load(s, sd_sprintf(s, "%s/pictures/%05lld.png", folder, (long long)i));
        size_t bytes = (size_t)(want->shape[1] * want->shape[2] * 3);
        const uint8_t *stored = (const uint8_t *)want->data + (size_t)i * bytes;

        if (!image || image->height != want->shape[1] || image->width != want->shape[2]) {
            CHECK(false, "%s: picture %lld: %s", name, (long long)i, image ? "another size" : sd_reason());
            return;
        }
        for (size_t k = 0; k < bytes; k++) {
            int d = abs(image->data[k] - stored[k]);

            worst = d > worst ? d : worst;
            differ += d != 0;
            inside += stored[k] > 0 && stored[k] < 255;
        }
    }
    CHECK(worst <= 1 && inside && differ * 500 <= want->numel, "%s: pixels within 1/255: %d, %zu of %zu differ, %zu of them neither black nor white",
          name, worst, differ, want->numel, inside);
}

static void
run_cases(struct sd_scope *s, const char *stem)
{
    json_t *cases = json_load_file(sd_sprintf(s, SAMPLE "%scases.json", stem), 0, NULL);
    struct sd_safetensors *expected = sd_safetensors_open(s, sd_sprintf(s, SAMPLE "%sexpected.safetensors", stem));

    if (!CHECK(cases && expected, "%scases: stored", stem))
        return;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i);
        const char *name = json_string_value(json_object_get(c, "name"));
        int status = run_case(s, json_string_value(json_object_get(c, "model")), json_object_get(c, "args"));

        if (status != 0) {
            CHECK(false, "%s: status %d", name, status);
            continue;
        }
        compare_latents(s, name, expected);
        compare_pixels(s, name, expected);
    }
    json_decref(cases);
}

/* -- truths -------------------------------------------------------------------------------------------------------- */

/* ||a - b|| / ||b|| of final latents in two files, from picture `first` of b on; infinite when they cannot be compared.
 */
static double
distance(struct sd_scope *s, const char *a, const char *b, int64_t first)
{
    struct sd_safetensors *f = sd_safetensors_open(s, sd_sprintf(s, "%s/%s", folder, a));
    struct sd_safetensors *g = sd_safetensors_open(s, sd_sprintf(s, "%s/%s", folder, b));
    struct sd_safetensor *x = f ? sd_safetensors_find(f, "latents") : NULL,
                         *y = g ? sd_safetensors_find(g, "latents") : NULL;
    size_t at;

    if (!x || !y || x->numel / (size_t)x->shape[0] != y->numel / (size_t)y->shape[0])
        return INFINITY;
    at = (size_t)first * (y->numel / (size_t)y->shape[0]);
    return at + x->numel > y->numel ? INFINITY
                                    : check_distance(sd_safetensor_f32(s, x), sd_safetensor_f32(s, y) + at, x->numel);
}

/* Final latents of a model in the folder, into the file `to` there, with up to six more arguments. */
static void
draw(struct sd_scope *s, const char *to, const char *model, const char *const *more)
{
    const char *argv[32] = { "sd-sample",
                             "-q",
                             "--overwrite",
                             "--model",
                             sd_sprintf(s, "%s/%s", folder, model),
                             "--save-latents",
                             sd_sprintf(s, "%s/%s", folder, to),
                             "--prompt",
                             "a photo of the dog",
                             "--num-inference-steps",
                             "4",
                             "--sampler",
                             "euler_a",
                             "--guidance-scale",
                             "3" };
    size_t n = 15;

    while (*more)
        argv[n++] = *more++;
    CHECK(run(argv) == 0, "%s: drawn", to);
}
#define DRAW(s, to, model, ...) draw(s, to, model, (const char *const[]){ __VA_ARGS__, NULL })

static void
adapters_merged(struct sd_scope *s, const char *model)
{
    const char *lora = sd_sprintf(s, "tests/data/lora/%s.kohya.safetensors", model),
               *merged = sd_sprintf(s, "%s/merged", folder);
    double d, base;

    CHECK(run((const char *const[]){ "sd-merge", "-q", "--overwrite", "--model", sd_sprintf(s, "%s/%s", folder, model),
                                     "--save-dtype", "f32", "--output", merged, lora, NULL })
              == 0,
          "%s: merged", model);
    DRAW(s, "base", model, "--seed", "3");
    DRAW(s, "adapted", model, "--seed", "3", "--lora", lora);
    DRAW(s, "merged-latents", "merged", "--seed", "3");
    d = distance(s, "adapted", "merged-latents", 0);
    base = distance(s, "base", "merged-latents", 0);
    CHECK(d <= 1e-5 && base > 1e-2, "%s: adapters beside the weights and merged into them: %.1e (without: %.1e)", model,
          d, base);
}

/* Where kernels are chosen by shape, a batch may round otherwise than a picture alone; at these sizes it does not. */
static void
batches(struct sd_scope *s, const char *model)
{
    double worst = 0, apart;

    DRAW(s, "batch", model, "--seed", "10", "--num-images", "3", "--batch-size", "3");
    DRAW(s, "singly", model, "--seed", "10", "--num-images", "3");
    worst = distance(s, "batch", "singly", 0);
    CHECK(worst <= 2e-6, "%s: a batch of 3 against one at a time: %.1e", model, worst);
    for (int i = 0; i < 3; i++) {
        DRAW(s, "one", model, "--seed", sd_sprintf(s, "%d", 10 + i));
        apart = distance(s, "one", "singly", i);
        CHECK(apart == 0, "%s: picture %d of seed 10 is picture 0 of seed %d: %.1e", model, i, 10 + i, apart);
    }
    CHECK(distance(s, "one", "singly", 0) > 0.1, "%s: and not picture 0", model);
}

static void
torch_noise(struct sd_scope *s)
{
    struct sd_safetensors *f = sd_safetensors_open(s, SAMPLE "expected.safetensors");
    struct sd_safetensor *t = f ? sd_safetensors_find(f, "torch.noise") : NULL;
    json_t *config = json_object();
    struct sd_start start = {
        .sampler = sd_sampler_new(s, config, "ddim", 4, NULL), .torch = true, .seed = 3, .pictures = 3
    };
    struct sd_start_picture p;
    double worst = 0;
    float *x;

    if (!CHECK(t && start.sampler, "PyTorch's noise: stored"))
        return;
    start.numel = t->numel;
    x = sd_alloc_array(s, t->numel, sizeof *x);
    sd_start_picture(&p, &start, 2, x);         /* seed 3 + 2 */
    for (size_t i = 0; i < t->numel; i++)
        worst = fmax(worst, fabs((double)x[i] - ((const float *)t->data)[i]));
    CHECK(worst <= 2e-6, "PyTorch's start noise within 2e-6: %.1e", worst);
    json_decref(config);
}

int
main(void)
{
    struct sd_scope *s = sd_scope_open();

    setenv("OMP_NUM_THREADS", "1", 0);      /* the models are tiny: more threads only wait for each other */
    if (!mkdtemp(folder) || !CHECK(lay_models(s) == 0, "models laid out"))
        return 1;
    run_cases(s, "");
    if (access("examples/miniature/model/unet/config.json", F_OK) != 0)
        check_skip("the miniature against diffusers", "examples/miniature/model is not here");
    else if (access(SAMPLE "miniature.cases.json", F_OK) != 0)
        check_skip("the miniature against diffusers",
                   "no stored values: tests/reference/sample.py examples/miniature/model");
    else
        run_cases(s, "miniature.");
    torch_noise(s);
    adapters_merged(s, "sd1");
    adapters_merged(s, "sd2");
    batches(s, "sd1");
    batches(s, "sd2");
    if (shell(s, "rm -r %s", folder) != 0)
        printf("# %s is left\n", folder);
    sd_scope_close(s);
    return check_done();
}
