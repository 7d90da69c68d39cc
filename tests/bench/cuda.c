/* cuda - a card's base rates, our rows on it, and the same rows of PyTorch processes, in turn: raw numbers for `table`.
 * Usage: cuda [--tiny] [--rounds N] [--steps N] [--seconds N] [--peers COMMAND NAMES] [--room GB] MODEL [ROW ...]
 *        cuda [--tiny] --alone ROW MODEL     that row in a process of its own: start to first step, memory
 *        cuda [--tiny] --profile ROW MODEL   where that row's plan spends its time, by op and shape
 *        cuda --rates                        the base rates alone
 *   MODEL   a model's folder; its tokenizer is not used (captions are letters here)
 *   ROW     text guided decode512 decode1024 lora1 lora8 ti lora1-tf32 (without: all)
 *   --tiny  small shapes, for the emulated device: proves that it runs, measures nothing
 *   --peers `COMMAND --peer NAME --row ROW` is started for each NAME (commas between) and row: peers.py says what it is
 *           told
 *   --room  of the card's memory, for all peers that are there at a time (without: what is free, less 2 GB)
 *   --seconds  wall time of it all: peers not ready in time are ended, rounds not begun in time are left out, aloud
 *
 * Standard output, words between tabs:   rate WHAT WHO UNIT VALUE    time ROW WHO MS    start ROW WHO SECONDS
 *   memory ROW WHO GB    flops ROW VALUE    about NAME TEXT    note TEXT
 *   profile ROW OP SHAPE CALLS US FLOPS BYTES   of a step; op "all": the step without what timing adds
 * One line for each round; `table` takes medians.
 * WHO of ours: "ours" is what a program of ours waits for (training: the update with noise, optimizer and its loss read
 * back; guided: the loop of a picture; decode: latents to a picture in memory), "kernels" the network's plan alone,
 * replayed. */
#include "cuda_peers.h"
#include "cuda_profile.h"
#include "cuda_rates.h"

/* Rounds of a wave: the base rates, and each of its rows with its peers. */
static void
measure(int wave, double end)
{
    for (int k = 0; k < rounds; k++) {
        double start = sd_clock();

        measure_rates();
        for (int i = 0; i < ROWS; i++) {
            if (!rows[i].wanted || rows[i].wave != wave)
                continue;
            measure_row(&rows[i]);
            for (int p = 0; p < peer_count; p++)
                if (peers[p].row == &rows[i])
                    measure_peer(&peers[p]);
        }
        fprintf(stderr, "cuda: round %d of %d took %.0f s, %.0f s in all\n", k + 1, rounds, sd_clock() - start,
                sd_clock() - begun);
        if (k + 1 < rounds && sd_clock() + (sd_clock() - start) > end) {
            note("%d of %d rounds: no time was left for more", k + 1, rounds);
            break;
        }
    }
}

/* Each wave has its share of the time that is left. */
static void
measure_waves(const char *command, const char *names, double room)
{
    int waves = command ? choose_waves(names, room) : 1;

    for (int w = 0; w < waves; w++) {
        double now = sd_clock(), end = now + (begun + seconds - now) / (waves - w);

        if (command)
            start_wave(command, w, end);
        measure(w, end);
        for (int p = 0; p < peer_count; p++)
            end_peer(&peers[p], NULL);
    }
}

static struct row *
row_named(const char *option, const char *name)
{
    for (int i = 0; i < ROWS; i++)
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    sd_usage(option, "there is no row %s", name);
}

/* A row as a program of its own has it, from nothing to the end of its first step; then what it takes. */
static void
alone(struct row *r, size_t free_before)
{
    open_row(r);
    vendor_tf32 = r->tf32;
    if (r->trainer)
        updates(r, 1);
    else if (r->kind == GUIDED) {
        run_kernels(r, 1);
    } else
        run_row(r, 1);
    printf("start\t%s\tours\t%.3f\n", r->name, sd_clock() - begun);
    run_row(r, 2);
    printf("memory\t%s\tours\t%.3f\n", r->name, (double)sd_device_allocated(device) * 1e-9);
    printf("memory\t%s\tours and libraries\t%.3f\n", r->name,
           ((double)free_before - (double)sd_device_free_bytes(device)) * 1e-9);
}

