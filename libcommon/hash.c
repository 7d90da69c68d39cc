/* hash.c - SHA-256 by libcrypto, XXH3-128 by xxhash, and the memory of files hashed before. */
#include "hash.h"
#include "file.h"
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

enum { PIECE = 1 << 20 };

struct sd_sha256 {
    EVP_MD_CTX *context;
};

void
sd_hex(char *hex, const void *bytes, size_t n)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *p = bytes;

    for (size_t i = 0; i < n; i++) {
        hex[2 * i] = digits[p[i] >> 4];
        hex[2 * i + 1] = digits[p[i] & 15];
    }
    hex[2 * n] = '\0';
}

static void
free_context(void *context)
{
    EVP_MD_CTX_free(context);
}

struct sd_sha256 *
sd_sha256_new(struct sd_scope *s)
{
    struct sd_sha256 *h = sd_alloc(s, sizeof *h);

    /* Weights are hashed in a thread beside the work: libcrypto's own end must not take its tables away from under it
     * when the program dies meanwhile. */
    OPENSSL_init_crypto(OPENSSL_INIT_NO_ATEXIT, NULL);
    if (!(h->context = EVP_MD_CTX_new()) || !EVP_DigestInit_ex(h->context, EVP_sha256(), NULL))
        sd_die("memory", "no room for SHA-256");
    sd_on_close(s, free_context, h->context);
    return h;
}

void
sd_sha256_update(struct sd_sha256 *h, const void *data, size_t bytes)
{
    if (!EVP_DigestUpdate(h->context, data, bytes))
        sd_bug("sd_sha256_update", "used after its end");
}

void
sd_sha256_hex(struct sd_sha256 *h, char hex[SD_SHA256_HEX])
{
    unsigned char digest[32];

    if (!EVP_DigestFinal_ex(h->context, digest, NULL))
        sd_bug("sd_sha256_hex", "used after its end");
    sd_hex(hex, digest, sizeof digest);
}

void
sd_sha256_of(const void *data, size_t bytes, char hex[SD_SHA256_HEX])
{
    struct sd_scope *s = sd_scope_open();
    struct sd_sha256 *h = sd_sha256_new(s);

    sd_sha256_update(h, data, bytes);
    sd_sha256_hex(h, hex);
    sd_scope_close(s);
}

void
sd_xxh128_of(const void *data, size_t bytes, char hex[SD_XXH128_HEX])
{
    XXH128_canonical_t digest;

    XXH128_canonicalFromHash(&digest, XXH3_128bits(data, bytes));
    sd_hex(hex, digest.digest, sizeof digest.digest);
}

static int
hash_descriptor(int fd, char hex[SD_SHA256_HEX])
{
    struct sd_scope *s = sd_scope_open();
    struct sd_sha256 *h = sd_sha256_new(s);
    void *buffer = sd_alloc(s, PIECE);
    ssize_t n;

    while ((n = sd_read(fd, buffer, PIECE)) > 0)
        sd_sha256_update(h, buffer, (size_t)n);
    if (n < 0)
        sd_fail_errno("cannot be read");
    else
        sd_sha256_hex(h, hex);
    sd_scope_close(s);
    return n < 0 ? -1 : 0;
}

int
sd_hash_file(const char *path, char hex[SD_SHA256_HEX])
{
    int fd = sd_open(path, O_RDONLY), status;

    if (fd < 0)
        return sd_fail("%s", strerror(errno));
    status = hash_descriptor(fd, hex);
    close(fd);
    return status;
}

/* ---- memory ------------------------------------------------------------------------------------------------- */

