/* opt_print.c - options printed: --help, --help=json, and the settings of a run as JSON. */
#include "opt_private.h"

#include "json.h"

#include <stdlib.h>
#include <string.h>

json_t *
sd_opt_value(const struct sd_opt *o)
{
    const struct sd_list *list = o->value;
    json_t *array;

    if (!o->value)
        return NULL;
    switch (o->kind) {
    case SD_OPT_FLAG: return json_boolean(*(bool *)o->value);
    case SD_OPT_INT:
    case SD_OPT_SIZE: return json_integer(*(int64_t *)o->value);
    case SD_OPT_REAL: return json_real(*(double *)o->value);
    case SD_OPT_TEXT:
    case SD_OPT_CHOICE: {
        const char *text = *(const char **)o->value;

        return text && *text ? json_string(text) : NULL;
    }
    case SD_OPT_LIST:
        if (!list->count)
            return NULL;
        array = json_array();
        for (size_t i = 0; i < list->count; i++)
            json_array_append_new(array, json_string(list->item[i]));
        return array;
    case SD_OPT_END: break;
    }
    return NULL;
}

void
sd_opt_print_help(const char *synopsis, const char *purpose)
{
    static char all[1 << 16];       /* written at once, by sd_finish: a full disk is then named */

    setvbuf(stdout, all, _IOFBF, sizeof all);
    printf("usage: %s %s\n%s\n\noptions:\n", sd_program, synopsis, purpose);
    for (size_t i = 0; i < sd_opt_count; i++) {
        const struct sd_opt *o = sd_opt_entries[i].opt;
        char left[256], letter[8] = "    ";

        if (o->short_name)
            snprintf(letter, sizeof letter, "-%c, ", o->short_name);
        snprintf(left, sizeof left, "  %s--%s%s%s", letter, o->name, sd_opt_takes_value(o) ? " " : "",
                 sd_opt_takes_value(o) && o->argument ? o->argument : "");
        printf("%-34s%s%s\n", left, strlen(left) > 32 ? "\n                                  " : "", o->help);
    }
    exit(sd_finish(SD_OK));
}

void
sd_opt_print_json(const char *synopsis, const char *purpose)
{
    static const char *const kinds[] = { "", "flag", "integer", "real", "text", "list", "choice", "size" };
    json_t *all = json_object(), *options = json_array();

    for (size_t i = 0; i < sd_opt_count; i++) {
        const struct sd_opt *o = sd_opt_entries[i].opt;
        json_t *j = json_object(), *value = strcmp(o->name, "help") == 0 ? NULL : sd_opt_value(o);

        json_object_set_new(j, "name", json_string(o->name));
        if (o->short_name)
            json_object_set_new(j, "short", json_stringn(&o->short_name, 1));
        json_object_set_new(j, "kind", json_string(kinds[o->kind]));
        if (o->argument)
            json_object_set_new(j, "argument", json_string(o->argument));
        if (o->kind == SD_OPT_CHOICE) {
            json_t *choices = json_array();

            for (const char *w = o->argument; w; w = strchr(w, '|') ? strchr(w, '|') + 1 : NULL)
                json_array_append_new(choices, json_stringn(w, strcspn(w, "|")));
            json_object_set_new(j, "choices", choices);
        }
        if (o->min != 0 || o->max != 0) {
            json_object_set_new(j, "min", json_real(o->min));
            json_object_set_new(j, "max", json_real(o->max));
        }
        if (value)
            json_object_set_new(j, "default", value);
        json_object_set_new(j, "help", json_string(o->help));
        json_object_set_new(j, "shared", json_boolean(!sd_opt_entries[i].own));
        json_array_append_new(options, j);
    }
    json_object_set_new(all, "program", json_string(sd_program));
    json_object_set_new(all, "version", json_string(SD_VERSION));
    json_object_set_new(all, "purpose", json_string(purpose));
    json_object_set_new(all, "synopsis", json_string(synopsis));
    json_object_set_new(all, "options", options);
    json_dumpf(all, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(all);
    exit(sd_finish(SD_OK));
}

/* An option whose argument is called FILE, DIR, PATH or MODEL names a place on this machine, not a setting. */
static bool
is_path(const struct sd_opt *o)
{
    return o->argument && (strstr(o->argument, "FILE") || strstr(o->argument, "DIR") || strstr(o->argument, "PATH")
                           || strstr(o->argument, "MODEL"));
}

json_t *
sd_options_json(const char *const *except)
{
    json_t *settings = json_object();

    for (size_t i = 0; i < sd_opt_count; i++) {
        const struct sd_opt *o = sd_opt_entries[i].opt;
        bool wanted = !is_path(o) && (sd_opt_entries[i].own || o->value == &sd_shared.seed
                                      || o->value == &sd_shared.dtype);
        json_t *value;

        for (size_t j = 0; except && except[j] && wanted; j++)
            wanted = strcmp(except[j], o->name) != 0;
        if (wanted && (value = sd_opt_value(o)))
            json_object_set_new(settings, o->name, value);
    }
    return settings;
}
