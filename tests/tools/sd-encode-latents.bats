#!/usr/bin/env bats
# sd-encode-latents: every option, every fault, and the cache: what is encoded, what is found.  The numbers are checked in
# tests/models/encode.c.

load ../helper

setup() {
    cd "$BATS_TEST_TMPDIR" || exit 1
    export XDG_CACHE_HOME=$BATS_TEST_TMPDIR/.cache
    MODEL=$DATA/models/sd1
    IMAGES=$DATA/images
    sd-crop -q --resolution 48x40 "$IMAGES/rgb.png" "$IMAGES/rgb.jpg" "$IMAGES/la.png" > three.sd
}
encode() { sd-encode-latents --model "$MODEL" "$@"; }
# counts RECORDS ENCODED FOUND: the summary on standard error
counts() {
    if [[ $stderr != *"sd-encode-latents: $1 record"*": $2 encoded, $3 from the cache" ]]; then
        printf 'stderr is   %s\nexpected    %s records, %s encoded, %s found\n' "$stderr" "$1" "$2" "$3"
        return 1
    fi
}
field() { jq -c "select(.id) | .$1" <<< "$output"; }
entries() { find "${1:-.cache/sd-tools}" -name '*.safetensors' | sort; }
# a stream's head, for records written by hand
head_of() { printf '\202\242sd\001\245holds\241x'; }

@test "records come out with latents, in their order, without pixels; other keys stay" {
    mkdir masks
    cp "$IMAGES/mask_right.png" masks/rgb.png
    sd-crop -q --resolution 48x40 --mask-dir masks "$IMAGES/rgb.png" > masked.sd
    run -0 --separate-stderr encode -j masked.sd three.sd
    counts 4 3 1
    [ "$(jq -c 'select(.sd)' <<< "$output")" = '{"sd":1,"holds":"latents"}' ]
    [ "$(jq -c 'select(.end)' <<< "$output")" = '{"end":4}' ]
    [ "$(field latents_mean | sort -u)" = '{"dtype":"F32","shape":[4,10,12]}' ]
    [ "$(field latents_logvar | sort -u)" = '{"dtype":"F32","shape":[4,10,12]}' ]
    [ "$(field latent_mask | tr '\n' ' ')" = '{"dtype":"F32","shape":[10,12]} null null null ' ]
    [ "$(field mask | head -n 1)" = '{"dtype":"U8","shape":[40,48]}' ]
    [ "$(field pixel_values | sort -u)" = null ]
    [ "$(field vae_hash | sort -u)" = "\"$(sha256sum < "$MODEL/vae/diffusion_pytorch_model.safetensors" | cut -d ' ' -f 1)\"" ]
    [ "$(field source | sed 's|.*/||' | tr '\n' ' ')" = 'rgb.png" rgb.png" rgb.jpg" la.png" ' ]
    [ "$(field crop_top_left | head -n 1)" = '[0,4]' ]
    run -0 --separate-stderr encode -j --keep-pixels three.sd
    [ "$(field pixel_values | sort -u)" = '{"dtype":"U8","shape":[40,48,3]}' ]
}

@test "the stream holds what the cache holds" {
    sd-crop -q --resolution 48x40 "$IMAGES/rgb.png" | encode -q > one.sd
    [ "$(entries | wc -l)" = 1 ]
    # an entry's data: mean and logvar, 4 x 10 x 12 floats each, at its end; in the stream each behind a binary's head
    perl -0777 -e 'open F, "<:raw", $ARGV[0]; $e = substr(<F>, -3840); open G, "<:raw", "one.sd"; $s = <G>;
        for (0, 1) { $t = substr($e, 1920 * $_, 1920); exit 1 if index($s, "\xc5\x07\x80$t") < 0 }' "$(entries)"
}

@test "a second run encodes nothing, and its bytes are the same; so are those of batches, threads and another folder" {
    run -0 --separate-stderr encode three.sd
    counts 3 3 0
    encode -q three.sd > first.sd
    cp -r .cache/sd-tools moved
    for options in "" "--batch-size 2" "--threads 1" "--cache moved" "--cache new --batch-size 3 --threads 2" "--cache other --threads 1"; do
        # shellcheck disable=SC2086
        run -0 --separate-stderr bash -c 'sd-encode-latents --model "$@" three.sd > again.sd' - "$MODEL" $options
        case $options in *new*|*other*) counts 3 3 0 ;; *) counts 3 0 3 ;; esac
        cmp first.sd again.sd
    done
}

