#!/usr/bin/env python3
"""models.py - tiny random Stable Diffusion models, and what the reference libraries compute with them.

Writes tests/data/models: complete diffusers directories (as today's libraries save them, and re-written as published
ones look), the same weights as single-file checkpoints in the LDM layout (converted here, by a table of its own, and
read back by diffusers as a check), and one safetensors file per case with inputs and every stage's output.  Weights are
rounded to what the files hold (F16, some F32); the libraries then compute in double, so that what is stored is the
truth to seven digits.  Feature maps are stored NHWC, as sd-tools holds them.

    tests/reference/models.py tests/data/models
    tests/reference/models.py tests/data/models examples/miniature/model     only that model's cases, miniature.*

Pinned: torch 2.15, diffusers 0.42.1, transformers 5.23.0, safetensors 0.8.0.  Same versions, same bytes."""
import json
import os
import shutil
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.remove(os.path.dirname(os.path.abspath(__file__)))     # scripts here are named after what they check
import torch
from diffusers import (AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel)
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from transformers import CLIPTextConfig, CLIPTextModel

SD1 = {
    "unet": dict(sample_size=[10, 14], in_channels=4, out_channels=4, block_out_channels=[8, 16, 16],
                 layers_per_block=2, down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
                 up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
                 attention_head_dim=2, cross_attention_dim=24, norm_num_groups=4),
    "vae": dict(block_out_channels=[8, 16, 16], layers_per_block=1, norm_num_groups=4, sample_size=40,
                scaling_factor=0.3,
                down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3),
    "text": dict(vocab_size=99, hidden_size=24, intermediate_size=56, num_hidden_layers=3, num_attention_heads=2,
                 max_position_embeddings=13, hidden_act="quick_gelu", projection_dim=24, bos_token_id=97,
                 eos_token_id=98),
    "scheduler": PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
                               steps_offset=1, set_alpha_to_one=False),
}
SD2 = {
    "unet": dict(sample_size=12, in_channels=4, out_channels=4, block_out_channels=[8, 12, 24], layers_per_block=1,
                 down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                 up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
                 attention_head_dim=[1, 2, 3], cross_attention_dim=20, norm_num_groups=2, use_linear_projection=True,
                 transformer_layers_per_block=[2, 1, 1], upcast_attention=True),
    "vae": dict(block_out_channels=[6, 10], layers_per_block=2, norm_num_groups=2, sample_size=24,
                down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2),
    "text": dict(vocab_size=80, hidden_size=20, intermediate_size=44, num_hidden_layers=2, num_attention_heads=5,
                 max_position_embeddings=9, hidden_act="gelu", projection_dim=16, bos_token_id=78, eos_token_id=79,
                 pad_token_id=0),
    "scheduler": DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
                               prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False),
}


# Small outputs in front of norms of each kind, so that a wrong epsilon shows: variances there are near 1e-4.
QUIET = ("conv_in.", "down_blocks.0.resnets.0.conv2.", "mid_block.resnets.0.conv2.", "_embedding.weight")


def randomise(model, seed):
    """Weights of the size that keeps activations near 1; norms and biases are not left at 1 and 0."""
    g = torch.Generator().manual_seed(seed)
    for name, p in sorted(model.named_parameters()):
        r = torch.randn(p.shape, generator=g)
        if "embedding" in name and "time_embedding" not in name:
            r = 0.5 * r
        elif p.dim() > 1:
            r = r / (p[0].numel() ** 0.5)
        elif "norm" in name and name.endswith("weight"):
            r = 1 + 0.2 * r
        else:
            r = 0.2 * r
        if any(q in name for q in QUIET):
            r = 0.02 * r
        p.data = r.half().float()
    return model.eval()


def build(c, seed):
    torch.manual_seed(0)
    unet = randomise(UNet2DConditionModel(**c["unet"]), seed)
    vae = randomise(AutoencoderKL(**c["vae"]), seed + 1)
    text = randomise(CLIPTextModel(CLIPTextConfig(**c["text"])), seed + 2)
    return unet, vae, text


# -- single files: the LDM layout, from the published table -----------------------------------------------------------

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}


def rename(state, pairs):
    """pairs: (prefix, new prefix), the longest that matches at a dot is taken."""
    out = {}
    for k, v in state.items():
        best = max((p for p in pairs if k == p[0] or k.startswith(p[0] + ".")), key=lambda p: len(p[0]))
        out[best[1] + k[len(best[0]):]] = v
    assert len(out) == len(state)
    return out


