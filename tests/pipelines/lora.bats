#!/usr/bin/env bats
# pipelines/lora.mk: photos to pictures on the embedded miniature; what is made again, and what is not.

load ../helper

setup() {
    cd "$BATS_TEST_TMPDIR" || exit 1
    export XDG_CACHE_HOME=$BATS_TEST_TMPDIR/.cache
    MODEL=$ROOT/examples/miniature/model
    need "$MODEL/unet/diffusion_pytorch_model.safetensors"
    mkdir rex
    cp "$ROOT"/examples/miniature/creature/creature[123].png rex
    TRAIN='--rank 2 --max-train-steps 2 --seed 1'
}
# pipeline [make's words]: the whole chain; its messages in $stderr
pipeline() {
    make --no-print-directory -f "$ROOT/pipelines/lora.mk" PHOTOS=rex RUN=run MODEL="$MODEL" TRIGGER='<rex>' CROP='--resolution 64' \
        SAMPLE='--num-inference-steps 2 --seed 1' THREADS=1 quiet= TRAIN="$TRAIN" "$@"
}
# made RUN TARGET ...: exactly these targets are younger than the file `mark`
made() {
    local run=$1 target wanted found
    shift
    wanted=$(printf '%s\n' "$@" | sort | tr '\n' ' ')
    found=$(for target in cropped.sd captioned.sd latents.sd lora.safetensors sheet.png; do
                [ ! "$run/$target" -nt mark ] || echo "$target"; done | sort | tr '\n' ' ')
    if [ "${found# }" != "${wanted# }" ]; then
        printf 'made again  %s\nexpected    %s\n' "$found" "$wanted"
        return 1
    fi
}
mark() { sleep 0.02; touch mark; sleep 0.02; }

@test "photos become a sheet; a second make does nothing; other settings make only what hangs on them" {
    run -0 --separate-stderr pipeline
    [[ $stderr == *"3 encoded, 0 from the cache"* ]]
    [ -s run/sheet.png ] && [ -s run/lora.safetensors ] && [ -s run/embedding.safetensors ] && [ -s run/train.log ]
    [ ! -e run/lora.safetensors.state ]
    nothing_left
    first=$(sha256sum < run/sheet.png)

    mark
    run -0 --separate-stderr pipeline
    [ -z "$(find run -newer mark -name '*.s*')" ]
    [ -z "$(find run -newer mark -name '*.json')" ]
    # and make -n says so, and says no more than is to do
    run -0 --separate-stderr pipeline -n
    [[ $output != *sd-* ]]
    pipeline -q
    run -0 --separate-stderr pipeline -n TRAIN='--rank 3'
    [[ $output != *sd-encode-latents* && $output == *sd-train-lora*sd-sample* ]]
    run -0 --separate-stderr pipeline -n BASE_PROMPT="it's <rex> # \$ at night"
    [[ $output != *sd-train-lora* && $output == *sd-sample* ]]
    [ -z "$(find run -newer mark)" ]

    # another rank: only the training and the pictures
    TRAIN='--rank 3 --max-train-steps 2 --seed 1'
    run -0 --separate-stderr pipeline
    made run lora.safetensors sheet.png
    [ "$(sha256sum < run/sheet.png)" != "$first" ]

    # back again: the same bytes
    TRAIN='--rank 2 --max-train-steps 2 --seed 1'
    run -0 --separate-stderr pipeline
    [ "$(sha256sum < run/sheet.png)" = "$first" ]

    # other pictures: only those
    mark
    run -0 --separate-stderr pipeline BASE_PROMPT='<rex> at night'
    made run sheet.png

    # an edited photo goes through the chain; the cache knows the other two
    mark
    cp "$ROOT/examples/miniature/creature/creature4.png" rex/creature2.png
    touch rex/creature2.png
    run -0 --separate-stderr pipeline
    [[ $stderr == *"1 encoded, 2 from the cache"* ]]
    made run cropped.sd captioned.sd latents.sd lora.safetensors sheet.png

    # one that is taken away, too
    mark
    rm rex/creature3.png
    run -0 --separate-stderr pipeline latents
    [[ $stderr == *"2 records"*"0 encoded, 2 from the cache"* ]]
    made run cropped.sd captioned.sd latents.sd
}

@test "a training that fails leaves its log and no target; the next make goes on" {
    TRAIN='--rank 2 --max-train-steps 20 --seed 1 --learning-rate 1e6'
    run ! --separate-stderr pipeline
    [ -s run/train.log ]
    [ ! -e run/lora.safetensors ] && [ ! -e run/sheet.png ]
    nothing_left
    [ -s run/latents.sd ]
    mark
    TRAIN='--rank 2 --max-train-steps 2 --seed 1'
    run -0 --separate-stderr pipeline
    made run lora.safetensors sheet.png
}

@test "a bad photo ends the chain at the first stage, by name" {
    echo 'no picture' > rex/creature2.png
    run ! --separate-stderr pipeline
    [[ $stderr == *"sd-crop: rex/creature2.png: "* ]]
    [ ! -e run/cropped.sd ] && [ ! -e run/latents.sd ]
}

@test "a sweep: two runs at once share the cache and give what they give alone" {
    cat > sweep.mk <<'END'
runs/%/lora.safetensors:
	$(MAKE) --no-print-directory -f $(LORA) train PHOTOS=rex RUN=runs/$* MODEL=$(MODEL) TRIGGER='<rex>' CROP='--resolution 64' \
	  JOBS=2 TRAIN='--rank $* --max-train-steps 2 --seed 1'
END
    run -0 --separate-stderr make --no-print-directory -j2 -f sweep.mk LORA="$ROOT/pipelines/lora.mk" MODEL="$MODEL" \
        runs/2/lora.safetensors runs/3/lora.safetensors
    cmp runs/2/latents.sd runs/3/latents.sd
    run -0 --separate-stderr pipeline train
    [[ $stderr == *"0 encoded, 3 from the cache"* ]]
    cmp run/lora.safetensors runs/2/lora.safetensors
}

