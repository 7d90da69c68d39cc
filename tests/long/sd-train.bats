#!/usr/bin/env bats
# sd-train-lora: fifty kills at random instants, each resumed to the same bytes.

load ../helper
load ../training

@test "killed fifty times at random instants, chains of three: the same bytes and one log line a step" {
    kill_and_resume 50 200
}
