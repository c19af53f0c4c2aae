"""Our tables against the schedulers of diffusers, on the same noise levels."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from optimize.ir.noise_path import Levels
from optimize.ir.schedules import FlowSchedule, VarianceSchedule
from optimize.ir.solver_step import SolverStep, walk
from optimize.passes.solvers.catalog import solve
from optimize.passes.solvers.exponential import multistep
from optimize.passes.solvers.solver_base import Sampling
from optimize.passes.solvers.unipc import unipc

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
START = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BOUND = 5e-7


def levels_of(scheduler: Any, flow: bool = False) -> Levels:
    """The scheduler's own list: its cumulated alphas are float32, ours float64."""
    sigma = scheduler.sigmas.double().numpy()
    alpha = 1 - sigma if flow else 1 / np.sqrt(1 + sigma**2)
    times = scheduler.timesteps.double().numpy()
    return Levels(alpha, sigma if flow else sigma * alpha, times, VarianceSchedule().path)


def noise_of(latent: Any, alpha: float, sigma: float) -> Any:
    """The noise a network that estimates the clean value as tanh would find."""
    return (latent - alpha * np.tanh(latent)) / sigma


def theirs(scheduler: Any, levels: Levels, flow: bool = False) -> np.ndarray:
    """The end of their run, in float64 where they compute from these."""
    scheduler.sigmas = scheduler.sigmas.double()
    latent = START
    for call, timestep in enumerate(scheduler.timesteps):
        alpha, sigma = levels.alpha[call], levels.sigma[call]
        output = noise_of(latent, alpha, sigma)
        if flow:
            output = output - torch.tanh(latent)
        latent = scheduler.step(output, timestep, latent).prev_sample
    return latent.numpy()


def ours(step: SolverStep, flow: bool = False) -> np.ndarray:
    levels = step.levels

    def network(latent: np.ndarray, call: int) -> np.ndarray:
        noise = noise_of(latent, levels.alpha[call], levels.sigma[call])
        return noise - np.tanh(latent) if flow else noise

    return walk(step, network, START.numpy())[-1]


def relative(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


def run_on(levels: Levels, order: int, prediction: Any = "epsilon", **options: Any) -> Sampling:
    return Sampling(lambda _: levels, levels.steps, prediction, order, **options)


MULTISTEP = [
    pytest.param(order, steps, options, id=f"{order}-{steps}-{'-'.join(options) or 'default'}")
    for order in (1, 2, 3)
    for steps in (8, 20)
    for options in (
        {},
        {"timestep_spacing": "leading"},
        {"timestep_spacing": "trailing"},
        {"use_karras_sigmas": True},
        {"use_lu_lambdas": True},
        {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True},
        {"solver_type": "heun"},
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    )
    # A repeated last level gives diffusers NaN at order 3 and in heun.
]


@pytest.mark.parametrize(("order", "steps", "options"), MULTISTEP)
def test_multistep_agrees(order: int, steps: int, options: dict[str, Any]) -> None:
    """Order 3 with the published constant; the corrected one is tested for its order."""
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, solver_order=order, **options)
    scheduler.set_timesteps(steps)
    levels = levels_of(scheduler)
    variant: Any = "taylor" if options.get("solver_type") == "heun" else "midpoint"
    form: Any = "noise" if options.get("algorithm_type") == "dpmsolver" else "data"
    if levels.sigma[-1] == levels.sigma[-2]:
        # They repeat the lowest level: a step of no width, which we leave out.
        levels = Levels(levels.alpha[:-1], levels.sigma[:-1], levels.timestep[:-1])
    expected = theirs(scheduler, levels_of(scheduler))
    run = run_on(levels, order, variant=variant)
    step = multistep("m", run, form, third_order_factor=1.0)
    assert relative(ours(step), expected) <= BOUND


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_multistep_agrees(order: int, shift: float) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
    )
    scheduler.set_timesteps(12)
    levels = levels_of(scheduler, flow=True)
    expected = theirs(scheduler, levels_of(scheduler, flow=True), flow=True)
    step = multistep("m", run_on(levels, order, "flow"), "data", third_order_factor=1.0)
    assert relative(ours(step, flow=True), expected) <= BOUND


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [6, 20])
def test_unipc_agrees(order: int, steps: int) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(**BETAS, solver_order=order)
    scheduler.set_timesteps(steps)
    levels = levels_of(scheduler)
    expected = theirs(scheduler, levels)
    assert relative(ours(unipc(run_on(levels, order))), expected) <= BOUND


@pytest.mark.parametrize("steps", [5, 20])
def test_ddim_agrees(steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    kept = np.append(scheduler.alphas_cumprod[scheduler.timesteps].numpy(), 1.0)
    levels = Levels(np.sqrt(kept), np.sqrt(1 - kept), scheduler.timesteps.double().numpy())
    latent = START
    for call, timestep in enumerate(scheduler.timesteps):
        output = noise_of(latent, levels.alpha[call], levels.sigma[call])
        latent = scheduler.step(output, timestep, latent).prev_sample
    assert relative(ours(solve("ddim", run_on(levels, 1))), latent.numpy()) <= BOUND


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_euler_levels_agree(steps: int) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
    levels = FlowSchedule(shift=3.0).levels(steps)
    assert np.allclose(levels.sigma, scheduler.sigmas.numpy(), atol=1e-6)
    assert np.allclose(levels.timestep, scheduler.timesteps.numpy(), atol=1e-3)
