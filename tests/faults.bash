# faults.bash - a program's system calls made to fail, or to be its last, one after the other.  `load ../faults` after the
# helper.
#
# A scenario is a folder $BASE, copied afresh for each run to $WORK, a command `run_it` run there, and a command `again`
# that a user would give after a fault.  One run under strace tells the calls that touch our files; then each of them, or
# each n-th, is made to kill the program or to return an error.  What must hold afterwards:
#   killed     every file is as it was before the run, as the whole run leaves it, or bears the name of an unfinished one
#   an error   the same, nothing unfinished is left, and status 3 or 1 with a line that names the cause, or status 0 and
#              all is there (the call did not matter, or was made again)
#   EINTR      of a call that signals interrupt: nothing is said, status 0, all is there; reads too
#   then       `again` succeeds and leaves what the whole run leaves, no file more
# A state of training is unfinished until the end; the log's times are not compared.

FAULT_CALLS=openat,read,write,pwrite64,fsync,ftruncate,rename,renameat2,close,unlink,unlinkat,linkat,link,mkdir,rmdir

# hashed FOLDER: hash and name of each file; what is remembered of weights by name only, for it holds times
hashed() {
    (
        cd "$1" || exit 1
        find . -type f ! -name out.sd ! -name err ! -name log ! -path '*/hashes/*' -exec sha256sum {} +
        find . -type f -path '*/hashes/*'
        if [ -e log ]; then echo "$(jq -c '[.step, .loss]' log | sha256sum) log"; fi
    ) | LC_ALL=C sort
}

# unfinished FILE: names that unfinished things bear
unfinished() { grep -E '\.part(/|$)|\.state$|\.log$|/log$| log$' "$1"; }

afresh() {
    rm -rf "$WORK"
    cp -a "$BASE" "$WORK"
}

