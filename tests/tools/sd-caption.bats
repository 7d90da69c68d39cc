#!/usr/bin/env bats
# sd-caption: each option and each fault.  Photos are the project's own small pictures.

setup() {
    bats_require_minimum_version 1.5.0
    ROOT=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
    TINY="$ROOT/tests/data/tokenizer/tiny"
    cd "$BATS_TEST_TMPDIR" || exit 1
    mkdir photos
    # a grey pixel, as PNG
    printf '\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\10\0\0\0\0\x3a\x7e\x9b\x55\0\0\0\nIDATx\x9ccP\0\0\0\x02\0\1\xe5\x27\xde\xfc\0\0\0\0IEND\xaeB`\x82' > photos/a.png
    cp photos/a.png photos/b.png
    printf 'second ' >> photos/b.png
    echo 'a red ball' > photos/a.txt
    echo 'a blue cube' > photos/b.caption
}

# A single file: the two tensors by which its family is known, $1 wide.
checkpoint() {
    local key=model.diffusion_model.input_blocks header
    header=$(printf '{"%s.0.0.weight":{"dtype":"F32","shape":[1,4,1,1],"data_offsets":[0,16]},"%s.1.1.transformer_blocks.0.attn2.to_k.weight":{"dtype":"F32","shape":[1,%d],"data_offsets":[16,%d]}}' \
        $key $key "$1" $((16 + 4 * $1)))
    # shellcheck disable=SC2059
    printf "\\x$(printf %x $((${#header} & 255)))\\x$(printf %x $((${#header} >> 8)))\\0\\0\\0\\0\\0\\0"
    printf %s "$header"
    head -c $((16 + 4 * $1)) /dev/zero
}

captions() { jq -rs 'map(.caption // empty) | join("|")' <<< "$output"; }

@test "a sidecar .txt, then .caption" {
    run -0 --separate-stderr sd-caption -j photos
    [[ $(captions) == "a red ball|a blue cube" ]]
    [[ $(jq -r 'select(.holds).holds' <<< "$output") == captions ]]
    [[ $(jq -r 'select(.end).end' <<< "$output") == 2 ]]
}

@test "photos become records with source and the hash of the file" {
    run -0 --separate-stderr sd-caption -j photos/a.png
    [[ $(jq -r 'select(.source).source' <<< "$output") == photos/a.png ]]
    [[ $(jq -r 'select(.id).id' <<< "$output") == $(sha256sum photos/a.png | cut -d' ' -f1) ]]
}

@test "the first line of a sidecar, trimmed; a byte order mark is none of it" {
    printf '\xef\xbb\xbf  a green cone \r\nmore\n' > photos/a.txt
    run -0 --separate-stderr sd-caption -j photos/a.png
    [[ $(captions) == "a green cone" ]]
}

@test "--sidecar, with and without its dot" {
    echo tagged > photos/a.tags
    run -0 --separate-stderr sd-caption -j --sidecar .tags photos/a.png
    [[ $(captions) == tagged ]]
    run -0 --separate-stderr sd-caption -j --sidecar tags photos/a.png
    [[ $(captions) == tagged ]]
    run -2 --separate-stderr sd-caption --sidecar ../x photos/a.png
    [[ $stderr == 'sd-caption: --sidecar: "../x" is not an extension' ]]
}

@test "a name with dots in the folder, and without an extension" {
    mkdir x.y; cp photos/a.png x.y/photo; echo dotted > x.y/photo.txt
    run -0 --separate-stderr sd-caption -j x.y/photo
    [[ $(captions) == dotted ]]
}

@test "no caption and no template: named, status 1; alone: status 3" {
    rm photos/b.caption
    run -1 --separate-stderr sd-caption -j photos
    [[ $stderr == *"sd-caption: photos/b.png: no caption"* ]]
    [[ $(captions) == "a red ball" ]]
    run -0 --separate-stderr sd-caption -k -j photos
    [[ $(captions) == "a red ball" ]]
    run -3 --separate-stderr sd-caption -j photos/b.png
    [[ $stderr == "sd-caption: photos/b.png: no caption" ]]
}