@test "settings from a file: a token only where it names one; another file, another training" {
    echo '{"rank": 2, "max-train-steps": 1}' > plain.json
    echo '{"rank": 2, "max-train-steps": 1, "placeholder-token": ["<rex>"]}' > token.json
    TRAIN='--config plain.json'
    run -0 --separate-stderr pipeline TOKEN= train
    [ -s run/lora.safetensors ] && [ ! -e run/embedding.safetensors ]
    mark
    run -0 --separate-stderr pipeline TOKEN= train
    [ ! run/lora.safetensors -nt mark ]
    echo '{"rank": 1, "max-train-steps": 1}' > plain.json
    run -0 --separate-stderr pipeline TOKEN= train
    [ run/lora.safetensors -nt mark ]
    TRAIN='--config=token.json'
    run -0 --separate-stderr pipeline TOKEN= RUN=named train
    [ -s named/lora.safetensors ] && [ -s named/embedding.safetensors ]
}

@test "a model that changes under its name is another one: folder and file" {
    cp -r "$MODEL" "$PWD/Rex's model"
    MODEL=$PWD/Rex\'s\ model
    run -0 --separate-stderr pipeline
    mark
    run -0 --separate-stderr pipeline
    made run
    # another scheduler: the cache knows the latents
    jq '.beta_end = 0.011' "$MODEL/scheduler/scheduler_config.json" > new
    cp new "$MODEL/scheduler/scheduler_config.json"
    run -0 --separate-stderr pipeline
    [[ $stderr == *"0 encoded, 3 from the cache"* ]]
    made run latents.sd lora.safetensors sheet.png
    # what the programs do not read is nothing to them
    mark
    echo x > "$MODEL/notes.txt"
    run -0 --separate-stderr pipeline
    made run
    cp "$MODEL/unet/diffusion_pytorch_model.safetensors" one.safetensors
    MODEL=$PWD/one.safetensors
    run -0 --separate-stderr pipeline run/model.txt
    [[ $(cat run/model.txt) == "$MODEL "* && $(wc -l < run/model.txt) = 1 ]]
}

@test "photos and words as people have them: spaces and apostrophes; a photo that goes is noticed" {
    mv rex/creature1.png "rex/Rex's first day.png"
    words=(TRIGGER="<rex's>" CAPTION="a picture of {trigger}, the dog's friend" BASE_PROMPT="the dog's <rex's>")
    run -0 --separate-stderr pipeline "${words[@]}"
    [ "$(jq '.pictures | length' run/crop-report.json)" = 3 ]
    [ "$(cat run/prompts.txt)" = "the dog's <rex's>" ]
    [ "$(jq -r .trigger run/caption.json)" = "<rex's>" ]
    mark
    run -0 --separate-stderr pipeline "${words[@]}"
    made run
    rm "rex/Rex's first day.png"
    run -0 --separate-stderr pipeline "${words[@]}"
    made run cropped.sd captioned.sd latents.sd lora.safetensors sheet.png
    [ "$(jq '.pictures | length' run/crop-report.json)" = 2 ]
    # a folder that is not there is named by the program that reads it
    run -2 --separate-stderr pipeline PHOTOS=none RUN=other
    [[ $stderr == "sd-crop: none: No such file or directory"* ]]
}

@test "no name of a run makes files elsewhere; a stage that fails or is interrupted leaves nothing half-written; clean needs no model" {
    mkdir run 'my rex' rex2
    cp rex/creature1.png 'my rex'
    echo x > rex2/a.png
    run -2 --separate-stderr pipeline RUN='my run'
    [[ $stderr == *"RUN=my run: make knows no names with spaces"* ]]
    make --no-print-directory -f "$ROOT/pipelines/lora.mk" PHOTOS='my rex' MODEL="$MODEL" TOKEN= CROP='--resolution 64' records > out 2> err
    [ -s runs/my_rex/captioned.sd ] && [ "$(ls rex)" = $'creature1.png\ncreature2.png\ncreature3.png' ]
    run -2 --separate-stderr pipeline PHOTOS=rex2
    [[ $stderr == *"a.png: not a picture"* && ! -e run/cropped.sd ]]
    nothing_left
    # a program that is still writing when all is stopped
    mkdir bin
    # shellcheck disable=SC2016
    printf '%s\n' '#!/bin/sh' 'echo half; echo $$ > begun; exec sleep 20' > bin/sd-crop
    chmod +x bin/sd-crop
    # (to all of them, as a terminal or a scheduler does, when make hands its own on besides; or to make alone). Several
    # times: a signal may come between any two steps of the shell's.
    for to in "INT --" "TERM --" "TERM"; do
        for _ in 1 2 3 4 5 6; do
            rm -f begun
            PATH=$PWD/bin:$PATH setsid env --default-signal=INT make -f "$ROOT/pipelines/lora.mk" PHOTOS=rex RUN=run MODEL="$MODEL" > out 2>&1 &
            for _ in $(seq 400); do [ -s begun ] && break; sleep 0.05; done
            # shellcheck disable=SC2086
            case $to in *--) kill -s $to -$! ;; *) kill -s $to $! ;; esac
            if wait $!; then false; fi
            [ ! -e run/cropped.sd ]
            nothing_left
            if kill -0 "$(cat begun)" 2> /dev/null; then false; fi
        done
    done
    make -f "$ROOT/pipelines/lora.mk" RUN=run clean
    [ ! -e run ]
}