# points: "call ordinal" of each call that touches our files, as strace counts them, thread by thread
points() {
    awk -v ours="$BATS_RUN_TMPDIR/" -v data="$DATA/" '
        { pid = $1; line = $0; sub(/^[0-9]+ +/, "", line) }
        line !~ /^[a-z0-9_]+\(/ { next }
        { name = line; sub(/\(.*/, "", name); at = name " " ++n[pid, name]; rest = substr(line, length(name) + 2) }
        { sub(/^AT_FDCWD<[^>]*>, /, "", rest); sub(/, AT_FDCWD<[^>]*>/, "", rest) }
        name ~ /^(read|write|pwrite64)$/ { sub(/, ".*/, "", rest) }
        rest !~ /^2</ && (rest ~ /^"[^\/]/ || index(rest, ours) || index(rest, data)) { if (!seen[at]++) order[++count] = at; next }
        { foreign[at] = 1 }     # of another thread too: the loader, messages
        END { for (i = 1; i <= count; i++) if (!(order[i] in foreign)) print order[i] }
    ' "$1"
}

broken() { # TEXT
    echo "$SCENARIO, $fault of $call number $number: $1"
    [ ! -s "$WORK/err" ] || sed 's/^/    stderr: /' "$WORK/err"
    return 1
}

# after_fault STATUS
after_fault() {
    local status=$1 left silent=/hashes/
    hashed "$WORK" > found
    comm -23 found allowed > strange
    if unfinished strange > parts; then
        # a state is as unfinished as the run; a half-written file is not to be seen once the program could tell
        left=$(grep -E '\.part(/|$)' parts || true)
        if [ "$fault" != KILL ] && [ -n "$left" ] && [[ $call != unlink* && $call != rmdir ]] && ! grep -q 'cannot be removed' "$WORK/err"; then
            broken "left $left"
            return 1
        fi
        comm -23 strange parts > torn || true
        mv torn strange
    fi
    # an input that could not be read was named, and what it would have given is missing: other bytes under the same names
    if [ "$status" = 1 ]; then
        awk '{ print $NF }' allowed | sort > names
        awk '{ print $NF }' strange | sort | comm -23 - names > torn
        mv torn strange
    fi
    if [ -s strange ]; then broken "neither old nor whole: $(cat strange)"; return 1; fi
    if [ "$fault" = KILL ]; then
        if [ "$status" != 137 ]; then broken "status $status, expected 137 (the call was not met)"; return 1; fi
    elif [ "$fault" = EINTR ] && [[ $call =~ ^(openat|read|write|pwrite64|fsync|close)$ ]] && { [ "$status" != 0 ] || [ -s "$WORK/err" ]; }; then
        broken "status $status: not made again"
        return 1
    elif [ "$status" = 3 ] || [ "$status" = 1 ]; then
        if ! grep -q "$text" "$WORK/err"; then broken "status $status without its cause"; return 1; fi
    elif [ "$status" != 0 ]; then broken "status $status"; return 1
    elif [ ! -s "$WORK/err" ]; then
        # silent: a hash that could not be remembered, and, being only warned of, a state that could not be removed
        if [[ $call == unlink* ]]; then silent='/hashes/|\.state$'; fi
        if ! diff <(grep -v /hashes/ whole) <(grep -vE "$silent" found) > differences; then
            broken "status 0, but $(cat differences)"
            return 1
        fi
        if ! cmp -s "$WORK/out.sd" out.whole; then broken "status 0, but another stream"; return 1; fi
    fi
    (cd "$WORK" && again > out.sd 2> err) || { broken "and the next run ended with status $?"; return 1; }
    hashed "$WORK" > found
    # what is remembered of weights may be missing: a run that only goes on hashes less
    if ! diff <(grep -v /hashes/ whole) <(grep -v /hashes/ found) > differences || comm -13 whole found | grep /hashes/ > differences; then
        broken "and after the next run $(cat differences)"
        return 1
    fi
}

# faults NAME EVERY [FAULT...]: each EVERY-th call, beginning at a random one, with each fault
faults() {
    local every=$2 start call number fault text status tried=0 bad=0 inject all
    SCENARIO=$1 BASE=$PWD/$1 WORK=$PWD/$1.work
    shift 2
    afresh
    (cd "$WORK" && strace -f -y -s 4096 -o ../trace -e trace=$FAULT_CALLS "${RUN[@]}" > out.sd 2> err) || { cat "$WORK/err"; return 1; }
    hashed "$BASE" > before
    hashed "$WORK" > whole
    cp "$WORK/out.sd" out.whole
    LC_ALL=C sort -u before whole > allowed
    points trace > calls
    all=$(wc -l < calls)
    for fault in "${@:-KILL}"; do
        start=$((RANDOM % every))
        while read -r call number; do
            case $fault in
                KILL) inject="signal=SIGKILL" ;;
                ENOSPC) inject="error=ENOSPC" text="No space left on device" ;;
                EIO) inject="error=EIO" text="Input/output error" ;;
                EINTR) inject="error=EINTR" text="Interrupted system call" ;;
            esac
            afresh
            status=0
            { (cd "$WORK" && exec strace -f -o /dev/null -e trace="$call" -e inject="$call:$inject:when=$number" "${RUN[@]}" > out.sd 2> err); } \
                2> /dev/null || status=$?
            tried=$((tried + 1))
            after_fault "$status" || bad=$((bad + 1))
        done < <(awk -v every="$every" -v start="$start" -v reads="$([ "$fault" = EINTR ]; echo $?)" \
            '($1 != "read" || !reads) && n++ % every == start' calls)
    done
    echo "# $SCENARIO: $tried faults at $all calls, $bad wrong" | tee -a "${FAULTS_LOG:-/dev/null}"
    if ((tried == 0 || bad > 0)); then return 1; fi
}

# The scenarios.  scenario NAME: makes the folder NAME, sets RUN and `again`.
models_for_faults() {
    export OMP_NUM_THREADS=1
    mkdir model
    cp -r "$DATA"/models/sd1/{unet,vae,scheduler,model_index.json} "$DATA/train/text_encoder" model
    cp -r "$DATA/tokenizer/tiny" model/tokenizer
    sd-crop -q --resolution 32x32 "$DATA/images/rgb.png" "$DATA/images/la.png" > two.sd 2> /dev/null
    sd-caption -q --caption 'a photo of <new>' < two.sd | XDG_CACHE_HOME=$PWD sd-encode-latents -q --model model > latents.sd
    sleep 0.1       # weights of this very moment are not remembered
}

scenario() {
    mkdir "$1"
    local model=$BATS_FILE_TMPDIR/model
    case $1 in
        crop)
            mkdir crop/photos
            cp "$DATA"/images/{rgb.png,rgb.jpg,la.png} crop/photos
            echo '{"old": 1}' > crop/report.json
            RUN=(sd-crop -q --resolution 32x32 --overwrite --report report.json photos) ;;
        caption)
            mkdir caption/photos
            cp "$DATA"/images/{rgb.png,la.png} caption/photos
            echo old > caption/photos/rgb.txt
            RUN=(sd-caption -q --write-sidecars --overwrite --caption 'a {file}' photos) ;;
        encode)
            cp "$BATS_FILE_TMPDIR/two.sd" encode
            RUN=(sd-encode-latents -q --model "$model" --batch-size 1 two.sd) ;;
        merge)
            echo old > merge/out.safetensors
            RUN=(sd-merge --overwrite --output out.safetensors "$DATA/lora/sd1.kohya.safetensors" "$DATA/lora/sd1.comfy.safetensors:0.5") ;;
        merge-model)
            mkdir -p merge-model/out/unet
            echo '{"old": 1}' > merge-model/out/model_index.json
            echo old > merge-model/out/unet/old
            RUN=(sd-merge --overwrite --model "$DATA/models/sd1" --output out "$DATA/lora/sd1.kohya.safetensors") ;;
        sample)
            mkdir sample/pictures
            echo old > sample/pictures/00000.png
            echo old > sample/latents
            RUN=(sd-sample -q --model "$model" --prompt a --prompt b --num-inference-steps 1 --width 32 --height 32 --overwrite
                --output-dir pictures --sheet sheet.jpg --save-latents latents) ;;
        lora)
            RUN=(sd-train-lora -q --resume --model "$model" --rank 1 --target-modules to_q --placeholder-token '<new>' --max-train-steps 3
                --checkpointing-steps 1 --output out.safetensors --output-embedding new.safetensors --log log "$BATS_FILE_TMPDIR/latents.sd") ;;
        peft)
            mkdir -p peft/out/unet
            echo '{"old": 1}' > peft/out/unet/adapter_config.json
            RUN=(sd-train-lora -q --resume --overwrite --model "$model" --rank 1 --target-modules to_q --format peft --max-train-steps 1
                --output out "$BATS_FILE_TMPDIR/latents.sd") ;;
        ti)
            echo old > ti/new.safetensors
            RUN=(sd-train-ti -q --resume --overwrite --model "$model" --placeholder-token '<new>' --max-train-steps 2 --checkpointing-steps 1
                --output new.safetensors --log log "$BATS_FILE_TMPDIR/latents.sd") ;;
    esac
    # a cache of its own, in the folder that is looked at
    RUN=(env "XDG_CACHE_HOME=$PWD/$1.work/cache" "${RUN[@]}")
    again() { "${RUN[@]}"; }
}
