"""Makes the miniature: python train.py [--work DIR] STAGE...

Stages, in this order: draw, vae, decoder, clip, latents, unet, judge, export. Each goes on where it was stopped
(a checkpoint every --save-every steps) and does nothing when it is finished. `random` saves the same
configuration with random weights. Data, noise and order are functions of (seed, stage, step).
"""
import argparse
import json
import math
import multiprocessing
import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import torch.nn.functional as F

import net
import world
from judge import Judge, HEADS, labels

HERE = os.path.dirname(os.path.abspath(__file__))
COUNT = {"world": 60000, "thing": 20000, "test": 1200, "testthing": 400}
STEPS = {"vae": 2500, "decoder": 900, "clip": 1000, "unet": 3400, "judge": 1500}
SEED = {"world": 1, "thing": 2, "test": 3, "testthing": 4, "vae": 11, "clip": 12, "unet": 13, "judge": 14, "decoder": 15}


def path(name):
    return os.path.join(args.work, name)


def generator(stage, step, rank):
    return torch.Generator().manual_seed(SEED[stage] * 1_000_000 + 2 * step + rank)


# ---- draw ------------------------------------------------------------------------------------------------

def draw_part(job):
    name, lo, hi = job
    out, captions, specs = [], [], []
    for i in range(lo, hi):
        rng = np.random.default_rng((SEED[name], i))
        if name.endswith("thing"):
            out.append(world.random_thing(rng))
            continue
        spec = world.random_spec(rng, training=name == "world")
        captions.append(world.caption(spec, rng))
        specs.append(spec)
        out.append(world.draw(spec, rng))
    return np.stack(out), captions, specs


def draw():
    if os.path.exists(path("draw.done")):
        return
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for name, n in COUNT.items():
            parts = pool.map(draw_part, [(name, i, min(i + 1000, n)) for i in range(0, n, 1000)], chunksize=1)
            np.save(path(name + ".npy"), np.concatenate([p[0] for p in parts]))
            with open(path(name + ".json"), "w") as f:
                json.dump({"captions": sum((p[1] for p in parts), []), "specs": sum((p[2] for p in parts), [])}, f)
    open(path("draw.done"), "w").close()


def pictures(name):
    return np.load(path(name + ".npy"), mmap_mode="r")


def described(name):
    with open(path(name + ".json")) as f:
        return json.load(f)


