/* gallery - pictures in files and on sheets. */
#include "gallery.h"

#include "file.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool
ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n > m && strcasecmp(text + n - m, end) == 0;
}

/* PNG "parameters", or EXIF's UserComment */
static void
save(const char *path, const struct sd_image *image, const char *settings)
{
    const char *const texts[] = { "parameters", settings, NULL };
    bool png = ends_with(path, ".png");

    if ((png ? sd_image_save_png(path, image, settings ? texts : NULL) : sd_image_save_jpeg(path, image, 95, settings))
        < 0)
        sd_die(path, "%s", sd_reason());
}

/* -- before -------------------------------------------------------------------------------------------------------- */

static void
check_folder(const char *path, const char *folder)
{
    if (sd_shared.plan || access(sd_sprintf(NULL, "%s/.", folder), W_OK | X_OK) == 0)
        return;
    sd_fail_errno("cannot be written");
    sd_die(path, "%s", sd_reason());
}

/* It is made with the first picture: here the nearest folder that is there counts. */
static void
check_new_folder(const char *path)
{
    char *folder = sd_strdup(NULL, path), *slash;

    while (access(folder, F_OK) != 0 && errno == ENOENT && (slash = strrchr(folder, '/')) && slash > folder)
        *slash = 0;
    check_folder(path, access(folder, F_OK) == 0 || errno != ENOENT ? folder : *folder == '/' ? "/" : ".");
}

static void
check_file(const char *path)
{
    const char *slash = strrchr(path, '/');
    struct stat st;

    sd_output_refuse(path, sd_shared.overwrite || sd_shared.plan);
    if (!stat(path, &st) && S_ISDIR(st.st_mode))
        sd_die(path, "is a directory");
    check_folder(path, !slash ? "." : slash == path ? "/" : sd_strndup(NULL, path, (size_t)(slash - path)));
}

static void
check_apart(const char *a, const char *b)
{
    if (a && b && sd_same_file(a, b))
        sd_usage(a, "named for two outputs");
}

static void
check_picture(const char *option, const char *path)
{
    if (!ends_with(path, ".png") && !ends_with(path, ".jpg") && !ends_with(path, ".jpeg"))
        sd_usage(option, "%s: expected .png or .jpg", path);
    check_file(path);
}

void
sd_gallery_check(const struct sd_gallery *g)
{
    if (g->output && g->count > 1)
        sd_usage("--output", "%lld pictures need --output-dir", (long long)g->count);
    if (!g->sheet && (g->sheet_with->count || g->columns || g->scale > 1))
        sd_usage("--sheet", "the other --sheet options have no effect without it");
    if (g->output)
        check_picture("--output", g->output);
    if (g->sheet)
        check_picture("--sheet", g->sheet);
    if (g->latents)
        check_file(g->latents);
    check_apart(g->sheet, g->output);
    check_apart(g->latents, g->output);
    check_apart(g->latents, g->sheet);
    for (int64_t i = 0; g->output_dir && i < g->count; i++) {
        struct sd_scope *s = sd_scope_open();

        const char *path = sd_sprintf(s, "%s/%s", g->output_dir, sd_gallery_name(s, i));

        sd_output_refuse(path, sd_shared.overwrite || sd_shared.plan);
        check_apart(g->output, path);
        check_apart(g->sheet, path);
        check_apart(g->latents, path);
        sd_scope_close(s);
    }
    if (g->output_dir)
        check_new_folder(g->output_dir);
}

/* -- the sheet ----------------------------------------------------------------------------------------------------- */

struct sd_sheet {
    struct sd_scope *scope;
    size_t count;
    struct sd_image **image;    /* [sheet_with + pictures] */
    const char **label;
};

