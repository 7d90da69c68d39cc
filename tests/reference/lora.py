#!/usr/bin/env python3
"""lora.py - the same adapters in every dialect, and what the reference libraries read in files of ours.

    tests/reference/lora.py tests/data/lora                           writes the files below
    tests/reference/lora.py check tests/data/lora MODEL FILE...       MODEL is sd1 or sd2: each file (or PEFT folder) is loaded
                                                                      by diffusers or PEFT; every key has to be used, and the
                                                                      effective weights are compared
    tests/reference/lora.py tokens MODEL FILE...                      MODEL is a whole pipeline's folder: each embedding is loaded by
                                                                      diffusers' load_textual_inversion, its rows compared
                                                                      (done with sd-train-ti's, sd-train-lora's and sd-merge's, in
                                                                      both forms, of one and of three rows, on the miniature: equal)
    tests/reference/lora.py hashes                                    kohya's two hashes, for tests/unit/lora.c

For each tiny model of tests/data/models: MODEL.expected.safetensors holds, by module path, the change of its weight, and one
UNet pass with these changes in the weights, in double.  Every other file says the same in its own way.  Where diffusers or
PEFT read a dialect they have read the file here and found these changes; where one of them writes it, its own writer did.

Pinned: torch 2.15, diffusers 0.42.1, transformers 5.23.0, peft 0.21.2, safetensors 0.8.0.  Same versions, same bytes,
but for the order of pairs in the metadata."""
import hashlib
import json
import logging
import os
import shutil
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
here = os.path.dirname(os.path.abspath(__file__))
sys.path.remove(here)                                           # scripts here are named after what they check
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline, AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save, save_file
from transformers import CLIPTextModel

MODELS = os.path.join(here, "..", "data", "models")
T = "transformer_blocks.0"
# module: rank, scale
LAYERS = {
    "sd1": {"unet": {f"down_blocks.0.attentions.0.{T}.attn1.to_q": (2, 0.5), f"down_blocks.0.attentions.0.{T}.attn1.to_out.0": (2, 0.5),
                     f"down_blocks.1.attentions.1.{T}.attn2.to_k": (4, 0.25), f"up_blocks.2.attentions.0.{T}.ff.net.0.proj": (2, 0.5),
                     f"up_blocks.1.attentions.2.{T}.ff.net.2": (2, 1.25), f"mid_block.attentions.0.{T}.attn2.to_v": (2, 0.5),
                     "down_blocks.0.attentions.1.proj_in": (2, 0.5), "mid_block.attentions.0.proj_out": (3, 0.7),
                     "down_blocks.0.resnets.1.conv1": (2, 0.5), "up_blocks.1.resnets.0.conv_shortcut": (2, 0.5),
                     "mid_block.resnets.1.conv2": (4, 0.3), "up_blocks.0.resnets.1.time_emb_proj": (2, 0.5),
                     "down_blocks.0.downsamplers.0.conv": (2, 0.5), "up_blocks.0.upsamplers.0.conv": (2, 0.5)},
            "text_encoder": {"encoder.layers.0.self_attn.q_proj": (3, 1 / 3), "encoder.layers.2.self_attn.out_proj": (3, 1 / 3),
                             "encoder.layers.1.mlp.fc1": (3, 1 / 3), "encoder.layers.1.mlp.fc2": (2, 0.5)}},
    "sd2": {"unet": {f"down_blocks.0.attentions.0.transformer_blocks.1.attn2.to_q": (2, 0.5),
                     f"up_blocks.0.attentions.1.{T}.attn1.to_v": (2, 0.5), "mid_block.attentions.0.proj_in": (2, 0.5),
                     "up_blocks.1.upsamplers.0.conv": (2, 0.5)},
            "text_encoder": {"encoder.layers.0.self_attn.q_proj": (2, 0.5), "encoder.layers.1.self_attn.k_proj": (2, 0.5),
                             "encoder.layers.1.self_attn.v_proj": (3, 0.5), "encoder.layers.0.self_attn.out_proj": (2, 0.5),
                             "encoder.layers.1.mlp.fc2": (2, 0.5)}},
}


