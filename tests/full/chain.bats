# The whole chain on full-size Stable Diffusion 1.5 with random weights: real photos to a LoRA to a picture.  `make check-full`.
load ../helper

setup_file() {
    [ -d "$SD_TEST_DATA/photos" ] && [ -d "$SD_TEST_DATA/clip-tokenizer" ] || skip "no photos or vocabulary in SD_TEST_DATA"
    export FULL="${FULL_MODEL_DIR:-$BATS_FILE_TMPDIR}/sd15" OUT="$BATS_FILE_TMPDIR"
    [ -d "$FULL" ] || "$BUILD/tests/bench/full_model" sd1 "$FULL"
    export MODEL="--model $FULL" TOKENIZER="--tokenizer $SD_TEST_DATA/clip-tokenizer"
}

@test "crop, caption and encode the real photos" {
    sd-crop -q --resolution 512 "$SD_TEST_DATA/photos" > "$OUT/cropped.sd"
    sd-caption -q --trigger '<sks>' --caption 'a photo of {trigger}' < "$OUT/cropped.sd" > "$OUT/captioned.sd"
    sd-encode-latents $MODEL --cache "$OUT/cache" < "$OUT/captioned.sd" > "$OUT/latents.sd"
    sd-encode-latents $MODEL --cache "$OUT/cache" < "$OUT/captioned.sd" > "$OUT/again.sd"
    cmp "$OUT/latents.sd" "$OUT/again.sd"
}

@test "three steps of LoRA and token together" {
    sd-train-lora $MODEL $TOKENIZER --placeholder-token '<sks>' --output "$OUT/lora.safetensors" \
        --output-embedding "$OUT/emb.safetensors" --max-train-steps 3 --ti-until 1 --log "$OUT/log" "$OUT/latents.sd"
    [ "$(wc -l < "$OUT/log")" -eq 3 ]
    jq -s -e 'all(.grad_norm_unet > 0 and .grad_norm_tokens > 0)' "$OUT/log"
}

@test "merge into the checkpoint, verified" {
    sd-merge $MODEL --verify --save-dtype f32 --output "$OUT/merged" "$OUT/lora.safetensors"
    [ -s "$OUT/merged/unet/diffusion_pytorch_model.safetensors" ]
}

# apart A B: how far the latents of two files are from each other, relative to the first's.
apart() {
    paste <(tail -c 65536 "$1" | od -An -v -w4 -tf4) <(tail -c 65536 "$2" | od -An -v -w4 -tf4) |
        awk '{ d += ($1 - $2) ^ 2; n += $1 ^ 2 } END { if (NR != 16384) exit 1; printf "%.3g\n", sqrt(d / n) }'
}

@test "two steps with the adapter, and with the merged model: the same picture" {
    draw() {
        sd-sample -q --model "$1" $TOKENIZER --embedding "$OUT/emb.safetensors" --prompt 'a photo of <sks>' \
            --num-inference-steps 2 --save-latents "$OUT/$2.latents" --output "$OUT/$2.png" "${@:3}"
        [ -s "$OUT/$2.png" ]
    }
    draw "$FULL" adapted --lora "$OUT/lora.safetensors"
    draw "$OUT/merged" merged
    draw "$FULL" without
    merged=$(apart "$OUT/adapted.latents" "$OUT/merged.latents") without=$(apart "$OUT/adapted.latents" "$OUT/without.latents")
    echo "# merged: $merged away from adapted; without the adapter: $without; disk: $(du -sh "$OUT" | cut -f 1)" >&3
    awk -v m="$merged" -v w="$without" 'BEGIN { exit !(m <= 2e-5 && w > 10 * m) }'
}
