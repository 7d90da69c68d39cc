# training.bash - what tests of sd-train-lora and sd-train-ti share: a model that reads captions, five records in two
# shapes, one of them with a caption of several chunks.  `load ../training` after the helper.

setup_file() {
    local images=$DATA/images
    cd "$BATS_FILE_TMPDIR" || exit 1
    export XDG_CACHE_HOME=$BATS_FILE_TMPDIR/.cache MODEL=$BATS_FILE_TMPDIR/model RECORDS=$BATS_FILE_TMPDIR
    mkdir model masks
    cp -r "$DATA"/models/sd1/{unet,vae,scheduler,model_index.json} "$DATA/train/text_encoder" model
    cp -r "$DATA/tokenizer/tiny" model/tokenizer
    for name in rgb la grey; do cp "$images/mask_right.png" masks/$name.png; done
    sd-crop -q --mask-dir masks --resolution 48x40 "$images/rgb.png" "$images/la.png" "$images/grey.png" \
        | sd-caption -q --caption 'a photo of <new> in {file}' | sd-encode-latents -q --model model > three.sd
    sd-crop -q --resolution 40x48 "$images/rgb.jpg" "$images/palette200.png" \
        | sd-caption -q --caption 'the <new> and more of the same in a long line of words, all in {file}' \
        | sd-encode-latents -q --model model > two.sd
}
setup() {
    cd "$BATS_TEST_TMPDIR" || exit 1
}

# lora ARGUMENT...: sd-train-lora on all five records, rank 2, both at once.
lora() {
    sd-train-lora --threads 1 --model "$MODEL" --rank 2 --placeholder-token '<new>' --output out.safetensors \
        --output-embedding new.safetensors "$@" "$RECORDS/three.sd" "$RECORDS/two.sd"
}
# plain ARGUMENT...: adapters alone
plain() {
    sd-train-lora --threads 1 --model "$MODEL" --rank 2 --output out.safetensors "$@" "$RECORDS/three.sd" "$RECORDS/two.sd"
}
ti() {
    sd-train-ti --threads 1 --model "$MODEL" --placeholder-token '<new>' --output new.safetensors "$@" "$RECORDS/three.sd" \
        "$RECORDS/two.sd"
}
# sum FILE: of its tensors and metadata
sum() { sha256sum < "$1" | cut -d ' ' -f 1; }
# metadata FILE: the header's __metadata__ as JSON
metadata() {
    local n
    n=$(od -An -t u8 -N 8 "$1")
    tail -c +9 "$1" | head -c "${n// /}" | jq -c .__metadata__
}
# values FILE: a hash of the tensors alone
values() {
    local n
    n=$(od -An -t u8 -N 8 "$1")
    tail -c +$((9 + n)) "$1" | sha256sum | cut -d ' ' -f 1
}
# losses LOG
losses() { jq -c '[.step, .loss]' "$1"; }

# kill_and_resume TIMES STEPS [ti]: runs that are killed with -9 at random instants, chains of up to three, then resumed to the
# end; all must give the bytes of a run that was left alone.  At least half of the kills must have met a run under way.
kill_and_resume() {
    local times=$1 steps=$2 i want met=0 pid
    local run=(sd-train-lora -q --threads 1 --model "$MODEL" --rank 2 --placeholder-token '<new>' --train-text-encoder --seed 3
        --gradient-accumulation-steps 2 --train-batch-size 2 --optimizer prodigy --lr-scheduler cosine --max-train-steps "$steps"
        --checkpointing-steps 2 --output out.safetensors --output-embedding new.safetensors --log log "$RECORDS/three.sd" "$RECORDS/two.sd")
    if [ "${3:-}" = ti ]; then
        run=(sd-train-ti -q --threads 1 --model "$MODEL" --placeholder-token '<new>' --num-vectors 2 --seed 3 --train-batch-size 2
            --max-train-steps "$steps" --checkpointing-steps 1 --output out.safetensors --log log "$RECORDS/three.sd" "$RECORDS/two.sd")
        ln -s out.safetensors new.safetensors
    fi
    "${run[@]}"
    want="$(sum out.safetensors) $(sum new.safetensors) $(losses log | sha256sum)"
    rm out.safetensors log
    if [ ! -L new.safetensors ]; then rm new.safetensors; fi
    for ((i = 0; i < times; i++)); do
        "${run[@]}" --resume 2> err & pid=$!
        sleep "0.$(printf '%03d' $((RANDOM % 400 + 20)))"
        if kill -9 "$pid" 2> /dev/null; then met=$((met + 1)); fi
        wait "$pid" || true
        if ((i % 3 == 2 || i == times - 1)) || [ -e out.safetensors ]; then
            "${run[@]}" --resume
            [ "$(sum out.safetensors) $(sum new.safetensors) $(losses log | sha256sum)" = "$want" ]
            [ ! -e out.safetensors.state ]
            rm -rf out.safetensors log
            if [ ! -L new.safetensors ]; then rm -f new.safetensors; fi
        fi
    done
    echo "$met of $times kills met a run"
    ((2 * met >= times))
}

