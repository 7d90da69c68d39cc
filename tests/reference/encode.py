#!/usr/bin/env python3
"""encode.py - what the reference libraries make of pictures and captions on the way to training.

Writes tests/data/encode: pictures with their posteriors by diffusers' AutoencoderKL, whole and in tiles, a mask and its
area average, and captions with their states by transformers' CLIPTextModel, all for the tiny models in
tests/data/models; and a tokenizer of as many tokens as their text encoder knows.  The networks compute in double.

    tests/reference/encode.py tests/data/models tests/data/encode

Pinned: torch 2.15, diffusers 0.42.1, transformers 5.23.0, safetensors 0.8.0.  Same versions, same bytes."""
import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.remove(os.path.dirname(os.path.abspath(__file__)))     # scripts here are named after what they check
import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer


def picture(height, width, seed):
    """Noise over a slope, with edges: nothing is constant, all values occur."""
    r = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    p = 128 + 90 * np.sin(x[..., None] / (5, 7, 11) + y[..., None] / (9, 4, 6)) + r.normal(0, 25, (height, width, 3))
    p[height // 3:height // 2, width // 4:width // 2] = (255, 0, 128)
    return np.clip(p, 0, 255).astype(np.uint8)


def posterior(vae, pixels):
    """latent_dist of one picture, unscaled: mean, and logvar as diffusers clamps it."""
    x = VaeImageProcessor(do_resize=False).preprocess(Image.fromarray(pixels))      # f32, as the pipelines have it
    d = vae.encode(x.double()).latent_dist
    return d.mean[0].float().contiguous(), d.logvar[0].float().contiguous()


def pictures(model, tile, out):
    vae = AutoencoderKL.from_pretrained(f"{model}/vae", variant="fp16" if model.endswith("sd2") else None)
    vae = vae.double().eval()
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    t = {}
    for i, (h, w) in enumerate(((40, 48), (24, 64))):
        p = picture(h, w, i)
        t[f"{i}.pixel_values"] = torch.from_numpy(p)
        t[f"{i}.mean"], t[f"{i}.logvar"] = posterior(vae, p)
    # a logvar beyond both ends: what the clamp is for
    bias = vae.quant_conv.bias.data.clone()
    vae.quant_conv.bias.data[4] += 40
    vae.quant_conv.bias.data[5] -= 60
    t["clamped.mean"], t["clamped.logvar"] = posterior(vae, picture(40, 48, 0))
    vae.quant_conv.bias.data = bias
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // factor
    for i, (h, w) in enumerate(((72, 88), (tile, 3 * tile))):
        p = picture(h, w, 10 + i)
        t[f"tiled.{i}.pixel_values"] = torch.from_numpy(p)
        t[f"tiled.{i}.mean"], t[f"tiled.{i}.logvar"] = posterior(vae, p)
    mask = (np.random.default_rng(5).random((40, 48)) * 256).astype(np.uint8)
    mask[:16, :16] = 255
    mask[24:, 24:] = 0
    t["mask"] = torch.from_numpy(mask)
    t["latent_mask"] = torch.nn.functional.avg_pool2d(torch.from_numpy(mask)[None].double() / 255, factor)[0].float()
    save_file(t, out, metadata={"tile": str(tile)})
    print(out, {k: f"{v.double().pow(2).mean().sqrt():.3f}" for k, v in t.items() if v.is_floating_point()})


def tokenizer(folder, vocab_size, length):
    """All letters, alone and at the end of a word, and as many merges as there is room for."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = list(letters) + [c + "</w>" for c in letters]
    pairs = ["c a", "ca t</w>", "d o", "do g</w>", "r e", "re d</w>", "t h", "th e</w>", "a n", "an d</w>", "h a", "ha t</w>",
             "i n", "in g</w>", "o n</w>", "b l", "bl u", "blu e</w>"]
    pairs += [f"q {c}" for c in letters]
    pairs = pairs[:vocab_size - 2 - len(tokens)]
    tokens += [p.replace(" ", "") for p in pairs]
    tokens += [f"z{i}" for i in range(vocab_size - 2 - len(tokens))] + ["<|startoftext|>", "<|endoftext|>"]
    assert len(tokens) == len(set(tokens)) == vocab_size
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/vocab.json", "w") as f:
        json.dump({t: i for i, t in enumerate(tokens)}, f)
    with open(f"{folder}/merges.txt", "w") as f:
        f.write("#version: 0.2\n" + "\n".join(pairs) + "\n")
    with open(f"{folder}/tokenizer_config.json", "w") as f:
        json.dump({"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "bos_token": "<|startoftext|>",
                   "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, f)


CAPTIONS = ["the cat", "a red dog and the blue cat on the hat sleeping under a table"]


def captions(model, folder, out):
    text = CLIPTextModel.from_pretrained(f"{model}/text_encoder").double().eval()
    length, vocab = text.config.max_position_embeddings, text.config.vocab_size
    tokenizer(folder, vocab, length)
    tok = CLIPTokenizer.from_pretrained(folder)
    t = {}
    for i, caption in enumerate(CAPTIONS):
        ids = tok(caption, add_special_tokens=False).input_ids
        rows = [ids[k:k + length - 2] for k in range(0, max(len(ids), 1), length - 2)]
        rows = [[vocab - 2, *r, vocab - 1] + [vocab - 1] * (length - 2 - len(r)) for r in rows]
        states = text(torch.tensor(rows)).last_hidden_state
        t[f"{i}.input_ids"] = torch.tensor(rows, dtype=torch.int32)
        t[f"{i}.text_states"] = states.reshape(-1, states.shape[-1]).float().contiguous()
    save_file(t, out, metadata={str(i): c for i, c in enumerate(CAPTIONS)})
    print(out, {k: tuple(v.shape) for k, v in t.items()})


def main():
    models, out = sys.argv[1:3]
    os.makedirs(out, exist_ok=True)
    with torch.no_grad():
        pictures(f"{models}/sd1", 32, f"{out}/sd1.safetensors")
        pictures(f"{models}/sd2", 24, f"{out}/sd2.safetensors")
        captions(f"{models}/sd1", f"{out}/tokenizer", f"{out}/captions.safetensors")


main()
