"""Draws digits from a flow-matching denoiser with Euler steps: the plain reference sampler."""

from __future__ import annotations

import torch

from optimize.recipes.zoo.digits_data import IMAGE_SIZE
from optimize.recipes.zoo.digits_dit import DigitsDiT

TIMESTEPS_PER_SIGMA = 1000.0


def sigma_schedule(steps: int, shift: float = 1.0) -> torch.Tensor:
    """Sigmas from 1 down to 0, [steps + 1], float32.

    Args:
        steps: Euler steps, at least 1.
        shift: at 1 the sigmas are equally spaced; above 1 more of them lie near 1, where the
            digit takes its shape. Sigma becomes `shift * sigma / (1 + (shift - 1) * sigma)`.
    Raises:
        ValueError: `steps` is below 1, or `shift` is not positive.
    Source: Esser et al. (2024), section 5.3.2, equation 23.
    """
    if steps < 1:
        raise ValueError(f"sigma_schedule: found steps {steps}, expected at least 1; raise it.")
    if not shift > 0:
        raise ValueError(f"sigma_schedule: found shift {shift}, expected above 0; use 1 for none.")
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * even / (1 + (shift - 1) * even)).float()


def draw_noise(count: int, seed: int) -> torch.Tensor:
    """Standard normal latents, [count, 1, 32, 32], float32, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, IMAGE_SIZE, IMAGE_SIZE, generator=generator)


def balanced_labels(count: int) -> torch.Tensor:
    """Labels 0, 1, ..., 9, 0, 1, ..., [count], int64."""
    return torch.arange(count) % 10


@torch.no_grad()
def sample_digits(
    model: DigitsDiT,
    noise: torch.Tensor,
    class_labels: torch.Tensor,
    sigmas: torch.Tensor,
    batch_size: int = 64,
) -> torch.Tensor:
    """Integrates the flow from noise to images with Euler steps and no guidance.

    Args:
        model: the denoiser; one call per step and batch.
        noise: [B, 1, 32, 32], float32, the latent at `sigmas[0]`.
        class_labels: [B], int64, in [0, 10].
        sigmas: [steps + 1], float32, decreasing, in [0, 1].
        batch_size: images per denoiser call.
    Returns:
        Images, [B, 1, 32, 32], float32, around [-1, 1], not clipped.
    """
    finished = []
    for first in range(0, len(noise), batch_size):
        latent = noise[first : first + batch_size]
        labels = class_labels[first : first + batch_size]
        for step in range(len(sigmas) - 1):
            timestep = (sigmas[step] * TIMESTEPS_PER_SIGMA).expand(len(latent))
            velocity = model(latent, timestep, labels)
            latent = latent + (sigmas[step + 1] - sigmas[step]) * velocity
        finished.append(latent)
    return torch.cat(finished)
