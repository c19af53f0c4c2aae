"""Restores digits with a mean-reverting denoiser: the plain reference samplers.

IR-SDE's own two, one denoiser call per training timestep, and the MR Sampler's few large steps,
written as published: on the latent itself, with a term for its mean, the degraded image.

Source: Luo et al. (2023), Image restoration with mean-reverting stochastic differential equations,
equations 6 and 9; Luo et al. (2023), Refusion, section 3.2, for the posterior; Li et al. (2025),
MaRS: a fast sampler for mean reverting diffusion based on ODE and SDE solvers, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from optimize.ir.solver_graph import NOISE
from optimize.recipes.zoo.digits_restore import SCHEDULE, DigitsRestorer
from optimize.runtime import philox

Form = Literal["data", "noise"]
"""What a step of the MR Sampler extrapolates: the clean estimate or the predicted noise."""


FEW_STEPS = 10


@dataclass(frozen=True)
class Step:
    """One step of the MR Sampler, all numbers float64.

    Attributes:
        timestep: where it starts, in (0, 100].
        alpha_from, sigma_from: of the latent where it starts.
        alpha, sigma: of the latent where it ends.
        size: growth of log(alpha / sigma), > 0.
        previous_size: of the step before it; None for the first.
    """

    timestep: float
    alpha_from: float
    sigma_from: float
    alpha: float
    sigma: float
    size: float
    previous_size: float | None


def mean_reverting_steps(count: int) -> list[Step]:
    """Steps between timesteps equally spaced from 100 to 0.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"mean_reverting_steps: found count {count}, expected at least 1.")
    timesteps = np.linspace(SCHEDULE.timesteps, 0, count + 1)
    alpha, sigma = SCHEDULE.alpha(timesteps), SCHEDULE.sigma(timesteps)
    sizes = np.diff(np.log(alpha / sigma))
    return [
        Step(
            timestep=float(timesteps[i]),
            alpha_from=float(alpha[i]),
            sigma_from=float(sigma[i]),
            alpha=float(alpha[i + 1]),
            sigma=float(sigma[i + 1]),
            size=float(sizes[i]),
            previous_size=float(sizes[i - 1]) if i else None,
        )
        for i in range(count)
    ]


def draw_noise(seed: int, slot: str, step: int, like: torch.Tensor) -> torch.Tensor:
    """Standard normal noise of the shape of `like`, float32: what a program draws for that slot."""
    return torch.from_numpy(philox.batch(seed, slot, step, tuple(like.shape))).float()


@torch.no_grad()
def sample_mean_reverting(
    model: DigitsRestorer,
    degraded: torch.Tensor,
    seed: int,
    steps: int,
    order: int = 2,
    form: Form = "data",
    stochastic: bool = False,
    denoise_last: bool = False,
) -> torch.Tensor:
    """Restores by the MR Sampler, one denoiser call per step.

    Args:
        model: the denoiser.
        degraded: [B, 1, 32, 32], float32, in [0, 1].
        seed: of all noise; the same noise as of a captured program with this seed.
        steps: at least 1.
        order: 1 or 2, of the steps after the first, whose order is 1.
        form: what is extrapolated.
        stochastic: solve the stochastic differential equation, not the ordinary one.
        denoise_last: return the last clean estimate instead of stepping to timestep 0, where some
            noise is left.
    Returns:
        Images, [B, 1, 32, 32], float32, around [0, 1], not clipped.
    Raises:
        ValueError: `steps` or `order` is out of range.
    """
    if order not in (1, 2):
        raise ValueError(f"sample_mean_reverting: found order {order}, expected 1 or 2.")
    advance = data_step if form == "data" else noise_step
    latent = _first_latent(degraded, seed)
    previous = None
    for number, step in enumerate(mean_reverting_steps(steps)):
        noise = predict_noise(model, latent, step.timestep, degraded)
        clean = clean_estimate(latent, noise, degraded, step.alpha_from, step.sigma_from)
        if denoise_last and number == steps - 1:
            return clean
        estimate = clean if form == "data" else noise
        slope = torch.zeros_like(estimate)  # change of the estimate over a step of this size
        # In short runs the authors' code lowers the order of the last step but one.
        lowered = steps < FEW_STEPS and number == steps - 2
        if order == 2 and not lowered and previous is not None and step.previous_size is not None:
            slope = (estimate - previous) * (step.size / step.previous_size)
        fresh = draw_noise(seed, NOISE, number, latent) if stochastic else None
        latent = advance(latent, degraded, estimate, slope, step, fresh)
        previous = estimate
    return latent


