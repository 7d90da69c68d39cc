"""Teaches the creature to the miniature with diffusers and PEFT: a token and a LoRA, trained together.

python teach_reference.py [--settings teach.json] [--set name=value ...] [--output DIR]

The settings carry the names of sd-train-lora's options. Writes the LoRA (diffusers form), the token's
rows, and pictures: the creature in scenes where it was never seen, and prompts without the token before
and after.
"""
import argparse
import json
import math
import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file

import draw_creature
import judge
import net
import world

HERE = os.path.dirname(os.path.abspath(__file__))
UNSEEN = ["a TOK in the snow", "a TOK in the sea", "a TOK at night", "a TOK on a cyan background"]
OTHERS = ["a TOK", "a big TOK in the snow", "a TOK on the left on a cyan background", "a TOK and a red square in the snow"]
PRIOR = ["a red circle on the grass", "a blue square in the snow", "a big yellow heart at night",
         "a purple star on the beach", "a purple circle in the sea", "a green triangle on a brick wall",
         "a white cross on a pink background", "an orange circle with a face on a gray background"]


def creature_there(picture):
    """Purple body, yellow limbs above and below it, white eyes, green mouth: the parts found, of five."""
    p = picture.astype(np.int32)
    r, g, b = p[..., 0], p[..., 1], p[..., 2]
    purple = (r > g + 35) & (b > g + 45) & (r < 200)
    if purple.sum() < 120:
        return 0
    ys, xs = np.nonzero(purple)
    x0, x1 = np.percentile(xs, 3), np.percentile(xs, 97)
    y0, y1 = np.percentile(ys, 3), np.percentile(ys, 97)
    Y, X = np.mgrid[:64, :64]
    beside = (X > x0 - 4) & (X < x1 + 4)
    yellow = (r > b + 60) & (g > b + 40) & (r > 150) & beside
    inside = (X > x0) & (X < x1) & (Y > y0) & (Y < y1)
    white = (p.min(-1) > 170) & inside
    green = (g > r + 25) & (g > b + 25) & inside
    return 1 + int((yellow & (Y < y0 + 6)).sum() >= 12) + int((yellow & (Y > y1 - 3)).sum() >= 10) \
        + int(white.sum() >= 10) + int(green.sum() >= 10)


