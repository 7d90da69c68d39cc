#!/usr/bin/env bats
# Whole programs on a device: the emulated one, whose kernels are those of a card.  Parity with the reference's stored values,
# with the CPU, and with itself; and what a machine without a card is told.
load ../helper
load ../training

M=$BATS_TEST_DIRNAME/../../examples/miniature/model

emulated() { PATH=$BUILD/emulate:$PATH SD_EMULATE_STRICT=${SD_EMULATE_STRICT-0} "$@"; }
# difference A B: mean of |a - b| over the 64x64 pixels of two pictures in streams
difference() {
    perl -0777 -e 'for (@ARGV) { open F, "<:raw", $_; $s = <F>; $i = index $s, "\xc5\x30\x00"; die "no pixels" if $i < 0;
            push @p, [unpack "C*", substr $s, $i + 3, 12288] }
        $sum += abs($p[0][$_] - $p[1][$_]) for 0 .. 12287; print $sum / 12288' "$1" "$2"
}

@test "training: twenty steps of LoRA, of tokens with LoRA, and of Prodigy are the reference's" {
    cd "$BATS_TEST_DIRNAME/../.."
    SD_TEST_DEVICE=cuda emulated "$BUILD/tests/models/train" lora pivotal prodigy > "$BATS_TEST_TMPDIR/out"
    [ "$(grep -c '^ok' "$BATS_TEST_TMPDIR/out")" = 3 ]
}

@test "training in bf16: near the CPU, killed with -9 and resumed to the same bytes" {
    asked() {
        sd-train-lora -q --threads 2 --model "$MODEL" --rank 2 --max-train-steps 8 --checkpointing-steps 2 --learning-rate 1e-3 \
            --placeholder-token '<new>' --output-embedding new.safetensors --gradient-accumulation-steps 2 \
            --log log --output out.safetensors "$@" "$RECORDS/three.sd"
    }
    asked --device cpu
    mv log cpu.log
    rm out.safetensors new.safetensors
    emulated asked --device cuda
    mv log whole.log
    mv out.safetensors whole
    mv new.safetensors whole.new
    jq -s -e '[range(8) as $i | (.[$i].loss / .[$i + 8].loss - 1 | fabs) < 0.02] | all' cpu.log whole.log
    emulated asked --device cuda &
    for ((i = 0; i < 6000; i++)); do if [ -e log ] && [ "$(wc -l < log)" -ge 3 ]; then break; fi; sleep 0.01; done
    pkill -9 -P $! || kill -9 $!
    wait $! || true
    [[ -s out.safetensors.state && ! -e out.safetensors ]]
    emulated asked --device cuda --resume
    cmp whole out.safetensors
    cmp whole.new new.safetensors
    [ "$(jq -c '[.step, .loss]' log)" = "$(jq -c '[.step, .loss]' whole.log)" ]
}

@test "training: noise, latents and masks made on the device give the CPU's losses; samples kept there or sent each time" {
    asked() {
        lora -q --overwrite --masked-loss --noise-offset 0.1 --snr-gamma 5 --caption-dropout 0.3 --max-train-steps 7 --seed 5 \
            --learning-rate 1e-4 --dtype f32 --log log "$@"
    }
    near() { # A B: their logs
        jq -s -e '[range(7) as $i | ((.[$i].loss / .[$i + 7].loss - 1 | fabs) < 1e-4),
            ((.[$i].grad_norm / .[$i + 7].grad_norm - 1 | fabs) < 1e-3)] | length == 14 and all' "$1" "$2"
    }
    for more in "" "--train-batch-size 2" "--train-batch-size 2 --gradient-accumulation-steps 3" \
        "--train-batch-size 2 --train-text-encoder --text-encoder-learning-rate 1e-4"; do
        # shellcheck disable=SC2086
        set -- $more
        asked --device cpu "$@"
        mv log cpu.log
        emulated asked --device cuda "$@"
        near cpu.log log
        for resident in 0 9000; do          # bytes: of no sample, of some
            mv out.safetensors "kept"
            mv log kept.log
            SD_TRAIN_RESIDENT=$resident emulated asked --device cuda "$@"
            cmp kept out.safetensors
            [ "$(losses kept.log)" = "$(losses log)" ]
        done
    done
    # an offset of the noise that the device did not make would be seen
    emulated asked --device cuda --noise-offset 0.11
    run ! near cpu.log log
}

@test "training on a device: --plan counts what it keeps of the samples" {
    planned() { SD_TRAIN_RESIDENT=$1 emulated lora --device cuda --plan | jq .peak_bytes; }
    # five samples of 120 pixels of four channels, mean and deviation; a step of one sample, which is there twice
    [ $(($(planned 1000000) - $(planned 0))) = $((3 * 120 * 2 * 4 * 4)) ]
}

