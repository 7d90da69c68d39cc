"""Stored reference values for random numbers, noise schedules and samplers: tests/data/samplers/*.

Run from the top of the tree:  python tests/reference/samplers.py
Pinned: torch 2.15, diffusers 0.42.1.  Everything is deterministic; a second run writes the same bytes.  The C tests
(tests/unit/random.c, noise_scheduler.c, samplers.c) walk through the files in the order in which this script writes them.
"""
import json
import pathlib
import sys
import zlib

sys.path.pop(0)     # scripts beside this one have the names of packages

import diffusers
import numpy as np
import torch
from diffusers.schedulers import (
    scheduling_ddim, scheduling_dpmsolver_multistep, scheduling_euler_ancestral_discrete, scheduling_euler_discrete,
    scheduling_pndm, scheduling_unipc_multistep,
)

DATA = pathlib.Path("tests/data/samplers")


def write(name, values):
    np.concatenate([np.asarray(v, np.float32).ravel() for v in values]).astype("<f4").tofile(DATA / name)


def torch_randn():
    """Several calls of one generator; of a long one every 37th number and the last 16."""
    out = []
    for seed in (0, 42, -3):
        g = torch.Generator().manual_seed(seed)
        for n in (5, 16, 17, 3, 4 * 64 * 64, 7, 4 * 96 * 72, 15, 31, 2):
            z = torch.randn(n, generator=g).numpy()
            i = np.arange(n)
            out.append(z[(i % (37 if n > 100 else 1) == 0) | (i + 16 >= n)])
    write("torch_randn.f32", out)


# --- schedules and samplers ---

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
CONFIGS = {
    "sd15": dict(_class_name="PNDMScheduler", **SD, clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True,
                 steps_offset=1, trained_betas=None),
    "sd21": dict(_class_name="DDIMScheduler", **SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "default": dict(_class_name="DDPMScheduler"),
    "trailing": dict(_class_name="EulerDiscreteScheduler", **SD, timestep_spacing="trailing", clip_sample=False,
                     final_sigmas_type="sigma_min"),
    "karras": dict(_class_name="EulerDiscreteScheduler", **SD, timestep_spacing="leading", steps_offset=1,
                   use_karras_sigmas=True, clip_sample=False, set_alpha_to_one=False),
    "zero_snr": dict(_class_name="DDIMScheduler", **SD, timestep_spacing="trailing", rescale_betas_zero_snr=True,
                     clip_sample=False, set_alpha_to_one=True),
    "exponential": dict(_class_name="EulerDiscreteScheduler", **SD, use_exponential_sigmas=True, sigma_min=0.05,
                        sigma_max=10.0, clip_sample=True, clip_sample_range=0.8),
    "order3": dict(_class_name="UniPCMultistepScheduler", **SD, solver_order=3, thresholding=True, sample_max_value=1.1,
                   dynamic_thresholding_ratio=0.9, clip_sample=False),
    "order3_trailing": dict(_class_name="DPMSolverMultistepScheduler", **SD, solver_order=3, timestep_spacing="trailing",
                            final_sigmas_type="sigma_min", lower_order_final=False, clip_sample=False, solver_type="bh1",
                            disable_corrector=[1, 4]),
    "heun": dict(_class_name="DPMSolverMultistepScheduler", **SD, solver_type="heun", final_sigmas_type="sigma_min",
                 euler_at_final=True, lambda_min_clipped=-2.0, clip_sample=False),
    "sde": dict(_class_name="DPMSolverMultistepScheduler", **SD, algorithm_type="sde-dpmsolver++", clip_sample=False),
    "sde3": dict(_class_name="DPMSolverMultistepScheduler", **SD, algorithm_type="sde-dpmsolver++", solver_order=3,
                 clip_sample=False),
    "lu": dict(_class_name="DPMSolverMultistepScheduler", **SD, use_lu_lambdas=True, clip_sample=False),
    "cosine": dict(_class_name="DDIMScheduler", beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1, clip_sample=True,
                   clip_sample_range=3.0, steps_offset=1),
    "log_linear": dict(_class_name="EulerDiscreteScheduler", **SD, interpolation_type="log_linear",
                       timestep_type="continuous", clip_sample=False),
    "short": dict(_class_name="DDIMScheduler", trained_betas=[0.01 + 0.005 * i for i in range(40)],
                  num_train_timesteps=40, clip_sample=False, timestep_spacing="linspace"),
}
SAMPLERS = {
    "ddim": diffusers.DDIMScheduler, "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler, "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "dpmpp_2m_karras": diffusers.DPMSolverMultistepScheduler, "unipc": diffusers.UniPCMultistepScheduler,
    "pndm": diffusers.PNDMScheduler,
}
MODULES = (scheduling_ddim, scheduling_dpmsolver_multistep, scheduling_euler_ancestral_discrete, scheduling_euler_discrete,
           scheduling_pndm, scheduling_unipc_multistep)
N = 8       # elements of the latents


class Wide:
    """A module whose float32 is float64."""

    def __init__(self, module):
        self.module, self.float32 = module, module.float64

    def __getattr__(self, name):
        return getattr(self.module, name)


class double:
    """Within it, diffusers' schedulers compute in double: what is left is the formula, without float32's rounding of
    alphas_cumprod (1e-6) and sigmas (2e-5 at timestep 0)."""

    def __enter__(self):
        torch.set_default_dtype(torch.float64)
        for m in MODULES:
            m.np, m.torch = Wide(np), Wide(torch)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)
        for m in MODULES:
            m.np, m.torch = np, torch


