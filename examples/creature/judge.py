"""How often the creature is there, and the scene that was asked for; and what a prompt without the token still gives.

python judge.py PROMPTS IMAGES DIR ...      pictures of sd-sample --num-images IMAGES --output-dir DIR PROMPTS

A picture with "TOK" in its prompt counts when at least four of the creature's five parts are found in it
(teach_reference.py), one without when the miniature's judge sees the colour and the shape.
"""
import os
import sys

import numpy as np
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../miniature"))
import judge
from teach_reference import creature_there

with open(sys.argv[1]) as f:
    prompts = [q for q in f.read().splitlines() for _ in range(int(sys.argv[2]))]
for folder in sys.argv[3:]:
    names = sorted(n for n in os.listdir(folder) if n[:-4].isdigit())
    pictures = [np.asarray(Image.open(os.path.join(folder, n)).convert("RGB")) for n in names]
    assert len(pictures) == len(prompts), "IMAGES pictures for each prompt"
    taught = [(q, p) for q, p in zip(prompts, pictures) if "TOK" in q]
    known = [(q, p) for q, p in zip(prompts, pictures) if "TOK" not in q]
    print(folder + ":", "scenes right %.0f %%" % judge.score(prompts, pictures)[0]["scene"][0])
    if taught:
        print("  the creature is there: %d of %d" % (sum(creature_there(p) >= 4 for _, p in taught), len(taught)))
    if known:
        right = judge.score([q for q, _ in known], [p for _, p in known])[1]
        print("  colour and shape without the token: %d of %d" % (sum(right), len(right)))
