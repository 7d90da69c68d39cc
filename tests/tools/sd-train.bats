#!/usr/bin/env bats
# sd-train-lora and sd-train-ti: options, faults, state, log, interruptions.  What is learned is checked against the
# reference in tests/models/train.c.

load ../helper
load ../training

files() { find . -mindepth 1 ! -name 'separate-stderr*' -printf '%P\n' | LC_ALL=C sort; }

# -- what comes out --------------------------------------------------------------------------------------------------

@test "adapters and a token are written, a log line a step, the first gradients are reported, the state is gone" {
    run -0 --separate-stderr lora --max-train-steps 4 --log log
    [[ $stderr == *"unet: 4864 numbers, gradient norm "*"tokens: 24 numbers, gradient norm "* ]]
    [ "$(jq -s 'length' log)" = 4 ]
    [ "$(jq -s -c '[.[].step]' log)" = '[1,2,3,4]' ]
    [ "$(jq -s -c '.[0] | keys' log)" = '["grad_norm","grad_norm_tokens","grad_norm_unet","images_per_second","loss","lr","lr_tokens","lr_unet","seconds","step"]' ]
    [ "$(jq -s '[.[] | (.grad_norm_unet * .grad_norm_unet + .grad_norm_tokens * .grad_norm_tokens - .grad_norm * .grad_norm) | fabs < 1e-6] | all' log)" = true ]
    [ "$(files)" = "log
new.safetensors
out.safetensors" ]
}

@test "the same command writes the same bytes; another seed, other threads, less memory" {
    plain -q --max-train-steps 3 --train-text-encoder
    mv out.safetensors one
    plain -q --max-train-steps 3 --train-text-encoder
    cmp one out.safetensors
    plain -q --overwrite --threads 2 --max-train-steps 3 --train-text-encoder
    cmp one out.safetensors
    plain --plan --train-text-encoder > plan
    less=$(jq '.peak_bytes - (.arena_bytes / 4 | floor)' plan)
    [ "$(plain --plan --train-text-encoder --memory "$less" | jq ".peak_bytes <= $less")" = true ]
    plain -q --overwrite --memory "$less" --max-train-steps 3 --train-text-encoder
    cmp one out.safetensors
    plain -q --overwrite --seed 1 --max-train-steps 3 --train-text-encoder
    [ "$(values one)" != "$(values out.safetensors)" ]
    run -3 --separate-stderr plain -q --overwrite --memory 100K
    [[ $stderr == *"--memory 0.1 MiB: weights, samples and what is trained take"* ]]
    run -3 --separate-stderr plain -q --overwrite --memory "$(jq ".peak_bytes - .arena_bytes + 20000" plan)"
    [[ $stderr == *"the budget leaves"* ]]
}

@test "the order of streams and records does not matter" {
    plain -q --max-train-steps 3
    mv out.safetensors one
    sd-train-lora -q --threads 1 --model "$MODEL" --rank 2 --max-train-steps 3 --output out.safetensors "$RECORDS/two.sd" "$RECORDS/three.sd"
    cmp one out.safetensors
    cat "$RECORDS/three.sd" | sd-train-lora -q --threads 1 --model "$MODEL" --rank 2 --max-train-steps 1 --output stdin.safetensors
}

@test "one batch of three is three accumulated batches of one, to rounding" {
    for k in "3 1" "1 3"; do
        # shellcheck disable=SC2086
        set -- $k
        sd-train-lora -q --threads 1 --model "$MODEL" --rank 2 --max-train-steps 4 --train-batch-size "$1" \
            --gradient-accumulation-steps "$2" --masked-loss --log "log$1" --output "$1.safetensors" "$RECORDS/three.sd"
    done
    jq -s -e 'length == 8 and ([range(4) as $i | (.[$i].loss / .[$i + 4].loss - 1 | fabs) < 1e-5,
        (.[$i].grad_norm / .[$i + 4].grad_norm - 1 | fabs) < 1e-4] | all)' log3 log1
}

