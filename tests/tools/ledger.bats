# What a step launches, counted on the emulated device where nothing runs (SD_EMULATE_DRY), libraries in place: properties of steps
# that are worth keeping, and the table that is made of the counts.
load ../helper
load ../training

programs=$(dirname "$(command -v sd-sample)")
cuda=$programs/emulate/tests/bench/cuda
export SD_TUNE=0 SD_EMULATE_CAPABILITY=90 SD_CUDA_LIBS=$programs/tests/fake

# dry NAME COMMAND ...: NAME.dry has what it launches
dry() { SD_EMULATE_DRY=$1.dry "${@:2}"; }
row() { dry "$1" "$cuda" --tiny --steps 4 --alone "$1" "$ROOT/examples/miniature/model"; }
# of the largest recording in NAME.dry: number, launches, how often it was replayed, how many kernels and calls ran outside of recordings
# or in others since it was made
step() {
    awk -F '\t' '$1 == "recording" { if ($3 >= most) { most = $3; number = $2; count = 0; beside = 0 } else beside += $3 }
        $1 == "replay" && $2 == number { count++ }
        $1 == "now" && $2 != "copy" && $2 != "fill" { beside++ }
        END { print number, most, count, beside }' "$1.dry"
}

@test "launches: a step of training is one recording, and no more than it was" {
    for row in lora1 ti; do
        row $row
        read -r _ launches replayed beside <<< "$(step $row)"
        echo "$row: $launches launches, replayed $replayed times, $beside beside"
        (( replayed == 2 && beside == 0 ))       # three updates, of which the first is recorded by nobody
    done
    read -r _ launches _ <<< "$(step lora1)"
    (( launches <= 431 ))
    read -r _ launches _ <<< "$(step ti)"
    (( launches <= 427 ))
}

@test "launches: a guided step is one recording, with the sampler's part, and no more than it was" {
    row guided
    read -r _ launches replayed beside <<< "$(step guided)"
    echo "$launches launches, replayed $replayed times, $beside beside"
    (( replayed == 3 && beside == 0 && launches <= 184 ))
}

@test "launches: a larger batch has no more of them" {
    row lora1
    row lora8
    read -r _ one _ <<< "$(step lora1)"
    read -r _ eight _ <<< "$(step lora8)"
    echo "$one $eight"
    (( one > 0 && one == eight ))
}

# of the update: noise, gradients' norm, optimizer
update() { awk -F '\t' '$1 == "recording" { n = 0 } $1 == "kernel" && $2 ~ /\/(update|noise|mse)\.cu$/ { n++ } $1 == "replay" { print n; exit }' <(sed -n "/^recording\t$1\t/,\$p" "$2.dry"); }
@test "launches: noise, loss and optimizer are as many for one adapter in a layer as for four" {
    for targets in to_q to_q,to_k,to_v,to_out.0; do
        dry $targets "$programs/emulate/sd-train-lora" -q --device cuda --dtype bf16 --model "$MODEL" --rank 2 --target-modules $targets --max-train-steps 3 \
            --output $targets.safetensors "$RECORDS/three.sd"
        read -r number launches replayed _ <<< "$(step $targets)"
        (( replayed > 0 ))
        echo "$targets: $launches launches, of which $(update "$number" $targets)"
        of_all+=("$launches") of_update+=("$(update "$number" $targets)")
    done
    (( of_all[1] > of_all[0] && of_update[0] > 0 && of_update[1] == of_update[0] ))
}

@test "ledger: launches by kind, operations and bytes of calls, the floor" {
    tab() { printf '%s\n' "$@" | tr '|' '\t'; }
    tab 'now|kernel|a.cu|k|1x1x1|1x1x1|0' 'recording|1|1' 'library|an attempt' 'replay|1' 'recording|2|7' \
        'kernel|kernels/silu.cu|(k<N, T>)|8x1x1|128x1x1|0' 'kernel|kernels/silu.cu|(k<N, T>)|8x2x1|128x1x1|0' \
        'library|gemm 320x8192x640/14>14 tn bias add ld 640,640,320,320 x1,0,0,0,0 al 16,16,16,16' \
        'library|conv 0 BF16 2x64x64x320>64x64x640 k 3x3/1 pad 1,1,1,1 bias residual' \
        'library|attention BF16 2x8x4096x77x40 ld 320,320,320,320,0 d 0,0,0' \
        'library|attention back BF16 2x8x4096x77x40 ld 320,320,320,320,320 d 320,320,320' 'copy|1000000' 'replay|2' 'replay|2' > lora1.dry
    run -0 --separate-stderr awk -f "$ROOT/tests/bench/ledger.awk" lora1.dry
    echo "$output"
    # 7 launches; 3.355 + 30.199 + 0.807 + 2.019 GFLOP
    grep -qxF '| lora1 | 7 | 2 | 1 | 1 | 2 | 1 | 0.036 | 0.09 | 0.05 | 0.06 |' <<< "$output"
    # bytes: 2 * (320 * 640 + 640 * 8192 + 2 * 320 * 8192 + 320), over 4.3e12: more than operations over 790e12
    grep -qxF '| 1 | gemm 320x8192x640 BF16 tn bias add |  | 3.4 | 21.38 | 5.0 |' <<< "$output"
    # 2 * (2 * 64^2 * (320 + 2 * 640) + 9 * 320 * 640) + 4 * 640; operations 2 * 2 * 64^2 * 9 * 320 * 640, over 790e12
    grep -qxF '| 1 | convolution 2x64x64x320>64x64x640 BF16 3x3/1 bias residual |  | 30.2 | 29.90 | 38.2 |' <<< "$output"
    grep -qxF '| 1 | attention 2x8x4096x77x40 BF16 |  | 0.8 | 10.95 | 2.5 |' <<< "$output"
    grep -qxF '| 1 | attention, gradient 2x8x4096x77x40 BF16 |  | 2.0 | 21.63 | 5.0 |' <<< "$output"
    grep -qxF '| 2 | silu: `k<N, T>` | 1 x 8 of 128, 1 x 8x2 of 128 | – | – | – |' <<< "$output"
    echo "recording	1	1
library	nothing known
replay	1" > lora1.dry
    run -1 --separate-stderr awk -f "$ROOT/tests/bench/ledger.awk" lora1.dry
    [[ $stderr == *"nothing known"* && -z $output ]]
}

@test "ledger: rows of a model, from nothing" {
    BENCH_MODEL=$ROOT/examples/miniature/model BENCH_OPTIONS=--tiny run -0 --separate-stderr "$ROOT/tests/bench/ledger" "$programs" guided decode512
    echo "$output"
    [[ $(grep -c '^| \(guided\|decode512\) | [1-9]' <<< "$output") == 2 && $output == *"nothing measured"* ]]
}
