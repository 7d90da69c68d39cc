# helper.bash - what the bats files share.  `load ../helper` at their top.
#
# Each test runs in a fresh folder.  $ROOT is the source tree, $DATA the tree's own small files (tests/data),
# $PHOTOS real photos where they are ($SD_TEST_DATA).

bats_require_minimum_version 1.5.0

ROOT=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
export ROOT DATA=$ROOT/tests/data PHOTOS=${SD_TEST_DATA:-$ROOT/../shared/data}/photos

setup() {
    cd "$BATS_TEST_TMPDIR" || exit 1
    # a cache of the test's own
    export XDG_CACHE_HOME=$BATS_TEST_TMPDIR/.cache
}

# need FILE: the test is skipped, aloud, where real data is missing.
need() {
    if [ ! -e "$1" ]; then skip "$1 is not here"; fi
}

# is_line TEXT: standard error is exactly this one line.
is_line() {
    if [ "$stderr" != "$1" ]; then
        printf 'stderr is   %s\nexpected is %s\n' "$stderr" "$1"
        return 1
    fi
}

# nothing_left: no half-written file lies here.
nothing_left() {
    local left
    left=$(find . -name '*.part')
    if [ -n "$left" ]; then
        echo "left: $left"
        return 1
    fi
}

# can_trace: the test is skipped where system calls cannot be watched.
can_trace() {
    if ! strace -o /dev/null true 2> /dev/null; then skip "strace is not here, or may not trace"; fi
}

# counts_memory PROGRAM: the test is skipped for one with a sanitizer, whose memory is not planned.
counts_memory() {
    if ldd "$(command -v "$1")" | grep -q asan; then skip "a sanitizer's memory is not planned"; fi
}