def tensor(u8):
    return torch.from_numpy(np.ascontiguousarray(u8)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def bpe():
    texts = sorted(set(described("world")["captions"]))
    return net.train_bpe(texts)


# ---- a training loop that can be stopped -----------------------------------------------------------------

class Pair:
    """Two processes of one thread each, a half batch each: faster here than one process of two threads."""

    def __init__(self, params):
        self.params = params
        n = sum(p.numel() for p in params)
        self.flat = torch.zeros(2, n).share_memory_()
        self.note = torch.zeros(2, dtype=torch.float64).share_memory_()
        context = multiprocessing.get_context("fork")
        self.barrier = context.Barrier(2)
        self.rank = 0

    def average(self, note):
        torch.cat([p.grad.reshape(-1) for p in self.params], out=self.flat[self.rank])
        self.note[self.rank] = note
        self.barrier.wait(900)
        mean = (self.flat[0] + self.flat[1]).mul_(0.5)
        note = self.note.mean().item()
        self.barrier.wait(900)
        i = 0
        for p in self.params:
            p.grad = mean[i:i + p.numel()].view(p.shape)
            i += p.numel()
        return note


class Muon:
    """Orthogonalised momentum for the matrices (a convolution is one of out x in*k*k), AdamW for the rest.

    The update of a matrix has the size that AdamW's has, so one rate does for both. Each process of the
    pair makes every second matrix.
    """

    def __init__(self, modules, pair, lr, betas, weight_decay, momentum=0.95):
        named = [(q, p) for m in modules.values() for q, p in m.named_parameters() if p.requires_grad]
        matrix = lambda q, p: p.ndim >= 2 and "conv_in" not in q and not q.startswith("conv_out")
        self.matrices = [p for q, p in named if matrix(q, p)]
        self.adam = torch.optim.AdamW([p for q, p in named if not matrix(q, p)], lr=lr, betas=betas, weight_decay=0)
        self.own = {"lr": lr}
        self.momentum, self.decay, self.pair = momentum, weight_decay, pair
        self.buffers = [torch.zeros_like(p) for p in self.matrices]
        self.update = [torch.zeros(p.shape).share_memory_() for p in self.matrices]
        self.shapes = {}
        for k, p in enumerate(self.matrices):
            self.shapes.setdefault((p.shape[0], p.numel() // p.shape[0]), []).append(k)

    @property
    def param_groups(self):
        return self.adam.param_groups + [self.own]

    def state_dict(self):
        return {"adam": self.adam.state_dict(), "buffers": self.buffers}

    def load_state_dict(self, s):
        self.adam.load_state_dict(s["adam"])
        for b, v in zip(self.buffers, s["buffers"]):
            b.copy_(v)

    def zero_grad(self, set_to_none=True):
        for p in self.pair.params:
            p.grad = None

    @torch.no_grad()
    def step(self):
        self.adam.step()
        grads = [p.grad for p in self.matrices]
        torch._foreach_lerp_(self.buffers, grads, 1 - self.momentum)
        for (rows, cols), which in self.shapes.items():
            mine = [k for n, k in enumerate(which) if n % 2 == self.pair.rank]
            if not mine:
                continue
            x = torch.stack([torch.lerp(grads[k], self.buffers[k], self.momentum).view(rows, cols) for k in mine])
            if rows > cols:
                x = x.mT
            x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
            for _ in range(5):
                y = x @ x.mT
                x = 3.4445 * x + (-4.7750 * y + 2.0315 * (y @ y)) @ x
            if rows > cols:
                x = x.mT
            for k, v in zip(mine, x.float() * (0.2 * max(rows, cols) ** 0.5)):
                self.update[k].copy_(v.reshape(self.update[k].shape))
        self.pair.barrier.wait(900)
        lr = self.own["lr"]
        torch._foreach_mul_(self.matrices, 1 - lr * self.decay)
        torch._foreach_add_(self.matrices, self.update, alpha=-lr)


def loop(stage, modules, loss_of, lr, ema=0.999, betas=(0.9, 0.99), decay_from=0.0, warmup=200, clip=1.0,
         weight_decay=0.01, muon=False):
    """`modules`: name -> module. Cosine from `decay_from` (a fraction of the steps) on, constant before."""
    n, file = args.steps.get(stage, STEPS[stage]), path(stage + ".pt")
    params = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
    pair = Pair(params)
    opt = (Muon(modules, pair, lr, betas, weight_decay) if muon else
           torch.optim.AdamW(params, lr=lr, betas=betas, weight_decay=weight_decay))
    names = [(k, q) for k, m in modules.items() for q in m.state_dict()]
    shadow = {(k, q): v.detach().clone() for k, m in modules.items() for q, v in m.state_dict().items()}
    step = 0
    spent = 0.0
    if os.path.exists(file):
        s = torch.load(file, weights_only=False)
        for k, m in modules.items():
            m.load_state_dict(s["model"][k])
        opt.load_state_dict(s["opt"])
        shadow, step, spent = s["ema"], s["step"], s["seconds"]
    mean, t0 = [], time.time()
    child = multiprocessing.get_context("fork").Process(target=lambda: run(1), daemon=True)

    def store():
        torch.save({"model": {k: m.state_dict() for k, m in modules.items()}, "opt": opt.state_dict(),
                    "ema": shadow, "step": step, "seconds": spent + time.time() - t0}, file + ".new")
        os.replace(file + ".new", file)

    def run(rank):
        nonlocal step, mean
        pair.rank = rank
        first = step
        while step < n:
            f = step / n
            rate = lr * min(1, (step + 1) / warmup)
            if f > decay_from:
                rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (f - decay_from) / (1 - decay_from)))
            for g in opt.param_groups:
                g["lr"] = rate
            loss, note = loss_of(step, f, generator(stage, step, rank), rank)
            loss.backward()
            note = pair.average(note)
            torch.nn.utils.clip_grad_norm_(params, clip)
            opt.step()
            opt.zero_grad(set_to_none=True)
            step += 1
            if rank:
                continue
            d = min(ema, (1 + step) / (10 + step))
            with torch.no_grad():
                live = {(k, q): v for k, m in modules.items() for q, v in m.state_dict().items()}
                fl = [key for key in names if live[key].is_floating_point()]
                torch._foreach_lerp_([shadow[k] for k in fl], [live[k] for k in fl], 1 - d)
            mean.append(note)
            if step % 50 == 0 or step == n:
                t = time.time() - t0
                line = (f"{stage} {step}/{n} loss {np.mean(mean):.5f} lr {rate:.2e} "
                        f"{t / (step - first):.3f} s/step {(spent + t) / 60:.1f} min")
                print(line, flush=True)
                with open(path(stage + ".log"), "a") as log:
                    print(line, file=log)
                mean = []
            if step % args.save_every == 0 or step == n:
                store()

    if step < n:
        child.start()
        run(0)
        child.join()
    for k, m in modules.items():
        m.load_state_dict({q: shadow[(k, q)] for q in m.state_dict()})
        m.eval()


def finished(stage, modules):
    """Loads the averaged weights of a stage, finished or not."""
    s = torch.load(path(stage + ".pt"), weights_only=False)
    for k, m in modules.items():
        m.load_state_dict({q: s["ema"][(k, q)] for q in m.state_dict()})
        m.eval()
    return s["step"], s["seconds"]


# ---- vae -------------------------------------------------------------------------------------------------

def db(a, b):
    return (10 * torch.log10(4 / (a.float() - b.float()).pow(2).mean((1, 2, 3)))).mean().item()


def vae():
    torch.manual_seed(SEED["vae"])
    m = net.plain_attention(net.make_vae())
    with torch.no_grad():
        m.quant_conv.bias[4:] = -6
        m.quant_conv.weight[4:] *= 0.1
    w, t = pictures("world"), pictures("thing")

    def loss_of(step, f, g, rank):
        i = torch.randint(len(w), (4,), generator=g).numpy()
        j = torch.randint(len(t), (4,), generator=g).numpy()
        x = tensor(np.concatenate([w[np.sort(i)], t[np.sort(j)]]))
        with torch.autocast("cpu", torch.bfloat16):
            q = m.encode(x).latent_dist
            mu, lv = q.mean.float(), q.logvar.float()
            z = mu + (0.5 * lv).exp() * torch.randn(mu.shape, generator=g)
            y = m.decode(z).sample
        y = y.float()
        mse = F.mse_loss(y, x)
        loss = mse + 0.5 * F.l1_loss(y, x)
        loss = loss + 1e-4 * 0.5 * (mu.pow(2) + lv.exp() - 1 - lv).mean()
        if f > 0.6:
            loss = loss + 0.5 * sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        return loss, mse.item()

    loop("vae", {"vae": m}, loss_of, 1.2e-3, decay_from=0.1, weight_decay=0)
    for name in ("test", "testthing"):
        x = tensor(pictures(name)[:400])
        with torch.no_grad():
            print(name, "decoded at %.2f dB" % np.mean([db(v, m.decode(m.encode(v).latent_dist.mean).sample)
                                                        for v in x.split(50)]))


def encode_part(job):
    m, lo, hi = job
    w = pictures("world")
    out = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for i in range(lo, hi, 50):
            q = m.encode(tensor(w[i:i + 50])).latent_dist
            out.append((q.mean.half().numpy(), q.std.half().numpy()))
    return np.concatenate([v[0] for v in out]), np.concatenate([v[1] for v in out])


def latents():
    if os.path.exists(path("latents.pt")):
        return
    m = net.plain_attention(net.make_vae())
    finished("vae", {"vae": m})
    n = COUNT["world"]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        parts = pool.map(encode_part, [(m, i, i + 1000) for i in range(0, n, 1000)], chunksize=1)
    mean, std = (torch.from_numpy(np.concatenate([v[k] for v in parts])) for k in (0, 1))
    g = torch.Generator().manual_seed(0)
    s = (mean[:8000].float() + std[:8000].float() * torch.randn(8000, 4, 16, 16, generator=g)).std().item()
    print("latent std", s, "posterior std", std[:8000].float().mean().item())
    torch.save({"mean": mean, "std": std, "scale": round(1 / s, 5)}, path("latents.pt"))


def decoder():
    """The decoder alone, longer: the latents, and so all that is cached and learned from them, stay as they are."""
    torch.manual_seed(SEED["decoder"])
    m = load_vae()
    net.plain_attention(m)
    m.encoder.requires_grad_(False)
    m.quant_conv.requires_grad_(False)
    w, t = pictures("world"), pictures("thing")

    def loss_of(step, f, g, rank):
        i = torch.randint(len(w), (4,), generator=g).numpy()
        j = torch.randint(len(t), (4,), generator=g).numpy()
        x = tensor(np.concatenate([w[np.sort(i)], t[np.sort(j)]]))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                q = m.encode(x).latent_dist
                z = q.mean.float() + q.std.float() * torch.randn(q.mean.shape, generator=g)
            y = m.decode(z).sample
        y = y.float()
        mse = F.mse_loss(y, x)
        loss = mse + 0.5 * F.l1_loss(y, x) + 0.5 * sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        return loss, mse.item()

    loop("decoder", {"decoder": m.decoder, "post": m.post_quant_conv}, loss_of, 1e-3, decay_from=0.0, warmup=50,
         weight_decay=0, muon=True)


def load_vae():
    m = net.make_vae()
    finished("vae", {"vae": m})
    if os.path.exists(path("decoder.pt")):
        finished("decoder", {"decoder": m.decoder, "post": m.post_quant_conv})
    return m


# ---- clip ------------------------------------------------------------------------------------------------

def clip_models():
    vocab, merges = bpe()
    text, image = net.make_text(vocab), net.make_image()
    return vocab, merges, text, image


def tokenizer(vocab, merges):
    net.save_tokenizer(path("tokenizer"), vocab, merges)
    return net.CLIPTokenizer.from_pretrained(path("tokenizer"))


def clip():
    torch.manual_seed(SEED["clip"])
    vocab, merges, text, image = clip_models()
    captions = described("world")["captions"]
    unique = sorted(set(captions))
    number = {c: i for i, c in enumerate(unique)}
    which = torch.tensor([number[c] for c in captions])
    ids = net.encode(tokenizer(vocab, merges), unique)
    w = pictures("world")
    text.set_attn_implementation("eager")   # faster backward on a CPU
    image.set_attn_implementation("eager")
    scale = torch.nn.Module()
    scale.log = torch.nn.Parameter(torch.tensor(math.log(10.0)))
    print(len(vocab), "symbols,", len(unique), "captions, longest", int((ids != vocab[net.EOS]).sum(1).max()) + 1)

    def loss_of(step, f, g, rank):
        i = torch.randint(len(w), (64,), generator=g).sort().values
        x = tensor(w[i.numpy()])
        t = ids[which[i]][:, :24]
        with torch.autocast("cpu", torch.bfloat16):
            a = text(input_ids=t).pooler_output
            b = image(pixel_values=x).image_embeds
        a, b = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
        s = a @ b.T * scale.log.exp().clamp(max=100)
        same = which[i][:, None] == which[i][None]
        target = same.float() / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(s, target) + F.cross_entropy(s.T, target)) / 2
        return loss, loss.item()

    loop("clip", {"text": text, "image": image, "scale": scale}, loss_of, 1e-3, ema=0.995, betas=(0.9, 0.98),
         decay_from=0.3, weight_decay=0.02)


