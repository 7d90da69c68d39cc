"""The drawn world of the miniature: 64 x 64 pictures of coloured shapes on backgrounds, with captions.

Everything is drawn from signed distances, so that one picture can be drawn at any resolution.
Coordinates are those of the 64 x 64 picture: x to the right, y down.
"""
import hashlib
import math

import numpy as np

SIZE = 64
COLOURS = {
    "red": (222, 28, 36), "orange": (248, 136, 24), "yellow": (250, 226, 40), "green": (20, 150, 50),
    "blue": (34, 60, 214), "purple": (138, 44, 176), "white": (248, 248, 248), "black": (22, 22, 24),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
SCENES = {
    "grass": "on the grass", "beach": "on the beach", "night": "at night", "sea": "in the sea",
    "snow": "in the snow", "brick": "on a brick wall", "gray": "on a gray background",
    "pink": "on a pink background", "brown": "on a brown background", "cyan": "on a cyan background",
}
PLACES = {"left": (-13, 0), "right": (13, 0), "top": (0, -13), "bottom": (0, 13)}
PREFIXES = ("a picture of ", "a drawing of ", "a photo of ")
PLAIN = {"gray": (140, 140, 142), "pink": (246, 176, 200), "brown": (122, 84, 54), "cyan": (110, 210, 220)}


def allowed(colour, scene):
    return (colour, scene) not in (("white", "snow"), ("black", "night"))


def held_out(colour, shape, scene):
    """One in ten of the triples is never drawn for training."""
    return hashlib.sha256(f"{colour} {shape} {scene}".encode()).digest()[0] < 26


class Canvas:
    def __init__(self, size=SIZE):
        self.size = size
        self.px = SIZE / size
        a = ((np.arange(size) + 0.5) * self.px).astype(np.float32)
        self.y, self.x = np.meshgrid(a, a, indexing="ij")
        self.rgb = np.zeros((size, size, 3), np.float32)

    def paint(self, distance, colour, alpha=1.0):
        cover = np.clip(0.5 - distance / self.px, 0, 1) * alpha
        self.rgb += cover[..., None] * (np.asarray(colour, np.float32) - self.rgb)

    def array(self):
        return np.clip(self.rgb + 0.5, 0, 255).astype(np.uint8)


# ---- distances -------------------------------------------------------------------------------------------

def ellipse(x, y, cx, cy, rx, ry):
    d = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    return (d - 1) * min(rx, ry)


def box(x, y, cx, cy, hx, hy):
    return np.maximum(np.abs(x - cx) - hx, np.abs(y - cy) - hy)


def polygon(x, y, points):
    """Convex, points clockwise on the screen (y down)."""
    d = None
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1]):
        ux, uy = bx - ax, by - ay
        n = math.hypot(ux, uy)
        e = (uy * (x - ax) - ux * (y - ay)) / n
        d = e if d is None else np.maximum(d, e)
    return d


def shape_distance(kind, x, y):
    """The distance to a shape of radius 1 around the origin."""
    if kind == "circle":
        return np.hypot(x, y) - 0.95
    if kind == "square":
        return box(x, y, 0, 0, 0.84, 0.84)
    if kind == "triangle":
        return polygon(x, y, [(0, -1.05), (1.08, 0.85), (-1.08, 0.85)])
    if kind == "cross":
        return np.minimum(box(x, y, 0, 0, 0.98, 0.34), box(x, y, 0, 0, 0.34, 0.98))
    if kind == "star":
        y = y - 0.08
        r, inner, k = 1.14, 0.46, math.pi / 5
        a = np.arctan2(x, -y)
        a = np.abs((a + k) % (2 * k) - k)
        m = np.hypot(x, y)
        px, py = m * np.cos(a), m * np.sin(a)
        ix, iy = inner * math.cos(k), inner * math.sin(k)
        n = math.hypot(iy, r - ix)
        return ((px - r) * iy + py * (r - ix)) / n
    if kind == "heart":
        s = 1.72
        x, y = np.abs(x) / s, (0.98 - y) / s
        far = np.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
        m = 0.5 * np.maximum(x + y, 0)
        near = np.sqrt(np.minimum(x * x + (y - 1) ** 2, (x - m) ** 2 + (y - m) ** 2)) * np.sign(x - y)
        return np.where(x + y > 1, far, near) * s
    raise ValueError(kind)


