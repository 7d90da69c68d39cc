/* sd-caption - records or photos to records with caption: from files beside the photos, from a program, by a template.
 * With --tokens, the ids of texts instead. */
#include "file.h"
#include "hash.h"
#include "image.h"
#include "json.h"
#include "model/model_tokenizer.h"
#include "model/prompt.h"
#include "opt.h"
#include "record.h"
#include "threads.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CAPTION_MAX (1 << 20)       /* bytes of a sidecar, or of what a program prints */

static const char *sidecar, *template, *trigger, *command, *model, *tokenizer_path;
static bool write_sidecars, check, tokens;

static const struct sd_opt options[] = {
    { 0, "sidecar", SD_OPT_TEXT, &sidecar, 0, 0, "EXT",
      "extension of caption files beside the photos (.txt, then .caption)" },
    { 0, "caption", SD_OPT_TEXT, &template, 0, 0, "TEMPLATE",
      "the caption; {trigger}, {caption}, {file} are filled in" },
    { 0, "trigger", SD_OPT_TEXT, &trigger, 0, 0, "TOK",
      "what {trigger} is; without --caption: put before captions that lack it" },
    { 0, "exec", SD_OPT_TEXT, &command, 0, 0, "CMD", "a shell command that prints the caption of the photo $1" },
    { 0, "write-sidecars", SD_OPT_FLAG, &write_sidecars, 0, 0, NULL, "write the captions beside the photos too" },
    { 0, "check", SD_OPT_FLAG, &check, 0, 0, NULL, "only say what is wrong with the captions; no records" },
    { 0, "tokens", SD_OPT_FLAG, &tokens, 0, 0, NULL, "operands are texts: print their ids, a JSON line each" },
    { 0, "model", SD_OPT_TEXT, &model, 0, 0, "M", "the model whose tokenizer --tokens and --check use" },
    { 0, "tokenizer", SD_OPT_TEXT, &tokenizer_path, 0, 0, "DIR|FILE", "this tokenizer instead of the model's" },
    { 0 }
};

static struct sd_tokenizer *tokenizer;
static struct { size_t captions, lacking, over; size_t longest; } seen;

/* --- where captions come from --- */

/* The first line without spaces around it; NULL with sd_fail when it is empty or no UTF-8. */
static const char *
first_line(struct sd_scope *s, char *text, size_t length)
{
    if (length >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3)) {
        text += 3;
        length -= 3;
    }
    if (memchr(text, '\n', length))
        length = (size_t)((char *)memchr(text, '\n', length) - text);
    while (length && strchr(" \t\r", text[length - 1]))
        length--;
    while (length && strchr(" \t", *text)) {
        text++;
        length--;
    }
    if (!length)
        return sd_fail_null("empty");
    if (!sd_utf8_valid(text, length) || memchr(text, 0, length))
        return sd_fail_null("not UTF-8");
    return sd_strndup(s, text, length);
}

/* Bytes of a path without its extension. */
static int
stem_length(const char *path)
{
    const char *base = strrchr(path, '/'), *dot;

    base = base ? base + 1 : path;
    dot = strrchr(base, '.');
    return (int)((dot && dot != base ? dot : base + strlen(base)) - path);
}

/* The file beside a photo: its name with another extension. */
static const char *
beside(struct sd_scope *s, const char *source, const char *extension)
{
    return sd_sprintf(s, "%.*s%s%s", stem_length(source), source, *extension == '.' ? "" : ".", extension);
}

/* 1 and *caption, 0 when there is no such file, -1. */
static int
read_sidecar(struct sd_scope *s, const char *source, const char *extension, const char **caption)
{
    const char *path = beside(s, source, extension);
    size_t length;
    char *text;

    if (access(path, F_OK))
        return 0;
    if (!strcmp(path, source))
        return sd_fail("its sidecar would be itself");
    if ((text = sd_file_read(s, path, CAPTION_MAX, &length)) && (*caption = first_line(s, text, length)))
        return 1;
    return sd_fail_prefix("%s", path);
}

static int
find_sidecar(struct sd_scope *s, const char *source, const char **caption)
{
    int found;

    if (!source)
        return 0;
    if (sidecar)
        return read_sidecar(s, source, sidecar, caption);
    found = read_sidecar(s, source, ".txt", caption);
    return found ? found : read_sidecar(s, source, ".caption", caption);
}

