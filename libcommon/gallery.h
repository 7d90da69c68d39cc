/* gallery.h - where pictures go: a file, a folder of numbered files, a contact sheet.
 *
 * One rule: what cannot be written is said before anything is drawn, and each picture is published as soon as it is
 * there. */
#ifndef SD_GALLERY_H
#define SD_GALLERY_H

#include "image.h"
#include "opt.h"

struct sd_gallery {
    const char *output;         /* the one picture, .png or .jpg; NULL */
    const char *output_dir;     /* 00000.png, 00001.png ...; NULL */
    const char *sheet;          /* NULL */
    const char *latents;        /* a file that the caller writes; NULL */
    const struct sd_list *sheet_with;   /* pictures put on the sheet in front */
    int64_t columns, scale;     /* of the sheet: pictures side by side; how often each is enlarged */
    int64_t count;              /* pictures to come */
    struct sd_sheet *on_sheet;  /* the gallery's own */
};

/* sd_gallery_check - names, existing files, one file for two outputs (status 2), folders that cannot be written (3). */
void sd_gallery_check(const struct sd_gallery *g);
/* sd_gallery_open - loads what goes in front on the sheet, refuses a sheet too large for pictures of this size. */
void sd_gallery_open(struct sd_gallery *g, struct sd_scope *s, int64_t width, int64_t height);
/* sd_gallery_wants_settings - are pictures saved with settings inside?  sd_gallery_name - "00003.png" in scope s. */
bool sd_gallery_wants_settings(const struct sd_gallery *g);
const char *sd_gallery_name(struct sd_scope *s, int64_t i);
/* sd_gallery_add - picture i, its settings, its label on the sheet; the first makes output_dir.
 * sd_gallery_close - saves the sheet.  A failed write ends the program. */
void sd_gallery_add(struct sd_gallery *g, int64_t i, const struct sd_image *image, const char *settings,
                    const char *label);
void sd_gallery_close(struct sd_gallery *g);

#endif