class Loud(logging.Handler):
    """What the libraries only murmur about a file is an error here."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


loud = Loud()
for library in ("diffusers", "peft", "transformers"):
    logging.getLogger(library).addHandler(loud)


def pipeline(model):
    d = f"{MODELS}/{model}"
    variant = "fp16" if model == "sd2" else None
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(d + "/vae", variant=variant), tokenizer=None,
        text_encoder=CLIPTextModel.from_pretrained(d + "/text_encoder", dtype=torch.float32),
        unet=UNet2DConditionModel.from_pretrained(d + "/unet", torch_dtype=torch.float32),
        scheduler=PNDMScheduler(steps_offset=1, skip_prk_steps=True), safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def truth(model, pipe):
    """component -> module -> (down, up, scale)"""
    out, seed = {}, 0
    for part in ("unet", "text_encoder"):
        out[part] = {}
        for name, (rank, scale) in LAYERS[model][part].items():
            w = getattr(pipe, part).get_submodule(name).weight
            g = torch.Generator().manual_seed(900 + seed)
            seed += 1
            down = torch.randn((rank, *w.shape[1:]), generator=g) / w[0].numel() ** 0.5
            up = torch.randn((w.shape[0], rank) + ((1, 1) if w.dim() == 4 else ()), generator=g)
            out[part][name] = (down, up, scale)
    return out


def delta(down, up, scale):
    return scale * (up.double().flatten(1) @ down.double().flatten(1)).reshape(up.shape[0], *down.shape[1:])


def expected(layers):
    return {path_of(part, name): delta(*x) for part in layers for name, x in layers[part].items()}


def path_of(part, name):
    return f"unet.{name}" if part == "unet" else f"text_encoder.text_model.{name}"


# -- what a library has loaded ----------------------------------------------------------------------------------------

def loaded(module, part):
    """Effective changes of a module that carries one adapter."""
    out = {}
    for name, m in module.named_modules():
        if isinstance(m, LoraLayer):
            name = name.removeprefix("base_model.model.")
            (adapter,) = m.lora_A.keys()
            down, up = m.lora_A[adapter].weight, m.lora_B[adapter].weight
            out[path_of(part, name)] = delta(down.detach(), up.detach(), m.scaling[adapter])
    return out


def compare(what, got, want, tolerance):
    missing, extra = want.keys() - got.keys(), got.keys() - want.keys()
    assert not missing and not extra, f"{what}: not loaded {sorted(missing)}, loaded besides {sorted(extra)}"
    worst = max(float((got[k] - want[k]).norm() / want[k].norm()) for k in want)
    assert worst <= tolerance, f"{what}: {worst}"
    print(f"{what}: {len(want)} layers, relative difference {worst:.1e}")


def check(model, path, want, tolerance=1e-6):
    loud.said.clear()
    pipe, got = pipeline(model), {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if os.path.isdir(path):
            for part in ("unet", "text_encoder"):
                if os.path.isdir(f"{path}/{part}"):
                    got |= loaded(PeftModel.from_pretrained(getattr(pipe, part), f"{path}/{part}"), part)
        else:
            pipe.load_lora_weights(path)
            got = loaded(pipe.unet, "unet") | loaded(pipe.text_encoder, "text_encoder")
    said = [str(w.message) for w in said] + loud.said
    said = [s for s in said if "key" in s.lower() or "no lora" in s.lower()]
    assert not said, f"{path}: {said}"
    compare(path, got, want, tolerance)


# -- dialects ---------------------------------------------------------------------------------------------------------

def kohya(layers, alphas, unet_names=None):
    """alphas: (part, name, rank, scale) -> alpha tensor or None; the rest of the scale goes into up"""
    out = {}
    for part in layers:
        for name, (down, up, scale) in layers[part].items():
            inner = f"text_model.{name}" if part == "text_encoder" else unet_names[name] if unet_names else name
            key = ("lora_unet_" if part == "unet" else "lora_te_") + inner.replace(".", "_")
            alpha = alphas(part, name, down.shape[0], scale)
            left = scale / ((float(alpha) if alpha is not None else down.shape[0]) / down.shape[0])
            out |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": (up.double() * left).float()}
            if alpha is not None:
                out[f"{key}.alpha"] = alpha
    return out


def one_alpha(part, _name, _rank, _scale):
    return torch.tensor(1.0)


def odd_alphas(_part, name, rank, scale):
    """of every shape and dtype in circulation"""
    if "to_q" in name:
        return None
    if "proj_in" in name or "q_proj" in name:
        return torch.tensor(rank, dtype=torch.int64)
    if "conv" in name:
        return torch.tensor([rank * scale])
    if "ff" in name:
        return torch.tensor(float(rank), dtype=torch.float16)
    return torch.tensor(rank * scale, dtype=torch.float64)


def ldm_names(model, pipe):
    sys.path.insert(0, here)
    import models       # takes its folder off the path itself
    state = models.unet_to_ldm(pipe.unet)
    by_data = {v.data_ptr(): k.removesuffix(".weight") for k, v in state.items()}
    return {name: by_data[pipe.unet.get_submodule(name).weight.data_ptr()] for name in LAYERS[model]["unet"]}


def folded(layers):
    for part in layers:
        for name, (down, up, scale) in layers[part].items():
            yield part, name, down, (up.double() * scale).float()


def middle(layers):
    out = {}
    for part, name, down, up in folded(layers):
        key, mid = (f"unet.{name}", "lora") if part == "unet" else (f"text_encoder.text_model.{name}", "lora_linear_layer")
        out |= {f"{key}.{mid}.down.weight": down, f"{key}.{mid}.up.weight": up}
    return out


def oldest(layers):
    """attention alone: there was no other"""
    out, kept = {}, {"unet": {}, "text_encoder": {}}
    for part, name, down, up in folded(layers):
        if part == "unet" and ".attn" in name:
            head, last = name.rsplit(".to_", 1)
            key = f"unet.{head}.processor.to_{last.removesuffix('.0')}_lora"
        elif "self_attn" in name:
            head, last = name.rsplit(".", 1)
            key = f"text_encoder.text_model.{head}.to_{last.removesuffix('_proj')}_lora"
        else:
            continue
        kept[part][name] = layers[part][name]
        out |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return out, kept


def comfy(layers, names):
    out = {}
    for part in layers:
        for name, (down, up, scale) in layers[part].items():
            key = f"diffusion_model.{names[name]}" if part == "unet" else f"text_encoders.clip_l.transformer.text_model.{name}"
            out |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.alpha": torch.tensor(down.shape[0] * scale)}
    return out


def mixed(layers, model):
    """one file, each key of another generation: a reader has to take each by itself"""
    a, b, c = kohya(layers, odd_alphas), middle(layers), comfy(layers, ldm_names(model, pipeline(model)))
    out = {}
    for i, (k, m, f) in enumerate(zip(group(a), group(b), group(c))):
        out |= (k, m, f)[i % 3]
    return out


def group(state):
    by = {}
    for k, v in state.items():
        for end in (".lora_down.weight", ".lora_up.weight", ".alpha", ".lora.down.weight", ".lora.up.weight", ".lora_A.weight",
                    ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight", ".lora_B.weight"):
            if k.endswith(end):
                by.setdefault(k.removesuffix(end), {})[k] = v
                break
    return by.values()


def config(layers, part, rslora):
    """PEFT's; one pattern is a regular expression"""
    of = layers[part]
    ranks = {n: d.shape[0] for n, (d, _, _) in of.items()}
    alphas = {n: s * (d.shape[0] ** 0.5 if rslora else d.shape[0]) for n, (d, _, s) in of.items()}
    r, alpha = 2, 1.0 if not rslora else 0.5 * 2 ** 0.5
    return LoraConfig(r=r, lora_alpha=alpha, target_modules=list(of), use_rslora=rslora,
                      rank_pattern={n: x for n, x in ranks.items() if x != r},
                      alpha_pattern={(n.replace("down_blocks.1", r"down_blocks.(1|7)").replace("mid_block", "mid_bloc[k]")): x
                                     for n, x in alphas.items() if x != alpha})


