"""Measures the shipped moving-digits DiT: quality by Euler steps, a sheet of clips.

    python -m optimize.recipes.zoo.evaluate_moving_digits --sheet clips.png

Prints the figures of the model card `moving_digits.md`, the table ready to paste.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from optimize.measure.quality import trajectory_distance
from optimize.recipes.zoo.digits_data import CLASS_COUNT, HELD_OUT_COUNT, load_digits_data
from optimize.recipes.zoo.digits_sampling import balanced_labels
from optimize.recipes.zoo.moving_digits import load_moving_digits
from optimize.recipes.zoo.moving_digits_judge import MovingDigitsJudge, flat_clips
from optimize.recipes.zoo.moving_digits_sampling import clip_noise, sample_clips
from optimize.report.images import grid, png, to_picture

STEP_COUNTS = (4, 8, 20, 50)
REFERENCE_STEPS = 200
TRAJECTORY_SAMPLES = 40


def sheet(clips: torch.Tensor) -> bytes:
    """A PNG of clips, one per row, its frames from left to right; ink is dark."""
    frames = [to_picture(-frame.numpy(), -1.0, 1.0) for clip in clips[:, 0] for frame in clip]
    return png(grid(frames, columns=clips.shape[2]), scale=4)


def main() -> None:
    """Prints the table of the model card."""
    parser = argparse.ArgumentParser(description="Measures the moving-digits DiT.")
    parser.add_argument("--sheet", type=Path, help="where to save a picture of clips")
    arguments = parser.parse_args()
    judge, model = MovingDigitsJudge.fit(load_digits_data()), load_moving_digits()
    labels, noise = balanced_labels(HELD_OUT_COUNT), clip_noise(HELD_OUT_COUNT, seed=1)
    few = slice(0, TRAJECTORY_SAMPLES)
    fine = sample_clips(model, noise[few], labels[few], REFERENCE_STEPS)
    print("| Euler steps | Frechet [95 %] | judge | RMS to fine solution [95 %] |")
    print("|---|---|---|---|")
    clips = noise
    for steps in STEP_COUNTS:
        clips = sample_clips(model, noise, labels, steps)
        gap = trajectory_distance(flat_clips(clips[few]), flat_clips(fine))
        accuracy = judge.accuracy(clips, labels)
        print(f"| {steps} | {judge.frechet_interval(clips)} | {accuracy:.1%} | {gap} |", flush=True)
    real = judge.frechet_interval(judge.held_out)
    print(f"| real held-out clips | {real} | {judge.held_out_accuracy():.1%} | |")
    if arguments.sheet:
        arguments.sheet.write_bytes(sheet(clips[:CLASS_COUNT]))


if __name__ == "__main__":
    main()
