"""A small Stable Diffusion 3 in five ways, in one process, on one thread.

    eager            28 Euler steps of the diffusers transformer
    compiled         the same under torch.compile
    cache-dit        the same with its block cache, at the best setting that fires
    fewer steps      eager Euler with as many calls as `optimize` makes
    optimize         the exported bundle in ONNX Runtime

Fidelity is the signal-to-noise ratio, in dB, of the latent against the exact solution from the same
noise: fourth-order Runge-Kutta with 400 calls. Times are taken in turns and compared as medians.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import SD3Transformer2DModel

STEPS = 28
OURS = {"fuse_solver": {"solver": "adams_bashforth", "steps": 14}}
SETTINGS: list[dict[str, Any]] = [
    *({"threshold": threshold} for threshold in (0.1, 0.4, 1.0, 2.0)),
    *({"threshold": 0.4, "mask": mask} for mask in ("slow", "medium", "fast")),
    {"threshold": 1.0, "taylorseer": True},
]
"""cache-dit settings tried: residual difference threshold, published step mask, Taylor terms."""

Sampler = Callable[[torch.Tensor], torch.Tensor]


def build() -> tuple[SD3Transformer2DModel, dict[str, torch.Tensor]]:
    """Eight layers, 256 image and 64 text tokens, random weights; and its conditioning."""
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=16, num_layers=8, attention_head_dim=64,
        num_attention_heads=6, joint_attention_dim=256, caption_projection_dim=384,
        pooled_projection_dim=128, out_channels=16, pos_embed_max_size=32,
    ).eval()  # fmt: skip
    conditioning = {
        "encoder_hidden_states": torch.randn(1, 64, 256),
        "pooled_projections": torch.randn(1, 128),
    }
    return model, conditioning


def velocity(model: Any, conditioning: dict[str, torch.Tensor]) -> Callable[..., torch.Tensor]:
    """(latent, sigma) → the model's velocity."""

    def call(latent: torch.Tensor, sigma: float) -> torch.Tensor:
        timestep = torch.full((1,), 1000.0 * sigma)
        output: torch.Tensor = model(
            hidden_states=latent, timestep=timestep, return_dict=False, **conditioning
        )[0]
        return output

    return call


def euler(call: Callable[..., torch.Tensor], steps: int) -> Sampler:
    """Euler over equal steps of sigma, as the FlowMatchEuler scheduler takes them."""

    @torch.no_grad()
    def sample(latent: torch.Tensor) -> torch.Tensor:
        sigmas = np.append(np.linspace(1.0, 1.0 / steps, steps), 0.0)
        for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
            latent = latent + float(after - now) * call(latent, float(now))
        return latent

    return sample


@torch.no_grad()
def exact(call: Callable[..., torch.Tensor], latent: torch.Tensor) -> torch.Tensor:
    """Classical Runge-Kutta, 100 steps of 4 calls."""
    for i in range(100):
        sigma, width = 1.0 - i / 100, -1.0 / 100
        first = call(latent, sigma)
        second = call(latent + width / 2 * first, sigma + width / 2)
        third = call(latent + width / 2 * second, sigma + width / 2)
        fourth = call(latent + width * third, max(sigma + width, 0.0))
        latent = latent + width / 6 * (first + 2 * second + 2 * third + fourth)
    return latent


def fidelity_db(latent: torch.Tensor, reference: torch.Tensor) -> float:
    """Signal-to-noise ratio of a latent against the exact one."""
    error = float((latent - reference).double().square().sum())
    return 10 * float(np.log10(float(reference.double().square().sum()) / error))


def cache_dit_sampler(
    conditioning: dict[str, torch.Tensor], setting: dict[str, Any]
) -> tuple[Sampler, Callable[[], int]]:
    """A sampler through cache-dit on a fresh copy of the model, and how many steps it cached."""
    import cache_dit
    from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern, TaylorSeerCalibratorConfig

    model, _ = build()
    policy = setting.get("mask")
    mask = cache_dit.steps_mask(total_steps=STEPS, mask_policy=policy) if policy else None
    config = DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        max_warmup_steps=4,
        residual_diff_threshold=setting["threshold"],
        num_inference_steps=STEPS,
        steps_computation_mask=mask,
        steps_computation_policy="static" if mask else "dynamic",
    )
    adapter = BlockAdapter(
        pipe=None,
        transformer=model,
        blocks=model.transformer_blocks,
        forward_pattern=ForwardPattern.Pattern_1,
    )
    calibrator = TaylorSeerCalibratorConfig() if setting.get("taylorseer") else None
    cache_dit.enable_cache(adapter, cache_config=config, calibrator_config=calibrator)
    plain = euler(velocity(model, conditioning), STEPS)

    def sample(latent: torch.Tensor) -> torch.Tensor:
        cache_dit.refresh_context(model, num_inference_steps=STEPS)
        return plain(latent)

    def cached() -> int:
        (stats, *_) = cache_dit.summary(model, logging=False)
        return len(stats.cached_steps)

    return sample, cached