static int64_t
nanoseconds(struct timespec t)
{
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

struct sd_hash_memory {
    struct sd_scope *scope;
    const char *what, *folder, *path, *key;
    size_t files;
    struct timespec start;
    bool usable;
};

/* SHA-256 of what is remembered and of which files; with_times: of how they are, too. */
static char *
identity(const struct sd_hash_memory *m, const struct stat *st, bool with_times)
{
    struct sd_sha256 *h = sd_sha256_new(m->scope);
    char *hex = sd_alloc(m->scope, SD_SHA256_HEX), text[128];

    sd_sha256_update(h, m->what, strlen(m->what) + 1);
    for (size_t i = 0; i < m->files; i++) {
        int n = snprintf(text, sizeof text, "%" PRIu64 " %" PRIu64 "\n", (uint64_t)st[i].st_dev, (uint64_t)st[i].st_ino);

        if (with_times)
            n = snprintf(text, sizeof text, "%" PRIu64 " %" PRIu64 " %" PRId64 " %" PRId64 " %" PRId64 "\n",
                         (uint64_t)st[i].st_dev, (uint64_t)st[i].st_ino, (int64_t)st[i].st_size,
                         nanoseconds(st[i].st_mtim), nanoseconds(st[i].st_ctim));
        sd_sha256_update(h, text, (size_t)n);
    }
    sd_sha256_hex(h, hex);
    return hex;
}

struct sd_hash_memory *
sd_hash_memory(struct sd_scope *s, const char *what, const struct stat *st, size_t files)
{
    struct sd_hash_memory *m = sd_alloc(s, sizeof *m);

    *m = (struct sd_hash_memory){ .scope = s, .what = what, .files = files, .usable = true };
    clock_gettime(CLOCK_REALTIME, &m->start);
    m->folder = sd_sprintf(s, "%s/hashes", sd_cache_folder(s));
    m->path = sd_sprintf(s, "%s/%.32s", m->folder, identity(m, st, false));
    m->key = sd_sprintf(s, "%s ", identity(m, st, true));
    for (size_t i = 0; i < files; i++)
        m->usable &= S_ISREG(st[i].st_mode);
    return m;
}

bool
sd_hash_recall(const struct sd_hash_memory *m, char hex[SD_SHA256_HEX])
{
    size_t n, length = strlen(m->key);
    const char *text = m->usable ? sd_file_read(m->scope, m->path, 256, &n) : NULL;

    if (!text || n != length + SD_SHA256_HEX || memcmp(text, m->key, length) || text[n - 1] != '\n'
            || strspn(text + length, "0123456789abcdef") != SD_SHA256_HEX - 1)
        return false;
    memcpy(hex, text + length, SD_SHA256_HEX - 1);
    hex[SD_SHA256_HEX - 1] = '\0';
    return true;
}

void
sd_hash_remember(const struct sd_hash_memory *m, const struct stat *now, const char *hex)
{
    struct sd_output *o;

    if (!m->usable || strncmp(m->key, identity(m, now, true), SD_SHA256_HEX - 1) != 0)
        return;
    for (size_t i = 0; i < m->files; i++) {
        /* A file touched in the clock's last tick may change once more without another time: file systems tick in
         * jiffies, or, where there are no nanoseconds, in two seconds. */
        int64_t tick = now[i].st_ctim.tv_nsec ? 50000000 : 2000000000;

        if (nanoseconds(now[i].st_ctim) + tick >= nanoseconds(m->start))
            return;
    }
    if (sd_make_folders(m->folder) || !(o = sd_output_open(m->path)))
        return;
    fprintf(sd_output_file(o), "%s%s\n", m->key, hex);
    sd_output_commit(o);
}

int
sd_hash_file_cached(const char *path, char hex[SD_SHA256_HEX])
{
    struct sd_scope *s = sd_scope_open();
    int fd = sd_open(path, O_RDONLY), status = 0;
    struct stat st;

    if (fd < 0 || fstat(fd, &st)) {
        status = sd_fail("%s", strerror(errno));
    } else {
        struct sd_hash_memory *m = sd_hash_memory(s, "", &st, 1);

        if (!sd_hash_recall(m, hex) && !(status = hash_descriptor(fd, hex)) && !fstat(fd, &st))
            sd_hash_remember(m, &st, hex);
    }
    if (fd >= 0)
        close(fd);
    sd_scope_close(s);
    return status;
}