def fill(model, layers, part):
    with torch.no_grad():
        for name, m in model.named_modules():
            if isinstance(m, LoraLayer):
                down, up, scale = layers[part][name.removeprefix("base_model.model.")]
                (adapter,) = m.lora_A.keys()
                m.lora_A[adapter].weight.copy_(down)
                m.lora_B[adapter].weight.copy_(up)
                assert abs(m.scaling[adapter] - scale) < 1e-12, (name, m.scaling, scale)


def by_diffusers(model, layers, path):
    """the library's own writer, with lora_adapter_metadata"""
    pipe = pipeline(model)
    kinds, states = {}, {}
    for part in ("unet", "text_encoder"):
        m, c = getattr(pipe, part), config(layers, part, rslora=False)
        m.add_adapter(c, "default")
        fill(m, layers, part)
        states[part] = get_peft_model_state_dict(m, adapter_name="default")
        kinds[part] = {k: sorted(v) if isinstance(v, set) else v for k, v in c.to_dict().items()
                       if k in ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias",
                                "lora_dropout", "init_lora_weights")}
    folder = path + ".folder"
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=states["unet"],
                                              text_encoder_lora_layers=states["text_encoder"],
                                              unet_lora_adapter_metadata=kinds["unet"],
                                              text_encoder_lora_adapter_metadata=kinds["text_encoder"])
    shutil.move(folder + "/pytorch_lora_weights.safetensors", path)
    shutil.rmtree(folder)


