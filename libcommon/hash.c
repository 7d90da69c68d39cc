/* hash.c - SHA-256 by libcrypto, XXH3-128 by xxhash, and the memory of files hashed before. */
#include "hash.h"
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
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

    while ((n = read(fd, buffer, PIECE)) > 0 || (n < 0 && errno == EINTR))
        if (n > 0)
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
    int fd = open(path, O_RDONLY | O_CLOEXEC), status;

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

/* All that must be the same, as the first words of the file that remembers. */
static void
identity(char text[128], const struct stat *st)
{
    snprintf(text, 128, "%" PRIu64 " %" PRIu64 " %" PRId64 " %" PRId64 " %" PRId64 " ", (uint64_t)st->st_dev,
             (uint64_t)st->st_ino, (int64_t)st->st_size, nanoseconds(st->st_mtim), nanoseconds(st->st_ctim));
}

static bool
recall(struct sd_scope *s, const char *memory, const char *key, char hex[SD_SHA256_HEX])
{
    size_t n, length = strlen(key);
    const char *text = sd_file_read(s, memory, 256, &n);

    if (!text || n != length + SD_SHA256_HEX || memcmp(text, key, length) || text[n - 1] != '\n'
            || strspn(text + length, "0123456789abcdef") != SD_SHA256_HEX - 1)
        return false;
    memcpy(hex, text + length, SD_SHA256_HEX - 1);
    hex[SD_SHA256_HEX - 1] = '\0';
    return true;
}

/* A hash that cannot be remembered is computed again next time; that is all. */
static void
remember(const char *memory, const char *key, const char *hex)
{
    struct sd_output *o = sd_output_open(memory);

    if (!o)
        return;
    fprintf(sd_output_file(o), "%s%s\n", key, hex);
    sd_output_commit(o);
}

int
sd_hash_file_cached(const char *path, char hex[SD_SHA256_HEX])
{
    struct sd_scope *s = sd_scope_open();
    int fd = open(path, O_RDONLY | O_CLOEXEC), status = 0;
    char before[128], after[128];
    struct timespec start;
    struct stat st;

    clock_gettime(CLOCK_REALTIME, &start);
    if (fd < 0 || fstat(fd, &st)) {
        status = sd_fail("%s", strerror(errno));
    } else {
        char *folder = sd_sprintf(s, "%s/hashes", sd_cache_folder(s));
        char *memory = sd_sprintf(s, "%s/%" PRIx64 "-%" PRIx64, folder, (uint64_t)st.st_dev, (uint64_t)st.st_ino);
        /* A file touched in the clock's last tick may change once more without another time: file systems tick in
         * jiffies, or, where there are no nanoseconds, in two seconds. */
        int64_t tick = st.st_ctim.tv_nsec ? 50000000 : 2000000000;

        identity(before, &st);
        if (!S_ISREG(st.st_mode) || !recall(s, memory, before, hex)) {
            status = hash_descriptor(fd, hex);
            if (!status && S_ISREG(st.st_mode) && nanoseconds(st.st_ctim) + tick < nanoseconds(start)
                && !fstat(fd, &st)) {
                identity(after, &st);
                if (!strcmp(before, after) && !sd_make_folders(folder))
                    remember(memory, before, hex);
            }
        }
    }
    if (fd >= 0)
        close(fd);
    sd_scope_close(s);
    return status;
}
