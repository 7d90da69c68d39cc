/* Record streams: what goes in comes out, what is broken is refused, and the filter loop's statuses. */
#include "../check.h"
#include "../child.h"
#include "opt.h"
#include "record.h"

#include <jansson.h>
#include <unistd.h>

/* A filter: adds "seen", refuses captions that start with "bad", says nothing of the rest. */
static int
filter_one(struct sd_scope *s, struct sd_record *r, void *user)
{
    const char *caption = sd_record_text(r, "caption");

    (void)s;
    (void)user;
    if (caption && !strncmp(caption, "bad", 3))
        return sd_fail("it is bad");
    sd_record_set_int(r, "seen", 1);
    sd_record_write(r);
    return 0;
}

static int
filter(void *argument)
{
    char *words[16] = { (char *)"filter" }, **argv = words;
    int argc = 1;

    for (char *w = argument ? strtok(argument, " ") : NULL; w; w = strtok(NULL, " "))
        words[argc++] = w;
    sd_options(&argc, &argv, NULL, SD_OPT_RECORDS, "", "");
    return sd_finish(sd_each(argc, argv, &(struct sd_each){ "tests", true, filter_one, NULL }));
}

static struct child *
run_filter(const char *options, const void *in, size_t n)
{
    char copy[256];

    snprintf(copy, sizeof copy, "%s", options);
    return child_run(filter, *copy ? copy : NULL, in, n);
}

#define HEAD "\x82\xa2sd\x01\xa5holds\xa1x"
#define END(n) "\x81\xa3" "end" n
#define STREAM(text) text, sizeof(text) - 1

static void
refused(const char *what, const void *in, size_t n, int status, const char *line)
{
    struct child *c = run_filter("", in, n);
    bool same = !strcmp(c->err, line);

    CHECK(c->status == status && same, "%s: status %d, %s", what, c->status, same ? "named" : child_flat(c->err));
}