def by_peft(model, layers, path):
    pipe = pipeline(model)
    shutil.rmtree(path, ignore_errors=True)
    for part in ("unet", "text_encoder"):
        m = get_peft_model(getattr(pipe, part), config(layers, part, rslora=part == "text_encoder"))
        fill(m, layers, part)
        m.save_pretrained(f"{path}/{part}")
        os.remove(f"{path}/{part}/README.md")
        with open(f"{path}/{part}/adapter_config.json") as f:
            c = json.load(f)
        c["target_modules"] = sorted(c["target_modules"])       # a set: another order in every run
        with open(f"{path}/{part}/adapter_config.json", "w") as f:
            f.write(json.dumps(c, indent=2, sort_keys=True) + "\n")


# -- all --------------------------------------------------------------------------------------------------------------

def nhwc(x):
    return x.permute(0, 2, 3, 1).float().contiguous()


def normal(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def forward(model, layers):
    """One pass of the UNet, and of the text encoder, with the changes in the weights."""
    pipe = pipeline(model)
    for part in layers:
        getattr(pipe, part).double()
        for name, x in layers[part].items():
            getattr(pipe, part).get_submodule(name).weight.data += delta(*x)
    c = pipe.unet.config
    sample, states = normal((2, 4, 8, 8), 41), normal((2, 5, c.cross_attention_dim), 42)
    t = torch.tensor([801, 20])
    ids = torch.randint(0, pipe.text_encoder.config.vocab_size - 2, (1, 7), generator=torch.Generator().manual_seed(43))
    return {"sample": nhwc(sample), "timesteps": t.float(), "encoder_hidden_states": states, "input_ids": ids.int(),
            "model_pred": nhwc(pipe.unet(sample.double(), t, states.double()).sample),
            "states": pipe.text_encoder(ids).last_hidden_state.float()}


def pt(state, path, **metadata):
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata={"format": "pt"} | metadata)


