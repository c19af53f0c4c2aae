"""Mean-reverting models: the loop moves latent - mean, the result has the mean."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from optimize.capture.from_denoiser import capture
from optimize.ir.denoise import DenoiseLoop
from optimize.ir.errors import InputModelError
from optimize.ir.mean_reverting import MeanRevertingSchedule
from optimize.ir.program import Program
from optimize.ir.spec import check_program
from optimize.passes.fuse_solver import FuseSolver
from optimize.passes.pipeline import run_passes
from optimize.runtime import load

SCHEDULE = MeanRevertingSchedule()


class Restorer(nn.Module):
    """Mixes latent, time and degraded image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(12, 4)

    def forward(
        self, latent: torch.Tensor, timestep: torch.Tensor, degraded: torch.Tensor
    ) -> torch.Tensor:
        time = (timestep / 100)[:, None].expand(-1, 4)
        mixed: torch.Tensor = self.mix(torch.cat([latent, time, degraded], dim=1))
        return mixed


class KnowsClean(Restorer):
    """Always finds the same clean values."""

    def forward(
        self, latent: torch.Tensor, timestep: torch.Tensor, degraded: torch.Tensor
    ) -> torch.Tensor:
        return self.mix.bias + 0 * (latent + degraded + timestep[:, None])


def captured(model: nn.Module, dtype: torch.dtype = torch.float32, **options: Any) -> Program:
    inputs = {
        "latent": torch.zeros(2, 4, dtype=dtype),
        "timestep": torch.zeros(2, dtype=dtype),
        "degraded": torch.zeros(2, 4, dtype=dtype),
    }
    named: dict[str, Any] = {"prediction": "epsilon", "mean": "degraded", "steps": 5, **options}
    program = capture(
        model.eval(), inputs, loop=DenoiseLoop(latent="latent", schedule=SCHEDULE, **named)
    )
    check_program(program)
    return program


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """A degraded image and the noise of the first latent, unit variance, [3, 4] each."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(3, 4, generator=generator), torch.randn(3, 4, generator=generator)


@torch.no_grad()
def restored(
    model: nn.Module, degraded: torch.Tensor, noise: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """The published first-order step on the latent itself, noise form; guided by `scale`."""
    timesteps = np.linspace(100, 0, 6)
    alphas, sigmas = SCHEDULE.alpha(timesteps), SCHEDULE.sigma(timesteps)
    latent = degraded + SCHEDULE.stationary_sigma * noise
    for i in range(5):
        time = torch.full((len(latent),), timesteps[i], dtype=torch.float32)
        without = model(latent, time, torch.zeros_like(degraded))
        predicted = without + scale * (model(latent, time, degraded) - without)
        growth = math.expm1(math.log(alphas[i + 1] / sigmas[i + 1] / (alphas[i] / sigmas[i])))
        ratio = alphas[i + 1] / alphas[i]
        latent = ratio * latent - sigmas[i + 1] * growth * predicted + (1 - ratio) * degraded
    return latent


def test_program_restores_as_published() -> None:
    model, (degraded, noise) = Restorer(), example()
    latent = SCHEDULE.stationary_sigma * noise
    result = captured(model)(degraded=degraded, latent=latent)["latent"]
    torch.testing.assert_close(result, restored(model, degraded, noise))


def test_first_latent_is_stationary_noise() -> None:
    (noise,) = captured(Restorer()).loop.noise
    assert noise.scale == SCHEDULE.stationary_sigma


def test_guidance_mixes_predictions_at_one_latent() -> None:
    model, (degraded, noise) = Restorer(), example()
    program = captured(model, guidance_scale=3.0, null_values={"degraded": 0.0})
    result = program(degraded=degraded, latent=SCHEDULE.stationary_sigma * noise)["latent"]
    torch.testing.assert_close(result, restored(model, degraded, noise, 3.0))


@pytest.mark.parametrize("solver", ["same", "mr_sampler", "dpm_solver_pp", "unipc"])
def test_every_solver_is_exact_where_the_clean_image_is_known(solver: Any) -> None:
    model, (degraded, noise) = KnowsClean(), example()
    program = run_passes(captured(model, prediction="denoised"), [FuseSolver(solver=solver)])
    assert set(program.graphs) == {"step", "mean"}
    latent = SCHEDULE.stationary_sigma * noise
    result = program(degraded=degraded, latent=latent)["latent"]
    (first, last), (high, low) = (
        values(np.array([100.0, 0.0])) for values in (SCHEDULE.alpha, SCHEDULE.sigma)
    )
    offset = model.mix.bias.detach() - degraded
    expected = degraded + last * offset + low * (latent - first * offset) / high
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_half_precision_networks_keep_a_float32_state() -> None:
    model, (degraded, noise) = Restorer(), example()
    expected = restored(model, degraded, noise)
    program = captured(model.half(), torch.float16)
    result = program(degraded=degraded.half(), latent=SCHEDULE.stationary_sigma * noise)["latent"]
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-2)


def test_bundle_gives_the_same_result(tmp_path: Path) -> None:
    program = run_passes(captured(Restorer()), [FuseSolver(solver="mr_sampler")])
    program.export(tmp_path / "bundle")
    degraded, _ = example()
    ours = program(degraded=degraded, seed=7)["latent"].numpy()
    theirs = load(tmp_path / "bundle")(degraded=degraded.numpy(), seed=7)["latent"]
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["image", "latent", "timestep"])
def test_refuses_a_mean_that_is_no_argument_of_its_own(name: str) -> None:
    with pytest.raises(InputModelError, match=f"found no tensor '{name}' besides"):
        captured(Restorer(), mean=name)


def test_refuses_a_mean_of_another_shape() -> None:
    inputs = {"latent": torch.zeros(2, 4), "timestep": torch.zeros(2), "degraded": torch.zeros(4)}
    loop = DenoiseLoop(latent="latent", prediction="epsilon", schedule=SCHEDULE, mean="degraded")
    with pytest.raises(InputModelError, match=r"found mean 'degraded' of shape \[4\]"):
        capture(Restorer().eval(), inputs, loop=loop)
