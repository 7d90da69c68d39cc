"""Pictures with what Pillow makes of them: tests/data/images/* and expected.txt beside them.

Run in the repository root with Pillow 13.0.0, numpy and opencv-python-headless 5.0.0 (for the area lines alone):
    SD_TEST_DATA=../shared/data python tests/reference/images.py
Lines of expected.txt: what they are about, the picture, arguments, width, height, SHA-256 of the bytes.
    rgb FILE w h sum          decoded, upright, transparency onto white
    grey FILE w h sum         the same as L, transparency onto black (a mask)
    resize FILE filter w h x0 y0 x1 y1 sum      of the RGB picture; a box of four zeros is the whole
    crop FILE filter sum      resized to 57 x 40, the middle 40 x 40 of it
FILE starts with data/ when it lies in $SD_TEST_DATA.
"""
import hashlib
import os
import random
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL
from PIL import Image, ImageOps

assert PIL.__version__ == "13.0.0", PIL.__version__
DATA = Path(os.environ.get("SD_TEST_DATA", "../shared/data"))
OUT = Path("tests/data/images")
OUT.mkdir(parents=True, exist_ok=True)
lines = []


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path, array, colour, depth, interlaced=False, extra=(), after=()):
    """A PNG as Pillow cannot write it: array is [h, w, bytes per pixel] in file order."""
    h, w, _ = array.shape
    raw = b""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    for x0, y0, dx, dy in passes if interlaced else [(0, 0, 1, 1)]:
        part = array[y0::dy, x0::dx]
        if part.size:
            raw += b"".join(b"\0" + row.tobytes() for row in part)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, interlaced))
                     + b"".join(chunk(*c) for c in extra) + chunk(b"IDAT", zlib.compress(raw, 9))
                     + b"".join(chunk(*c) for c in after) + chunk(b"IEND", b""))


def tiff(orientation, order=">", kind=3):
    value = struct.pack(order + "HH", orientation, 0) if kind == 3 else struct.pack(order + "I", orientation)
    return (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "IH", 8, 1) + struct.pack(
        order + "HHI", 0x0112, kind, 1) + value + struct.pack(order + "I", 0)


def upright(path):
    return ImageOps.exif_transpose(Image.open(path))


def over(im, value):
    back = Image.new("RGBA", im.size, (value, value, value, 255))
    return Image.alpha_composite(back, im.convert("RGBA"))