static void
add_to_sheet(struct sd_gallery *g, const struct sd_image *image, const char *label)
{
    struct sd_sheet *sheet = g->on_sheet;

    sheet->image[sheet->count] = sd_image_resize(sheet->scope, image, image->width * (int)g->scale,
                                                 image->height * (int)g->scale, SD_FILTER_BOX, NULL, NULL);
    sheet->label[sheet->count++] = sd_strdup(sheet->scope, label);
}

/* Known before the first picture is drawn, as far as the sizes are. */
static void
check_sheet(const struct sd_gallery *g, int64_t width, int64_t height)
{
    const struct sd_sheet *sheet = g->on_sheet;
    int64_t count = (int64_t)sheet->count + g->count, columns = g->columns < count ? g->columns : count, gap = 32;
    int64_t rows = (count + columns - 1) / columns, wide = width * g->scale, high = height * g->scale;

    for (size_t i = 0; i < sheet->count; i++) {
        wide = sheet->image[i]->width > wide ? sheet->image[i]->width : wide;
        high = sheet->image[i]->height > high ? sheet->image[i]->height : high;
    }
    if (columns * (wide + gap) > SD_IMAGE_SIDE_MAX || rows * (high + gap) > SD_IMAGE_SIDE_MAX
        || columns * (wide + gap) * rows * (high + gap) > SD_IMAGE_PIXELS_MAX)
        sd_usage("--sheet", "%lld pictures of %lldx%lld are too many for one sheet", (long long)count, (long long)wide,
                 (long long)high);
}

void
sd_gallery_open(struct sd_gallery *g, struct sd_scope *s, int64_t width, int64_t height)
{
    size_t front = g->sheet_with->count, all = front + (size_t)g->count;
    struct sd_sheet *sheet;

    if (!g->sheet)
        return;
    sheet = g->on_sheet = sd_alloc(s, sizeof *sheet);
    *sheet = (struct sd_sheet){ s, 0, sd_alloc_array(s, all, sizeof *sheet->image),
                                sd_alloc_array(s, all, sizeof *sheet->label) };
    for (size_t i = 0; i < front; i++) {
        const char *path = g->sheet_with->item[i], *slash = strrchr(path, '/');
        struct sd_image *image = sd_image_load(s, path);

        if (!image)
            sd_die(path, "%s", sd_reason());
        if (image->width > SD_IMAGE_SIDE_MAX / g->scale || image->height > SD_IMAGE_SIDE_MAX / g->scale)
            sd_usage("--sheet-scale", "%s: %dx%d is too large for it", path, image->width, image->height);
        add_to_sheet(g, image, slash ? slash + 1 : path);
    }
    check_sheet(g, width, height);
}

/* -- pictures ------------------------------------------------------------------------------------------------------ */

const char *
sd_gallery_name(struct sd_scope *s, int64_t i)
{
    return sd_sprintf(s, "%05lld.png", (long long)i);
}

bool
sd_gallery_wants_settings(const struct sd_gallery *g)
{
    return g->output || g->output_dir;
}

void
sd_gallery_add(struct sd_gallery *g, int64_t i, const struct sd_image *image, const char *settings, const char *label)
{
    struct sd_scope *s = sd_scope_open();

    if (g->output)
        save(g->output, image, settings);
    if (g->output_dir && i == 0 && sd_make_folders(g->output_dir) < 0)
        sd_die(g->output_dir, "%s", sd_reason());
    if (g->output_dir)
        save(sd_sprintf(s, "%s/%s", g->output_dir, sd_gallery_name(s, i)), image, settings);
    if (g->on_sheet)
        add_to_sheet(g, image, label);
    sd_scope_close(s);
}

void
sd_gallery_close(struct sd_gallery *g)
{
    struct sd_sheet *sheet = g->on_sheet;
    struct sd_image *all;

    if (!sheet)
        return;
    if (!(all = sd_image_sheet(sheet->scope, sheet->image, (int)sheet->count, (int)g->columns, sheet->label)))
        sd_die(g->sheet, "%s", sd_reason());
    save(g->sheet, all, NULL);
}