@test "training on a device: the steps between saves are asked for ahead, to the same bytes; with kills, stops and resumes" {
    asked() {
        emulated lora --overwrite --device cuda --max-train-steps 9 --learning-rate 1e-3 --log log "$@"
    }
    for more in "" "--gradient-accumulation-steps 3 --optimizer prodigy"; do
        # shellcheck disable=SC2086
        set -- $more
        asked "$@" --checkpointing-steps 1              # one by one
        mv log one.log
        mv out.safetensors one
        mv new.safetensors one.new
        same() {
            [ "$(losses log)" = "$(losses one.log)" ]
            cmp one out.safetensors
            cmp one.new new.safetensors
            rm out.safetensors new.safetensors log
        }
        asked "$@" --checkpointing-steps 100
        same
        asked "$@" --checkpointing-steps 4              # a halt that the end is not at
        same
        for resident in 0 9000; do                      # samples that are sent ahead of the step before theirs: all, some
            SD_TRAIN_RESIDENT=$resident asked "$@" --checkpointing-steps 100
            same
        done
        for signal in TERM KILL; do
            SD_TRAIN_RESIDENT=0 asked "$@" --checkpointing-steps 3 2> said &
            for ((i = 0; i < 6000; i++)); do if [ -e log ] && [ "$(wc -l < log)" -ge 4 ]; then break; fi; sleep 0.01; done
            pkill -$signal -P $! || kill -$signal $!
            wait $! || true
            step=$(metadata out.safetensors.state | jq -r .step)
            [[ $step -ge 3 && $step -le 9 && $(head -n "$step" log | wc -l) = "$step" ]]
            if [ $signal = TERM ]; then
                grep -q "stopped after step $step and saved" said
                [ "$(wc -l < log)" = "$step" ]          # as many as are in the state
            fi
            emulated lora -q --resume --device cuda --max-train-steps 9 --learning-rate 1e-3 --log log "$@" --checkpointing-steps 3
            same
        done
    done
}

@test "training on a device: what is not finite is named as when every step is looked at, and none behind it took place" {
    perl -0777 -pe 's/(latents_logvar.{1,60}?data...)..../$1\0\0\x48\x43/s' "$RECORDS/three.sd" > large.sd
    for more in "" "--gradient-accumulation-steps 2"; do
        asked() {
            # shellcheck disable=SC2086
            run -3 --separate-stderr emulated sd-train-lora -q --overwrite --model "$MODEL" --rank 2 --placeholder-token '<new>' --seed 2 $more \
                --output-embedding new.safetensors --max-train-steps 20 --output out.safetensors --dtype f32 --log log "$@" large.sd "$RECORDS/two.sd"
        }
        asked --device cpu
        [[ $stderr =~ (step [0-9]+): ]]
        step=${BASH_REMATCH[1]}
        asked --device cuda --checkpointing-steps 1
        one=$stderr
        [[ $one == *"$step: loss "*"first at "*", samples "*"rgb.png; the state before it is saved" ]]
        mv log one.log
        mv out.safetensors.state one
        for resident in 1000000 0; do
            SD_TRAIN_RESIDENT=$resident asked --device cuda
            [ "$stderr" = "$one" ]
            cmp one out.safetensors.state
            rm out.safetensors.state
            [ "$(losses log)" = "$(losses one.log)" ]
        done
        rm one
    done
}

@test "training on a device: a step writes some hundred bytes and the host waits for none" {
    counted() { # STEPS OPTION...: bytes and waits
        emulated "${of:-plain}" -v --overwrite --device cuda --checkpointing-steps 1000 --max-train-steps "$@" 2> said
        sed -nE 's/.*device: ([0-9]+) bytes written, ([0-9]+) waits .*/\1 \2/p' said
    }
    for of in plain lora; do                # texts frozen, and read anew
        more="--train-batch-size 2"
        if [ $of = plain ]; then more+=" --gradient-accumulation-steps 2"; fi
        # shellcheck disable=SC2086
        read -r bytes waits < <(counted 5 $more)
        # shellcheck disable=SC2086
        read -r more_bytes more_waits < <(counted 9 $more)
        echo "$of: $(((more_bytes - bytes) / 4)) bytes a step, $((more_waits - waits)) waits in 4"
        [[ $bytes -gt 0 && $waits -gt 0 && $more_waits = "$waits" ]]
        [ $((more_bytes - bytes)) -gt 0 ]
        [ $(((more_bytes - bytes) / 4)) -lt 1600 ]
    done
    # samples that are not kept are sent: the counter counts
    SD_TRAIN_RESIDENT=0 counted 2 > small
    SD_TRAIN_RESIDENT=0 counted 4 > large
    [ $(($(cut -d ' ' -f 1 large) - $(cut -d ' ' -f 1 small))) -ge $((2 * 120 * 2 * 4 * 4)) ]
}

@test "drawing: f32 as on the CPU, bf16 and f16 near it; the same bytes twice" {
    draw() { sd-sample -q --model "$M" --prompt "a red circle" --num-inference-steps 3 --output - "$@"; }
    draw --device cpu > cpu.sd
    for d in f32 bf16 f16; do emulated draw --device cuda --dtype $d > $d.sd; done
    emulated draw --device cuda --dtype bf16 > again.sd
    cmp bf16.sd again.sd
    for d in f32 bf16 f16; do echo "$d: $(difference cpu.sd $d.sd) of 255"; done
    jq -e -n "$(difference cpu.sd f32.sd) < 0.01"
    jq -e -n "$(difference cpu.sd bf16.sd) | . > 0.01 and . < 3"
    jq -e -n "$(difference cpu.sd f16.sd) | . > 0 and . < 0.5"
}