def data_step(
    latent: torch.Tensor,
    degraded: torch.Tensor,
    clean: torch.Tensor,
    slope: torch.Tensor,
    step: Step,
    fresh: torch.Tensor | None,
) -> torch.Tensor:
    """A step of the MR Sampler that extrapolates the clean estimate.

    Args:
        latent, degraded, clean: [B, 1, H, W], at the step's start.
        slope: the same shape, change of `clean` over a step of this size; 0 for order 1.
        fresh: the same shape, unit noise of the stochastic equation; None for the ordinary one.
    Returns:
        The latent at the step's end.
    """
    h, ratio = step.size, step.sigma / step.sigma_from
    if fresh is None:
        mean_share = 1 - ratio + ratio * step.alpha_from - step.alpha
        moved = ratio * latent - step.alpha * math.expm1(-h) * clean
        return moved + step.alpha * (math.expm1(-h) / h + 1) * slope + mean_share * degraded
    gain = -math.expm1(-2 * h)
    mean_share = 1 - step.alpha / step.alpha_from * math.exp(-2 * h) - step.alpha * gain
    moved = ratio * math.exp(-h) * latent + step.alpha * gain * clean
    moved = moved + step.alpha * (1 - gain / (2 * h)) * slope + mean_share * degraded
    return moved + step.sigma * math.sqrt(gain) * fresh


def noise_step(
    latent: torch.Tensor,
    degraded: torch.Tensor,
    noise: torch.Tensor,
    slope: torch.Tensor,
    step: Step,
    fresh: torch.Tensor | None,
) -> torch.Tensor:
    """The same that extrapolates the predicted noise; `slope` is the change of `noise`."""
    h, ratio = step.size, step.alpha / step.alpha_from
    drift = math.expm1(h) * noise + (math.expm1(h) / h - 1) * slope
    moved = ratio * latent + (1 - ratio) * degraded
    if fresh is None:
        return moved - step.sigma * drift
    return moved - 2 * step.sigma * drift + step.sigma * math.sqrt(math.expm1(2 * h)) * fresh


@torch.no_grad()
def sample_posterior(model: DigitsRestorer, degraded: torch.Tensor, seed: int) -> torch.Tensor:
    """Restores by IR-SDE's posterior sampler: 100 denoiser calls, from timestep 100 to 1.

    Each step draws from the distribution of the next latent given this one and the clean estimate.
    Arguments and result are as of `sample_mean_reverting`.
    """
    alphas = np.exp(SCHEDULE.log_alphas)
    sigmas = SCHEDULE.stationary_sigma * np.sqrt(1 - alphas**2)
    latent = _first_latent(degraded, seed)
    for timestep in range(SCHEDULE.timesteps, 0, -1):
        predicted = predict_noise(model, latent, timestep, degraded)
        alpha, next_alpha = alphas[timestep], alphas[timestep - 1]
        clean = clean_estimate(latent, predicted, degraded, alpha, sigmas[timestep])
        kept = alpha / next_alpha
        from_latent = kept * (1 - next_alpha**2) / (1 - alpha**2)
        from_clean = next_alpha * (1 - kept**2) / (1 - alpha**2)
        variance = (1 - kept**2) * (1 - next_alpha**2) / (1 - alpha**2)
        center = degraded + from_latent * (latent - degraded) + from_clean * (clean - degraded)
        fresh = draw_noise(seed, NOISE, SCHEDULE.timesteps - timestep, latent)
        latent = center + SCHEDULE.stationary_sigma * math.sqrt(variance) * fresh
    return latent


@torch.no_grad()
def sample_euler(model: DigitsRestorer, degraded: torch.Tensor, seed: int) -> torch.Tensor:
    """Restores by Euler steps of IR-SDE's reverse stochastic equation: 100 denoiser calls.

    Arguments and result are as of `sample_mean_reverting`.
    """
    sigmas = SCHEDULE.sigma(np.arange(SCHEDULE.timesteps + 1.0))
    latent = _first_latent(degraded, seed)
    for timestep in range(SCHEDULE.timesteps, 0, -1):
        rate = SCHEDULE.rates[timestep]
        diffusion = 2 * SCHEDULE.stationary_sigma**2 * rate  # squared
        score = -predict_noise(model, latent, timestep, degraded) / sigmas[timestep]
        drift = rate * (degraded - latent) - diffusion * score
        fresh = draw_noise(seed, NOISE, SCHEDULE.timesteps - timestep, latent)
        latent = latent - drift * SCHEDULE.time_step
        latent = latent + math.sqrt(diffusion * SCHEDULE.time_step) * fresh
    return latent


def _first_latent(degraded: torch.Tensor, seed: int) -> torch.Tensor:
    """A latent at the last timestep, where next to nothing is left of the clean image."""
    return degraded + SCHEDULE.stationary_sigma * draw_noise(seed, "latent", 0, degraded)


def predict_noise(
    model: DigitsRestorer, latent: torch.Tensor, timestep: float, degraded: torch.Tensor
) -> torch.Tensor:
    """The denoiser's prediction with one timestep for the whole batch, [B, 1, H, W]."""
    predicted: torch.Tensor = model(latent, torch.full((len(latent),), timestep), degraded)
    return predicted


def clean_estimate(
    latent: torch.Tensor, noise: torch.Tensor, degraded: torch.Tensor, alpha: float, sigma: float
) -> torch.Tensor:
    """The clean image that `noise` leads to, [B, 1, H, W], in data units."""
    return (latent - sigma * noise - (1 - alpha) * degraded) / alpha
