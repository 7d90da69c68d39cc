#!/usr/bin/env python3
"""PyTorch on the rows of tests/bench/cuda.c: random SD1.5 of full size, same shapes, same targets, bf16.

peers.py --peer NAME --row ROW [--device cpu] [--tiny] [--mode MODE]     one row, driven through stdin and stdout
peers.py --budget SECONDS [--rows A,B] [--peers A,B] ...                 all of them by themselves, lines as `cuda` prints them

  eager    as shipped: diffusers' training scripts and pipeline loop; autocast, f32 adapters, AdamW, loss.item() each step
  graph    P1: channels_last, all of bf16 (adapters too, which favours it), fused AdamW, one CUDA graph of the whole step
  compile  P1: the same under torch.compile, MODE (reduce-overhead: inductor with CUDA graphs; max-autotune takes many minutes)

Driven: prints "about TEXT", "memory GB", "ready SECONDS_PER_STEP" after 20 warm-up steps, or "skip WHY"; then answers "run N"
with "time MILLISECONDS" of one step, by CUDA events around N of them.  Wants torch, diffusers, transformers, peft and whatever
they want; written against torch 2.15, diffusers 0.42.1, transformers 5.23, peft 0.21.2.  Nothing is downloaded, nothing of a model
is read."""
import argparse
import os
import select
import subprocess
import sys
import tempfile
import time

ROWS = ["lora1", "guided", "lora8", "decode1024", "ti"]
PEERS = ["eager", "graph", "compile"]
WARM_UP = 20


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--peer", choices=PEERS)
    p.add_argument("--row", choices=ROWS)
    p.add_argument("--device", default="cuda")
    p.add_argument("--tiny", action="store_true")
    p.add_argument("--mode", default=os.environ.get("PEERS_MODE", "reduce-overhead"))
    p.add_argument("--budget", type=float)
    p.add_argument("--rows", default=",".join(ROWS))
    p.add_argument("--peers", default=",".join(PEERS))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=50)
    a = p.parse_args()
    if a.budget is None and not (a.peer and a.row):
        p.error("--peer and --row, or --budget")
    return a


class Skip(Exception):
    """Why a row cannot be run: said aloud, never passed over."""


# -- models: shapes of SD1.5, random numbers ---------------------------------------------------------------------------


def make_unet(a, dtype):
    from diffusers import UNet2DConditionModel

    size = dict(sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8)
    if a.tiny:
        size = dict(sample_size=8, block_out_channels=(32, 64), cross_attention_dim=32, attention_head_dim=8, layers_per_block=1,
                    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    unet = UNet2DConditionModel(in_channels=4, out_channels=4, **size).to(dtype)
    count = sum(p.numel() for p in unet.parameters())
    if not a.tiny and count != 859520964:
        raise Skip(f"the unet has {count} parameters, SD1.5's 859520964")
    return unet.requires_grad_(False)


def make_vae(a, dtype):
    from diffusers import AutoencoderKL

    blocks = (32, 64) if a.tiny else (128, 256, 512, 512)
    vae = AutoencoderKL(block_out_channels=blocks, layers_per_block=2, latent_channels=4, sample_size=512, scaling_factor=0.18215,
                        down_block_types=("DownEncoderBlock2D",) * len(blocks), up_block_types=("UpDecoderBlock2D",) * len(blocks))
    count = sum(p.numel() for p in vae.parameters())
    if not a.tiny and count != 83653863:
        raise Skip(f"the vae has {count} parameters, SD1.5's 83653863")
    return vae.to(dtype).requires_grad_(False)


def make_text(a, dtype):
    from transformers import CLIPTextConfig, CLIPTextModel

    size = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408)
    if a.tiny:
        size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=1000)
    config = CLIPTextConfig(max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=0, eos_token_id=2, **size)
    return CLIPTextModel(config).to(dtype).requires_grad_(False)


# -- rows: each gives a function that runs one step --------------------------------------------------------------------