@test "the settings in the metadata run again to the same bytes" {
    lora -q --max-train-steps 3 --train-text-encoder --target-modules to_q,conv1,proj_in --conv-rank 3 --conv-alpha 1.5 --alpha 1 \
        --text-encoder-learning-rate 3e-5 --snr-gamma 5 --noise-offset 0.1 --caption-dropout 0.2 --caption-dropout-to trigger \
        --train-batch-size 2 --gradient-accumulation-steps 2 --lr-scheduler polynomial --lr-warmup-steps 1 --clip-skip 1 --seed 5 \
        --masked-loss --unmasked-weight 0.1 --save-dtype f32 --num-vectors 2
    metadata out.safetensors | jq -r '."sd_tools.settings"' > again.json
    mkdir again
    sd-train-lora -q --threads 1 --config again.json --model "$MODEL" --output again/out.safetensors --output-embedding again/new.safetensors \
        "$RECORDS/three.sd" "$RECORDS/two.sd"
    cmp out.safetensors again/out.safetensors
    cmp new.safetensors again/new.safetensors
    ti -q --overwrite --max-train-steps 2 --optimizer prodigy
    metadata new.safetensors | jq -r '."sd_tools.settings"' > again.json
    sd-train-ti -q --threads 1 --config again.json --model "$MODEL" --output again/new.safetensors --overwrite "$RECORDS"/*.sd
    cmp new.safetensors again/new.safetensors
    plain -q --overwrite --num-train-epochs 1
    metadata out.safetensors | jq -r '."sd_tools.settings"' > again.json
    sd-train-lora -q --threads 1 --config again.json --model "$MODEL" --output again/out.safetensors --overwrite "$RECORDS"/*.sd
    cmp out.safetensors again/out.safetensors
}

@test "metadata names what it was made from, and no path, clock or host" {
    plain -q --max-train-steps 1 --name "a name"
    metadata out.safetensors > m
    [ "$(jq -r .ss_output_name m)" = "a name" ]
    [ "$(jq -r .ss_network_dim m)" = 2 ]
    [ "$(jq -r '."sd_tools.made_from" | fromjson | ."unet-hash"' m)" = "$(sha256sum < "$MODEL/unet/diffusion_pytorch_model.safetensors" | cut -d ' ' -f 1)" ]
    run -1 grep -E "$BATS_FILE_TMPDIR|$HOSTNAME|modelspec.date|session_id|$(id -un)@" m
    SOURCE_DATE_EPOCH=86400 plain -q --overwrite --max-train-steps 1
    [ "$(metadata out.safetensors | jq -r '."modelspec.date"')" = 1970-01-02T00:00:00 ]
}

@test "every format is read back; tokens of several names go to several files" {
    for format in kohya diffusers comfy peft; do
        plain -q --max-train-steps 1 --format $format --output $format.out
        sd-merge --lora "$format.out" --format kohya --output "$format.again" 2> err || sd-merge "$format.out" --format kohya --output "$format.again"
    done
    [ -f peft.out/unet/adapter_config.json ]
    [ ! -e peft.out.state ]
    run -2 --separate-stderr sd-train-ti --model "$MODEL" --placeholder-token '<new>' --placeholder-token photo=of --output x.safetensors "$RECORDS/three.sd"
    [[ $stderr == *"--output: 2 tokens: the name needs a %s"* ]]
    sd-train-ti -q --threads 1 --model "$MODEL" --placeholder-token '<new>' --placeholder-token '<photo>=of the' --num-vectors 2 --max-train-steps 1 \
        --output 't-%s.safetensors' <(sed 's/photo/<pho>/' "$RECORDS/three.sd") 2> err && false
    [[ $(< err) == *"<photo> stands in no caption"* ]]
    for format in a1111 comfy; do ti -q --overwrite --max-train-steps 1 --format $format; grep -q emb_params new.safetensors; done
}

# -- options ----------------------------------------------------------------------------------------------------------

@test "each of these options changes what is learned" {
    lora -q --max-train-steps 2 --log base.log
    base="$(values out.safetensors) $(values new.safetensors)"
    while read -r options; do
        # shellcheck disable=SC2086
        lora -q --overwrite --max-train-steps 2 $options
        if [ "$(values out.safetensors) $(values new.safetensors)" = "$base" ]; then echo "no effect: $options"; false; fi
    done <<'END'
--rank 3
--alpha 1
--target-modules to_q
--train-text-encoder
--num-vectors 2
--learning-rate 2e-4
--ti-learning-rate 2e-3
--ti-until 0.5
--lr-scheduler cosine
--lr-scheduler constant_with_warmup --lr-warmup-steps 2
--optimizer prodigy
--adam-beta1 0.8
--adam-beta2 0.9
--adam-epsilon 1e-3
--adam-weight-decay 0.5
--train-batch-size 2
--gradient-accumulation-steps 2
--max-grad-norm 0.001 --adam-epsilon 1e-3
--snr-gamma 0.1
--noise-offset 0.5
--masked-loss
--caption-dropout 0.6
--clip-skip 1
--seed 7
--save-dtype f32
END
}

@test "options of Prodigy, masks, dropped captions and convolutions change what is learned" {
    sd-train-ti -q --threads 1 --model "$MODEL" --placeholder-token '<new>=the' --max-train-steps 1 --output words.safetensors "$RECORDS/three.sd"
    sd-train-ti -q --threads 1 --model "$MODEL" --placeholder-token '<new>' --max-train-steps 1 --output random.safetensors "$RECORDS/three.sd"
    [ "$(values words.safetensors)" != "$(values random.safetensors)" ]
    differ() { # BASE : OPTIONS
        # shellcheck disable=SC2086
        lora -q --overwrite --max-train-steps 6 $1
        local base="$(values out.safetensors) $(values new.safetensors)"
        # shellcheck disable=SC2086
        lora -q --overwrite --max-train-steps 6 $1 $2
        if [ "$(values out.safetensors) $(values new.safetensors)" = "$base" ]; then echo "no effect: $1: $2"; return 1; fi
    }
    for o in "--prodigy-d0 1e-4" "--prodigy-d-coef 2" --prodigy-use-bias-correction; do
        differ "--optimizer prodigy --prodigy-d0 1e-3 --save-dtype f32" "$o"
    done
    differ "--optimizer prodigy --prodigy-d0 1e-6 --save-dtype f32 --lr-scheduler constant_with_warmup --lr-warmup-steps 4" --prodigy-safeguard-warmup
    differ --masked-loss "--mask-normalize none"
    differ --masked-loss "--unmasked-weight 0.5"
    differ "--caption-dropout 0.9" "--caption-dropout-to trigger"
    differ "--target-modules conv1" "--conv-rank 3"
    differ "--target-modules conv1 --conv-rank 3" "--conv-alpha 1"
    differ --train-text-encoder "--text-encoder-learning-rate 1e-3"
}

@test "an option without effect, or against another, is status 2; nothing is written" {
    while IFS='|' read -r options text; do
        # shellcheck disable=SC2086
        run -2 --separate-stderr plain $options
        if [[ $stderr != *"sd-train-lora: "*"$text"* || $(wc -l <<< "$stderr") != 1 ]]; then echo "$options: $stderr"; false; fi
        [ -z "$(files)" ]
    done <<'END'
--num-vectors 2|--num-vectors: has no effect
--ti-until 0.5|--ti-until: has no effect
--ti-learning-rate 1|--ti-learning-rate: has no effect
--output-embedding x|--output-embedding: has no effect
--init-embedding x|--init-embedding: has no effect
--caption-dropout-to empty|--caption-dropout-to: has no effect
--caption-dropout 0.1 --caption-dropout-to trigger|trigger: there is no --placeholder-token
--mask-normalize none|--mask-normalize: has no effect
--unmasked-weight 0.1|--unmasked-weight: has no effect
--prodigy-d0 1e-5|--prodigy-d0: has no effect
--lr-warmup-steps 5|--lr-warmup-steps: has no effect
--conv-rank 4|--conv-rank: has no effect
--conv-alpha 4|--conv-alpha: has no effect
--text-encoder-learning-rate 1|--text-encoder-learning-rate: has no effect
--sample-every 5|--sample-every: has no effect
--max-train-steps 5 --num-train-epochs 1|give this or --max-train-steps
--target-modules to_q,to_x|to_x: matches no layer
--target-modules te:fc9|te:fc9: matches no layer
--clip-skip 2|the text encoder has 2 layers
--placeholder-token <other> --output-embedding x|<other> stands in no caption
--placeholder-token <new>|--output-embedding: where
--placeholder-token the --output-embedding x|the
--placeholder-token <new>= --output-embedding x|<new>=
--replay x --noise-offset 0.1|--noise-offset: has no effect
--replay x --num-train-epochs 2|--num-train-epochs: has no effect
--dtype tf32|--dtype
--lr-scheduler steps|--lr-scheduler
--train-batch-size 0|--train-batch-size
END
    run -2 --separate-stderr sd-train-ti --model "$MODEL" --output x.safetensors "$RECORDS/three.sd"
    [[ $stderr == *"--placeholder-token: which token"* ]]
    run -2 --separate-stderr sd-train-lora --output x.safetensors "$RECORDS/three.sd"
    [[ $stderr == *"--model: which model"* ]]
    run -2 --separate-stderr sd-train-lora --model "$MODEL" "$RECORDS/three.sd"
    [[ $stderr == *"--output: where"* ]]
    # a variable of the shell that was not set
    for o in output state log init-lora vae; do
        run -2 --separate-stderr plain --max-train-steps 1 --$o ""
        [[ $stderr == "sd-train-lora: --$o: expected "*", found \"\"" ]]
        [ -z "$(files)" ]
    done
    run -2 --separate-stderr plain --target-modules ""
    is_line 'sd-train-lora: --target-modules: "" names no layer'
    run -2 --separate-stderr plain --adam-beta1 1
    is_line "sd-train-lora: --adam-beta1: expected 0 to 0.99999999, found 1"
    [ -z "$(files)" ]
    # what --help=json calls the default is it
    [ "$(sd-train-ti --help=json | jq -c '[.options[] | select(.name | IN("ti-until", "learning-rate", "ti-learning-rate")) | .default] == [0.001, 0.001, 1]')" = true ]
    [ "$(sd-train-lora --help=json | jq -c '[.options[] | select(.name | IN("ti-until", "learning-rate", "ti-learning-rate")) | .default] == [0.0001, 0.001, 0.7]')" = true ]
}

@test "masked loss without any mask is refused; with some, the rest is named" {
    run -2 --separate-stderr sd-train-lora --model "$MODEL" --rank 2 --output x --masked-loss "$RECORDS/two.sd"
    is_line "sd-train-lora: --masked-loss: no record has a mask"
    run -0 --separate-stderr plain --masked-loss --max-train-steps 1
    [[ $stderr == *"2 of 5 records have no mask"* ]]
}

@test "latents of another VAE, adapters behind --clip-skip: warned of" {
    cp -r "$MODEL" other
    size=$(stat -c %s other/vae/diffusion_pytorch_model.safetensors)
    printf '\1' | dd of=other/vae/diffusion_pytorch_model.safetensors bs=1 seek=$((size - 2)) conv=notrunc status=none
    run -0 --separate-stderr plain --model other --max-train-steps 1
    [[ $stderr == *"warning: the records were encoded by another VAE ("*") than the model's ("* ]]
    run -0 --separate-stderr plain --overwrite --max-train-steps 1 --train-text-encoder --clip-skip 1
    [[ $stderr == *"layers.1.self_attn."*"its adapter learns nothing, nor do 3 others, for --clip-skip leaves it out"* ]]
    [[ $stderr != *"another VAE"* ]]
}

# -- interrupted, resumed ---------------------------------------------------------------------------------------------

@test "killed with -9 at five random instants and resumed: the same bytes, one log line a step" {
    kill_and_resume 5 100
}

@test "killed four times while the state is written, and resumed: the same" {
    can_trace
    kill_in_state 4
}

# in the background of a script SIGINT is ignored, unless it is asked for
lora_asked() {
    exec env --default-signal=INT sd-train-lora --threads 1 --model "$MODEL" --rank 2 --placeholder-token '<new>' \
        --output out.safetensors --output-embedding new.safetensors "$@" "$RECORDS/three.sd" "$RECORDS/two.sd"
}

@test "SIGTERM and SIGINT save, say how to go on, and end the program by the signal; resuming gives the same bytes" {
    lora -q --max-train-steps 200 --log log
    mv out.safetensors want
    jq -c '[.step, .loss]' log > want.log
    rm log new.safetensors
    for signal in TERM INT; do
        touch log
        enough=$(($(wc -l < log) + 3))
        lora_asked --resume --max-train-steps 200 --log log 2> err & pid=$!
        for ((i = 0; i < 500; i++)); do if [ "$(wc -l < log)" -ge $enough ]; then break; fi; sleep 0.01; done
        kill -$signal "$pid"
        status=0
        wait "$pid" || status=$?
        ((status == 128 + $(kill -l $signal)))
        [[ $(< err) == *"stopped after step "*"and saved; the same command with --resume goes on"* ]]
        [ -s out.safetensors.state ] && [ ! -e out.safetensors ]
    done
    run -0 --separate-stderr lora --resume --max-train-steps 200 --log log
    [[ $stderr == *"resuming after step "* ]]
    cmp want out.safetensors
    jq -c '[.step, .loss]' log | cmp - want.log
    [ ! -e out.safetensors.state ]
}

# interrupted: a run stopped by SIGTERM after some steps, with a state
interrupted() {
    local pid i
    touch log
    lora_asked -q --max-train-steps 200 --log log & pid=$!
    for ((i = 0; i < 500; i++)); do if [ "$(wc -l < log)" -ge 2 ]; then break; fi; sleep 0.01; done
    kill -TERM "$pid"
    wait "$pid" || true
    [ -s out.safetensors.state ]
}

@test "a state and no --resume is refused; --overwrite begins again" {
    interrupted
    run -2 --separate-stderr lora --max-train-steps 200
    is_line "sd-train-lora: out.safetensors.state: a state of an unfinished run is there: --resume goes on, --overwrite begins again"
    [ -s out.safetensors.state ]
    lora -q --overwrite --max-train-steps 2
    [ ! -e out.safetensors.state ]
}

@test "resuming with other settings, data or model is refused, and what differs is named" {
    interrupted
    before=$(sum out.safetensors.state)
    while IFS='|' read -r options text; do
        # shellcheck disable=SC2086
        run -2 --separate-stderr lora -q --resume --max-train-steps 200 $options
        if [[ $stderr != *"out.safetensors.state: belongs to another run: "*"$text"* || $(wc -l <<< "$stderr") != 1 ]]; then echo "$options: $stderr"; false; fi
    done <<'END'
--seed 9|seed: 0 in the state, 9 now
--learning-rate 2e-4|learning-rate: 0.0001
--max-train-steps 201|max-train-steps: 200 in the state, 201 now
--rank 3|rank: 2 in the state, 3 now
--optimizer prodigy|learning-rate
--masked-loss|mask
END
    run -2 --separate-stderr sd-train-lora --threads 1 --model "$MODEL" --rank 2 --placeholder-token '<new>' --output out.safetensors \
        --output-embedding new.safetensors --resume --max-train-steps 200 "$RECORDS/three.sd"
    [[ $stderr == *"data-hash"* ]]
    cp -r "$MODEL" other
    cp "$DATA/models/sd1/text_encoder/config.json" other.json
    printf '\1' | dd of=other/unet/diffusion_pytorch_model.safetensors bs=1 seek=$(($(stat -c %s other/unet/diffusion_pytorch_model.safetensors) - 2)) conv=notrunc status=none
    run -2 --separate-stderr lora --model other --resume --max-train-steps 200
    [[ $stderr == *"unet-hash"* ]]
    [ "$(sum out.safetensors.state)" = "$before" ]
}

@test "resume: without a state it begins and says so; a finished run has nothing to do; an output is not replaced" {
    run -0 --separate-stderr lora --resume --max-train-steps 2
    [[ $stderr == *"no state to resume from (out.safetensors.state), beginning"* ]]
    was=$(stat -c %Y.%i out.safetensors)
    run -0 --separate-stderr lora --resume --max-train-steps 2
    is_line "sd-train-lora: out.safetensors is finished, nothing to do"
    [ "$(stat -c %Y.%i out.safetensors)" = "$was" ]
    run -2 --separate-stderr lora --max-train-steps 2
    [[ $stderr == *"new.safetensors: exists"* ]]
    rm new.safetensors
    run -2 --separate-stderr lora --resume --max-train-steps 2
    [[ $stderr == *"out.safetensors: exists"* ]]
}

@test "a damaged state is named, status 3, and stays as it is" {
    interrupted
    cp out.safetensors.state whole
    size=$(stat -c %s whole)
    for at in 20 $((size / 2)) $((size - 3)); do
        cp whole out.safetensors.state
        printf '\377' | dd of=out.safetensors.state bs=1 seek="$at" conv=notrunc status=none
        run --separate-stderr lora -q --resume --max-train-steps 200
        [[ $status == [23] && $stderr == "sd-train-lora: out.safetensors.state: "* && $(wc -l <<< "$stderr") == 1 ]]
    done
    head -c $((size - 100)) whole > out.safetensors.state
    run -3 --separate-stderr lora -q --resume --max-train-steps 200
    [[ $stderr == "sd-train-lora: out.safetensors.state: "* ]]
    cp "$MODEL/unet/diffusion_pytorch_model.safetensors" out.safetensors.state
    run -3 --separate-stderr lora -q --resume --max-train-steps 200
    is_line "sd-train-lora: out.safetensors.state: not a training state"
}

@test "the log is cut to the state's step" {
    interrupted
    step=$(wc -l < log)
    cp log whole
    { echo "{\"step\": $((step + 1)), \"loss\": 9}"; printf '{"step": 1'; } >> log
    lora -q --resume --max-train-steps 200 --log log
    [ "$(jq -s length log)" = 200 ]
    [ "$(jq -s -c '[.[].step] == [range(1; 201)]' log)" = true ]
    head -n "$step" log | cmp - whole
}

# -- faults -----------------------------------------------------------------------------------------------------------

@test "a rate that explodes: stopped, module and samples named, status 3, the state before it kept" {
    run -3 --separate-stderr plain -q --learning-rate 1e6 --alpha 1e6 --target-modules "*.conv1,*.conv2,to_v,to_out.0" --max-train-steps 20
    [[ $stderr == "sd-train-lora: step "*": loss "*"first at "*", samples "*"; the state before it is saved" ]]
    [ -s out.safetensors.state ] && [ ! -e out.safetensors ]
    run -3 --separate-stderr plain -q --resume --learning-rate 1e6 --alpha 1e6 --target-modules "*.conv1,*.conv2,to_v,to_out.0" --max-train-steps 20
    [[ $stderr == *"first at "* ]]
}

@test "a recorded batch with a NaN: stopped there, status 3, the state before it kept" {
    cp "$DATA/train/sd1.replay.safetensors" r.safetensors
    n=$(od -An -t u8 -N 8 r.safetensors)
    at=$(tail -c +9 r.safetensors | head -c "${n// /}" | jq '."step_0003.latents".data_offsets[0]')
    printf '\0\0\300\177' | dd of=r.safetensors bs=1 seek=$((8 + n + at)) conv=notrunc status=none
    run -3 --separate-stderr sd-train-lora -q --model "$DATA/models/sd1" --rank 2 --replay r.safetensors --max-train-steps 10 --output out.safetensors
    [[ $stderr == *"step 4: loss "*nan*"first at "*"the recorded batch"*"; the state before it is saved" ]]
    [ "$(metadata out.safetensors.state | jq -r .step)" = 3 ]
}

@test "a latent that is not finite, a record without latents or caption, a cut stream" {
    plain -q --max-train-steps 1
    sd-caption -q --caption x "$DATA/images/rgb.png" > raw.sd
    run -1 --separate-stderr sd-train-lora --threads 1 --model "$MODEL" --rank 2 --max-train-steps 1 --output one.safetensors raw.sd "$RECORDS/three.sd"
    [[ $stderr == *"rgb.png: no latents (sd-encode-latents adds them)"* ]]
    run -0 sd-train-lora -q -k --threads 1 --model "$MODEL" --rank 2 --max-train-steps 1 --output k.safetensors raw.sd "$RECORDS/three.sd"
    [ -z "$output" ]
    run -0 --separate-stderr sd-train-lora -k --overwrite --threads 1 --model "$MODEL" --rank 2 --max-train-steps 1 --output k.safetensors raw.sd "$RECORDS/three.sd"
    [[ $stderr == "sd-train-lora: warning: "*"rgb.png: no latents (sd-encode-latents adds them)"* ]]
    run -3 --separate-stderr sd-train-lora --model "$MODEL" --max-train-steps 1 --output two.safetensors raw.sd
    [ ! -e two.safetensors ]
    size=$(stat -c %s "$RECORDS/three.sd")
    for cut in 5 100 $((size / 2)) $((size - 3)); do
        head -c "$cut" "$RECORDS/three.sd" > cut.sd
        run -3 --separate-stderr sd-train-lora --model "$MODEL" --max-train-steps 1 --output cut.safetensors cut.sd
        [[ $stderr == *"cut.sd"* && ! -e cut.safetensors ]]
    done
    perl -0777 -pe 's/(latents_mean.{1,60}?data...)..../$1\0\0\300\177/s' "$RECORDS/three.sd" > nan.sd
    run -1 --separate-stderr sd-train-lora --threads 1 --model "$MODEL" --rank 2 --max-train-steps 1 --output nan.safetensors nan.sd
    [[ $stderr == *"latents hold a value that is not finite"* ]]
}

@test "a full disk at output, state or log is status 3; what was learned is kept in the state" {
    run -3 --separate-stderr lora -q --max-train-steps 2 --output /dev/full --state s --output-embedding new.safetensors
    [[ $stderr == "sd-train-lora: /dev/full: "*"No space left on device"* ]]
    [ -s s ]
    rm -f s new.safetensors
    run -3 --separate-stderr plain -q --max-train-steps 3 --checkpointing-steps 1 --state /dev/full
    [[ $stderr == "sd-train-lora: /dev/full: "* && ! -e out.safetensors ]]
    [ -c /dev/full ]
    run -3 --separate-stderr plain -q --max-train-steps 3 --log /dev/full
    [[ $stderr == "sd-train-lora: /dev/full: No space left on device" && ! -e out.safetensors ]]
    run -3 --separate-stderr plain -q --max-train-steps 3 --output none/out.safetensors
    is_line "sd-train-lora: none/out.safetensors: cannot be written: No such file or directory"
    run -3 --separate-stderr plain -q --max-train-steps 3 --log none/log
    [[ $stderr == *"none/log: No such file or directory" ]]
    nothing_left
}

@test "bad starts: a LoRA of other layers, an embedding of another size, a broken replay" {
    plain -q --max-train-steps 1
    run -3 --separate-stderr plain -q --init-lora out.safetensors --target-modules to_q --output x
    [[ $stderr == "sd-train-lora: out.safetensors: "*"layers, this run adapts"* ]]
    run -3 --separate-stderr plain -q --init-lora out.safetensors --rank 3 --output x
    [[ $stderr == *"of rank 2, expected "*"of rank 3"* ]]
    run -2 --separate-stderr plain -q --init-lora out.safetensors --alpha 3 --output x
    [[ $stderr == *"--alpha: has no effect: --init-lora brings its own scale"* ]]
    run -3 --separate-stderr lora -q --init-embedding "$DATA/train/sd1.2.token.safetensors" --output x
    [[ $stderr == *"sd1.2.token.safetensors: [2, 24], expected [1, 24]"* ]]
    for replay in out.safetensors none "$RECORDS/three.sd"; do
        run -3 --separate-stderr sd-train-lora -q --model "$MODEL" --replay "$replay" --output x
        [[ $stderr == "sd-train-lora: $replay: "* && $(wc -l <<< "$stderr") == 1 ]]
    done
    run -3 --separate-stderr sd-train-lora -q --model "$DATA/models/sd1" --rank 2 --replay "$DATA/train/sd1.replay.safetensors" --max-train-steps 41 --output x
    [[ $stderr == *"40 recorded micro-batches, 41 updates need 41"* ]]
    run -2 --separate-stderr sd-train-lora -q --model "$DATA/models/sd1" --replay "$DATA/train/sd1.replay.safetensors" --output x "$RECORDS/three.sd"
    [[ $stderr == *"--replay: reads no records"* ]]
}

@test "a model that is not there or not whole, a tokenizer that does not fit" {
    run -3 --separate-stderr sd-train-lora --model none --output x "$RECORDS/three.sd"
    [[ $stderr == *"none: "* ]]
    cp -r "$MODEL" cut
    head -c 100000 "$MODEL/unet/diffusion_pytorch_model.safetensors" > cut/unet/diffusion_pytorch_model.safetensors
    run -3 --separate-stderr sd-train-lora --model cut --output x "$RECORDS/three.sd"
    [[ $stderr == *"cut: "* && $(wc -l <<< "$stderr") == 1 ]]
    run -3 --separate-stderr sd-train-lora --model "$DATA/models/sd1" --tokenizer "$MODEL/tokenizer" --output x "$RECORDS/three.sd"
    [[ $stderr == *"tokenizer of 664 tokens, the text encoder knows 99"* ]]
    [ ! -e x ]
}

@test "--plan says what is used, and does nothing else" {
    lora --plan --train-text-encoder > plan
    [ ! -e out.safetensors ]
    [ "$(jq -c 'keys' plan)" = '["activations_bytes","arena_bytes","buckets","flops","packed_bytes","peak_bytes","samples","updates","weights_bytes"]' ]
    [ "$(jq -c '[.samples, .buckets, .updates]' plan)" = '[5,2,1000]' ]
    sd-train-lora --plan --model "$DATA/models/sd1" --replay "$DATA/train/sd1.replay.safetensors" --rank 2 --max-train-steps 3 | jq -e '.arena_bytes > 100000 and .flops > 1e6'
}

@test "what --plan promises is what is taken" {
    counts_memory sd-train-lora
    sd-crop -q --resolution 256x256 "$DATA/images/rgb.png" "$DATA/images/grey.png" | sd-caption -q --caption 'a <new>' \
        | sd-encode-latents -q --model "$MODEL" > big.sd
    run=(sd-train-lora -q --threads 1 --model "$MODEL" --rank 2 --train-batch-size 2 --max-train-steps 5 --output big.safetensors)
    peak=$("${run[@]}" --plan big.sd | jq '.peak_bytes / 1024 | floor')
    "${run[@]}" big.sd & pid=$!
    most=0
    while [ -r /proc/$pid/status ] && now=$(sed -n 's/^RssAnon:[ \t]*\([0-9]*\).*/\1/p' /proc/$pid/status) && [ -n "$now" ]; do
        if ((now > most)); then most=$now; fi
        sleep 0.01
    done
    wait $pid
    echo "planned $peak kB, taken $most kB"
    ((peak > 40000 && most > peak - 8000 && most < peak + 20000))
}

