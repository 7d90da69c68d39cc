/* preview - pictures in terminals. */
#include "preview.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 4096 };      /* kitty: base64 in pieces of at most this */

static void
kitty(const char *base64, size_t length)
{
    for (size_t at = 0; at < length; at += CHUNK) {
        size_t n = length - at < CHUNK ? length - at : CHUNK;

        fprintf(stderr, "\033_G%sm=%d;%.*s\033\\", at ? "" : "a=T,f=100,", at + n < length, (int)n, base64 + at);
    }
    fputc('\n', stderr);
}

int
sd_preview(const struct sd_image *image)
{
    const char *term = getenv("TERM"), *program = getenv("TERM_PROGRAM");
    bool is_kitty = getenv("KITTY_WINDOW_ID") || (term && strstr(term, "kitty"));
    bool is_iterm = program && (strcmp(program, "iTerm.app") == 0 || strcmp(program, "WezTerm") == 0);
    struct sd_scope *s;
    uint8_t *png;
    size_t size;
    char *base64;
    int status;

    if (!isatty(STDERR_FILENO) && !getenv("SD_PREVIEW_ANYWAY"))
        return sd_fail("stderr is no terminal");
    if (!is_kitty && !is_iterm)
        return sd_fail("this terminal shows no pictures (kitty and iTerm2 do)");
    s = sd_scope_open();
    status = sd_image_encode_png(s, image, NULL, &png, &size);
    if (status == 0) {
        base64 = sd_alloc(s, size / 3 * 4 + 8);
        EVP_EncodeBlock((unsigned char *)base64, png, (int)size);
        if (is_kitty)
            kitty(base64, strlen(base64));
        else
            fprintf(stderr, "\033]1337;File=inline=1;size=%zu:%s\a\n", size, base64);
    }
    sd_scope_close(s);
    return status;
}
