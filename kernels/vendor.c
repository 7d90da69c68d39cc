/* vendor.c - finding NVIDIA's libraries. */
#include "vendor.h"

#include <dlfcn.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "diag.h"

bool vendor_tf32;

static void *
open_in(const char *folder, size_t length, const char *const *names)
{
    struct sd_scope *s = sd_scope_open();
    void *library = NULL;

    for (size_t i = 0; names[i] && !library; i++) {
        const char *path = sd_sprintf(s, "%.*s/%s", (int)length, folder, names[i]);

        if (access(path, F_OK) == 0 && !(library = dlopen(path, RTLD_NOW | RTLD_LOCAL)))
            sd_fail("%s", dlerror());
    }
    sd_scope_close(s);
    return library;
}

static void *
open_matching(const char *pattern, const char *const *names)
{
    void *library = NULL;
    glob_t found;

    if (glob(pattern, GLOB_BRACE | GLOB_ONLYDIR, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc && !library; i++)
            library = open_in(found.gl_pathv[i], strlen(found.gl_pathv[i]), names);
        globfree(&found);
    }
    return library;
}

static const char packages[] = "/python3*/{site,dist}-packages/nvidia/{cu13,cu12,cublas,cudnn,cuda_nvrtc}/lib";

/* An environment's bin/python3 is a link, and another may lead to it: its packages lie beside any of them. */
static void *
open_beside_python(struct sd_scope *s, const char *const *names)
{
    const char *path = getenv("PATH");
    char at[4096] = "", to[4096];
    void *library = NULL;

    for (const char *f = path; f && *f && !*at; ) {
        size_t n = strcspn(f, ":");

        if (n && n + sizeof "/python3" <= sizeof at) {
            snprintf(at, sizeof at, "%.*s/python3", (int)n, f);
            if (access(at, X_OK))
                *at = '\0';
        }
        f += n + (f[n] == ':');
    }
    for (int i = 0; i < 16 && *at && !library; i++) {
        char *name = strrchr(at, '/');
        ssize_t n;

        library = open_matching(sd_sprintf(s, "%.*s/../lib%s", (int)(name - at), at, packages), names);
        n = readlink(at, to, sizeof to - 1);
        if (n <= 0)
            break;
        to[n] = '\0';
        if (*to == '/')
            name = at;
        else
            name++;
        if ((size_t)(name - at) + (size_t)n >= sizeof at)
            break;
        memcpy(name, to, (size_t)n + 1);
    }
    return library;
}

void *
vendor_open(const char *const *names)
{
    static const char *const prefixes[] = { "VIRTUAL_ENV", "CONDA_PREFIX" }, *const toolkits[] = { "CUDA_HOME", "CUDA_PATH" };
    const char *own = getenv("SD_CUDA_LIBS"), *home = getenv("HOME");
    struct sd_scope *s = sd_scope_open();
    void *library = NULL;

    sd_fail("%s: not found", names[0]);
    for (const char *f = own; f && *f && !library; ) {
        size_t n = strcspn(f, ":");

        if (n)
            library = open_in(f, n, names);
        f += n + (f[n] == ':');
    }
    if (!own || *own) {
        for (size_t i = 0; names[i] && !library; i++)
            library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        for (size_t i = 0; i < sizeof toolkits / sizeof *toolkits && !library; i++)
            if (getenv(toolkits[i]))
                library = open_matching(sd_sprintf(s, "%s/{lib64,lib}", getenv(toolkits[i])), names);
        if (!library)
            library = open_matching("/usr/local/cuda/{lib64,lib}", names);
        for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes && !library; i++)
            if (getenv(prefixes[i]))
                library = open_matching(sd_sprintf(s, "%s/lib%s", getenv(prefixes[i]), packages), names);
        if (!library)
            library = open_beside_python(s, names);
        if (!library && home)
            library = open_matching(sd_sprintf(s, "%s/.local/lib%s", home, packages), names);
        if (!library)
            library = open_matching(sd_sprintf(s, "/usr/{local/,}lib%s", packages), names);
    }
    sd_scope_close(s);
    return library;
}

bool
vendor_find(void *library, const char *name, void *function)
{
    void *f = dlsym(library, name);

    memcpy(function, &f, sizeof f);
    return f || sd_fail("%s is not in the library", name) == 0;
}
