"""Measures the shipped digits DiT: quality by Euler steps, copying, a sheet of samples.

    python -m optimize.recipes.zoo.evaluate_digits_dit --sheet digits.png

Prints the figures of the model card `digits_dit.md`, the table ready to paste.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from optimize.measure.quality import trajectory_distance
from optimize.recipes.zoo.digits_data import (
    CLASS_COUNT,
    HELD_OUT_COUNT,
    flatten_images,
    load_digits_data,
)
from optimize.recipes.zoo.digits_dit import DigitsDiT, load_digits_dit
from optimize.recipes.zoo.digits_judge import DigitsJudge
from optimize.recipes.zoo.digits_sampling import (
    balanced_labels,
    draw_noise,
    sample_digits,
    sigma_schedule,
)

STEP_COUNTS = (2, 4, 8, 12, 20, 50)
REFERENCE_STEPS = 200
TRAJECTORY_SAMPLES = 60
SHEET_ROWS = 8


def print_quality(model: DigitsDiT, judge: DigitsJudge, shift: float) -> torch.Tensor:
    """Prints one row per step count; returns the images of the last, [360, 1, 32, 32]."""
    labels, noise = balanced_labels(HELD_OUT_COUNT), draw_noise(HELD_OUT_COUNT, seed=1)
    few = slice(0, TRAJECTORY_SAMPLES)
    fine = sample_digits(model, noise[few], labels[few], sigma_schedule(REFERENCE_STEPS, shift))
    print(
        "\n| Euler steps | Frechet [95 %] | judge | RMS to fine solution [95 %] | nearest train |"
    )
    print("|---|---|---|---|---|")
    for steps in STEP_COUNTS:
        images = sample_digits(model, noise, labels, sigma_schedule(steps, shift))
        gap = trajectory_distance(flatten_images(images[few]), flatten_images(fine))
        print(
            f"| {steps} | {judge.frechet_interval(images)} | "
            f"{judge.accuracy(images, labels):.1%} | {gap} | "
            f"{judge.nearest_train_distance(images):.3f} |",
            flush=True,
        )
    return images


def save_sheet(images: torch.Tensor, path: Path) -> None:
    """Saves the first images as a picture, one column per class."""
    from PIL import Image

    shown = F.pad(images[: SHEET_ROWS * CLASS_COUNT, 0].clamp(-1, 1), (4, 4, 4, 4), value=-1.0)
    rows = shown.reshape(SHEET_ROWS, CLASS_COUNT, *shown.shape[1:])  # [rows, columns, H, W]
    sheet = rows.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    Image.fromarray(((1 - sheet.numpy()) * 127.5).astype(np.uint8)).save(path)


def main() -> None:
    """Prints the tables of the model card."""
    parser = argparse.ArgumentParser(description="Measures the digits DiT.")
    parser.add_argument("--shift", type=float, default=1.0, help="of the sigma schedule")
    parser.add_argument("--sheet", type=Path, help="where to save a picture of samples")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge, model = DigitsJudge.fit(load_digits_data()), load_digits_dit()
    print(f"real held-out images: Frechet {judge.frechet_floor()}")
    print(f"  judge {judge.held_out_accuracy():.1%}")
    print(f"  nearest train {judge.held_out_nearest_train_distance():.3f}")
    images = print_quality(model, judge, arguments.shift)
    if arguments.sheet:
        save_sheet(images, arguments.sheet)


if __name__ == "__main__":
    main()