static void
streams(void)
{
    /* all encodings of an unknown key's value come out as they came, in their place */
    static const char odd[] =
        HEAD "\x84\xa1x\xd5\x07yz\xa1z\xda\x00\x02hi\xa2id\xd9\x01k\xd9\x01u\x93\xcd\x00\x05\xc7\x01\x05Z\xcb@\x09!\xfb"
             "TD-\x18" END("\x01");
    static const char want[] =
        "\x82\xa2sd\x01\xa5holds\xa5tests"
        "\x85\xa1x\xd5\x07yz\xa1z\xda\x00\x02hi\xa2id\xd9\x01k\xd9\x01u\x93\xcd\x00\x05\xc7\x01\x05Z\xcb@\x09!\xfb"
        "TD-\x18"
        "\xa4seen\x01" END("\x01");
    struct child *c = run_filter("", STREAM(odd));
    static char many[200000];
    size_t n;

    CHECK(c->status == 0 && c->out_length == sizeof want - 1 && !memcmp(c->out, want, sizeof want - 1),
          "unknown keys pass byte for byte: status %d, %zu bytes of %zu, %s", c->status, c->out_length, sizeof want - 1,
          child_flat(c->err));
    c = run_filter("-j", STREAM(odd));
    CHECK(!strcmp(c->out, "{\"sd\":1,\"holds\":\"tests\"}\n{\"x\":{\"bytes\":2},\"z\":\"hi\",\"id\":\"k\",\"u\":[5,{"
                          "\"bytes\":1},3.1415926535897931],"
                          "\"seen\":1}\n{\"end\":1}\n"),
          "as JSON lines: %s", child_flat(c->out));
    c = run_filter("-j", STREAM(HEAD "\x84\xa1"
                                     "a\xd3\x80\0\0\0\0\0\0\0\xa1"
                                     "b\xcf\0\x20\0\0\0\0\0\0\xa1"
                                     "c\x83\xa5"
                                     "dtype\xa2U8"
                                     "\xa5shape\x91\x02\xa4"
                                     "data\xc4\x02hi\xa1"
                                     "d\xa3\x1b\"\\" END("\x01")));
    CHECK(strstr(c->out,
                 "{\"a\":\"-9223372036854775808\",\"b\":9007199254740992,\"c\":{\"dtype\":\"U8\",\"shape\":[2]},"
                 "\"d\":\"\\u001b\\\"\\\\\",\"seen\":1}"),
          "JSON of extreme integers, tensors, control characters: %s", child_flat(c->out));

    refused("empty input", STREAM(""), 3,
            "filter: standard input: not a record stream: it is empty (did the program before it fail?)\n");
    refused("a PNG", STREAM("\x89PNG\r\n\x1a\n"), 3, "filter: standard input: not a record stream\n");
    refused("version 2", STREAM("\x82\xa2sd\x02\xa5holds\xa1x"), 3,
            "filter: standard input: record stream of version 2, this program reads version 1\n");
    refused("no end", STREAM(HEAD "\x81\xa2id\xa1k"), 3,
            "filter: standard input: the stream stops after 1 records, without its end (did the program before it "
            "fail?)\n");
    c = run_filter("", STREAM(HEAD "\x81\xa2id\xa1k"));
    CHECK(c->out_length == 29 && !memcmp(c->out + 17, "\x82\xa2id\xa1k\xa4seen\x01", 12),
          "no end goes out where none came in");
    refused("cut in a record",
            STREAM(HEAD "\x82\xa2id\xa1k\xa1"
                        "a"),
            3, "filter: standard input: record 1: cut short\n");
    refused("wrong count", STREAM(HEAD "\x81\xa2id\xa1k" END("\x02")), 3,
            "filter: standard input: its end does not fit: 1 records were read\n");
    refused("bytes after the end", STREAM(HEAD END("\x00") "x"), 3,
            "filter: standard input: something follows its end\n");
    refused("0xc1", STREAM(HEAD "\x81\xa2id\xc1"), 3, "filter: standard input: record 1: byte 17: no msgpack\n");
    refused("an array of four thousand million objects", STREAM(HEAD "\x81\xa1" "a\xdd\xff\xff\xff\xff"), 3,
            "filter: standard input: record 1: cut short\n");
    refused("a binary of 4 GiB", STREAM(HEAD "\x81\xa1" "a\xc6\xff\xff\xff\xff"), 3,
            "filter: standard input: record 1: byte 13: a record of more than 1073741824 bytes\n");
    refused("17 deep",
            STREAM(HEAD "\x81\xa1"
                        "a\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x01" END("\x01")),
            3, "filter: standard input: record 1: byte 32: nested more than 16 deep\n");
    CHECK(run_filter("", STREAM(HEAD "\x81\xa1"
                                     "a\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x91\x01" END("\x01")))
                  ->status
              == 0,
          "16 deep is taken");
    refused("a bad record among good ones",
            STREAM(HEAD "\x81\xa2id\xa1k\x81\xa7"
                        "caption\x05\x81\xa2id\xa1l" END("\x03")),
            1, "filter: standard input: record 2: caption: expected a text, found an integer\n");
    refused("invalid UTF-8", STREAM(HEAD "\x81\xa7" "caption\xa2\xc3(" END("\x01")), 3,
            "filter: standard input: record 1: caption: not valid UTF-8\n");
    refused("a key twice", STREAM(HEAD "\x82\xa1" "a\x01\xa1" "a\x02" END("\x01")), 3,
            "filter: standard input: record 1: key a twice\n");
    refused("a key that is a number", STREAM(HEAD "\x81\x01\x01" END("\x01")), 3,
            "filter: standard input: record 1: a key that is no text in UTF-8\n");
    refused("a record that is an array", STREAM(HEAD "\x91\x01" END("\x01")), 3,
            "filter: standard input: record 1: expected a map\n");
    refused("bad input of the program, source named",
            STREAM(HEAD "\x82\xa6source\xa3"
                        "a\nb\xa7"
                        "caption\xa3"
                        "bad\x80" END("\x02")),
            1, "filter: a\\nb: it is bad\n");
    CHECK(run_filter("-k", STREAM(HEAD "\x81\xa7"
                                       "caption\xa3"
                                       "bad\x80" END("\x02")))
                  ->status
              == 0,
          "-k turns 1 into 0");
    CHECK(run_filter("-k", STREAM(HEAD "\x81\xa7" "caption\xa3" "bad" END("\x01")))->status == 3, "-k leaves 3");
    CHECK(run_filter("", STREAM(HEAD END("\x00")))->status == 0, "an empty stream is whole");

    n = (size_t)sprintf(many, "%s\xde", HEAD);
    many[n++] = 8;
    many[n++] = 0;
    for (int i = 0; i < 2048; i++)
        n += (size_t)sprintf(many + n, "\xa4%04d\x01", i);
    c = run_filter("", many, n);
    CHECK(c->status == 3 && strstr(c->err, "record 1: 2048 keys, at most 1024 are read"), "2048 keys: %s",
          child_flat(c->err));
}

