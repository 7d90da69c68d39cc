#!/bin/sh
# clip-vocabulary.sh DIR - installs CLIP's merge list as DIR/merges.txt, for checkpoints that come without a tokenizer.
# The list (OpenAI's, MIT) is taken from a package of the Python registry with pip, and checked; once is enough.
set -eu

package=open_clip_torch==2.24.0
inside=open_clip/bpe_simple_vocab_16e6.txt.gz
list_sha256=924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a
merges_sha256=685491abbdad36159d094ecdc23bebc0dd53f8d1df35c4d74ef6036db2ba7572

if [ $# -ne 1 ]; then
    echo "usage: clip-vocabulary.sh DIR" >&2
    exit 2
fi
same() { [ "$(sha256sum < "$1" | cut -d' ' -f1)" = "$2" ]; }
fail() {
    echo "clip-vocabulary: $*" >&2
    exit 3
}

if [ -e "$1/merges.txt" ] && same "$1/merges.txt" "$merges_sha256"; then
    echo "clip-vocabulary: $1/merges.txt is there"
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 3' HUP INT TERM
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$work" "$package" ||
    fail "pip could not fetch $package"
python3 -m zipfile -e "$work"/*.whl "$work/unpacked" || fail "$package is no wheel"
same "$work/unpacked/$inside" "$list_sha256" || fail "$inside is not the list it should be (SHA-256)"
# 48894 merges after the version line: what follows in the list belongs to no token
gzip -dc "$work/unpacked/$inside" | head -n 48895 > "$work/merges.txt"
same "$work/merges.txt" "$merges_sha256" || fail "merges.txt is not the list it should be (SHA-256)"
mkdir -p "$1"
cp "$work/merges.txt" "$1/merges.txt.part"
mv "$1/merges.txt.part" "$1/merges.txt"
echo "clip-vocabulary: installed $1/merges.txt"