@test "exactly what changed is encoded: a photo, the crop, the VAE, the salt; not names and order" {
    mkdir photos
    cp "$IMAGES/rgb.png" photos/a.png; cp "$IMAGES/rgb.jpg" photos/b.jpg; cp "$IMAGES/la.png" photos/c.png
    pipe() { sd-crop -q --resolution "${SIZE:-48x40}" photos | sd-encode-latents --model "${USED:-$MODEL}" "$@" > /dev/null; }
    run -0 --separate-stderr pipe;                          counts 3 3 0
    mv photos/a.png photos/z.png; touch photos/b.jpg
    run -0 --separate-stderr pipe;                          counts 3 0 3
    cp "$IMAGES/grey.png" photos/c.png
    run -0 --separate-stderr pipe;                          counts 3 1 2
    SIZE=40x40 run -0 --separate-stderr pipe;               counts 3 3 0
    run -0 --separate-stderr pipe --salt a;                 counts 3 3 0
    run -0 --separate-stderr pipe --salt a;                 counts 3 0 3
    run -0 --separate-stderr pipe --tile 32;                counts 3 3 0
    run -0 --separate-stderr pipe --tile 64;                counts 3 0 3
    run -0 --separate-stderr pipe --cache-scope portable;   counts 3 3 0
    SD_ISA=sse4 run -0 --separate-stderr pipe;              counts 3 3 0
    SD_ISA=sse4 run -0 --separate-stderr pipe --cache-scope portable; counts 3 0 3
    cp -r "$MODEL" model
    USED=model run -0 --separate-stderr pipe;               counts 3 0 3
    sed -i 's/"norm_num_groups": 4/"norm_num_groups": 2/' model/vae/config.json
    USED=model run -0 --separate-stderr pipe;               counts 3 3 0
    run -0 --separate-stderr pipe --vae model/vae;          counts 3 0 3
    cp "$MODEL/vae/config.json" model/vae/
    perl -0777 -pi -e 's/.\z/chr(ord($&) ^ 1)/es' model/vae/diffusion_pytorch_model.safetensors
    USED=model run -0 --separate-stderr pipe;               counts 3 3 0
    run -0 --separate-stderr pipe;                          counts 3 0 3
}

@test "a picture that comes twice is encoded once, in a batch too" {
    run -0 --separate-stderr encode three.sd three.sd
    counts 6 3 3
    run -0 --separate-stderr encode --cache two --batch-size 4 three.sd three.sd
    counts 6 3 3
    [ "$(entries two | wc -l)" = 3 ]
}

@test "batches of several sizes keep the order" {
    sd-crop -q --resolution 40x40 "$IMAGES/grey.png" "$IMAGES/rgb.png" > square.sd
    encode -q --batch-size 1 three.sd square.sd three.sd square.sd > one.sd
    for n in 2 3 7; do
        encode -q --cache "c$n" --batch-size "$n" three.sd square.sd three.sd square.sd > batch.sd
        cmp one.sd batch.sd
        # half of it known
        encode -q --cache "d$n" square.sd > /dev/null
        encode -q --cache "d$n" --batch-size "$n" three.sd square.sd three.sd square.sd > batch.sd
        cmp one.sd batch.sd
    done
}

@test "a damaged entry is named, removed and made again" {
    encode -q three.sd > first.sd
    entry=$(entries | head -n 1)
    size=$(stat -c %s "$entry")
    cp "$entry" whole
    for at in 3 40 $((size / 2)) $((size - 1)); do
        cp whole "$entry"
        perl -e 'open F, "+<:raw", $ARGV[0]; seek F, $ARGV[1], 0; read F, $c, 1; seek F, $ARGV[1], 0; print F chr(ord($c) ^ 4)' "$entry" "$at"
        run -0 --separate-stderr bash -c 'sd-encode-latents --model "$1" three.sd > again.sd' - "$MODEL"
        [[ $stderr == "sd-encode-latents: warning: $PWD/$entry: damaged cache entry ("*"), removed and made again"* \
           || $stderr == "sd-encode-latents: warning: $entry: damaged cache entry ("*"), removed and made again"* ]]
        counts 3 1 2
        cmp first.sd again.sd
        cmp whole "$entry"
    done
    head -c 100 whole > "$entry"
    run -0 --separate-stderr encode three.sd
    counts 3 1 2
    [ -z "$(find .cache -type f ! -name '*.safetensors' ! -path '*/hashes/*')" ]
}

