"""Clean and degraded digits in [0, 1]: noise, blur or holes, drawn from a seeded generator.

Every image gets one of the three, so that a model that restores them has to tell which.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from optimize.measure.quality import psnr
from optimize.recipes.zoo.digits_data import IMAGE_SIZE, DigitsSplit

TASKS = ("noise", "blur", "holes")

NOISE_SIGMA = (0.25, 0.4)
BLUR_SIGMA = (3.0, 4.5)
BLUR_NOISE_SIGMA = 0.03
HOLE_COUNT = 3
HOLE_SIZE = (8, 12)
HOLE_VALUE = 0.5

_BLUR_RADIUS = 14


@dataclass(frozen=True)
class DegradedDigits:
    """Pairs of clean and degraded images.

    Attributes:
        clean: [B, 1, 32, 32], float32, in [0, 1], ink 1 on paper 0.
        degraded: the same shape, dtype and range.
        tasks: [B], int64, index into `TASKS`.
        labels: [B], int64, in [0, 9].
    """

    clean: torch.Tensor
    degraded: torch.Tensor
    tasks: torch.Tensor
    labels: torch.Tensor


def degraded_digits(split: DigitsSplit, seed: int) -> DegradedDigits:
    """Every image of a split once, the tasks in turn; the same for the same seed."""
    tasks = torch.arange(len(split)) % len(TASKS)
    clean = unit_range(split.images)
    degraded = degrade(clean, tasks, torch.Generator().manual_seed(seed))
    return DegradedDigits(clean, degraded, tasks, split.labels)


def unit_range(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as images in [0, 1]."""
    return (images + 1) / 2


def degrade(clean: torch.Tensor, tasks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Degrades each image by its task and clips the result.

    Args:
        clean: [B, 1, 32, 32], in [0, 1].
        tasks: [B], int64, index into `TASKS`.
    Returns:
        The degraded images, shape and range of `clean`.
    """
    ways = (add_noise, blur, cut_holes)
    degraded = torch.empty_like(clean)
    for task, way in enumerate(ways):
        chosen = tasks == task
        degraded[chosen] = way(clean[chosen], generator)
    return degraded.clamp(0, 1)


def add_noise(clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Adds Gaussian noise of a deviation in `NOISE_SIGMA`, in data units."""
    sigma = _uniform(NOISE_SIGMA, len(clean), generator)
    return clean + sigma * torch.randn(clean.shape, generator=generator)


def blur(clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blurs by a Gaussian of a deviation in `BLUR_SIGMA`, in pixels, and adds a little noise.

    Without that noise the blur could be undone exactly.
    """
    count = len(clean)
    offset = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
    sigma = _uniform(BLUR_SIGMA, count, generator)
    kernel = torch.softmax(-0.5 * (offset / sigma) ** 2, dim=-1)  # [B, 1, 1, offsets]
    rows = F.pad(clean, (_BLUR_RADIUS,) * 4, mode="replicate").transpose(0, 1)
    rows = F.conv2d(rows, kernel, groups=count)
    blurred = F.conv2d(rows, kernel.transpose(2, 3), groups=count).transpose(0, 1)
    return blurred + BLUR_NOISE_SIGMA * torch.randn(clean.shape, generator=generator)


def cut_holes(clean: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Replaces `HOLE_COUNT` squares of a width in `HOLE_SIZE`, in pixels, by grey."""
    count, pixel = len(clean), torch.arange(IMAGE_SIZE)
    hidden = torch.zeros(clean.shape, dtype=torch.bool)
    for _ in range(HOLE_COUNT):
        size = torch.randint(HOLE_SIZE[0], HOLE_SIZE[1] + 1, (count,), generator=generator)
        inside = []
        for _ in ("row", "column"):
            place = torch.rand(count, generator=generator)
            first = (place * (IMAGE_SIZE - size + 1)).long()
            inside.append((pixel >= first[:, None]) & (pixel < (first + size)[:, None]))
        rows, columns = inside
        hidden |= (rows[:, :, None] & columns[:, None, :])[:, None]
    return clean.masked_fill(hidden, HOLE_VALUE)


def image_psnr(images: torch.Tensor, clean: torch.Tensor) -> npt.NDArray[np.float64]:
    """Peak signal-to-noise ratio of each image after clipping to [0, 1], [B], in dB."""
    pairs = zip(images.clamp(0, 1).numpy(), clean.numpy(), strict=True)
    return np.array([psnr(image, target, peak=1.0) for image, target in pairs])


def _uniform(limits: tuple[float, float], count: int, generator: torch.Generator) -> torch.Tensor:
    """[count, 1, 1, 1], uniform between the limits."""
    low, high = limits
    return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)