@test "an empty sidecar, and one that is not UTF-8" {
    echo > photos/a.txt
    run -3 --separate-stderr sd-caption -j photos/a.png
    [[ $stderr == "sd-caption: photos/a.png: photos/a.txt: empty" ]]
    printf 'caf\xe9\n' > photos/a.txt
    run -3 --separate-stderr sd-caption -j photos/a.png
    [[ $stderr == "sd-caption: photos/a.png: photos/a.txt: not UTF-8" ]]
}

@test "--caption with {trigger}, {caption}, {file}" {
    run -0 --separate-stderr sd-caption -j --caption '{trigger}, {caption} ({file}) {' --trigger '<toy>' photos
    [[ $(captions) == "<toy>, a red ball (a) {|<toy>, a blue cube (b) {" ]]
    rm photos/a.txt
    run -0 --separate-stderr sd-caption -j --caption 'a photo of <toy>' photos/a.png
    [[ $(captions) == "a photo of <toy>" ]]
    run -3 --separate-stderr sd-caption -j --caption '{caption}' photos/a.png
    [[ $stderr == "sd-caption: photos/a.png: no caption for {caption}" ]]
}

@test "templates that cannot be filled in" {
    run -2 --separate-stderr sd-caption --caption '{trigger}' photos
    [[ $stderr == "sd-caption: --caption: {trigger} without --trigger" ]]
    run -2 --separate-stderr sd-caption --caption '{name} x' photos
    [[ $stderr == "sd-caption: --caption: {name} is not known; {trigger}, {caption} and {file} are" ]]
    run -2 --separate-stderr sd-caption --caption '{caption}' --trigger x photos
    [[ $stderr == "sd-caption: --trigger: the template has no {trigger}" ]]
    run -2 --separate-stderr sd-caption --caption $'\xff' photos
    [[ $stderr == "sd-caption: --caption: not UTF-8" ]]
}

@test "--trigger alone goes before captions that lack it" {
    echo 'a red <TOY>' > photos/a.txt
    run -0 --separate-stderr sd-caption -j --trigger '<toy>' photos
    [[ $(captions) == "a red <TOY>|<toy>, a blue cube" ]]
}

@test "--exec: the first line of its output; the file is \$1" {
    run -0 --separate-stderr sd-caption -j --exec 'echo "from $0: ${1##*/}"; echo more' photos
    [[ $(captions) == "from sd-caption: a.png|from sd-caption: b.png" ]]
    run -0 --separate-stderr sd-caption -j --exec 'echo a ball' --caption '{caption}, {file}' photos/a.png
    [[ $(captions) == "a ball, a" ]]
}

@test "--exec that fails, prints nothing, or ends by a signal: that record is bad" {
    run -1 --separate-stderr sd-caption -j --exec 'case $1 in *a.png) exit 7;; *) echo fine;; esac' photos
    [[ $stderr == *"sd-caption: photos/a.png: --exec ended with status 7"* ]]
    [[ $(captions) == fine ]]
    run -3 --separate-stderr sd-caption -j --exec : photos/a.png
    [[ $stderr == "sd-caption: photos/a.png: caption printed by --exec: empty" ]]
    run -3 --separate-stderr sd-caption -j --exec 'kill -9 $$' photos/a.png
    [[ $stderr == "sd-caption: photos/a.png: --exec ended by signal 9 (Killed)" ]]
    run -3 --separate-stderr sd-caption -j --exec 'printf "\377\n"' photos/a.png
    [[ $stderr == "sd-caption: photos/a.png: caption printed by --exec: not UTF-8" ]]
}

@test "--exec does not eat the records on standard input, and may print more than a pipe holds" {
    sd-caption photos > saved
    run -0 --separate-stderr bash -c 'sd-caption -j --exec "cat; echo one; head -c 3000000 /dev/zero" < saved'
    [[ $(captions) == "one|one" ]]
}

@test "records in, records out: other keys pass, a caption that is there stays" {
    sd-caption photos > saved
    echo changed > photos/a.txt
    run -0 --separate-stderr bash -c 'sd-caption -j --caption "{caption}!" < saved'
    [[ $(captions) == "a red ball!|a blue cube!" ]]
    [[ $(jq -rs 'map(.id // empty) | length' <<< "$output") == 2 ]]
    run -0 --separate-stderr bash -c 'sd-caption -j --sidecar .txt saved'
    [[ $(captions) == "changed|a blue cube" ]]
    run -0 --separate-stderr bash -c 'cat saved | sd-caption --caption "{caption}" | cmp - saved'
}

