/* Options: understood, in range and used, or status 2 and one line. */
#include "../check.h"
#include "../child.h"
#include "json.h"
#include "opt.h"

static int
program(void *argument)
{
    static int64_t resolution = 512, size;
    static double rate = 1e-4;
    static const char *sampler = "ddim", *output;
    static struct sd_list prompts;
    static bool upscale = true;
    static const struct sd_opt options[] = {
        { 0, "resolution", SD_OPT_INT, &resolution, 64, 4096, "PIXELS", "side of the square (512)" },
        { 'r', "rate", SD_OPT_REAL, &rate, 0, 1, "RATE", "how fast (1e-4)" },
        { 0, "sampler", SD_OPT_CHOICE, &sampler, 0, 0, "ddim|euler|euler_a", "which (ddim)" },
        { 'p', "prompt", SD_OPT_LIST, &prompts, 0, 0, "TEXT", "what to draw" },
        { 0, "output", SD_OPT_TEXT, &output, 0, 0, "FILE", "where to" },
        { 0, "chunk", SD_OPT_SIZE, &size, 0, 0, "SIZE", "bytes" },
        { 0, "upscale", SD_OPT_FLAG, &upscale, 0, 0, NULL, "enlarge small ones" },
        { 0 }
    };
    char *words[32] = { (char *)"/usr/bin/sd-test" }, **argv = words;
    int argc = 1;
    json_t *settings;

    for (char *w = strtok(argument, " "); w; w = strtok(NULL, " "))
        words[argc++] = w;
    sd_options(&argc, &argv, options, SD_OPT_RECORDS | SD_OPT_COMPUTE | SD_OPT_SEED | SD_OPT_OVERWRITE, "[file ...]",
               "Tests.");
    settings = sd_options_json((const char *[]){ "chunk", NULL });
    printf("%s", sd_json_dump(NULL, settings, 0));
    json_decref(settings);
    for (int i = 1; i < argc; i++)
        printf(" <%s>", argv[i]);
    printf(" size %lld memory %lld verbosity %d output %s given %d%d threads %d", (long long)size,
           (long long)sd_shared.memory, sd_verbosity, output ? output : "-", sd_option_given("rate"),
           sd_option_given("sampler"), (int)sd_shared.threads);
    return sd_finish(0);
}

#define SETTINGS "\"rate\":0.0001,\"resolution\":512,\"sampler\":\"ddim\",\"seed\":0,\"upscale\":true}"
#define REST " size 0 memory 0 verbosity 0 output - given 00 threads 0"