def text_states():
    if os.path.exists(path("states.pt")):
        return torch.load(path("states.pt"))
    vocab, merges, text, image = clip_models()
    finished("clip", {"text": text})
    captions = described("world")["captions"]
    unique = sorted(set(captions))
    number = {c: i + 1 for i, c in enumerate(unique)}
    ids = net.encode(tokenizer(vocab, merges), [""] + unique)
    text.eval()
    with torch.no_grad():
        states = torch.cat([text(input_ids=v).last_hidden_state.half() for v in ids.split(256)])
    torch.save((states, torch.tensor([number[c] for c in captions])), path("states.pt"))
    return torch.load(path("states.pt"))


# ---- unet ------------------------------------------------------------------------------------------------

def unet():
    torch.manual_seed(SEED["unet"])
    m = net.plain_attention(net.make_unet())
    cache = torch.load(path("latents.pt"))
    mean, std, scale = cache["mean"], cache["std"], cache["scale"]
    states, which = text_states()
    abar = net.make_scheduler().alphas_cumprod

    def loss_of(step, f, g, rank):
        batch = 16 if step < 750 else 32   # half of the step's batch
        i = torch.randint(len(mean), (batch,), generator=g)
        x = scale * (mean[i].float() + std[i].float() * torch.randn(batch, 4, 16, 16, generator=g))
        c = which[i]
        c[torch.rand(batch, generator=g) < 0.1] = 0
        t = ((2 * torch.arange(batch) + rank + torch.rand(batch, generator=g)) / (2 * batch) * 1000).long()   # stratified
        a = abar[t].view(-1, 1, 1, 1)
        e = torch.randn(x.shape, generator=g)
        with torch.autocast("cpu", torch.bfloat16):
            p = m(a.sqrt() * x + (1 - a).sqrt() * e, t, states[c].float()).sample
        l = (p.float() - e).pow(2).mean((1, 2, 3))
        snr = abar[t] / (1 - abar[t])
        return (l * snr.clamp(max=5) / snr).mean(), l.mean().item()

    loop("unet", {"unet": m}, loss_of, args.rate, decay_from=0.45, warmup=200, muon=args.optimizer == "muon")