/* All that a descriptor gives, up to CAPTION_MAX; what follows is read and dropped, so that the writer goes on. */
static char *
drain(struct sd_scope *s, int fd, size_t *length)
{
    char *text = sd_alloc(s, CAPTION_MAX + 1), rest[4096];
    ssize_t n;

    *length = 0;
    while ((n = *length < CAPTION_MAX ? read(fd, text + *length, CAPTION_MAX - *length) : read(fd, rest, sizeof rest)))
        if (n > 0)
            *length += *length < CAPTION_MAX ? (size_t)n : 0;
        else if (errno != EINTR)
            return sd_fail_null("reading from --exec: %s", strerror(errno));
    return text;
}

/* sh -c CMD sd-caption FILE, with nothing on its standard input: that of this program may be the records. */
static int
start(const char *source, int output, pid_t *pid)
{
    const char *const arguments[] = { "sh", "-c", command, "sd-caption", source, NULL };
    extern char **environ;
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t signals;
    int error;

    sigemptyset(&signals);
    sigaddset(&signals, SIGPIPE);
    sigaddset(&signals, SIGXFSZ);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigdefault(&attributes, &signals);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, output, 1);
    error = posix_spawn(pid, "/bin/sh", &files, &attributes, (char *const *)arguments, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    return error ? sd_fail("--exec: %s", strerror(error)) : 0;
}

