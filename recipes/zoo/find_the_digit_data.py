"""Scenes of several handwritten digits among cut-up ones, and questions about them.

A scene has 48x48 pixels, 6 x 6 cells of 8 pixels. Some cells hold a digit, each of another class,
some hold a distractor, a digit whose quarters changed places, on a noisy background. A distractor
has the strokes of a digit, so that ink alone does not say where to look. The digits are those of
`digits_data`, with their split, so no digit of a held-out scene was ever trained on.

Questions: "where is digit k" is answered by a row and a column, "which digit is at row r, column c"
by the digit and an end token. Both have four tokens and follow the image; a BOS stands before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from optimize.recipes.zoo.digits_data import CLASS_COUNT, DigitsSplit

SCENE_SIZE = 48
CELLS = 6
"""Rows and columns of cells; the answers to "where"."""

CELL_SIZE = SCENE_SIZE // CELLS
DIGIT_COUNT = 5
DISTRACTOR_COUNT = 13
NO_DIGIT = CLASS_COUNT
"""Label of a cell without a digit."""

BOS, FIND, READ, ANSWER, END = range(5)
FIRST_DIGIT = 5
FIRST_ROW = FIRST_DIGIT + CLASS_COUNT
FIRST_COLUMN = FIRST_ROW + CELLS
VOCABULARY = FIRST_COLUMN + CELLS
PROMPT_TOKENS = 5
"""BOS; after the image a verb, two operands or one and a filler, and what asks for the answer."""

ANSWER_TOKENS = 2
HELD_OUT_SEED = 1_000_000

_Tokens = tuple[torch.Tensor | int, ...]

_PATCH = 12
"""Pixels of the square that a digit is drawn on: its cell and two pixels around it."""

_LARGEST_TURN = math.radians(8)
_LARGEST_SHIFT = 1.0
_SIZES = (8.0, 9.5)
_NOISE = 0.2


@dataclass(frozen=True)
class Scenes:
    """Some scenes and one question of each kind about each.

    Attributes:
        pixels: [B, 1, 48, 48], float32, in [-1, 1], ink towards +1.
        labels: [B, 36], int64, digit of each cell, row after row, or 10 where there is none.
        asked: [B], int64, a cell with a digit: both questions are about it.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    asked: torch.Tensor

    def __len__(self) -> int:
        return len(self.asked)

    @property
    def digits(self) -> torch.Tensor:
        """The digit in the asked cell, [B], int64."""
        return self.labels.gather(1, self.asked[:, None])[:, 0]


@dataclass(frozen=True)
class Questions:
    """Prompts [B, 5] and answers [B, 2], int64 tokens."""

    prompts: torch.Tensor
    answers: torch.Tensor


def localization(scenes: Scenes) -> Questions:
    """Where is digit k: answered by row and column."""
    rows, columns = scenes.asked // CELLS + FIRST_ROW, scenes.asked % CELLS + FIRST_COLUMN
    prompt = (BOS, FIND, scenes.digits + FIRST_DIGIT, END, ANSWER)
    return _questions(len(scenes), prompt, (rows, columns))


def recognition(scenes: Scenes) -> Questions:
    """Which digit is at row r, column c: answered by the digit and the end."""
    rows, columns = scenes.asked // CELLS + FIRST_ROW, scenes.asked % CELLS + FIRST_COLUMN
    prompt = (BOS, READ, rows, columns, ANSWER)
    return _questions(len(scenes), prompt, (scenes.digits + FIRST_DIGIT, END))


