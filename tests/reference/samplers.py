"""Stored reference values for random numbers, noise schedules and samplers: tests/data/samplers/*.

Run from the top of the tree:  python tests/reference/samplers.py
Pinned: torch 2.15, diffusers 0.42.1.  Everything is deterministic; a second run writes the same bytes.  The C tests
(tests/unit/random.c, noise_scheduler.c, samplers.c) walk through the files in the order in which this script writes them.
"""
import pathlib

import numpy as np
import torch

DATA = pathlib.Path("tests/data/samplers")


def write(name, values):
    np.concatenate([np.asarray(v, np.float32).ravel() for v in values]).astype("<f4").tofile(DATA / name)


def torch_randn():
    """Several calls of one generator; of a long one every 37th number and the last 16."""
    out = []
    for seed in (0, 42, -3):
        g = torch.Generator().manual_seed(seed)
        for n in (5, 16, 17, 3, 4 * 64 * 64, 7, 4 * 96 * 72, 15, 31, 2):
            z = torch.randn(n, generator=g).numpy()
            i = np.arange(n)
            out.append(z[(i % (37 if n > 100 else 1) == 0) | (i + 16 >= n)])
    write("torch_randn.f32", out)


if __name__ == "__main__":
    assert torch.__version__.startswith("2.15"), torch.__version__
    DATA.mkdir(parents=True, exist_ok=True)
    torch_randn()
