#!/usr/bin/env bats
# sd-merge: every option, every fault.  What the weights are is in tests/unit/lora.c and tests/models/merge.c.
load ../helper

M=$BATS_TEST_DIRNAME/../data/models L=$BATS_TEST_DIRNAME/../data/lora

# header FILE: of a safetensors file, as JSON
header() {
    local n
    n=$(od -An -tu8 -N8 "$1")
    tail -c +9 "$1" | head -c "$n"
}
keys() { header "$1" | jq -r 'del(.__metadata__) | keys[]'; }
metadata() { header "$1" | jq -r ".__metadata__[\"$2\"]"; }
dtypes() { header "$1" | jq -r 'del(.__metadata__) | [.[].dtype] | unique | join(" ")'; }

@test "each dialect into each; none has a key of another" {
    for from in kohya.safetensors kohya_ldm.safetensors diffusers.safetensors diffusers_middle.safetensors comfy.safetensors \
        mixed.safetensors peft; do
        for to in kohya diffusers comfy peft; do
            run -0 --separate-stderr sd-merge --verify --format $to --output "$from.$to" "$L/sd1.$from"
            [[ $stderr == "sd-merge: $from.$to: 18 layers read back, largest relative difference "* ]]
            [ -z "$output" ]
        done
        [ "$(keys "$from.kohya" | grep -cvE '^lora_(unet|te)_[a-z0-9_]*\.(lora_(down|up)\.weight|alpha)$')" = 0 ]
        [ "$(keys "$from.kohya" | wc -l)" = 54 ]
        [ "$(keys "$from.diffusers" | grep -cvE '^(unet|text_encoder\.text_model)\..*\.lora_[AB]\.weight$')" = 0 ]
        [ "$(keys "$from.diffusers" | wc -l)" = 36 ]
        [ "$(keys "$from.peft/unet/adapter_model.safetensors" | grep -cvE '^base_model\.model\.[a-z].*\.lora_[AB]\.weight$')" = 0 ]
        [ "$(keys "$from.peft/text_encoder/adapter_model.safetensors" | grep -cv '^base_model\.model\.encoder\.layers\.')" = 0 ]
        [ "$(jq -r .peft_type "$from.peft/unet/adapter_config.json")" = LORA ]
        [ "$(jq '.target_modules | length' "$from.peft/unet/adapter_config.json")" = 14 ]
        [ "$(jq -c '[.r, (.rank_pattern | length), .rank_pattern["mid_block.attentions.0.proj_out"]]' \
            "$from.peft/unet/adapter_config.json")" = '[2,3,3]' ]
        [ "$(keys "$from.comfy" | grep -cvE '^(diffusion_model\.(in|out)put_blocks|diffusion_model\.middle_block|lora_te_)')" = 0 ]
    done
    nothing_left
}

@test "kohya is the form unless told otherwise; the same inputs give the same bytes" {
    sd-merge --output a "$L/sd1.peft"
    sd-merge --format kohya --output b "$L/sd1.peft"
    [ "$(keys a)" = "$(keys b)" ]
    OMP_NUM_THREADS=1 sd-merge --output c "$L/sd1.peft"
    cmp a c
}

@test "weights: files joined, ranks added; a weight in a name is a name" {
    run -0 --separate-stderr sd-merge --verify --output both "$L/sd1.kohya.safetensors:0.75" "$L/sd1.comfy.safetensors:-25e-2"
    [ "$(header both | jq -c '.["lora_unet_mid_block_attentions_0_proj_out.lora_down.weight"].shape')" = '[6,16,1,1]' ]
    [ "$(metadata both sd_tools.merge | jq -c '[.inputs[].weight]')" = '[0.75,-0.25]' ]
    cp "$L/sd1.kohya.safetensors" odd:2
    run -0 --separate-stderr sd-merge --output odd odd:2
    [ "$(metadata odd sd_tools.merge | jq '.inputs[0].weight == 1')" = true ]
    for bad in x 1x '' nan inf 0x; do
        run -2 --separate-stderr sd-merge --output never "$L/sd1.kohya.safetensors:$bad"
        is_line "sd-merge: $L/sd1.kohya.safetensors:$bad: expected FILE or FILE:WEIGHT, a number"
    done
    [ ! -e never ]
}

