#!/usr/bin/env python3
"""train.py - what diffusers, transformers and PEFT learn in 20 steps, for sd-train-lora and sd-train-ti to repeat.

    tests/reference/train.py                            writes tests/data/train/*
    tests/reference/train.py check CASE FORMAT PATH     does what our program wrote load in diffusers (FORMAT diffusers,
                                                        kohya) or PEFT (peft)?  Every key used, weights equal.

The step is that of diffusers' examples/text_to_image/train_text_to_image_lora.py (LoRA), and of
examples/textual_inversion/textual_inversion.py (rows of the token table, the others put back after every step): DDPM
noise, mean squared error, accumulation, clip_grad_norm_, AdamW, get_scheduler.  Both at once has a parameter group each.
Everything in single precision, as those scripts run, on the tiny models of tests/data/models.  A case is

    MODEL[.ROWS].replay.safetensors   step_%04d.latents, .noise, .timesteps, .input_ids, by micro-batch (--replay)
    START.start.safetensors           first factors (--init-lora), as diffusers saves them; with alphas, as kohya does
    MODEL.ROWS.token.safetensors      first rows (--init-embedding)
    text_encoder/                     for tests with captions
    schedules.txt                     name, warm-up, steps, then 14 multipliers of the rate
    CASE.safetensors                  losses [20]; final factors under the names of the start; final rows as "rows"

Pinned: torch 2.15, diffusers 0.42.1, transformers 5.23.0, peft 0.21.2, prodigyopt 1.1.2."""
import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.remove(os.path.dirname(os.path.abspath(__file__)))     # scripts here are named after what they check
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr
from peft import LoraConfig, PeftModel
from prodigyopt import Prodigy
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

MODELS, DATA, STEPS = "tests/data/models", "tests/data/train", 20
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CASES = {
    "lora": dict(model="sd1", lora=ATTENTION, lr=1e-3, clip=0.05),
    "lora_v": dict(model="sd2", lora=ATTENTION, lr=1e-3, snr_gamma=5.0),
    "ti": dict(model="sd1", rows=2, ti_lr=5e-3, clip=None),
    "pivotal": dict(model="sd1", lora=ATTENTION, lr=1e-3, rows=1, ti_lr=5e-3, ti_until=0.7),
    "accumulate": dict(model="sd1", lora=ATTENTION, lr=2e-3, accumulation=2, schedule="cosine", warmup=3),
    "prodigy": dict(model="sd1", lora=ATTENTION, lr=1.0, rows=1, ti_lr=1.0,
                    prodigy=dict(d0=1e-4, betas=(0.9, 0.99), weight_decay=0.01, use_bias_correction=True,
                                 safeguard_warmup=True)),
    "wide": dict(model="sd1", lora=ATTENTION + ["conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_in",
                                                "downsamplers.0.conv", "ff.net.0.proj"],
                 text=["q_proj", "k_proj", "v_proj", "out_proj"], lr=1e-3, te_lr=5e-4, alpha=8, init=True,
                 start="wide"),
}
RANK = 4


def replay(model, text, micro_batches, seed):
    """Micro-batches of two samples; the ids hold the rows of learned tokens where a case has them."""
    g = torch.Generator().manual_seed(seed)
    c, out = text.config, {}
    for k in range(micro_batches):
        ids = torch.randint(0, c.vocab_size - 3, (2, c.max_position_embeddings), generator=g)
        ids[:, 0], ids[0, 7:], ids[1, -1:] = c.vocab_size - 2, c.vocab_size - 1, c.vocab_size - 1
        ids[0, 2], ids[1, 3], ids[1, 4] = c.vocab_size - 3, c.vocab_size - 3, c.vocab_size - 3
        p = f"step_{k:04d}."
        out |= {p + "latents": torch.randn((2, 4, 6, 8), generator=g), p + "noise": torch.randn((2, 4, 6, 8), generator=g),
                p + "timesteps": torch.randint(0, 1000, (2,), generator=g), p + "input_ids": ids}
    return out


def with_tokens(batches, vocabulary, rows):
    """The same batches, where ids V - 3 become the new ones."""
    out = {}
    for k, v in batches.items():
        if k.endswith("input_ids") and rows:
            v = v.clone()
            v[0, 2] = vocabulary
            v[1, 3], v[1, 4] = vocabulary, vocabulary + rows - 1
        out[k] = v
    return out


def load(model):
    d = f"{MODELS}/{model}"
    return (UNet2DConditionModel.from_pretrained(d, subfolder="unet", torch_dtype=torch.float32),
            CLIPTextModel.from_pretrained(d, subfolder="text_encoder", torch_dtype=torch.float32),
            DDPMScheduler.from_pretrained(d, subfolder="scheduler"))