def scheduler(sampler, config):
    extra = {"skip_prk_steps": True} if sampler == "pndm" else {}
    if sampler == "dpmpp_2m_karras":
        extra["use_karras_sigmas"] = True
    return SAMPLERS[sampler].from_config(dict(config), **extra)


def pattern(a, b, m, scale):
    """A fixed small array, the same in C: ((a j + b) mod m - (m - 1) / 2) / scale."""
    j = np.arange(N)
    z = (((a * j + b) % m - (m - 1) / 2) / scale).astype(np.float32)
    return torch.tensor(z, dtype=torch.get_default_dtype()).reshape(1, 2, 2, 2)


def model(x, t):
    """Smooth and elementwise, in double, without library functions: the same bits in C."""
    x, s, j = x.numpy().astype(np.float64), float(t) / 999, np.arange(N).reshape(1, 2, 2, 2)
    w = ((5 * j) % 8 - 3.5) / 4
    out = x * (0.25 + 0.5 * s) + 0.3 * x / (1 + x * x) + 0.1 * w * (1 - s)
    return torch.tensor(out, dtype=torch.get_default_dtype())


def run(sampler, config, n, strength):
    """[calls, start], then for each call [t, input scale, sigma or 0, latents]."""
    s = scheduler(sampler, config)
    s.set_timesteps(n)
    noise, z0 = pattern(37, 11, 16, 5), pattern(7, 5, 11, 6)
    timesteps = s.timesteps[:n] if sampler != "pndm" else s.timesteps
    first = 0
    if strength is not None:
        first = n - min(int(n * strength), n)
        if sampler == "pndm":
            # the last levels, the second of them twice: diffusers' img2img cuts its list of n + 1 calls instead, and so
            # takes the doubled call for the first one
            levels = s.timesteps[1:] if n > 1 else s.timesteps
            levels = torch.cat([s.timesteps[:1], levels[1:]])[first:]
            timesteps = torch.cat([levels[:2], levels[1:]])
        else:
            timesteps = timesteps[first:]
    if hasattr(s, "set_begin_index"):   # else diffusers looks the start up by timestep, and may find the second of two
        s.set_begin_index(first)
    if strength is not None:
        x = s.add_noise(z0, noise, timesteps[:1])
    else:
        x = noise * s.init_noise_sigma
    out = [len(timesteps), *x.ravel().numpy()]
    for i, t in enumerate(timesteps):
        fresh = pattern(29, 13 * i + 3, 17, 6)
        for module in (scheduling_euler_ancestral_discrete, scheduling_dpmsolver_multistep):
            module.randn_tensor = lambda *a, fresh=fresh, **k: fresh
        scaled = s.scale_model_input(x, t)
        sigma = float(s.sigmas[first + i]) if hasattr(s, "sigmas") else 0
        x = s.step(model(scaled, t), t, x).prev_sample
        scale = 1 / (sigma**2 + 1) ** 0.5 if sampler.startswith("euler") else 1
        out += [float(t), scale, sigma, *x.ravel().numpy()]
    assert all(np.isfinite(out)), (sampler, config, n, strength)
    return out


