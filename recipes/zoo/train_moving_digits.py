"""Trains the moving-digits DiT on one CPU core and writes its weights and metrics.

    python -m optimize.recipes.zoo.train_moving_digits --out recipes/zoo

Every clip is new: a train digit in a motion that is drawn for it. Labels are dropped now and then,
so that the model also draws without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from optimize.recipes.zoo.digits_data import DigitsData, load_digits_data
from optimize.recipes.zoo.digits_sampling import balanced_labels
from optimize.recipes.zoo.moving_digits import MovingDigitsDiT
from optimize.recipes.zoo.moving_digits_data import draw_motion, render
from optimize.recipes.zoo.moving_digits_judge import MovingDigitsJudge
from optimize.recipes.zoo.moving_digits_sampling import clip_noise, sample_clips
from optimize.recipes.zoo.train_digits_dit import TrainingOptions, flow_loss
from optimize.recipes.zoo.training import batches, options_of_command_line, run_training


@dataclass(frozen=True)
class ClipOptions(TrainingOptions):
    """Options of a training run.

    The pixels of a clip agree even more than those of a picture, so more of the noise is high.
    """

    steps: int = 3000
    logit_mean: float = 1.2
    logit_deviation: float = 1.4
    check_samples: int = 100
    check_every: int = 500


def train(model: MovingDigitsDiT, data: DigitsData, options: ClipOptions, out: Path) -> None:
    """Trains on the train split; writes `moving_digits.safetensors` and `.json` to `out`."""
    generator = torch.Generator().manual_seed(options.seed)
    judge = MovingDigitsJudge.fit(data)
    source = batches(data.train, options.batch_size, generator)

    def loss_of_batch() -> torch.Tensor:
        images, labels = next(source)
        clips = render(images, draw_motion(len(images), generator))
        return flow_loss(model, clips, labels, options, generator)

    def check(averaged: MovingDigitsDiT) -> dict[str, float]:
        labels = balanced_labels(options.check_samples)
        clips = sample_clips(averaged, clip_noise(len(labels), seed=1), labels, steps=10)
        return {
            "frechet": judge.frechet_interval(clips).value,
            "accuracy": judge.accuracy(clips, labels),
        }

    run_training(model, loss_of_batch, check, options, out / "moving_digits.safetensors")


def main() -> None:
    """Trains with the options of the command line."""
    description = "Trains the moving-digits DiT on one CPU core."
    options, out = options_of_command_line(ClipOptions(), description)
    torch.manual_seed(options.seed)
    train(MovingDigitsDiT(), load_digits_data(), options, out)


if __name__ == "__main__":
    main()