/* Left out where most of the time is gone: what is ready is to be measured in the rest. */
static void
make_ready(struct row *r)
{
    if (sd_clock() - begun > 0.6 * seconds) {
        r->wanted = false;
        note("%s: no time was left to make it ready", r->name);
        return;
    }
    open_row(r);
    warm_up(r);
    fprintf(stderr, "cuda: %s is ready after %.0f s, %.2f ms a step\n", r->name, sd_clock() - begun, r->step * 1e3);
}

static void
choose(int count, char **names)
{
    for (int i = 0; i < ROWS && count; i++)
        rows[i].wanted = false;
    for (int k = 0; k < count; k++)
        row_named(NULL, names[k])->wanted = true;
}

int
main(int argc, char **argv)
{
    const char *command = NULL, *names = NULL, *only = NULL, *profiled = NULL;
    bool rates_only = false;
    double room = 0;
    size_t free_before;
    int i = 1;

    sd_program = "cuda";
    begun = sd_clock();
    signal(SIGPIPE, SIG_IGN);
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++)
        if (strcmp(argv[i], "--tiny") == 0)
            tiny = true;
        else if (strcmp(argv[i], "--rates") == 0)
            rates_only = true;
        else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc)
            rounds = atoi(argv[++i]);
        else if (strcmp(argv[i], "--steps") == 0 && i + 1 < argc)
            steps = atoi(argv[++i]);
        else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            seconds = strtod(argv[++i], NULL);
        else if (strcmp(argv[i], "--alone") == 0 && i + 1 < argc)
            only = argv[++i];
        else if (strcmp(argv[i], "--profile") == 0 && i + 1 < argc)
            profiled = argv[++i];
        else if (strcmp(argv[i], "--room") == 0 && i + 1 < argc)
            room = strtod(argv[++i], NULL);
        else if (strcmp(argv[i], "--peers") == 0 && i + 2 < argc) {
            command = argv[++i];
            names = argv[++i];
        } else
            sd_usage(argv[i], "is no option, or lacks a value; see tests/bench/cuda.c");
    if (rounds < 1 || steps < 1 || (!rates_only && i == argc))
        sd_usage(NULL,
                 "usage: cuda [--tiny] [--rounds N] [--steps N] [--seconds N] [--peers COMMAND NAMES] [--room GB] "
                 "MODEL [ROW ...]");
    scope = sd_scope_open();
    if (sd_device_open(&device, "cuda") < 0)
        sd_die(NULL, "%s", sd_reason());
    free_before = sd_device_free_bytes(device);
    if (!rates_only) {
        must(model = sd_model_open(scope, argv[i], NULL), argv[i]);
        choose(argc - i - 1, argv + i + 1);
    }
    if (only)
        alone(row_named("--alone", only), free_before);
    else if (profiled)
        profile(row_named("--profile", profiled));
    else {
        printf("about\tmachine\t%s\nabout\tlibraries\t%s\n", sd_device_name(device), sd_device_engine(device));
        printf("about\tsteps\t%d rounds of at most %d steps\n", rounds, steps);
        if (tiny)
            note("tiny shapes, which are not those that rows are named after");
        make_rates();
        for (int k = 0; k < ROWS; k++) {
            rows[k].wanted &= !rates_only;
            if (rows[k].wanted)
                make_ready(&rows[k]);
        }
        if (room <= 0)
            room = (double)sd_device_free_bytes(device) * 1e-9 - 2;
        measure_waves(command, names, room);
    }
    for (int k = 0; k < rate_count; k++)
        sd_recording_free(rates[k].recording);
    for (int k = 0; k < held_count; k++)
        sd_device_free(device, held[k]);
    sd_scope_close(scope);
    sd_device_close(device);
    return 0;
}