def as_rgb(path):
    im = upright(path)
    if im.mode.startswith("I"):     # Pillow would turn 16-bit grey white: the high byte, as for RGB
        return Image.fromarray((np.asarray(im).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return (over(im, 255) if im.has_transparency_data else im).convert("RGB")


def as_grey(path):
    im = upright(path)
    if im.mode.startswith("I"):
        return as_rgb(path).convert("L")
    return (over(im, 0) if im.has_transparency_data else im.convert("RGB") if im.mode in ("P", "CMYK") else im).convert("L")


def digest(im):
    return hashlib.sha256(np.ascontiguousarray(np.asarray(im)).tobytes()).hexdigest()


def make_files():
    cat = Image.open(DATA / "photos/chelsea.png").convert("RGB").crop((120, 60, 181, 103))      # 61 x 43
    cat.save(OUT / "rgb_profile.png")               # with the photo's colour profile, which nobody applies
    cat.info.pop("icc_profile")
    grey, a = cat.convert("L"), np.asarray(cat)
    ramp = np.linspace(0, 255, 61 * 43).astype(np.uint8).reshape(43, 61)
    soft = np.random.default_rng(1).integers(0, 256, (43, 61), dtype=np.uint8)
    cat.save(OUT / "rgb.png")
    grey.save(OUT / "grey.png")
    cat.convert("1").save(OUT / "bilevel.png")
    cat.quantize(16).save(OUT / "palette16.png")
    cat.quantize(200).save(OUT / "palette200.png", transparency=3)
    half = cat.quantize(8)
    half.save(OUT / "palette8_alpha.png", transparency=bytes([0, 40, 80, 128, 200, 254, 255, 255]))
    cat.save(OUT / "rgb_transparent_colour.png", transparency=tuple(int(v) for v in a[20, 30]))
    grey.save(OUT / "grey_transparent_level.png", transparency=int(np.asarray(grey)[5, 5]))
    Image.fromarray(np.dstack([a, soft])).save(OUT / "rgba.png")
    Image.fromarray(np.dstack([np.asarray(grey), ramp])).save(OUT / "la.png")
    deep = (a.astype(np.uint16) << 8 | soft[..., None]).astype(">u2")
    png(OUT / "rgb16.png", deep.view(np.uint8).reshape(43, 61, 6), 2, 16)
    png(OUT / "grey16.png", deep[..., :1].copy().view(np.uint8).reshape(43, 61, 2), 0, 16)
    both = np.concatenate([deep, (soft.astype(np.uint16) * 257).astype(">u2")[..., None]], 2)
    png(OUT / "rgba16.png", np.ascontiguousarray(both).view(np.uint8).reshape(43, 61, 8), 6, 16)
    png(OUT / "interlaced.png", a, 2, 8, interlaced=True)
    png(OUT / "interlaced_rgba.png", np.dstack([a, soft]), 6, 8, interlaced=True)
    right = np.zeros((43, 61, 1), np.uint8)
    png(OUT / "mask_empty.png", right, 0, 8)
    right[:, 40:] = 255
    png(OUT / "mask_right.png", right, 0, 8)
    four = (np.asarray(grey) >> 4)
    packed = (four[:, 0::2] << 4 | np.pad(four[:, 1::2], ((0, 0), (0, 1)))).astype(np.uint8)
    h, w = 43, 61
    raw = b"".join(b"\0" + row.tobytes() for row in packed)
    (OUT / "grey4.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 4, 0, 0, 0, 0))
                                    + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))
    small = np.ascontiguousarray(a[:20, :31])
    for o in range(1, 9):
        png(OUT / f"exif{o}.png", small, 2, 8, extra=[(b"eXIf", tiff(o, "<" if o % 2 else ">"))])
    png(OUT / "exif_behind.png", small, 2, 8, after=[(b"eXIf", tiff(6))])
    png(OUT / "exif_9.png", small, 2, 8, extra=[(b"eXIf", tiff(9))])
    png(OUT / "xmp5.png", small, 2, 8, extra=[(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0"
        b'<x:xmpmeta><rdf:Description tiff:Orientation="5"/></x:xmpmeta>')])
    cat.save(OUT / "rgb.jpg", quality=92)
    cat.save(OUT / "rgb444.jpg", quality=80, subsampling=0)
    cat.save(OUT / "rgb422.jpg", quality=80, subsampling=1)
    cat.save(OUT / "progressive.jpg", quality=85, progressive=True)
    cat.save(OUT / "rgb_kept.jpg", quality=85, keep_rgb=True)
    grey.save(OUT / "grey.jpg", quality=90)
    cat.convert("CMYK").save(OUT / "cmyk.jpg", quality=90)
    inks = Image.merge(
        "CMYK", [Image.fromarray(p) for p in (255 - a[..., 0], 255 - a[..., 1], 255 - a[..., 2], soft // 2)])
    inks.save(OUT / "cmyk_black.jpg", quality=90)
    for o in range(2, 9):
        cat.save(OUT / f"exif{o}.jpg", quality=90, exif=b"Exif\0\0" + tiff(o, "<" if o % 2 else ">", 4 if o == 7 else 3))


def main():
    make_files()
    files = sorted(p for p in OUT.iterdir() if p.suffix in (".png", ".jpg"))
    for p in files:
        for kind, im in (("rgb", as_rgb(p)), ("grey", as_grey(p))):
            lines.append(f"{kind} {p.name} {im.width} {im.height} {digest(im)}")
    photos = sorted(p for d in ("photos", "exif", "odd") for p in (DATA / d).iterdir() if p.name != "truncated.jpg")
    for p in photos:
        im = as_rgb(p)
        lines.append(f"rgb data/{p.relative_to(DATA)} {im.width} {im.height} {digest(im)}")

    named = {"lanczos": Image.LANCZOS, "bicubic": Image.BICUBIC, "box": Image.BOX, "bilinear": Image.BILINEAR}
    rng = random.Random(3)
    subjects = [(OUT / "rgb.png", "rgb.png"), (OUT / "progressive.jpg", "progressive.jpg")]
    subjects += [(DATA / "photos" / n, f"data/photos/{n}") for n in ("coffee.png", "rocket.jpg")]
    for path, name in subjects:
        im = as_rgb(path)
        sizes = [(im.width // 2, im.height // 3), (im.width * 3, im.height * 2), (im.width, im.height // 2),
                 (im.width // 3, im.height), (1, 1), (im.width + 7, max(1, im.height // 10)), (97, 64)]
        sizes += [(im.width - 10, im.height - 20), (im.width - 10, im.height - 21)]    # where the order of passes turns
        for f, code in named.items():
            for w, h in sizes:
                lines.append(f"resize {name} {f} {w} {h} 0 0 0 0 {digest(im.resize((w, h), code))}")
            for _ in range(3):
                box = [rng.uniform(0, im.width / 2), rng.uniform(0, im.height / 2)]
                box += [rng.uniform(box[0] + 3, im.width), rng.uniform(box[1] + 3, im.height)]
                box = tuple(float(np.float32(v)) for v in box)
                w, h = rng.randint(1, 200), rng.randint(1, 200)
                lines.append(f"resize {name} {f} {w} {h} {' '.join(f'{v:.9g}' for v in box)} "
                             f"{digest(im.resize((w, h), code, box=box))}")
        for w, h in [(im.width // 2, im.height // 3), (im.width - 5, im.height - 9), (10, 10), (im.width, im.height // 2)]:
            lines.append(f"resize {name} area {w} {h} 0 0 0 0 "
                         f"{digest(cv2.resize(np.asarray(im), (w, h), interpolation=cv2.INTER_AREA))}")
        for k in (2, 3, 4):             # whole-number scales: a multiple of k cut from the corner
            w, h = im.width // k, im.height // k
            if (w * k, h * k) == im.size:
                lines.append(f"resize {name} area {w} {h} 0 0 0 0 "
                             f"{digest(cv2.resize(np.asarray(im), (w, h), interpolation=cv2.INTER_AREA))}")
        w, h = im.width + 9, im.height - 3      # a side grows: Lanczos
        lines.append(f"resize {name} area {w} {h} 0 0 0 0 {digest(im.resize((w, h), Image.LANCZOS))}")
    im = as_rgb(OUT / "rgb.png")
    for f in ("lanczos", "bicubic", "box", "area"):
        small = im.resize((57, 40), named[f]) if f in named else Image.fromarray(
            cv2.resize(np.asarray(im), (57, 40), interpolation=cv2.INTER_AREA))
        lines.append(f"crop rgb.png {f} {digest(small.crop((8, 0, 48, 40)))}")
    (OUT / "expected.txt").write_text("\n".join(lines) + "\n")


main()