def best_cache_dit(
    conditioning: dict[str, torch.Tensor], latent: torch.Tensor, reference: torch.Tensor
) -> tuple[Sampler, dict[str, Any]]:
    """The setting of highest fidelity among those that cached at least one step."""
    best: tuple[float, Sampler, dict[str, Any]] | None = None
    for setting in SETTINGS:
        try:
            sample, cached = cache_dit_sampler(conditioning, setting)
            result = sample(latent)
            count = cached()
        except (RuntimeError, ValueError, AssertionError) as error:
            print(f"  cache-dit {setting}: {str(error).splitlines()[0]}", flush=True)
            continue
        found = fidelity_db(result, reference)
        print(f"  cache-dit {setting}: {count} steps cached, {found:.1f} dB", flush=True)
        if count and (best is None or found > best[0]):
            best = (found, sample, {**setting, "cached_steps": count})
    if best is None:
        raise RuntimeError("cache-dit: no setting tried cached a step")
    return best[1], best[2]


def ours(model: Any, conditioning: dict[str, torch.Tensor], folder: Path) -> tuple[Sampler, int]:
    """The bundle of the optimised model, and its denoiser calls."""
    from optimize import optimize
    from optimize.ir.denoise import DenoiseLoop
    from optimize.runtime import load

    example = {
        "hidden_states": torch.randn(2, 16, 32, 32),
        "timestep": torch.tensor([500.0, 500.0]),
        **{name: torch.cat([item, item]) for name, item in conditioning.items()},
    }
    program = optimize(
        model, {"passes": [OURS]}, example_inputs=example, loop=DenoiseLoop(steps=STEPS),
        verify=False, progress=False,
    )  # fmt: skip
    session = load(program.export(folder / "bundle"), threads=1)
    request = {name: item.numpy() for name, item in conditioning.items()}

    def sample(latent: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session(latent=latent.numpy(), **request)["latent"])

    return sample, program.history[-1].details["denoiser_calls"]


def measure(repeats: int = 5) -> dict[str, Any]:
    """All five rows, and the two figures of the gate."""
    torch.set_num_threads(1)
    model, conditioning = build()
    call = velocity(model, conditioning)
    latent = torch.randn(1, 16, 32, 32, generator=torch.Generator().manual_seed(1))
    reference = exact(call, latent)
    with tempfile.TemporaryDirectory() as folder:
        sample, calls = ours(model, conditioning, Path(folder))
        samplers: dict[str, Sampler] = {"eager": euler(call, STEPS), "optimize": sample}
        samplers["fewer_steps"] = euler(call, calls)
        samplers["cache_dit"], setting = best_cache_dit(conditioning, latent, reference)
        compiled = torch.compile(build()[0])
        samplers["compiled"] = euler(velocity(compiled, conditioning), STEPS)
        rows: dict[str, dict[str, Any]] = {}
        for name, run in samplers.items():
            rows[name] = {"fidelity_db": fidelity_db(run(latent), reference), "seconds": []}
        for _ in range(repeats):
            for name, run in samplers.items():
                start = time.perf_counter()
                run(latent)
                rows[name]["seconds"].append(time.perf_counter() - start)
    eager = statistics.median(rows["eager"]["seconds"])
    for row in rows.values():
        row["speedup"] = eager / statistics.median(row["seconds"])
    rows["cache_dit"]["setting"] = setting
    rows["optimize"]["denoiser_calls"] = calls
    mine = rows["optimize"]
    return {
        "tiny_sd3_speedup": mine["speedup"],
        "tiny_sd3_fidelity_minus_cache_dit_db": mine["fidelity_db"]
        - rows["cache_dit"]["fidelity_db"],
        "tiny_sd3_fidelity_minus_eager_db": mine["fidelity_db"] - rows["eager"]["fidelity_db"],
        "tiny_sd3": rows,
    }
