/* A device is a queue: what is opened, and, where one answers, bytes that go there and come back, recordings, slots. */
#include "device.h"


#include "diag.h"
#include "tests/check.h"

static void
refused(const char *text, const char *expected, const char *or_else)
{
    struct sd_device *d = (struct sd_device *)&d;
    int status = sd_device_open(&d, text);

    CHECK(status == -1 && !d && (strstr(sd_reason(), expected) || strstr(sd_reason(), or_else)), "%s: status %d, \"%s\"", text,
          status, sd_reason());
}

static unsigned char
byte_of(size_t i)
{
    return (unsigned char)(i * 2654435761u >> 13);
}

static void
bytes(struct sd_device *d)
{
    const size_t sizes[] = { 1, 63, 64, 65, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 70u << 20 };

    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t n = sizes[s], wrong = 0;
        unsigned char *here = malloc(n), *back = malloc(n);
        void *a = sd_device_alloc(d, n, "a"), *b = sd_device_alloc(d, n, "b");

        for (size_t i = 0; i < n; i++)
            here[i] = byte_of(i + s);
        sd_device_fill(d, b, 0x5a, n);
        sd_device_write(d, a, here, n);
        memset(here, 0, n);                     /* may be reused at once */
        sd_device_copy(d, b, a, n - n / 3);
        sd_device_read(d, back, b, n);
        for (size_t i = 0; i < n; i++)
            wrong += back[i] != (i < n - n / 3 ? byte_of(i + s) : 0x5a);
        CHECK(wrong == 0 && (uintptr_t)a % 256 == 0, "%zu bytes there and back, %zu wrong", n, wrong);
        sd_device_free(d, a);
        sd_device_free(d, b);
        free(here);
        free(back);
    }
}

/* More small writes than the ring has room for, none of which may be overtaken. */
static void
small_writes(struct sd_device *d)
{
    enum { N = 40000, WORDS = 250 };
    uint32_t *p = sd_device_alloc(d, sizeof *p * N * WORDS, "numbers"), *back = malloc(sizeof *back * N * WORDS), wrong = 0;

    for (uint32_t i = 0; i < N; i++) {
        uint32_t here[WORDS];

        for (uint32_t k = 0; k < WORDS; k++)
            here[k] = i * WORDS + k;
        sd_device_write(d, p + i * WORDS, here, sizeof here);
    }
    sd_device_read(d, back, p, sizeof *p * N * WORDS);
    for (uint32_t i = 0; i < N * WORDS; i++)
        wrong += back[i] != i;
    CHECK(wrong == 0, "%d writes of %zu bytes, %u words wrong", N, sizeof *p * WORDS, wrong);
    sd_device_free(d, p);
    free(back);
}

/* Parts of one allocation: apart, aligned, counted, and freed as one. */
static void
parts(struct sd_device *d)
{
    struct sd_device_part part[] = { { 1, "a", NULL }, { 256, "b", NULL }, { 257, "c", NULL }, { 3 << 20, "d", NULL } };
    size_t before = sd_device_allocated(d), wrong = 0;
    unsigned char *back = malloc(3 << 20);

    sd_device_alloc_parts(d, part, 4);
    CHECK(sd_device_allocated(d) - before == 256 + 256 + 512 + (3 << 20), "parts: %zu bytes", sd_device_allocated(d) - before);
    for (int i = 0; i < 4; i++)
        sd_device_fill(d, part[i].at, i + 1, part[i].bytes);
    for (int i = 0; i < 4; i++) {
        sd_device_read(d, back, part[i].at, part[i].bytes);
        for (size_t k = 0; k < part[i].bytes; k++)
            wrong += back[k] != i + 1;
        wrong += (uintptr_t)part[i].at % 256 != 0;
    }
    CHECK(wrong == 0, "each part is its own, %zu wrong", wrong);
    sd_device_free(d, part[0].at);
    CHECK(sd_device_allocated(d) == before, "freed as one: %zu bytes left", sd_device_allocated(d) - before);
    free(back);
}