@test "--save-dtype, and the inputs' dtype without it" {
    for t in f32 f16 bf16; do
        sd-merge -q --verify --save-dtype $t --output $t "$L/sd1.kohya.safetensors"
        [ "$(dtypes $t)" = "${t^^}" ]
        sd-merge --format peft --output $t.peft $t
        [ "$(dtypes $t.peft/unet/adapter_model.safetensors)" = "${t^^}" ]
    done
    sd-merge --output mixed f16 bf16
    [ "$(dtypes mixed)" = F32 ]
    run -2 --separate-stderr sd-merge --save-dtype f8 --output never "$L/sd1.kohya.safetensors"
    [[ $stderr == *"--save-dtype: "* ]]
}

@test "metadata: hashes and weights, no path; kohya's keys stay where all agree" {
    mkdir secret-place
    cp "$L/sd1.kohya.safetensors" secret-place/in.safetensors
    sd-merge --output out secret-place/in.safetensors
    [ "$(metadata out sd_tools.merge | jq -r '.inputs[0].sha256')" = "$(sha256sum < "$L/sd1.kohya.safetensors" | cut -d ' ' -f 1)" ]
    if header out | grep -q secret; then return 1; fi
    [ "$(metadata out ss_v2)" = False ]
    [ "$(metadata out ss_base_model_version)" = sd_v1 ]
    [ "$(metadata out ss_network_module)" = networks.lora ]
    [ "$(metadata out ss_network_args)" = '{}' ]
    [ "$(metadata out ss_network_dim)" = 2 ]        # the UNet's most common
    [ "$(metadata out ss_network_alpha)" = 1 ]
    [ "$(metadata out ss_steps)" = 12 ]
    [ "$(metadata out format)" = pt ]
    n=$(od -An -tu8 -N8 out)
    [ "$(metadata out sshs_model_hash)" = "$(tail -c +$((9 + n)) out | sha256sum | cut -d ' ' -f 1)" ]
    # of two, what only one says is gone
    sd-merge --output two secret-place/in.safetensors "$L/sd1.peft"
    [ "$(metadata two ss_steps)" = null ]
    [ "$(metadata two ss_base_model_version)" = null ]
    sd-merge --output same secret-place/in.safetensors out
    [ "$(metadata same ss_base_model_version)" = sd_v1 ]
    [ "$(metadata same ss_steps)" = null ]
}

@test "a model: a folder like its base, weights changed, the rest copied" {
    run -0 --separate-stderr sd-merge --model "$M/sd1" --verify --output out "$L/sd1.kohya.safetensors"
    is_line "sd-merge: out: 698 tensors read back, 18 layers changed"
    diff <(cd "$M/sd1" && find . -type f | sort) <(cd out && find . -type f | sort)
    for f in model_index.json scheduler/scheduler_config.json unet/config.json vae/diffusion_pytorch_model.safetensors; do
        cmp "$M/sd1/$f" "out/$f"
    done
    run cmp -s "$M/sd1/unet/diffusion_pytorch_model.safetensors" out/unet/diffusion_pytorch_model.safetensors
    [ "$status" = 1 ]
    [ "$(metadata out/unet/diffusion_pytorch_model.safetensors sd_tools.base_unet)" = \
        "$(sha256sum < "$M/sd1/unet/diffusion_pytorch_model.safetensors" | cut -d ' ' -f 1)" ]
    nothing_left
}

