/* cache.c - entries lie in FOLDER/ab/cdef....safetensors.  Published by linking a complete file, so that there is no
 * moment at which half of one has a name; the first writer wins. */
#include "cache.h"
#include "file.h"
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <msgpack.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- keys --------------------------------------------------------------------------------------------------- */

struct part {
    const char *name, *text;
    int64_t number;
    enum sd_dtype dtype;
    int ndim;
    const int64_t *shape;
    const void *data;
    size_t bytes;
};

struct sd_key {
    struct sd_scope *scope;
    struct part part[32];
    size_t count;
};

struct sd_key *
sd_key_new(struct sd_scope *s)
{
    struct sd_key *k = sd_alloc(s, sizeof *k);

    k->scope = s;
    return k;
}

static struct part *
add_part(struct sd_key *k, const char *name)
{
    for (size_t i = 0; i < k->count; i++)
        if (!strcmp(k->part[i].name, name))
            sd_bug("sd_key", "%s twice", name);
    if (k->count == sizeof k->part / sizeof *k->part)
        sd_bug("sd_key", "%zu parts", k->count);
    k->part[k->count].name = name;
    return &k->part[k->count++];
}

void
sd_key_text(struct sd_key *k, const char *name, const char *text)
{
    add_part(k, name)->text = text;
}

void
sd_key_int(struct sd_key *k, const char *name, int64_t value)
{
    add_part(k, name)->number = value;
}

void
sd_key_data(struct sd_key *k, const char *name, enum sd_dtype dtype, int ndim, const int64_t *shape, const void *data)
{
    struct part *p = add_part(k, name);
    size_t bytes = sd_dtype_size(dtype);

    for (int i = 0; i < ndim; i++)
        bytes *= (size_t)shape[i];
    p->dtype = dtype;
    p->ndim = ndim;
    p->shape = shape;
    p->data = data;
    p->bytes = bytes;
}

static int
by_name(const void *a, const void *b)
{
    return strcmp(((const struct part *)a)->name, ((const struct part *)b)->name);
}

static int
put_sha(void *h, const char *bytes, size_t n)
{
    sd_sha256_update(h, bytes, n);
    return 0;
}

static void
pack_text(msgpack_packer *pk, const char *text)
{
    msgpack_pack_str_with_body(pk, text, strlen(text));
}

void
sd_key_hex(struct sd_key *k, char hex[SD_SHA256_HEX])
{
    struct sd_sha256 *h = sd_sha256_new(k->scope);
    msgpack_packer pk;

    msgpack_packer_init(&pk, h, put_sha);
    qsort(k->part, k->count, sizeof *k->part, by_name);
    msgpack_pack_map(&pk, k->count);
    for (size_t i = 0; i < k->count; i++) {
        const struct part *p = &k->part[i];

        pack_text(&pk, p->name);
        if (p->text) {
            pack_text(&pk, p->text);
        } else if (p->data) {
            msgpack_pack_map(&pk, 3);
            pack_text(&pk, "data");
            msgpack_pack_bin(&pk, p->bytes);
            msgpack_pack_bin_body(&pk, p->data, p->bytes);
            pack_text(&pk, "dtype");
            pack_text(&pk, sd_dtype_name(p->dtype));
            pack_text(&pk, "shape");
            msgpack_pack_array(&pk, (size_t)p->ndim);
            for (int d = 0; d < p->ndim; d++)
                msgpack_pack_int64(&pk, p->shape[d]);
        } else {
            msgpack_pack_int64(&pk, p->number);
        }
    }
    sd_sha256_hex(h, hex);
}

/* ---- entries ------------------------------------------------------------------------------------------------ */

static const char data_hash[] = "xxh3_128", head_hash[] = "xxh3_128_header";

struct sd_cache {
    const char *folder;
};

struct sd_cache *
sd_cache_open(struct sd_scope *s, const char *folder)
{
    struct sd_cache *c = sd_alloc(s, sizeof *c);

    c->folder = folder ? sd_strdup(s, folder) : sd_cache_folder(s);
    return c;
}

static char *
entry_path(const struct sd_cache *c, struct sd_scope *s, const char *key)
{
    if (strlen(key) != SD_SHA256_HEX - 1 || strspn(key, "0123456789abcdef") != SD_SHA256_HEX - 1)
        sd_bug("sd_cache", "key %s", key);
    return sd_sprintf(s, "%s/%.2s/%s.safetensors", c->folder, key, key + 2);
}

