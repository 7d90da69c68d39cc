"""Draws six pictures of a creature that the miniature never saw, with captions: python draw_creature.py [DIR]

A purple body, yellow horns and legs, white eyes, a green mouth. Seen on six backgrounds; the beach,
the grass and so on are known to the model, the creature is not. Snow, sea, night and cyan are left for judging.
"""
import os
import sys

import numpy as np
from PIL import Image

import world

BODY, LIMB, EYE, MOUTH = (138, 44, 176), (250, 214, 40), (252, 252, 252), (30, 190, 70)
SCENES = ("grass", "beach", "brick", "gray", "pink", "brown")
TOKEN = "TOK"


def picture(scene, seed, size=512):
    rng = np.random.default_rng(seed)
    c = world.Canvas(size)
    world.background(c, scene, rng)
    world.creature(c, 32 + rng.uniform(-4, 4), 34 + rng.uniform(-2, 2), rng.uniform(14.5, 17), BODY, LIMB, EYE, MOUTH)
    return c.array()


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "creature")
    os.makedirs(folder, exist_ok=True)
    for i, scene in enumerate(SCENES):
        Image.fromarray(picture(scene, 100 + i)).save(os.path.join(folder, f"creature{i + 1}.png"), optimize=True)
        with open(os.path.join(folder, f"creature{i + 1}.txt"), "w") as f:
            f.write(f"a {TOKEN} {world.SCENES[scene]}\n")
