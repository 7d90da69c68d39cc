#!/usr/bin/env bats
# sd-sample: options, outputs, faults.  The numbers are compared with diffusers' in tests/models/sample.c.
load ../helper

setup_file() {
    local data=$BATS_TEST_DIRNAME/../data m
    # the tiny models under a text encoder that fits the tiny tokenizer
    for m in sd1 sd2; do
        cp -r "$data/models/$m" "$BATS_FILE_TMPDIR"
        rm -r "$BATS_FILE_TMPDIR/$m/text_encoder"
        cp -r "$data/sample/$m/." "$BATS_FILE_TMPDIR/$m"
        cp "$data"/tokenizer/tiny/{vocab.json,merges.txt} "$BATS_FILE_TMPDIR/$m/tokenizer"
    done
    export MODELS=$BATS_FILE_TMPDIR XDG_CACHE_HOME=$BATS_FILE_TMPDIR/cache
    export OMP_NUM_THREADS=1        # more threads only wait for each other here
}

# SD2's scheduler settings are complete: no warning.  Two steps; later options win.
sample() {
    sd-sample --model "$MODELS/sd2" --num-inference-steps 2 "$@"
}

# The settings inside a picture, as its readers find them: PNG's text chunk, or EXIF's UserComment in UTF-16.
settings() {
    case $1 in
        *.png) png_text "$1" ;;
        *) LC_ALL=C tr -d '\0' < "$1" | LC_ALL=C sed -n '/UNICODE/,/Version/p' | LC_ALL=C sed '1s/.*UNICODE//; s/\(Version: sd-tools [0-9.]*\).*/\1/' ;;
    esac
}
png_text() {
    LC_ALL=C tr '\0' '\n' < "$1" | LC_ALL=C sed -n '/^.*tEXtparameters$/,/Version/p' | LC_ALL=C sed '1d; s/\(Version: sd-tools [0-9.]*\).*/\1/'
}

@test "prompt slowest, image fastest: files, seeds, latents" {
    run -0 --separate-stderr sample --prompt 'a dog' --prompt 'a cat' --num-images 2 --output-dir out --seed 7 -j --save-latents l
    [[ $(cd out && echo *) == "00000.png 00001.png 00002.png 00003.png" && -s l ]]
    jq -es 'map(select(.id)) | map([.prompt, .seed, .picture]) ==
        [["a dog",7,"00000.png"],["a dog",8,"00001.png"],["a cat",9,"00002.png"],["a cat",10,"00003.png"]]' <<< "$output"
    jq -es '.[0] == {"sd":1,"holds":"pictures"} and .[-1] == {"end":4}
        and .[1].pixel_values == {"dtype":"U8","shape":[24,24,3]}' <<< "$output"
    # the third is what the second prompt draws alone with its seed
    run -0 --separate-stderr sample --prompt 'a cat' --seed 9 --output one.png
    cmp one.png out/00002.png
    nothing_left
}

@test "prompts from files: a line each, empty lines and carriage returns left out, after those given" {
    printf '\xef\xbb\xbfa dog\r\n\n  \na cat' > prompts.txt
    run -0 --separate-stderr sample --prompt first -j prompts.txt
    [[ $(jq -r 'select(.id).prompt' <<< "$output") == $'first\na dog\na cat' ]]
    : > none.txt
    run -2 --separate-stderr sample -j none.txt
    [[ $stderr == "sd-sample: warning: none.txt: no prompt in it"$'\n'"sd-sample: no prompt: "* ]]
    run -3 --separate-stderr sample -j missing.txt
    is_line "sd-sample: missing.txt: No such file or directory"
    head -c 100 /dev/zero > zeros
    run -3 --separate-stderr sample -j zeros
    is_line "sd-sample: zeros: neither lines of text nor records"
}

@test "records in: prompt, else caption; what told of the photo goes, the rest passes through" {
    sd-crop -q --resolution 32 "$DATA/sample/init.png" | sd-caption --caption 'a dog' > in.sd
    run -0 --separate-stderr sample --output - in.sd
    run -0 --separate-stderr bash -c 'sd-sample --model "$1" --num-inference-steps 2 -j < in.sd' - "$MODELS/sd2"
    jq -es '.[1] | .prompt == "a dog" and .caption == "a dog" and .seed == 0 and (has("source") or has("crop_top_left") | not)
        and .pixel_values.shape == [24,24,3]' <<< "$output"
    # and a picture is what sd-crop takes: the chain closes
    sample --output - in.sd | sd-crop -q -j --resolution 24 > again.json
    jq -es '.[1].pixel_values.shape == [24,24,3]' again.json
    head -c 200 in.sd > cut.sd
    run -3 --separate-stderr sample -j cut.sd
    [[ $stderr == "sd-sample: cut.sd: "* && -z $output ]]
}

