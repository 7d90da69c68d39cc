"""The miniature's configuration, its tokenizer, and how it is saved."""
import collections
import json
import os
import re

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

import world

LENGTH = 32     # text positions
WIDTH = 128     # text width, and the width of the common space of pictures and texts
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


# ---- tokenizer -------------------------------------------------------------------------------------------

def byte_symbols():
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(256 - len(keep))]


def train_bpe(texts):
    """Byte-pair merges of the words of `texts` (a-z only), until every word is one symbol."""
    words = collections.Counter(w for t in texts for w in re.findall("[a-z]+", t))
    split = {w: [*w[:-1], w[-1] + "</w>"] for w in words}
    merges = []
    while True:
        pairs = collections.Counter()
        for w, s in split.items():
            for p in zip(s, s[1:]):
                pairs[p] += words[w]
        if not pairs:
            break
        best = max(pairs.items(), key=lambda kv: (kv[1], kv[0]))[0]
        merges.append(best)
        for w, s in split.items():
            i, out = 0, []
            while i < len(s):
                if tuple(s[i:i + 2]) == best:
                    out.append(s[i] + s[i + 1])
                    i += 2
                else:
                    out.append(s[i])
                    i += 1
            split[w] = out
    symbols = byte_symbols()
    vocab = symbols + [s + "</w>" for s in symbols] + ["".join(m) for m in merges] + [BOS, EOS]
    assert len(set(vocab)) == len(vocab)
    return {s: i for i, s in enumerate(vocab)}, merges


def save_tokenizer(folder, vocab, merges):
    os.makedirs(folder, exist_ok=True)
    special = lambda t: {"content": t, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    files = {
        "vocab.json": json.dumps(vocab, ensure_ascii=False, separators=(",", ":")) + "\n",
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
        "special_tokens_map.json": json.dumps(
            {"bos_token": special(BOS), "eos_token": special(EOS), "pad_token": EOS, "unk_token": special(EOS)},
            indent=2) + "\n",
        "tokenizer_config.json": json.dumps(
            {"add_prefix_space": False, "bos_token": BOS, "clean_up_tokenization_spaces": False,
             "do_lower_case": True, "eos_token": EOS, "errors": "replace", "model_max_length": LENGTH,
             "pad_token": EOS, "tokenizer_class": "CLIPTokenizer", "unk_token": EOS}, indent=2) + "\n",
    }
    for name, text in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            f.write(text)


def encode(tokenizer, texts):
    return tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids


# ---- models ----------------------------------------------------------------------------------------------

def make_vae():
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 64), layers_per_block=1, norm_num_groups=16, sample_size=world.SIZE)


def make_unet():
    return UNet2DConditionModel(
        sample_size=world.SIZE // 4, block_out_channels=(64, 96, 128), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=16)


def plain_attention(model):
    """The same sums, faster backward on a CPU than the fused kernel."""
    model.set_attn_processor(AttnProcessor())
    return model


def make_text(vocab):
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH,
        num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=LENGTH, hidden_act="quick_gelu",
        bos_token_id=vocab[BOS], eos_token_id=vocab[EOS], pad_token_id=vocab[EOS]))


def make_image():
    return CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH, num_hidden_layers=3,
        num_attention_heads=4, image_size=world.SIZE, patch_size=8, hidden_act="quick_gelu"))


def make_scheduler():
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon")


def save(folder, vocab, merges, vae, text, image, unet):
    """A directory in the published form: f16, text weights with the text_model. prefix."""
    save_tokenizer(os.path.join(folder, "tokenizer"), vocab, merges)
    tokenizer = CLIPTokenizer.from_pretrained(os.path.join(folder, "tokenizer"))
    pipe = StableDiffusionPipeline(
        vae=vae.half(), text_encoder=text.half(), tokenizer=tokenizer, unet=unet.half(), scheduler=make_scheduler(),
        safety_checker=None, feature_extractor=None, image_encoder=image.half(), requires_safety_checker=False)
    pipe.save_pretrained(folder, safe_serialization=True)
    for name in os.listdir(os.path.join(folder, "tokenizer")):
        os.remove(os.path.join(folder, "tokenizer", name))
    save_tokenizer(os.path.join(folder, "tokenizer"), vocab, merges)
    state = {("" if k.startswith("text_model.") else "text_model.") + k: v.contiguous()
             for k, v in text.state_dict().items() if not k.endswith("position_ids")}
    save_file(state, os.path.join(folder, "text_encoder", "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(folder, "image_encoder", "preprocessor_config.json"), "w") as f:
        json.dump({"crop_size": {"height": world.SIZE, "width": world.SIZE}, "do_center_crop": True,
                   "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
                   "image_mean": [0.5] * 3, "image_processor_type": "CLIPImageProcessor", "image_std": [0.5] * 3,
                   "resample": 3, "rescale_factor": 1 / 255, "size": {"shortest_edge": world.SIZE}}, f, indent=2)
        f.write("\n")
    for root, _, names in os.walk(folder):   # no paths of the machine that made it
        for name in names:
            os.chmod(os.path.join(root, name), 0o644)
            if name.endswith(".json"):
                path = os.path.join(root, name)
                with open(path, encoding="utf-8") as f:
                    d = json.load(f)
                if isinstance(d, dict) and "_name_or_path" in d:
                    del d["_name_or_path"]
                    with open(path, "w", encoding="utf-8") as f:
                        f.write(json.dumps(d, indent=2, sort_keys=True) + "\n")


def load(folder):
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
