/* The cache: what is put is got, damage of any byte is noticed, many writers at once, keys. */
#include "../check.h"
#include "../child.h"
#include "cache.h"

#include <sys/stat.h>

static const char key[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
static const char path[] = "cache/01/23456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.safetensors";
static float values[] = { 1, 2, 3, 4.5f, -5, 6 };

static int
put(struct sd_cache *c, const char *k)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors_writer *w = sd_safetensors_writer_new(s);
    int status;

    sd_safetensors_add(w, "latents_mean", SD_F32, 2, (int64_t[]){ 2, 3 }, values);
    sd_safetensors_add(w, "latents_logvar", SD_F32, 1, (int64_t[]){ 6 }, values);
    status = sd_cache_put(c, k, w);
    sd_scope_close(s);
    return status;
}

/* 1 when the entry is got and is what was put. */
static int
get(struct sd_cache *c, const char *k)
{
    struct sd_scope *s = sd_scope_open();
    struct sd_safetensors *f;
    const struct sd_safetensor *t;
    int status = sd_cache_get(c, s, k, &f);

    if (status == 1) {
        t = sd_safetensors_get(f, "latents_mean", 2, (int64_t[]){ 2, 3 });
        if (!t || t->dtype != SD_F32 || memcmp(t->data, values, sizeof values)
                || !sd_safetensors_get(f, "latents_logvar", 1, (int64_t[]){ 6 }))
            status = 2;
    }
    sd_scope_close(s);
    return status;
}

static int
damage(void *argument)
{
    struct sd_cache *c = sd_cache_open(NULL, "cache");
    char bytes[4096];
    FILE *f;
    size_t n;

    (void)argument;
    if (put(c, key) || !(f = fopen(path, "rb")))
        return 90;
    n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    sd_verbosity = -1;
    for (size_t i = 0; i < n; i++)
        for (int bit = 0; bit < 8; bit++) {
            unlink(path);
            f = fopen(path, "wb");
            bytes[i] ^= (char)(1 << bit);
            fwrite(bytes, 1, n, f);
            fclose(f);
            bytes[i] ^= (char)(1 << bit);
            if (get(c, key) != 0 || !access(path, F_OK)) {
                printf("bit %d of byte %zu (%c) of %zu: not noticed, or not removed\n", bit, i, bytes[i], n);
                return 91;
            }
        }
    for (size_t length = 0; length < n; length++) {
        f = fopen(path, "wb");
        fwrite(bytes, 1, length, f);
        fclose(f);
        if (get(c, key) != 0 || !access(path, F_OK))
            return 92;
    }
    sd_verbosity = 0;
    f = fopen(path, "wb");
    bytes[n - 1] ^= 1;
    fwrite(bytes, 1, n, f);
    fclose(f);
    return get(c, key) == 0 && put(c, key) == 0 && get(c, key) == 1 ? 0 : 93;
}

/* Eight processes put and get the same forty keys. */
static int
crowd(void *argument)
{
    int bad = 0;

    (void)argument;
    for (int p = 0; p < 8; p++)
        if (!fork()) {
            struct sd_cache *c = sd_cache_open(NULL, "crowd");
            char k[65];

            for (int i = 0; i < 40; i++) {
                sd_sha256_of(&i, sizeof i, k);
                if (get(c, k) < 0 || put(c, k) || get(c, k) != 1)
                    _exit(1);
            }
            _exit(0);
        }
    for (int p = 0; p < 8; p++) {
        int status;

        wait(&status);
        bad += status != 0;
    }
    return bad;
}

static void
keys(void)
{
    struct sd_scope *s = sd_scope_open();
    unsigned char pixels[12] = { 1, 2, 3 };
    char hex[6][65];
    bool distinct = true;

    for (int i = 0; i < 6; i++) {
        struct sd_key *k = sd_key_new(s);

        if (i == 1)
            sd_key_text(k, "vae", "x");
        sd_key_int(k, "version", i == 2 ? 2 : 1);
        if (i == 3)
            pixels[11] = 1;
        sd_key_data(k, "pixels", SD_U8, 3, i == 4 ? (int64_t[]){ 1, 4, 3 } : (int64_t[]){ 2, 2, 3 }, pixels);
        if (i != 1)
            sd_key_text(k, "vae", i == 5 ? "y" : "x");
        sd_key_hex(k, hex[i]);
        pixels[11] = 0;
    }
    CHECK(!strcmp(hex[0], hex[1]), "the order of the parts does not matter");
    for (int i = 2; i < 6; i++)
        distinct &= strcmp(hex[0], hex[i]) != 0;
    CHECK(distinct, "a number, a pixel, a shape, a text: each makes another key");
    /* {"a": 1, "b": "x"} in msgpack, by sha256sum */
    {
        struct sd_key *k = sd_key_new(s);

        sd_key_text(k, "b", "x");
        sd_key_int(k, "a", 1);
        sd_key_hex(k, hex[0]);
        sd_sha256_of("\x82\xa1" "a\x01\xa1" "b\xa1x", 8, hex[1]);
        CHECK(!strcmp(hex[0], hex[1]), "the key is the SHA-256 of the map");
    }
    sd_scope_close(s);
}

int
main(void)
{
    struct sd_cache *c;
    struct child *child;

    child_enter();
    c = sd_cache_open(NULL, "cache");
    CHECK(get(c, key) == 0, "nothing there: a miss");
    CHECK(put(c, key) == 0 && !access(path, F_OK), "put: %s", sd_reason());
    CHECK(get(c, key) == 1, "got: %s", sd_reason());
    CHECK(put(c, key) == 0, "put again");
    child = child_run(damage, NULL, "", 0);
    CHECK(child->status == 0, "every flipped bit and every cut is noticed: %d %s", child->status,
          child_flat(child->out));
    CHECK(!strcmp(child->err + strcspn(child->err, "("), "(its data do not fit their hash), removed and made again\n")
          && strstr(child->err, "warning: cache/01/"), "and said: %s", child_flat(child->err));
    if (rename(path, "cache/01/00000000000000000000000000000000000000000000000000000000000000.safetensors"))
        return 99;
    sd_verbosity = -1;
    CHECK(get(c, "0100000000000000000000000000000000000000000000000000000000000000") == 0,
          "an entry under another key is no hit");
    sd_verbosity = 0;
    child = child_run(crowd, NULL, "", 0);
    CHECK(child->status == 0 && !*child->err, "eight processes at once: %d failed %s", child->status,
          child_flat(child->err));
    CHECK(system("test $(find crowd -type f | wc -l) = 40 && test $(find crowd -name '*.safetensors' | wc -l) = 40")
              == 0,
          "40 entries, no litter");
    {
        FILE *f = fopen("plain", "w");

        fclose(f);
        c = sd_cache_open(NULL, "plain");
        CHECK(put(c, key) == -1 && strstr(sd_reason(), "plain"), "a folder that is a file: %s", sd_reason());
    }
    keys();
    child_leave();
    return check_done();
}