@test "eight processes fill one cache: all write the same, no entry is torn, nothing is left over" {
    for _ in 1 2; do
        rm -rf shared
        pids=()
        for i in 1 2 3 4 5 6 7 8; do
            encode -q --threads 1 --cache shared three.sd > "out$i.sd" 2> "err$i" &
            pids+=($!)
        done
        for p in "${pids[@]}"; do wait "$p"; done
        for i in 2 3 4 5 6 7 8; do cmp out1.sd "out$i.sd"; done
        [ -z "$(cat err?)" ]
        [ "$(find shared -type f | wc -l)" = 3 ]
        run -0 --separate-stderr encode --cache shared three.sd
        counts 3 0 3
        [[ $stderr != *damaged* ]]
    done
}

@test "shards cover every record once, for 1 to 16 of them" {
    sd-crop -q --resolution 40x40 "$IMAGES"/exif?.png > eight.sd
    encode -q -j three.sd eight.sd | jq -c 'select(.id) | .source' > all
    [ "$(wc -l < all)" = 11 ]
    for n in 1 2 3 5 11 16; do
        : > parts
        for ((i = 0; i < n; i++)); do
            encode -q -j --shard "$i/$n" three.sd eight.sd > part
            [ "$(jq -c 'select(.end != null)' < part | wc -l)" = 1 ]
            jq -c 'select(.id) | .source' < part > names
            awk -v i="$i" -v n="$n" '(NR - 1) % n == i' all | cmp - names
            cat names >> parts
        done
        diff <(sort all) <(sort parts)
    done
    run -0 --separate-stderr encode -j --shard 4/4 three.sd
    [ "$(field source)" = "$(head -n 1 all)" ]
    for bad in 1 a/b 5/4 1/0 -1/4 1/4/ 1/4x /4 "1 /4" ""; do
        run -2 --separate-stderr encode "--shard=$bad" three.sd
        [[ -z $output && $stderr == "sd-encode-latents: --shard: "* ]]
    done
}

@test "--text adds the states of the captions, once each" {
    TOKENIZER=$DATA/encode/tokenizer
    sd-caption -q --caption 'the red cat' three.sd > captions.sd
    run -0 --separate-stderr encode -j --text --tokenizer "$TOKENIZER" captions.sd
    [ "$(field text_states | sort -u)" = '{"dtype":"F32","shape":[13,24]}' ]
    [ "$(field text_encoder_hash | sort -u)" = "\"$(sha256sum < "$MODEL/text_encoder/model.safetensors" | cut -d ' ' -f 1)\"" ]
    [[ $stderr == *"3 captions: 1 encoded, 2 from the cache" ]]
    sd-caption -q --caption 'the cat and the dog and the cat and the dog and the cat' three.sd > long.sd
    run -0 --separate-stderr encode -j --text --tokenizer "$TOKENIZER" long.sd captions.sd
    [ "$(field text_states | sort -u | tr -d '\n')" = '{"dtype":"F32","shape":[13,24]}{"dtype":"F32","shape":[26,24]}' ]
    [[ $stderr == *"6 captions: 1 encoded, 5 from the cache" ]]
    # parentheses are no weights
    sd-caption -q --caption '((the red cat))' three.sd > weighted.sd
    run -0 --separate-stderr encode -j --text --tokenizer "$TOKENIZER" weighted.sd
    run -3 --separate-stderr encode -j --text --tokenizer "$TOKENIZER" three.sd
    [[ $stderr == *"rgb.png: no caption, and --text wants one"* ]]
    run -3 --separate-stderr encode --text captions.sd
    [[ $stderr == "sd-encode-latents: $MODEL: no tokenizer in it"* ]]
    run -2 --separate-stderr encode --tokenizer "$TOKENIZER" captions.sd
    is_line "sd-encode-latents: --tokenizer: has no effect without --text"
    run -2 --separate-stderr sd-encode-latents --vae "$MODEL/vae" --text captions.sd
    is_line "sd-encode-latents: --text: needs --model for its text encoder"
}