static int
write_tensors(void *argument)
{
    struct sd_scope *s = sd_scope_open();
    float values[] = { 1, -2, 3.5f, 4, 5, 6 };
    struct sd_record *r = sd_record_new(s);

    (void)argument;
    sd_writer_begin("latents");
    sd_record_set_text(r, "id", "x");
    sd_record_set_tensor(r, "latents_mean", &(struct sd_record_tensor){ "F32", 3, { 1, 2, 3 }, values, sizeof values });
    sd_record_set_ints(r, "bucket", (int64_t[]){ 512, -70000 }, 2);
    sd_record_set_real(r, "weight", 0.1);
    sd_record_set_text(r, "gone", "x");
    sd_record_remove(r, "gone");
    sd_record_set_text(r, "id", "replaced");
    sd_record_write(r);
    sd_writer_end();
    sd_scope_close(s);
    return sd_finish(0);
}

static void
values(void)
{
    struct child *c = child_run(write_tensors, NULL, "", 0);
    struct sd_scope *s = sd_scope_open();
    struct sd_reader *reader = c->status ? NULL : sd_reader_open("child.out");
    struct sd_record *r = NULL;
    struct sd_record_tensor t;
    int64_t bucket[2] = { 0 };
    double weight = 0;

    if (!CHECK(reader && !strcmp(sd_reader_holds(reader), "latents"), "written, opened"))
        return;
    CHECK(sd_is_record_stream("child.out"), "looks like a record stream");
    CHECK(sd_reader_next(reader, s, &r) == 1, "one record: %s", sd_reason());
    CHECK(sd_record_tensor(r, "latents_mean", &t) == 1 && t.ndim == 3 && t.shape[2] == 3 && t.bytes == 24
          && (uintptr_t)t.data % 4 == 0 && ((const float *)t.data)[2] == 3.5f, "a tensor, aligned");
    CHECK(sd_record_ints(r, "bucket", bucket, 2) == 1 && bucket[0] == 512 && bucket[1] == -70000, "two integers");
    CHECK(sd_record_ints(r, "bucket", bucket, 3) == -1
              && !strcmp(sd_reason(), "bucket: expected 3 integers, found 2 values"),
          "not three: %s", sd_reason());
    CHECK(sd_record_real(r, "weight", &weight) == 1 && weight == 0.1, "a real");
    CHECK(!sd_record_text(r, "gone") && !strcmp(sd_record_text(r, "id"), "replaced"), "removed, replaced");
    CHECK(sd_record_tensor(r, "id", &t) == -1 && sd_record_tensor(r, "none", &t) == 0,
          "a text is no tensor, absent is absent");
    CHECK(sd_reader_next(reader, s, &r) == 0, "the end");
    sd_reader_close(reader);
    sd_scope_close(s);
}

static void
bad_tensors(void)
{
    static const struct { const char *what, *bytes; size_t n; const char *reason;
    } bad[] = {
        { "too few bytes",
          STREAM("\x83\xa5"
                 "dtype\xa3"
                 "F32\xa5shape\x92\x02\x02\xa4"
                 "data\xc4\x03"
                 "abc"),
          "t: 3 bytes of data, its shape needs 16" },
        { "overflowing shape",
          STREAM("\x83\xa5"
                 "dtype\xa2U8\xa5shape\x92\xcf\x7f\xff\xff\xff\xff\xff\xff\xff\x04\xa4"
                 "data\xc4\x00"),
          "t: bad shape" },
        { "negative shape",
          STREAM("\x83\xa5"
                 "dtype\xa2U8\xa5shape\x91\xff\xa4"
                 "data\xc4\x00"),
          "t: bad shape" },
        { "unknown dtype",
          STREAM("\x83\xa5"
                 "dtype\xa2U9\xa5shape\x91\x00\xa4"
                 "data\xc4\x00"),
          "t: unknown dtype" },
        { "six dimensions",
          STREAM("\x83\xa5"
                 "dtype\xa2U8\xa5shape\x96\x01\x01\x01\x01\x01\x01\xa4"
                 "data\xc4\x01z"),
          "t: 6 dimensions, at most 5 are read" },
        { "no data",
          STREAM("\x81\xa5"
                 "dtype\xa2U8"),
          "t: expected a tensor {dtype, shape, data}" },
    };

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        FILE *f = fopen("bad", "wb");
        struct sd_scope *s = sd_scope_open();
        struct sd_reader *reader;
        struct sd_record *r;
        struct sd_record_tensor t;
        int status = 1;

        fwrite(HEAD "\x81\xa1t", 1, sizeof HEAD - 1 + 3, f);
        fwrite(bad[i].bytes, 1, bad[i].n, f);
        fwrite(END("\x01"), 1, sizeof END("\x01") - 1, f);
        fclose(f);
        if (CHECK((reader = sd_reader_open("bad")) && sd_reader_next(reader, s, &r) == 1, "%s: read", bad[i].what))
            status = sd_record_tensor(r, "t", &t);
        CHECK(status == -1 && !strcmp(sd_reason(), bad[i].reason), "%s: %s", bad[i].what, sd_reason());
        sd_reader_close(reader);
        sd_scope_close(s);
    }
}

