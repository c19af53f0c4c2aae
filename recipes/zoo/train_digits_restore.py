"""Trains the digits restorer on one CPU core and writes its weights and metrics.

    python -m optimize.recipes.zoo.train_digits_restore --steps 8000 --out recipes/zoo

Clean digits are jittered and degraded afresh for every batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from optimize.recipes.zoo.digits_data import DigitsData, load_digits_data
from optimize.recipes.zoo.digits_degradation import (
    TASKS,
    degrade,
    degraded_digits,
    image_psnr,
    unit_range,
)
from optimize.recipes.zoo.digits_restore import SCHEDULE, DigitsRestorer
from optimize.recipes.zoo.digits_restore_sampling import sample_mean_reverting
from optimize.recipes.zoo.training import (
    RunOptions,
    batches,
    options_of_command_line,
    run_training,
    stratified_uniform,
)


@dataclass(frozen=True)
class RestoreOptions(RunOptions):
    """Options of a training run, besides those of any run.

    Attributes:
        jitter_share: probability that a clean image is turned, scaled and moved a little. Not 1:
            untouched digits lie on their native grid of 8x8, and held-out ones do so, too.
    """

    steps: int = 8000
    batch_size: int = 64
    other_rate: float = 2e-3
    average_decay: float = 0.999
    check_every: int = 1000
    jitter_share: float = 0.5


def jitter(clean: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """Turns, scales and moves some of the images: up to 0.12 rad, 10 % and 2 pixels.

    Args:
        clean: [B, 1, 32, 32].
        share: probability for each image, in [0, 1].
    """
    angle, zoom, right, down = (2 * torch.rand(4, len(clean), generator=generator) - 1) * (
        torch.tensor([0.12, 0.1, 2 / 16, 2 / 16])[:, None]
    )
    cosine, sine = (1 + zoom) * angle.cos(), (1 + zoom) * angle.sin()
    rows = torch.stack([cosine, -sine, right, sine, cosine, down], dim=-1)
    grid = F.affine_grid(rows.reshape(-1, 2, 3), list(clean.shape), align_corners=False)
    moved = F.grid_sample(clean, grid, mode="bicubic", padding_mode="border", align_corners=False)
    chosen = torch.rand(len(clean), generator=generator) < share
    return torch.where(chosen[:, None, None, None], moved.clamp(0, 1), clean)


def restore_loss(
    model: DigitsRestorer,
    clean: torch.Tensor,
    options: RestoreOptions,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean squared error of the predicted noise in units of alpha, a scalar.

    Divided by alpha it is the error of the velocity, alike at all timesteps; undivided it would
    all but ignore the late timesteps, where the noise can nearly be read off the latent.

    Args:
        clean: [B, 1, 32, 32], in [0, 1].
    """
    degraded = degrade(clean, torch.arange(len(clean)) % len(TASKS), generator)
    timestep = SCHEDULE.timesteps * stratified_uniform(len(clean), generator)
    alpha, sigma = (
        torch.from_numpy(values(timestep.double().numpy())).float()[:, None, None, None]
        for values in (SCHEDULE.alpha, SCHEDULE.sigma)
    )
    noise = torch.randn(clean.shape, generator=generator)
    latent = degraded + alpha * (clean - degraded) + sigma * noise
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bfloat16):
        predicted = model(latent, timestep, degraded)
    loss: torch.Tensor = ((predicted - noise) / alpha).square().mean()
    return loss


def train(model: DigitsRestorer, data: DigitsData, options: RestoreOptions, out: Path) -> None:
    """Trains on the train split; writes `digits_restore.safetensors` and `.json` to `out`.

    The record's check is the PSNR, in dB, of held-out digits restored in ten steps.
    """
    generator = torch.Generator().manual_seed(options.seed)
    source = batches(data.train, options.batch_size, generator)
    pairs = degraded_digits(data.held_out, seed=0)

    def loss_of_batch() -> torch.Tensor:
        images, _ = next(source)
        clean = jitter(unit_range(images), options.jitter_share, generator)
        return restore_loss(model, clean, options, generator)

    def check(averaged: DigitsRestorer) -> dict[str, float]:
        restored = sample_mean_reverting(averaged, pairs.degraded, seed=1, steps=10)
        return {"psnr": float(image_psnr(restored, pairs.clean).mean())}

    run_training(model, loss_of_batch, check, options, out / "digits_restore.safetensors")


def main() -> None:
    """Trains with the options of the command line."""
    description = "Trains the digits restorer on one CPU core."
    options, out = options_of_command_line(RestoreOptions(), description)
    torch.manual_seed(options.seed)
    train(DigitsRestorer(), load_digits_data(), options, out)


if __name__ == "__main__":
    main()
