/* prompts - from options, files and records. */
#include "prompts.h"

#include "file.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void
add(struct sd_prompts *p, const char *text, const char *negative, const struct sd_record *record)
{
    if (p->count == p->room) {
        struct sd_prompt_line *grown = sd_alloc_array(p->scope, 2 * p->room + 8, sizeof *grown);

        if (p->count)
            memcpy(grown, p->line, p->count * sizeof *grown);
        p->line = grown;
        p->room = 2 * p->room + 8;
    }
    p->line[p->count++] = (struct sd_prompt_line){ .prompt = sd_strdup(p->scope, text),
                                                   .negative = negative,
                                                   .record = record };
}

static int
take_record(struct sd_scope *s SD_UNUSED, struct sd_record *record, void *user)
{
    /* what told of the photo that the caption was of, and would be wrong of the picture drawn */
    static const char *const of_the_photo[] = { "id",
                                                "source",
                                                "pixel_values",
                                                "mask",
                                                "original_size",
                                                "target_size",
                                                "crop_top_left",
                                                "bucket",
                                                "pixels_hash",
                                                "latents_mean",
                                                "latents_logvar",
                                                "latent_mask",
                                                "vae_hash",
                                                "encoder_hidden_states" };
    struct sd_prompts *p = user;
    const char *text = sd_record_text(record, "prompt"), *negative = sd_record_text(record, "negative_prompt");

    if (!text)
        text = sd_record_text(record, "caption");
    if (!text)
        return sd_fail("a record without prompt or caption");
    for (size_t i = 0; i < sizeof of_the_photo / sizeof *of_the_photo; i++)
        sd_record_remove(record, of_the_photo[i]);
    add(p, text, negative ? sd_strdup(p->scope, negative) : NULL, sd_record_copy(p->scope, record));
    return 0;
}

static void
read_prompt_file(struct sd_prompts *p, const char *path)
{
    size_t length, before = p->count;
    char *text = sd_file_read(p->scope, path, 64 << 20, &length), *line, *next;

    if (!text)
        sd_die(path, "%s", sd_reason());
    if (memchr(text, 0, length))
        sd_die(path, "neither lines of text nor records");
    line = strncmp(text, "\xef\xbb\xbf", 3) == 0 ? text + 3 : text;        /* an editor's mark */
    for (; line < text + length; line = next) {
        char *end = memchr(line, '\n', (size_t)(text + length - line));

        next = end ? end + 1 : text + length;
        if (end)
            *end = 0;
        if (end && end > line && end[-1] == '\r')
            end[-1] = 0;
        if (line[strspn(line, " \t")])
            add(p, line, NULL, NULL);
    }
    if (p->count == before)
        sd_warn(path, "no prompt in it");
}

static bool
something_on_stdin(void)
{
    struct stat st;

    return fstat(0, &st) == 0
           && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode) || (S_ISREG(st.st_mode) && st.st_size > 0));
}

int
sd_prompts_collect(struct sd_prompts *p, const struct sd_list *given, const struct sd_list *negatives, int argc,
                   char **argv)
{
    static char *standard_input[] = { "", "-" };
    int status = SD_OK;

    for (size_t i = 0; i < given->count; i++)
        add(p, given->item[i], NULL, NULL);
    if (argc == 1 && !given->count && something_on_stdin()) {
        argc = 2;
        argv = standard_input;
    }
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-") == 0 || sd_is_record_stream(argv[i])) {
            struct sd_each each = { .one = take_record, .user = p };
            int each_status = sd_each(2, (char *[]){ argv[0], argv[i] }, &each);

            if (each_status == SD_FAILED)
                exit(sd_finish(SD_FAILED));
            status |= each_status;
        } else
            read_prompt_file(p, argv[i]);
    }
    if (!p->count)
        sd_usage(NULL, "no prompt: give --prompt, a file of prompts, or records");
    if (negatives->count > 1 && negatives->count != p->count)
        sd_usage("--negative-prompt", "%zu given for %zu prompts: give one, or one for each", negatives->count,
                 p->count);
    for (size_t i = 0; i < p->count; i++)
        if (!p->line[i].negative)
            p->line[i].negative = negatives->count ? negatives->item[negatives->count > 1 ? i : 0] : "";
    return status;
}
