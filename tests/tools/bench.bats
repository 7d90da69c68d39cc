# What `make bench-cuda` runs: cuda on the emulated device, at tiny sizes, with a peer that says what it is told; its table.
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

@test "bench table: what is no measurement is refused" {
    for line in 'time\tlora1\tours\tfast' 'time\tlora1\tours\t0' 'time\tlora1\tours\tnan' 'tame\tlora1\tours\t1' 'time\tlora1'; do
        run -3 --separate-stderr "$table" <<< "$(printf '%b' "$line")"
        [ -n "$stderr" ] && [ -z "$output" ]
    done
    run -3 --separate-stderr "$table" < /dev/null
    is_line 'table: no measurement'
}

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
    seconds=60
    if ldd "$cuda" | grep -q asan; then seconds=600; fi
    run -0 --separate-stderr "$cuda" --tiny --rounds 2 --seconds $seconds --peers ./peer eager,slow,absent,dead "$ROOT/examples/miniature/model" text lora1
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
    run -0 --separate-stderr "$cuda" --tiny --rounds 1 --room 9 --peers ./peer eager,graph "$ROOT/examples/miniature/model" guided lora1
    echo "$output"
    cat log
    [ "$(grep -cP '^time\t(lora1|guided)\t(eager|graph|ours)\t' <<< "$output")" -eq 6 ]
    # lora1 takes 2 x 4.5, guided 2 x 4
    [ "$(grep -n 'guided .* begins' log | head -n 1 | cut -d: -f1)" -gt "$(grep -n 'lora1 .* runs' log | tail -n 1 | cut -d: -f1)" ]
    rm log
    run -0 --separate-stderr "$cuda" --tiny --rounds 1 --room 17 --peers ./peer eager,graph "$ROOT/examples/miniature/model" guided lora1
    [ "$(grep -n 'guided .* begins' log | tail -n 1 | cut -d: -f1)" -lt "$(grep -n 'lora1 .* runs' log | head -n 1 | cut -d: -f1)" ]
}