# ---- judge -----------------------------------------------------------------------------------------------

def judge():
    torch.manual_seed(SEED["judge"])
    m = Judge()
    w, d = pictures("world"), described("world")
    y = labels(d["specs"])

    def loss_of(step, f, g, rank):
        i = torch.randint(len(w), (32,), generator=g).sort().values
        x = tensor(w[i.numpy()])
        x = x + torch.rand(32, 1, 1, 1, generator=g) * 0.15 * torch.randn(x.shape, generator=g)
        blur = torch.rand(32, 1, 1, 1, generator=g) * 0.7
        x = x + blur * (F.avg_pool2d(x, 3, 1, 1) - x)
        out = m(x)
        loss = sum(F.cross_entropy(out[h], y[h][i], ignore_index=-1, reduction="sum") for h in HEADS) / 32
        return loss, loss.item()

    loop("judge", {"judge": m}, loss_of, 2e-3, ema=0.99, decay_from=0.2, muon=True)
    x, t = tensor(pictures("test")), labels(described("test")["specs"])
    v = load_vae()
    with torch.no_grad():
        r = torch.cat([v.decode(v.encode(b).latent_dist.mean).sample for b in x.split(50)])
        for name, p in (("drawn", x), ("decoded", r)):
            o = m(p)
            right = (o["colour"].argmax(1) == t["colour"]) & (o["shape"].argmax(1) == t["shape"])
            print("judge,", name, "held-out pictures: colour and shape right in %.1f %%" % (100 * right.float().mean()))


