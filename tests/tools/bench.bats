# What `make bench-cuda` runs: cuda on the emulated device, at tiny sizes, with a peer that says what it is told; its table.  But for
# one test nothing is computed (SD_EMULATE_DRY): times are those of launching.
load ../helper

programs=$(dirname "$(command -v sd-sample)")
cuda=$programs/emulate/tests/bench/cuda table=$programs/tests/bench/table

# numbers that are easy to divide, of nothing that was measured
canned() {
    printf 'about\tmachine\tnone\n'
    printf 'rate\tGEMM 4096^3, bf16\tcuBLASLt\tTFLOP/s\t%s\n' 500 100 400 # median 400
    printf 'rate\tGEMM 4096^3, bf16\town\tTFLOP/s\t200\n'
    printf 'flops\tlora1\t2e12\n'                                         # floor 5 ms
    printf 'time\tlora1\tours\t%s\n' 12 8 10
    printf 'time\tlora1\tkernels\t7\n'
    printf 'time\tlora1\teager\t75\n'
    printf 'time\tlora1\tgraph\t20\n'
    printf 'time\tlora1\tcompile\t15\n'
    printf 'memory\tlora1\tours\t2.5\n'
    printf 'start\tlora1\tours\t%s\n' 9 2
    printf 'note\tlora8, compile: left out: no time\n'
}

@test "bench table: medians, floor, goals and ratios" {
    canned > numbers
    run -0 --separate-stderr "$table" < numbers
    echo "$output"
    grep -qF '| GEMM 4096^3, bf16 | cuBLASLt | TFLOP/s | 400.0 | 100 % |' <<< "$output"
    grep -qF '| T1 | LoRA step, attention, r16, batch 1 | 2.00 | 5.00 | 10.00 | 7.00 | 40 % | 2.00 | 9.50: **short** | 75.00 | 20.00 | 15.00 | 7.50 (8.00: **short**) | 1.50 (1.60: **short**) |' <<< "$output"
    grep -qF '| LoRA step, attention, r16, batch 1 | 2.50 | – | – | – | – | M5 2.6: met | 9.00 | 2.00 | C7 3: met |' <<< "$output"
    grep -qF 'note**: lora8, compile: left out: no time' <<< "$output"
    sed 's/ours\t12$/ours\t9/; s/eager\t75/eager\t90/' numbers > better
    run -0 --separate-stderr "$table" < better
    grep -qF '| 9.00 | 7.00 | 22 % | 1.80 | 9.50: met | 90.00 | 20.00 | 15.00 | 10.00 (8.00: met) | 1.67 (1.60: met) |' <<< "$output"
}

@test "bench table: where a row's time goes, by op and shape" {
    canned > numbers
    printf 'profile\tlora1\t%s\t%s\t%s\t%s\t%s\t%s\n' 'linear forward' '4096x320 -> 320' 10 300 3e11 6e8 others '' 5 100 0 0 all '' 1 450 3e11 0 >> numbers
    run -0 --separate-stderr "$table" < numbers
    echo "$output"
    grep -qxF '## Where lora1 goes' <<< "$output"
    grep -qxF '| linear forward | 4096x320 -> 320 | 10 | 300.0 | 75.0 % | 1000.0 | 2000.0 |' <<< "$output"
    grep -qxF '| others |  | 5 | 100.0 | 25.0 % | – | – |' <<< "$output"
    grep -qxF '| all |  | 1 | 450.0 | 112.5 % | 666.7 | – |' <<< "$output"
}

@test "bench table: what is no measurement is refused" {
    for line in 'time\tlora1\tours\tfast' 'time\tlora1\tours\t0' 'time\tlora1\tours\tnan' 'tame\tlora1\tours\t1' 'time\tlora1' \
        'profile\tlora1\tlinear\t4x4\t1\tfast\t1\t1' 'profile\tlora1\tlinear\t4x4\t1\t1\t1'; do
        run -3 --separate-stderr "$table" <<< "$(printf '%b' "$line")"
        [ -n "$stderr" ] && [ -z "$output" ]
    done
    run -3 --separate-stderr "$table" < /dev/null
    is_line 'table: no measurement'
}

@test "bench: a row of training, computed: its gradient is not zero" {
    run -0 --separate-stderr "$cuda" --tiny --alone lora1 "$ROOT/examples/miniature/model"
    echo "$output"
    [[ $(cut -f 1-3 <<< "$output" | sort | tr '\n' ' ') == $'memory\tlora1\tours memory\tlora1\tours and libraries start\tlora1\tours ' ]]
}

# nothing runs from here on; each round and row is launched
dry() { SD_EMULATE_DRY=dry "$@"; }

@test "bench: our rows and the peers in turn; who does not come is left out aloud" {
    cat > peer << 'PEER'
#!/bin/sh
case $2$4 in
    slowlora1) exec sleep 1000 ;;
    absentlora1) echo "skip not installed"; exit ;;
    deadlora1) echo "ready 0.5"; exit ;;