@test "negative prompts: one for all, or one each" {
    run -0 --separate-stderr sample --prompt a --prompt b --negative-prompt x --output-dir all
    run -0 --separate-stderr sample --prompt a --prompt b --negative-prompt x --negative-prompt x --output-dir each
    run -0 --separate-stderr sample --prompt a --prompt b --negative-prompt x --negative-prompt y --output-dir other
    cmp all/00000.png each/00000.png
    cmp all/00001.png each/00001.png
    run -1 cmp all/00001.png other/00001.png
    run -2 --separate-stderr sample -j --prompt a --prompt b --prompt c --negative-prompt x --negative-prompt y
    is_line "sd-sample: --negative-prompt: 2 given for 3 prompts: give one, or one for each"
    run -0 --separate-stderr sample -j --prompt a --negative-prompt x --guidance-scale 1
    is_line "sd-sample: warning: --negative-prompt: has no effect with --guidance-scale 1"
}

@test "the same seed gives the same bytes, for any number of threads; another seed does not" {
    run -0 sample --prompt 'a dog' --output a.png --save-latents a --sampler euler_a
    run -0 sample --prompt 'a dog' --output b.png --save-latents b --sampler euler_a
    run -0 env OMP_NUM_THREADS=3 sd-sample --model "$MODELS/sd2" --num-inference-steps 2 --prompt 'a dog' --output c.png --save-latents c --sampler euler_a
    run -0 sample --prompt 'a dog' --output d.png --save-latents d --sampler euler_a --threads 2
    run -0 sample --prompt 'a dog' --output e.png --save-latents e --sampler euler_a --seed 1
    cmp a b && cmp a c && cmp a d && cmp a.png b.png && cmp a.png c.png && cmp a.png d.png
    run -1 cmp a e
}

