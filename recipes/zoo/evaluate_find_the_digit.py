"""Measures the shipped digit finder on held-out scenes, and draws some of them.

    python -m optimize.recipes.zoo.evaluate_find_the_digit --sheet scenes.png

Prints the figures of the model card `find_the_digit.md`, the table ready to paste.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from optimize.measure.quality import Interval
from optimize.recipes.zoo.crystal_match import wilson_interval
from optimize.recipes.zoo.digits_data import load_digits_data
from optimize.recipes.zoo.find_the_digit import load_find_the_digit
from optimize.recipes.zoo.find_the_digit_data import (
    CELLS,
    FIRST_COLUMN,
    FIRST_ROW,
    NO_DIGIT,
    Scenes,
    held_out_scenes,
    localization,
    recognition,
)
from optimize.recipes.zoo.find_the_digit_judge import (
    LOCALIZATION_TOKENS,
    RECOGNITION_TOKENS,
    greedy,
    localization_score,
    recognition_score,
)
from optimize.report.images import grid, png, to_picture

SCENES = 1000
SHEET_SCENES = 12


def on_some_digit(answers: torch.Tensor, scenes: Scenes) -> Interval:
    """Share of answers [B, 2] to "where" that name a cell with a digit, asked for or not."""
    cells = (answers[:, 0] - FIRST_ROW) * CELLS + answers[:, 1] - FIRST_COLUMN
    inside = (cells >= 0) & (cells < CELLS**2)
    labels = scenes.labels.gather(1, cells.clamp(0, CELLS**2 - 1)[:, None])[:, 0]
    share = float((inside & (labels != NO_DIGIT)).double().mean())
    return Interval(share, *wilson_interval(share, len(answers)))


def sheet(scenes: Scenes) -> bytes:
    """A PNG of scenes, ink dark."""
    pictures = [to_picture(-pixels[0].numpy(), -1.0, 1.0) for pixels in scenes.pixels]
    return png(grid(pictures, columns=4), scale=4)


def main() -> None:
    """Prints the table of the model card."""
    parser = argparse.ArgumentParser(description="Measures the digit finder.")
    parser.add_argument("--scenes", type=int, default=SCENES, help="held-out scenes to ask about")
    parser.add_argument("--sheet", type=Path, help="where to save a picture of scenes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_find_the_digit()
    scenes = held_out_scenes(load_digits_data().held_out, first=0, count=arguments.scenes)
    where = greedy(model, scenes.pixels, localization(scenes).prompts, LOCALIZATION_TOKENS)
    which = greedy(model, scenes.pixels, recognition(scenes).prompts, RECOGNITION_TOKENS)
    blank = torch.full_like(scenes.pixels, float(scenes.pixels.median()))
    guessed = greedy(model, blank, localization(scenes).prompts, LOCALIZATION_TOKENS)
    named = greedy(model, blank, recognition(scenes).prompts, RECOGNITION_TOKENS)
    print("| | right [95 %] |")
    print("|---|---|")
    print(f"| localization | {localization_score(where, scenes)} |")
    print(f"| localization, on any digit | {on_some_digit(where, scenes)} |")
    print(f"| recognition | {recognition_score(which, scenes)} |")
    print(f"| localization, grey picture | {localization_score(guessed, scenes)} |")
    print(f"| recognition, grey picture | {recognition_score(named, scenes)} |")
    if arguments.sheet:
        few = slice(SHEET_SCENES)
        drawn = Scenes(scenes.pixels[few], scenes.labels[few], scenes.asked[few])
        arguments.sheet.write_bytes(sheet(drawn))


if __name__ == "__main__":
    main()