esac
echo "a library's chatter"
echo "memory 1.5"
echo "ready 0.5"
while read -r word steps; do [ "$word" = run ] && [ "$steps" = 1 ] && echo "time 123.5"; done
PEER
    chmod +x peer
    run -0 --separate-stderr dry "$cuda" --tiny --rounds 2 --seconds 8 --peers ./peer eager,slow,absent,dead "$ROOT/examples/miniature/model" text lora1
    echo "$output"
    [ "$(grep -cP '^time\tlora1\tours\t[0-9.e+]+$' <<< "$output")" -eq 2 ]
    [ "$(grep -cP '^time\tlora1\tkernels\t' <<< "$output")" -eq 2 ]
    [ "$(grep -cP '^time\tlora1\teager\t123.5$' <<< "$output")" -eq 2 ]
    [ "$(grep -cP '^memory\tlora1\teager\t1.5$' <<< "$output")" -eq 1 ]
    grep -qP '^note\tlora1, absent: left out: not installed$' <<< "$output"
    grep -qP '^note\tlora1, dead: left out: it ended$' <<< "$output"
    grep -qP '^note\tlora1, slow: left out: not ready in time' <<< "$output"
    grep -qP '^rate\tGEMM 8192\^3, bf16\town\tTFLOP/s\t' <<< "$output"
    "$table" <<< "$output" > /dev/null
}

@test "bench: peers that do not fit on the card together come in waves, each row with all of its own" {
    cat > peer << 'PEER'
#!/bin/sh
echo "$4 $2 begins" >> log
echo "ready 0.5"
while read -r word steps; do echo "time 123.5"; echo "$4 $2 runs" >> log; done
PEER
    chmod +x peer
    run -0 --separate-stderr dry "$cuda" --tiny --rounds 1 --room 9 --peers ./peer eager,graph "$ROOT/examples/miniature/model" guided lora1
    echo "$output"
    cat log
    [ "$(grep -cP '^time\t(lora1|guided)\t(eager|graph|ours)\t' <<< "$output")" -eq 6 ]
    # lora1 takes 2 x 4.5, guided 2 x 4
    [ "$(grep -n 'guided .* begins' log | head -n 1 | cut -d: -f1)" -gt "$(grep -n 'lora1 .* runs' log | tail -n 1 | cut -d: -f1)" ]
    rm log
    run -0 --separate-stderr dry "$cuda" --tiny --rounds 1 --room 17 --peers ./peer eager,graph "$ROOT/examples/miniature/model" guided lora1
    [ "$(grep -n 'guided .* begins' log | tail -n 1 | cut -d: -f1)" -lt "$(grep -n 'lora1 .* runs' log | head -n 1 | cut -d: -f1)" ]
}

@test "bench: what is not there is said" {
    run -2 --separate-stderr dry "$cuda" --tiny --profile nothing "$ROOT/examples/miniature/model"
    [[ $stderr == *"there is no row nothing"* ]]
}

@test "on_card: rows alone, where two of them go, the table, and choices that another run takes over" {
    mkdir bin
    ln -s "$cuda" "$table" bin
    export SD_EMULATE_CAPABILITY=90 SD_CUDA_LIBS=$programs/tests/fake BENCH_OPTIONS="--tiny --rounds 1" PEERS='' BENCH_MODEL=$ROOT/examples/miniature/model
    BENCH_ROWS=lora1 run -0 --separate-stderr dry "$ROOT/tests/bench/on_card" "$PWD/bin/" one.md
    echo "$output" "$stderr"
    [ "$output" = "$(cat one.md)" ]
    [ "$(grep -c '^## Where \(lora1\|guided\) goes$' one.md)" -eq 2 ]
    # each share is of all that was timed
    awk -F '|' '/^## Where lora1/ { on = 1 } /^## Where guided/ { on = 0 } on && $2 !~ / all / { sum += $6 } END { exit !(sum > 99 && sum < 101) }' one.md
    grep -q '^profile	guided	conv2d forward	[0-9x]* -> [0-9]* k3	' one.txt
    # one file of choices, and the folder of what was compiled for them
    [ "$(tar -tzf one.tuning.tar.gz | grep -c '^\./[0-9a-f]\+$')" -eq 1 ]
    [ "$(tar -tzf one.tuning.tar.gz | grep -c '^\./[0-9a-f]*\.plans/[0-9a-f]')" -gt 10 ]
    [[ $stderr =~ tuning:\ ([0-9]+)\ choices,\ about ]]
    choices=${BASH_REMATCH[1]}
    [ "$choices" -gt 100 ]
    BENCH_ROWS=lora1 BENCH_TUNING=one.tuning.tar.gz run -0 --separate-stderr dry "$ROOT/tests/bench/on_card" "$PWD/bin/" two.md
    [[ $stderr == *"tuning: $choices choices, some or all from a run before"* ]]
    diff <(tar -tzf one.tuning.tar.gz | sort) <(tar -tzf two.tuning.tar.gz | sort)
}