def unet_to_ldm(unet):
    n, blocks = unet.config.layers_per_block, len(unet.config.block_out_channels)
    pairs = [("conv_in", "input_blocks.0.0"), ("time_embedding.linear_1", "time_embed.0"),
             ("time_embedding.linear_2", "time_embed.2"), ("conv_norm_out", "out.0"), ("conv_out", "out.2")]

    def resnet(a, b):
        pairs.extend((f"{a}.{x}", f"{b}.{y}") for x, y in RESNET.items())

    at = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(n):
            resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{at}.0")
            pairs.append((f"down_blocks.{i}.attentions.{j}", f"input_blocks.{at}.1"))
            at += 1
        if block.downsamplers:
            pairs.append((f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{at}.0.op"))
            at += 1
    resnet("mid_block.resnets.0", "middle_block.0")
    pairs.append(("mid_block.attentions.0", "middle_block.1"))
    resnet("mid_block.resnets.1", "middle_block.2")
    at = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(n + 1):
            resnet(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{at}.0")
            pairs.append((f"up_blocks.{i}.attentions.{j}", f"output_blocks.{at}.1"))
            at += 1
        if block.upsamplers:
            last = 2 if hasattr(block, "attentions") else 1
            pairs.append((f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{at - 1}.{last}.conv"))
    return rename(unet.state_dict(), pairs)


def vae_to_ldm(vae):
    top = len(vae.config.block_out_channels) - 1
    pairs = [(k, k) for k in ("quant_conv", "post_quant_conv")]
    for part in ("encoder", "decoder"):
        pairs += [(f"{part}.conv_in", f"{part}.conv_in"), (f"{part}.conv_out", f"{part}.conv_out"),
                  (f"{part}.conv_norm_out", f"{part}.norm_out")]
        pairs += [(f"{part}.mid_block.resnets.{j}", f"{part}.mid.block_{j + 1}") for j in (0, 1)]
        pairs += [(f"{part}.mid_block.attentions.0.{a}", f"{part}.mid.attn_1.{b}")
                  for a, b in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
                               ("to_out.0", "proj_out"))]
    for i in range(top + 1):
        for j in range(vae.config.layers_per_block + 1):
            pairs += [(f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}"),
                      (f"decoder.up_blocks.{i}.resnets.{j}", f"decoder.up.{top - i}.block.{j}")]
            pairs += [(a + ".conv_shortcut", b + ".nin_shortcut") for a, b in pairs[-2:]]
        pairs += [(f"encoder.down_blocks.{i}.downsamplers.0.conv", f"encoder.down.{i}.downsample.conv"),
                  (f"decoder.up_blocks.{i}.upsamplers.0.conv", f"decoder.up.{top - i}.upsample.conv")]
    out = rename(vae.state_dict(), pairs)
    for k, v in out.items():
        if ".attn_1." in k and v.dim() == 2:
            out[k] = v[:, :, None, None]
    return out


def text_to_openclip(text, extra_seed):
    """SD2: OpenCLIP names, q, k, v in one tensor, one more layer than is used, a text_projection that is not used."""
    s = text.state_dict()
    n, d = text.config.num_hidden_layers, text.config.hidden_size
    out = {"token_embedding.weight": s["embeddings.token_embedding.weight"],
           "positional_embedding": s["embeddings.position_embedding.weight"],
           "ln_final.weight": s["final_layer_norm.weight"], "ln_final.bias": s["final_layer_norm.bias"]}
    for i in range(n):
        a, b = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for w in ("weight", "bias"):
            out[b + "attn.in_proj_" + w] = torch.cat([s[a + f"self_attn.{x}_proj.{w}"] for x in "qkv"])
            for x, y in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
                         ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj")):
                out[b + y + "." + w] = s[a + x + "." + w]
    g = torch.Generator().manual_seed(extra_seed)
    for k in [k for k in out if k.startswith(f"transformer.resblocks.{n - 1}.")]:
        out[k.replace(f".{n - 1}.", f".{n}.", 1)] = torch.randn(out[k].shape, generator=g)
    out["text_projection"] = torch.randn((d, d), generator=g)
    out["logit_scale"] = torch.tensor(4.6)
    return out


def single_file(path, unet, vae, text, openclip):
    out = {"model.diffusion_model." + k: v for k, v in unet_to_ldm(unet).items()}
    out |= {"first_stage_model." + k: v for k, v in vae_to_ldm(vae).items()}
    if openclip:
        out |= {"cond_stage_model.model." + k: v for k, v in text_to_openclip(text, 77).items()}
    else:
        out |= {"cond_stage_model.transformer.text_model." + k: v for k, v in text.state_dict().items()}
        out["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(13)[None]
    out["betas"] = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000) ** 2
    out = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in out.items()}
    save_file(out, path, metadata={"format": "pt"})


def check_single_file(path, directory, unet, vae):
    """diffusers' own reader of that layout must find the same weights."""
    for cls, part, model in ((UNet2DConditionModel, "unet", unet), (AutoencoderKL, "vae", vae)):
        try:
            read = cls.from_single_file(path, config=directory, subfolder=part, torch_dtype=torch.float32)
        except Exception as e:
            print(f"not checked with from_single_file: {path}: {part}: {type(e).__name__}: {e}", file=sys.stderr)
            continue
        mine, theirs = model.state_dict(), read.state_dict()
        assert mine.keys() == theirs.keys(), part
        for k in mine:
            assert torch.equal(mine[k], theirs[k].float()), (part, k)
        print(f"{path}: {part}: {len(mine)} tensors equal through from_single_file")


# -- directories -----------------------------------------------------------------------------------------------------

def save(c, directory, unet, vae, text, published):
    shutil.rmtree(directory, ignore_errors=True)
    # not through the pipeline's own save: there is no tokenizer here
    unet.half().save_pretrained(f"{directory}/unet", **({"max_shard_size": "150KB"} if published else {}))
    vae.half().save_pretrained(f"{directory}/vae")
    text.save_pretrained(f"{directory}/text_encoder")       # F32
    unet.float(), vae.float()
    c["scheduler"].save_pretrained(f"{directory}/scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
             "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
             "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
             "scheduler": ["diffusers", type(c["scheduler"]).__name__], "safety_checker": [None, None],
             "feature_extractor": [None, None], "requires_safety_checker": False}
    with open(f"{directory}/model_index.json", "w") as f:
        f.write(json.dumps(index, indent=2, sort_keys=True) + "\n")
    if published:       # as on the Hub: the text encoder with prefix and position_ids, the VAE's attention by old names
        path = f"{directory}/text_encoder/model.safetensors"
        s = {"text_model." + k: v.half() for k, v in load_file(path).items()}
        s["text_model.embeddings.position_ids"] = torch.arange(c["text"]["max_position_embeddings"])[None]
        save_file(s, path, metadata={"format": "pt"})
        path = f"{directory}/vae/diffusion_pytorch_model.safetensors"
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        s = {}
        for k, v in load_file(path).items():
            if ".attentions.0." in k:
                for a, b in old.items():
                    k = k.replace(f".{a}.", f".{b}.")
            s[k] = v
        save_file(s, path, metadata={"format": "pt"})
        shutil.move(path, f"{directory}/vae/diffusion_pytorch_model.fp16.safetensors")


# -- cases -----------------------------------------------------------------------------------------------------------

def nhwc(x):
    return (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).detach().float().contiguous()


def record(model, names, out, prefix):
    """Hooks that put each named module's output under its path."""
    handles = []
    for name, module in model.named_modules():
        if any(name == n or (n[0] == "*" and n[1:] in name and name[name.rindex(n[1:]):].count(".") == n.count("."))
               for n in names):
            def hook(_m, _i, o, name=name):
                out[f"{prefix}.{name}"] = nhwc(o[0] if isinstance(o, tuple) else getattr(o, "sample", o))
            handles.append(module.register_forward_hook(hook))
    return handles


def normal(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


EVERY = ["conv_in", "time_embedding", "*.resnets.", "*.attentions.", "*.transformer_blocks.", "*.downsamplers.",
         "*.upsamplers.", "encoder.conv_in", "decoder.conv_in"]
SOME = ["*.attentions."]        # enough to say where a difference begins, small enough for the tree


def unet_case(unet, path, height, width, tokens, timesteps, seed, names=EVERY):
    c = unet.config
    sample = normal((len(timesteps), 4, height, width), seed)
    states = normal((len(timesteps), tokens, c.cross_attention_dim), seed + 1)
    out = {"sample": nhwc(sample), "timesteps": torch.tensor(timesteps, dtype=torch.float32),
           "encoder_hidden_states": states}
    handles = record(unet, names, out, "unet")
    unet.double()
    out["model_pred"] = nhwc(unet(sample.double(), torch.tensor(timesteps), states.double()).sample)
    unet.float()
    for h in handles:
        h.remove()
    save_file(out, path)
    print(path, len(out), "tensors; rms", f"{out['model_pred'].pow(2).mean().sqrt():.3f}")


def vae_case(vae, path, height, width, seed, names=EVERY, batch=2):
    f = 2 ** (len(vae.config.block_out_channels) - 1)
    pixels = normal((batch, 3, height, width), seed).clamp(-1, 1)
    latents = normal((batch, 4, height // f, width // f + 1), seed + 1)
    out = {"pixel_values": nhwc(pixels), "latents": nhwc(latents)}
    handles = record(vae, names, out, "vae")
    vae.double()
    out["moments"] = nhwc(vae.encode(pixels.double()).latent_dist.parameters)
    out["decoded"] = nhwc(vae.decode(latents.double()).sample)
    vae.float()
    for h in handles:
        h.remove()
    save_file(out, path)
    print(path, len(out), "tensors; rms", *(f"{out[k].pow(2).mean().sqrt():.3f}" for k in ("moments", "decoded")))


def text_case(text, path, seed):
    """Ids with two learned tokens behind the vocabulary; all hidden states, and what clip_skip 0, 1, 2 gives."""
    c = text.config
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, c.vocab_size - 2, (2, min(13, c.max_position_embeddings)), generator=g)
    ids[:, 0], ids[0, 6:], ids[1, -1] = c.bos_token_id, c.eos_token_id, c.eos_token_id
    rows = 0.5 * normal((2, c.hidden_size), seed + 1)
    out = {"input_ids": ids.int().clone(), "rows": rows}

    def run(name, ids):
        r = text.double()(ids, output_hidden_states=True)
        # transformers 5 normalises the last entry of hidden_states: each layer's own output is taken by a hook instead
        for skip in range(min(3, c.num_hidden_layers)):
            hidden = layers[c.num_hidden_layers - 1 - skip]
            out[f"{name}.clip_skip.{skip}"] = text.final_layer_norm(hidden).detach().float()
        assert torch.equal(out[f"{name}.clip_skip.0"], r.last_hidden_state.detach().float())
        for i, h in enumerate(layers):
            out[f"{name}.layers.{i}"] = h.detach().float()
        layers.clear()

    layers = []
    handles = [layer.register_forward_hook(lambda _m, _i, o: layers.append(o[0] if isinstance(o, tuple) else o))
               for layer in text.encoder.layers]
    with torch.no_grad():
        run("plain", ids)
        ids = ids.clone()
        ids[0, 2], ids[1, 3], ids[1, 4] = c.vocab_size, c.vocab_size + 1, c.vocab_size
        out["learned_ids"] = ids.int()
        table = text.embeddings.token_embedding.weight
        text.embeddings.token_embedding.weight = torch.nn.Parameter(torch.cat([table, rows.double()]))
        run("learned", ids)
        text.embeddings.token_embedding.weight = table
    for h in handles:
        h.remove()
    text.float()
    save_file(out, path)
    print(path, len(out), "tensors; rms", f"{out['plain.clip_skip.0'].pow(2).mean().sqrt():.3f}")


ADAPTED = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj", "down_blocks.1.attentions.1.proj_in",
    "down_blocks.0.resnets.1.conv1", "down_blocks.0.resnets.0.conv2", "up_blocks.0.resnets.0.conv_shortcut",
    "up_blocks.2.resnets.1.time_emb_proj", "down_blocks.1.downsamplers.0.conv", "up_blocks.1.upsamplers.0.conv",
    "conv_in",
]
ADAPTED_TEXT = ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.out_proj", "encoder.layers.2.mlp.fc1"]


def low_rank(w, rank, seed):
    """down and up for a weight, in the shapes adapters have."""
    down = normal((rank, *w.shape[1:]), seed) / (w[0].numel() ** 0.5)
    return down, normal((w.shape[0], rank) + ((1, 1) if w.dim() == 4 else ()), seed + 100)


def with_adapter(w, down, up, scale):
    return w + scale * (up.flatten(1) @ down.flatten(1)).reshape(w.shape)


def adapter_case(unet, text, path, height, width, rank=3):
    """Adapters put into the weights, W + s up down: what the unmerged form has to give, and the gradients of a loss
    through UNet and text encoder with respect to every adapter and to two learned token rows."""
    out, leaves = {}, {}
    unet.double(), text.double()
    weights = {"unet": dict(unet.named_parameters()), "text_encoder": dict(text.named_parameters())}
    with torch.enable_grad():
        for i, name in enumerate([("unet", n) for n in ADAPTED] + [("text_encoder", n) for n in ADAPTED_TEXT]):
            component, key = name[0], name[1] + ".weight"
            scale = torch.tensor([0.2 + 0.05 * i])
            down, up = low_rank(weights[component][key], rank, 500 + i)
            at = f"{i}.{component}.{'text_model.' if component == 'text_encoder' else ''}{name[1]}"
            out |= {f"{at}.down": down, f"{at}.up": up, f"{at}.scale": scale}
            leaves[f"{at}.down"], leaves[f"{at}.up"] = down.double().requires_grad_(), up.double().requires_grad_()
            weights[component][key] = with_adapter(weights[component][key], leaves[f"{at}.down"], leaves[f"{at}.up"],
                                                   scale.double())
        rows = 0.05 * normal((2, text.config.hidden_size), 41)
        leaves["rows"] = rows.double().requires_grad_()
        table = "embeddings.token_embedding.weight"
        ids = torch.randint(0, 97, (2, 7), generator=torch.Generator().manual_seed(33))
        ids[0, 3], ids[1, 2], ids[1, 5] = text.config.vocab_size, text.config.vocab_size, text.config.vocab_size + 1
        sample, target = normal((2, 4, height, width), 31), normal((2, 4, height, width), 32)
        per_sample = torch.tensor([1 / target[0].numel(), 0.5 / target[0].numel()])
        weights["text_encoder"][table] = torch.cat([weights["text_encoder"][table], leaves["rows"]])
        states = functional_call(text, weights["text_encoder"], (ids,)).last_hidden_state
        pred = functional_call(unet, weights["unet"], (sample.double(), torch.tensor([801, 20]), states)).sample
        losses = per_sample.double() * ((pred - target.double()) ** 2).sum((1, 2, 3))
        losses.sum().backward()
    out |= {"sample": nhwc(sample), "timesteps": torch.tensor([801.0, 20.0]), "input_ids": ids.int(), "rows": rows,
            "target": nhwc(target), "weight": per_sample, "states": nhwc(states), "model_pred": nhwc(pred),
            "losses": losses.detach().float()}
    out |= {f"d.{k}": v.grad.float() for k, v in leaves.items()}
    unet.float(), text.float()
    save_file(out, path)
    print(path, len(out), "tensors; losses", [f"{x:.4f}" for x in losses.tolist()])


def miniature(directory, root):
    """A model that exists already: its own latent size, and one that is not square."""
    unet = UNet2DConditionModel.from_pretrained(f"{directory}/unet", torch_dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(f"{directory}/vae", torch_dtype=torch.float32).eval()
    text = CLIPTextModel.from_pretrained(f"{directory}/text_encoder", dtype=torch.float32).eval()
    size = unet.config.sample_size
    unet_case(unet, f"{root}/miniature.unet.safetensors", size, size // 2 + 3, 24, [601], 51, SOME)
    vae_case(vae, f"{root}/miniature.vae.safetensors", 32, 48, 53, SOME, batch=1)
    text_case(text, f"{root}/miniature.text.safetensors", 55)


def main():
    root = sys.argv[1]
    os.makedirs(root, exist_ok=True)
    if len(sys.argv) > 2:
        return miniature(sys.argv[2], root)
    for name, c, seed, published in (("sd1", SD1, 100, False), ("sd2", SD2, 200, True)):
        unet, vae, text = build(c, seed)
        directory = f"{root}/{name}"
        save(c, directory, unet, vae, text, published)
        single_file(f"{root}/{name}.safetensors", unet, vae, text, openclip=name == "sd2")
        check_single_file(f"{root}/{name}.safetensors", directory, unet, vae)
        if name == "sd1":
            unet_case(unet, f"{root}/sd1.unet.safetensors", 10, 14, 13, [999, 0], 1)
            unet_case(unet, f"{root}/sd1.unet.even.safetensors", 8, 4, 3, [500], 5, names=[])
            vae_case(vae, f"{root}/sd1.vae.safetensors", 16, 24, 3)
            adapter_case(unet, text, f"{root}/sd1.adapters.safetensors", 8, 4)
        else:
            unet_case(unet, f"{root}/sd2.unet.safetensors", 8, 12, 9, [3, 741], 11)
            vae_case(vae, f"{root}/sd2.vae.safetensors", 10, 12, 13)
        text_case(text, f"{root}/{name}.text.safetensors", 21)


if __name__ == "__main__":
    with torch.no_grad():
        main()