# ---- backgrounds -----------------------------------------------------------------------------------------

def jitter(rng, colour, amount=10):
    return np.clip(np.asarray(colour, np.float32) + rng.uniform(-amount, amount, 3), 0, 255)


def background(c, scene, rng):
    x, y = c.x, c.y
    inf = np.full_like(x, -1e3)
    if scene in PLAIN:
        c.paint(inf, jitter(rng, PLAIN[scene], 8))
    elif scene == "grass":
        c.paint(inf, jitter(rng, (168, 212, 244), 6))
        h = rng.uniform(18, 24)
        c.paint(h - y, jitter(rng, (140, 192, 92), 6))
        for _ in range(14):
            gx, gy = rng.uniform(2, 62), rng.uniform(h + 4, 62)
            c.paint(polygon(x, y, [(gx, gy - 4), (gx + 1.2, gy), (gx - 1.2, gy)]), (96, 152, 60))
    elif scene == "beach":
        c.paint(inf, jitter(rng, (172, 222, 248), 6))
        h = rng.uniform(14, 18)
        c.paint(h - y, jitter(rng, (70, 150, 210), 6))
        c.paint(h + rng.uniform(8, 11) - y, jitter(rng, (228, 204, 156), 6))
        for _ in range(8):
            c.paint(ellipse(x, y, rng.uniform(2, 62), rng.uniform(34, 62), 1.4, 0.9), (200, 170, 120))
    elif scene == "night":
        c.paint(inf, jitter(rng, (22, 26, 66), 6))
        for _ in range(12):
            c.paint(ellipse(x, y, rng.uniform(1, 63), rng.uniform(1, 63), 0.8, 0.8), (226, 226, 190))
        mx = rng.uniform(52, 56)
        c.paint(ellipse(x, y, mx, rng.uniform(8, 12), 5, 5), (240, 236, 200))
    elif scene == "sea":
        c.paint(inf, jitter(rng, (84, 168, 206), 6))
        p = rng.uniform(0, 2 * math.pi)
        for k in range(5):
            wave = np.abs(y - 8 - 12 * k - 1.6 * np.sin(x / 4 + p + k)) - 0.9
            c.paint(wave, (186, 226, 240))
    elif scene == "snow":
        c.paint(inf, jitter(rng, (170, 186, 208), 6))
        c.paint(ellipse(x, y, rng.uniform(20, 44), 84, 80, rng.uniform(54, 60)), jitter(rng, (234, 240, 248), 4))
        for _ in range(12):
            c.paint(ellipse(x, y, rng.uniform(1, 63), rng.uniform(1, 40), 1.1, 1.1), (250, 250, 252))
    elif scene == "brick":
        c.paint(inf, jitter(rng, (166, 92, 72), 6))
        mortar = (206, 190, 176)
        row = np.floor(y / 8)
        c.paint(np.abs((y + 4) % 8 - 4) - 0.6, mortar)
        c.paint(np.abs((x + 8 * (row % 2) + 8) % 16 - 8) - 0.6, mortar)
    else:
        raise ValueError(scene)


# ---- things ----------------------------------------------------------------------------------------------

def face(c, cx, cy, r, eye=(252, 252, 252), pupil=(10, 10, 12), mouth=(60, 10, 20), wide=0.30):
    x, y = c.x, c.y
    for s in (-1, 1):
        ex, ey = cx + s * wide * r, cy - 0.14 * r
        c.paint(np.hypot(x - ex, y - ey) - 0.22 * r, eye)
        c.paint(np.hypot(x - ex, y - ey) - 0.11 * r, pupil)
    c.paint(ellipse(x, y, cx, cy + 0.36 * r, 0.30 * r, 0.13 * r), mouth)