static void
recordings(struct sd_device *d)
{
    unsigned char *a = sd_device_alloc(d, 256, "a"), *b = sd_device_alloc(d, 256, "b"), x = 7, y = 0, z = 0;
    struct sd_recording *r;

    sd_device_fill(d, b, 1, 256);
    sd_device_write(d, a, &x, 1);
    sd_device_record(d);
    sd_device_copy(d, b, a, 1);
    sd_device_fill(d, b + 1, 9, 1);
    r = sd_device_recorded(d);
    sd_device_read(d, &y, b, 1);
    sd_device_read(d, &z, b + 1, 1);
    CHECK(y == 1 && z == 1, "recorded is not run: %d, %d", y, z);
    for (int i = 0; i < 3; i++) {
        x = (unsigned char)(30 + i);
        sd_device_write(d, a, &x, 1);
        sd_device_replay(d, r);
        sd_device_read(d, &y, b, 1);
        sd_device_read(d, &z, b + 1, 1);
        CHECK(y == x && z == 9, "replayed with the new bytes: %d, %d", y, z);
    }
    sd_recording_free(r);
    sd_device_free(d, a);
    sd_device_free(d, b);
}

/* Read behind each write, looked at later, in another order; places are used again. */
static void
answers(struct sd_device *d)
{
    uint64_t x, y, waits = sd_device_counts(d).waits, *a = sd_device_alloc(d, sizeof *a, "a");
    int number[SD_ASKED], wrong = 0;

    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < SD_ASKED; i++) {
            x = (uint64_t)(100 * round + i);
            sd_device_write(d, a, &x, sizeof x);
            number[i] = sd_device_ask(d, a, sizeof *a);
        }
        for (int i = SD_ASKED; i--; ) {
            sd_device_answer(d, number[i], &y);
            wrong += y != (uint64_t)(100 * round + i);
        }
    }
    CHECK(wrong == 0 && sd_device_counts(d).waits == waits, "answers: %d wrong", wrong);
    sd_device_free(d, a);
}

static int closed;
static void
count_close(void *value)
{
    closed += *(int *)value;
}

int
main(void)
{
    struct sd_device *d = (struct sd_device *)&d;
    size_t before;
    static int value = 5;

    CHECK(sd_device_open(&d, "cpu") == 0 && !d, "the CPU is no device");
    sd_device_close(NULL);
    sd_recording_free(NULL);
    refused("cuda:999", "--device cuda:999: ", "built without");
    refused("gpu", "--device gpu: ", "built without");
    if (sd_device_open(&d, "cuda")) {
        CHECK(!d && strncmp(sd_reason(), "--device cuda: ", 15) == 0, "no device, and why: \"%s\"", sd_reason());
        d = (struct sd_device *)&d;
        CHECK(sd_device_open(&d, "auto") == 0 && !d, "auto is the CPU then");
        check_skip("bytes there and back, recordings, slots", "no device");
        return check_done();
    }
    printf("# %s; %s\n", sd_device_name(d), sd_device_engine(d));
    before = sd_device_allocated(d);
    bytes(d);
    small_writes(d);
    parts(d);
    answers(d);
    recordings(d);
    CHECK(sd_device_allocated(d) == before, "all memory is given back: %zu bytes held, %zu before", sd_device_allocated(d), before);
    CHECK(sd_device_workspace(d, 100) == sd_device_workspace(d, 50), "a workspace that is large enough is kept");
    CHECK(sd_device_free_bytes(d) > 0, "%zu bytes are free", sd_device_free_bytes(d));
    sd_device_set_slot(d, SD_SLOT_TUNING, &value, count_close);
    CHECK(sd_device_slot(d, SD_SLOT_TUNING) == &value && closed == 0, "a slot keeps what it is given");
    sd_device_wait(d);
    sd_device_close(d);
    CHECK(closed == 5, "what a slot holds is closed once");
    return check_done();
}
