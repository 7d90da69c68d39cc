#!/usr/bin/env bats
# shellcheck disable=SC2086
# What --plan says a device will be asked for, against what the emulated one was asked for, to the byte.
load ../helper
load ../training

M=$BATS_TEST_DIRNAME/../../examples/miniature/model

emulated() { PATH=$BUILD/emulate:$PATH SD_EMULATE_STRICT=0 "$@"; }
# agrees COMMAND...: the plan's sum is the most that was allocated at once; prints plan and allocations where not
agrees() {
    emulated "$@" --device cuda --plan > plan
    rm -f taken
    SD_EMULATE_ALLOCATIONS=taken emulated "$@" --device cuda > /dev/null
    local most
    most=$(sort -n taken | tail -n 1 | cut -d ' ' -f 1)
    jq -e '.peak_bytes == .device.sum and ([.device | .activations, .weights, .trained, .gradients, .optimizer, .samples, .states,
           .input, .latents, .workspace] | add) == .device.sum' plan
    # a batch of some may never be of short texts alone: its input is counted, and not taken then
    if [[ $* == *--train-batch-size* ]] && jq -e ".device.sum >= $most and .device.sum - $most < .device.input" plan; then return; fi
    if [ "$(jq .device.sum plan)" != "$most" ]; then
        cat plan
        echo "taken: $most"
        awk '{ n = $2; $1 = $2 = ""; sum[$0 ~ /[.]/ ? "weights" : $0] += n } END { for (k in sum) print k, sum[k] }' taken
        return 1
    fi
}

@test "training of layers: the plan's rows are what is taken" {
    for more in "--dtype f32" "--dtype bf16" "--dtype bf16 --train-text-encoder" "--gradient-accumulation-steps 5 --optimizer prodigy" \
        "--train-batch-size 2 --masked-loss" "--train-batch-size 2 --dtype f32 --caption-dropout 0.5"; do
        agrees plain -q --overwrite --max-train-steps 10 --seed 1 $more
        agrees lora -q --overwrite --max-train-steps 10 --seed 1 $more
    done
    SD_TRAIN_RESIDENT=9000 agrees plain -q --overwrite --max-train-steps 10
    SD_TRAIN_RESIDENT=0 agrees lora -q --overwrite --max-train-steps 10 --masked-loss
}

@test "a frozen text encoder is gone when the steps begin, unless it is needed again" {
    weights() { emulated plain --device cuda --plan "$@" | jq .device.weights; }
    gone=$(weights --train-batch-size 2) stays=$(weights --train-batch-size 2 --caption-dropout 0.5)
    encoder=$(stat -c %s "$MODEL/text_encoder/model.safetensors")
    echo "$gone bytes of weights without, $stays with; the encoder's file has $encoder"
    ((stays - gone > encoder / 3))
    SD_EMULATE_ALLOCATIONS=taken emulated plain -q --device cuda --max-train-steps 3
    cat taken
    [ "$(awk '/ text_encoder[.]/ { text = NR } / unet[.]/ && !unet { unet = NR } END { print text && unet && text < unet }' taken)" = 1 ]
}

@test "training of tokens: the plan's rows are what is taken" {
    for more in "--dtype f32" "--dtype bf16" "--gradient-accumulation-steps 2 --train-batch-size 2"; do
        agrees ti -q --overwrite --max-train-steps 10 $more
    done
}

@test "encoding: the plan's rows are what is taken" {
    sd-crop -q --resolution 48x40 "$DATA/images/rgb.png" "$DATA/images/la.png" "$DATA/images/grey.png" | sd-caption -q --caption 'a {file}' > p.sd
    for more in "--dtype f32" "--dtype bf16" "--dtype bf16 --batch-size 3 --text"; do
        agrees sd-encode-latents -q --model "$MODEL" --salt "$more" $more p.sd
    done
}

@test "drawing: the plan's rows are what is taken" {
    for more in "--dtype f32" "--dtype bf16" "--num-images 3 --batch-size 2" "--guidance-scale 1 --sampler euler_a" "--sampler dpmpp_2m" \
        "--negative-prompt $(printf 'word,%.0s' {1..90})"; do
        agrees sd-sample -q --model "$M" --prompt "a red circle" --num-inference-steps 2 --output - $more
    done
}