def noise_scheduler(kind):
    import diffusers
    import torch

    with torch.device("cpu"):           # where its tables are, as shipped
        return getattr(diffusers, kind)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
                                        steps_offset=1, clip_sample=False)


def whole_graph(a, step):
    """The step, recorded as one CUDA graph; on the CPU as it is."""
    import torch

    if a.device != "cuda":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay():
        graph.replay()
        return result

    return replay


def training(a, batch, trains):
    import torch
    import torch.nn.functional as F

    bf16, device, fast = torch.bfloat16, a.device, a.peer != "eager"
    unet = make_unet(a, bf16)
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    text = ids = None
    if trains == "lora":
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        unet.add_adapter(LoraConfig(r=16, lora_alpha=16, init_lora_weights="gaussian",
                                    target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
        cast_training_params(unet, dtype=bf16 if fast else torch.float32)
        learned = [p for p in unet.parameters() if p.requires_grad]
        count = sum(p.numel() for p in learned)
        if not a.tiny and count != 3188736:
            raise Skip(f"{count} numbers are trained, 3188736 expected")
    else:
        text = make_text(a, bf16 if fast else torch.float32)
        text.resize_token_embeddings(text.config.vocab_size + 1, mean_resizing=False)
        new = text.config.vocab_size - 1
        ids = torch.randint(3, new, (batch, 77))
        ids[:, 4] = new
        ids = ids.to(device)
        table = text.get_input_embeddings()
        if fast:        # the one row is what is trained; the script's optimizer goes over the whole table
            row = torch.nn.Parameter(table.weight[new].detach().float().clone())
            table.forward = lambda i: torch.where((i == new)[..., None], row.to(bf16), F.embedding(i, table.weight))
            learned = [row]
        else:
            table.weight.requires_grad_(True)
            learned = [table.weight]
            others = torch.ones(table.weight.shape[0], dtype=torch.bool, device=device)
            others[new] = False
            before = table.weight.detach().clone()
    unet.train()
    latents = torch.randn(batch, 4, side, side, dtype=bf16) * 0.9
    states = torch.randn(batch, 77, width, dtype=bf16)
    if fast:
        unet.to(memory_format=torch.channels_last)
        latents = latents.to(memory_format=torch.channels_last)
    options = dict(lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    if fast and device == "cuda":
        options.update(fused=True, capturable=a.peer == "graph")
    optimizer = torch.optim.AdamW(learned, **options)
    scheduler = noise_scheduler("DDPMScheduler")
    rate = None if fast else torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    alphas = scheduler.alphas_cumprod.to(device=device, dtype=torch.float32)
    total = [0.0]

    def forward(noisy, timesteps, states, noise):
        context = text(ids)[0] if fast and text is not None else states
        return F.mse_loss(unet(noisy, timesteps, context, return_dict=False)[0].float(), noise.float())

    def as_shipped():
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch,), device=device).long()
        noisy = scheduler.add_noise(latents, noise, timesteps)
        if trains == "lora":            # what the script gives to accelerate runs under autocast: here the unet, there the text encoder
            with torch.autocast(device_type=device, dtype=bf16):
                loss = forward(noisy, timesteps, states, noise)
        else:
            with torch.autocast(device_type=device, dtype=bf16):
                context = text(ids)[0]
            loss = forward(noisy, timesteps, context.to(bf16), noise)
        total[0] += loss.repeat(batch).mean().item()
        loss.backward()
        if trains == "lora":
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        if trains == "ti":
            with torch.no_grad():
                table.weight[others] = before[others]
        return loss

    run = torch.compile(forward, mode=a.mode) if a.peer == "compile" else forward

    def lean():
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (batch,), device=device)
        keep = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = (keep.sqrt() * latents + (1 - keep).sqrt() * noise).to(bf16)
        if a.peer == "compile":
            torch.compiler.cudagraph_mark_step_begin()
        loss = run(noisy, timesteps, states, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach().clone()

    if not fast:
        return as_shipped
    return whole_graph(a, lean) if a.peer == "graph" else lean


def guided(a):
    import torch

    bf16 = torch.bfloat16
    unet = make_unet(a, bf16).eval()
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    scheduler = noise_scheduler("DDIMScheduler")
    scheduler.set_timesteps(50, device=a.device)
    whole = scheduler.timesteps.tolist()
    latents = [torch.randn(1, 4, side, side, dtype=bf16)]
    states = torch.randn(2, 77, width, dtype=bf16)
    call = [0]
    model = unet
    if a.peer != "eager":
        unet.fuse_qkv_projections()
        unet.to(memory_format=torch.channels_last)
        if a.peer == "compile":
            model = torch.compile(unet, mode=a.mode)
    sample, time_of = torch.zeros(2, 4, side, side, dtype=bf16), torch.zeros((), dtype=torch.long)

    def predict():
        return unet(sample, time_of, encoder_hidden_states=states, return_dict=False)[0]

    recorded = whole_graph(a, torch.no_grad()(predict)) if a.peer == "graph" else None

    @torch.no_grad()
    def step():
        if call[0] % 50 == 0:
            latents[0] = torch.randn_like(latents[0])
        t, number = scheduler.timesteps[call[0] % 50], whole[call[0] % 50]
        call[0] += 1
        both = scheduler.scale_model_input(torch.cat([latents[0]] * 2), t)
        if recorded:
            sample.copy_(both)
            time_of.copy_(t)
            pred = recorded()
        else:
            if a.peer == "compile":
                torch.compiler.cudagraph_mark_step_begin()
            pred = model(both, t, encoder_hidden_states=states, return_dict=False)[0]
        uncond, cond = pred.chunk(2)
        # as shipped t is on the device, and asked for its value; a number waits for nothing
        at = t if a.peer == "eager" else number
        latents[0] = scheduler.step(uncond + 7.5 * (cond - uncond), at, latents[0], return_dict=False)[0]
        return latents[0]

    return step


def decoding(a):
    import torch

    vae = make_vae(a, torch.bfloat16).eval()
    side = 8 if a.tiny else 128
    latents = torch.randn(1, 4, side, side, dtype=torch.bfloat16)
    decoder = vae.decode
    if a.peer != "eager":
        vae.fuse_qkv_projections()
        vae.to(memory_format=torch.channels_last)
        latents = latents.to(memory_format=torch.channels_last)
        if a.peer == "compile":
            decoder = torch.compile(vae.decode, mode=a.mode)

    @torch.no_grad()
    def step():
        if a.peer == "compile":
            torch.compiler.cudagraph_mark_step_begin()
        return decoder(latents / 0.18215, return_dict=False)[0]

    return whole_graph(a, step) if a.peer == "graph" else step


def make_step(a):
    if a.row in ("lora1", "lora8"):
        return training(a, int(a.row[4:]), "lora")
    return {"ti": lambda: training(a, 1, "ti"), "guided": lambda: guided(a), "decode1024": lambda: decoding(a)}[a.row]()


# -- one row, driven -----------------------------------------------------------------------------------------------------


def seconds_of(a, step, count):
    """Of one step out of count, by the device's own clock."""
    import torch

    if a.device != "cuda":
        start = time.perf_counter()
        for _ in range(count):
            step()
        return (time.perf_counter() - start) / count
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    for _ in range(count):
        step()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3 / count


def prepare(a):
    try:
        import torch
    except ImportError as e:
        raise Skip(f"no PyTorch: {e}") from None
    if a.device == "cuda" and not torch.cuda.is_available():
        raise Skip("PyTorch sees no CUDA device")
    try:
        import diffusers
        import transformers
    except Exception as e:
        raise Skip(f"no diffusers (PEERS names a folder that has it): {type(e).__name__}: {e}") from None
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}"
    try:
        import peft

        versions += f", peft {peft.__version__}"
    except Exception as e:
        if a.row.startswith("lora"):
            raise Skip(f"no peft: {type(e).__name__}: {e}") from None
    if a.peer != "eager":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    return versions + (f", mode {a.mode}" if a.peer == "compile" else "")