def adapted(model, component, targets, case, seed):
    torch.manual_seed(seed)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=case.get("alpha", RANK), target_modules=targets,
                                 init_lora_weights=case.get("init", "gaussian")))
    out = {}
    for name, p in model.named_parameters():
        p.requires_grad_("lora_" in name)
        if "lora_" in name:
            out[f"{component}.{name.replace('.default', '')}"] = p
    return out


def as_kohya(factors, alpha):
    """unet.a.b.lora_A.weight -> lora_unet_a_b.lora_down.weight, with an alpha."""
    out = {}
    for k, v in factors.items():
        module, part = k.rsplit(".lora_", 1)
        component, path = module.split(".", 1)
        if component == "text_encoder":
            path = "text_model." + path.removeprefix("text_model.")
        name = f"lora_{'unet' if component == 'unet' else 'te'}_{path.replace('.', '_')}"
        out[f"{name}.lora_{'down' if part[0] == 'A' else 'up'}.weight"] = v
        out[f"{name}.alpha"] = torch.tensor(float(alpha))
    return out


def plain(factors):
    return {k: v.detach().clone().contiguous() for k, v in factors.items()}


def optimizers(case, unet_factors, te_factors, table):
    """AdamW with a group each, or a Prodigy each; with their schedules."""
    groups = [(list(p), lr) for p, lr in ((unet_factors.values(), case.get("lr")), (te_factors.values(), case.get("te_lr")),
                                          ([table] if table is not None else [], case.get("ti_lr"))) if p]
    if "prodigy" in case:
        made = [Prodigy(p, lr=lr, **case["prodigy"]) for p, lr in groups]
    else:
        made = [torch.optim.AdamW([{"params": p, "lr": lr} for p, lr in groups], betas=(0.9, 0.999), eps=1e-8,
                                  weight_decay=1e-2)]
    return made, [get_scheduler(case.get("schedule", "constant"), o, num_warmup_steps=case.get("warmup", 0),
                                num_training_steps=STEPS) for o in made]


def train(name, case, batches):
    unet, text, scheduler = load(case["model"])
    unet.requires_grad_(False), text.requires_grad_(False)
    unet_factors = adapted(unet, "unet", case["lora"], case, 11) if "lora" in case else {}
    te_factors = adapted(text, "text_encoder", case["text"], case, 12) if "text" in case else {}
    rows, vocabulary, table = case.get("rows", 0), text.config.vocab_size, None
    start = plain(unet_factors | te_factors)
    if start:
        save_file(as_kohya(start, case["alpha"]) if "alpha" in case else start,
                  f"{DATA}/{case.get('start', case['model'])}.start.safetensors")
    if rows:
        old = text.get_input_embeddings().weight.detach().clone()
        first = 0.5 * torch.randn((rows, old.shape[1]), generator=torch.Generator().manual_seed(13))
        save_file({"<new>": first}, f"{DATA}/{case['model']}.{rows}.token.safetensors")
        table = torch.nn.Parameter(torch.cat([old, first]))
        text.get_input_embeddings().weight = table
    made, schedules = optimizers(case, unet_factors, te_factors, table)
    learning = [*unet_factors.values(), *te_factors.values(), *([table] if rows else [])]
    accumulation, losses, batches = case.get("accumulation", 1), [], with_tokens(batches, vocabulary, rows)
    for step in range(STEPS):
        total = 0.0
        if rows and step >= case.get("ti_until", 1) * STEPS:
            made[0].param_groups[-1]["lr"] = 0.0
        for micro in range(accumulation):
            b = {k: batches[f"step_{step * accumulation + micro:04d}.{k}"]
                 for k in ("latents", "noise", "timesteps", "input_ids")}
            noisy = scheduler.add_noise(b["latents"], b["noise"], b["timesteps"])
            states = text(b["input_ids"], return_dict=False)[0]
            v = scheduler.config.prediction_type == "v_prediction"
            target = scheduler.get_velocity(b["latents"], b["noise"], b["timesteps"]) if v else b["noise"]
            pred = unet(noisy, b["timesteps"], states, return_dict=False)[0]
            if "snr_gamma" in case:
                snr = compute_snr(scheduler, b["timesteps"])
                weights = torch.stack([snr, case["snr_gamma"] * torch.ones_like(snr)], dim=1).min(dim=1)[0]
                weights = weights / (snr + 1 if v else snr)
                loss = F.mse_loss(pred.float(), target.float(), reduction="none")
                loss = (loss.mean(dim=list(range(1, len(loss.shape)))) * weights).mean()
            else:
                loss = F.mse_loss(pred.float(), target.float(), reduction="mean")
            (loss / accumulation).backward()
            total += loss.item() / accumulation
        if rows:
            table.grad[:vocabulary] = 0
        if case.get("clip", 1.0):
            torch.nn.utils.clip_grad_norm_(learning, case.get("clip", 1.0))
        for o, s in zip(made, schedules):
            o.step()
            if "schedule" in case:
                s.step()
            o.zero_grad()
        if rows:
            with torch.no_grad():
                table[:vocabulary] = old
        losses.append(total)
    out = plain(unet_factors | te_factors)
    if rows:
        out["rows"] = table.detach()[vocabulary:].clone()
    out["losses"] = torch.tensor(losses, dtype=torch.float64)
    save_file(out, f"{DATA}/{name}.safetensors")
    print(f"{name}: {len(start) // 2} layers, {rows} rows, loss {losses[0]:.4f} to {losses[-1]:.4f}",
          f"d {[o.param_groups[0]['d'] for o in made]}" if "prodigy" in case else "")


