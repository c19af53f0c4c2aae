"""Clips of handwritten digits that move and turn: 8 frames of 16x16 pixels, drawn from real digits.

A digit starts somewhere, goes straight on, is thrown back by the border, and turns a little; the
frame half-way through the clip shows it upright. The digits are those of `digits_data`, with their
split, so no digit of a held-out clip was ever trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from optimize.recipes.zoo.digits_data import DigitsSplit

FRAMES = 8
FRAME_SIZE = 16

DIGIT_SIZE = 10.0
"""Height and width of a digit, pixels of the clip."""

SPEEDS = (0.4, 1.4)
"""Least and most pixels per frame."""

LARGEST_TURN = math.radians(4)
"""Radians per frame."""


@dataclass(frozen=True)
class Motion:
    """How the digits of some clips move.

    Attributes:
        centers: [B, F, 2], float32, the digit's centre (x, y) in pixels from the frame's centre.
        angles: [B, F], float32, radians.
    """

    centers: torch.Tensor
    angles: torch.Tensor


def draw_motion(count: int, generator: torch.Generator) -> Motion:
    """Random motions of `count` clips; the digit's box never leaves the frame."""
    room = (FRAME_SIZE - DIGIT_SIZE) / 2
    start = (2 * torch.rand(count, 1, 2, generator=generator) - 1) * room
    direction = 2 * math.pi * torch.rand(count, generator=generator)
    slow, fast = SPEEDS
    speed = slow + (fast - slow) * torch.rand(count, generator=generator)
    velocity = speed[:, None] * torch.stack([direction.cos(), direction.sin()], dim=-1)
    time = torch.arange(FRAMES, dtype=torch.float32)
    straight = start + velocity[:, None] * time[:, None]
    # A straight line folded back at both borders is a ball between two walls.
    folded = (straight + room).remainder(4 * room)
    centers = torch.where(folded > 2 * room, 4 * room - folded, folded) - room
    turn = (2 * torch.rand(count, 1, generator=generator) - 1) * LARGEST_TURN
    return Motion(centers, turn * (time - (FRAMES - 1) / 2))


def render(images: torch.Tensor, motion: Motion) -> torch.Tensor:
    """Clips of digits in motion.

    Args:
        images: [B, 1, 32, 32], float32, in [-1, 1], ink +1 on paper -1.
        motion: of B clips.
    Returns:
        [B, 1, 8, 16, 16], float32, in [-1, 1].
    """
    count = len(images)
    zoom = FRAME_SIZE / DIGIT_SIZE
    cos, sin = motion.angles.cos() * zoom, motion.angles.sin() * zoom
    # Where a pixel of the frame, in [-1, 1], lies in the image: turned and moved back.
    moved = motion.centers * (2 / FRAME_SIZE)
    x, y = moved.unbind(-1)
    rows = [
        torch.stack([cos, sin, -(cos * x + sin * y)], dim=-1),
        torch.stack([-sin, cos, sin * x - cos * y], dim=-1),
    ]
    matrices = torch.stack(rows, dim=-2).flatten(0, 1)  # [B * F, 2, 3]
    size = [count * FRAMES, 1, FRAME_SIZE, FRAME_SIZE]
    places = F.affine_grid(matrices, size, align_corners=False)
    repeated = images.repeat_interleave(FRAMES, dim=0)
    # Outside its box a digit's image ends; zeros there are paper once ink is counted from 0.
    ink = F.grid_sample((repeated + 1) / 2, places, align_corners=False)
    return (ink * 2 - 1).reshape(count, FRAMES, 1, FRAME_SIZE, FRAME_SIZE).transpose(1, 2)


def clips_of(split: DigitsSplit, seed: int) -> torch.Tensor:
    """One clip of each digit of a split, in its order, [B, 1, 8, 16, 16]."""
    generator = torch.Generator().manual_seed(seed)
    return render(split.images, draw_motion(len(split), generator))
