#!/usr/bin/env bats
# sd-crop: every option, every fault.  Pictures lie in tests/data/images; real photos in $SD_TEST_DATA.

bats_require_minimum_version 1.5.0
setup() {
    cd "$BATS_TEST_TMPDIR" || exit
    IMAGES=$BATS_TEST_DIRNAME/../data/images
    cat=$IMAGES/rgb.png        # 61 x 43
    jpg=$IMAGES/rgb.jpg
}
records() { jq -c 'select(.id)' <<< "$output"; }
# field NAME: of every record
field() { jq -c "select(.id) | .$1" <<< "$output"; }
sum_of_pixels() { jq -r 'select(.id) | .pixels_hash' <<< "$output"; }

@test "a square of 512 unless told otherwise" {
    run -0 --separate-stderr sd-crop -j "$cat"
    [ "$(field pixel_values)" = '{"dtype":"U8","shape":[512,512,3]}' ]
    [ "$(field original_size)" = '[43,61]' ]
    [ "$(field target_size)" = '[512,512]' ]
    [ "$(field bucket)" = '[512,512]' ]
    [ "$(field crop_top_left)" = '[0,107]' ]
    [ "$(field source)" = "\"$cat\"" ]
    [ "$(field id)" = "\"$(sha256sum < "$cat" | cut -d ' ' -f 1)\"" ]
    [ "$(jq -c 'select(.end)' <<< "$output")" = '{"end":1}' ]
}

@test "the bytes are Pillow's resize and crop" {
    # stored: Image.resize((57, 40), LANCZOS / BICUBIC / BOX).crop((8, 0, 48, 40)), and cv2.INTER_AREA
    while read -r filter sum; do
        run -0 --separate-stderr sd-crop -j --resolution 40 --resample "$filter" "$cat"
        [ "$(sum_of_pixels)" = "$sum" ]
    done < <(sed -n 's/^crop rgb.png //p' "$IMAGES/expected.txt")
    [ "$(sed -n 's/^crop rgb.png //p' "$IMAGES/expected.txt" | wc -l)" -eq 4 ]
}

@test "pixels_hash is the hash of the bytes in the stream" {
    sd-crop -q --resolution 40 "$cat" > one.sd
    run -0 --separate-stderr sd-crop -j --resolution 40 "$cat"
    # bin 16: c5 and two bytes of length, 4800, stand before the pixels
    at=$(LC_ALL=C grep -obaP '\xc5\x12\xc0' one.sd | head -n 1 | cut -d : -f 1)
    [ "$(tail -c +$((at + 4)) one.sd | head -c 4800 | sha256sum | cut -d ' ' -f 1)" = "$(sum_of_pixels)" ]
}

@test "--resolution: a number, WxH, nonsense" {
    run -0 --separate-stderr sd-crop -j --resolution 64x32 "$cat"
    [ "$(field target_size)" = '[32,64]' ]
    for bad in 0 7 -64 64x 64x64x64 x64 99999 64.5 big "" 64x7; do
        run -2 --separate-stderr sd-crop -j "--resolution=$bad" "$cat"
        [[ $stderr == "sd-crop: --resolution: "* ]]
        [ -z "$output" ]
    done
}

@test "--buckets: kohya's bucket and resized size; the folder's order is that of bytes" {
    run -0 --separate-stderr sd-crop -j --resolution 64 --buckets --bucket-step 8 "$cat" "$IMAGES/exif6.png"
    [ "$(field bucket | tr '\n' ' ')" = '[56,72] [80,48] ' ]
    mkdir photos
    cp "$cat" photos/b.png; cp "$jpg" photos/a.jpg; cp "$IMAGES/la.png" photos/B.png; cp "$cat" photos/.hidden.png
    echo text > photos/b.txt
    run -0 --separate-stderr sd-crop -j --resolution 64 photos
    [ "$(field source | tr -d '\n')" = '"photos/B.png""photos/a.jpg""photos/b.png"' ]
    [[ $stderr == *"photos: 1 of 4 entries are no pictures, left out"* ]]
}

