#!/usr/bin/env bats
# What all programs share: help, version, options as the manual says, faults, terminals, completion, installation.

load ../helper

programs() { for f in "$ROOT"/tools/*.c; do basename "$f" .c; done; }

@test "every program says its version, its help, and its help as JSON" {
    for p in $(programs); do
        run -0 "$p" --version
        [[ $output == "$p "[0-9]*.[0-9]*.[0-9]* ]]
        run -0 --separate-stderr "$p" -h
        [[ $output == "usage: $p "* && -z $stderr ]]
        run -0 --separate-stderr "$p" --help=json
        [ "$(jq -r .program <<< "$output")" = "$p" ]
        [ "$(jq '[.options[].name] | length - (unique | length)' <<< "$output")" = 0 ]
    done
}

@test "an unknown option, a missing value, a bad configuration: status 2, one line, nothing on stdout" {
    echo '{"no-such-option": 1}' > bad.json
    for p in $(programs); do
        for words in --no-such-option --config "--config none.json" "--config bad.json"; do
            # shellcheck disable=SC2086
            run -2 --separate-stderr "$p" $words
            [[ -z $output && $stderr == "$p: "* && $(wc -l <<< "$stderr") == 1 ]]
        done
    done
}

@test "a shared option is taken, or refused by name with the reason" {
    refused() { # PROGRAM OPTION REASON
        run -2 --separate-stderr "$1" "$2"
        is_line "$1: $2: $3"
        [ -z "$output" ]
    }
    models="is for models; this program runs none" random="is for random numbers; this program draws none"
    records="is for records, one by one; this program does all or nothing"
    for o in --device --dtype --memory --plan; do refused sd-crop $o "$models"; refused sd-caption $o "$models"; done
    for p in sd-crop sd-caption sd-encode-latents sd-merge; do refused $p --seed "$random"; done
    for o in -j --json -k --keep-going; do refused sd-merge $o "$records"; done
    for p in sd-train-lora sd-train-ti; do refused $p -j "$records"; done
    refused sd-encode-latents --overwrite "is for files written by name; this program writes to standard output, and adds to its cache"
    for p in sd-crop sd-caption sd-merge; do refused $p --vae "is for encoding and drawing pictures; this program does neither"; done
    for p in sd-crop sd-merge; do refused $p --tokenizer "is for prompts and captions; this program reads none"; done
    refused sd-caption --threads "is for arithmetic on many cores; this program has none"
    echo '{"seed": 1}' > config.json
    run -2 --separate-stderr sd-crop --config config.json
    is_line "sd-crop: config.json: seed: $random"
    # each of the seventeen is one or the other
    for p in $(programs); do
        "$p" --help=json | jq -r '.options[] |  .name' > taken
        for o in help version quiet verbose config json keep-going threads device dtype seed memory overwrite plan model vae tokenizer; do
            if ! grep -qx $o taken; then
                run -2 --separate-stderr "$p" --$o
                [[ $stderr == "$p: --$o: is for "* ]]
            fi
        done
    done
}

@test "the manual page of a program has its options, and no others" {
    for p in $(programs); do
        page=$ROOT/man/$p.1
        if [ ! -f "$page" ]; then echo "no man/$p.1"; false; fi
        "$p" --help=json > help.json
        sed -n 's/^\.It .*/&/p; s/^\.Op .*/&/p' "$page" | grep -oE 'Fl -[a-z][a-z0-9-]*' | sed 's/^Fl -//' | sort -u > page
        jq -r '.options[] | select(.shared | not) | .name' help.json | sort -u > own
        jq -r '.options[].name, (.options[] | select(.kind == "flag") | "no-" + .name)' help.json | sort -u > all
        missing=$(comm -23 own page | tr '\n' ' ') foreign=$(comm -13 all page | tr '\n' ' ')
        if [ -n "$missing$foreign" ]; then echo "$p: not in the manual: $missing; only in the manual: $foreign"; false; fi
    done
}

@test "a default is one number in the help, its JSON and the manual page" {
    for p in $(programs); do
        page=$ROOT/man/$p.1 seen=0
        "$p" --help=json > help.json
        while IFS=$'\t' read -r name said is; do
            seen=$((seen + 1))
            if [ "$(jq -n "$said == $is")" != true ]; then echo "$p --$name: $said in the help, $is in its JSON"; false; fi
            entry=$(awk -v name="$name" '/^\.It /{ on = 0 } /^\.It .*Fl -/ && index($0 " ", "Fl -" name " "){ on = 1 } on' "$page")
            if ! grep -qwF -e "$said" <<< "$(tail -n +2 <<< "$entry")"; then echo "$p --$name: $said in the help, not in the manual"; false; fi
        done < <(jq -r '.options[] | select(.kind == "integer" or .kind == "real") | . as $o | .help | capture("\\((?<d>[0-9][0-9.e-]*)([;:][^()]*)?\\)$")?
            | [$o.name, .d, ($o.default | tostring)] | @tsv' help.json)
        echo "$p: $seen"
        case $p in sd-train-*) ((seen >= 20)) ;; sd-sample) ((seen >= 8)) ;; esac
    done
}

@test "full standard output is status 3" {
    for p in $(programs); do
        run -3 --separate-stderr bash -c '"$1" --help > /dev/full' - "$p"
        is_line "$p: standard output: No space left on device"
    done
}