def put(c, kind, cx, cy, r, colour, angle=0.0):
    x, y = (c.x - cx) / r, (c.y - cy) / r
    if angle:
        k, s = math.cos(angle), math.sin(angle)
        x, y = k * x + s * y, k * y - s * x
    c.paint(shape_distance(kind, x, y) * r, colour)


def creature(c, cx, cy, r, body, limb, eye=(250, 250, 250), mouth=(40, 190, 70), horns=2, legs=2, tall=1.0,
             pupil=(12, 12, 14)):
    """A round body with horns, legs, eyes and a mouth."""
    x, y = c.x, c.y
    hx = [-0.55, 0.55] if horns == 2 else [0.0] if horns == 1 else []
    for h in hx:
        bx, by = cx + h * r, cy - 0.62 * tall * r
        tip = (bx + 0.35 * h * r, by - 0.85 * r)
        c.paint(polygon(x, y, [tip, (bx + 0.28 * r, by), (bx - 0.28 * r, by)]), limb)
    for k in range(legs):
        lx = cx + ((k + 0.5) / legs - 0.5) * 1.5 * r
        c.paint(box(x, y, lx, cy + 1.05 * tall * r, 0.17 * r, 0.42 * r), limb)
    c.paint(ellipse(x, y, cx, cy, r, tall * r), body)
    for s in (-1, 1):
        c.paint(np.hypot(x - cx - 0.36 * s * r, y - cy + 0.22 * r) - 0.25 * r, eye)
        c.paint(np.hypot(x - cx - 0.36 * s * r, y - cy + 0.22 * r) - 0.11 * r, pupil)
    c.paint(ellipse(x, y, cx, cy + 0.42 * r, 0.46 * r, 0.17 * r), mouth)


# ---- pictures with captions ------------------------------------------------------------------------------

def article(word):
    return "an" if word[0] in "aeio" else "a"


def noun(colour, shape, big=False, faced=False):
    s = f"a big {colour} {shape}" if big else f"{article(colour)} {colour} {shape}"
    return s + " with a face" if faced else s


def caption(spec, rng=None):
    s = noun(spec["colour"], spec["shape"], spec["big"], spec["face"])
    if spec["second"]:
        s += " and " + noun(*spec["second"])
    prefix, say_place, say_scene = "", True, True
    if rng is not None:
        if rng.random() < 0.3:
            prefix = PREFIXES[rng.integers(3)]
        say_place, say_scene = rng.random() < 0.85, rng.random() < 0.9
    if spec["place"] and say_place:
        s += (" at the " if spec["place"] in ("top", "bottom") else " on the ") + spec["place"]
    if say_scene:
        s += " " + SCENES[spec["scene"]]
    return prefix + s


def pick(seq, rng):
    return seq[int(rng.integers(len(seq)))]


def random_spec(rng, training=True):
    colours, scenes = list(COLOURS), list(SCENES)
    while True:
        s = {"colour": pick(colours, rng), "shape": pick(SHAPES, rng), "scene": pick(scenes, rng),
             "big": False, "face": False, "place": None, "second": None}
        if rng.random() < 0.15:
            s["second"] = (pick(colours, rng), pick(SHAPES, rng))
        else:
            s["big"] = bool(rng.random() < 0.2)
            s["face"] = bool(rng.random() < 0.12)
            if rng.random() < 0.35:
                s["place"] = pick(list(PLACES), rng)
        ok = allowed(s["colour"], s["scene"]) and held_out(s["colour"], s["shape"], s["scene"]) != training
        if s["second"]:
            ok = ok and allowed(s["second"][0], s["scene"]) and s["second"] != (s["colour"], s["shape"])
            ok = ok and not (training and held_out(*s["second"], s["scene"]))
        if ok:
            return s


