/* infotext - a picture's settings in A1111's words. */
#include "infotext.h"

#include <string.h>

static const char *
sampler_name(const char *ours)
{
    static const char *const names[][2] = { { "ddim", "DDIM" }, { "euler", "Euler" }, { "euler_a", "Euler a" },
                                            { "dpmpp_2m", "DPM++ 2M" }, { "dpmpp_2m_karras", "DPM++ 2M Karras" },
                                            { "unipc", "UniPC" }, { "pndm", "PLMS" } };

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i][0], ours) == 0)
            return names[i][1];
    return ours;
}

/* name with quotes and backslashes escaped, as JSON does, for a value in quotes */
static const char *
escaped(struct sd_scope *s, const char *name)
{
    char *to = sd_alloc(s, 2 * strlen(name) + 1), *p = to;

    for (; *name; name++) {
        if (*name == '"' || *name == '\\')
            *p++ = '\\';
        *p++ = *name;
    }
    return to;
}

/* list, "name: hash" */
static const char *
listed(struct sd_scope *s, const char *list, const char *name, int digits, const char *hash)
{
    return sd_sprintf(s, "%s%s%s: %.*s", list, *list ? ", " : "", escaped(s, name), digits, hash);
}

/* text, KEY: "LIST" */
static const char *
with_hashes(struct sd_scope *s, const char *text, const struct sd_infotext *info)
{
    const char *loras = "", *tokens = "";

    for (size_t i = 0; info->set && i < info->set->count; i++)
        if (info->set->use[i].file->hash)
            loras = listed(s, loras, info->set->use[i].file->name, 12, info->set->use[i].file->hash);
    for (size_t i = 0; info->concepts && i < info->concepts->count; i++)
        if (info->concepts->concept[i].used)
            tokens = listed(s, tokens, info->concepts->concept[i].token, 10, info->concepts->concept[i].hash);
    if (*loras)
        text = sd_sprintf(s, "%s, Lora hashes: \"%s\"", text, loras);
    return *tokens ? sd_sprintf(s, "%s, TI hashes: \"%s\"", text, tokens) : text;
}

const char *
sd_infotext(struct sd_scope *s, const struct sd_infotext *i)
{
    const char *text = sd_sprintf(s, "%s\n", i->prompt);

    if (i->negative && *i->negative)
        text = sd_sprintf(s, "%sNegative prompt: %s\n", text, i->negative);
    text = sd_sprintf(s, "%sSteps: %d, Sampler: %s, CFG scale: %g, Seed: %lld, Size: %lldx%lld", text, i->steps,
                      sampler_name(i->sampler), i->guidance_scale, (long long)i->seed, (long long)i->width,
                      (long long)i->height);
    if (i->model_hash)
        text = sd_sprintf(s, "%s, Model hash: %.10s", text, i->model_hash);
    if (i->strength > 0)
        text = sd_sprintf(s, "%s, Denoising strength: %g", text, i->strength);
    if (i->clip_skip)
        text = sd_sprintf(s, "%s, Clip skip: %d", text, i->clip_skip + 1);
    if (i->guidance_rescale > 0)
        text = sd_sprintf(s, "%s, CFG Rescale: %g", text, i->guidance_rescale);
    if (i->torch)
        text = sd_sprintf(s, "%s, RNG: CPU", text);
    text = with_hashes(s, text, i);
    return sd_sprintf(s, "%s, Version: sd-tools %s", text, SD_VERSION);
}