@test "a model in shards stays in shards; --save-dtype leaves the VAE; what is not the model's stays behind" {
    cp -r "$M/sd2" base
    mkdir base/tokenizer base/.cache
    echo '{}' > base/tokenizer/vocab.json
    echo x > base/picture.png
    echo x > base/unet/diffusion_pytorch_model.bin
    jq '.tokenizer = ["transformers", "CLIPTokenizer"]' base/model_index.json > i && mv i base/model_index.json
    run -0 --separate-stderr sd-merge --verify --save-dtype f32 --model base --output out "$L/sd2.peft:0.5"
    [[ $stderr == "sd-merge: out: 657 tensors read back, 9 layers changed" ]]
    [ "$(find out/unet -name '*-of-00003.safetensors' | wc -l)" = 3 ]
    for f in out/unet/*.safetensors; do [ "$(dtypes "$f")" = F32 ]; done
    [ "$(dtypes out/text_encoder/model.safetensors)" = "F32 I64" ]
    cmp out/vae/diffusion_pytorch_model.fp16.safetensors base/vae/diffusion_pytorch_model.fp16.safetensors
    cmp out/tokenizer/vocab.json base/tokenizer/vocab.json
    [ ! -e out/picture.png ] && [ ! -e out/unet/diffusion_pytorch_model.bin ]
    i=out/unet/diffusion_pytorch_model.safetensors.index.json
    total=$(for f in out/unet/*.safetensors; do header "$f" | jq '[del(.__metadata__)[].data_offsets[1]] | max'; done | jq -s add)
    [ "$(jq .metadata.total_size $i)" = "$total" ]
    [ "$(jq -c .weight_map $i)" = "$(jq -c .weight_map base/unet/diffusion_pytorch_model.safetensors.index.json)" ]
    run -0 --separate-stderr sd-merge --verify --model out --output again "$L/sd2.peft:-0.5"
}

@test "an adapter of another model is named, and nothing is written" {
    run -3 --separate-stderr sd-merge --model "$M/sd1" --output out "$L/sd2.kohya.safetensors"
    [[ $stderr == "sd-merge: $M/sd1: "*": "*"the model"* ]]
    [ "$(wc -l <<< "$stderr")" = 1 ]
    [ ! -e out ]
    run -3 --separate-stderr sd-merge --model absent --output out "$L/sd1.peft"
    [[ $stderr == "sd-merge: absent: "* ]]
    run -3 --separate-stderr sd-merge --output out "$L/sd1.peft" "$L/sd2.peft"
    [[ $stderr == "sd-merge: "*"in one file,"* ]]
    nothing_left
}

@test "bad inputs: one line, status 3, no output" {
    head -c 2000 "$L/sd1.kohya.safetensors" > cut
    run -3 --separate-stderr sd-merge --output out cut
    [[ $stderr == "sd-merge: cut: "* ]]
    [ "$(wc -l <<< "$stderr")" = 1 ]
    sed 's/lora_unet_conv/lora_xnet_conv/; s/attn1_to_q\.lora_up/attn1_to_x.lora_up/' "$L/sd1.kohya.safetensors" > odd
    run -3 --separate-stderr sd-merge --output out odd
    [[ $stderr == "sd-merge: odd: lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_x.lora_up.weight: not a key of an adapter"* ]]
    run -3 --separate-stderr sd-merge --output out absent
    is_line "sd-merge: absent: No such file or directory"
    run -3 --separate-stderr sd-merge --output out "$M/sd1/unet/diffusion_pytorch_model.safetensors"
    [ "$(wc -l <<< "$stderr")" = 1 ]
    run -3 --separate-stderr sd-merge --output out "$M/sd1.safetensors"
    [ "$(wc -l <<< "$stderr")" = 1 ]
    mkdir empty
    run -3 --separate-stderr sd-merge --output out empty
    [[ $stderr == "sd-merge: empty: adapter_config.json"* ]]
    run -3 --separate-stderr sd-merge --output out "$L/sd1.peft/unet/adapter_model.safetensors"
    [[ $stderr == *"name the folder"* ]]
    [ ! -e out ]
    nothing_left
}

@test "usage: status 2, nothing touched" {
    run -2 --separate-stderr sd-merge "$L/sd1.peft"
    is_line "sd-merge: --output: what is to be written?"
    run -2 --separate-stderr sd-merge --output out
    is_line "sd-merge: no adapter named"
    run -2 --separate-stderr sd-merge --model "$M/sd1" --format kohya --output out "$L/sd1.peft"
    [[ $stderr == "sd-merge: --format: "* ]]
    run -2 --separate-stderr sd-merge --format a1111 --output out "$L/sd1.peft"
    [[ $stderr == "sd-merge: --format: a1111 is of embeddings"* ]]
    run -2 --separate-stderr sd-merge --format other --output out "$L/sd1.peft"
    [ ! -e out ]
}

@test "an existing output is refused, and replaced with --overwrite" {
    echo dear > file
    mkdir folder
    for name in file folder; do
        run -2 --separate-stderr sd-merge --output $name "$L/sd1.peft"
        is_line "sd-merge: $name: exists (use --overwrite)"
        run -2 --separate-stderr sd-merge --model "$M/sd1" --output $name "$L/sd1.peft"
    done
    [ "$(cat file)" = dear ]
    run -0 sd-merge --overwrite --output file "$L/sd1.peft"
    run -0 sd-merge --overwrite --format peft --output folder "$L/sd1.peft"
    run -0 sd-merge --overwrite --format peft --output folder folder
    run -3 --separate-stderr sd-merge --overwrite --model "$M/sd1" --output folder "$L/sd1.peft"
    is_line "sd-merge: folder: is a folder without model_index.json: not replaced"
    [ -e folder/unet/adapter_config.json ]
    run -0 sd-merge --model "$M/sd1" --output model "$L/sd1.peft"
    run -0 sd-merge --overwrite --verify --model model --output model "$L/sd1.peft:-1"
    nothing_left
}

@test "what cannot be written is an error; nothing half-written is left" {
    run -3 --separate-stderr sd-merge --output /dev/full "$L/sd1.peft"
    [[ $stderr == "sd-merge: /dev/full: "*"No space left on device" ]]
    run -3 --separate-stderr sd-merge --output no/such/place "$L/sd1.peft"
    is_line "sd-merge: no/such/place: cannot be written: No such file or directory"
    run -3 --separate-stderr sd-merge --model "$M/sd1" --output no/such/place "$L/sd1.peft"
    is_line "sd-merge: no/such/place: cannot be written: No such file or directory"
    run -3 --separate-stderr sd-merge --format peft --output no/such/place "$L/sd1.peft"
    # a disk of 100 blocks
    run -3 --separate-stderr bash -c "ulimit -f 100; sd-merge --model '$M/sd1' --output out '$L/sd1.peft'"
    [[ $stderr == "sd-merge: out: "*"File too large" ]]
    [ ! -e out ]
    nothing_left
}

# token: the file `tiny`, one tensor, [2, 3] in F32, under its token
token() {
    local text='{"<cat>":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}   '
    { printf '%b' "\\x$(printf %02x ${#text})\\0\\0\\0\\0\\0\\0\\0"; printf %s "$text"; printf 'abcdefghijklmnopqrstuvwx'; } > tiny
}

@test "embeddings: diffusers' form and that of A1111 and ComfyUI" {
    tool=$BATS_TEST_TMPDIR/tiny
    token
    for format in a1111 comfy; do
        run -0 --separate-stderr sd-merge --verify --format $format --output $format.safetensors "$tool"
        is_line "sd-merge: $format.safetensors: 2 vectors of 3 read back"
        [ "$(keys $format.safetensors)" = emb_params ]
        [ "$(tail -c 24 $format.safetensors)" = abcdefghijklmnopqrstuvwx ]
    done
    run -0 sd-merge --output back.safetensors a1111.safetensors
    [ "$(keys back.safetensors)" = '<cat>' ]
    [ "$(tail -c 24 back.safetensors)" = abcdefghijklmnopqrstuvwx ]
    run -0 sd-merge --verify --save-dtype bf16 --output half.safetensors "$tool"
    [ "$(dtypes half.safetensors)" = BF16 ]
    run -2 --separate-stderr sd-merge --output never "$tool:0.5"
    run -2 --separate-stderr sd-merge --output never "$tool" "$tool"
    [[ $stderr == *"one at a time"* ]]
    run -2 --separate-stderr sd-merge --format peft --output never "$tool"
    run -2 --separate-stderr sd-merge --model "$M/sd1" --output never "$tool"
    cp "$tool" old.pt
    run -3 --separate-stderr sd-merge --output never old.pt
    [[ $stderr == "sd-merge: old.pt: a pickle"* ]]
    [ ! -e never ]
}

@test "-v says what the inputs are; -q is silent; --config" {
    run -0 --separate-stderr sd-merge -v --output a "$L/sd1.diffusers_oldest.safetensors"
    [[ $stderr == *"diffusers (old), 6 layers"* ]]
    run -0 --separate-stderr sd-merge -q --verify --output b "$L/sd1.peft"
    [ -z "$stderr" ]
    echo '{"format": "diffusers", "verify": true}' > c.json
    run -0 --separate-stderr sd-merge --config c.json --output d "$L/sd1.peft"
    [[ $stderr == *"read back"* ]]
    [ "$(keys d | grep -c lora_A)" = 18 ]
}

@test "-h and the manual name the same options" {
    run -0 sd-merge -h
    in_help=$(grep -oE -- '--[a-z][a-z-]*' <<< "$output" | sort -u)
    in_manual=$(sed -nE 's/^\.It .*Fl -([a-z-]+).*/--\1/p' "$ROOT/man/sd-merge.1" | sort -u)
    diff <(echo "$in_help") <(echo "$in_manual")
}

