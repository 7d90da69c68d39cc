/* tokenizer_find.c - where a model's tokenizer is. */
#include "file.h"
#include "model/tokenizer.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool
is_folder(const char *path)
{
    struct stat st;

    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

/* "org/name", in the characters the Hub allows; ".." and hidden parts are refused. */
static bool
valid_part(const char *part, size_t length)
{
    if (!length || *part == '.' || *part == '-')
        return false;
    for (size_t i = 0; i < length; i++)
        if (!(isalnum((unsigned char)part[i]) || strchr("-_.", part[i])) || (part[i] == '.' && i && part[i - 1] == '.'))
            return false;
    return true;
}

static const char *
hub_folder(struct sd_scope *s)
{
    const char *e;

    if ((e = getenv("HF_HUB_CACHE")) && *e)
        return e;
    if ((e = getenv("HUGGINGFACE_HUB_CACHE")) && *e)
        return e;
    if ((e = getenv("HF_HOME")) && *e)
        return sd_sprintf(s, "%s/hub", e);
    if ((e = getenv("XDG_CACHE_HOME")) && *e)
        return sd_sprintf(s, "%s/huggingface/hub", e);
    return sd_sprintf(s, "%s/.cache/huggingface/hub", (e = getenv("HOME")) ? e : "");
}

const char *
sd_hub_snapshot(struct sd_scope *s, const char *name)
{
    const char *slash = strchr(name, '/'), *at = slash ? strchr(slash, '@') : NULL, *revision = at ? at + 1 : "main";
    size_t org = slash ? (size_t)(slash - name) : 0, repo = slash ? strcspn(slash + 1, "@") : 0;
    char *base, *path, *commit;
    size_t length;

    if (!slash || !valid_part(name, org) || !valid_part(slash + 1, repo) || !valid_part(revision, strlen(revision)))
        return sd_fail_null("no such file or folder, nor a name of the form org/name[@revision]");
    base = sd_sprintf(s, "%s/models--%.*s--%.*s", hub_folder(s), (int)org, name, (int)repo, slash + 1);
    if (!is_folder(base))
        return sd_fail_null("no such file or folder, nor in the Hub's cache on disk");
    path = sd_sprintf(s, "%s/refs/%s", base, revision);
    if (!access(path, R_OK) && (commit = sd_file_read(s, path, 200, &length))) {
        commit[strcspn(commit, "\r\n")] = 0;
        if (!valid_part(commit, strlen(commit)))
            return sd_fail_null("%s: not a commit", path);
        revision = commit;
    }
    path = sd_sprintf(s, "%s/snapshots/%s", base, revision);
    if (!is_folder(path))
        return sd_fail_null("revision %s is not in the Hub's cache on disk", at ? at + 1 : "main");
    return path;
}

/* For what has no tokenizer of its own.  All hold CLIP-L's tables; those of SD2 pad with "!", so that only their merge
 * list is taken: the caller says the family's pad (sd_tokenizer_set_pad). */
static struct sd_tokenizer *
published(struct sd_scope *s)
{
    static const char *const repositories[] = {
        "openai/clip-vit-large-patch14",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "runwayml/stable-diffusion-v1-5",
        "CompVis/stable-diffusion-v1-4",
        "stabilityai/stable-diffusion-2-1-base",
        "stabilityai/stable-diffusion-2-1",
        "stabilityai/stable-diffusion-2-base",
        "stabilityai/stable-diffusion-2",
        "stabilityai/stable-diffusion-xl-base-1.0",
    };
    const char *folder, *list;

    for (size_t i = 0; i < sizeof repositories / sizeof *repositories; i++)
        if ((folder = sd_hub_snapshot(s, repositories[i])))
            for (int inside = 0; inside < 2; inside++)
                if (!access(list = sd_sprintf(s, "%s/%smerges.txt", folder, inside ? "tokenizer/" : ""), R_OK))
                    return sd_tokenizer_load(s, list);
    folder = getenv("SD_DATADIR") && *getenv("SD_DATADIR") ? getenv("SD_DATADIR") : SD_DATADIR;
    if (!access(list = sd_sprintf(s, "%s/clip/merges.txt", folder), R_OK))
        return sd_tokenizer_load(s, list);
    return sd_fail_null("no tokenizer in it: give --tokenizer DIR|FILE, or run `make clip-vocabulary` once");
}

struct sd_tokenizer *
sd_tokenizer_find(struct sd_scope *s, const char *model, const char *tokenizer)
{
    if (tokenizer)
        return sd_tokenizer_load(s, tokenizer);
    if (!model)
        return published(s);
    if (access(model, F_OK) && !(model = sd_hub_snapshot(s, model)))
        return NULL;
    return is_folder(model) ? sd_tokenizer_load(s, model) : published(s);
}