static void
put_file(const char *path, const char *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");

    fwrite(bytes, 1, n, f);
    fclose(f);
}

static void
operands(void)
{
    struct child *c;

    if (system("mkdir -p d/sub empty"))
        exit(95);
    put_file("d/b.png", "\x89PNG", 4);
    put_file("d/a.jpg", "\xff\xd8\xff", 3);
    put_file("d/.hidden.png", "\x89PNG", 4);
    put_file("d/a.txt", "text", 4);
    put_file("d/c.heic", "\0\0\0\x18" "ftypheic", 12);
    put_file("r", STREAM(HEAD "\x81\xa6source\xa1s" END("\x01")));
    c = run_filter("-j d r", "", 0);
    CHECK(c->status == 0
              && !strcmp(c->out, "{\"sd\":1,\"holds\":\"tests\"}\n{\"source\":\"d/a.jpg\",\"seen\":1}\n{\"source\":\"d/"
                                 "b.png\",\"seen\":1}\n"
                                 "{\"source\":\"d/c.heic\",\"seen\":1}\n{\"source\":\"s\",\"seen\":1}\n{\"end\":4}\n"),
          "folders, flat, in byte order; streams: %s", child_flat(c->out));
    CHECK(!strcmp(c->err, "filter: d: 2 of 5 entries are no pictures, left out\n"), "the rest is counted: %s",
          child_flat(c->err));
    CHECK(!*run_filter("-j -q d", "", 0)->err, "-q: not said");
    c = run_filter("none r", "", 0);
    CHECK(c->status == 1 && !strcmp(c->err, "filter: none: No such file or directory\n"), "a missing operand: %s",
          child_flat(c->err));
    c = run_filter("empty", "", 0);
    CHECK(c->status == 3 && !strcmp(c->err, "filter: empty: no pictures in this folder\n"), "an empty folder: %s",
          child_flat(c->err));
}

static int
to_full_disk(void *argument)
{
    (void)argument;
    if (!freopen("/dev/full", "wb", stdout))
        return 90;
    return write_tensors(NULL);
}

static int
to_dead_reader(void *argument)
{
    int ends[2];

    signal(SIGPIPE, argument ? SIG_IGN : SIG_DFL);
    if (pipe(ends) || dup2(ends[1], 1) < 0)
        return 90;
    close(ends[0]);
    sd_catch_signals();
    return write_tensors(NULL);
}

int
main(void)
{
    struct child *c;

    child_enter();
    streams();
    values();
    bad_tensors();
    operands();
    c = child_run(to_full_disk, NULL, "", 0);
    CHECK(c->status == 3 && !strcmp(c->err, "sd: standard output: No space left on device\n"), "full disk: %d %s",
          c->status, child_flat(c->err));
    c = child_run(to_dead_reader, NULL, "", 0);
    CHECK(c->status == 128 + SIGPIPE && !*c->err, "dead reader: %d %s", c->status, child_flat(c->err));
    c = child_run(to_dead_reader, c, "", 0);
    CHECK(c->status == 3 && !strcmp(c->err, "sd: standard output: Broken pipe\n"), "dead reader, SIGPIPE ignored: %d %s",
          c->status, child_flat(c->err));
    child_leave();
    return check_done();
}