@test "--min-bucket, --max-bucket and --bucket-step bound the sides" {
    run -0 --separate-stderr sd-crop -j --resolution 64 --buckets --bucket-step 16 --min-bucket 48 --max-bucket 80 "$cat"
    [ "$(field bucket)" = '[48,80]' ]
    run -0 --separate-stderr sd-crop -j --resolution 64 --buckets --bucket-step 16 --min-bucket 64 --max-bucket 64 "$cat"
    [ "$(field bucket)" = '[64,64]' ]
    run -2 --separate-stderr sd-crop -j --resolution 64 --buckets --min-bucket 128 "$cat"
    [ "$stderr" = "sd-crop: --buckets: the smallest side 128 is above the resolution 64x64" ]
    run -2 --separate-stderr sd-crop -j --resolution 64 --buckets --bucket-step 8 --max-bucket 32 "$cat"
    [ "$stderr" = "sd-crop: --buckets: the largest side 32 is below the resolution 64x64" ]
}

@test "--no-upscale leaves a small picture as it is, cut to the step" {
    run -0 --separate-stderr sd-crop -j --buckets --bucket-step 8 --no-upscale "$cat"
    [ "$(field bucket)" = '[40,56]' ]
    [ "$(field crop_top_left)" = '[1,2]' ]
    [[ $stderr != *enlarged* ]]
    run -3 --separate-stderr sd-crop -j --buckets --no-upscale "$cat"
    [[ $stderr == "sd-crop: $cat: 61 x 43 is too small for buckets in steps of 64" ]]
}

@test "bucket options without --buckets are refused" {
    for o in --bucket-step=8 --min-bucket=64 --max-bucket=64 --no-upscale --bucket-policy=drop; do
        run -2 --separate-stderr sd-crop -j $o "$cat"
        [[ $stderr == "sd-crop: ${o%%=*}: has no effect without --buckets" ]]
    done
    run -2 --separate-stderr sd-crop -j --buckets --train-batch-size 4 "$cat"
    [[ $stderr == *"--train-batch-size: has no effect without --bucket-policy drop or repeat" ]]
}

@test "--bucket-policy keep, drop, repeat" {
    wide=("$cat" "$jpg" "$IMAGES/la.png") tall=$IMAGES/exif6.png
    args=(-j --resolution 64 --buckets --bucket-step 8)
    run -0 --separate-stderr sd-crop "${args[@]}" "$tall" "${wide[@]}"
    [ "$(field bucket | tr -d '\n')" = '[80,48][56,72][56,72][56,72]' ]
    run -0 --separate-stderr sd-crop "${args[@]}" --bucket-policy drop "$tall" "${wide[@]}"
    [ "$(field bucket | tr -d '\n')" = '[56,72][56,72][56,72]' ]
    [[ $stderr == *"exif6.png: dropped: bucket 48x80 holds 1 of a batch of 2"* ]]
    run -0 --separate-stderr sd-crop "${args[@]}" --bucket-policy repeat --train-batch-size 3 "$tall" "${wide[@]}"
    [ "$(field bucket | tr -d '\n')" = '[56,72][56,72][56,72][80,48][80,48][80,48]' ]
    [ "$(field source | tail -n 3 | sort -u)" = "\"$tall\"" ]
    [ "$(jq -c 'select(.end)' <<< "$output")" = '{"end":6}' ]
    run -3 --separate-stderr sd-crop "${args[@]}" --bucket-policy drop "$tall"
    [[ $stderr == *"no bucket is as full as a batch, nothing is left" ]]
    [[ $output != *'"end"'* ]]
}

@test "held back pictures keep keys that are not known here" {
    sd-crop -q --resolution 64 "$cat" > one.sd
    # the record's map grows by one: "note": "kept"
    perl -0pe 's/holds\xa8pictures\x88/holds\xa8pictures\x89\xa4note\xa4kept/' one.sd > noted.sd
    run -0 --separate-stderr sd-crop -j --resolution 32 --buckets --bucket-step 8 --bucket-policy repeat noted.sd
    [ "$(field note | tr -d '\n')" = '"kept""kept"' ]
}

@test "--center mask crops at the subject; the mask comes along" {
    mkdir masks
    cp "$IMAGES/mask_right.png" masks/rgb.png      # white from column 40 on
    run -0 --separate-stderr sd-crop -j --resolution 43 --mask-dir masks "$cat"
    [ "$(field crop_top_left)" = '[0,9]' ]
    [ "$(field mask)" = '{"dtype":"U8","shape":[43,43]}' ]
    run -0 --separate-stderr sd-crop -j --resolution 43 --mask-dir masks --center mask "$cat"
    [ "$(field crop_top_left)" = '[0,18]' ]
    # a record's own mask is used without --mask-dir, and once cut stays with the picture
    sd-crop -q --resolution 61x43 --mask-dir masks "$cat" > masked.sd
    run -0 --separate-stderr sd-crop -j --resolution 43 --center mask masked.sd
    [ "$(field crop_top_left)" = '[0,18]' ]
    [ "$(field mask)" = '{"dtype":"U8","shape":[43,43]}' ]
}