@test "--plan counts what is to do, and does nothing" {
    sd-crop -q --resolution 48x40 "$IMAGES/rgb.png" | encode -q > /dev/null
    entries > before
    run -0 --separate-stderr encode --plan --batch-size 2 three.sd three.sd
    [ "$(jq -c '[.records, .to_encode, .cached, .left_out]' <<< "$output")" = '[6,2,4,0]' ]
    [ "$(jq '.peak_bytes >= .arena_bytes + .packed_bytes and .arena_bytes >= .activations_bytes and .activations_bytes > 0
             and .weights_bytes > 0 and .flops > 0 and .total_flops == .flops' <<< "$output")" = true ]
    run -0 --separate-stderr encode --plan three.sd three.sd
    [ "$(jq '.total_flops == 2 * .flops' <<< "$output")" = true ]
    entries | cmp before -
    # no records: the model's own size
    run -0 --separate-stderr bash -c 'sd-encode-latents --model "$1" --plan < /dev/null' - "$MODEL"
    [ "$(jq '.records == null and .arena_bytes > 0' <<< "$output")" = true ]
    run -0 --separate-stderr bash -c 'sd-encode-latents --model "$1" --plan < three.sd' - "$MODEL"
    [ "$(jq '.records' <<< "$output")" = 3 ]
}

@test "--memory: smaller batches, then one line; the bits stay" {
    encode -q three.sd > first.sd
    one=$(encode -q --plan --salt x three.sd | jq '.arena_bytes + .packed_bytes')
    three=$(encode -q --plan --salt x --batch-size 3 three.sd | jq '.arena_bytes + .packed_bytes')
    [ "$three" -gt "$((one + one / 4))" ]
    run -0 --separate-stderr bash -c 'sd-encode-latents --model "$1" --cache c --batch-size 3 --memory "$2" three.sd > limited.sd' - "$MODEL" "$one"
    counts 3 3 0
    cmp first.sd limited.sd
    run -3 --separate-stderr encode --cache d --memory $((one - 1)) three.sd
    [[ $stderr == *"rgb.png: needs "*" MiB for activations and "*", --memory is "* ]]
    # what is known needs none
    run -0 --separate-stderr encode --memory 1 three.sd
    counts 3 0 3
}

@test "a bad record is named and left out: no pixels, another dtype, another shape, sides, mask" {
    { head_of
      printf '\201\242id\241a'
      printf '\202\242id\241b\254pixel_values\203\245dtype\243F32\245shape\223\004\004\003\244data\304\300'; head -c 192 /dev/zero
      printf '\202\242id\241c\254pixel_values\203\245dtype\242U8\245shape\222\004\004\244data\304\020'; head -c 16 /dev/zero
      printf '\202\242id\241d\254pixel_values\203\245dtype\242U8\245shape\223\004\006\003\244data\304\110'; head -c 72 /dev/zero
      printf '\203\242id\241e\244mask\203\245dtype\242U8\245shape\222\004\005\244data\304\024'; head -c 20 /dev/zero
      printf '\254pixel_values\203\245dtype\242U8\245shape\223\004\004\003\244data\304\060'; head -c 48 /dev/zero
      printf '\202\242id\241f\254pixel_values\203\245dtype\242U8\245shape\223\004\004\003\244data\304\060'; head -c 48 /dev/zero
      printf '\201\243end\006'; } > bad.sd
    run -1 --separate-stderr encode -j bad.sd
    [ "$(field id)" = '"f"' ]
    [ "$(jq -c 'select(.end)' <<< "$output")" = '{"end":1}' ]
    diff <(cat <<END
sd-encode-latents: bad.sd: record 1: no pixel_values
sd-encode-latents: bad.sd: record 2: pixel_values: expected U8 [height, width, 3], found F32 [4, 4, 3]
sd-encode-latents: bad.sd: record 3: pixel_values: expected U8 [height, width, 3], found U8 [4, 4]
sd-encode-latents: bad.sd: record 4: pixel_values: 6x4, sides must be multiples of 4
sd-encode-latents: bad.sd: record 5: mask: expected U8 [4, 4], found U8 [4, 5]
sd-encode-latents: 6 records: 1 encoded, 0 from the cache, 5 left out
END
    ) - <<< "$stderr"
    run -0 --separate-stderr encode -k -j bad.sd
    [[ $stderr == *"warning: bad.sd: record 1: no pixel_values"* ]]
    run -3 --separate-stderr encode -j --shard 0/6 bad.sd
    [[ $output != *'"end"'* ]]
    run -0 --separate-stderr encode -j --shard 5/6 bad.sd
    # what is encoded already has no pixels any more
    encode -q three.sd > done.sd
    run -3 --separate-stderr encode -j done.sd
    [[ $stderr == *"rgb.png: no pixel_values: already encoded"* ]]
}

@test "broken streams, cut models, missing ones, unwritable caches: status 3, one line" {
    head -c 9000 three.sd > cut.sd
    run -3 --separate-stderr encode -j cut.sd
    [[ $stderr == "sd-encode-latents: cut.sd: record 2: cut short" && $output != *'"end"'* ]]
    run -3 --separate-stderr encode none.sd
    is_line "sd-encode-latents: none.sd: No such file or directory"
    cp -r "$MODEL" model
    truncate -s -1 model/vae/diffusion_pytorch_model.safetensors
    run -3 --separate-stderr sd-encode-latents --model model three.sd
    [[ -z $output && $stderr == "sd-encode-latents: model: "*"diffusion_pytorch_model.safetensors"* && $(wc -l <<< "$stderr") == 1 ]]
    rm model/vae/diffusion_pytorch_model.safetensors
    run -3 --separate-stderr sd-encode-latents --model model three.sd
    [[ -z $output && $stderr == "sd-encode-latents: model: model/vae: no diffusion_pytorch_model.safetensors" ]]
    HF_HUB_CACHE=/none run -3 --separate-stderr sd-encode-latents --model no/such three.sd
    [[ -z $output && $stderr == "sd-encode-latents: no/such: "* ]]
    run -3 --separate-stderr encode --cache /dev/null/cache -j three.sd
    [[ $stderr == *"rgb.png: /dev/null/cache"*": cannot be made: Not a directory" && $(wc -l <<< "$stderr") == 1 ]]
    run -3 --separate-stderr bash -c 'sd-encode-latents --model "$1" three.sd > /dev/full' - "$MODEL"
    [[ $stderr == *"sd-encode-latents: standard output: No space left on device" ]]
}

@test "a cache that can only be read serves what it holds" {
    if [ "$(id -u)" = 0 ]; then skip "root may write anywhere"; fi
    encode -q --cache ro three.sd > /dev/null
    chmod -R a-w ro
    run -0 --separate-stderr encode --cache ro three.sd
    chmod -R u+w ro
    counts 3 0 3
}

@test "options: no model, a VAE alone, --tile, --device, --dtype, --batch-size" {
    run -2 --separate-stderr sd-encode-latents three.sd
    [[ -z $output && $stderr == "sd-encode-latents: --model: which model?"* ]]
    run -0 --separate-stderr sd-encode-latents --vae "$MODEL/vae" three.sd
    counts 3 3 0
    run -0 --separate-stderr encode three.sd
    counts 3 0 3
    run -2 --separate-stderr encode --tile 24 three.sd
    is_line "sd-encode-latents: --tile: 24 pixels: expected a multiple of 16"
    run --separate-stderr encode --device cuda:99 three.sd      # on a machine with GPUs too
    [[ $status == 3 && -z $output && $stderr == "sd-encode-latents: --device"*"cuda:99"* ]]
    for d in f16 tf32; do
        run -2 --separate-stderr encode --dtype $d three.sd
        [[ -z $output && $stderr == "sd-encode-latents: --dtype: $d"* ]]
    done
    run -2 --separate-stderr encode --batch-size 0 three.sd
    run -0 --separate-stderr encode --device cpu --dtype f32 three.sd
    counts 3 0 3
}

@test "records do not go to a terminal" {
    run script -qec "sd-encode-latents --model '$MODEL' three.sd; echo status \$?" /dev/null
    [[ $output == *"standard output: records are binary, and this is a terminal"* && $output == *"status 2"* ]]
    run script -qec "sd-encode-latents --model '$MODEL' > out; echo status \$?" /dev/null
    [[ $output == *"standard input is a terminal"* && $output == *"status 2"* ]]
}
