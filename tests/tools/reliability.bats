#!/usr/bin/env bats
# Promises that are no one program's: full file systems, size limits, no network, names that choose no path, what is and is not
# part of a cache's key, a second signal.  Faults call by call are in faults.bats.

load ../helper
load ../training

# whole FILE: a safetensors file, as long as its header says
whole() {
    local n
    n=$(od -An -t u8 -N 8 "$1")
    [ "$(stat -c %s "$1")" = "$((8 + n + $(tail -c +9 "$1" | head -c "${n// /}" | jq '[.[] | .data_offsets? // empty | .[1]] | max')))" ]
}

@test "a file system of 300 kB: what fits is whole, what does not is status 3, named, and leaves nothing; the old file stays" {
    mkdir small
    # shellcheck disable=SC2016
    if ! unshare -rm mount -t tmpfs -o size=300k none small 2> /dev/null; then skip "no file system may be mounted here"; fi
    cat > fill << 'END'
set -u
mount -t tmpfs -o size=300k none small || exit 9
cd small
head -c 280000 /dev/zero > filler
try() { # OUTPUT COMMAND...
    local output=$1 status=0
    shift
    "$@" > /dev/null 2> ../err || status=$?
    if [ $status != 3 ]; then echo "$*: status $status"; cat ../err; exit 1; fi
    if ! grep -q 'No space left on device' ../err; then echo "$*:"; cat ../err; exit 1; fi
    if [ "$(wc -l < ../err)" != 1 ]; then echo "more than a line:"; cat ../err; exit 1; fi
    if [ -n "$(find . -name '*.part*')" ]; then echo "$* left $(find .)"; exit 1; fi
    if [ "$output" != none ] && [ "$(cat "$output")" != old ]; then echo "$*: the old $output is gone"; exit 1; fi
}
echo old > out.safetensors
try out.safetensors sd-merge --overwrite --save-dtype f32 --output out.safetensors "$DATA/lora/sd1.kohya.safetensors" "$DATA/lora/sd1.kohya.safetensors" \
    "$DATA/lora/sd1.kohya.safetensors" "$DATA/lora/sd1.kohya.safetensors" "$DATA/lora/sd1.kohya.safetensors" "$DATA/lora/sd1.kohya.safetensors"
try none sd-merge --model "$DATA/models/sd1" --output model "$DATA/lora/sd1.kohya.safetensors"
[ ! -e model ] || exit 1
echo old > sheet.png
try sheet.png sd-sample -q --overwrite --model "$MODEL" --num-inference-steps 1 --prompt a --width 256 --height 256 --output sheet.png
try out.safetensors sd-train-lora -q --overwrite --threads 1 --model "$MODEL" --rank 8 --save-dtype f32 --max-train-steps 1 --output out.safetensors "$RECORDS/two.sd"
sd-crop -q --resolution 512 "$DATA/images/rgb.png" 2> /dev/null > ../big.sd
try none sd-encode-latents -q --model "$MODEL" --cache "$PWD/cache" ../big.sd
[ -z "$(find cache -type f)" ] || exit 1
try none sh -c 'exec sd-crop -q --resolution 512 "$DATA/images/rgb.png" > photos'
END
    run unshare -rm bash fill
    echo "$output"
    ((status == 0))
}

@test "a limit on the size of files is a full disk" {
    run -3 --separate-stderr bash -c 'ulimit -f 8; sd-merge --output big.safetensors "$1"' - "$DATA/lora/sd1.kohya.safetensors"
    is_line "sd-merge: big.safetensors: cannot be written: File too large"
    run -3 --separate-stderr bash -c 'ulimit -f 8; sd-crop -q "$1" > crops' - "$DATA/images/rgb.png"
    [[ $stderr == *"sd-crop: standard output: File too large" ]]
    run -3 --separate-stderr bash -c 'ulimit -f 8; sd-train-lora -q --threads 1 --model "$1" --rank 4 --max-train-steps 1 --output l.safetensors "$2"' - "$MODEL" "$RECORDS/two.sd"
    [[ $stderr == "sd-train-lora: l.safetensors"*": "*"File too large" ]]
    [ ! -e big.safetensors ] && [ ! -e l.safetensors ]
    nothing_left
}

@test "an output that became a folder meanwhile, a folder that may not be written" {
    mkdir taken.safetensors
    run -3 --separate-stderr sd-merge --overwrite --output taken.safetensors "$DATA/lora/sd1.kohya.safetensors"
    [[ $stderr == "sd-merge: taken.safetensors: "* ]]
    rmdir taken.safetensors
    run -3 --separate-stderr sd-merge --output none/x.safetensors "$DATA/lora/sd1.kohya.safetensors"
    is_line "sd-merge: none/x.safetensors: cannot be written: No such file or directory"
    nothing_left
}

@test "the whole chain makes no socket" {
    can_trace
    seen() { strace -f -qq -e trace=%network -e signal=none -o "net.$1" -- "${@:2}"; }
    seen 1 sd-crop -q --resolution 40x40 "$DATA"/images/{rgb.png,la.png} > crops.sd
    seen 2 sd-caption -q --caption 'a <new>' < crops.sd > captions.sd
    seen 3 sd-encode-latents -q --model "$MODEL" --text < captions.sd > latents.sd
    seen 4 sd-train-lora -q --model "$MODEL" --rank 1 --placeholder-token '<new>' --max-train-steps 2 --output l.safetensors --output-embedding t.safetensors \
        --validation-prompt 'a <new>' --sample-every 1 latents.sd
    seen 5 sd-train-ti -q --model "$MODEL" --placeholder-token '<new>' --max-train-steps 1 --output ti.safetensors latents.sd
    seen 6 sd-merge --model "$MODEL" --output merged l.safetensors
    seen 7 sd-sample -q --model merged --embedding t.safetensors --prompt 'a <new>' --num-inference-steps 1 --output p.png
    seen 8 sd-caption -q --tokens --model org/name text || true
    [ "$(find . -maxdepth 1 -name 'net.*' | wc -l)" = 8 ]
    if grep -E '(socket|connect|sendto|bind)\(' net.*; then false; fi
    # it would have been seen
    strace -f -qq -e trace=%network -o net.proof bash -c 'exec 3<> /dev/udp/127.0.0.1/9' || true
    grep -q 'socket(' net.proof
}

@test "a second signal ends training at once; the first within a step and two seconds; the bytes stay" {
    lora -q --max-train-steps 200 --log log
    want=$(sum out.safetensors)
    rm out.safetensors new.safetensors log
    for round in 1 2 3; do
        : >> log
        enough=$(($(wc -l < log) + 2))
        (exec env --default-signal=TERM sd-train-lora -q --resume --threads 1 --model "$MODEL" --rank 2 --placeholder-token '<new>' --output out.safetensors \
            --output-embedding new.safetensors --max-train-steps 200 --log log "$RECORDS/three.sd" "$RECORDS/two.sd") 2> err & pid=$!
        for ((i = 0; i < 500; i++)); do if [ "$(wc -l < log)" -ge $enough ]; then break; fi; sleep 0.01; done
        start=$(date +%s%N) status=0
        kill -TERM "$pid"
        if [ "$round" = 2 ]; then kill -TERM "$pid" 2> /dev/null || true; fi
        wait "$pid" || status=$?
        ((status == 143))
        (($(date +%s%N) - start < 3000000000))
        [ ! -e out.safetensors ]
        nothing_left
    done
    lora -q --resume --max-train-steps 200 --log log
    [ "$(sum out.safetensors)" = "$want" ]
}

# What a queue does with a job that must make room: SIGCONT and SIGTERM to all of it, SIGKILL to what is left after the
# grace, and later the same script once more, with the count of its restarts.
preempted_and_requeued() { # GRACE...: a preemption for each, of so many hundredths of a second
    local grace restart=0 pid i enough
    for grace in "$@" none; do
        touch log
        enough=$(($(wc -l < log) + 2))
        SLURM_JOB_ID=7 SLURM_RESTART_COUNT=$restart setsid env --default-signal bash job > out.$restart 2>&1 &
        pid=$!
        restart=$((restart + 1))
        if [ "$grace" != none ]; then
            for ((i = 0; i < 500; i++)); do if [ "$(wc -l < log)" -ge $enough ]; then break; fi; sleep 0.01; done
            kill -CONT -- -$pid
            kill -TERM -- -$pid
            for ((i = 0; i < grace; i++)); do if ! kill -0 -- -$pid 2> /dev/null; then break; fi; sleep 0.01; done
            if [ "$grace" -ge 200 ] && ((i == grace)); then echo "still there after $grace hundredths"; return 1; fi
            kill -KILL -- -$pid 2> /dev/null || true
            if [ -e out.safetensors ]; then echo "finished before it was preempted"; return 1; fi
        fi
        wait $pid || true
        nothing_left
    done
}

@test "a second signal in the middle of a save leaves nothing half-written" {
    can_trace
    (exec env --default-signal=TERM,INT strace -D -qq -o /dev/null -e inject=fsync:delay_enter=1500000 sd-train-lora -q --threads 1 \
        --model "$MODEL" --rank 2 --placeholder-token '<new>' --output out.safetensors --output-embedding new.safetensors --state state \
        --max-train-steps 60 --checkpointing-steps 1 "$RECORDS/three.sd" "$RECORDS/two.sd") 2> err & pid=$!
    for ((k = 0; k < 500; k++)); do if [ -e state.part ]; then break; fi; sleep 0.01; done
    [ -e state.part ]
    status=0
    kill -INT "$pid"                # both come when the delayed call returns
    kill -TERM "$pid"
    wait "$pid" || status=$?
    echo "status $status"
    cat err
    ((status == 130 || status == 143))
    nothing_left
    [ ! -e state ]
}

@test "a queue preempts a job four times, with grace and without, and runs it again: the same bytes, one log line a step" {
    lora -q --max-train-steps 300 --log log
    want="$(sum out.safetensors) $(sum new.safetensors) $(losses log | sha256sum)"
    rm out.safetensors new.safetensors log
    cat > job << 'END'
#!/bin/bash
set -eu
echo "restart $SLURM_RESTART_COUNT"
sd-train-lora --resume --threads 1 --model "$MODEL" --rank 2 --placeholder-token '<new>' --output out.safetensors \
    --output-embedding new.safetensors --max-train-steps 300 --log log "$RECORDS/three.sd" "$RECORDS/two.sd"
echo "done"
END
    preempted_and_requeued 300 0 300 2
    [ "$(tail -n 1 out.4)" = "done" ]
    [ "$(sum out.safetensors) $(sum new.safetensors) $(losses log | sha256sum)" = "$want" ]
    [ ! -e out.safetensors.state ]
    grep -q '^restart 1$' out.1
    # with grace it was saved, and the next run went on from there
    grep -q 'stopped after step .* and saved; the same command with --resume goes on' out.0
    grep -q 'resuming after step ' out.1
    # a job that is done and started again has nothing to do
    SLURM_RESTART_COUNT=5 bash job > out.5 2>&1
    [ "$(sum out.safetensors)" = "${want%% *}" ]
}

@test "records that claim to be large take no memory, and are named with their place" {
    (ulimit -v 262144; sd-sample -h > /dev/null 2>&1) || skip "an instrumented build wants more memory"
    cat > claims << 'END'
an array of 2^32 - 1|ddffffffff
a map of 2^32 - 1|dfffffffff
2^32 - 1 bytes|82a26964a161a178c6ffffffff
a text of 2^32 - 1|81a26964dbffffffff
an extension of 2^32 - 1|81a178c9ffffffff01
a key of 2^31|81db80000000
arrays in arrays, each of 2^32 - 1|81a178ddffffffffddffffffffddffffffffddffffffff
maps in maps, each of 2^32 - 1|81a178dfffffffffdfffffffffdfffffffffdfffffffff
no msgpack|81a178c1
33 deep|81a178919191919191919191919191919191919191919191919191919191919191919191c0
a tensor of 2^62 elements|82a26964a161ac706978656c5f76616c75657383a56474797065a25538a573686170659 3cf400000000000000001 03a464617461c400
an end that lies|81a3656e64cfffffffffffffffff
END
    while IFS='|' read -r what hex; do
        { printf '\x82\xa2sd\x01\xa5holds\xa1x'; perl -e '$h = $ARGV[0]; $h =~ s/ //g; print pack "H*", $h' "$hex"; } > claim.sd
        for p in sd-crop sd-caption "sd-encode-latents --model $MODEL" "sd-sample --model $MODEL"; do
            # shellcheck disable=SC2086
            run -3 --separate-stderr bash -c 'ulimit -v 262144; exec "$@" claim.sd' - $p -j
            if [[ $stderr != "${p%% *}: claim.sd: "*"record 1"* && $stderr != "${p%% *}: claim.sd: its end does not fit"* ]]; then
                echo "$p, $what: $stderr"; return 1
            fi
        done
    done < claims
}

# most_kib COMMAND...: the largest resident memory of it; its output goes nowhere
most_kib() {
    "$@" > /dev/null 2> err &
    local pid=$! now most=0
    while now=$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status" 2> /dev/null) && [ -n "$now" ]; do
        if ((now > most)); then most=$now; fi
    done
    wait $pid || true
    echo $most
}

@test "a JPEG of more than 500 scans is stopped" {
    # the first scan of a progressive picture 600 times: each goes over the whole picture
    perl -0777 -e 'open F, "<:raw", $ARGV[0]; $_ = <F>; /\xff\xda.*?(?=\xff[\xc4\xda])/s or die;
        print $`, $& x $ARGV[1], substr($_, $+[0])' "$DATA/images/progressive.jpg" 600 > scans.jpg
    run -3 --separate-stderr sd-crop -q -j scans.jpg
    is_line "sd-crop: scans.jpg: JPEG of more than 500 scans"
}

@test "large pictures take three times their size and 64 MB, those beyond the limit nothing" {
    counts_memory sd-crop
    perl -MCompress::Zlib -e 1 2> /dev/null || skip "this Perl has no zlib"
    perl -e 'use Compress::Zlib; sub chunk { pack("N", length $_[1]) . $_[0] . $_[1] . pack("N", crc32($_[0] . $_[1])) }
        ($w, $h) = @ARGV; ($d) = deflateInit(-Level => 9); $data = "";
        $row = "\0" x (1 + $w); for (1 .. $h) { ($o) = $d->deflate($row); $data .= $o } ($o) = $d->flush; $data .= $o;
        print "\x89PNG\r\n\x1a\n", chunk("IHDR", pack("NNCCCCC", $w, $h, 8, 0, 0, 0, 0)), chunk("IDAT", $data), chunk("IEND", "")' \
        5000 5000 > large.png
    [ "$(stat -c %s large.png)" -lt 40000 ]
    most=$(most_kib sd-crop -q --resolution 64 large.png)
    [ ! -s err ]
    echo "$most KiB for 25 million pixels"
    ((most < 3 * 5000 * 5000 * 3 / 1024 + 65536))
    perl -0777 -pe 'substr($_, 16, 8) = pack("NN", 60000, 60000)' large.png > bomb.png
    most=$(most_kib sd-crop -q --resolution 64 bomb.png)
    grep -q '60000 x 60000 pixels, at most 178956970 are decoded' err
    ((most < 65536))
}

@test "what is not finite gets into no latents and no model" {
    nan() { # FROM TO: all numbers of a file are NaN, whether they have two bytes or four
        perl -0777 -pe '$n = 8 + unpack "Q<", $_; substr($_, $n) = "\xff" x (length($_) - $n)' "$1" > "$2"
    }
    cp -r "$MODEL" m
    nan "$MODEL/vae/diffusion_pytorch_model.safetensors" m/vae/diffusion_pytorch_model.safetensors
    sd-crop -q --resolution 40x40 "$DATA/images/rgb.png" 2> /dev/null > one.sd
    run -3 --separate-stderr sd-encode-latents -j --model m --cache cache one.sd
    [[ $stderr == *"latents are not finite"* && $output != *latents_mean* ]]
    [ -z "$(find cache -name '*.safetensors')" ]
    nan "$DATA/lora/sd1.kohya.safetensors" nan.safetensors
    run -3 --separate-stderr sd-merge --output never "nan.safetensors"
    [[ $stderr == "sd-merge: nan.safetensors: "*"not finite" ]]
    run -3 --separate-stderr sd-sample -q --model "$MODEL" --lora nan.safetensors --prompt a -j
    [[ $stderr == "sd-sample: nan.safetensors: "*"not finite" ]]
    [ ! -e never ]
}

# names that would be something else than a name: 40 of them
hostile() {
    # shellcheck disable=SC2016,SC2088
    printf '%s\n' .. . ../x ../../x /x /tmp/x ./x x/ x/../../y '..\x' '\x' 'C:\x' 'C:x' '~/x' '$HOME/x' '$(touch owned)' '`touch owned`' '; touch owned' \
        '| touch owned' '&& touch owned' '-x' '--output=x' '*' '?' '%s' '%n' '%2$s' $'a\tb' $'a\rb' $'a\x1b[2Jb' $'a\x7fb' ' ' ' x' 'x ' 'a b' 'é/x' \
        "$(printf 'x%.0s' {1..300})" "$(printf 'x/%.0s' {1..200})" '<../x>' 'x.part'
}

@test "no name in a prompt, a token, a record or an index chooses a path" {
    mkdir -p in/a/b
    cd in/a/b
    hostile > ../../../names
    [ "$(wc -l < ../../../names)" = 40 ]
    cp "$RECORDS/two.sd" two.sd
    mkdir out dir
    # the lists are made before what they list, or a list could find itself half-way
    touch ../../../before ../../../after
    find ../../.. ! -name 'separate-stderr-*' | sort > ../../../before
    while IFS= read -r name; do
        # adapters are looked up under the folder given, by a plain name; none of these is there
        run --separate-stderr sd-sample -q --model "$MODEL" --num-inference-steps 1 --prompt "<lora:$name:1> a" --lora-dir dir --output out/p.png
        # some are no such form and plain words, then a picture is drawn
        if [ "$status" -eq 0 ]; then rm out/p.png; else ((status == 2 || status == 3)); fi
        # in a file's name all that could be a path is replaced
        run --separate-stderr sd-train-ti -q --threads 1 --model "$MODEL" --placeholder-token "$name" --max-train-steps 1 --output 'out/%s.safetensors' two.sd
        find out -type f -delete
        # where a record says it came from: only for messages
        perl -e '$n = $ARGV[0]; print "\x82\xa2sd\x01\xa5holds\xa1x\x82\xa2id\xa1a\xa6source\xda", pack("n", length $n), $n, "\x81\xa3end\x01"' -- "$name" > r.sd
        for program in sd-encode-latents sd-sample; do
            run --separate-stderr "$program" -q --model "$MODEL" -j r.sd
            ((status != 0))
        done
        rm -f r.sd
        printf '%s' "$name" | jq -Rs '{metadata: {}, weight_map: {a: .}}' > i.json
        cp -r "$MODEL" m
        rm m/unet/*.safetensors
        mv i.json m/unet/diffusion_pytorch_model.safetensors.index.json
        run -3 --separate-stderr sd-sample -q --model m --prompt a --output out/p.png
        rm -r m
    done < ../../../names
    find ../../.. ! -name 'separate-stderr-*' | sort > ../../../after
    diff ../../../before ../../../after
}

@test "the cache's key: twelve things that do not matter" {
    sd-crop -q --resolution 48x40 "$DATA"/images/{rgb.png,rgb.jpg,la.png} > crops.sd
    encode() { sd-encode-latents --model "$MODEL" --cache "${CACHE:-$PWD/cache}" "$@"; }
    encode crops.sd > want.sd
    [ "$(find cache -type f | wc -l)" = 3 ]
    hit() { # what came, and its counts on standard error
        [[ $(< err) == *"3 records: 0 encoded, 3 from the cache"* ]] || { cat err; return 1; }
        if [ "${2:-}" != other ]; then cmp want.sd "$1"; fi
    }
    for n in 1 2 3; do encode --threads $n crops.sd > got.sd 2> err; hit got.sd; done
    encode --batch-size 3 crops.sd > got.sd 2> err;                                     hit got.sd
    LC_ALL=C encode crops.sd > got.sd 2> err;                                           hit got.sd
    TZ=Asia/Tokyo HOME=/none USER=x encode crops.sd > got.sd 2> err;                    hit got.sd
    (umask 077; nice encode crops.sd > got.sd 2> err) || (umask 077; encode crops.sd > got.sd 2> err); hit got.sd
    encode -v crops.sd > got.sd 2> err;                                                 hit got.sd
    encode --memory 2G crops.sd > got.sd 2> err;                                        hit got.sd
    mkdir elsewhere
    (cd elsewhere && CACHE=../cache encode ../crops.sd > ../got.sd 2> ../err);          hit got.sd
    encode --keep-pixels crops.sd > got.sd 2> err;                                      hit got.sd other
    sd-caption -q --caption words < crops.sd | encode > got.sd 2> err;                  hit got.sd other
    sd-crop -q --resolution 48x40 "$DATA"/images/{la.png,rgb.png,rgb.jpg} | encode > got.sd 2> err; hit got.sd other
    cp -r "$MODEL" copy
    touch -d 2001-01-01 copy/vae/*
    sd-encode-latents --model copy --cache cache crops.sd > got.sd 2> err;              hit got.sd
    mv cache moved
    CACHE=moved encode crops.sd > got.sd 2> err;                                        hit got.sd
}

@test "a byte flipped in each of a hundred entries is caught, each time" {
    flip_in_entries 50 1
}