@test "a stream cut short is an error" {
    sd-caption photos > saved
    head -c 200 saved > cut
    run -3 --separate-stderr sd-caption -j cut
    [[ $stderr == "sd-caption: cut: "* ]]
    [[ -z $(jq -r 'select(.end).end' <<< "$output") ]]
}

@test "--write-sidecars" {
    run -0 --separate-stderr sd-caption --write-sidecars --exec 'echo "it is ${1##*/}"' --sidecar .cap photos -j
    [[ $(cat photos/a.cap photos/b.cap) == $'it is a.png\nit is b.png' ]]
    run -0 --separate-stderr sd-caption -j --write-sidecars photos          # .txt; what is there says the same
    [[ $(cat photos/b.txt) == "a blue cube" ]]
    run -3 --separate-stderr sd-caption -j --write-sidecars --caption other photos/a.png
    [[ $stderr == "sd-caption: photos/a.png: photos/a.txt exists (use --overwrite)" ]]
    [[ $(cat photos/a.txt) == "a red ball" ]]
    run -0 --separate-stderr sd-caption -j --write-sidecars --overwrite --caption other photos/a.png
    [[ $(cat photos/a.txt) == other ]]
    run -3 --separate-stderr sd-caption -j --write-sidecars --sidecar png --caption other photos/a.png
    [[ $stderr == "sd-caption: photos/a.png: its sidecar would be itself" ]]
    [[ ! -e photos/a.txt.part ]]
}

