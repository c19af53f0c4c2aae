"""Draws clips from the moving-digits denoiser with Euler steps: the plain reference sampler."""

from __future__ import annotations

import torch

from optimize.recipes.zoo.digits_sampling import TIMESTEPS_PER_SIGMA, sigma_schedule
from optimize.recipes.zoo.moving_digits import MovingDigitsDiT
from optimize.recipes.zoo.moving_digits_data import FRAME_SIZE, FRAMES

BATCH = 40


def clip_noise(count: int, seed: int) -> torch.Tensor:
    """Standard normal latents, [count, 1, 8, 16, 16], float32, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, FRAMES, FRAME_SIZE, FRAME_SIZE, generator=generator)


@torch.no_grad()
def sample_clips(
    model: MovingDigitsDiT, noise: torch.Tensor, class_labels: torch.Tensor, steps: int
) -> torch.Tensor:
    """Integrates the flow from noise to clips with equal Euler steps and no guidance.

    Args:
        model: the denoiser; one call per step and batch of 40 clips.
        noise: [B, 1, 8, 16, 16], float32.
        class_labels: [B], int64, in [0, 10].
        steps: Euler steps, at least 1.
    Returns:
        Clips, [B, 1, 8, 16, 16], float32, around [-1, 1], not clipped.
    """
    sigmas = sigma_schedule(steps)
    finished = []
    for latent, labels in zip(
        torch.split(noise, BATCH), torch.split(class_labels, BATCH), strict=True
    ):
        for step in range(steps):
            timestep = (sigmas[step] * TIMESTEPS_PER_SIGMA).expand(len(latent))
            latent = latent + (sigmas[step + 1] - sigmas[step]) * model(latent, timestep, labels)
        finished.append(latent)
    return torch.cat(finished)