bytes() { find "$@" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }'; }

@test "--plan: the bytes to come, and nothing else is done" {
    L1=$L/sd1.kohya.safetensors
    for to in kohya diffusers comfy peft; do
        for t in f32 f16; do
            sd-merge --plan --format $to --save-dtype $t "$L1" "$L/sd1.peft:0.5" > plan
            [ "$(ls -A)" = plan ]       # not even a cache of hashes
            [ "$(jq -c 'keys' plan)" = '["activations_bytes","arena_bytes","bytes_read","bytes_written","flops","inputs","layers","packed_bytes","peak_bytes","unmatched","weights_bytes"]' ]
            XDG_CACHE_HOME=$PWD/cache sd-merge --output out --format $to --save-dtype $t "$L1" "$L/sd1.peft:0.5"
            [ "$(jq .bytes_written plan)" = "$(bytes out)" ]
            [ "$(jq .bytes_read plan)" = "$(bytes "$L1" "$L/sd1.peft")" ]
            rm -r out cache plan
        done
    done
    for m in sd1 sd2; do
        l=$L/$m.kohya.safetensors
        for t in "" "--save-dtype f16"; do
            # shellcheck disable=SC2086
            sd-merge --plan --model "$M/$m" $t "$l" > plan
            [ "$(ls -A)" = plan ]
            # shellcheck disable=SC2086
            XDG_CACHE_HOME=$PWD/cache sd-merge --model "$M/$m" $t --output out "$l"
            [ "$(jq .bytes_written plan)" = "$(bytes out)" ]
            jq -e '.unmatched == [] and .tensors_changed == .layers and .flops > 0 and .bytes_read > .bytes_written / 2' plan
            rm -r out cache plan
        done
    done
    token
    sd-merge --plan --format a1111 tiny > plan
    sd-merge --format a1111 --output out tiny
    [ "$(jq -c '[.bytes_read, .bytes_written]' plan)" = "[$(bytes tiny),$(bytes out)]" ]
}