# -- what we wrote, in their readers ----------------------------------------------------------------------------------

def check(name, form, path):
    case = CASES[name]
    unet, text, _ = load(case["model"])
    want = {k: v for k, v in load_file(f"{DATA}/{name}.safetensors").items() if "lora_" in k}
    scale = case.get("alpha", RANK) / RANK
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        if form == "peft":
            models = {c: PeftModel.from_pretrained(m, f"{path}/{c}")
                      for c, m in (("unet", unet), ("text_encoder", text)) if os.path.isdir(f"{path}/{c}")}
        else:
            vae = AutoencoderKL.from_pretrained(f"{MODELS}/{case['model']}", subfolder="vae")
            pipe = StableDiffusionPipeline(vae, text, None, unet, DDPMScheduler(), None, None,
                                           requires_safety_checker=False)
            pipe.load_lora_weights(path)
            models = {"unet": unet, "text_encoder": text}
    for w in heard:
        if "missing" in str(w.message) or "unexpected" in str(w.message):
            sys.exit(f"{path}: {w.message}")
    worst, used = 0.0, 0
    for component, model in models.items():
        for path_, module in model.named_modules():
            if not hasattr(module, "lora_A") or not len(module.lora_A):
                continue
            adapter, = module.lora_A.keys()
            a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
            key = f"{component}.{path_.removeprefix('base_model.model.')}"
            ra, rb = want[key + ".lora_A.weight"], want[key + ".lora_B.weight"]
            theirs = scale * rb.flatten(1) @ ra.flatten(1)
            ours = module.scaling[adapter] * b.flatten(1) @ a.flatten(1)
            worst = max(worst, ((ours - theirs).norm() / theirs.norm()).item())
            used += 2
    if used != len(want) or not worst <= 5e-3:
        sys.exit(f"{path}: {used} of {len(want)} factors, worst difference {worst:.1e}")
    print(f"{name} as {form}: {used} factors, worst difference of a weight's change {worst:.1e}")


def text_encoder():
    """For tests that read captions: an encoder as wide as sd1's, that fits the tokenizer in tests/data/tokenizer/tiny."""
    torch.manual_seed(21)
    model = CLIPTextModel(CLIPTextConfig(vocab_size=664, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
                                         num_attention_heads=2, max_position_embeddings=16, hidden_act="quick_gelu",
                                         projection_dim=24, bos_token_id=662, eos_token_id=663))
    for p in model.parameters():
        p.data = (p.data + 0.02 * torch.randn(p.shape)).half()
    model.half().save_pretrained(f"{DATA}/text_encoder")


def schedules():
    """The rate at each of 14 steps, over the rate asked for: diffusers' get_scheduler."""
    with open(f"{DATA}/schedules.txt", "w") as f:
        for name in ("constant", "linear", "cosine", "polynomial", "constant_with_warmup"):
            for warmup, steps in ((0, 12), (4, 12), (1, 5), (12, 12)):
                if name == "polynomial" and warmup == steps:
                    continue        # diffusers divides by zero
                o = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
                s = get_scheduler(name, o, num_warmup_steps=warmup, num_training_steps=steps)
                rates = []
                for _ in range(14):
                    rates.append(o.param_groups[0]["lr"] / 3e-4)
                    o.step()
                    s.step()
                f.write(" ".join([name, str(warmup), str(steps)] + [repr(r) for r in rates]) + "\n")


def main():
    if len(sys.argv) > 1:
        check(*sys.argv[2:5])
        return
    os.makedirs(DATA, exist_ok=True)
    text_encoder()
    schedules()
    batches = {}
    for model, count, seed in (("sd1", 2 * STEPS, 1), ("sd2", STEPS, 2)):
        batches[model] = replay(model, load(model)[1], count, seed)
    for name, case in CASES.items():
        train(name, case, batches[case["model"]])
    for model, b in batches.items():
        save_file(b, f"{DATA}/{model}.replay.safetensors")
    for rows in (1, 2):
        b = with_tokens(batches["sd1"], load("sd1")[1].config.vocab_size, rows)
        save_file({k: v for k, v in b.items() if int(k[5:9]) < STEPS}, f"{DATA}/sd1.{rows}.replay.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
