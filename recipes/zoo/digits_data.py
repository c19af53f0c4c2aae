"""Handwritten digits as 32x32 images, split once and for all into train and held-out.

The images are scikit-learn's copy of the UCI Optical Recognition of Handwritten Digits data set
(8x8, 1797 images, ten classes), enlarged by bicubic interpolation and clipped to the native range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

IMAGE_SIZE = 32
CLASS_COUNT = 10
NULL_LABEL = 10
HELD_OUT_COUNT = 360
SPLIT_SEED = 0

_NATIVE_SIZE = 8
_LARGEST_INTENSITY = 16.0


@dataclass(frozen=True)
class DigitsSplit:
    """One part of the data.

    Attributes:
        images: [B, 1, 32, 32], float32, in [-1, 1], ink +1 on paper -1.
        labels: [B], int64, in [0, 9].
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return int(self.labels.shape[0])


@dataclass(frozen=True)
class DigitsData:
    """The train split (1437 images) and the held-out split (360 images)."""

    train: DigitsSplit
    held_out: DigitsSplit


def load_digits_data() -> DigitsData:
    """Loads the digits, enlarges them and splits them with a fixed seed, stratified by class.

    Raises:
        ModuleNotFoundError: scikit-learn, which carries the images, is not installed.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    train_rows, held_out_rows = train_test_split(
        np.arange(len(labels)),
        test_size=HELD_OUT_COUNT,
        random_state=SPLIT_SEED,
        stratify=labels,
    )
    images = enlarge(torch.from_numpy(np.asarray(pixels, dtype=np.float32)))
    classes = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    return DigitsData(
        train=DigitsSplit(images[train_rows], classes[train_rows]),
        held_out=DigitsSplit(images[held_out_rows], classes[held_out_rows]),
    )


def enlarge(pixels: torch.Tensor) -> torch.Tensor:
    """Turns native digits into images.

    Args:
        pixels: [B, 64], ink intensity in [0, 16].
    Returns:
        [B, 1, 32, 32], float32, in [-1, 1]; intensity 0 is -1 and 16 is +1.
    """
    native = pixels.float().reshape(-1, 1, _NATIVE_SIZE, _NATIVE_SIZE) / _LARGEST_INTENSITY * 2 - 1
    enlarged = F.interpolate(
        native, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False
    )
    return enlarged.clamp(-1, 1)


def flatten_images(images: torch.Tensor) -> npt.NDArray[np.float64]:
    """Images [B, 1, 32, 32] as feature rows [B, 1024], float64."""
    rows: npt.NDArray[np.float64] = images.detach().flatten(1).double().cpu().numpy()
    return rows