@test "masks: missing, of another size, damaged, empty, none to crop at" {
    mkdir masks
    run -3 --separate-stderr sd-crop -j --mask-dir masks "$cat"
    [ "$stderr" = "sd-crop: $cat: no mask masks/rgb.png or .jpg" ]
    cp "$IMAGES/exif1.png" masks/rgb.png
    run -3 --separate-stderr sd-crop -j --mask-dir masks "$cat"
    [ "$stderr" = "sd-crop: $cat: mask is 31 x 20, the photo 61 x 43" ]
    head -c 300 "$cat" > masks/rgb.png
    run -3 --separate-stderr sd-crop -j --mask-dir masks "$cat"
    [ "$stderr" = "sd-crop: $cat: mask masks/rgb.png: truncated PNG" ]
    cp "$IMAGES/mask_empty.png" masks/rgb.png
    run -0 --separate-stderr sd-crop -j --resolution 43 --mask-dir masks --center mask "$cat"
    [[ $stderr == *"the mask is empty, cropped in the middle"* ]]
    [ "$(field crop_top_left)" = '[0,9]' ]
    run -3 --separate-stderr sd-crop -j --center mask "$cat"
    [ "$stderr" = "sd-crop: $cat: no mask to crop at (--mask-dir)" ]
    run -2 --separate-stderr sd-crop -j --mask-dir nowhere "$cat"
    [ "$stderr" = "sd-crop: --mask-dir: nowhere: No such file or directory" ]
}

@test "--report: counts and sizes, no paths, not overwritten" {
    run -0 --separate-stderr sd-crop -j --resolution 64 --buckets --bucket-step 8 --report r.json "$cat" "$jpg" "$IMAGES/exif6.png" "$cat"
    [ "$(jq -c '[.buckets[] | [.bucket, .pictures]]' r.json)" = '[[[80,48],1],[[56,72],3]]' ]
    [ "$(jq -c '[.written, .duplicates, .below_resolution, .left_out]' r.json)" = '[4,1,4,0]' ]
    [ "$(jq -c '.pictures[2] | [.original_size, .resized_size, .bucket, .crop_top_left]' r.json)" = '[[31,20],[80,52],[80,48],[0,2]]' ]
    [ "$(jq '.pictures | length' r.json)" -eq 4 ]
    [ "$(grep -c / r.json)" -eq 0 ]         # no path of any kind
    run -2 --separate-stderr sd-crop -j --report r.json "$cat"
    [[ $stderr == "sd-crop: r.json: "*"--overwrite"* ]]
    [ -z "$output" ]
    run -0 --separate-stderr sd-crop -j --overwrite --report r.json "$cat"
    [ "$(jq .written r.json)" -eq 1 ]
    run -3 --separate-stderr sd-crop -j --report nowhere/r.json "$cat"
    [[ $stderr == *"nowhere/r.json"* ]]
    [[ $output != *'"end"'* ]]
}

@test "--model gives the resolution" {
    mkdir -p m/unet m/vae m/text_encoder m/scheduler
    echo '{"_class_name":"StableDiffusionPipeline"}' > m/model_index.json
    echo '{"_class_name":"UNet2DConditionModel","sample_size":12,"cross_attention_dim":32}' > m/unet/config.json
    echo '{"_class_name":"AutoencoderKL","block_out_channels":[32,32,32,32],"down_block_types":["DownEncoderBlock2D","DownEncoderBlock2D","DownEncoderBlock2D","DownEncoderBlock2D"],"up_block_types":["UpDecoderBlock2D","UpDecoderBlock2D","UpDecoderBlock2D","UpDecoderBlock2D"]}' > m/vae/config.json
    echo '{"architectures":["CLIPTextModel"],"hidden_size":32,"num_attention_heads":4}' > m/text_encoder/config.json
    echo '{"_class_name":"DDIMScheduler"}' > m/scheduler/scheduler_config.json
    run -0 --separate-stderr sd-crop -j --model m "$cat"
    [ "$(field target_size)" = '[96,96]' ]
    run -0 --separate-stderr sd-crop -j --model m --resolution 32 "$cat"
    [ "$(field target_size)" = '[32,32]' ]
    run -3 --separate-stderr sd-crop -j --model nowhere "$cat"
    [[ $stderr == "sd-crop: nowhere: "* ]]
}

