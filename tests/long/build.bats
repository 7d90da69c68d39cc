#!/usr/bin/env bats
# The same sources give the same programs, byte for byte.

load ../helper

@test "two builds, one on one job and one on two: the same bytes" {
    make -s -C "$ROOT" BUILD="$PWD/build" CUDA= all > /dev/null
    mv build first
    make -s -j2 -C "$ROOT" BUILD="$PWD/build" CUDA= all > /dev/null
    for f in "$ROOT"/tools/*.c; do cmp "first/$(basename "$f" .c)" "build/$(basename "$f" .c)"; done
    cmp first/libsd.a build/libsd.a
}
