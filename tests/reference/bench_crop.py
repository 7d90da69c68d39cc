"""Pillow's time for what tests/bench/crop.c does:  python tests/reference/bench_crop.py crop.jpg"""
import sys
import time

import PIL
from PIL import Image

best = {}
for _ in range(9):
    start = time.perf_counter()
    im = Image.open(sys.argv[1])
    im.load()
    for name, filter in (("decode", None), ("lanczos", Image.LANCZOS), ("bicubic", Image.BICUBIC)):
        if filter is not None:
            im.resize((683, 512), filter).crop((85, 0, 597, 512)).tobytes()
        end = time.perf_counter()
        best[name] = min(best.get(name, 1e9), end - start)
        start = end
print(f"Pillow {PIL.__version__}: " + ", ".join(f"{k} {v * 1e3:.1f} ms" for k, v in best.items()))