static int
run_command(struct sd_scope *s, const char *source, const char **caption)
{
    int ends[2], status;
    size_t length;
    char *text;
    pid_t pid;

    if (!source)
        return sd_fail("no source to run --exec on");
    if (pipe2(ends, O_CLOEXEC))
        return sd_fail_errno("--exec");
    if (start(source, ends[1], &pid)) {
        close(ends[0]);
        close(ends[1]);
        return -1;
    }
    close(ends[1]);
    text = drain(s, ends[0], &length);
    close(ends[0]);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (!text)
        return -1;
    if (WIFSIGNALED(status))
        return sd_fail("--exec ended by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    if (WEXITSTATUS(status))
        return sd_fail("--exec ended with status %d", WEXITSTATUS(status));
    return (*caption = first_line(s, text, length)) ? 1 : sd_fail_prefix("caption printed by --exec");
}

/* --- what is made of them --- */

static const char *const fields[] = { "{trigger}", "{caption}", "{file}" };
enum { TRIGGER, CAPTION, NAME, FIELDS };

/* The field at text[0], or FIELDS. */
static int
field_at(const char *text)
{
    int i = 0;

    while (i < FIELDS && strncmp(text, fields[i], strlen(fields[i])))
        i++;
    return i;
}

static const char *
fill(struct sd_scope *s, const char *caption, const char *source)
{
    const char *values[FIELDS] = { trigger, caption, NULL }, *base = source ? strrchr(source, '/') : NULL;
    char *text = sd_strdup(s, "");

    base = base ? base + 1 : source;
    if (base)
        values[NAME] = sd_strndup(s, base, (size_t)stem_length(base));
    for (const char *at = template; *at; ) {
        int field = field_at(at);
        size_t n = strcspn(at + 1, "{") + 1;

        if (field == FIELDS) {
            text = sd_sprintf(s, "%s%.*s", text, (int)n, at);
            at += n;
        } else if (!values[field]) {
            return sd_fail_null("no %s for {%s}", field == CAPTION ? "caption" : "source",
                                field == CAPTION ? "caption" : "file");
        } else {
            text = sd_sprintf(s, "%s%s", text, values[field]);
            at += strlen(fields[field]);
        }
    }
    return *text ? text : sd_fail_null("the caption is empty");
}

/* A record's source is what some stream says.  A file is written beside it only where it is the very photo that the
 * record was made from. */
static int
check_source(struct sd_scope *s, const char *source, const char *id)
{
    char found[SD_SHA256_HEX], *bytes;
    size_t size;

    if (!id)
        return sd_fail("the record has no id to know its photo by: no sidecar is written");
    if (!(bytes = sd_file_read(s, source, SD_IMAGE_FILE_MAX, &size)))
        return sd_fail_prefix("no sidecar is written");
    sd_sha256_of(bytes, size, found);
    return strcmp(id, found) == 0 ? 0 : sd_fail("is not what the record was made from: no sidecar is written");
}

static int
write_sidecar(struct sd_scope *s, const char *source, const char *caption)
{
    const char *path, *there = NULL;
    struct sd_output *out;
    size_t length;
    char *old;

    if (!source)
        return sd_fail("no source to write a sidecar beside");
    path = beside(s, source, sidecar ? sidecar : ".txt");
    if (!strcmp(path, source))
        return sd_fail("its sidecar would be itself");
    if (!access(path, F_OK)) {
        if ((old = sd_file_read(s, path, CAPTION_MAX, &length)))
            there = first_line(s, old, length);
        if (there && !strcmp(there, caption))
            return 0;
        if (!sd_shared.overwrite)
            return sd_fail("%s exists (use --overwrite)", path);
    }
    if (!(out = sd_output_open(path)))
        return -1;
    fprintf(sd_output_file(out), "%s\n", caption);
    return sd_output_commit(out);
}

/* Only what is wrong: a caption that is there may still lack the trigger or be long. */
static int
check_caption(struct sd_scope *s, const char *name, const char *caption)
{
    struct sd_prompt p;

    seen.captions++;
    if (tokenizer) {
        if (sd_prompt_encode(tokenizer, s, SD_PROMPT_CAPTION, caption, &p) < 0)
            return -1;
        seen.longest = p.tokens > seen.longest ? p.tokens : seen.longest;
        if (p.chunks > 1) {
            seen.over++;
            sd_warn(name, "caption of %zu ids, %d fit one chunk", p.tokens, p.length - 2);
        }
    }
    if (trigger && !strcasestr(caption, trigger)) {
        seen.lacking++;
        return sd_fail("caption lacks \"%s\"", trigger);
    }
    return 0;
}

/* A photo named on the command line becomes a record; records have an id already. */
static int
identify(struct sd_scope *s, struct sd_record *r, const char *source)
{
    char id[SD_SHA256_HEX], *bytes;
    const char *kind;
    size_t size;

    if (sd_record_text(r, "id") || !source)
        return 0;
    if (!(bytes = sd_file_read(s, source, SD_IMAGE_FILE_MAX, &size)))
        return -1;
    switch (sd_image_kind(bytes, size, &kind)) {
    case SD_IMAGE_JPEG: case SD_IMAGE_PNG:
        break;
    case SD_IMAGE_FOREIGN:
        return sd_fail("%s, not read here", kind ? kind : "a picture of another kind");
    default:
        return sd_fail("not a picture");
    }
    sd_sha256_of(bytes, size, id);
    sd_record_set_text(r, "id", id);
    return 0;
}

static int
caption_one(struct sd_scope *s, struct sd_record *r, void *user SD_UNUSED)
{
    const char *source = sd_record_text(r, "source"), *caption = sd_record_text(r, "caption"), *found = NULL;
    int status = 0;

    if (write_sidecars && source && sd_record_was_read(r) && check_source(s, source, sd_record_text(r, "id")) < 0)
        return -1;
    if (identify(s, r, source) < 0)
        return -1;
    if (command)
        status = run_command(s, source, &found);
    else if (sidecar || !caption)
        status = find_sidecar(s, source, &found);
    if (status < 0)
        return -1;
    caption = found ? found : caption;
    if (!caption && !template)
        return sd_fail("no caption");
    if (template)
        caption = fill(s, caption, source);
    else if (trigger && !check && !strcasestr(caption, trigger))
        caption = sd_sprintf(s, "%s, %s", trigger, caption);
    if (!caption)
        return -1;
    if (check)
        return check_caption(s, source ? source : sd_record_text(r, "id"), caption);
    if (write_sidecars && write_sidecar(s, source, caption) < 0)
        return -1;
    sd_record_set_text(r, "caption", caption);
    sd_record_write(r);
    return 0;
}

/* --- tokens --- */

static int
print_tokens(struct sd_scope *s, const char *text)
{
    int32_t *framed = sd_alloc_array(s, (size_t)tokenizer->model_max_length, sizeof *framed);
    struct sd_ids ids;
    json_t *line, *list;

    if (sd_tokenizer_encode(tokenizer, s, text, strlen(text), &ids) < 0)
        return -1;
    list = json_array();
    line = json_pack("{s:s, s:o, s:I}", "text", text, "input_ids", list, "cut",
                     (json_int_t)sd_tokenizer_frame(tokenizer, &ids, framed));
    for (int i = 0; i < tokenizer->model_max_length; i++)
        json_array_append_new(list, json_integer(framed[i]));
    json_dumpf(line, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(line);
    return 0;
}

static int
print_all_tokens(int count, char **texts)
{
    int bad = 0;

    for (int i = 0; i < count; i++) {
        struct sd_scope *s = sd_scope_open();

        if (print_tokens(s, texts[i]) < 0) {
            sd_error(sd_sprintf(s, "text %d", i + 1), "%s", sd_reason());
            bad++;
        }
        sd_scope_close(s);
    }
    return !bad ? SD_OK : bad == count ? SD_FAILED : sd_shared.keep_going ? SD_OK : SD_SOME_BAD;
}

/* The model's configuration is not needed where its folder has a tokenizer, so that --tokens works on a tokenizer
 * alone; a single file's family says how it pads. */
static void
open_tokenizer(struct sd_scope *s)
{
    const char *subject = tokenizer_path ? tokenizer_path : model;
    struct sd_model *m;
    struct stat st;

    tokenizer = sd_tokenizer_find(s, model, tokenizer_path);
    if (tokenizer && model && !tokenizer->pad_named && !stat(model, &st) && S_ISREG(st.st_mode)) {
        if (!(m = sd_model_open(s, model, NULL)))
            sd_die(model, "%s", sd_reason());
        tokenizer = sd_model_tokenizer(m, tokenizer_path);
    }
    if (!tokenizer && !subject)
        sd_usage("--tokens", "whose? give --model or --tokenizer, or run `make clip-vocabulary` once");
    if (!tokenizer)
        sd_die(subject, "%s", sd_reason());
}

/* --- options --- */

/* An option that changes nothing is an error. */
static void
check_options(int operands)
{
    static const char *const of_captions[] = { "sidecar", "caption", "trigger", "exec", "write-sidecars", "check" };

    for (size_t i = 0; tokens && i < sizeof of_captions / sizeof *of_captions; i++)
        if (sd_option_given(of_captions[i]))
            sd_usage(NULL, "--%s has no effect with --tokens", of_captions[i]);
    if (tokens && !operands)
        sd_usage(NULL, "--tokens: no text");
    if ((model || tokenizer_path) && !tokens && !check)
        sd_usage(NULL, "--%s has no effect without --tokens or --check", model ? "model" : "tokenizer");
    if (check && write_sidecars)
        sd_usage(NULL, "--write-sidecars has no effect with --check");
    if (command && sidecar && !write_sidecars)
        sd_usage(NULL, "--sidecar has no effect with --exec");
    if (sd_shared.overwrite && !write_sidecars)
        sd_usage(NULL, "--overwrite has no effect without --write-sidecars");
    if (sidecar && (strchr(sidecar, '/') || !sidecar[strspn(sidecar, ".")]))
        sd_usage("--sidecar", "\"%s\" is not an extension", sidecar);
    if (trigger && !*trigger)
        sd_usage("--trigger", "empty");
    if (template && !sd_utf8_valid(template, strlen(template)))
        sd_usage("--caption", "not UTF-8");
    if (trigger && !sd_utf8_valid(trigger, strlen(trigger)))
        sd_usage("--trigger", "not UTF-8");
    if (template && !trigger && strstr(template, fields[TRIGGER]))
        sd_usage("--caption", "{trigger} without --trigger");
    if (template && trigger && !strstr(template, fields[TRIGGER]) && !check)
        sd_usage("--trigger", "the template has no {trigger}");
    for (const char *at = template; at && (at = strchr(at, '{')); at++)
        if (field_at(at) == FIELDS && at[1 + strspn(at + 1, "abcdefghijklmnopqrstuvwxyz_")] == '}' && at[1] != '}')
            sd_usage("--caption", "%.*s is not known; {trigger}, {caption} and {file} are",
                     (int)(strchr(at, '}') - at) + 1, at);
}

int
main(int argc, char **argv)
{
    struct sd_each each = { "captions", true, caption_one, NULL };
    struct sd_scope *s;
    int status;

    sd_threads_yield(argv);
    sd_options(&argc, &argv, options, SD_OPT_RECORDS | SD_OPT_OVERWRITE,
               "[options] [photo | folder | records ...]\n       sd-caption --tokens --model M text ...",
               "records or photos to records with captions; texts to token ids");
    check_options(argc - 1);
    s = sd_scope_open();
    if (tokens || model || tokenizer_path)
        open_tokenizer(s);
    if (tokens) {
        status = print_all_tokens(argc - 1, argv + 1);
    } else {
        if (check)
            each.holds = NULL;
        status = sd_each(argc, argv, &each);
        if (check && tokenizer)
            sd_note(0, "%zu captions, %zu without the trigger, %zu longer than a chunk, the longest %zu ids",
                    seen.captions, seen.lacking, seen.over, seen.longest);
        else if (check)
            sd_note(0, "%zu captions, %zu without the trigger", seen.captions, seen.lacking);
    }
    sd_scope_close(s);
    return sd_finish(status);
}