def teach(pipe, pictures, captions, own, s, log=print):
    torch.manual_seed(s["seed"])
    unet, text, tok, vae = pipe.unet, pipe.text_encoder, pipe.tokenizer, pipe.vae
    for m in (unet, text, vae):
        m.requires_grad_(False)
    name, _, words = s["placeholder-token"].partition("=")
    tokens = [name] + [f"{name}_{k}" for k in range(1, s["num-vectors"])]
    tok.add_tokens(tokens)
    new = tok.convert_tokens_to_ids(tokens)
    table = text.get_input_embeddings().weight.data
    start = tok(words, add_special_tokens=False).input_ids if words else []
    rows = torch.stack([table[start[k % len(start)]] if start else torch.randn(table.shape[1]) * table.std()
                        for k in range(len(tokens))]).clone().requires_grad_(True)
    text.resize_token_embeddings(len(tok), mean_resizing=False)
    emb = text.get_input_embeddings()
    base = emb.weight.data.clone()

    unet.add_adapter(LoraConfig(r=s["rank"], lora_alpha=s["alpha"], init_lora_weights=True,
                                target_modules=s["target-modules"].split(",")))
    lora = [p for p in unet.parameters() if p.requires_grad]
    opt = torch.optim.AdamW([{"params": lora, "base": s["learning-rate"]}, {"params": [rows], "base": s["ti-learning-rate"]}],
                            betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)

    expand = lambda c: c.replace(name, " ".join(tokens))
    ids = tok([expand(c) for c in captions], padding="max_length", truncation=True, max_length=net.LENGTH,
              return_tensors="pt").input_ids
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        q = vae.encode(x).latent_dist
    abar = net.make_scheduler().alphas_cumprod
    g = torch.Generator().manual_seed(s["seed"])
    n, B = s["max-train-steps"], s["train-batch-size"]
    order, t0, seen = [], time.time(), []

    def install():
        emb.weight.data.copy_(base)
        emb.weight.data[new] = rows.detach()

    unet.train()
    for step in range(n):
        while len(order) < B:
            turn = torch.randperm(own, generator=g).tolist()
            if own < len(ids):   # as many of the prior's pictures as of the concept's
                turn = [k for j in turn for k in (j, own + int(torch.randint(len(ids) - own, (1,), generator=g)))]
            order += turn
        i = torch.tensor(order[:B])
        del order[:B]
        f = step / n
        shape = {"constant": 1.0, "linear": 1 - f, "cosine": 0.5 * (1 + math.cos(math.pi * f))}[s["lr-scheduler"]]
        for group in opt.param_groups:
            group["lr"] = group["base"] * shape
        token_on = f < s["ti-until"]
        if not token_on:
            opt.param_groups[1]["lr"] = 0.0
        z = vae.config.scaling_factor * (q.mean[i] + q.std[i] * torch.randn(q.mean[i].shape, generator=g))
        t = torch.randint(1000, (B,), generator=g)
        a = abar[t].view(-1, 1, 1, 1)
        e = torch.randn(z.shape, generator=g)
        onehot = (ids[i][..., None] == torch.tensor(new)).float()
        hook = emb.register_forward_hook(
            lambda m, inp, out: out * (1 - onehot.sum(-1, keepdim=True)) + onehot @ rows) if token_on else None
        if not token_on:
            install()
        c = text(input_ids=ids[i]).last_hidden_state
        if hook:
            hook.remove()
        p = unet(a.sqrt() * z + (1 - a).sqrt() * e, t, c).sample
        l = (p - e).pow(2).mean((1, 2, 3))
        if s.get("snr-gamma"):
            snr = abar[t] / (1 - abar[t])
            l = l * snr.clamp(max=s["snr-gamma"]) / snr
        l.mean().backward()
        params = lora + ([rows] if token_on else [])
        torch.nn.utils.clip_grad_norm_(params, s["max-grad-norm"])
        opt.step()
        opt.zero_grad(set_to_none=True)
        seen.append(l.mean().item())
        if (step + 1) % 50 == 0:
            log(f"step {step + 1} loss {np.mean(seen[-50:]):.4f} {(time.time() - t0) / (step + 1):.3f} s/step")
    install()
    unet.eval()
    return tokens, rows.detach(), expand


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--model", default=os.path.join(HERE, "model"))
    p.add_argument("--pictures", default=os.path.join(HERE, "creature"))
    p.add_argument("--settings", default=os.path.join(HERE, "teach.json"))
    p.add_argument("--set", nargs="*", default=[])
    p.add_argument("--prior", type=int, default=0, help="so many pictures of the world as every second sample")
    p.add_argument("--output")
    a = p.parse_args()
    with open(a.settings) as f:
        s = json.load(f)
    for kv in a.set:
        k, v = kv.split("=", 1)
        s[k] = type(s.get(k, ""))(v) if not isinstance(s.get(k), int) else float(v) if "." in v else int(v)
    pipe = net.load(a.model)
    net.plain_attention(pipe.unet)
    names = sorted(n for n in os.listdir(a.pictures) if n.endswith(".png"))
    pictures = [np.asarray(Image.open(os.path.join(a.pictures, n)).convert("RGB").resize((64, 64), Image.BOX)) for n in names]
    captions = [open(os.path.join(a.pictures, n[:-4] + ".txt")).read().strip() for n in names]
    before = judge.sample(pipe, PRIOR)
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    print("the creature's pictures decoded at %.1f dB" % (10 * torch.log10(4 / (x - y).pow(2).mean((1, 2, 3)))).mean())
    decoded = [np.asarray(v) for v in ((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1)]
    t0 = time.time()
    shown_first = list(pictures)
    own = len(pictures)
    for k in range(a.prior):   # pictures of the world, with their captions, keep what the model knows
        rng = np.random.default_rng((5, k))
        spec = world.random_spec(rng)
        captions.append(world.caption(spec))
        pictures.append(world.draw(spec, rng))
    tokens, rows, expand = teach(pipe, pictures, captions, own, s)
    print("taught in %.0f s" % (time.time() - t0))
    shown = []
    for seed in (0, 1000, 2000):
        shown.append(judge.sample(pipe, [expand(q) for q in UNSEEN + OTHERS], seed))
    parts = [[creature_there(v) for v in row[:4]] for row in shown]
    after = judge.sample(pipe, PRIOR)
    rate = lambda pics: judge.score(PRIOR, pics)[0]["colour and shape"][0]
    change = [float(np.abs(u.astype(float) - v).mean()) for u, v in zip(before, after)]
    print("parts of five found in unseen scenes, three seeds:", parts)
    print("recognisable (4 or 5 parts): %d of 12" % sum(k >= 4 for r in parts for k in r))
    print("prompts without the token: right before %.0f %%, after %.0f %%; mean change of a value %.1f of 255"
          % (rate(before), rate(after), np.mean(change)))
    if a.output:
        os.makedirs(a.output, exist_ok=True)
        blank = np.full_like(pictures[0], 255)
        wide = len(before)
        in_rows = lambda p: [(p + [blank] * wide)[k:k + wide] for k in range(0, len(p), wide)]
        rows_ = [*in_rows(shown_first), *in_rows(decoded), *shown, before, after]
        sheet = np.concatenate([np.concatenate(r, 1) for r in rows_], 0)
        Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), 0).save(
            os.path.join(a.output, "taught.png"), optimize=True)
        StableDiffusionPipeline.save_lora_weights(
            a.output, unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet)))
        save_file({tokens[0]: rows.contiguous()}, os.path.join(a.output, "token.safetensors"),
                  metadata={"format": "pt"})
