"""Measures the shipped digits restorer: its samplers by denoiser calls, and a sheet of results.

    python -m optimize.recipes.zoo.evaluate_digits_restore --sheet restored.png

Prints the figures of the model card `digits_restore.md`, the table ready to paste.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from optimize.measure.quality import Interval, bootstrap_interval, trajectory_distance
from optimize.recipes.zoo.digits_data import flatten_images, load_digits_data
from optimize.recipes.zoo.digits_degradation import (
    TASKS,
    DegradedDigits,
    degraded_digits,
    image_psnr,
)
from optimize.recipes.zoo.digits_judge import DigitsJudge
from optimize.recipes.zoo.digits_restore import DigitsRestorer, load_digits_restore
from optimize.recipes.zoo.digits_restore_sampling import (
    sample_euler,
    sample_mean_reverting,
    sample_posterior,
)

CALL_COUNTS = (5, 10, 20)
RESAMPLES = 1000
REFERENCE_STEPS = 200
TRAJECTORY_SAMPLES = 60
SHEET_COLUMNS = 24
SEED = 1
SHOWN = (("IR-SDE posterior", 100), ("ODE-1", 5), ("ODE-2, denoise last", 10), ("SDE-1", 10))

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "ODE-1": {"order": 1},
    "ODE-2": {"order": 2},
    "ODE-2, denoise last": {"order": 2, "denoise_last": True},
    "SDE-1": {"order": 1, "stochastic": True},
    "SDE-2": {"order": 2, "stochastic": True},
    "SDE-2, denoise last": {"order": 2, "stochastic": True, "denoise_last": True},
}
"""The MR Sampler by its options."""

Sampler = Callable[[DigitsRestorer, torch.Tensor, int], torch.Tensor]


def samplers() -> Iterator[tuple[str, int, Sampler]]:
    """Name, denoiser calls and function of each sampler; the reference of the gains first."""
    yield "IR-SDE posterior", 100, sample_posterior
    yield "IR-SDE Euler", 100, sample_euler
    for name, options in PUBLISHED.items():
        for calls in CALL_COUNTS:
            yield name, calls, partial(sample_mean_reverting, steps=calls, **options)


def print_quality(
    model: DigitsRestorer, judge: DigitsJudge, pairs: DegradedDigits
) -> dict[str, torch.Tensor]:
    """Prints one row per sampler; returns the images of the samplers that the sheet shows."""
    print(
        "\n| sampler | calls | PSNR, dB | gain over posterior, dB [95 %] | "
        f"{' | '.join(TASKS)} | judge | Frechet |"
    )
    print("|---" * (6 + len(TASKS)) + "|")
    print_row("none (degraded)", 0, pairs.degraded, None, judge, pairs)
    reference, shown = None, {}
    for name, calls, sample in samplers():
        images = sample(model, pairs.degraded, SEED)
        decibels = print_row(name, calls, images, reference, judge, pairs)
        reference = decibels if reference is None else reference
        if (name, calls) in SHOWN:
            shown[f"{name} {calls}"] = images
    return shown


def print_distances(model: DigitsRestorer, pairs: DegradedDigits) -> None:
    """Prints how far the ordinary samplers end from the exact solution, a row per sampler."""
    few = pairs.degraded[:TRAJECTORY_SAMPLES]
    fine = sample_mean_reverting(model, few, SEED, REFERENCE_STEPS)
    print(
        f"\nPSNR of {REFERENCE_STEPS} steps: {image_psnr(fine, pairs.clean[: len(few)]).mean():.2f}"
    )
    print("\n| sampler | calls | RMS to the exact solution [95 %] |\n|---|---|---|")
    for name, options in PUBLISHED.items():
        for calls in () if options.get("stochastic") else CALL_COUNTS:
            images = sample_mean_reverting(model, few, SEED, calls, **options)
            gap = trajectory_distance(flatten_images(images), flatten_images(fine))
            print(f"| {name} | {calls} | {gap} |", flush=True)


def print_row(
    name: str,
    calls: int,
    images: torch.Tensor,
    reference: npt.NDArray[np.float64] | None,
    judge: DigitsJudge,
    pairs: DegradedDigits,
) -> npt.NDArray[np.float64]:
    """Prints the figures of some restored images; returns the PSNR of each, [B], in dB.

    Args:
        reference: [B], the PSNR they are compared with, image by image.
    """
    decibels, signed = image_psnr(images, pairs.clean), 2 * images.clamp(0, 1) - 1
    gain = "" if reference is None else f"{mean_interval(decibels - reference)}"
    by_task = " | ".join(
        f"{decibels[pairs.tasks == task].mean():.2f}" for task in range(len(TASKS))
    )
    print(
        f"| {name} | {calls} | {decibels.mean():.2f} | {gain} | {by_task} | "
        f"{judge.accuracy(signed, pairs.labels):.1%} | {judge.frechet(signed):.3g} |",
        flush=True,
    )
    return decibels


def mean_interval(values: npt.NDArray[np.float64]) -> Interval:
    """The mean of [B] values with a bootstrap interval."""
    return bootstrap_interval(values, lambda some: float(some.mean()), RESAMPLES, seed=0)


def save_sheet(rows: list[torch.Tensor], path: Path) -> None:
    """Saves the first images of each row as a picture, one column per image."""
    from PIL import Image

    shown = torch.stack([row[:SHEET_COLUMNS, 0].clamp(0, 1) for row in rows])
    shown = F.pad(shown, (2, 2, 2, 2), value=0.5)  # [rows, columns, H, W]
    sheet = shown.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    Image.fromarray(((1 - sheet.numpy()) * 255).astype(np.uint8)).save(path)


def main() -> None:
    """Prints the tables of the model card."""
    parser = argparse.ArgumentParser(description="Measures the digits restorer.")
    parser.add_argument("--sheet", type=Path, help="where to save a picture of results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_digits_data()
    judge, model = DigitsJudge.fit(data), load_digits_restore()
    pairs = degraded_digits(data.held_out, seed=0)
    print(f"clean images: judge {judge.held_out_accuracy():.1%}, {judge.frechet_floor().value:.3g}")
    shown = print_quality(model, judge, pairs)
    print_distances(model, pairs)
    if arguments.sheet:
        save_sheet([pairs.clean, pairs.degraded, *shown.values()], arguments.sheet)
        print(f"\nrows of {arguments.sheet}: clean, degraded, {', '.join(shown)}")


if __name__ == "__main__":
    main()