@test "--plan names what the model has not, and fails as the run would" {
    run -3 --separate-stderr sd-merge --plan --model "$M/sd2" "$L/sd1.kohya.safetensors"
    [ "$(jq '.unmatched | length > 0' <<< "$output")" = true ]
    first=$(jq -r '.unmatched[0]' <<< "$output")
    [[ $stderr == *" layers of the adapters are not in it, or of another shape, the first is $first" && ${#stderr_lines[@]} == 1 ]]
    run -3 --separate-stderr sd-merge --model "$M/sd2" --output out "$L/sd1.kohya.safetensors"
    [[ $stderr == *": $first: "* ]]
}

@test "--plan is the anonymous memory really taken; --memory refuses what needs more" {
    counts_memory sd-merge
    copies() { for ((i = 0; i < $2; i++)); do echo "$1"; done; }
    mapfile -t many < <(copies "$L/sd1.kohya.safetensors" 64)
    sd-merge --output more "${many[@]}"
    mapfile -t many < <(copies more 32)
    sd-merge --save-dtype f16 --output half "${many[@]}"
    as_planned() { # LEAST COMMAND...: a plan of so many MiB at least, met within 5 MiB
        local least=$1 planned most=0 now pid
        shift
        planned=$("$@" --plan | jq .peak_bytes)
        "$@" & pid=$!
        while now=$(sed -n 's/^RssAnon:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status" 2> /dev/null) && [ -n "$now" ]; do
            if ((now > most)); then most=$now; fi
            sleep 0.002
        done
        wait $pid
        echo "$*: planned $((planned >> 10)) KiB, seen $most KiB"
        ((planned > least << 20 && most << 10 < planned + (5 << 20) && most << 10 > planned - (5 << 20)))
    }
    as_planned 90 sd-merge --output out half half
    as_planned 45 sd-merge --overwrite --output out --format diffusers half:0.5 more
    as_planned 20 sd-merge --model "$M/sd1" --output model half
    need=$(sd-merge --plan --output none half half | jq .peak_bytes)
    sd-merge --memory "$need" --output fits half half
    run -3 --separate-stderr sd-merge --memory $((need - 1)) --output none half half
    [[ $stderr == "sd-merge: --memory: "*" MiB are needed, "*" MiB allowed" ]]
    [ ! -e none ]
}

@test "what merging has no choice of is refused by name" {
    run -2 --separate-stderr sd-merge --device cuda --output x "$L/sd1.kohya.safetensors"
    is_line "sd-merge: --device: cuda: weights are merged on the CPU"
    run -2 --separate-stderr sd-merge --dtype bf16 --output x "$L/sd1.kohya.safetensors"
    is_line "sd-merge: --dtype: bf16: sums are made in f32; --save-dtype is what is written"
    sd-merge --device cpu --dtype f32 --threads 1 --output x "$L/sd1.kohya.safetensors"
    sd-merge --threads 2 --output y "$L/sd1.kohya.safetensors"
    cmp x y
}