@test "every sampler: the picture of the CPU, with guidance of one length and of two, rescaled, without, and in batches" {
    draw() { sd-sample -q --model "$M" --prompt "a red circle" --num-inference-steps 3 --seed 4 --width 64 --height 64 --output - "$@"; }
    for i in $(seq 1 80); do long+="blue square, "; done
    same() {
        draw --device cpu "$@" > cpu.sd
        emulated draw --device cuda --dtype f32 "$@" > cuda.sd
        echo "$*: $(difference cpu.sd cuda.sd) of 255"
        jq -e -n "$(difference cpu.sd cuda.sd) < 0.01"
    }
    for sampler in ddim euler euler_a dpmpp_2m dpmpp_2m_karras unipc pndm; do same --sampler $sampler; done
    same --guidance-rescale 0.7
    same --negative-prompt "$long"
    same --guidance-scale 1 --sampler euler_a
    same --num-images 3 --batch-size 2 --sampler euler_a
}

@test "prompts with adapters of their own: each picture is that of a run of its own" {
    plain -q --max-train-steps 2 --learning-rate 1e-2 --save-dtype f32
    draw() {
        emulated sd-sample -q --overwrite --device cuda --model "$MODEL" --num-inference-steps 3 --width 32 --height 40 --lora-dir . "$@"
    }
    printf '%s\n' 'a photo' 'a photo<lora:out>' 'a photo in<lora:out>' 'a photo<lora:out:1:0.5>' 'a photo' > lines
    draw --dtype bf16 --save-latents all lines
    for k in 0 1 2 3 4; do draw --dtype bf16 --seed "$k" --prompt "$(sed -n "$((k + 1))p" lines)" --save-latents "one.$k"; done
    perl -e 'for (@ARGV) { open F, "<:raw", $_; local $/; $s = <F>; push @x, substr $s, 8 + unpack "Q<", $s }
        exit !(length $x[0] > 4000 && $x[0] eq join "", @x[1 .. 5])' all one.[0-4]
    draw --dtype bf16 --seed 1 --prompt 'a photo' --save-latents plain
    run -1 cmp -s plain one.1
}

@test "steps that cannot be recorded run one by one, to the same bytes, and say so" {
    draw() { emulated sd-sample --model "$M" --prompt "a red circle" --num-inference-steps 3 --device cuda --output - "$@"; }
    draw -q > recorded.sd
    SD_EMULATE_NO_RECORDING=1 draw > eager.sd 2> said
    cmp recorded.sd eager.sd
    grep -q "warning: emulated: the steps cannot be recorded, they run one by one, slower: SD_EMULATE_NO_RECORDING is set" said
}

@test "--dtype f16 is for drawing only" {
    run -2 --separate-stderr emulated sd-train-lora --model "$M" --output x.safetensors --device cuda --dtype f16 none.sd
    is_line "sd-train-lora: --dtype: f16: for drawing only: gradients leave its range"
}

@test "a device that is not there: one line, status 3, nothing written" {
    run --separate-stderr sd-sample --model "$M" --prompt x --output x.png --device cuda:63
    [[ $status == 3 && $stderr == "sd-sample: --device cuda:63: "* && $(wc -l <<< "$stderr") == 1 ]]
    [ ! -e x.png ]
}

@test "a driver that is too old: said where a device was not asked for, and the CPU computes; an error where it was" {
    if [ "$(cat "$BUILD/with_cuda")" = "no CUDA" ]; then skip "this build knows no devices"; fi
    draw() {
        LD_LIBRARY_PATH=$BUILD/tests/fake/old run --separate-stderr sd-sample --model "$M" --prompt x --num-inference-steps 1 --width 64 \
            --height 64 --output x.png "$@"
    }
    old='the driver is for CUDA 12.2, this build wants'
    draw --device cuda
    [[ $status == 3 && $stderr == "sd-sample: --device cuda: $old "* && ! -e x.png ]]
    draw -q
    [[ $status == 0 && -z $stderr && -s x.png ]]
    draw --overwrite
    [[ $status == 0 && $stderr == "sd-sample: computing on the CPU: $old "* ]]
}

@test "training and drawing: the host touches no device memory" {
    export SD_EMULATE_STRICT=1
    emulated sd-train-lora -q --device cuda --model "$MODEL" --rank 2 --max-train-steps 2 --placeholder-token '<new>' \
        --output-embedding new.safetensors --output out.safetensors "$RECORDS/three.sd"
    emulated sd-sample -q --device cuda --model "$MODEL" --prompt 'a <new>' --lora out.safetensors \
        --embedding new.safetensors --num-inference-steps 2 --output picture.png
    [ -s picture.png ]
}
