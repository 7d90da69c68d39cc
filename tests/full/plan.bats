# What --plan says against what is taken, on full-size Stable Diffusion 1.5 with random weights.  `make check-full`.
load ../helper

setup_file() {
    [ -d "$SD_TEST_DATA/photos" ] && [ -d "$SD_TEST_DATA/clip-tokenizer" ] || skip "no photos or vocabulary in SD_TEST_DATA"
    export FULL="${FULL_MODEL_DIR:-$BATS_FILE_TMPDIR}/sd15" OUT="$BATS_FILE_TMPDIR" XDG_CACHE_HOME="$BATS_FILE_TMPDIR"
    [ -d "$FULL" ] || "$BUILD/tests/bench/full_model" sd1 "$FULL"
    export MODEL="--model $FULL" TOKENIZER="--tokenizer $SD_TEST_DATA/clip-tokenizer"
    sd-crop -q --resolution 512 "$SD_TEST_DATA/photos/chelsea.png" "$SD_TEST_DATA/photos/rocket.jpg" |
        sd-caption -q --caption 'a photo of <sks>' > "$OUT/captioned.sd"
    sd-encode-latents -q $MODEL < "$OUT/captioned.sd" > "$OUT/latents.sd"
}

# as_planned COMMAND: the plan's peak and the growth of anonymous resident memory agree within 3 % or 48 MiB.
as_planned() {
    local planned most=0 now pid off limit

    planned=$("$@" --plan | jq -e .peak_bytes)
    "$@" > out 2> err &
    pid=$!
    while now=$(sed -n 's/^RssAnon:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status" 2> /dev/null) && [ -n "$now" ]; do
        if ((now > most)); then most=$now; fi
        sleep 0.02
    done
    wait "$pid" || { cat err; return 1; }
    off=$((most * 1024 - planned)) limit=$((planned * 3 / 100))
    if ((limit < 48 << 20)); then limit=$((48 << 20)); fi
    echo "# $BATS_TEST_DESCRIPTION: planned $((planned >> 20)) MiB, measured $((most >> 10)), off by $((off / (1 << 20)))" >&3
    ((off <= limit && -off <= limit))
}

@test "sd-encode-latents" { as_planned sd-encode-latents -q $MODEL --cache cache "$OUT/captioned.sd"; }

@test "sd-train-lora, text encoder frozen" {
    as_planned sd-train-lora -q $MODEL $TOKENIZER --output "$OUT/l.safetensors" --max-train-steps 2 "$OUT/latents.sd"
}

@test "sd-merge" {
    for ((i = 0; i < 16; i++)); do many[i]=$OUT/l.safetensors:0.1; done
    as_planned sd-merge --verify --format peft --output joined "${many[@]}"
    as_planned sd-merge $MODEL --output merged "${many[@]}"
    [ "$(sd-merge --plan $MODEL "${many[@]}" | jq .bytes_written)" = "$(find merged -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')" ]
    rm -r merged
}

@test "sd-train-lora with a token" {
    as_planned sd-train-lora -q $MODEL $TOKENIZER --placeholder-token '<sks>' --output l.safetensors \
        --output-embedding e.safetensors --max-train-steps 2 "$OUT/latents.sd"
}

@test "sd-train-ti" {
    as_planned sd-train-ti -q $MODEL $TOKENIZER --placeholder-token '<sks>' --output e.safetensors --max-train-steps 2 \
        "$OUT/latents.sd"
}

@test "sd-sample" {
    as_planned sd-sample -q $MODEL $TOKENIZER --prompt 'a photo of a cat' --num-inference-steps 2 --output s.png
}
