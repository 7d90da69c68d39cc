#!/usr/bin/env bats
# The EXAMPLES of every manual page, run as they stand in a folder that has what they name: photos with captions and masks, a
# tiny model, adapters, tokens.  Only the length of training is cut; the two programs that are not ours are played.

load ../helper

# examples PAGE: its examples, a script each, ended by a zero byte
examples() {
    awk '/^\.Sh /{ on = $2 == "EXAMPLES" }
        !on { next }
        /^\.Dl /{ sub(/^\.Dl /, ""); printf "%s%c", plain($0), 0 }
        /^\.Ed/{ if (block) printf "%s%c", text, 0; block = 0 }
        block { text = text plain($0) "\n" }
        /^\.Bd /{ block = 1; text = "" }
        function plain(t) { gsub(/\\\(dq/, "\"", t); gsub(/\\e/, "\\", t); gsub(/\\&/, "", t); return t }' "$ROOT/man/$1"
}

setup_file() {
    export XDG_CACHE_HOME=$BATS_FILE_TMPDIR/.cache OMP_NUM_THREADS=1
    cd "$BATS_FILE_TMPDIR" || exit 1
    mkdir bin world
    printf '#!/bin/sh\necho a dog\n' > bin/captioner
    # shellcheck disable=SC2016
    printf '#!/bin/sh\ncp "$1" "$2"\n' > bin/heif-convert
    chmod +x bin/*
    cd world || exit 1
    mkdir photos masks dog sd15
    cp "$DATA"/images/{rgb.png,la.png,rgb.jpg} photos
    for name in rgb la; do
        echo 'a dog' > photos/$name.txt
        cp "$DATA/images/mask_right.png" masks/$name.png
    done
    cp photos/*.png photos/*.txt dog
    cp "$DATA/images/rgb.png" photo.heic
    cp "$DATA/images/rgb.jpg" dog.jpg
    printf 'a dog\n<rex> at sea\n' > scenes.txt
    cp -r "$DATA"/models/sd1/{unet,vae,scheduler,model_index.json} "$DATA/train/text_encoder" sd15
    cp -r "$DATA/tokenizer/tiny" sd15/tokenizer
    # dog and cat as one token each, as in CLIP's list
    sed -i 's|^il l</w>$|do g</w>|; s|^p e$|c at</w>|' sd15/tokenizer/merges.txt
    jq -c 'with_entries(.key |= ({"ill</w>": "dog</w>", "pe": "cat</w>"}[.] // .))' "$DATA/tokenizer/tiny/vocab.json" > sd15/tokenizer/vocab.json
    sd-crop -q --resolution 64 photos > pixels.sd 2> /dev/null
    sd-caption -q --caption 'a <dog> and a <cat>' < pixels.sd | sd-encode-latents -q --model sd15 > pets.sd
    local train=(sd-train-lora -q --model sd15 --rank 1 --max-train-steps 1)
    "${train[@]}" --output style.safetensors pets.sd
    "${train[@]}" --format diffusers --output pytorch_lora_weights.safetensors pets.sd
    sd-caption -q --caption '<rex>' < pixels.sd | sd-encode-latents -q --model sd15 > rex.sd
    "${train[@]}" --placeholder-token '<rex>' --output rex.safetensors --output-embedding rex-token.safetensors rex.sd
    cp rex-token.safetensors learned_embeds.safetensors
    rm rex.sd
    cp pixels.sd pixels.records
}

# rows FILE: what lies behind its header
rows() { tail -c +$((9 + $(od -An -t u8 -N 8 "$1"))) "$1"; }

# run_page PAGE MINIMUM: all of its examples, at least so many, one after the other
run_page() {
    local n=0 script
    cp -r "$BATS_FILE_TMPDIR/world/." "$BATS_TEST_TMPDIR"
    cd "$BATS_TEST_TMPDIR" || return 1
    if [[ $1 == sd-train-ti* ]]; then sd-caption -q --caption '<dog>' < pixels.sd | sd-encode-latents -q --model sd15 > dog.sd; fi
    while IFS= read -r -d '' script; do
        n=$((n + 1))
        script=$(sed 's/--max-train-steps [0-9]*/--max-train-steps 2/' <<< "$script")
        if ! PATH="$BATS_FILE_TMPDIR/bin:$PATH" bash -eu -o pipefail -c "$script" > out 2> err; then
            printf '%s\n' "$1, example $n:" "$script"
            cat err
            return 1
        fi
    done < <(examples "$1")
    echo "$n examples"
    ((n >= $2))
}

@test "sd-crop" { run_page sd-crop.1 5; }
@test "sd-caption" { run_page sd-caption.1 4; }
@test "sd-encode-latents" { run_page sd-encode-latents.1 4; }
@test "sd-train-lora" {
    run_page sd-train-lora.1 4
    cmp <(rows dog-token.safetensors) <(rows again-token.safetensors)
}
@test "sd-train-ti" {
    run_page sd-train-ti.1 2
    [ -s _dog_.safetensors ] && [ -s _cat_.safetensors ]
}
@test "sd-merge" { run_page sd-merge.1 4; }
@test "sd-sample" {
    run_page sd-sample.1 6
    [ -s sheet.png ] && [ -s oil.png ]
}
@test "sd-records" {
    run_page sd-records.5 2
    [ "$(sd-caption -j --caption x x.records 2> err | jq -c .end | tail -n 1)" = 1 ]
}
@test "no other page has examples that are not run" {
    for page in "$ROOT"/man/*.[1-9]; do
        if grep -q '^\.Sh EXAMPLES' "$page"; then grep -q "run_page ${page##*/} " "$BATS_TEST_FILENAME"; fi
    done
}