@test "validation pictures are drawn through the written file" {
    run -0 --separate-stderr lora --max-train-steps 2 --validation-prompt 'a photo of <new>' --sample-every 1
    [ -s out.safetensors.step000001.png ] && [ -s out.safetensors.step000002.png ]
    [ "$(find . -name '*.safetensors' | sort | tr '\n' ' ')" = "./new.safetensors ./out.safetensors " ]
    run -0 --separate-stderr ti --overwrite --max-train-steps 1 --validation-prompt '<new>'
    [ -s new.safetensors.step000001.png ]
}

@test "outputs, state, log and records are files apart" {
    cp "$RECORDS/three.sd" three.sd
    asked() { run -2 --separate-stderr sd-train-lora -q --threads 1 --model "$MODEL" --rank 1 --max-train-steps 1 "$@"; }
    asked --state out.safetensors --output out.safetensors three.sd
    is_line "sd-train-lora: --state: out.safetensors: --output writes to it too"
    asked --log out.safetensors --output out.safetensors three.sd
    is_line "sd-train-lora: --log: out.safetensors: --output writes to it too"
    asked --placeholder-token '<new>' --output-embedding out.safetensors --output out.safetensors three.sd
    is_line "sd-train-lora: --output: out.safetensors: --output-embedding writes to it too"
    asked --state s --log s --output out.safetensors three.sd
    is_line "sd-train-lora: --log: s: --state writes to it too"
    for o in --output --log --state; do
        asked --overwrite --output out.safetensors $o ./three.sd three.sd
        is_line "sd-train-lora: $o: ./three.sd: the records are read from it"
    done
    asked --state ./out.safetensors --output out.safetensors three.sd
    is_line "sd-train-lora: --state: ./out.safetensors: --output writes to it too"
    cmp three.sd "$RECORDS/three.sd"
    [ ! -e out.safetensors ]
    # a folder is no file, and PEFT's form is no file: said before anything is loaded
    mkdir folder
    for words in "--output folder" "--output o --state folder" "--output o --placeholder-token <new> --output-embedding folder"; do
        # shellcheck disable=SC2086
        run -3 --separate-stderr sd-train-lora --model nowhere --overwrite $words three.sd
        is_line "sd-train-lora: folder: is a directory"
    done
    run -3 --separate-stderr sd-train-lora --model nowhere --overwrite --format peft --output three.sd other.sd
    is_line "sd-train-lora: three.sd: exists and is no folder"
}

@test "an embedding does not get a pickle's name" {
    run -2 --separate-stderr ti -q --max-train-steps 1 --output new.pt
    is_line "sd-train-ti: --output: new.pt: the name of a pickle; what is written is safetensors"
    run -2 --separate-stderr lora -q --max-train-steps 1 --output-embedding new.bin
    is_line "sd-train-lora: --output-embedding: new.bin: the name of a pickle; what is written is safetensors"
    nothing_left
}

@test "--vae: the scale trained with, the one that encoded the records, and the one that decodes validation pictures" {
    cp -r "$MODEL/vae" vae
    jq '.scaling_factor *= 2' "$MODEL/vae/config.json" > vae/config.json
    plain -q --max-train-steps 1 --log a.log --validation-prompt a
    mv out.safetensors.step000001.png a.png
    plain -q --max-train-steps 1 --log b.log --validation-prompt a --overwrite --vae vae
    [ "$(jq .loss a.log)" != "$(jq .loss b.log)" ]
    run ! cmp -s a.png out.safetensors.step000001.png
    run -3 --separate-stderr plain -q --max-train-steps 1 --overwrite --vae none
    is_line "sd-train-lora: $MODEL: none: no such file or folder, nor a name of the form org/name[@revision]"
}