def serve(a, out):
    import warnings

    warnings.filterwarnings("ignore")
    versions = prepare(a)
    import torch

    with torch.device(a.device):        # not for good: what it costs each call would be held against the eager peer
        step = make_step(a)
    result = step()
    for _ in range(1 if a.tiny else WARM_UP - 1):
        result = step()
    if not torch.isfinite(result.float()).all():
        raise Skip("its result is not finite")
    seconds = seconds_of(a, step, 1 if a.tiny else 5)
    print("about", versions, file=out)
    if a.device == "cuda":
        print(f"memory {torch.cuda.max_memory_allocated() * 1e-9:.3f}", file=out)
    print(f"ready {seconds:.6f}", file=out, flush=True)
    for line in sys.stdin:
        word, count = line.split()
        if word != "run":
            raise Skip(f"asked to {word}")
        print(f"time {seconds_of(a, step, int(count)) * 1e3:.6g}", file=out, flush=True)


def one_row(a):
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)               # what libraries print is not for whoever drives
    try:
        serve(a, out)
    except Skip as e:
        print("skip", e, file=out, flush=True)
    except Exception as e:      # out of memory, a compiler's error: this row alone is left out
        import traceback

        traceback.print_exc()
        print("skip", type(e).__name__, " ".join(str(e).split())[:300], file=out, flush=True)