# ---- export ----------------------------------------------------------------------------------------------

def export(random=False, folder=None):
    vocab, merges, text, image = clip_models()
    v, u = net.make_vae(), net.make_unet()
    scale = 1.0
    if not random:
        v = load_vae()
        finished("clip", {"text": text, "image": image})
        print("unet: step %d, %.0f s" % finished("unet", {"unet": u}))
        scale = torch.load(path("latents.pt"))["scale"]
        if os.path.exists(path("judge.pt")):
            from safetensors.torch import save_file
            j = Judge()
            finished("judge", {"judge": j})
            save_file({k: t.half().contiguous() for k, t in j.state_dict().items()},
                      os.path.join(HERE, "judge.safetensors"), metadata={"format": "pt"})
    v.register_to_config(scaling_factor=scale)
    net.save(folder or args.output, vocab, merges, v, text, image, u)


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--work", default="work", help="where pictures, caches and checkpoints lie (2 GB)")
    p.add_argument("--output", default=os.path.join(HERE, "model"))
    p.add_argument("--steps", default={}, type=lambda s: {k: int(v) for k, v in (x.split("=") for x in s.split(","))},
                   help="stage=N,... instead of " + str(STEPS))
    p.add_argument("--save-every", type=int, default=250)
    p.add_argument("--optimizer", default="muon", choices=("adamw", "muon"), help="of the unet")
    p.add_argument("--rate", default=2e-3, type=float, help="of the unet")
    p.add_argument("stages", nargs="+")
    args = p.parse_args()
    os.makedirs(args.work, exist_ok=True)
    torch.set_num_threads(1)
    for stage in args.stages:
        t = time.time()
        if stage == "random":
            torch.manual_seed(0)
            export(random=True)
        else:
            {"draw": draw, "vae": vae, "decoder": decoder, "clip": clip, "latents": latents, "unet": unet, "judge": judge,
             "export": export}[stage]()
        print(f"{stage}: {time.time() - t:.0f} s", flush=True)
