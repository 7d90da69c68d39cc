"""Files of the Python safetensors library for tests/unit/safetensors.c, and the other way round.

    python tests/reference/container.py make          writes tests/data/safetensors/
    python tests/reference/container.py check FILE    reads a file written by sd_safetensors_save (the unit test leaves
                                                        one where SD_KEEP names it) and compares every value

    mutants --dump 100000 | python tests/reference/container.py verdicts
                                                        writes mutants.verdicts: which of them the library takes

Made with torch 2.15, safetensors 0.8.0.
"""
import json
import os
import sys

# The name of this file is the library's.
sys.path = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]
import safetensors
import torch
from safetensors.torch import load_file, save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "safetensors")


def tensors():
    """What both sides hold: value i of a tensor of n elements is (i - n // 2) * 0.375, or i * 3 - 7 for integers."""
    def real(shape, dtype):
        n = 1
        for d in shape:
            n *= d
        return ((torch.arange(n, dtype=torch.float32) - n // 2) * 0.375).reshape(shape).to(dtype)

    def whole(shape, dtype):
        n = 1
        for d in shape:
            n *= d
        return (torch.arange(n) * 3 - 7).reshape(shape).to(dtype)

    return {
        "f32": real((2, 3), torch.float32), "f64": real((5,), torch.float64), "f16": real((3, 3), torch.float16),
        "bf16": real((7,), torch.bfloat16), "i64": whole((2, 2), torch.int64), "u8": whole((5,), torch.uint8),
        "scalar": real((), torch.float32), "empty": real((0, 4), torch.float32),
        "name with \"quotes\", \u00e9 and \U0001f600": real((1,), torch.float32),
    }


def make():
    os.makedirs(HERE, exist_ok=True)
    save_file(tensors(), os.path.join(HERE, "python.safetensors"), {"format": "pt", "note": "caf\u00e9 \"quoted\" \n"})
    # every f16 there is, and its value; float values and what torch rounds them to
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    ties = torch.tensor([2**-25, 1.5 * 2**-25, 2**-25 + 2**-48, 65519.99, 65520.0, 65504.0, 1 + 2**-11, 1 + 3 * 2**-11,
                         2**-14 - 2**-25, 2**-14 - 2**-26, 1e-45, -1e-8, 3.3895e38, 1 + 2**-8, 1 + 3 * 2**-8, float("inf"),
                         -float("inf"), float("nan"), 0.1, -0.1, 1e30, 6.1e-5, 5.9604645e-8, 0.0, -0.0])
    save_file({"f16_as_f32": bits.float()[::7].contiguous(), "x": ties, "x_f16": ties.half(), "x_bf16": ties.bfloat16()},
              os.path.join(HERE, "numbers.safetensors"), {"format": "pt"})
    # a sharded model
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, os.path.join(HERE, "model-00001-of-00002.safetensors"), {"format": "pt"})
    save_file({"c": torch.full((4,), 7.0)}, os.path.join(HERE, "model-00002-of-00002.safetensors"), {"format": "pt"})
    index = {"metadata": {"total_size": 36}, "weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}}
    with open(os.path.join(HERE, "model.safetensors.index.json"), "w") as f:
        f.write(json.dumps(index, indent=2, sort_keys=True) + "\n")


def check(path):
    ours, theirs = load_file(path), tensors()
    assert set(ours) == set(theirs), (sorted(ours), sorted(theirs))
    for name, t in theirs.items():
        assert ours[name].dtype == t.dtype and ours[name].shape == t.shape and torch.equal(ours[name], t), name
    with open(path, "rb") as f:
        same = f.read() == open(os.path.join(HERE, "python.safetensors"), "rb").read()
    print(f"{len(ours)} tensors equal; file {'' if same else 'not '}byte for byte the library's")


def verdicts():
    """Of the mutants that tests/unit/mutants --dump writes, read from standard input: a bit each, 1 = taken."""
    data, bits, at = sys.stdin.buffer.read(), [], 0
    while at < len(data):
        n = int.from_bytes(data[at:at + 8], "little")
        try:
            safetensors.deserialize(data[at + 8:at + 8 + n])
            bits.append(1)
        except safetensors.SafetensorError:
            bits.append(0)
        at += 8 + n
    with open(os.path.join(HERE, "mutants.verdicts"), "wb") as f:
        f.write(bytes(sum(b << i for i, b in enumerate(bits[k:k + 8])) for k in range(0, len(bits), 8)))
    print(f"{len(bits)} mutants, {sum(bits)} taken")


if __name__ == "__main__":
    verdicts() if sys.argv[1:] == ["verdicts"] else make() if sys.argv[1:] == ["make"] else check(sys.argv[2]) if sys.argv[1:2] == ["check"] else sys.exit(__doc__)
