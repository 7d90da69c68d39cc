/* sample.c - sd-sample against diffusers: final latents and pixels of tests/data/sample (tests/reference/sample.py).
 *
 * The program itself is run, as its users run it; it is looked for on the PATH. */
#include "../check.h"
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

/* Status of sd-sample with the arguments of a case. */
static int
run(struct sd_scope *s, const char *model, const json_t *args)
{
    const char **argv = sd_alloc_array(s, json_array_size(args) + 16, sizeof *argv);
    size_t n = 0;
    pid_t child;
    int status;

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
    if (posix_spawnp(&child, argv[0], NULL, NULL, (char *const *)(uintptr_t)argv, environ) != 0
        || waitpid(child, &status, 0) < 0)
        return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
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

/* 1 is 1/255. */
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
    CHECK(worst <= 1 && inside, "%s: pixels within 1/255: %d, %zu of %zu differ, %zu of them neither black nor white", name, worst, differ,
          want->numel, inside);
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
        int status = run(s, json_string_value(json_object_get(c, "model")), json_object_get(c, "args"));

        if (status != 0) {
            CHECK(false, "%s: status %d", name, status);
            continue;
        }
        compare_latents(s, name, expected);
        compare_pixels(s, name, expected);
    }
    json_decref(cases);
}

int
main(void)
{
    struct sd_scope *s = sd_scope_open();

    if (!mkdtemp(folder) || !CHECK(lay_models(s) == 0, "models laid out"))
        return 1;
    run_cases(s, "");
    if (access("examples/miniature/model/unet/config.json", F_OK) != 0)
        check_skip("the miniature against diffusers", "examples/miniature/model is not here");
    else if (access(SAMPLE "miniature.cases.json", F_OK) != 0)
        check_skip("the miniature against diffusers", "no stored values: tests/reference/sample.py examples/miniature/model");
    else
        run_cases(s, "miniature.");
    if (shell(s, "rm -r %s", folder) != 0)
        printf("# %s is left\n", folder);
    sd_scope_close(s);
    return check_done();
}
