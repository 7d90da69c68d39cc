#!/usr/bin/env bats
# --dtype bf16 in the programs that compute: what comes out is near f32 and not f32, is the same when run again or resumed, and
# never meets results of f32.  How near: tests/ops; here the whole chain.
load ../helper
load ../training

M=$BATS_TEST_DIRNAME/../../examples/miniature/model

has_bf16() {
    if ! grep -qw avx512_bf16 /proc/cpuinfo; then skip "this machine has no AVX512_BF16"; fi
}
# difference A B: mean of |a - b| over the 64x64 pixels of two pictures in streams
difference() {
    perl -0777 -e 'for (@ARGV) { open F, "<:raw", $_; $s = <F>; $i = index $s, "\xc5\x30\x00"; die "no pixels" if $i < 0;
            push @p, [unpack "C*", substr $s, $i + 3, 12288] }
        $sum += abs($p[0][$_] - $p[1][$_]) for 0 .. 12287; print $sum / 12288' "$1" "$2"
}

@test "without products of bf16, or with fewer instructions asked for, bf16 is refused in one line" {
    SD_ISA=avx2 run -2 --separate-stderr sd-sample --model "$M" --prompt x --output x.png --dtype bf16
    [[ $stderr == "sd-sample: --dtype: bf16: needs a processor with AVX512_BF16, "* ]]
    run -2 --separate-stderr sd-sample --model "$M" --prompt x --output x.png --dtype f16
    is_line "sd-sample: --dtype: f16: the CPU computes in f32 or bf16"
    [ ! -e x.png ]
}

@test "pictures in bf16 are near those in f32, and the same bytes for any number of threads" {
    has_bf16
    for d in f32 bf16; do
        sd-sample -q --model "$M" --prompt "a red circle" --num-inference-steps 20 --dtype $d --output - > $d.sd
    done
    sd-sample -q --model "$M" --prompt "a red circle" --num-inference-steps 20 --dtype bf16 --threads 1 --output - > again.sd
    cmp bf16.sd again.sd
    d=$(difference f32.sd bf16.sd)
    echo "mean difference $d of 255"
    jq -e -n "$d > 0.05 and $d < 3"
}

# asked ARGUMENT...: becomes the program, so that signals reach it
asked() {
    exec sd-train-lora -q --threads 1 --model "$MODEL" --rank 2 --max-train-steps 100 --log log --output out.safetensors "$@" "$RECORDS/three.sd"
}

@test "training in bf16: learns as in f32 to rounding, resumes to the same bytes, and not in f32" {
    has_bf16
    (asked)
    mv out.safetensors f32
    mv log f32.log
    (asked --dtype bf16)
    mv out.safetensors whole
    mv log bf16.log
    [ "$(values f32)" != "$(values whole)" ]
    jq -s -e '[range(100) as $i | (.[$i].loss / .[$i + 100].loss - 1 | fabs) < 0.02] | all' f32.log bf16.log
    metadata whole | grep -q '"dtype[^,]*bf16'
    (asked --dtype bf16) & pid=$!
    for ((i = 0; i < 500; i++)); do if [ -e log ] && [ "$(wc -l < log)" -ge 2 ]; then break; fi; sleep 0.01; done
    kill -TERM "$pid"
    wait "$pid" || true
    [ -s out.safetensors.state ]
    run -2 --separate-stderr bash -c "$(declare -f asked); asked --resume"
    is_line "sd-train-lora: out.safetensors.state: belongs to another run: dtype: \"bf16\" in the state, \"f32\" now"
    (asked --dtype bf16 --resume)
    cmp whole out.safetensors
}

@test "the cache keeps latents of bf16 and of f32 apart" {
    has_bf16
    export XDG_CACHE_HOME=$PWD/cache
    sd-crop -q --resolution 48x40 "$DATA/images/rgb.png" > one.sd
    for found in "1 encoded, 0" "0 encoded, 1"; do
        for d in bf16 f32; do
            run -0 --separate-stderr sd-encode-latents -j --model "$DATA/models/sd1" --dtype $d one.sd
            [[ $stderr == *": $found from the cache" ]]
            sd-encode-latents -q --model "$DATA/models/sd1" --dtype $d one.sd > $d.sd
        done
    done
    run ! cmp -s bf16.sd f32.sd
}