@test "a reader that has gone ends a program by SIGPIPE, without a word; where that is ignored: a line, and status 3" {
    # PROGRAM ARGUMENT...: into a pipe that nobody reads
    # shellcheck disable=SC2016
    into='exec 3> >(exec true); wait $!; exec "$@" >&3'
    for p in $(programs); do
        for o in --help --help=json --version; do
            run -141 --separate-stderr bash -c "$into" - "$p" $o
            [ -z "$stderr" ]
        done
        run -3 --separate-stderr bash -c "trap '' PIPE; $into" - "$p" --help
        is_line "$p: standard output: Broken pipe"
    done
    model=$ROOT/examples/miniature/model
    sd-crop -q --resolution 64 "$DATA/images/rgb.png" 2> /dev/null | sd-caption -q --caption x > records
    for words in "sd-crop -q --resolution 64 $DATA/images/rgb.png" "sd-caption -q --caption y records" \
        "sd-encode-latents -q --model $model --cache cache records" "sd-encode-latents --model $model --plan records" \
        "sd-caption --tokens --model $model a" "sd-sample -q --model $model --num-inference-steps 1 --prompt a --output -" \
        "sd-sample -q -j --model $model --num-inference-steps 1 --prompt a --output-dir d"; do
        # shellcheck disable=SC2086
        run -141 --separate-stderr bash -c "$into" - $words
        [ "${stderr//*warning: */}" = "" ]
        nothing_left
    done
    # a reader that takes a little first
    run --separate-stderr bash -c 'sd-crop -q --resolution 512 "$1" 2> err | head -c 10 > /dev/null; exit ${PIPESTATUS[0]}' - "$DATA/images/rgb.png"
    ((status == 141))
}

@test "--config takes numbers, texts, flags and arrays as JSON has them" {
    echo '{"resolution": 64, "bucket-step": "8", "buckets": true, "threads": 1.0, "quiet": true, "report": 7}' > c.json
    sd-crop --config c.json "$DATA/images/rgb.png" > a 2> err
    sd-crop --resolution 64 --buckets --bucket-step 8 "$DATA/images/rgb.png" > b 2> /dev/null
    cmp a b
    [ ! -s err ]
    [ "$(jq -c .resolution 7)" = "[64,64]" ]
    echo '{"resolution": true}' > c.json
    run -2 --separate-stderr sd-crop --config c.json "$DATA/images/rgb.png"
    is_line "sd-crop: c.json: resolution: expected a text, found true"
    echo '{"caption": 5, "tokens": "yes"}' > c.json
    run -2 --separate-stderr sd-caption --config c.json "$DATA/images/rgb.png"
    is_line "sd-caption: c.json: tokens: expected true or false, found a string"
}

@test "records do not go to a terminal, and are not awaited from one" {
    run script -qec 'sd-caption --caption x < /dev/null; echo status $?' /dev/null
    [[ $output == *"sd-caption: standard output: records are binary, and this is a terminal (use a pipe, a file, or -j)"* ]]
    [[ $output == *"status 2"* ]]
    run script -qec 'sd-caption --caption x > out; echo status $?' /dev/null
    [[ $output == *"sd-caption: records are wanted, and standard input is a terminal (--help)"* && $output == *"status 2"* ]]
    [ ! -s out ]
}

@test "standard input that is closed is said to be" {
    for words in sd-crop "sd-caption --caption x" "sd-encode-latents --model $ROOT/examples/miniature/model" \
        "sd-train-lora --model $ROOT/examples/miniature/model --output l" "sd-sample --model $ROOT/examples/miniature/model --output-dir d"; do
        # shellcheck disable=SC2086
        run --separate-stderr bash -c 'exec "$@" <&-' - $words
        echo "$words: $status $stderr"
        if [[ $words == sd-sample* ]]; then ((status == 2)); continue; fi
        ((status == 3))
        is_line "${words%% *}: standard input: not a record stream: it is closed"
    done
    [ ! -e l ] && [ ! -e d ]
}

@test "no code of ours makes connections (the CUDA runtime's has some; reliability.bats sees that none is made)" {
    nm -u "$BUILD/libsd.a" "$BUILD"/tools/*.o > wanted
    [ "$(grep -c ' U ' wanted)" -gt 1000 ]
    run grep -wE 'U (socket|connect|bind|getaddrinfo|gethostbyname)' wanted
    [ -z "$output" ]
}

@test "completion offers the options, and the words of a choice" {
    run -0 bash -c '. "$1/tools/completion.bash"; COMP_WORDS=(sd-crop --resa); COMP_CWORD=1; _sd_tools; echo "${COMPREPLY[@]}"' - "$ROOT"
    [[ $output == "--resample" ]]
    run -0 bash -c '. "$1/tools/completion.bash"; COMP_WORDS=(sd-crop --resample bi); COMP_CWORD=2; _sd_tools; echo "${COMPREPLY[@]}"' - "$ROOT"
    [[ $output == "bicubic" ]]
}

@test "threads wait a moment, then sleep: programs start themselves once more, and their children see nothing of it" {
    unset GOMP_SPINCOUNT OMP_WAIT_POLICY
    run -0 sd-caption -q -j --exec 'env > environment; echo words' "$DATA/images/rgb.png"
    if grep -E 'GOMP_SPINCOUNT|SD_STARTED_AGAIN' environment; then false; fi
    run -0 env GOMP_SPINCOUNT=7 sd-caption -q -j --exec 'env > environment; echo words' "$DATA/images/rgb.png"
    grep -qx GOMP_SPINCOUNT=7 environment
    # an environment is inherited: another process's mark is none
    run -0 env SD_STARTED_AGAIN=1 sd-caption -q -j --exec 'env > environment; echo words' "$DATA/images/rgb.png"
    if grep -q GOMP_SPINCOUNT environment; then false; fi
    can_trace
    for p in $(programs); do
        strace -f -qq -e trace=execve -o calls "$p" --version
        [ "$(wc -l < calls)" = 2 ]
        OMP_WAIT_POLICY=active strace -f -qq -e trace=execve -o calls "$p" --version
        [ "$(wc -l < calls)" = 1 ]
    done
}