# -- all of them, by themselves --------------------------------------------------------------------------------------


class Driven:
    def __init__(self, a, peer, row):
        command = [sys.executable, os.path.abspath(__file__), "--peer", peer, "--row", row, "--device", a.device, "--mode", a.mode]
        self.peer, self.row, self.rest = peer, row, b""
        self.process = subprocess.Popen(command + ["--tiny"] * a.tiny, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        start_new_session=True)

    def drop(self, why):
        print(f"note\t{self.row}, {self.peer}: left out: {why}", flush=True)
        self.end()

    def end(self):
        import signal

        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None

    def wait_for(self, word, until):
        """What follows the word in the line that it begins; None: dropped."""
        while self.process:
            while b"\n" in self.rest:
                line, self.rest = self.rest.split(b"\n", 1)
                first, _, text = line.decode().partition(" ")
                if first == word:
                    return text
                if first == "skip":
                    self.drop(text)
                elif first == "memory":
                    print(f"memory\t{self.row}\t{self.peer}\t{text}")
                elif first == "about":
                    print(f"about\t{self.peer}\t{text}")
            if not self.process:
                break
            if not select.select([self.process.stdout], [], [], max(0, until - time.monotonic()))[0]:
                self.drop(f"no \"{word}\" in time")
                break
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                self.drop("it ended")
            self.rest += more
        return None

    def run(self, steps, until):
        if self.process:
            self.process.stdin.write(f"run {steps}\n".encode())
            self.process.stdin.flush()
        return self.wait_for("time", until)


def all_rows(a):
    end = time.monotonic() + a.budget
    rows = [(p, r) for r in a.rows.split(",") for p in a.peers.split(",")]
    for i, (peer, row) in enumerate(rows):
        begun = time.monotonic()
        until = begun + (end - begun) / (len(rows) - i)         # what a row leaves goes to those after it
        driven = Driven(a, peer, row)
        ready = driven.wait_for("ready", until)
        if ready is not None:
            steps = max(1 if a.tiny else 3, min(1 if a.tiny else a.steps, int(4 / max(float(ready), 1e-9))))
            for _ in range(a.rounds):
                text = driven.run(steps, until)
                if text is None:
                    break
                print(f"time\t{row}\t{peer}\t{text}", flush=True)
        driven.end()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")         # several peers compile at a time
    ARGS = arguments()
    if ARGS.peer == "compile":          # what a peer that is ended has half written is nobody else's
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="sd-peers-")
    if ARGS.budget is not None:
        all_rows(ARGS)
    else:
        one_row(ARGS)
