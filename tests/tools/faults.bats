#!/usr/bin/env bats
# Every program killed at, and told of errors by, a sample of the system calls with which it touches files (../faults.bash
# says what must hold).  All of them: make check-long, by this file's other name, or EVERY=1.

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

every() { # N: each n-th call is tried, from a random one
    case $BATS_TEST_DIRNAME in
        */long) echo 1 ;;
        *) echo "${EVERY:-$1}" ;;
    esac
}

@test "sd-crop: killed at its calls, and their errors" {
    scenario crop
    faults crop "$(every 3)" KILL ENOSPC EIO EINTR
}
@test "sd-caption" {
    scenario caption
    faults caption "$(every 3)" KILL ENOSPC EIO EINTR
}
@test "sd-encode-latents" {
    scenario encode
    faults encode "$(every 4)" KILL ENOSPC EIO EINTR
}
@test "sd-merge: adapters" {
    scenario merge
    faults merge "$(every 4)" KILL ENOSPC EIO EINTR
}
@test "sd-merge: a model's folder" {
    scenario merge-model
    faults merge-model "$(every 12)" KILL ENOSPC EIO EINTR
}
@test "sd-sample" {
    scenario sample
    faults sample "$(every 5)" KILL ENOSPC EIO EINTR
}
@test "sd-train-lora" {
    scenario lora
    faults lora "$(every 7)" KILL ENOSPC EIO EINTR
}
@test "sd-train-lora: a folder in PEFT's form" {
    scenario peft
    faults peft "$(every 7)" KILL ENOSPC EIO EINTR
}
@test "sd-train-ti" {
    scenario ti
    faults ti "$(every 6)" KILL ENOSPC EIO EINTR
}