@test "--write-sidecars of records: beside the very photo that they were made from, and nowhere else" {
    cp "$ROOT/tests/data/images/la.png" photos/a.png
    cp "$ROOT/tests/data/images/rgb.png" photos/b.png
    sd-crop -q --resolution 64 photos/a.png > a.sd
    rm photos/*.txt
    run -0 --separate-stderr sd-caption -j --write-sidecars --caption 'from afar' a.sd
    [[ $(cat photos/a.txt) == "from afar" ]]
    rm photos/a.txt
    # an absolute path, and one through .., of the same photo are the user's own way to name it
    sd-crop -q --resolution 64 "$PWD/photos/a.png" photos/../photos/b.png > b.sd
    run -0 --separate-stderr sd-caption -j --write-sidecars --caption 'from afar' b.sd
    rm photos/a.txt photos/b.txt

    # a stream that names what it has not seen: 2 keys, id and source
    record() { # ID SOURCE
        perl -e '($i, $s) = @ARGV; print "\x82\xa2sd\x01\xa5holds\xa6photos", $i eq "" ? "\x81" : "\x82\xa2id\xd9" . chr(length $i) . $i,
            "\xa6source\xda", pack("n", length $s), $s, "\x81\xa3end\x01"' -- "$@"
    }
    mkdir -p victim/dir
    cp photos/a.png victim/picture.png
    echo secret > victim/notes
    ln -s ../victim/picture.png photos/link.png
    hash=$(sha256sum < photos/b.png | cut -d ' ' -f 1)
    touch before after r.sd         # before they are listed, or a list could find itself half-way
    find . -type f ! -path './separate*' | sort > before
    while IFS= read -r source; do
        record "$hash" "$source" > r.sd
        run -3 --separate-stderr sd-caption -j --overwrite --write-sidecars --caption owned r.sd
        [[ $stderr == *": no sidecar is written"* && ${#stderr_lines[@]} == 1 ]]
        record '' "$source" > r.sd
        run -3 --separate-stderr sd-caption -j --overwrite --write-sidecars --caption owned r.sd
        [[ $stderr == *"has no id to know its photo by: no sidecar is written" ]]
    done < <(printf '%s\n' "$PWD/victim/picture.png" "$PWD/victim/notes" victim/new victim/picture.png photos/../victim/picture.png \
        photos/link.png ../outside /etc/passwd victim/dir victim/dir/ . .. / /dev/null /dev/full /proc/self/mem "$PWD/victim/dir/x.png" ./photos/none.png)
    find . -type f ! -path './separate*' | sort > after
    diff before after
    [ "$(cat victim/notes)" = secret ]
}

@test "--check writes nothing and names what is wrong" {
    run -0 --separate-stderr sd-caption --check photos
    [[ -z $output && $stderr == *"sd-caption: 2 captions, 0 without the trigger" ]]
    run -1 --separate-stderr sd-caption --check --trigger BALL photos
    [[ $stderr == *'sd-caption: photos/b.png: caption lacks "BALL"'* ]]
    rm photos/b.caption
    run -1 --separate-stderr sd-caption --check photos
    [[ $stderr == *"sd-caption: photos/b.png: no caption"* ]]
    echo 'one two three four five six seven' > photos/a.txt
    run -0 --separate-stderr sd-caption --check --tokenizer "$TINY" photos/a.png
    [[ $stderr == *"photos/a.png: caption of "*" ids, 14 fit one chunk"* ]]
}

@test "--tokens: framed, padded, cut" {
    run -0 --separate-stderr sd-caption --tokens --tokenizer "$TINY" 'in' '(a:1.5) "q"' 'a b c d e f g h i j k l m n o p q'
    [[ ${lines[0]} == '{"text":"in","input_ids":[662,530,663,0,0,0,0,0,0,0,0,0,0,0,0,0],"cut":0}' ]]
    [[ $(jq -c '.input_ids | [length, .[0], .[2], .[15]]' <<< "${lines[0]}") == '[16,662,663,0]' ]]
    [[ $(jq -r .text <<< "${lines[1]}") == '(a:1.5) "q"' ]]
    [[ $(jq -c '[.cut, .input_ids[15]]' <<< "${lines[2]}") == '[3,663]' ]]
}

@test "--tokens with CLIP's vocabulary" {
    CLIP="${SD_TEST_DATA:-$ROOT/../shared/data}/clip-tokenizer"
    [[ -e $CLIP/vocab.json ]] || skip "clip-tokenizer is not in SD_TEST_DATA"
    run -0 --separate-stderr sd-caption --tokens --tokenizer "$CLIP" 'a photo of a cat' "Hello, World's 2023 café!!"
    [[ $(jq -c '[.cut, (.input_ids | length), .input_ids[:8]]' <<< "${lines[0]}") == '[0,77,[49406,320,1125,539,320,2368,49407,49407]]' ]]
    [[ $(jq -c '.input_ids[1:11]' <<< "${lines[1]}") == '[3306,267,1002,568,273,271,273,274,15304,748]' ]]
    mkdir -p data/clip
    cp "$CLIP/merges.txt" data/clip/
    SD_DATADIR=$PWD/data run -0 --separate-stderr sd-caption --tokens 'a photo of a cat'
    [[ $(jq -c '.input_ids[:8]' <<< "$output") == '[49406,320,1125,539,320,2368,49407,49407]' ]]
    mkdir -p hub/models--openai--clip-vit-large-patch14/{refs,snapshots/abc}
    echo abc > hub/models--openai--clip-vit-large-patch14/refs/main
    cp "$CLIP"/* hub/models--openai--clip-vit-large-patch14/snapshots/abc/
    HF_HUB_CACHE=$PWD/hub SD_DATADIR=/none run -0 --separate-stderr sd-caption --tokens 'a photo of a cat'
    HF_HUB_CACHE=$PWD/hub run -0 --separate-stderr sd-caption --tokens --model openai/clip-vit-large-patch14@abc cat
    HF_HUB_CACHE=$PWD/hub run -3 --separate-stderr sd-caption --tokens --model openai/clip-vit-large-patch14@abd cat
    [[ $stderr == "sd-caption: openai/clip-vit-large-patch14@abd: revision abd is not in the Hub's cache on disk" ]]
}

@test "--tokens takes the model's tokenizer; a single file has none" {
    mkdir model
    cp -r "$TINY" model/tokenizer
    run -0 --separate-stderr sd-caption --tokens --model model in
    [[ $(jq '.input_ids | length' <<< "$output") == 16 ]]
    : > model.safetensors
    HF_HUB_CACHE=/none SD_DATADIR=/none run -3 --separate-stderr sd-caption --tokens --model model.safetensors in
    [[ $stderr == 'sd-caption: model.safetensors: no tokenizer in it: give --tokenizer DIR|FILE, or run `make clip-vocabulary` once' ]]
    run -3 --separate-stderr sd-caption --tokens --model photos in
    [[ $stderr == "sd-caption: photos: no tokenizer in it: neither vocab.json with merges.txt nor tokenizer.json" ]]
    HF_HUB_CACHE=/none run -3 --separate-stderr sd-caption --tokens --model no/such in
    [[ $stderr == "sd-caption: no/such: no such file or folder, nor in the Hub's cache on disk" ]]
    HF_HUB_CACHE=/none run -3 --separate-stderr sd-caption --tokens --model ../../etc in
    [[ $stderr == "sd-caption: ../../etc: no such file or folder, nor a name"* ]]
}

@test "--tokens: a single file's family says how it pads" {
    CLIP="${SD_TEST_DATA:-$ROOT/../shared/data}/clip-tokenizer"
    [[ -e $CLIP/vocab.json ]] || skip "clip-tokenizer is not in SD_TEST_DATA"
    mkdir -p data/clip
    cp "$CLIP/merges.txt" data/clip/
    export HF_HUB_CACHE=/none SD_DATADIR=$PWD/data
    checkpoint 768 > sd1.safetensors
    checkpoint 1024 > sd2.safetensors
    run -0 --separate-stderr sd-caption --tokens --model sd1.safetensors 'hi!!'
    [[ $(jq -c '.input_ids[:5]' <<< "$output") == '[49406,1883,748,49407,49407]' ]]
    run -0 --separate-stderr sd-caption --tokens --model sd2.safetensors 'hi!!'
    [[ $(jq -c '.input_ids[:6]' <<< "$output") == '[49406,1883,0,0,49407,0]' ]]
    run -0 --separate-stderr sd-caption --tokens --model sd2.safetensors --tokenizer "$CLIP" 'hi!!'
    [[ $(jq -c '.input_ids[:6]' <<< "$output") == '[49406,1883,0,0,49407,0]' ]]
    : > empty.safetensors
    run -3 --separate-stderr sd-caption --tokens --model empty.safetensors 'hi!!'
    [[ $stderr == "sd-caption: empty.safetensors: "* && -z $output ]]
    run -3 --separate-stderr sd-caption --tokens --model sd1.safetensors --tokenizer "$CLIP/none" 'hi!!'
    [[ $stderr == "sd-caption: $CLIP/none: No such file or directory" ]]
}

@test "--tokens: texts that are not UTF-8 are named" {
    run -1 --separate-stderr sd-caption --tokens --tokenizer "$TINY" in $'a\xffb'
    [[ $stderr == "sd-caption: text 2: not UTF-8 at byte 1" && ${#lines[@]} == 1 ]]
    run -3 --separate-stderr sd-caption --tokens --tokenizer "$TINY" $'\xff'
    run -2 --separate-stderr sd-caption --tokens --tokenizer "$TINY"
    [[ $stderr == "sd-caption: --tokens: no text" ]]
}

@test "options without effect are refused" {
    run -2 --separate-stderr sd-caption --tokens --tokenizer "$TINY" --trigger x in
    [[ $stderr == "sd-caption: --trigger has no effect with --tokens" ]]
    run -2 --separate-stderr sd-caption --model x photos
    [[ $stderr == "sd-caption: --model has no effect without --tokens or --check" ]]
    run -2 --separate-stderr sd-caption --overwrite photos
    run -2 --separate-stderr sd-caption --exec true --sidecar .txt photos
    run -2 --separate-stderr sd-caption --check --write-sidecars photos
    run -2 --separate-stderr sd-caption --nonsense photos
}

@test "what is no picture, and what is not there" {
    run -1 --separate-stderr sd-caption -j photos/a.png photos/a.txt photos/none.png
    [[ $stderr == *"sd-caption: photos/a.txt: not a picture"* && $stderr == *"sd-caption: photos/none.png: No such file or directory"* ]]
    printf '\0\0\0\x18ftypheic\0\0\0\0mif1heic' > x.heic
    run -3 --separate-stderr sd-caption -j --caption x x.heic
    [[ $stderr == "sd-caption: x.heic: HEIC, not read here" ]]
}

@test "a full disk is an error" {
    run -3 bash -c 'sd-caption photos > /dev/full'
    run -3 bash -c 'sd-caption --tokens --tokenizer "$1" in > /dev/full' - "$TINY"
}

@test "--tokens of nobody's tokenizer is status 2" {
    run -2 --separate-stderr env HF_HOME=none SD_DATADIR=none sd-caption --tokens a
    # shellcheck disable=SC2016
    [[ $stderr == 'sd-caption: --tokens: whose? give --model or --tokenizer, or run `make clip-vocabulary` once' ]]
}
