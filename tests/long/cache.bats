#!/usr/bin/env bats
# The cache of latents: a thousand flipped bits, forty times eight writers at once, some of them killed.

load ../helper
load ../training

@test "a bit flipped in each of a hundred entries, ten times: each is caught" {
    flip_in_entries 50 10
}

@test "eight writers at once, forty times, every fifth killed with -9: all the same bytes, no entry torn" {
    for n in 1 2 3 4 5 6; do sd-crop -q --resolution "40x$((8 * n))" "$DATA/images/rgb.png" "$DATA/images/la.png" > "$n.sd" 2> /dev/null; done
    sd-encode-latents -q --threads 1 --model "$MODEL" --cache alone ./*.sd > want.out
    for ((round = 0; round < 40; round++)); do
        rm -rf shared
        pids=()
        for i in 1 2 3 4 5 6 7 8; do
            sd-encode-latents -q --threads 1 --model "$MODEL" --cache shared ./*.sd > "out$i" 2> "err$i" & pids+=($!)
        done
        if ((round % 5 == 4)); then sleep "0.0$((RANDOM % 10))"; kill -9 "${pids[0]}" "${pids[1]}" 2> /dev/null || true; fi
        for i in 1 2 3 4 5 6 7 8; do
            status=0
            wait "${pids[i - 1]}" || status=$?
            if ((status == 137)); then continue; fi
            ((status == 0))
            cmp want.out "out$i"
            [ ! -s "err$i" ]
        done
        diff -r -x hashes alone shared
    done
}