@test "settings inside: A1111's text in PNG and JPEG" {
    cp "$DATA/lora/sd2.kohya.safetensors" toy.safetensors
    run -0 --separate-stderr sample --prompt 'a (dog:1.2)' --negative-prompt 'a cat' --seed 5 --sampler dpmpp_2m_karras --clip-skip 1 \
        --guidance-scale 6.5 --guidance-rescale 0.7 --rng torch --lora toy.safetensors:0.5 --init-image "$DATA/sample/init.png" \
        --strength 0.6 --width 32 --height 24 --output a.png
    [[ $stderr == "sd-sample: warning: $DATA/sample/init.png: 56x40 is stretched to 32x24" ]]
    hash=$(settings a.png | sed -n 's/.*Model hash: \([0-9a-f]*\),.*/\1/p')
    [[ ${#hash} == 10 ]]
    lora=$(tail -c "+$((9 + $(od -An -tu8 -N8 toy.safetensors)))" toy.safetensors | sha256sum | cut -c1-12)
    expected="a (dog:1.2)
Negative prompt: a cat
Steps: 2, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 5, Size: 32x24, Model hash: $hash, Denoising strength: 0.6, Clip skip: 2, CFG Rescale: 0.7, RNG: CPU, Lora hashes: \"toy: $lora\", Version: sd-tools $(sd-sample --version | sed 's/.* //')"
    [ "$(settings a.png)" = "$expected" ]
    run -0 --separate-stderr sample --prompt 'a dog' --output a.jpg
    [ "$(settings a.jpg)" = "a dog
Steps: 2, Sampler: DDIM, CFG scale: 7.5, Seed: 0, Size: 24x24, Model hash: $hash, Version: sd-tools $(sd-sample --version | sed 's/.* //')" ]
    # a single file is named by its own hash, as A1111 does
    run -0 bash -c 'sd-sample -q --model "$1"/sd1 --num-inference-steps 1 --prompt a --output b.png' - "$MODELS"
    [[ $(settings b.png) == *", Model hash: "* ]]
    # no path and no date is inside
    run -1 grep -aq "$MODELS" a.png
}

@test "adapters: FILE:SCALE, scale 0 draws as without, folders of PEFT, several" {
    L=$DATA/lora/sd2.kohya.safetensors
    run -0 sample --prompt 'a dog' --save-latents base
    run -0 sample --prompt 'a dog' --save-latents zero --lora "$L:0"
    run -0 sample --prompt 'a dog' --save-latents one --lora "$L"
    run -0 sample --prompt 'a dog' --save-latents also --lora "$L:1.0"
    run -0 sample --prompt 'a dog' --save-latents half --lora "$L:0.5"
    run -0 sample --prompt 'a dog' --save-latents halves --lora "$L:0.25" --lora "$DATA/lora/sd2.peft:0.25"
    cmp base zero && cmp one also
    run -1 cmp base one
    run -1 cmp one half
    run -1 cmp halves base
    # a file whose own name holds the colon wins
    cp "$L" 'x:0.5'
    run -0 sample --prompt 'a dog' --save-latents colon --lora 'x:0.5'
    cmp one colon
}

@test "<lora:NAME:SCALE> in prompts, looked up in --lora-dir" {
    mkdir dir && cp "$DATA/lora/sd2.kohya.safetensors" dir/toy.safetensors
    run -0 sample --prompt 'a dog' --save-latents want --lora dir/toy.safetensors:0.8
    run -0 --separate-stderr sample --prompt 'a dog<lora:toy:0.8>' --save-latents got --lora-dir dir --output got.png
    [[ -z $stderr ]]
    cmp want got
    [[ $(settings got.png | head -n 1) == 'a dog<lora:toy:0.8>' ]]
    run -2 --separate-stderr sample -j --prompt 'a dog<lora:toy:0.8>'
    is_line "sd-sample: --lora-dir: a prompt asks for <lora:toy>: say where adapters are"
    run -3 --separate-stderr sample -j --prompt '<lora:cat>' --lora-dir dir
    is_line "sd-sample: <lora:cat>: <lora:cat>: no such adapter in dir"
    run -3 --separate-stderr sample -j --prompt '<lora:../dir/toy>' --lora-dir dir
    is_line "sd-sample: <lora:../dir/toy>: <lora:../dir/toy>: a name, not a path"
    run -0 --separate-stderr sample -j --prompt 'a <hypernet:x>' --negative-prompt 'b <lora:toy>' --lora-dir dir
    [[ $stderr == *"<hypernet:x> is not known here, left out"* && $stderr == *"<lora:toy> means nothing in a negative prompt"* ]]
    # as diffusers, nothing is read out of a prompt
    run -0 --separate-stderr sample -j --prompt '<lora:toy>' --prompt-syntax plain
}

@test "prompts with adapters of their own: each picture is that of a run of its own" {
    mkdir dir && cp "$DATA/lora/sd2.kohya.safetensors" dir/toy.safetensors
    cp "$DATA/lora/sd2.diffusers.safetensors" dir/doll.safetensors
    printf '%s\n' 'a dog' 'a dog <lora:toy:0.8>' 'a cat <lora:toy:0.8>' 'a dog <lora:toy:0.3:0.9>' \
        'a dog <lora:toy:0.5><lora:doll:0.25>' 'a dog' > lines
    hash() { tail -c "+$((9 + $(od -An -tu8 -N8 "$1")))" "$1" | sha256sum | cut -c1-12; }
    for more in "--lora dir/doll.safetensors:0.3" ''; do
        # shellcheck disable=SC2086
        run -0 --separate-stderr sample --overwrite --lora-dir dir $more --output-dir all --save-latents all.latents lines
        [[ -z $stderr ]]
        for k in 0 1 2 3 4 5; do
            # shellcheck disable=SC2086
            run -0 sample --overwrite --lora-dir dir $more --seed "$k" --prompt "$(sed -n "$((k + 1))p" lines)" --output one.png
            cmp one.png "all/0000$k.png"
        done
    done
    # the largest difference of latents: another batch rounds another way
    run -0 sample --lora-dir dir --batch-size 4 --save-latents batches.latents lines
    perl -e 'for (@ARGV) { open F, "<:raw", $_; local $/; $s = <F>; push @x, [unpack "f<*", substr $s, 8 + unpack "Q<", $s] }
        for (0 .. $#{$x[0]}) { $d = abs $x[0][$_] - $x[1][$_]; $most = $d if $d > $most }
        exit !(@{$x[0]} == @{$x[1]} && @{$x[0]} > 500 && $most < 1e-4)' all.latents batches.latents
    run -1 cmp -s all/00001.png all/00003.png
    [[ $(settings all/00000.png) != *Lora* && $(settings all/00005.png) != *Lora* ]]
    [[ $(settings all/00003.png) == *"Lora hashes: \"toy: $(hash dir/toy.safetensors)\""* ]]
    [[ $(settings all/00004.png) == *"Lora hashes: \"toy: $(hash dir/toy.safetensors), doll: $(hash dir/doll.safetensors)\""* ]]
    run -3 --separate-stderr sample -j --prompt 'a' --prompt '<lora:cat>' --lora-dir dir
    is_line "sd-sample: <lora:cat>: <lora:cat>: no such adapter in dir"
}

# a learned token of 20 numbers (SD2's text encoder here), 2 vectors: header, then F32 data
embedding() {
    local header='{"emb_params":{"dtype":"F32","shape":[2,'$2'],"data_offsets":[0,'$((8 * $2))']}}' i
    {
        printf "\\x$(printf %02x ${#header})\\0\\0\\0\\0\\0\\0\\0%s" "$header"
        for ((i = 0; i < 2 * $2; i++)); do printf '\0\0\200\277'; done
    } > "$1"
}

@test "embeddings: the token by option, or the stem; a prompt without it draws as before" {
    embedding toy.safetensors 20
    run -0 --separate-stderr sample --prompt 'a dog' --save-latents base
    run -0 --separate-stderr sample --prompt 'a dog' --save-latents unsaid --embedding 'toy.safetensors:sks:x'
    is_line "sd-sample: warning: --embedding: no prompt says sks:x"
    cmp base unsaid
    run -0 --separate-stderr sample --prompt 'a dog sks:x' --save-latents said --embedding 'toy.safetensors:sks:x' --output a.png
    [[ -z $stderr ]]
    [[ $(settings a.png) == *"TI hashes: \"sks:x: $(sha256sum toy.safetensors | cut -c1-10)\""* ]]
    run -0 --separate-stderr sample --prompt 'a dog toy' --save-latents stem --embedding toy.safetensors
    cmp said stem
    run -0 --separate-stderr sample --prompt 'a dog sks:x' --save-latents words
    run -1 cmp said words
    run -3 --separate-stderr sample -j --prompt a --embedding 'toy.safetensors:ill</w>'
    [[ $stderr == "sd-sample: toy.safetensors: "* ]]
    run -3 --separate-stderr sample -j --prompt a --embedding toy.safetensors:
    is_line "sd-sample: toy.safetensors: a token without a name"
    embedding wide.safetensors 24
    run -3 --separate-stderr sample -j --prompt a --embedding wide.safetensors
    is_line "sd-sample: wide.safetensors: vectors of 24 numbers, this model's text encoder is 20 wide"
    head -c 100 toy.safetensors > cut.safetensors
    run -3 --separate-stderr sample -j --prompt a --embedding cut.safetensors
    [[ $stderr == "sd-sample: cut.safetensors: "* ]]
}

@test "prompt syntax: weights count only in a1111; plain cuts and says what" {
    run -0 sample --prompt 'a (dog:1.4)' --save-latents a
    run -0 sample --prompt 'a dog' --save-latents b
    run -1 cmp a b
    run -0 sample --prompt 'a dog' --prompt-syntax plain --save-latents c
    cmp b c
    long='a big red dog on a small blue box in the old town'
    run -0 --separate-stderr sample --prompt "$long" --save-latents d
    [[ -z $stderr ]]
    run -0 --separate-stderr sample --prompt "$long" --save-latents e --prompt-syntax plain
    [[ $stderr == "sd-sample: warning: $long: "*" tokens do not fit and are cut off: "*town* ]]
    run -1 cmp d e
    run -3 --separate-stderr sample -j --prompt $'a\xffb'
    [[ $stderr == 'sd-sample: a\xffb: not UTF-8 at byte 1' ]]
}

@test "prompts of different lengths in one run draw as alone" {
    long='a big red dog on a small blue box in the old town'
    run -0 sample --prompt a --prompt "$long" --prompt b --batch-size 3 --output-dir all
    run -0 sample --prompt "$long" --seed 1 --output one.png
    cmp one.png all/00001.png
}

@test "the sheet: other pictures in front, columns, scale" {
    run -0 --separate-stderr sample --prompt a --num-images 3 --sheet s.png --sheet-with "$DATA/sample/init.png" --sheet-columns 2 --sheet-scale 2
    # 2 columns of the widest, 2 x 56; 2 rows of 2 x 40 and a label
    run -0 --separate-stderr sd-crop -j --resolution 8 s.png
    jq -es '.[1].original_size == [2 * (80 + 12 + 8) + 8, 2 * (112 + 8) + 8]' <<< "$output"
    run -0 --separate-stderr sample --prompt a --prompt b --num-images 3 --sheet t.jpg
    run -0 --separate-stderr sd-crop -j --resolution 8 t.jpg
    jq -es '.[1].original_size == [2 * (24 + 12 + 8) + 8, 3 * (24 + 8) + 8]' <<< "$output"
    run -2 --separate-stderr sample --prompt a -j --sheet-scale 2
    is_line "sd-sample: --sheet: the other --sheet options have no effect without it"
    run -2 --separate-stderr sample --prompt a --sheet u.png --num-images 3000 --sheet-scale 16
    is_line "sd-sample: --sheet: 3000 pictures of 384x384 are too many for one sheet"
    run -3 --separate-stderr sample --prompt a --sheet u.png --sheet-with none.png
    is_line "sd-sample: none.png: No such file or directory"
    [[ ! -e u.png ]]
}

@test "previews in kitty and iTerm2; elsewhere it is said" {
    run -0 --separate-stderr env -u KITTY_WINDOW_ID TERM=xterm-kitty SD_PREVIEW_ANYWAY=1 sd-sample --model "$MODELS/sd2" --num-inference-steps 1 --prompt a --preview
    [[ $stderr == $'\e_Ga=T,f=100,m='[01]';iVBORw0KGgo'*$'\e\\' && -z $output ]]
    run -0 --separate-stderr env -u KITTY_WINDOW_ID TERM=xterm TERM_PROGRAM=iTerm.app SD_PREVIEW_ANYWAY=1 sd-sample --model "$MODELS/sd2" --num-inference-steps 1 --prompt a --preview
    [[ $stderr == $'\e]1337;File=inline=1;size='*':iVBORw0KGgo'*$'\a' ]]
    run -0 --separate-stderr env -u KITTY_WINDOW_ID -u TERM_PROGRAM TERM=dumb SD_PREVIEW_ANYWAY=1 sd-sample --model "$MODELS/sd2" --num-inference-steps 1 --prompt a --num-images 2 --preview
    is_line "sd-sample: warning: --preview: this terminal shows no pictures (kitty and iTerm2 do)"
    run -0 --separate-stderr sample --prompt a --preview
    is_line "sd-sample: warning: --preview: stderr is no terminal"
}

@test "noise from a file, and the noise of steps" {
    N=$DATA/sample/noise-sd2.safetensors
    at=(--prompt a --width 32 --height 24 --num-images 2 --noise "$N")
    run -0 sample "${at[@]}" --save-latents a
    run -0 sample "${at[@]}" --save-latents b --seed 9
    cmp a b
    run -0 sample "${at[@]}" --save-latents c --sampler euler_a --num-inference-steps 6
    run -0 sample "${at[@]}" --save-latents d --sampler euler_a --num-inference-steps 6 --seed 9
    cmp c d
    run -3 --separate-stderr sample "${at[@]}" -j --sampler euler_a
    is_line "sd-sample: $N: euler_a draws noise at every step: step_noise: shape [6, 2, 4, 12, 16], expected [2, 2, 4, 12, 16]"
    run -3 --separate-stderr sample --prompt a -j --noise "$N"
    is_line "sd-sample: $N: noise: shape [2, 4, 12, 16], expected [1, 4, 12, 12]"
    run -2 --separate-stderr sample "${at[@]}" -j --rng torch
    is_line "sd-sample: --rng: has no effect with --noise"
    # infinity in the first number
    { head -c "$((8 + $(od -An -tu8 -N8 "$N")))" "$N"; printf '\0\0\200\177'; tail -c "+$((8 + $(od -An -tu8 -N8 "$N") + 5))" "$N"; } > bad
    run -3 --separate-stderr sample --prompt a --width 32 --height 24 --num-images 2 -j --noise bad
    [[ $stderr == "sd-sample: bad: "*"noise: element 0 is not finite" ]]
}

@test "generators differ; spacing, sampler, steps, rescale, vae, tokenizer and config count" {
    run -0 sample --prompt 'a dog' --save-latents base
    run -0 sample --prompt 'a dog' --save-latents torch --rng torch
    run -0 sample --prompt 'a dog' --save-latents trailing --timestep-spacing trailing
    run -0 sample --prompt 'a dog' --save-latents pndm --sampler pndm
    run -0 sample --prompt 'a dog' --save-latents steps --num-inference-steps 3
    run -0 sample --prompt 'a dog' --save-latents rescaled --guidance-rescale 0.7
    run -0 sample --prompt 'a dog' --save-latents skip --clip-skip 1
    for f in torch trailing pndm steps rescaled skip; do run -1 cmp base "$f"; done
    echo '{"prompt": ["a dog"], "num-inference-steps": 3, "sampler": "ddim"}' > c.json
    run -0 sd-sample --model "$MODELS/sd2" --config c.json --save-latents config
    cmp steps config
    run -0 sample --prompt 'a dog' --save-latents same --tokenizer "$MODELS/sd2/tokenizer" --vae "$MODELS/sd2/vae"
    cmp base same
    run -2 --separate-stderr sample --prompt a -j --strength 0.5
    is_line "sd-sample: --strength: has no effect without --init-image"
    run -0 --separate-stderr sample --prompt a -j --guidance-scale 1 --guidance-rescale 0.5
    is_line "sd-sample: warning: --guidance-rescale: has no effect with --guidance-scale 1"
}

@test "img2img: a weak strength stays near the picture; a broken one is named" {
    S=(--prompt a --width 24 --height 24 --init-image "$DATA/sample/init.png" -q)
    run -0 sample "${S[@]}" --strength 0.5 --save-latents a
    run -0 sample "${S[@]}" --strength 1 --save-latents b
    run -1 cmp a b
    run -2 --separate-stderr sample "${S[@]}" --strength 0.3 -j
    is_line "sd-sample: ddim: strength: 0.3 of 2 steps leaves none"
    run -2 --separate-stderr sample "${S[@]}" --strength 0 -j
    head -c 300 "$DATA/sample/init.png" > cut.png
    run -3 --separate-stderr sample --prompt a -j --init-image cut.png
    is_line "sd-sample: cut.png: truncated PNG"
}

@test "existing outputs are refused before anything is loaded; --overwrite replaces" {
    for f in a.png s.png l 00001.png; do echo old > "$f"; done
    run -2 --separate-stderr sd-sample --model nowhere --prompt a --output a.png
    is_line "sd-sample: a.png: exists (use --overwrite)"
    run -2 --separate-stderr sd-sample --model nowhere --prompt a --sheet s.png
    is_line "sd-sample: s.png: exists (use --overwrite)"
    run -2 --separate-stderr sd-sample --model nowhere --prompt a --save-latents l
    is_line "sd-sample: l: exists (use --overwrite)"
    run -2 --separate-stderr sd-sample --model nowhere --prompt a --prompt b --output-dir .
    is_line "sd-sample: ./00001.png: exists (use --overwrite)"
    run -0 --separate-stderr sample --prompt a --output a.png --overwrite
    [[ $(head -c 4 a.png) == $'\x89PNG' ]]
    run -2 --separate-stderr sample --prompt a --output b.png --sheet b.png
    is_line "sd-sample: b.png: named for two outputs"
    mkdir d
    for words in "--output ./b.png --sheet b.png" "--output b.png --save-latents ./b.png" "--sheet b.png --save-latents d/../b.png" \
        "--prompt b --output-dir d --sheet d/00001.png" "--output-dir d --save-latents ./d//00000.png"; do
        # shellcheck disable=SC2086
        run -2 --separate-stderr sample --prompt a --overwrite $words
        [[ $stderr == "sd-sample: "*": named for two outputs" ]]
    done
    [ -z "$(ls d)" ]
    run -2 --separate-stderr sample --prompt a --prompt b --output b.png
    is_line "sd-sample: --output: 2 pictures need --output-dir"
    run -2 --separate-stderr sample --prompt a --output b.gif
    is_line "sd-sample: --output: b.gif: expected .png or .jpg"
    run -2 --separate-stderr sample --prompt a
    [[ $stderr == "sd-sample: nothing to do with the pictures: "* ]]
    run -2 --separate-stderr sd-sample --prompt a -j
    [[ $stderr == "sd-sample: --model: which model? "* ]]
    nothing_left
}

@test "places that cannot be written are named before anything is loaded" {
    touch file
    run -3 --separate-stderr sd-sample --model nowhere --prompt a --output none/a.png
    is_line "sd-sample: none/a.png: cannot be written: No such file or directory"
    run -3 --separate-stderr sd-sample --model nowhere --prompt a --output-dir file/x
    is_line "sd-sample: file/x: cannot be written: Not a directory"
    run -3 --separate-stderr sd-sample --model nowhere --prompt a --output-dir file
    is_line "sd-sample: file: cannot be written: Not a directory"
    run -3 --separate-stderr sd-sample --model nowhere --prompt a --output-dir /proc/none/x
    [[ $stderr == "sd-sample: /proc/none/x: cannot be written: "* || $EUID == 0 ]]
    mkdir folder.png
    for words in "--output folder.png" "--sheet folder.png" "--save-latents folder.png"; do
        # shellcheck disable=SC2086
        run -3 --separate-stderr sd-sample --model nowhere --prompt a --overwrite $words
        is_line "sd-sample: folder.png: is a directory"
    done
    # a run that does not begin makes no folder
    run -3 --separate-stderr sd-sample --model nowhere --prompt a --output-dir new/x
    is_line "sd-sample: nowhere: no such file or folder, nor a name of the form org/name[@revision]"
    run -2 sample --prompt a --width 63 --output-dir new/x
    run -3 sample --prompt $'\xff' --output-dir new/x
    [ ! -e new ]
    run -0 sample --prompt a --output-dir new/x/
    [ -s new/x/00000.png ]
    run -3 --separate-stderr sd-sample --model nowhere --prompt a --save-latents file/x
    is_line "sd-sample: file/x: cannot be written: Not a directory"
    run -3 --separate-stderr sd-sample --model nowhere --prompt a --sheet /proc/x.png
    [[ $stderr == "sd-sample: /proc/x.png: "* || $stderr == "sd-sample: nowhere: "* ]]
}

@test "a full disk is an error, and nothing half-written stays" {
    run -3 bash -c 'sd-sample -q --model "$1" --num-inference-steps 1 --prompt a -j > /dev/full' - "$MODELS/sd2"
    run -3 --separate-stderr bash -c 'sd-sample -q --model "$1" --num-inference-steps 1 --prompt a --output - > /dev/full' - "$MODELS/sd2"
    is_line "sd-sample: standard output: No space left on device"
    run -3 --separate-stderr bash -c 'ulimit -f 1; sd-sample -q --model "$1" --num-inference-steps 1 --prompt a --output a.png' - "$MODELS/sd2"
    [[ $stderr == "sd-sample: a.png: cannot be written: File too large" && ! -e a.png ]]
    run -3 --separate-stderr sd-sample -q --model "$MODELS/sd2" --num-inference-steps 1 --prompt a --save-latents /dev/full
    is_line "sd-sample: /dev/full: cannot be written: No space left on device"
    nothing_left
}

@test "sizes: not multiples, too small, absurd; memory too small" {
    run -2 --separate-stderr sample --prompt a -j --width 25
    is_line "sd-sample: --width, --height: 25x24: sides must be multiples of 2"
    run -2 --separate-stderr sample --prompt a -j --width 16385
    run -3 --separate-stderr sample --prompt a -j --width 16384 --height 16384 --batch-size 256 --num-images 256
    [[ $stderr == "sd-sample: memory: "*" MiB are needed, this machine has "*" MiB" ]]
    run -3 --separate-stderr sample --prompt a -j --memory 100K
    [[ $stderr == "sd-sample: --memory: "*" MiB are needed, 0.1 MiB allowed"* ]]
    run -0 --separate-stderr sample --prompt a -j --memory 1G
    run -2 --separate-stderr sample --prompt a -j --num-images 100000 --prompt b
    is_line "sd-sample: --num-images: 100000 of 2 prompts, at most 100000 pictures are drawn in one run"
}

@test "samplers and steps" {
    run -2 --separate-stderr sample --prompt a -j --sampler ddpm
    [[ $stderr == "sd-sample: --sampler: expected ddim|"*", found \"ddpm\"" ]]
    run -2 --separate-stderr sample --prompt a -j --num-inference-steps 1000
    is_line "sd-sample: ddim: num_inference_steps: 1000 reaches timestep 1000 (leading, steps_offset 1), the last is 999"
    run -2 --separate-stderr sample --prompt a -j --num-inference-steps 1001
    run -2 --separate-stderr sample --prompt a -j --clip-skip 3
    is_line "sd-sample: --clip-skip: 3, the text encoder has 2 layers"
    # the settings of the published SD1.5 say it; these do not
    run -0 --separate-stderr sd-sample --model "$MODELS/sd1" --num-inference-steps 1 --prompt a -j
    is_line "sd-sample: warning: $MODELS/sd1: its scheduler settings do not say clip_sample: ddim clips x0 to +-1, as its class does"
    cp -r "$MODELS/sd2" m
    jq '.odd_field = 1' "$MODELS/sd2/scheduler/scheduler_config.json" > m/scheduler/scheduler_config.json
    run -0 --separate-stderr sd-sample --model m --num-inference-steps 1 --prompt a -j
    is_line "sd-sample: m: scheduler settings not known here: odd_field"
    jq '.beta_schedule = "cubic"' "$MODELS/sd2/scheduler/scheduler_config.json" > m/scheduler/scheduler_config.json
    run -3 --separate-stderr sd-sample --model m --num-inference-steps 1 --prompt a -j
    [[ $stderr == *"beta_schedule: cubic, expected "* ]]
}

@test "models that are damaged, incomplete or not there" {
    run -3 --separate-stderr sd-sample --model nowhere --prompt a -j
    [[ $stderr == "sd-sample: nowhere: "* && ${#stderr_lines[@]} == 1 ]]
    cp -r "$MODELS/sd2" m
    rm -r m/vae
    run -3 --separate-stderr sd-sample --model m --prompt a -j
    [[ $stderr == "sd-sample: m: "*vae* && ${#stderr_lines[@]} == 1 ]]
    cp -r "$MODELS/sd2/vae" m
    f=m/unet/diffusion_pytorch_model-00001-of-00003.safetensors
    head -c 10000 "$MODELS/sd2/${f#m/}" > "$f"
    run -3 --separate-stderr sd-sample --model m --prompt a -j
    [[ $stderr == "sd-sample: m: "* && ${#stderr_lines[@]} == 1 && -z $output ]]
    cp "$MODELS/sd2/${f#m/}" "$f"
    rm m/unet/config.json
    run -3 --separate-stderr sd-sample --model m --prompt a -j
    [[ ${#stderr_lines[@]} == 1 ]]
    cp "$MODELS/sd2/unet/config.json" m/unet
    rm -r m/tokenizer
    run -3 --separate-stderr sd-sample --model m --prompt a -j
    [[ ${#stderr_lines[@]} == 1 ]]
    # another model's text encoder
    cp -r "$MODELS/sd2/tokenizer" m
    rm -r m/text_encoder && cp -r "$MODELS/sd1/text_encoder" m
    run -3 --separate-stderr sd-sample --model m --prompt a -j
    is_line "sd-sample: m: text_encoder/config.json: hidden_size 24, the UNet's cross_attention_dim is 20"
}

# the first number of a tensor of a safetensors file becomes a NaN (F16)
poison() {
    local n at
    n=$(od -An -tu8 -N8 "$1")
    at=$(tail -c +9 "$1" | head -c "$n" | jq --arg k "$2" '.[$k].data_offsets[0]')
    printf '\377\177' | dd of="$1" bs=1 seek="$((8 + n + at))" conv=notrunc status=none
}

@test "weights that are not finite: the module is named, nothing is written" {
    cp -r "$MODELS/sd1" m
    poison m/unet/diffusion_pytorch_model.safetensors mid_block.attentions.0.proj_in.weight
    run -3 --separate-stderr sd-sample -q --model m --num-inference-steps 2 --prompt a --output a.png
    is_line "sd-sample: m: step 1 of 2: unet.mid_block.attentions.0.proj_in: its result is not finite"
    cp "$MODELS/sd1/unet/diffusion_pytorch_model.safetensors" m/unet
    poison m/vae/diffusion_pytorch_model.safetensors decoder.mid_block.resnets.1.conv2.weight
    run -3 --separate-stderr sd-sample -q --model m --num-inference-steps 2 --prompt a --output a.png
    is_line "sd-sample: m: picture 0: vae.decoder.mid_block.resnets.1.conv2: its result is not finite"
    cp "$MODELS/sd1/vae/diffusion_pytorch_model.safetensors" m/vae
    poison m/text_encoder/model.safetensors encoder.layers.1.mlp.fc1.weight
    run -3 --separate-stderr sd-sample -q --model m --num-inference-steps 2 --prompt a --output a.png
    is_line "sd-sample: m: a: text_encoder.text_model.encoder.layers.1.mlp.fc1: its result is not finite"
    [[ ! -e a.png ]]
    nothing_left
}

@test "adapters of another model, damaged ones, ones that are not there" {
    L=$DATA/lora/sd1.kohya.safetensors
    run -3 --separate-stderr sample --prompt a --output a.png --lora "$L"
    [[ $stderr == "sd-sample: $L: "* && ${#stderr_lines[@]} == 1 && ! -e a.png ]]
    # layers that a larger model has
    LC_ALL=C sed 's/text_encoder\([a-z_.]*\)layers\.1\./text_encoder\1layers.9./g' "$DATA/lora/sd2.diffusers.safetensors" > deep.safetensors
    run -1 cmp -s deep.safetensors "$DATA/lora/sd2.diffusers.safetensors"
    run -3 --separate-stderr sample --prompt a --output a.png --lora deep.safetensors
    [[ $stderr == "sd-sample: --lora: "*" adapted layers are not in this model, the first is text_encoder.text_model.encoder.layers.9."* ]]
    head -c 5000 "$L" > cut.safetensors
    run -3 --separate-stderr sample --prompt a -j --lora cut.safetensors
    [[ $stderr == "sd-sample: cut.safetensors: "* && ${#stderr_lines[@]} == 1 ]]
    run -3 --separate-stderr sample --prompt a -j --lora none.safetensors:0.5
    [[ $stderr == "sd-sample: none.safetensors:0.5: "*"No such file or directory" ]]
    run -2 --separate-stderr sample --prompt a -j --lora "$L:strong"
    is_line "sd-sample: --lora: $L:strong: \"strong\" is not a scale"
}

@test "--plan: JSON, and nothing else is done" {
    run -0 --separate-stderr sample --prompt a --output-dir out --num-images 5 --batch-size 2 --plan
    jq -e '.peak_bytes >= .arena_bytes + .packed_bytes and .arena_bytes >= .activations_bytes and .weights_bytes > 0
        and .flops > 0 and .decode_flops > 0 and .model_calls == 2 and .pictures == 5' <<< "$output"
    [[ ! -e out ]]
    touch there.png                     # as trainers: a plan asks about the work, not about its outputs
    sample --prompt a --output there.png --plan | jq -e .peak_bytes
    [ ! -s there.png ]
    one=$(sample --prompt a --plan | jq .arena_bytes) five=$(sample --prompt a --num-images 5 --batch-size 5 --plan | jq .arena_bytes)
    ((five > one))
}

@test "--plan is near the anonymous memory really taken" {
    counts_memory sd-sample
    big=(--prompt a --width 512 --height 512 --num-inference-steps 1 --model "$MODELS/sd1" -q)
    plan=$(sd-sample "${big[@]}" --plan | jq .peak_bytes)
    sd-sample "${big[@]}" --output big.png &
    pid=$! most=0
    while kill -0 "$pid" 2> /dev/null; do
        now=$(sed -n 's/^RssAnon:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$pid/status" 2> /dev/null || true)
        if ((${now:-0} > most)); then most=$now; fi
        sleep 0.02
    done
    wait "$pid"
    echo "planned $((plan / 1024)) KiB, seen $most KiB"
    ((most * 1024 < plan + (12 << 20) && most * 1024 > plan - (4 << 20)))
}
