#!/usr/bin/env bats
# Every program killed at, and told of errors by, a sample of the system calls with which it touches files (../faults.bash
# says what must hold).  All of them: make check-long.

load ../helper
load ../faults

setup_file() {
    cd "$BATS_FILE_TMPDIR" || exit 1
    models_for_faults
}
setup() {
    cd "$BATS_TEST_TMPDIR" || exit 1
    can_trace
}

@test "sd-crop: killed at its calls, and their errors" {
    scenario crop
    faults crop "${EVERY:-3}" KILL ENOSPC EIO EINTR
}
@test "sd-caption" {
    scenario caption
    faults caption "${EVERY:-3}" KILL ENOSPC EIO EINTR
}
@test "sd-encode-latents" {
    scenario encode
    faults encode "${EVERY:-4}" KILL ENOSPC EIO EINTR
}
@test "sd-merge: adapters" {
    scenario merge
    faults merge "${EVERY:-4}" KILL ENOSPC EIO EINTR
}
@test "sd-merge: a model's folder" {
    scenario merge-model
    faults merge-model "${EVERY:-12}" KILL ENOSPC EIO EINTR
}
@test "sd-sample" {
    scenario sample
    faults sample "${EVERY:-5}" KILL ENOSPC EIO EINTR
}
@test "sd-train-lora" {
    scenario lora
    faults lora "${EVERY:-7}" KILL ENOSPC EIO EINTR
}
@test "sd-train-lora: a folder in PEFT's form" {
    scenario peft
    faults peft "${EVERY:-7}" KILL ENOSPC EIO EINTR
}
@test "sd-train-ti" {
    scenario ti
    faults ti "${EVERY:-6}" KILL ENOSPC EIO EINTR
}
