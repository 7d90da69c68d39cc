#!/usr/bin/env bats
# Training killed many times, at random instants and while it writes its state; each time resumed to the same bytes.

load ../helper
load ../training

@test "killed fifty times at random instants, chains of three: the same bytes and one log line a step" {
    kill_and_resume 50 200
}

@test "killed fifty times by the calls that write the state, chains of three: the same" {
    can_trace
    kill_in_state 50
}

@test "sd-train-ti: killed twenty times at random instants, chains of three: the same" {
    kill_and_resume 20 200 ti
}
