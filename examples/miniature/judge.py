"""The judge of the miniature's pictures: which colour, which shape, where.

python judge.py --model DIR --prompts FILE [--sheet F.png]   sample a picture for each prompt and judge them
python judge.py --pictures DIR --prompts FILE                judge pictures made elsewhere, sorted by name
python judge.py --write-prompts FILE                         write the 200 held-out prompts
"""
import argparse
import json
import os
import re

import numpy as np
import torch
import torch.nn.functional as F

import world

HEADS = {"colour": 8, "shape": 6, "scene": 10, "place": 5, "big": 2, "face": 2, "count": 2, "colour2": 8, "shape2": 6}
PLACE = [None, *world.PLACES]


class Judge(torch.nn.Module):
    def __init__(self):
        super().__init__()
        c = (3, 24, 48, 96, 96)
        self.conv = torch.nn.ModuleList(torch.nn.Conv2d(a, b, 4, 2, 1) for a, b in zip(c, c[1:]))
        self.hidden = torch.nn.Linear(96 * 16, 96)
        self.heads = torch.nn.ModuleDict({k: torch.nn.Linear(96, n) for k, n in HEADS.items()})

    def forward(self, x):
        """x: [n, 3, 64, 64], -1 to 1."""
        for conv in self.conv:
            x = F.silu(conv(x))
        x = F.silu(self.hidden(x.flatten(1)))
        return {k: h(x) for k, h in self.heads.items()}


def labels(specs):
    colours, scenes = list(world.COLOURS), list(world.SCENES)
    rows = []
    for s in specs:
        two = s["second"] is not None
        rows.append([colours.index(s["colour"]), world.SHAPES.index(s["shape"]), scenes.index(s["scene"]),
                     -1 if two else PLACE.index(s["place"]), -1 if two else int(s["big"]), int(s["face"]), int(two),
                     colours.index(s["second"][0]) if two else -1, world.SHAPES.index(s["second"][1]) if two else -1])
    t = torch.tensor(rows)
    return {h: t[:, k] for k, h in enumerate(HEADS)}


def parse(prompt):
    """What a prompt of the world asks for; -1 = not asked."""
    words = f"({'|'.join(world.COLOURS)}) ({'|'.join(world.SHAPES)})"
    found = re.findall(words, prompt)
    colours, scenes = list(world.COLOURS), list(world.SCENES)
    scene = [i for i, k in enumerate(scenes) if world.SCENES[k] in prompt]
    place = [i for i, k in enumerate(PLACE) if k and re.search(f"(on|at) the {k}", prompt)]
    want = dict.fromkeys(HEADS, -1)
    if found:
        want["colour"], want["shape"] = colours.index(found[0][0]), world.SHAPES.index(found[0][1])
        want["count"] = int(len(found) > 1)
    if len(found) > 1:
        want["colour2"], want["shape2"] = colours.index(found[1][0]), world.SHAPES.index(found[1][1])
    want["scene"] = scene[0] if scene else -1
    want["place"] = place[0] if place else -1
    want["big"] = 1 if " big " in prompt else -1
    want["face"] = 1 if "with a face" in prompt else -1
    return want


def load_judge():
    from safetensors.torch import load_file
    m = Judge()
    file = os.path.join(os.path.dirname(os.path.abspath(__file__)), "judge.safetensors")
    m.load_state_dict({k: v.float() for k, v in load_file(file).items()})
    return m.eval()


def score(prompts, pictures):
    """pictures: uint8 [n, 64, 64, 3]. Returns the rates in percent and, for each picture, whether colour and shape hold."""
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        out = load_judge()(x)
    want = [parse(p) for p in prompts]
    rates, right = {}, {}
    for h in HEADS:
        w = torch.tensor([v[h] for v in want])
        right[h] = out[h].argmax(1) == w
        asked = w >= 0
        if asked.any():
            rates[h] = (100 * right[h][asked].float().mean().item(), int(asked.sum()))
    both = right["colour"] & right["shape"]
    rates["colour and shape"] = (100 * both.float().mean().item(), len(both))
    return rates, both.tolist()


def write_prompts(file):
    rng = np.random.default_rng(77)
    seen = []
    while len(seen) < 200:
        c = world.caption(world.random_spec(rng, training=False), rng)
        if c not in seen and parse(c)["scene"] >= 0:
            seen.append(c)
    with open(file, "w") as f:
        f.write("".join(c + "\n" for c in seen))


def sample(pipe, prompts, seed=0, steps=25, guidance=4.0, batch=50, negative=None):
    from diffusers import DDIMScheduler
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    out = []
    for i in range(0, len(prompts), batch):
        part = prompts[i:i + batch]
        g = [torch.Generator().manual_seed(seed + i + k) for k in range(len(part))]
        out += [np.asarray(p) for p in pipe(part, num_inference_steps=steps, guidance_scale=guidance, generator=g).images]
    return out


def sheet(pictures, file, columns=20):
    from PIL import Image
    pictures = list(pictures) + [np.full_like(pictures[0], 255)] * (-len(pictures) % columns)
    rows = [np.concatenate(pictures[i:i + columns], 1) for i in range(0, len(pictures), columns)]
    whole = Image.fromarray(np.concatenate(rows, 0))
    whole.resize((whole.width * 3 // 4, whole.height * 3 // 4), Image.LANCZOS).quantize(
        96, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    p = argparse.ArgumentParser()
    p.add_argument("--model", default=os.path.join(here, "model"))
    p.add_argument("--prompts", default=os.path.join(here, "prompts-heldout.txt"))
    p.add_argument("--pictures")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--steps", type=int, default=25)
    p.add_argument("--guidance", type=float, default=4.0)
    p.add_argument("--limit", type=int)
    p.add_argument("--sheet")
    p.add_argument("--write-prompts")
    a = p.parse_args()
    if a.write_prompts:
        write_prompts(a.write_prompts)
        raise SystemExit
    with open(a.prompts) as f:
        prompts = f.read().splitlines()[:a.limit]
    if a.pictures:
        from PIL import Image
        names = sorted(n for n in os.listdir(a.pictures) if n.endswith(".png"))
        pics = [np.asarray(Image.open(os.path.join(a.pictures, n)).convert("RGB").resize((64, 64), Image.BOX)) for n in names]
        assert len(pics) == len(prompts), "as many pictures as prompts"
    else:
        import net
        pics = sample(net.load(a.model), prompts, a.seed, a.steps, a.guidance)
    rates, both = score(prompts, pics)
    for k, (r, n) in rates.items():
        print(f"{k:18} {r:5.1f} % of {n}")
    for q, ok in zip(prompts, both):
        if not ok:
            print("missed:", q)
    if a.sheet:
        sheet(pics, a.sheet)
