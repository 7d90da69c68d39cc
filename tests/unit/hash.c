/* Hashes: published vectors, and the memory of files hashed before. */
#include "../check.h"
#include "../child.h"
#include "hash.h"

#include <sys/stat.h>
#include <utime.h>

static void
write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "wb");

    fputs(text, f);
    fclose(f);
}

int
main(void)
{
    char hex[65], again[65], forged[] = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff";
    struct sd_scope *s = sd_scope_open();
    struct sd_sha256 *h = sd_sha256_new(s);
    char *million = sd_alloc(s, 1000000);

    child_enter();
    setenv("XDG_CACHE_HOME", child_folder, 1);
    sd_sha256_of("abc", 3, hex);
    CHECK(!strcmp(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"), "FIPS 180: abc");
    memset(million, 'a', 1000000);
    for (int i = 0; i < 1000000; i += 12500)
        sd_sha256_update(h, million + i, 12500);
    sd_sha256_hex(h, hex);
    CHECK(!strcmp(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"),
          "FIPS 180: a million a, in pieces");
    sd_xxh128_of("", 0, hex);
    CHECK(!strcmp(hex, "99aa06d3014798d86001c324468d497f"), "XXH3-128 of nothing: %s", hex);

    write_text("f", "abc");
    CHECK(sd_hash_file("f", hex) == 0 && !strncmp(hex, "ba7816bf", 8), "a file");
    CHECK(sd_hash_file("none", hex) == -1 && !strcmp(sd_reason(), "No such file or directory"), "absent: %s",
          sd_reason());
    CHECK(sd_hash_file(".", hex) == -1 && strstr(sd_reason(), "Is a directory"), "a folder: %s", sd_reason());
    CHECK(sd_hash_file_cached("f", hex) == 0 && !strncmp(hex, "ba7816bf", 8), "cached: the same");
    CHECK(system("test -z \"$(ls sd-tools/hashes 2>/dev/null)\"") == 0, "a file of this moment is not remembered");
    usleep(100000);
    CHECK(sd_hash_file_cached("f", hex) == 0 && system("test $(ls sd-tools/hashes | wc -l) = 1") == 0,
          "an older one is");
    /* Proof that it is used: forge the memory. */
    CHECK(system("sed -i 's/ [0-9a-f]\\{64\\}/ ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff/' "
                 "sd-tools/hashes/*")
                  == 0
              && sd_hash_file_cached("f", again) == 0 && !strcmp(again, forged),
          "and read: %s", again);
    write_text("f", "abd");
    CHECK(sd_hash_file_cached("f", again) == 0 && strcmp(again, forged) && strcmp(again, hex),
          "not for other bytes of the same size");
    usleep(100000);
    sd_hash_file_cached("f", again);
    CHECK(system("sed -i 's/ [0-9a-f]\\{64\\}/ ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff/' "
                 "sd-tools/hashes/*")
                  == 0
              && utime("f", &(struct utimbuf){ 0, 0 }) == 0 && sd_hash_file_cached("f", hex) == 0
              && !strcmp(hex, again),
          "nor for another time");
    usleep(100000);
    sd_hash_file_cached("f", again);
    CHECK(system("for f in sd-tools/hashes/*; do head -c 90 $f > x; cat x > $f; done") == 0
              && sd_hash_file_cached("f", hex) == 0 && !strcmp(hex, again),
          "a memory cut short is not believed");
    CHECK(setenv("XDG_CACHE_HOME", "/dev/null/x", 1) == 0 && sd_hash_file_cached("f", hex) == 0 && !strcmp(hex, again),
          "no cache folder: hashed all the same");
    child_leave();
    sd_scope_close(s);
    return check_done();
}
