"""Stored reference values for AdamW and Prodigy: tests/data/optimizers/*.

Run from the top of the tree:  python tests/reference/optimizers.py
Pinned: torch 2.15, prodigyopt 1.1.2.  Everything is deterministic; a second run writes the same bytes.  Two tensors of 37 and
64 elements take 50 steps; start and noise come from integers, so that the C tests (tests/unit/adamw.c, prodigy.c) have
the same ones to the bit.  Written: after each step all 101 values (f32), and for Prodigy d (f64) in a file of its own.
"""
import pathlib

import numpy as np
import torch
from prodigyopt import Prodigy

DATA = pathlib.Path("tests/data/optimizers")
STEPS, SIZES = 50, (37, 64)


def number(i, step):
    """Whole numbers in -500..500 over 512: exact in float."""
    i = np.arange(i)
    return ((((i * 7919 + step * 104729 + 12345) % 1000003) * 31337 % 1001) - 500).astype(np.float32) / np.float32(512)


def run(make, schedule, zeros=False):
    start = number(sum(SIZES), 0)
    if zeros:
        start[SIZES[0]:] = 0        # as LoRA's up: Prodigy then keeps p0 as a scalar
    tensors = [torch.nn.Parameter(t.clone()) for t in torch.from_numpy(start).split(SIZES)]
    optimizer = make(tensors)
    values, ds = [], []
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        noise = torch.from_numpy(number(sum(SIZES), step)).split(SIZES)
        for p, g in zip(tensors, noise):
            p.grad = g * 0.25 + (p.detach() - 1)        # a pull towards 1, and noise
        optimizer.step()
        values.append(np.concatenate([p.detach().numpy() for p in tensors]))
        ds.append(optimizer.param_groups[0].get("d", 0))
    return np.stack(values).astype("<f4"), np.array(ds, "<f8")


def main():
    DATA.mkdir(parents=True, exist_ok=True)
    constant = lambda lr: lambda step: lr
    values, _ = run(lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.01), lambda step: 1e-2 * min(1, step / 10))
    values.tofile(DATA / "adamw.f32")
    values, _ = run(lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.8, 0.99), eps=1e-6, weight_decay=0), constant(1e-3))
    values.tofile(DATA / "adamw_plain.f32")
    cases = {
        "prodigy": dict(weight_decay=0.01, betas=(0.9, 0.99), use_bias_correction=True, safeguard_warmup=True),
        "prodigy_plain": dict(d_coef=0.1),
        "prodigy_growth": dict(d0=1e-4, d_coef=2.0, growth_rate=1.05, weight_decay=0.004),
    }
    for name, options in cases.items():
        schedule = constant(1.0) if name != "prodigy_growth" else lambda step: 1.0 - step / 100
        values, ds = run(lambda p: Prodigy(p, lr=1.0, **options), schedule, zeros=name == "prodigy")
        values.tofile(DATA / f"{name}.f32")
        ds.tofile(DATA / f"{name}.d.f64")
        print(name, ds[[0, 1, 2, 10, 30, 49]])


main()