# kill_in_state TIMES: as above, but each run is killed by one of the system calls that write its state (strace), chains of
# three.  A call of a later step may not be met by a run that has less left to do; at least half must be.
kill_in_state() {
    local times=$1 i want met=0 status call number
    local run=(sd-train-lora -q --threads 1 --model "$MODEL" --rank 1 --target-modules to_q --placeholder-token '<new>' --max-train-steps 20
        --checkpointing-steps 1 --output out.safetensors --output-embedding new.safetensors --log log "$RECORDS/three.sd")
    strace -f -y -o trace -e trace=openat,write,fsync,close,rename "${run[@]}"
    want="$(sum out.safetensors) $(sum new.safetensors) $(losses log | sha256sum)"
    awk '{ line = $0; sub(/^[0-9]+ +/, "", line); name = line; sub(/\(.*/, "", name); n[$1, name]++ }
        name ~ /^[a-z0-9]+$/ && line ~ /\.state/ { print name, n[$1, name] }' trace > calls
    rm out.safetensors new.safetensors log
    for ((i = 0; i < times; i++)); do
        # from the first third: the run goes on from where it was
        read -r call number < <(head -n $(($(wc -l < calls) / 3)) calls | shuf -n 1)
        status=0
        { strace -f -o /dev/null -e trace="$call" -e inject="$call:signal=SIGKILL:when=$number" "${run[@]}" --resume; } 2> /dev/null || status=$?
        ((status == 0 || status == 137))
        if [ -e out.safetensors.state ]; then sd_state_is_whole; fi
        if ((status == 137)); then met=$((met + 1)); fi
        if ((i % 3 == 2 || i == times - 1)) || [ -e out.safetensors ]; then
            "${run[@]}" --resume
            [ "$(sum out.safetensors) $(sum new.safetensors) $(losses log | sha256sum)" = "$want" ]
            if compgen -G '*.state*' || compgen -G '*.part'; then echo "left over"; return 1; fi
            rm -rf out.safetensors new.safetensors log
        fi
    done
    echo "# $met of $times kills met the state's writing"
    ((2 * met >= times))
}
# Its data fit the checksum in it.
sd_state_is_whole() { [ "$(metadata out.safetensors.state | jq -r .sd_state)" = 1 ]; }

# flip_in_entries SIZES TIMES: a bit flipped in every entry of a cache, two for each of so many sizes, again and again: each is
# caught and made again.
flip_in_entries() {
    local n
    for ((n = 1; n <= $1; n++)); do
        sd-crop -q --resolution "40x$((8 * n))" "$DATA/images/rgb.png" "$DATA/images/la.png" > "$n.sd" 2> /dev/null
    done
    sd-encode-latents -q --model "$MODEL" --cache cache ./*.sd > want.out
    [ "$(find cache -type f | wc -l)" = $((2 * $1)) ]
    for ((n = 0; n < $2; n++)); do
        find cache -type f | while IFS= read -r entry; do
            perl -e 'open F, "+<:raw", $ARGV[0]; $at = int(rand(-s $ARGV[0])); seek F, $at, 0; read F, $c, 1; seek F, $at, 0;
                print F chr(ord($c) ^ (1 << int(rand 8)))' "$entry"
        done
        sd-encode-latents --model "$MODEL" --cache cache ./*.sd > got.out 2> err
        [ "$(grep -c 'damaged cache entry' err)" = $((2 * $1)) ]
        grep -q "$((2 * $1)) encoded, 0 from the cache" err
        cmp want.out got.out
    done
}
