"""Trains the digits DiT on one CPU core and writes its weights and metrics.

    python -m optimize.recipes.zoo.train_digits_dit --steps 2300 --out recipes/zoo

Labels are dropped now and then, so that the model also draws without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from optimize.recipes.zoo.digits_data import NULL_LABEL, DigitsData, load_digits_data
from optimize.recipes.zoo.digits_dit import DigitsDiT
from optimize.recipes.zoo.digits_judge import DigitsJudge
from optimize.recipes.zoo.digits_sampling import (
    TIMESTEPS_PER_SIGMA,
    balanced_labels,
    draw_noise,
    sample_digits,
    sigma_schedule,
)
from optimize.recipes.zoo.training import (
    RunOptions,
    batches,
    options_of_command_line,
    run_training,
    stratified_uniform,
)


@dataclass(frozen=True)
class TrainingOptions(RunOptions):
    """Options of a training run, besides those of any run.

    Attributes:
        label_drop: probability that a label is replaced by the null label.
        logit_mean: mean of log(sigma / (1 - sigma)). Above 0 because neighbouring pixels of an
            enlarged digit agree, so its shape is settled at high noise.
        logit_deviation: standard deviation of the same.
        check_samples: images drawn at each check.
    """

    label_drop: float = 0.1
    logit_mean: float = 0.9
    logit_deviation: float = 1.3
    check_samples: int = 160


def draw_sigmas(options: TrainingOptions, generator: torch.Generator) -> torch.Tensor:
    """Noise levels of one batch, [B], in (0, 1): logit-normal, one from each of B quantiles."""
    quantile = stratified_uniform(options.batch_size, generator)
    normal = torch.special.ndtri(quantile.clamp(1e-4, 1 - 1e-4))
    sigma: torch.Tensor = torch.sigmoid(options.logit_mean + options.logit_deviation * normal)
    return sigma


def flow_loss(
    model: nn.Module,
    clean: torch.Tensor,
    labels: torch.Tensor,
    options: TrainingOptions,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean squared error of the predicted velocity, a scalar.

    Args:
        model: takes a latent, timesteps and labels, as `DigitsDiT` does.
        clean: [B, ...], images or clips.
        labels: [B], int64, in [0, 9].
    """
    sigma = draw_sigmas(options, generator)
    noise = torch.randn(clean.shape, generator=generator)
    dropped = torch.rand(len(labels), generator=generator) < options.label_drop
    labels = labels.masked_fill(dropped, NULL_LABEL)
    weight = sigma.view(-1, *(1,) * (clean.dim() - 1))
    latent = (1 - weight) * clean + weight * noise
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bfloat16):
        velocity = model(latent, sigma * TIMESTEPS_PER_SIGMA, labels)
    return F.mse_loss(velocity.float(), noise - clean)


def check_quality(model: DigitsDiT, judge: DigitsJudge, count: int, steps: int) -> dict[str, float]:
    """Frechet distance and judge accuracy of fresh samples, seed and labels fixed."""
    labels = balanced_labels(count)
    images = sample_digits(model, draw_noise(count, seed=1), labels, sigma_schedule(steps))
    return {
        "frechet": judge.frechet(images),
        "accuracy": judge.accuracy(images, labels),
    }


def train(model: DigitsDiT, data: DigitsData, options: TrainingOptions, out: Path) -> None:
    """Trains on the train split; writes `digits_dit.safetensors` and `digits_dit.json` to `out`."""
    generator = torch.Generator().manual_seed(options.seed)
    judge = DigitsJudge.fit(data)
    source = batches(data.train, options.batch_size, generator)

    def loss_of_batch() -> torch.Tensor:
        clean, labels = next(source)
        return flow_loss(model, clean, labels, options, generator)

    def check(averaged: DigitsDiT) -> dict[str, float]:
        return check_quality(averaged, judge, options.check_samples, steps=10)

    run_training(model, loss_of_batch, check, options, out / "digits_dit.safetensors")


def main() -> None:
    """Trains with the options of the command line."""
    description = "Trains the digits DiT on one CPU core."
    options, out = options_of_command_line(TrainingOptions(), description)
    torch.manual_seed(options.seed)
    train(DigitsDiT(), load_digits_data(), options, out)


if __name__ == "__main__":
    main()
