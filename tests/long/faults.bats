#!/usr/bin/env bats
# Every program killed at, and told of errors by, each of the system calls with which it touches files; see ../faults.bash.

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

@test "photos and captions: each call, killed, full, failing, interrupted" {
    scenario crop
    faults crop 1 KILL ENOSPC EIO EINTR
    scenario caption
    faults caption 1 KILL ENOSPC EIO EINTR
}
@test "latents and their cache" {
    scenario encode
    faults encode 1 KILL ENOSPC EIO EINTR
}
@test "merged adapters and models" {
    scenario merge
    faults merge 1 KILL ENOSPC EIO EINTR
    scenario merge-model
    faults merge-model 1 KILL ENOSPC EIO EINTR
}
@test "pictures" {
    scenario sample
    faults sample 1 KILL ENOSPC EIO EINTR
}
@test "training" {
    scenario lora
    faults lora 1 KILL ENOSPC EIO EINTR
    scenario peft
    faults peft 1 KILL ENOSPC EIO EINTR
    scenario ti
    faults ti 1 KILL ENOSPC EIO EINTR
}