/* The hash of the header without its own: it is written in one way only, so it is made again from what was read. */
static int
hash_header(const struct sd_safetensors *f, char hex[SD_XXH128_HEX])
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);
    int status = 0;

    for (size_t i = 0; i < sd_safetensors_metadata_count(f); i++) {
        const char *value, *name = sd_safetensors_metadata_at(f, i, &value);

        if (strcmp(name, head_hash))
            sd_safetensors_set_metadata(w, name, value);
    }
    for (size_t i = 0; i < sd_safetensors_count(f) && !status; i++) {
        const struct sd_safetensor *t = sd_safetensors_at(f, i);

        if (!sd_dtype_size(t->dtype) || strlen(t->name) != t->name_length)
            status = sd_fail("a tensor that is never written");
        else
            sd_safetensors_add(w, t->name, t->dtype, t->ndim, t->shape, t->data);
    }
    if (!status)
        status = sd_safetensors_header_hash(w, hex);
    sd_scope_close(s);
    return status;
}

static int
check_entry(const struct sd_safetensors *f, const char *key)
{
    const char *data = sd_safetensors_metadata(f, data_hash), *head = sd_safetensors_metadata(f, head_hash);
    const char *named = sd_safetensors_metadata(f, "key");
    char found[SD_XXH128_HEX];
    const void *region;
    size_t bytes;

    region = sd_safetensors_region(f, &bytes);
    sd_xxh128_of(region, bytes, found);
    if (!data || strcmp(data, found))
        return sd_fail("its data do not fit their hash");
    if (hash_header(f, found))
        return -1;
    if (!head || strcmp(head, found))
        return sd_fail("its header does not fit its hash");
    if (!named || strcmp(named, key))
        return sd_fail("it is that of another key");
    return 0;
}

int
sd_cache_get(struct sd_cache *c, struct sd_scope *s, const char *key, struct sd_safetensors **entry)
{
    const char *path = entry_path(c, s, key);
    struct stat seen, now;

    if (stat(path, &seen))
        return errno == ENOENT || errno == ENOTDIR ? 0 : sd_fail_errno("%s", path);
    if (access(path, R_OK))
        return errno == ENOENT ? 0 : sd_fail_errno("%s", path);
    if ((*entry = sd_safetensors_open(s, path)) && !check_entry(*entry, key))
        return 1;
    *entry = NULL;
    sd_warn(path, "damaged cache entry (%s), removed and made again", sd_reason());
    /* Not if another process has put a new one there meanwhile. */
    if (!stat(path, &now) && now.st_ino == seen.st_ino && now.st_dev == seen.st_dev && unlink(path) && errno != ENOENT)
        return sd_fail_errno("%s", path);
    return 0;
}

/* An open file without a name where the file system can do that, else with one of its own. */
static int
open_temporary(const char *folder, const char *name)
{
    int fd = sd_open(folder, O_TMPFILE | O_RDWR);

    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT || errno == EINVAL))
        fd = sd_open(name, O_RDWR | O_CREAT | O_EXCL);
    return fd;
}

/* Gives the file its name, if the name is free. */
static int
publish(int fd, const char *name, const char *path)
{
    char self[64];

    if (!access(name, F_OK)) {
        int status = link(name, path), e = errno;

        if (status && e == EPERM)               /* a file system without links: there the last one wins */
            return rename(name, path);
        unlink(name);
        errno = e;
        return status;
    }
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    return linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW);
}

int
sd_cache_put(struct sd_cache *c, const char *key, struct sd_safetensors_writer *w)
{
    struct sd_scope *s = sd_scope_open();
    char *path = entry_path(c, s, key), *folder = sd_strndup(s, path, (size_t)(strrchr(path, '/') - path));
    char *name = sd_sprintf(s, "%s.%ld.%lx", path, (long)getpid(), (unsigned long)(uintptr_t)s);
    char hash[SD_XXH128_HEX];
    struct stat st;
    FILE *f = NULL;
    int fd = -1, status = -1;

    if (!stat(path, &st)) {
        status = 0;
        goto out;
    }
    if (sd_make_folders(folder) || sd_safetensors_data_hash(w, hash))
        goto out;
    sd_safetensors_set_metadata(w, "key", key);
    sd_safetensors_set_metadata(w, data_hash, hash);
    if (sd_safetensors_header_hash(w, hash))
        goto out;
    sd_safetensors_set_metadata(w, head_hash, hash);
    if ((fd = open_temporary(folder, name)) < 0 || !(f = sd_stream(fd, "w"))) {
        sd_fail_errno("%s: cannot be written", folder);
        if (fd >= 0)
            close(fd);
        goto out;
    }
    if (sd_safetensors_write(w, f)) {
        sd_fail_prefix("%s", folder);
        unlink(name);
    } else if (fflush(f) || sd_fsync(fd) || (publish(fd, name, path) && errno != EEXIST)) {
        sd_fail_errno("%s: cannot be written", path);
        unlink(name);
    } else {
        status = 0;
    }
out:
    if (f)
        fclose(f);
    sd_scope_close(s);
    return status;
}