def write(root, model):
    p = f"{root}/{model}"
    pipe = pipeline(model)
    layers = truth(model, pipe)
    want = expected(layers)
    save_file({k: v.float() for k, v in want.items()} | forward(model, layers), f"{p}.expected.safetensors")
    pt(kohya(layers, one_alpha), f"{p}.kohya.safetensors", ss_v2=str(model == "sd2"), ss_network_module="networks.lora",
       ss_base_model_version="sd_v2" if model == "sd2" else "sd_v1", ss_network_dim="2", ss_network_alpha="1.0",
       ss_network_args="{}", ss_steps="12", ss_output_name="tiny")
    by_diffusers(model, layers, f"{p}.diffusers.safetensors")
    by_peft(model, layers, f"{p}.peft")
    for end in ("kohya.safetensors", "diffusers.safetensors", "peft"):
        check(model, f"{p}.{end}", want, 2e-6)
    if model == "sd2":
        return
    names = ldm_names(model, pipe)
    pt(kohya(layers, odd_alphas, names), f"{p}.kohya_ldm.safetensors")
    pt(middle(layers), f"{p}.diffusers_middle.safetensors")
    check(model, f"{p}.diffusers_middle.safetensors", want, 2e-6)
    old, part = oldest(layers)
    pt(old, f"{p}.diffusers_oldest.safetensors")
    check(model, f"{p}.diffusers_oldest.safetensors", expected(part), 2e-6)
    pt(comfy(layers, names), f"{p}.comfy.safetensors")
    pt(mixed(layers, model), f"{p}.mixed.safetensors")


def hashes():
    """kohya's precalculate_safetensors_hashes over the file that tests/unit/lora.c writes: 64 x 3000 numbers twice."""
    n = torch.arange(64 * 3000)
    key = "lora_unet_mid_block_attentions_0_proj_in"
    data = save({f"{key}.lora_down.weight": ((n % 251).float() / 64).reshape(64, 3000),
                 f"{key}.lora_up.weight": ((n % 241).float() / 64).reshape(3000, 64), f"{key}.alpha": torch.tensor(64.0)},
                {"ss_v2": "False", "ss_network_dim": "64"})
    header = int.from_bytes(data[:8], "little")
    print("sshs_model_hash", hashlib.sha256(data[8 + header:]).hexdigest())
    print("sshs_legacy_hash", hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8])


def tokens(model, paths):
    for path in paths:
        pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, requires_safety_checker=False, torch_dtype=torch.float32)
        (key, want), = load_file(path).items()
        want = want.float().reshape(-1, want.shape[-1])
        before = len(pipe.tokenizer)
        loud.said.clear()
        # emb_params is A1111's and ComfyUI's: the token's name is not in the file
        pipe.load_textual_inversion(path, **({"token": "<named>"} if key == "emb_params" else {}))
        token = "<named>" if key == "emb_params" else key
        names = [token] + [f"{token}_{i}" for i in range(1, len(want))]
        ids = pipe.tokenizer.convert_tokens_to_ids(names)
        assert ids == list(range(before, before + len(want))), f"{path}: {names} are {ids}"
        got = pipe.text_encoder.get_input_embeddings().weight[ids]
        assert torch.equal(got, want), f"{path}: rows differ by {(got - want).abs().max()}"
        # and a prompt with the token is read as those rows
        text = pipe.tokenizer(pipe.maybe_convert_prompt(f"a {token} here", pipe.tokenizer)).input_ids
        assert [i for i in text if i >= before] == ids, f"{path}: the prompt reads {text}"
        said = [s for s in loud.said if "key" in s.lower()]
        assert not said, f"{path}: {said}"
        print(f"{path}: {token}, {len(want)} rows of {want.shape[1]}")


def main():
    if sys.argv[1] == "tokens":
        tokens(sys.argv[2], sys.argv[3:])
        return
    if sys.argv[1] == "hashes":
        hashes()
        return
    if sys.argv[1] == "check":
        root, model = sys.argv[2:4]
        want = {k: v.double() for k, v in load_file(f"{root}/{model}.expected.safetensors").items()
                if k.startswith(("unet.", "text_encoder."))}
        tolerance = float(os.environ.get("TOLERANCE", "2e-6"))
        for path in sys.argv[4:]:
            check(model, path, want, tolerance)
        return
    os.makedirs(sys.argv[1], exist_ok=True)
    for model in ("sd1", "sd2"):
        write(sys.argv[1], model)


if __name__ == "__main__":
    with torch.no_grad():
        main()