@test "drawing with adapters: the plan's rows are what is taken" {
    plain -q --max-train-steps 1 --save-dtype f32
    printf '%s\n' 'a photo' 'a photo<lora:out>' 'a photo<lora:out:0.5>' > lines
    for more in "--dtype f32" "--dtype bf16 --batch-size 2"; do
        agrees sd-sample -q --model "$MODEL" --num-inference-steps 2 --width 32 --height 40 --lora-dir . --output - $more lines
    done
}

@test "--memory on a device holds against the sum, or says what does not fit" {
    emulated plain --device cuda --plan > plan
    most=$(jq .device.sum plan)
    emulated plain -q --device cuda --max-train-steps 5 --memory "$most"
    less=$(jq '.device.sum - .device.activations - 1' plan)
    run -3 --separate-stderr emulated plain -q --overwrite --device cuda --max-train-steps 5 --memory "$less"
    [[ $stderr == *"--memory"* ]]
    draw() { emulated sd-sample -q --model "$M" --prompt x --num-inference-steps 1 --device cuda --output out.png "$@"; }
    most=$(draw --plan | jq .device.sum)
    run -3 --separate-stderr draw --memory $((most - 1))
    [[ $stderr == *"are needed"* ]]
    draw --memory "$most"
    run -3 --separate-stderr env SD_EMULATE_MEMORY=$((most - 1)) "$BUILD/emulate/sd-sample" -q --overwrite --model "$M" --prompt x \
        --num-inference-steps 1 --device cuda --output out.png
    [[ $stderr == *"the device has"* ]]
}

@test "training: nothing is computed twice where a device has the room; what is has the same bits; what does not fit is refused" {
    sd-crop -q --resolution 128 "$DATA/images/rgb.png" "$DATA/images/la.png" | sd-caption -q --caption 'a photo' \
        | sd-encode-latents -q --model "$M" > two.sd
    train() {
        emulated sd-train-lora -q --threads 1 --model "$M" --rank 2 --output out.safetensors --overwrite --train-batch-size 2 --seed 1 \
            --device cuda --max-train-steps 1 "$@" two.sd
    }
    train --plan > all
    train
    mv out.safetensors all.safetensors
    for less in 1 2 4; do
        # of the arena's steps of 2 MiB; a sixteenth of a device is for the libraries
        export SD_EMULATE_MEMORY=$((($(jq .device.sum all) - (less << 21)) * 16 / 15 + 16))
        train --plan > plan
        (($(jq .device.sum plan) <= SD_EMULATE_MEMORY && $(jq .device.activations plan) < $(jq .device.activations all)))
        (($(jq .flops plan) > $(jq .flops all) || less == 1))       # norms are not counted
        if [ $less = 2 ]; then continue; fi
        train
        cmp out.safetensors all.safetensors
    done
    export SD_EMULATE_MEMORY=$((12 << 20))
    run -3 --separate-stderr train
    [[ $stderr == *"memory: the device has 11.2 MiB: weights, samples and what is trained take "* ]]
    export SD_EMULATE_MEMORY=$((17 << 20))
    run -3 --separate-stderr train
    [[ $stderr == *" MiB for activations, the budget leaves "* ]]
}

@test "a library's workspace is counted where the library is, and only there" {
    planned() { emulated sd-sample -q --model "$M" --prompt x --device cuda --plan | jq -c '.device | [.workspace_cublaslt, .workspace_cudnn]'; }
    [ "$(planned)" = "[0,0]" ]                  # the emulated device's own kernels
    mkdir libs
    export SD_EMULATE_CAPABILITY=90 SD_CUDA_LIBS=$PWD/libs
    ln -s "$BUILD/tests/fake/libcublasLt.so.13" libs
    [ "$(planned | jq '.[0]')" = $((32 << 20)) ]
    ln -s "$BUILD/tests/fake/libcudnn.so.9" libs
    [ "$(planned)" = "[$((32 << 20)),$((168 << 20))]" ]
}