@test "all orientations are upright" {
    for o in 2 3 4 5 6 7 8; do
        run -0 --separate-stderr sd-crop -j --resolution 32 "$IMAGES/exif$o.png"
        [ "$(field original_size)" = "$( ((o < 5)) && echo '[20,31]' || echo '[31,20]')" ]
    done
}

@test "cut, damaged and foreign files are named; the others go through" {
    head -c 1000 "$jpg" > cut.jpg
    head -c 1000 "$cat" > cut.png
    { head -c -16 "$cat"; printf 'XXXX'; tail -c 12 "$cat"; } > flipped.png
    printf '\0\0\0\x18ftypheic\0\0\0\0mif1heic' > photo.heic
    printf 'RIFF\x24\0\0\0WEBPVP8 ' > photo.webp
    : > empty.jpg
    echo hello > note.txt
    run -1 --separate-stderr sd-crop -j --resolution 32 cut.jpg cut.png "$cat" flipped.png photo.heic photo.webp empty.jpg note.txt gone.jpg
    [ "$(records | wc -l)" -eq 1 ]
    [ "$(grep -v warning: <<< "$stderr")" = "sd-crop: cut.jpg: truncated JPEG
sd-crop: cut.png: truncated PNG
sd-crop: flipped.png: damaged PNG: IDAT: CRC error
sd-crop: photo.heic: HEIC, not read here; try: heif-convert FILE out.png
sd-crop: photo.webp: WebP, not read here; try: dwebp FILE -o out.png
sd-crop: empty.jpg: empty file
sd-crop: note.txt: not a picture (JPEG and PNG are read)
sd-crop: gone.jpg: No such file or directory" ]
    run -0 --separate-stderr sd-crop -k -j --resolution 32 cut.jpg "$cat"
    [[ $stderr == *"warning: cut.jpg: truncated JPEG"* ]]
    run -3 --separate-stderr sd-crop -j cut.jpg
    [[ $output != *'"end"'* ]]
}

@test "a folder: foreign pictures are named, other files counted, an empty one is an error" {
    mkdir photos empty
    cp "$cat" photos
    printf '\0\0\0\x18ftypheic\0\0\0\0mif1heic' > photos/photo.heic
    echo x > photos/caption.txt
    run -1 --separate-stderr sd-crop -j --resolution 32 photos
    [[ $stderr == *"photos/photo.heic: HEIC, not read here"* ]]
    [[ $stderr == *"1 of 3 entries are no pictures"* ]]
    run -3 --separate-stderr sd-crop -j empty
    [[ $stderr == "sd-crop: empty: no pictures in this folder" ]]
}

@test "bombs are refused at once, in little memory" {
    cp "$cat" bomb.png
    printf '\0\0\xff\xff\0\0\xff\xff' | dd of=bomb.png bs=1 seek=16 conv=notrunc status=none
    cp "$cat" lie.png           # 13000 x 13000 is allowed, but a file this small cannot hold it
    printf '\0\0\x32\xc8\0\0\x32\xc8' | dd of=lie.png bs=1 seek=16 conv=notrunc status=none
    (ulimit -v 2000000; sd-crop -h > /dev/null 2>&1) || skip "an instrumented build wants more memory"
    run -3 --separate-stderr bash -c 'ulimit -v 2000000; sd-crop -j bomb.png lie.png'
    [ "$stderr" = "sd-crop: bomb.png: 65535 x 65535 pixels, at most 178956970 are decoded
sd-crop: lie.png: truncated PNG" ]
}

@test "an unreadable file is named" {
    cp "$cat" secret.png; chmod 0 secret.png
    [ -r secret.png ] && skip "root reads everything"
    run -3 --separate-stderr sd-crop -j secret.png
    [ "$stderr" = "sd-crop: secret.png: Permission denied" ]
}

@test "warned: duplicates, small sides, fewer than three pictures; -q is silent" {
    cp "$cat" copy.png
    run -0 --separate-stderr sd-crop -j --resolution 44 "$cat" copy.png
    [[ $stderr == *"warning: copy.png: the same picture as $cat"* ]]
    [[ $stderr == *"warning: $cat: its shorter side, 43, is below the resolution 44: enlarged 1.02 times"* ]]
    [[ $stderr == *"warning: fewer than three pictures (2)"* ]]
    run -0 --separate-stderr sd-crop -q -j --resolution 44 "$cat" copy.png
    [ -z "$stderr" ]
    run -0 --separate-stderr sd-crop -j --resolution 43 "$cat" "$jpg" "$IMAGES/la.png"
    [ -z "$stderr" ]
}

@test "records in: by pixels, by source; broken streams are errors" {
    sd-crop -q --resolution 64 "$cat" "$jpg" > two.sd
    run -0 --separate-stderr bash -c 'sd-crop -q -j --resolution 32 < two.sd'
    [ "$(field target_size | tr -d '\n')" = '[32,32][32,32]' ]
    [ "$(field original_size | tr -d '\n')" = '[43,61][43,61]' ]
    [ "$(field id | head -n 1)" = "\"$(sha256sum < "$cat" | cut -d ' ' -f 1)\"" ]
    # head, one record with nothing but a source, end
    { printf '\x82\xa2sd\x01\xa5holds\xa8pictures\x81\xa6source\xd9'; printf '%b' "\\x$(printf %x ${#cat})"; printf '%s\x81\xa3end\x01' "$cat"; } > sources.sd
    run -0 --separate-stderr sd-crop -q -j --resolution 32 sources.sd
    [ "$(field original_size)" = '[43,61]' ]
    { printf '\x82\xa2sd\x01\xa5holds\xa8pictures\x81\xa4note\xa1x\x81\xa3end\x01'; } > neither.sd
    run -3 --separate-stderr sd-crop -q -j neither.sd
    [[ $stderr == *"record has neither pixel_values nor source" ]]
    head -c -7 two.sd > cut.sd
    run -3 --separate-stderr sd-crop -q --resolution 32 cut.sd
    [[ $stderr == *cut.sd* ]]
}

@test "a full disk is an error" {
    run -3 --separate-stderr bash -c 'sd-crop -q "$1" > /dev/full' - "$cat"
    [ "$stderr" = "sd-crop: standard output: No space left on device" ]
    run -3 --separate-stderr sd-crop -q -j --report /dev/full --overwrite "$cat"
    [[ $stderr == *"/dev/full"* ]]
}

@test "records do not go to a terminal" {
    command -v script > /dev/null || skip "no script(1)"
    run script -qec "sd-crop -q '$cat'; echo status \$?" /dev/null
    [[ $output == *"records are binary, and this is a terminal"* ]]
    [[ $output == *"status 2"* ]]
}

@test "any number of threads, any folder: the same bytes" {
    sd-crop -q --resolution 80 --threads 1 "$cat" "$jpg" > one.sd
    sd-crop -q --resolution 80 --threads 4 "$cat" "$jpg" > four.sd
    cmp one.sd four.sd
    run -2 --separate-stderr sd-crop --threads -1 "$cat"
}

@test "real photos: kohya's buckets, eight orientations alike" {
    [ -d "${SD_TEST_DATA:-}/photos" ] || skip "no SD_TEST_DATA"
    run -0 --separate-stderr sd-crop -q -j --buckets --resample area "$SD_TEST_DATA/photos"
    [ "$(field bucket | tr -d '\n')" = '[512,512][512,512][384,640][384,640][448,576][384,640][384,640]' ]
    run -0 --separate-stderr sd-crop -q -j "$SD_TEST_DATA/exif"
    [ "$(field original_size | sort -u)" = '[1200,1800]' ]
    run -1 --separate-stderr sd-crop -q -j "$SD_TEST_DATA/odd"
    [ "$stderr" = "sd-crop: $SD_TEST_DATA/odd/truncated.jpg: truncated JPEG" ]
}

@test "a resolution that most VAEs do not take is said with -v, and taken" {
    run -0 --separate-stderr sd-crop -jv --resolution 68x65 "$cat"
    [[ $stderr == *"sd-crop: --resolution: 68x65: no multiples of 8, which most VAEs need"* ]]
    run -0 --separate-stderr sd-crop -jv --resolution 72x64 "$cat"
    [[ $stderr != *"multiples of 8"* ]]
    run -0 --separate-stderr sd-crop -jv --resolution 64 --buckets --bucket-step 12 "$cat"
    [[ $stderr == *"sd-crop: --bucket-step: 12: no multiple of 8, which most VAEs need"* ]]
}