def draw_scenes(split: DigitsSplit, count: int, generator: torch.Generator) -> Scenes:
    """Random scenes of the digits of a split."""
    cells = torch.rand(count, CELLS**2, generator=generator).argsort(dim=1)
    digit_cells = cells[:, :DIGIT_COUNT]
    classes = torch.rand(count, CLASS_COUNT, generator=generator).argsort(1)[:, :DIGIT_COUNT]
    digits = split.images[_rows_of(split.labels, classes, generator)]  # [B, digits, 1, 32, 32]
    chosen = torch.randint(len(split), (count, DISTRACTOR_COUNT), generator=generator)
    images = torch.cat([digits, with_quarters_swapped(split.images[chosen])], dim=1)
    patches = _drawn(images, generator)
    used = cells[:, : DIGIT_COUNT + DISTRACTOR_COUNT]
    everywhere = torch.zeros(count, CELLS**2, _PATCH**2)
    everywhere.scatter_(1, used[..., None].expand(-1, -1, _PATCH**2), patches)
    labels = torch.full((count, CELLS**2), NO_DIGIT)
    labels.scatter_(1, digit_cells, classes)
    asked = digit_cells[:, 0].clone()
    return Scenes(_on_background(everywhere, generator), labels, asked)


def held_out_scenes(split: DigitsSplit, first: int, count: int) -> Scenes:
    """Scenes number `first` to `first + count - 1`; each depends on its number only."""
    scenes = [
        draw_scenes(split, 1, torch.Generator().manual_seed(HELD_OUT_SEED + number))
        for number in range(first, first + count)
    ]
    return Scenes(
        torch.cat([scene.pixels for scene in scenes]),
        torch.cat([scene.labels for scene in scenes]),
        torch.cat([scene.asked for scene in scenes]),
    )


def with_quarters_swapped(images: torch.Tensor) -> torch.Tensor:
    """Images [..., H, W] whose quarters changed places crosswise: upper left with lower right."""
    height, width = images.shape[-2:]
    return images.roll((height // 2, width // 2), dims=(-2, -1))


def _questions(count: int, prompt: _Tokens, answer: _Tokens) -> Questions:
    """Questions about `count` scenes, from tokens [B] or tokens that are the same for all."""

    def side_by_side(tokens: _Tokens) -> torch.Tensor:
        return torch.stack([torch.as_tensor(token).expand(count) for token in tokens], dim=1)

    return Questions(side_by_side(prompt), side_by_side(answer))


def _rows_of(
    labels: torch.Tensor, classes: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """For each class of `classes` a random row of `labels` that has it, the shape of `classes`."""
    order = labels.argsort(stable=True)
    counts = labels.bincount(minlength=CLASS_COUNT)
    starts = counts.cumsum(0) - counts
    share = torch.rand(classes.shape, generator=generator)
    return order[starts[classes] + (share * counts[classes]).long()]


def _drawn(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images [B, C, 1, 32, 32] moved, turned and scaled a little: ink [B, C, 144] in [0, 1]."""
    batch, count = images.shape[:2]
    uniform = torch.rand(5, batch * count, generator=generator)
    smallest, largest = _SIZES
    zoom = _PATCH / (smallest + (largest - smallest) * uniform[0])
    angle = (2 * uniform[1] - 1) * _LARGEST_TURN
    x, y = (2 * uniform[2:4] - 1) * (_LARGEST_SHIFT * 2 / _PATCH)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    rows = [
        torch.stack([cos, sin, -(cos * x + sin * y)], dim=-1),
        torch.stack([-sin, cos, sin * x - cos * y], dim=-1),
    ]
    size = [batch * count, 1, _PATCH, _PATCH]
    places = F.affine_grid(torch.stack(rows, dim=-2), size, align_corners=False)
    ink = F.grid_sample((images.flatten(0, 1) + 1) / 2, places, align_corners=False)
    strength = 0.7 + 0.3 * uniform[4]
    return (ink.flatten(1) * strength[:, None]).reshape(batch, count, -1)


def _on_background(patches: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Scenes [B, 1, 48, 48] of ink [B, 36, 144] on a slope with noise."""
    size, margin = (SCENE_SIZE, SCENE_SIZE), (_PATCH - CELL_SIZE) // 2
    ink = F.fold(patches.transpose(1, 2), size, _PATCH, padding=margin, stride=CELL_SIZE)
    count = len(patches)
    corners = torch.rand(count, 1, 2, 2, generator=generator)
    slope = F.interpolate(corners, size, mode="bilinear", align_corners=True)
    noise = torch.randn(count, 1, *size, generator=generator)
    return (1.5 * ink + 0.4 * slope + _NOISE * noise - 0.9).clamp(-1, 1)