def cases():
    for config in ("sd15", "sd21", "default", "trailing", "karras"):
        for sampler in SAMPLERS:
            for prediction in ("epsilon", "v_prediction"):
                for n in (2, 3, 10, 25):
                    yield config, sampler, prediction, n, None
    for sampler in SAMPLERS:
        for config in ("sd15", "sd21", "trailing", "karras"):
            for n, strength in ((10, 0.8), (50, 0.58), (7, 1.0), (20, 0.05), (20, 0.1)):
                yield config, sampler, "epsilon" if config != "sd21" else "v_prediction", n, strength
        yield "sd15", sampler, "epsilon", 1, None
        if sampler != "pndm":
            yield "zero_snr", sampler, "v_prediction", 10, None
            yield "zero_snr", sampler, "v_prediction", 10, 0.5
            if sampler != "euler_a":
                yield "sd15", sampler, "sample", 10, None
        yield "short", sampler, "epsilon", 8, None
        yield "cosine", sampler, "v_prediction", 10, None
    for sampler in ("euler", "dpmpp_2m", "unipc", "ddim"):
        yield "exponential", sampler, "epsilon", 10, None
    for sampler in ("dpmpp_2m", "unipc", "ddim"):
        for config in ("order3", "order3_trailing"):
            for n in (1, 2, 3, 4, 10, 16):
                if (sampler, config, n) != ("unipc", "order3", 16):
                    yield config, sampler, "epsilon", n, None
        yield "order3", sampler, "v_prediction", 12, 0.5
    for config in ("heun", "sde", "sde3", "lu"):
        for n in (3, 10, 16):
            yield config, "dpmpp_2m", "epsilon", n, None
    for prediction in ("epsilon", "v_prediction"):
        yield "log_linear", "euler", prediction, 10, None


def timestep_sums():
    """CRC of the timesteps, as float32, of every n that is allowed; with how many n that is."""
    sums = {}
    for sampler in SAMPLERS:
        for spacing in ("linspace", "leading", "trailing"):
            crc = count = 0
            s = scheduler(sampler, dict(CONFIGS["sd15"], timestep_spacing=spacing))
            for n in range(1, 1001):
                s.set_timesteps(n)
                t = s.timesteps.numpy()
                if sampler == "pndm" and n > 1:
                    t = np.concatenate([t[:1], t[2:]])
                t = t[:n].astype("<f4")     # numpy.arange gives one too many for some n
                karras = sampler == "dpmpp_2m_karras"
                if karras or (t.min() >= 0 and t.max() <= 999 and (np.diff(t) < 0).all()):
                    crc, count = zlib.crc32(t.tobytes(), crc), count + 1
            sums[f"{sampler} {spacing}"] = [crc, count]
    return sums


def alphas():
    at = [0, 1, 250, 500, 750, 998, 999]
    out = {}
    for name, c in {"linear": {}, "scaled_linear": SD, "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
                    "sigmoid": {"beta_schedule": "sigmoid"}}.items():
        for rescale in (False, True):
            s = diffusers.DDPMScheduler(**c, rescale_betas_zero_snr=rescale)
            config = dict(c, rescale_betas_zero_snr=rescale)
            out[f"{name}{' zero_snr' if rescale else ''}"] = [config, at, [float(s.alphas_cumprod[t]) for t in at]]
    return out


def samplers():
    listed, single = list(cases()), []
    for config, sampler, prediction, n, strength in listed:
        if config in ("sd15", "sd21") and n in (10, 25):
            single.append(run(sampler, dict(CONFIGS[config], prediction_type=prediction), n, strength))
    write("latents_float.f32", single)
    with double():
        write("latents.f32", [run(sampler, dict(CONFIGS[config], prediction_type=prediction), n, strength)
                              for config, sampler, prediction, n, strength in listed])
        # in float32, rounding Karras' timesteps goes the other way for a few n
        sums = timestep_sums()
    text = {"configs": CONFIGS, "timesteps": sums, "alphas_cumprod": alphas()}
    lines = ",\n".join(json.dumps(c) for c in listed)
    body = json.dumps(text, indent=1, sort_keys=True)
    (DATA / "cases.json").write_text(body[:-2] + ',\n "cases": [\n' + lines + "\n ]\n}\n")


if __name__ == "__main__":
    assert torch.__version__.startswith("2.15"), torch.__version__
    assert diffusers.__version__ == "0.42.1", diffusers.__version__
    DATA.mkdir(parents=True, exist_ok=True)
    torch_randn()
    samplers()
