#!/usr/bin/env bats
# On a device q, k and v of one x are one product, and an adapter rides in the columns of its layer's: the same numbers as layer
# by layer (SD_TOGETHER=0), to rounding.
load ../helper
load ../training

emulated() { PATH=$BUILD/emulate:$PATH SD_EMULATE_STRICT=0 "$@"; }
apart() { SD_TOGETHER=0 emulated "$@"; }
# near A B LIMIT: of two files of latents, |a - b| / |b|
near() {
    perl -0777 -e 'for (@ARGV[0, 1]) { open F, "<:raw", $_ or die; $s = <F>; push @p, [unpack "f<*", substr $s, 8 + unpack("Q<", $s)] }
        for (0 .. $#{$p[0]}) { $d += ($p[0][$_] - $p[1][$_]) ** 2; $n += $p[1][$_] ** 2 }
        $e = sqrt($d / $n); print "$e\n"; exit !($n > 0 && $e <= $ARGV[2])' "$@"
}

@test "training on a device: layers together and apart, adapters of UNet and text encoder, tokens, convolutions' projections" {
    asked() {
        lora -q --overwrite --max-train-steps 6 --learning-rate 1e-3 --train-text-encoder --text-encoder-learning-rate 1e-3 --seed 2 \
            --target-modules to_q,to_k,to_v,to_out.0,ff.net.0.proj,ff.net.2,proj_in,proj_out --dtype f32 --device cuda --log log
    }
    emulated asked
    mv log one.log
    mv out.safetensors one.safetensors
    apart asked
    jq -s -e '[range(6) as $i | ((.[$i].loss / .[$i + 6].loss - 1 | fabs) < 1e-5),
        ((.[$i].grad_norm / .[$i + 6].grad_norm - 1 | fabs) < 1e-4)] | length == 12 and all' one.log log
    near one.safetensors out.safetensors 1e-3
    ! cmp -s one.safetensors out.safetensors        # not one path taken twice
}

@test "training on a device: time projections and upsamplers' convolutions, as on the CPU" {
    asked() {
        plain -q --overwrite --max-train-steps 5 --learning-rate 1e-2 --conv-rank 2 --seed 2 \
            --target-modules time_emb_proj,upsamplers.0.conv --dtype f32 --log log "$@"
    }
    emulated asked --device cuda
    mv log one.log
    mv out.safetensors one.safetensors
    apart asked --device cuda
    mv log other.log
    mv out.safetensors other.safetensors
    asked --device cpu
    jq -s -e '[range(5) as $i | (.[$i], .[$i + 5]) as $on | .[$i + 10] as $cpu | (($on.loss / $cpu.loss - 1 | fabs) < 1e-4),
        (($on.grad_norm / $cpu.grad_norm - 1 | fabs) < 1e-3)] | length == 20 and all' one.log other.log log
    near one.safetensors out.safetensors 1e-3
    near other.safetensors out.safetensors 1e-3
    jq -s -e '.[0].loss != .[4].loss' log
}

@test "drawing on a device: several adapters, some layers with one of them; together, apart and on the CPU" {
    draw() {
        local to=$1
        shift
        sd-sample -q --model "$MODEL" --prompt 'a photo of a cat' --num-inference-steps 3 --overwrite --save-latents "$to" "$@"
    }
    plain -q --max-train-steps 3 --learning-rate 1e-2 --target-modules to_q,to_v
    mv out.safetensors a.safetensors
    plain -q --max-train-steps 3 --learning-rate 1e-2 --target-modules to_k,to_v,to_out.0,ff.net.2 --rank 3 --seed 7
    mv out.safetensors b.safetensors
    sd-merge -q --save-dtype f32 --format peft --output c.safetensors a.safetensors:0.8 b.safetensors:0.5
    draw without --device cpu
    draw cpu --device cpu --lora a.safetensors:0.8 --lora b.safetensors:0.5
    draw joined --device cpu --lora c.safetensors
    emulated draw one --device cuda --dtype f32 --lora a.safetensors:0.8 --lora b.safetensors:0.5
    apart draw other --device cuda --dtype f32 --lora a.safetensors:0.8 --lora b.safetensors:0.5
    near joined cpu 2e-5
    near one cpu 1e-4
    near other cpu 1e-4
    run ! near without cpu 1e-3
}