def draw(spec, rng, size=SIZE):
    c = Canvas(size)
    background(c, spec["scene"], rng)
    colour = jitter(rng, COLOURS[spec["colour"]], 8)
    if spec["second"]:
        r = rng.uniform(11.5, 13.5, 2)
        dy = rng.uniform(-3, 3, 2)
        put(c, spec["shape"], 17 + rng.uniform(-1.5, 1.5), 34 + dy[0], r[0], colour)
        put(c, spec["second"][1], 47 + rng.uniform(-1.5, 1.5), 34 + dy[1], r[1],
            jitter(rng, COLOURS[spec["second"][0]], 8))
        return c.array()
    r = rng.uniform(21.5, 24.5) if spec["big"] else rng.uniform(15, 17.5)
    dx, dy = PLACES[spec["place"]] if spec["place"] else (0, 0)
    k = 0.6 if spec["big"] else 1.0
    cx, cy = 32 + k * dx + rng.uniform(-2, 2), 33 + k * dy + rng.uniform(-2, 2)
    put(c, spec["shape"], cx, cy, r, colour)
    if spec["face"]:
        face(c, cx, cy + (0.1 * r if spec["shape"] in ("triangle", "star") else 0), r)
    return c.array()


def random_thing(rng, size=SIZE):
    """Pictures without captions: only the VAE sees them."""
    c = Canvas(size)
    any_colour = lambda: rng.uniform(0, 255, 3)
    u = rng.random()
    if u < 0.45:
        background(c, pick(list(SCENES), rng), rng)
    elif u < 0.7:
        c.paint(np.full_like(c.x, -1e3), any_colour())
        a, d = rng.uniform(0, 2 * math.pi), any_colour()
        t = np.clip((c.x * math.cos(a) + c.y * math.sin(a)) / 64 + 0.5, 0, 1)[..., None]
        c.rgb += t * (d - c.rgb)
    else:
        n = int(rng.integers(3, 9))
        low = rng.uniform(0, 255, (n, n, 3))
        ix = np.clip(c.x / 64 * (n - 1), 0, n - 1.001)
        iy = np.clip(c.y / 64 * (n - 1), 0, n - 1.001)
        x0, y0 = ix.astype(int), iy.astype(int)
        fx, fy = (ix - x0)[..., None], (iy - y0)[..., None]
        c.rgb[:] = (low[y0, x0] * (1 - fx) + low[y0, x0 + 1] * fx) * (1 - fy) + \
                   (low[y0 + 1, x0] * (1 - fx) + low[y0 + 1, x0 + 1] * fx) * fy
    u = rng.random()
    if u < 0.4:
        purple = True
        while purple:  # not the creature that is taught later
            body, limb = any_colour(), any_colour()
            purple = body[0] > body[1] + 40 and body[2] > body[1] + 40 and limb[0] > 150 and limb[1] > 150
        r = rng.uniform(10, 20)
        creature(c, 32 + rng.uniform(-8, 8), 33 + rng.uniform(-6, 6), r, body, limb,
                 eye=any_colour() if rng.random() < 0.5 else (250, 250, 250), mouth=any_colour(),
                 horns=int(rng.integers(3)), legs=int(rng.integers(5)), tall=rng.uniform(0.75, 1.1),
                 pupil=any_colour() if rng.random() < 0.4 else (12, 12, 14))
    else:
        for _ in range(int(rng.integers(1, 6))):
            cx, cy, r = rng.uniform(6, 58), rng.uniform(6, 58), rng.uniform(4, 20)
            v = rng.random()
            if v < 0.5:
                put(c, pick(SHAPES, rng), cx, cy, r, any_colour(), rng.uniform(0, 2 * math.pi))
            elif v < 0.65:
                c.paint(ellipse(c.x, c.y, cx, cy, r, rng.uniform(0.3, 1) * r), any_colour())
            elif v < 0.8:  # stripes within a disc
                a, p = rng.uniform(0, math.pi), rng.uniform(4, 10)
                t = np.abs((c.x * math.cos(a) + c.y * math.sin(a)) % p - p / 2) - p / 4
                c.paint(np.maximum(t, np.hypot(c.x - cx, c.y - cy) - r), any_colour())
            else:
                put(c, pick(SHAPES, rng), cx, cy, r, any_colour())
                face(c, cx, cy, r, any_colour(), any_colour(), any_colour())
    return c.array()