/* status 0: the whole of stdout; else the whole of stderr behind "sd-test: ". */
static const struct { const char *words; int status; const char *expected;
} cases[] = {
    { "", 0, "{" SETTINGS REST },
    { "a -- --rate -x", 0, "{" SETTINGS " <a> <--rate> <-x>" REST },
    { "a - b", 0, "{" SETTINGS " <a> <-> <b>" REST },
    { "a --resolution 64 b --resolution=65 --no-upscale -p x --prompt=y --sampler euler --seed 7 --dtype f32", 0,
      "{\"dtype\":\"f32\",\"prompt\":[\"x\",\"y\"],\"rate\":0.0001,\"resolution\":65,\"sampler\":\"euler\",\"seed\":7,"
      "\"upscale\":false} <a> <b>"
      " size 0 memory 0 verbosity 0 output - given 01 threads 0" },
    { "-vv -r.5 --memory 8G --chunk 1.5k --output x --threads 2", 0,
      "{\"rate\":0.5,\"resolution\":512,\"sampler\":\"ddim\",\"seed\":0,\"upscale\":true}"
      " size 1536 memory 8589934592 verbosity 2 output x given 10 threads 2" },
    { "-qjk", 0, "{" SETTINGS " size 0 memory 0 verbosity -1 output - given 00 threads 0" },
    { "--config good.json", 0,
      "{\"prompt\":[\"from "
      "file\"],\"rate\":1.0,\"resolution\":100,\"sampler\":\"euler_a\",\"seed\":0,\"upscale\":false}"
      " size 0 memory 1048576 verbosity 0 output - given 11 threads 0" },
    { "-p mine --config good.json --resolution 200", 0,
      "{\"prompt\":[\"mine\"],\"rate\":1.0,\"resolution\":200,\"sampler\":\"euler_a\",\"seed\":0,\"upscale\":false}"
      " size 0 memory 1048576 verbosity 0 output - given 11 threads 0" },
    { "--version", 0, "sd-test " SD_VERSION "\n" },
    { "--resolution 63", 2, "--resolution: expected 64 to 4096, found 63" },
    { "--resolution 4097", 2, "--resolution: expected 64 to 4096, found 4097" },
    { "--resolution 64x", 2, "--resolution: expected an integer, found \"64x\"" },
    { "--resolution 64.0", 2, "--resolution: expected an integer, found \"64.0\"" },
    { "--resolution=", 2, "--resolution: expected an integer, found \"\"" },
    { "--resolution 99999999999999999999", 2, "--resolution: expected 64 to 4096, found 99999999999999999999" },
    { "--resolution", 2, "--resolution: needs a value: PIXELS" },
    { "-r", 2, "-r: needs a value: RATE" },
    { "--rate 2", 2, "--rate: expected 0 to 1, found 2" },
    { "--rate 1.0000001", 2, "--rate: expected 0 to 1, found 1.0000001" },
    { "--rate 1e999", 2, "--rate: expected 0 to 1, found 1e999" },
    { "--output=", 2, "--output: expected FILE, found \"\"" },
    { "--config=", 2, "--config: expected FILE, found \"\"" },
    { "--config empty.json", 2, "empty.json: output: expected FILE, found \"\"" },
    { "--rate nan", 2, "--rate: expected 0 to 1, found nan" },
    { "--rate 0x1", 2, "--rate: expected a number, found \"0x1\"" },
    { "--sampler eule", 2, "--sampler: expected ddim|euler|euler_a, found \"eule\"" },
    { "--sampler ddim|euler", 2, "--sampler: expected ddim|euler|euler_a, found \"ddim|euler\"" },
    { "--memory 8X", 2, "--memory: expected a size such as 8G, found \"8X\"" },
    { "--memory 1.5", 2, "--memory: expected a size such as 8G, found \"1.5\"" },
    { "--memory -1", 2, "--memory: expected a size such as 8G, found \"-1\"" },
    { "--memory 99999999999G", 2, "--memory: expected a size such as 8G, found \"99999999999G\"" },
    { "--device gpu", 2, "--device: expected auto, cpu, cuda or cuda:N, found \"gpu\"" },
    { "--device cuda:x", 2, "--device: expected auto, cpu, cuda or cuda:N, found \"cuda:x\"" },
    { "--reslution 5", 2, "--reslution: unknown option, did you mean --resolution?" },
    { "--resol 5", 2, "--resol: unknown option, did you mean --resolution?" },
    { "-x", 2, "-x: unknown option (--help lists them)" },
    { "--upscale=yes", 2, "--upscale: takes no value" },
    { "--no-resolution", 2, "--no-resolution: unknown option, did you mean --resolution?" },
    { "--help=xml", 2, "--help: expected --help or --help=json" },
    { "--config none", 2, "none: No such file or directory" },
    { "--config array.json", 2, "array.json: expected an object, found an array" },
    { "--config unknown.json", 2, "unknown.json: resolutions: unknown option, did you mean --resolution?" },
    { "--config type.json", 2, "type.json: resolution: expected an integer, found true" },
    { "--config natural.json", 0, "{\"prompt\":[\"5\",\"x\",\"0.1\"],\"rate\":0.25,\"resolution\":100,"
                                  "\"sampler\":\"ddim\",\"seed\":0,\"upscale\":true} size 4096 memory 2048 verbosity 1"
                                  " output 64 given 10 threads 2" },
    { "--config number.json", 2, "number.json: resolution: expected an integer, found \"100.5\"" },
    { "--config flag.json", 2, "flag.json: upscale: expected true or false, found an integer" },
    { "--config null.json", 2, "null.json: output: expected a text, found null" },
    { "--config size.json", 2, "size.json: memory: expected a size such as 8G, found \"-1\"" },
    { "--config range.json", 2, "range.json: resolution: expected 64 to 4096, found 5" },
    { "--config choice.json", 2, "choice.json: sampler: expected ddim|euler|euler_a, found \"x\"" },
    { "--config list.json", 2, "list.json: prompt: expected an array of texts, found true in it" },
    { "--config one.json", 0, "{\"prompt\":[\"alone\"]," SETTINGS REST },
    { "--config help.json", 2, "help.json: help: belongs on the command line" },
    { "--config twice.json", 2, "twice.json: line 1: duplicate object key near '\"seed\"'" },
};

static void
put(const char *path, const char *text)
{
    FILE *f = fopen(path, "wb");

    fputs(text, f);
    fclose(f);
}

int
main(void)
{
    struct child *c;
    char words[256], line[300];
    json_error_t error;
    json_t *help;

    child_enter();
    put("empty.json", "{\"output\": \"\"}");
    put("good.json", "{\"resolution\":100,\"rate\":1,\"sampler\":\"euler_a\",\"prompt\":[\"from "
                     "file\"],\"upscale\":false,\"memory\":\"1M\"}");
    put("array.json", "[]");
    put("unknown.json", "{\"resolutions\":100}");
    put("type.json", "{\"resolution\":true}");
    put("natural.json", "{\"resolution\":\"100\",\"rate\":\".25\",\"prompt\":[5,\"x\",0.1],\"output\":64,\"chunk\":4096,"
                        "\"memory\":\"2k\",\"threads\":2e0,\"verbose\":true}");
    put("number.json", "{\"resolution\":100.5}");
    put("flag.json", "{\"upscale\":1}");
    put("null.json", "{\"output\":null}");
    put("size.json", "{\"memory\":-1}");
    put("range.json", "{\"resolution\":5}");
    put("choice.json", "{\"sampler\":\"x\"}");
    put("list.json", "{\"prompt\":[\"a\",true]}");
    put("one.json", "{\"prompt\":\"alone\"}");
    put("help.json", "{\"help\":true}");
    put("twice.json", "{\"seed\":1,\"seed\":2}");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        strcpy(words, cases[i].words);
        c = child_run(program, words, "", 0);
        snprintf(line, sizeof line, "sd-test: %s\n", cases[i].expected);
        CHECK(c->status == cases[i].status
                  && !strcmp(cases[i].status ? c->err : c->out, cases[i].status ? line : cases[i].expected),
              "[%s] status %d %s", cases[i].words, c->status, child_flat(cases[i].status ? c->err : c->out));
        CHECK(cases[i].status ? !*c->out : !*c->err, "[%s] nothing more", cases[i].words);
    }
    strcpy(words, "-h");
    c = child_run(program, words, "", 0);
    CHECK(c->status == 0
              && !strncmp(c->out,
                          "usage: sd-test [file ...]\nTests.\n\noptions:\n      --resolution PIXELS         side of "
                          "the square (512)\n  -r, --rate RATE",
                          100),
          "--help");
    strcpy(words, "--help=json");
    c = child_run(program, words, "", 0);
    help = json_loads(c->out, 0, &error);
    CHECK(c->status == 0 && help && json_array_size(json_object_get(help, "options")) == 21, "--help=json: %zu options",
          json_array_size(json_object_get(help, "options")));
    CHECK(json_integer_value(json_object_get(json_array_get(json_object_get(help, "options"), 0), "default")) == 512
              && json_array_size(json_object_get(json_array_get(json_object_get(help, "options"), 2), "choices")) == 3,
          "with defaults and choices");
    json_decref(help);
    child_leave();
    return check_done();
}
